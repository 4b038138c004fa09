"""Reading other people's CSV tables: every complaint names file, row, cause and fix."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import pandas as pd

from perfpred.errors import DatasetError


def read_csv(path: str | Path, columns: Mapping[str, type], optional: Collection[str] = ()) -> pd.DataFrame:
    """Reads a CSV table, compressed or not, and converts its columns.

    Args:
        path: File with a header line.
        columns: Type of each column: `str` (empty stays empty), `int` or `float` (positive numbers).
        optional: Columns that may be absent or empty.

    Returns:
        The named columns; row labels are line numbers of the file, for `refuse`.

    Raises:
        DatasetError: The file can't be read, lacks a column or a value, or holds a bad number.
    """
    try:
        table = pd.read_csv(path, dtype=str, keep_default_na=False, skipinitialspace=True)
    except OSError as error:
        raise DatasetError(f"{path}: can't be read ({error.strerror or error}); check the path") from error
    except ValueError as error:
        raise DatasetError(f"{path}: is not a CSV table with a header line ({error}); export it again") from error
    table.index = pd.RangeIndex(2, len(table) + 2)
    missing = [name for name in columns if name not in table and name not in optional]
    if missing:
        near = {name: get_close_matches(name, table.columns, n=1) for name in missing}
        hints = [f"{name!r}" + (f" (rename {found[0]!r}?)" if found else "") for name, found in near.items()]
        raise DatasetError(f"{path}: has no column {', '.join(hints)}; add it, the header names the columns")
    made: dict[str, Any] = {}
    for name, kind in columns.items():
        text = table[name].str.strip() if name in table else pd.Series("", index=table.index)
        if name not in optional:
            refuse(path, table, text == "", name, "is empty; fill it in")
        if kind is str:
            made[name] = text
            continue
        numbers = pd.to_numeric(text.where(text != "", None), errors="coerce")
        wrong = (text != "") & ~(numbers > 0)
        if kind is int:
            wrong |= (text != "") & (numbers % 1 != 0)
        refuse(path, table, wrong, name, f"is not a positive {'whole ' if kind is int else ''}number; correct it")
        made[name] = numbers.astype("Int64" if kind is int and name in optional else kind, errors="ignore")
    return pd.DataFrame(made, index=table.index)


def refuse(path: str | Path, table: pd.DataFrame, wrong: pd.Series[bool], column: str, what: str) -> None:
    """Raises if any row is wrong, naming the first.

    Raises:
        DatasetError: File, line, column, value, cause and fix.
    """
    if wrong.any():
        line = int(wrong.index[int(wrong.to_numpy(bool).argmax())])
        more = f" ({int(wrong.sum())} rows)" if wrong.sum() > 1 else ""
        value = str(table.at[line, column]) if column in table else ""
        raise DatasetError(f"{path}: line {line}: {column} '{value}' {what}{more}")


def refuse_unknown(path: str | Path, table: pd.DataFrame, column: str, known: Collection[str]) -> None:
    """Raises if a column holds a word that isn't known, with what is near.

    Raises:
        DatasetError: As `refuse`.
    """
    wrong = ~table[column].isin(list(known))
    if wrong.any():
        word = str(table.at[wrong[wrong].index[0], column])
        near = get_close_matches(word, known, n=3, cutoff=0.5) or sorted(known)[:20]
        refuse(path, table, wrong, column, f"is unknown; use one of {', '.join(near)}")

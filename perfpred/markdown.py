"""The Markdown that experiments write: headings, paragraphs, points, tables and figures, and nothing else of it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import groupby
from typing import Any, Final

_FIGURE: Final = re.compile(r"!\[(.*?)\]\((.+?)\)")
_STARTS: Final = {"#": "heading", "* ": "points", "- ": "points", "|": "table", "![": "figure"}


def parts(text: str) -> Iterator[tuple[str, Any]]:
    """A page's parts in order, each by its kind.

    Yields:
        `heading` and `text` with a string, `points` with a list of strings, `table` with a list of records of strings,
        `figure` with the pairs of caption and file.
    """
    for kind, group in groupby(text.splitlines(), key=_kind):
        lines = list(group)
        if kind == "heading":
            yield from ((kind, line.lstrip("#").strip()) for line in lines)
        elif kind == "points":
            yield kind, [line[2:].strip() for line in lines]
        elif kind == "table":
            head, _, *rows = [[cell.strip() for cell in line.strip().strip("|").split("|")] for line in lines]
            yield kind, [dict(zip(head, row, strict=True)) for row in rows]
        elif kind == "figure":
            yield kind, [pair for line in lines for pair in _FIGURE.findall(line)]
        elif kind:
            yield kind, " ".join(line.strip() for line in lines)


def _kind(line: str) -> str:
    """What a line is part of; nothing where it is blank."""
    return next((kind for start, kind in _STARTS.items() if line.startswith(start)), "text" if line.strip() else "")

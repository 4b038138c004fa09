"""Raw records: one JSON file per engine, written atomically; finished campaigns are packed into one file.

A dataset folder holds `raw/<engine id>.json` and any number of `raw*.jsonl.xz`. A record is either there whole or
not at all, and an engine has one record, whatever is killed when.
"""

from __future__ import annotations

import json
import lzma
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from perfpred.errors import FormatError

RAW_FORMAT: Final = "perfpred.raw"
RAW_VERSION: Final = 1

_FOLDER: Final = "raw"
_HEADER: Final = "raw.format.json"


class RawStore:
    """The raw records of one dataset folder.

    Args:
        folder: Dataset; made if missing.

    Raises:
        FormatError: The folder was written by another version.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        header = self.folder / _HEADER
        content = {"format": RAW_FORMAT, "version": RAW_VERSION}
        if header.exists():
            _expect(_parse(header.read_text(), str(header)), str(header))
        else:
            (self.folder / _FOLDER).mkdir(parents=True, exist_ok=True)
            _write_atomically(header, json.dumps(content) + "\n")
        (self.folder / _FOLDER).mkdir(exist_ok=True)
        for leftover in (self.folder / _FOLDER).glob("*.part"):
            leftover.unlink(missing_ok=True)

    def write(self, record: Mapping[str, Any]) -> None:
        """Store a record under its `engine_id`; a complete file appears or nothing.

        Raises:
            OSError: The disk is full or not writable; nothing is left behind.
        """
        content = {"format": RAW_FORMAT, "version": RAW_VERSION, **record}
        _write_atomically(self.folder / _FOLDER / f"{record['engine_id']}.json", json.dumps(content) + "\n")

    def statuses(self) -> dict[str, str]:
        """Status of every engine that has a record."""
        return {record["engine_id"]: record["status"] for record in records(self.folder)}


def _write_atomically(path: Path, text: str) -> None:
    part = path.with_suffix(f".{os.getpid()}.part")
    try:
        with part.open("w") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise


def _parse(line: str, where: str) -> dict[str, Any]:
    try:
        content = json.loads(line)
    except json.JSONDecodeError as error:
        raise FormatError(f"{where} is not JSON ({error}): delete it and collect again") from error
    if not isinstance(content, dict):
        raise FormatError(f"{where} is not a record: delete it and collect again")
    return content


def _expect(content: Mapping[str, Any], where: str) -> None:
    if content.get("format") != RAW_FORMAT or content.get("version") != RAW_VERSION:
        raise FormatError(
            f"{where} has format {content.get('format')} version {content.get('version')}; this program reads and "
            f"writes {RAW_FORMAT} version {RAW_VERSION}: use another output folder"
        )


def _lines(folder: Path) -> Iterator[tuple[str, str]]:
    for path in sorted((folder / _FOLDER).glob("*.json")):
        yield str(path), path.read_text()
    for path in sorted(folder.glob("raw*.jsonl.xz")):
        with lzma.open(path, "rt") as file:
            for number, line in enumerate(file, 1):
                yield f"{path}:{number}", line


def records(folder: str | Path) -> Iterator[dict[str, Any]]:
    """Every raw record of a dataset, each engine once; loose files win over packed ones.

    Raises:
        FormatError: A record is malformed or of another version.
    """
    seen: set[str] = set()
    for where, line in _lines(Path(folder)):
        record = _parse(line, where)
        _expect(record, where)
        if record["engine_id"] not in seen:
            seen.add(record["engine_id"])
            yield record


def pack(folder: str | Path, target: str | Path | None = None, per_file: int = 2500) -> list[Path]:
    """Write all records into compressed files, sorted by engine; the loose files stay.

    Args:
        folder: Dataset.
        target: Folder to write `raw-<n>.jsonl.xz` into, the dataset by default.
        per_file: Most records in one file.

    Returns:
        The files written.
    """
    home = Path(target or folder)
    home.mkdir(parents=True, exist_ok=True)
    found = sorted(records(folder), key=lambda record: str(record["engine_id"]))
    written = []
    for number, start in enumerate(range(0, len(found), per_file)):
        path = home / f"raw-{number}.jsonl.xz"
        part = path.with_suffix(".part")
        with lzma.open(part, "wt", preset=3) as file:
            for record in found[start : start + per_file]:
                file.write(json.dumps(record, separators=(",", ":")) + "\n")
        part.replace(path)
        written.append(path)
    return written

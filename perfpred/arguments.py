"""Command-line values with a unit or a shape in them."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Final

from perfpred.errors import UsageError

_UNITS: Final = {"s": 1.0, "ms": 1e-3, "us": 1e-6, "µs": 1e-6, "ns": 1e-9}
_BUDGET: Final = re.compile(r"\s*([0-9.]+(?:e-?\d+)?)\s*(s|ms|us|µs|ns)?\s*", re.IGNORECASE)


def parse_budget(text: str) -> float:
    """Seconds in a text such as `33ms`; seconds where no unit is given.

    Raises:
        UsageError: It is no positive time.
    """
    match = _BUDGET.fullmatch(text)
    try:
        value = float(match.group(1)) * _UNITS[(match.group(2) or "s").lower()] if match else 0.0
    except ValueError:
        value = 0.0
    if value <= 0:
        raise UsageError(f"budget '{text}' is no positive time; give one such as 33ms, 0.5s or 800us")
    return value


def parse_inputs(texts: Iterable[str]) -> dict[str, tuple[int, ...]]:
    """Shapes by input name from texts such as `images:1x3x224x224`.

    Raises:
        UsageError: A text is none, or a dimension isn't positive.
    """
    made: dict[str, tuple[int, ...]] = {}
    for text in texts:
        name, colon, dims = text.rpartition(":")
        try:
            shape = tuple(int(d) for d in re.split("[x,]", dims))
        except ValueError:
            shape = ()
        if not colon or not name or not shape or min(shape) < 1:
            raise UsageError(f"--input '{text}' is no NAME:1x3x224x224 with positive dimensions")
        made[name] = shape
    return made


def parse_numbers(text: str, what: str) -> list[int]:
    """Positive integers in a text such as `1,4,8`.

    Raises:
        UsageError: It holds something else.
    """
    try:
        found = [int(part) for part in text.split(",")]
    except ValueError:
        found = []
    if not found or min(found) < 1:
        raise UsageError(f"{what} '{text}' is no list of positive numbers such as 1,4,8")
    return found

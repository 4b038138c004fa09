"""A page of sections as self-contained HTML: text, figures and sortable tables; it needs nothing from outside."""

from __future__ import annotations

import base64
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
import pandas as pd

from perfpred import __version__, charts
from perfpred.errors import RuntimeUnavailableError

_TEMPLATE: Final = Path(__file__).with_name("templates") / "report.html"
_FRACTIONS: Final = frozenset(
    {"mape", "macro_mape", "median_ape", "within_5", "within_10", "concordance", "coverage", "width", "share",
     "scaled_roofline", "nearest", "run_to_run", "rebuild_to_rebuild", "floor", "error"}
)  # fmt: skip
#: A number as Markdown tables have it.
_NUMBER: Final = re.compile(r"([-+]?\d[\d,]*(?:\.\d+)?(?:e[-+]?\d+)?) ?(?:%|ms|s)?")


@dataclass
class Section:
    """A part of the page: a title for the navigation, then text, figures and tables in order."""

    title: str
    blocks: list[dict[str, Any]] = field(default_factory=list)
    anchor: str = ""

    def say(self, text: str) -> Section:
        """Adds a paragraph."""
        self.blocks.append({"text": text})
        return self

    def chart(self, svg: str, caption: str, *, searchable: bool = False) -> Section:
        """Adds an SVG of `perfpred.charts`; a searchable one gets a field that dims what doesn't match."""
        self.blocks.append({"svg": svg, "caption": caption, "filter": searchable})
        return self

    def image(self, png: bytes, caption: str) -> Section:
        """Adds a PNG."""
        self.blocks.append({"png": base64.b64encode(png).decode(), "caption": caption})
        return self

    def head(self, text: str) -> Section:
        """Adds a heading within the section."""
        self.blocks.append({"heading": text})
        return self

    def points(self, items: Sequence[str]) -> Section:
        """Adds a list of sentences."""
        self.blocks.append({"points": list(items)})
        return self

    def table(self, caption: str, rows: Sequence[Mapping[str, Any]]) -> Section:
        """Adds a sortable table of records with the same keys; names ending in `_s` are times in seconds."""
        if not rows:
            return self.say(f"{caption}: none.")
        columns = [str(c) for c in rows[0]]
        cells = [[_cell(column, row.get(column)) for column in columns] for row in rows]
        named = [{"cells": row, "name": " ".join(str(c["text"]) for c in row).lower()} for row in cells]
        shown = [c.removesuffix("_s").replace("_", " ") for c in columns]
        self.blocks.append({"caption": caption, "columns": shown, "rows": named})
        return self


def _cell(column: str, value: Any) -> dict[str, Any]:
    if value is None or (isinstance(value, float) and not np.isfinite(value)) or value is pd.NA:
        return {"text": "–", "number": None}
    if isinstance(value, (bool, str)) or not isinstance(value, (int, float, np.number)):
        said = _NUMBER.fullmatch(str(value))
        return {"text": str(value), "number": float(said[1].replace(",", "")) if said else None}
    number = float(value)
    if column.endswith("_s"):
        text = charts.seconds(number)
    elif column in _FRACTIONS:
        text = charts.percent(number)
    else:
        text = f"{number:,.0f}" if number == int(number) else f"{number:.3g}"
    return {"text": text, "number": number}


def page(title: str, sections: Sequence[Section], *, subtitle: str = "") -> str:
    """The HTML of a page.

    Raises:
        RuntimeUnavailableError: jinja2 is not installed.
    """
    try:
        from jinja2 import Environment
    except ImportError as error:
        raise RuntimeUnavailableError("report pages need jinja2; pip install 'perfpred[report]'") from error
    taken: dict[str, int] = {}
    for section in sections:
        slug = re.sub(r"[^a-z0-9]+", "-", section.title.lower()).strip("-") or "section"
        taken[slug] = taken.get(slug, 0) + 1
        section.anchor = slug if taken[slug] == 1 else f"{slug}-{taken[slug]}"
    environment = Environment(autoescape=True, trim_blocks=True)
    environment.filters["code"] = _with_code
    template = environment.from_string(_TEMPLATE.read_text(encoding="utf-8"))
    return template.render(title=title, subtitle=subtitle, sections=sections, footer=f"Made by perfpred {__version__}.")


def _with_code(text: str) -> Any:
    """Text as HTML, what stands between backticks as code."""
    from markupsafe import Markup, escape

    return Markup(re.sub(r"`([^`]+)`", r"<code>\1</code>", str(escape(text))))

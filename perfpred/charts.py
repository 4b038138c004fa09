"""Charts of a report page as inline SVG: names on hover, colours from the page's theme, no library in the browser."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from html import escape
from typing import Final

import numpy as np
import pandas as pd

_WIDTH: Final = 720.0
_LEFT: Final = 190.0
_ROW: Final = 20.0
#: Dots of a scatter; a page of tens of thousands would be slow to open and no clearer.
_MOST_DOTS: Final = 2500
_COLOURS: Final = 6


def seconds(value_s: float) -> str:
    """A time as people read it, three significant digits."""
    for unit, scale in (("s", 1.0), ("ms", 1e-3), ("µs", 1e-6)):
        if value_s >= scale or unit == "µs":
            return f"{value_s / scale:.3g} {unit}"
    raise AssertionError


def percent(value: float) -> str:
    """A fraction in per cent."""
    return f"{value:.1%}" if value < 0.1 else f"{value:.0%}"


def _svg(height: float, body: Iterable[str], label: str) -> str:
    return (
        f'<svg viewBox="0 0 {_WIDTH:g} {height:g}" role="img" aria-label="{escape(label, quote=True)}">'
        + "".join(body)
        + "</svg>"
    )


def _line(x1: float, y1: float, x2: float, y2: float, kind: str) -> str:
    return f'<line class="{kind}" x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"/>'


def _text(x: float, y: float, text: str, anchor: str = "middle") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'


def _decades(low: float, high: float) -> list[float]:
    steps = [10.0**e for e in range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)]
    if len(steps) <= 3:
        steps = sorted({s * f for s in steps for f in (1, 2, 5)})
    return [s for s in steps if low <= s <= high]


def scatter(points: pd.DataFrame, *, group: str | None = None, name: str = "measured against predicted latency") -> str:
    """Measured against predicted latency on logarithmic axes, with the diagonal and a 10 % band.

    Args:
        points: Columns `measured_s`, `predicted_s`, `label` (shown on hover) and, if given, the group's.
        group: Column that colours the dots; groups beyond the sixth share a colour.
        name: What a screen reader says of it.
    """
    known = points[np.isfinite(points["predicted_s"]) & (points["predicted_s"] > 0)]
    known = known.sample(min(len(known), _MOST_DOTS), random_state=0)
    if known.empty:
        return _svg(40, [_text(_WIDTH / 2, 24, "nothing to show")], name)
    low = 0.8 * float(known[["measured_s", "predicted_s"]].min().min())
    high = 1.25 * float(known[["measured_s", "predicted_s"]].max().max())
    side, top, left = 480.0, 12.0, 100.0

    def at(value: float) -> float:
        return side * math.log(value / low) / math.log(high / low)

    def y(value: float) -> float:
        return top + side - at(value)

    body = [f'<rect class="frame" x="{left}" y="{top}" width="{side}" height="{side}"/>']
    for step in _decades(low, high):
        body += [
            _line(left + at(step), top, left + at(step), top + side, "grid"),
            _line(left, y(step), left + side, y(step), "grid"),
            _text(left + at(step), top + side + 16, seconds(step)),
            _text(left - 6, y(step) + 4, seconds(step), "end"),
        ]
    body.append(_line(left, top + side, left + side, top, "ideal"))
    for factor in (0.9, 1.1):
        begin, end = max(low, low / factor), min(high, high / factor)
        body.append(_line(left + at(begin), y(begin * factor), left + at(end), y(end * factor), "band"))
    groups = list(known[group].astype(str).value_counts().index) if group else [""]
    colour = {g: min(i, _COLOURS - 1) for i, g in enumerate(groups)}
    labels = known[group].astype(str) if group else pd.Series("", index=known.index)
    for row, of in zip(known.to_dict("records"), labels, strict=True):
        shown = f"{row['label']}: measured {seconds(row['measured_s'])}, predicted {seconds(row['predicted_s'])}"
        body.append(
            f'<circle class="c{colour[of]}" data-name="{escape(shown.lower(), quote=True)}" r="3.2" '
            f'cx="{left + at(row["measured_s"]):.1f}" cy="{y(row["predicted_s"]):.1f}">'
            f"<title>{escape(shown)}</title></circle>"
        )
    for i, of in enumerate(groups[:_COLOURS] if group else []):
        text = of if i < _COLOURS - 1 or len(groups) == _COLOURS else "others"
        body.append(f'<circle class="c{i}" r="4" cx="{left + side + 16:.1f}" cy="{top + 12 + 18 * i:.1f}"/>')
        body.append(_text(left + side + 26, top + 16 + 18 * i, text, "start"))
    body.append(_text(left + side / 2, top + side + 36, "measured"))
    body.append(f'<text transform="translate(16 {top + side / 2}) rotate(-90)" text-anchor="middle">predicted</text>')
    return _svg(top + side + 44, body, name)


def _scale(highest: float, width: float) -> tuple[float, list[float]]:
    """Pixels per unit of a linear axis from zero, and its ticks."""
    step = 10 ** math.floor(math.log10(highest or 1.0))
    step *= next(f for f in (0.2, 0.5, 1.0, 2.0) if highest / (step * f) <= 6)
    return width / highest, [step * i for i in range(int(highest / step) + 1)]


def spreads(values: pd.Series[float], groups: pd.Series[str], *, unit: str = "percent", name: str) -> str:
    """A row a group: median, middle half and 5th to 95th percentile of values that are zero or more.

    Args:
        values: Shape (n,); those that are not finite are left out.
        groups: Group of each, shape (n,).
        unit: `percent` or `seconds`.
        name: What a screen reader says of it.
    """
    shown = percent if unit == "percent" else seconds
    known = np.isfinite(values.to_numpy(float))
    parts = [
        (str(label), len(part), np.quantile(part, [0.05, 0.25, 0.5, 0.75, 0.95]))
        for label, part in values[known].astype(float).groupby(groups[known].to_numpy())
    ]
    parts.sort(key=lambda part: part[2][2])
    if not parts:
        return _svg(40, [_text(_WIDTH / 2, 24, "nothing to show")], name)
    scale, ticks = _scale(max(float(marks[4]) for _, _, marks in parts) or 1.0, _WIDTH - _LEFT - 20)
    bottom = 10 + _ROW * len(parts)
    body = [_line(_LEFT + t * scale, 6, _LEFT + t * scale, bottom, "grid") for t in ticks]
    body += [_text(_LEFT + t * scale, bottom + 16, shown(t)) for t in ticks]
    for i, (label, n, marks) in enumerate(parts):
        y = 10 + _ROW * (i + 0.5)
        low, first, middle, third, high = (_LEFT + float(mark) * scale for mark in marks)
        told = f"{label}: median {shown(float(marks[2]))}, 95th percentile {shown(float(marks[4]))}, n = {n}"
        body += [
            f'<g data-name="{escape(told.lower(), quote=True)}"><title>{escape(told)}</title>',
            _text(_LEFT - 8, y + 4, f"{label} ({n})", "end"),
            _line(low, y, high, y, "whisker"),
            f'<rect class="c0" x="{first:.1f}" y="{y - 5:.1f}" width="{max(third - first, 1):.1f}" height="10"/>',
            f'<circle class="mark" r="3.5" cx="{middle:.1f}" cy="{y:.1f}"/></g>',
        ]
    return _svg(bottom + 24, body, name)


def bars(
    labels: Sequence[str],
    values: Sequence[float],
    *,
    ends: Sequence[tuple[float, float]] | None = None,
    target: float | None = None,
    unit: str = "seconds",
    name: str,
) -> str:
    """Horizontal bars with optional whiskers from low to high ends, and a line at a target."""
    shown = percent if unit == "percent" else seconds
    highest = max([*values, *(high for _, high in ends or ()), target or 0.0], default=0.0) or 1.0
    scale, ticks = _scale(highest, _WIDTH - _LEFT - 20)
    bottom = 10 + _ROW * len(values)
    body = [_line(_LEFT + t * scale, 6, _LEFT + t * scale, bottom, "grid") for t in ticks]
    body += [_text(_LEFT + t * scale, bottom + 16, shown(t)) for t in ticks]
    for i, (label, value) in enumerate(zip(labels, values, strict=True)):
        y = 10 + _ROW * i
        told = f"{label}: {shown(value)}"
        whisker = ""
        if ends is not None:
            low, high = ends[i]
            told += f", {shown(low)} to {shown(high)}"
            whisker = _line(_LEFT + low * scale, y + 10, _LEFT + high * scale, y + 10, "whisker")
        body.append(
            f'<g data-name="{escape(told.lower(), quote=True)}"><title>{escape(told)}</title>'
            f"{_text(_LEFT - 8, y + 14, label, 'end')}"
            f'<rect class="c0" x="{_LEFT:g}" y="{y + 4:.1f}" width="{max(value * scale, 0.5):.1f}" height="12"/>'
            f"{whisker}</g>"
        )
    if target is not None:
        body.append(_line(_LEFT + target * scale, 6, _LEFT + target * scale, bottom, "ideal"))
    return _svg(bottom + 24, body, name)


def waterfall(layers: pd.DataFrame, *, most: int = 30, name: str) -> str:
    """Layers one after another, each bar beginning where the one before ended.

    Args:
        layers: Columns `name`, `kind`, `time_s` and `bound`, in graph order.
        most: Layers shown on rows of their own; shorter neighbours between them are joined.
        name: What a screen reader says of it.
    """
    large = set(layers["time_s"].nlargest(most).index)
    run = pd.Series([i in large for i in layers.index], index=layers.index)
    block = (run | run.shift(fill_value=False)).cumsum()
    rows = []
    for _, part in layers.groupby(block.to_numpy(), sort=True):
        only = part.iloc[0]
        label = f"{only['kind']} {only['name']}" if len(part) == 1 else f"{len(part)} shorter layers"
        rows.append((label, float(part["time_s"].sum()), str(only["bound"]) if len(part) == 1 else ""))
    total = sum(time for _, time, _ in rows)
    scale, ticks = _scale(total or 1.0, _WIDTH - _LEFT - 20)
    bottom = 10 + _ROW * len(rows)
    body = [_line(_LEFT + t * scale, 6, _LEFT + t * scale, bottom, "grid") for t in ticks]
    body += [_text(_LEFT + t * scale, bottom + 16, seconds(t) if t else "0") for t in ticks]
    colour = {"compute": "c0", "memory": "c1", "launch": "c2", "": "c5"}
    begin = 0.0
    for i, (label, time_s, bound) in enumerate(rows):
        y = 10 + _ROW * i
        told = f"{label}: {seconds(time_s)}" + (f", {bound}-bound" if bound else "")
        short = label if len(label) <= 26 else f"{label[:13]}…{label[-12:]}"
        body.append(
            f'<g data-name="{escape(told.lower(), quote=True)}"><title>{escape(told)}</title>'
            f'{_text(_LEFT - 8, y + 14, short, "end")}<rect class="{colour.get(bound, "c5")}" '
            f'x="{_LEFT + begin * scale:.1f}" y="{y + 3:.1f}" width="{max(time_s * scale, 0.5):.1f}" height="14"/></g>'
        )
        begin += time_s
    for i, (bound, kind) in enumerate((("compute-bound", "c0"), ("memory-bound", "c1"), ("launch-bound", "c2"))):
        x = _LEFT + 130 * i
        body.append(f'<rect class="{kind}" x="{x:g}" y="{bottom + 28:.1f}" width="12" height="12"/>')
        body.append(_text(x + 18, bottom + 38, bound, "start"))
    return _svg(bottom + 46, body, name)

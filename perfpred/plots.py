"""Figures for papers and READMEs, as PNG. The report page draws its own charts (`perfpred.charts`)."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import pandas as pd

from perfpred.errors import RuntimeUnavailableError

if TYPE_CHECKING:
    from collections.abc import Iterator

#: Told apart in print and by readers who confuse red and green (Okabe and Ito).
COLOURS: Final = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")


@contextmanager
def figure(path: str | Path, *, width: float = 6.4, height: float = 4.0, title: str = "") -> Iterator[Any]:
    """Gives matplotlib axes and writes the figure when the block ends.

    Args:
        path: PNG or SVG file.
        width: Inches.
        height: Inches.
        title: Above the axes.

    Raises:
        RuntimeUnavailableError: matplotlib is not installed.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise RuntimeUnavailableError("figures need matplotlib; pip install 'perfpred[report]'") from error
    made = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(made)
    axes = made.add_subplot()
    axes.set_title(title)
    axes.spines[["top", "right"]].set_visible(False)
    yield axes
    # Neither date nor version is written, so that the same data give the same file.
    made.savefig(path, dpi=150, metadata={"Software": None} if str(path).endswith(".png") else {"Date": None})


def scatter(path: str | Path, points: pd.DataFrame, *, group: str | None = None, title: str = "") -> None:
    """Measured against predicted latency on logarithmic axes, milliseconds.

    Args:
        path: File to write.
        points: Columns `measured_s`, `predicted_s` and the group's.
        group: Column that colours the dots; the sixth colour is shared by all further groups.
        title: Above the figure.
    """
    with figure(path, width=4.6, height=4.4, title=title) as axes:
        labels = points[group].astype(str) if group else pd.Series("", index=points.index)
        names = list(labels.value_counts().index)
        for i, name in enumerate(names):
            part = points[labels == name]
            axes.loglog(
                1e3 * part["measured_s"],
                1e3 * part["predicted_s"],
                ".",
                ms=3,
                alpha=0.6,
                color=COLOURS[min(i, 5)],
                label=name if i < 5 else ("others" if i == 5 else None),
            )
        ends = 1e3 * np.array([points["measured_s"].min(), points["measured_s"].max()])
        axes.plot(ends, ends, color="black", lw=0.8)
        for factor in (0.9, 1.1):
            axes.plot(ends, factor * ends, color="grey", lw=0.6, ls="--")
        axes.set(xlabel="measured latency, ms", ylabel="predicted latency, ms")
        if group:
            axes.legend(fontsize=7, markerscale=3, frameon=False)


def bars(
    path: str | Path,
    labels: Sequence[str],
    values: Sequence[float],
    *,
    ends: Sequence[tuple[float, float]] | None = None,
    xlabel: str = "MAPE",
    percent: bool = True,
    reference: float | None = None,
    title: str = "",
) -> None:
    """Horizontal bars, the first on top, with optional whiskers from low to high and a dashed reference line."""
    with figure(path, height=0.9 + 0.26 * len(values), title=title) as axes:
        scale = 100.0 if percent else 1.0
        place = np.arange(len(values))[::-1]
        shown = scale * np.asarray(values, float)
        axes.barh(place, shown, color=COLOURS[0], height=0.7)
        if ends is not None:
            low, high = scale * np.asarray(ends, float).T
            axes.errorbar(shown, place, xerr=[shown - low, high - shown], fmt="none", ecolor="black", lw=1, capsize=2)
        if reference is not None:
            axes.axvline(scale * reference, color="grey", ls="--", lw=0.8)
        axes.set_yticks(place, labels, fontsize=8)
        axes.set_xlabel(f"{xlabel}, %" if percent else xlabel)


def lines(
    path: str | Path,
    table: pd.DataFrame,
    *,
    x: str,
    y: str,
    group: str,
    band: tuple[str, str] | None = None,
    logx: bool = False,
    percent: bool = True,
    xlabel: str = "",
    ylabel: str = "",
    title: str = "",
) -> None:
    """One line a group over x, such as error against the number of measurements.

    Args:
        path: File to write.
        table: Columns x, y, group and those of the band.
        x: Column of the horizontal axis.
        y: Column of the vertical axis.
        group: Column whose values are the lines.
        band: Columns of a shaded range around each line.
        logx: Whether x is on a logarithmic axis.
        percent: Whether y is a fraction, shown in per cent.
        xlabel: By default the column's name.
        ylabel: By default the column's name.
        title: Above the figure.
    """
    scale = 100.0 if percent else 1.0
    with figure(path, title=title) as axes:
        for i, (name, part) in enumerate(table.groupby(group, sort=False)):
            rows = part.sort_values(x)
            colour = COLOURS[i % len(COLOURS)]
            axes.plot(rows[x], scale * rows[y], "o-", ms=3, color=colour, label=str(name))
            if band is not None:
                axes.fill_between(rows[x], scale * rows[band[0]], scale * rows[band[1]], color=colour, alpha=0.15, lw=0)
        if logx:
            axes.set_xscale("log")
        axes.set_ylim(bottom=0)
        axes.set(xlabel=xlabel or x, ylabel=(ylabel or y) + (", %" if percent else ""))
        axes.legend(fontsize=8, frameon=False)


def spreads(
    path: str | Path,
    values: pd.Series[float],
    groups: pd.Series[str],
    *,
    xlabel: str = "absolute error",
    title: str = "",
) -> None:
    """Boxes of fractions by group, per cent; sorted by median, whiskers at the 5th and 95th percentile."""
    parts = {str(name): 100 * part.to_numpy(float) for name, part in values.groupby(groups.to_numpy())}
    order = sorted(parts, key=lambda name: float(np.median(parts[name])), reverse=True)
    with figure(path, height=0.9 + 0.24 * len(order), title=title) as axes:
        boxes = axes.boxplot(
            [parts[name] for name in order], orientation="horizontal", whis=(5, 95), sym="", patch_artist=True
        )
        for box, line in zip(boxes["boxes"], boxes["medians"], strict=True):
            box.set(facecolor=COLOURS[0], alpha=0.6)
            line.set(color="black")
        axes.set_yticks(range(1, len(order) + 1), [f"{name} ({len(parts[name])})" for name in order], fontsize=8)
        axes.set_xlabel(f"{xlabel}, %")

"""Answers as tables on a terminal. Milliseconds appear here only."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from perfpred.device import Device
from perfpred.prediction import Prediction
from perfpred.requests import FusedLayers


def milliseconds(value_s: float) -> str:
    """A time in milliseconds, three significant digits or more."""
    return f"{value_s * 1e3:.3f} ms" if value_s < 0.1 else f"{value_s * 1e3:.1f} ms"


def prediction(console: Console, answer: Prediction, *, layers: bool) -> None:
    """One prediction, its baselines and, if asked for, its layers."""
    low, high = answer.interval_s
    where = answer.device + (f" ({answer.mode})" if answer.mode else "")
    console.print(
        f"[bold]{escape(answer.network)}[/bold] on {where}, {answer.runtime} {answer.precision}, "
        f"batch {answer.batch_size}: [bold]{milliseconds(answer.latency_s)}[/bold] "
        f"({answer.level:.0%} interval {milliseconds(low)} to {milliseconds(high)}, {answer.latency_kind})"
    )
    said = ", ".join(f"{name} {milliseconds(value)}" for name, value in answer.baselines_s.items())
    console.print(f"  basis: {answer.basis} ({answer.predictor}); micro-architecture only: {said or 'none'}")
    if answer.p_within_budget is not None:
        console.print(f"  meets the budget with probability {answer.p_within_budget:.0%}")
    if answer.extrapolates:
        console.print(f"  [yellow]outside the training range:[/yellow] {', '.join(answer.extrapolates)}")
    for warning in answer.warnings:
        console.print(f"  [yellow]warning:[/yellow] {escape(warning)}")
    if layers:
        table = _layer_table("time", "bound")
        for layer in answer.layers:
            table.add_row(
                escape(layer.name),
                layer.kind,
                f"{layer.flops / 1e6:.2f}",
                f"{layer.dram_bytes / 1e6:.3f}",
                layer.rule,
                milliseconds(layer.time_s),
                layer.bound,
            )
        console.print(table)


def layers(console: Console, answer: FusedLayers) -> None:
    """Fused layers with the rule that made each."""
    console.print(
        f"[bold]{escape(answer.network)}[/bold], {answer.runtime} {answer.precision}, batch {answer.batch_size}: "
        f"{len(answer.layers)} layers by {answer.origin}"
    )
    for warning in answer.warnings:
        console.print(f"  [yellow]warning:[/yellow] {escape(warning)}")
    table = _layer_table()
    for layer in answer.layers:
        cost = (f"{layer.flops / 1e6:.2f}", f"{layer.dram_bytes / 1e6:.3f}")
        table.add_row(escape(layer.name), layer.kind, *cost, layer.rule)
    console.print(table)


def _layer_table(*more: str) -> Table:
    table = Table(box=None, pad_edge=False)
    table.add_column("layer", overflow="ellipsis", max_width=60, no_wrap=True)
    for column in ("kind", "MFLOP", "MB", "rule", *more):
        table.add_column(column, justify="left" if column in ("kind", "rule", "bound") else "right", no_wrap=True)
    return table


def devices(console: Console, found: Iterable[Device], backing: Mapping[str, str]) -> None:
    """All devices, one a line."""
    table = Table(box=None, pad_edge=False)
    for column in ("device", "name", "SMs", "clock", "memory", "fp16", "data"):
        table.add_column(column, no_wrap=True)
    for one in found:
        table.add_row(
            one.slug,
            one.name,
            str(one.sm_count),
            f"{one.clock_hz / 1e6:.0f} MHz",
            f"{one.dram_bytes_per_s / 1e9:.0f} GB/s",
            f"{one.peak('fp16') / 1e12:.1f} TFLOP/s",
            backing.get(one.slug, "specification only"),
        )
    console.print(table)


def device(console: Console, found: Device, backing: str) -> None:
    """One device with its modes and sources."""
    table = Table(box=None, show_header=False, pad_edge=False)
    for key, value in found.to_dict().items():
        if key not in ("format", "version", "modes") and value not in (None, "", []):
            table.add_row(key, escape(str(value)))
    table.add_row("data", backing)
    console.print(table)
    for name, mode in found.modes.items():
        console.print(f"  mode {name}: {escape(str(mode))}")


def ranking(console: Console, rows: Sequence[Any]) -> None:
    """Predictions in order."""
    table = Table(box=None, pad_edge=False)
    for column in ("rank", "network", "latency", "interval"):
        table.add_column(column, no_wrap=True)
    for place, row in enumerate(rows, 1):
        low, high = row.interval_s
        span = f"{milliseconds(low)} to {milliseconds(high)}"
        table.add_row(str(place), escape(row.network), milliseconds(row.latency_s), span)
    console.print(table)


def table(console: Console, title: str, rows: Sequence[Mapping[str, Any]]) -> None:
    """Records with the same keys as a table."""
    made = Table(title=title, title_justify="left", box=None, pad_edge=False)
    for column in rows[0] if rows else ():
        made.add_column(str(column), no_wrap=True)
    for row in rows:
        made.add_row(*(f"{v:.4g}" if isinstance(v, float) else escape(str(v)) for v in row.values()))
    console.print(made)

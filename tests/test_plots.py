"""Figures are written, the same for the same data, and hold what was given."""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

pytest.importorskip("matplotlib", reason="the report extra is not installed")

from perfpred import plots

RANDOM = np.random.default_rng(0)
POINTS = pd.DataFrame(
    {
        "measured_s": np.exp(RANDOM.normal(-6, 1, 60)),
        "predicted_s": np.exp(RANDOM.normal(-6, 1, 60)),
        "device": [f"d{i % 8}" for i in range(60)],
    }
)
SHOTS = pd.DataFrame({"k": [1, 3, 10] * 2, "mape": [0.3, 0.2, 0.1] * 2, "who": ["a"] * 3 + ["b"] * 3})
SHOTS = SHOTS.assign(low=SHOTS["mape"] - 0.05, high=SHOTS["mape"] + 0.05)
DRAWN: dict[str, Callable[[Path], None]] = {
    "scatter": lambda path: plots.scatter(path, POINTS, group="device", title="t"),
    "bars": lambda path: plots.bars(path, ["a", "b"], [0.1, 0.2], ends=[(0.05, 0.15), (0.1, 0.3)], reference=0.1),
    "lines": lambda path: plots.lines(path, SHOTS, x="k", y="mape", group="who", band=("low", "high"), logx=True),
    "spreads": lambda path: plots.spreads(path, POINTS["measured_s"], POINTS["device"]),
}


@pytest.mark.parametrize("kind", sorted(DRAWN))
def test_figures_are_the_same_each_time(kind: str, tmp_path: Path) -> None:
    first, second = tmp_path / "a.png", tmp_path / "b.png"
    DRAWN[kind](first)
    DRAWN[kind](second)
    content = first.read_bytes()
    assert content == second.read_bytes()
    width, height = struct.unpack(">II", content[16:24])
    assert width > 500
    assert height > 150


def test_dots_stand_where_the_data_are(tmp_path: Path) -> None:
    with plots.figure(tmp_path / "f.svg", title="here") as axes:
        axes.plot([1, 2], [3, 4])
    text = (tmp_path / "f.svg").read_text()
    assert "<svg" in text
    assert "here" in text

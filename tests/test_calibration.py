"""Intervals hold what they promise, whatever the groups, and say more where more is expected to be off."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest

from perfpred.calibration import Residuals


def _engines(n: int) -> pd.DataFrame:
    return pd.DataFrame(
        {
            "device": "jetson-nano", "latency_kind": "gpu_compute", "lineage": [f"l{i % 8}" for i in range(n)],
            "family": None, "network": "n",
        }
    )  # fmt: skip


def _inside(known: Residuals, residual: np.ndarray, spread: np.ndarray) -> float:
    asked = _engines(1)
    ends = [known.of(asked, 1.0, 0.9, None, stretched=False, spread=s)[0] for s in spread]
    return float(np.mean([low <= np.exp(r) <= high for (low, high), r in zip(ends, residual, strict=True)]))


def test_nine_in_ten_lie_inside_and_wide_where_the_spread_is() -> None:
    rng = np.random.default_rng(0)
    spread = rng.uniform(0.05, 0.4, 2000)
    residual = rng.normal(0, spread)
    known = Residuals().fit(_engines(1000), residual[:1000], spread=spread[:1000])
    assert _inside(known, residual[1000:], spread[1000:]) == pytest.approx(0.9, abs=0.03)
    wide = spread[1000:] > 0.3
    assert _inside(known, residual[1000:][wide], spread[1000:][wide]) == pytest.approx(0.9, abs=0.05)
    plain = Residuals().fit(_engines(1000), residual[:1000])
    assert _inside(plain, residual[1000:][wide], np.ones(wide.sum())) < 0.8


def test_a_large_group_does_not_outvote_the_others() -> None:
    residual = np.array([0.01, -0.01] * 500 + [0.5, -0.5] * 20)
    groups = np.array(["large"] * 1000 + [f"small{i}" for i in range(40)])
    known = Residuals().fit(_engines(1040), residual, groups=groups)
    assert known.of(_engines(1), 1.0, 0.9, None, stretched=False)[0][1] == pytest.approx(np.exp(0.5), rel=0.01)
    alike = Residuals().fit(_engines(1040), residual, groups=np.arange(1040))
    assert alike.of(_engines(1), 1.0, 0.9, None, stretched=False)[0][1] < 1.1


def test_devices_left_out_whole_answer_for_unseen_ones_alone() -> None:
    residual = np.random.default_rng(0).normal(0, 0.1, 200)
    known = Residuals().fit(_engines(200), residual).fit(_engines(200), 4 * residual, unseen_device=True)
    near, far = (known.of(_engines(1), 1.0, 0.9, 1.1, stretched=False, known=seen) for seen in (True, False))
    assert np.log(far[0]) == pytest.approx(4 * np.log(near[0]))
    assert near[1] is not None
    assert far[1] is not None
    assert near[1] > far[1] > 0.5
    again = Residuals.from_dict(json.loads(json.dumps(known.to_dict())))
    assert again.of(_engines(1), 1.0, 0.9, 1.1, stretched=False, known=False) == far


def test_rows_without_a_prediction_are_left_out_and_few_rows_widen() -> None:
    residual = np.array([0.1, -0.1, np.nan, 0.2, -0.2])
    known = Residuals().fit(_engines(5), residual)
    assert known.rows_[""] == 4
    assert np.allclose(known.of(_engines(1), 1.0, 0.9, None, stretched=False)[0], np.exp([-0.2, 0.2]))
    assert known.of(_engines(1), 1.0, 0.9, None, stretched=True)[0][1] == pytest.approx(np.exp(0.4))

"""The process against itself refitted without a group, its slopes against differences, and its files."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from perfpred import kriging
from perfpred.errors import FormatError, PredictorError
from perfpred.kriging import Kriging

KRIGING = Kriging(strata=("kernel",), kin=("kernel",), steps=30, refining=10, rows=100)


def table(seed: int = 0) -> tuple[pd.DataFrame, np.ndarray, np.ndarray]:
    """Times of eight groups of widths at thirty sizes, smooth in both, for two kernels of opposite trend."""
    random = np.random.default_rng(seed)
    group = np.repeat(np.arange(8), 30)
    X = pd.DataFrame(
        {"width": group * 0.5, "size": random.uniform(0, 3, 240), "kernel": np.tile([1.0, 3.0], 120), "flat": 1.0}
    )
    y = np.where(X["kernel"] == 1, 1, -1) * np.sin(X["width"]) + 0.3 * X["size"] + random.normal(0, 0.02, 240)
    return X, y.to_numpy(), group


def test_left_out_answers_are_those_of_a_process_without_the_group() -> None:
    X, y, group = table()
    fitted = replace(KRIGING).fit(X, y, group)
    for stratum, kernel in enumerate((1.0, 3.0)):
        here = (X["kernel"] == kernel).to_numpy()
        rows, own = fitted.rows_[stratum].astype(float), group[here] == 3
        scales = fitted.scales_[stratum]
        others = kriging._parts(rows[~own], rows[~own], scales)
        covariance = kriging._covariance(others, scales.noise)
        weights = np.linalg.solve(covariance, y[here][~own] - fitted.level_)
        across = kriging._covariance(kriging._parts(rows[own], rows[~own], scales), 0.0)
        np.testing.assert_allclose(fitted.left_out_[here][own], fitted.level_ + across @ weights, atol=2e-3)


def test_new_groups_are_answered_from_their_neighbours() -> None:
    X, y, group = table()
    fitted = replace(KRIGING).fit(X[group != 4], y[group != 4], group[group != 4])
    assert np.abs(fitted.predict(X[group == 4]) - y[group == 4]).mean() < 0.1
    assert "flat" not in fitted.features_


def test_kernels_never_seen_take_the_nearest_stratum() -> None:
    X, y, group = table()
    fitted = replace(KRIGING).fit(X, y, group)
    np.testing.assert_array_equal(fitted.predict(X.assign(kernel=9.0)), fitted.predict(X.assign(kernel=3.0)))


def test_kin_share_scales_and_others_have_their_own() -> None:
    X, y, group = table()
    apart, together = replace(KRIGING).fit(X, y, group), replace(KRIGING, kin=()).fit(X, y, group)
    assert not np.array_equal(apart.scales_[0].lengths, apart.scales_[1].lengths)
    np.testing.assert_array_equal(together.scales_[0].lengths, together.scales_[1].lengths)


def test_slopes_are_the_derivative_of_the_left_out_error() -> None:
    random = np.random.default_rng(0)
    rows = random.normal(size=(60, 3)).astype(np.float32)
    y, labels = np.sin(rows[:, 0]) + random.normal(0, 0.1, 60), random.integers(0, 9, 60)
    logs = np.log([2.7, 2.7, 2.7, 1.6, 1.6, 1.6, 0.8, 0.8, 0.8, 1.0, 0.4, 0.1, 0.14])

    def loss(logs: np.ndarray) -> float:
        scales = kriging._Scales.from_logarithms(logs)
        covariance = kriging._covariance(kriging._parts(rows, rows, scales), scales.noise)
        weights, inverse = kriging._solved(covariance, y.astype(np.float32))
        error = np.exp(-kriging._left_out(inverse, weights, kriging._members(labels))) - 1
        return float(np.sqrt(error**2 + 0.1**2).mean())

    slope = kriging._slope(rows, y, labels, kriging._Scales.from_logarithms(logs), 0.1)
    steps = np.eye(len(logs)) * 0.02
    np.testing.assert_allclose(slope, [(loss(logs + s) - loss(logs - s)) / 0.04 for s in steps], atol=2e-4)


def test_files_give_the_same_answers(tmp_path: Path) -> None:
    X, y, group = table()
    fitted = replace(KRIGING).fit(X, y, group)
    fitted.save(tmp_path)
    np.testing.assert_array_equal(Kriging.load(tmp_path).predict(X), fitted.predict(X))
    with pytest.raises(PredictorError, match="size"):
        fitted.predict(X.drop(columns="size"))
    (tmp_path / "kriging.json").write_text("{}")
    with pytest.raises(FormatError, match=r"kriging\.json"):
        Kriging.load(tmp_path)

"""Regressors on a staircase with outliers: what they learn, and that files give the same answers."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from perfpred.errors import FormatError, PredictorError
from perfpred.regressors import Blend, BoostedTrees, Perceptron, load_regressor, relative_error_slope

TREES = BoostedTrees(rounds=150, depth=4, learning_rate=0.1, min_leaf=2)
PERCEPTRON = Perceptron(hidden=(32, 32), epochs=60, batch=64, learning_rate=5e-3)


def staircase(rows: int = 1500, seed: int = 1) -> tuple[pd.DataFrame, np.ndarray]:
    random = np.random.default_rng(seed)
    width, depth = random.integers(8, 512, rows), random.uniform(0, 3, rows)
    X = pd.DataFrame({"log_width": np.log(width), "pad": np.log(np.ceil(width / 64) * 64 / width), "depth": depth})
    return X, (X.log_width + X.pad + 0.5 * depth).to_numpy()


@pytest.mark.parametrize("regressor", [TREES, PERCEPTRON, Blend(members=(TREES, PERCEPTRON))])
def test_learns_and_survives_files(regressor: BoostedTrees | Perceptron | Blend, tmp_path: Path) -> None:
    X, y = staircase()
    test_X, test_y = staircase(seed=2)
    fitted = replace(regressor).fit(X, y)
    answer = fitted.predict(test_X)
    assert np.abs(np.exp(answer - test_y) - 1).mean() < 0.06
    fitted.save(tmp_path / "saved")
    again = load_regressor(tmp_path / "saved")
    np.testing.assert_allclose(again.predict(test_X[["depth", "log_width", "pad"]]), answer, atol=1e-6)
    assert not [p for p in (tmp_path / "saved").rglob("*") if p.suffix in {".pkl", ".pickle", ".joblib"}]


@pytest.mark.parametrize("regressor", [TREES, PERCEPTRON])
def test_same_seed_gives_the_same_answers(regressor: BoostedTrees | Perceptron) -> None:
    X, y = staircase(300)
    first, second = (replace(regressor).fit(X, y).predict(X) for _ in range(2))
    np.testing.assert_array_equal(first, second)


def test_slope_is_the_derivative_of_the_loss() -> None:
    points, step = np.array([-1.0, -0.1, 0.05, 0.7]), 1e-6

    def loss(d: np.ndarray) -> np.ndarray:
        return np.sqrt((np.exp(d) - 1) ** 2 + 0.1**2)

    gradient, curvature = relative_error_slope(points, 0.1)
    np.testing.assert_allclose(gradient, (loss(points + step) - loss(points - step)) / (2 * step), rtol=1e-4)
    assert (curvature > 0).all()


@pytest.mark.parametrize("regressor", [TREES, PERCEPTRON])
def test_two_modes_are_answered_with_the_cheaper_one(regressor: BoostedTrees | Perceptron) -> None:
    random = np.random.default_rng(0)
    X = pd.DataFrame({"noise": random.normal(size=2000)})
    y = np.where(random.random(2000) < 0.4, np.log(4.0), 0.0)
    assert np.median(replace(regressor).fit(X, y).predict(X)) < 0.15


@pytest.mark.parametrize("regressor", [TREES, PERCEPTRON])
def test_weight_decides_between_contradicting_rows(regressor: BoostedTrees | Perceptron) -> None:
    X = pd.DataFrame({"same": np.zeros(400)})
    y = np.tile([0.0, 0.2], 200)
    heavy_last = replace(regressor).fit(X, y, np.tile([0.05, 1.0], 200)).predict(X)
    assert heavy_last.mean() > 0.15


def test_perceptron_clips_what_it_never_saw_and_fills_what_is_missing() -> None:
    X, y = staircase(400)
    X["unknown"] = np.nan
    fitted = replace(PERCEPTRON, epochs=5).fit(X, y)
    far = X.head(2).assign(log_width=[1e6, X.log_width.max()], pad=0.0, depth=1.0)
    assert fitted.predict(far)[0] == fitted.predict(far)[1]
    assert np.isfinite(fitted.predict(X.head(3).assign(depth=np.nan))).all()


def test_monotone_columns_never_fall() -> None:
    X, y = staircase(500)
    fitted = replace(TREES, monotone={"depth": 1}).fit(X, y - X.depth)
    grid = X.head(1).loc[[0] * 50].assign(depth=np.linspace(0, 3, 50))
    assert (np.diff(fitted.predict(grid)) >= -1e-6).all()


def test_missing_columns_are_named() -> None:
    X, y = staircase(200)
    with pytest.raises(PredictorError, match="depth"):
        replace(TREES).fit(X, y).predict(X.drop(columns="depth"))


def test_other_versions_and_other_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(FormatError, match=r"regressor\.json"):
        load_regressor(tmp_path)
    X, y = staircase(200)
    replace(TREES).fit(X, y).save(tmp_path)
    manifest = tmp_path / "regressor.json"
    manifest.write_text(json.dumps({**json.loads(manifest.read_text()), "version": 99}))
    with pytest.raises(FormatError, match="version 99"):
        load_regressor(tmp_path)

"""Calibration learns a known factor from few measurements, keeps what it knew elsewhere, and survives the disk."""

from __future__ import annotations

import json
from functools import lru_cache
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from made import dataset

from perfpred.dataset import Dataset
from perfpred.errors import DatasetError, UsageError
from perfpred.predictor import LatencyPredictor
from perfpred.shots import Shots
from perfpred.splits import subset
from perfpred.transfer import Transfers, calibrated, choose_calibration, kshot, most_telling

SLOW = 2.5


@lru_cache(maxsize=1)
def trained() -> LatencyPredictor:
    return LatencyPredictor(folds=3).fit(dataset())


@lru_cache(maxsize=1)
def own_device() -> Dataset:
    """The same networks on a device never trained on, 2.5 times slower than the rest would say."""
    made = dataset(24, ("jetson-orin-nx-16gb",))
    return Dataset(engines=made.engines.assign(latency_s=SLOW * made.engines["latency_s"]), layers=made.layers)


def error(predictor: LatencyPredictor, rows: Dataset) -> float:
    made = predictor.predict_engines(rows.engines, rows.layers)
    return float(np.mean(np.abs(made / rows.engines["latency_s"].to_numpy(float) - 1)))


@pytest.mark.parametrize(("k", "within"), [(1, 0.25), (3, 0.2), (12, 0.12)])
def test_few_measurements_find_the_factor(k: int, within: float) -> None:
    rest = subset(own_device(), np.arange(12, 24))
    assert error(trained(), rest) > 0.4
    made = calibrated(trained(), subset(own_device(), np.arange(k)), "jetson-orin-nx-16gb")
    assert error(made, rest) < within


def test_other_devices_and_the_original_stay_as_they_were() -> None:
    before = trained().predict_engines(dataset().engines, dataset().layers)
    made = calibrated(trained(), own_device(), "jetson-orin-nx-16gb")
    assert np.array_equal(made.predict_engines(dataset().engines, dataset().layers), before)
    assert not trained().transfers_.shots_
    assert made.covers("jetson-orin-nx-16gb")
    assert not trained().covers("jetson-orin-nx-16gb")


def test_calibrating_again_replaces() -> None:
    once = calibrated(trained(), own_device(), "jetson-orin-nx-16gb")
    twice = calibrated(once, own_device(), "jetson-orin-nx-16gb")
    assert twice.transfers_.to_dict() == once.transfers_.to_dict()


def test_baselines_are_calibrated_on_the_same_rows() -> None:
    made = calibrated(trained(), own_device(), "jetson-orin-nx-16gb")
    assert "tensorrt/jetson-orin-nx-16gb/fp16" in made.contrast_.fitted_["roofline"]
    assert "tensorrt/jetson-orin-nano/fp16" in made.contrast_.fitted_["roofline"]


def test_intervals_follow_what_the_measurements_leave() -> None:
    noisy = own_device().engines.assign(
        latency_s=own_device().engines["latency_s"] * np.exp(np.random.default_rng(0).normal(0, 0.8, 24))
    )
    calm = calibrated(trained(), own_device(), "jetson-orin-nx-16gb")
    rough = calibrated(trained(), Dataset(engines=noisy, layers=own_device().layers), "jetson-orin-nx-16gb")
    ask = own_device().engines.iloc[:1]

    def width(predictor: LatencyPredictor) -> float:
        (low, high), _ = predictor.residuals_.of(ask, 1.0, 0.9, None, stretched=False)
        return high - low

    assert width(rough) > 1.5 * width(calm)


def test_survives_the_disk(tmp_path: Path) -> None:
    made = calibrated(trained(), own_device(), "jetson-orin-nx-16gb")
    made.save(tmp_path / "p")
    again = LatencyPredictor.load(tmp_path / "p")
    asked = own_device()
    assert np.allclose(
        again.predict_engines(asked.engines, asked.layers), made.predict_engines(asked.engines, asked.layers)
    )
    assert again.facts_["calibrated"] == {"jetson-orin-nx-16gb": 24}
    stored = json.loads(json.dumps(made.transfers_.to_dict()))
    assert again.transfers_.to_dict() == Transfers.from_dict(stored).to_dict()


def test_wrong_measurements_are_refused() -> None:
    with pytest.raises(DatasetError, match="jetson-nano' but jetson-orin-nx-16gb"):
        calibrated(trained(), own_device(), "jetson-nano")
    other = Dataset(engines=own_device().engines.assign(runtime="onnxruntime"), layers=own_device().layers)
    with pytest.raises(DatasetError, match="collect with --runtime tensorrt"):
        calibrated(trained(), other, "jetson-orin-nx-16gb")


def test_left_out_residuals_are_those_of_fits_without_the_row() -> None:
    random = np.random.default_rng(1)
    similarity, residual = random.normal(size=(8, 3)), random.normal(0.3, 0.2, 8)
    others = [
        Shots().fit(np.delete(similarity, i, 0), np.delete(residual, i)).predict(similarity[i : i + 1])[0]
        for i in range(8)
    ]
    assert np.allclose(Shots().fit(similarity, residual).left_out(), residual - others)


def test_most_telling_beats_the_first_that_come() -> None:
    random = np.random.default_rng(0)
    features = pd.DataFrame(random.normal(size=(60, 4)), columns=list("abcd"))
    chosen = most_telling(features, 6)
    assert len(set(chosen)) == 6

    def left(rows: list[int]) -> float:
        design = np.column_stack([np.ones(60), (features - features.mean()) / features.std(ddof=0)])
        prior = np.diag([0.25, *[0.0025] * 4])
        taken = design[rows]
        gain = prior @ taken.T @ np.linalg.inv(taken @ prior @ taken.T + 0.12**2 * np.eye(len(rows))) @ taken @ prior
        return float(np.trace(design @ (prior - gain) @ design.T))

    assert left(chosen) < min(left(list(random.choice(60, 6, replace=False))) for _ in range(50))
    with pytest.raises(UsageError, match="from 1 to 60"):
        most_telling(features, 61)


def test_networks_of_the_corpus_are_named() -> None:
    class Row:
        def __init__(self, number: int) -> None:
            self.name, self.lineage, self.gflops = f"n{number}", "resnet", float(number) or None
            self.params, self.nodes = 1000 * number + 1, 50 + number

    chosen = choose_calibration([Row(i) for i in range(20)], 3)
    assert len(set(chosen)) == 3
    assert "n0" not in chosen


def test_kshot_scores_only_networks_not_drawn() -> None:
    found = kshot(LatencyPredictor(), dataset(), shots=(0, 2, 5, 100), draws=3, seed=1)
    assert set(found["k"]) == {0, 2, 5}
    assert (found["n"] == 24 - found["k"]).all()
    assert len(found) == 2 * (1 + 3 + 3)
    assert (found[["mape", "scaled_roofline", "nearest"]] > 0).all().all()
    again = kshot(LatencyPredictor(), dataset(), shots=(0, 2, 5, 100), draws=3, seed=1)
    pd.testing.assert_frame_equal(found, again)
    with pytest.raises(UsageError, match="no device here"):
        kshot(LatencyPredictor(), dataset(), devices=["here"])

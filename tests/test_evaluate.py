"""Scores against hand counts, splits that leak nothing, and predictions that never saw what they are scored on."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from made import dataset

from perfpred.corpus import PROBE
from perfpred.dataset import Dataset, concat, engine_frame
from perfpred.errors import DatasetError, UsageError
from perfpred.evaluate import evaluate, nearest_columns, out_of_sample, unfitted
from perfpred.measure import SHARED
from perfpred.predictor import LatencyPredictor
from perfpred.scores import concordant, error_ratio, noise_floor, score
from perfpred.splits import deal, scorable, splits, subset


def rows(latency_s: list[float], **columns: Any) -> pd.DataFrame:
    given = {"network": [f"n{i}" for i in range(len(latency_s))], "device": "d", "precision": "fp16"}
    given |= {"latency_kind": "gpu_compute", "family": "f", "lineage": None, **columns}
    return engine_frame(pd.DataFrame({"latency_s": latency_s, **given}).to_dict("records"))


@dataclass
class Median:
    """Forecasts the median of its training rows and keeps what it saw."""

    name: str = "median"
    seen_: set[str] = field(default_factory=set)
    value_: float = 0.0

    def fit(self, given: Dataset) -> Median:
        self.seen_ = set(given.engines["network_id"])
        self.value_ = float(given.engines["latency_s"].median())
        return self

    def predict_engines(self, engines: pd.DataFrame, layers: pd.DataFrame) -> np.ndarray:
        assert not self.seen_ & set(engines["network_id"])
        assert set(engines["structure"]) <= set(layers["structure"])
        return np.full(len(engines), self.value_)


def test_score_by_hand() -> None:
    found = score(rows([1.0, 2.0, 4.0, 1.5]), [1.04, 2.0, 5.0, np.nan])
    assert (found["n"], found["n_missing"], found["n_networks"]) == (3, 1, 3)
    assert found["mape"] == pytest.approx((0.04 + 0 + 0.25) / 3)
    assert found["median_ape"] == pytest.approx(0.04)
    assert (found["within_5"], found["within_10"]) == (pytest.approx(2 / 3), pytest.approx(2 / 3))
    assert (found["kendall_tau"], found["concordance"], found["pairs"]) == (1.0, 1.0, 2)
    assert found["coverage"] is None


def test_score_of_intervals_and_lineages() -> None:
    given = rows([1.0, 1.0, 1.0, 1.0], lineage=["a", "a", "a", "b"])
    found = score(given, np.array([1.0, 1.0, 1.0, 2.0]), (np.full(4, 0.5), np.array([1.5, 1.5, 0.9, 1.5])))
    assert (found["coverage"], found["width"]) == (0.75, pytest.approx(0.75))
    assert (found["mape"], found["macro_mape"]) == (0.25, 0.5)
    assert score(given.iloc[:0], [])["mape"] is None


def test_ranks_are_never_pooled_over_devices() -> None:
    given = rows([1.0, 2.0, 3.0, 10.0, 20.0, 30.0], device=["d"] * 3 + ["e"] * 3)
    inside = score(given, [3.0, 2.0, 1.0, 30.0, 20.0, 10.0])
    assert inside["kendall_tau"] == -1.0
    assert (inside["concordance"], inside["pairs"]) == (0.0, 4)


def test_concordance_counts_close_pairs_and_halves_ties() -> None:
    assert concordant(np.array([1.0, 1.5, 9.0]), np.array([1.0, 2.0, 0.1])) == (1.0, 1)
    assert concordant(np.array([1.0, 1.5]), np.array([2.0, 2.0])) == (0.5, 1)
    assert concordant(np.array([1.0, 1.0]), np.array([2.0, 3.0])) == (0.0, 0)


def test_error_ratio_and_its_interval() -> None:
    given = rows([1.0] * 40, family=[f"f{i % 8}" for i in range(40)])
    found = error_ratio(given, np.full(40, 1.6), np.full(40, 1.2))
    assert found == pytest.approx({"ratio": 3.0, "low": 3.0, "high": 3.0})
    mixed = np.where(np.arange(40) % 8 < 4, 1.2, 1.1)
    found = error_ratio(given, np.full(40, 1.6), mixed)
    assert found["low"] < found["ratio"] < found["high"]
    with pytest.raises(DatasetError, match="no row"):
        error_ratio(given, np.full(40, np.nan), mixed)


def test_noise_floor_splits_builds_from_sessions() -> None:
    random = np.random.default_rng(0)
    made = []
    for number in range(200):
        for session in range(2):
            shift = random.normal(0, 0.03)
            made += [
                {
                    "network_id": f"n{number}",
                    "rebuild": 3 * session + build,
                    "latency_s": float(np.exp(shift + random.normal(0, 0.01))),
                    "collected_at": f"2026-01-0{session + 1}T00:00:{10 * build:02d}+00:00",
                }
                for build in range(3)
            ]
    found = noise_floor(engine_frame(made))
    assert found["cv_build"] == pytest.approx(0.01, rel=0.15)
    assert found["cv_session"] == pytest.approx(np.hypot(0.03, 0.01 / np.sqrt(3)), rel=0.15)
    assert found["mape"] == pytest.approx(0.8 * np.hypot(found["cv_build"], found["cv_session"]), rel=0.01)
    assert (found["n_build"], found["n_session"]) == (400, 200)
    alone = noise_floor(rows([1.0, 2.0], network_id=["a", "b"]))
    assert (alone["mape"], alone["n_build"]) == (None, 0)


def test_dealing_balances_rows_and_keeps_groups() -> None:
    groups = pd.Series(["a"] * 5 + ["b"] * 3 + ["c"] * 2 + ["d"])
    fold = deal(groups, 2, seed=0)
    assert pd.Series(fold).groupby(groups).nunique().max() == 1
    assert sorted(np.bincount(fold)) == [5, 6]
    assert len(set(deal(groups, None, seed=0))) == 4


@pytest.mark.parametrize("protocol", ["random", "family", "lineage"])
def test_grouped_splits_test_each_row_once(protocol: str) -> None:
    engines = dataset().engines
    every = list(splits(engines, protocol, folds=3, seed=4))
    assert sorted(np.concatenate([s.test for s in every])) == list(range(len(engines)))
    column = {"random": "network_id"}.get(protocol, protocol)
    for split in every:
        assert not set(engines[column].iloc[split.train]) & set(engines[column].iloc[split.test])
        assert len(split.train) + len(split.test) == len(engines)


def test_a_network_of_two_families_takes_one_side() -> None:
    engines = dataset().engines.copy()
    engines.loc[::2, "family"] = "other " + engines["family"]
    for split in splits(engines, "family", folds=None):
        assert not set(engines["network_id"].iloc[split.train]) & set(engines["network_id"].iloc[split.test])


def test_device_split_leaves_out_whole_devices_then_partition_sizes() -> None:
    engines = pd.concat([dataset().engines, dataset().engines.assign(sm_count=4)], ignore_index=True)
    every = {s.name: s for s in splits(engines, "device")}
    sizes = sorted(engines["sm_count"].unique())
    assert list(every) == ["jetson-agx-orin-32gb", "jetson-orin-nano", *(f"{n} SMs" for n in sizes)]
    whole = every["jetson-orin-nano"]
    assert set(engines["device"].iloc[whole.train]) == {"jetson-agx-orin-32gb"}
    assert set(engines["sm_count"].iloc[every["4 SMs"].test]) == {4}
    assert 4 not in set(engines["sm_count"].iloc[every["4 SMs"].train])
    with pytest.raises(DatasetError, match="at least two groups"):
        list(splits(dataset(4, ("jetson-orin-nano",)).engines, "device"))


def test_nearest_is_by_place_and_never_from_the_device_left_out() -> None:
    given = dataset(12)
    partition = given.engines[given.engines["device"] == "jetson-orin-nano"]
    partition = partition.assign(sm_count=4, latency_s=1000.0, engine_id=partition["engine_id"] + "p", device_json=None)
    rows = Dataset(engines=pd.concat([given.engines, partition], ignore_index=True), layers=given.layers)
    every = [s for s in splits(rows.engines, "device") if s.name == "jetson-orin-nano"]
    found = nearest_columns(rows, every)
    small = rows.engines["sm_count"].iloc[every[0].test].eq(4).to_numpy()
    other = rows.engines["latency_s"].iloc[every[0].train].to_numpy()
    assert found["nearest"].max() < 100 * other.max()
    assert np.median(found["nearest_fitted"][small]) == pytest.approx(1000, rel=0.2)
    assert found["nearest"][small].mean() > found["nearest"][~small].mean()


@pytest.mark.parametrize("protocol", ["batch", "precision"])
def test_unseen_values_are_of_unseen_networks(protocol: str) -> None:
    engines = dataset(12, ("jetson-orin-nano",), precisions=("fp16", "fp32"), batch_sizes=(1, 4)).engines
    column = {"batch": "batch_size"}.get(protocol, protocol)
    every = list(splits(engines, protocol, folds=3))
    assert sum(len(s.test) for s in every) == len(engines)
    for split in every:
        train, test = engines.iloc[split.train], engines.iloc[split.test]
        assert set(test[column].astype(str)) == {split.name}
        assert split.name not in set(train[column].astype(str))
        assert not set(train["network_id"]) & set(test["network_id"])


@pytest.mark.parametrize("protocol", ["random", "family", "lineage", "device", "precision"])
def test_probes_are_learned_from_but_never_judged(protocol: str) -> None:
    engines = dataset(12, precisions=("fp16", "fp32")).engines
    engines["lineage"] = engines["lineage"].where(engines["network"].ne(engines["network"].iloc[0]), PROBE)
    probe = set(np.flatnonzero(engines["lineage"].eq(PROBE)))
    for split in splits(engines, protocol, folds=3):
        assert not probe & set(split.test)
        new = {"device": "device", "precision": "precision"}.get(protocol)
        expected = {i for i in probe if new is None or engines[new].astype(str)[i] != split.name}
        assert probe & set(split.train) == expected


@pytest.mark.parametrize("protocol", ["random", "family", "lineage", "device", "precision", "batch"])
def test_rows_measured_beside_others_are_never_judged_nor_give_away_what_is(protocol: str) -> None:
    engines = dataset(12, precisions=("fp16", "fp32"), batch_sizes=(1, 4)).engines
    shared = engines["device"].eq("jetson-orin-nano")
    engines["flags"] = [["cv", SHARED] if one else None for one in shared]
    unseen = {"random": "network", "batch": "batch_size"}.get(protocol, protocol)
    tested = []
    for split in splits(engines, protocol, folds=3):
        train, test = engines.iloc[split.train], engines.iloc[split.test]
        assert not set(train[unseen]) & set(test[unseen])
        assert shared.iloc[split.train].any()
        tested += list(split.test)
    assert set(tested) == set(np.flatnonzero(~shared))


def test_baselines_of_a_device_are_fitted_on_rows_beside_others_where_there_is_nothing_else() -> None:
    given = dataset(12)
    shared = given.engines["device"].eq("jetson-orin-nano")
    given.engines["flags"] = [[SHARED] if one else None for one in shared]
    found = out_of_sample(
        LatencyPredictor(trees=False, folds=0), given, protocol="device", baselines=("scaled_roofline",)
    )
    assert found["device"].eq("jetson-agx-orin-32gb").all()
    assert np.isfinite(found["node:scaled_roofline"]).all()


def test_where_everything_was_measured_beside_others_it_is_judged() -> None:
    engines = dataset(12).engines
    engines["flags"] = [[SHARED]] * len(engines)
    every = list(splits(engines, "random", folds=3))
    assert sum(len(split.test) for split in every) == len(engines)


def test_probes_alone_are_nothing_to_judge() -> None:
    given = dataset(12)
    lone = given.engines["device"].eq("jetson-orin-nano")
    engines = given.engines.assign(lineage=given.engines["lineage"].where(~lone, PROBE))
    assert [s.name for s in splits(engines, "device") if not s.name.endswith("SMs")] == ["jetson-agx-orin-32gb"]
    with pytest.raises(DatasetError, match="0 measured engines of networks are too few"):
        LatencyPredictor().fit(Dataset(engines=given.engines.assign(lineage=PROBE), layers=given.layers))


def test_wrong_protocols_are_refused() -> None:
    with pytest.raises(UsageError, match="one of random, family"):
        list(splits(dataset().engines, "luck"))
    with pytest.raises(DatasetError, match="at least two groups"):
        list(splits(dataset().engines.assign(precision="fp16"), "precision"))


def test_repeats_and_unoptimised_rows_are_not_scored() -> None:
    given = dataset(6, ("jetson-orin-nano",))
    again = given.engines.assign(rebuild=1, engine_id=given.engines["engine_id"] + "r")
    slow = given.engines.assign(optimisation="off", engine_id=given.engines["engine_id"] + "o")
    more = Dataset(engines=pd.concat([given.engines, again, slow], ignore_index=True), layers=given.layers)
    assert list(scorable(more).engines["engine_id"]) == list(given.engines["engine_id"])
    assert set(subset(more, np.array([0])).layers["structure"]) == {given.engines["structure"].iloc[0]}


def test_no_training_network_is_asked_and_intervals_cover() -> None:
    found = out_of_sample(Median(), dataset(), protocol="lineage", folds=None, baselines=["scaled_roofline"])
    assert len(found) == len(dataset().engines)
    assert set(found["fold"]) == set(dataset().engines["lineage"])
    inside = (found["low_s"] <= found["measured_s"]) & (found["measured_s"] <= found["high_s"])
    assert inside.mean() > 0.75
    assert np.isfinite(found[["node:scaled_roofline", "fused:scaled_roofline"]]).all().all()
    again = out_of_sample(Median(), dataset(), protocol="lineage", folds=None, baselines=["scaled_roofline"])
    pd.testing.assert_frame_equal(found, again)


def test_baselines_never_see_the_tested_rows() -> None:
    given = dataset()
    wild = given.engines.assign(
        latency_s=np.where(given.engines["lineage"] == "deep", 1000.0, 1.0) * given.engines["latency_s"]
    )
    found = out_of_sample(
        Median(), Dataset(engines=wild, layers=given.layers), folds=None, baselines=["scaled_roofline"]
    ).set_index("engine_id")
    plain = out_of_sample(Median(), given, folds=None, baselines=["scaled_roofline"]).set_index("engine_id")
    deep = found.index[found["lineage"] == "deep"]
    same = found.loc[deep, "fused:scaled_roofline"] / plain.loc[deep, "fused:scaled_roofline"]
    assert np.allclose(same, 1)


def test_nearest_device_knows_the_network_there() -> None:
    found = evaluate([Everywhere()], dataset(), protocol="device", baselines=[]).predictions
    assert np.isfinite(found["nearest"]).all()
    error = (found["nearest_fitted"] / found["measured_s"] - 1).abs()
    assert error.median() < 0.25
    assert not np.allclose(found["nearest"], found["nearest_fitted"])


@dataclass
class Everywhere(Median):
    """The median, without a look at what is asked."""

    def predict_engines(self, engines: pd.DataFrame, layers: pd.DataFrame) -> np.ndarray:
        return np.full(len(engines), self.value_)


def test_evaluation_is_json_with_what_repeats_it(tmp_path: Path) -> None:
    found = evaluate([Median(), Median(name="again")], dataset(), protocol="family", folds=3, seed=7, baselines=["bsp"])
    found.save(tmp_path / "e.json")
    stored = json.loads((tmp_path / "e.json").read_text())
    assert (stored["format"], stored["version"]) == ("perfpred.evaluation", 1)
    assert (stored["seed"], stored["folds"], stored["dataset"]) == (7, 3, dataset().digest())
    assert [row["prediction"] for row in stored["scores"]] == ["median", "node:bsp", "fused:bsp", "again"]
    assert len(stored["predictions"]) == 2 * len(dataset().engines)
    assert stored["baselines_calibrated_per"] == ["runtime", "device", "precision", "latency_kind"]


def test_unfitted_keeps_settings_and_forgets_the_rest() -> None:
    made = unfitted(LatencyPredictor(seed=5, drop=("tile",), facts_={"runtime": "x"}))
    assert (made.seed, made.drop, made.folds, made.facts_) == (5, ("tile",), 0, {})


def test_a_trained_predictor_is_scored_on_new_networks_only() -> None:
    given = dataset()
    half = subset(given, np.flatnonzero(given.engines["lineage"].isin(["plain", "wide", "deep"])))
    trained = LatencyPredictor(folds=3).fit(half)
    trained.facts_["networks"] = sorted(half.engines["network_id"].unique())
    found = evaluate([trained], given)
    assert set(found.predictions["lineage"]) == {"narrow", "mixed", "tall"}
    assert found.protocol == "unseen networks"
    assert found.scores()["mape"].iloc[0] < 0.5
    with pytest.raises(DatasetError, match="give --protocol"):
        evaluate([trained], half)


def test_datasets_of_one_runtime_join() -> None:
    both = concat([dataset(6, ("jetson-orin-nano",)), dataset(6, ("jetson-agx-orin-32gb",))])
    assert len(scorable(both).engines) == 12

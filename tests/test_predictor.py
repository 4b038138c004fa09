"""The predictor end to end on made-up networks: learns, answers, refuses, and is the same after the disk."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from made import chain, dataset, network

from perfpred.dataset import Dataset
from perfpred.device import load_device
from perfpred.errors import DatasetError, FormatError, UsageError
from perfpred.predictor import VERSION, LatencyPredictor
from perfpred.splits import subset

DEVICE = "jetson-orin-nano"


@lru_cache(maxsize=1)
def trained() -> LatencyPredictor:
    return LatencyPredictor(name="made", folds=4).fit(dataset())


def measured(number: int) -> float:
    rows = dataset().engines.query(
        "network == @name and device == @DEVICE", local_dict={"name": f"net{number}", "DEVICE": DEVICE}
    )
    return float(rows["latency_s"].iloc[0])


@pytest.mark.parametrize("number", [0, 7, 11])
def test_known_networks_are_near_their_measurements(number: int) -> None:
    made = trained().predict(network(number), device=DEVICE)
    assert made.latency_s == pytest.approx(measured(number), rel=0.2)
    assert made.interval_s[0] < made.latency_s < made.interval_s[1]
    assert (made.precision, made.batch_size, made.runtime) == ("fp16", 1, "tensorrt")
    assert (made.latency_kind, made.basis, made.predictor) == ("gpu_compute", "measured device", "made")


def test_one_answer_by_both_doors() -> None:
    rows = dataset()
    asked = subset(rows, np.array([0]))
    by_row = trained().predict_engines(asked.engines, asked.layers)[0]
    assert trained().predict(network(0), device=str(asked.engines["device"].iloc[0])).latency_s == pytest.approx(by_row)


def test_layers_add_up_and_name_their_nodes() -> None:
    made = trained().predict(chain([16, 32, 32], 32), device=DEVICE)
    assert sum(layer.time_s for layer in made.layers) == pytest.approx(made.latency_s)
    assert {n for layer in made.layers for n in layer.onnx_nodes} == {
        f"{o}{i}" for o in ("conv", "relu") for i in range(3)
    }
    assert {layer.bound for layer in made.layers} <= {"compute", "memory", "launch"}
    assert all(layer.flops > 0 for layer in made.layers if layer.kind == "conv")


def test_more_work_takes_longer() -> None:
    times = [trained().predict(chain([32] * 5, 32), device=DEVICE, batch_size=b).latency_s for b in (1, 8, 64)]
    assert times == sorted(times)


def test_intervals_widen_with_the_level_and_hold_the_budget() -> None:
    ask = chain([32, 64, 64, 96], 40)
    narrow, wide = (trained().predict(ask, device=DEVICE, level=level).interval_s for level in (0.5, 0.95))
    assert wide[0] <= narrow[0] < narrow[1] <= wide[1]
    latency = trained().predict(ask, device=DEVICE).latency_s
    chances = [trained().predict(ask, device=DEVICE, budget_s=f * latency).p_within_budget for f in (0.2, 1.0, 5.0)]
    assert chances[0] == 0.0
    assert chances[2] == 1.0
    assert 0.1 < chances[1] < 0.9


def test_far_networks_are_named_as_such() -> None:
    near = trained().predict(network(3), device=DEVICE)
    far = trained().predict(chain([512] * 30, 96), device=DEVICE, batch_size=32)
    assert near.extrapolates == []
    assert "totals:flops" in far.extrapolates
    relative = [(p.interval_s[1] - p.interval_s[0]) / p.latency_s for p in (near, far)]
    assert relative[1] > relative[0]


def test_a_device_never_measured_rests_on_its_specification() -> None:
    made = trained().predict(network(0), device="jetson-agx-orin-64gb")
    assert made.basis == "specification only"
    assert 0 < made.latency_s < 1
    spec = load_device("jetson-agx-orin-64gb")
    assert trained().predict(network(0), device=spec).latency_s == made.latency_s


def test_baselines_stand_beside() -> None:
    made = trained().predict(network(0), device=DEVICE)
    assert set(made.baselines_s) == {"roofline", "bsp", "pure_roofline"}
    assert made.baselines_s["pure_roofline"] < made.latency_s


def test_disk_keeps_every_answer(tmp_path: Path) -> None:
    trained().save(tmp_path / "made")
    again = LatencyPredictor.load(tmp_path / "made")
    for number in (0, 5):
        ask: dict[str, Any] = {"device": DEVICE, "budget_s": 1e-4}
        before = trained().predict(network(number), **ask)
        assert again.predict(network(number), **ask).to_dict(layers=True) == before.to_dict(layers=True)
    trained().save(tmp_path / "made")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["made"]
    assert not [p for p in (tmp_path / "made").iterdir() if p.suffix in (".pkl", ".pickle", ".joblib")]


def test_only_predictors_are_replaced(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("precious")
    with pytest.raises(FormatError, match=r"holds no manifest.json"):
        trained().save(tmp_path / "mine")
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "precious"


def test_training_is_the_same_for_a_seed() -> None:
    first, second = (LatencyPredictor(folds=0, seed=3).fit(dataset()) for _ in range(2))
    rows = dataset()
    made = [p.predict_engines(rows.engines, rows.layers) for p in (first, second)]
    assert np.array_equal(*made)


def test_offsets_keep_methods_apart() -> None:
    rows = dataset()
    synced = rows.engines.assign(
        latency_kind="host_sync", latency_s=1.5 * rows.engines["latency_s"], engine_id=rows.engines["engine_id"] + "s"
    )
    both = Dataset(engines=pd.concat([rows.engines, synced], ignore_index=True), layers=rows.layers)
    made = LatencyPredictor(folds=0).fit(both)
    ratio = [
        made.predict(network(n), device=DEVICE, latency_kind="host_sync").latency_s
        / made.predict(network(n), device=DEVICE).latency_s
        for n in range(4)
    ]
    assert ratio == pytest.approx([1.5] * 4, rel=0.05)


def test_data_that_cannot_be_learned_from_is_refused() -> None:
    with pytest.raises(DatasetError, match="at least 4"):
        LatencyPredictor().fit(subset(dataset(), np.arange(3)))
    mixed = dataset().engines.assign(runtime=["tensorrt", "onnxruntime"] * 24)
    with pytest.raises(DatasetError, match="onnxruntime, tensorrt; train one each"):
        LatencyPredictor().fit(replace(dataset(), engines=mixed))
    alone = dataset().engines.assign(lineage="one", family="one")
    with pytest.raises(DatasetError, match="at least two families"):
        LatencyPredictor().fit(replace(dataset(), engines=alone))


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"precision": "fp7"}, "precision 'fp7' is unknown; give one of fp32"),
        ({"level": 1.5}, "--level 0.9"),
        ({"device": "jetson-nona"}, "did you mean"),
        ({"batch_size": -1}, "--batch-size 1 or more"),
    ],
)
def test_requests_that_cannot_be_answered(how: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        trained().predict(network(0), **{"device": DEVICE, **how})  # type: ignore[arg-type]


def test_damaged_folders_are_refused(tmp_path: Path) -> None:
    trained().save(tmp_path / "p")
    manifest = tmp_path / "p" / "manifest.json"
    whole = json.loads(manifest.read_text())
    for change, message in (
        ({"format": "other"}, r"is no perfpred.predictor"),
        ({"version": 99}, f"version 99; this perfpred reads {VERSION}"),
        ({"residuals": {}}, "lacks or garbles"),
    ):
        manifest.write_text(json.dumps(whole | change))
        with pytest.raises(FormatError, match=message):
            LatencyPredictor.load(tmp_path / "p")
    manifest.write_text("{")
    with pytest.raises(FormatError, match="is not JSON"):
        LatencyPredictor.load(tmp_path / "p")
    with pytest.raises(FormatError, match=r"holds no manifest.json"):
        LatencyPredictor.load(tmp_path / "nowhere")

"""The engine stage learns layer times from totals; calibration carries residuals over to similar engines."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest

from perfpred.dataset import engine_frame, layer_frame
from perfpred.distinct import distinct_layers
from perfpred.engine_stage import _PULL, _SHARED, EngineStage, _copies, _Objective, cell_of
from perfpred.errors import FormatError
from perfpred.features import bound_s
from perfpred.group import conv_layer
from perfpred.instances import layer_instances
from perfpred.shots import Shots

_DEVICES = ("jetson-nano", "jetson-xavier-nx", "tesla-t4")


def _measured(n: int = 60, seed: int = 0) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Engines whose latency follows from a law over their layers, and those layers' instances."""
    rng = np.random.default_rng(seed)
    layers, engines = [], []
    for i in range(n):
        net = [
            conv_layer(
                c=int(c), h=int(h), w=int(h), k_out=int(k), r=int(r), groups=int(c) if depthwise else 1,
                name=f"layer{j}",
            )
            for j, (c, h, k, r, depthwise) in enumerate(
                (c, h, c if d else k, r, d)
                for c, h, k, r, d in zip(
                    2 ** rng.integers(3, 9, 8), 2 ** rng.integers(3, 7, 8), 2 ** rng.integers(3, 9, 8),
                    rng.choice([1, 3], 8), rng.random(8) < 0.3, strict=True,
                )
            )
        ]  # fmt: skip
        layers.append(layer_frame(net, structure=f"s{i}", level="fused"))
        engines.append(
            {
                "engine_id": f"e{i}", "structure": f"s{i}", "network": f"n{i}", "device": _DEVICES[i % 3],
                "precision": "fp16", "batch_size": 1, "status": "good", "lab": "ab"[i % 2], "latency_s": 1.0,
                "latency_kind": "with_io" if i % 2 else "gpu_compute",
            }
        )  # fmt: skip
    frame = engine_frame(engines)
    instances = layer_instances(frame, pd.concat(layers, ignore_index=True))
    bound = bound_s(instances)
    law = 2.0 * bound["roofline_s"] + np.where(instances["kind"] == "depthwise_conv", 3.0, 1.0) * 8e-6
    factor = np.where(frame["lab"] == "a", 1.0, 1.5)
    frame["latency_s"] = law.groupby(instances["row"]).sum().to_numpy() * factor
    return frame, instances


def _part(engines: pd.DataFrame, instances: pd.DataFrame, kept: np.ndarray) -> tuple[pd.DataFrame, pd.DataFrame]:
    rows = np.flatnonzero(kept)
    inside = instances[instances["row"].isin(rows)]
    return inside.assign(row=np.searchsorted(rows, inside["row"])), engines.iloc[rows].reset_index(drop=True)


def test_the_gradient_is_that_of_the_loss() -> None:
    engines, instances = _measured(12)
    layers = distinct_layers(instances, len(engines))
    cell = np.arange(12) % 3
    half = np.random.default_rng(0).normal(size=(3, 3))
    shared = dict.fromkeys(_SHARED, half @ half.T)
    objective = _Objective(
        layers, cell, _copies(engines), np.log(engines["latency_s"].to_numpy()), np.ones(12), shared, _PULL
    )
    rng = np.random.default_rng(1)
    v = rng.normal(0, 0.1, len(objective._pull))
    slope = objective._loss(v)[1]
    for i in rng.choice(len(v), 30, replace=False):
        step = np.zeros(len(v))
        step[i] = 1e-5
        numeric = (objective._loss(v + step)[0] - objective._loss(v - step)[0]) / 2e-5
        assert slope[i] == pytest.approx(numeric, rel=1e-3, abs=1e-4)


def test_totals_of_unseen_networks_are_predicted() -> None:
    engines, instances = _measured()
    kept = np.arange(len(engines)) % 4 != 0
    stage = EngineStage().fit(*_part(engines, instances, kept))
    asked, truth = _part(engines, instances, ~kept)
    error = np.abs(stage.predict(asked, truth) - np.log(truth["latency_s"]))
    assert np.median(error) < 0.1


def test_layer_times_add_up_to_less_than_the_engine_and_follow_the_order_of_instances() -> None:
    engines, instances = _measured()
    stage = EngineStage(smooth=False).fit(instances, engines)
    times = stage.layer_times(instances)
    assert times.shape == (len(instances),)
    assert (times > 0).all()
    total = pd.Series(times).groupby(instances["row"].to_numpy()).sum()
    ratio = total / engines["latency_s"]
    assert ratio.between(0.4, 1.6).all()
    shuffled = instances.sample(frac=1, random_state=0)
    assert np.allclose(stage.layer_times(shuffled), times[shuffled.index])


def test_a_device_never_measured_is_answered_by_its_laboratory() -> None:
    engines, instances = _measured()
    kept = (engines["device"] != "tesla-t4").to_numpy()
    stage = EngineStage().fit(*_part(engines, instances, kept))
    asked, truth = _part(engines, instances, ~kept)
    error = stage.predict(asked, truth) - np.log(truth["latency_s"])
    assert np.abs(error).max() < 1.0
    known, nobodys = (stage.predict(asked, truth.assign(lab=lab)) for lab in (truth["lab"], None))
    assert np.allclose(known, nobodys)  # here each kind is one laboratory's
    other = stage.predict(asked, truth.assign(lab="nobody"))
    slow = (truth["lab"] == "b").to_numpy()  # 1.5 times as slow
    assert (known[slow] > other[slow]).all()
    assert (known[~slow] < other[~slow]).all()


def test_a_method_never_seen_lies_between_those_it_shares_something_with() -> None:
    engines, instances = _measured()
    stage = EngineStage(smooth=False).fit(instances, engines)
    layers = distinct_layers(instances, len(engines))
    own = stage._of_cell("cell_scale", layers, engines)
    strange = engines.assign(lab="c", latency_kind="host_sync", device="somewhere")
    unknown = stage._of_cell("cell_scale", layers, strange)
    assert own.min() < unknown.min()
    assert unknown.max() < own.max()


def test_rounds_of_one_benchmark_are_one_laboratory() -> None:
    engines = _measured(3)[0].assign(lab=["inference_results_v0.7", "inference_results_v2.0", "other_v2.0"])
    assert [cell.split("|")[1] for cell in cell_of(engines)] == ["inference_results", "inference_results", "other_v2.0"]


def test_launches_are_known_less_well_than_work() -> None:
    engines, instances = _measured()
    stage = EngineStage(smooth=False).fit(instances, engines)
    layers = distinct_layers(instances, len(engines))
    size = layers.counts @ (layers.compute_s + layers.memory_s)
    spread = stage.spread(instances, engines)
    assert spread[np.argmin(size)] > spread[np.argmax(size)]
    # Stages with trees answer 1, and a small dataset's folds may have trees or not: one scale for both.
    assert spread.min() >= 1
    assert spread.max() < 2.5


def test_many_engines_are_summarised_by_landmarks() -> None:
    engines, instances = _measured()
    whole, thinned = (EngineStage(landmarks=n).fit(instances, engines) for n in (60, 30))
    assert thinned.process_["landmarks"].shape[0] == 30
    assert np.abs(whole.predict(instances, engines) - thinned.predict(instances, engines)).max() < 0.1


def test_the_json_form_predicts_the_same_and_refuses_other_kinds() -> None:
    engines, instances = _measured(20)
    stage = EngineStage().fit(instances, engines)
    facts = json.loads(json.dumps(stage.to_dict()))
    again = EngineStage.from_dict(facts)
    assert np.allclose(again.predict(instances, engines), stage.predict(instances, engines))
    for old in ({**facts, "classes": ["conv"]}, {k: v for k, v in facts.items() if k != "places"}):
        with pytest.raises(FormatError, match="train it again"):
            EngineStage.from_dict(old)


def test_shots_move_like_networks_alike_and_all_by_the_common_factor() -> None:
    similarity = np.array([[0.0, 0.0], [0.1, 0.0], [5.0, 5.0], [5.1, 5.0]])
    residual = np.array([0.5, 0.5, 0.1, 0.1])
    shots = Shots().fit(similarity[[0, 2]], residual[[0, 2]])
    near = shots.predict(similarity)
    assert near[1] == pytest.approx(0.5, abs=0.1)
    assert near[3] == pytest.approx(0.1, abs=0.1)
    assert 0.2 < shots.predict(np.array([[-9.0, 9.0]]))[0] < 0.4
    assert np.allclose(Shots.from_dict(json.loads(json.dumps(shots.to_dict()))).predict(similarity), near)
    assert Shots().predict(similarity).tolist() == [0.0] * 4

"""The stages together: what the physics learns from, and how sure an engine's answer is."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pandas as pd
import pytest

from perfpred.engine_stage import EngineStage
from perfpred.instances import layer_instances
from perfpred.layer_stage import LayerStage
from perfpred.stages import Stages
from tests.made import dataset


def _apart_by(apart: list[list[float]]) -> np.ndarray:
    """Expected error of engines of equal layers whose members lie apart by so much."""
    counts = [len(one) for one in apart]
    n = sum(counts)
    physics = SimpleNamespace(
        layer_times=lambda layers: np.ones(n), method=lambda layers, engines: (np.zeros(len(counts)), 1.0)
    )
    members = SimpleNamespace(factor=lambda layers: (np.ones(n), np.concatenate(apart)))
    stages = Stages(physics_=cast(EngineStage, physics), layer_stage_=cast(LayerStage, members))
    engines = pd.DataFrame({"latency_kind": ["gpu_compute"] * len(counts)})
    return stages.forecast(engines, pd.DataFrame({"row": np.repeat(np.arange(len(counts)), counts)})).spread


def test_layers_apart_to_both_sides_make_up_for_each_other_in_part() -> None:
    sure, one_side, both_sides, further = _apart_by([[0.0, 0.0], [0.2, 0.2], [0.2, -0.2], [0.6, 0.6]])
    assert 0 < sure < both_sides < one_side < further
    assert one_side / both_sides == pytest.approx(np.hypot(1, 0.5) / 0.5, rel=0.05)


def test_physics_is_learned_from_networks_and_not_from_probes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Probes ten times as slow leave the physics as it is, though the layer stage learns from them."""
    monkeypatch.setattr("perfpred.stages._FEWEST_LAYERS", 1)
    data = dataset(24)
    engines = data.engines.copy()
    probe = engines["network"].isin(engines["network"].unique()[:8])
    engines.loc[probe, "lineage"] = "probe"
    instances = layer_instances(engines, data.layers_at("fused"))
    times = np.full(len(instances), 1e-6)
    made: list[Any] = []
    for factor in (1.0, 10.0):
        slower = engines.assign(latency_s=engines["latency_s"].where(~probe, factor * engines["latency_s"]))
        stages = Stages().fit(slower, instances, times)
        assert stages.layer_stage_ is not None
        made.append(stages)
    np.testing.assert_array_equal(*(stages.physics_.layer_times(instances) for stages in made))
    assert (made[0].layer_times(instances) != made[1].layer_times(instances)).any()


def test_probes_alone_are_learned_from_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """As where a device left out is the only one that networks were measured on."""
    monkeypatch.setattr("perfpred.stages._FEWEST_LAYERS", 1)
    data = dataset(8)
    engines = data.engines.assign(lineage="probe")
    instances = layer_instances(engines, data.layers_at("fused"))
    made = Stages().fit(engines, instances, np.full(len(instances), 1e-6)).forecast(engines, instances).latency_s
    assert np.abs(np.log(made / engines["latency_s"].to_numpy(float))).max() < 1

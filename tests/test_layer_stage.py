"""The layer stage learns each layer's factor from timed layers, and from totals where no layer was timed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import xgboost as xgb

from perfpred.dataset import engine_frame, layer_frame
from perfpred.errors import FormatError
from perfpred.features import layer_features
from perfpred.group import conv_layer
from perfpred.instances import layer_instances
from perfpred.layer_stage import LayerStage, LayerTargets, _Problem, _steepness, distinct

#: What the kernels make of a layer: plain 3x3 and pointwise convolutions, and depthwise ones.
_FACTOR = {3: 2.0, 1: 5.0, "depthwise": 9.0}


def _law(layers: pd.DataFrame) -> np.ndarray:
    depthwise = layers["kind"].eq("depthwise_conv").to_numpy()
    return np.where(depthwise, _FACTOR["depthwise"], np.where(layers["r"] == 3, _FACTOR[3], _FACTOR[1]))


def _measured(n: int, seed: int) -> tuple[pd.DataFrame, LayerTargets]:
    """Engines of six convolutions; layer times of every other engine, never of a depthwise layer's engine."""
    rng = np.random.default_rng(seed)
    frames, engines = [], []
    for i in range(n):
        nets = []
        for j in range(6):
            c, h, r = int(2 ** rng.integers(3, 9)), int(2 ** rng.integers(3, 7)), int(rng.choice([1, 3]))
            depthwise = i % 2 == 0 and j < 3
            nets.append(
                conv_layer(
                    c=c, h=h, w=h, k_out=c if depthwise else int(2 ** rng.integers(3, 9)), r=3 if depthwise else r,
                    groups=c if depthwise else 1, name=f"layer{j}",
                )
            )  # fmt: skip
        frames.append(layer_frame(nets, structure=f"s{i}", level="fused"))
        engines.append({"engine_id": f"e{i}", "structure": f"s{i}", "device": "tesla-t4", "precision": "fp16"})
    layers = layer_instances(engine_frame(engines), pd.concat(frames, ignore_index=True))
    row = layers["row"].to_numpy(int)
    base_s = 1e-6 + layers["flops"].to_numpy(float) / 1e13
    layer_s = base_s * _law(layers)
    return layers, LayerTargets(
        row=row,
        base_s=base_s,
        layer_s=np.where(row % 2 == 1, layer_s, np.nan),
        latency_s=np.bincount(row, layer_s) + 2e-5,
        added_s=np.full(n, 2e-5),
        weight=np.ones(n),
        unjudged=np.zeros(n, bool),
    )


def test_factors_come_from_layers_and_from_totals(tmp_path: Path) -> None:
    layers, targets = _measured(150, seed=0)
    trees = LayerStage(rounds=120).fit(layers, targets)
    asked, truth = _measured(40, seed=1)
    factor, apart = trees.factor(asked)
    law = _law(asked)
    for kind in (3, 1):
        alike = np.isclose(law, _FACTOR[kind])
        assert np.median(factor[alike]) == pytest.approx(_FACTOR[kind], rel=0.05)
    # No depthwise layer was ever timed: what is known of it comes from the totals.
    assert np.median(factor[np.isclose(law, _FACTOR["depthwise"])]) == pytest.approx(9.0, rel=0.4)
    made = np.bincount(truth.row, truth.base_s * factor) + truth.added_s
    assert np.median(np.abs(made / truth.latency_s - 1)) < 0.1
    # They agree best on what they learned from.
    assert np.abs(trees.factor(layers)[1]).mean() < 0.9 * np.abs(apart).mean()
    digests = trees.save(tmp_path)
    np.testing.assert_array_equal(LayerStage.load(tmp_path, (), digests).factor(asked), (factor, apart))


def test_the_same_seed_gives_the_same_trees() -> None:
    layers, targets = _measured(20, seed=0)
    first, again, other = (LayerStage(rounds=5, seed=s).fit(layers, targets).factor(layers)[0] for s in (3, 3, 4))
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()


def test_layer_times_taken_under_other_conditions_are_left_out() -> None:
    layers, targets = _measured(20, seed=0)
    odd = LayerTargets(**{**vars(targets), "layer_s": targets.layer_s * 10})
    none = LayerTargets(**{**vars(targets), "layer_s": np.full(len(layers), np.nan)})
    made = [LayerStage(rounds=5).fit(layers, t).factor(layers)[0] for t in (odd, none)]
    np.testing.assert_array_equal(*made)


def test_distinct_layers_keep_what_features_see() -> None:
    layers, _ = _measured(10, seed=0)
    twice = pd.concat([layers, layers.assign(row=layers["row"] + 10)], ignore_index=True)
    index, first = distinct(twice)
    assert len(first) == index.max() + 1 <= len(layers)
    np.testing.assert_array_equal(index[: len(layers)], index[len(layers) :])
    kept = twice.iloc[first[index]]
    assert (kept["flops"].to_numpy() == twice["flops"].to_numpy()).all()


def test_a_missing_file_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(FormatError, match="is missing; copy the whole predictor folder"):
        LayerStage.load(tmp_path, (), {"layer-0.ubj.gz": ""})


def test_where_members_disagree_the_answer_is_below_their_mean_and_never_far_below() -> None:
    layers, targets = _measured(30, seed=0)
    stage = LayerStage(rounds=15).fit(layers, targets)
    factor, apart = stage.factor(layers)
    features = layer_features(layers).astype(np.float32)
    asked = xgb.DMatrix(features, base_margin=np.zeros(len(features)))
    trees = np.mean([booster.predict(asked, output_margin=True) for booster in stage.boosters_], axis=0)
    gap = np.clip(stage.perceptron_.predict(features) - trees, -1, 1)
    np.testing.assert_allclose(apart, gap / 2, atol=1e-5)
    lowered = np.log(factor) - (trees + 0.5 * gap)
    np.testing.assert_allclose(lowered, -((1.25 * apart) ** 2), atol=1e-5)
    assert -0.4 < lowered.min() < -1e-4


def test_the_perceptron_learns_totals_where_nothing_was_timed() -> None:
    """Of trees that are off by the same everywhere, most of it is taken back."""
    layers, targets = _measured(30, seed=0)
    index, first = distinct(layers)
    untimed = LayerTargets(**{**vars(targets), "layer_s": np.full(len(layers), np.nan)})
    truth = np.log(_law(layers))[first]
    told, weight = _Problem(index, first, untimed).lessons(truth - 0.3)
    np.testing.assert_allclose(told, truth, atol=0.15)
    assert (weight > 0).all()


def test_where_probes_and_networks_contradict_each_other_networks_count_for_more() -> None:
    """The same layer in a network, where it takes twice its physical time, and in a probe, where it takes five times."""
    layers, _ = _measured(2, seed=0)
    layer = layers.iloc[[0]].assign(row=0)
    twice = pd.concat([layer, layer.assign(row=1)], ignore_index=True)
    base_s = np.full(2, 1e-4)
    index, first = distinct(twice)
    told = {
        odd: _Problem(
            index,
            first,
            LayerTargets(
                row=np.array([0, 1]),
                base_s=base_s,
                layer_s=base_s * [2, 5],
                latency_s=base_s * [2, 5],
                added_s=np.zeros(2),
                weight=np.ones(2),
                unjudged=np.array([False, odd]),
            ),
        ).lessons(np.zeros(1))[0][0]
        for odd in (False, True)
    }
    assert len(first) == 1
    assert np.log(2) < told[True] < told[False] < np.log(5)


def test_too_high_an_answer_counts_as_its_relative_error() -> None:
    low, right, high = _steepness(np.array([-1.0, 0.0, 1.0]), 0.15)
    assert right == 1
    assert high == pytest.approx(low * np.e)
    assert _steepness(np.array([5.0]), np.inf) == pytest.approx(np.exp(1.5))  # bounded: outliers stay outliers

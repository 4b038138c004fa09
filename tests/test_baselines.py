"""Closed forms of the micro-architecture-only predictors, and that fits find what made the data."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest

from perfpred.baselines import (
    BASELINES,
    PURE,
    AffineRoofline,
    Bsp,
    FlopsLine,
    Paleo,
    Roofline,
    baseline_from_dict,
    baseline_to_dict,
    fit_groups,
    predict_groups,
)
from perfpred.device import load_device
from perfpred.errors import FormatError, PredictorError
from perfpred.features import device_numbers

DEVICE = load_device("jetson-orin-nx-16gb")


def engines(count: int = 40, seed: int = 0, precision: str = "fp16") -> pd.DataFrame:
    """Layer instances of engines of 3 to 30 layers of several kinds and sizes."""
    random = np.random.default_rng(seed)
    frames = []
    for row in range(count):
        layers = int(random.integers(3, 30))
        kind = random.choice(["conv", "depthwise_conv", "pointwise", "pool"], layers)
        out = random.integers(1e4, 1e6, layers)
        depth = np.where(kind == "conv", random.integers(32, 2000, layers), 5)
        frames.append(
            pd.DataFrame(
                {
                    "row": row,
                    "kind": kind,
                    "dtype": "float16",
                    "precision": precision,
                    "flops": 2 * out * depth,
                    "input_bytes": 2 * out,
                    "output_bytes": 2 * out,
                    "weight_bytes": 100 * depth,
                    "dram_bytes": 4 * out + 100 * depth,
                    **device_numbers(DEVICE),
                }
            )
        )
    return pd.concat(frames, ignore_index=True)


def one_layer(kind: str, flops: int, bytes_in: int, bytes_out: int, weight_bytes: int = 0) -> pd.DataFrame:
    values = {"row": 0, "kind": kind, "dtype": "float16", "precision": "fp16", "flops": flops}
    sizes = {"input_bytes": bytes_in, "output_bytes": bytes_out, "weight_bytes": weight_bytes}
    total = {"dram_bytes": bytes_in + bytes_out + weight_bytes}
    return pd.DataFrame([{**values, **sizes, **total, **device_numbers(DEVICE)}])


def test_pure_roofline_is_the_larger_of_two_times() -> None:
    compute = one_layer("conv", flops=10**10, bytes_in=1000, bytes_out=1000)
    memory = one_layer("pointwise", flops=10, bytes_in=10**9, bytes_out=10**9)
    assert Roofline().predict(compute) == pytest.approx(10**10 / DEVICE.peak("fp16"))
    assert Roofline().predict(memory) == pytest.approx(2 * 10**9 / DEVICE.dram_bytes_per_s)


def test_bsp_of_one_product() -> None:
    outputs, depth = 1000, 64
    layer = one_layer("conv", flops=2 * outputs * depth, bytes_in=2 * 5000, bytes_out=2 * outputs)
    cycles = outputs * (depth + 500 * (2 * depth / 16 + 1) + 5 * (2 * depth + 2 * depth / 16))
    assert Bsp().predict(layer) == pytest.approx(cycles / (DEVICE.clock_hz * 8 * 128))


def test_bsp_of_one_elementwise_layer() -> None:
    outputs = 1000
    layer = one_layer("pointwise", flops=outputs, bytes_in=2 * 2 * outputs, bytes_out=2 * outputs)
    assert Bsp().predict(layer) == pytest.approx(outputs * (1 + 500 * 3) / (DEVICE.clock_hz * 8 * 128))


def test_paleo_adds_and_never_takes_less_than_a_clock() -> None:
    layer = one_layer("conv", flops=10**9, bytes_in=10**6, bytes_out=10**6)
    added = 10**9 / DEVICE.peak("fp16") + 2 * 10**6 / DEVICE.dram_bytes_per_s
    assert Paleo().predict(layer) == pytest.approx(added)
    assert Paleo().predict(one_layer("data_movement", 0, 0, 0)) == pytest.approx(2 / DEVICE.clock_hz)


@pytest.mark.parametrize(
    "truth",
    [
        FlopsLine(factors=[1e-12, 2e-4]),
        Roofline(compute_efficiency=0.6, memory_efficiency=0.8),
        Roofline(tied=True, compute_efficiency=0.4, memory_efficiency=0.4),
        AffineRoofline(scale=1.7, launch_s=5e-6),
        Paleo(percent_of_peak=0.5),
    ],
)
def test_fit_finds_the_parameters_that_made_the_data(truth: FlopsLine | Roofline | AffineRoofline | Paleo) -> None:
    instances = engines()
    latency_s = truth.predict(instances)
    fitted = type(truth)(**({"tied": truth.tied} if isinstance(truth, Roofline) else {}))
    fitted.fit(instances, latency_s)
    assert fitted.predict(engines(seed=1)) == pytest.approx(truth.predict(engines(seed=1)), rel=0.01)


def test_bsp_learns_a_factor_per_kind_and_keeps_unseen_kinds_common() -> None:
    instances = engines(80)
    truth = Bsp()
    truth.inverse_lambda.update(conv=0.01, depthwise_conv=0.1, pointwise=0.03, pool=0.03)
    fitted = Bsp().fit(instances, truth.predict(instances))
    assert np.median(np.abs(fitted.predict(instances) / truth.predict(instances) - 1)) < 0.01
    assert 0.005 < fitted.inverse_lambda["softmax"] < 0.2


@pytest.mark.parametrize("name", list(BASELINES))
def test_every_baseline_fits_predicts_and_survives_json(name: str) -> None:
    instances = engines()
    latency_s = AffineRoofline(scale=2.0, launch_s=1e-5).predict(instances)
    baseline = BASELINES[name]()
    if name not in PURE:
        baseline = baseline.fit(instances, latency_s)
        # Each has a scale at least, so its fit can't be far off on data this regular.
        assert np.median(np.abs(baseline.predict(instances) / latency_s - 1)) < 0.5
    again = baseline_from_dict(json.loads(json.dumps(baseline_to_dict(baseline))))
    assert type(again) is type(baseline)
    np.testing.assert_array_equal(again.predict(instances), baseline.predict(instances))


def test_small_latencies_get_their_own_line() -> None:
    instances = engines(200)
    line = FlopsLine(factors=[1e-12, 1e-4]).predict(instances)
    latency_s = np.where(line < np.quantile(line, 0.5), 3 * line, line)
    fitted = BASELINES["activation_line"]().fit(instances, latency_s)
    error = np.abs(fitted.predict(instances) / latency_s - 1)
    plain = np.abs(FlopsLine().fit(instances, latency_s).predict(instances) / latency_s - 1)
    assert np.mean(error) < np.mean(plain)


def test_rows_are_answered_in_ascending_order() -> None:
    instances = engines(5)
    shuffled = instances.sample(frac=1.0, random_state=0)
    np.testing.assert_allclose(Roofline().predict(shuffled), Roofline().predict(instances))


def test_groups_have_their_own_parameters_and_a_common_fallback() -> None:
    instances = engines(30)
    groups = ["a" if row % 2 else "b" for row in range(30)]
    pure = Roofline().predict(instances)
    latency_s = pure * np.array([2.0 if g == "a" else 8.0 for g in groups])
    fitted = fit_groups(["scaled_roofline", "roofline"], instances, latency_s, groups)
    told = predict_groups(fitted, instances, groups)
    np.testing.assert_allclose(told["scaled_roofline"], latency_s)
    np.testing.assert_allclose(told["roofline"], pure)
    np.testing.assert_allclose(predict_groups(fitted, instances, ["c"] * 30)["scaled_roofline"], pure * 4.0)
    with pytest.raises(PredictorError, match="30 engines have layers, but 30 latencies, 1 groups"):
        fit_groups(["bsp"], instances, latency_s, ["a"])


def test_misuse_is_refused() -> None:
    with pytest.raises(PredictorError, match="fit it on measured engines first"):
        FlopsLine().predict(engines(1))
    with pytest.raises(FormatError, match="known: FlopsLine"):
        baseline_from_dict({"class": "Oracle"})
    with pytest.raises(FormatError, match="Paleo"):
        baseline_from_dict({"class": "Paleo", "wrong": 1})

"""Convolution features against traffic worked out by hand, and on rows of several devices at once."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from perfpred.convolution import FLOOR_S, convolution_features, convolution_traffic

NUMBERS = {
    "peak_flops": 125e12,
    "vector_flops": 15e12,
    "sm_count": 80,
    "dram_bytes_per_s": 900e9,
    "l2_bytes": 6e6,
}


def layer(**changes: int) -> pd.DataFrame:
    sizes = {
        "batch": 2, "in_channels": 64, "out_channels": 128, "in_h": 28, "in_w": 28, "out_h": 28, "out_w": 28,
        "kernel_h": 3, "kernel_w": 3, "stride": 1, "groups": 1, "added_tensors": 0, "element_bytes": 2,
    }  # fmt: skip
    return pd.DataFrame([{**sizes, **changes}])


def test_traffic_counts_every_tensor_once() -> None:
    traffic = convolution_traffic(layer(added_tensors=1))
    assert traffic.read[0] == 2 * 64 * 28 * 28 * 2
    assert traffic.weights[0] == 128 * 64 * 9 * 2
    assert traffic.written[0] == traffic.added[0] == 2 * 128 * 28 * 28 * 2


def test_strided_pointwise_kernel_reads_a_quarter() -> None:
    small = {"kernel_h": 1, "kernel_w": 1}
    dense = convolution_traffic(layer(**small)).read[0]
    strided = convolution_traffic(layer(**small, stride=2, out_h=14, out_w=14)).read[0]
    assert strided == dense / 4


def test_bound_is_the_roofline_and_a_floor() -> None:
    features, bound = convolution_features(layer(), **NUMBERS)
    flops = 2 * 2 * 28 * 28 * 128 * 64 * 9
    nbytes = convolution_traffic(layer()).total[0]
    assert np.exp(bound[0]) == pytest.approx(max(flops / 125e12, nbytes / 900e9) + FLOOR_S)
    assert np.isfinite(features.to_numpy()).all()


def test_depthwise_is_bound_by_memory_and_has_no_tap_padding() -> None:
    features, _ = convolution_features(layer(out_channels=64, groups=64), **NUMBERS)
    assert features["depthwise"][0] == 1
    assert features["tap_tile_best_s"][0] < features["memory_s"][0] + np.log(4)


def test_taps_pad_channels_to_whole_steps() -> None:
    features, _ = convolution_features(pd.concat([layer(in_channels=32), layer(in_channels=24)]), **NUMBERS)
    assert features["tap_tile_best_s"].iloc[0] == pytest.approx(features["tap_tile_best_s"].iloc[1])


def test_each_row_may_have_its_own_device() -> None:
    both = pd.concat([layer(), layer()], ignore_index=True)
    mixed = {**NUMBERS, "sm_count": np.array([80, 8]), "peak_flops": np.array([125e12, 11e12])}
    features, bound = convolution_features(both, **mixed)
    alone, alone_bound = convolution_features(layer(), **NUMBERS)
    np.testing.assert_allclose(features.iloc[0], alone.iloc[0])
    assert bound[0] == alone_bound[0] < bound[1]

"""Tiles and waves against cases worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest

from perfpred.tiles import (
    TILES,
    MatrixShape,
    alignment_terms,
    matrix_from_convolution,
    padded,
    power_of_two_in,
    tile_seconds,
    tile_terms,
)

DEVICE = {"peak_flops": 80e12, "sm_count": 80, "dram_bytes_per_s": 900e9}


def shape_of(m: float, n: float, k: float, groups: float = 1) -> MatrixShape:
    return MatrixShape(*(np.array([v], float) for v in (m, n, k, groups)))


def test_convolution_becomes_its_matrix_product() -> None:
    m, n, k, groups = matrix_from_convolution(
        batch=[2], in_channels=[64], out_channels=[128], out_positions=[14 * 14], kernel_area=[9]
    )
    assert (m[0], n[0], k[0], groups[0]) == (392, 128, 576, 1)


def test_depthwise_convolution_is_one_product_a_channel() -> None:
    m, n, k, groups = matrix_from_convolution(
        batch=[1], in_channels=[32], out_channels=[32], out_positions=[49], kernel_area=[25], groups=[32]
    )
    assert (m[0], n[0], k[0], groups[0]) == (49, 1, 25, 32)


def test_padding_reaches_the_next_multiple_and_leaves_multiples() -> None:
    assert padded([1, 32, 33], 32).tolist() == [32, 32, 64]
    terms = alignment_terms("n", [24.0])
    assert terms["pad_n_8"][0] == 0
    assert terms["pad_n_32"][0] == pytest.approx(np.log(32 / 24))


@pytest.mark.parametrize(("size", "power"), [(7, 0), (12, 2), (4096, 8)])
def test_power_of_two_is_counted_and_capped(size: int, power: int) -> None:
    assert power_of_two_in([size])[0] == power


def test_full_wave_of_large_tiles_runs_at_peak() -> None:
    shape = shape_of(128 * 80, 128, 1024)
    seconds = tile_seconds(shape, (128, 128), **DEVICE)[0]
    assert seconds == pytest.approx(2 * 128 * 80 * 128 * 1024 / 80e12)


def test_one_row_more_costs_a_whole_wave() -> None:
    full, spilled = (tile_seconds(shape_of(m, 128, 1024), (128, 128), **DEVICE)[0] for m in (10240, 10241))
    assert spilled == pytest.approx(2 * full)


def test_time_is_flat_within_a_tile() -> None:
    one, most = (tile_seconds(shape_of(m, 128, 64), (128, 128), **DEVICE)[0] for m in (1, 128))
    assert one == most


def test_split_helps_long_reductions_of_few_tiles_only() -> None:
    few, many = shape_of(64, 64, 8192), shape_of(64 * 160, 64, 8192)
    assert tile_seconds(few, (64, 64), split=True, **DEVICE) < tile_seconds(few, (64, 64), **DEVICE) / 10
    assert tile_seconds(many, (64, 64), split=True, **DEVICE) == tile_seconds(many, (64, 64), **DEVICE)


def test_best_candidate_is_the_fastest_and_never_beats_peak() -> None:
    shape = shape_of(5000, 48, 300)
    terms = tile_terms(shape, flops=2 * 5000 * 48 * 300, **DEVICE)
    assert np.exp(terms["tile_best_s"][0]) <= min(tile_seconds(shape, tile, **DEVICE)[0] for tile in TILES)
    assert terms["tile_best_slow"][0] >= 0
    assert all(values.shape == (1,) and np.isfinite(values).all() for values in terms.values())


def test_more_multiprocessors_never_slow_a_tile_at_the_same_rate_each() -> None:
    shape = shape_of(3000, 96, 576)
    small = tile_seconds(shape, (64, 64), peak_flops=8e12, sm_count=8, dram_bytes_per_s=100e9)
    large = tile_seconds(shape, (64, 64), peak_flops=16e12, sm_count=16, dram_bytes_per_s=100e9)
    assert large < small

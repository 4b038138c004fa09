"""Tile and wave terms of matrix-shaped work: what blocking on a GPU costs beyond the FLOPs.

A GPU computes `C[m, n] += A[m, k] B[k, n]` in output tiles, one tile a thread block. Edges are padded to whole
tiles and the last wave of blocks leaves multiprocessors idle, so time is a staircase in every width. Trees and
smooth regressors can't guess where the steps are; these terms tell them. An engine that tries many kernels and
keeps the fastest (as TensorRT does) takes the *minimum* over tiles, which `tile_terms` gives as well.

Everything here is a pure function of arrays: sizes of the work and numbers of the device, one element a layer.

Sources of the physics: the dimension-quantisation chapters of NVIDIA's matrix multiplication guide
(docs.nvidia.com/deeplearning/performance/dl-performance-matrix-multiplication) for padding, waves and tile sizes;
CUTLASS's documentation of tiled and split-k GEMM (github.com/NVIDIA/cutlass, BSD-3-Clause) for the families of
tiles; convolution as an implicit matrix product: Chetlur et al. 2014, arXiv 1410.0759.
"""

from __future__ import annotations

from functools import partial
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]

#: Rows and columns of the output that one thread block computes: the usual family, largest first.
TILES: Final = (
    (256, 128),
    (128, 256),
    (256, 64),
    (128, 128),
    (128, 64),
    (64, 128),
    (64, 64),
    (128, 32),
    (64, 32),
    (32, 32),
)

#: Reduction step that kernels pad `k` to.
_K_STEP: Final = 32

#: Shortest reduction worth giving to a block of its own when `k` is split.
_K_SPLIT: Final = 128

#: Multiples that channel vectors and tensor-core fragments ask for.
ALIGNMENTS: Final = (4, 8, 16, 32, 64, 128, 256)


class MatrixShape(NamedTuple):
    """Matrix product behind a layer: `groups` independent products of `m x k` by `k x n`."""

    m: Array
    n: Array
    k: Array
    groups: Array


def matrix_from_convolution(
    *,
    batch: ArrayLike,
    in_channels: ArrayLike,
    out_channels: ArrayLike,
    out_positions: ArrayLike,
    kernel_area: ArrayLike,
    groups: ArrayLike = 1,
) -> MatrixShape:
    """Return the implicit matrix product of convolutions.

    Args:
        batch, in_channels, out_channels: Sizes, shape (layers,).
        out_positions: Output height times width.
        kernel_area: Kernel height times width.
        groups: Groups of the convolution; as many as channels where it is depthwise.
    """
    g = np.asarray(groups, float)
    return MatrixShape(
        *np.broadcast_arrays(
            np.asarray(batch, float) * np.asarray(out_positions, float),
            np.asarray(out_channels, float) / g,
            np.asarray(in_channels, float) / g * np.asarray(kernel_area, float),
            g,
        )
    )


def padded(size: ArrayLike, multiple: ArrayLike) -> Array:
    """Return sizes rounded up to whole multiples."""
    step = np.asarray(multiple, float)
    return np.asarray(np.ceil(np.asarray(size, float) / step) * step, float)


def power_of_two_in(size: ArrayLike, most: int = 8) -> Array:
    """Return how often 2 divides whole sizes, at most `most` times: what vector loads can rely on."""
    whole = np.asarray(size, np.int64)
    return np.asarray(np.minimum(np.log2((whole & -whole).astype(float)), most), float)


def alignment_terms(name: str, size: ArrayLike) -> dict[str, Array]:
    """Return the logarithm of what padding to each of `ALIGNMENTS` adds to a width, and its power of two.

    Args:
        name: Goes into the column names, as `pad_<name>_32`.
        size: Widths, shape (layers,).
    """
    width = np.asarray(size, float)
    terms = {f"pad_{name}_{step}": np.log(padded(width, step) / width) for step in ALIGNMENTS}
    return terms | {f"power2_{name}": power_of_two_in(width)}


def tile_seconds(
    shape: MatrixShape,
    tile: tuple[int, int],
    *,
    peak_flops: ArrayLike,
    sm_count: ArrayLike,
    dram_bytes_per_s: ArrayLike,
    split: bool = False,
) -> Array:
    """Return the compute time of one tile size: whole waves of whole tiles.

    A tile of `a x b` loads `a + b` values for `a * b` products, so small tiles are held back by on-chip traffic:
    they run at the square root of their intensity against a 128 x 128 tile, at most at peak.

    Args:
        shape: The products.
        tile: Rows and columns of a block's output.
        peak_flops: Dense rate of the device at the layer's precision, FLOP/s.
        sm_count: Its multiprocessors.
        dram_bytes_per_s: Its memory bandwidth.
        split: Share the reduction of each tile among idle multiprocessors; partial sums (4 bytes each, written and
            read once, mostly in cache at four times the memory's rate) are added to the time.

    Returns:
        Seconds, shape (layers,).
    """
    rows, columns = tile
    sms = np.asarray(sm_count, float)
    blocks = np.ceil(shape.m / rows) * np.ceil(shape.n / columns) * shape.groups
    intensity = rows * columns / (rows + columns) / 64
    rate = np.asarray(peak_flops, float) / sms * min(1.0, intensity**0.5)
    block_s = 2 * rows * columns * padded(shape.k, _K_STEP) / rate
    if not split:
        return np.asarray(np.ceil(blocks / sms) * block_s, float)
    parts = np.clip(np.floor(2 * sms / blocks), 1, np.ceil(shape.k / _K_SPLIT))
    partial_bytes = np.where(parts > 1, 2 * 4 * parts * shape.m * shape.n * shape.groups, 0.0)
    merge_s = partial_bytes / (4 * np.asarray(dram_bytes_per_s, float))
    return np.asarray(np.ceil(blocks * parts / sms) * block_s / parts + merge_s, float)


def tile_terms(
    shape: MatrixShape,
    *,
    flops: ArrayLike,
    peak_flops: ArrayLike,
    sm_count: ArrayLike,
    dram_bytes_per_s: ArrayLike,
) -> dict[str, Array]:
    """Return slowdown, waves and idleness of each tile, and the fastest candidate: columns for a regressor.

    Args:
        shape: The products, perhaps with `k` padded as some kernels need it.
        flops: Useful work, 2 per multiply-accumulate.
        peak_flops: Dense rate at the layer's precision, FLOP/s.
        sm_count: Multiprocessors.
        dram_bytes_per_s: Memory bandwidth.

    Returns:
        Logarithms. `slow_<a>x<b>`: the tile's time over the useful work at peak; `waves_<a>x<b>`: blocks over
        multiprocessors; `idle_<a>x<b>`: slots of whole waves over blocks; `tile_best_s`: seconds of the fastest
        candidate, split or not; `tile_best_slow`: the same over the useful work at peak. `tile_best` is its index.
    """
    seconds = partial(tile_seconds, shape, peak_flops=peak_flops, sm_count=sm_count, dram_bytes_per_s=dram_bytes_per_s)
    at_peak_s = np.asarray(flops, float) / np.asarray(peak_flops, float)
    terms: dict[str, Array] = {}
    candidates: list[Array] = []
    for rows, columns in TILES:
        whole = seconds((rows, columns))
        waves = np.ceil(shape.m / rows) * np.ceil(shape.n / columns) * shape.groups / np.asarray(sm_count, float)
        terms[f"slow_{rows}x{columns}"] = np.log(whole / at_peak_s)
        terms[f"waves_{rows}x{columns}"] = np.log(waves)
        terms[f"idle_{rows}x{columns}"] = np.log(np.ceil(waves) / waves)
        candidates += [whole, seconds((rows, columns), split=True)]
    times = np.stack(candidates)
    best = times.min(axis=0)
    terms["tile_best_s"] = np.log(best)
    terms["tile_best_slow"] = np.log(best / at_peak_s)
    terms["tile_best"] = times.argmin(axis=0).astype(float)
    return terms

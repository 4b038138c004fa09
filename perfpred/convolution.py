"""Features of convolution layers from their geometry and the device's numbers, and the bound they are relative to.

What the columns hold that sizes alone don't say:

* a kernel smaller than its stride reads only the positions it samples (1 x 1 with stride 2: a quarter);
* tensor-core kernels take the reduction one filter tap at a time, channels padded to 32 in each;
* depthwise convolutions run on the vector units, channels side by side;
* whether a layer narrows or widens: engines surround a narrow output by reformats more readily.
"""

from __future__ import annotations

from typing import Final, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from perfpred.tiles import (
    MatrixShape,
    alignment_terms,
    matrix_from_convolution,
    padded,
    power_of_two_in,
    tile_terms,
)

#: Seconds that a lone layer takes however small, to keep the log ratio of tiny layers moderate.
FLOOR_S: Final = 8e-6

#: Columns that `convolution_features` reads.
GEOMETRY: Final = (
    "batch", "in_channels", "out_channels", "in_h", "in_w", "out_h", "out_w", "kernel_h", "kernel_w", "stride",
    "groups", "added_tensors", "element_bytes",
)  # fmt: skip

Array = NDArray[np.float64]


class Traffic(NamedTuple):
    """Bytes each part of a convolution moves at least."""

    read: Array
    weights: Array
    written: Array
    added: Array

    @property
    def total(self) -> Array:
        """Sum of the parts."""
        return self.read + self.weights + self.written + self.added


def convolution_traffic(geometry: pd.DataFrame) -> Traffic:
    """Return compulsory bytes, counting only input positions that a kernel touches.

    Args:
        geometry: Columns `GEOMETRY`; `added_tensors` counts tensors of the output's size that are added to it.
    """
    g = {name: geometry[name].to_numpy(float) for name in GEOMETRY}
    positions = np.minimum(g["in_h"], g["out_h"] * g["kernel_h"]) * np.minimum(g["in_w"], g["out_w"] * g["kernel_w"])
    per_filter = g["in_channels"] / g["groups"] * g["kernel_h"] * g["kernel_w"]
    written = g["batch"] * g["out_channels"] * g["out_h"] * g["out_w"] * g["element_bytes"]
    return Traffic(
        read=g["batch"] * g["in_channels"] * positions * g["element_bytes"],
        weights=g["out_channels"] * per_filter * g["element_bytes"],
        written=written,
        added=written * g["added_tensors"],
    )


def convolution_features(
    geometry: pd.DataFrame,
    *,
    peak_flops: ArrayLike,
    vector_flops: ArrayLike,
    sm_count: ArrayLike,
    dram_bytes_per_s: ArrayLike,
    l2_bytes: ArrayLike,
) -> tuple[pd.DataFrame, Array]:
    """Return features and the logarithm of the bound, the roofline plus `FLOOR_S`.

    Args:
        geometry: Columns `GEOMETRY`, one row a layer; `groups` equal to `in_channels` is depthwise.
        peak_flops: Dense rate at the layer's precision, FLOP/s.
        vector_flops: Rate of the units that run depthwise convolutions, FLOP/s.
        sm_count, dram_bytes_per_s, l2_bytes: Of the device.

    Returns:
        Numbers, shape (layers, features), index of `geometry`; log seconds, shape (layers,).
    """
    g = {name: geometry[name].to_numpy(float) for name in GEOMETRY}
    c, k_out, groups = g["in_channels"], g["out_channels"], g["groups"]
    area, out_positions = g["kernel_h"] * g["kernel_w"], g["out_h"] * g["out_w"]
    depthwise = (groups == c) & (c > 1)
    peak = np.where(depthwise, vector_flops, peak_flops)
    plain = matrix_from_convolution(
        batch=g["batch"],
        in_channels=c,
        out_channels=k_out,
        out_positions=out_positions,
        kernel_area=area,
        groups=groups,
    )
    side_by_side = MatrixShape(plain.m, np.where(depthwise, k_out, plain.n), plain.k, np.where(depthwise, 1.0, groups))
    by_tap = side_by_side._replace(k=np.where(depthwise, area, area * padded(c / groups, 32)))
    flops = 2 * plain.m * plain.n * plain.k * groups
    traffic = convolution_traffic(geometry)
    compute_s = flops / peak
    memory_s = traffic.total / np.asarray(dram_bytes_per_s, float)
    roofline_s = np.maximum(compute_s, memory_s)
    sizes = {name: np.log(g[name]) for name in ("batch", "in_channels", "out_channels", "in_h", "out_h")}
    sizes |= {name: g[name] for name in ("kernel_h", "kernel_w", "stride", "added_tensors")}
    device = {
        "flops": flops, "peak_flops": peak, "sm_count": np.asarray(sm_count, float),
        "dram_bytes_per_s": np.asarray(dram_bytes_per_s, float),
    }  # fmt: skip
    flat = tile_terms(side_by_side, **device)
    taps = {
        f"tap_{name}": v for name, v in tile_terms(by_tap, **device).items() if not name.startswith(("waves", "idle"))
    }
    made = {
        **sizes,
        "depthwise": depthwise.astype(float),
        "groups": np.log(groups),
        "m": np.log(plain.m),
        "k": np.log(plain.k),
        "widening": np.log(k_out / c),
        "compute_s": np.log(compute_s),
        "memory_s": np.log(memory_s),
        "roofline_s": np.log(roofline_s),
        "compute_over_memory": np.log(compute_s / memory_s),
        "read_share": np.log(traffic.read / traffic.total),
        "weight_share": np.log(traffic.weights / traffic.total),
        "written_share": np.log(traffic.written / traffic.total),
        "weights_over_output": np.log(traffic.weights / traffic.written),
        "read_bytes": np.log(traffic.read),
        "weight_bytes": np.log(traffic.weights),
        "written_bytes": np.log(traffic.written),
        "l2_read": np.log(traffic.read / np.asarray(l2_bytes, float)),
        "l2_total": np.log(traffic.total / np.asarray(l2_bytes, float)),
        "power2_in_h": power_of_two_in(g["in_h"]),
        "power2_out_h": power_of_two_in(g["out_h"]),
        "power2_m": power_of_two_in(plain.m),
        **alignment_terms("in", c),
        **alignment_terms("out", k_out),
        **flat,
        **taps,
        "tile_over_memory": flat["tile_best_s"] - np.log(memory_s),
        "tap_tile_over_memory": taps["tap_tile_best_s"] - np.log(memory_s),
        "bound_s": np.log(np.maximum(np.exp(flat["tile_best_s"]), memory_s) + FLOOR_S),
        "tap_bound_s": np.log(np.maximum(np.exp(taps["tap_tile_best_s"]), memory_s) + FLOOR_S),
    }
    return pd.DataFrame(made, index=geometry.index), np.log(roofline_s + FLOOR_S)

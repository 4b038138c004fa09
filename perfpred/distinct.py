"""The distinct layers of a set of engines, in the numbers that decide how fast they run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
import pandas as pd
from scipy.sparse import csr_matrix

from perfpred.features import peak_of
from perfpred.layer import DTYPE_BITS, KINDS

Array = np.ndarray

#: Kinds of efficiency: the layer kinds, with pointwise and grouped convolutions apart from dense ones.
CLASSES: Final = (*KINDS, "conv1x1", "grouped_conv")
#: Classes that run on tensor cores where the device has them; the others run at the rate of the CUDA cores.
_TENSOR_CLASSES: Final = frozenset({"conv", "conv1x1", "deconv", "gemm", "attention", "recurrent"})
#: Compute capability in the middle of what was measured; a CPU has none and stands there too.
_GENERATION: Final = 7.5
_NUMBERS: Final = (
    "flops", "dram_bytes", "weight_bytes", "output_bytes", "m", "n", "k", "groups", "c", "r", "s", "stride",
    "sm_count", "clock_hz", "dram_bytes_per_s", "l2_bytes", "peak", "peak_fp32", "peak_fp16", "compute_capability",
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class DistinctLayers:
    """Distinct layers and how often each engine holds them.

    Attributes:
        counts: How often, shape (n_engines, n_layers).
        classes: Index into `CLASSES`, shape (n_layers,), as all below unless stated.
        launches: Kernels launched.
        compute_s: Time at the device's peak rate, seconds.
        memory_s: Time at its memory bandwidth, seconds.
        compute_size: Numbers that decide how near the peak it gets, shape (n_layers, n_numbers).
        memory_size: The same for the bandwidth.
        launch_size: The same for the least time it takes however small it is.
        device: Numbers of the device, shape (n_layers, n_numbers).
        copied: Bytes that cross the engine's border.
        index: Distinct layer of each instance, shape (n_instances,).
    """

    counts: csr_matrix
    classes: Array
    launches: Array
    compute_s: Array
    memory_s: Array
    compute_size: Array
    memory_size: Array
    launch_size: Array
    device: Array
    copied: Array
    index: Array


def _saturation(x: Array, half: float | Array) -> Array:
    made: Array = np.log(x / (x + half))
    return made


def distinct_layers(instances: pd.DataFrame, n_engines: int) -> DistinctLayers:
    """Reduces instances, as of `perfpred.instances.layer_instances`, to distinct layers on distinct devices.

    Most layers of a network repeat.
    """
    instances = instances.assign(peak=peak_of(instances))
    numbers = {c: pd.to_numeric(instances[c]).to_numpy(float, na_value=np.nan) for c in _NUMBERS}
    table = pd.DataFrame({**numbers, "kind": instances["kind"].to_numpy(), "dtype": instances["dtype"].to_numpy()})
    group = table.groupby(list(table.columns), dropna=False, sort=False).ngroup().to_numpy()
    first = np.unique(group, return_index=True)[1]
    u = table.iloc[first].reset_index(drop=True)
    rows = instances["row"].to_numpy(int)
    counts = csr_matrix((np.ones(len(group)), (rows, group)), shape=(n_engines, len(u)))

    groups = u["groups"].fillna(1.0).to_numpy()
    classes = u["kind"].to_numpy(object).copy()
    dense = (u["kind"] == "conv").to_numpy()
    classes[dense & (u["r"] * u["s"] == 1).to_numpy()] = "conv1x1"
    classes[dense & (groups > 1)] = "grouped_conv"
    codes = pd.Categorical(classes, categories=CLASSES).codes.astype(int)

    bits = u["dtype"].map(dict(DTYPE_BITS)).fillna(32).to_numpy(float)
    half, byte = bits == 16, bits <= 8
    wide = u["peak"].to_numpy()
    tensor_cores = (u["peak_fp16"] > 2.5 * u["peak_fp32"]).to_numpy()
    narrow = np.where(half, np.minimum(u["peak_fp16"], 2 * u["peak_fp32"]), np.where(byte, 4, 1) * u["peak_fp32"])
    rate = np.where(np.isin(classes, list(_TENSOR_CLASSES)), wide, np.minimum(narrow, wide))
    m, n, k = (u[c].fillna(1.0).to_numpy() for c in ("m", "n", "k"))
    outputs = np.maximum(u["output_bytes"].to_numpy() * 8 / bits / 1024, 1.0)
    blocks = np.where(np.isnan(u["m"]), outputs, np.ceil(m / 64) * np.ceil(n / 64) * groups)
    waves = blocks / u["sm_count"].to_numpy()
    # A recurrent layer is a launch per time step: its work over that of one step.
    steps = u["flops"].to_numpy() / np.maximum(2 * m * n * k * groups, 1.0)
    launches = np.where((u["kind"] == "recurrent").to_numpy(), np.maximum(steps, 1.0), 1.0)
    dram, bandwidth = np.maximum(u["dram_bytes"].to_numpy(), 1.0), u["dram_bytes_per_s"].to_numpy()
    generation = u["compute_capability"].to_numpy()
    square = (u["r"] == 3) & (u["stride"] == 1) & (groups == 1)
    compute_size = np.column_stack(
        [
            _saturation(waves, 1.0), _saturation(waves, 8.0), _saturation(k, 64.0), _saturation(k, 512.0),
            _saturation(n, 64.0), np.log(waves / np.ceil(waves)), square, u["r"] > 3, u["c"].fillna(8) % 8 != 0,
            half, byte, half & tensor_cores,
        ]
    )  # fmt: skip
    memory_size = np.column_stack(
        [
            1 / (1 + u["l2_bytes"].to_numpy() / dram), _saturation(dram, 3e-6 * bandwidth),
            u["weight_bytes"].to_numpy() / dram, half, byte,
        ]
    )  # fmt: skip
    # One output is a chain of k multiply-adds, so deep layers take long even where most of the device idles.
    product, grouped = u["m"].notna().to_numpy(), groups > 1
    launch_size = np.column_stack(
        [
            (product & ~grouped) * np.log1p(k / 128), (product & grouped) * np.log1p(k / 16), np.log(groups) / 3,
            product * np.log1p(waves), half, half & tensor_cores,
        ]
    )  # fmt: skip
    return DistinctLayers(
        counts=counts,
        classes=codes,
        launches=launches,
        compute_s=u["flops"].to_numpy() / rate + 1e-12,
        memory_s=u["dram_bytes"].to_numpy() / bandwidth + 1e-12,
        compute_size=compute_size.astype(float),
        memory_size=memory_size.astype(float),
        launch_size=launch_size.astype(float),
        device=np.column_stack(
            [
                tensor_cores - 0.5,
                np.log(u["peak_fp16"].to_numpy() / bandwidth / 100),
                np.log(u["sm_count"].to_numpy() / 10),
                np.log(u["clock_hz"].to_numpy() / 1.3e9),
                np.where(generation > 0, generation - _GENERATION, 0.0),
            ]
        ),
        copied=np.where(u["kind"] == "reformat", dram, 0.0),
        index=group,
    )

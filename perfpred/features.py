"""Features of layers and engines: one function each, for training and for prediction alike.

Only what exists before a build enters: shapes, costs, fusion structure, the device's specification, precision.
Columns come in named groups, so that an ablation can leave a group out.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from math import prod
from typing import Final

import numpy as np
import pandas as pd

from perfpred.dataset import GEOMETRY
from perfpred.device import Device
from perfpred.layer import DTYPE_BITS, KINDS, PRECISIONS

#: Columns of `device_numbers`, joined to every layer and engine.
DEVICE_NUMBERS: Final = (
    "sm_count", "clock_hz", "cuda_cores_per_sm", "dram_bytes_per_s", "l2_bytes", "peak_fp32", "peak_tf32",
    "peak_fp16", "peak_int8", "compute_capability", "is_cpu",
)  # fmt: skip

_DTYPE_PEAK: Final[Mapping[str, str]] = {
    "float16": "peak_fp16",
    "bfloat16": "peak_fp16",
    "int8": "peak_int8",
    "uint8": "peak_int8",
    "float8e4m3fn": "peak_int8",
}
#: Groups a feature's name can start with.
GROUPS: Final = ("shape", "cost", "fusion", "tile", "bound", "device", "precision", "totals")
#: Columns of layers that `layer_features` reads; two layers alike in them have the same features.
LAYER_COLUMNS: Final = (
    "kind", "op_types", "dtype", "n_inputs", "n_outputs", "input_bytes", "output_bytes", "weight_bytes", "flops",
    "dram_bytes", "shapes_json", *GEOMETRY, "precision", *DEVICE_NUMBERS,
)  # fmt: skip
#: Operators that runtimes have kernels of their own for: which of them a layer holds is a feature.
_OPERATORS: Final = (
    "Conv", "ConvTranspose", "MatMul", "Gemm", "Einsum", "LSTM", "GRU", "Add", "Mul", "Sub", "Div", "Relu",
    "LeakyRelu", "PRelu", "Sigmoid", "Clip", "Erf", "Tanh", "HardSwish", "HardSigmoid", "Pow", "Sqrt", "Softplus",
    "Elu", "BatchNormalization", "InstanceNormalization", "LayerNormalization", "Softmax", "ReduceMean", "ReduceSum",
    "ReduceL2", "GlobalAveragePool", "MaxPool", "AveragePool", "Resize", "Pad", "Concat", "Slice", "Split",
    "Transpose", "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Gather", "Expand", "Cast", "DepthToSpace",
)  # fmt: skip
#: Output tiles of matrix kernels.
_TILES: Final = ((64, 64), (128, 128), (256, 128), (128, 32))
_POINTWISE_OPS: Final = frozenset(
    {"Relu", "Clip", "Sigmoid", "Tanh", "Mul", "Add", "Sub", "Div", "Erf", "HardSwish", "Gelu"}
)


def device_numbers(device: Device) -> dict[str, float]:
    """What a specification says of the device, in SI units; keys are `DEVICE_NUMBERS`."""
    return {
        "sm_count": float(device.sm_count),
        "clock_hz": float(device.clock_hz),
        "cuda_cores_per_sm": float(device.cuda_cores_per_sm),
        "dram_bytes_per_s": float(device.dram_bytes_per_s),
        "l2_bytes": float(device.l2_bytes),
        **{f"peak_{p}": float(device.peak(p)) for p in ("fp32", "tf32", "fp16", "int8")},
        "compute_capability": float(device.compute_capability or 0.0),
        "is_cpu": float(device.kind == "cpu"),
    }


def peak_of(layers: pd.DataFrame) -> np.ndarray:
    """Peak rate at each layer's dtype, FLOP/s; shape (n_layers,).

    A float32 layer runs at the tf32 rate where the engine's precision is tf32.
    """
    wide = layers["peak_fp32"].where(layers["precision"] != "tf32", layers["peak_tf32"])
    peak: np.ndarray = wide.to_numpy(float)
    for dtype, column in _DTYPE_PEAK.items():
        peak = np.where(layers["dtype"] == dtype, layers[column].to_numpy(float), peak)
    return peak


def bound_s(layers: pd.DataFrame) -> pd.DataFrame:
    """Roofline terms of each layer at its device's peak rates.

    Returns:
        Columns compute_s, memory_s and roofline_s, seconds; index of `layers`.
    """
    compute = layers["flops"].to_numpy(float) / peak_of(layers)
    memory = layers["dram_bytes"].to_numpy(float) / layers["dram_bytes_per_s"].to_numpy(float)
    return pd.DataFrame(
        {"compute_s": compute, "memory_s": memory, "roofline_s": np.maximum(compute, memory)}, index=layers.index
    )


def _log(values: pd.Series | np.ndarray) -> np.ndarray:
    """log1p of sizes; an absent size is NaN, which the tree learners treat as missing."""
    numbers = pd.to_numeric(pd.Series(np.asarray(values, dtype=object))).to_numpy(float, na_value=np.nan)
    made: np.ndarray = np.log1p(numbers)
    return made


def layer_features(layers: pd.DataFrame) -> pd.DataFrame:
    """Features of layers.

    The device enters through what it makes of a layer (its bounds, waves and work per SM) and not by itself: learners
    that see the device's own numbers tell the training devices apart and answer worse for others.

    Args:
        layers: Rows of a dataset's `layers` table joined with `precision` and `DEVICE_NUMBERS`.

    Returns:
        Shape (n_layers, n_features); column names are `group:name`, groups as in `GROUPS`.
    """
    bound = bound_s(layers)
    made: dict[str, np.ndarray] = {}
    for size in ("m", "n", "k", "groups", "batch", "c", "k_out", "h", "w", "p", "q"):
        made[f"shape:{size}"] = _log(layers[size])
    for size in ("r", "s", "stride", "dilation"):
        made[f"shape:{size}"] = layers[size].to_numpy(float, na_value=np.nan)
    for kind in KINDS:
        made[f"shape:is_{kind}"] = (layers["kind"] == kind).to_numpy(float)
    flops, dram = layers["flops"].to_numpy(float), layers["dram_bytes"].to_numpy(float)
    made["cost:flops"] = np.log1p(flops)
    made["cost:dram_bytes"] = np.log1p(dram)
    made["cost:intensity"] = np.log1p(flops) - np.log1p(dram)
    for size in ("input_bytes", "output_bytes", "weight_bytes"):
        made[f"cost:{size}"] = _log(layers[size])
    ops = layers["op_types"]
    made["fusion:n_ops"] = np.log([max(len(o), 1) for o in ops])
    made["fusion:n_pointwise"] = np.array([sum(t in _POINTWISE_OPS for t in o) for o in ops], float)
    made["fusion:n_inputs"] = layers["n_inputs"].to_numpy(float)
    made["fusion:n_outputs"] = layers["n_outputs"].to_numpy(float)
    peak = peak_of(layers)
    made["bound:compute"] = np.log(bound["compute_s"] + 1e-9).to_numpy()
    made["bound:memory"] = np.log(bound["memory_s"] + 1e-9).to_numpy()
    made["bound:roofline"] = np.log(bound["roofline_s"] + 1e-9).to_numpy()
    made["precision:bits"] = layers["dtype"].map(dict(DTYPE_BITS)).fillna(32).to_numpy(float)
    made["precision:tf32"] = (layers["precision"] == "tf32").to_numpy(float)
    made |= _operator_features(ops) | _border_features(layers) | _tile_features(layers, peak)
    return pd.DataFrame(made, index=layers.index)


def _operator_features(op_types: Iterable[Sequence[str]]) -> dict[str, np.ndarray]:
    held = [set(ops) for ops in op_types]
    made = {f"fusion:has_{op.lower()}": np.array([op in ops for ops in held], float) for op in _OPERATORS}
    position = {op: number for number, op in enumerate(_OPERATORS)}
    made["fusion:first"] = np.array([position.get(ops[0], -1) if len(ops) else -1 for ops in op_types], float)
    return made


def _border_features(layers: pd.DataFrame) -> dict[str, np.ndarray]:
    """First input and output: what decides how a kernel that moves data walks through memory."""
    code, texts = pd.factorize(layers["shapes_json"])
    known = np.array([_border(json.loads(text)) for text in texts], float).reshape(len(texts), len(_BORDER))
    logged = [column for column, name in enumerate(_BORDER) if name not in _PLAIN]
    known[:, logged] = np.log1p(known[:, logged])
    border = known[code]
    made = {f"shape:{name}": border[:, column] for column, name in enumerate(_BORDER)}
    sm_count = layers["sm_count"].to_numpy(float)
    elements = np.expm1(made["shape:elements"])
    made["tile:elements_per_sm"] = np.log1p(elements / sm_count)
    made["tile:flops_per_sm"] = np.log1p(layers["flops"].to_numpy(float) / sm_count)
    made["tile:bytes_per_sm"] = np.log1p(layers["dram_bytes"].to_numpy(float) / sm_count)
    return made


_BORDER: Final = ("rank", "last_in", "last_out", "second_last", "same", "keeps_last", "elements", "in_per_out")
#: Those that are no sizes.
_PLAIN: Final = frozenset({"rank", "same", "keeps_last"})


def _border(shapes: Mapping[str, Sequence[tuple[Sequence[int], str]]]) -> list[float]:
    """Numbers of `_BORDER`."""
    source = shapes["inputs"][0][0] if shapes["inputs"] else []
    target = shapes["outputs"][0][0] if shapes["outputs"] else []
    last_in, last_out = (side[-1] if side else 1 for side in (source, target))
    second_last = source[-2] if len(source) > 1 else 1
    elements = float(prod(target))
    ratio = prod(source) / max(elements, 1.0)
    return [len(source), last_in, last_out, second_last, source == target, last_in == last_out, elements, ratio]


def _tile_features(layers: pd.DataFrame, peak: np.ndarray) -> dict[str, np.ndarray]:
    """How output tiles fill the SMs, and whether widths suit the tensor cores; NaN where nothing is multiplied."""
    sm_count = layers["sm_count"].to_numpy(float)
    size = {name: layers[name].to_numpy(float, na_value=np.nan) for name in GEOMETRY}
    m, n, k, groups = (size[name] for name in ("m", "n", "k", "groups"))
    made: dict[str, np.ndarray] = {}
    for tile_m, tile_n in _TILES:
        tiles = np.ceil(m / tile_m) * np.ceil(n / tile_n) * groups
        waves, name = tiles / sm_count, f"{tile_m}x{tile_n}"
        made[f"tile:waves_{name}"] = np.log(waves)
        made[f"tile:tail_{name}"] = waves / np.ceil(waves)
        made[f"tile:edge_{name}"] = m * n * groups / (tiles * tile_m * tile_n)
        made[f"tile:time_{name}"] = np.log(np.ceil(waves) * tile_m * tile_n * k * 2 * sm_count / peak + 1e-9)
    for name in ("c", "k_out", "n", "k"):
        whole = size[name]
        made[f"tile:even_{name}"] = np.where(np.isnan(whole), np.nan, (whole % 8 == 0) * 1.0 + (whole % 64 == 0))
    made["shape:c_per_group"] = np.log(size["c"] / groups)
    made["shape:taps"] = size["r"] * size["s"]
    square = (size["r"] == 3) & (size["s"] == 3) & (size["stride"] == 1) & (size["dilation"] == 1)
    made["shape:square3"] = square.astype(float)
    made["shape:pixels"] = np.log1p(size["p"] * size["q"])
    made["shape:one_dimensional"] = ((size["h"] == 1) & (size["w"] > 1)).astype(float)
    made["cost:reuse"] = np.log(m * n * k * groups + 1) - np.log(m * k + k * n + m * n + 1)
    return made


def engine_features(layers: pd.DataFrame, layer_s: np.ndarray) -> pd.DataFrame:
    """Features of engines, from their layers and the layer stage's times.

    Args:
        layers: As for `layer_features`, with a column `row` that numbers the engine each layer belongs to.
        layer_s: Time of each layer, seconds, shape (n_layers,).

    Returns:
        Shape (n_engines, n_features), index the engine number; column names are `group:name`.
    """
    bound = bound_s(layers)
    frame = pd.DataFrame(
        {
            "row": layers["row"].to_numpy(),
            "time": layer_s,
            "roofline": bound["roofline_s"].to_numpy(),
            "compute": bound["compute_s"].to_numpy(),
            "memory": bound["memory_s"].to_numpy(),
            "flops": layers["flops"].to_numpy(float),
            "dram": layers["dram_bytes"].to_numpy(float),
            "weights": layers["weight_bytes"].to_numpy(float),
            "ops": [len(o) for o in layers["op_types"]],
        }
    )
    grouped = frame.groupby("row", sort=True)
    total = grouped.sum()
    count = grouped.size()
    made: dict[str, np.ndarray] = {
        "totals:time": np.log(total["time"]).to_numpy(),
        "totals:roofline": np.log(total["roofline"] + 1e-9).to_numpy(),
        "totals:flops": np.log1p(total["flops"]).to_numpy(),
        "totals:dram_bytes": np.log1p(total["dram"]).to_numpy(),
        "totals:weight_bytes": np.log1p(total["weights"]).to_numpy(),
        "totals:n_layers": np.log(count.to_numpy(float)),
        "totals:layer_time": (np.log(total["time"]) - np.log(count)).to_numpy(),
        "totals:largest": (grouped["time"].max() / total["time"]).to_numpy(),
        "totals:compute_share": (total["compute"] / (total["compute"] + total["memory"])).to_numpy(),
        "fusion:ops_per_layer": (total["ops"] / count).to_numpy(float),
    }
    share = frame["time"] / total["time"].reindex(frame["row"]).to_numpy()
    for kind in KINDS:
        of_kind = (layers["kind"] == kind).to_numpy()
        made[f"shape:share_{kind}"] = (share.where(of_kind, 0.0)).groupby(frame["row"]).sum().to_numpy()
        made[f"shape:count_{kind}"] = pd.Series(of_kind, dtype=float).groupby(frame["row"]).mean().to_numpy()
    first = layers.drop_duplicates("row").set_index("row").sort_index()
    for number in ("sm_count", "clock_hz", "dram_bytes_per_s", "l2_bytes", "peak_fp32", "peak_fp16"):
        made[f"device:{number}"] = np.log(first[number].to_numpy(float))
    for number in ("cuda_cores_per_sm", "compute_capability", "is_cpu"):
        made[f"device:{number}"] = first[number].to_numpy(float)
    made["shape:batch_size"] = np.log(first["batch_size"].to_numpy(float))
    for precision in PRECISIONS:
        made[f"precision:{precision}"] = (first["precision"] == precision).to_numpy(float)
    return pd.DataFrame(made, index=total.index)


def without_groups(features: pd.DataFrame, groups: Iterable[str]) -> pd.DataFrame:
    """The features less whole groups, for ablations."""
    dropped = set(groups)
    return features[[c for c in features.columns if c.split(":", 1)[0] not in dropped]]

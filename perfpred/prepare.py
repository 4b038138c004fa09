"""From a weight-free graph to what a runtime can load: weights filled, precision converted, batch bound, inputs made."""

from __future__ import annotations

import hashlib
import importlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import ModelProto, TensorProto, external_data_helper, helper

from perfpred.errors import NetworkError, RuntimeUnavailableError, UsageError
from perfpred.weights import bind_batch, fill_weights, to_fp16

#: Precisions a graph can be given; int8 is ONNX Runtime's dynamic quantisation.
GRAPH_PRECISIONS = ("fp32", "fp16", "int8")
SUFFIXES = (".onnx", ".onnx.zst")


def network_name(path: Path) -> str:
    """File name without its `.onnx` or `.onnx.zst`."""
    for suffix in SUFFIXES[::-1]:
        if path.name.endswith(suffix):
            return path.name[: -len(suffix)]
    return path.name


def find_networks(sources: Sequence[Path]) -> dict[str, Path]:
    """Map network names to files; a folder stands for every graph below it.

    Raises:
        UsageError: A source does not exist, or two files share a name.
    """
    found: dict[str, Path] = {}
    for source in sources:
        if not source.exists():
            raise UsageError(f"'{source}' does not exist; give ONNX files or folders of them")
        files = (
            [p for p in sorted(source.rglob("*.onnx*")) if p.name.endswith(SUFFIXES)] if source.is_dir() else [source]
        )
        for path in files:
            name = network_name(path)
            if found.setdefault(name, path) != path:
                raise UsageError(f"two networks are called '{name}': {found[name]} and {path}; rename one")
    return found


def read_graph_bytes(path: Path) -> bytes:
    """Serialized ONNX of a plain or zstd-compressed graph."""
    data = path.read_bytes()
    if path.suffix != ".zst":
        return data
    try:
        zstandard = importlib.import_module("zstandard")
    except ImportError as error:
        raise RuntimeUnavailableError(f"'{path.name}' is compressed: pip install zstandard") from error
    return bytes(zstandard.ZstdDecompressor().decompress(data, max_output_size=1 << 31))


def graph_digest(path: Path) -> str:
    """First 16 hexadecimal digits of the SHA-256 of the serialized graph, uncompressed."""
    return hashlib.sha256(read_graph_bytes(path)).hexdigest()[:16]


def load_filled(path: Path, seed: int = 0) -> ModelProto:
    """Load a graph; weights that are absent are filled with seeded values, those present are kept.

    Raises:
        NetworkError: The file is not ONNX.
    """
    model = ModelProto()
    try:
        model.ParseFromString(read_graph_bytes(path))
    except Exception as error:
        raise NetworkError(f"'{path}' is not an ONNX file: {error}") from error
    locations = {
        entry.value
        for tensor in model.graph.initializer
        if tensor.data_location == TensorProto.EXTERNAL
        for entry in tensor.external_data
        if entry.key == "location"
    }
    if locations and all((path.parent / location).is_file() for location in locations):
        from perfpred.network import roles_accepted  # Late: workers start without onnx-ir.

        with roles_accepted():
            external_data_helper.load_external_data_for_model(model, str(path.parent))
        return model
    return fill_weights(model, seed) if locations else model


def make_inputs(model: ModelProto, seed: int = 0) -> dict[str, NDArray[Any]]:
    """Seeded inputs of a network with static shapes: normal floats, indices within their table, masks of ones."""
    constants = {tensor.name for tensor in model.graph.initializer}
    tables = {tensor.name: tensor.dims for tensor in model.graph.initializer}
    limit: dict[str, int] = {}
    for node in model.graph.node:
        if node.op_type == "Gather" and node.input[0] in tables:
            axis = next((a.i for a in node.attribute if a.name == "axis"), 0)
            rows = tables[node.input[0]][axis]
            limit[node.input[1]] = min(limit.get(node.input[1], rows), rows)
    rng = np.random.default_rng(seed)
    feeds: dict[str, NDArray[Any]] = {}
    for value in model.graph.input:
        if value.name in constants:
            continue
        shape = tuple(d.dim_value if d.HasField("dim_value") else 0 for d in value.type.tensor_type.shape.dim)
        if 0 in shape:
            raise NetworkError(f"input '{value.name}' has a dynamic dimension {shape}; bind it to a number")
        dtype = np.dtype(helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type))
        feeds[value.name] = _values(value.name, shape, dtype, limit.get(value.name), rng)
    return feeds


def _values(
    name: str, shape: tuple[int, ...], dtype: np.dtype[Any], limit: int | None, rng: np.random.Generator
) -> NDArray[Any]:
    if dtype.kind == "f":
        return rng.standard_normal(shape, dtype=np.float32).astype(dtype)
    if dtype.kind == "b" or "mask" in name:
        return np.ones(shape, dtype)
    return rng.integers(0, limit or 2, shape).astype(dtype)


def quantize_dynamically(source: Path, target: Path) -> None:
    """Write the ONNX Runtime dynamic int8 version of a float32 network."""
    quantization = importlib.import_module("onnxruntime.quantization")
    quantization.quantize_dynamic(source, target, weight_type=quantization.QuantType.QInt8)


def prepare(path: Path, *, precision: str, batch_size: int, folder: Path, seed: int = 0) -> Path:
    """Write `model.onnx` and `inputs.npz` for one network, precision and batch size.

    Args:
        path: Plain or compressed graph, with or without weights.
        precision: One of `GRAPH_PRECISIONS`.
        batch_size: Value of the symbolic batch axis.
        folder: Where to write; made if missing.
        seed: Of weights and inputs.

    Returns:
        Path of the model.
    """
    if precision not in GRAPH_PRECISIONS:
        raise UsageError(f"a graph can't be prepared in '{precision}'; known: {', '.join(GRAPH_PRECISIONS)}")
    model = bind_batch(load_filled(path, seed), batch_size)
    if precision == "fp16":
        model = to_fp16(model)
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / "model.onnx"
    if model.ByteSize() > 1_900_000_000:
        onnx.save(model, target, save_as_external_data=True, location="model.data", size_threshold=1024)
    else:
        target.write_bytes(model.SerializeToString())
    if precision == "int8":
        target = folder / "model_int8.onnx"
        quantize_dynamically(folder / "model.onnx", target)
    save_arrays(folder / "inputs.npz", make_inputs(model, seed))
    return target


def save_arrays(path: Path, arrays: Mapping[str, Any]) -> None:
    """Write named arrays, uncompressed."""
    with path.open("wb") as file:
        np.savez(file, **arrays)


def read_inputs(model_path: Path) -> dict[str, NDArray[Any]]:
    """Inputs written beside a prepared model."""
    with np.load(model_path.parent / "inputs.npz") as arrays:
        return {name: arrays[name] for name in arrays.files}

"""Weight-free networks: stripping, seeded filling, binding the batch axis, conversion to float16.

Latency does not depend on weight values, so a network travels without them: float initializers above
`STRIP_ABOVE_BYTES` keep name, dimensions and type, and point at an external file that does not exist. Filling puts
seeded random values back, scaled by fan-in so that activations stay near one through deep networks, float16
included. Everything here works on ONNX protos with numpy alone; every function returns a new model.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, numpy_helper

from perfpred.errors import NetworkError

STRIP_ABOVE_BYTES = 1024
WEIGHTS_LOCATION = "weights.bin"

FLOAT_TYPES: dict[int, np.dtype[Any]] = {
    TensorProto.FLOAT: np.dtype(np.float32),
    TensorProto.FLOAT16: np.dtype(np.float16),
    TensorProto.DOUBLE: np.dtype(np.float64),
}
# Inputs whose values decide shapes or quantisation: they always stay inline.
_INLINE_INPUTS = {
    "QuantizeLinear": (1, 2),
    "DequantizeLinear": (1, 2),
    "QLinearConv": (1, 2, 4, 5, 6, 7),
    "QLinearMatMul": (1, 2, 4, 5, 6, 7),
    "Resize": (1, 2, 3),
    "Upsample": (1,),
    "Range": (0, 1, 2),
    "Clip": (1, 2),
    "Pad": (2,),
}
# Operators that hand a weight on to its consumer; Transpose swaps the axes that fan-in is read from.
_TRANSPARENT = {"Identity", "Cast", "Transpose", "QuantizeLinear", "DequantizeLinear"}
_NORM_ROLES = {
    "BatchNormalization": {1: "gamma", 2: "bias", 3: "bias", 4: "variance"},
    "InstanceNormalization": {1: "gamma", 2: "bias"},
    "LayerNormalization": {1: "gamma", 2: "bias"},
    "GroupNormalization": {1: "gamma", 2: "bias"},
    "RMSNormalization": {1: "gamma"},
    "SimplifiedLayerNormalization": {1: "gamma"},
    "SkipLayerNormalization": {2: "gamma", 3: "bias", 4: "bias"},
}
_POOL_SIZE = 1 << 22
_BIAS_STD = 0.1
# Below one, so that long chains of residual sums and products stay within float16.
_GAIN = 0.8


def _copy(model: ModelProto) -> ModelProto:
    copied = ModelProto()
    copied.CopyFrom(model)
    return copied


def _consumers(graph: GraphProto) -> dict[str, list[tuple[NodeProto, int]]]:
    consumers: dict[str, list[tuple[NodeProto, int]]] = {}
    for node in graph.node:
        for index, name in enumerate(node.input):
            consumers.setdefault(name, []).append((node, index))
    return consumers


def _summed(graph: GraphProto) -> set[str]:
    """Names of the activations that are added to other activations."""
    computed = {name for node in graph.node if node.op_type != "Constant" for name in node.output}
    sums = (node.input for node in graph.node if node.op_type in ("Add", "Sum"))
    return {name for names in sums if computed.issuperset(names) for name in names}


def _attribute(node: NodeProto, name: str, default: int) -> int:
    return next((a.i for a in node.attribute if a.name == name), default)


@dataclass(frozen=True, kw_only=True)
class _Role:
    """What an initializer is to its consumer; `fan_in` is the number of terms it is summed over."""

    name: str = "bias"
    fan_in: int = 1


def _einsum_fan_in(node: NodeProto, index: int, dims: tuple[int, ...]) -> int:
    equation = next(a.s.decode() for a in node.attribute if a.name == "equation").replace(" ", "")
    terms, _, result = equation.partition("->")
    labels = terms.split(",")[index]
    if "." in labels or len(labels) != len(dims):
        return dims[0]
    return prod(size for label, size in zip(labels, dims, strict=True) if label not in result)


def _role_at(node: NodeProto, index: int, dims: tuple[int, ...]) -> _Role | None:
    kind = node.op_type
    if kind in _NORM_ROLES:
        return _Role(name=_NORM_ROLES[kind].get(index, "bias"))
    if kind in ("Conv", "DeformConv") and index == 1:
        return _Role(name="weight", fan_in=prod(dims[1:]))
    if kind == "ConvTranspose" and index == 1:
        return _Role(name="weight", fan_in=dims[0] * prod(dims[2:]) // _attribute(node, "group", 1))
    if kind == "Gemm" and index < 2:
        last = bool(_attribute(node, "transB" if index else "transA", 0)) == bool(index)
        return _Role(name="weight", fan_in=dims[-1] if last else dims[-2])
    if kind == "MatMul" and len(dims) > 1:
        return _Role(name="weight", fan_in=dims[-2] if index else dims[-1])
    if kind in ("LSTM", "GRU", "RNN") and index in (1, 2):
        return _Role(name="weight", fan_in=dims[-1])
    if kind == "Einsum":
        return _Role(name="weight", fan_in=_einsum_fan_in(node, index, dims))
    if kind == "Sqrt":
        return _Role(name="variance")
    if kind == "Mul":
        return _Role(name="gamma")
    return None


def _role_of(
    name: str, dims: tuple[int, ...], consumers: dict[str, list[tuple[NodeProto, int]]], depth: int = 4
) -> _Role:
    """Find the role of a tensor from its consumers, looking through operators that only hand it on."""
    for node, index in consumers.get(name, []):
        role = _role_at(node, index, dims)
        if role is None and depth and index == 0 and node.op_type in _TRANSPARENT | {"Add"}:
            swapped = dims[::-1] if node.op_type == "Transpose" and len(dims) == 2 else dims
            role = _role_of(node.output[0], swapped, consumers, depth - 1)
            # A weight plus something is no weight any more; variance plus epsilon still is a variance.
            role = role if node.op_type != "Add" or role.name == "variance" else None
        if role is not None and role.name != "bias":
            return role
    return _Role()


def is_external(tensor: TensorProto) -> bool:
    """Whether the tensor's values live outside the model, as those of a stripped weight do."""
    return tensor.data_location == TensorProto.EXTERNAL


def _external_entry(tensor: TensorProto, key: str) -> str | None:
    return next((entry.value for entry in tensor.external_data if entry.key == key), None)


def _tensor_bytes(tensor: TensorProto) -> int:
    return int(prod(tensor.dims) * FLOAT_TYPES[tensor.data_type].itemsize)


def _externalise(tensor: TensorProto, role: str) -> TensorProto:
    stripped = TensorProto(name=tensor.name, data_type=tensor.data_type, dims=tensor.dims)
    stripped.data_location = TensorProto.EXTERNAL
    stripped.external_data.add(key="location", value=WEIGHTS_LOCATION)
    if role in ("variance", "gamma"):
        stripped.external_data.add(key="role", value=role)
    return stripped


def strip_weights(model: ModelProto) -> ModelProto:
    """Return the network without its weights.

    Float initializers, and float constants of the main graph, above `STRIP_ABOVE_BYTES` keep name, dimensions and
    type. Integer and boolean tensors, quantisation scales, zero points and values that decide shapes stay inline.
    Normalisation statistics carry their role (`variance`, `gamma`) as an extra entry beside the location.
    """
    stripped = _copy(model)
    graph = stripped.graph
    consumers = _consumers(graph)
    inline = {
        name
        for name, uses in consumers.items()
        if any(index in _INLINE_INPUTS.get(node.op_type, ()) for node, index in uses)
    }
    kept_nodes = []
    for node in graph.node:
        value = next((a.t for a in node.attribute if a.name == "value"), None)
        if node.op_type == "Constant" and value is not None and _strips(value) and node.output[0] not in inline:
            graph.initializer.add().CopyFrom(value)
            graph.initializer[-1].name = node.output[0]
        else:
            kept_nodes.append(node)
    if len(kept_nodes) < len(graph.node):
        _replace_nodes(graph, kept_nodes)
        consumers = _consumers(graph)
    for tensor in graph.initializer:
        if tensor.name not in inline and _strips(tensor):
            role = _external_entry(tensor, "role") or _role_of(tensor.name, tuple(tensor.dims), consumers).name
            tensor.CopyFrom(_externalise(tensor, role))
    return stripped


def _replace_nodes(graph: GraphProto, nodes: list[NodeProto]) -> None:
    kept = GraphProto()
    kept.node.extend(nodes)
    del graph.node[:]
    graph.node.extend(kept.node)


def _strips(tensor: TensorProto) -> bool:
    return tensor.data_type in FLOAT_TYPES and _tensor_bytes(tensor) > STRIP_ABOVE_BYTES


def _fill(tensor: TensorProto, role: _Role, pool: NDArray[np.float32], start: int) -> TensorProto:
    size = prod(tensor.dims)
    if start + size <= len(pool):
        values = pool[start : start + size]
    else:
        values = np.resize(np.concatenate((pool[start:], pool[:start])), size)
    if role.name == "weight":
        values = values * np.float32(_GAIN * role.fan_in**-0.5)
    elif role.name == "gamma":
        values = 1 + values * np.float32(_BIAS_STD)
    elif role.name == "variance":
        values = 1 + np.clip(values, -2, 2) * np.float32(0.25)
    else:
        values = values * np.float32(_BIAS_STD)
    dtype = FLOAT_TYPES[tensor.data_type]
    return numpy_helper.from_array(values.astype(dtype, copy=False).reshape(tuple(tensor.dims)), tensor.name)


def fill_weights(model: ModelProto, seed: int = 0) -> ModelProto:
    """Return the network with every stripped weight filled with seeded random values.

    Weights are normal with variance 0.64 / fan-in, half of it before a sum of branches; biases and means small,
    normalisation scales about one, variances between 0.5 and 1.5. The same network and seed always give the same
    values. They repeat with a period of some four million, which makes filling nearly as fast as copying.

    Raises:
        NetworkError: a stripped tensor is not of a float type.
    """
    filled = _copy(model)
    rng = np.random.default_rng(seed)
    pool = rng.standard_normal(_POOL_SIZE, dtype=np.float32)
    consumers, summed = _consumers(filled.graph), _summed(filled.graph)
    for tensor in filled.graph.initializer:
        if not is_external(tensor):
            continue
        if tensor.data_type not in FLOAT_TYPES:
            raise NetworkError(
                f"initializer {tensor.name!r} has no values and is not a float tensor; export the network again with"
                " integer tensors inside the file"
            )
        stored = _external_entry(tensor, "role")
        role = _Role(name=stored) if stored else _role_of(tensor.name, tuple(tensor.dims), consumers)
        if role.name == "weight" and consumers[tensor.name][0][0].output[0] in summed:
            role = _Role(name="weight", fan_in=2 * role.fan_in)
        tensor.CopyFrom(_fill(tensor, role, pool, int(rng.integers(_POOL_SIZE))))
    return filled


def bind_batch(model: ModelProto, batch_size: int) -> ModelProto:
    """Return the network with the symbolic first axis of its inputs set to `batch_size`.

    Raises:
        NetworkError: an input has no axes, or its first axis is already fixed to another size.
    """
    bound = _copy(model)
    weights = {tensor.name for tensor in bound.graph.initializer}
    inputs = [value for value in bound.graph.input if value.name not in weights]
    symbols = set()
    for value in inputs:
        dims = value.type.tensor_type.shape.dim
        if not dims:
            raise NetworkError(f"input {value.name!r} has no batch axis; export the network with static shapes")
        if dims[0].HasField("dim_value") and dims[0].dim_value > 0 and dims[0].dim_value != batch_size:
            raise NetworkError(
                f"input {value.name!r} is fixed to batch size {dims[0].dim_value}, not {batch_size}; ask for that"
                " batch size or export the network with a symbolic first axis"
            )
        if dims[0].dim_param:
            symbols.add(dims[0].dim_param)
        dims[0].dim_value = batch_size
    for value in [*bound.graph.input, *bound.graph.output, *bound.graph.value_info]:
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_param in symbols:
                dim.dim_value = batch_size
    return bound


# Inputs that stay float32 in a float16 graph, by operator.
_FLOAT32_INPUTS = {"Resize": (1, 2), "Upsample": (1,)}
# Operators without float16 in the operator set or in ONNX Runtime's CUDA provider: they run in float32 between casts.
_FLOAT32_OPERATORS = {
    *(
        "Range",
        "CumSum",
        "GridSample",
        "AffineGrid",
        "DFT",
        "STFT",
        "Det",
        "MaxUnpool",
        "NonMaxSuppression",
        "RoiAlign",
    ),
    *("LpNormalization", "MeanVarianceNormalization", "Hardmax", "Multinomial", "Unique", "RandomNormal"),
    *("Tan", "Acos", "Asin", "Atan", "Sinh", "Cosh", "Acosh", "Asinh", "Atanh", "Mish", "Celu", "DeformConv"),
    *("QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear", "QLinearConv", "QLinearMatMul", "Col2Im"),
}
_HALF_MAX = float(np.finfo(np.float16).max)
_HALF_TINY = float(np.finfo(np.float16).smallest_subnormal)


def _half(tensor: TensorProto) -> TensorProto:
    if tensor.data_type != TensorProto.FLOAT:
        return tensor
    if is_external(tensor):
        half = TensorProto()
        half.CopyFrom(tensor)
        half.data_type = TensorProto.FLOAT16
        return half
    values = numpy_helper.to_array(tensor)
    halved = np.clip(values, -_HALF_MAX, _HALF_MAX).astype(np.float16)
    # An epsilon that rounded to zero would turn into a division by zero.
    halved = np.where((halved == 0) & (values != 0), np.float16(_HALF_TINY) * np.sign(values), halved)
    return numpy_helper.from_array(halved.astype(np.float16), tensor.name)


def _halve_attributes(node: NodeProto) -> None:
    for attribute in node.attribute:
        if attribute.type == onnx.AttributeProto.GRAPH:
            _halve_graph(attribute.g)
        elif node.op_type in ("Constant", "ConstantOfShape") and attribute.type == onnx.AttributeProto.TENSOR:
            attribute.t.CopyFrom(_half(attribute.t))
        elif node.op_type == "Constant" and attribute.name in ("value_float", "value_floats"):
            values = attribute.f if attribute.name == "value_float" else list(attribute.floats)
            tensor = numpy_helper.from_array(np.array(values, np.float32))
            attribute.CopyFrom(onnx.helper.make_attribute("value", _half(tensor)))
        elif attribute.name in ("to", "dtype") and attribute.i == TensorProto.FLOAT:
            attribute.i = TensorProto.FLOAT16
    if node.op_type == "ConstantOfShape" and not node.attribute:
        node.attribute.append(onnx.helper.make_attribute("value", numpy_helper.from_array(np.zeros(1, np.float16))))


def _halve_value(value: onnx.ValueInfoProto) -> None:
    if value.type.tensor_type.elem_type == TensorProto.FLOAT:
        value.type.tensor_type.elem_type = TensorProto.FLOAT16


def _cast(source: str, target: str, dtype: int) -> NodeProto:
    return onnx.helper.make_node("Cast", [source], [target], name=target, to=dtype)


def _float32_inputs(node: NodeProto) -> range | tuple[int, ...]:
    if node.op_type in _FLOAT32_OPERATORS:
        return range(len(node.input))
    return tuple(index for index in _FLOAT32_INPUTS.get(node.op_type, ()) if index < len(node.input))


def _halve_graph(graph: GraphProto, float_types: dict[str, int] | None = None) -> None:
    """Convert a graph in place. `float_types` holds the original element type of every tensor of the main graph."""
    types = float_types or {}
    for value in [*graph.input, *graph.output, *graph.value_info]:
        _halve_value(value)
    # Constants that only inputs of float32 read stay as they are; other such inputs get a cast.
    uses = [(name, index in _float32_inputs(node)) for node in graph.node for index, name in enumerate(node.input)]
    kept = {name for name, wide in uses if wide} - {name for name, wide in uses if not wide}
    for tensor in graph.initializer:
        if tensor.name not in kept:
            tensor.CopyFrom(_half(tensor))
    constants = {node.output[0] for node in graph.node if node.op_type == "Constant"}
    constants |= {tensor.name for tensor in graph.initializer}
    nodes: list[NodeProto] = []
    for node in graph.node:
        if not (node.op_type == "Constant" and node.output[0] in kept):
            _halve_attributes(node)
        for index in _float32_inputs(node):
            name = node.input[index]
            if types.get(name) == TensorProto.FLOAT and not (name in kept and name in constants):
                node.input[index] = f"{node.output[0]}_float_{index}"
                nodes.append(_cast(name, node.input[index], TensorProto.FLOAT))
        nodes.append(node)
        if node.op_type in _FLOAT32_OPERATORS:
            for index, name in enumerate(node.output):
                if types.get(name) == TensorProto.FLOAT:
                    node.output[index] = f"{name}_float"
                    nodes.append(_cast(f"{name}_float", name, TensorProto.FLOAT16))
    _replace_nodes(graph, nodes)


def _element_types(model: ModelProto) -> dict[str, int]:
    inferred = onnx.shape_inference.infer_shapes(model)
    graph = inferred.graph
    types = {v.name: v.type.tensor_type.elem_type for v in [*graph.input, *graph.output, *graph.value_info]}
    return types | {tensor.name: tensor.data_type for tensor in graph.initializer}


def to_fp16(model: ModelProto) -> ModelProto:
    """Return the network as a native float16 graph, inputs and outputs included; weights may be stripped.

    Float32 remains where ONNX demands it (scales of Resize) and around operators without float16 support.
    """
    types = _element_types(strip_weights(model))
    half = _copy(model)
    _halve_graph(half.graph, types)
    return half

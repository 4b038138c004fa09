"""A hash of what a network computes, whatever its tensors, nodes and weights are called."""

from __future__ import annotations

import hashlib

from onnx import AttributeProto, GraphProto, ModelProto, TensorProto, numpy_helper

from perfpred.weights import is_external

_FLOATS = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.DOUBLE, TensorProto.BFLOAT16)
_DIGITS = 16


def _digest(*parts: object) -> str:
    return hashlib.sha256("\0".join(map(str, parts)).encode()).hexdigest()[:_DIGITS]


def _tensor_key(tensor: TensorProto) -> str:
    """Dimensions and type; for integers the values too, since they decide shapes."""
    values = ""
    if tensor.data_type not in _FLOATS and not is_external(tensor):
        values = hashlib.sha256(numpy_helper.to_array(tensor).tobytes()).hexdigest()[:_DIGITS]
    return _digest("tensor", tensor.data_type, tuple(tensor.dims), values)


def _attribute_key(attribute: AttributeProto) -> str:
    if attribute.type == AttributeProto.TENSOR:
        return f"{attribute.name}={_tensor_key(attribute.t)}"
    if attribute.type == AttributeProto.GRAPH:
        return f"{attribute.name}={_graph_key(attribute.g)}"
    named = AttributeProto()
    named.CopyFrom(attribute)
    named.doc_string = ""
    return f"{attribute.name}={named.SerializeToString(deterministic=True).hex()}"


def _graph_key(graph: GraphProto) -> str:
    keys = {"": ""}
    for tensor in graph.initializer:
        keys[tensor.name] = _tensor_key(tensor)
    for position, value in enumerate(value for value in graph.input if value.name not in keys):
        dims = [dim.dim_value or "?" for dim in value.type.tensor_type.shape.dim]
        keys[value.name] = _digest("input", position, value.type.tensor_type.elem_type, dims)
    nodes = []
    for node in graph.node:
        attributes = sorted(map(_attribute_key, node.attribute))
        inputs = [keys.get(name, "outer") for name in node.input]
        if node.op_type == "Constant" and node.attribute and node.attribute[0].type == AttributeProto.TENSOR:
            key = _tensor_key(node.attribute[0].t)  # the same as an initializer of that value
        else:
            key = _digest(node.domain, node.op_type, *attributes, *inputs)
            nodes.append(key)
        for index, name in enumerate(node.output):
            keys[name] = key if index == 0 else _digest(key, index)
    outputs = [keys.get(value.name, "outer") for value in graph.output]
    return _digest(*outputs, *sorted(nodes))


def structure_id(model: ModelProto) -> str:
    """Return 16 hexadecimal digits that are equal for networks of the same structure.

    Operators, attributes, shapes of weights, values of integer constants, input shapes and the wiring count; names,
    float values, the order of independent nodes and the operator set version do not.
    """
    return _graph_key(model.graph)

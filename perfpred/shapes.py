"""Shapes of what one node writes: by ONNX's own inference, of contrib operators by the standard ones they resemble."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from typing import Any, Final

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, TypeProto, helper, numpy_helper

from perfpred.errors import NetworkError, UnsupportedOperatorError, first_line

#: Types whose values shape inference reads.
_READ: Final = frozenset(map(np.dtype, ("int64", "int32", "float32", "bool")))

#: Contrib operators whose output shape is that of a standard operator on some of their inputs:
#: operator -> (standard operator, input positions).
_LIKE: Final[Mapping[str, tuple[str, tuple[int, ...]]]] = {
    "FusedConv": ("Conv", (0, 1, 2)),
    "NhwcFusedConv": ("Conv", (0, 1, 2)),
    "FusedMatMul": ("MatMul", (0, 1)),
    "FusedGemm": ("Gemm", (0, 1, 2)),
    "QLinearAdd": ("Add", (0, 3)),
    "QLinearMul": ("Mul", (0, 3)),
    "QLinearSigmoid": ("Identity", (0,)),
    "QLinearLeakyRelu": ("Identity", (0,)),
    "QLinearSoftmax": ("Identity", (0,)),
    "QLinearGlobalAveragePool": ("GlobalAveragePool", (0,)),
    "QLinearAveragePool": ("AveragePool", (0,)),
    "QGemm": ("Gemm", (0, 3)),
    "QuickGelu": ("Identity", (0,)),
    "Gelu": ("Identity", (0,)),
    "FastGelu": ("Identity", (0,)),
    "BiasGelu": ("Add", (0, 1)),
    "BiasAdd": ("Add", (0, 1)),
    "SkipLayerNormalization": ("Identity", (0,)),
    "SkipSimplifiedLayerNormalization": ("Identity", (0,)),
    "SimplifiedLayerNormalization": ("Identity", (0,)),
    "EmbedLayerNormalization": ("Identity", (0,)),
    "MultiHeadAttention": ("Identity", (0,)),
    "DynamicQuantizeMatMul": ("MatMul", (0, 1)),
    "MatMulIntegerToFloat": ("MatMul", (0, 1)),
}


def static_shape(proto: TypeProto) -> tuple[int, ...] | None:
    """Dimensions of a tensor's type; `None` where one is open, or for another type."""
    if not proto.HasField("tensor_type") or not proto.tensor_type.HasField("shape"):
        return None
    dims = proto.tensor_type.shape.dim
    if any(not d.HasField("dim_value") for d in dims):
        return None
    return tuple(int(d.dim_value) for d in dims)


def inferred_types(
    node: onnx.NodeProto,
    types: Mapping[str, TypeProto],
    values: Mapping[str, NDArray[Any]],
    *,
    label: str,
    opsets: Mapping[str, int],
    declared: Mapping[str, TypeProto],
) -> dict[str, TypeProto]:
    """Types of a node's outputs by name; some may be missing or open.

    Args:
        node: Its inputs all have types.
        types: Types of its inputs, static.
        values: What is known of their values.
        label: Name of the network, for errors.
        opsets: Operator-set version by domain.
        declared: Types that the file itself states; they serve operators nobody knows.

    Raises:
        NetworkError: Inference fails.
        UnsupportedOperatorError: The operator is unknown and the file states no shape.
    """
    domain = "" if node.domain == "ai.onnx" else node.domain
    schema = None
    if domain == "" or domain.startswith("ai.onnx"):
        with suppress(onnx.defs.SchemaError):
            schema = onnx.defs.get_schema(node.op_type, opsets.get(domain, opsets.get("", 1)), domain)
    if schema is None:
        return _contrib_types(node, types, label=label, opsets=opsets, declared=declared)
    data = {i: numpy_helper.from_array(np.asarray(v), i) for i, v in values.items() if v.dtype in _READ}
    imports = [helper.make_opsetid(d, v) for d, v in opsets.items()]
    try:
        return dict(onnx.shape_inference.infer_node_outputs(schema, node, dict(types), data, opset_imports=imports))
    except (onnx.shape_inference.InferenceError, RuntimeError, ValueError) as error:
        raise NetworkError(
            f"{label}: shape inference fails at node '{node.name or node.output[0]}' ({node.op_type}): "
            f"{first_line(error)}; check the input shapes (--batch-size, --input) or export again"
        ) from error


def _contrib_types(
    node: onnx.NodeProto,
    types: Mapping[str, TypeProto],
    *,
    label: str,
    opsets: Mapping[str, int],
    declared: Mapping[str, TypeProto],
) -> dict[str, TypeProto]:
    if node.op_type not in _LIKE:
        stated = {name: declared[name] for name in node.output if name in declared}
        if all(name in stated and static_shape(stated[name]) is not None for name in node.output if name):
            return stated
        raise UnsupportedOperatorError(
            f"{label}: operator {node.domain or 'ai.onnx'}::{node.op_type} (node '{node.name}') is unknown; "
            "replace it by standard ONNX operators, or store the shapes of its outputs in the file (value_info)"
        )
    standard, positions = _LIKE[node.op_type]
    reads = [node.input[p] for p in positions if p < len(node.input) and node.input[p]]
    schema = onnx.defs.get_schema(standard, opsets.get("", 17))
    stand_in = onnx.NodeProto(op_type=standard, name=node.name, input=reads, output=[node.output[0]])
    stand_in.attribute.extend(a for a in node.attribute if a.name in schema.attributes)
    floats = {i: helper.make_tensor_type_proto(TensorProto.FLOAT, static_shape(types[i])) for i in reads}
    made = onnx.shape_inference.infer_node_outputs(schema, stand_in, floats)[node.output[0]]
    made.tensor_type.elem_type = types[node.input[0]].tensor_type.elem_type
    return {node.output[0]: made}

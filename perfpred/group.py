"""A group of nodes that a runtime launches together becomes one `Layer`."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from functools import cache
from typing import Final

from perfpred.cost import group_cost, group_traffic, node_flops, node_kind
from perfpred.layer import Layer, Node, TensorSpec
from perfpred.operands import (
    attention_shape,
    einsum_shape,
    image_shape,
    matmul_shape,
    optional,
    second,
    tensor,
)

_PRODUCTS: Final = frozenset({"conv", "depthwise_conv", "deconv", "gemm", "attention", "recurrent"})
_CONVOLUTIONS: Final = frozenset({"conv", "depthwise_conv", "deconv"})
_MOVEMENT: Final = frozenset({"data_movement", "reformat", "quantize"})
_QUANTIZED_OPERATORS: Final = ("QLinear", "QGemm", "QAttention", "ConvInteger", "MatMulInteger", "DynamicQuantize")
_QUANTIZED_DTYPES: Final = {"uint8": "int8", "float8e5m2": "float8e4m3fn"}


def layer_from_nodes(
    nodes: Sequence[Node], *, outputs: Collection[str], name: str | None = None, rule: str = "", kind: str = ""
) -> Layer:
    """Make one layer of a group of nodes.

    The anchor, which gives kind, dtype and geometry, is the node with the most FLOPs, then bytes; products win
    over windows, normalisations and reductions, those over elementwise work, and movement counts last.

    Args:
        nodes: The group, in topological order; at least one.
        outputs: Names of the tensors that nodes outside the group read, or the network returns.
        name: Name of the layer; by default the nodes' names joined.
        rule: The fusion rule that made the group.
        kind: Kind where the caller knows better than the anchor (a decomposed normalisation, say).
    """
    anchor = max(nodes, key=_weight) if len(nodes) > 1 else nodes[0]
    attention = _attention_products(nodes)
    if attention is not None:
        kind, geometry = kind or "attention", _attention_geometry(*attention)
        anchor = attention[0]
    else:
        kind, geometry = kind or node_kind(anchor), node_geometry(anchor)
    traffic = group_traffic(nodes, outputs)
    cost = group_cost(nodes, outputs, traffic)
    return Layer(
        name=name or " + ".join(node.name for node in nodes),
        kind=kind,
        onnx_nodes=tuple([node.name for node in nodes]),
        op_types=tuple([node.op_type for node in nodes]),
        inputs=tuple([spec for spec in traffic.reads if not spec.constant]),
        outputs=tuple([spec for node in nodes for spec in node.outputs if spec.name in outputs]),
        weight_bytes=cost.weight_bytes,
        flops=cost.flops,
        dram_bytes=cost.dram_bytes,
        dtype=_compute_dtype(anchor, nodes),
        geometry=geometry,
        rule=rule,
    )


def conv_layer(
    *,
    c: int,
    h: int,
    w: int,
    k_out: int,
    r: int,
    batch: int = 1,
    stride: int = 1,
    groups: int = 1,
    dtype: str = "float16",
    residual_add: bool = False,
    name: str = "conv",
) -> Layer:
    """Make the layer of one square convolution with same padding and a bias, with no ONNX behind it.

    Args:
        c: Input channels.
        h: Input height.
        w: Input width.
        k_out: Output channels.
        r: Kernel height and width.
        batch: Images.
        stride: Step in both directions.
        groups: Groups; as many as input channels make it depthwise.
        dtype: Type of activations and weights.
        residual_add: Whether a tensor of the output's shape is added in the same launch.
        name: Name of the layer.
    """
    p, q = -(-h // stride), -(-w // stride)
    x = TensorSpec(name="x", shape=(batch, c, h, w), dtype=dtype)
    weight = TensorSpec(name="w", shape=(k_out, c // groups, r, r), dtype=dtype, constant=True)
    bias = TensorSpec(name="b", shape=(k_out,), dtype="float32" if dtype == "int8" else dtype, constant=True)
    y = TensorSpec(name="y", shape=(batch, k_out, p, q), dtype=dtype)
    attributes = {"group": groups, "strides": (stride, stride), "kernel_shape": (r, r)}
    nodes = [Node(name=name, op_type="Conv", inputs=(x, weight, bias), outputs=(y,), attributes=attributes)]
    if residual_add:
        shortcut, total = (TensorSpec(name=n, shape=y.shape, dtype=dtype) for n in ("shortcut", "sum"))
        nodes.append(Node(name=f"{name}_add", op_type="Add", inputs=(y, shortcut), outputs=(total,)))
    return layer_from_nodes(nodes, outputs={nodes[-1].outputs[0].name}, name=name, rule="table")


def node_geometry(node: Node) -> dict[str, int]:
    """Return a node's sizes in the letters of `Layer.geometry`; empty where nothing has a name.

    Matrix shapes are per group: rows m, columns n, reduction k. A convolution is the matrix product it hides
    (m = batch x output positions, k = kernel volume x input channels of a group); softmax, normalisations and
    reductions have m rows of n elements. Three-dimensional windows add `d`, `o`, `t`: input, output, kernel depth.
    """
    kind = node_kind(node)
    if kind in _CONVOLUTIONS:
        return _conv_geometry(node, kind)
    if kind == "gemm" and node.op_type != "MatMulNBits":
        m, n, k, groups = einsum_shape(node) if node.op_type == "Einsum" else matmul_shape(node)
        return {"m": m, "n": n, "k": k, "groups": groups, "batch": _leading(tensor(node, 0))}
    if kind == "gemm":
        x, n = tensor(node, 0), int(node.attributes["N"])
        k = x.shape[-1]
        return {"m": x.elements // max(k, 1), "n": n, "k": k, "groups": 1, "batch": _leading(x)}
    if kind == "attention":
        batch, heads, m, n, k, _ = attention_shape(node)
        return {"m": m, "n": n, "k": k, "groups": batch * heads, "batch": batch, "heads": heads}
    if kind == "recurrent":
        return _recurrent_geometry(node)
    if kind == "pool":
        return _pool_geometry(node)
    if kind in ("softmax", "norm", "reduce"):
        return _row_geometry(node)
    sized = [spec for spec in (*node.activations, *node.outputs) if len(spec.shape) >= 3]
    return _image_geometry(max(sized, key=lambda spec: spec.elements)) if sized else {}


def _weight(node: Node) -> tuple[int, int, int]:
    kind = node_kind(node)
    tier = 3 if kind in _PRODUCTS else 0 if kind in _MOVEMENT else 1 if kind == "pointwise" else 2
    return tier, node_flops(node), sum(t.nbytes for t in (*node.activations, *node.outputs))


def _attention_products(nodes: Sequence[Node]) -> tuple[Node, Node] | None:
    """The score and context products of a softmax between two matrix products of activations."""
    at = next((i for i, node in enumerate(nodes) if node.op_type == "Softmax"), None)
    if at is None:
        return None
    products = [[n for n in part if _multiplies_activations(n)] for part in (nodes[:at], nodes[at:])]
    return (products[0][-1], products[1][0]) if all(products) else None


def _multiplies_activations(node: Node) -> bool:
    return node_kind(node) == "gemm" and not second(node).constant


def _attention_geometry(scores: Node, context: Node) -> dict[str, int]:
    m, n, k, groups = (einsum_shape if scores.op_type == "Einsum" else matmul_shape)(scores)
    batch = _leading(context.outputs[0])
    return {"m": m, "n": n, "k": k, "groups": groups, "batch": batch, "heads": max(groups // max(batch, 1), 1)}


def _leading(spec: TensorSpec) -> int:
    return spec.shape[0] if len(spec.shape) > 1 else 1


@cache
def _spatial(sizes: tuple[int, ...], letters: str) -> dict[str, int]:
    """Name spatial sizes: one is a width of height 1, two are height and width, three begin with depth."""
    padded = (1,) * (2 - len(sizes)) + tuple(sizes)
    named = dict(zip(letters[-2:], padded[-2:], strict=True))
    return named if len(padded) == 2 else {letters[0]: math.prod(padded[:-2]), **named}


def _windows(node: Node, kernel: tuple[int, ...]) -> dict[str, int]:
    batch, c, sizes = image_shape(node, tensor(node, 0))
    k_out, out = image_shape(node, node.outputs[0])[1:]
    strides, dilations = node.attributes.get("strides") or (1,), node.attributes.get("dilations") or (1,)
    return {
        **{"batch": batch, "c": c, **_spatial(sizes, "dhw"), "k_out": k_out, **_spatial(out, "opq")},
        **{**_spatial(kernel, "trs"), "stride": int(strides[0]), "dilation": int(dilations[0])},
    }


def _conv_geometry(node: Node, kind: str) -> dict[str, int]:
    weight, groups = second(node).shape, int(node.attributes.get("group", 1))
    batch, c, sizes = image_shape(node, tensor(node, 0))
    k_out, out = image_shape(node, node.outputs[0])[1:]
    volume = math.prod(weight[2:])
    if kind == "deconv":
        matrix = {"m": batch * math.prod(sizes), "n": k_out // groups * volume, "k": c // groups}
    else:
        matrix = {"m": batch * math.prod(out), "n": k_out // groups, "k": weight[1] * volume}
    return {**matrix, "groups": groups, **_windows(node, weight[2:])}


def _pool_geometry(node: Node) -> dict[str, int]:
    if len(tensor(node, 0).shape) != len(node.outputs[0].shape) or len(tensor(node, 0).shape) < 3:
        return {}
    sizes = image_shape(node, tensor(node, 0))[2]
    return _windows(node, sizes if "Global" in node.op_type else node.attributes.get("kernel_shape", (1,)))


def _recurrent_geometry(node: Node) -> dict[str, int]:
    x, w, r = tensor(node, 0), tensor(node, 1), tensor(node, 2)
    steps, batch = (x.shape[1], x.shape[0]) if node.attributes.get("layout") else x.shape[:2]
    hidden = int(node.attributes.get("hidden_size", r.shape[-1]))
    matrix = {"m": batch, "n": w.elements // (w.shape[0] * x.shape[2]), "k": x.shape[2] + hidden}
    return {**matrix, "groups": w.shape[0], "batch": batch, "steps": steps}


def _row_geometry(node: Node) -> dict[str, int]:
    x = tensor(node, 0)
    rank = max(len(x.shape), 1)
    if node.op_type in ("BatchNormalization", "InstanceNormalization", "GroupNormalization", "GroupNorm"):
        n = math.prod(x.shape[2:])
    elif node_kind(node) == "reduce" and node.outputs:
        n = x.elements // max(node.outputs[0].elements, 1)
    else:
        axis = int(node.attributes.get("axis", -1)) % rank
        n = math.prod(x.shape[axis:]) if "LayerNorm" in node.op_type else x.shape[axis] if x.shape else 1
    sizes = _image_geometry(x) if rank >= 3 else {"batch": _leading(x)}
    return {"m": x.elements // max(n, 1), "n": n, **sizes}


def _image_geometry(spec: TensorSpec) -> dict[str, int]:
    return {"batch": spec.shape[0], "c": spec.shape[1], **_spatial(spec.shape[2:], "dhw")}


def _compute_dtype(anchor: Node, nodes: Sequence[Node]) -> str:
    """The type the anchor computes in: that of the integers where its data is dequantised inside the group."""
    if anchor.op_type.startswith(_QUANTIZED_OPERATORS):
        return "int8"
    producers = {out.name: node for node in nodes for out in node.outputs} if len(nodes) > 1 else {}
    first = optional(anchor, 0)
    while first is not None and first.name in producers:
        node = producers[first.name]
        first = optional(node, 0)
        if node.op_type == "DequantizeLinear" and first is not None:
            return _QUANTIZED_DTYPES.get(first.dtype, first.dtype)
        if node_kind(node) != "data_movement":
            break
    specs = (*anchor.activations, *anchor.outputs)
    for spec in specs:
        if "float" in spec.dtype or spec.dtype in ("int8", "uint8"):
            return _QUANTIZED_DTYPES.get(spec.dtype, spec.dtype)
    return specs[0].dtype if specs else "float32"

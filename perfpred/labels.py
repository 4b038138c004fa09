"""The vocabulary of fusion patterns: words that say what a node is to a builder.

A pattern matches words, not operator types, so that `relu` means the same in every rule set.
Where the words of a binary operator differ by operand: `bias` and `scale` have a constant operand, `add` and `mul`
two activations of one shape, `badd` and `bmul` two activations that broadcast. `neighbours` adds the words that
depend on neighbours.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import cache
from typing import Final

from perfpred.layer import Node

Labels = frozenset[str]

_PLAIN: Final[Mapping[str, str]] = {
    "ConvTranspose": "deconv anchor",
    "Attention": "sdpa anchor",
    "Einsum": "einsum anchor",
    "BatchNormalization": "bn pointwise",
    "Relu": "relu act pointwise",
    "Clip": "clip act pointwise",
    "LeakyRelu": "leaky act pointwise",
    "PRelu": "prelu act pointwise",
    "Sigmoid": "sigmoid act pointwise",
    "HardSigmoid": "hardsigmoid act pointwise",
    "HardSwish": "hardswish act pointwise",
    "Tanh": "tanh act pointwise",
    "Elu": "elu act pointwise",
    "Selu": "elu act pointwise",
    "Celu": "elu act pointwise",
    "Softplus": "softplus act pointwise",
    "Softsign": "softplus act pointwise",
    "Mish": "mish act pointwise",
    "Gelu": "gelu act pointwise",
    "ThresholdedRelu": "leaky act pointwise",
    "Erf": "erf unary pointwise",
    "Cast": "cast unary pointwise",
    "Softmax": "softmax",
    "LogSoftmax": "softmax",
    "LayerNormalization": "layernorm norm",
    "SimplifiedLayerNormalization": "rmsnorm norm",
    "RMSNormalization": "rmsnorm norm",
    "GroupNormalization": "groupnorm norm",
    "LpNormalization": "norm",
    "LRN": "lrn",
    "MaxPool": "maxpool pool",
    "AveragePool": "avgpool pool",
    "ArgMax": "argmax",
    "ArgMin": "argmax",
    "TopK": "topk",
    "Pad": "pad move",
    "Slice": "slice move",
    "Split": "split move",
    "Concat": "concat move",
    "Gather": "gather move",
    "GatherElements": "gather move",
    "GatherND": "gather move",
    "ScatterND": "scatter",
    "ScatterElements": "scatter",
    "Expand": "expand move",
    "Tile": "expand move",
    "Resize": "resize",
    "Upsample": "resize",
    "GridSample": "gridsample",
    "DepthToSpace": "shuffle move",
    "SpaceToDepth": "shuffle move",
    "QuantizeLinear": "q",
    "DequantizeLinear": "dq",
    "LSTM": "rnn",
    "GRU": "rnn",
    "RNN": "rnn",
    "CumSum": "scan",
    "Where": "where pointwise",
}
_UNARY: Final = frozenset(
    [
        "Abs",
        "Ceil",
        "Cos",
        "Sin",
        "Exp",
        "Floor",
        "Log",
        "Neg",
        "Not",
        "Reciprocal",
        "Round",
        "Sign",
        "Sqrt",
        "IsNaN",
        "IsInf",
        "Atan",
        "Acos",
        "Asin",
        "Cosh",
        "Sinh",
        "Tan",
    ]
)
_BINARY: Final[Mapping[str, tuple[str, str]]] = {
    "Add": ("bias", "add"),
    "Sub": ("bias", "sub"),
    "Mul": ("scale", "mul"),
    "Div": ("scale", "div"),
    "Pow": ("power", "pow"),
    "Min": ("limit", "min"),
    "Max": ("limit", "max"),
    "Sum": ("bias", "add"),
}
_COMPARE: Final = frozenset(
    ["Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual", "And", "Or", "Xor", "Mod", "BitShift"]
)
_VIEWS: Final = frozenset({"Reshape", "Flatten", "Squeeze", "Unsqueeze"})
_NOTHING: Final = frozenset({"Identity", "Dropout"})


def _set(text: str) -> Labels:
    return frozenset(text.split())


_FIXED: Final[dict[str, Labels]] = {
    **{op: _set(words) for op, words in _PLAIN.items()},
    **{op: _set("unary pointwise") for op in _UNARY},
    **{op: _set("compare pointwise") for op in _COMPARE},
    **{op: _set("view") for op in _VIEWS},
    "Reshape": _set("view reshape"),
    **{op: _set("nothing view") for op in _NOTHING},
}


def _conv(node: Node) -> Labels:
    x, w = node.inputs[0], node.inputs[1]
    if x is None or w is None:
        return _conv_words("dense", False, False)
    groups = node.attributes.get("group", 1)
    kind = "dense" if groups == 1 else "depthwise" if groups == x.shape[1] else "grouped"
    return _conv_words(kind, max(w.shape[2:], default=1) == 1, max(x.shape[2:], default=1) == 1)


@cache
def _conv_words(kind: str, pointwise: bool, vector: bool) -> Labels:
    return frozenset({"conv", "anchor", kind, *(["conv1x1"] * pointwise), *(["vector"] * vector)})


def _product(node: Node) -> Labels:
    second = node.inputs[1]
    if second is not None and second.constant:
        if len(node.inputs) > 2:
            return _BIASED_PRODUCT
        return _CONSTANT_PRODUCT if len(node.outputs[0].shape) > 2 else _FLAT_PRODUCT
    return _BATCHED_PRODUCT if math.prod(node.outputs[0].shape[:-2]) > 1 else _ACTIVATION_PRODUCT


_CONSTANT_PRODUCT: Final = _set("gemm fc anchor")
_BIASED_PRODUCT: Final = _set("gemm fc anchor flat biased")
_FLAT_PRODUCT: Final = _set("gemm fc anchor flat")
_ACTIVATION_PRODUCT: Final = _set("gemm matmul anchor")
#: A sum over more than rows and columns and one batch axis.
_DEEP: Final = _set("deep")
_BATCHED_PRODUCT: Final = _set("gemm matmul anchor batched")
_BINARY_LABELS: Final = {
    op: (
        frozenset({constant, "withconst", "pointwise"}),
        frozenset({constant, "withconst", "pointwise", "scalar"}),
        frozenset({both, "binary", "pointwise"}),
        frozenset({"b" + both, "broadcast", "pointwise"}),
    )
    for op, (constant, both) in _BINARY.items()
}


def _binary(node: Node) -> Labels:
    withconst, scalar, both, broadcast = _BINARY_LABELS[node.op_type]
    operands = node.activations
    if len(operands) < 2:
        return scalar if all(t.elements == 1 for t in node.weights) else withconst
    first = operands[0].shape
    if any(t.shape != first for t in operands):
        return broadcast
    return both | _DEEP if len(first) > 3 and "add" in both else both


def _reduce(node: Node) -> Labels:
    """A reduction over a handful of elements is unrolled into elementwise work; one over a small map is cheap."""
    x = node.activations[0] if node.activations else None
    extent = x.elements // max(node.outputs[0].elements, 1) if x is not None and node.outputs else 0
    return _reduction_words(extent <= _UNROLLED, extent <= _SMALL, node.op_type.startswith("Global"))


@cache
def _reduction_words(unrolled: bool, small: bool, pool: bool) -> Labels:
    words = {"unrolled", "pointwise"} if unrolled else {"reduction"}
    return frozenset({*words, *(["small"] * small), *(["gpool"] * pool)})


def _transpose(node: Node) -> Labels:
    perm = node.attributes.get("perm", ())
    moved = [d for d in perm if node.activations[0].shape[d] != 1] if node.activations else []
    if moved and moved == sorted(moved):
        return _VIEW
    if tuple(perm) in _LAYOUTS:
        return _LAYOUT
    if tuple(perm[-2:]) != (len(perm) - 1, len(perm) - 2) or tuple(perm[:-2]) != tuple(range(len(perm) - 2)):
        return _TRANSPOSE
    return _SWAP if len(perm) <= 3 else _LAST_SWAP


def _instance_norm(node: Node) -> Labels:
    shape = node.outputs[0].shape
    return _INSTANCE_NORM if len(shape) > 1 and shape[1] > 1 else _WHOLE_NORM


def _cast(node: Node) -> Labels:
    same = node.activations and node.activations[0].dtype == node.outputs[0].dtype
    return _NOTHING_LABELS if same else _FIXED["Cast"]


_REDUCTIONS: Final = (
    "GlobalAveragePool",
    "GlobalMaxPool",
    "ReduceMean",
    "ReduceSum",
    "ReduceMax",
    "ReduceMin",
    "ReduceProd",
    "ReduceL1",
    "ReduceL2",
    "ReduceLogSumExp",
    "ReduceSumSquare",
)
_UNROLLED: Final = 8
_SMALL: Final = 64
_VIEW: Final = _set("view")
_NOTHING_LABELS: Final = _set("nothing view")
_SWAP: Final = _set("transpose swap lastswap layout move")
#: Between channels first and channels last.
_LAYOUTS: Final = {(0, 2, 3, 1), (0, 3, 1, 2), (0, 2, 3, 4, 1), (0, 4, 1, 2, 3)}
_LAYOUT: Final = _set("transpose layout move")
_INSTANCE_NORM: Final = _set("instancenorm norm")
_WHOLE_NORM: Final = _set("instancenorm whole norm")
_LAST_SWAP: Final = _set("transpose lastswap move")
_TRANSPOSE: Final = _set("transpose move")
_OTHER: Final = _set("other")
_BY_NODE: Final[dict[str, Callable[[Node], Labels]]] = {
    "Conv": _conv,
    "MatMul": _product,
    "Gemm": _product,
    "Transpose": _transpose,
    "InstanceNormalization": _instance_norm,
    "Cast": _cast,
    **dict.fromkeys(_BINARY, _binary),
    **dict.fromkeys(_REDUCTIONS, _reduce),
}


def labels_of(node: Node) -> Labels:
    """Words that describe a node; `other` alone where no rule can know it."""
    decide = _BY_NODE.get(node.op_type)
    return decide(node) if decide is not None else _FIXED.get(node.op_type, _OTHER)

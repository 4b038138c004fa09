"""One table of ONNX operators: contract kind, FLOPs, and what each reads that is not simply its whole inputs.

Conventions: 2 FLOPs per multiply-accumulate; the bias of a convolution or matrix product rides in the
accumulator and is free. Elementwise work is counted per output element: 1 for arithmetic, comparison, selection
and conversion, 4 for an exponential or logarithm, more for functions made of those. Softmax takes 5 per element
(maximum, subtract, exponential, sum, divide), a normalisation with statistics 7, with stored statistics 2.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from perfpred.layer import KINDS, Node
from perfpred.operands import attention_shape, einsum_shape, image_shape, matmul_shape, second, tensor

#: Operator sets whose names mean the same thing; `operands.channels_last` knows which differ in layout.
DOMAINS: Final = frozenset(
    {"", "ai.onnx", "com.microsoft", "com.microsoft.nchwc", "com.ms.internal.nhwc", "torchvision"}
)

Flops = Callable[[Node], int]
Reads = Callable[[Node, int], int]
Kind = str | Callable[[Node], str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """How one operator is counted.

    Attributes:
        kind: One of `perfpred.layer.KINDS`, or a function of the node.
        flops: FLOPs of a node.
        reads: Bytes read of input number i where that is not always the whole input.
        view: Whether the output is the input's memory under another shape, so nothing moves.
    """

    kind: Kind
    flops: Flops
    reads: Reads | None = None
    view: Callable[[Node], bool] | None = None


_RULES: dict[str, Rule] = {}


def register(
    *op_types: str,
    kind: Kind,
    reads: Reads | None = None,
    view: Callable[[Node], bool] | None = None,
) -> Callable[[Flops], Flops]:
    """Decorate the FLOP function of some operators, which enters them into the table.

    Raises:
        ValueError: an operator has a rule already, or the kind is not one of `KINDS`.
    """
    if isinstance(kind, str) and kind not in KINDS:
        raise ValueError(f"kind '{kind}' is not one of {', '.join(KINDS)}")

    def enter(flops: Flops) -> Flops:
        for op_type in op_types:
            if op_type in _RULES:
                raise ValueError(f"operator {op_type} has a rule already in perfpred/operators.py")
            _RULES[op_type] = Rule(kind=kind, flops=flops, reads=reads, view=view)
        return flops

    return enter


def rule_of(op_type: str, domain: str = "") -> Rule | None:
    """Return the rule of an operator; None where the table has none."""
    return _RULES.get(op_type) if domain in DOMAINS else None


# --- Products ---


def _conv_kind(node: Node) -> str:
    channels = image_shape(node, tensor(node, 0))[1]
    return "depthwise_conv" if channels > 1 and node.attributes.get("group", 1) == channels else "conv"


@register(
    "Conv",
    "FusedConv",
    "NhwcConv",
    "NhwcFusedConv",
    "QLinearConv",
    "ConvInteger",
    "NhwcQLinearConv",
    kind=_conv_kind,
)
def _conv(node: Node) -> int:
    return 2 * node.outputs[0].elements * math.prod(second(node).shape[1:])


@register("ConvTranspose", "QLinearConvTranspose", "ConvTransposeWithDynamicPads", kind="deconv")
def _deconv(node: Node) -> int:
    return 2 * tensor(node, 0).elements * math.prod(second(node).shape[1:])


@register("DeformConv", "deform_conv2d", kind="conv")
def _deform_conv(node: Node) -> int:
    """The convolution and, per sampled value, four multiply-accumulates of bilinear interpolation."""
    weight = second(node).shape
    positions = node.outputs[0].elements // weight[0]
    return _conv(node) + 8 * positions * tensor(node, 0).shape[1] * math.prod(weight[2:])


@register(
    *("MatMul", "FusedMatMul", "TransposeMatMul", "Gemm", "FusedGemm", "GemmFastGelu", "MatMulInteger"),
    *("QLinearMatMul", "QGemm", "DynamicQuantizeMatMul", "MatMulIntegerToFloat"),
    kind="gemm",
)
def _matmul(node: Node) -> int:
    return 2 * math.prod(matmul_shape(node))


@register("MatMulNBits", kind="gemm")
def _matmul_nbits(node: Node) -> int:
    return 2 * tensor(node, 0).elements * int(node.attributes["N"])


def _einsum_kind(node: Node) -> str:
    if len(node.inputs) == 1:
        one_to_one = node.outputs[0].elements == tensor(node, 0).elements
        return "data_movement" if one_to_one else "reduce"
    return "gemm" if einsum_shape(node)[2] > 1 else "pointwise"


@register("Einsum", kind=_einsum_kind)
def _einsum(node: Node) -> int:
    if _einsum_kind(node) == "data_movement":
        return 0
    m, n, k, groups = einsum_shape(node)
    return m * n * k * groups * (2 if _einsum_kind(node) == "gemm" else 1)


@register("Attention", "QAttention", "MultiHeadAttention", "GroupQueryAttention", kind="attention")
def _attention(node: Node) -> int:
    """Two products and a softmax; Microsoft's `Attention` projects its input first."""
    batch, heads, queries, keys, size, size_v = attention_shape(node)
    projects = node.op_type in ("Attention", "QAttention") and node.domain == "com.microsoft"
    projection = 2 * batch * queries * tensor(node, 1).elements if projects else 0
    return projection + batch * heads * queries * keys * (2 * (size + size_v) + 5)


@register("LSTM", "GRU", "RNN", "DynamicQuantizeLSTM", kind="recurrent")
def _recurrent(node: Node) -> int:
    """Every step multiplies input and state by their matrices; the gates' own functions take 8 per value."""
    x, w, r = tensor(node, 0), tensor(node, 1), tensor(node, 2)
    steps = x.shape[0] * x.shape[1]
    return steps * (2 * (w.elements + r.elements) + 8 * max(w.shape[0] * w.shape[1], w.shape[0] * r.shape[-1]))


# --- Windows, resampling, normalisation, reductions ---


@register(*("MaxPool", "AveragePool", "LpPool", "NhwcMaxPool", "NhwcAveragePool", "QLinearAveragePool"), kind="pool")
def _pool(node: Node) -> int:
    kernel: tuple[int, ...] = node.attributes.get("kernel_shape", (1,))
    return node.outputs[0].elements * math.prod(kernel)


@register("RoiAlign", "MaxRoiPool", kind="pool")
def _roi(node: Node) -> int:
    samples = max(int(node.attributes.get("sampling_ratio", 0)), 1) ** 2
    return 8 * samples * node.outputs[0].elements


def reads_what_it_writes(node: Node, index: int) -> int:
    """Bytes read by an operator that picks elements of its first input."""
    whole = tensor(node, index).nbytes
    return whole if index else min(whole, sum(t.nbytes for t in node.outputs))


def _resize_reads(node: Node, index: int) -> int:
    nearest = node.attributes.get("mode", "nearest") == "nearest"
    return reads_what_it_writes(node, index) if nearest else tensor(node, index).nbytes


def _taps(mode: str, dims: int) -> int:
    """Values that one interpolated value is made of."""
    return 4**dims if "cubic" in mode else 2**dims if "linear" in mode else 0


@register("Resize", "Upsample", "QLinearResize", kind="resize", reads=_resize_reads)
def _resize(node: Node) -> int:
    x, y = tensor(node, 0), node.outputs[0]
    dims = sum(a != b for a, b in zip(x.shape, y.shape, strict=True))
    return 2 * _taps(node.attributes.get("mode", "nearest"), dims) * y.elements


@register("GridSample", kind="resize")
def _grid_sample(node: Node) -> int:
    dims, y = len(tensor(node, 0).shape) - 2, node.outputs[0]
    taps = _taps(node.attributes.get("mode", "linear"), dims)
    # Coordinates are found once per position, shared by the channels.
    return 2 * taps * y.elements + 8 * dims * (y.elements // max(y.shape[1], 1))


def per_input(cost: int) -> Flops:
    """Return a FLOP function: so much per element of the first input."""
    return lambda node: cost * tensor(node, 0).elements


def per_output(cost: int) -> Flops:
    """Return a FLOP function: so much per element of the first output."""
    return lambda node: cost * node.outputs[0].elements if node.outputs else 0


def _free(node: Node) -> int:
    return 0


@register("TopK", kind="reduce")
def _top_k(node: Node) -> int:
    """A heap of k values: one comparison a level for each element."""
    axis = int(node.attributes.get("axis", -1))
    kept = node.outputs[0].shape[axis] if node.outputs else 1
    return tensor(node, 0).elements * max(1, math.ceil(math.log2(kept + 1)))


@register("NonMaxSuppression", kind="other")
def _nms(node: Node) -> int:
    """Every score is compared, and each box kept is tried against all others at 12 FLOPs an overlap."""
    batch, classes, boxes = tensor(node, 1).shape
    kept = max(node.outputs[0].shape[0] if node.outputs else 1, 1)
    return batch * classes * boxes + 12 * boxes * kept


@register("DFT", "STFT", kind="other")
def _fourier(node: Node) -> int:
    """The usual 5 n log2 n of a complex transform, n the transform's length."""
    out = node.outputs[0]
    length = max(max(out.shape[1:-1], default=1), 2)
    return 5 * (out.elements // 2) * math.ceil(math.log2(length))


register("GlobalAveragePool", "GlobalMaxPool", "GlobalLpPool", "QLinearGlobalAveragePool", kind="pool")(per_input(1))
register("MaxUnpool", kind="pool")(_free)
register("BatchNormalization", kind="norm")(per_input(2))
register(
    *("InstanceNormalization", "LayerNormalization", "GroupNormalization", "GroupNorm", "RMSNormalization"),
    *("SimplifiedLayerNormalization", "MeanVarianceNormalization", "LpNormalization"),
    kind="norm",
)(per_input(7))
register("SkipLayerNormalization", "SkipSimplifiedLayerNormalization", "SkipGroupNorm", kind="norm")(per_input(8))


@register("LRN", kind="norm")
def _lrn(node: Node) -> int:
    return tensor(node, 0).elements * (2 * int(node.attributes.get("size", 5)) + 6)


register("Softmax", "LogSoftmax", "QLinearSoftmax", kind="softmax")(per_input(5))
register("BiasSoftmax", kind="softmax")(per_input(6))
register("Hardmax", kind="softmax")(per_input(2))
register(
    *("ReduceMean", "ReduceSum", "ReduceMax", "ReduceMin", "ReduceProd", "QLinearReduceMean"),
    *("ArgMax", "ArgMin", "CumSum", "NonZero"),
    kind="reduce",
)(per_input(1))
register("ReduceL1", "ReduceL2", "ReduceSumSquare", "ReduceLogSum", kind="reduce")(per_input(2))
register("ReduceLogSumExp", kind="reduce")(per_input(6))
register("Unique", kind="reduce")(per_input(8))


def _rows_used(node: Node, index: int) -> int:
    """A table is read where its rows are looked up; everything else, whole."""
    whole = tensor(node, index).nbytes
    return min(whole, node.outputs[0].nbytes)


register("EmbedLayerNormalization", kind="embedding", reads=_rows_used)(per_output(9))

# --- Elementwise, by cost per output element ---

_ELEMENTWISE: Final[Mapping[int, tuple[str, ...]]] = {
    1: (
        *(
            "Add",
            "Sub",
            "Mul",
            "Div",
            "Neg",
            "Abs",
            "Relu",
            "Not",
            "And",
            "Or",
            "Xor",
            "Equal",
            "Greater",
            "Less",
        ),
        *(
            "GreaterOrEqual",
            "LessOrEqual",
            "Where",
            "Floor",
            "Ceil",
            "Round",
            "Sign",
            "Mod",
            "Reciprocal",
            "Sqrt",
        ),
        *("Cast", "CastLike", "IsNaN", "IsInf", "BitShift", "BitwiseAnd", "BitwiseOr", "BitwiseXor"),
        *("BitwiseNot", "BiasAdd"),
    ),
    2: ("Clip", "LeakyRelu", "PRelu", "ThresholdedRelu", "Shrink", "Softsign"),
    3: ("HardSigmoid", "QLinearAdd", "QLinearMul", "QLinearLeakyRelu", "QLinearWhere"),
    4: (
        *("Exp", "Log", "Pow", "Sin", "Cos", "Tan", "Asin", "Acos", "Atan", "Sinh", "Cosh", "Asinh", "Acosh"),
        *("Atanh", "HardSwish", "AffineGrid", "RotaryEmbedding"),
    ),
    6: ("Sigmoid", "Softplus", "Elu", "Selu", "Celu", "QLinearSigmoid"),
    8: ("Tanh", "Erf", "QuickGelu", "Swish"),
    12: ("Gelu", "FastGelu"),
    13: ("BiasGelu", "BiasSplitGelu"),
    16: ("Mish",),
}
for _cost, _op_types in _ELEMENTWISE.items():
    register(*_op_types, kind="pointwise")(per_output(_cost))


@register("Max", "Min", "Sum", "Mean", kind="pointwise")
def _n_ary(node: Node) -> int:
    return node.outputs[0].elements * max(len(node.inputs) - 1, 1)


register("QuantizeLinear", "DequantizeLinear", kind="quantize")(per_output(2))
register("DynamicQuantizeLinear", kind="quantize")(per_output(4))

# --- Data movement: no work, and views move nothing ---


def _always(node: Node) -> bool:
    return True


def _same_shape(node: Node) -> bool:
    single = len(node.outputs) == 1 and node.inputs and node.inputs[0] is not None
    return bool(single) and node.outputs[0].shape == tensor(node, 0).shape


def _moves_unit_dimensions(node: Node) -> bool:
    shape = tensor(node, 0).shape
    order = node.attributes.get("perm") or tuple(reversed(range(len(shape))))
    kept = [axis for axis in order if shape[axis] != 1]
    return kept == sorted(kept)


def _gather_kind(node: Node) -> str:
    table = tensor(node, 0)
    floating = table.dtype.startswith(("float", "bfloat"))
    return "embedding" if table.constant and floating and len(table.shape) == 2 else "data_movement"


def _movement(*op_types: str, **how: Any) -> None:
    register(*op_types, kind="data_movement", **how)(_free)


_movement("Reshape", "Flatten", "Squeeze", "Unsqueeze", "Identity", "Dropout", view=_always)
_movement("Transpose", view=_moves_unit_dimensions)
_movement("Expand", "Tile", "Pad", "Concat", view=_same_shape)
_movement("Slice", "Split", reads=reads_what_it_writes, view=_same_shape)
_movement("GatherND", "GatherElements", "Compress", reads=reads_what_it_writes)
_movement("Shape", "Size", "ConstantOfShape", "Constant", "EyeLike", "Range", reads=lambda node, index: 0)
_movement("ScatterND", "ScatterElements", "Scatter", "TensorScatter", "OneHot", "Trilu", "ReverseSequence")
_movement("DepthToSpace", "SpaceToDepth", "CenterCropPad", "QLinearConcat", "Col2Im")
register("Gather", kind=_gather_kind, reads=reads_what_it_writes)(_free)
register("GatherBlockQuantized", kind="embedding", reads=reads_what_it_writes)(per_output(2))
register("ReorderInput", "ReorderOutput", kind="reformat")(_free)

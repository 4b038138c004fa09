"""The records where everything meets: tensors, ONNX nodes with static shapes, and layers.

A FLOP is half a multiply-accumulate: one MAC counts as 2 FLOPs everywhere in this package.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Final

KINDS: Final = (
    "conv",
    "depthwise_conv",
    "deconv",
    "gemm",
    "attention",
    "pool",
    "norm",
    "reduce",
    "softmax",
    "pointwise",
    "data_movement",
    "recurrent",
    "resize",
    "embedding",
    "quantize",
    "reformat",
    "other",
)

PRECISIONS: Final = ("fp32", "tf32", "fp16", "bf16", "int8", "fp8")

#: Bits of an element by dtype name (numpy's names where numpy has them).
DTYPE_BITS: Final[Mapping[str, int]] = MappingProxyType(
    {
        "float64": 64,
        "float32": 32,
        "float16": 16,
        "bfloat16": 16,
        "float8e4m3fn": 8,
        "float8e5m2": 8,
        "int64": 64,
        "int32": 32,
        "int16": 16,
        "int8": 8,
        "uint64": 64,
        "uint32": 32,
        "uint16": 16,
        "uint8": 8,
        "int4": 4,
        "uint4": 4,
        "bool": 8,
        "complex64": 64,
        "complex128": 128,
        "string": 64,
    }
)


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorSpec:
    """A tensor with a static shape.

    Attributes:
        name: Name in the graph, unique there.
        shape: Dimensions; `()` is a scalar.
        dtype: One of `DTYPE_BITS`.
        constant: True for weights and other values known before the first inference.
        elements: Number of elements, which follows from the shape.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    constant: bool = False
    elements: int = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "elements", math.prod(self.shape))

    @property
    def nbytes(self) -> int:
        """Bytes the elements take, sub-byte types packed."""
        return (self.elements * DTYPE_BITS[self.dtype] + 7) // 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """One ONNX operator with static shapes.

    Attributes:
        name: Unique in the network (`<OpType>_<index>` where the file gives none).
        op_type: ONNX operator name, such as `Conv`.
        domain: Empty for the default ONNX domain.
        inputs: Tensors read; `None` where an optional input is left out.
        outputs: Tensors written; unused optional outputs are left out.
        attributes: Plain Python values: int, float, str, or tuples of those; subgraphs and tensors left out.
    """

    name: str
    op_type: str
    domain: str = ""
    inputs: tuple[TensorSpec | None, ...] = ()
    outputs: tuple[TensorSpec, ...] = ()
    attributes: Mapping[str, Any] = field(default_factory=dict)

    @property
    def activations(self) -> tuple[TensorSpec, ...]:
        """Inputs that another node or the caller computes."""
        return tuple([t for t in self.inputs if t is not None and not t.constant])

    @property
    def weights(self) -> tuple[TensorSpec, ...]:
        """Inputs known before the first inference."""
        return tuple(t for t in self.inputs if t is not None and t.constant)


@dataclass(frozen=True, slots=True, kw_only=True)
class Layer:
    """What a runtime launches as one unit after fusion; a single node where nothing is fused.

    Attributes:
        name: Name in the engine, or made from the nodes.
        kind: One of `KINDS`, that of the anchor node.
        onnx_nodes: Names of the ONNX nodes behind it, topological order.
        op_types: Their operator types, same order.
        inputs: Activations read from outside the layer.
        outputs: Activations written for others.
        weight_bytes: Constant bytes read.
        flops: Work, 2 per multiply-accumulate.
        dram_bytes: Compulsory traffic: inputs, outputs and weights once each.
        dtype: Type the anchor computes in.
        geometry: Sizes of the anchor in the field's letters. Matrix shape of any kind that has one:
            `m n k` per group and `groups`; convolutions add `batch c h w p q r s stride dilation k_out`.
        rule: The fusion rule (or parser) that made it.
    """

    name: str
    kind: str
    onnx_nodes: tuple[str, ...] = ()
    op_types: tuple[str, ...] = ()
    inputs: tuple[TensorSpec, ...] = ()
    outputs: tuple[TensorSpec, ...] = ()
    weight_bytes: int = 0
    flops: int = 0
    dram_bytes: int = 0
    dtype: str = "float32"
    geometry: Mapping[str, int] = field(default_factory=dict)
    rule: str = ""

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"layer '{self.name}' has kind '{self.kind}'; known kinds: {', '.join(KINDS)}")

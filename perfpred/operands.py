"""Sizes of an operator's operands: what the cost rules count by and a layer's geometry is made of."""

from __future__ import annotations

import math

from perfpred.layer import Node, TensorSpec

_SECOND_OPERAND = {"QLinearConv": 3, "QLinearConvTranspose": 3, "QLinearMatMul": 3, "QGemm": 3}


def tensor(node: Node, index: int) -> TensorSpec:
    """Return a required input.

    Raises:
        ValueError: the node lacks it.
    """
    found = node.inputs[index] if index < len(node.inputs) else None
    if found is None:
        raise ValueError(f"node '{node.name}' ({node.op_type}) lacks its input {index}")
    return found


def optional(node: Node, index: int) -> TensorSpec | None:
    """Return an input that may be left out."""
    return node.inputs[index] if index < len(node.inputs) else None


def second(node: Node) -> TensorSpec:
    """Return the second operand of a product: weights, or the right-hand matrix."""
    return tensor(node, _SECOND_OPERAND.get(node.op_type, 1))


def channels_last(node: Node) -> bool:
    """Whether a convolution or pool has its channels in the last dimension."""
    if node.domain == "com.ms.internal.nhwc" or node.op_type.startswith("Nhwc"):
        return True
    return bool(node.attributes.get("channels_last", 0))


def image_shape(node: Node, spec: TensorSpec) -> tuple[int, int, tuple[int, ...]]:
    """Return batch, channels and spatial sizes of a convolution's or pool's tensor."""
    shape = spec.shape
    if channels_last(node):
        return shape[0], shape[-1], shape[1:-1]
    return shape[0], shape[1], shape[2:]


def matmul_shape(node: Node) -> tuple[int, int, int, int]:
    """Return m, n, k per group and groups of a matrix product.

    A right-hand matrix that the whole batch shares folds the batch into m.
    """
    a, b, attributes = tensor(node, 0).shape, second(node).shape, node.attributes
    if len(a) > 1 and attributes.get("transA"):
        a = (*a[:-2], a[-1], a[-2])
    if len(b) > 1 and attributes.get("transB"):
        b = (*b[:-2], b[-1], b[-2])
    k, n = a[-1], b[-1] if len(b) > 1 else 1
    if math.prod(b[:-2]) == 1:
        return math.prod(a[:-1]), n, k, 1
    m = a[-2] if len(a) > 1 else 1
    out = node.outputs[0].elements if node.outputs else m * n * math.prod(b[:-2])
    return m, n, k, out // max(m * n, 1)


def einsum_shape(node: Node) -> tuple[int, int, int, int]:
    """Return m, n, k, groups of an Einsum of two operands; of one, (elements, 1, 1, 1).

    More than two operands count as one product over all labels.
    """
    equation = str(node.attributes["equation"]).replace(" ", "")
    left, arrow, out = equation.partition("->")
    sizes: dict[str, int] = {}
    terms: list[set[str]] = []
    for index, term in enumerate(left.split(",")):
        spec = tensor(node, index)
        head, dots, tail = term.partition("...")
        extra = len(spec.shape) - len(head) - len(tail)
        # Dimensions under an ellipsis are numbered from the right, where broadcasting aligns them.
        labels = [*head, *(str(extra - i) for i in range(extra if dots else 0)), *tail]
        for label, size in zip(labels, spec.shape, strict=True):
            sizes[label] = max(size, sizes.get(label, 1))
        terms.append(set(labels))
    if not arrow:
        out = "".join(sorted(c for c in set(left) if c.isalpha() and left.count(c) == 1))
    kept = set(out) & set(sizes) | ({s for s in sizes if s.isdigit()} if "..." in out or not arrow else set())
    if len(terms) == 1:
        return math.prod(sizes.values()), 1, 1, 1
    first, rest = terms[0], set().union(*terms[1:])

    def size_of(labels: set[str]) -> int:
        return math.prod(sizes[label] for label in labels)

    shared = first & rest
    return (
        size_of(first - rest),
        size_of(rest - first),
        size_of(shared - kept),
        size_of(shared & kept),
    )


def attention_shape(node: Node) -> tuple[int, int, int, int, int, int]:
    """Return batch, heads, query and key lengths, head size and value head size of an attention operator."""
    q, attributes = tensor(node, 0).shape, node.attributes
    heads = int(attributes.get("num_heads", attributes.get("q_num_heads", 0)) or (q[1] if len(q) == 4 else 1))
    if node.op_type in ("Attention", "QAttention") and node.domain == "com.microsoft":
        size = node.outputs[0].shape[-1] // heads
        return q[0], heads, q[1], q[1], size, size
    if len(q) == 5:  # packed (batch, length, heads, 3, head size)
        return q[0], q[2], q[1], q[1], q[4], q[4]
    batch, length, size = (q[0], q[2], q[3]) if len(q) == 4 else (q[0], q[1], q[2] // heads)
    key, value = optional(node, 1), optional(node, 2)
    if key is None or node.op_type == "GroupQueryAttention":
        present = node.outputs[1].shape[2] if len(node.outputs) > 1 else length
        return batch, heads, length, present, size, size
    past = optional(node, 4) if node.domain != "com.microsoft" else optional(node, 6)
    keys = key.shape[2 if len(key.shape) == 4 else 1] + (past.shape[2] if past else 0)
    out = node.outputs[0].shape if node.outputs else q
    size_v = out[-1] if len(out) == 4 else out[-1] // heads
    return batch, heads, length, keys, size, size_v if value is not None else size

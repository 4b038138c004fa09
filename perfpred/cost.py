"""Work of ONNX nodes and of fused groups of them, independent of any device.

A group's DRAM bytes are the compulsory ones: what it reads from outside once, its weights once, and the tensors
others need. What passes between its nodes stays on the chip, and views (Reshape and its like) move nothing.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

from perfpred.layer import Node, TensorSpec
from perfpred.operators import rule_of


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """Work of a node, a layer or a network; costs add.

    Attributes:
        flops: Operations, 2 per multiply-accumulate.
        dram_bytes: Compulsory traffic: activations read and written, and weights.
        weight_bytes: The part of `dram_bytes` known before the first inference.
        estimated: Operators without a rule, counted by their bytes alone; for a warning.
    """

    flops: int = 0
    dram_bytes: int = 0
    weight_bytes: int = 0
    estimated: tuple[str, ...] = ()

    def __add__(self, other: Cost) -> Cost:
        return Cost(
            flops=self.flops + other.flops,
            dram_bytes=self.dram_bytes + other.dram_bytes,
            weight_bytes=self.weight_bytes + other.weight_bytes,
            estimated=tuple(dict.fromkeys(self.estimated + other.estimated)),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Traffic:
    """Tensors that cross a group's border.

    Attributes:
        reads: Tensors read from outside, weights too, with the bytes taken of each.
        writes: Tensors written for others, with their bytes; views of what was read cost nothing.
    """

    reads: dict[TensorSpec, int]
    writes: dict[TensorSpec, int]


def is_known(op_type: str, domain: str = "") -> bool:
    """Whether the table has a rule for an operator."""
    return rule_of(op_type, domain) is not None


def node_kind(node: Node) -> str:
    """Return the contract kind of a node, `other` without a rule."""
    rule = rule_of(node.op_type, node.domain)
    if rule is None:
        return "other"
    return rule.kind if isinstance(rule.kind, str) else rule.kind(node)


def node_flops(node: Node) -> int:
    """Return the FLOPs of a node, 0 without a rule (`node_cost` then names the operator in `estimated`)."""
    rule = rule_of(node.op_type, node.domain)
    return rule.flops(node) if rule else 0


def node_cost(node: Node) -> Cost:
    """Return the cost of a node that runs by itself, its traffic in DRAM."""
    return group_cost((node,), {t.name for t in node.outputs})


def network_cost(nodes: Iterable[Node]) -> Cost:
    """Return the sum of the nodes' costs, each run by itself: the network before any fusion."""
    flops = dram_bytes = weight_bytes = 0
    estimated: dict[str, None] = {}
    for node in nodes:
        cost = node_cost(node)
        flops, dram_bytes = flops + cost.flops, dram_bytes + cost.dram_bytes
        weight_bytes += cost.weight_bytes
        estimated.update(dict.fromkeys(cost.estimated))
    return Cost(flops=flops, dram_bytes=dram_bytes, weight_bytes=weight_bytes, estimated=tuple(estimated))


def group_cost(nodes: Sequence[Node], outputs: Collection[str], traffic: Traffic | None = None) -> Cost:
    """Return the cost of nodes that run as one layer.

    Args:
        nodes: The group, in topological order.
        outputs: Names of the tensors that others read, or the network returns.
        traffic: What `group_traffic` says of them, where that is known already.

    Returns:
        The sum of the nodes' FLOPs and the group's compulsory traffic, at the widths of the tensors' dtypes: a
        weight that passes through `DequantizeLinear` inside the group counts its stored integers.
    """
    traffic = traffic or group_traffic(nodes, outputs)
    weight_bytes = sum(size for tensor, size in traffic.reads.items() if tensor.constant)
    flops, estimated = 0, []
    for node in nodes:
        rule = rule_of(node.op_type, node.domain)
        if rule is None:
            estimated.append(f"{node.domain}::{node.op_type}" if node.domain else node.op_type)
        elif not _folds(node):
            flops += rule.flops(node)
    return Cost(
        flops=flops,
        dram_bytes=sum(traffic.reads.values()) + sum(traffic.writes.values()),
        weight_bytes=weight_bytes,
        estimated=tuple(dict.fromkeys(estimated)) if estimated else (),
    )


def group_traffic(nodes: Sequence[Node], outputs: Collection[str]) -> Traffic:
    """Return what a group reads from outside and writes for others.

    Args:
        nodes: The group, in topological order.
        outputs: Names of the tensors that others need.
    """
    source: dict[str, TensorSpec] = {}  # view -> tensor whose memory it shows
    inside: set[str] = set()
    reads: dict[TensorSpec, int] = {}
    writes: dict[TensorSpec, int] = {}
    for node in nodes:
        rule = rule_of(node.op_type, node.domain)
        if _folds(node):
            for out in node.outputs:
                source[out.name] = _as_constant(out)
            continue
        if rule is not None and rule.view is not None and rule.view(node):
            first = node.inputs[0]
            if first is not None:
                shown = source.get(first.name, first)
                source.update((out.name, shown) for out in node.outputs)
                if shown.name in inside:
                    writes.update((shown, shown.nbytes) for out in node.outputs if out.name in outputs)
            continue
        partial = rule.reads if rule is not None else None
        for index, spec in enumerate(node.inputs):
            if spec is None:
                continue
            origin = source.get(spec.name, spec)
            if origin.name in inside:
                continue
            size = origin.nbytes if partial is None else min(partial(node, index), origin.nbytes)
            if size > reads.get(origin, -1):
                reads[origin] = size
        for out in node.outputs:
            inside.add(out.name)
            if out.name in outputs:
                writes[out] = out.nbytes
    return Traffic(reads=reads, writes=writes)


def _folds(node: Node) -> bool:
    """Whether a builder computes the node once, ahead of time; dequantisation stays, so weights stay narrow."""
    for spec in node.inputs:
        if spec is not None and not spec.constant:
            return False
    return bool(node.inputs) and node.op_type != "DequantizeLinear"


def _as_constant(spec: TensorSpec) -> TensorSpec:
    return TensorSpec(name=spec.name, shape=spec.shape, dtype=spec.dtype, constant=True)

"""A network in indices, and the words of patterns that depend on a node's neighbours.

A rule set pays only for the words its patterns use.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Final

from perfpred.labels import Labels, labels_of
from perfpred.layer import Node

_ABSORBING: Final = frozenset({"anchor", "bn", "bias"})
_MOVED: Final = frozenset({"view", "transpose"})
_RENAMED: Final = frozenset({"view", "split"})
#: Rank up to which a product's rows are not tiled again.
_ROWS_RANK: Final = 3
_BUSY: Final = frozenset({"slice", "reduction"})
_NATIVE: Final = frozenset({"relu", "clip", "tanh", "sigmoid"})
_SPLITTING: Final = frozenset({"split", "slice", "gather", "conv"})
#: What keeps ONNX Runtime's blocked layout when all its inputs have it.
_THROUGH: Final = frozenset(
    {"act", "add", "mul", "bn", "erf", "scalar", "pool", "gpool", "concat", "nothing", "resize"}
)
#: Channels of a block with AVX-512, and the step that input channels must keep.
_BLOCK: Final = 16
_BLOCK_STEP: Final = 4


class Graph:
    """A network in indices: producers, consumers and words of every node."""

    def __init__(self, nodes: Sequence[Node], outputs: Iterable[str], wanted: Iterable[str] = ()) -> None:
        """Reads the nodes of a network, in topological order.

        Args:
            nodes: Nodes of a network.
            outputs: Names of the tensors the network returns.
            wanted: Words of `CONTEXT` to add; others of the vocabulary are ignored.
        """
        self.nodes = nodes
        self.labels = [labels_of(node) for node in nodes]
        self.producers: list[list[int]] = []
        self.consumers: list[list[int]] = [[] for _ in nodes]
        self.sizes = [node.outputs[0].elements if node.outputs else 0 for node in nodes]
        #: Nodes that do nothing, and the node whose result they pass on: patterns look through them.
        self.passed: dict[int, int] = {}
        writer: dict[str, int] = {}
        for i, node in enumerate(nodes):
            found: list[int] = []
            idle = "nothing" in self.labels[i]
            for t in node.inputs:
                if t is not None and not t.constant:
                    p = writer.get(t.name)
                    if p is not None and p not in found:
                        found.append(p)
                        if not idle:
                            self.consumers[p].append(i)
            self.producers.append(found)
            if idle and found:
                self.passed[i] = found[0]
            for t in node.outputs:
                writer[t.name] = self.passed.get(i, i)
        self.returned = {writer[name] for name in outputs if name in writer}
        for word in CONTEXT.keys() & set(wanted):
            CONTEXT[word](self)

    def add(self, i: int, word: Labels) -> None:
        """Adds a word to a node."""
        self.labels[i] |= word

    def absorbs(self, i: int) -> bool:
        """Whether a node ends a product that may absorb what follows: of two operands the later one does."""
        return not _ABSORBING.isdisjoint(self.labels[i])

    def upstream(self, i: int, words: Labels) -> int:
        """First node above `i` that has none of the words; above the node that `i` reads, others read nothing."""
        p = self.producers[i][0] if self.producers[i] else i
        single = True
        while self.producers[p] and not words.isdisjoint(self.labels[p]) and single:
            single = len(self.consumers[self.producers[p][0]]) == 1
            p = self.producers[p][0]
        return p


def _gate(graph: Graph) -> None:
    """`gate`: one operand is a function of the other alone, as in `x * sigmoid(x)`."""
    word = frozenset({"gate"})
    for i, labels in enumerate(graph.labels):
        if "binary" in labels:
            operands = {t.name for t in graph.nodes[i].activations}
            sources = (graph.nodes[p].activations for p in graph.producers[i])
            if any(len(source) == 1 and source[0].name in operands for source in sources):
                graph.add(i, word)


def _reduced(graph: Graph) -> None:
    """`reduced`: a reduction reads it, alone or through elementwise work that no product does by itself."""
    word = frozenset({"reduced"})
    for i in range(len(graph.nodes) - 1, -1, -1):
        labels = graph.labels[i]
        through = "reduced" in labels and "pointwise" in labels and _NATIVE.isdisjoint(labels)
        if through or "reduction" in labels:
            for p in graph.producers[i]:
                if not through or len(graph.consumers[p]) == 1:
                    graph.add(p, word)


def _normed(graph: Graph) -> None:
    """`normed`: a sum that a normalisation alone reads, and the bias before it."""
    word = frozenset({"normed"})
    for i, labels in enumerate(graph.labels):
        if "norm" in labels and graph.producers[i]:
            p = graph.producers[i][0]
            if "add" in graph.labels[p] and len(graph.consumers[p]) == 1:
                for q in (p, *(q for q in graph.producers[p] if "bias" in graph.labels[q])):
                    graph.add(q, word)


def _heads(graph: Graph) -> None:
    """`heads`: the bias of a product that is split, or transposed and then convolved; `parts`: a split by transposing.

    The parts of a transposed product are computed one by one, each with its share of the bias, where nothing but
    scaling and products follow.
    """
    for i, labels in enumerate(graph.labels):
        if _SPLITTING.isdisjoint(labels) or not graph.producers[i]:
            continue
        p = graph.upstream(i, _MOVED)
        if "bias" not in graph.labels[p] or not any("fc" in graph.labels[q] for q in graph.producers[p]):
            continue
        step, moved = graph.producers[i][0], False
        while step != p:
            moved = moved or "transpose" in graph.labels[step]
            step = graph.producers[step][0]
        if ("split" in labels or "gather" in labels) and moved:
            readers = {r for c in graph.consumers[i] for r in (c, *graph.consumers[c])}
            busy = any(not _BUSY.isdisjoint(graph.labels[r]) for r in readers)
            if busy or len(graph.nodes[p].outputs[0].shape) > _ROWS_RANK:
                continue
            graph.add(i if "split" in labels else graph.producers[i][0], frozenset({"parts"}))
        if "conv" in labels or "slice" in labels:
            moved = moved == ("conv" in labels)
        if "split" in labels or moved:
            graph.add(p, frozenset({"heads"}))


def _sibling(graph: Graph) -> None:
    """`sibling`: a product with weights whose input another such product reads too."""
    word = frozenset({"sibling"})
    first: dict[str, int] = {}
    for i, labels in enumerate(graph.labels):
        if "fc" in labels:
            twin = first.setdefault(graph.nodes[i].activations[0].name, i)
            if twin != i:
                graph.add(i, word)
                graph.add(twin, word)


def _resized(graph: Graph) -> None:
    """`resized`: reads an enlarged map."""
    word = frozenset({"resized"})
    for i, labels in enumerate(graph.labels):
        if "resize" in labels:
            for c in graph.consumers[i]:
                graph.add(c, word)


def _permuted(graph: Graph) -> None:
    """`permuted`: a transpose whose input is transposed itself, so that both become one."""
    word = frozenset({"permuted"})
    for i, labels in enumerate(graph.labels):
        if "lastswap" in labels and graph.producers[i]:
            p = graph.producers[i][0]
            while graph.producers[p] and not _RENAMED.isdisjoint(graph.labels[p]):
                p = graph.producers[p][0]
            if "transpose" in graph.labels[p]:
                graph.add(i, word)


def _blocked(graph: Graph) -> None:
    """`blocked`: ONNX Runtime's CPU provider keeps the result in its layout of channel blocks."""
    word = frozenset({"blocked"})
    for i, labels in enumerate(graph.labels):
        node, producers = graph.nodes[i], graph.producers[i]
        shape = node.outputs[0].shape if node.outputs else ()
        if len(shape) != 4:
            continue
        if "conv" in labels:
            channels = node.inputs[0].shape[1] if node.inputs[0] is not None else 0
            aligned = channels < _BLOCK or channels % _BLOCK_STEP == 0
            if "dense" not in labels:
                aligned = shape[1] % _BLOCK == 0 and ("depthwise" in labels or channels % _BLOCK == 0)
        else:
            folded = "withconst" in labels and len(producers) == 1 and "conv" in graph.labels[producers[0]]
            aligned = (folded or not _THROUGH.isdisjoint(labels)) and ("concat" not in labels or shape[1] % _BLOCK == 0)
            aligned = aligned and len(producers) == len(node.activations)
            aligned = aligned and all("blocked" in graph.labels[p] for p in producers)
        if aligned:
            graph.add(i, word)


#: Words that depend on neighbours, and the function that adds each.
CONTEXT: Final[dict[str, Callable[[Graph], None]]] = {
    "gate": _gate,
    "reduced": _reduced,
    "normed": _normed,
    "heads": _heads,  # adds `parts` too
    "sibling": _sibling,
    "resized": _resized,
    "permuted": _permuted,
    "blocked": _blocked,
}

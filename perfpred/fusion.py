"""Which nodes an engine runs as one layer, predicted from the graph alone by small rules.

Four kinds of rule act in turn on a network, each leaving groups that are free of cycles:

* `Chain`: a pattern of words (see `labels`) along the consumers of a node, `conv bn? add? relu?`. Nodes join in
  topological order; the group ends where only its last node's output is read outside. So one pattern covers both
  straight chains and closed diamonds such as `x * sigmoid(x)`.
* `Absorb`: a node that only one group reads joins that group.
* `Siblings`: groups that start with the same kind of node on the same single input become one.
* `Region`: what is left and allowed joins its neighbours into maximal connected regions. Two nodes join only if they
  are on the same level, the number of borders crossed from the inputs, which keeps regions free of cycles in one
  linear pass: a path that leaves a region crosses a border and cannot come back to the same level.

Rule sets are tables of such rules in `rules`. Everything is linear in the number of nodes.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from heapq import heapify, heappop, heappush
from typing import Final

from perfpred.errors import UsageError
from perfpred.group import layer_from_nodes
from perfpred.labels import Labels, labels_of
from perfpred.layer import Layer, Node, TensorSpec
from perfpred.network import Network

#: Consumers of one tensor up to which a chain looks on; wider fan-outs are never fused vertically.
_FAN_OUT: Final = 8
_REDUCING: Final = frozenset({"reduction", "norm", "softmax"})
_GATE: Final = frozenset({"gate"})
_ABSORBING: Final = frozenset({"anchor", "bn", "bias"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Chain:
    """Vertical fusion.

    Attributes:
        name: Name of the rule, shown beside each layer it makes.
        pattern: Words separated by spaces; `a|b` either, `!a` not, `a&b` both, then `?` optional, `*` any number.
        source: Where the rule is documented or how it was observed.
        dtypes: Types of the first node's output it applies to; empty for all.
        resize: Whether joining nodes may change the number of elements.
        operand: Of two products that a sum could join, `later` in the file or `first` operand takes it.
    """

    name: str
    pattern: str
    source: str
    dtypes: tuple[str, ...] = ()
    resize: bool = False
    operand: str = "later"


@dataclass(frozen=True, slots=True, kw_only=True)
class Siblings:
    """Horizontal fusion of groups whose first node matches `pattern`, reads one activation, the same for all."""

    name: str
    pattern: str
    source: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Region:
    """Maximal connected regions of nodes that match `pattern`.

    Attributes:
        name: Name of the rule.
        pattern: Alternatives in the words of `Chain.pattern`, without quantifiers.
        source: Where the rule is documented or how it was observed.
        reductions: Reductions that may follow one another inside a region.
        joins: Pairs (producer pattern, consumer pattern) that may be one region; empty for any.
    """

    name: str
    pattern: str
    source: str
    reductions: int = 1
    joins: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Absorb:
    """Nodes not fused so far that match `pattern` join the group that alone reads them, where it starts with `into`."""

    name: str
    pattern: str
    source: str
    into: str = ""


Rule = Chain | Absorb | Siblings | Region


@dataclass(frozen=True, slots=True, kw_only=True)
class RuleSet:
    """The rules of one runtime, in the order they are tried.

    Attributes:
        name: Name for `fuse`.
        rules: Chains first match first, then siblings, then regions.
        borders: Whether the engine copies every image input and output between its own layout and the caller's.
        free: Words of nodes that make no layer of their own, as their result is the input's memory.
    """

    name: str
    rules: tuple[Rule, ...]
    borders: bool = False
    free: tuple[str, ...] = ("view",)


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """Nodes that run as one layer, in topological order, and the rule that joined them."""

    nodes: tuple[Node, ...]
    rule: str


@dataclass(frozen=True, slots=True)
class _Word:
    """One step of a pattern; a set of alternatives, each a pair of words wanted and words refused."""

    alternatives: tuple[tuple[Labels, Labels], ...]
    optional: bool
    repeated: bool

    def matches(self, labels: Labels) -> bool:
        return any(wanted <= labels and refused.isdisjoint(labels) for wanted, refused in self.alternatives)


@lru_cache(maxsize=4096)
def _word(text: str) -> _Word:
    mark = text[-1] if text[-1] in "?*" else ""
    alternatives = []
    for alternative in text.removesuffix(mark or " ").split("|"):
        words = alternative.split("&")
        alternatives.append(
            (frozenset(w for w in words if w[0] != "!"), frozenset(w[1:] for w in words if w[0] == "!"))
        )
    return _Word(tuple(alternatives), optional=bool(mark), repeated=mark == "*")


@lru_cache(maxsize=4096)
def _words(pattern: str) -> tuple[_Word, ...]:
    return tuple(_word(text) for text in pattern.split())


class _Graph:
    """A network in indices: producers, consumers and words of every node."""

    def __init__(self, nodes: Sequence[Node], outputs: Iterable[str]) -> None:
        self.nodes = nodes
        self.labels = [labels_of(node) for node in nodes]
        self.producers: list[list[int]] = []
        self.consumers: list[list[int]] = [[] for _ in nodes]
        # A quantised weight is written by a node of its own, which belongs to whoever reads the weight.
        self.constant: list[int] = []
        writer: dict[str, int] = {}
        for i, node in enumerate(nodes):
            found: list[int] = []
            live = False
            for t in node.inputs:
                if t is None:
                    continue
                live = live or not t.constant
                p = writer.get(t.name)
                if p is not None and p not in found:
                    found.append(p)
                    self.consumers[p].append(i)
            self.producers.append(found)
            if not live and node.inputs:
                self.constant.append(i)
            for t in node.outputs:
                writer[t.name] = i
        for i, node in enumerate(nodes):
            if "binary" in self.labels[i] and self._gates(node, self.producers[i]):
                self.labels[i] |= _GATE
        self.returned = {writer[name] for name in outputs if name in writer}

    def _gates(self, node: Node, producers: Sequence[int]) -> bool:
        """Whether one operand is a function of the other alone, as in `x * sigmoid(x)`."""
        operands = {t.name for t in node.activations}
        return any(
            len(self.nodes[p].activations) == 1 and self.nodes[p].activations[0].name in operands for p in producers
        )

    def size(self, i: int) -> int:
        """Elements of a node's first output."""
        return self.nodes[i].outputs[0].elements if self.nodes[i].outputs else 0

    def absorbs(self, i: int) -> bool:
        """Whether a node ends a product that may absorb what follows: of two operands the later one does."""
        return not _ABSORBING.isdisjoint(self.labels[i])


def groups(network: Network, rules: RuleSet) -> list[Group]:
    """Partitions the nodes of a network into what runs as one layer.

    Every node is in exactly one group; groups are in an order in which they can run. Nodes that only rename their
    input (`RuleSet.free`) belong to the group that computes it.
    """
    graph = _Graph(network.nodes, network.output_names)
    units = _chains(graph, [r for r in rules.rules if isinstance(r, Chain)])
    for rule in rules.rules:
        if isinstance(rule, Siblings):
            units = _siblings(graph, units, rule)
        elif isinstance(rule, Absorb):
            units = _absorb(graph, units, rule)
        elif isinstance(rule, Region):
            units = _regions(graph, units, rule)
    units = _absorb_free(graph, units, frozenset(rules.free))
    nodes = network.nodes
    return [Group(nodes=tuple(nodes[i] for i in sorted(u.members)), rule=u.rule) for u in units]


@dataclass(slots=True)
class _Unit:
    """A group under way: the indices of its nodes and the rule that joined them."""

    members: list[int]
    rule: str


def _chains(graph: _Graph, rules: Sequence[Chain]) -> list[_Unit]:
    taken = [False] * len(graph.nodes)
    attached: dict[int, list[int]] = {}
    for i in reversed(graph.constant):
        readers = graph.consumers[i]
        if readers:
            taken[i] = True
            attached.setdefault(readers[0], []).extend([i, *attached.pop(i, ())])
    compiled = [(rule, _words(rule.pattern)) for rule in rules]
    by_labels: dict[Labels, list[tuple[Chain, tuple[_Word, ...]]]] = {}
    units: list[tuple[int, _Unit]] = []
    for i, labels in enumerate(graph.labels):
        if taken[i]:
            continue
        candidates = by_labels.get(labels)
        if candidates is None:
            candidates = by_labels[labels] = [(r, words) for r, words in compiled if words[0].matches(labels)]
        members, name = [i], ""
        for rule, words in candidates:
            if rule.dtypes and graph.nodes[i].outputs[0].dtype not in rule.dtypes:
                continue
            found = _match(graph, taken, i, words, rule)
            if len(found) > 1 or len(found) == len(words):
                members, name = found, rule.name
                break
        last = members[-1]
        for m in tuple(members) if attached else members:
            taken[m] = True
            if m in attached:
                members = [*members, *attached[m]]
        units.append((last, _Unit(members, name)))
    # Only the last node of a chain is read outside, so the order of the last nodes is one in which groups can run.
    units.sort(key=lambda pair: pair[0])
    return [unit for _, unit in units]


def _match(graph: _Graph, taken: Sequence[bool], start: int, words: Sequence[_Word], rule: Chain) -> list[int]:
    """Longest closed group from `start` that the words allow; empty where they don't match."""
    members = [start]
    pending: set[int] = set()
    at, best, size = 0, 0, graph.size(start)
    while True:
        last = members[-1]
        if not pending and all(w.optional for w in words[at + 1 :]):
            best = len(members)
        if last in graph.returned:
            break
        pending.update(graph.consumers[last])
        if not pending or len(pending) > _FAN_OUT:
            break
        candidate = min(pending)
        labels = graph.labels[candidate]
        step = at if words[at].repeated and words[at].matches(labels) else at + 1
        while step < len(words) and not words[step].matches(labels):
            step = step + 1 if words[step].optional else len(words)
        if step >= len(words) or taken[candidate]:
            break
        if "anchor" in labels or rule.resize:
            size = graph.size(candidate)
        elif "pointwise" in labels and graph.size(candidate) != size:
            break
        others = [p for p in graph.producers[candidate] if p not in members and graph.absorbs(p)]
        if rule.operand == "first":
            others = [p for p in others if p == graph.producers[candidate][0] and len(graph.consumers[p]) == 1]
        else:
            others = [p for p in others if p > last]
        if others:
            break
        members.append(candidate)
        pending.discard(candidate)
        at = step
    return members[:best]


def _absorb(graph: _Graph, units: list[_Unit], rule: Absorb) -> list[_Unit]:
    word, into = _word(rule.pattern), _word(rule.into) if rule.into else None
    owner = _owners(graph, units)
    gone = [False] * len(units)
    for u in range(len(units) - 1, -1, -1):
        unit = units[u]
        only = unit.members[0]
        if unit.rule or len(unit.members) > 1 or only in graph.returned or not word.matches(graph.labels[only]):
            continue
        readers = {owner[c] for c in graph.consumers[only]}
        if len(readers) != 1:
            continue
        home = readers.pop()
        if into is None or any(into.matches(graph.labels[m]) for m in units[home].members):
            units[home].members.append(only)
            units[home].rule = units[home].rule or rule.name
            owner[only] = home
            gone[u] = True
    return [unit for unit, left in zip(units, gone, strict=True) if not left]


def _siblings(graph: _Graph, units: list[_Unit], rule: Siblings) -> list[_Unit]:
    word = _word(rule.pattern)
    first_of: dict[tuple[int | str, Labels], _Unit] = {}
    kept: list[_Unit] = []
    merged = False
    for unit in units:
        head = min(unit.members)
        if word.matches(graph.labels[head]):
            inside = set(unit.members)
            sources = {p for m in unit.members for p in graph.producers[m]} - inside
            node = graph.nodes[head]
            outside = {t.name for m in unit.members for t in graph.nodes[m].activations}
            outside -= {t.name for m in unit.members for t in graph.nodes[m].outputs}
            if len(sources) <= 1 and len(outside) == 1:
                key = (node.activations[0].name, graph.labels[head])
                twin = first_of.setdefault(key, unit)
                if twin is not unit:
                    twin.members.extend(unit.members)
                    twin.rule = rule.name
                    merged = True
                    continue
        kept.append(unit)
    return _ordered(graph, kept) if merged else kept


def _regions(graph: _Graph, units: list[_Unit], rule: Region) -> list[_Unit]:
    word = _word(rule.pattern)
    joins = tuple((_word(a), _word(b)) for a, b in rule.joins)
    eligible = [all(word.matches(graph.labels[m]) for m in unit.members) for unit in units]
    reducing = [any(_REDUCING.intersection(graph.labels[m]) for m in unit.members) for unit in units]
    owner = _owners(graph, units)
    level, depth = [0] * len(units), [0] * len(units)
    sources: list[list[int]] = []
    for u, unit in enumerate(units):
        feeding = sorted({owner[p] for m in unit.members for p in graph.producers[m]} - {u})
        sources.append(feeding)
        for p in feeding:
            joined = eligible[u] and eligible[p] and (not joins or _joins(graph, units[p], unit, joins))
            level[u] = max(level[u], level[p] + (not joined))
        depth[u] = max((depth[p] for p in feeding if level[p] == level[u]), default=0) + reducing[u]
        if depth[u] > rule.reductions and reducing[u]:
            level[u], depth[u] = level[u] + 1, 1
    parent = list(range(len(units)))

    def root(u: int) -> int:
        while parent[u] != u:
            parent[u] = parent[parent[u]]
            u = parent[u]
        return u

    for u, feeding in enumerate(sources):
        for p in feeding:
            if eligible[u] and eligible[p] and level[p] == level[u]:
                parent[root(u)] = root(p)
    found: dict[int, _Unit] = {}
    for u, unit in enumerate(units):
        kept = found.setdefault(root(u), unit)
        if kept is not unit:
            kept.members.extend(unit.members)
            kept.rule = rule.name
    return _ordered(graph, list(found.values())) if len(found) < len(units) else units


def _joins(graph: _Graph, producer: _Unit, consumer: _Unit, joins: Iterable[tuple[_Word, _Word]]) -> bool:
    last, first = graph.labels[max(producer.members)], graph.labels[min(consumer.members)]
    return any(a.matches(last) and b.matches(first) for a, b in joins)


def _owners(graph: _Graph, units: Sequence[_Unit]) -> list[int]:
    owner = [0] * len(graph.nodes)
    for u, unit in enumerate(units):
        for m in unit.members:
            owner[m] = u
    return owner


def _ordered(graph: _Graph, units: list[_Unit]) -> list[_Unit]:
    """Units in an order in which they can run, close to that of the file."""
    owner = _owners(graph, units)
    waiting: list[int] = []
    readers: list[list[int]] = [[] for _ in units]
    for u, unit in enumerate(units):
        feeding = {owner[p] for m in unit.members for p in graph.producers[m]} - {u}
        waiting.append(len(feeding))
        for p in feeding:
            readers[p].append(u)
    ready = [(min(units[u].members), u) for u, count in enumerate(waiting) if not count]
    heapify(ready)
    order: list[_Unit] = []
    while ready:
        _, u = heappop(ready)
        order.append(units[u])
        for r in readers[u]:
            waiting[r] -= 1
            if not waiting[r]:
                heappush(ready, (min(units[r].members), r))
    if len(order) < len(units):
        raise AssertionError("a fusion rule made groups that wait for each other")
    return order


def _absorb_free(graph: _Graph, units: list[_Unit], free: Labels) -> list[_Unit]:
    owner: dict[int, _Unit] = {}
    kept: list[_Unit] = []
    for unit in units:
        home = unit
        if all(free & graph.labels[m] for m in unit.members):
            feeding = graph.producers[min(unit.members)]
            if feeding and len(unit.members) == 1:
                home = owner[feeding[0]]
                home.members.extend(unit.members)
        if home is unit:
            kept.append(unit)
        for m in unit.members:
            owner[m] = home
    return kept


def fuse(network: Network, rules: str | RuleSet) -> list[Layer]:
    """Layers an engine would run for a network.

    Args:
        network: The graph with the precision the engine computes in (`Network.with_precision`).
        rules: A rule set, or the name of one of `rule_sets`.

    Returns:
        Layers in an order in which they can run; `Layer.rule` names the rule that made each, `border` for copies
        between the caller's layout and the engine's, `single` for nodes that nothing was joined to.

    Raises:
        UsageError: There is no rule set of that name.
    """
    rule_set = rules if isinstance(rules, RuleSet) else rule_set_named(rules)
    found = [_border(t, "input") for t in network.inputs if _is_image(t)] if rule_set.borders else []
    returned = network.output_names
    made = groups(network, rule_set)
    home = {node.name: g for g, group in enumerate(made) for node in group.nodes}
    for g, group in enumerate(made):
        written = {
            t.name
            for node in group.nodes
            for t in node.outputs
            if t.name in returned or any(home[c.name] != g for c in network.consumers(t.name))
        }
        found.append(layer_from_nodes(group.nodes, outputs=written, name=_name(group), rule=group.rule or "single"))
    if rule_set.borders:
        found.extend(_border(t, "output") for t in network.outputs if _is_image(t))
    return found


def _name(group: Group) -> str:
    names = [node.name for node in group.nodes]
    return " + ".join(names) if len(names) <= 6 else f"{names[0]} + … + {names[-1]} ({len(names)} nodes)"


def _is_image(spec: TensorSpec) -> bool:
    return len(spec.shape) >= 4 and spec.dtype in ("float32", "float16", "bfloat16")


def _border(spec: TensorSpec, side: str) -> Layer:
    return Layer(
        name=f"reformat {side} {spec.name}",
        kind="reformat",
        inputs=(spec,),
        outputs=(spec,),
        dram_bytes=2 * spec.nbytes,
        dtype=spec.dtype,
        rule="border",
    )


def rule_set_named(name: str) -> RuleSet:
    """The rule set of that name.

    Raises:
        UsageError: There is none.
    """
    from perfpred.rules import RULE_SETS  # the tables import the rule classes from here

    try:
        return RULE_SETS[name]
    except KeyError:
        raise UsageError(f"no fusion rules are named '{name}'; known: {', '.join(RULE_SETS)}") from None


def rule_sets() -> tuple[str, ...]:
    """Names of all rule sets."""
    from perfpred.rules import RULE_SETS

    return tuple(RULE_SETS)

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

from collections.abc import Sequence
from dataclasses import dataclass

from perfpred.errors import UsageError
from perfpred.group import layer_from_nodes
from perfpred.grouping import Unit, absorb_units, chain_units, free_units, region_units, sibling_units
from perfpred.layer import Layer, Node, TensorSpec
from perfpred.neighbours import Graph
from perfpred.network import Network
from perfpred.patterns import Absorb, Chain, RuleSet, Siblings, Word, compile_word, words_used
from perfpred.rules import RULE_SETS


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """Nodes that run as one layer, in topological order, and the rule that joined them."""

    nodes: tuple[Node, ...]
    rule: str


def groups(network: Network, rules: str | RuleSet) -> list[Group]:
    """Partitions the nodes of a network into what runs as one layer.

    Every node is in exactly one group; groups are in an order in which they can run. Nodes that only rename their
    input (`RuleSet.free`) belong to the group that computes it.

    Raises:
        UsageError: There is no rule set of that name.
    """
    _, units = _partition(network, rule_set_named(rules) if isinstance(rules, str) else rules)
    return [Group(nodes=tuple(network.nodes[i] for i in u.members), rule=u.rule) for u in units]


def _partition(network: Network, rule_set: RuleSet) -> tuple[Graph, list[Unit]]:
    graph = Graph(network.nodes, network.output_names, words_used(rule_set.rules))
    units = chain_units(graph, [r for r in rule_set.rules if isinstance(r, Chain)])
    present = set(graph.labels)
    for rule in rule_set.rules:
        if isinstance(rule, Chain) or not any(map(compile_word(rule.pattern).matches, present)):
            continue
        if isinstance(rule, Siblings):
            units = sibling_units(graph, units, rule)
        elif isinstance(rule, Absorb):
            units = absorb_units(graph, units, rule)
        else:
            units = region_units(graph, units, rule)
    units = free_units(graph, units, frozenset(rule_set.free))
    for unit in units:
        unit.members.sort()
    return graph, units


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
    rule_set = rule_set_named(rules) if isinstance(rules, str) else rules
    found = [_border(t, "input") for t in network.inputs if _is_image(t)] if rule_set.borders else []
    graph, units = _partition(network, rule_set)
    nodes = network.nodes
    owner = [0] * len(nodes)
    for u, unit in enumerate(units):
        for i in unit.members:
            owner[i] = u
    copies = [(compile_word(a), compile_word(b)) for a, b in rule_set.copies]
    for u, unit in enumerate(units):
        if copies:
            found.extend(_border(nodes[p].outputs[0], "for") for p in _copied(graph, units, owner, u, copies))
        written: set[str] = set()
        members = [nodes[i] for i in unit.members]
        for i in unit.members:
            if i in graph.returned or any(owner[c] != u for c in graph.consumers[i]):
                written.update(_read_outside(network, nodes[i], members))
        found.append(layer_from_nodes(members, outputs=written, name=_name(members), rule=unit.rule or "single"))
    if rule_set.borders:
        found.extend(_border(t, "output") for t in network.outputs if _is_image(t))
    return found


def _copied(
    graph: Graph, units: Sequence[Unit], owner: Sequence[int], u: int, copies: Sequence[tuple[Word, Word]]
) -> set[int]:
    """Nodes whose result a unit reads in another format than the one it was written in."""
    return {
        p
        for source, target in copies
        for i in units[u].members
        if target.matches(graph.labels[i])
        for p in graph.producers[i]
        if owner[p] != u and any(source.matches(graph.labels[m]) for m in units[owner[p]].members)
    }


def _read_outside(network: Network, node: Node, members: Sequence[Node]) -> list[str]:
    """Outputs of a node, one of which is needed outside, that nodes other than `members` or the caller read."""
    if len(node.outputs) == 1:
        return [node.outputs[0].name]
    inside = {member.name for member in members}
    return [
        t.name
        for t in node.outputs
        if t.name in network.output_names or any(c.name not in inside for c in network.consumers(t.name))
    ]


def _name(members: Sequence[Node]) -> str:
    names = [node.name for node in members]
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
    try:
        return RULE_SETS[name]
    except KeyError:
        raise UsageError(f"no fusion rules are named '{name}'; known: {', '.join(RULE_SETS)}") from None


def rule_sets() -> tuple[str, ...]:
    """Names of all rule sets."""
    return tuple(RULE_SETS)

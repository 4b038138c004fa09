"""Passes that join the nodes of a network into groups free of cycles, each linear in the number of nodes."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from heapq import heapify, heappop, heappush
from typing import Final

from perfpred.labels import Labels
from perfpred.neighbours import Graph
from perfpred.patterns import Absorb, Chain, Region, Siblings, Word, compile_pattern, compile_word

#: Consumers of one tensor up to which a chain looks on; wider fan-outs are never fused vertically.
_FAN_OUT: Final = 8
_REDUCING: Final = frozenset({"reduction", "norm", "softmax"})
_TRAILING: Final = frozenset({"view", "transpose"})


@dataclass(slots=True)
class Unit:
    """A group under way: the indices of its nodes and the rule that joined them."""

    members: list[int]
    rule: str


def chain_units(graph: Graph, rules: Sequence[Chain]) -> list[Unit]:
    """Groups made by the first chain that joins anything to each node; the other nodes alone."""
    taken = [False] * len(graph.nodes)
    opened = {rule.name for rule in rules if rule.open}
    compiled = [(rule, compile_pattern(rule.pattern)) for rule in rules]
    by_labels: dict[Labels, list[tuple[Chain, tuple[Word, ...]]]] = {}
    units: list[tuple[int, Unit]] = []
    for i, labels in enumerate(graph.labels):
        if taken[i] or i in graph.passed:
            continue
        candidates = by_labels.get(labels)
        if candidates is None:
            candidates = by_labels[labels] = [(r, w) for r, w in compiled if w[0].matches(labels)]
        members, name = [i], ""
        for rule, words in candidates:
            found = _match(graph, taken, i, words, rule)
            if len(found) > 1 or len(found) == len(words):
                members, name = found, rule.name
                break
        for m in members:
            taken[m] = True
        units.append((i if name in opened else members[-1], Unit(members, name)))
    # A closed chain is read at its last node alone and an open one reads nothing younger than its first, so sorted
    # by these nodes the groups can run.
    units.sort(key=lambda pair: pair[0])
    return [unit for _, unit in units]


def _match(graph: Graph, taken: Sequence[bool], start: int, words: Sequence[Word], rule: Chain) -> list[int]:
    """Longest group from `start` that the words allow; empty where they don't match."""
    members = [start]
    pending: set[int] = set()
    at, best, size = 0, 0, graph.sizes[start]
    while True:
        last = members[-1]
        complete = all(w.optional for w in words[at + 1 :])
        # An open chain passes a transpose only on the way to more work.
        if complete and (_TRAILING.isdisjoint(graph.labels[last]) if rule.open else not pending):
            best = len(members)
        if last in graph.returned and not rule.open:
            break
        pending.update(graph.consumers[last])
        if len(pending) > _FAN_OUT:
            break
        step = 0
        while pending:
            candidate = min(pending)
            step = _step(graph, words, at, candidate)
            fits = step and not taken[candidate] and _operands_fit(graph, rule, members, candidate)
            if fits and not rule.resize and "pointwise" in graph.labels[candidate]:
                fits = "anchor" in graph.labels[candidate] or graph.sizes[candidate] == size
            if fits:
                break
            if not rule.open:
                return members[:best]
            pending.discard(candidate)
        if not pending:
            break
        if "anchor" in graph.labels[candidate]:
            size = graph.sizes[candidate]
        members.append(candidate)
        pending.discard(candidate)
        at = step
    return members[:best]


def _step(graph: Graph, words: Sequence[Word], at: int, candidate: int) -> int:
    """The step of the pattern that a candidate takes after step `at`; 0 for none."""
    labels = graph.labels[candidate]
    step = at if words[at].repeated and words[at].matches(labels) else at + 1
    while step < len(words) and not words[step].matches(labels):
        step = step + 1 if words[step].optional else len(words)
    return step if step < len(words) else 0


def _operands_fit(graph: Graph, rule: Chain, members: Sequence[int], candidate: int) -> bool:
    """Whether the operands a candidate reads from outside let it join."""
    outside = [p for p in graph.producers[candidate] if p not in members]
    if rule.open:
        # Older operands can't depend on the group, so it stays free of cycles though read in several places.
        return all(p < members[0] for p in outside)
    if rule.operand == "first":
        first = graph.producers[candidate][0]
        return not (first in outside and graph.absorbs(first) and len(graph.consumers[first]) == 1)
    return not any(p > members[-1] and graph.absorbs(p) for p in outside)


def absorb_units(graph: Graph, units: list[Unit], rule: Absorb) -> list[Unit]:
    """Units after lone nodes joined the only group that reads them."""
    word, into = compile_word(rule.pattern), compile_word(rule.into) if rule.into else None
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
        target = units[home]
        if rule.completes and target.rule != rule.name:
            continue
        if into is None or any(into.matches(graph.labels[m]) for m in target.members):
            target.members.append(only)
            target.rule = target.rule or rule.name
            owner[only] = home
            gone[u] = True
    return [unit for unit, left in zip(units, gone, strict=True) if not left]


def sibling_units(graph: Graph, units: list[Unit], rule: Siblings) -> list[Unit]:
    """Units after those with equal heads on the same single input became one."""
    word = compile_word(rule.pattern)
    alike: dict[tuple[str, Labels], list[int]] = {}
    for u, unit in enumerate(units):
        head = min(unit.members)
        if word.matches(graph.labels[head]):
            inside = set(unit.members)
            sources = {p for m in unit.members for p in graph.producers[m]} - inside
            outside = {t.name for m in unit.members for t in graph.nodes[m].activations}
            outside -= {t.name for m in unit.members for t in graph.nodes[m].outputs}
            if len(sources) <= 1 and len(outside) == 1:
                alike.setdefault((graph.nodes[head].activations[0].name, graph.labels[head]), []).append(u)
    gone: set[int] = set()
    for first, *others in alike.values():
        twins = [units[u] for u in (first, *others)]
        if others and (not rule.whole or _are_whole(graph, [min(twin.members) for twin in twins])):
            units[first].members.extend(m for u in others for m in units[u].members)
            units[first].rule = rule.name
            gone.update(others)
    return _ordered(graph, [unit for u, unit in enumerate(units) if u not in gone]) if gone else units


def _are_whole(graph: Graph, nodes: Sequence[int]) -> bool:
    """Whether the results of nodes that read one tensor are as large as it, all together."""
    parts = sum(math.prod(graph.nodes[n].outputs[0].shape) for n in nodes)
    return parts == math.prod(graph.nodes[nodes[0]].activations[0].shape)


def region_units(graph: Graph, units: list[Unit], rule: Region) -> list[Unit]:
    """Units after those a region allows were joined with their neighbours on the same level."""
    word = compile_word(rule.pattern)
    cuts = tuple((compile_word(a), compile_word(b)) for a, b in rule.cuts)
    eligible = [not unit.rule and word.matches(graph.labels[unit.members[0]]) for unit in units]
    reducing = [not _REDUCING.isdisjoint(graph.labels[unit.members[-1]]) for unit in units]
    owner = _owners(graph, units)
    level, depth = [0] * len(units), [0] * len(units)
    sources: list[list[int]] = []
    borders: set[tuple[int, int]] = set()
    for u, unit in enumerate(units):
        feeding = sorted({owner[p] for m in unit.members for p in graph.producers[m]} - {u})
        sources.append(feeding)
        for p in feeding:
            joined = eligible[u] and eligible[p] and not (cuts and _cut(graph, units[p], unit, cuts))
            joined = joined and not (reducing[p] and _spreads(graph, units[p], unit))
            level[u] = max(level[u], level[p] + (not joined))
            if not joined:
                borders.add((p, u))
        depth[u] = max((depth[p] for p in feeding if level[p] == level[u]), default=0) + reducing[u]
        if depth[u] > rule.reductions and reducing[u]:
            level[u], depth[u] = level[u] + 1, 1
    parent = list(range(len(units)))
    for u, feeding in enumerate(sources):
        for p in feeding:
            if eligible[u] and eligible[p] and level[p] == level[u]:
                parent[_root(parent, u)] = _root(parent, p)
    _sink(sources, borders, reducing, level, parent)
    found: dict[int, Unit] = {}
    for u, unit in enumerate(units):
        kept = found.setdefault(_root(parent, u), unit)
        if kept is not unit:
            kept.members.extend(unit.members)
            kept.rule = rule.name
    return _ordered(graph, list(found.values())) if len(found) < len(units) else units


def _root(parent: list[int], u: int) -> int:
    while parent[u] != u:
        parent[u] = parent[parent[u]]
        u = parent[u]
    return u


def _sink(
    sources: Sequence[Sequence[int]],
    borders: Collection[tuple[int, int]],
    reducing: Sequence[bool],
    level: Sequence[int],
    parent: list[int],
) -> None:
    """Joins a region that a single other region reads to it: a builder computes it where it is needed.

    Nothing outside reads it, so no cycle can come of it. Regions that reduce stay, their result is computed once.
    """
    readers: dict[int, set[int]] = {}
    fixed: set[int] = set()
    for u, feeding in enumerate(sources):
        if reducing[u]:
            fixed.add(_root(parent, u))
        for p in feeding:
            if _root(parent, p) != _root(parent, u):
                readers.setdefault(_root(parent, p), set()).add(u)
            if (p, u) in borders:
                fixed.add(_root(parent, p))
    for r in sorted(readers, key=lambda r: -level[r]):
        homes = {_root(parent, u) for u in readers[r]}
        if r not in fixed and len(homes) == 1:
            parent[r] = homes.pop()


def _spreads(graph: Graph, producer: Unit, consumer: Unit) -> bool:
    """Whether a reduction's result is used on more elements than it came from, which takes a launch of its own."""
    last = max(producer.members)
    if "reduction" not in graph.labels[last]:
        return False
    return graph.sizes[min(consumer.members)] > max((t.elements for t in graph.nodes[last].activations), default=0)


def _cut(graph: Graph, producer: Unit, consumer: Unit, cuts: Iterable[tuple[Word, Word]]) -> bool:
    last, first = graph.labels[max(producer.members)], graph.labels[min(consumer.members)]
    return any(a.matches(last) and b.matches(first) for a, b in cuts)


def _owners(graph: Graph, units: Sequence[Unit]) -> list[int]:
    owner = [0] * len(graph.nodes)
    for u, unit in enumerate(units):
        for m in unit.members:
            owner[m] = u
    return owner


def _ordered(graph: Graph, units: list[Unit]) -> list[Unit]:
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
    order: list[Unit] = []
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


def free_units(graph: Graph, units: list[Unit], free: Labels) -> list[Unit]:
    """Units after those of free nodes alone, and nodes that do nothing, joined the unit that computes their input."""
    owner: dict[int, Unit] = {}
    kept: list[Unit] = []
    for unit in units:
        home = unit
        if all(free & graph.labels[m] for m in unit.members):
            feeding = {id(owner[p]): owner[p] for m in unit.members for p in graph.producers[m] if p in owner}
            if len(feeding) == 1:
                home = feeding.popitem()[1]
                home.members.extend(unit.members)
        if home is unit:
            kept.append(unit)
        for m in unit.members:
            owner[m] = home
    for i, p in graph.passed.items():
        owner[p].members.append(i)
    return kept

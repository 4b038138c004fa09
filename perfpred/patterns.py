"""Fusion rules as data: patterns of words, and the rule sets they make up.

A pattern is a line of steps separated by spaces; a step is one or more alternatives, `relu|clip`, each made of words
of `labels` that must hold, `conv&dense`, or must not, `!broadcast`. `?` makes a step optional, `*` repeats it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from functools import lru_cache

from perfpred.labels import Labels


@dataclass(frozen=True, slots=True, kw_only=True)
class Chain:
    """Vertical fusion.

    Attributes:
        name: Name of the rule, shown beside each layer it makes.
        pattern: Words separated by spaces; `a|b` either, `!a` not, `a&b` both, then `?` optional, `*` any number.
        source: Where the rule is documented or how it was observed.
        resize: Whether joining nodes may change the number of elements.
        open: Whether joined nodes but the last may be read outside too; their other operands must then be older.
        operand: Of two products that a sum could join, `later` in the file or `first` operand takes it.
    """

    name: str
    pattern: str
    source: str
    resize: bool = False
    open: bool = False
    operand: str = "later"


@dataclass(frozen=True, slots=True, kw_only=True)
class Siblings:
    """Horizontal fusion of groups whose first node matches `pattern`, reads one activation, the same for all.

    Attributes:
        name: Name of the rule.
        pattern: Alternatives in the words of `Chain.pattern`, without quantifiers.
        source: Where the rule is documented or how it was observed.
        whole: Whether they join only where their results together are as large as what they read.
    """

    name: str
    pattern: str
    source: str
    whole: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Region:
    """Maximal connected regions of nodes that match `pattern`.

    Attributes:
        name: Name of the rule.
        pattern: Alternatives in the words of `Chain.pattern`, without quantifiers.
        source: Where the rule is documented or how it was observed.
        reductions: Reductions that may follow one another inside a region.
        cuts: Pairs (producer step, consumer step) that are never joined.
    """

    name: str
    pattern: str
    source: str
    reductions: int = 1
    cuts: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Absorb:
    """Nodes not fused so far that match `pattern` join the group that alone reads them.

    Attributes:
        name: Name of the rule.
        pattern: One step, as in `Chain.pattern`.
        source: Where the rule is documented or how it was observed.
        into: A step that some node of the group must match; empty for any.
        completes: Whether only groups that a rule of the same name made are joined.
    """

    name: str
    pattern: str
    source: str
    into: str = ""
    completes: bool = False


Rule = Chain | Absorb | Siblings | Region


@dataclass(frozen=True, slots=True, kw_only=True)
class RuleSet:
    """The rules of one runtime, in the order they are tried.

    Attributes:
        name: Name for `fuse`.
        rules: Chains first match first, then siblings, then regions.
        borders: Whether the engine copies every image input and output between its own layout and the caller's.
        copies: Pairs of steps: where a group that holds the first feeds a node of the second, a copy changes format.
        free: Words of nodes that make no layer of their own, as their result is the input's memory.
    """

    name: str
    rules: tuple[Rule, ...]
    borders: bool = False
    copies: tuple[tuple[str, str], ...] = ()
    free: tuple[str, ...] = ("view",)


@lru_cache(maxsize=64)
def words_used(rules: tuple[Rule, ...]) -> frozenset[str]:
    """Every word that the patterns of some rules mention."""
    texts = []
    for rule in rules:
        texts.append(rule.pattern)
        if isinstance(rule, Absorb):
            texts.append(rule.into)
        elif isinstance(rule, Region):
            texts += [text for pair in rule.cuts for text in pair]
    return frozenset(re.findall(r"\w+", " ".join(texts)))


@dataclass(frozen=True, slots=True, eq=False)
class Word:
    """One step of a pattern; a set of alternatives, each a pair of words wanted and words refused."""

    alternatives: tuple[tuple[Labels, Labels], ...]
    optional: bool
    repeated: bool
    known: dict[Labels, bool] = field(default_factory=dict)

    def matches(self, labels: Labels) -> bool:
        """Whether a node of these words fits."""
        found = self.known.get(labels)
        if found is None:
            found = any(wanted <= labels and refused.isdisjoint(labels) for wanted, refused in self.alternatives)
            self.known[labels] = found
        return found


@lru_cache(maxsize=4096)
def compile_word(text: str) -> Word:
    """One step of a pattern, compiled."""
    mark = text[-1] if text[-1] in "?*" else ""
    alternatives = []
    for alternative in text.removesuffix(mark or " ").split("|"):
        parts = alternative.split("&")
        alternatives.append(
            (frozenset(w for w in parts if w[0] != "!"), frozenset(w[1:] for w in parts if w[0] == "!"))
        )
    return Word(tuple(alternatives), optional=bool(mark), repeated=mark == "*")


@lru_cache(maxsize=4096)
def compile_pattern(pattern: str) -> tuple[Word, ...]:
    """The steps of a pattern, compiled."""
    return tuple(compile_word(text) for text in pattern.split())

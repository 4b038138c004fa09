"""ONNX nodes behind an engine layer, read from its metadata or from the parts of its name.

Classic TensorRT (8.x to 10.x) joins the names of what it fused: `Conv_0 + Relu_1` vertically, `A || B`
horizontally, `PWN(PWN(Sigmoid_2), Mul_3)` for a pointwise chain, `{ForeignNode[A...B]}` for a region from A to B.
Newer builders list the nodes as `[ONNX Layer: A]`, separated by 0x1E or 0x1F.
Source: layer names of the recordings in the reference data, and NVIDIA's Developer Guide, "Types of Fusions".
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator
from typing import Final

_METADATA: Final = re.compile(r"\[ONNX Layer: ([^\x1e\x1f]*)\]")
_FOREIGN: Final = re.compile(r"\{ForeignNode\[(.*?)\]\}")
_SEPARATOR: Final = re.compile(r" \+ | \|\| |, ")
_INTERNAL: Final = re.compile(
    r"^\(Unnamed Layer\*|^ONNXTRT_|^__my[el]|^dummy_|_HL_\d+$|^(?:un)?squeeze_node_after_|^Reformatted |^Forced Cast "
)
#: Text the builder puts around a node's name when it adds a layer of its own for that node.
_PREFIX: Final = re.compile(r"^(?:copied_)?(?:reshape|squeeze|unsqueeze|transpose|shuffle)_(?:before|after)_")
_SUFFIX: Final = re.compile(
    r"(?:_(?:de)?quantize_scale_node|_clone_\d+| copy|_copy(?:_input|_output)?| \[[A-Za-z]+\]|_myl\d+_\d+)$"
)
_REFORMAT: Final = re.compile(r"^Reformatting CopyNode for (?:Input|Output) Tensor \d+ to (.*)$", re.DOTALL)


def nodes_from_metadata(metadata: str) -> tuple[str, ...]:
    """Node names in a layer's `Metadata` text, in order, each once; empty where it names none."""
    return tuple(dict.fromkeys(_METADATA.findall(metadata)))


def note_from_metadata(metadata: str) -> str:
    """What `Metadata` says beside the node names, such as `__gemm_from_conv1x1`."""
    return _METADATA.sub("", metadata).strip("\x1e\x1f ")


def is_reformat(name: str) -> bool:
    """Whether the name is that of a copy added to change a tensor's format."""
    return _REFORMAT.match(name) is not None


def parts(name: str) -> Iterator[str | tuple[str, str]]:
    """Splits a classic layer name.

    Yields:
        One text per part, or a pair (first, last) for a region of which only the ends are named. Copies added by
        the builder yield nothing: they run no node.
    """
    if is_reformat(name):
        return
    position = 0
    for region in _FOREIGN.finditer(name):
        yield from _plain_parts(name[position : region.start()])
        first, dots, last = region.group(1).partition("...")
        yield (first, last if dots else first)
        position = region.end()
    yield from _plain_parts(name[position:])


def _plain_parts(text: str) -> Iterator[str]:
    for part in _SEPARATOR.split(text):
        part = part.strip(" +|,")
        while part.startswith("PWN("):
            part = part[4:]
        surplus = part.count(")") - part.count("(")
        if surplus > 0:
            part = part[: len(part) - surplus] if part.endswith(")" * surplus) else part.replace(")", "")
        part = part.strip()
        if part and not _INTERNAL.search(part):
            yield part


def resolve(part: str, known: Collection[str]) -> str | None:
    """The node of `known` that a part of a layer name means; `None` for weights and the builder's own layers."""
    if part in known:
        return part
    stripped = _PREFIX.sub("", part)
    while True:
        if stripped in known:
            return stripped
        shorter = _SUFFIX.sub("", stripped)
        if shorter == stripped:
            return None
        stripped = shorter


def nodes_from_name(name: str) -> tuple[str, ...]:
    """Node names in a classic layer name as far as the name alone tells; of a region, its two ends."""
    found: dict[str, None] = {}
    for part in parts(name):
        for text in part if isinstance(part, tuple) else (part,):
            plain = _SUFFIX.sub("", _PREFIX.sub("", text))
            if plain and not plain.startswith("__myl"):
                found[plain] = None
    return tuple(found)

"""Layers of a built engine, read from what builders write; no GPU and no TensorRT needed.

Two schemas exist: the classic one of TensorRT 8.2 to 10.x (`Format/Datatype`) and the newer one of TensorRT 11 and
TensorRT-RTX (`Datatype`), which TensorRT-RTX also prints as text when it builds.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

from perfpred.errors import EngineFormatError
from perfpred.group import layer_from_nodes
from perfpred.layer import DTYPE_BITS, Layer, Node, TensorSpec
from perfpred.layer_names import is_reformat, nodes_from_metadata, nodes_from_name, note_from_metadata, parts, resolve
from perfpred.network import Network

_VERBOSITY_FIX: Final = (
    "build it again with detailed profiling verbosity (trtexec --profilingVerbosity=detailed, "
    "config.profiling_verbosity = ProfilingVerbosity.DETAILED)"
)
#: Builder's word for a type -> ours; classic files hold it inside an English phrase, longest words first.
_DTYPES: Final[Mapping[str, str]] = {
    "BFloat16": "bfloat16",
    "BF16": "bfloat16",
    "Float16": "float16",
    "FP16": "float16",
    "Half": "float16",
    "FP8": "float8e4m3fn",
    "FP32": "float32",
    "Float": "float32",
    **{word: word.lower() for word in ("UInt8", "Int64", "Int32", "Int8", "Int4", "Bool")},
}
_DTYPE_WORD: Final = re.compile("|".join(sorted(_DTYPES, key=len, reverse=True)), re.IGNORECASE)
_DTYPE_OF_WORD: Final = {word.lower(): dtype for word, dtype in _DTYPES.items()}
_ROLE_OF_TYPE: Final[Mapping[str, str]] = {
    "reformat": "reformat",
    "noop": "noop",
    "signal": "sync",
    "wait": "sync",
    "shape_call": "sync",
    "cjmp": "sync",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineTensor:
    """A tensor of an engine.

    Attributes:
        name: Name in the engine; rarely that of the ONNX graph.
        shape: Dimensions; -1 where dynamic.
        dtype: One of `DTYPE_BITS`, or `unknown` where the file says nothing usable.
        format: Layout as the builder words it.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    format: str = ""

    @property
    def spec(self) -> TensorSpec:
        """As a `TensorSpec`; dynamic dimensions count as 1 and an unknown type as 32 bits."""
        shape = tuple(max(d, 1) for d in self.shape)
        return TensorSpec(name=self.name, shape=shape, dtype=self.dtype if self.dtype in DTYPE_BITS else "float32")


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineLayer:
    """One layer as the builder reports it.

    Attributes:
        name: Unique in most engines; profiles are joined by it.
        layer_type: Builder's type, such as `CaskConvolution` or `kgen`.
        onnx_nodes: Nodes named by its metadata, else by the parts of its name.
        inputs: Activations read.
        outputs: Activations written.
        tactic: Kernel name where given.
        stream: Stream it runs on.
        note: Metadata beside the node names.
        attributes: What else the builder reports (`Kernel`, `Stride`, `Weights`, ...), as read.
        time_s: Time of one run, median where known, else mean.
    """

    name: str
    layer_type: str
    onnx_nodes: tuple[str, ...] = ()
    inputs: tuple[EngineTensor, ...] = ()
    outputs: tuple[EngineTensor, ...] = ()
    tactic: str = ""
    stream: int = 0
    note: str = ""
    attributes: Mapping[str, Any] = field(default_factory=dict)
    time_s: float | None = None

    @property
    def role(self) -> str:
        """`compute`, `reformat` (a copy between formats), `noop` or `sync` (signals, jumps)."""
        role = _ROLE_OF_TYPE.get(self.layer_type.lower(), "compute")
        return "compute" if role == "reformat" and self.onnx_nodes and not is_reformat(self.name) else role


def read_engine(path: str | Path) -> tuple[EngineLayer, ...]:
    """Reads inspector or trtexec layer information (JSON) or the `Layers:` text of a TensorRT-RTX build log.

    Raises:
        EngineFormatError: Not such a file, truncated, or of an engine that kept layer names only.
    """
    path = Path(path)
    text = read_text(path)
    if text.lstrip()[:1] in ("{", "["):
        return layers_from_inspector(text, source=str(path))
    return layers_from_build_log(text, source=str(path))


def read_text(path: Path) -> str:
    """The file's text; unreadable bytes become replacement characters.

    Raises:
        EngineFormatError: The file can't be read.
    """
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        raise EngineFormatError(f"{path}: can't be read ({error.strerror}); check the path") from error


def parse_json(text: str, *, source: str) -> Any:
    """JSON with the raw control characters that TensorRT leaves in strings.

    Raises:
        EngineFormatError: Not JSON or truncated; names line and column.
    """
    try:
        return json.loads(text, strict=False)
    except json.JSONDecodeError as error:
        raise EngineFormatError(
            f"{source}: line {error.lineno}, column {error.colno}: expected JSON, {error.msg.lower()}; "
            "the file is truncated or damaged, export it again"
        ) from error


def layers_from_inspector(text: str, *, source: str = "inspector") -> tuple[EngineLayer, ...]:
    """Layers of an EngineInspector or `trtexec --exportLayerInfo` JSON text, classic or newer schema.

    Raises:
        EngineFormatError: Malformed, or an engine built with layer names only.
    """
    content = parse_json(text, source=source)
    records = content.get("Layers") if isinstance(content, dict) else None
    if not isinstance(records, list):
        raise EngineFormatError(f"{source}: expected an object with a list `Layers`, as the engine inspector writes it")
    if not records:
        raise EngineFormatError(f"{source}: `Layers` is empty; the engine reports no layer, {_VERBOSITY_FIX}")
    if any(isinstance(record, str) for record in records):
        raise EngineFormatError(f"{source}: the engine kept layer names only; {_VERBOSITY_FIX}")
    return tuple(_layer_from_json(record, f"{source}: layer {i}") for i, record in enumerate(records))


def _layer_from_json(record: Any, where: str) -> EngineLayer:
    if not isinstance(record, dict):
        raise EngineFormatError(f"{where}: expected an object, found {type(record).__name__}")
    name, layer_type = (_required(record, key, str, where) for key in ("Name", "LayerType"))
    where = f"{where} ('{name}')"
    metadata = record.get("Metadata") or ""
    rest = {k: v for k, v in record.items() if k not in _LAYER_KEYS}
    return EngineLayer(
        name=name,
        layer_type=layer_type,
        onnx_nodes=nodes_from_metadata(metadata) or nodes_from_name(name),
        inputs=_tensors(record, "Inputs", where),
        outputs=_tensors(record, "Outputs", where),
        tactic=record.get("TacticName") or "",
        stream=int(record.get("StreamId") or 0),
        note=note_from_metadata(metadata),
        attributes=rest,
    )


_LAYER_KEYS: Final = frozenset(
    {"Name", "LayerType", "Inputs", "Outputs", "TacticName", "StreamId", "Metadata", "Constants"}
)


def _required(record: Mapping[str, Any], key: str, kind: type, where: str) -> Any:
    value = record.get(key)
    if not isinstance(value, kind):
        found = "nothing" if value is None else type(value).__name__
        raise EngineFormatError(f"{where}: expected `{key}` of type {kind.__name__}, found {found}")
    return value


def _tensors(record: Mapping[str, Any], key: str, where: str) -> tuple[EngineTensor, ...]:
    found = []
    for item in _required(record, key, list, where):
        if not isinstance(item, dict):
            raise EngineFormatError(f"{where}: expected tensor objects in `{key}`, found {type(item).__name__}")
        name = _required(item, "Name", str, f"{where} {key}")
        dimensions = _required(item, "Dimensions", list, f"{where} {key} '{name}'")
        phrase = str(item.get("Format/Datatype") or item.get("Format") or "")
        dtype = dtype_from_words(str(item.get("Datatype") or phrase))
        found.append(EngineTensor(name=name, shape=tuple(map(int, dimensions)), dtype=dtype, format=phrase))
    return tuple(found)


def dtype_from_words(phrase: str) -> str:
    """Our dtype name for a builder's phrase such as `Channel major FP16 format where channel % 8 == 0`."""
    word = _DTYPE_WORD.search(phrase)
    return _DTYPE_OF_WORD[word.group().lower()] if word else "unknown"


_LOG_LAYER: Final = re.compile(
    r"Name: (?P<name>.*?), LayerType: (?P<type>[^,]*), Inputs: \[(?P<inputs>.*?)\], "
    r"(?:Constants: \[(?P<constants>.*?)\], )?Outputs: \[(?P<outputs>.*?)\], TacticName: (?P<tactic>.*?), "
    r"StreamId: (?P<stream>-?\d+)(?P<rest>(?:, (?!Metadata:)\w+: [^,]*)*)(?:, Metadata: ?(?P<metadata>.*))?$",
    re.DOTALL,
)
#: Events of streams and jumps of loops: `EventId`, `JumpTargetThen`.
_LOG_FIELD: Final = re.compile(r", (\w+): ([^,]*)")
_LOG_TENSOR: Final = re.compile(
    r"\{ Name: (?P<name>.*?), Dimensions: \[(?P<shape>[-\d,]*)\](?:, Strides: \[[-\d,]*\])?"
    r"(?:, StrideOrder: \[[-\d,]*\])?, Datatype: (?P<dtype>[^,}]*)(?:, Format: (?P<format>[^}]*?))? ?\}"
)


def layers_from_build_log(text: str, *, source: str = "build log") -> tuple[EngineLayer, ...]:
    """Layers of the `Layers:` message that TensorRT-RTX logs with detailed profiling verbosity.

    Raises:
        EngineFormatError: No such message, or a record that can't be read whole.
    """
    _, found, body = text.partition("Layers:\n")
    if not found:
        raise EngineFormatError(f"{source}: expected a `Layers:` section; {_VERBOSITY_FIX} and keep verbose messages")
    body, complete, _ = body.partition("\n\n")
    lines = [line for line in body.split("\n") if line.strip()]
    layers = tuple(_layer_from_log(line, f"{source}: layer {i}") for i, line in enumerate(lines))
    if not complete and "I/O Tensors:" not in text:
        raise EngineFormatError(
            f"{source}: layer {len(layers)}: expected an empty line and `I/O Tensors:`; the log is truncated"
        )
    return layers


def _layer_from_log(line: str, where: str) -> EngineLayer:
    match = _LOG_LAYER.match(line)
    if match is None:
        raise EngineFormatError(
            f"{where}: expected `Name: …, LayerType: …, Inputs: […], Outputs: […], TacticName: …, StreamId: …`, "
            f"found '{line[:80]}'; the log is truncated or of an unknown version"
        )
    tensors = {key: _log_tensors(match[key] or "") for key in ("inputs", "constants", "outputs")}
    expected = line.count("{ Name: ")
    if sum(map(len, tensors.values())) != expected:
        raise EngineFormatError(
            f"{where} ('{match['name']}'): expected {expected} tensors, read {sum(map(len, tensors.values()))}; "
            "the log is of an unknown version"
        )
    metadata = match["metadata"] or ""
    return EngineLayer(
        name=match["name"],
        layer_type=match["type"],
        onnx_nodes=nodes_from_metadata(metadata),
        inputs=tensors["inputs"],
        outputs=tensors["outputs"],
        tactic=match["tactic"],
        stream=int(match["stream"]),
        note=note_from_metadata(metadata),
        attributes={"Constants": tensors["constants"], **dict(_LOG_FIELD.findall(match["rest"]))},
    )


def _log_tensors(text: str) -> tuple[EngineTensor, ...]:
    return tuple(
        EngineTensor(
            name=m["name"],
            shape=tuple(int(d) for d in m["shape"].split(",") if d),
            dtype=dtype_from_words(m["dtype"]),
            format=m["format"] or "",
        )
        for m in _LOG_TENSOR.finditer(text)
    )


def join_times(
    layers: Sequence[EngineLayer], times: Iterable[tuple[str, float]], *, source: str = "profile"
) -> tuple[EngineLayer, ...]:
    """Adds measured times by layer name; equal names are joined in the order they occur.

    Args:
        layers: Layers of the engine.
        times: Pairs of layer name and seconds per run.
        source: Name of the profile for messages.

    Raises:
        EngineFormatError: Profile and engine don't name the same layers equally often.
    """
    queues: dict[str, list[float]] = {}
    for name, time_s in times:
        queues.setdefault(name, []).append(time_s)
    counts = Counter(layer.name for layer in layers)
    # Profilers leave out layers that launch nothing, so a layer without time is fine only for those roles.
    for layer in layers:
        found = len(queues.get(layer.name, ()))
        if found != counts[layer.name] and (found or layer.role == "compute"):
            raise EngineFormatError(
                f"{source}: expected {counts[layer.name]} rows named '{layer.name}', found {found}; "
                "profile and layer information are not of the same engine"
            )
    extra = next((name for name in queues if name not in counts), None)
    if extra is not None:
        raise EngineFormatError(f"{source}: row '{extra}' names no layer of the engine; they are not of the same build")
    for queue in queues.values():
        queue.reverse()
    return tuple(replace(layer, time_s=queues[layer.name].pop() if layer.name in queues else 0.0) for layer in layers)


def partition_from_engine(
    layers: Sequence[EngineLayer], network: Network
) -> list[tuple[EngineLayer, tuple[Node, ...]]]:
    """Assigns each ONNX node that the engine names to one layer.

    A node named by several layers (an input copy and the convolution it feeds) goes to the first of those that is
    not a generated kernel, else to the first that reads anything. Nodes between the ends of a `{ForeignNode[a...b]}`
    that no other layer names belong to that layer.

    Returns:
        Every layer with its nodes in topological order; no nodes for copies, signals and unmatched names.
    """
    position = {node.name: i for i, node in enumerate(network.nodes)}
    owner: dict[str, int] = {}
    spans: list[tuple[int, int, int]] = []
    for index, layer in enumerate(layers):
        if layer.role in ("sync", "reformat"):
            continue
        if "ForeignNode" in layer.name and len(layer.onnx_nodes) <= 2:
            for part in parts(layer.name):
                if isinstance(part, tuple):
                    ends = [position[n] for n in (resolve(p, position) for p in part) if n is not None]
                    if ends:
                        spans.append((index, min(ends), max(ends) if len(ends) > 1 else len(position) - 1))
        for name in filter(None, (resolve(n, position) for n in layer.onnx_nodes)):
            held = owner.get(name)
            if held is None or _claim(layer) > _claim(layers[held]):
                owner[name] = index
    for index, first, last in spans:
        for node in network.nodes[first : last + 1]:
            owner.setdefault(node.name, index)
    members: list[list[Node]] = [[] for _ in layers]
    for node in network.nodes:
        if node.name in owner:
            members[owner[node.name]].append(node)
    return [(layer, tuple(nodes)) for layer, nodes in zip(layers, members, strict=True)]


def _claim(layer: EngineLayer) -> int:
    """How well a layer that names a node stands for it: a layer that reads nothing only makes constants."""
    if layer.role == "noop" or not layer.inputs:
        return 0
    return 1 if layer.layer_type == "kgen" else 2


def layers_from_engine(layers: Sequence[EngineLayer], network: Network) -> list[Layer]:
    """Engine layers as `Layer` records: work and traffic come from the ONNX nodes behind them.

    Layers that name no node of the network become reformat layers with the engine's own tensors; no-ops and
    stream signals are left out.
    """
    found: list[Layer] = []
    wanted = network.output_names
    for layer, nodes in partition_from_engine(layers, network):
        if nodes:
            inside = {node.name for node in nodes}
            written = {
                t.name
                for node in nodes
                for t in node.outputs
                if t.name in wanted or any(c.name not in inside for c in network.consumers(t.name))
            }
            found.append(layer_from_nodes(nodes, outputs=written, name=layer.name, rule=layer.layer_type))
        elif layer.role in ("compute", "reformat"):
            inputs, outputs = (tuple(t.spec for t in side) for side in (layer.inputs, layer.outputs))
            found.append(
                Layer(
                    name=layer.name,
                    kind="reformat",
                    inputs=inputs,
                    outputs=outputs,
                    dram_bytes=sum(t.nbytes for t in (*inputs, *outputs)),
                    dtype=outputs[0].dtype if outputs else "float32",
                    rule=layer.layer_type,
                )
            )
    return found

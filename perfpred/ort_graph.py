"""Layers of ONNX Runtime: the optimised model it can save, and the profile it can write.

An optimised node is joined to the nodes of the original graph through tensors, which keep their names where fused
nodes lose theirs: behind a node stands whatever computes its outputs from its inputs in the original graph.
"""

from __future__ import annotations

import re
import statistics
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import onnx
from google.protobuf.message import DecodeError

from perfpred.engine import EngineLayer, EngineTensor, parse_json, read_text
from perfpred.errors import EngineFormatError
from perfpred.layer import Node
from perfpred.network import Network

#: Operators the optimiser inserts to change layout or type; the tensor they write is the one they read.
_COPIES: Final = frozenset(
    {"ReorderInput", "ReorderOutput", "MemcpyToHost", "MemcpyFromHost", "Cast", "Transpose", "Reshape"}
)
#: Operators that only rename or move what they read.
_MOVES: Final = frozenset({"Reshape", "Flatten", "Squeeze", "Unsqueeze", "Transpose", "Cast"})
_NOTHING: Final = frozenset({"Identity", "Dropout"})
_KERNEL: Final = "_kernel_time"
_BLOCKED: Final = "com.microsoft.nchwc"
_FUSION_SUFFIX: Final = re.compile(r"/\w*Fusion/?$")


def layers_from_optimised_model(
    model: str | Path | onnx.ModelProto, network: Network, *, source: str | None = None
) -> tuple[EngineLayer, ...]:
    """Layers of a model saved through `SessionOptions.optimized_model_filepath`.

    Args:
        model: The optimised model; weights may be absent.
        network: The original graph.
        source: Name for messages.

    Raises:
        EngineFormatError: Not an ONNX model, or one of another network.
    """
    label = source or (str(model) if isinstance(model, (str, Path)) else "optimised model")
    graph = _load(model, label).graph
    place = {node.name: i for i, node in enumerate(network.nodes)}
    by_name = {node.name: node for node in network.nodes}
    writer = {t.name: i for i, node in enumerate(network.nodes) for t in node.outputs}
    known = {*writer, *(t.name for t in network.inputs)}
    constants = {i.name for i in graph.initializer}
    alias = _aliases_of_copies(graph, network, known, constants)
    layers = []
    claimed: set[str] = set()
    for index, node in enumerate(graph.node):
        original = by_name.get(node.name) or by_name.get(_FUSION_SUFFIX.sub("", node.name))
        for position, output in enumerate(node.output):
            if not output or output in known or output in alias:
                continue
            if node.domain == _BLOCKED and node.op_type not in _COPIES:
                alias[output] = _blocked_output(node, network, writer)
            elif node.op_type == "Gelu" and original is None:
                alias[output] = _gelu_output(alias.get(node.input[0], node.input[0]), network, place)
            elif output in by_name:
                alias[output] = by_name[output].outputs[0].name
            elif original is not None and position < len(original.outputs):
                alias[output] = original.outputs[position].name
            elif node.op_type in _COPIES and node.input[0] not in constants:
                alias[output] = alias.get(node.input[0], node.input[0])
        reads = {alias.get(i, i) for i in node.input if i}
        writes = [alias.get(o, o) for o in node.output if o]
        behind = _behind(network, writer, writes, reads) - claimed
        if len(behind) > 1:
            # Moves that the optimiser merged into others or pushed through the graph are no part of what it fused.
            behind = {n for n in behind if by_name[n].op_type not in _MOVES or _keeps(node.op_type, by_name[n])}
        claimed |= behind
        layers.append(
            EngineLayer(
                name=node.name or f"{node.op_type}_{index}",
                layer_type=node.op_type if behind or node.op_type not in _COPIES else "Reformat",
                onnx_nodes=tuple(sorted(behind, key=place.__getitem__)),
                inputs=tuple(EngineTensor(name=i, shape=(), dtype="unknown") for i in node.input if i not in constants),
                outputs=tuple(EngineTensor(name=o, shape=(), dtype="unknown") for o in node.output if o),
                attributes={"domain": node.domain},
            )
        )
    if not claimed and network.nodes:
        raise EngineFormatError(
            f"{label}: expected tensors of '{network.name}', found none; it was optimised from another graph"
        )
    return tuple(layers)


def _aliases_of_copies(
    graph: onnx.GraphProto, network: Network, known: set[str], constants: set[str]
) -> dict[str, str]:
    """Original tensors that inserted copies read: what was fused keeps its name only behind the copy.

    A copy that took the place of a node of the graph writes that node's output and so reads that node's input.
    """
    names = {node.name for node in network.nodes}
    alias = {}
    for node in graph.node:
        read, written = node.input[0] if node.input else "", node.output[0]
        if node.op_type not in _COPIES or written not in known or node.name in names or read in known | constants:
            continue
        producer = network.producer(written)
        replaced = producer is not None and producer.op_type in _MOVES and producer.activations
        alias[read] = producer.activations[0].name if producer is not None and replaced else written
    return alias


def _keeps(op_type: str, original: Node) -> bool:
    """Whether an optimised operator does a move of the original graph itself."""
    return op_type == original.op_type or (op_type == "FusedMatMul" and original.op_type == "Transpose")


def _gelu_output(read: str, network: Network, place: Mapping[str, int]) -> str:
    """Tensor that an activation spelled out in several nodes writes, from the tensor it reads."""
    pending = {place[node.name] for node in network.consumers(read)}
    count = 0
    while pending:
        first = min(pending)
        pending.discard(first)
        count += 1
        node = network.nodes[first]
        name = node.outputs[0].name
        readers = network.consumers(name)
        scaled = len(readers) == 1 and readers[0].op_type == "Mul" and len(readers[0].activations) == 1
        if count > 3 and not pending and not (count == 4 and scaled):
            return name
        pending.update(place[reader.name] for reader in readers)
    return read


def _blocked_output(node: onnx.NodeProto, network: Network, writer: Mapping[str, int]) -> str:
    """Original tensor that a blocked convolution writes.

    It is named after the convolution's output; a sum (fourth input) and an activation joined to it are not.
    """
    name = node.name.removesuffix("_nchwc")
    name = name if name in writer else name.rpartition("_")[0]
    wanted = ["Add"] if len(node.input) > 3 and node.input[3] else []
    wanted += [a.s.decode() for a in node.attribute if a.name == "activation"]
    for op_type in wanted:
        if name in writer and network.nodes[writer[name]].op_type == op_type:
            continue
        reader = next((n for n in network.consumers(name) if n.op_type in (op_type, "Sum")), None)
        if reader is None:
            break
        name = reader.outputs[0].name
    return name


def _load(model: str | Path | onnx.ModelProto, label: str) -> onnx.ModelProto:
    if isinstance(model, onnx.ModelProto):
        return model
    try:
        loaded = onnx.load(str(model), load_external_data=False)
    except OSError as error:
        raise EngineFormatError(f"{label}: can't be read ({error.strerror}); check the path") from error
    except DecodeError as error:
        raise EngineFormatError(f"{label}: expected an ONNX model; the file is truncated or damaged") from error
    if not loaded.graph.node:
        raise EngineFormatError(f"{label}: expected an ONNX model with nodes, found none")
    return loaded


def _behind(network: Network, writer: Mapping[str, int], writes: list[str], reads: set[str]) -> set[str]:
    """Names of the original nodes between the tensors read and those written."""
    found: set[str] = set()
    seen: set[str] = set()
    pending = [name for name in writes if name in writer and name not in reads]
    while pending:
        node = network.nodes[writer[pending.pop()]]
        if node.name in seen:
            continue
        seen.add(node.name)
        if node.op_type not in _NOTHING:
            found.add(node.name)
        pending.extend(t.name for t in node.inputs if t is not None and t.name in writer and t.name not in reads)
    return found


def times_from_profile(path: str | Path) -> list[tuple[str, float]]:
    """Median kernel time of every node in an ONNX Runtime profile, as pairs of node name and seconds.

    Raises:
        EngineFormatError: Not such a profile, or one that holds no kernel times.
    """
    path = Path(path)
    events = parse_json(read_text(path), source=str(path))
    if not isinstance(events, list):
        raise EngineFormatError(f"{path}: expected a list of trace events, as ONNX Runtime's profiler writes it")
    times: dict[str, list[float]] = {}
    for i, event in enumerate(events):
        name = event.get("name", "") if isinstance(event, dict) else None
        if name is None:
            raise EngineFormatError(f"{path}: event {i}: expected an object, found {type(event).__name__}")
        if event.get("cat") == "Node" and name.endswith(_KERNEL):
            times.setdefault(name.removesuffix(_KERNEL), []).append(_duration_s(event, f"{path}: event {i} ('{name}')"))
    if not times:
        raise EngineFormatError(
            f"{path}: expected events `<node>{_KERNEL}` of category Node, found none; run the session at least once "
            "before end_profiling()"
        )
    return [(name, statistics.median(values)) for name, values in times.items()]


def _duration_s(event: Mapping[str, Any], where: str) -> float:
    value = event.get("dur")
    if not isinstance(value, (int, float)):
        raise EngineFormatError(f"{where}: expected `dur` in microseconds, found {value!r}")
    return value * 1e-6


def with_times(layers: tuple[EngineLayer, ...], times: list[tuple[str, float]]) -> tuple[EngineLayer, ...]:
    """Adds profile times by node name; nodes the profile leaves out keep `None`."""
    by_name = dict(times)
    return tuple(replace(layer, time_s=by_name.get(layer.name)) for layer in layers)

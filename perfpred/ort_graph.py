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
from perfpred.network import Network

#: Operators the optimiser inserts to change layout or type; the tensor they write is the one they read.
_COPIES: Final = frozenset(
    {"ReorderInput", "ReorderOutput", "MemcpyToHost", "MemcpyFromHost", "Cast", "Transpose", "Reshape"}
)
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
    # Known tensors behind a copy name what the copy reads; what is fused keeps its name only there.
    alias = {
        node.input[0]: node.output[0]
        for node in graph.node
        if node.op_type in _COPIES and node.output[0] in known and node.name not in by_name
    }
    alias = {read: written for read, written in alias.items() if read not in known and read not in constants}
    layers = []
    claimed: set[str] = set()
    for index, node in enumerate(graph.node):
        original = by_name.get(node.name) or by_name.get(_FUSION_SUFFIX.sub("", node.name))
        for position, output in enumerate(node.output):
            if not output or output in known or output in alias:
                continue
            if node.domain == _BLOCKED and node.op_type not in _COPIES:
                alias[output] = _blocked_output(node, network, writer)
            elif output in by_name:
                alias[output] = by_name[output].outputs[0].name
            elif original is not None and position < len(original.outputs):
                alias[output] = original.outputs[position].name
            elif node.op_type in _COPIES and node.input[0] not in constants:
                alias[output] = alias.get(node.input[0], node.input[0])
        reads = {alias.get(i, i) for i in node.input if i}
        writes = [alias.get(o, o) for o in node.output if o]
        behind = _behind(network, writer, writes, reads) - claimed
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

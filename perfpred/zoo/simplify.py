"""Replaces the shape computations of an exported graph by constants, keeping the batch axis symbolic.

A traced export recomputes every shape from its input, though all but the batch axis is fixed. The shapes are
evaluated here at two batch sizes: what is equal at both is a constant, what grows with the batch becomes -1 in a
Reshape, or a short chain from the first input's batch axis elsewhere. Nothing is executed: weights are not needed.
"""

from __future__ import annotations

from collections.abc import Callable
from math import prod
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import GraphProto, ModelProto, NodeProto, TypeProto, helper, numpy_helper, shape_inference
from onnx.reference import ReferenceEvaluator

from perfpred.weights import FLOAT_TYPES, bind_batch, is_external

BATCHES = (2, 3)
_SMALL = 4096
Value = NDArray[Any]


def _attributes(node: NodeProto) -> dict[str, Any]:
    return {a.name: helper.get_attribute_value(a) for a in node.attribute}


def _divide(a: Value, b: Value) -> Value:
    return np.asarray(a // b if a.dtype.kind == "i" else a / b)


_FAST: dict[str, Callable[..., Value]] = {
    "Add": np.add,
    "Sub": np.subtract,
    "Mul": np.multiply,
    "Div": _divide,
    "Identity": np.asarray,
    "Gather": lambda data, indices, axis=0: np.take(data, indices, axis=axis),
    "GatherElements": lambda data, indices, axis=0: np.take_along_axis(data, indices, axis),
    "Concat": lambda *parts, axis: np.concatenate(parts, axis=axis),
    "Unsqueeze": lambda data, axes: np.expand_dims(data, tuple(int(a) for a in axes)),
    "Cast": lambda data, to: np.asarray(data).astype(helper.tensor_dtype_to_np_dtype(to)),
}


def _evaluate(node: NodeProto, values: list[Value], opset: int) -> list[Value]:
    if node.op_type in _FAST:
        return [np.asarray(_FAST[node.op_type](*values, **_attributes(node)))]
    names = [name for name in node.input if name]
    infos = [
        helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(value.dtype), value.shape)
        for name, value in zip(names, values, strict=True)
    ]
    outputs = [helper.make_value_info(name, TypeProto()) for name in node.output]
    unique = {info.name: info for info in infos}
    graph = helper.make_graph([node], "node", list(unique.values()), outputs)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)])
    results = ReferenceEvaluator(model).run(None, dict(zip(names, values, strict=True)))
    return [np.asarray(result) for result in results]


class _Shapes:
    """Types and known values of all tensors of a graph at one batch size."""

    def __init__(self, model: ModelProto, batch_size: int) -> None:
        graph = bind_batch(model, batch_size).graph
        self.opset = next(o.version for o in model.opset_import if o.domain in ("", "ai.onnx"))
        self.types: dict[str, TypeProto] = {value.name: value.type for value in graph.input}
        self.values: dict[str, Value] = {}
        self.computed: set[str] = set()
        self.weights: set[str] = set()
        self.parameters = {t.name for t in graph.initializer if t.data_type in FLOAT_TYPES and prod(t.dims) > 1}
        for tensor in graph.initializer:
            self.types[tensor.name] = helper.make_tensor_type_proto(tensor.data_type, tensor.dims)
            if is_external(tensor) or prod(tensor.dims) > _SMALL:
                self.weights.add(tensor.name)
            else:
                self.values[tensor.name] = numpy_helper.to_array(tensor)
        self.used = {name for node in graph.node for name in node.input} | {value.name for value in graph.output}
        for node in graph.node:
            self._visit(node)

    def shape(self, name: str) -> tuple[int, ...] | None:
        tensor = self.types[name].tensor_type if name in self.types else None
        if tensor is None or not tensor.HasField("shape"):
            return None
        return tuple(d.dim_value if d.HasField("dim_value") else -1 for d in tensor.shape.dim)

    def _visit(self, node: NodeProto) -> None:
        names = [name for name in node.input if name]
        shape = self.shape(node.input[0]) if node.op_type == "Shape" else None
        if node.op_type == "Constant":
            results = _evaluate(node, [], self.opset)
            if results[0].size <= _SMALL:
                self.values[node.output[0]] = results[0]
            self._set(node.output[0], results[0])
        elif shape is not None and -1 not in shape:
            span = _attributes(node)
            value = np.array(shape[span.get("start", 0) : span.get("end")], np.int64)
            self._known(node.output[0], value)
        elif names and all(name in self.values for name in names) and not self._scales_parameter(node, names):
            results = _evaluate(node, [self.values[name] for name in names], self.opset)
            # small parameters keep their operators: only what shapes and constants give is folded
            derived = any(name in self.computed or name not in self.parameters for name in names)
            for name, value in zip(node.output, results, strict=True):
                self._known(name, value) if derived else self.values.__setitem__(name, value)
                self._set(name, value)
        else:
            self._infer(node)
            if names and all(name in self.weights or name in self.values for name in names):
                self._weight(node, names)

    def _scales_parameter(self, node: NodeProto, names: list[str]) -> bool:
        """Whether a parameter meets a computed shape, as where a class token is repeated for the batch."""
        mixed = any(name in self.computed for name in names) and any(name in self.parameters for name in names)
        return mixed or node.op_type.startswith("Random")

    def _weight(self, node: NodeProto, names: list[str]) -> None:
        """Mark what is computed from weights alone, unless it is larger than they are."""
        shapes = [self.shape(name) for name in (*names, node.output[0])]
        # Standardising a weight leaves statistics behind that nobody reads.
        single = not any(name in self.used for name in node.output[1:])
        if single and all(s is not None and -1 not in s for s in shapes):
            *sizes, size = (prod(s) for s in shapes if s is not None)
            if size <= sum(sizes):
                self.weights.add(node.output[0])

    def _known(self, name: str, value: Value) -> None:
        self.values[name] = value
        self.computed.add(name)
        self._set(name, value)

    def _set(self, name: str, value: Value) -> None:
        self.types[name] = helper.make_tensor_type_proto(helper.np_dtype_to_tensor_dtype(value.dtype), value.shape)

    def _infer(self, node: NodeProto) -> None:
        names = {name for name in node.input if name}
        if any(name not in self.types for name in names):
            return
        schema = onnx.defs.get_schema(node.op_type, self.opset, node.domain)
        known = {name: numpy_helper.from_array(self.values[name], name) for name in names if name in self.values}
        inferred = shape_inference.infer_node_outputs(
            schema,
            node,
            {name: self.types[name] for name in names},
            known,
            opset_imports=[helper.make_opsetid("", self.opset)],
        )
        self.types.update(inferred)


def _constant(graph: GraphProto, name: str, value: Value) -> str:
    graph.initializer.append(numpy_helper.from_array(np.asarray(value), name))
    return name


class _Rewriter:
    """Writes the replacement of each computed shape once and hands out its name."""

    def __init__(self, model: ModelProto) -> None:
        self.graph = model.graph
        self.shapes = tuple(_Shapes(model, batch) for batch in BATCHES)
        low, high = self.shapes
        self.weights = {name for name in low.weights & high.weights if low.shape(name) == high.shape(name)}
        self.chain: list[NodeProto] = []
        self.done: dict[tuple[str, str], str | None] = {}

    def replacement(self, node: NodeProto, index: int) -> str | None:
        """Name of the tensor that replaces input `index` of `node`; None leaves it as it is."""
        name = node.input[index]
        reshapes = node.op_type == "Reshape" and index == 1
        key = (name, node.output[0] if reshapes else "")
        if key not in self.done:
            self.done[key] = self._replace(name, node if reshapes else None)
        return self.done[key]

    def _replace(self, name: str, reshape: NodeProto | None) -> str | None:
        low, high = (shapes.values.get(name) for shapes in self.shapes)
        if low is None or high is None or low.shape != high.shape:
            return None
        if np.array_equal(low, high):
            return _constant(self.graph, f"{name}_value", low)
        if low.dtype != np.int64 or low.ndim > 1:
            return None
        if reshape is not None:
            target = self._reshape_target(reshape.output[0])
            if target is not None:
                return _constant(self.graph, f"{reshape.output[0]}_shape", np.array(target, np.int64))
        return self._grow(name, np.atleast_1d(low), np.atleast_1d(high), scalar=low.ndim == 0)

    def _reshape_target(self, output: str) -> list[int] | None:
        low, high = (shapes.shape(output) for shapes in self.shapes)
        if low is None or high is None or -1 in low + high:
            return None
        target = [a if a == b else -1 for a, b in zip(low, high, strict=True)]
        return target if target.count(-1) == 1 else None

    def _grow(self, name: str, low: Value, high: Value, scalar: bool) -> str | None:
        """Concatenate constants and multiples of the batch size."""
        parts = []
        for position, (a, b) in enumerate(zip(low.tolist(), high.tolist(), strict=True)):
            if a == b:
                parts.append(_constant(self.graph, f"{name}_{position}", np.array([a], np.int64)))
                continue
            factor = b - a
            if a != factor * BATCHES[0]:
                return None
            parts.append(self._batch() if factor == 1 else self._times(f"{name}_{position}", factor))
        result = parts[0]
        if len(parts) > 1:
            result = f"{name}_joined"
            self.chain.append(helper.make_node("Concat", parts, [result], name=result, axis=0))
        if scalar:
            axis = _constant(self.graph, f"{name}_axis", np.array([0], np.int64))
            self.chain.append(helper.make_node("Squeeze", [result, axis], [f"{name}_scalar"], name=f"{name}_scalar"))
            result = f"{name}_scalar"
        return result

    def _batch(self) -> str:
        if not any(node.name == "batch_size" for node in self.chain):
            source = self.graph.input[0].name
            start = _constant(self.graph, "batch_axis", np.array([0], np.int64))
            shape = helper.make_node("Shape", [source], ["input_shape"], name="input_shape")
            gather = helper.make_node("Gather", ["input_shape", start], ["batch_size"], name="batch_size", axis=0)
            self.chain[:0] = [shape, gather]
        return "batch_size"

    def _times(self, name: str, factor: int) -> str:
        constant = _constant(self.graph, f"{name}_factor", np.array([factor], np.int64))
        batch = self._batch()
        self.chain.append(helper.make_node("Mul", [batch, constant], [f"{name}_batches"], name=f"{name}_batches"))
        return f"{name}_batches"

    def scales(self, node: NodeProto) -> str | None:
        """Scales that replace the sizes of a Resize, which hold the batch; None where rounding would differ."""
        ends = [self.shapes[0].shape(name) for name in (node.input[0], node.output[0])]
        if len(node.input) < 4 or any(shape is None or -1 in shape for shape in ends):
            return None
        before, after = (np.array(shape, np.float64) for shape in ends)
        scales = (after / before).astype(np.float32)
        exact = np.array_equal(np.floor(before * scales.astype(np.float64)), after)
        return _constant(self.graph, f"{node.output[0]}_scales", scales) if exact else None

    def live(self, state: str) -> bool:
        """Whether the initial state of a recurrent node is other than the zeros it starts from anyway."""
        value = self.shapes[0].values.get(state)
        return value is None or bool(value.any())

    def weight(self, name: str) -> str | None:
        """Turn a tensor computed from weights alone into a weight of its own."""
        shapes = self.shapes[0]
        shape, dtype = shapes.shape(name), shapes.types[name].tensor_type.elem_type
        if shape is None:
            return None
        if dtype not in FLOAT_TYPES or name in {tensor.name for tensor in self.graph.initializer}:
            return None
        tensor = self.graph.initializer.add(name=f"{name}_folded", data_type=dtype, dims=shape)
        tensor.raw_data = bytes(prod(shape) * FLOAT_TYPES[dtype].itemsize)
        return tensor.name


def simplify(model: ModelProto) -> ModelProto:
    """Return the network with shape computations folded, unused nodes and intermediate annotations removed.

    Tensors computed from weights alone become weights, with zeros where the values would be.
    """
    simple = ModelProto()
    simple.CopyFrom(model)
    graph = simple.graph
    _bypass_identities(graph)
    rewriter = _Rewriter(simple)
    computed = rewriter.shapes[0].computed & rewriter.shapes[1].computed
    weights = rewriter.weights
    for node in graph.node:
        if node.op_type == "Resize" and (scales := rewriter.scales(node)) is not None:
            node.input[:] = [node.input[0], "", scales]
        if node.op_type in ("LSTM", "GRU", "RNN"):
            node.input[:] = [name if index < 5 or rewriter.live(name) else "" for index, name in enumerate(node.input)]
        if node.output[0] in computed or node.output[0] in weights:
            continue
        for index, name in enumerate(node.input):
            if name in computed:
                new = rewriter.replacement(node, index)
            elif name in weights:
                if (name, "weight") not in rewriter.done:
                    rewriter.done[name, "weight"] = rewriter.weight(name)
                new = rewriter.done[name, "weight"]
            else:
                continue
            if new is not None:
                node.input[index] = new
    nodes = GraphProto()
    nodes.node.extend([*rewriter.chain, *graph.node])
    del graph.node[:]
    graph.node.extend(nodes.node)
    del graph.value_info[:]
    _remove_unused(graph)
    return simple


def _bypass_identities(graph: GraphProto) -> None:
    """Let consumers of an Identity read its source."""
    sources: dict[str, str] = {}
    for node in graph.node:
        for index, name in enumerate(node.input):
            node.input[index] = sources.get(name, name)
        if node.op_type == "Identity":
            sources[node.output[0]] = node.input[0]


def _remove_unused(graph: GraphProto) -> None:
    """Drop nodes and initializers that no output depends on, in place."""
    needed = {value.name for value in graph.output}
    kept = []
    for node in reversed(graph.node):
        if any(name in needed for name in node.output):
            needed.update(node.input)
            kept.append(node)
    replace = GraphProto()
    replace.node.extend(reversed(kept))
    replace.initializer.extend(tensor for tensor in graph.initializer if tensor.name in needed)
    del graph.node[:]
    del graph.initializer[:]
    graph.node.extend(replace.node)
    graph.initializer.extend(replace.initializer)

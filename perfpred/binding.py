"""Binding: a sorted ONNX graph walked once, shapes inferred node by node, what is constant folded away."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
import onnx
from onnx import TensorProto, TypeProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from perfpred.errors import NetworkError, UnboundDimensionError, UnsupportedOperatorError, UsageError, first_line
from perfpred.layer import DTYPE_BITS, Node, TensorSpec
from perfpred.shapes import inferred_types, static_shape

#: Values up to this many elements are followed through the graph; it covers shapes, axes, indices and masks of shapes.
_FOLLOWED_ELEMENTS: Final = 4096
_CONTROL_FLOW: Final = frozenset({"Loop", "Scan", "If"})
_QUANTIZE: Final = frozenset({"QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear"})

Bound = tuple[tuple[Node, ...], tuple[TensorSpec, ...], tuple[TensorSpec, ...]]


def bind_graph(
    graph: onnx.GraphProto,
    *,
    label: str,
    opsets: Mapping[str, int],
    batch_size: int | None,
    shapes: Mapping[str, Sequence[int]],
) -> Bound:
    """Nodes that run, inputs and outputs of a topologically sorted graph, all with static shapes.

    Args:
        graph: Sorted, functions inlined.
        label: Name used in errors.
        opsets: Operator-set version by domain.
        batch_size: Value of the first dimension of every input; `None` keeps a fixed one, 1 for a dynamic one.
        shapes: Full input shapes by name; they win.

    Raises:
        NetworkError: See `perfpred.network.load_network`.
    """
    return _Binder(label, graph, opsets).bind(batch_size, shapes)


@dataclass
class _Value:
    """What is known of a tensor while walking the graph."""

    spec: TensorSpec
    proto: TypeProto
    data: np.ndarray[Any, Any] | None = None


@dataclass
class _Binder:
    """Walks a sorted graph once, inferring shapes node by node and folding what is constant."""

    label: str
    graph: onnx.GraphProto
    opsets: Mapping[str, int]
    values: dict[str, _Value] = field(default_factory=dict)
    nodes: list[Node] = field(default_factory=list)
    taken: set[str] = field(default_factory=set)

    def bind(self, batch_size: int | None, shapes: Mapping[str, Sequence[int]]) -> Bound:
        self.declared = {v.name: v.type for v in [*self.graph.value_info, *self.graph.output]}
        for initializer in self.graph.initializer:
            self._add_initializer(initializer)
        feeds = [i for i in self.graph.input if i.name not in self.values]
        if not feeds:
            raise NetworkError(f"{self.label}: the graph has no input; export it with at least one")
        unknown = set(shapes) - {i.name for i in feeds}
        if unknown:
            raise UsageError(
                f"{self.label}: --input names {', '.join(sorted(unknown))}, but the inputs are "
                f"{', '.join(i.name for i in feeds)}"
            )
        bound = self._bind_inputs(feeds, batch_size, shapes)
        self._walk(self.graph.node)
        missing = [o.name for o in self.graph.output if o.name not in self.values]
        if missing:
            raise NetworkError(f"{self.label}: output '{missing[0]}' is written by no node; export the network again")
        used = self._reachable()
        return (
            tuple(n for n, keep in zip(self.nodes, used, strict=True) if keep),
            tuple(bound),
            tuple(self.values[o.name].spec for o in self.graph.output),
        )

    def _reachable(self) -> list[bool]:
        wanted = {o.name for o in self.graph.output}
        keep = [False] * len(self.nodes)
        for i in range(len(self.nodes) - 1, -1, -1):
            node = self.nodes[i]
            if any(t.name in wanted for t in node.outputs):
                keep[i] = True
                wanted.update(t.name for t in node.activations)
        return keep

    def _add_initializer(self, tensor: TensorProto) -> None:
        shape = tuple(tensor.dims)
        data = None
        small = int(np.prod(shape, dtype=np.int64)) <= _FOLLOWED_ELEMENTS
        if small and tensor.data_location != TensorProto.EXTERNAL:
            try:
                data = numpy_helper.to_array(tensor)
            except (ValueError, TypeError) as error:
                raise NetworkError(
                    f"{self.label}: initializer '{tensor.name}' is damaged ({first_line(error)}); export again"
                ) from error
        self._set(tensor.name, shape, tensor.data_type, constant=True, data=data)

    def _set(
        self,
        name: str,
        shape: tuple[int, ...],
        element_type: int,
        *,
        constant: bool = False,
        data: np.ndarray[Any, Any] | None = None,
    ) -> TensorSpec:
        spec = TensorSpec(name=name, shape=shape, dtype=_dtype_name(element_type), constant=constant)
        self.values[name] = _Value(spec, helper.make_tensor_type_proto(element_type, list(shape)), data)
        return spec

    def _bind_inputs(
        self,
        feeds: Sequence[onnx.ValueInfoProto],
        batch_size: int | None,
        shapes: Mapping[str, Sequence[int]],
    ) -> list[TensorSpec]:
        bound: list[TensorSpec] = []
        symbols: dict[str, int] = {}
        for feed in feeds:
            if feed.type.HasField("tensor_type") and feed.name in shapes:
                dims = feed.type.tensor_type.shape.dim
                given = shapes[feed.name]
                if feed.type.tensor_type.HasField("shape") and len(given) != len(dims):
                    raise UsageError(
                        f"{self.label}: --input {feed.name} has {len(given)} dimensions, the network's has {len(dims)}"
                    )
                symbols.update({d.dim_param: v for d, v in zip(dims, given, strict=False) if d.dim_param})
        for feed in feeds:
            if not feed.type.HasField("tensor_type"):
                raise NetworkError(f"{self.label}: input '{feed.name}' is not a tensor; export it as one")
            tensor_type = feed.type.tensor_type
            if feed.name in shapes:
                shape = tuple(int(v) for v in shapes[feed.name])
            elif not tensor_type.HasField("shape"):
                raise UnboundDimensionError(
                    f"{self.label}: input '{feed.name}' has no shape; bind it with --input {feed.name}:1x3x224x224"
                )
            else:
                shape = tuple(
                    self._dimension(feed.name, axis, dim, batch_size, symbols)
                    for axis, dim in enumerate(tensor_type.shape.dim)
                )
            for axis, value in enumerate(shape):
                if value < 1:
                    raise NetworkError(
                        f"{self.label}: dimension {axis} of input '{feed.name}' is {value}; give a positive one "
                        f"with --input {feed.name}:{'x'.join(str(max(v, 1)) for v in shape)}"
                    )
            bound.append(self._set(feed.name, shape, tensor_type.elem_type))
        return bound

    def _dimension(
        self,
        name: str,
        axis: int,
        dim: onnx.TensorShapeProto.Dimension,
        batch_size: int | None,
        symbols: dict[str, int],
    ) -> int:
        if dim.dim_param and dim.dim_param in symbols:
            return symbols[dim.dim_param]
        fixed = dim.HasField("dim_value") and dim.dim_value >= 0
        if axis == 0 and (batch_size is not None or not fixed):
            value = batch_size or 1
            if dim.dim_param:
                symbols[dim.dim_param] = value
            return int(value)
        if fixed:
            return int(dim.dim_value)
        shown = dim.dim_param or f"#{axis}"
        raise UnboundDimensionError(
            f"{self.label}: dimension '{shown}' (axis {axis}) of input '{name}' is dynamic; "
            f"bind it with --input {name}:1x3x224x224 (its full shape)"
        )

    def _walk(self, nodes: Iterable[onnx.NodeProto], rename: Mapping[str, str] | None = None) -> None:
        for index, node in enumerate(nodes):
            if rename:
                node = _renamed(node, rename)
            missing = [i for i in node.input if i and i not in self.values]
            if missing:
                raise NetworkError(
                    f"{self.label}: node '{node.name or node.op_type}' ({node.op_type}) reads '{missing[0]}', which "
                    "nothing writes before it: the graph has a cycle or is cut; export it again"
                )
            if node.op_type in _CONTROL_FLOW and node.domain in ("", "ai.onnx"):
                self._branch(node)
            else:
                self._node(node, index)

    def _branch(self, node: onnx.NodeProto) -> None:
        condition = self.values[node.input[0]].data if node.op_type == "If" and node.input else None
        if condition is None:
            raise UnsupportedOperatorError(
                f"{self.label}: control flow {node.op_type} (node '{node.name}') can't be bound to one static graph; "
                "export the branch that runs, or fold it with a fixed input"
            )
        wanted = "then_branch" if bool(np.asarray(condition).ravel()[0]) else "else_branch"
        body = next(a.g for a in node.attribute if a.name == wanted)
        for initializer in body.initializer:
            self._add_initializer(initializer)
        rename = {inner.name: outer for inner, outer in zip(body.output, node.output, strict=True)}
        for inner, outer in rename.items():
            if inner in self.values:
                self.values[outer] = self.values[inner]
        self._walk(body.node, rename)

    def _node(self, node: onnx.NodeProto, index: int) -> None:
        reads = [self.values[i] for i in node.input if i]
        if node.op_type == "Constant" and node.domain in ("", "ai.onnx"):
            self._constant(node)
            return
        if node.op_type in ("Shape", "Size") and node.domain in ("", "ai.onnx"):
            self._shape_of(node, reads[0].spec)
            return
        followed = all(v.data is not None for v in reads)
        if followed and node.op_type not in _QUANTIZE and self._evaluate(node):
            return
        folded = bool(reads or not node.input) and all(v.spec.constant for v in reads)
        specs = self._infer(node, constant=folded)
        if folded and node.op_type not in _QUANTIZE:
            return
        name = node.name or f"{node.op_type}_{index}"
        while name in self.taken:
            name = f"{name}_{index}"
        self.taken.add(name)
        self.nodes.append(
            Node(
                name=name,
                op_type=node.op_type,
                domain="" if node.domain == "ai.onnx" else node.domain,
                inputs=tuple(self.values[i].spec if i else None for i in node.input),
                outputs=tuple(specs),
                attributes=_attributes(node),
            )
        )

    def _constant(self, node: onnx.NodeProto) -> None:
        attribute = node.attribute[0]
        if attribute.name == "value":
            tensor = TensorProto()
            tensor.CopyFrom(attribute.t)
            tensor.name = node.output[0]
            self._add_initializer(tensor)
            return
        data = np.asarray(
            helper.get_attribute_value(attribute),
            dtype=np.float32 if "float" in attribute.name else np.int64 if "int" in attribute.name else None,
        )
        if data.dtype.kind not in "if":
            raise UnsupportedOperatorError(f"{self.label}: string constant '{node.output[0]}'; export without strings")
        self._set(node.output[0], data.shape, helper.np_dtype_to_tensor_dtype(data.dtype), constant=True, data=data)

    def _shape_of(self, node: onnx.NodeProto, spec: TensorSpec) -> None:
        if node.op_type == "Size":
            data = np.asarray(spec.elements, dtype=np.int64)
        else:
            bounds = {a.name: a.i for a in node.attribute}
            data = np.asarray(spec.shape[bounds.get("start", 0) : bounds.get("end")], dtype=np.int64)
        self._set(node.output[0], data.shape, TensorProto.INT64, constant=True, data=data)

    def _evaluate(self, node: onnx.NodeProto) -> bool:
        """Computes a node on followed values; False where the reference can't, or the result is too large to follow."""
        feeds = {i: self.values[i].data for i in node.input if i}
        try:
            results = ReferenceEvaluator(node, opsets=dict(self.opsets)).run(None, feeds)
        except Exception:  # noqa: BLE001  the reference raises whatever numpy does; shape inference then decides
            return False
        for name, result in zip(node.output, results, strict=False):
            data = np.asarray(result)
            if not name:
                continue
            try:
                element_type = helper.np_dtype_to_tensor_dtype(data.dtype)
            except (KeyError, ValueError):
                return False
            followed = data if data.size <= _FOLLOWED_ELEMENTS else None
            self._set(name, data.shape, element_type, constant=True, data=followed)
        return True

    def _infer(self, node: onnx.NodeProto, *, constant: bool) -> list[TensorSpec]:
        reads = {i: self.values[i] for i in node.input if i}
        found = inferred_types(
            node,
            {i: value.proto for i, value in reads.items()},
            {i: value.data for i, value in reads.items() if value.data is not None},
            label=self.label,
            opsets=self.opsets,
            declared=self.declared,
        )
        specs = []
        for name in node.output:
            if not name:
                continue
            proto = found.get(name)
            shape = static_shape(proto) if proto is not None else None
            if proto is None or shape is None:
                declared = self.declared.get(name)
                declared_shape = static_shape(declared) if declared is not None else None
                if declared is None or declared_shape is None:
                    raise NetworkError(
                        f"{self.label}: shape inference fails at node '{node.name or node.output[0]}' ({node.op_type}): "
                        f"output '{name}' has no static shape; bind its inputs with --input, or export with fixed shapes"
                    )
                proto, shape = declared, declared_shape
            specs.append(self._set(name, shape, proto.tensor_type.elem_type, constant=constant))
        return specs


def _renamed(node: onnx.NodeProto, rename: Mapping[str, str]) -> onnx.NodeProto:
    copy = onnx.NodeProto()
    copy.CopyFrom(node)
    copy.input[:] = [rename.get(i, i) for i in node.input]
    copy.output[:] = [rename.get(o, o) for o in node.output]
    return copy


def _dtype_name(element_type: int) -> str:
    name = TensorProto.DataType.Name(element_type).lower()
    name = {"float": "float32", "double": "float64"}.get(name, name)
    return name if name in DTYPE_BITS else "uint8" if name.startswith("float8") else "string"


def _attributes(node: onnx.NodeProto) -> dict[str, Any]:
    """Attributes as plain values; tensors and subgraphs carry no cost and are left out."""
    found: dict[str, Any] = {}
    for attribute in node.attribute:
        if attribute.type in (
            onnx.AttributeProto.GRAPH,
            onnx.AttributeProto.GRAPHS,
            onnx.AttributeProto.TENSOR,
        ):
            continue
        value = helper.get_attribute_value(attribute)
        if isinstance(value, bytes):
            value = value.decode("utf-8", "replace")
        elif isinstance(value, (list, tuple)) or (hasattr(value, "__len__") and not isinstance(value, str)):
            value = tuple(v.decode("utf-8", "replace") if isinstance(v, bytes) else v for v in value)
        found[attribute.name] = value
    return found

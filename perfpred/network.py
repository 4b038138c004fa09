"""An ONNX file becomes a network: nodes in topological order, every tensor with a static shape.

Weights are never needed: a float initializer may point to external data that is absent. Computations that
depend on constants and shapes alone are folded away, as every engine does before it builds.
"""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Final

import onnx
import onnx_ir as ir
from google.protobuf.message import DecodeError
from onnx_ir.passes.common import InlinePass

from perfpred.binding import bind_graph
from perfpred.errors import NetworkError, UsageError, first_line
from perfpred.layer import Node, TensorSpec

_QUANTIZE: Final = frozenset({"QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear"})
_FLOATS: Final = ("float16", "bfloat16", "float32", "float64")
_PRECISION_DTYPE: Final[Mapping[str, str]] = {
    "fp32": "float32",
    "tf32": "float32",
    "fp16": "float16",
    "bf16": "bfloat16",
    "int8": "int8",
    "fp8": "float8e4m3fn",
}


@dataclass(frozen=True, kw_only=True)
class Network:
    """A graph of nodes with static shapes.

    Attributes:
        name: File name without folder, or the name given.
        nodes: Topological order; constant computations are already folded away.
        inputs: Tensors the caller feeds.
        outputs: Tensors the caller reads.
        opset: Version of the default operator domain.
        batch_size: First dimension of the first input.
    """

    name: str
    nodes: tuple[Node, ...]
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    opset: int
    batch_size: int

    @cached_property
    def _producers(self) -> dict[str, Node]:
        return {t.name: node for node in self.nodes for t in node.outputs}

    @cached_property
    def _consumers(self) -> dict[str, list[Node]]:
        found: dict[str, list[Node]] = {}
        for node in self.nodes:
            for t in node.inputs:
                if t is not None and not t.constant:
                    users = found.setdefault(t.name, [])
                    if not users or users[-1] is not node:
                        users.append(node)
        return found

    def producer(self, tensor: str) -> Node | None:
        """Node that writes the tensor; `None` for inputs of the network and constants."""
        return self._producers.get(tensor)

    def consumers(self, tensor: str) -> Sequence[Node]:
        """Nodes that read the tensor, in topological order, each once."""
        return self._consumers.get(tensor, ())

    @cached_property
    def output_names(self) -> frozenset[str]:
        """Names of the network's outputs."""
        return frozenset(t.name for t in self.outputs)

    @cached_property
    def precision(self) -> str:
        """The graph's own precision: int8 where it holds quantised operators, else its commonest float type."""
        if any(n.op_type in _QUANTIZE or n.op_type.startswith(("QLinear", "QGemm")) for n in self.nodes):
            return "int8"
        counts = Counter(t.dtype for n in self.nodes for t in n.outputs if t.dtype in _FLOATS)
        commonest = counts.most_common(1)[0][0] if counts else "float32"
        return {"float16": "fp16", "bfloat16": "bf16"}.get(commonest, "fp32")

    @property
    def quantized(self) -> bool:
        """Whether the graph itself says what runs in int8 (Q/DQ or QLinear operators)."""
        return self.precision == "int8"

    @property
    def parameters(self) -> int:
        """Number of float and quantised weights, each tensor once."""
        weights = {
            t.name: t.elements for n in self.nodes for t in n.weights if t.dtype not in ("int64", "int32", "bool")
        }
        return sum(weights.values())

    def with_precision(self, precision: str) -> Network:
        """The network as an engine of that precision would hold it: float tensors recast.

        A graph that is quantised itself keeps its int8 tensors and has the rest in fp16 where int8 is asked for;
        a float graph built in int8 is taken as int8 throughout, since nothing says where the builder would not.
        """
        target = _PRECISION_DTYPE[precision]
        if precision == "int8" and self.quantized:
            target = "float16"
        table: dict[TensorSpec, TensorSpec] = {}

        def cast(t: TensorSpec) -> TensorSpec:
            if t.dtype not in _FLOATS or t.dtype == target:
                return t
            made = table.get(t)
            if made is None:
                made = table[t] = replace(t, dtype=target)
            return made

        nodes = tuple(
            replace(
                n,
                inputs=tuple(None if t is None else cast(t) for t in n.inputs),
                outputs=tuple(cast(t) for t in n.outputs),
            )
            for n in self.nodes
        )
        return replace(
            self,
            nodes=nodes,
            inputs=tuple(cast(t) for t in self.inputs),
            outputs=tuple(cast(t) for t in self.outputs),
        )


@contextmanager
def roles_accepted() -> Iterator[None]:
    """Silences what onnx says of the roles that weight-free graphs keep beside the locations of weights."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Ignoring unknown external data key")
        yield


def load_network(
    source: str | Path | onnx.ModelProto,
    *,
    batch_size: int | None = None,
    inputs: Mapping[str, Sequence[int]] | None = None,
    name: str | None = None,
) -> Network:
    """Reads an ONNX file and binds it to static shapes.

    Args:
        source: File or model; external weights may be absent.
        batch_size: Value of the first dimension of every input where it is dynamic. A fixed first dimension
            is changed where the graph allows it. `None` keeps a fixed one and takes 1 for a dynamic one.
        inputs: Full shapes by input name; they win over `batch_size`.
        name: Name to report; the file's by default.

    Raises:
        UsageError: The batch size or an input shape can't be used.
        UnboundDimensionError: A dynamic dimension is left; names it and the flag that binds it.
        UnsupportedOperatorError: An operator of unknown shape, or control flow that doesn't fold away.
        NetworkError: The file can't be read, has a cycle, or shape inference fails; names the node.
    """
    if batch_size is not None and batch_size < 1:
        raise UsageError(f"batch size {batch_size} is not positive; give --batch-size 1 or more")
    model = _read(source)
    label = name or (Path(source).name if isinstance(source, (str, Path)) else model.graph.name or "network")
    try:
        with roles_accepted():
            parsed = ir.serde.deserialize_model(model)
        if parsed.functions:
            InlinePass()(parsed)
        parsed.graph.sort()
        graph = ir.serde.serialize_graph(parsed.graph)
    except ValueError as error:
        if "cycle" in str(error).lower():
            raise NetworkError(f"{label}: the graph has a cycle; export it again, ONNX graphs are acyclic") from error
        raise NetworkError(f"{label}: not a valid ONNX graph ({first_line(error)}); export it again") from error
    except (KeyError, AttributeError, TypeError, RuntimeError) as error:
        raise NetworkError(f"{label}: not a valid ONNX graph ({first_line(error)}); export it again") from error
    opsets = {o.domain: o.version for o in model.opset_import}
    opsets.update({d: v for d, v in parsed.opset_imports.items() if d not in opsets})
    nodes, bound, outputs = bind_graph(
        graph, label=label, opsets=opsets, batch_size=batch_size, shapes=dict(inputs or {})
    )
    return Network(
        name=label,
        nodes=nodes,
        inputs=bound,
        outputs=outputs,
        opset=opsets.get("", 1),
        batch_size=bound[0].shape[0] if bound[0].shape else 1,
    )


def _read(source: str | Path | onnx.ModelProto) -> onnx.ModelProto:
    if isinstance(source, onnx.ModelProto):
        return source
    path = Path(source)
    try:
        data = path.read_bytes()
    except IsADirectoryError as error:
        raise NetworkError(f"{path}: is a folder; name the .onnx file in it") from error
    except OSError as error:
        raise NetworkError(f"{path}: can't be read ({error.strerror}); check the path") from error
    if not data:
        raise NetworkError(f"{path}: the file is empty; export the network again")
    model = onnx.ModelProto()
    try:
        model.ParseFromString(data)
    except DecodeError as error:
        raise NetworkError(f"{path}: not an ONNX file, or a truncated one; export or copy it again") from error
    if not model.graph.node or not model.opset_import:
        raise NetworkError(f"{path}: holds no ONNX graph; export the network again")
    return model

"""Exports a network of the zoo to a weight-free ONNX graph with a symbolic batch axis."""

from __future__ import annotations

import io
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import onnx
import torch
from onnx import ModelProto

from perfpred.weights import strip_weights
from perfpred.zoo import NetworkSpec
from perfpred.zoo.simplify import simplify

OPSETS = (17, 18, 20)  # the oldest that holds the network's operators: older engines read no newer ones
BATCH_AXIS = "batch"
_INITIALISERS = ("normal_", "uniform_", "trunc_normal_", "erfinv_", "exponential_")
_SMALL = 256


@contextmanager
def random_initialisation_skipped() -> Iterator[None]:
    """Make random tensor initialisation a no-op: weights are dropped after the export anyway."""
    saved = {name: getattr(torch.Tensor, name) for name in _INITIALISERS if hasattr(torch.Tensor, name)}

    def unchanged(tensor: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        return tensor

    try:
        for name in saved:
            setattr(torch.Tensor, name, unchanged)
        yield
    finally:
        for name, method in saved.items():
            setattr(torch.Tensor, name, method)


def _give_values(module: torch.nn.Module, seed: int) -> None:
    """Give small parameters sensible values and large ones any, all distinct: the exporter merges equal tensors."""
    generator = torch.Generator().manual_seed(seed)
    tensors = [*module.named_parameters(), *module.named_buffers()]
    for index, (name, tensor) in enumerate(tensors):
        distinct = 0.01 + 1e-5 * index
        if name.endswith("running_var"):
            tensor.data.fill_(1 + distinct)
        elif name.endswith("running_mean"):
            tensor.data.fill_(distinct)
        elif not isinstance(tensor, torch.nn.Parameter) or not tensor.is_floating_point():
            continue
        elif tensor.numel() > _SMALL:
            tensor.data.fill_(distinct)
        else:
            pattern = torch.randn(16, generator=generator) * 0.1  # repeated, so that it compresses
            values = pattern.repeat(tensor.numel() // 16 + 1)[: tensor.numel()].reshape(tensor.shape)
            if tensor.ndim > 1:
                values *= 10 * tensor[0].numel() ** -0.5
            tensor.data.copy_(values + (name.endswith("weight") and tensor.ndim == 1))


def export(spec: NetworkSpec) -> ModelProto:
    """Return the weight-free graph of a network: opset 17 where it suffices, batch axis `batch`, shape computations folded.

    Batch normalisation is folded into convolutions where the exporter does so by default in evaluation mode.
    """
    with random_initialisation_skipped(), warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        module, inputs = spec.build()
        module.eval()
        _give_values(module, zlib.crc32(spec.name.encode()))
        model = _trace(module, inputs, spec.input_names)
    return finish(model, spec.name)


def _trace(module: torch.nn.Module, inputs: tuple[torch.Tensor, ...], names: tuple[str, ...]) -> ModelProto:
    for opset in OPSETS:
        buffer = io.BytesIO()
        try:
            torch.onnx.export(
                module,
                inputs,
                buffer,
                dynamo=False,
                opset_version=opset,
                input_names=list(names),
                dynamic_axes={name: {0: BATCH_AXIS} for name in names},
            )
            return onnx.load_from_string(buffer.getvalue())
        except torch.onnx.errors.UnsupportedOperatorError:
            if opset == OPSETS[-1]:
                raise
    raise AssertionError("OPSETS is empty")


def finish(model: ModelProto, name: str) -> ModelProto:
    """Simplify, strip and tidy an exported graph."""
    graph = simplify(strip_weights(model)).graph
    for node in graph.node:
        node.ClearField("doc_string")
    graph.name = name
    for value in graph.output:
        value.type.tensor_type.ClearField("shape")
    finished = onnx.helper.make_model(graph, producer_name="perfpred", opset_imports=model.opset_import, ir_version=8)
    return strip_weights(finished)

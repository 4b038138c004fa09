"""Probe networks: unrelated single layers at drawn sizes, many to a network, so that one engine times them all.

Every branch takes the start of one flat input and applies one layer of the network's subject, with the neighbours
that engines fuse into it; every result is an output. Layers are drawn with seeds until their work comes near a target
that is uniform in its logarithm. They are for training the predictors of layers and never tested: nothing imitates a
network anyone runs.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from itertools import count

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from perfpred.zoo import NetworkSpec, register
from perfpred.zoo.draw import Draw
from perfpred.zoo.own import LICENCE
from perfpred.zoo.probe_convolutions import (
    conv1d,
    conv2d,
    conv3d,
    deconv2d,
    filter1d,
    grouped2d,
    recurrent,
    resize,
)
from perfpred.zoo.probe_draws import Layer, LayerDraw
from perfpred.zoo.probe_movement import movement
from perfpred.zoo.probe_outlying import outlying, plain_linear
from perfpred.zoo.probe_tensors import attention, gemm, norm, pointwise, reduction

LARGEST_INPUT = 3 << 19
LEAST_WORK, MOST_FLOPS, MOST_BYTES = 1e6, 4e9, 16e6
MOST_NETWORK_FLOPS, MOST_PARAMETERS = 2e10, 4e7
# subject -> what draws its layers, how many networks, least and most layers of each
SUBJECTS: dict[str, tuple[LayerDraw, int, tuple[int, int]]] = {
    "conv1d": (conv1d, 40, (10, 24)),
    "filter1d": (filter1d, 36, (10, 24)),
    "recurrent": (recurrent, 34, (6, 10)),
    "conv3d": (conv3d, 28, (10, 16)),
    "conv2d": (conv2d, 150, (10, 24)),
    "grouped2d": (grouped2d, 80, (10, 24)),
    "deconv2d": (deconv2d, 34, (10, 20)),
    "gemm": (gemm, 60, (10, 24)),
    "attention": (attention, 32, (10, 16)),
    "norm": (norm, 24, (10, 24)),
    "reduction": (reduction, 16, (12, 24)),
    "pointwise": (pointwise, 22, (12, 24)),
    "movement": (movement, 28, (12, 24)),
    "resize": (resize, 18, (10, 24)),
    "outlying": (outlying, 64, (10, 20)),
    "linear": (plain_linear, 20, (8, 16)),
}
_ATTEMPTS = 16
_BYTES_WIDTH = 2  # float16
_FLOPS_PER_BYTE = 50  # operations that take as long as a byte, roughly, on what engines run on


class Probe(nn.Module):
    """Layers side by side over parts of one flat input."""

    def __init__(self, layers: Sequence[Layer]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layer.module for layer in layers)
        self.shapes = [layer.shapes for layer in layers]

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Map (N, M) to the results of all layers."""
        outputs: list[Tensor] = []
        for module, shapes in zip(self.layers, self.shapes, strict=True):
            start, operands = 0, []
            for shape in shapes:
                end = start + math.prod(shape)
                part = x[:, start:end]
                operands.append(part.reshape(-1, *shape) if len(shape) > 1 else part)
                start = end
            result = module(*operands)
            outputs += [result] if isinstance(result, Tensor) else result
        return tuple(outputs)


def input_size(layer: Layer) -> int:
    """Return how many numbers a layer takes from the input."""
    return sum(map(math.prod, layer.shapes))


def parameters(layer: Layer) -> int:
    """Return the number of a layer's parameters."""
    return sum(parameter.numel() for parameter in layer.module.parameters())


def work(layer: Layer) -> tuple[int, int]:
    """Return FLOPs and float16 bytes moved at batch 1, without computing anything; the layer is on the meta device."""
    moved = input_size(layer) + parameters(layer)
    for cell in layer.module.modules():
        if isinstance(cell, nn.RNNBase):  # unrolled step by step otherwise
            steps = layer.shapes[0][0]
            return 2 * steps * parameters(layer), _BYTES_WIDTH * (moved + steps * cell.hidden_size)
    with torch.device("meta"), torch.no_grad(), FlopCounterMode(display=False) as counter:
        result = layer.module.eval()(*(torch.empty(1, *shape) for shape in layer.shapes))
    results = [result] if isinstance(result, Tensor) else result
    return counter.get_total_flops(), _BYTES_WIDTH * (moved + sum(out.numel() for out in results))


def _nearest(draw: LayerDraw, seed: str) -> tuple[str, Layer, int] | None:
    """Seed, layer on the meta device and FLOPs of the draw nearest to a target of work; None where none is allowed."""
    target = math.exp(Draw(seed).uniform(math.log(LEAST_WORK), math.log(MOST_FLOPS)))
    best, least = None, math.inf
    for attempt in range(_ATTEMPTS):
        name = f"{seed}-{attempt}"
        with torch.device("meta"):
            layer = draw(Draw(name))
        if input_size(layer) > LARGEST_INPUT:
            continue
        flops, moved = work(layer)
        if flops > MOST_FLOPS or moved > MOST_BYTES:
            continue
        distance = abs(math.log((flops + _FLOPS_PER_BYTE * moved) / target))
        if distance < least:
            best, least = (name, layer, flops), distance
        if least < math.log(2):
            break
    return best


def layer_seeds(subject: str, index: int) -> list[str]:
    """Return the seeds of the layers of network `index` of a subject: distinct layers, within the network's budget."""
    draw, _, (fewest, most) = SUBJECTS[subject]
    wanted = Draw(f"probe-{subject}-{index}").randint(fewest, most)
    seeds: list[str] = []
    keys: set[str] = set()
    flops_left, parameters_left = MOST_NETWORK_FLOPS, MOST_PARAMETERS
    for position in count():
        if len(seeds) == wanted:
            return seeds
        found = _nearest(draw, f"probe-{subject}-{index}-{position}")
        if found is None:
            continue
        seed, layer, flops = found
        if layer.key in keys or flops > flops_left or parameters(layer) > parameters_left:
            continue
        seeds.append(seed)
        keys.add(layer.key)
        flops_left -= flops
        parameters_left -= parameters(layer)
    raise AssertionError("count() never ends")


def probe(subject: str, index: int) -> tuple[nn.Module, tuple[Tensor, ...]]:
    """Build network `index` of a subject."""
    layers = [SUBJECTS[subject][0](Draw(seed)) for seed in layer_seeds(subject, index)]
    return Probe(layers).eval(), (torch.randn(2, max(map(input_size, layers))),)


for _subject, (_draw, _count, _range) in SUBJECTS.items():
    for _index in range(_count):
        register(
            NetworkSpec(
                name=f"probe.{_subject}-{_index:03d}",
                family=f"probe-{_subject}",
                lineage="probe",
                source="own single layers",
                licence=LICENCE,
                build=partial(probe, _subject, _index),
            )
        )

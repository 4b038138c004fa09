"""Registration of the networks whose builders are our own."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from perfpred.zoo import NetworkSpec, register

LICENCE = "own builder, Apache-2.0"


def own(
    name: str,
    family: str,
    lineage: str,
    source: str,
    build: Callable[[], nn.Module],
    *shapes: tuple[int, ...],
    input_names: tuple[str, ...] = (),
    integer_below: int = 0,
) -> None:
    """Register a network of ours.

    Args:
        name: `collection.network`.
        family: family of the network.
        lineage: lineage of the family.
        source: paper or study that describes the architecture.
        build: makes the module; called only when the network is exported.
        *shapes: shape of each input without the batch axis.
        input_names: one name per input; `input`, `input_1`, … when left out.
        integer_below: inputs are int64 indices below this bound when positive, else float32.
    """

    def example(shape: tuple[int, ...]) -> torch.Tensor:
        if integer_below:
            return torch.zeros(2, *shape, dtype=torch.int64)
        return torch.randn(2, *shape)

    def make() -> tuple[nn.Module, tuple[torch.Tensor, ...]]:
        return build().eval(), tuple(example(shape) for shape in shapes)

    names = input_names or tuple("input" if index == 0 else f"input_{index}" for index in range(len(shapes)))
    register(
        NetworkSpec(
            name=name,
            family=family,
            lineage=lineage,
            source=source,
            licence=LICENCE,
            build=make,
            input_names=names,
        )
    )

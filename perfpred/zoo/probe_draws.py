"""What a probe network is made of: one layer with its operands, and the draws that all subjects share."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from perfpred.zoo.blocks import Activation
from perfpred.zoo.draw import Draw

Shape = tuple[int, ...]
_STEPS = (4, 8, 8, 8, 16, 32, 64)
_ACTIVATIONS: tuple[Activation, ...] = (
    *(nn.ReLU,) * 6,
    *(nn.SiLU,) * 3,
    *(nn.GELU,) * 2,
    *(nn.Identity,) * 4,
    *(nn.Tanh, nn.Sigmoid, nn.PReLU, nn.LeakyReLU, nn.Hardswish, nn.ReLU6, nn.ELU, nn.Mish),
)


@dataclass(frozen=True, kw_only=True)
class Layer:
    """One layer and the shapes of its operands without the batch axis."""

    module: nn.Module
    shapes: tuple[Shape, ...]

    @property
    def key(self) -> str:
        """Text that differs where the layers do: equal ones would be merged into one."""
        return f"{self.module} of {self.shapes}"


LayerDraw = Callable[[Draw], Layer]


class Apply(nn.Module):
    """Applies a function with fixed further arguments."""

    def __init__(self, function: Callable[..., Any], *arguments: Any, **named: Any) -> None:
        super().__init__()
        self.function, self.arguments, self.named = function, arguments, named

    def extra_repr(self) -> str:
        """Name of the function and its arguments."""
        return f"{self.function.__name__}, {self.arguments}, {self.named}"

    def forward(self, *operands: Tensor) -> Any:
        """Call the function on the operands."""
        return self.function(*operands, *self.arguments, **self.named)


def layer(module: nn.Module, *shapes: Shape) -> Layer:
    """Return a layer over operands of these shapes."""
    return Layer(module=module, shapes=shapes)


def applied(*shapes: Shape, function: Callable[..., Any], arguments: tuple[Any, ...] = (), **named: Any) -> Layer:
    """Return a layer that applies a function to operands of these shapes."""
    return layer(Apply(function, *arguments, **named), *shapes)


def spread(draw: Draw, low: int, high: int) -> int:
    """Return an integer, uniform in its logarithm."""
    return min(max(round(math.exp(draw.uniform(math.log(low), math.log(high)))), low), high)


def size(draw: Draw, low: int, high: int) -> int:
    """Return a width, uniform in its logarithm: a multiple of 4 to 64 in three cases of four, where it is large enough."""
    value = spread(draw, low, high)
    steps = [step for step in _STEPS if step <= value]
    step = draw.choice(steps) if steps and draw.chance(0.75) else 1
    return round(value / step) * step


def edges(draw: Draw, low: int, high: int, dims: int = 2) -> Shape:
    """Return the edges of an image: equal ones in six cases of ten."""
    edge = size(draw, low, high)
    if draw.chance(0.6):
        return (edge,) * dims
    return tuple(size(draw, max(edge // 4, low), min(edge * 4, high)) for _ in range(dims))


def shape_of(draw: Draw, rank: int, most: int = 1 << 20) -> Shape:
    """Return a shape of any proportions, of 256 to `most` elements but for rounding."""
    left = spread(draw, 256, most)
    shape = []
    for axis in range(rank, 1, -1):
        part = min(size(draw, 2, max(round(left ** (1.6 / axis)), 3)), left)
        shape.append(part)
        left = max(left // part, 1)
    shape.append(left)
    draw.shuffle(shape)
    return tuple(shape)


def activation(draw: Draw) -> nn.Module:
    """Return an activation, the usual ones more often."""
    return draw.choice(_ACTIVATIONS)()

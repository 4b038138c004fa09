"""Seeded draws of what a synthetic network is made of: sizes, widths, kernels, normalisation, activation."""

from __future__ import annotations

import math
import random
from functools import partial

from torch import nn

from perfpred.zoo.blocks import Activation

_EDGES = (24, 28, 32, 40, 48, 56, 63, 64, 80, 97, 100, 112, 127, 128, 150, 160, 176, 192, 200, 224, 225, 240, 256)
_LARGE_EDGES = (288, 299, 300, 320, 333, 360, 384, 416, 448, 480, 512, 540, 640)
_ACTIVATIONS: tuple[Activation, ...] = (
    nn.ReLU,
    nn.ReLU,
    nn.ReLU,
    nn.SiLU,
    nn.SiLU,
    nn.GELU,
    nn.ReLU6,
    nn.Hardswish,
    nn.Mish,
    nn.ELU,
    nn.Sigmoid,
    nn.Tanh,
    nn.PReLU,
    nn.Softplus,
    nn.Identity,
    partial(nn.LeakyReLU, 0.1),
)
_NORMS = ("batch",) * 7 + ("none",) * 3 + ("group", "instance")


class Draw(random.Random):
    """Random draws of one network; its style (activation and normalisation) stays the same throughout."""

    def __init__(self, seed: str) -> None:
        super().__init__(seed)
        self.act = self.choice(_ACTIVATIONS)
        self.norm = self.choice(_NORMS)

    def chance(self, probability: float) -> bool:
        """Return True with a probability."""
        return self.random() < probability

    def image(self, *, largest: int = 640, multiple: int = 1) -> tuple[int, int]:
        """Return height and width: square in six cases of ten, large in three, else small."""
        edges = _EDGES + _LARGE_EDGES * 2 if self.chance(0.6) else _EDGES
        height, width = self.choice(edges), self.choice(edges)
        if self.chance(0.6):
            width = height
        fit = [max(min(edge, largest) // multiple, 1) * multiple for edge in (height, width)]
        return fit[0], fit[1]

    def channels(self) -> int:
        """Return the channels of the input: three in most cases."""
        return self.choice((3, 3, 3, 3, 1, 1, 2, 4, 6, 12, 16, 32))

    def width(self, low: int, high: int, multiple: int = 1) -> int:
        """Return a width, uniform in its logarithm: any integer in four cases of ten, else a multiple of 4 to 32."""
        value = math.exp(self.uniform(math.log(low), math.log(high)))
        step = 1 if self.chance(0.4) else self.choice((4, 8, 8, 8, 16, 32))
        step *= multiple // math.gcd(step, multiple)
        return max(round(value / step), 1) * step

    def kernel(self, largest: int = 11) -> int:
        """Return an odd kernel size up to `largest`, three in about half of the cases."""
        return self.choice([k for k in (1, 1, 3, 3, 3, 3, 3, 5, 5, 7, 9, 11) if k <= largest])

    def groups(self, channels: int) -> int:
        """Return a divisor of `channels` other than one where there is one."""
        divisors = [d for d in range(2, min(channels, 64) + 1) if channels % d == 0]
        return self.choice(divisors) if divisors else 1

    def normal(self, channels: int) -> list[nn.Module]:
        """Return the network's normalisation for a number of channels."""
        if self.norm == "batch":
            return [nn.BatchNorm2d(channels)]
        if self.norm == "group":
            return [nn.GroupNorm(math.gcd(channels, 8), channels)]
        if self.norm == "instance":
            return [nn.InstanceNorm2d(channels, affine=True)]
        return []

    def conv(
        self,
        in_channels: int,
        out_channels: int,
        kernel: int | tuple[int, int] = 1,
        stride: int = 1,
        *,
        groups: int = 1,
        dilation: int = 1,
        act: bool = True,
    ) -> nn.Sequential:
        """Return a convolution with "same" padding, normalisation and activation in the network's style."""
        kernels = (kernel, kernel) if isinstance(kernel, int) else kernel
        padding = (dilation * (kernels[0] - 1) // 2, dilation * (kernels[1] - 1) // 2)
        bias = self.norm == "none"
        conv = nn.Conv2d(in_channels, out_channels, kernels, stride, padding, dilation, groups=groups, bias=bias)
        return nn.Sequential(conv, *self.normal(out_channels), *([self.act()] if act else []))

    def head(self, channels: int, height: int, width: int) -> list[nn.Module]:
        """Return an output: pooled classifier, dense classifier on a small map, or a map of scores."""
        classes = self.width(2, 1000)
        if height * width <= 100 and self.chance(0.4):
            hidden = self.width(32, 1024)
            return [nn.Flatten(1), nn.Linear(channels * height * width, hidden), nn.ReLU(), nn.Linear(hidden, classes)]
        if self.chance(0.3):
            return [nn.Conv2d(channels, min(classes, 64), 1)]
        return [nn.AdaptiveAvgPool2d(1), nn.Flatten(1), nn.Linear(channels, classes)]

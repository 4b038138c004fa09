"""Feature pyramids: top-down (FPN), weighted bidirectional (BiFPN) and light depthwise path aggregation."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from perfpred.zoo.blocks import Activation, ConvNormAct, depthwise, separable


class TopDown(nn.Module):
    """FPN: lateral 1x1 convolutions, nearest upsampling, addition, 3x3 smoothing, extra strided levels."""

    def __init__(self, channels: Sequence[int], width: int, extra: int = 0, *, smooth: bool = True) -> None:
        super().__init__()
        self.lateral = nn.ModuleList([nn.Conv2d(c, width, 1) for c in channels])
        self.smooth = nn.ModuleList([nn.Conv2d(width, width, 3, 1, 1) if smooth else nn.Identity() for _ in channels])
        self.extra = nn.ModuleList([nn.Conv2d(width, width, 3, 2, 1) for _ in range(extra)])

    def forward(self, levels: list[Tensor]) -> list[Tensor]:
        """Map feature maps, finest first, to maps of one width; `extra` coarser ones follow."""
        merged = [lateral(x) for lateral, x in zip(self.lateral, levels, strict=True)]
        for index in range(len(merged) - 1, 0, -1):
            size = merged[index - 1].shape[2:]
            merged[index - 1] = merged[index - 1] + functional.interpolate(merged[index], tuple(size))
        outputs = [smooth(x) for smooth, x in zip(self.smooth, merged, strict=True)]
        for conv in self.extra:
            outputs.append(conv(outputs[-1]))
        return outputs


class WeightedSum(nn.Module):
    """Fast normalised fusion of EfficientDet, then a separable convolution."""

    def __init__(self, inputs: int, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(inputs))
        self.conv = nn.Sequential(nn.SiLU(), depthwise(width, act=None), ConvNormAct(width, width, act=None))

    def forward(self, inputs: list[Tensor]) -> Tensor:
        """Sum maps of one shape."""
        weight = self.weight.relu()
        weight = weight / (weight.sum() + 1e-4)
        total = inputs[0] * weight[0]
        for index, x in enumerate(inputs[1:], start=1):
            total = total + x * weight[index]
        fused: Tensor = self.conv(total)
        return fused


class Bidirectional(nn.Module):
    """One BiFPN layer over feature maps of one width."""

    def __init__(self, levels: int, width: int) -> None:
        super().__init__()
        self.down = nn.ModuleList([WeightedSum(2, width) for _ in range(levels - 1)])
        self.up = nn.ModuleList([WeightedSum(3 if i < levels - 2 else 2, width) for i in range(levels - 1)])
        self.pool = nn.MaxPool2d(3, 2, 1)

    def forward(self, levels: list[Tensor]) -> list[Tensor]:
        """Keep the shapes, finest first."""
        last = len(levels) - 1
        middle = list(levels)
        for i in range(last - 1, -1, -1):
            size = tuple(levels[i].shape[2:])
            middle[i] = self.down[i]([levels[i], functional.interpolate(middle[i + 1], size)])
        outputs = [middle[0]]
        for i in range(1, last + 1):
            inputs = [levels[i], self.pool(outputs[-1])]
            if i < last:
                inputs.insert(1, middle[i])
            outputs.append(self.up[i - 1](inputs))
        return outputs


class LightAggregation(nn.Module):
    """Path aggregation of depthwise separable blocks at one width (NanoDet, PicoDet)."""

    def __init__(self, channels: Sequence[int], width: int, kernel: int = 5, act: Activation = nn.Hardswish) -> None:
        super().__init__()
        steps = range(len(channels) - 1)
        self.reduce = nn.ModuleList([ConvNormAct(c, width, act=act) for c in channels])
        self.top = nn.ModuleList([separable(2 * width, width, kernel, act=act) for _ in steps])
        self.down = nn.ModuleList([separable(width, width, kernel, 2, act=act) for _ in steps])
        self.bottom = nn.ModuleList([separable(2 * width, width, kernel, act=act) for _ in steps])
        self.last = separable(width, width, kernel, 2, act=act)

    def forward(self, levels: list[Tensor]) -> list[Tensor]:
        """Map feature maps, finest first, to as many of one width and one coarser."""
        maps = [reduce(x) for reduce, x in zip(self.reduce, levels, strict=True)]
        for i in range(len(maps) - 2, -1, -1):
            up = functional.interpolate(maps[i + 1], tuple(maps[i].shape[2:]), mode="bilinear")
            maps[i] = self.top[i](torch.cat([up, maps[i]], 1))
        for i in range(1, len(maps)):
            maps[i] = self.bottom[i - 1](torch.cat([self.down[i - 1](maps[i - 1]), maps[i]], 1))
        return [*maps, self.last(maps[-1])]

"""Parts of current YOLO-style detectors: cross-stage blocks, path-aggregating necks, heads with decoding.

Architectures follow their papers and public descriptions; the code is ours. No non-maximum suppression.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise

import torch
from torch import Tensor, nn

from perfpred.zoo.blocks import Activation, Attention, ConcatBranches, ConvNormAct, Residual, depthwise

BlockStack = Callable[[int, int, int, bool], nn.Module]
"""Makes a stage from (in_channels, out_channels, blocks, shortcut)."""

silu = partial(ConvNormAct, act=nn.SiLU)


def unit(channels: int, shortcut: bool, kernels: tuple[int, int] = (3, 3), squeeze: float = 1.0) -> nn.Module:
    """Darknet bottleneck: two convolutions, the first to `squeeze * channels`, with an optional shortcut."""
    hidden = int(channels * squeeze)
    body = nn.Sequential(silu(channels, hidden, kernels[0]), silu(hidden, channels, kernels[1]))
    return Residual(body) if shortcut else body


def c3(
    in_channels: int, out_channels: int, blocks: int, shortcut: bool, *, kernels: tuple[int, int] = (1, 3)
) -> nn.Module:
    """Cross-stage block with two pointwise branches, one of them through `blocks` units (YOLOv5, YOLOX)."""
    hidden = out_channels // 2
    deep = nn.Sequential(silu(in_channels, hidden), *(unit(hidden, shortcut, kernels) for _ in range(blocks)))
    return nn.Sequential(ConcatBranches(deep, silu(in_channels, hidden)), silu(2 * hidden, out_channels))


class Elan(nn.Module):
    """Splits a projection in two and concatenates both halves with every intermediate result.

    With two 3x3 convolutions a unit this is C2f (YOLOv8); with nested cross-stage units C3k2 (YOLO11) or
    GELAN (YOLOv9); with plain 3x3 convolutions ELAN (YOLOv7).
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        units: Sequence[nn.Module],
        width: int,
        act: Activation = nn.SiLU,
    ) -> None:
        super().__init__()
        self.first = ConvNormAct(in_channels, 2 * width, act=act)
        self.units = nn.ModuleList(units)
        self.last = ConvNormAct((2 + len(units)) * width, out_channels, act=act)
        self.width = width

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C, H, W) to (N, C', H, W)."""
        parts = list(self.first(x).split(self.width, 1))
        for stage in self.units:
            parts.append(stage(parts[-1]))
        last: Tensor = self.last(torch.cat(parts, 1))
        return last


def c2f(in_channels: int, out_channels: int, blocks: int, shortcut: bool) -> nn.Module:
    """Cross-stage block of YOLOv8."""
    hidden = out_channels // 2
    return Elan(in_channels, out_channels, [unit(hidden, shortcut) for _ in range(blocks)], hidden)


def c3k2(
    in_channels: int,
    out_channels: int,
    blocks: int,
    shortcut: bool,
    *,
    nested: bool = False,
    ratio: float = 0.5,
) -> nn.Module:
    """Cross-stage block of YOLO11; `nested` units are themselves cross-stage blocks of two 3x3 units."""
    hidden = int(out_channels * ratio)
    if nested:
        units = [c3(hidden, hidden, 2, shortcut, kernels=(3, 3)) for _ in range(blocks)]
    else:
        units = [unit(hidden, shortcut, squeeze=0.5) for _ in range(blocks)]
    return Elan(in_channels, out_channels, units, hidden)


def elan(in_channels: int, out_channels: int, blocks: int, shortcut: bool) -> nn.Module:
    """ELAN of YOLOv7: plain pairs of 3x3 convolutions, no shortcuts."""
    hidden = out_channels // 2
    units = [nn.Sequential(silu(hidden, hidden, 3), silu(hidden, hidden, 3)) for _ in range(max(blocks, 2))]
    return Elan(in_channels, out_channels, units, hidden)


def gelan(in_channels: int, out_channels: int, blocks: int, shortcut: bool) -> nn.Module:
    """GELAN of YOLOv9: two cross-stage units of 3x3 convolutions, each followed by a 3x3 convolution."""
    hidden = out_channels // 2
    units = [nn.Sequential(c3(hidden, hidden, blocks, True, kernels=(3, 3)), silu(hidden, hidden, 3)) for _ in range(2)]
    return Elan(in_channels, out_channels, units, hidden)


def c2f_inverted(in_channels: int, out_channels: int, blocks: int, shortcut: bool) -> nn.Module:
    """C2fCIB of YOLOv10: units of alternating depthwise and pointwise convolutions."""
    hidden = out_channels // 2

    def inverted() -> nn.Module:
        body = nn.Sequential(
            depthwise(hidden, act=nn.SiLU),
            silu(hidden, 2 * hidden),
            depthwise(2 * hidden, 7, act=nn.SiLU),
            silu(2 * hidden, hidden),
            depthwise(hidden, act=nn.SiLU),
        )
        return Residual(body)

    return Elan(in_channels, out_channels, [inverted() for _ in range(blocks)], hidden)


def repvgg(in_channels: int, out_channels: int, blocks: int, shortcut: bool) -> nn.Module:
    """Plain stack of re-parameterised (deployed) 3x3 convolutions (YOLOv6)."""
    widths = [in_channels, *([out_channels] * max(blocks, 1))]
    return nn.Sequential(*(ConvNormAct(a, b, 3) for a, b in pairwise(widths)))


class ChannelGate(nn.Module):
    """Effective squeeze-excite: global mean, one pointwise convolution, hard sigmoid."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.gate = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(channels, channels, 1), nn.Hardsigmoid())

    def forward(self, x: Tensor) -> Tensor:
        """Keep the shape (N, C, H, W)."""
        return x * self.gate(x)


def csp_rep(in_channels: int, out_channels: int, blocks: int, shortcut: bool, *, gate: bool = True) -> nn.Module:
    """CSPRepResNet stage of PP-YOLOE: cross-stage block of deployed RepVGG units with channel attention."""
    hidden = out_channels // 2

    def rep() -> nn.Module:
        body = nn.Sequential(silu(hidden, hidden, 3), silu(hidden, hidden, 3))
        return Residual(body) if shortcut else body

    deep = nn.Sequential(silu(in_channels, hidden), *(rep() for _ in range(blocks)))
    parts: list[nn.Module] = [ConcatBranches(deep, silu(in_channels, hidden))]
    if gate:
        parts.append(ChannelGate(2 * hidden))
    return nn.Sequential(*parts, silu(2 * hidden, out_channels))


class RepStage(nn.Module):
    """YOLO-NAS-like stage: quantisation-friendly RepVGG units, all their outputs concatenated."""

    def __init__(self, in_channels: int, out_channels: int, blocks: int, shortcut: bool) -> None:
        super().__init__()
        hidden = out_channels // 2
        self.skip = ConvNormAct(in_channels, hidden)
        self.enter = ConvNormAct(in_channels, hidden)
        units = [nn.Sequential(ConvNormAct(hidden, hidden, 3), ConvNormAct(hidden, hidden, 3)) for _ in range(blocks)]
        self.units = nn.ModuleList([Residual(u) if shortcut else u for u in units])
        self.last = ConvNormAct((blocks + 2) * hidden, out_channels)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C, H, W) to (N, C', H, W)."""
        parts = [self.skip(x), self.enter(x)]
        for stage in self.units:
            parts.append(stage(parts[-1]))
        last: Tensor = self.last(torch.cat(parts, 1))
        return last


class PyramidPool(nn.Module):
    """SPPF: three chained 5x5 max pools, concatenated."""

    def __init__(self, in_channels: int, out_channels: int, act: Activation = nn.SiLU) -> None:
        super().__init__()
        hidden = in_channels // 2
        self.first = ConvNormAct(in_channels, hidden, act=act)
        self.pool = nn.MaxPool2d(5, 1, 2)
        self.last = ConvNormAct(4 * hidden, out_channels, act=act)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C, H, W) to (N, C', H, W)."""
        parts = [self.first(x)]
        for _ in range(3):
            parts.append(self.pool(parts[-1]))
        last: Tensor = self.last(torch.cat(parts, 1))
        return last


class SpatialAttention(nn.Module):
    """Self-attention over positions with narrow keys and a depthwise position term (YOLOv10, YOLO11)."""

    def __init__(self, channels: int, heads: int) -> None:
        super().__init__()
        self.heads, self.value_width = heads, channels // heads
        self.key_width = self.value_width // 2
        self.qkv = ConvNormAct(channels, channels + 2 * heads * self.key_width, act=None)
        self.position = depthwise(channels, act=None)
        self.out = ConvNormAct(channels, channels, act=None)

    def forward(self, x: Tensor) -> Tensor:
        """Keep the shape (N, C, H, W)."""
        channels, height, width = x.shape[1:]
        length = height * width
        qkv = self.qkv(x).reshape(-1, self.heads, 2 * self.key_width + self.value_width, length)
        q, k, v = qkv.split([self.key_width, self.key_width, self.value_width], 2)
        weights = (q.transpose(2, 3) @ k * self.key_width**-0.5).softmax(-1)
        mixed = (v @ weights.transpose(2, 3)).reshape(-1, channels, height, width)
        out: Tensor = self.out(mixed + self.position(v.reshape(-1, channels, height, width)))
        return out


class PartialAttention(nn.Module):
    """C2PSA: half of the channels go through attention and a pointwise feed-forward."""

    def __init__(self, channels: int, blocks: int = 1) -> None:
        super().__init__()
        hidden = channels // 2
        self.hidden = hidden
        self.first = silu(channels, channels)
        self.blocks = nn.Sequential(
            *(
                nn.Sequential(
                    Residual(SpatialAttention(hidden, max(hidden // 64, 1))),
                    Residual(nn.Sequential(silu(hidden, 2 * hidden), ConvNormAct(2 * hidden, hidden, act=None))),
                )
                for _ in range(blocks)
            )
        )
        self.last = silu(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        """Keep the shape (N, C, H, W)."""
        kept, mixed = self.first(x).split(self.hidden, 1)
        last: Tensor = self.last(torch.cat([kept, self.blocks(mixed)], 1))
        return last


class AreaAttention(nn.Module):
    """A2C2f-like block of YOLOv12: attention inside `areas` equal strips of the feature map."""

    def __init__(self, channels: int, areas: int, ratio: float = 1.2) -> None:
        super().__init__()
        self.areas = areas
        self.attention = Attention(channels, max(channels // 32, 1))
        self.position = depthwise(channels, 7, act=None)
        hidden = int(channels * ratio)
        self.feed = Residual(nn.Sequential(silu(channels, hidden), ConvNormAct(hidden, channels, act=None)))

    def forward(self, x: Tensor) -> Tensor:
        """Keep the shape (N, C, H, W); H * W must be a multiple of `areas`."""
        channels, height, width = x.shape[1:]
        strips = x.flatten(2).transpose(1, 2).reshape(-1, height * width // self.areas, channels)
        mixed = self.attention(strips).reshape(-1, height * width, channels).transpose(1, 2)
        fed: Tensor = self.feed(x + self.position(x) + mixed.reshape(-1, channels, height, width))
        return fed


def area_stage(in_channels: int, out_channels: int, blocks: int, shortcut: bool, *, areas: int = 4) -> nn.Module:
    """Stage of area attention between two pointwise convolutions."""
    hidden = out_channels // 2
    parts = [AreaAttention(hidden, areas) for _ in range(2 * blocks)]
    return nn.Sequential(silu(in_channels, hidden), *parts, silu(hidden, out_channels))


class PoolDown(nn.Module):
    """ADown of YOLOv9: average-pool, then half the channels by strided convolution, half by max-pool."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.half = in_channels // 2
        self.blur = nn.AvgPool2d(2, 1, 0)
        self.strided = silu(self.half, out_channels // 2, 3, 2)
        self.pooled = nn.Sequential(nn.MaxPool2d(3, 2, 1), silu(in_channels - self.half, out_channels // 2))

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C, H, W) to (N, C', H / 2, W / 2)."""
        left, right = self.blur(x).split(self.half, 1)
        return torch.cat([self.strided(left), self.pooled(right)], 1)


def strided_down(in_channels: int, out_channels: int) -> nn.Module:
    """3x3 convolution of stride 2 with SiLU."""
    return silu(in_channels, out_channels, 3, 2)


def relu_down(in_channels: int, out_channels: int) -> nn.Module:
    """3x3 convolution of stride 2 with ReLU."""
    return ConvNormAct(in_channels, out_channels, 3, 2)


def separate_down(in_channels: int, out_channels: int) -> nn.Module:
    """SCDown of YOLOv10: pointwise to the new width, then a strided depthwise convolution."""
    return nn.Sequential(silu(in_channels, out_channels), depthwise(out_channels, 3, 2, act=None))


class Focus(nn.Module):
    """Space-to-depth stem: four shifted samplings concatenated, then a convolution."""

    def __init__(self, out_channels: int, kernel: int = 3) -> None:
        super().__init__()
        self.conv = silu(12, out_channels, kernel)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, 3, H, W) to (N, C, H / 2, W / 2)."""
        rows = [x[..., ::2, :], x[..., 1::2, :]]
        conv: Tensor = self.conv(torch.cat([part for r in rows for part in (r[..., ::2], r[..., 1::2])], 1))
        return conv

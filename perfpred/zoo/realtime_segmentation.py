"""Real-time segmentation networks: two-path, dual-resolution, short-term-concatenation, Fast-SCNN."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional

from perfpred.zoo.blocks import (
    ConcatBranches,
    ConvNormAct,
    Residual,
    SqueezeExcite,
    Stages,
    basic_block,
    bottleneck,
    depthwise,
    inverted_residual,
    separable,
)


def up_to(x: Tensor, like: Tensor) -> Tensor:
    """Resize a map bilinearly to the size of another."""
    return functional.interpolate(x, (like.shape[2], like.shape[3]), mode="bilinear", align_corners=False)


class ContextMean(nn.Module):
    """Adds the projected global mean to every position."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.mean = nn.Sequential(nn.AdaptiveAvgPool2d(1), ConvNormAct(channels, width))
        self.local = ConvNormAct(channels, width)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C, H, W) to (N, width, H, W)."""
        mixed: Tensor = self.local(x) + self.mean(x)
        return mixed


class PyramidContext(nn.Module):
    """Pools to a few grids, projects, resizes back and concatenates (PSPNet)."""

    def __init__(self, channels: int, out_channels: int, grids: Sequence[int] = (1, 2, 4, 8)) -> None:
        super().__init__()
        width = channels // len(grids)
        # kernels instead of adaptive pooling keep the graph free of operators that engines refuse
        self.grids = tuple(grids)
        self.reduce = nn.ModuleList([ConvNormAct(channels, width) for _ in grids])
        self.out = ConvNormAct(channels + width * len(grids), out_channels, 3)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C, H, W) to (N, C', H, W); each side must be a multiple of every grid."""
        height, width = x.shape[2], x.shape[3]
        parts = [x]
        for grid, reduce in zip(self.grids, self.reduce, strict=True):
            parts.append(up_to(reduce(functional.avg_pool2d(x, (int(height) // grid, int(width) // grid))), x))
        out: Tensor = self.out(torch.cat(parts, 1))
        return out


class Refine(nn.Module):
    """Attention refinement of BiSeNet: 3x3 convolution gated by its projected mean."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.conv = ConvNormAct(channels, width, 3)
        self.gate = nn.Sequential(nn.AdaptiveAvgPool2d(1), ConvNormAct(width, width, act=nn.Sigmoid))

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C, H, W) to (N, width, H, W)."""
        x = self.conv(x)
        return x * self.gate(x)


class TwoPath(nn.Module):
    """BiSeNet: context path with refined stride-16 and 32 maps, a spatial path, a gated fusion.

    STDC drops the spatial path and fuses the stride-8 map of the backbone instead.
    """

    def __init__(
        self, backbone: Stages, channels: Sequence[int], classes: int, *, spatial: bool, width: int = 128
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.refine16, self.refine32 = Refine(channels[1], width), Refine(channels[2], width)
        self.mean = nn.Sequential(nn.AdaptiveAvgPool2d(1), ConvNormAct(channels[2], width))
        self.smooth16, self.smooth32 = ConvNormAct(width, width, 3), ConvNormAct(width, width, 3)
        self.spatial = (
            nn.Sequential(
                ConvNormAct(3, 64, 7, 2), ConvNormAct(64, 64, 3, 2), ConvNormAct(64, 64, 3, 2), ConvNormAct(64, width)
            )
            if spatial
            else None
        )
        joined = 2 * width if spatial else width + channels[0]
        self.fuse = ConvNormAct(joined, 2 * width)
        self.gate = Residual(SqueezeExcite(2 * width, width // 2))
        self.head = nn.Sequential(
            ConvNormAct(2 * width, 2 * width, 3),
            nn.Conv2d(2 * width, classes, 1),
            nn.Upsample(scale_factor=8, mode="bilinear"),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Map images to class scores at full size."""
        eight, sixteen, coarse = self.backbone(x)
        coarse = self.smooth32(up_to(self.refine32(coarse) + self.mean(coarse), sixteen))
        sixteen = self.smooth16(up_to(self.refine16(sixteen) + coarse, eight))
        detail = self.spatial(x) if self.spatial is not None else eight
        scores: Tensor = self.head(self.gate(self.fuse(torch.cat([detail, sixteen], 1))))
        return scores


class ShortTerm(nn.Module):
    """STDC unit: a chain of convolutions of halving width, all outputs concatenated."""

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        widths = [out_channels // 2, out_channels // 4, out_channels // 8, out_channels // 8]
        self.convs = nn.ModuleList([ConvNormAct(in_channels, widths[0])])
        for before, after in pairwise(widths):
            self.convs.append(ConvNormAct(before, after, 3))
        self.down = depthwise(widths[0], 3, 2, act=None) if stride == 2 else nn.Identity()
        self.skip = nn.AvgPool2d(3, 2, 1) if stride == 2 else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C, H, W) to (N, C', H / stride, W / stride)."""
        first = self.convs[0](x)
        parts = [self.skip(first)]
        x = self.down(first)
        for conv in self.convs[1:]:
            x = conv(x)
            parts.append(x)
        return torch.cat(parts, 1)


def stdc_stages(depths: Sequence[int]) -> Stages:
    """STDC backbone with maps at strides 8, 16 and 32."""
    stages: list[nn.Module] = [nn.Sequential(ConvNormAct(3, 32, 3, 2), ConvNormAct(32, 64, 3, 2))]
    channels = 64
    for depth, width in zip(depths, (256, 512, 1024), strict=True):
        units = [ShortTerm(channels if i == 0 else width, width, 2 if i == 0 else 1) for i in range(depth)]
        stages.append(nn.Sequential(*units))
        channels = width
    return Stages(stages, (1, 2, 3))


class DualResolution(nn.Module):
    """DDRNet: a stride-8 and a coarser residual branch that exchange maps, pyramid context at stride 64.

    `gated` adds products of both branches before the head, as PIDNet's light bag does.
    """

    def __init__(self, width: int, depth: int, head: int, classes: int, *, gated: bool = False) -> None:
        super().__init__()
        w = width
        self.stem = nn.Sequential(
            ConvNormAct(3, w, 3, 2),
            ConvNormAct(w, w, 3, 2),
            *_residuals(w, w, depth, 1),
            *_residuals(w, 2 * w, depth, 2),
        )
        self.low3, self.high3 = (
            nn.Sequential(*_residuals(2 * w, 4 * w, depth, 2)),
            nn.Sequential(*_residuals(2 * w, 2 * w, depth, 1)),
        )
        self.low4, self.high4 = (
            nn.Sequential(*_residuals(4 * w, 8 * w, depth, 2)),
            nn.Sequential(*_residuals(2 * w, 2 * w, depth, 1)),
        )
        self.to_high3, self.to_low3 = ConvNormAct(4 * w, 2 * w, act=None), ConvNormAct(2 * w, 4 * w, 3, 2, act=None)
        self.to_high4 = ConvNormAct(8 * w, 2 * w, act=None)
        self.to_low4 = nn.Sequential(ConvNormAct(2 * w, 4 * w, 3, 2), ConvNormAct(4 * w, 8 * w, 3, 2, act=None))
        self.low5, self.high5 = bottleneck(8 * w, 8 * w, 2, expansion=2), bottleneck(2 * w, 2 * w, expansion=2)
        self.context = PyramidContext(16 * w, 4 * w, (1, 2, 4))
        self.gate = nn.Conv2d(4 * w, 4 * w, 1) if gated else None
        self.head = nn.Sequential(
            ConvNormAct(4 * w, head, 3), nn.Conv2d(head, classes, 1), nn.Upsample(scale_factor=8, mode="bilinear")
        )

    def forward(self, x: Tensor) -> Tensor:
        """Map images to class scores at full size; sides must be multiples of 256."""
        x = self.stem(x)
        low, high = self.low3(x), self.high3(x)
        low, high = (low + self.to_low3(high)).relu(), (high + up_to(self.to_high3(low), high)).relu()
        low, high = self.low4(low), self.high4(high)
        low, high = (low + self.to_low4(high)).relu(), (high + up_to(self.to_high4(low), high)).relu()
        high = self.high5(high)
        context = up_to(self.context(self.low5(low)), high)
        if self.gate is not None:
            share = self.gate(high).sigmoid()
            context = context * share + high * (1 - share)
        scores: Tensor = self.head(high + context)
        return scores


def _residuals(in_channels: int, out_channels: int, depth: int, stride: int) -> list[nn.Module]:
    return [
        basic_block(in_channels if i == 0 else out_channels, out_channels, stride if i == 0 else 1)
        for i in range(depth)
    ]


class FastScnn(nn.Module):
    """Fast-SCNN: shared learning to downsample, global feature extractor, fusion."""

    def __init__(self, classes: int = 19, width: int = 1) -> None:
        super().__init__()
        w = width
        self.down = nn.Sequential(
            ConvNormAct(3, 32 * w, 3, 2), separable(32 * w, 48 * w, 3, 2), separable(48 * w, 64 * w, 3, 2)
        )
        plan = (
            (64, 64, 2),
            (64, 64, 1),
            (64, 64, 1),
            (64, 96, 2),
            (96, 96, 1),
            (96, 96, 1),
            (96, 128, 1),
            (128, 128, 1),
            (128, 128, 1),
        )
        self.body = nn.Sequential(
            *(inverted_residual(a * w, b * w, stride=s, act=nn.ReLU) for a, b, s in plan),
            PyramidContext(128 * w, 128 * w, (1, 2, 4)),
        )
        self.low = nn.Sequential(depthwise(128 * w, dilation=4), ConvNormAct(128 * w, 128 * w, act=None))
        self.high = ConvNormAct(64 * w, 128 * w, act=None)
        self.head = nn.Sequential(
            separable(128 * w, 128 * w),
            separable(128 * w, 128 * w),
            nn.Conv2d(128 * w, classes, 1),
            nn.Upsample(scale_factor=8, mode="bilinear"),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Map images to class scores at full size; sides must be multiples of 128."""
        high = self.down(x)
        low = self.low(up_to(self.body(high), high))
        scores: Tensor = self.head((low + self.high(high)).relu())
        return scores


class Bilateral(nn.Module):
    """BiSeNetV2 style: a shallow wide detail branch, a deep narrow semantic one, mutual gating."""

    def __init__(self, classes: int = 19) -> None:
        super().__init__()
        self.detail = nn.Sequential(
            ConvNormAct(3, 64, 3, 2),
            ConvNormAct(64, 64, 3),
            ConvNormAct(64, 64, 3, 2),
            ConvNormAct(64, 64, 3),
            ConvNormAct(64, 64, 3),
            ConvNormAct(64, 128, 3, 2),
            ConvNormAct(128, 128, 3),
            ConvNormAct(128, 128, 3),
        )
        stem = ConcatBranches(nn.Sequential(ConvNormAct(16, 8), ConvNormAct(8, 16, 3, 2)), nn.MaxPool2d(3, 2, 1))
        plan = (
            (16, 32, 2),
            (32, 32, 1),
            (32, 64, 2),
            (64, 64, 1),
            (64, 128, 2),
            (128, 128, 1),
            (128, 128, 1),
            (128, 128, 1),
        )
        self.semantic = nn.Sequential(
            ConvNormAct(3, 16, 3, 2),
            stem,
            ConvNormAct(32, 16, 3),
            *(inverted_residual(a, b, stride=s, act=nn.ReLU) for a, b, s in plan),
            ContextMean(128, 128),
            ConvNormAct(128, 128, 3),
        )
        self.detail_same = nn.Sequential(depthwise(128, act=None), nn.Conv2d(128, 128, 1))
        self.detail_down = nn.Sequential(ConvNormAct(128, 128, 3, 2, act=None), nn.AvgPool2d(3, 2, 1))
        self.semantic_same = nn.Sequential(depthwise(128, act=None), nn.Conv2d(128, 128, 1), nn.Sigmoid())
        self.semantic_up = ConvNormAct(128, 128, 3, act=None)
        self.head = nn.Sequential(
            ConvNormAct(128, 128, 3, act=None),
            ConvNormAct(128, 1024, 3),
            nn.Conv2d(1024, classes, 1),
            nn.Upsample(scale_factor=8, mode="bilinear"),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Map images to class scores at full size."""
        detail, semantic = self.detail(x), self.semantic(x)
        fine = self.detail_same(detail) * up_to(self.semantic_up(semantic), detail).sigmoid()
        coarse = self.detail_down(detail) * self.semantic_same(semantic)
        scores: Tensor = self.head(fine + up_to(coarse, detail))
        return scores

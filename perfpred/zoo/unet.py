"""U-Net and its relatives: residual, attention, nested, and nested U-structures (U2-Net)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional

from perfpred.zoo.blocks import ConvNormAct, basic_block, depthwise

Stage = Callable[[int, int], nn.Module]


def double_conv(in_channels: int, out_channels: int) -> nn.Module:
    """Two 3x3 convolutions with batch normalisation and ReLU."""
    return nn.Sequential(ConvNormAct(in_channels, out_channels, 3), ConvNormAct(out_channels, out_channels, 3))


def double_plain(in_channels: int, out_channels: int) -> nn.Module:
    """Two 3x3 convolutions without normalisation."""
    return nn.Sequential(
        ConvNormAct(in_channels, out_channels, 3, norm=False), ConvNormAct(out_channels, out_channels, 3, norm=False)
    )


def double_separable(in_channels: int, out_channels: int) -> nn.Module:
    """Two depthwise separable convolutions."""
    return nn.Sequential(
        depthwise(in_channels),
        ConvNormAct(in_channels, out_channels),
        depthwise(out_channels),
        ConvNormAct(out_channels, out_channels),
    )


class Gate(nn.Module):
    """Additive attention gate on a skip connection."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.skip = ConvNormAct(channels, channels // 2, act=None)
        self.up = ConvNormAct(channels, channels // 2, act=None)
        self.score = ConvNormAct(channels // 2, 1, act=nn.Sigmoid)

    def forward(self, skip: Tensor, up: Tensor) -> Tensor:
        """Scale the skip map by its relevance."""
        return skip * self.score((self.skip(skip) + self.up(up)).relu())


class UNet(nn.Module):
    """Encoder-decoder with concatenated skips.

    Args:
        widths: channels of each level, finest first.
        in_channels: image channels.
        classes: output channels.
        stage: makes the convolutions of a level.
        learned: upsample by transposed convolution, else bilinearly with a pointwise convolution.
        gated: attention gates on the skips.
    """

    def __init__(
        self,
        widths: Sequence[int],
        in_channels: int = 3,
        classes: int = 2,
        *,
        stage: Stage = double_conv,
        learned: bool = True,
        gated: bool = False,
    ) -> None:
        super().__init__()
        self.down = nn.ModuleList([stage(a, b) for a, b in zip([in_channels, *widths[:-1]], widths, strict=True)])
        self.pool = nn.MaxPool2d(2, 2)
        pairs = list(zip(widths[-1:0:-1], widths[-2::-1], strict=True))
        self.up = nn.ModuleList(
            [
                nn.ConvTranspose2d(a, b, 2, 2)
                if learned
                else nn.Sequential(nn.Upsample(scale_factor=2, mode="bilinear"), ConvNormAct(a, b))
                for a, b in pairs
            ]
        )
        self.gates = nn.ModuleList([Gate(b) for _, b in pairs] if gated else [])
        self.merge = nn.ModuleList([stage(2 * b, b) for _, b in pairs])
        self.head = nn.Conv2d(widths[0], classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C, H, W) to (N, classes, H, W); sides are multiples of 2 ** (levels - 1)."""
        skips = []
        for index, stage in enumerate(self.down):
            x = stage(x if index == 0 else self.pool(x))
            skips.append(x)
        skips.pop()
        for index, (up, merge) in enumerate(zip(self.up, self.merge, strict=True)):
            skip, x = skips.pop(), up(x)
            if len(self.gates):
                skip = self.gates[index](skip, x)
            x = merge(torch.cat([skip, x], 1))
        scores: Tensor = self.head(x)
        return scores


attention_unet = partial(UNet, gated=True, learned=False)
residual_unet = partial(UNet, stage=basic_block)


class NestedUNet(nn.Module):
    """U-Net++: every node of the triangle reads all earlier nodes of its level and the one below."""

    def __init__(self, widths: Sequence[int], classes: int = 2, in_channels: int = 3) -> None:
        super().__init__()
        levels = len(widths)
        self.levels = levels
        self.pool = nn.MaxPool2d(2, 2)
        self.up = nn.Upsample(scale_factor=2, mode="bilinear")
        self.nodes = nn.ModuleDict()
        for level, width in enumerate(widths):
            self.nodes[f"{level}_0"] = double_conv(in_channels if level == 0 else widths[level - 1], width)
            for step in range(1, levels - level):
                self.nodes[f"{level}_{step}"] = double_conv(step * width + widths[level + 1], width)
        self.head = nn.Conv2d(widths[0], classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C, H, W) to (N, classes, H, W)."""
        done: dict[tuple[int, int], Tensor] = {}
        for level in range(self.levels):
            x = self.nodes[f"{level}_0"](x if level == 0 else self.pool(x))
            done[level, 0] = x
        for step in range(1, self.levels):
            for level in range(self.levels - step):
                inputs = [done[level, i] for i in range(step)]
                inputs.append(self.up(done[level + 1, step - 1]))
                done[level, step] = self.nodes[f"{level}_{step}"](torch.cat(inputs, 1))
        scores: Tensor = self.head(done[0, self.levels - 1])
        return scores


nested_unet = NestedUNet


class InnerU(nn.Module):
    """Residual U-block of U2-Net: a small U inside one stage."""

    def __init__(self, in_channels: int, hidden: int, out_channels: int, height: int) -> None:
        super().__init__()
        self.enter = ConvNormAct(in_channels, out_channels, 3)
        self.down = nn.ModuleList([ConvNormAct(out_channels if i == 0 else hidden, hidden, 3) for i in range(height)])
        self.bottom = ConvNormAct(hidden, hidden, 3, dilation=2)
        self.up = nn.ModuleList([ConvNormAct(2 * hidden, out_channels if i == 0 else hidden, 3) for i in range(height)])
        self.pool = nn.MaxPool2d(2, 2, ceil_mode=True)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C, H, W) to (N, C', H, W)."""
        entered = self.enter(x)
        x, skips = entered, []
        for index, conv in enumerate(self.down):
            x = conv(x if index == 0 else self.pool(x))
            skips.append(x)
        x = self.bottom(x)
        for index in range(len(skips) - 1, -1, -1):
            x = functional.interpolate(x, (skips[index].shape[2], skips[index].shape[3]), mode="bilinear")
            x = self.up[index](torch.cat([x, skips[index]], 1))
        return x + entered


def u2net(hidden: int, width: int) -> nn.Module:
    """U2-Net: a U-Net whose stages are U-blocks (the small salient-object variant)."""
    heights = iter((6, 5, 4, 3, 2, 3, 4, 5, 6))

    def stage(in_channels: int, out_channels: int) -> nn.Module:
        return InnerU(in_channels, hidden, out_channels, next(heights))

    return nn.Sequential(UNet((width,) * 5, classes=1, stage=stage, learned=False), nn.Sigmoid())

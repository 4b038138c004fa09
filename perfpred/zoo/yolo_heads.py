"""Heads of YOLO-style detectors: towers, coupled and decoupled heads, and the decoding of boxes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor, nn

from perfpred.zoo.blocks import separable
from perfpred.zoo.yolo import ChannelGate, silu

Tower = Callable[[int, int], nn.Module]
STRIDES = (8, 16, 32)


def plain_tower(in_channels: int, width: int) -> nn.Module:
    """Two 3x3 convolutions."""
    return nn.Sequential(silu(in_channels, width, 3), silu(width, width, 3))


def light_tower(in_channels: int, width: int) -> nn.Module:
    """Two depthwise separable convolutions."""
    return nn.Sequential(separable(in_channels, width, act=nn.SiLU), separable(width, width, act=nn.SiLU))


def stem_tower(in_channels: int, width: int) -> nn.Module:
    """Pointwise reduction, then two 3x3 convolutions (YOLOX)."""
    return nn.Sequential(silu(in_channels, width), plain_tower(width, width))


def short_tower(in_channels: int, width: int) -> nn.Module:
    """Pointwise reduction, then one 3x3 convolution (YOLOv6, YOLO-NAS)."""
    return nn.Sequential(silu(in_channels, width), silu(width, width, 3))


def gated_tower(in_channels: int, width: int) -> nn.Module:
    """Channel attention and a pointwise convolution (PP-YOLOE)."""
    return nn.Sequential(ChannelGate(in_channels), silu(in_channels, width))


class Grid(nn.Module):
    """Turns side distances or offsets in cells into boxes in pixels."""

    centres: Tensor
    strides: Tensor

    def __init__(self, image: tuple[int, int], strides: Sequence[int]) -> None:
        super().__init__()
        centres, scales = [], []
        for stride in strides:
            height, width = image[0] // stride, image[1] // stride
            y, x = torch.meshgrid(torch.arange(height) + 0.5, torch.arange(width) + 0.5, indexing="ij")
            centres.append(torch.stack([x, y]).reshape(2, -1))
            scales.append(torch.full((1, height * width), float(stride)))
        self.register_buffer("centres", torch.cat(centres, 1))
        self.register_buffer("strides", torch.cat(scales, 1))

    def from_sides(self, sides: Tensor) -> Tensor:
        """Map distances to the four sides, (N, 4, A) in cells, to centre and size in pixels."""
        near, far = sides.split(2, 1)
        start, end = self.centres - near, self.centres + far
        return torch.cat([(start + end) / 2, end - start], 1) * self.strides

    def from_offsets(self, offsets: Tensor) -> Tensor:
        """Map centre offsets and log sizes, (N, 4, A), to centre and size in pixels."""
        shift, size = offsets.split(2, 1)
        return torch.cat([shift + self.centres, size.exp()], 1) * self.strides


class DecoupledHead(nn.Module):
    """Separate box and class towers per level, anchor-free; an optional third tower for other outputs."""

    def __init__(
        self,
        channels: Sequence[int],
        image: tuple[int, int],
        *,
        classes: int,
        bins: int,
        box: tuple[Tower, int],
        label: tuple[Tower, int],
        objectness: bool = False,
        extra: int = 0,
    ) -> None:
        super().__init__()
        self.bins = bins
        box_out = 4 * max(bins, 1) + int(objectness)
        self.boxes = nn.ModuleList([nn.Sequential(box[0](c, box[1]), nn.Conv2d(box[1], box_out, 1)) for c in channels])
        self.labels = nn.ModuleList(
            [nn.Sequential(label[0](c, label[1]), nn.Conv2d(label[1], classes, 1)) for c in channels]
        )
        hidden = max(channels[0] // 4, extra)
        towers = [nn.Sequential(plain_tower(c, hidden), nn.Conv2d(hidden, extra, 1)) for c in channels if extra]
        self.extras = nn.ModuleList(towers)
        self.grid = Grid(image, [image[0] // (image[0] // s) for s in _strides(len(channels))])
        if bins:
            self.expectation = nn.Conv2d(bins, 1, 1, bias=False)

    def forward(self, levels: list[Tensor]) -> list[Tensor]:
        """Map feature maps to [(N, 4 + objectness + classes, A)] and, with `extra`, (N, extra, A)."""
        box = torch.cat([tower(x).flatten(2) for tower, x in zip(self.boxes, levels, strict=True)], 2)
        label = torch.cat([tower(x).flatten(2) for tower, x in zip(self.labels, levels, strict=True)], 2)
        if self.bins:
            spread = box.reshape(-1, 4, self.bins, box.shape[2]).transpose(1, 2).softmax(1)
            located = self.grid.from_sides(self.expectation(spread).squeeze(1))
            parts = [located, label.sigmoid()]
        else:
            parts = [self.grid.from_offsets(box[:, :4]), box[:, 4:].sigmoid(), label.sigmoid()]
        outputs = [torch.cat(parts, 1)]
        if len(self.extras):
            outputs.append(torch.cat([t(x).flatten(2) for t, x in zip(self.extras, levels, strict=True)], 2))
        return outputs


class AnchorHead(nn.Module):
    """One pointwise convolution per level for three anchors, decoded as in YOLOv5."""

    def __init__(self, channels: Sequence[int], image: tuple[int, int], *, classes: int, anchors: int = 3) -> None:
        super().__init__()
        self.outputs, self.anchors = 5 + classes, anchors
        self.convs = nn.ModuleList([nn.Conv2d(c, anchors * self.outputs, 1) for c in channels])
        self.grids = nn.ModuleList([Grid(image, [stride]) for stride in _strides(len(channels))])

    def forward(self, levels: list[Tensor]) -> list[Tensor]:
        """Map feature maps to [(N, anchors of all levels, 5 + classes)]."""
        decoded = []
        for conv, grid, x in zip(self.convs, self.grids, levels, strict=True):
            raw = conv(x).reshape(-1, self.anchors, self.outputs, x.shape[2] * x.shape[3]).sigmoid()
            centre, size, rest = raw.split([2, 2, self.outputs - 4], 2)
            assert isinstance(grid, Grid)
            centre = (centre * 2 - 1 + grid.centres) * grid.strides
            size = (size * 2) ** 2 * grid.strides
            decoded.append(torch.cat([centre, size, rest], 2).transpose(2, 3).flatten(1, 2))
        return [torch.cat(decoded, 1)]


def _strides(levels: int) -> tuple[int, ...]:
    return STRIDES if levels == 3 else (*STRIDES, 64)[:levels]


def yolo_head(kind: str, channels: Sequence[int], image: tuple[int, int], classes: int, extra: int) -> nn.Module:
    """Head of one kind over feature maps of `channels`."""
    first = channels[0]
    if kind == "anchor":
        return AnchorHead(channels, image, classes=classes)
    box_width, label_width = max(16, first // 4, 64), max(first, min(classes, 100))
    make = partial(DecoupledHead, channels, image, classes=classes, extra=extra)
    if kind == "dfl":
        return make(bins=16, box=(plain_tower, box_width), label=(plain_tower, label_width))
    if kind == "dfl-light":
        return make(bins=16, box=(plain_tower, box_width), label=(light_tower, label_width))
    if kind == "x":
        return make(bins=0, box=(stem_tower, first), label=(stem_tower, first), objectness=True)
    if kind == "rep":
        return make(bins=17, box=(short_tower, first), label=(short_tower, first))
    if kind == "gated":
        return make(bins=17, box=(gated_tower, first), label=(gated_tower, first))
    raise ValueError(f"unknown head {kind!r}")

"""One-stage detectors other than YOLO, and detectors with transformer decoders. No non-maximum suppression."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional

from perfpred.zoo.blocks import (
    Activation,
    ConvNormAct,
    Residual,
    SqueezeExcite,
    Stages,
    depthwise,
    divisible,
    inverted_residual,
    mobilenet_v2_stages,
    mobilenet_v2_widths,
    resnet_stages,
    separable,
)
from perfpred.zoo.own import own
from perfpred.zoo.pyramid import Bidirectional, LightAggregation, TopDown


def flat(maps: list[Tensor], outputs: int) -> Tensor:
    """Concatenate maps (N, A * outputs, H, W) as (N, sum of A * H * W, outputs)."""
    return torch.cat([x.permute(0, 2, 3, 1).reshape(-1, _cells(x, outputs), outputs) for x in maps], 1)


def _cells(x: Tensor, outputs: int) -> int:
    return x.shape[1] // outputs * x.shape[2] * x.shape[3]


class SharedHead(nn.Module):
    """Class and box towers whose weights all levels share (RetinaNet, FCOS, EfficientDet)."""

    def __init__(self, width: int, tower: Callable[[], nn.Module], *, classes: int, anchors: int, box: int = 4) -> None:
        super().__init__()
        self.classes, self.box = classes, box
        self.label = nn.Sequential(tower(), nn.Conv2d(width, anchors * classes, 3, 1, 1))
        self.boxes = nn.Sequential(tower(), nn.Conv2d(width, anchors * box, 3, 1, 1))

    def forward(self, levels: list[Tensor]) -> tuple[Tensor, Tensor]:
        """Map levels of one width to scores (N, A, classes) and boxes (N, A, box)."""
        labels, boxes = [self.label(x) for x in levels], [self.boxes(x) for x in levels]
        return flat(labels, self.classes).sigmoid(), flat(boxes, self.box)


def plain_tower(width: int, depth: int = 4) -> nn.Module:
    """3x3 convolutions with ReLU, as in RetinaNet."""
    return nn.Sequential(*(ConvNormAct(width, width, 3, norm=False) for _ in range(depth)))


def grouped_norm_tower(width: int, depth: int = 4) -> nn.Module:
    """3x3 convolutions with group normalisation, as in FCOS."""
    parts: list[nn.Module] = []
    for _ in range(depth):
        parts += [nn.Conv2d(width, width, 3, 1, 1), nn.GroupNorm(16, width), nn.ReLU()]
    return nn.Sequential(*parts)


def separable_tower(width: int, depth: int = 3, kernel: int = 3, act: Activation = nn.SiLU) -> nn.Module:
    """Depthwise separable convolutions, as in EfficientDet and NanoDet."""
    return nn.Sequential(*(separable(width, width, kernel, act=act) for _ in range(depth)))


class Detector(nn.Module):
    """Backbone, neck and head in a row."""

    def __init__(self, backbone: nn.Module, neck: nn.Module, head: nn.Module) -> None:
        super().__init__()
        self.backbone, self.neck, self.head = backbone, neck, head

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Map images (N, 3, H, W) to scores and boxes."""
        predictions: tuple[Tensor, Tensor] = self.head(self.neck(self.backbone(x)))
        return predictions


def retinanet(depths: Sequence[int], bottlenecks: bool, width: int = 256, classes: int = 80) -> nn.Module:
    """RetinaNet: ResNet, FPN with levels 3 to 7, shared four-convolution towers, nine anchors."""
    expansion = 4 if bottlenecks else 1
    backbone = resnet_stages(depths, bottlenecks=bottlenecks, wanted=(2, 3, 4))
    neck = TopDown([128 * expansion, 256 * expansion, 512 * expansion], width, extra=2)
    return Detector(backbone, neck, SharedHead(width, partial(plain_tower, width), classes=classes, anchors=9))


def fcos(depths: Sequence[int], bottlenecks: bool, width: int = 256) -> nn.Module:
    """FCOS: as RetinaNet with one location a cell, group normalisation, centre-ness beside the box."""
    expansion = 4 if bottlenecks else 1
    backbone = resnet_stages(depths, bottlenecks=bottlenecks, wanted=(2, 3, 4))
    neck = TopDown([128 * expansion, 256 * expansion, 512 * expansion], width, extra=2)
    tower = partial(grouped_norm_tower, width)
    return Detector(backbone, neck, SharedHead(width, tower, classes=80, anchors=1, box=5))


class DilatedEncoder(nn.Module):
    """YOLOF neck: one level, residual blocks of growing dilation."""

    def __init__(self, in_channels: int, width: int = 256) -> None:
        super().__init__()
        blocks = [
            Residual(
                nn.Sequential(
                    ConvNormAct(width, width // 4),
                    ConvNormAct(width // 4, width // 4, 3, dilation=dilation),
                    ConvNormAct(width // 4, width),
                )
            )
            for dilation in (2, 4, 6, 8)
        ]
        self.body = nn.Sequential(
            ConvNormAct(in_channels, width, act=None), ConvNormAct(width, width, 3, act=None), *blocks
        )

    def forward(self, levels: list[Tensor]) -> list[Tensor]:
        """Map [(N, C, H, W)] to [(N, width, H, W)]."""
        return [self.body(levels[-1])]


def yolof(depths: Sequence[int], bottlenecks: bool) -> nn.Module:
    """YOLOF: dilated encoder on the last level only."""
    backbone = resnet_stages(depths, bottlenecks=bottlenecks, wanted=(4,))
    head = SharedHead(256, partial(grouped_norm_tower, 256, 2), classes=80, anchors=5)
    return Detector(backbone, DilatedEncoder(2048 if bottlenecks else 512), head)


class CentreNet(nn.Module):
    """CenterNet: ResNet, three transposed convolutions, heat map, size and offset heads at stride 4."""

    def __init__(
        self, depths: Sequence[int], bottlenecks: bool = False, widths: Sequence[int] = (256, 128, 64)
    ) -> None:
        super().__init__()
        self.backbone = resnet_stages(depths, bottlenecks=bottlenecks, wanted=(4,))
        channels = 2048 if bottlenecks else 512
        ups: list[nn.Module] = []
        for width in widths:
            ups += [ConvNormAct(channels, width, 3), nn.ConvTranspose2d(width, width, 4, 2, 1, bias=False)]
            ups += [nn.BatchNorm2d(width), nn.ReLU()]
            channels = width
        self.up = nn.Sequential(*ups)
        self.heads = nn.ModuleList(
            [nn.Sequential(ConvNormAct(channels, 64, 3, norm=False), nn.Conv2d(64, n, 1)) for n in (80, 2, 2)]
        )

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Map images to heat map, size and offset of shapes (N, 80 | 2 | 2, H / 4, W / 4); peaks by max pooling."""
        features = self.up(self.backbone(x)[-1])
        heat, size, offset = (head(features) for head in self.heads)
        heat = heat.sigmoid()
        peaks = functional.max_pool2d(heat, 3, 1, 1)
        return heat * (heat == peaks).to(heat.dtype), size, offset


class Shuffle(nn.Module):
    """ShuffleNet-v2 unit: split or double, depthwise branch, channel shuffle."""

    def __init__(self, in_channels: int, out_channels: int, stride: int, act: Activation) -> None:
        super().__init__()
        half = out_channels // 2
        self.stride, self.half = stride, half
        entered = in_channels if stride == 2 else half
        self.main = nn.Sequential(
            ConvNormAct(entered, half, act=act), depthwise(half, 3, stride, act=None), ConvNormAct(half, half, act=act)
        )
        self.side = (
            nn.Sequential(depthwise(in_channels, 3, 2, act=None), ConvNormAct(in_channels, half, act=act))
            if stride == 2
            else nn.Identity()
        )

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C, H, W) to (N, C', H / stride, W / stride)."""
        left, right = (x, x) if self.stride == 2 else x.split(self.half, 1)
        joined = torch.cat([self.side(left), self.main(right)], 1)
        height, width = joined.shape[2:]
        return joined.reshape(-1, 2, self.half, height, width).transpose(1, 2).reshape(-1, 2 * self.half, height, width)


def shuffle_stages(widths: Sequence[int], act: Activation = nn.LeakyReLU) -> Stages:
    """ShuffleNet-v2 stem and stages at strides 8, 16, 32."""
    stages: list[nn.Module] = [nn.Sequential(ConvNormAct(3, 24, 3, 2, act=act), nn.MaxPool2d(3, 2, 1))]
    channels = 24
    for width, depth in zip(widths, (4, 8, 4), strict=True):
        units = [Shuffle(channels if i == 0 else width, width, 2 if i == 0 else 1, act) for i in range(depth)]
        stages.append(nn.Sequential(*units))
        channels = width
    return Stages(stages, (1, 2, 3))


def nanodet(widths: Sequence[int], width: int, tower_depth: int = 2) -> nn.Module:
    """NanoDet-Plus: ShuffleNet-v2, light path aggregation, separable shared towers, eight-bin boxes."""
    tower = partial(separable_tower, width, tower_depth, 5, nn.LeakyReLU)
    head = SharedHead(width, tower, classes=80, anchors=1, box=32)
    return Detector(shuffle_stages(widths), LightAggregation(widths, width, 5, nn.LeakyReLU), head)


def picodet(scale: float, width: int) -> nn.Module:
    """PicoDet: PP-LCNet-like depthwise backbone with hard swish, light path aggregation."""
    plan = ((64, 3, 2, 2), (128, 3, 2, 2), (256, 5, 2, 6), (512, 5, 2, 2))
    channels = divisible(16 * scale)
    stages: list[nn.Module] = [
        nn.Sequential(
            ConvNormAct(3, channels, 3, 2, act=nn.Hardswish), separable(channels, 2 * channels, act=nn.Hardswish)
        )
    ]
    channels *= 2
    widths = []
    for index, (out, kernel, stride, depth) in enumerate(plan):
        out_channels = divisible(out * scale)
        units: list[nn.Module] = []
        for i in range(depth):
            units.append(depthwise(channels, kernel, stride if i == 0 else 1, act=nn.Hardswish))
            if index == 3:
                units.append(SqueezeExcite(channels, channels // 4, gate=nn.Hardsigmoid))
            units.append(ConvNormAct(channels, out_channels, act=nn.Hardswish))
            channels = out_channels
        stages.append(nn.Sequential(*units))
        widths.append(channels)
    tower = partial(separable_tower, width, 2, 5, nn.Hardswish)
    head = SharedHead(width, tower, classes=80, anchors=1, box=32)
    return Detector(Stages(stages, (2, 3, 4)), LightAggregation(widths[1:], width), head)


# expansion, channels, blocks, stride, kernel of EfficientNet-B0 (Tan and Le 2019, table 1)
_EFFICIENTNET = (
    (1, 16, 1, 1, 3),
    (6, 24, 2, 2, 3),
    (6, 40, 2, 2, 5),
    (6, 80, 3, 2, 3),
    (6, 112, 3, 1, 5),
    (6, 192, 4, 2, 5),
    (6, 320, 1, 1, 3),
)


def efficientdet(width: float, depth: float, fused: int, layers: int, tower: int, *, lite: bool = False) -> nn.Module:
    """EfficientDet: compound-scaled EfficientNet, BiFPN layers of width `fused`, separable shared towers."""
    act: Activation = nn.ReLU6 if lite else nn.SiLU
    channels = divisible(32 * width)
    stages: list[nn.Module] = [ConvNormAct(3, channels, 3, 2, act=act)]
    widths = [channels]
    for expansion, out, blocks, stride, kernel in _EFFICIENTNET:
        out_channels = divisible(out * width)
        units = []
        for i in range(-int(-blocks * depth // 1)):
            squeeze = 0 if lite else max(channels // 4, 1)
            units.append(
                inverted_residual(
                    channels,
                    out_channels,
                    kernel=kernel,
                    stride=stride if i == 0 else 1,
                    expansion=expansion,
                    squeeze=squeeze,
                    act=act,
                )
            )
            channels = out_channels
        stages.append(nn.Sequential(*units))
        widths.append(channels)
    neck = nn.Sequential(
        TopDown([widths[3], widths[5], widths[7]], fused, extra=2, smooth=False),
        *(Bidirectional(5, fused) for _ in range(layers)),
    )
    head = SharedHead(fused, partial(separable_tower, fused, tower, 3, act), classes=90, anchors=9)
    return Detector(Stages(stages, (3, 5, 7)), neck, head)


class CentreMap(nn.Module):
    """FOMO-like object counter: MobileNet-v2 cut at stride 8, a per-cell classifier."""

    def __init__(self, width: float) -> None:
        super().__init__()
        self.backbone = mobilenet_v2_stages(width, wanted=(3,))
        channels = mobilenet_v2_widths(width)[3]
        self.classify = nn.Sequential(ConvNormAct(channels, 32, norm=False), nn.Conv2d(32, 4, 1))

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, 3, H, W) to class probabilities (N, 4, H / 8, W / 8)."""
        scores: Tensor = self.classify(self.backbone(x)[0])
        return scores.softmax(1)


class BirdView(nn.Module):
    """PointPillars-like: three strided stages over a pseudo image, each upsampled to stride 2, concatenated."""

    def __init__(self, width: int = 64, in_channels: int = 64) -> None:
        super().__init__()
        plan = ((in_channels, width, 4), (width, 2 * width, 6), (2 * width, 4 * width, 6))
        self.stages = nn.ModuleList(
            [nn.Sequential(ConvNormAct(a, b, 3, 2), *(ConvNormAct(b, b, 3) for _ in range(n - 1))) for a, b, n in plan]
        )
        self.ups = nn.ModuleList(
            [
                nn.Sequential(
                    nn.ConvTranspose2d(b, 2 * width, 2**i, 2**i, bias=False), nn.BatchNorm2d(2 * width), nn.ReLU()
                )
                for i, (_, b, _) in enumerate(plan)
            ]
        )
        self.heads = nn.ModuleList([nn.Conv2d(6 * width, n, 1) for n in (18, 42, 12)])

    def forward(self, x: Tensor) -> list[Tensor]:
        """Map (N, 64, H, W) to class, box and direction maps at stride 2."""
        maps = []
        for stage, up in zip(self.stages, self.ups, strict=True):
            x = stage(x)
            maps.append(up(x))
        joined = torch.cat(maps, 1)
        return [head(joined) for head in self.heads]


_R18, _R34, _R50 = (2, 2, 2, 2), (3, 4, 6, 3), (3, 4, 6, 3)
_DENSE: tuple[tuple[str, str, str, Callable[[], nn.Module], tuple[int, ...]], ...] = (
    ("retinanet-r18", "retinanet", "arXiv 1708.02002", partial(retinanet, _R18, False, 128), (3, 512, 512)),
    ("retinanet-r50", "retinanet", "arXiv 1708.02002", partial(retinanet, _R50, True), (3, 416, 416)),
    ("fcos-r18", "fcos", "arXiv 1904.01355", partial(fcos, _R18, False, 128), (3, 512, 512)),
    ("fcos-r34", "fcos", "arXiv 1904.01355", partial(fcos, _R34, False), (3, 320, 480)),
    ("yolof-r18", "yolof", "arXiv 2103.09460", partial(yolof, _R18, False), (3, 512, 512)),
    ("yolof-r50", "yolof", "arXiv 2103.09460", partial(yolof, _R50, True), (3, 608, 608)),
    ("centernet-r18", "centernet", "arXiv 1904.07850", partial(CentreNet, _R18), (3, 512, 512)),
    ("centernet-r18@384", "centernet", "arXiv 1904.07850", partial(CentreNet, _R18), (3, 384, 384)),
    ("centernet-r34", "centernet", "arXiv 1904.07850", partial(CentreNet, _R34), (3, 512, 512)),
    ("nanodet-plus", "nanodet", "NanoDet public description", partial(nanodet, (116, 232, 464), 96), (3, 320, 320)),
    ("nanodet-plus@416", "nanodet", "NanoDet public description", partial(nanodet, (116, 232, 464), 96), (3, 416, 416)),
    (
        "nanodet-plus-1.5x",
        "nanodet",
        "NanoDet public description",
        partial(nanodet, (176, 352, 704), 128),
        (3, 416, 416),
    ),
    ("picodet-s", "picodet", "arXiv 2111.00902", partial(picodet, 0.75, 96), (3, 320, 320)),
    ("picodet-m", "picodet", "arXiv 2111.00902", partial(picodet, 1.5, 128), (3, 416, 416)),
    ("efficientdet-d0", "efficientdet", "arXiv 1911.09070", partial(efficientdet, 1.0, 1.0, 64, 3, 3), (3, 512, 512)),
    ("efficientdet-d1", "efficientdet", "arXiv 1911.09070", partial(efficientdet, 1.0, 1.1, 88, 4, 3), (3, 640, 640)),
    (
        "efficientdet-lite0",
        "efficientdet",
        "arXiv 1911.09070",
        partial(efficientdet, 1.0, 1.0, 64, 3, 3, lite=True),
        (3, 320, 320),
    ),
    ("fomo-0.35", "fomo", "Edge Impulse FOMO description", partial(CentreMap, 0.35), (3, 96, 96)),
    ("fomo-1.0", "fomo", "Edge Impulse FOMO description", partial(CentreMap, 1.0), (3, 192, 192)),
    ("pointpillars", "pointpillars", "arXiv 1812.05784", partial(BirdView, 64), (64, 248, 216)),
    ("pointpillars-half", "pointpillars", "arXiv 1812.05784", partial(BirdView, 32), (64, 320, 320)),
)
for _name, _family, _source, _build, _shape in _DENSE:
    own(f"detector.{_name}", _family, "dense-detector", _source, _build, _shape)

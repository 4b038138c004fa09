"""Classic convolution networks, first of all those of the IISWC 2021 edge-inference study that no package offers.

MobileNet-v1, SSD with MobileNet and Inception backbones, tiny-YOLO and YOLO v2 to v4, FCN-ResNet18, MTCNN, FaceNet.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from itertools import pairwise

import torch
from torch import Tensor, nn

from perfpred.zoo.blocks import (
    Activation,
    ConcatBranches,
    ConvNormAct,
    Residual,
    Stages,
    depthwise,
    divisible,
    mobilenet_v2_stages,
    mobilenet_v2_widths,
    resnet_stages,
    separable,
)
from perfpred.zoo.own import own
from perfpred.zoo.yolo import c3

leaky = partial(ConvNormAct, act=partial(nn.LeakyReLU, 0.1))
# channels and stride of each separable block of MobileNet-v1 (Howard et al. 2017, table 1)
_MOBILENET_V1 = (
    (64, 1),
    (128, 2),
    (128, 1),
    (256, 2),
    (256, 1),
    (512, 2),
    (512, 1),
    (512, 1),
    (512, 1),
    (512, 1),
    (512, 1),
    (1024, 2),
    (1024, 1),
)


def classifier(features: nn.Module, channels: int, classes: int = 1000) -> nn.Sequential:
    """Append global average pooling and a linear layer."""
    return nn.Sequential(features, nn.AdaptiveAvgPool2d(1), nn.Flatten(1), nn.Linear(channels, classes))


def mobilenet_v1_blocks(width: float) -> tuple[list[nn.Module], list[int]]:
    """Stem and separable blocks of MobileNet-v1 with the channels after each."""
    channels = divisible(32 * width)
    blocks: list[nn.Module] = [ConvNormAct(3, channels, 3, 2, act=nn.ReLU6)]
    widths = [channels]
    for out, stride in _MOBILENET_V1:
        blocks.append(separable(widths[-1], divisible(out * width), 3, stride, act=nn.ReLU6))
        widths.append(divisible(out * width))
    return blocks, widths


def mobilenet_v1(width: float) -> nn.Module:
    """MobileNet-v1 classifier."""
    blocks, widths = mobilenet_v1_blocks(width)
    return classifier(nn.Sequential(*blocks), widths[-1])


class Ssd(nn.Module):
    """Single-shot detector: maps of a backbone, extra strided maps, one box and one class convolution each."""

    def __init__(
        self,
        backbone: nn.Module,
        widths: Sequence[int],
        extras: Sequence[int],
        *,
        anchors: Sequence[int] = (3, 6, 6, 6, 6, 6),
        classes: int = 91,
        light: bool = False,
        kernel: int = 3,
    ) -> None:
        super().__init__()
        self.backbone, self.classes = backbone, classes
        channels = widths[-1]
        self.extras = nn.ModuleList()
        for out in extras:
            spread = (
                separable(out // 2, out, 3, 2, act=nn.ReLU6)
                if light
                else ConvNormAct(out // 2, out, 3, 2, act=nn.ReLU6)
            )
            self.extras.append(nn.Sequential(ConvNormAct(channels, out // 2, act=nn.ReLU6), spread))
            channels = out
        every = list(zip([*widths, *extras], anchors, strict=True))

        def predictor(channels: int, outputs: int) -> nn.Module:
            if light:
                return nn.Sequential(depthwise(channels, act=nn.ReLU6), nn.Conv2d(channels, outputs, 1))
            return nn.Conv2d(channels, outputs, kernel, 1, kernel // 2)

        self.labels = nn.ModuleList([predictor(c, a * classes) for c, a in every])
        self.boxes = nn.ModuleList([predictor(c, a * 4) for c, a in every])

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Map images (N, 3, H, W) to class scores (N, A, classes) and box offsets (N, A, 4)."""
        maps = self.backbone(x)
        for extra in self.extras:
            maps.append(extra(maps[-1]))
        scores, boxes = [], []
        for level, label, box in zip(maps, self.labels, self.boxes, strict=True):
            scores.append(label(level).permute(0, 2, 3, 1).flatten(1))
            boxes.append(box(level).permute(0, 2, 3, 1).flatten(1))
        return torch.cat(scores, 1).unflatten(1, (-1, self.classes)).sigmoid(), torch.cat(boxes, 1).unflatten(
            1, (-1, 4)
        )


def ssd_mobilenet_v1(width: float = 1.0) -> nn.Module:
    """SSD on MobileNet-v1 with pointwise predictors, as in the TensorFlow detection zoo."""
    blocks, widths = mobilenet_v1_blocks(width)
    return Ssd(Stages(blocks, (11, 13)), [widths[11], widths[13]], (512, 256, 256, 128), kernel=1)


def ssd_mobilenet_v2(width: float = 1.0, *, light: bool = False) -> nn.Module:
    """SSD or SSDLite on MobileNet-v2."""
    widths = mobilenet_v2_widths(width)
    last = divisible(1280 * max(width, 1.0))
    trunk = mobilenet_v2_stages(width, wanted=(5, 7))
    trunk.stages[7] = nn.Sequential(trunk.stages[7], ConvNormAct(widths[7], last, act=nn.ReLU6))
    return Ssd(trunk, [widths[5], last], (512, 256, 256, 128), light=light)


def inception(in_channels: int, plan: Sequence[int], stride: int = 1) -> nn.Module:
    """Batch-normalised inception block; `plan` holds 1x1, 3x3 in/out, double 3x3 in/out and pool widths."""
    single, narrow, wide, narrow2, wide2, pooled = plan
    branches: list[nn.Module] = [ConvNormAct(in_channels, single)] if single else []
    branches.append(nn.Sequential(ConvNormAct(in_channels, narrow), ConvNormAct(narrow, wide, 3, stride)))
    branches.append(
        nn.Sequential(
            ConvNormAct(in_channels, narrow2), ConvNormAct(narrow2, wide2, 3), ConvNormAct(wide2, wide2, 3, stride)
        )
    )
    pool: nn.Module = nn.MaxPool2d(3, stride, 1) if stride == 2 else nn.AvgPool2d(3, 1, 1)
    branches.append(nn.Sequential(pool, ConvNormAct(in_channels, pooled)) if pooled else pool)
    return ConcatBranches(*branches)


# in_channels, branch widths, stride of Inception-v2 (Ioffe and Szegedy 2015, figure 5)
_INCEPTION_V2 = (
    (192, (64, 64, 64, 64, 96, 32), 1),
    (256, (64, 64, 96, 64, 96, 64), 1),
    (320, (0, 128, 160, 64, 96, 0), 2),
    (576, (224, 64, 96, 96, 128, 128), 1),
    (576, (192, 96, 128, 96, 128, 128), 1),
    (576, (160, 128, 160, 128, 160, 96), 1),
    (576, (96, 128, 192, 160, 192, 96), 1),
    (576, (0, 128, 192, 192, 256, 0), 2),
    (1024, (352, 192, 320, 160, 224, 128), 1),
    (1024, (352, 192, 320, 192, 224, 128), 1),
)


def inception_v2_stages(wanted: Sequence[int]) -> Stages:
    """Stem (stage 0) and ten inception blocks."""
    stem = nn.Sequential(
        ConvNormAct(3, 64, 7, 2),
        nn.MaxPool2d(3, 2, 1),
        ConvNormAct(64, 64),
        ConvNormAct(64, 192, 3),
        nn.MaxPool2d(3, 2, 1),
    )
    return Stages([stem, *(inception(c, plan, stride) for c, plan, stride in _INCEPTION_V2)], wanted)


class Last(nn.Module):
    """Returns the last of several feature maps."""

    def __init__(self, stages: Stages) -> None:
        super().__init__()
        self.stages = stages

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, 3, H, W) to the last map."""
        last: Tensor = self.stages(x)[-1]
        return last


def inception_v2() -> nn.Module:
    """Inception-v2 (BN-Inception) classifier."""
    return classifier(Last(inception_v2_stages((10,))), 1024)


def ssd_inception_v2() -> nn.Module:
    """SSD on Inception-v2."""
    return Ssd(inception_v2_stages((7, 10)), [576, 1024], (512, 256, 256, 128))


def ssd_resnet(depths: Sequence[int], classes: int = 81) -> nn.Module:
    """SSD on a ResNet whose third stage is the first map and keeps stride 8, as in MLPerf's SSD-ResNet34."""
    backbone = resnet_stages(depths, (64, 128, 256, 512), output_stride=8, wanted=(3,))
    extras = (512, 512, 256, 256, 256)
    return Ssd(backbone, [256], extras, anchors=(4, 6, 6, 6, 4, 4), classes=classes)


class YoloHeads(nn.Module):
    """Heads at stride 32, 16 and 8: convolutions, output, upsampled features joined to the finer map."""

    def __init__(self, widths: Sequence[int], outputs: int, depth: int = 2) -> None:
        super().__init__()
        self.necks, self.heads, self.ups = nn.ModuleList(), nn.ModuleList(), nn.ModuleList()
        extra = 0
        for index, width in enumerate(reversed(widths)):
            half = width // 2
            neck: list[nn.Module] = [leaky(width + extra, half)]
            for _ in range(depth):
                neck += [leaky(half, width, 3), leaky(width, half)]
            self.necks.append(nn.Sequential(*neck))
            self.heads.append(nn.Sequential(leaky(half, width, 3), nn.Conv2d(width, outputs, 1)))
            if index < len(widths) - 1:
                extra = half // 2
                self.ups.append(nn.Sequential(leaky(half, extra), nn.Upsample(scale_factor=2)))

    def forward(self, maps: list[Tensor]) -> list[Tensor]:
        """Map feature maps, finest first, to raw predictions, coarsest first."""
        outputs = []
        x = maps[-1]
        for index, (neck, head) in enumerate(zip(self.necks, self.heads, strict=True)):
            x = neck(x)
            outputs.append(head(x))
            if index < len(self.ups):
                x = torch.cat([self.ups[index](x), maps[-2 - index]], 1)
        return outputs


class TinyHeads(nn.Module):
    """Heads of the tiny YOLOs at strides 32 and 16."""

    def __init__(self, fine: int, coarse: int, outputs: int) -> None:
        super().__init__()
        self.squeeze = leaky(coarse, 256)
        self.coarse = nn.Sequential(leaky(256, 512, 3), nn.Conv2d(512, outputs, 1))
        self.up = nn.Sequential(leaky(256, 128), nn.Upsample(scale_factor=2))
        self.fine = nn.Sequential(leaky(128 + fine, 256, 3), nn.Conv2d(256, outputs, 1))

    def forward(self, maps: list[Tensor]) -> list[Tensor]:
        """Map the maps of strides 16 and 32 to raw predictions, coarsest first."""
        squeezed = self.squeeze(maps[1])
        return [self.coarse(squeezed), self.fine(torch.cat([self.up(squeezed), maps[0]], 1))]


class Darknet(nn.Module):
    """Backbone with YOLO heads."""

    def __init__(self, backbone: Stages, heads: nn.Module) -> None:
        super().__init__()
        self.backbone, self.heads = backbone, heads

    def forward(self, x: Tensor) -> list[Tensor]:
        """Map images to raw predictions (N, anchors * (5 + classes), H, W) of each level."""
        outputs: list[Tensor] = self.heads(self.backbone(x))
        return outputs


def tiny_stages(width: int = 16, wanted: Sequence[int] = (4, 6)) -> Stages:
    """Tiny Darknet: 3x3 convolutions, each after the first behind a max pool; strides 1 to 32 and once more."""
    widths = [width * 2**i for i in range(7)]
    stages: list[nn.Module] = [leaky(3, width, 3)]
    for before, after in pairwise(widths[:6]):
        stages.append(nn.Sequential(nn.MaxPool2d(2, 2), leaky(before, after, 3)))
    keep = nn.Sequential(nn.ZeroPad2d((0, 1, 0, 1)), nn.MaxPool2d(2, 1))
    stages.append(nn.Sequential(keep, leaky(widths[5], widths[6], 3)))
    return Stages(stages, wanted)


def tiny_yolov3(classes: int = 80) -> nn.Module:
    """Tiny-YOLOv3 style: heads at strides 32 and 16."""
    return Darknet(tiny_stages(), TinyHeads(256, 1024, 3 * (5 + classes)))


def tiny_yolov2(classes: int = 20) -> nn.Module:
    """Tiny-YOLOv2: one output at stride 32."""
    trunk = Last(tiny_stages(wanted=(6,)))
    return nn.Sequential(trunk, leaky(1024, 1024, 3), nn.Conv2d(1024, 5 * (5 + classes), 1))


def darknet53_stages(act: Activation, *, partial_stages: bool = False, wanted: Sequence[int] = (3, 4, 5)) -> Stages:
    """Darknet-53; with `partial_stages` its cross-stage partial form (YOLOv4)."""
    conv = partial(ConvNormAct, act=act)
    stages: list[nn.Module] = [conv(3, 32, 3)]
    channels = 32
    for depth in (1, 2, 8, 8, 4):
        width = 2 * channels
        units: nn.Module
        if partial_stages:
            units = c3(width, width, depth, True)
        else:
            units = nn.Sequential(
                *(Residual(nn.Sequential(conv(width, channels), conv(channels, width, 3))) for _ in range(depth))
            )
        stages.append(nn.Sequential(conv(channels, width, 3, 2), units))
        channels = width
    return Stages(stages, wanted)


def yolov3(classes: int = 80) -> nn.Module:
    """YOLOv3: Darknet-53, heads at strides 32, 16 and 8."""
    trunk = darknet53_stages(partial(nn.LeakyReLU, 0.1))
    return Darknet(trunk, YoloHeads([256, 512, 1024], 3 * (5 + classes)))


def yolov4(classes: int = 80) -> nn.Module:
    """YOLOv4 style: cross-stage partial Darknet-53 with Mish."""
    return Darknet(darknet53_stages(nn.Mish, partial_stages=True), YoloHeads([256, 512, 1024], 3 * (5 + classes)))


class TinyPartial(nn.Module):
    """Stage of tiny-YOLOv4: the second half of the channels through two convolutions, everything concatenated."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        half = channels // 2
        self.half = half
        self.first, self.second, self.third = leaky(channels, channels, 3), leaky(half, half, 3), leaky(half, half, 3)
        self.mix = leaky(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C, H, W) to (N, 2 C, H, W)."""
        x = self.first(x)
        second = self.second(x.split(self.half, 1)[1])
        mixed = self.mix(torch.cat([self.third(second), second], 1))
        return torch.cat([x, mixed], 1)


def tiny_yolov4(classes: int = 80) -> nn.Module:
    """Tiny-YOLOv4 style: three partial stages, heads at strides 32 and 16."""
    stages: list[nn.Module] = [nn.Sequential(leaky(3, 32, 3, 2), leaky(32, 64, 3, 2))]
    for channels in (64, 128, 256):
        pool = nn.MaxPool2d(2, 2) if channels > 64 else nn.Identity()
        stages.append(nn.Sequential(pool, TinyPartial(channels)))
    stages.append(nn.Sequential(nn.MaxPool2d(2, 2), leaky(512, 512, 3)))
    return Darknet(Stages(stages, (3, 4)), TinyHeads(512, 512, 3 * (5 + classes)))


def fcn_resnet18(classes: int = 21) -> nn.Module:
    """FCN-ResNet18 of the Jetson inference zoo: ResNet-18 features, a 1x1 classifier at stride 32."""
    trunk = Last(resnet_stages(wanted=(4,)))
    return nn.Sequential(trunk, nn.Conv2d(512, classes, 1))


def fcn_resnet18_upsampled(classes: int = 21) -> nn.Module:
    """FCN-ResNet18 with its scores upsampled by a transposed convolution to full size."""
    up = nn.ConvTranspose2d(classes, classes, 64, 32, 16, groups=classes, bias=False)
    return nn.Sequential(fcn_resnet18(classes), up, nn.Softmax(1))


def _detector(name: str, family: str, lineage: str, source: str, build: partial[nn.Module], edge: int) -> None:
    own(f"classic.{name}", family, lineage, source, build, (3, edge, edge))


for _width, _edge in ((1.0, 224), (0.75, 192), (0.5, 160), (0.25, 128)):
    _detector(
        f"mobilenet-v1-{_width}", "mobilenet-v1", "mobilenet", "arXiv 1704.04861", partial(mobilenet_v1, _width), _edge
    )
_detector("inception-v2", "inception-v2", "inception", "arXiv 1502.03167", partial(inception_v2), 224)
for _name, _family, _build, _edge in (
    ("ssd-mobilenet-v1", "ssd-mobilenet", partial(ssd_mobilenet_v1), 300),
    ("ssd-mobilenet-v1-0.75", "ssd-mobilenet", partial(ssd_mobilenet_v1, 0.75), 300),
    ("ssd-mobilenet-v2", "ssd-mobilenet", partial(ssd_mobilenet_v2), 300),
    ("ssdlite-mobilenet-v2", "ssd-mobilenet", partial(ssd_mobilenet_v2, light=True), 320),
    ("ssd-inception-v2", "ssd-inception", partial(ssd_inception_v2), 300),
    ("ssd-resnet18", "ssd-resnet", partial(ssd_resnet, (2, 2, 2, 0)), 300),
    ("ssd-resnet34", "ssd-resnet", partial(ssd_resnet, (3, 4, 6, 0)), 512),
):
    _detector(_name, _family, "dense-detector", "arXiv 1512.02325", _build, _edge)
for _name, _family, _source, _build, _edge in (
    ("tiny-yolov2", "yolov2", "arXiv 1612.08242", partial(tiny_yolov2), 416),
    ("tiny-yolov3", "yolov3", "arXiv 1804.02767", partial(tiny_yolov3), 416),
    ("tiny-yolov3@608", "yolov3", "arXiv 1804.02767", partial(tiny_yolov3), 608),
    ("yolov3", "yolov3", "arXiv 1804.02767", partial(yolov3), 416),
    ("tiny-yolov4", "yolov4", "arXiv 2004.10934", partial(tiny_yolov4), 416),
    ("yolov4", "yolov4", "arXiv 2004.10934", partial(yolov4), 416),
):
    _detector(_name, _family, "yolo-anchor", _source, _build, _edge)
for _name, _build, _shape in (
    ("fcn-resnet18@256x512", fcn_resnet18, (3, 256, 512)),
    ("fcn-resnet18@512x1024", fcn_resnet18, (3, 512, 1024)),
    ("fcn-resnet18-upsampled", fcn_resnet18_upsampled, (3, 320, 512)),
):
    own(f"classic.{_name}", "fcn", "segmentation", "arXiv 1411.4038", _build, _shape)

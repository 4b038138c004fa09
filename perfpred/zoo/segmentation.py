"""Semantic segmentation networks: U-Nets, real-time, atrous and factorised ones, lane detection."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor, nn

from perfpred.zoo.blocks import (
    ConcatBranches,
    ConvNormAct,
    Residual,
    Stages,
    depthwise,
    mobilenet_v2_stages,
    mobilenet_v2_widths,
    resnet_stages,
)
from perfpred.zoo.own import own
from perfpred.zoo.realtime_segmentation import Bilateral, DualResolution, FastScnn, TwoPath, stdc_stages, up_to
from perfpred.zoo.unet import UNet, attention_unet, nested_unet, residual_unet, u2net
from perfpred.zoo.yolo import ChannelGate


class Atrous(nn.Module):
    """DeepLabV3+ decoder over a dilated backbone."""

    def __init__(
        self, backbone: Stages, fine: int, coarse: int, classes: int, rates: Sequence[int] = (6, 12, 18), *, light: bool
    ) -> None:
        super().__init__()
        self.backbone = backbone

        def conv(in_channels: int, out_channels: int, rate: int) -> nn.Module:
            if light:
                return nn.Sequential(depthwise(in_channels, 3, dilation=rate), ConvNormAct(in_channels, out_channels))
            return ConvNormAct(in_channels, out_channels, 3, dilation=rate)

        self.pyramid = ConcatBranches(ConvNormAct(coarse, 256), *(conv(coarse, 256, rate) for rate in rates))
        self.mean = nn.Sequential(nn.AdaptiveAvgPool2d(1), ConvNormAct(coarse, 256))
        self.project = ConvNormAct(256 * (len(rates) + 1), 256)
        self.fine = ConvNormAct(fine, 48)
        self.head = nn.Sequential(
            conv(304, 256, 1),
            conv(256, 256, 1),
            nn.Conv2d(256, classes, 1),
            nn.Upsample(scale_factor=4, mode="bilinear"),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Map images to class scores at full size."""
        fine, coarse = self.backbone(x)
        context = self.project(self.pyramid(coarse)) + self.mean(coarse)
        scores: Tensor = self.head(torch.cat([up_to(context, fine), self.fine(fine)], 1))
        return scores


class Mixed(nn.Module):
    """Decoder that adds resized projections of every level (LinkNet, PP-LiteSeg and FPN style)."""

    def __init__(
        self, backbone: Stages, channels: Sequence[int], width: int, classes: int, stride: int, *, gate: bool
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.lateral = nn.ModuleList([ConvNormAct(c, width) for c in channels])
        self.smooth = nn.ModuleList([ConvNormAct(width, width, 3) for _ in channels[:-1]])
        self.gates = nn.ModuleList([ChannelGate(width) if gate else nn.Identity() for _ in channels[:-1]])
        self.head = nn.Sequential(nn.Conv2d(width, classes, 1), nn.Upsample(scale_factor=stride, mode="bilinear"))

    def forward(self, x: Tensor) -> Tensor:
        """Map images to class scores at full size."""
        maps = [lateral(level) for lateral, level in zip(self.lateral, self.backbone(x), strict=True)]
        out = maps[-1]
        for index in range(len(maps) - 2, -1, -1):
            out = self.smooth[index](self.gates[index](maps[index] + up_to(out, maps[index])))
        scores: Tensor = self.head(out)
        return scores


def factorised(channels: int, dilation: int = 1) -> nn.Module:
    """ERFNet unit: two pairs of 3x1 and 1x3 convolutions, the second dilated."""
    body = nn.Sequential(
        ConvNormAct(channels, channels, (3, 1), norm=False),
        ConvNormAct(channels, channels, (1, 3)),
        ConvNormAct(channels, channels, (3, 1), dilation=dilation, norm=False),
        ConvNormAct(channels, channels, (1, 3), dilation=dilation, act=None),
    )
    return Residual(body, act=nn.ReLU)


def _join_pool(in_channels: int, out_channels: int) -> nn.Module:
    return nn.Sequential(
        ConcatBranches(nn.Conv2d(in_channels, out_channels - in_channels, 3, 2, 1), nn.MaxPool2d(2, 2)),
        nn.BatchNorm2d(out_channels),
        nn.ReLU(),
    )


def _deconv(in_channels: int, out_channels: int) -> nn.Module:
    return nn.Sequential(
        nn.ConvTranspose2d(in_channels, out_channels, 3, 2, 1, 1), nn.BatchNorm2d(out_channels), nn.ReLU()
    )


def erfnet(classes: int = 19) -> nn.Module:
    """ERFNet: factorised residual units, transposed-convolution decoder."""
    encoder = [_join_pool(3, 16), _join_pool(16, 64), *(factorised(64) for _ in range(5)), _join_pool(64, 128)]
    encoder += [factorised(128, dilation) for _ in range(2) for dilation in (2, 4, 8, 16)]
    decoder = [_deconv(128, 64), factorised(64), factorised(64), _deconv(64, 16), factorised(16), factorised(16)]
    return nn.Sequential(*encoder, *decoder, nn.ConvTranspose2d(16, classes, 2, 2))


def enet(classes: int = 19) -> nn.Module:
    """ENet style: narrow bottlenecks, dilated and asymmetric, with PReLU."""

    def unit(channels: int, kernel: int | tuple[int, int] = 3, dilation: int = 1) -> nn.Module:
        width = channels // 4
        act = partial(nn.PReLU, width)
        middle: list[nn.Module] = [ConvNormAct(width, width, kernel, dilation=dilation, act=act)]
        if isinstance(kernel, tuple):
            middle.append(ConvNormAct(width, width, kernel[::-1], act=act))
        body = nn.Sequential(ConvNormAct(channels, width, act=act), *middle, ConvNormAct(width, channels, act=None))
        return Residual(body, act=partial(nn.PReLU, channels))

    plan: tuple[tuple[int | tuple[int, int], int], ...] = (
        (3, 1),
        (3, 2),
        ((5, 1), 1),
        (3, 4),
        (3, 1),
        (3, 8),
        ((5, 1), 1),
        (3, 16),
    )
    context = [unit(128, kernel, dilation) for _ in range(2) for kernel, dilation in plan]
    return nn.Sequential(
        _join_pool(3, 16),
        _join_pool(16, 64),
        *(unit(64) for _ in range(4)),
        _join_pool(64, 128),
        *context,
        _deconv(128, 64),
        unit(64),
        unit(64),
        _deconv(64, 16),
        unit(16),
        nn.ConvTranspose2d(16, classes, 2, 2),
    )


def lanes(depths: Sequence[int], grids: int = 101, rows: int = 56, count: int = 4) -> nn.Module:
    """Ultra-fast lane detection: ResNet, a narrow projection and row-wise classification by a large linear layer."""

    class LastMap(nn.Module):
        """Backbone's last map."""

        def __init__(self) -> None:
            super().__init__()
            self.stages = resnet_stages(depths, wanted=(4,))

        def forward(self, x: Tensor) -> Tensor:
            """Map (N, 3, H, W) to (N, 512, H / 32, W / 32)."""
            last: Tensor = self.stages(x)[0]
            return last

    return nn.Sequential(
        LastMap(),
        nn.Conv2d(512, 8, 1),
        nn.Flatten(1),
        nn.Linear(8 * 9 * 25, 2048),
        nn.ReLU(),
        nn.Linear(2048, grids * rows * count),
        nn.Unflatten(1, (grids, rows, count)),
        nn.Softmax(1),
    )


def _mobile_unet_like(width: float, classes: int, fused: int) -> nn.Module:
    widths = mobilenet_v2_widths(width)
    backbone = mobilenet_v2_stages(width, wanted=(1, 2, 3, 5, 7))
    return Mixed(backbone, [widths[i] for i in (1, 2, 3, 5, 7)], fused, classes, 2, gate=False)


def _deeplab_mobile(width: float, classes: int) -> nn.Module:
    widths = mobilenet_v2_widths(width)
    return Atrous(mobilenet_v2_stages(width, wanted=(2, 5)), widths[2], widths[5], classes, (2, 4, 6), light=True)


_R18, _R34, _W18 = (2, 2, 2, 2), (3, 4, 6, 3), (64, 128, 256, 512)
_UNETS: tuple[tuple[str, str, Callable[[], nn.Module], tuple[int, int, int]], ...] = (
    ("unet-64@256", "arXiv 1505.04597", partial(UNet, (64, 128, 256, 512, 1024)), (3, 256, 256)),
    ("unet-32", "arXiv 1505.04597", partial(UNet, (32, 64, 128, 256, 512)), (3, 512, 512)),
    ("unet-16", "arXiv 1505.04597", partial(UNet, (16, 32, 64, 128, 256), 1), (1, 512, 512)),
    ("unet-16-bilinear", "arXiv 1505.04597", partial(UNet, (16, 32, 64, 128), learned=False), (3, 384, 384)),
    ("unet-24-bilinear", "arXiv 1505.04597", partial(UNet, (24, 48, 96, 192, 384), learned=False), (3, 288, 480)),
    ("resunet-32", "arXiv 1711.10684", partial(residual_unet, (32, 64, 128, 256)), (3, 320, 320)),
    ("attention-unet-32", "arXiv 1804.03999", partial(attention_unet, (32, 64, 128, 256)), (3, 256, 256)),
    ("unetpp-16", "arXiv 1807.10165", partial(nested_unet, (16, 32, 64, 128, 256)), (3, 256, 256)),
    ("u2net-lite", "arXiv 2005.09007", partial(u2net, 16, 64), (3, 320, 320)),
)
for _name, _source, _build, _shape in _UNETS:
    own(f"segmentation.{_name}", "unet", "unet", _source, _build, _shape)

_SEGMENTATION: tuple[tuple[str, str, str, Callable[[], nn.Module], tuple[int, int, int]], ...] = (
    (
        "bisenet-r18",
        "bisenet",
        "arXiv 1808.00897",
        lambda: TwoPath(resnet_stages(_R18, wanted=(2, 3, 4)), _W18[1:], 19, spatial=True),
        (3, 512, 1024),
    ),
    ("bisenetv2", "bisenet", "arXiv 2004.02147", Bilateral, (3, 512, 1024)),
    (
        "stdc1",
        "stdc",
        "arXiv 2104.13188",
        lambda: TwoPath(stdc_stages((2, 2, 2)), (256, 512, 1024), 19, spatial=False),
        (3, 512, 1024),
    ),
    (
        "stdc2@384x768",
        "stdc",
        "arXiv 2104.13188",
        lambda: TwoPath(stdc_stages((4, 5, 3)), (256, 512, 1024), 19, spatial=False),
        (3, 384, 768),
    ),
    ("ddrnet-23-slim", "ddrnet", "arXiv 2101.06085", partial(DualResolution, 32, 2, 64, 19), (3, 512, 1024)),
    ("ddrnet-23", "ddrnet", "arXiv 2101.06085", partial(DualResolution, 64, 2, 128, 19), (3, 512, 512)),
    ("pidnet-s", "ddrnet", "arXiv 2206.02066", partial(DualResolution, 32, 3, 128, 19, gated=True), (3, 512, 1024)),
    ("fast-scnn", "fast-scnn", "arXiv 1902.04502", FastScnn, (3, 512, 1024)),
    ("fast-scnn-wide", "fast-scnn", "arXiv 1902.04502", partial(FastScnn, 21, 2), (3, 512, 512)),
    ("erfnet", "erfnet", "Romera et al. 2018, ERFNet", erfnet, (3, 512, 512)),
    ("enet", "enet", "arXiv 1606.02147", enet, (3, 512, 512)),
    ("deeplabv3p-mobilenetv2", "deeplab", "arXiv 1802.02611", partial(_deeplab_mobile, 1.0, 21), (3, 512, 512)),
    ("deeplabv3p-mobilenetv2-0.5", "deeplab", "arXiv 1802.02611", partial(_deeplab_mobile, 0.5, 19), (3, 256, 512)),
    (
        "deeplabv3p-r18",
        "deeplab",
        "arXiv 1802.02611",
        lambda: Atrous(resnet_stages(_R18, output_stride=16, wanted=(1, 4)), 64, 512, 21, light=False),
        (3, 512, 512),
    ),
    (
        "linknet-r18",
        "linknet",
        "arXiv 1707.03718",
        lambda: Mixed(resnet_stages(_R18), _W18, 64, 21, 4, gate=False),
        (3, 512, 512),
    ),
    (
        "liteseg-stdc1",
        "liteseg",
        "arXiv 2204.02681",
        lambda: Mixed(stdc_stages((2, 2, 2)), (256, 512, 1024), 96, 19, 8, gate=True),
        (3, 512, 1024),
    ),
    ("fpn-mobilenetv2", "fpn-segmentation", "arXiv 1901.02446", partial(_mobile_unet_like, 1.0, 19, 64), (3, 512, 512)),
    (
        "portrait-mobilenetv2-0.5",
        "fpn-segmentation",
        "arXiv 1901.02446",
        partial(_mobile_unet_like, 0.5, 1, 32),
        (3, 256, 256),
    ),
    ("lanes-r18", "ufld", "arXiv 2004.11757", partial(lanes, _R18), (3, 288, 800)),
    ("lanes-r34", "ufld", "arXiv 2004.11757", partial(lanes, _R34, 201, 18), (3, 288, 800)),
)
for _name, _family, _source, _build, _shape in _SEGMENTATION:
    own(f"segmentation.{_name}", _family, "segmentation", _source, _build, _shape)

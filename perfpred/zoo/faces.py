"""Small face networks run in cascades or on crops: MTCNN, FaceNet, MobileFaceNet, BlazeFace and the like."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor, nn

from perfpred.zoo.blocks import (
    ConcatBranches,
    ConvNormAct,
    Residual,
    Stages,
    basic_block,
    depthwise,
    inverted_residual,
    separable,
)
from perfpred.zoo.classic import mobilenet_v1_blocks
from perfpred.zoo.own import own
from perfpred.zoo.pyramid import TopDown


class Cascade(nn.Module):
    """MTCNN stage: convolutions with PReLU, then face score, box (and landmarks)."""

    def __init__(self, body: nn.Module, heads: Sequence[nn.Module]) -> None:
        super().__init__()
        self.body, self.heads = body, nn.ModuleList(heads)

    def forward(self, x: Tensor) -> list[Tensor]:
        """Map images to class probabilities, box offsets and, where there are three heads, landmarks."""
        x = self.body(x)
        score, *rest = (head(x) for head in self.heads)
        return [score.softmax(1), *rest]


def _prelu(in_channels: int, out_channels: int, kernel: int) -> list[nn.Module]:
    return [nn.Conv2d(in_channels, out_channels, kernel), nn.PReLU(out_channels)]


def proposal_net() -> nn.Module:
    """P-Net, fully convolutional."""
    pool = nn.MaxPool2d(2, 2, ceil_mode=True)
    body = nn.Sequential(*_prelu(3, 10, 3), pool, *_prelu(10, 16, 3), *_prelu(16, 32, 3))
    return Cascade(body, [nn.Conv2d(32, 2, 1), nn.Conv2d(32, 4, 1)])


def refine_net() -> nn.Module:
    """R-Net on 24x24 crops."""
    pools = [nn.MaxPool2d(3, 2, ceil_mode=True) for _ in range(2)]
    body = nn.Sequential(
        *_prelu(3, 28, 3),
        pools[0],
        *_prelu(28, 48, 3),
        pools[1],
        *_prelu(48, 64, 2),
        nn.Flatten(1),
        nn.Linear(576, 128),
        nn.PReLU(128),
    )
    return Cascade(body, [nn.Linear(128, 2), nn.Linear(128, 4)])


def output_net() -> nn.Module:
    """O-Net on 48x48 crops."""
    pools = [nn.MaxPool2d(3, 2, ceil_mode=True), nn.MaxPool2d(3, 2, ceil_mode=True), nn.MaxPool2d(2, 2, ceil_mode=True)]
    body = nn.Sequential(
        *_prelu(3, 32, 3),
        pools[0],
        *_prelu(32, 64, 3),
        pools[1],
        *_prelu(64, 64, 3),
        pools[2],
        *_prelu(64, 128, 2),
        nn.Flatten(1),
        nn.Linear(1152, 256),
        nn.PReLU(256),
    )
    return Cascade(body, [nn.Linear(256, 2), nn.Linear(256, 4), nn.Linear(256, 10)])


def _mixed(channels: int, branches: Sequence[nn.Module], joined: int, scale: float, *, last: bool = False) -> nn.Module:
    body = nn.Sequential(ConcatBranches(*branches), nn.Conv2d(joined, channels, 1))
    return Residual(body, act=None if last else nn.ReLU, scale=scale)


def _block35(channels: int = 256) -> nn.Module:
    branches = [
        ConvNormAct(channels, 32),
        nn.Sequential(ConvNormAct(channels, 32), ConvNormAct(32, 32, 3)),
        nn.Sequential(ConvNormAct(channels, 32), ConvNormAct(32, 32, 3), ConvNormAct(32, 32, 3)),
    ]
    return _mixed(channels, branches, 96, 0.17)


def _block17(channels: int = 896) -> nn.Module:
    asymmetric = nn.Sequential(ConvNormAct(channels, 128), ConvNormAct(128, 128, (1, 7)), ConvNormAct(128, 128, (7, 1)))
    return _mixed(channels, [ConvNormAct(channels, 128), asymmetric], 256, 0.10)


def _block8(channels: int = 1792, *, last: bool = False) -> nn.Module:
    asymmetric = nn.Sequential(ConvNormAct(channels, 192), ConvNormAct(192, 192, (1, 3)), ConvNormAct(192, 192, (3, 1)))
    return _mixed(channels, [ConvNormAct(channels, 192), asymmetric], 384, 1.0 if last else 0.20, last=last)


def _valid(in_channels: int, out_channels: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, 3, stride, bias=False), nn.BatchNorm2d(out_channels), nn.ReLU()
    )


class UnitLength(nn.Module):
    """Scales embeddings to unit length."""

    def forward(self, x: Tensor) -> Tensor:
        """Keep the shape (N, C)."""
        return x / (x.square().sum(1, keepdim=True) + 1e-12).sqrt()


def facenet(embedding: int = 512) -> nn.Module:
    """FaceNet style: Inception-ResNet-v1 with unit-length embeddings."""
    reduce_a = ConcatBranches(
        _valid(256, 384, 2),
        nn.Sequential(ConvNormAct(256, 192), ConvNormAct(192, 192, 3), _valid(192, 256, 2)),
        nn.MaxPool2d(3, 2),
    )
    reduce_b = ConcatBranches(
        nn.Sequential(ConvNormAct(896, 256), _valid(256, 384, 2)),
        nn.Sequential(ConvNormAct(896, 256), _valid(256, 256, 2)),
        nn.Sequential(ConvNormAct(896, 256), ConvNormAct(256, 256, 3), _valid(256, 256, 2)),
        nn.MaxPool2d(3, 2),
    )
    return nn.Sequential(
        _valid(3, 32, 2),
        _valid(32, 32),
        ConvNormAct(32, 64, 3),
        nn.MaxPool2d(3, 2),
        ConvNormAct(64, 80),
        _valid(80, 192),
        _valid(192, 256, 2),
        *(_block35() for _ in range(5)),
        reduce_a,
        *(_block17() for _ in range(10)),
        reduce_b,
        *(_block8() for _ in range(5)),
        _block8(last=True),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(1),
        nn.Linear(1792, embedding, bias=False),
        nn.BatchNorm1d(embedding),
        UnitLength(),
    )


def mobilefacenet(width: int = 64, embedding: int = 128) -> nn.Module:
    """MobileFaceNet: inverted residuals with PReLU and a global depthwise convolution."""
    layers: list[nn.Module] = [ConvNormAct(3, width, 3, 2, act=partial(nn.PReLU, width)), depthwise(width)]
    channels = width
    for expansion, out, blocks, stride in (
        (2, width, 5, 2),
        (4, 2 * width, 1, 2),
        (2, 2 * width, 6, 1),
        (4, 2 * width, 1, 2),
        (2, 2 * width, 2, 1),
    ):
        for i in range(blocks):
            act = partial(nn.PReLU, channels * expansion)
            layers.append(
                inverted_residual(channels, out, stride=stride if i == 0 else 1, expansion=expansion, act=act)
            )
            channels = out
    layers += [ConvNormAct(channels, 512), nn.Conv2d(512, 512, 7, groups=512, bias=False), nn.BatchNorm2d(512)]
    return nn.Sequential(*layers, nn.Flatten(1), nn.Linear(512, embedding), UnitLength())


def arcface_resnet(depths: Sequence[int]) -> nn.Module:
    """ArcFace style: residual network on 112x112 crops without early pooling, a linear embedding of all cells."""
    layers: list[nn.Module] = [ConvNormAct(3, 64, 3, act=partial(nn.PReLU, 64))]
    channels = 64
    for depth, width in zip(depths, (64, 128, 256, 512), strict=True):
        for i in range(depth):
            stride = 2 if i == 0 else 1
            skip = ConvNormAct(channels, width, 1, stride, act=None) if stride == 2 or channels != width else None
            body = nn.Sequential(
                nn.BatchNorm2d(channels),
                ConvNormAct(channels, width, 3, act=partial(nn.PReLU, width)),
                ConvNormAct(width, width, 3, stride, act=None),
            )
            layers.append(Residual(body, skip))
            channels = width
    return nn.Sequential(*layers, nn.BatchNorm2d(512), nn.Flatten(1), nn.Linear(512 * 49, 512), nn.BatchNorm1d(512))


class Anchored(nn.Module):
    """Face detector: feature maps, one score and one box convolution each."""

    def __init__(self, backbone: nn.Module, widths: Sequence[int], anchors: Sequence[int], box: int) -> None:
        super().__init__()
        self.backbone, self.box = backbone, box
        pairs = list(zip(widths, anchors, strict=True))
        self.scores = nn.ModuleList([nn.Conv2d(c, a, 3, 1, 1) for c, a in pairs])
        self.boxes = nn.ModuleList([nn.Conv2d(c, a * box, 3, 1, 1) for c, a in pairs])

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Map images to scores (N, A) and boxes with landmarks (N, A, box)."""
        maps = self.backbone(x)
        scores = [head(x).permute(0, 2, 3, 1).flatten(1) for head, x in zip(self.scores, maps, strict=True)]
        boxes = [head(x).permute(0, 2, 3, 1).flatten(1) for head, x in zip(self.boxes, maps, strict=True)]
        return torch.cat(scores, 1).sigmoid(), torch.cat(boxes, 1).unflatten(1, (-1, self.box))


def _blaze(in_channels: int, out_channels: int, stride: int = 1) -> nn.Module:
    body = nn.Sequential(depthwise(in_channels, 5, stride, act=None), ConvNormAct(in_channels, out_channels, act=None))
    skip: list[nn.Module] = [nn.MaxPool2d(2, 2)] if stride == 2 else []
    if in_channels != out_channels:
        skip.append(ConvNormAct(in_channels, out_channels, act=None))
    return Residual(body, nn.Sequential(*skip), nn.ReLU)


def blazeface() -> nn.Module:
    """BlazeFace: 5x5 depthwise residual blocks, maps at strides 8 and 16."""
    first = [
        ConvNormAct(3, 24, 5, 2),
        _blaze(24, 24),
        _blaze(24, 28),
        _blaze(28, 32, 2),
        _blaze(32, 36),
        _blaze(36, 42),
    ]
    first += [_blaze(42, 48, 2), _blaze(48, 56), _blaze(56, 64), _blaze(64, 72), _blaze(72, 80), _blaze(80, 88)]
    second = [_blaze(88, 96, 2), *(_blaze(96, 96) for _ in range(4))]
    return Anchored(Stages([nn.Sequential(*first), nn.Sequential(*second)], (0, 1)), (88, 96), (2, 6), 16)


def ultraface() -> nn.Module:
    """Ultra-light face detector style: narrow separable network on 320x240, four maps."""
    widths = (16, 32, 32, 32, 32, 64, 64, 64, 64, 128, 128, 256, 256)
    strides = (1, 2, 1, 2, 1, 1, 1, 1, 2, 1, 2, 1)
    blocks: list[nn.Module] = [ConvNormAct(3, widths[0], 3, 2)]
    for before, after, stride in zip(widths[:-1], widths[1:], strides, strict=True):
        blocks.append(separable(before, after, 3, stride))
    blocks.append(nn.Sequential(ConvNormAct(256, 64), separable(64, 256, 3, 2)))
    return Anchored(Stages(blocks, (8, 10, 12, 13)), (64, 128, 256, 256), (3, 2, 2, 3), 4)


class ContextHeads(nn.Module):
    """FPN whose maps pass a context block of parallel 3x3, 5x5 and 7x7 fields (SSH)."""

    def __init__(self, backbone: nn.Module, channels: Sequence[int], width: int) -> None:
        super().__init__()
        self.backbone, self.neck = backbone, TopDown(channels, width)
        self.context = nn.ModuleList()
        for _ in channels:
            reduce = ConvNormAct(width, width // 4, 3)
            five = nn.Sequential(reduce, ConvNormAct(width // 4, width // 4, 3, act=None))
            seven = nn.Sequential(
                ConvNormAct(width, width // 4, 3),
                ConvNormAct(width // 4, width // 4, 3),
                ConvNormAct(width // 4, width // 4, 3),
            )
            block = ConcatBranches(ConvNormAct(width, width // 2, 3, act=None), five, seven)
            self.context.append(nn.Sequential(block, nn.ReLU()))

    def forward(self, x: Tensor) -> list[Tensor]:
        """Map images to three feature maps."""
        maps = self.neck(self.backbone(x))
        return [context(level) for context, level in zip(self.context, maps, strict=True)]


def retinaface(width: float = 0.25) -> nn.Module:
    """RetinaFace on MobileNet-v1: FPN, context blocks, boxes and landmarks."""
    blocks, widths = mobilenet_v1_blocks(width)
    fused = max(round(256 * width), 64)
    trunk = ContextHeads(Stages(blocks, (5, 11, 13)), [widths[5], widths[11], widths[13]], fused)
    return Anchored(trunk, (fused,) * 3, (2, 2, 2), 14)


def landmarks(width: int = 64) -> nn.Module:
    """PFLD style landmark regressor: inverted residuals on 112x112 crops, multi-scale pooling."""
    layers: list[nn.Module] = [ConvNormAct(3, width, 3, 2), depthwise(width)]
    channels = width
    for expansion, out, blocks, stride in ((2, width, 5, 2), (2, 2 * width, 1, 2), (4, 2 * width, 6, 1), (2, 16, 1, 1)):
        for i in range(blocks):
            layers.append(
                inverted_residual(channels, out, stride=stride if i == 0 else 1, expansion=expansion, act=nn.ReLU)
            )
            channels = out
    scales = ConcatBranches(
        nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(1)),
        nn.Sequential(ConvNormAct(16, 32, 3, 2), nn.AdaptiveAvgPool2d(1), nn.Flatten(1)),
        nn.Sequential(ConvNormAct(16, 32, 3, 2), nn.Conv2d(32, 128, 7), nn.ReLU(), nn.Flatten(1)),
    )
    return nn.Sequential(*layers, scales, nn.Linear(16 + 32 + 128, 196))


def emotion() -> nn.Module:
    """Small residual classifier of 64x64 grey faces, as emotion and age networks are."""
    blocks = [basic_block(32, 32), basic_block(32, 64, 2), basic_block(64, 128, 2), basic_block(128, 256, 2)]
    return nn.Sequential(ConvNormAct(1, 32, 5, 2), *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(1), nn.Linear(256, 8))


for _name, _family, _source, _build, _shape in (
    ("mtcnn-pnet@12", "mtcnn", "arXiv 1604.02878", proposal_net, (3, 12, 12)),
    ("mtcnn-pnet@216x384", "mtcnn", "arXiv 1604.02878", proposal_net, (3, 216, 384)),
    ("mtcnn-pnet@720x1280", "mtcnn", "arXiv 1604.02878", proposal_net, (3, 720, 1280)),
    ("mtcnn-rnet", "mtcnn", "arXiv 1604.02878", refine_net, (3, 24, 24)),
    ("mtcnn-onet", "mtcnn", "arXiv 1604.02878", output_net, (3, 48, 48)),
    ("facenet", "facenet", "arXiv 1503.03832 and 1602.07261", facenet, (3, 160, 160)),
    ("facenet-128", "facenet", "arXiv 1503.03832 and 1602.07261", partial(facenet, 128), (3, 149, 149)),
    ("mobilefacenet", "mobilefacenet", "arXiv 1804.07573", mobilefacenet, (3, 112, 112)),
    ("arcface-r18", "arcface", "arXiv 1801.07698", partial(arcface_resnet, (2, 2, 2, 2)), (3, 112, 112)),
    ("arcface-r50", "arcface", "arXiv 1801.07698", partial(arcface_resnet, (3, 4, 14, 3)), (3, 112, 112)),
    ("blazeface", "blazeface", "arXiv 1907.05047", blazeface, (3, 128, 128)),
    ("ultraface", "ultraface", "Ultra-Light face detector description", ultraface, (3, 240, 320)),
    ("retinaface-0.25", "retinaface", "arXiv 1905.00641", retinaface, (3, 640, 640)),
    ("retinaface-0.5", "retinaface", "arXiv 1905.00641", partial(retinaface, 0.5), (3, 320, 320)),
    ("pfld", "pfld", "arXiv 1902.10859", landmarks, (3, 112, 112)),
    ("pfld-half", "pfld", "arXiv 1902.10859", partial(landmarks, 32), (3, 112, 112)),
    ("face-emotion", "face-classifier", "own design", emotion, (1, 64, 64)),
):
    own(f"face.{_name}", _family, "cascade", _source, _build, _shape)

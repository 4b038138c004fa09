"""Key-point heat maps and monocular depth: pose networks, hourglasses, high-resolution networks, depth decoders."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional

from perfpred.zoo.blocks import (
    ConvNormAct,
    Residual,
    Stages,
    basic_block,
    bottleneck,
    encoder_block,
    mobilenet_v2_stages,
    mobilenet_v2_widths,
    resnet_stages,
    separable,
)
from perfpred.zoo.classic import Last, mobilenet_v1_blocks
from perfpred.zoo.own import own


def simple_pose(depths: Sequence[int], *, bottlenecks: bool, joints: int = 17, width: int = 256) -> nn.Module:
    """Simple baseline: ResNet and three transposed convolutions."""
    layers: list[nn.Module] = [Last(resnet_stages(depths, bottlenecks=bottlenecks, wanted=(4,)))]
    channels = 2048 if bottlenecks else 512
    for _ in range(3):
        layers += [nn.ConvTranspose2d(channels, width, 4, 2, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
        channels = width
    return nn.Sequential(*layers, nn.Conv2d(width, joints, 1))


def light_pose(width: float, joints: int = 17) -> nn.Module:
    """MobileNet-v2 with separable upsampling stages (MoveNet and BlazePose style)."""
    channels = mobilenet_v2_widths(width)[7]
    layers: list[nn.Module] = [Last(mobilenet_v2_stages(width, wanted=(7,)))]
    for out in (96, 64, 32):
        layers += [nn.Upsample(scale_factor=2, mode="bilinear"), separable(channels, out, 5)]
        channels = out
    return nn.Sequential(*layers, nn.Conv2d(channels, joints, 1), nn.Sigmoid())


class Hourglass(nn.Module):
    """Recursive encoder-decoder of residual blocks, skips added."""

    def __init__(self, depth: int, width: int) -> None:
        super().__init__()
        self.skip, self.enter, self.leave = (basic_block(width, width) for _ in range(3))
        self.inner = Hourglass(depth - 1, width) if depth > 1 else basic_block(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Keep the shape (N, C, H, W)."""
        inner = self.leave(self.inner(self.enter(functional.max_pool2d(x, 2, 2))))
        out: Tensor = self.skip(x) + functional.interpolate(inner, scale_factor=2.0)
        return out


class StackedHourglass(nn.Module):
    """Stacked hourglasses at stride 4, each heat map fed into the next."""

    def __init__(self, stacks: int, width: int, joints: int = 16) -> None:
        super().__init__()
        self.stem = nn.Sequential(ConvNormAct(3, width // 2, 7, 2), basic_block(width // 2, width), nn.MaxPool2d(2, 2))
        self.glasses = nn.ModuleList(
            [nn.Sequential(Hourglass(4, width), ConvNormAct(width, width)) for _ in range(stacks)]
        )
        self.heat = nn.ModuleList([nn.Conv2d(width, joints, 1) for _ in range(stacks)])
        self.back = nn.ModuleList([nn.Conv2d(joints, width, 1) for _ in range(stacks - 1)])

    def forward(self, x: Tensor) -> Tensor:
        """Map images to the last heat maps (N, joints, H / 4, W / 4)."""
        x = self.stem(x)
        for glass, heat, back in zip(self.glasses[:-1], self.heat[:-1], self.back, strict=True):
            y = glass(x)
            x = x + y + back(heat(y))
        last: Tensor = self.heat[-1](self.glasses[-1](x))
        return last


class Exchange(nn.Module):
    """One HRNet module: residual blocks at each resolution, then every resolution to every other."""

    def __init__(self, widths: Sequence[int], blocks: int) -> None:
        super().__init__()
        self.branches = nn.ModuleList([nn.Sequential(*(basic_block(w, w) for _ in range(blocks))) for w in widths])
        self.fuse = nn.ModuleList()
        for target, out in enumerate(widths):
            row = nn.ModuleList()
            for source, width in enumerate(widths):
                steps: list[nn.Module] = []
                if source > target:
                    steps = [ConvNormAct(width, out, act=None), nn.Upsample(scale_factor=2 ** (source - target))]
                elif source < target:
                    steps = [ConvNormAct(width, width, 3, 2) for _ in range(target - source - 1)]
                    steps.append(ConvNormAct(width, out, 3, 2, act=None))
                row.append(nn.Sequential(*steps))
            self.fuse.append(row)

    def forward(self, maps: list[Tensor]) -> list[Tensor]:
        """Keep the shapes, finest first."""
        maps = [branch(x) for branch, x in zip(self.branches, maps, strict=True)]
        outputs = []
        for row in self.fuse:
            assert isinstance(row, nn.ModuleList)
            total = row[0](maps[0])
            for step, x in zip(row[1:], maps[1:], strict=True):
                total = total + step(x)
            outputs.append(total.relu())
        return outputs


class HighResolution(nn.Module):
    """HRNet with a pose head, or with all resolutions joined for segmentation."""

    def __init__(self, width: int, modules: Sequence[int], outputs: int, *, joined: bool, blocks: int = 4) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            ConvNormAct(3, 64, 3, 2),
            ConvNormAct(64, 64, 3, 2),
            bottleneck(64, 64),
            *(bottleneck(256, 64) for _ in range(3)),
        )
        self.opens, self.stages = nn.ModuleList(), nn.ModuleList()
        widths = [width]
        self.first = ConvNormAct(256, width, 3)
        for count in modules:
            self.opens.append(ConvNormAct(256 if len(widths) == 1 else widths[-1], 2 * widths[-1], 3, 2))
            widths = [*widths, 2 * widths[-1]]
            self.stages.append(nn.Sequential(*(Exchange(widths, blocks) for _ in range(count))))
        total = sum(widths) if joined else width
        self.joined = joined
        self.head = (
            nn.Sequential(ConvNormAct(total, total), nn.Conv2d(total, outputs, 1))
            if joined
            else nn.Conv2d(width, outputs, 1)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Map images to maps of `outputs` channels at stride 4."""
        x = self.stem(x)
        maps = [self.first(x)]
        for index, (opening, stage) in enumerate(zip(self.opens, self.stages, strict=True)):
            maps = stage([*maps, opening(x if index == 0 else maps[-1])])
        if self.joined:
            size = (maps[0].shape[2], maps[0].shape[3])
            maps = [torch.cat([maps[0], *(functional.interpolate(m, size, mode="bilinear") for m in maps[1:])], 1)]
        out: Tensor = self.head(maps[0])
        return out


class PartFields(nn.Module):
    """Light OpenPose: MobileNet-v1 features, an initial stage and refinements of heat maps and part fields."""

    def __init__(self, refinements: int, width: int = 128, joints: int = 19, fields: int = 38) -> None:
        super().__init__()
        blocks, widths = mobilenet_v1_blocks(1.0)
        blocks = blocks[:12]
        # the last strided block keeps its resolution, so that maps stay at stride 8
        blocks[6] = separable(widths[5], widths[6])
        self.features = nn.Sequential(*blocks, ConvNormAct(widths[11], width, norm=False))
        self.context = Residual(nn.Sequential(*(separable(width, width, act=nn.ELU) for _ in range(3))))
        self.trunk = nn.Sequential(*(ConvNormAct(width, width, 3, norm=False) for _ in range(3)))
        self.outputs = nn.ModuleList(
            [nn.Sequential(ConvNormAct(width, 512, norm=False), nn.Conv2d(512, n, 1)) for n in (joints, fields)]
        )
        self.refine = nn.ModuleList()
        for _ in range(refinements):
            steps: list[nn.Module] = [ConvNormAct(width + joints + fields, width, norm=False)]
            steps += [
                Residual(nn.Sequential(ConvNormAct(width, width, 3), ConvNormAct(width, width, 3, dilation=2)))
                for _ in range(5)
            ]
            self.refine.append(nn.Sequential(*steps, nn.Conv2d(width, joints + fields, 1)))

    def forward(self, x: Tensor) -> Tensor:
        """Map images to heat maps and part fields (N, joints + fields, H / 8, W / 8)."""
        features = self.context(self.features(x))
        trunk = self.trunk(features)
        maps = torch.cat([head(trunk) for head in self.outputs], 1)
        for refine in self.refine:
            maps = refine(torch.cat([features, maps], 1))
        return maps


class CoordinateBins(nn.Module):
    """RTMPose style head: heat maps flattened, mixed by a transformer block, classified along x and y."""

    def __init__(self, width: float, image: tuple[int, int], joints: int = 17) -> None:
        super().__init__()
        channels = mobilenet_v2_widths(width)[7]
        self.backbone = Last(mobilenet_v2_stages(width, wanted=(7,)))
        self.joints = nn.Conv2d(channels, joints, 7, 1, 3)
        self.mix = nn.Sequential(nn.Linear(image[0] // 32 * (image[1] // 32), 256), encoder_block(256, 4, 2.0))
        self.x, self.y = nn.Linear(256, 2 * image[1]), nn.Linear(256, 2 * image[0])

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Map images to bins along x (N, joints, 2 W) and y (N, joints, 2 H)."""
        mixed = self.mix(self.joints(self.backbone(x)).flatten(2))
        return self.x(mixed), self.y(mixed)


class DepthDecoder(nn.Module):
    """Skips joined while upsampling; one inverse-depth map at full size (Monodepth2, FastDepth, MiDaS-small style)."""

    def __init__(self, backbone: Stages, channels: Sequence[int], widths: Sequence[int], *, light: bool) -> None:
        super().__init__()
        self.backbone = backbone
        conv: Callable[[int, int], nn.Module] = (
            partial(separable, kernel=5) if light else partial(ConvNormAct, kernel=3, act=nn.ELU, norm=False)
        )
        self.up, self.merge = nn.ModuleList(), nn.ModuleList()
        entered = channels[-1]
        for index, width in enumerate(widths):
            skip = channels[-2 - index] if index < len(channels) - 1 else 0
            self.up.append(conv(entered, width))
            self.merge.append(conv(width + skip, width))
            entered = width
        self.head = nn.Sequential(nn.Conv2d(entered, 1, 3, 1, 1), nn.Sigmoid())

    def forward(self, x: Tensor) -> Tensor:
        """Map images (N, 3, H, W) to (N, 1, H, W)."""
        maps = self.backbone(x)
        y = maps[-1]
        for index, (up, merge) in enumerate(zip(self.up, self.merge, strict=True)):
            y = functional.interpolate(up(y), scale_factor=2.0)
            if index < len(maps) - 1:
                y = torch.cat([y, maps[-2 - index]], 1)
            y = merge(y)
        depth: Tensor = self.head(y)
        return depth


def split_stem(stages: Stages) -> Stages:
    """Separate the stem's convolution from its pooling, to expose the map of stride 2."""
    stem = stages.stages[0]
    assert isinstance(stem, nn.Sequential)
    return Stages([stem[0], nn.Sequential(stem[1], stages.stages[1]), *stages.stages[2:]], (0, 1, 2, 3, 4))


def resnet_depth(depths: Sequence[int]) -> nn.Module:
    """Monodepth2 style."""
    return DepthDecoder(split_stem(resnet_stages(depths)), (64, 64, 128, 256, 512), (256, 128, 64, 32, 16), light=False)


def mobile_depth(width: float) -> nn.Module:
    """FastDepth style: MobileNet-v2 and separable upsampling."""
    widths = mobilenet_v2_widths(width)
    chosen = (1, 2, 3, 5, 7)
    backbone = mobilenet_v2_stages(width, wanted=chosen)
    return DepthDecoder(backbone, [widths[i] for i in chosen], (128, 96, 64, 32, 16), light=True)


_R18, _R50 = (2, 2, 2, 2), (3, 4, 6, 3)
# name, family, lineage, source, builder, input
_NETWORKS: tuple[tuple[str, str, str, str, Callable[[], nn.Module], tuple[int, int, int]], ...] = (
    (
        "simple-r18",
        "simple-pose",
        "unet",
        "arXiv 1804.06208",
        partial(simple_pose, _R18, bottlenecks=False),
        (3, 256, 192),
    ),
    (
        "simple-r50",
        "simple-pose",
        "unet",
        "arXiv 1804.06208",
        partial(simple_pose, _R50, bottlenecks=True),
        (3, 256, 192),
    ),
    ("light-0.5", "light-pose", "unet", "arXiv 2006.10204", partial(light_pose, 0.5), (3, 192, 192)),
    ("light-1.0", "light-pose", "unet", "arXiv 2006.10204", partial(light_pose, 1.0, 33), (3, 256, 256)),
    ("hourglass-1-64", "hourglass", "unet", "arXiv 1603.06937", partial(StackedHourglass, 1, 64), (3, 256, 256)),
    ("hourglass-2-128", "hourglass", "unet", "arXiv 1603.06937", partial(StackedHourglass, 2, 128), (3, 256, 256)),
    (
        "hrnet-w16",
        "hrnet-dense",
        "aggregation",
        "arXiv 1902.09212",
        partial(HighResolution, 16, (1, 2, 2), 17, joined=False, blocks=2),
        (3, 256, 192),
    ),
    (
        "hrnet-w32",
        "hrnet-dense",
        "aggregation",
        "arXiv 1902.09212",
        partial(HighResolution, 32, (1, 4, 3), 17, joined=False),
        (3, 256, 192),
    ),
    (
        "hrnet-w18-segmentation",
        "hrnet-dense",
        "aggregation",
        "arXiv 1908.07919",
        partial(HighResolution, 18, (1, 2, 2), 19, joined=True, blocks=2),
        (3, 256, 512),
    ),
    ("openpose-light-1", "openpose-light", "mobilenet", "arXiv 1811.12004", partial(PartFields, 1), (3, 256, 456)),
    ("openpose-light-2", "openpose-light", "mobilenet", "arXiv 1811.12004", partial(PartFields, 2), (3, 368, 368)),
    (
        "bins-0.75",
        "coordinate-bins",
        "mobilenet",
        "arXiv 2303.07399",
        partial(CoordinateBins, 0.75, (256, 192)),
        (3, 256, 192),
    ),
    ("depth-r18", "monodepth", "unet", "arXiv 1806.01260", partial(resnet_depth, _R18), (3, 192, 640)),
    ("depth-r34", "monodepth", "unet", "arXiv 1806.01260", partial(resnet_depth, _R50), (3, 320, 1024)),
    ("fastdepth-0.75", "fastdepth", "unet", "arXiv 1903.03273", partial(mobile_depth, 0.75), (3, 224, 224)),
    ("fastdepth-1.0", "fastdepth", "unet", "arXiv 1903.03273", partial(mobile_depth, 1.0), (3, 256, 320)),
)
for _name, _family, _lineage, _source, _build, _shape in _NETWORKS:
    own(f"dense.{_name}", _family, _lineage, _source, _build, _shape)

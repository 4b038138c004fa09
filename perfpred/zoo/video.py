"""Three-dimensional and space-time networks: clips, volumes, skeletons."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor, nn

from perfpred.zoo.blocks import Attention, ConvNormAct, Residual, basic_block, depthwise, mlp
from perfpred.zoo.own import own

conv3 = partial(ConvNormAct, dims=3)


def head(channels: int, classes: int) -> list[nn.Module]:
    """Global average pooling and a linear layer."""
    return [nn.AdaptiveAvgPool3d(1), nn.Flatten(1), nn.Linear(channels, classes)]


def c3d(width: int, classes: int = 101) -> nn.Module:
    """C3D: 3x3x3 convolutions and pooling, two wide linear layers; 16 frames of 112x112."""
    w = width
    return nn.Sequential(
        conv3(3, w, 3, norm=False),
        nn.MaxPool3d((1, 2, 2)),
        conv3(w, 2 * w, 3, norm=False),
        nn.MaxPool3d(2),
        conv3(2 * w, 4 * w, 3, norm=False),
        conv3(4 * w, 4 * w, 3, norm=False),
        nn.MaxPool3d(2),
        conv3(4 * w, 8 * w, 3, norm=False),
        conv3(8 * w, 8 * w, 3, norm=False),
        nn.MaxPool3d(2),
        conv3(8 * w, 8 * w, 3, norm=False),
        conv3(8 * w, 8 * w, 3, norm=False),
        nn.MaxPool3d(2),
        nn.Flatten(1),
        nn.Linear(8 * w * 9, 32 * w),
        nn.ReLU(),
        nn.Linear(32 * w, classes),
    )


def factored(in_channels: int, out_channels: int, stride: int) -> nn.Module:
    """(2+1)-D convolution: space, then time, with the width that keeps the parameters of the 3-D one."""
    middle = 27 * in_channels * out_channels // (9 * in_channels + 3 * out_channels)
    return nn.Sequential(
        conv3(in_channels, middle, (1, 3, 3), (1, stride, stride)),
        conv3(middle, out_channels, (3, 1, 1), (stride, 1, 1), act=None),
    )


def residual_clip(depths: Sequence[int], width: int, classes: int, *, split: bool, in_channels: int = 3) -> nn.Module:
    """R3D or R(2+1)D: residual blocks of 3-D or factored convolutions."""
    layers: list[nn.Module] = [conv3(in_channels, width, (3, 7, 7), (1, 2, 2))]
    channels = width
    for index, depth in enumerate(depths):
        out = width * 2**index
        for i in range(depth):
            stride = 2 if i == 0 and index > 0 else 1
            if not split:
                layers.append(basic_block(channels, out, stride, dims=3))
            else:
                skip = conv3(channels, out, 1, stride, act=None) if channels != out or stride == 2 else None
                body = nn.Sequential(factored(channels, out, stride), nn.ReLU(), factored(out, out, 1))
                layers.append(Residual(body, skip, nn.ReLU))
            channels = out
    return nn.Sequential(*layers, *head(channels, classes))


class Squeeze3d(nn.Module):
    """Squeeze-excite over clips."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        hidden = max(channels // 16, 8)
        self.gate = nn.Sequential(
            nn.AdaptiveAvgPool3d(1),
            nn.Conv3d(channels, hidden, 1),
            nn.ReLU(),
            nn.Conv3d(hidden, channels, 1),
            nn.Sigmoid(),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Keep the shape (N, C, T, H, W)."""
        return x * self.gate(x)


def x3d(width: float, depth: float, classes: int = 400) -> nn.Module:
    """X3D: inverted residuals with channel-wise 3x3x3 convolutions, squeeze-excite in every second block."""
    w = round(24 * width)
    layers: list[nn.Module] = [
        nn.Conv3d(3, w, (1, 3, 3), (1, 2, 2), (0, 1, 1), bias=False),
        depthwise(w, (5, 1, 1), dims=3),
    ]
    channels = w
    for scale, blocks in ((1, 1), (2, 2), (4, 5), (8, 3)):
        out = w * scale
        hidden = round(2.25 * out)
        for i in range(max(round(blocks * depth), 1)):
            stride = (1, 2, 2) if i == 0 else (1, 1, 1)
            middle: list[nn.Module] = [depthwise(hidden, 3, stride, act=None, dims=3)]
            if i % 2 == 0:
                middle.append(Squeeze3d(hidden))
            body = nn.Sequential(conv3(channels, hidden), *middle, nn.SiLU(), conv3(hidden, out, act=None))
            skip = conv3(channels, out, 1, stride, act=None) if i == 0 else None
            layers.append(Residual(body, skip, nn.ReLU))
            channels = out
    hidden = round(2.25 * channels)
    return nn.Sequential(
        *layers,
        conv3(channels, hidden),
        nn.AdaptiveAvgPool3d(1),
        nn.Conv3d(hidden, 2048, 1),
        nn.ReLU(),
        nn.Flatten(1),
        nn.Linear(2048, classes),
    )


class SlowFast(nn.Module):
    """Two residual pathways of different frame rates; the fast one is joined into the slow one."""

    def __init__(self, width: int, classes: int, ratio: int = 4) -> None:
        super().__init__()
        narrow = width // 8
        self.ratio = ratio
        self.slow, self.fast, self.join = nn.ModuleList(), nn.ModuleList(), nn.ModuleList()
        a, b = 3, 3
        for index in range(4):
            out, thin = width * 2**index, narrow * 2**index
            step = (1, 2, 2)
            self.slow.append(
                nn.Sequential(conv3(a, out, (1 if index < 2 else 3, 3, 3), step), basic_block(out, out, dims=3))
            )
            self.fast.append(nn.Sequential(conv3(b, thin, 3, step), basic_block(thin, thin, dims=3)))
            self.join.append(conv3(thin, 2 * thin, (5, 1, 1), (ratio, 1, 1)))
            a, b = out + 2 * thin, thin
        self.head = nn.Linear(a + b, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Map clips (N, 3, T, H, W) to class scores."""
        slow, fast = x[:, :, :: self.ratio], x
        for index in range(len(self.slow)):
            slow, fast = self.slow[index](slow), self.fast[index](fast)
            slow = torch.cat([slow, self.join[index](fast)], 1)
        scores: Tensor = self.head(torch.cat([slow.mean((2, 3, 4)), fast.mean((2, 3, 4))], 1))
        return scores


class VolumeUNet(nn.Module):
    """3-D U-Net."""

    def __init__(self, widths: Sequence[int], in_channels: int, classes: int) -> None:
        super().__init__()

        def stage(a: int, b: int) -> nn.Module:
            return nn.Sequential(conv3(a, b, 3), conv3(b, b, 3))

        self.down = nn.ModuleList([stage(a, b) for a, b in zip([in_channels, *widths[:-1]], widths, strict=True)])
        pairs = list(zip(widths[-1:0:-1], widths[-2::-1], strict=True))
        self.up = nn.ModuleList([nn.ConvTranspose3d(a, b, 2, 2) for a, b in pairs])
        self.merge = nn.ModuleList([stage(2 * b, b) for _, b in pairs])
        self.pool, self.head = nn.MaxPool3d(2), nn.Conv3d(widths[0], classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C, D, H, W) to (N, classes, D, H, W)."""
        skips = []
        for index, stage in enumerate(self.down):
            x = stage(x if index == 0 else self.pool(x))
            skips.append(x)
        skips.pop()
        for up, merge in zip(self.up, self.merge, strict=True):
            x = merge(torch.cat([skips.pop(), up(x)], 1))
        scores: Tensor = self.head(x)
        return scores


def voxels(width: int, classes: int = 40) -> nn.Module:
    """VoxNet: occupancy grids of 32x32x32."""
    leaky = partial(nn.LeakyReLU, 0.1)
    return nn.Sequential(
        nn.Conv3d(1, width, 5, 2),
        leaky(),
        nn.Conv3d(width, width, 3),
        leaky(),
        nn.MaxPool3d(2),
        nn.Flatten(1),
        nn.Linear(width * 216, 128),
        nn.ReLU(),
        nn.Linear(128, classes),
    )


class TemporalShift(nn.Module):
    """Shifts an eighth of the channels one frame forwards and an eighth backwards, then convolves each frame."""

    def __init__(self, channels: int, frames: int, body: nn.Module) -> None:
        super().__init__()
        self.frames, self.fold, self.body = frames, channels // 8, body

    def forward(self, x: Tensor) -> Tensor:
        """Map (N * T, C, H, W) to the same shape."""
        channels, height, width = x.shape[1:]
        clip = x.reshape(-1, self.frames, channels, height, width)
        ahead, back, still = clip.split([self.fold, self.fold, int(channels) - 2 * self.fold], 2)
        ahead = torch.cat([ahead[:, 1:], torch.zeros_like(ahead[:, :1])], 1)
        back = torch.cat([torch.zeros_like(back[:, :1]), back[:, :-1]], 1)
        shifted: Tensor = self.body(torch.cat([ahead, back, still], 2).reshape(-1, channels, height, width))
        return shifted


class ShiftNet(nn.Module):
    """TSM: residual blocks whose first convolution reads shifted channels."""

    def __init__(self, frames: int, width: int, classes: int) -> None:
        super().__init__()
        self.frames = frames
        layers: list[nn.Module] = [ConvNormAct(3, width, 7, 2), nn.MaxPool2d(3, 2, 1)]
        channels = width
        for index in range(4):
            out = width * 2**index
            for i in range(2):
                stride = 2 if i == 0 and index > 0 else 1
                body = nn.Sequential(ConvNormAct(channels, out, 3, stride), ConvNormAct(out, out, 3, act=None))
                skip = ConvNormAct(channels, out, 1, stride, act=None) if stride == 2 else None
                layers.append(
                    Residual(TemporalShift(channels, frames, body) if i == 1 or stride == 1 else body, skip, nn.ReLU)
                )
                channels = out
        self.body = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(1), nn.Linear(channels, classes))
        self.classes = classes

    def forward(self, x: Tensor) -> Tensor:
        """Map clips (N, T, 3, H, W) to class scores, averaged over frames."""
        scores: Tensor = self.body(x.flatten(0, 1)).reshape(-1, self.frames, self.classes)
        return scores.mean(1)


class DividedAttention(nn.Module):
    """TimeSformer: attention over time at each place, then over places in each frame, then an MLP."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norms = nn.ModuleList([nn.LayerNorm(width) for _ in range(2)])
        self.time, self.space = Attention(width, heads), Attention(width, heads)
        self.feed = Residual(nn.Sequential(nn.LayerNorm(width), mlp(width, 4 * width)))

    def forward(self, x: Tensor) -> Tensor:
        """Keep the shape (N, T, L, C)."""
        frames, length, width = x.shape[1:]
        over_time = self.norms[0](x).transpose(1, 2).reshape(-1, frames, width)
        x = x + self.time(over_time).reshape(-1, length, frames, width).transpose(1, 2)
        over_space = self.norms[1](x).reshape(-1, length, width)
        fed: Tensor = self.feed(x + self.space(over_space).reshape(-1, frames, length, width))
        return fed


class ClipTransformer(nn.Module):
    """Small TimeSformer."""

    def __init__(self, frames: int, size: int, width: int, depth: int, classes: int = 400, patch: int = 16) -> None:
        super().__init__()
        self.frames, self.places = frames, (size // patch) ** 2
        self.embed = nn.Conv2d(3, width, patch, patch)
        self.position = nn.Parameter(torch.randn(1, 1, self.places, width) * 0.02)
        self.blocks = nn.Sequential(*(DividedAttention(width, width // 32) for _ in range(depth)))
        self.head = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, classes))

    def forward(self, x: Tensor) -> Tensor:
        """Map clips (N, T, 3, H, W) to class scores."""
        tokens = self.embed(x.flatten(0, 1)).flatten(2).transpose(1, 2)
        tokens = tokens.reshape(-1, self.frames, self.places, self.position.shape[3]) + self.position
        scores: Tensor = self.head(self.blocks(tokens).mean((1, 2)))
        return scores


class SkeletonBlock(nn.Module):
    """ST-GCN unit: graph convolution over joints by a learned adjacency, then a temporal convolution."""

    def __init__(self, in_channels: int, out_channels: int, joints: int, stride: int, parts: int = 3) -> None:
        super().__init__()
        self.parts, self.out_channels = parts, out_channels
        self.adjacency = nn.Parameter(torch.rand(1, parts, joints, joints) / joints)
        self.space = nn.Conv2d(in_channels, parts * out_channels, 1)
        self.time = nn.Sequential(
            nn.BatchNorm2d(out_channels),
            nn.ReLU(),
            ConvNormAct(out_channels, out_channels, (9, 1), (stride, 1), act=None),
        )
        changes = in_channels != out_channels or stride != 1
        self.skip = ConvNormAct(in_channels, out_channels, 1, (stride, 1), act=None) if changes else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C, T, joints) to (N, C', T / stride, joints)."""
        frames, joints = x.shape[2], x.shape[3]
        spread = self.space(x).reshape(-1, self.parts, self.out_channels * frames, joints)
        mixed = (spread @ self.adjacency).sum(1).reshape(-1, self.out_channels, frames, joints)
        out: Tensor = (self.time(mixed) + self.skip(x)).relu()
        return out


def skeletons(width: int, joints: int, classes: int = 60) -> nn.Module:
    """ST-GCN."""
    plan = [(3, 1, 1), (1, 1, 1), (1, 1, 1), (1, 2, 2), (2, 2, 1), (2, 4, 2), (4, 4, 1)]
    blocks = [SkeletonBlock(3 if i == 0 else a * width, b * width, joints, s) for i, (a, b, s) in enumerate(plan)]
    return nn.Sequential(*blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(1), nn.Linear(4 * width, classes))


_NETWORKS: tuple[tuple[str, str, str, Callable[[], nn.Module], tuple[int, ...]], ...] = (
    ("c3d-16", "c3d", "arXiv 1412.0767", partial(c3d, 16), (3, 16, 112, 112)),
    ("c3d-32", "c3d", "arXiv 1412.0767", partial(c3d, 32), (3, 16, 112, 112)),
    (
        "r3d-10-32",
        "r3d",
        "arXiv 1711.11248",
        partial(residual_clip, (1, 1, 1, 1), 32, 101, split=False),
        (3, 16, 112, 112),
    ),
    (
        "r3d-18-16",
        "r3d",
        "arXiv 1711.11248",
        partial(residual_clip, (2, 2, 2, 2), 16, 101, split=False),
        (3, 8, 128, 128),
    ),
    (
        "r2plus1d-10-24",
        "r3d",
        "arXiv 1711.11248",
        partial(residual_clip, (1, 1, 1, 1), 24, 101, split=True),
        (3, 8, 112, 112),
    ),
    ("x3d-xs", "x3d", "arXiv 2004.04730", partial(x3d, 1.0, 1.0), (3, 4, 160, 160)),
    ("x3d-s", "x3d", "arXiv 2004.04730", partial(x3d, 1.0, 1.0), (3, 13, 160, 160)),
    ("x3d-m", "x3d", "arXiv 2004.04730", partial(x3d, 1.0, 2.2), (3, 16, 224, 224)),
    ("slowfast-32", "slowfast", "arXiv 1812.03982", partial(SlowFast, 32, 400), (3, 16, 128, 128)),
    ("slowfast-64", "slowfast", "arXiv 1812.03982", partial(SlowFast, 64, 400), (3, 8, 112, 112)),
    ("unet3d-16", "unet3d", "arXiv 1606.06650", partial(VolumeUNet, (16, 32, 64, 128), 1, 3), (1, 64, 64, 64)),
    ("unet3d-8", "unet3d", "arXiv 1606.06650", partial(VolumeUNet, (8, 16, 32, 64), 4, 4), (4, 48, 96, 96)),
    ("voxnet", "voxnet", "Maturana and Scherer 2015, VoxNet", partial(voxels, 32), (1, 32, 32, 32)),
    ("tsm-32", "tsm", "arXiv 1811.08383", partial(ShiftNet, 8, 32, 174), (8, 3, 160, 160)),
    ("tsm-64", "tsm", "arXiv 1811.08383", partial(ShiftNet, 8, 64, 174), (8, 3, 224, 224)),
    ("timesformer-192", "timesformer", "arXiv 2102.05095", partial(ClipTransformer, 4, 160, 192, 6), (4, 3, 160, 160)),
    ("timesformer-256", "timesformer", "arXiv 2102.05095", partial(ClipTransformer, 8, 224, 256, 4), (8, 3, 224, 224)),
    ("stgcn-32", "stgcn", "arXiv 1801.07455", partial(skeletons, 32, 18), (3, 150, 18)),
    ("stgcn-64", "stgcn", "arXiv 1801.07455", partial(skeletons, 64, 25), (3, 300, 25)),
)
for _name, _family, _source, _build, _shape in _NETWORKS:
    own(f"video.{_name}", _family, "video", _source, _build, _shape)

"""Restoration and generation: denoising, deblurring, enhancement, style, image generation."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise

import torch
from torch import Tensor, nn

from perfpred.zoo.blocks import ConvNormAct, Residual
from perfpred.zoo.own import own
from perfpred.zoo.super_resolution import plain


def chain(depth: int, width: int, channels: int = 1, *, norm: bool = False) -> nn.Module:
    """VDSR and DnCNN: a long chain of 3x3 convolutions that predicts the residual image."""
    middle = [ConvNormAct(width, width, 3, norm=norm) for _ in range(depth - 2)]
    return Residual(nn.Sequential(plain(channels, width, 3), *middle, nn.Conv2d(width, channels, 3, 1, 1)))


def dilated_chain(width: int = 64, channels: int = 3) -> nn.Module:
    """IRCNN: seven convolutions whose dilation grows to four and shrinks again."""
    middle = [ConvNormAct(width, width, 3, dilation=d) for d in (2, 3, 4, 3, 2)]
    return Residual(nn.Sequential(plain(channels, width, 3), *middle, nn.Conv2d(width, channels, 3, 1, 1)))


class SimpleGate(nn.Module):
    """Product of both channel halves (NAFNet)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.half = channels // 2

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C, H, W) to (N, C / 2, H, W)."""
        left, right = x.split(self.half, 1)
        return left * right


def naf_block(width: int) -> nn.Module:
    """NAFNet block: group normalisation in place of channel LayerNorm, depthwise convolution, simple gates."""
    gate = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(width, width, 1))

    class Scale(nn.Module):
        """Multiplies by a projected mean."""

        def __init__(self) -> None:
            super().__init__()
            self.gate = gate

        def forward(self, x: Tensor) -> Tensor:
            """Keep the shape."""
            return x * self.gate(x)

    first = nn.Sequential(
        nn.GroupNorm(1, width),
        nn.Conv2d(width, 2 * width, 1),
        nn.Conv2d(2 * width, 2 * width, 3, 1, 1, groups=2 * width),
        SimpleGate(2 * width),
        Scale(),
        nn.Conv2d(width, width, 1),
    )
    second = nn.Sequential(
        nn.GroupNorm(1, width), nn.Conv2d(width, 2 * width, 1), SimpleGate(2 * width), nn.Conv2d(width, width, 1)
    )
    return nn.Sequential(Residual(first), Residual(second))


def residual_plain(width: int) -> nn.Module:
    """DRUNet block: two convolutions without normalisation."""
    return Residual(nn.Sequential(plain(width, width, 3), nn.Conv2d(width, width, 3, 1, 1)))


class AddUNet(nn.Module):
    """U-shaped restorer whose skips are added: strided convolutions down, sub-pixel or transposed ones up."""

    def __init__(
        self, widths: Sequence[int], block: Callable[[int], nn.Module], depths: Sequence[int], *, shuffled: bool
    ) -> None:
        super().__init__()
        self.enter, self.leave = nn.Conv2d(3, widths[0], 3, 1, 1), nn.Conv2d(widths[0], 3, 3, 1, 1)
        self.encode = nn.ModuleList(
            [nn.Sequential(*(block(w) for _ in range(n))) for w, n in zip(widths, depths, strict=True)]
        )
        pairs = list(pairwise(widths))
        self.down = nn.ModuleList([nn.Conv2d(a, b, 2, 2) for a, b in pairs])
        self.up = nn.ModuleList(
            [
                nn.Sequential(nn.Conv2d(b, 4 * a, 1), nn.PixelShuffle(2))
                if shuffled
                else nn.ConvTranspose2d(b, a, 2, 2)
                for a, b in pairs
            ]
        )
        self.decode = nn.ModuleList([block(w) for w in widths[:-1]])

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, 3, H, W) to an image of the same shape."""
        entered = self.enter(x)
        y, skips = entered, []
        for index, stage in enumerate(self.encode):
            y = stage(y)
            if index < len(self.down):
                skips.append(y)
                y = self.down[index](y)
        for index in range(len(self.up) - 1, -1, -1):
            y = self.decode[index](self.up[index](y) + skips[index])
        restored: Tensor = self.leave(y)
        return restored + x


class CurveEnhancer(nn.Module):
    """Zero-DCE: seven convolutions with symmetric skips estimate eight curves, applied in turn."""

    def __init__(self, width: int = 32, curves: int = 8) -> None:
        super().__init__()
        self.first = nn.ModuleList([plain(3 if i == 0 else width, width, 3) for i in range(4)])
        self.second = nn.ModuleList([plain(2 * width, width, 3) for _ in range(2)])
        self.last = nn.Sequential(nn.Conv2d(2 * width, 3 * curves, 3, 1, 1), nn.Tanh())

    def forward(self, x: Tensor) -> Tensor:
        """Keep the shape (N, 3, H, W)."""
        x = x.clamp(0, 1)  # outside this range the curves diverge
        maps, y = [], x
        for conv in self.first:
            y = conv(y)
            maps.append(y)
        for conv, skip in zip(self.second, (maps[2], maps[1]), strict=True):
            y = conv(torch.cat([y, skip], 1))
        for curve in self.last(torch.cat([y, maps[0]], 1)).split(3, 1):
            x = x + curve * (x * x - x)
        return x


def _normed(in_channels: int, out_channels: int, kernel: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.ReflectionPad2d(kernel // 2),
        nn.Conv2d(in_channels, out_channels, kernel, stride),
        nn.InstanceNorm2d(out_channels, affine=True),
        nn.ReLU(),
    )


def translator(width: int, depth: int, *, learned: bool) -> nn.Module:
    """Image translation (CycleGAN, fast style transfer): down twice, instance-normalised residual blocks, up twice."""
    w = width
    blocks = [Residual(nn.Sequential(_normed(4 * w, 4 * w, 3), _normed(4 * w, 4 * w, 3)[:3])) for _ in range(depth)]

    def up(in_channels: int, out_channels: int) -> nn.Module:
        if learned:
            conv: nn.Module = nn.ConvTranspose2d(in_channels, out_channels, 3, 2, 1, 1)
            return nn.Sequential(conv, nn.InstanceNorm2d(out_channels, affine=True), nn.ReLU())
        return nn.Sequential(nn.Upsample(scale_factor=2), _normed(in_channels, out_channels, 3))

    return nn.Sequential(
        _normed(3, w, 9 if not learned else 7),
        _normed(w, 2 * w, 3, 2),
        _normed(2 * w, 4 * w, 3, 2),
        *blocks,
        up(4 * w, 2 * w),
        up(2 * w, w),
        nn.ReflectionPad2d(3),
        nn.Conv2d(w, 3, 7),
        nn.Tanh(),
    )


def generator(latent: int, width: int, size: int) -> nn.Module:
    """DCGAN generator: transposed convolutions from a vector to an image."""
    steps = size.bit_length() - 4
    widths = [width * 2**i for i in range(steps, -1, -1)]
    layers: list[nn.Module] = [
        nn.Unflatten(1, (latent, 1, 1)),
        nn.ConvTranspose2d(latent, widths[0], 4, bias=False),
        nn.BatchNorm2d(widths[0]),
        nn.ReLU(),
    ]
    for before, after in pairwise(widths):
        layers += [nn.ConvTranspose2d(before, after, 4, 2, 1, bias=False), nn.BatchNorm2d(after), nn.ReLU()]
    return nn.Sequential(*layers, nn.ConvTranspose2d(widths[-1], 3, 4, 2, 1), nn.Tanh())


# name, family, source, builder, input; chains at full resolution belong to super-resolution, U shapes to unet
_CHAINS: tuple[tuple[str, str, str, Callable[[], nn.Module], tuple[int, ...]], ...] = (
    ("vdsr", "vdsr", "arXiv 1511.04587", partial(chain, 20, 64), (1, 180, 320)),
    ("dncnn-17", "dncnn", "arXiv 1608.03981", partial(chain, 17, 64, norm=True), (1, 180, 320)),
    ("dncnn-20-colour", "dncnn", "arXiv 1608.03981", partial(chain, 20, 48, 3, norm=True), (3, 128, 192)),
    ("ircnn", "ircnn", "arXiv 1704.03264", dilated_chain, (3, 180, 320)),
    ("zero-dce", "zero-dce", "arXiv 2001.06826", CurveEnhancer, (3, 256, 256)),
    ("zero-dce-16", "zero-dce", "arXiv 2001.06826", partial(CurveEnhancer, 16), (3, 360, 640)),
)
for _name, _family, _source, _build, _shape in _CHAINS:
    own(f"restoration.{_name}", _family, "super-resolution", _source, _build, _shape)

_SHAPED: tuple[tuple[str, str, str, Callable[[], nn.Module], tuple[int, ...]], ...] = (
    (
        "nafnet-16",
        "nafnet",
        "arXiv 2204.04676",
        partial(AddUNet, (16, 32, 64, 128), naf_block, (1, 1, 2, 2), shuffled=True),
        (3, 256, 256),
    ),
    (
        "nafnet-32",
        "nafnet",
        "arXiv 2204.04676",
        partial(AddUNet, (32, 64, 128, 256), naf_block, (1, 1, 1, 4), shuffled=True),
        (3, 256, 320),
    ),
    (
        "drunet-32",
        "drunet",
        "arXiv 2008.13751",
        partial(AddUNet, (32, 64, 128, 256), residual_plain, (2, 2, 2, 2), shuffled=False),
        (3, 256, 256),
    ),
    ("cyclegan-32", "translator", "arXiv 1703.10593", partial(translator, 32, 6, learned=True), (3, 256, 256)),
    ("cyclegan-64", "translator", "arXiv 1703.10593", partial(translator, 64, 9, learned=True), (3, 128, 128)),
    ("style-32", "translator", "arXiv 1603.08155", partial(translator, 32, 5, learned=False), (3, 224, 224)),
    ("dcgan-64", "dcgan", "arXiv 1511.06434", partial(generator, 100, 64, 64), (100,)),
    ("dcgan-128", "dcgan", "arXiv 1511.06434", partial(generator, 128, 32, 128), (128,)),
)
for _name, _family, _source, _build, _shape in _SHAPED:
    own(f"restoration.{_name}", _family, "unet", _source, _build, _shape)

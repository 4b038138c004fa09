"""Super-resolution networks: plain, residual, distilling, dense and windowed-attention ones."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional

from perfpred.zoo.blocks import Activation, Attention, ConvNormAct, Residual, SqueezeExcite, mlp
from perfpred.zoo.own import own

plain = partial(ConvNormAct, norm=False)
leaky = partial(ConvNormAct, norm=False, act=partial(nn.LeakyReLU, 0.05))


def shuffle_up(channels: int, out_channels: int, scale: int) -> nn.Sequential:
    """Sub-pixel upsampling: a convolution to `scale ** 2` times the channels, then depth to space."""
    return nn.Sequential(nn.Conv2d(channels, out_channels * scale**2, 3, 1, 1), nn.PixelShuffle(scale))


def srcnn(channels: int = 1) -> nn.Module:
    """SRCNN 9-5-5 on an image already enlarged."""
    return nn.Sequential(plain(channels, 64, 9), plain(64, 32, 5), nn.Conv2d(32, channels, 5, 1, 2))


def fsrcnn(scale: int, width: int = 56, narrow: int = 12, depth: int = 4) -> nn.Module:
    """FSRCNN: shrink, map, expand, transposed 9x9 convolution."""
    act: Callable[[int], Activation] = lambda channels: partial(nn.PReLU, channels)  # noqa: E731
    return nn.Sequential(
        plain(1, width, 5, act=act(width)),
        plain(width, narrow, act=act(narrow)),
        *(plain(narrow, narrow, 3, act=act(narrow)) for _ in range(depth)),
        plain(narrow, width, act=act(width)),
        nn.ConvTranspose2d(width, 1, 9, scale, 4, scale - 1),
    )


def espcn(scale: int) -> nn.Module:
    """ESPCN: three convolutions and depth to space."""
    return nn.Sequential(plain(1, 64, 5, act=nn.Tanh), plain(64, 32, 3, act=nn.Tanh), shuffle_up(32, 1, scale))


class Enlarger(nn.Module):
    """Head convolution, residual body, sub-pixel tail, optional bilinear skip of the image."""

    def __init__(self, body: Sequence[nn.Module], width: int, scale: int, *, skip: bool = False) -> None:
        super().__init__()
        self.head = nn.Conv2d(3, width, 3, 1, 1)
        self.body = Residual(nn.Sequential(*body, nn.Conv2d(width, width, 3, 1, 1)))
        steps = [2, 2] if scale == 4 and not skip else [scale]
        ups = [shuffle_up(width, width, step) for step in steps] if not skip else []
        tail: nn.Module = shuffle_up(width, 3, scale) if skip else nn.Conv2d(width, 3, 3, 1, 1)
        self.tail = nn.Sequential(*ups, tail)
        self.skip = nn.Upsample(scale_factor=scale, mode="bilinear") if skip else None

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, 3, H, W) to (N, 3, scale * H, scale * W)."""
        enlarged: Tensor = self.tail(self.body(self.head(x)))
        return enlarged + self.skip(x) if self.skip is not None else enlarged


def edsr(depth: int, width: int, scale: int, residual_scale: float = 1.0) -> nn.Module:
    """EDSR: residual blocks without normalisation."""
    blocks = [
        Residual(nn.Sequential(plain(width, width, 3), nn.Conv2d(width, width, 3, 1, 1)), scale=residual_scale)
        for _ in range(depth)
    ]
    return Enlarger(blocks, width, scale)


def srresnet(depth: int, width: int, scale: int) -> nn.Module:
    """SRResNet: residual blocks with batch normalisation and PReLU."""
    blocks = [
        Residual(
            nn.Sequential(
                ConvNormAct(width, width, 3, act=partial(nn.PReLU, width)), ConvNormAct(width, width, 3, act=None)
            )
        )
        for _ in range(depth)
    ]
    return Enlarger(blocks, width, scale)


class Distil(nn.Module):
    """Information multi-distillation block (IMDN); RFDN when `residual`."""

    def __init__(self, width: int, *, residual: bool) -> None:
        super().__init__()
        kept = width // 2 if residual else width // 4
        self.kept, self.rest, self.residual = kept, width - kept, residual
        entered = width if residual else self.rest
        self.keep = nn.ModuleList([leaky(width, kept) for _ in range(3)] if residual else [])
        self.convs = nn.ModuleList([leaky(width if i == 0 else entered, width, 3) for i in range(3)])
        self.last = leaky(entered, kept, 3)
        self.gate = SqueezeExcite(width, max(width // 16, 1))
        self.out = nn.Conv2d(4 * kept, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Keep the shape (N, C, H, W)."""
        kept, rest = [], x
        for index, conv in enumerate(self.convs):
            if self.residual:
                kept.append(self.keep[index](rest))
                rest = conv(rest) + rest
            else:
                first, rest = conv(rest).split([self.kept, self.rest], 1)
                kept.append(first)
        kept.append(self.last(rest))
        mixed: Tensor = self.gate(self.out(torch.cat(kept, 1)))
        return mixed + x


def imdn(depth: int, width: int, scale: int, *, residual: bool = False) -> nn.Module:
    """IMDN or RFDN with a single sub-pixel step."""
    return Enlarger([Distil(width, residual=residual) for _ in range(depth)], width, scale, skip=True)


class DenseResidual(nn.Module):
    """ESRGAN's residual dense block of five convolutions."""

    def __init__(self, width: int, growth: int) -> None:
        super().__init__()
        self.convs = nn.ModuleList([leaky(width + i * growth, growth, 3) for i in range(4)])
        self.last = nn.Conv2d(width + 4 * growth, width, 3, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Keep the shape (N, C, H, W)."""
        parts = [x]
        for conv in self.convs:
            parts.append(conv(torch.cat(parts, 1)))
        update: Tensor = self.last(torch.cat(parts, 1))
        return x + update * 0.2


def esrgan(depth: int, width: int, growth: int, scale: int = 4) -> nn.Module:
    """ESRGAN: residual-in-residual dense blocks."""
    blocks = [
        Residual(nn.Sequential(*(DenseResidual(width, growth) for _ in range(3))), scale=0.2) for _ in range(depth)
    ]
    return Enlarger(blocks, width, scale)


def mobile_enlarger(depth: int, width: int, scale: int) -> nn.Module:
    """ABPN style for phones: a plain chain, the image repeated onto the sub-pixels, depth to space."""

    class Anchor(nn.Module):
        """Adds the repeated image before depth to space."""

        def __init__(self) -> None:
            super().__init__()
            self.body = nn.Sequential(
                plain(3, width, 3),
                *(plain(width, width, 3) for _ in range(depth)),
                nn.Conv2d(width, 3 * scale**2, 3, 1, 1),
            )

        def forward(self, x: Tensor) -> Tensor:
            """Map (N, 3, H, W) to (N, 3, scale * H, scale * W)."""
            repeated = torch.cat([x] * scale**2, 1)
            enlarged: Tensor = functional.pixel_shuffle(self.body(x) + repeated, scale)
            return enlarged.clamp(0, 255)

    return Anchor()


class WindowAttention(nn.Module):
    """Self-attention inside square windows of a map (SwinIR without shifts or position bias)."""

    def __init__(self, width: int, heads: int, window: int) -> None:
        super().__init__()
        self.window = window
        self.mix = Residual(nn.Sequential(nn.LayerNorm(width), Attention(width, heads)))
        self.feed = Residual(nn.Sequential(nn.LayerNorm(width), mlp(width, 2 * width)))

    def forward(self, x: Tensor) -> Tensor:
        """Keep the shape (N, C, H, W); sides are multiples of the window."""
        size, (channels, height, width) = self.window, (int(side) for side in x.shape[1:])
        x = x.reshape(-1, channels, height // size, size, width // size, size).permute(0, 2, 4, 3, 5, 1)
        x = self.feed(self.mix(x.reshape(-1, size * size, channels)))
        x = x.reshape(-1, height // size, width // size, size, size, channels).permute(0, 5, 1, 3, 2, 4)
        return x.reshape(-1, channels, height, width)


def swinir(depth: int, width: int, scale: int) -> nn.Module:
    """SwinIR style: groups of window attention with a convolution at the end of each."""
    groups = [
        Residual(nn.Sequential(*(WindowAttention(width, 6, 8) for _ in range(4)), nn.Conv2d(width, width, 3, 1, 1)))
        for _ in range(depth)
    ]
    return Enlarger(groups, width, scale, skip=True)


_NETWORKS: tuple[tuple[str, str, Callable[[], nn.Module], int, tuple[int, int]], ...] = (
    ("srcnn", "arXiv 1501.00092", srcnn, 1, (360, 640)),
    ("srcnn-rgb", "arXiv 1501.00092", partial(srcnn, 3), 3, (256, 256)),
    ("fsrcnn-x2", "arXiv 1608.00367", partial(fsrcnn, 2), 1, (360, 640)),
    ("fsrcnn-s-x4", "arXiv 1608.00367", partial(fsrcnn, 4, 32, 5, 1), 1, (270, 480)),
    ("espcn-x2", "arXiv 1609.05158", partial(espcn, 2), 1, (540, 960)),
    ("espcn-x3", "arXiv 1609.05158", partial(espcn, 3), 1, (224, 224)),
    ("edsr-8-32-x2", "arXiv 1707.02921", partial(edsr, 8, 32, 2), 3, (180, 320)),
    ("edsr-16-64-x2", "arXiv 1707.02921", partial(edsr, 16, 64, 2), 3, (120, 160)),
    ("edsr-16-64-x4", "arXiv 1707.02921", partial(edsr, 16, 64, 4), 3, (90, 160)),
    ("srresnet-16-64-x4", "arXiv 1609.04802", partial(srresnet, 16, 64, 4), 3, (90, 160)),
    ("srresnet-6-32-x2", "arXiv 1609.04802", partial(srresnet, 6, 32, 2), 3, (270, 480)),
    ("imdn-6-64-x4", "arXiv 1909.11856", partial(imdn, 6, 64, 4), 3, (180, 320)),
    ("imdn-4-32-x2", "arXiv 1909.11856", partial(imdn, 4, 32, 2), 3, (270, 480)),
    ("rfdn-4-48-x4", "arXiv 2009.11551", partial(imdn, 4, 48, 4, residual=True), 3, (180, 320)),
    ("esrgan-2-32-x4", "arXiv 1809.00219", partial(esrgan, 2, 32, 16), 3, (120, 160)),
    ("esrgan-4-64-x4", "arXiv 1809.00219", partial(esrgan, 4, 64, 32), 3, (64, 64)),
    ("abpn-x3", "arXiv 2105.12826", partial(mobile_enlarger, 5, 28, 3), 3, (360, 640)),
    ("abpn-x2", "arXiv 2105.12826", partial(mobile_enlarger, 3, 20, 2), 3, (540, 960)),
    ("swinir-light-x2", "arXiv 2108.10257", partial(swinir, 2, 60, 2), 3, (64, 96)),
)
for _name, _source, _build, _channels, _image in _NETWORKS:
    own(
        f"super-resolution.{_name}",
        _name.split("-")[0],
        "super-resolution",
        _source,
        _build,
        (_channels, *_image),
    )

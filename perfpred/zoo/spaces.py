"""The search spaces of synthetic networks: each function draws a network and the shape of its input.

Every space returns the module and the input shape without the batch axis. `after` follows sizes through strides.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional

from perfpred.zoo.blocks import Attention, ConcatBranches, Residual, SqueezeExcite, mlp
from perfpred.zoo.draw import Draw

Drawn = tuple[nn.Module, tuple[int, ...]]
Block = Callable[[int, int, int], nn.Module]


def after(edge: int, stride: int) -> int:
    """Size of an edge after a strided operation with "same" padding of an odd kernel."""
    return (edge - 1) // stride + 1


def plain(draw: Draw) -> Drawn:
    """Chain of 2 to 14 convolutions with pooling between; a transposed or resizing tail in one case of five."""
    channels = entered = draw.channels()
    height, width = image = draw.image()
    layers: list[nn.Module] = []
    out = draw.width(4, 96)
    for index in range(draw.randint(2, 14)):
        kernel: int | tuple[int, int] = draw.kernel(11 if index < 3 else 7)
        if draw.chance(0.1):
            kernel = draw.choice(((1, 3), (3, 1), (1, 7), (7, 1), (1, 5), (5, 3)))
        stride = draw.choice((2, 2, 3, 4)) if min(height, width) >= 24 and draw.chance(0.3) else 1
        dilation = draw.choice((2, 2, 3, 4)) if stride == 1 and draw.chance(0.1) else 1
        groups = 1
        if draw.chance(0.15):
            groups = draw.groups(entered)
            out = max(out // groups, 1) * groups
        layers.append(draw.conv(entered, out, kernel, stride, groups=groups, dilation=dilation))
        entered, height, width = out, after(height, stride), after(width, stride)
        if min(height, width) >= 14 and draw.chance(0.25):
            size = draw.choice((2, 3, 3, 5))
            pool = draw.choice((nn.MaxPool2d, nn.MaxPool2d, nn.AvgPool2d))
            layers.append(pool(size, 2, size // 2))
            height, width = ((edge + 2 * (size // 2) - size) // 2 + 1 for edge in (height, width))
        if draw.chance(0.5):
            out = draw.width(max(out // 2, 4), min(out * 3, 768))
    if draw.chance(0.2):
        scale = draw.choice((2, 2, 3, 4))
        narrow = draw.width(2, 64)
        if draw.chance(0.5):
            layers.append(nn.ConvTranspose2d(entered, narrow, scale + draw.choice((0, 2)), scale, 0))
        else:
            mode = draw.choice(("nearest", "bilinear"))
            layers += [draw.conv(entered, narrow, 3), nn.Upsample(scale_factor=scale, mode=mode)]
        return nn.Sequential(*layers, nn.Conv2d(narrow, draw.randint(1, 21), 3, 1, 1)), (channels, *image)
    return nn.Sequential(*layers, *draw.head(entered, height, width)), (channels, *image)


def staged(draw: Draw, block: Block, widths: tuple[int, int], depth: int, multiple: int = 1) -> Drawn:
    """Stem and two to five stages of blocks `(in_channels, out_channels, stride) -> module`."""
    channels, (height, width) = draw.channels(), (image := draw.image())
    entered = draw.width(max(widths[0] // 2, 4), widths[0] * 3, multiple)
    stride = draw.choice((1, 2, 2, 2, 4)) if min(image) >= 48 else 1
    layers: list[nn.Module] = [draw.conv(channels, entered, draw.kernel(7), stride)]
    height, width = after(height, stride), after(width, stride)
    if min(height, width) >= 56 and draw.chance(0.5):
        layers.append(nn.MaxPool2d(3, 2, 1))
        height, width = after(height, 2), after(width, 2)
    out = entered
    for _ in range(draw.randint(2, 5)):
        out = min(draw.width(out, 2 * out + 8, multiple), max(widths[1] // multiple, 1) * multiple)
        for index in range(draw.randint(1, depth)):
            stride = 2 if index == 0 and min(height, width) >= 8 and draw.chance(0.7) else 1
            layers.append(block(entered, out, stride))
            entered, height, width = out, after(height, stride), after(width, stride)
    return nn.Sequential(*layers, *draw.head(entered, height, width)), (channels, *image)


def shortcut(draw: Draw, kind: str, in_channels: int, out_channels: int, stride: int) -> nn.Module | None:
    """Identity where shapes agree, else a strided projection or a pool and a projection."""
    if stride == 1 and in_channels == out_channels:
        return None
    if kind == "strided" or stride == 1:
        return draw.conv(in_channels, out_channels, 1, stride, act=False)
    pool = nn.MaxPool2d(3, stride, 1) if kind == "max" else nn.AvgPool2d(3, stride, 1)
    return nn.Sequential(pool, draw.conv(in_channels, out_channels, act=False))


def residual(draw: Draw) -> Drawn:
    """Residual network: basic, bottleneck or pre-activated blocks, maybe with squeeze-excite."""
    kind, skip = draw.choice(("basic", "bottleneck", "pre")), draw.choice(("strided", "max", "mean"))
    kernel, ratio, gated = draw.choice((3, 3, 3, 5, 7)), draw.uniform(0.2, 0.8), draw.chance(0.2)

    def block(a: int, b: int, stride: int) -> nn.Module:
        hidden = max(round(b * ratio), 2)
        if kind == "bottleneck":
            parts = [draw.conv(a, hidden), draw.conv(hidden, hidden, kernel, stride), draw.conv(hidden, b, act=False)]
        elif kind == "basic":
            parts = [draw.conv(a, b, kernel, stride), draw.conv(b, b, kernel, act=False)]
        else:
            enter = nn.Sequential(*draw.normal(a), draw.act())
            parts = [enter, draw.conv(a, b, kernel, stride), nn.Sequential(nn.Conv2d(b, b, kernel, 1, kernel // 2))]
        if gated:
            parts.append(nn.Sequential(SqueezeExcite(b, max(b // 8, 1))))
        after_sum = None if kind == "pre" else draw.act
        return Residual(nn.Sequential(*parts), shortcut(draw, skip, a, b, stride), after_sum)

    return staged(draw, block, (12, 512), 4)


class Shuffle(nn.Module):
    """Interleaves channel groups."""

    def __init__(self, groups: int) -> None:
        super().__init__()
        self.groups = groups

    def forward(self, x: Tensor) -> Tensor:
        """Keep the shape (N, C, H, W)."""
        channels, height, width = x.shape[1], x.shape[2], x.shape[3]
        split = x.reshape(-1, self.groups, channels // self.groups, height, width)
        return split.transpose(1, 2).reshape(-1, channels, height, width)


def grouped(draw: Draw) -> Drawn:
    """Grouped bottlenecks: the number of groups is fixed per network, with or without channel shuffle."""
    groups, shuffled, kernel = (
        draw.choice((2, 3, 4, 5, 8, 12, 16, 24, 32)),
        draw.chance(0.35),
        draw.choice((3, 3, 3, 5)),
    )
    ratio, narrow = draw.choice((0.5, 1.0, 1.0, 1.5)), draw.chance(0.4)

    def block(a: int, b: int, stride: int) -> nn.Module:
        hidden = max(round(b * ratio / groups), 1) * groups
        reduce = draw.conv(a, hidden, groups=groups if narrow else 1)
        mix = [Shuffle(groups)] if shuffled else []
        expand = draw.conv(hidden, b, groups=groups if narrow else 1, act=False)
        body = nn.Sequential(reduce, *mix, draw.conv(hidden, hidden, kernel, stride, groups=groups), expand)
        return Residual(body, shortcut(draw, "strided", a, b, stride), draw.act)

    return staged(draw, block, (24, 768), 4, groups)


def mbconv(draw: Draw) -> Drawn:
    """Inverted residuals, fused ones and separable blocks; kernel, expansion and gate drawn per block."""
    gated, fused, plain_share = draw.chance(0.4), draw.choice((0.0, 0.0, 0.3, 1.0)), draw.choice((0.0, 0.3, 1.0))

    def block(a: int, b: int, stride: int) -> nn.Module:
        kernel = draw.choice((3, 3, 3, 5, 5, 7, 9, 11))
        if draw.chance(plain_share):
            return nn.Sequential(draw.conv(a, a, kernel, stride, groups=a), draw.conv(a, b))
        hidden = max(round(a * draw.uniform(1.5, 7)), 4)
        if draw.chance(fused):
            parts = [draw.conv(a, hidden, min(kernel, 5), stride)]
        else:
            parts = [draw.conv(a, hidden), draw.conv(hidden, hidden, kernel, stride, groups=hidden)]
        if gated:
            parts.append(nn.Sequential(SqueezeExcite(hidden, max(a // 4, 1))))
        body = nn.Sequential(*parts, draw.conv(hidden, b, act=False))
        return Residual(body) if stride == 1 and a == b else body

    return staged(draw, block, (8, 256), 5)


class Concatenating(nn.Module):
    """Each stage reads everything before it (dense) or only its predecessor (one-shot); all is concatenated."""

    def __init__(self, stages: Sequence[nn.Module], last: nn.Module, *, every: bool) -> None:
        super().__init__()
        self.stages, self.last, self.every = nn.ModuleList(stages), last, every

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C, H, W) to the last module's output."""
        parts = [x]
        for stage in self.stages:
            parts.append(stage(torch.cat(parts, 1) if self.every and len(parts) > 1 else parts[-1]))
        out: Tensor = self.last(torch.cat(parts, 1))
        return out


def dense(draw: Draw) -> Drawn:
    """Concatenating stages of two to eight layers with a transition after each."""
    growth, every = draw.width(4, 48), draw.chance(0.65)
    narrow, kernel = draw.chance(0.5), draw.choice((3, 3, 3, 5))

    def block(a: int, b: int, stride: int) -> nn.Module:
        layers, entered = [], a
        depth = draw.randint(2, 8)
        for _ in range(depth):
            reduced = 4 * growth if narrow else entered
            enter = [draw.conv(entered, reduced)] if narrow else []
            layers.append(nn.Sequential(*enter, draw.conv(reduced, growth, kernel)))
            entered = entered + growth if every else growth
        pool = [draw.choice((nn.AvgPool2d, nn.MaxPool2d))(3, stride, 1)] if stride > 1 else []
        return Concatenating(layers, nn.Sequential(draw.conv(a + depth * growth, b), *pool), every=every)

    return staged(draw, block, (12, 320), 1)


def branches(draw: Draw) -> Drawn:
    """Blocks of two to five parallel branches: pointwise, one or two convolutions, asymmetric pair, pooling."""

    def branch(a: int, out: int, stride: int) -> nn.Module:
        kind = draw.choice(("point", "one", "two", "pair", "pool"))
        hidden = draw.width(4, max(out, 8))
        kernel = draw.choice((3, 3, 5, 7))
        if kind == "point":
            return draw.conv(a, out, 1, stride)
        if kind == "one":
            return nn.Sequential(draw.conv(a, hidden), draw.conv(hidden, out, kernel, stride))
        if kind == "two":
            return nn.Sequential(draw.conv(a, hidden), draw.conv(hidden, hidden, 3), draw.conv(hidden, out, 3, stride))
        if kind == "pair":
            first, second = draw.conv(a, hidden, (1, kernel)), draw.conv(hidden, out, (kernel, 1), stride)
            return nn.Sequential(first, second)
        return nn.Sequential(draw.choice((nn.MaxPool2d, nn.AvgPool2d))(3, stride, 1), draw.conv(a, out))

    def block(a: int, b: int, stride: int) -> nn.Module:
        number = min(draw.randint(2, 5), b)
        cuts = sorted(draw.sample(range(1, b), number - 1))
        shares = [end - start for start, end in zip([0, *cuts], [*cuts, b], strict=True)]
        joined = ConcatBranches(*(branch(a, share, stride) for share in shares))
        return Residual(joined) if stride == 1 and a == b and draw.chance(0.3) else joined

    return staged(draw, block, (16, 512), 4)


class Tokens(nn.Module):
    """Attention and MLP over the positions of a map: all of them, inside windows, or with pooled keys."""

    def __init__(self, width: int, heads: int, ratio: float, window: int, act: Callable[[], nn.Module]) -> None:
        super().__init__()
        self.window = window
        self.mix = Residual(nn.Sequential(nn.LayerNorm(width), Attention(width, heads)))
        self.feed = Residual(nn.Sequential(nn.LayerNorm(width), mlp(width, max(round(width * ratio), 4), act)))

    def forward(self, x: Tensor) -> Tensor:
        """Keep the shape (N, C, H, W); sides are multiples of the window where there is one."""
        size, channels, height, width = self.window, x.shape[1], x.shape[2], x.shape[3]
        if not size:
            tokens = self.feed(self.mix(x.flatten(2).transpose(1, 2)))
            return tokens.transpose(1, 2).reshape(-1, channels, height, width)
        x = x.reshape(-1, channels, height // size, size, width // size, size).permute(0, 2, 4, 3, 5, 1)
        x = self.feed(self.mix(x.reshape(-1, size * size, channels)))
        x = x.reshape(-1, height // size, width // size, size, size, channels).permute(0, 5, 1, 3, 2, 4)
        return x.reshape(-1, channels, height, width)


class PooledTokens(nn.Module):
    """Attention whose keys and values come from a strided convolution of the map (pyramid transformers)."""

    def __init__(self, width: int, heads: int, stride: int) -> None:
        super().__init__()
        self.heads, self.head_width = heads, width // heads
        self.reduce = nn.Conv2d(width, width, stride, stride)
        self.norm, self.query, self.key_value = (
            nn.LayerNorm(width),
            nn.Linear(width, width),
            nn.Linear(width, 2 * width),
        )
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Keep the shape (N, C, H, W)."""
        channels, height, width = x.shape[1], x.shape[2], x.shape[3]
        tokens, memory = x.flatten(2).transpose(1, 2), self.norm(self.reduce(x).flatten(2).transpose(1, 2))
        q = self.query(tokens).reshape(-1, height * width, self.heads, self.head_width).transpose(1, 2)
        kv = self.key_value(memory).reshape(-1, memory.shape[1], 2, self.heads, self.head_width).permute(2, 0, 3, 1, 4)
        mixed = functional.scaled_dot_product_attention(q, kv[0], kv[1]).transpose(1, 2)
        out = self.out(mixed.reshape(-1, height * width, channels)).transpose(1, 2)
        return x + out.reshape(-1, channels, height, width)


def mixed(draw: Draw) -> Drawn:
    """Convolution stages, then attention over at most 1024 positions with head widths from 8 to 80."""
    channels, image = draw.channels(), draw.image(multiple=32)
    height, width = image
    entered = draw.width(8, 48)
    layers: list[nn.Module] = [draw.conv(channels, entered, draw.choice((3, 5, 7)), 2)]
    height, width = height // 2, width // 2
    while height * width > 1024 or (draw.chance(0.3) and min(height, width) >= 16):
        out = draw.width(entered, 2 * entered + 8)
        expanded = max(round(entered * draw.uniform(1, 4)), 4)
        steps = [
            draw.conv(entered, expanded),
            draw.conv(expanded, expanded, draw.choice((3, 5, 7)), 2, groups=expanded),
        ]
        layers.append(nn.Sequential(*steps, draw.conv(expanded, out, act=False)))
        entered, height, width = out, height // 2, width // 2
    for _ in range(draw.randint(1, 3)):
        head = draw.choice((8, 16, 20, 24, 32, 32, 40, 48, 64, 80))
        heads = draw.randint(1, 8)
        out = head * heads
        layers.append(draw.conv(entered, out, draw.choice((1, 1, 3))))
        windows = [size for size in (4, 5, 7, 8) if height % size == 0 and width % size == 0]
        kind = draw.choice(("all", "all", "window", "pooled"))
        window = draw.choice(windows) if kind == "window" and windows else 0
        for _ in range(draw.randint(1, 4)):
            if draw.chance(0.3):
                layers.append(Residual(draw.conv(out, out, draw.choice((3, 5)), groups=out)))
            if kind == "pooled" and min(height, width) >= 4:
                layers.append(PooledTokens(out, heads, draw.choice((2, 4))))
            layers.append(
                Tokens(out, heads, draw.choice((1, 2, 3, 4, 8 / 3)), window, draw.choice((nn.GELU, nn.SiLU, nn.ReLU)))
            )
        entered = out
    return nn.Sequential(*layers, *draw.head(entered, height, width)), (channels, *image)


class EncoderDecoder(nn.Module):
    """U shape whose skips are added or concatenated."""

    def __init__(
        self,
        down: Sequence[nn.Module],
        up: Sequence[nn.Module],
        merge: Sequence[nn.Module],
        head: nn.Module,
        *,
        add: bool,
    ) -> None:
        super().__init__()
        self.down, self.up, self.merge = nn.ModuleList(down), nn.ModuleList(up), nn.ModuleList(merge)
        self.head, self.add = head, add

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C, H, W) to (N, classes, H, W)."""
        skips = []
        for stage in self.down:
            x = stage(x)
            skips.append(x)
        skips.pop()
        for up, merge in zip(self.up, self.merge, strict=True):
            x, skip = up(x), skips.pop()
            x = merge(x + skip if self.add else torch.cat([x, skip], 1))
        scores: Tensor = self.head(x)
        return scores


def decoder(draw: Draw) -> Drawn:
    """Encoder-decoder of three to five levels, upsampled by transposed convolution, resizing or depth to space."""
    levels = draw.randint(3, 5)
    channels, image = draw.channels(), draw.image(largest=512, multiple=2 ** (levels - 1))
    widths = [draw.width(4, 32)]
    while len(widths) < levels:
        widths.append(draw.width(widths[-1], 2 * widths[-1] + 4))
    kind, pooled, add = draw.choice(("deconv", "resize", "shuffle")), draw.chance(0.5), draw.chance(0.4)
    separable, kernel = draw.chance(0.3), draw.choice((3, 3, 3, 5))

    def stage(a: int, b: int, stride: int = 1) -> nn.Module:
        if separable and a > 3:
            return nn.Sequential(draw.conv(a, a, kernel, stride, groups=a), draw.conv(a, b))
        return nn.Sequential(draw.conv(a, b, kernel, stride), draw.conv(b, b, kernel))

    def enlarge(a: int, b: int) -> nn.Module:
        if kind == "deconv":
            return nn.ConvTranspose2d(a, b, 2, 2)
        if kind == "shuffle":
            return nn.Sequential(nn.Conv2d(a, 4 * b, 1), nn.PixelShuffle(2))
        return nn.Sequential(nn.Upsample(scale_factor=2, mode="bilinear"), draw.conv(a, b))

    down = [stage(channels, widths[0])]
    for a, b in pairwise(widths):
        down.append(nn.Sequential(nn.MaxPool2d(2), stage(a, b)) if pooled else stage(a, b, 2))
    pairs = list(zip(widths[:0:-1], widths[-2::-1], strict=True))
    up, merge = [enlarge(a, b) for a, b in pairs], [stage(b if add else 2 * b, b) for _, b in pairs]
    head = nn.Conv2d(widths[0], draw.randint(1, 32), 1)
    return EncoderDecoder(down, up, merge, head, add=add), (channels, *image)

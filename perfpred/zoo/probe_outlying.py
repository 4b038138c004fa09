"""Draws of layers at the edge of what networks hold: long windows, few channels, small axes, wide groups.

Runtimes treat them as exceptions, so their times can't be told from those of common layers.
"""

from __future__ import annotations

from torch import Tensor, nn

from perfpred.zoo.draw import Draw
from perfpred.zoo.probe_draws import Layer, activation, applied, edges, layer, size, spread


class RowNorm(nn.BatchNorm1d):
    """Batch normalisation of every token's channels, as after a linear layer."""

    def forward(self, x: Tensor) -> Tensor:
        """Keep the shape (N, T, C)."""
        return super().forward(x.flatten(0, 1)).reshape(-1, *x.shape[1:])


def _long_pool(draw: Draw) -> Layer:
    """A pool over all of a signal, or over much of it."""
    pool = draw.choice((nn.MaxPool1d, nn.MaxPool1d, nn.AvgPool1d))
    channels, length = size(draw, 16, 1024), size(draw, 64, 8192)
    return layer(pool(length if draw.chance(0.7) else max(length // draw.choice((2, 4, 8, 16)), 2)), (channels, length))


def _wide_transposed(draw: Draw) -> Layer:
    """A transposed convolution of many taps to few channels, or by channel."""
    channels, kernel = size(draw, 4, 128), spread(draw, 5, 64)
    stride = max(kernel // draw.choice((2, 2, 3, 4)), 1)
    by_channel = draw.chance(0.5)
    out, groups = (channels, channels) if by_channel else (spread(draw, 1, 16), 1)
    padding = max(kernel - stride, 0) // 2
    conv = nn.ConvTranspose2d(channels, out, kernel, stride, padding, groups=groups, bias=draw.chance(0.5))
    return layer(conv, (channels, *edges(draw, 4, 256)))


def _signal(draw: Draw) -> Layer:
    """A first convolution of a signal: many taps, a large stride."""
    channels, kernel = draw.choice((1, 1, 1, 2, 3, 4)), spread(draw, 8, 400)
    stride = min(spread(draw, 1, 160), kernel)
    conv = nn.Conv1d(
        channels, size(draw, 16, 512), kernel, stride, draw.choice((0, kernel // 2)), bias=draw.chance(0.5)
    )
    return layer(nn.Sequential(conv, activation(draw)), (channels, size(draw, 1000, 64000)))


def _row_norm(draw: Draw) -> Layer:
    """Batch normalisation of tokens."""
    tokens, width = size(draw, 4, 1024), size(draw, 16, 1024)
    return layer(RowNorm(width), (tokens, width))


def _small_mix(draw: Draw) -> Layer:
    """A linear layer over a last axis of few numbers."""
    inputs, out = spread(draw, 2, 48), spread(draw, 2, 48)
    return layer(nn.Linear(inputs, out, bias=draw.chance(0.7)), (*edges(draw, 14, 256), inputs))


def _sum(x: Tensor) -> Tensor:
    return x.sum(1)


def _mean(x: Tensor) -> Tensor:
    return x.mean(1)


def _small_reduction(draw: Draw) -> Layer:
    """A sum or mean over an axis of few numbers."""
    shape = (spread(draw, 2, 8), size(draw, 8, 512), *edges(draw, 7, 64))
    return applied(shape, function=draw.choice((_sum, _sum, _mean)))


def _large_norm(draw: Draw) -> Layer:
    """Group normalisation of few, large groups."""
    groups = draw.choice((1, 1, 1, 2, 4, 8))
    channels = groups * max(size(draw, 4, 512) // groups, 1)
    return layer(nn.GroupNorm(groups, channels), (channels, *edges(draw, 14, 512)))


def _softmax(draw: Draw) -> Layer:
    """A softmax over any axis of a stack of square or oblong matrices."""
    shape = (draw.choice((1, 2, 3, 4, 6, 8, 12, 16)), *edges(draw, 7, 512))
    return layer(nn.Softmax(draw.choice((-1, -1, -1, 1, 2))), shape)


def _wide_kernel(draw: Draw) -> Layer:
    """A convolution of many taps, by channel or of few channels."""
    kernel = spread(draw, 7, 31) | 1
    by_channel = draw.chance(0.5)
    channels = size(draw, 8, 512) if by_channel else size(draw, 1, 64)
    out, groups = (channels, channels) if by_channel else (size(draw, 1, 64), 1)
    conv = nn.Conv2d(channels, out, kernel, draw.choice((1, 1, 1, 2)), kernel // 2, groups=groups)
    return layer(nn.Sequential(conv, activation(draw)), (channels, *edges(draw, 7, 256)))


def _wide_groups(draw: Draw) -> Layer:
    """A grouped convolution of few or of wide groups."""
    groups, width = draw.choice((2, 2, 2, 3, 4, 6, 8, 16, 32)), size(draw, 4, 256)
    out = groups * width if draw.chance(0.7) else groups * size(draw, 4, 256)
    kernel = draw.choice((1, 3, 3, 3, 5))
    stride = draw.choice((1, 1, 1, 2))
    conv = nn.Conv2d(groups * width, out, kernel, stride, kernel // 2, groups=groups, bias=draw.chance(0.8))
    return layer(nn.Sequential(conv, activation(draw)), (groups * width, *edges(draw, 5, 112)))


def outlying(draw: Draw) -> Layer:
    """Return a layer of one of these sorts."""
    sorts = (_long_pool, _wide_transposed, _signal, _row_norm, _small_mix, _small_reduction, _large_norm, _softmax)
    return draw.choice((*sorts, _wide_kernel, _wide_groups, _wide_groups))(draw)


def plain_linear(draw: Draw) -> Layer:
    """Return a linear layer of few rows and wide weights, as language models have it."""
    inputs, out = size(draw, 64, 4096), size(draw, 64, 8192)
    module: nn.Module = nn.Linear(inputs, out, bias=draw.chance(0.4))
    if draw.chance(0.3):
        module = nn.Sequential(module, activation(draw))
    return layer(module, (spread(draw, 1, 512), inputs))

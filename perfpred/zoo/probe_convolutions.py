"""Draws of single convolutions, pools, resizes and recurrent layers."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional

from perfpred.zoo.blocks import Residual, Resize
from perfpred.zoo.draw import Draw
from perfpred.zoo.probe_draws import Layer, Shape, activation, applied, edges, layer, size, spread

_CONVOLUTIONS = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
_TRANSPOSED = {1: nn.ConvTranspose1d, 2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}
_NORMS = {1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}
_MAX_POOLS = {1: nn.MaxPool1d, 2: nn.MaxPool2d, 3: nn.MaxPool3d}
_MEAN_POOLS = {1: nn.AvgPool1d, 2: nn.AvgPool2d, 3: nn.AvgPool3d}
_GLOBAL_POOLS = {1: nn.AdaptiveAvgPool1d, 2: nn.AdaptiveAvgPool2d, 3: nn.AdaptiveAvgPool3d}
_KERNELS_2D: tuple[Shape, ...] = (
    *((1, 1),) * 6,
    *((3, 3),) * 7,
    *((5, 5), (5, 5), (7, 7), (7, 7), (2, 2), (4, 4), (9, 9), (11, 11)),
    *((1, 3), (3, 1), (1, 7), (7, 1), (1, 5), (5, 3)),
)
_KERNELS_3D: tuple[Shape, ...] = (
    *((3, 3, 3),) * 6,
    *((1, 3, 3), (1, 3, 3), (3, 1, 1), (3, 1, 1), (1, 1, 1), (1, 1, 1)),
    *((5, 5, 5), (1, 7, 7), (3, 7, 7), (7, 1, 1), (2, 2, 2), (1, 5, 5)),
)


def _finished(draw: Draw, conv: nn.Module, channels: int, dims: int) -> nn.Sequential:
    """A convolution with batch normalisation in six cases of ten, and an activation."""
    norm = [_NORMS[dims](channels)] if draw.chance(0.6) else []
    return nn.Sequential(conv, *norm, activation(draw))


def _groups(draw: Draw, channels: int, out: int, sort: str) -> tuple[int, int]:
    """Number of groups of a sort, and the output channels rounded to it."""
    if sort == "depthwise":
        return channels, channels * draw.choice((1, 1, 1, 1, 2))
    groups = draw.groups(channels) if sort == "grouped" else 1
    return groups, max(out // groups, 1) * groups


def _convolution(
    draw: Draw, channels: int, out: int, sizes: Shape, kernel: Shape, stride: Shape, dilation: int, sort: str
) -> Layer:
    dims = len(sizes)
    kept = set(stride) == {1} and all(k % 2 for k in kernel)
    if kept and sort != "depthwise" and draw.chance(0.2):
        out = channels
    groups, out = _groups(draw, channels, out, sort)
    padding = tuple(dilation * (k - 1) // 2 for k in kernel)
    conv = _CONVOLUTIONS[dims](channels, out, kernel, stride, padding, dilation, groups=groups, bias=draw.chance(0.7))
    module = _finished(draw, conv, out, dims)
    if kept and out == channels and draw.chance(0.4):
        return layer(Residual(module), (channels, *sizes))
    return layer(module, (channels, *sizes))


def _transposed(draw: Draw, channels: int, out: int, sizes: Shape, kernel: int, stride: int) -> Layer:
    dims = len(sizes)
    groups, out = _groups(draw, channels, out, draw.choice(("dense",) * 5 + ("grouped", "depthwise")))
    padding = max(kernel - stride + 1, 0) // 2 if draw.chance(0.8) else 0
    conv = _TRANSPOSED[dims](channels, out, kernel, stride, padding, groups=groups, bias=draw.chance(0.6))
    return layer(_finished(draw, conv, out, dims), (channels, *sizes))


def _pooled(draw: Draw, shape: Shape, largest: int) -> Layer:
    dims = len(shape) - 1
    if draw.chance(0.15):
        return layer(_GLOBAL_POOLS[dims](1), shape)
    kernel = min(draw.choice([k for k in (2, 2, 3, 3, 4, 5, 7, 9, 13) if k <= largest]), *shape[1:])
    pool = draw.choice((_MAX_POOLS, _MAX_POOLS, _MEAN_POOLS))[dims]
    stride, padding = draw.choice((1, 2, 2, kernel)), draw.choice((0, kernel // 2))
    return layer(pool(kernel, stride, padding, ceil_mode=dims == 2 and draw.chance(0.25)), shape)


def conv1d(draw: Draw) -> Layer:
    """Return a convolution, a transposed one or a pool over time."""
    channels = draw.choice((1, 2, 3)) if draw.chance(0.08) else size(draw, 4, 1024)
    out, length = size(draw, 1, 1024), size(draw, 8, 32000)
    form = draw.random()
    if form < 0.12:
        return _pooled(draw, (channels, length), 9)
    if form < 0.26:
        stride = draw.choice((2, 2, 3, 4, 5, 8))
        return _transposed(
            draw, channels, out, (length,), stride * draw.choice((1, 2, 2)) + draw.choice((0, 0, 1)), stride
        )
    kernel = spread(draw, 1, 65)
    kernel += kernel % 2 == 0 and draw.chance(0.85)
    stride = draw.choice((1,) * 8 + (2, 2, 3, 4, 5, 8))
    dilation = draw.choice((2, 3, 4, 5, 8, 9, 16, 27, 32)) if stride == 1 and kernel > 1 and draw.chance(0.25) else 1
    sort = draw.choice(("dense",) * 7 + ("depthwise",) * 3 + ("grouped",))
    return _convolution(draw, channels, out, (length,), (kernel,), (stride,), dilation, sort)


def filter1d(draw: Draw) -> Layer:
    """Return a depthwise or grouped convolution over time, of few to many taps."""
    channels, length = size(draw, 4, 1024), size(draw, 16, 16000)
    kernel = spread(draw, 3, 129) | 1 if draw.chance(0.9) else spread(draw, 2, 128)
    stride = draw.choice((1,) * 8 + (2, 2, 4))
    dilation = draw.choice((2, 2, 4, 8)) if stride == 1 and draw.chance(0.15) else 1
    sort = draw.choice(("depthwise",) * 3 + ("grouped",) * 2)
    return _convolution(draw, channels, channels, (length,), (kernel,), (stride,), dilation, sort)


def conv2d(draw: Draw) -> Layer:
    """Return a dense convolution of an image."""
    kernel, stride = draw.choice(_KERNELS_2D), draw.choice((1,) * 9 + (2,) * 4 + (3, 4))
    if draw.chance(0.03):
        kernel, stride = (patch := draw.choice((4, 8, 14, 16)),) * 2, patch
    dilation = draw.choice((2, 2, 3, 4, 6, 12)) if stride == 1 and max(kernel) > 1 and draw.chance(0.12) else 1
    channels = draw.choice((1, 3, 3, 4)) if draw.chance(0.12) else size(draw, 2, 2048)
    out, sizes = size(draw, 1, 2048), edges(draw, 4, 1024)
    if draw.chance(0.05):
        sizes = (1, 1)
        kernel, stride, dilation = (1, 1), 1, 1
    return _convolution(draw, channels, out, sizes, kernel, (stride, stride), dilation, "dense")


def grouped2d(draw: Draw) -> Layer:
    """Return a depthwise or grouped convolution of an image."""
    sort = draw.choice(("depthwise", "depthwise", "grouped"))
    kernel = draw.choice(_KERNELS_2D[6:]) if sort == "depthwise" else draw.choice(_KERNELS_2D)
    stride = draw.choice((1, 1, 1, 2, 2, 4))
    dilation = draw.choice((2, 3, 4)) if stride == 1 and draw.chance(0.1) else 1
    channels, out = size(draw, 4, 2048), size(draw, 4, 2048)
    return _convolution(draw, channels, out, edges(draw, 4, 512), kernel, (stride, stride), dilation, sort)


def conv3d(draw: Draw) -> Layer:
    """Return a convolution, a transposed one or a pool over frames, height and width."""
    channels, out = size(draw, 1, 256), size(draw, 1, 256)
    sizes = (spread(draw, 2, 32), *edges(draw, 7, 112))
    form = draw.random()
    if form < 0.18:
        return _pooled(draw, (channels, *sizes), 3)
    if form < 0.25:
        return _transposed(draw, channels, out, sizes, draw.choice((2, 3, 4)), 2)
    kernel = draw.choice(_KERNELS_3D)
    stride = draw.choice(((1, 1, 1),) * 4 + ((1, 2, 2), (2, 2, 2), (2, 1, 1)))
    sort = draw.choice(("dense",) * 6 + ("depthwise", "depthwise", "grouped"))
    return _convolution(draw, channels, out, sizes, kernel, stride, 1, sort)


def deconv2d(draw: Draw) -> Layer:
    """Return a transposed convolution of an image."""
    kernel, stride = draw.randint(2, 5), draw.choice((1, 2, 2, 2, 3, 4))
    return _transposed(draw, size(draw, 2, 1024), size(draw, 1, 512), edges(draw, 4, 256), kernel, stride)


def _upscaled(x: Tensor, scale: float, mode: str, corners: bool | None) -> Tensor:
    return functional.interpolate(x, scale_factor=scale, mode=mode, align_corners=corners)


def resize(draw: Draw) -> Layer:
    """Return a resize by a factor or to a size, or a pool, of an image."""
    shape = (size(draw, 1, 512), *edges(draw, 4, 512))
    if draw.chance(0.45):
        return _pooled(draw, shape, 13)
    mode = draw.choice(("nearest",) * 4 + ("bilinear",) * 5 + ("bicubic",))
    if draw.chance(0.6):
        scale = draw.choice((2.0, 2.0, 2.0, 3.0, 4.0, 8.0, 0.5))
        corners = None if mode == "nearest" else draw.chance(0.3)
        return applied(shape, function=_upscaled, arguments=(scale, mode, corners))
    height, width = (spread(draw, max(edge // 3, 2), 4 * edge) for edge in shape[1:])
    return layer(Resize((height, width), mode), shape)


class States(nn.Module):
    """A recurrent layer over (N, L, C) from a zero state, of which only the states at all steps are wanted."""

    def __init__(self, cell: nn.RNNBase) -> None:
        super().__init__()
        self.cell = cell

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, L, inputs) to (N, L, hidden), twice as wide in both directions."""
        states: Tensor = self.cell(x)[0]
        return states


def recurrent(draw: Draw) -> Layer:
    """Return one or two LSTM, GRU or plain recurrent layers, in one direction or both."""
    cell = draw.choice((nn.LSTM,) * 5 + (nn.GRU,) * 4 + (nn.RNN,))
    inputs, hidden = size(draw, 8, 1024), size(draw, 16, 1024)
    steps = min(spread(draw, 2, 400), (1 << 16) // hidden)
    layers = draw.choice((1, 1, 1, 2))
    module = cell(inputs, hidden, layers, batch_first=True, bidirectional=draw.chance(0.35))
    return layer(States(module), (steps, inputs))

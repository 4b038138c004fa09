"""Building blocks that several of our network builders share.

All blocks are in inference form: plain modules, static spatial sizes, a batch axis that is never read.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

Activation = Callable[[], nn.Module]

_CONV = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
_NORM = {1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}


def divisible(width: float, by: int = 8) -> int:
    """Round a width to a multiple of `by`, never losing more than 10 % (MobileNet's rule)."""
    rounded = max(by, int(width + by / 2) // by * by)
    return rounded + by if rounded < 0.9 * width else rounded


class ConvNormAct(nn.Sequential):
    """Convolution with "same" padding, batch normalisation and activation, in 1-D, 2-D or 3-D."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel: int | tuple[int, ...] = 1,
        stride: int | tuple[int, ...] = 1,
        *,
        groups: int = 1,
        dilation: int | tuple[int, ...] = 1,
        act: Activation | None = nn.ReLU,
        norm: bool = True,
        dims: int = 2,
    ) -> None:
        kernels = (kernel,) * dims if isinstance(kernel, int) else kernel
        dilations = (dilation,) * dims if isinstance(dilation, int) else dilation
        padding = tuple(d * (k - 1) // 2 for k, d in zip(kernels, dilations, strict=True))
        parts: list[nn.Module] = [
            _CONV[dims](
                in_channels,
                out_channels,
                kernels,
                stride,
                padding,
                dilation=dilations,
                groups=groups,
                bias=not norm,
            )
        ]
        if norm:
            parts.append(_NORM[dims](out_channels))
        if act is not None:
            parts.append(act())
        super().__init__(*parts)


def depthwise(
    channels: int,
    kernel: int | tuple[int, ...] = 3,
    stride: int | tuple[int, ...] = 1,
    *,
    dilation: int = 1,
    act: Activation | None = nn.ReLU,
    dims: int = 2,
) -> ConvNormAct:
    """Depthwise `ConvNormAct`."""
    return ConvNormAct(channels, channels, kernel, stride, groups=channels, dilation=dilation, act=act, dims=dims)


def separable(
    in_channels: int,
    out_channels: int,
    kernel: int = 3,
    stride: int = 1,
    *,
    act: Activation | None = nn.ReLU,
    dims: int = 2,
) -> nn.Sequential:
    """Depthwise convolution followed by a pointwise one, each normalised and activated."""
    return nn.Sequential(
        depthwise(in_channels, kernel, stride, act=act, dims=dims),
        ConvNormAct(in_channels, out_channels, act=act, dims=dims),
    )


class Residual(nn.Module):
    """`act(body(x) + skip(x))`, with the identity as default skip."""

    def __init__(
        self,
        body: nn.Module,
        skip: nn.Module | None = None,
        act: Activation | None = None,
        scale: float = 1.0,
    ) -> None:
        super().__init__()
        self.body = body
        self.skip = skip if skip is not None else nn.Identity()
        self.act = act() if act is not None else nn.Identity()
        self.scale = scale

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C, ...) to (N, C', ...)."""
        update = self.body(x)
        if self.scale != 1.0:
            update = update * self.scale
        return self.act(update + self.skip(x))


def basic_block(in_channels: int, out_channels: int, stride: int = 1, *, dilation: int = 1, dims: int = 2) -> Residual:
    """Two 3x3 convolutions with a residual connection, as in ResNet-18 and 34."""
    changes = stride != 1 or in_channels != out_channels
    skip = ConvNormAct(in_channels, out_channels, 1, stride, act=None, dims=dims) if changes else None
    body = nn.Sequential(
        ConvNormAct(in_channels, out_channels, 3, stride, dilation=dilation, dims=dims),
        ConvNormAct(out_channels, out_channels, 3, dilation=dilation, act=None, dims=dims),
    )
    return Residual(body, skip, nn.ReLU)


def bottleneck(in_channels: int, width: int, stride: int = 1, *, groups: int = 1, expansion: int = 4) -> Residual:
    """1x1, 3x3, 1x1 with a residual connection, as in ResNet-50."""
    out_channels = width * expansion
    changes = stride != 1 or in_channels != out_channels
    body = nn.Sequential(
        ConvNormAct(in_channels, width),
        ConvNormAct(width, width, 3, stride, groups=groups),
        ConvNormAct(width, out_channels, act=None),
    )
    skip = ConvNormAct(in_channels, out_channels, 1, stride, act=None) if changes else None
    return Residual(body, skip, nn.ReLU)


class SqueezeExcite(nn.Module):
    """Channel attention: global mean, two pointwise convolutions, a gate."""

    def __init__(self, channels: int, hidden: int, act: Activation = nn.ReLU, gate: Activation = nn.Sigmoid) -> None:
        super().__init__()
        self.gate = nn.Sequential(
            nn.AdaptiveAvgPool2d(1),
            nn.Conv2d(channels, hidden, 1),
            act(),
            nn.Conv2d(hidden, channels, 1),
            gate(),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Keep the shape (N, C, H, W)."""
        return x * self.gate(x)


def inverted_residual(
    in_channels: int,
    out_channels: int,
    *,
    kernel: int = 3,
    stride: int = 1,
    expansion: float = 6,
    squeeze: int = 0,
    act: Activation = nn.ReLU6,
) -> nn.Module:
    """Expand, depthwise, (squeeze-excite), project: MobileNet-v2/v3 and EfficientNet.

    Args:
        in_channels: channels read.
        out_channels: channels written.
        kernel: depthwise kernel.
        stride: depthwise stride.
        expansion: hidden width over `in_channels`; 1 leaves the expansion out.
        squeeze: hidden width of the squeeze-excite, 0 for none.
        act: activation.

    Returns:
        a module from (N, in_channels, H, W) to (N, out_channels, H / stride, W / stride).
    """
    hidden = round(in_channels * expansion)
    parts: list[nn.Module] = [ConvNormAct(in_channels, hidden, act=act)] if hidden != in_channels else []
    parts.append(depthwise(hidden, kernel, stride, act=act))
    if squeeze:
        parts.append(SqueezeExcite(hidden, squeeze))
    parts.append(ConvNormAct(hidden, out_channels, act=None))
    body = nn.Sequential(*parts)
    return Residual(body) if stride == 1 and in_channels == out_channels else body


class Stages(nn.Module):
    """Runs stages in turn and returns the outputs of those asked for."""

    def __init__(self, stages: Sequence[nn.Module], wanted: Sequence[int]) -> None:
        super().__init__()
        self.stages = nn.ModuleList(stages)
        self.wanted = frozenset(wanted)

    def forward(self, x: Tensor) -> list[Tensor]:
        """Map the image to one feature map for each stage wanted, finest first."""
        outputs = []
        for index, stage in enumerate(self.stages):
            x = stage(x)
            if index in self.wanted:
                outputs.append(x)
        return outputs


def resnet_stages(
    depths: Sequence[int] = (2, 2, 2, 2),
    widths: Sequence[int] = (64, 128, 256, 512),
    *,
    bottlenecks: bool = False,
    in_channels: int = 3,
    output_stride: int = 32,
    wanted: Sequence[int] = (1, 2, 3, 4),
) -> Stages:
    """Stem and four stages of a ResNet; stages past `output_stride` dilate instead of striding."""
    stem = nn.Sequential(ConvNormAct(in_channels, widths[0], 7, 2), nn.MaxPool2d(3, 2, 1))
    stages: list[nn.Module] = [stem]
    channels, reached, dilation = widths[0], 4, 1
    for index, (depth, width) in enumerate(zip(depths, widths, strict=True)):
        stride = 1 if index == 0 else 2
        if stride == 2 and reached >= output_stride:
            stride, dilation = 1, dilation * 2
        reached *= stride
        blocks: list[nn.Module] = []
        for block in range(depth):
            step = stride if block == 0 else 1
            if bottlenecks:
                blocks.append(bottleneck(channels, width, step))
                channels = 4 * width
            else:
                blocks.append(basic_block(channels, width, step, dilation=dilation))
                channels = width
        stages.append(nn.Sequential(*blocks))
    return Stages(stages, wanted)


# expansion, channels, blocks, stride of each MobileNet-v2 stage (Sandler et al. 2018, table 2)
_MOBILENET_V2 = (
    (1, 16, 1, 1),
    (6, 24, 2, 2),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)


def mobilenet_v2_widths(width: float = 1.0) -> list[int]:
    """Channels after the stem and after each of the seven stages."""
    return [divisible(32 * width), *(divisible(c * width) for _, c, _, _ in _MOBILENET_V2)]


def mobilenet_v2_stages(width: float = 1.0, *, wanted: Sequence[int] = (2, 3, 5, 7), in_channels: int = 3) -> Stages:
    """Stem (stage 0) and the seven stages of MobileNet-v2; strides 2, 2, 4, 8, 16, 16, 32, 32."""
    widths = mobilenet_v2_widths(width)
    stages: list[nn.Module] = [ConvNormAct(in_channels, widths[0], 3, 2, act=nn.ReLU6)]
    channels = widths[0]
    for (expansion, _, blocks, stride), out_channels in zip(_MOBILENET_V2, widths[1:], strict=True):
        layers = []
        for block in range(blocks):
            step = stride if block == 0 else 1
            layers.append(inverted_residual(channels, out_channels, stride=step, expansion=expansion))
            channels = out_channels
        stages.append(nn.Sequential(*layers))
    return Stages(stages, wanted)


class Attention(nn.Module):
    """Multi-head self-attention over (N, L, C), written out so that every exporter keeps the batch axis."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads, self.head_width = heads, width // heads
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Keep the shape (N, L, C)."""
        length, width = x.shape[1], x.shape[2]
        qkv = self.qkv(x).reshape(-1, length, 3, self.heads, self.head_width).permute(2, 0, 3, 1, 4)
        mixed = functional.scaled_dot_product_attention(qkv[0], qkv[1], qkv[2])
        merged: Tensor = self.out(mixed.transpose(1, 2).reshape(-1, length, width))
        return merged


def mlp(width: int, hidden: int, act: Activation = nn.GELU) -> nn.Sequential:
    """Two linear layers with an activation between."""
    return nn.Sequential(nn.Linear(width, hidden), act(), nn.Linear(hidden, width))


def encoder_block(width: int, heads: int, ratio: float = 4.0) -> nn.Sequential:
    """Pre-norm transformer encoder block over (N, L, C)."""
    return nn.Sequential(
        Residual(nn.Sequential(nn.LayerNorm(width), Attention(width, heads))),
        Residual(nn.Sequential(nn.LayerNorm(width), mlp(width, round(width * ratio)))),
    )


class Resize(nn.Module):
    """Resize to a static height and width."""

    def __init__(self, size: tuple[int, int], mode: str = "bilinear") -> None:
        super().__init__()
        self.size, self.mode = size, mode

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C, H, W) to (N, C, *size)."""
        corners = None if self.mode == "nearest" else False
        return functional.interpolate(x, self.size, mode=self.mode, align_corners=corners)


class ConcatBranches(nn.Module):
    """Runs branches on one input and concatenates their channels."""

    def __init__(self, *branches: nn.Module) -> None:
        super().__init__()
        self.branches = nn.ModuleList(branches)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C, ...) to (N, sum of branch channels, ...)."""
        return torch.cat([branch(x) for branch in self.branches], 1)

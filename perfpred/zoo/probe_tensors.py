"""Draws of single matrix products, attention, normalisations, reductions, pointwise chains and data movement."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional

from perfpred.zoo.blocks import Attention, Residual
from perfpred.zoo.draw import Draw
from perfpred.zoo.probe_draws import Apply, Layer, activation, applied, edges, layer, shape_of, size, spread


def _times_transposed(a: Tensor, b: Tensor) -> Tensor:
    return a @ b.transpose(-1, -2)


def _einsum(a: Tensor, b: Tensor, equation: str) -> Tensor:
    return torch.einsum(equation, a, b)


def gemm(draw: Draw) -> Layer:
    """Return a linear layer over rows or vectors, or a product of two activations."""
    inputs, out, rows = size(draw, 16, 4096), size(draw, 16, 4096), size(draw, 2, 1024)
    form = draw.random()
    if form < 0.25:
        heads, inner, columns = draw.choice((1, 2, 3, 4, 6, 8, 12, 16, 64)), size(draw, 8, 256), size(draw, 2, 1024)
        plain, swapped = ((heads, inner, columns), (heads, columns, inner))
        if draw.chance(0.15):
            return applied((heads, rows, inner), swapped, function=_einsum, equation="bhid,bhjd->bhij")
        if draw.chance(0.5):
            return applied((heads, rows, inner), plain, function=torch.matmul)
        return applied((heads, rows, inner), swapped, function=_times_transposed)
    if draw.chance(0.15):
        out = inputs
    module = nn.Sequential(nn.Linear(inputs, out, bias=draw.chance(0.85)), activation(draw))
    shape = (inputs,) if form < 0.42 else (rows, inputs) if form < 0.88 else (*edges(draw, 4, 64), inputs)
    return layer(Residual(module) if out == inputs and draw.chance(0.6) else module, shape)


class BiasedAttention(nn.Module):
    """Scaled dot-product attention with a bias, which may be a mask, added to the scores."""

    def __init__(self, *shape: int) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(*shape))

    def extra_repr(self) -> str:
        """Shape of the bias."""
        return str(tuple(self.bias.shape))

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Map queries (N, …, T, d), keys and values (N, …, S, d) to (N, …, T, d)."""
        mixed: Tensor = functional.scaled_dot_product_attention(q, k, v, attn_mask=self.bias)
        return mixed


def attention(draw: Draw) -> Layer:
    """Return scaled dot-product attention: plain, masked, windowed, across; or a whole block over tokens."""
    heads, tokens, width = draw.choice((1, 2, 3, 4, 5, 6, 8, 12, 16)), size(draw, 16, 1024), size(draw, 16, 128)
    form = draw.random()
    if form < 0.25:
        block: nn.Module = Attention(heads * width, heads)
        if draw.chance(0.5):
            block = Residual(nn.Sequential(nn.LayerNorm(heads * width), block))
        return layer(block, (tokens, heads * width))
    if form < 0.45:
        tokens = draw.choice((16, 36, 49, 49, 64, 100, 144, 196, 256))
        shape = (spread(draw, 2, 64), heads, tokens, width)
        if draw.chance(0.5):
            return layer(BiasedAttention(heads, tokens, tokens), shape, shape, shape)
        return applied(shape, shape, shape, function=functional.scaled_dot_product_attention)
    keys = tokens if draw.chance(0.75) else size(draw, 16, 1024)
    shapes = ((heads, tokens, width), (heads, keys, width), (heads, keys, width))
    if draw.chance(0.4):
        shared = draw.chance(0.6)
        return layer(BiasedAttention(1 if shared else heads, tokens, keys), *shapes)
    return applied(*shapes, function=functional.scaled_dot_product_attention)


class RmsNorm(nn.Module):
    """Root-mean-square normalisation over the last axis, as language models spell it out."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def extra_repr(self) -> str:
        """Width."""
        return str(len(self.weight))

    def forward(self, x: Tensor) -> Tensor:
        """Keep the shape (N, …, C)."""
        return self.weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-5))


class ChannelLayerNorm(nn.LayerNorm):
    """Layer normalisation over the channels of (N, C, H, W)."""

    def forward(self, x: Tensor) -> Tensor:
        """Keep the shape."""
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class SumNorm(nn.LayerNorm):
    """Layer normalisation of a sum, as after a residual branch."""

    def forward(self, x: Tensor, branch: Tensor | None = None) -> Tensor:
        """Keep the shape."""
        return super().forward(x if branch is None else x + branch)


def norm(draw: Draw) -> Layer:
    """Return a normalisation or a softmax."""
    form = draw.random()
    if form < 0.4:
        shape = shape_of(draw, draw.choice((2, 2, 2, 3)))
        width = shape[-1]
        if form < 0.08:
            return layer(SumNorm(width), shape, shape)
        return layer(draw.choice((nn.LayerNorm, nn.LayerNorm, RmsNorm))(width), shape)
    if form < 0.75:
        shape = (size(draw, 4, 1024), *edges(draw, 2, 256))
        channels = shape[0]
        groups = max(g for g in (1, 2, 4, 8, 16, 32) if channels % g == 0 and channels > g)
        module = draw.choice(
            (
                partial(nn.GroupNorm, draw.choice((1, groups, groups))),
                partial(nn.InstanceNorm2d, affine=True),
                nn.BatchNorm2d,
                ChannelLayerNorm,
                nn.BatchNorm1d,
                partial(nn.InstanceNorm1d, affine=True),
            )
        )
        one = module in (nn.BatchNorm1d,) or getattr(module, "func", None) is nn.InstanceNorm1d
        tail = [activation(draw)] if draw.chance(0.4) else []
        return layer(nn.Sequential(module(channels), *tail), (channels, shape[1] * shape[2]) if one else shape)
    shape = shape_of(draw, draw.choice((1, 2, 2, 3, 3)))
    axis = -1 if draw.chance(0.7) else 1
    function = draw.choice((torch.softmax, torch.softmax, torch.softmax, torch.log_softmax, functional.normalize))
    return applied(shape, function=function, dim=axis)


def reduction(draw: Draw) -> Layer:
    """Return a reduction over some axes, or a pool to a small map."""
    if draw.chance(0.3):
        edge, small = size(draw, 2, 96), draw.choice((1, 1, 1, 2, 3, 4, 7))
        window = (edge, edge if draw.chance(0.6) else 2 * edge)
        whole = draw.choice((nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d))
        pool = whole(1) if small == 1 else nn.AvgPool2d(window)
        return layer(pool, (size(draw, 8, 1024), small * window[0], small * window[1]))
    rank = draw.choice((2, 2, 3, 3, 3, 4))
    shape, axes = shape_of(draw, rank), tuple(sorted(draw.sample(range(1, rank + 1), draw.randint(1, min(rank, 2)))))
    functions = (torch.mean, torch.mean, torch.sum, torch.amax, torch.amin, torch.std, torch.logsumexp)
    return applied(shape, function=draw.choice(functions), dim=axes, keepdim=draw.chance(0.5))


def _root(x: Tensor) -> Tensor:
    return x.abs().sqrt()


def _inverse(x: Tensor) -> Tensor:
    return 1 / (x.abs() + 0.5)


def _log(x: Tensor) -> Tensor:
    return (x.abs() + 0.25).log()


def _affine(x: Tensor, scale: float, shift: float) -> Tensor:
    return x * scale + shift


class ChannelAffine(nn.Module):
    """Scale or shift, or both, of every channel of (N, C, …)."""

    def __init__(self, channels: int, axes: int, scaled: bool, shifted: bool) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(channels, *(1,) * axes)) if scaled else None
        self.shift = nn.Parameter(torch.zeros(channels, *(1,) * axes)) if shifted else None

    def extra_repr(self) -> str:
        """Which of the two there are."""
        return f"{self.scale is not None}, {self.shift is not None}"

    def forward(self, x: Tensor) -> Tensor:
        """Keep the shape."""
        x = x if self.scale is None else x * self.scale
        return x if self.shift is None else x + self.shift


# Functions that keep numbers small, and those of which a chain holds one at most: two would leave the float16 range.
_STEADY: tuple[Callable[[], nn.Module], ...] = (
    *(nn.ReLU, nn.GELU, nn.SiLU, nn.Sigmoid, nn.Tanh, nn.Hardswish, nn.Hardsigmoid, nn.LeakyReLU, nn.PReLU, nn.ELU),
    *(nn.Softplus, nn.Mish, nn.ReLU6, nn.SELU, nn.Softsign, partial(nn.Hardtanh, -0.5, 0.75)),
    partial(nn.GELU, approximate="tanh"),
    *(partial(Apply, f) for f in (torch.erf, torch.abs, torch.neg, torch.sin, torch.cos, torch.floor)),
    *(partial(Apply, f) for f in (_root, _inverse, _log)),
)
_GROWING: tuple[Callable[[], nn.Module], ...] = (
    *(partial(Apply, f) for f in (torch.exp, torch.square)),
    partial(Apply, torch.pow, 3),
)


def _unary(draw: Draw) -> nn.Module:
    if draw.chance(0.2):
        return Apply(_affine, round(draw.uniform(0.2, 2), 2), round(draw.uniform(-1, 1), 2))
    return draw.choice(_STEADY)()


def _quotient(a: Tensor, b: Tensor) -> Tensor:
    return a / (b.abs() + 0.5)


def _gated(a: Tensor, b: Tensor) -> Tensor:
    return a * b.sigmoid()


def _swish_gated(a: Tensor, b: Tensor) -> Tensor:
    return functional.silu(a) * b


def _rectified_sum(a: Tensor, b: Tensor) -> Tensor:
    return (a + b).relu()


def _chosen(a: Tensor, b: Tensor) -> Tensor:
    return torch.where(a > b, a, 0.5 * b)


def _masked(x: Tensor, threshold: float) -> Tensor:
    return x.masked_fill(x > threshold, -1.0)


_BINARY = (
    *(torch.add, torch.add, torch.mul, torch.mul, torch.sub, torch.maximum, torch.minimum),
    *(_quotient, _gated, _swish_gated, _rectified_sum, _chosen),
)


def pointwise(draw: Draw) -> Layer:
    """Return a function of one tensor, a chain of them, or a function of two with any broadcast between them."""
    rank = draw.choice((1, 2, 2, 3, 3, 4))
    form = draw.random()
    if form < 0.55:
        shape = shape_of(draw, rank, 3 << 19)
        parts = [_unary(draw) for _ in range(draw.choice((1, 1, 1, 2, 3, 4, 5)))]
        if draw.chance(0.2):
            parts[-1] = draw.choice(_GROWING)()
        if draw.chance(0.2):
            scaled = draw.chance(0.6)
            parts.insert(0, ChannelAffine(shape[0], rank - 1, scaled, not scaled or draw.chance(0.6)))
        if draw.chance(0.08):
            parts.append(Apply(_masked, 0.25))
        return layer(nn.Sequential(*parts), shape)
    shape = shape_of(draw, rank, 3 << 18)
    pattern = draw.choice(("same", "same", "same", "first", "last", "scalar", "outer", "random"))
    kept = {
        "same": [True] * rank,
        "first": [axis == 0 for axis in range(rank)],
        "last": [axis == rank - 1 for axis in range(rank)],
        "scalar": [False] * rank,
        "outer": [axis > 0 for axis in range(rank)],
        "random": [draw.chance(0.5) for _ in range(rank)],
    }[pattern]
    other = tuple(edge if keep else 1 for edge, keep in zip(shape, kept, strict=True))
    if pattern == "outer":
        shape = (shape[0], *(1,) * (rank - 1))
    return applied(shape, other, function=draw.choice(_BINARY))

"""Draws of single layers that move data: transposes, joins, cuts, pads, look-ups, repeats and rearrangements."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from perfpred.zoo.draw import Draw
from perfpred.zoo.probe_draws import Layer, applied, edges, layer, shape_of, size, spread


def _permuted(x: Tensor, axes: Sequence[int]) -> Tensor:
    return x.permute(0, *axes)


def _joined(*parts: Tensor, axis: int) -> Tensor:
    return torch.cat(parts, axis)


def _sliced(x: Tensor, axis: int, start: int, end: int, step: int) -> Tensor:
    return x[(slice(None),) * axis + (slice(start, end, step),)]


def _windows(x: Tensor, edge: int) -> Tensor:
    _, height, width, channels = x.shape
    cut = x.reshape(-1, height // edge, edge, width // edge, edge, channels)
    return cut.permute(0, 1, 3, 2, 4, 5).reshape(-1, edge * edge, channels)


def _merged_windows(x: Tensor, edge: int) -> Tensor:
    _, rows, columns, _, channels = x.shape
    cut = x.reshape(-1, rows, columns, edge, edge, channels)
    return cut.permute(0, 1, 3, 2, 4, 5).reshape(-1, rows * edge, columns * edge, channels)


def _shuffled(x: Tensor, groups: int) -> Tensor:
    _, channels, *rest = x.shape
    return x.reshape(-1, groups, channels // groups, *rest).transpose(1, 2).reshape(-1, channels, *rest)


def _heads(x: Tensor, heads: int) -> Tensor:
    _, tokens, width = x.shape
    return x.reshape(-1, tokens, heads, width // heads).transpose(1, 2)


def _focused(x: Tensor) -> Tensor:
    return torch.cat([x[..., ::2, ::2], x[..., 1::2, ::2], x[..., ::2, 1::2], x[..., 1::2, 1::2]], 1)


def _interleaved(x: Tensor, times: int, axis: int) -> Tensor:
    wide = x.unsqueeze(axis + 1)
    counts = [-1] * wide.dim()
    counts[axis + 1] = times
    return wide.expand(counts).flatten(axis, axis + 1)


def _repeated(x: Tensor, counts: Sequence[int]) -> Tensor:
    return x.repeat(*counts)


def _expanded(x: Tensor, shape: Sequence[int]) -> Tensor:
    return x.expand(-1, *shape)


class Lookup(nn.Module):
    """Rows of a table, at indices made from numbers."""

    def __init__(self, rows: int, width: int) -> None:
        super().__init__()
        self.table = nn.Embedding(rows, width)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, L) to (N, L, width)."""
        rows: Tensor = self.table((x.abs().clamp(max=0.99) * self.table.num_embeddings).long())
        return rows


class Pick(nn.Module):
    """Entries of one axis at fixed indices."""

    def __init__(self, axis: int, indices: Sequence[int]) -> None:
        super().__init__()
        self.axis, self.count = axis, len(indices)
        self.register_buffer("indices", torch.tensor(indices))
        self.indices: Tensor

    def extra_repr(self) -> str:
        """Axis and number of entries."""
        return f"{self.axis}, {self.count}"

    def forward(self, x: Tensor) -> Tensor:
        """Return the entries along the axis."""
        return x.index_select(self.axis, self.indices)


def _transpose(draw: Draw) -> Layer:
    rank = draw.choice((2, 2, 3, 3, 3, 4, 4))
    axes = list(range(1, rank + 1))
    while axes == sorted(axes):
        draw.shuffle(axes)
    return applied(shape_of(draw, rank), function=_permuted, arguments=(tuple(axes),))


def _concat(draw: Draw) -> Layer:
    count, rank = draw.choice((2, 2, 2, 3, 4, 6)), draw.choice((1, 2, 3, 3))
    shape, axis = shape_of(draw, rank, (1 << 20) // count), draw.randrange(rank)
    even = draw.chance(0.4)
    sizes = [shape[axis] if even else spread(draw, max(shape[axis] // 4, 1), shape[axis]) for _ in range(count)]
    return applied(*((*shape[:axis], s, *shape[axis + 1 :]) for s in sizes), function=_joined, axis=axis + 1)


def _split(draw: Draw) -> Layer:
    shape = list(shape_of(draw, draw.choice((2, 3, 3))))
    axis, count = draw.randrange(len(shape)), draw.choice((2, 2, 3, 4))
    if draw.chance(0.6):
        shape[axis] = max(shape[axis] // count, 1) * count
        return applied(tuple(shape), function=torch.chunk, chunks=count, dim=axis + 1)
    shape[axis] = max(shape[axis], 2)
    first = draw.randint(1, shape[axis] - 1)
    return applied(tuple(shape), function=torch.split, arguments=([first, shape[axis] - first], axis + 1))


def _slice(draw: Draw) -> Layer:
    shape = [max(edge, 4) for edge in shape_of(draw, draw.choice((2, 3, 3)))]
    axis, step = draw.randrange(len(shape)), draw.choice((1, 1, 2, 2, 3))
    start = draw.randrange(1, max(shape[axis] // 3, 2))
    end = shape[axis] - draw.randrange(max(shape[axis] // 3, 1))
    return applied(tuple(shape), function=_sliced, arguments=(axis + 1, start, end, step))


def _pad(draw: Draw) -> Layer:
    shape = (size(draw, 1, 256), *edges(draw, 8, 256))
    mode = draw.choice(("constant", "constant", "reflect", "replicate"))
    pads = [draw.randint(1, 6)] * 4 if draw.chance(0.5) else [draw.randint(0, 6) for _ in range(3)] + [1]
    return applied(shape, function=functional.pad, arguments=(tuple(pads),), mode=mode)


def _lookup(draw: Draw) -> Layer:
    if draw.chance(0.5):
        return layer(Lookup(spread(draw, 50, 30000), size(draw, 16, 1024)), (size(draw, 4, 2048),))
    shape = [max(edge, 4) for edge in shape_of(draw, draw.choice((2, 3)))]
    axis = draw.randrange(len(shape))
    count = min(spread(draw, 2, 2 * shape[axis]), 2000)
    return layer(Pick(axis + 1, [draw.randrange(shape[axis]) for _ in range(count)]), tuple(shape))


def _repeat(draw: Draw) -> Layer:
    rank, times = draw.choice((2, 3)), draw.choice((2, 2, 3, 4, 8))
    shape, axis = shape_of(draw, rank, (1 << 21) // times), draw.randint(1, rank)
    form = draw.randrange(3)
    if form == 0:
        return applied(shape, function=_interleaved, times=times, axis=axis)
    if form == 1:
        counts = [1] * (rank + 1)
        counts[axis] = times
        return applied(shape, function=_repeated, arguments=(tuple(counts),))
    shape, copies = shape_of(draw, rank, 1 << 16), spread(draw, 2, 64)
    before, after = shape[: axis - 1], shape[axis - 1 :]
    return applied((*before, 1, *after), function=_expanded, arguments=((*before, copies, *after),))


def _rearranged(draw: Draw) -> Layer:
    form = draw.randrange(8)
    if form < 2:
        factor, (height, width) = draw.choice((2, 2, 3, 4)), edges(draw, 4, 128)
        channels = size(draw, 1, 64)
        if form == 0:
            return layer(nn.PixelShuffle(factor), (channels * factor**2, height, width))
        return layer(nn.PixelUnshuffle(factor), (channels, height * factor, width * factor))
    if form == 2:
        edge, channels = draw.choice((4, 7, 7, 8, 14)), size(draw, 16, 512)
        rows, columns = spread(draw, 2, 16), spread(draw, 2, 16)
        if draw.chance(0.5):
            return applied((rows * edge, columns * edge, channels), function=_windows, edge=edge)
        return applied((rows, columns, edge * edge, channels), function=_merged_windows, edge=edge)
    if form == 3:
        groups = draw.choice((2, 3, 4, 8))
        return applied((groups * size(draw, 2, 128), *edges(draw, 4, 128)), function=_shuffled, groups=groups)
    if form == 4:
        heads = draw.choice((2, 3, 4, 6, 8, 12))
        return applied((size(draw, 8, 1024), heads * size(draw, 8, 128)), function=_heads, heads=heads)
    if form == 5:
        return applied((size(draw, 1, 64), *(2 * edge for edge in edges(draw, 4, 160))), function=_focused)
    shape = shape_of(draw, 3)
    if form == 6:
        return applied(shape, function=torch.flip, dims=(draw.randint(1, 3),))
    return applied(shape, function=torch.roll, shifts=spread(draw, 1, 8), dims=draw.randint(1, 3))


_FORMS: tuple[Callable[[Draw], Layer], ...] = (
    *(_transpose,) * 5,
    *(_concat,) * 4,
    *(_rearranged,) * 5,
    *(_split, _slice, _slice, _pad, _pad, _lookup, _lookup, _repeat, _repeat),
)


def movement(draw: Draw) -> Layer:
    """Return a layer that only moves data."""
    return draw.choice(_FORMS)(draw)

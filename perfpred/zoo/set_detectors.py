"""Detectors with transformer decoders: DETR-like, and RT-DETR-like with deformable attention."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional

from perfpred.zoo.blocks import Attention, ConvNormAct, Residual, encoder_block, mlp, resnet_stages
from perfpred.zoo.detectors import PathAggregation
from perfpred.zoo.own import own
from perfpred.zoo.yolo import csp_rep, strided_down


class CrossAttention(nn.Module):
    """Multi-head attention of queries (N, Q, C) over a memory (N, L, C)."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads, self.head_width = heads, width // heads
        self.query, self.key_value = nn.Linear(width, width), nn.Linear(width, 2 * width)
        self.out = nn.Linear(width, width)

    def forward(self, queries: Tensor, memory: Tensor) -> Tensor:
        """Keep the shape of the queries."""
        count, length, width = queries.shape[1], memory.shape[1], queries.shape[2]
        q = self.query(queries).reshape(-1, count, self.heads, self.head_width).transpose(1, 2)
        kv = self.key_value(memory).reshape(-1, length, 2, self.heads, self.head_width).permute(2, 0, 3, 1, 4)
        mixed = functional.scaled_dot_product_attention(q, kv[0], kv[1]).transpose(1, 2)
        out: Tensor = self.out(mixed.reshape(-1, count, width))
        return out


class Detr(nn.Module):
    """DETR: ResNet, transformer encoder and decoder, learned queries."""

    def __init__(
        self,
        depths: Sequence[int],
        bottlenecks: bool,
        cells: int,
        width: int,
        encoders: int,
        decoders: int,
        queries: int,
    ) -> None:
        super().__init__()
        self.backbone = resnet_stages(depths, bottlenecks=bottlenecks, wanted=(4,))
        self.project = nn.Conv2d(2048 if bottlenecks else 512, width, 1)
        self.position = nn.Parameter(torch.randn(1, cells, width) * 0.02)
        self.queries = nn.Parameter(torch.randn(1, queries, width) * 0.02)
        heads = width // 32
        self.encoder = nn.Sequential(*(encoder_block(width, heads) for _ in range(encoders)))
        self.mix = nn.ModuleList(
            [Residual(nn.Sequential(nn.LayerNorm(width), Attention(width, heads))) for _ in range(decoders)]
        )
        self.cross = nn.ModuleList([CrossAttention(width, heads) for _ in range(decoders)])
        self.norm = nn.ModuleList([nn.LayerNorm(width) for _ in range(decoders)])
        self.feed = nn.ModuleList(
            [Residual(nn.Sequential(nn.LayerNorm(width), mlp(width, 4 * width, nn.ReLU))) for _ in range(decoders)]
        )
        self.labels, self.boxes = (
            nn.Linear(width, 92),
            nn.Sequential(mlp(width, width, nn.ReLU), nn.ReLU(), nn.Linear(width, 4)),
        )

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Map images to class logits (N, Q, 92) and boxes (N, Q, 4)."""
        memory = self.project(self.backbone(x)[-1]).flatten(2).transpose(1, 2)
        memory = self.encoder(memory + self.position)
        queries = self.queries + memory.mean(1, keepdim=True)
        for mix, cross, norm, feed in zip(self.mix, self.cross, self.norm, self.feed, strict=True):
            queries = mix(queries)
            queries = feed(queries + cross(norm(queries), memory))
        return self.labels(queries), self.boxes(queries).sigmoid()


class DeformableAttention(nn.Module):
    """Each query samples a few points near its reference on every level (Zhu et al. 2021)."""

    def __init__(self, width: int, heads: int, levels: int, points: int) -> None:
        super().__init__()
        self.heads, self.levels, self.points, self.head_width = heads, levels, points, width // heads
        self.offsets = nn.Linear(width, heads * levels * points * 2)
        self.weights = nn.Linear(width, heads * levels * points)
        self.value = nn.ModuleList([nn.Conv2d(width, width, 1) for _ in range(levels)])
        self.out = nn.Linear(width, width)

    def forward(self, queries: Tensor, reference: Tensor, maps: list[Tensor]) -> Tensor:
        """Map queries (N, Q, C), boxes (N, Q, 4) in 0..1 and maps (N, C, H, W) to (N, Q, C)."""
        count, width = queries.shape[1], queries.shape[2]
        samples = self.levels * self.points
        offsets = self.offsets(queries).reshape(-1, count, self.heads, samples, 2) / self.points
        centre, size = reference.reshape(-1, count, 1, 1, 4).split(2, 4)
        grid = ((centre + offsets * size * 0.5) * 2 - 1).transpose(1, 2).reshape(-1, count, samples, 2)
        weights = self.weights(queries).reshape(-1, count, self.heads, samples).softmax(3)
        sampled = []
        for level, (project, x) in enumerate(zip(self.value, maps, strict=True)):
            value = project(x).reshape(-1, self.head_width, x.shape[2], x.shape[3])
            near = grid[:, :, level * self.points : (level + 1) * self.points]
            sampled.append(functional.grid_sample(value, near, align_corners=False))
        values = torch.cat(sampled, 3).reshape(-1, self.heads, self.head_width, count, samples)
        mixed = (values * weights.permute(0, 2, 1, 3).unsqueeze(2)).sum(4)
        out: Tensor = self.out(mixed.reshape(-1, width, count).transpose(1, 2))
        return out


class RealTimeDetr(nn.Module):
    """RT-DETR: attention on the coarsest level, path aggregation, top-k queries, deformable decoder."""

    def __init__(
        self, depths: Sequence[int], image: tuple[int, int], decoders: int, width: int = 256, queries: int = 300
    ) -> None:
        super().__init__()
        heads = width // 32
        cells = sum((image[0] // s) * (image[1] // s) for s in (8, 16, 32))
        self.queries = queries
        self.backbone = resnet_stages(depths, wanted=(2, 3, 4))
        self.project = nn.ModuleList([ConvNormAct(c, width, act=None) for c in (128, 256, 512)])
        self.position = nn.Parameter(torch.randn(1, (image[0] // 32) * (image[1] // 32), width) * 0.02)
        self.encoder = encoder_block(width, heads)
        widths = (width,) * 3
        self.neck = PathAggregation(
            widths, widths, partial(csp_rep, gate=False), 2, strided_down, reduce=True, learned_up=False
        )
        self.select = nn.Sequential(nn.Linear(width, width), nn.LayerNorm(width))
        self.score, self.locate = nn.Linear(width, 80), nn.Linear(width, 4)
        self.anchors = nn.Parameter(torch.rand(1, cells, 4))
        self.position_of = nn.Sequential(nn.Linear(4, 2 * width), nn.ReLU(), nn.Linear(2 * width, width))
        self.mix = nn.ModuleList([Attention(width, heads) for _ in range(decoders)])
        self.cross = nn.ModuleList([DeformableAttention(width, heads, 3, 4) for _ in range(decoders)])
        self.feed = nn.ModuleList([Residual(mlp(width, 4 * width, nn.ReLU)) for _ in range(decoders)])
        self.norms = nn.ModuleList([nn.LayerNorm(width) for _ in range(3 * decoders)])
        self.refine = nn.ModuleList([nn.Linear(width, 4) for _ in range(decoders)])
        self.label = nn.Linear(width, 80)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Map images to scores (N, Q, 80) and boxes (N, Q, 4)."""
        maps = [project(level) for project, level in zip(self.project, self.backbone(x), strict=True)]
        channels, height, width = maps[-1].shape[1:]
        mixed = self.encoder(maps[-1].flatten(2).transpose(1, 2) + self.position)
        maps[-1] = mixed.transpose(1, 2).reshape(-1, channels, height, width)
        maps = self.neck(maps)
        memory = self.select(torch.cat([level.flatten(2) for level in maps], 2).transpose(1, 2))
        best = self.score(memory).amax(2).topk(self.queries, 1).indices.unsqueeze(2)
        queries = memory.gather(1, best.expand(-1, -1, channels))
        boxes = (self.locate(memory) + self.anchors).gather(1, best.expand(-1, -1, 4)).sigmoid()
        for index, (mix, cross, feed, refine) in enumerate(
            zip(self.mix, self.cross, self.feed, self.refine, strict=True)
        ):
            first, second, third = self.norms[3 * index : 3 * index + 3]
            queries = first(queries + mix(queries + self.position_of(boxes)))
            queries = second(queries + cross(queries, boxes, maps))
            queries = third(feed(queries))
            boxes = (refine(queries) + boxes).sigmoid()
        return self.label(queries).sigmoid(), boxes


for _name, _depths, _image, _decoders in (
    ("rtdetr-r18", (2, 2, 2, 2), 640, 3),
    ("rtdetr-r18@416", (2, 2, 2, 2), 416, 3),
    ("rtdetr-r34", (3, 4, 6, 3), 640, 4),
):
    own(
        f"detector.{_name}",
        "rtdetr",
        "set-detector",
        "arXiv 2304.08069",
        partial(RealTimeDetr, _depths, (_image, _image), _decoders),
        (3, _image, _image),
    )
own(
    "detector.detr-r18",
    "detr",
    "set-detector",
    "arXiv 2005.12872",
    partial(Detr, (2, 2, 2, 2), False, 16 * 16, 128, 3, 3, 100),
    (3, 512, 512),
)
own(
    "detector.detr-r50",
    "detr",
    "set-detector",
    "arXiv 2005.12872",
    partial(Detr, (3, 4, 6, 3), True, 15 * 20, 256, 6, 6, 100),
    (3, 480, 640),
)

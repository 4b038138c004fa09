"""Current YOLO-style one-stage detectors: backbone, path-aggregating neck, coupled or decoupled heads.

One `YoloPlan` describes a design; depth, width and input size make it a named network. Outputs are decoded
boxes and class scores, (N, 4 + classes, anchors), before any non-maximum suppression.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from perfpred.zoo.blocks import Activation, ConvNormAct, divisible
from perfpred.zoo.own import own
from perfpred.zoo.yolo import (
    BlockStack,
    Focus,
    PartialAttention,
    PoolDown,
    PyramidPool,
    RepStage,
    area_stage,
    c2f,
    c2f_inverted,
    c3,
    c3k2,
    csp_rep,
    elan,
    gelan,
    relu_down,
    repvgg,
    separate_down,
    silu,
    strided_down,
)
from perfpred.zoo.yolo_heads import yolo_head

Down = Callable[[int, int], nn.Module]


class PathAggregation(nn.Module):
    """PAN neck: top-down, then bottom-up, concatenating at each level."""

    def __init__(
        self,
        inputs: Sequence[int],
        channels: Sequence[int],
        block: BlockStack,
        blocks: int,
        down: Down,
        *,
        reduce: bool,
        learned_up: bool,
    ) -> None:
        super().__init__()
        c3_, c4, c5 = channels
        self.reduce5 = silu(c5, c4) if reduce else nn.Identity()
        self.reduce4 = silu(c4, c3_) if reduce else nn.Identity()
        n5, n4 = (c4, c3_) if reduce else (c5, c4)
        self.up5 = nn.ConvTranspose2d(n5, n5, 2, 2) if learned_up else nn.Upsample(scale_factor=2)
        self.up4 = nn.ConvTranspose2d(n4, n4, 2, 2) if learned_up else nn.Upsample(scale_factor=2)
        self.top4 = block(n5 + inputs[1], c4, blocks, False)
        self.top3 = block(n4 + inputs[0], c3_, blocks, False)
        self.down3, self.down4 = down(c3_, c3_), down(c4, c4)
        self.bottom4 = block(c3_ + n4, c4, blocks, False)
        self.bottom5 = block(c4 + n5, c5, blocks, False)

    def forward(self, levels: list[Tensor]) -> list[Tensor]:
        """Map the maps of strides 8, 16, 32 to three maps of the same shapes."""
        fine, middle, coarse = levels
        coarse = self.reduce5(coarse)
        middle = self.reduce4(self.top4(torch.cat([self.up5(coarse), middle], 1)))
        fine = self.top3(torch.cat([self.up4(middle), fine], 1))
        middle = self.bottom4(torch.cat([self.down3(fine), middle], 1))
        coarse = self.bottom5(torch.cat([self.down4(middle), coarse], 1))
        return [fine, middle, coarse]


@dataclass(frozen=True, kw_only=True)
class YoloPlan:
    """What distinguishes one design; widths and depths are those of multiplier 1.

    Attributes:
        block: stage of the backbone.
        neck: stage of the neck, `block` when None.
        late: stage of the two last backbone levels, `block` when None.
        depths: blocks of the four backbone stages.
        neck_depth: blocks of the neck stages.
        widths: channels of the stem and the four stages.
        early: output widths of the first two stages where they differ from their strided convolutions.
        stem: `conv6`, `conv3` or `focus`.
        head: `anchor`, `dfl`, `dfl-light`, `x`, `rep` or `gated`.
    """

    block: BlockStack
    neck: BlockStack | None = None
    late: BlockStack | None = None
    depths: tuple[int, int, int, int] = (3, 6, 6, 3)
    neck_depth: int = 3
    widths: tuple[int, ...] = (64, 128, 256, 512, 1024)
    early: tuple[int, int] | None = None
    max_width: int = 1024
    down: Down = strided_down
    late_down: Down | None = None
    stem: str = "conv3"
    act: Activation = field(default=nn.SiLU)
    pool: bool = True
    attention: int = 0
    reduce: bool = False
    learned_up: bool = False
    head: str = "dfl"


class Yolo(nn.Module):
    """Detector made from a plan, multipliers and an image size."""

    def __init__(
        self,
        plan: YoloPlan,
        depth: float,
        width: float,
        image: tuple[int, int],
        *,
        classes: int = 80,
        extra: int = 0,
        prototypes: bool = False,
    ) -> None:
        super().__init__()
        w = [divisible(min(c, plan.max_width) * width) for c in plan.widths]
        n = [max(round(d * depth), 1) for d in plan.depths]
        stems = {
            "focus": partial(Focus, w[0]),
            "conv6": lambda: nn.Sequential(nn.Conv2d(3, w[0], 6, 2, 2, bias=False), nn.BatchNorm2d(w[0]), plan.act()),
            "conv3": lambda: ConvNormAct(3, w[0], 3, 2, act=plan.act),
        }
        late = plan.late or plan.block
        outs = [*(divisible(c * width) for c in plan.early), *w[3:]] if plan.early else w[1:]
        channels = w[0]
        self.stem = stems[plan.stem]()
        self.stages = nn.ModuleList()
        for index in range(4):
            down = plan.late_down if plan.late_down and index >= 2 else plan.down
            stage = late if index >= 2 else plan.block
            entered = w[index + 1]
            self.stages.append(nn.Sequential(down(channels, entered), stage(entered, outs[index], n[index], True)))
            channels = outs[index]
        top: list[nn.Module] = [PyramidPool(w[4], w[4], plan.act)] if plan.pool else []
        if plan.attention:
            top.append(PartialAttention(w[4], max(round(plan.attention * depth), 1)))
        self.top = nn.Sequential(*top)
        neck_depth = max(round(plan.neck_depth * depth), 1)
        self.neck = PathAggregation(
            outs[1:],
            w[2:],
            plan.neck or plan.block,
            neck_depth,
            plan.down,
            reduce=plan.reduce,
            learned_up=plan.learned_up,
        )
        self.head = yolo_head(plan.head, w[2:], image, classes, extra)
        self.prototypes = (
            nn.Sequential(
                silu(w[2], w[2], 3),
                nn.ConvTranspose2d(w[2], w[2], 2, 2),
                silu(w[2], w[2], 3),
                silu(w[2], extra),
            )
            if prototypes
            else None
        )

    def forward(self, x: Tensor) -> list[Tensor]:
        """Map images (N, 3, H, W) to decoded predictions."""
        x = self.stem(x)
        levels = []
        for stage in self.stages:
            x = stage(x)
            levels.append(x)
        levels = self.neck([levels[1], levels[2], self.top(levels[3])])
        outputs: list[Tensor] = self.head(levels)
        return [*outputs, self.prototypes(levels[0])] if self.prototypes is not None else outputs


_V5 = YoloPlan(block=c3, depths=(3, 6, 9, 3), stem="conv6", reduce=True, head="anchor")
_V8 = YoloPlan(block=c2f)
_V11 = YoloPlan(
    block=partial(c3k2, ratio=0.25),
    late=partial(c3k2, nested=True),
    neck=c3k2,
    depths=(2, 2, 2, 2),
    neck_depth=2,
    early=(256, 512),
    attention=2,
    head="dfl-light",
)
_V10 = replace(_V8, late=c2f_inverted, late_down=separate_down, attention=1, head="dfl-light")
_V9 = YoloPlan(block=gelan, depths=(2, 2, 2, 2), neck_depth=2, late_down=PoolDown, widths=(64, 128, 256, 384, 512))
_V12 = replace(_V11, late=area_stage, attention=0, pool=False)
_V6 = YoloPlan(
    block=repvgg,
    depths=(6, 12, 18, 6),
    neck_depth=12,
    down=relu_down,
    act=nn.ReLU,
    reduce=True,
    learned_up=True,
    head="rep",
)
_V7 = YoloPlan(block=elan, depths=(2, 2, 2, 2), neck_depth=2, reduce=True, head="anchor")
_X = YoloPlan(block=partial(c3), depths=(3, 9, 9, 3), stem="focus", reduce=True, head="x")
_PP = YoloPlan(
    block=csp_rep,
    neck=partial(csp_rep, gate=False),
    depths=(3, 6, 6, 3),
    reduce=True,
    pool=False,
    head="gated",
)
_NAS = YoloPlan(
    block=RepStage,
    depths=(2, 3, 5, 2),
    neck_depth=3,
    widths=(48, 96, 192, 384, 768),
    down=relu_down,
    act=nn.ReLU,
    reduce=True,
    learned_up=True,
    head="rep",
)

_SIZES_5 = {"tiny": (0.33, 0.375), "n": (0.33, 0.25), "s": (0.33, 0.50), "m": (0.67, 0.75)}
_SIZES_9 = {"t": (0.5, 0.25), "s": (0.5, 0.5), "m": (0.5, 0.9375)}
_SIZES_11 = {"n": (0.5, 0.25), "s": (0.5, 0.50), "m": (0.5, 1.0)}
_ANCHOR, _DECOUPLED = "yolo-anchor", "yolo-decoupled"

# family, plan, lineage, source, multipliers of depth and width by size, networks as size[@height][+task]
_DESIGNS = (
    ("yolov5", _V5, _ANCHOR, "YOLOv5 public description", _SIZES_5, "n n@320 s s@416 m"),
    ("yolov7", _V7, _ANCHOR, "arXiv 2207.02696", {"t": (1, 0.375), "b": (1, 0.75)}, "t t@416 b"),
    ("yolov8", _V8, _DECOUPLED, "YOLOv8 public description", _SIZES_5, "n n@416 n@320 s s@416 m m@512"),
    ("yolov8", _V8, _DECOUPLED, "YOLOv8 public description", _SIZES_5, "n+seg s+seg n+pose s+pose n@384x640"),
    ("yolov9", _V9, _DECOUPLED, "arXiv 2402.13616", _SIZES_9, "t t@320 s m"),
    ("yolov10", _V10, _DECOUPLED, "arXiv 2405.14458", _SIZES_5, "n n@320 s m@512"),
    ("yolo11", _V11, _DECOUPLED, "YOLO11 public description", _SIZES_11, "n n@416 n@320 s s@416 m n+seg"),
    ("yolov12", _V12, _DECOUPLED, "arXiv 2502.12524", _SIZES_11, "n s"),
    ("yolov6", _V6, _DECOUPLED, "arXiv 2209.02976", _SIZES_5, "n n@416 s"),
    ("yolox", _X, _DECOUPLED, "arXiv 2107.08430", _SIZES_5, "tiny@416 s s@416 m"),
    ("ppyoloe", _PP, _DECOUPLED, "arXiv 2203.16250", _SIZES_5, "s s@416 m"),
    ("yolonas", _NAS, _DECOUPLED, "YOLO-NAS public description", {"s": (1, 0.75), "m": (1, 1)}, "s s@320 m"),
)
_TASKS: dict[str, dict[str, Any]] = {
    "": {},
    "seg": {"extra": 32, "prototypes": True},
    "pose": {"extra": 51, "classes": 1},
}

for _family, _plan, _lineage, _source, _sizes, _networks in _DESIGNS:
    for _network in _networks.split():
        _sized, _, _task = _network.partition("+")
        _size, _, _edges = _sized.partition("@")
        _height, _image_width = (int(edge) for edge in (_edges.split("x") * 2)[:2]) if _edges else (640, 640)
        _depth, _multiplier = _sizes[_size]
        # YOLO11 caps its medium size at 512 channels
        _fitted = replace(_plan, max_width=512) if (_family, _size) == ("yolo11", "m") else _plan
        own(
            f"detector.{_family}-{_network.replace('+', '-')}",
            _family,
            _lineage,
            _source,
            partial(Yolo, _fitted, _depth, _multiplier, (_height, _image_width), **_TASKS[_task]),
            (3, _height, _image_width),
        )

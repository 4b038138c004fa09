"""Networks of published measurements that no builder of timm or torchvision makes by name.

Each is rebuilt from its published description with the parts those packages offer: the deep-stem (`vd`) residual
networks, width multipliers, TF-slim residual networks with the stride in the last unit of a stage, and the dense
prediction networks of MLPerf and MMSegmentation. Families follow the designs, so that splits keep them together.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import timm
import torch
from timm.models import res2net, resnest, resnet
from timm.models.densenet import DenseNet
from timm.models.efficientnet import _gen_mobilenet_v1
from timm.models.mobilenetv3 import _gen_mobilenet_v3
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torch.nn import functional
from torchvision.models import MobileNetV2, ShuffleNetV2

from perfpred.zoo import NetworkSpec, register
from perfpred.zoo.lineages import FAMILY_LINEAGE
from perfpred.zoo.realtime_segmentation import DualResolution, TwoPath, stdc_stages
from perfpred.zoo.segmentation import Mixed

_LICENCE = "own builder, MIT"


def _vd(
    depths: Sequence[int], *, stem: int = 32, deep: bool = True, block: Any = resnet.Bottleneck, **options: Any
) -> nn.Module:
    """Residual network; `deep` gives the three-convolution stem and average-pooled shortcuts of the D variant."""
    if deep:
        options |= {"stem_type": "deep", "stem_width": stem, "avg_down": True}
    return resnet.ResNet(block, tuple(depths), **options)


class SlimUnit(nn.Module):
    """Bottleneck of TF-slim: stride in the 3x3 convolution, shortcut sub-sampled by a 1x1 max-pool."""

    def __init__(self, channels: int, width: int, stride: int, *, preactivated: bool) -> None:
        super().__init__()
        self.before = nn.Sequential(nn.BatchNorm2d(channels), nn.ReLU()) if preactivated else None
        self.residual = nn.Sequential(
            nn.Conv2d(channels, width, 1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(),
            nn.Conv2d(width, width, 3, stride, 1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(),
            nn.Conv2d(width, 4 * width, 1, bias=preactivated),
            *([] if preactivated else [nn.BatchNorm2d(4 * width)]),
        )
        self.sampled = nn.MaxPool2d(1, stride) if stride > 1 else nn.Identity()
        self.shortcut: nn.Module | None = None
        if channels != 4 * width:
            layers: list[nn.Module] = [nn.Conv2d(channels, 4 * width, 1, stride, bias=preactivated)]
            self.shortcut = nn.Sequential(*layers, *([] if preactivated else [nn.BatchNorm2d(4 * width)]))

    def forward(self, x: Tensor) -> Tensor:
        """Add the residual to the sub-sampled shortcut."""
        entered = x if self.before is None else self.before(x)
        shortcut = self.sampled(x) if self.shortcut is None else self.shortcut(entered)
        total = shortcut + self.residual(entered)
        return total if self.before is not None else functional.relu(total)


def _slim_resnet(depths: Sequence[int], *, preactivated: bool) -> nn.Module:
    layers: list[nn.Module] = [nn.Conv2d(3, 64, 7, 2, 3, bias=preactivated)]
    if not preactivated:
        layers += [nn.BatchNorm2d(64), nn.ReLU()]
    layers.append(nn.MaxPool2d(3, 2, 1))
    channels = 64
    for stage, depth in enumerate(depths):
        width = 64 * 2**stage
        for unit in range(depth):
            stride = 2 if unit == depth - 1 and stage < 3 else 1
            layers.append(SlimUnit(channels, width, stride, preactivated=preactivated))
            channels = 4 * width
    if preactivated:
        layers += [nn.BatchNorm2d(channels), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Conv2d(channels, 1000, 1), nn.Flatten(), nn.Softmax(1))


class AtrousSegmenter(nn.Module):
    """ResNet-50 with stride 8 under a pyramid, atrous or plain convolutional head, masks at the image's size."""

    def __init__(self, head: str, classes: int = 19) -> None:
        super().__init__()
        self.backbone = timm.create_model("resnet50c", features_only=True, output_stride=8, out_indices=(1, 4))
        self.pooled = nn.ModuleList()
        self.branches = nn.ModuleList()
        if head == "pyramid":
            # At 512 x 1024 the features are 64 x 128; adaptive pooling to 3 and 6 has no ONNX operator.
            self.pooled.extend(
                nn.Sequential(nn.AvgPool2d((64 // s, 128 // s)), _conv(2048, 512, 1)) for s in (1, 2, 3, 6)
            )
        elif head == "atrous":
            self.pooled.append(nn.Sequential(nn.AdaptiveAvgPool2d(1), _conv(2048, 512, 1)))
            self.branches.append(_conv(2048, 512, 1))
            self.branches.extend(_conv(2048, 512, 3, dilation=d) for d in (12, 24, 36))
        else:
            self.branches.append(nn.Sequential(_conv(2048, 512, 3), _conv(512, 512, 3)))
        own = 0 if head == "atrous" else 2048
        joined = own + 512 * (len(self.pooled) + len(self.branches))
        self.keep = own > 0
        self.merge = nn.Sequential(_conv(joined, 512, 3), nn.Conv2d(512, classes, 1))

    def forward(self, image: Tensor) -> Tensor:
        """Class scores of every pixel, shape (N, classes, H, W)."""
        x = self.backbone(image)[-1]
        size = x.shape[-2:]
        parts = [x] if self.keep else []
        parts += [functional.interpolate(p(x), size=size, mode="bilinear") for p in self.pooled]
        parts += [branch(x) for branch in self.branches]
        return functional.interpolate(self.merge(torch.cat(parts, 1)), size=image.shape[-2:], mode="bilinear")


def _conv(
    c: int, k: int, r: int, *, stride: int = 1, dilation: int = 1, groups: int = 1, act: Any = nn.ReLU
) -> nn.Module:
    same = dilation * (r // 2)
    return nn.Sequential(nn.Conv2d(c, k, r, stride, same, dilation, groups, bias=False), nn.BatchNorm2d(k), act())


class SingleShot(nn.Module):
    """Single-shot detector: a list of stages, each followed by convolutions for boxes and class scores."""

    def __init__(
        self,
        stages: Sequence[nn.Module],
        channels: Sequence[int],
        anchors: Sequence[int],
        classes: int,
        *,
        kernel: int,
        strides: Sequence[int],
    ) -> None:
        super().__init__()
        self.stages = nn.ModuleList(stages)
        self.heads = nn.ModuleList(
            nn.Conv2d(c, a * (classes + 4), kernel, s, kernel // 2)
            for c, a, s in zip(channels, anchors, strides, strict=True)
        )
        self.outputs = classes + 4

    def forward(self, x: Tensor) -> Tensor:
        """Boxes and scores of every anchor, shape (N, anchors, classes + 4)."""
        found = []
        for stage, head in zip(self.stages, self.heads, strict=True):
            x = stage(x)
            found.append(head(x).permute(0, 2, 3, 1).flatten(1).unflatten(1, (-1, self.outputs)))
        return torch.cat(found, 1)


def _ssd_resnet34() -> nn.Module:
    backbone = timm.create_model("resnet34")
    for unit in (backbone.layer3[0].conv1, backbone.layer3[0].downsample[0]):
        unit.stride = (1, 1)
    first = nn.Sequential(
        backbone.conv1, backbone.bn1, nn.ReLU(), backbone.maxpool, backbone.layer1, backbone.layer2, backbone.layer3
    )
    extra = [(256, 256, 512), (512, 256, 512), (512, 128, 256), (256, 128, 256), (256, 128, 256)]
    stages = [first] + [
        nn.Sequential(
            nn.Conv2d(c, w, 1), nn.ReLU(), nn.Conv2d(w, k, 3, 2 if i < 3 else 1, 1 if i < 3 else 0), nn.ReLU()
        )
        for i, (c, w, k) in enumerate(extra)
    ]
    return SingleShot(
        stages, (256, 512, 512, 256, 256, 256), (4, 6, 6, 6, 4, 4), 81, kernel=3, strides=(3, 3, 2, 2, 2, 2)
    )


def _ssd_mobilenet(classes: int = 91) -> nn.Module:
    def separable(c: int, k: int, stride: int = 1) -> nn.Module:
        return nn.Sequential(_conv(c, c, 3, stride=stride, groups=c, act=nn.ReLU6), _conv(c, k, 1, act=nn.ReLU6))

    plan = [(32, 64, 1), (64, 128, 2), (128, 128, 1), (128, 256, 2), (256, 256, 1), (256, 512, 2)] + [(512, 512, 1)] * 5
    first = nn.Sequential(_conv(3, 32, 3, stride=2, act=nn.ReLU6), *(separable(*p) for p in plan))
    second = nn.Sequential(separable(512, 1024, 2), separable(1024, 1024))
    extra = [
        nn.Sequential(_conv(c, w, 1, act=nn.ReLU6), _conv(w, k, 3, stride=2, act=nn.ReLU6))
        for c, w, k in ((1024, 256, 512), (512, 128, 256), (256, 128, 256), (256, 64, 128))
    ]
    return SingleShot(
        [first, second, *extra],
        (512, 1024, 512, 256, 256, 128),
        (3, 6, 6, 6, 6, 6),
        classes,
        kernel=1,
        strides=(1,) * 6,
    )


class _DenseResidual(nn.Module):
    """Three dense blocks of five convolutions, each with a scaled residual (ESRGAN)."""

    def __init__(self, c: int = 64, growth: int = 32) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(
            nn.ModuleList(nn.Conv2d(c + i * growth, growth if i < 4 else c, 3, 1, 1) for i in range(5))
            for _ in range(3)
        )

    def forward(self, x: Tensor) -> Tensor:
        entered = x
        for convolutions in self.blocks:
            known = [x]
            for i, convolution in enumerate(convolutions):
                y = convolution(torch.cat(known, 1))
                known.append(functional.leaky_relu(y, 0.2) if i < 4 else y)
            x = x + 0.2 * known[-1]
        return entered + 0.2 * x


def _esrgan() -> nn.Module:
    up = [nn.Sequential(nn.Upsample(scale_factor=2), nn.Conv2d(64, 64, 3, 1, 1), nn.LeakyReLU(0.2)) for _ in range(2)]
    body = [_DenseResidual() for _ in range(23)]
    head = [nn.Conv2d(64, 64, 3, 1, 1), nn.LeakyReLU(0.2), nn.Conv2d(64, 3, 3, 1, 1)]
    return nn.Sequential(nn.Conv2d(3, 64, 3, 1, 1), *body, nn.Conv2d(64, 64, 3, 1, 1), *up, *head)


def _srcnn() -> nn.Module:
    return nn.Sequential(
        nn.Upsample(scale_factor=4, mode="bicubic"), nn.Conv2d(3, 64, 9, 1, 4), nn.ReLU(),
        nn.Conv2d(64, 32, 1), nn.ReLU(), nn.Conv2d(32, 3, 5, 1, 2),
    )  # fmt: skip


class Squad(nn.Module):
    """BERT-large with a span head, token numbers in, scores out."""

    def __init__(self) -> None:
        super().__init__()
        from transformers import BertConfig, BertForQuestionAnswering

        config = BertConfig(
            hidden_size=1024,
            num_hidden_layers=24,
            num_attention_heads=16,
            intermediate_size=4096,
            attn_implementation="eager",
        )
        self.network = BertForQuestionAnswering(config)

    def forward(self, tokens: Tensor, mask: Tensor, segments: Tensor) -> Tensor:
        """Start and end scores of every token, shape (N, tokens, 2)."""
        found = self.network(input_ids=tokens, attention_mask=mask, token_type_ids=segments)
        return torch.stack((found.start_logits, found.end_logits), -1)


def _stdc(depths: tuple[int, ...]) -> nn.Module:
    return TwoPath(stdc_stages(depths), (256, 512, 1024), 19, spatial=False)


def _liteseg(depths: tuple[int, ...]) -> nn.Module:
    return Mixed(stdc_stages(depths), (256, 512, 1024), 96, 19, 8, gate=True)


def _shuffle_swish() -> nn.Module:
    made = ShuffleNetV2([4, 8, 4], [24, 116, 232, 464, 1024])
    for parent in made.modules():
        for name, child in parent.named_children():
            if isinstance(child, nn.ReLU):
                setattr(parent, name, nn.SiLU())
    return made


def _image(
    name: str, family: str, lineage: str, source: str, build: Callable[[], nn.Module], height: int, width: int
) -> None:
    register(
        NetworkSpec(
            name=f"published.{name}",
            family=family,
            lineage=lineage,
            source=source,
            licence=_LICENCE,
            build=lambda: (build().eval(), (torch.zeros(2, 3, height, width),)),
        )
    )


_PADDLE = "PaddleClas architecture, rebuilt"
_SLIM = "TF-slim residual networks, rebuilt"
_MMSEG = "MMSegmentation architecture, rebuilt"
_SE = {"block_args": {"attn_layer": "se"}}
_DEEP = (3, 8, 36, 3)
_R50, _R101 = (3, 4, 6, 3), (3, 4, 23, 3)

# name, family, lineage where the family is new, source, builder, height and width
_IMAGES: tuple[tuple[str, str, str, str, Callable[[], nn.Module], int, int], ...] = (
    *(
        (
            f"resnext{depth}{'_vd' if deep else ''}_{cardinality}x4d", "resnext", "resnext", _PADDLE,
            partial(_vd, depths, deep=deep, cardinality=cardinality, base_width=4), 224, 224,
        )
        for depth, depths in ((50, _R50), (101, _R101), (152, _DEEP))
        for cardinality in (32, 64)
        for deep in (False, True)
        if (depth, cardinality, deep) not in {(50, 32, False), (50, 32, True), (101, 32, False), (101, 64, False)}
    ),
    ("resnet200_vd", "resnet", "resnet", _PADDLE, partial(_vd, (3, 12, 48, 3)), 224, 224),
    ("se_resnet18_vd", "senet", "resnet", _PADDLE, partial(_vd, (2, 2, 2, 2), block=resnet.BasicBlock, **_SE), 224, 224),
    ("se_resnet34_vd", "senet", "resnet", _PADDLE, partial(_vd, _R50, block=resnet.BasicBlock, **_SE), 224, 224),
    ("se_resnet50_vd", "senet", "resnet", _PADDLE, partial(_vd, _R50, **_SE), 224, 224),
    ("se_resnext50_vd_32x4d", "senet", "resnet", _PADDLE, partial(_vd, _R50, stem=64, cardinality=32, base_width=4, **_SE), 224, 224),
    ("senet154_vd", "senet", "resnet", _PADDLE, partial(_vd, _DEEP, stem=64, cardinality=64, base_width=4, **_SE), 224, 224),
    (
        "res2net200_vd_26w_4s", "res2net", "resnext", _PADDLE,
        partial(_vd, (3, 12, 48, 3), block=res2net.Bottle2neck, base_width=26, block_args={"scale": 4}), 224, 224,
    ),
    (
        "resnest50_fast_1s1x64d", "resnest", "resnext", _PADDLE,
        partial(_vd, _R50, block=resnest.ResNestBottleneck, base_width=64, cardinality=1, block_args={"radix": 1, "avd": True, "avd_first": True}),
        224, 224,
    ),
    ("densenet264", "densenet", "densenet", _PADDLE, partial(DenseNet, growth_rate=32, block_config=(6, 12, 64, 48)), 224, 224),
    ("efficientnet_b0_small", "efficientnet", "efficientnet", _PADDLE, partial(timm.create_model, "efficientnet_lite0", act_layer=nn.SiLU), 224, 224),
    ("vit_small_patch16_d768", "vit", "vit", _PADDLE, partial(VisionTransformer, embed_dim=768, depth=8, num_heads=8, mlp_ratio=3, qkv_bias=False), 224, 224),
    ("shufflenet_v2_x0_25", "shufflenetv2", "compact", _PADDLE, partial(ShuffleNetV2, [4, 8, 4], [24, 24, 48, 96, 512]), 224, 224),
    ("shufflenet_v2_x0_33", "shufflenetv2", "compact", _PADDLE, partial(ShuffleNetV2, [4, 8, 4], [24, 32, 64, 128, 512]), 224, 224),
    ("shufflenet_v2_swish", "shufflenetv2", "compact", _PADDLE, _shuffle_swish, 224, 224),
    *(
        (f"mobilenet_v1_x{scale}", "mobilenetv1", "mobilenet", _PADDLE, partial(_gen_mobilenet_v1, "mobilenetv1_100", scale / 100), 224, 224)
        for scale in (25, 50, 75)
    ),
    *(
        (f"mobilenet_v2_x{scale}", "mobilenetv2", "mobilenet", _PADDLE, partial(MobileNetV2, width_mult=scale / 100, round_nearest=1), 224, 224)
        for scale in (25, 50, 75, 150)
    ),
    *(
        (
            f"mobilenet_v3_{size}_x{scale}", "mobilenetv3", "mobilenet", _PADDLE,
            partial(_gen_mobilenet_v3, f"mobilenetv3_{size}_100", scale / 100), 224, 224,
        )
        for size in ("large", "small")
        for scale in (35, 50, 75, 125)
    ),
    *(
        (f"slim_resnet_v{version}_{depth}", "resnet", "resnet", _SLIM, partial(_slim_resnet, depths, preactivated=version == 2), size, size)
        for version, size in ((1, 224), (2, 299))
        for depth, depths in ((50, _R50), (101, _R101), (152, _DEEP))
    ),
    *(
        (f"{name}_resnet50_d8@512x1024", "atrous", "segmentation", _MMSEG, partial(AtrousSegmenter, head), 512, 1024)
        for name, head in (("fcn", "plain"), ("pspnet", "pyramid"), ("deeplabv3", "atrous"))
    ),
    *(
        (f"{name}@{height}x{2 * height}", family, "segmentation", "SuperGradients architecture, rebuilt", build, height, 2 * height)
        for name, family, build, heights in (
            ("stdc1", "stdc", partial(_stdc, (2, 2, 2)), (768,)),
            ("stdc2", "stdc", partial(_stdc, (4, 5, 3)), (512, 768)),
            ("pp_liteseg_t", "liteseg", partial(_liteseg, (2, 2, 2)), (768,)),
            ("pp_liteseg_b", "liteseg", partial(_liteseg, (4, 5, 3)), (512, 768)),
            ("ddrnet_23_slim", "ddrnet", partial(DualResolution, 32, 2, 64, 19), (1024,)),
            ("ddrnet_23", "ddrnet", partial(DualResolution, 64, 2, 128, 19), (1024,)),
        )
        for height in heights
    ),
    ("ssd_resnet34@1200", "ssd", "dense-detector", "MLPerf reference detector, rebuilt", _ssd_resnet34, 1200, 1200),
    ("ssd_mobilenet_v1@300", "ssd", "dense-detector", "MLPerf reference detector, rebuilt", _ssd_mobilenet, 300, 300),
    ("srcnn_x4@32", "super-resolution", "super-resolution", "SRCNN, rebuilt", _srcnn, 32, 32),
    ("esrgan_x4@32", "super-resolution", "super-resolution", "ESRGAN, rebuilt", _esrgan, 32, 32),
)  # fmt: skip

for _name, _family, _lineage, _source, _build, _height, _width in _IMAGES:
    _image(_name, _family, FAMILY_LINEAGE.get(_family, _lineage), _source, _build, _height, _width)

register(
    NetworkSpec(
        name="published.bert_large_squad@384",
        family="bert",
        lineage=FAMILY_LINEAGE.get("bert", "text-encoder"),
        source="BERT-large with a span head",
        licence=_LICENCE,
        build=lambda: (Squad().eval(), tuple(torch.zeros(2, 384, dtype=torch.int64) for _ in range(3))),
        input_names=("tokens", "mask", "segments"),
    )
)

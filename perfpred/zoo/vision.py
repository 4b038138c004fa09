"""Image networks of timm and torchvision.

Names may end in `@H` for another square input size. What a builder needs beyond its name is written behind it as
`-argument-value`, as in `torchvision.mobilenet_v2-width_mult-2.0`.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import timm
import torch
import torchvision
from torch import Tensor, nn

from perfpred.zoo import NetworkSpec, register
from perfpred.zoo.vision_names import TIMM, TORCHVISION, TORCHVISION_DENSE, TORCHVISION_VIDEO

Built = tuple[nn.Module, tuple[Tensor, ...]]


def _split(name: str) -> tuple[str, int | None, dict[str, float]]:
    """Split a zoo name into builder, input size and builder arguments."""
    base, _, size = name.partition("@")
    builder, *rest = base.split("-")
    arguments = {key: float(value) for key, value in zip(rest[::2], rest[1::2], strict=True)}
    return builder, int(size) if size else None, arguments


def _timm(name: str) -> Built:
    timm.layers.set_fused_attn(False)
    builder, size, arguments = _split(name)
    try:  # transformers fix the input size when they are built, convolution networks do not know the argument
        network = timm.create_model(builder, **arguments, **({"img_size": size} if size else {}))
    except TypeError:
        network = timm.create_model(builder, **arguments)
    channels, height, width = network.default_cfg["input_size"]
    return network, (torch.zeros(2, channels, size or height, size or width),)


def _torchvision(name: str) -> Built:
    torch.backends.mha.set_fastpath_enabled(False)  # the fused path has no ONNX form
    builder, size, arguments = _split(name)
    inception = builder in ("googlenet", "inception_v3")
    options: dict[str, Any] = {"aux_logits": False, "init_weights": False} if inception else {}
    network = torchvision.models.get_model(builder, weights=None, **options, **arguments)
    default = 299 if builder == "inception_v3" else 256 if builder.startswith("swin_v2") else 224
    return network, (torch.zeros(2, 3, size or default, size or default),)


class _Maps(nn.Module):
    """A network whose outputs come in a mapping, or a detector cut before box decoding and suppression."""

    def __init__(self, network: nn.Module, forward: Callable[[nn.Module, Tensor], Any]) -> None:
        super().__init__()
        self.network = network
        self.run = forward

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        outputs = self.run(self.network, image)
        return tuple(outputs.values()) if isinstance(outputs, dict) else tuple(outputs)


def _segments(network: nn.Module, image: Tensor) -> tuple[Tensor]:
    return (network(image)["out"],)


def _detects(network: Any, image: Tensor) -> Any:
    return network.head(list(network.backbone(image).values()))


def _proposes(network: Any, image: Tensor) -> list[Tensor]:
    objectness, deltas = network.rpn.head(list(network.backbone(image).values()))
    return [*objectness, *deltas]


def _torchvision_dense(name: str) -> Built:
    builder, size, _ = _split(name)
    network = torchvision.models.get_model(builder, weights=None, weights_backbone=None)
    if hasattr(network, "rpn"):
        return _Maps(network, _proposes), (torch.zeros(2, 3, size or 640, size or 640),)
    if hasattr(network, "head"):
        default = 300 if builder.startswith("ssd300") else 320 if builder.startswith("ssdlite") else 640
        return _Maps(network, _detects), (torch.zeros(2, 3, size or default, size or default),)
    return _Maps(network, _segments), (torch.zeros(2, 3, size or 512, size or 512),)


def _torchvision_video(name: str) -> Built:
    builder, size, _ = _split(name)
    network = torchvision.models.get_model(builder, weights=None)
    default = 112 if builder in ("r3d_18", "mc3_18", "r2plus1d_18") else 224
    return network, (torch.zeros(2, 3, 16, size or default, size or default),)


def _register(collection: str, table: dict[tuple[str, str], str], build: Callable[[str], Built], **fields: str) -> None:
    for (lineage, family), names in table.items():
        for name in names.split():
            register(
                NetworkSpec(
                    name=f"{collection}.{name}",
                    family=family,
                    lineage=lineage,
                    build=partial(build, name),
                    **fields,
                )
            )


_register("torchvision", TORCHVISION, _torchvision, source="torchvision", licence="BSD-3-Clause")
_register("timm", TIMM, _timm, source="timm", licence="Apache-2.0")
_register("torchvision", TORCHVISION_DENSE, _torchvision_dense, source="torchvision", licence="BSD-3-Clause")
_register("torchvision", TORCHVISION_VIDEO, _torchvision_video, source="torchvision", licence="BSD-3-Clause")

"""Builders of the corpus: every network that `python -m perfpred.zoo build` can export.

Importing this package needs no PyTorch; a builder imports what it needs when called. A builder module registers
its networks when imported, either one by one with the `network` decorator or in loops with `register`:

    @network("classic.mtcnn_pnet", family="mtcnn", lineage="cascade", source="perfpred", licence="own builder")
    def pnet():
        return PNet(), (torch.zeros(1, 3, 120, 160),)
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any

from perfpred.zoo.lineages import FAMILY_LINEAGE

if TYPE_CHECKING:
    import torch

BUILDER_MODULES = (
    "vision",
    "language",
    "perception",
    "detectors",
    "dense_detectors",
    "set_detectors",
    "classic",
    "faces",
    "segmentation",
    "super_resolution",
    "restoration",
    "keypoints",
    "sequence",
    "conv1d",
    "audio",
    "video",
    "synthetic",
    "published",
    "probes",
)

Build = Callable[[], "tuple[torch.nn.Module, tuple[torch.Tensor, ...]]"]


@dataclass(frozen=True, kw_only=True)
class NetworkSpec:
    """One network of the corpus and how to build it.

    Attributes:
        name: `collection.network`, with `@H` or `@HxW` where the input size is not the default one.
        family: networks of one design, for example `resnet`.
        lineage: a key of `LINEAGES`; the same for every network of a family.
        source: package or paper that defines the architecture.
        licence: licence note of the builder.
        build: returns the module in evaluation mode and its example inputs, batch axis first in every one of them
            (any batch size; the exporter makes the axis symbolic). Weights may be random or on the meta device.
        input_names: one name per example input.
    """

    name: str
    family: str
    lineage: str
    source: str
    licence: str
    build: Build
    input_names: tuple[str, ...] = ("input",)


_SPECS: dict[str, NetworkSpec] = {}


def register(spec: NetworkSpec) -> NetworkSpec:
    """Add a network to the zoo.

    Raises:
        ValueError: the name is taken, or the family is not in `lineages.FAMILIES` or belongs to another lineage.
    """
    if spec.name in _SPECS:
        raise ValueError(f"network {spec.name!r} is registered twice")
    known = FAMILY_LINEAGE.get(spec.family)
    if known is None:
        raise ValueError(f"{spec.name}: add family {spec.family!r} to a lineage in perfpred/zoo/lineages.py")
    if known != spec.lineage:
        raise ValueError(f"{spec.name}: family {spec.family!r} belongs to lineage {known!r}, not {spec.lineage!r}")
    _SPECS[spec.name] = spec
    return spec


def network(name: str, **fields: Any) -> Callable[[Build], Build]:
    """Register the decorated builder under `name`; `fields` are the other fields of `NetworkSpec`."""

    def add(build: Build) -> Build:
        register(NetworkSpec(name=name, build=build, **fields))
        return build

    return add


def specs() -> Iterator[NetworkSpec]:
    """Yield every registered network after importing all builder modules that exist, in order of registration.

    Raises:
        ImportError: a builder module needs a package that is not installed (extra `zoo`).
    """
    for module in BUILDER_MODULES:
        try:
            import_module(f"{__name__}.{module}")
        except ModuleNotFoundError as error:
            if error.name != f"{__name__}.{module}":
                raise
    yield from _SPECS.values()

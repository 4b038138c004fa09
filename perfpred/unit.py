"""What a campaign measures: units, their identity on a device, and the plan they are listed in."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import MISSING, asdict, dataclass, field, fields
from itertools import product
from pathlib import Path
from typing import Any, Final

from perfpred.errors import FormatError, UsageError
from perfpred.layer import PRECISIONS

PLAN_FORMAT: Final = "perfpred.plan"
PLAN_VERSION: Final = 1
TARGETS: Final = ("gpu", "cpu")


@dataclass(frozen=True, kw_only=True)
class Unit:
    """One engine to build and measure.

    Attributes:
        network: Name of the graph, its file name without suffix.
        precision: One of `perfpred.layer.PRECISIONS`.
        batch_size: Value of the batch axis.
        sm_count: SMs of the partition; None for the whole device.
        runtime: `onnxruntime`, `tensorrt` or `tensorrt-rtx`.
        target: `gpu` or `cpu`.
        optimisation: `all` or `off`.
        rebuild: 0 for the first build; others are built in a fresh process with fresh caches.
        detail: Also time isolated and back-to-back runs.
        layers: Also record per-layer times, and kernels on a GPU, in a separate pass.
        check_outputs: Also compare the outputs with the float32 reference.
        options: Further runtime options, part of the identity.
    """

    network: str
    precision: str
    batch_size: int = 1
    sm_count: int | None = None
    runtime: str = "onnxruntime"
    target: str = "gpu"
    optimisation: str = "all"
    rebuild: int = 0
    detail: bool = False
    layers: bool = False
    check_outputs: bool = False
    options: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.precision not in PRECISIONS:
            raise UsageError(f"unknown precision '{self.precision}'; known: {', '.join(PRECISIONS)}")
        if self.optimisation not in ("all", "off"):
            raise UsageError(f"unknown optimisation '{self.optimisation}'; known: all, off")
        if self.target not in TARGETS:
            raise UsageError(f"unknown target '{self.target}'; known: {', '.join(TARGETS)}")
        if self.batch_size < 1:
            raise UsageError(f"batch size {self.batch_size} is not positive")

    @property
    def graph_precision(self) -> str:
        """Precision of the graph handed to the runtime: a weakly typed builder converts a float32 graph itself."""
        if self.precision == "tf32":
            return "fp32"
        if self.runtime == "onnxruntime":
            return self.precision
        weak = self.options.get("typing", "strong" if self.runtime == "tensorrt-rtx" else "weak") == "weak"
        return "fp32" if weak or self.precision in ("int8", "fp8") else self.precision

    @property
    def preparation(self) -> tuple[str, str, int, bool]:
        """Units that agree in this can share one prepared model."""
        return (self.network, self.graph_precision, self.batch_size, self.check_outputs)


def engine_key(unit: Unit, *, graph: str, device: str, device_sms: int | None) -> dict[str, Any]:
    """Identity of a unit's engine on a device.

    Args:
        unit: What to measure.
        graph: Digest of the graph.
        device: Device slug.
        device_sms: SMs of the whole device; None where it has none.
    """
    return {
        "network": unit.network,
        "graph": graph,
        "precision": unit.precision,
        "batch_size": unit.batch_size,
        "device": device,
        "sm_count": unit.sm_count or device_sms,
        "runtime": unit.runtime,
        "optimisation": unit.optimisation,
        "rebuild": unit.rebuild,
        "options": dict(unit.options),
    }


def engine_id(key: Mapping[str, Any]) -> str:
    """Twenty hexadecimal digits that identify an engine."""
    return hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:20]


def unit_from_json(record: Mapping[str, Any]) -> Unit:
    """Read a unit written by `unit_to_json`."""
    known = {f.name for f in fields(Unit)}
    if unknown := sorted(set(record) - known):
        raise FormatError(f"plan names unknown properties {', '.join(unknown)}; known: {', '.join(sorted(known))}")
    return Unit(**record)


def unit_to_json(unit: Unit) -> dict[str, Any]:
    """Plain record of a unit, defaults left out."""
    defaults = {f.name: f.default_factory() if f.default_factory is not MISSING else f.default for f in fields(Unit)}
    return {name: value for name, value in asdict(unit).items() if value != defaults[name]}


@dataclass(frozen=True, kw_only=True)
class Plan:
    """An ordered list of units; neighbours that share a preparation are measured together."""

    units: tuple[Unit, ...]

    def __len__(self) -> int:
        return len(self.units)

    def __iter__(self) -> Iterator[Unit]:
        return iter(self.units)

    def save(self, path: str | Path) -> None:
        """Write as JSON, one unit a line."""
        lines = ",\n".join(json.dumps(unit_to_json(unit)) for unit in self.units)
        header = f'{{"format":"{PLAN_FORMAT}","version":{PLAN_VERSION},"units":['
        Path(path).write_text(f"{header}\n{lines}\n]}}\n")

    @classmethod
    def load(cls, path: str | Path) -> Plan:
        """Read a plan.

        Raises:
            FormatError: Not a plan, or of another version.
        """
        try:
            content = json.loads(Path(path).read_text())
        except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
            raise FormatError(f"'{path}' is not a plan: {error}") from error
        if not isinstance(content, dict) or content.get("format") != PLAN_FORMAT:
            raise FormatError(f"'{path}' is not a plan: its format is not '{PLAN_FORMAT}'")
        if content.get("version") != PLAN_VERSION:
            raise FormatError(f"'{path}' has plan version {content.get('version')}; this reads {PLAN_VERSION}")
        return cls(units=tuple(unit_from_json(record) for record in content["units"]))


def grid(
    networks: Iterable[str],
    *,
    precisions: Sequence[str] = ("fp16",),
    batch_sizes: Sequence[int] = (1,),
    sm_counts: Sequence[int | None] = (None,),
    optimisations: Sequence[str] = ("all",),
    rebuilds: int = 0,
    **common: Any,
) -> Plan:
    """Every combination, ordered so that units of one prepared model are neighbours.

    Args:
        networks: Names.
        precisions: Precisions.
        batch_sizes: Batch sizes.
        sm_counts: Partitions; None is the whole device.
        optimisations: `all`, `off` or both.
        rebuilds: Fresh builds beyond the first.
        **common: Further properties of every unit.
    """
    order = product(networks, precisions, batch_sizes, sm_counts, optimisations, range(rebuilds + 1))
    return Plan(
        units=tuple(
            Unit(
                network=network,
                precision=precision,
                batch_size=batch_size,
                sm_count=sm_count,
                optimisation=optimisation,
                rebuild=rebuild,
                **common,
            )
            for network, precision, batch_size, sm_count, optimisation, rebuild in order
        )
    )

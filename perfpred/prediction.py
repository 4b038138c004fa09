"""What a predictor answers, and its JSON form."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

VERSION: Final = 1
FORMAT: Final = "perfpred.prediction"


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerPrediction:
    """One fused layer of a prediction; times in seconds, add up to the prediction's latency.

    `bound` says what limits it at the device's peak rates: `compute`, `memory`, or `launch` where neither would
    take as long as starting a kernel.
    """

    name: str
    kind: str
    onnx_nodes: Sequence[str]
    time_s: float
    flops: int
    dram_bytes: int
    bound: str
    rule: str = ""

    def to_dict(self) -> dict[str, Any]:
        """The record as in the JSON contract."""
        return {
            "name": self.name,
            "kind": self.kind,
            "onnx_nodes": list(self.onnx_nodes),
            "time_s": self.time_s,
            "flops": self.flops,
            "dram_bytes": self.dram_bytes,
            "bound": self.bound,
            "rule": self.rule,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Prediction:
    """Latency of one inference of a network on a device, after the runtime has optimised it.

    Attributes:
        network: The argument as given.
        device: Slug of the device.
        mode: Power mode, or None for the device as specified.
        sm_count: Streaming multiprocessors (cores, on a CPU) the prediction is for.
        runtime: What builds and runs the engine.
        precision: Build precision.
        batch_size: First dimension of the inputs.
        latency_s: The latency, seconds.
        interval_s: Lower and upper end at `level`.
        level: Share of new networks whose latency lies in the interval.
        latency_kind: What the latency contains; see the design's list of kinds.
        predictor: Name of the predictor.
        basis: `measured device` or `specification only`.
        extrapolates: Features outside the range of training, by name.
        baselines_s: Micro-architecture-only predictions for the same network.
        p_within_budget: Probability of meeting the budget, where one was given.
        layers: The fused layers behind it.
        warnings: What the reader should know, such as operators without a cost rule.
    """

    network: str
    device: str
    mode: str | None
    sm_count: int
    runtime: str
    precision: str
    batch_size: int
    latency_s: float
    interval_s: tuple[float, float]
    level: float
    latency_kind: str
    predictor: str
    basis: str
    extrapolates: Sequence[str] = ()
    baselines_s: Mapping[str, float] = field(default_factory=dict)
    p_within_budget: float | None = None
    layers: Sequence[LayerPrediction] = ()
    warnings: Sequence[str] = ()

    def to_dict(self, *, layers: bool = False) -> dict[str, Any]:
        """The prediction as one JSON object of the contract."""
        made: dict[str, Any] = {
            "format": FORMAT,
            "version": VERSION,
            "network": self.network,
            "device": self.device,
            "mode": self.mode,
            "sm_count": self.sm_count,
            "runtime": self.runtime,
            "precision": self.precision,
            "batch_size": self.batch_size,
            "latency_s": self.latency_s,
            "interval_s": list(self.interval_s),
            "level": self.level,
            "latency_kind": self.latency_kind,
            "predictor": self.predictor,
            "basis": self.basis,
            "extrapolates": list(self.extrapolates),
            "baselines_s": dict(self.baselines_s),
            "p_within_budget": self.p_within_budget,
        }
        if self.warnings:
            made["warnings"] = list(self.warnings)
        if layers:
            made["layers"] = [layer.to_dict() for layer in self.layers]
        return made


def error_dict(network: str, device: str, error: BaseException) -> dict[str, Any]:
    """The JSON object of a network that can't be predicted."""
    return {"format": FORMAT, "version": VERSION, "network": network, "device": device, "error": str(error)}

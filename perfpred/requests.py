"""What a command asks of the package, checked once and then answered network by network."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx

from perfpred.cost import network_cost
from perfpred.dataset import LATENCY_KINDS
from perfpred.defaults import RUNTIMES, DefaultPredictors, load_predictor
from perfpred.device import Device, load_device
from perfpred.errors import PerfpredError, RuntimeUnavailableError, UsageError
from perfpred.fusion import fuse
from perfpred.layer import PRECISIONS, Layer
from perfpred.lowering import rules_for
from perfpred.network import Network, load_network
from perfpred.prediction import Prediction
from perfpred.predictor import LatencyPredictor, default_precision


@dataclass(frozen=True, kw_only=True)
class Request:
    """A checked `predict` command."""

    devices: Sequence[tuple[str, Device]]
    predictors: LatencyPredictor | DefaultPredictors
    runtime: str | None
    batch_size: int | None
    inputs: Mapping[str, Sequence[int]]
    how: Mapping[str, Any]

    @classmethod
    def checked(
        cls,
        *,
        devices: Sequence[str],
        mode: str | None = None,
        sm_count: int | None = None,
        runtime: str | None = None,
        precision: str | None = None,
        batch_size: int | None = None,
        inputs: Mapping[str, Sequence[int]] | None = None,
        latency_kind: str | None = None,
        budget_s: float | None = None,
        predictor: Path | None = None,
        level: float = 0.9,
    ) -> Request:
        """Refuses what can be refused before a network is read.

        Raises:
            UsageError: An argument can't be used.
            PredictorError: No predictor answers for a device and runtime.
        """
        if batch_size is not None and batch_size < 1:
            raise UsageError(f"batch size {batch_size} is not positive; give --batch-size 1 or more")
        if precision is not None and precision not in PRECISIONS:
            raise UsageError(f"precision '{precision}' is unknown; give one of {', '.join(PRECISIONS)}")
        if latency_kind is not None and latency_kind not in LATENCY_KINDS:
            raise UsageError(f"latency kind '{latency_kind}' is unknown; give one of {', '.join(LATENCY_KINDS)}")
        if not 0 < level < 1:
            raise UsageError(f"level {level} is not between 0 and 1; give --level 0.9, say")
        specs = [(slug, load_device(slug, mode=mode, sm_count=sm_count)) for slug in devices]
        predictors = load_predictor(predictor)
        if isinstance(predictors, LatencyPredictor):
            own = predictors.facts_["runtime"]
            if runtime not in (None, own):
                raise UsageError(f"{predictor} was trained on {own}, not {runtime}; name another predictor or runtime")
        else:
            for slug, _ in specs:
                predictors.choose(slug, runtime)
        how = {"precision": precision, "latency_kind": latency_kind, "budget_s": budget_s, "level": level}
        return cls(
            devices=specs,
            predictors=predictors,
            runtime=runtime,
            batch_size=batch_size,
            inputs=inputs or {},
            how=how,
        )

    def answers(
        self, source: Path | onnx.ModelProto, name: str | None = None
    ) -> Iterator[tuple[str, Prediction | PerfpredError]]:
        """A prediction or the error, for each device in turn; the network is read once."""
        try:
            network: Network | PerfpredError = load_network(
                source, batch_size=self.batch_size, inputs=self.inputs, name=name or str(source)
            )
        except PerfpredError as error:
            network = error
        for slug, spec in self.devices:
            if isinstance(network, PerfpredError):
                yield slug, network
                continue
            try:
                yield slug, self._predictor(slug).predict(network, device=spec, **self.how)
            except PerfpredError as error:
                yield slug, error

    def _predictor(self, slug: str) -> LatencyPredictor:
        if isinstance(self.predictors, LatencyPredictor):
            return self.predictors
        return self.predictors.choose(slug, self.runtime)


@dataclass(frozen=True, kw_only=True)
class FusedLayers:
    """Answer of the `layers` command; `origin` says whether rules or the real builder made it."""

    network: str
    runtime: str
    precision: str
    batch_size: int
    origin: str
    layers: Sequence[Layer]
    warnings: Sequence[str] = ()

    def to_dict(self) -> dict[str, Any]:
        """One JSON object of the contract."""
        return {
            "format": "perfpred.layers",
            "version": 1,
            "network": self.network,
            "runtime": self.runtime,
            "precision": self.precision,
            "batch_size": self.batch_size,
            "origin": self.origin,
            **({"warnings": list(self.warnings)} if self.warnings else {}),
            "layers": [
                {
                    "name": layer.name,
                    "kind": layer.kind,
                    "onnx_nodes": list(layer.onnx_nodes),
                    "flops": layer.flops,
                    "dram_bytes": layer.dram_bytes,
                    "rule": layer.rule,
                }
                for layer in self.layers
            ],
        }


def fused_layers(
    path: Path,
    *,
    runtime: str,
    precision: str | None = None,
    device: str | None = None,
    batch_size: int | None = None,
    inputs: Mapping[str, Sequence[int]] | None = None,
) -> FusedLayers:
    """Layers a runtime would run: by its real builder where that is TensorRT-RTX and installed, else by rules.

    Raises:
        UsageError: Runtime, precision or device is unknown.
        NetworkError: The network can't be read or bound.
    """
    if runtime not in RUNTIMES:
        raise UsageError(f"runtime '{runtime}' is unknown; give one of {', '.join(RUNTIMES)}")
    if precision is not None and precision not in PRECISIONS:
        raise UsageError(f"precision '{precision}' is unknown; give one of {', '.join(PRECISIONS)}")
    if batch_size is not None and batch_size < 1:
        raise UsageError(f"batch size {batch_size} is not positive; give --batch-size 1 or more")
    spec = load_device(device) if device else None
    network = load_network(path, batch_size=batch_size, inputs=inputs, name=str(path))
    on_cpu = spec is not None and spec.kind == "cpu"
    built = precision or default_precision(network, on_cpu=on_cpu)
    warnings = [f"no cost rule for {op}: counted by its bytes alone" for op in network_cost(network.nodes).estimated]
    origin, made = "rules", None
    if runtime == "tensorrt-rtx":
        from perfpred.runtimes.rtx_build import rtx_layers

        try:
            made = rtx_layers(path, device=device or "rtx-4090", precision=built, batch_size=batch_size or 1)
            origin = "builder"
        except RuntimeUnavailableError as error:
            warnings.append(f"{error}; these layers come from this package's rules")
    if made is None:
        made = fuse(network.with_precision(built), rules_for(runtime, on_cpu=on_cpu))
    return FusedLayers(
        network=str(path),
        runtime=runtime,
        precision=built,
        batch_size=network.batch_size,
        origin=origin,
        layers=made,
        warnings=warnings,
    )

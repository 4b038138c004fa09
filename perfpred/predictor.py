"""The trained thing a user loads: ONNX in, latency with interval out."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
import onnx
import pandas as pd

from perfpred import __version__
from perfpred.calibration import Residuals, held_out_residuals
from perfpred.contrast import Contrast
from perfpred.cost import network_cost
from perfpred.dataset import Dataset, engine_frame
from perfpred.device import Device, load_device
from perfpred.errors import DatasetError, FormatError, UsageError
from perfpred.features import bound_s, engine_features
from perfpred.instances import device_of, layer_instances
from perfpred.layer import PRECISIONS
from perfpred.lowering import rules_for, structure_frame
from perfpred.network import Network, load_network
from perfpred.prediction import LayerPrediction, Prediction
from perfpred.scores import unjudged
from perfpred.stages import Forecast, Stages, select
from perfpred.timed import layer_times
from perfpred.transfer import Transfers

FORMAT: Final = "perfpred.predictor"
VERSION: Final = 2
#: Time of a kernel that does nothing, where the device file states none; it only labels layers as launch-bound.
_LAUNCH_S: Final = 3e-6


@dataclass
class LatencyPredictor:
    """Post-optimisation latency of networks on devices.

    Attributes:
        name: What predictions call it.
        level: Layers it reads: `fused`, or `node` and `builder` for ablations.
        drop: Feature groups left out, for ablations.
        trees: Whether trees and a perceptron over layers follow the physics where layers were timed.
        seed: Of every random choice.
        folds: Groups of lineages for the held-out residuals behind the intervals; 0 leaves intervals out.
    """

    name: str = "perfpred"
    level: str = "fused"
    drop: Sequence[str] = ()
    trees: bool = True
    seed: int = 0
    folds: int = 5
    stages_: Stages = field(default_factory=Stages)
    transfers_: Transfers = field(default_factory=Transfers)
    residuals_: Residuals = field(default_factory=Residuals)
    contrast_: Contrast = field(default_factory=Contrast)
    facts_: dict[str, Any] = field(default_factory=dict)

    # --- learning ---

    def fit(self, dataset: Dataset) -> LatencyPredictor:
        """Learns from every good engine of a dataset of one runtime.

        Raises:
            DatasetError: There is nothing to learn from, or runtimes are mixed.
        """
        engines = _learnable(dataset)
        runtimes = sorted(engines["runtime"].dropna().unique())
        aside = unjudged(engines)
        if (n_judged := int((~aside).sum())) < 4:
            raise DatasetError(f"{n_judged} measured engines of networks are too few to train on; collect at least 4")
        if len(runtimes) != 1:
            raise DatasetError(f"a predictor is of one runtime, the dataset has {', '.join(runtimes)}; train one each")
        instances = layer_instances(engines, dataset.layers_at(self.level))
        self.transfers_ = Transfers()
        times = layer_times(instances, engines, dataset)
        self.stages_ = self._new_stages().fit(engines, instances, times)
        if len(dataset.layers_at("node")):
            judged = engines[~aside].reset_index(drop=True)
            self.contrast_ = Contrast().fit(judged, layer_instances(judged, dataset.layers_at("node")))
        if self.folds:
            groups = _groups(engines)
            if groups[~aside].nunique() < 2:
                raise DatasetError(
                    "intervals need networks of at least two families; collect more, or train with folds=0"
                )
            self.residuals_ = held_out_residuals(
                self._new_stages, engines, instances, times, groups=groups, folds=self.folds
            )
        features = self.stages_.features(select(instances, np.flatnonzero(~aside))[1])
        self.facts_ = {
            "runtime": runtimes[0],
            "on_cpu": bool(instances["is_cpu"].iloc[0]),
            "networks": sorted(engines["network_id"].dropna().unique()),
            "cells": _cells(engines),
            "hosts": _hosts(engines),
            "ranges": {c: [float(features[c].min()), float(features[c].max())] for c in features},
            "n_engines": len(engines),
            "n_networks": int(engines["network"].nunique()),
            "dataset": dataset.digest(),
        }
        return self

    def _new_stages(self) -> Stages:
        return Stages(drop=self.drop, trees=self.trees, seed=self.seed)

    # --- answering ---

    def _forecast(self, engines: pd.DataFrame, instances: pd.DataFrame) -> Forecast:
        made = self.stages_.forecast(engines, instances)
        if self.transfers_.shots_:
            shift = self.transfers_.of(engines, self.stages_.similarity(engines, instances))
            made = replace(made, latency_s=made.latency_s * np.exp(shift))
        return made

    def predict_engines(self, engines: pd.DataFrame, layers: pd.DataFrame) -> np.ndarray:
        """Latency of dataset rows, seconds; shape (n_engines,)."""
        return self.forecast_engines(engines, layers)[0]

    def forecast_engines(self, engines: pd.DataFrame, layers: pd.DataFrame) -> tuple[np.ndarray, np.ndarray]:
        """Latency of dataset rows, seconds, and its expected relative error up to a common factor.

        Shape (n_engines,) each.
        """
        made = self._forecast(engines, layer_instances(engines, layers[layers["level"] == self.level]))
        return made.latency_s, made.spread

    def predict(
        self,
        source: str | Path | onnx.ModelProto | Network,
        *,
        device: str | Device,
        mode: str | None = None,
        sm_count: int | None = None,
        precision: str | None = None,
        batch_size: int | None = None,
        inputs: Mapping[str, Sequence[int]] | None = None,
        latency_kind: str | None = None,
        budget_s: float | None = None,
        level: float = 0.9,
    ) -> Prediction:
        """Predicts the latency of a network on a device.

        Args:
            source: ONNX file, model, or a network already loaded.
            device: Slug, or a specification.
            mode: Power mode of the device.
            sm_count: Partition of a data-centre GPU.
            precision: Of the build; by default fp16 on GPUs where the graph is float, else the graph's own.
            batch_size: First dimension of the inputs; by default the graph's own, or 1.
            inputs: Full input shapes by name.
            latency_kind: What the latency contains; by default gpu_compute, `cpu` on a CPU.
            budget_s: Time to meet, seconds.
            level: Of the interval.

        Raises:
            NetworkError: The network can't be read or bound.
            UsageError: An argument can't be used.
        """
        if not 0 < level < 1:
            raise UsageError(f"level {level} is not between 0 and 1; give --level 0.9, say")
        spec = device if isinstance(device, Device) else self._device(device, mode, sm_count)
        network = source if isinstance(source, Network) else load_network(source, batch_size=batch_size, inputs=inputs)
        on_cpu = spec.kind == "cpu"
        built = precision or default_precision(network, on_cpu=on_cpu)
        if built not in PRECISIONS:
            raise UsageError(f"precision '{built}' is unknown; give one of {', '.join(PRECISIONS)}")
        runtime = self.facts_["runtime"]
        kind = latency_kind or ("cpu" if on_cpu else "gpu_compute")
        frame = structure_frame(network, precision=built, rules=rules_for(runtime, on_cpu=on_cpu), structure="asked")
        engine = engine_frame(
            [
                {
                    "engine_id": "asked",
                    "structure": "asked",
                    "device": spec.slug,
                    "mode": spec.mode,
                    "sm_count": spec.sm_count,
                    "device_json": json.dumps(spec.to_dict()),
                    "runtime": runtime,
                    "precision": built,
                    "batch_size": network.batch_size,
                    "latency_kind": kind,
                }
            ]
        )
        fused = frame[frame["level"] == self.level].reset_index(drop=True)
        instances = layer_instances(engine, fused)
        told = self._forecast(engine, instances)
        latency = float(told.latency_s[0])
        outside = self._outside(engine_features(instances, told.layer_s))
        interval, within = self.residuals_.of(
            engine,
            latency,
            level,
            budget_s,
            stretched=bool(outside),
            spread=float(told.spread[0]),
            known=self.covers(spec.slug),
        )
        nodes = layer_instances(engine, frame[frame["level"] == "node"])
        unknown = network_cost(network.nodes).estimated
        return Prediction(
            network=str(source) if isinstance(source, (str, Path)) else network.name,
            device=spec.slug,
            mode=spec.mode,
            sm_count=spec.sm_count,
            runtime=runtime,
            precision=built,
            batch_size=network.batch_size,
            latency_s=latency,
            interval_s=interval,
            level=level,
            latency_kind=kind,
            predictor=self.name,
            basis="measured device" if self.covers(spec.slug) else "specification only",
            extrapolates=outside,
            baselines_s={name: float(t[0]) for name, t in self.contrast_.predict(engine, nodes).items()},
            p_within_budget=within,
            layers=_layer_predictions(instances, told.layer_s, latency, spec),
            warnings=[f"no cost rule for {op}: counted by its bytes alone" for op in unknown],
        )

    def _device(self, slug: str, mode: str | None, sm_count: int | None) -> Device:
        """The specification of a device; a host that training rows came from is known by its own."""
        hosts = self.facts_.get("hosts", {})
        if slug in hosts and slug != "cpu":
            return Device.from_dict(hosts[slug])
        return load_device(slug, mode=mode, sm_count=sm_count)

    def covers(self, slug: str) -> bool:
        """Whether rows of this device were among the training rows."""
        return slug in self.facts_.get("cells", {})

    def _outside(self, features: pd.DataFrame) -> list[str]:
        """Features of one engine that lie outside the range of training, beyond a tenth of its width."""
        found = []
        for column, (low, high) in self.facts_.get("ranges", {}).items():
            value = float(features[column].iloc[0])
            slack = 0.1 * max(high - low, 0.5)
            if not low - slack <= value <= high + slack:
                found.append(column)
        return found

    # --- on disk ---

    def save(self, folder: str | Path) -> None:
        """Writes `manifest.json` and the layer stage; the folder appears whole or not at all."""
        path = Path(folder)
        partial = path.with_name(path.name + ".partial")
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        manifest = {
            "format": FORMAT,
            "version": VERSION,
            "perfpred": __version__,
            "name": path.name,
            "level": self.level,
            "drop": list(self.drop),
            "seed": self.seed,
            "stages": self.stages_.save(partial),
            "transfers": self.transfers_.to_dict(),
            "residuals": self.residuals_.to_dict(),
            "contrast": self.contrast_.to_dict(),
            "facts": self.facts_,
        }
        (partial / "manifest.json").write_text(json.dumps(manifest, indent=1))
        if path.exists():
            _read_manifest(path)  # only a predictor is ever replaced
            shutil.rmtree(path)
        os.replace(partial, path)

    @classmethod
    def load(cls, folder: str | Path) -> LatencyPredictor:
        """Reads a predictor; nothing in it is executed.

        Raises:
            FormatError: The folder holds no predictor, a damaged one, or one of another version.
        """
        path = Path(folder)
        manifest = _read_manifest(path)
        try:
            drop = tuple(manifest["drop"])
            return cls(
                name=manifest["name"],
                level=manifest["level"],
                drop=drop,
                seed=manifest["seed"],
                trees=manifest["stages"]["trees"],
                stages_=Stages.load(path, manifest["stages"], drop),
                transfers_=Transfers.from_dict(manifest["transfers"]),
                residuals_=Residuals.from_dict(manifest["residuals"]),
                contrast_=Contrast.from_dict(manifest["contrast"]),
                facts_=manifest["facts"],
            )
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise FormatError(
                f"{path / 'manifest.json'}: lacks or garbles {error}; train the predictor again"
            ) from error


_SHOWN_LAYER: Final = ["name", "kind", "onnx_nodes", "flops", "dram_bytes", "rule"]


def default_precision(network: Network, *, on_cpu: bool) -> str:
    """fp16 on a GPU where the graph is float32, else the graph's own."""
    own = network.precision
    return "fp16" if own == "fp32" and not on_cpu else own


def _read_manifest(path: Path) -> dict[str, Any]:
    file = path / "manifest.json"
    try:
        manifest = json.loads(file.read_text())
    except OSError as error:
        raise FormatError(
            f"{path}: holds no manifest.json; name the folder that `perfpred train --out` wrote"
        ) from error
    except ValueError as error:
        raise FormatError(f"{file}: is not JSON; copy the predictor again, or train it again") from error
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise FormatError(f"{file}: is no {FORMAT}; name the folder that `perfpred train --out` wrote")
    if manifest.get("version") != VERSION:
        raise FormatError(
            f"{file}: is {FORMAT} version {manifest.get('version')}; this perfpred reads {VERSION}. "
            "Upgrade perfpred, or train the predictor again."
        )
    return manifest


def _learnable(dataset: Dataset) -> pd.DataFrame:
    """Measured engines, those built with the optimiser switched off left out: their layers are not the fused ones."""
    good = dataset.good
    return good[good["optimisation"].ne("off")].reset_index(drop=True)


def _groups(engines: pd.DataFrame) -> pd.Series[str]:
    """Lineage where known, else family, else the network itself."""
    lineage = engines["lineage"].where(engines["lineage"].notna(), engines["family"])
    grouped = lineage.where(lineage.notna(), engines["network"])
    return grouped if grouped.nunique() >= 5 else engines["family"].fillna(engines["network"])


def _cells(engines: pd.DataFrame) -> dict[str, dict[str, int]]:
    """Number of training rows by device and `precision/latency kind`."""
    made: dict[str, dict[str, int]] = {}
    for (device, precision, kind), rows in engines.groupby(["device", "precision", "latency_kind"]):
        made.setdefault(str(device), {})[f"{precision}/{kind}"] = len(rows)
    return made


def _hosts(engines: pd.DataFrame) -> dict[str, Any]:
    """Specification of each training device that came with its own."""
    own = engines[engines["device_json"].notna()].drop_duplicates("device")
    return {str(e["device"]): device_of(dict(e)).to_dict() for _, e in own.iterrows()}


def _layer_predictions(
    instances: pd.DataFrame, layer_s: np.ndarray, latency_s: float, device: Device
) -> list[LayerPrediction]:
    """Layers with times that add up to the engine's latency."""
    bound = bound_s(instances)
    launch = device.launch_s or _LAUNCH_S
    share = layer_s / layer_s.sum()
    limit = np.where(
        bound["roofline_s"] < launch, "launch", np.where(bound["compute_s"] >= bound["memory_s"], "compute", "memory")
    )
    return [
        LayerPrediction(
            name=str(row["name"]),
            kind=str(row["kind"]),
            onnx_nodes=list(row["onnx_nodes"]),
            time_s=float(latency_s * share[i]),
            flops=int(row["flops"]),
            dram_bytes=int(row["dram_bytes"]),
            bound=str(limit[i]),
            rule=str(row["rule"] or ""),
        )
        for i, row in enumerate(instances[_SHOWN_LAYER].to_dict("records"))
    ]

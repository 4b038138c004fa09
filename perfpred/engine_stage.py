"""Layer times learned from whole-engine latencies, and the latency of the engine they make.

A layer takes the longer of its computing and its memory time (a smooth maximum) and a launch. How far each stays
above the device's specification depends on the layer's kind and sizes and on the device, through coefficients shared
by all devices, so that a device without measurements is answered from its specification. An engine takes the sum of
its layers and what its laboratory's method adds; methods share what their devices, laboratories and kinds of latency
have in common, so that one never seen is answered from those. All coefficients are fitted together on the logarithm
of the latencies, robustly; what is left is smoothed over similar engines by a Gaussian process.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
import pandas as pd
from scipy.optimize import minimize

from perfpred.distinct import CLASSES, DistinctLayers, distinct_layers
from perfpred.errors import FormatError

Array = np.ndarray

_SHARPNESS: Final = 4.0
#: Log residuals beyond this count linearly: public tables hold rows that contradict each other.
_ROBUST: Final = 0.2
#: Where the coefficients start: multiples of the bound, seconds of a launch and of a call.
_START: Final = {"compute": 1.5, "memory": 1.3, "launch_s": 4e-6, "call_s": 3e-5}
_COPY_BYTES_PER_S: Final = 1e10
#: Strength of the pull towards the start, as that many rows with a log residual of 1: for the rows of one laboratory,
#: and for public tables, whose laboratories contradict each other. Chosen on lineages and families held out.
_PULL: Final[Mapping[str, float]] = {
    "common": 0.02, "compute": 1.0, "memory": 1.0, "launch": 1.0, "compute_size": 1.0, "memory_size": 1.0,
    "launch_size": 30.0, "compute_device": 3.0, "memory_device": 3.0, "launch_device": 3.0,
}  # fmt: skip
_PULL_SEVERAL: Final[Mapping[str, float]] = {
    **_PULL, "compute": 20.0, "memory": 20.0, "launch": 0.5, "compute_size": 15.0, "memory_size": 15.0,
    "launch_size": 0.3, "compute_device": 15.0, "memory_device": 15.0, "launch_device": 15.0,
}  # fmt: skip
#: The same for a method's coefficients, in standard deviations of `_SHARED`.
_PULL_CELL: Final = 0.1
_CELL_KEY: Final = ("device", "lab", "latency_kind")
#: What methods share, as standard deviations of their coefficients' parts: along each number of the device, of the
#: device, of a laboratory's way to measure a kind of latency, of the kind, and of the method itself.
_SHARED: Final[Mapping[str, tuple[float, ...]]] = {
    "cell_scale": (0.2, 0.2, 0.3, 0.2, 0.1),
    "cell_call": (0.0, 0.3, 0.5, 0.3, 0.2),
    "cell_launch": (0.2, 0.3, 0.4, 0.3, 0.2),
    "cell_copy": (0.0, 0.3, 0.5, 0.0, 0.2),
}
#: Rounds of one benchmark, which are one laboratory.
_ROUND: Final = r"^(inference_results)_v[\d.]+"
#: Relative error of launches, in that of work.
_LAUNCH_ERROR: Final = 2.0


@dataclass
class EngineStage:
    """Learns layer times from totals and predicts the latency of engines.

    Attributes:
        smooth: Whether the Gaussian process follows; without it the coefficients alone answer.
        landmarks: Engines the process keeps, at most.
        seed: Chooses the landmarks where there are more engines.
    """

    smooth: bool = True
    landmarks: int = 1500
    seed: int = 0
    parameters_: dict[str, Array] = field(default_factory=dict)
    cells_: tuple[str, ...] = ()
    places_: Array = field(default_factory=lambda: np.zeros((0, 0)))
    process_: dict[str, Array] = field(default_factory=dict)

    def fit(self, instances: pd.DataFrame, engines: pd.DataFrame) -> EngineStage:
        """Fits on measured engines.

        Args:
            instances: As `perfpred.instances.layer_instances` gives them.
            engines: The engines in the order of the instances' `row`, with device, lab, latency_kind, latency_s.
        """
        layers = distinct_layers(instances, len(engines))
        cells, first, code = np.unique(cell_of(engines).to_numpy(str), return_index=True, return_inverse=True)
        log_latency = np.log(engines["latency_s"].to_numpy(float))
        weight = np.bincount(code)[code] ** -0.5
        weight /= weight.mean()
        several = bool(engines["lab"].nunique(dropna=False) > 1)
        # One laboratory's devices differ in the coefficients of layers: those say more than a factor on the sum.
        self.cells_, self.places_ = tuple(cells.tolist()), _place(layers)[first] * several
        pull, noise = (_PULL_SEVERAL, _NOISE_SEVERAL) if several else (_PULL, _NOISE)
        shared = {name: self._covariance(name, self.cells_, self.places_) for name in _SHARED}
        objective = _Objective(layers, code, _copies(engines), log_latency, weight, shared, pull)
        self.parameters_ = objective.solve()
        features = self._engine_features(layers, engines)
        self.process_ = {"mean": features.mean(axis=0), "spread": features.std(axis=0) + 1e-9}
        if self.smooth:
            residual = np.clip(log_latency - self._log_physics(layers, engines), -0.6, 0.6)
            self._fit_process(self._similarity(layers, engines), residual, noise / np.clip(weight, 0.3, 3.0))
        return self

    def predict(self, instances: pd.DataFrame, engines: pd.DataFrame) -> Array:
        """Log of the latency of each engine, log seconds; shape (n_engines,)."""
        layers = distinct_layers(instances, len(engines))
        made = self._log_physics(layers, engines)
        if self.smooth:
            alike = _kernel(self._similarity(layers, engines), self.process_["landmarks"])
            made = made + alike @ self.process_["weights"]
        return made

    def spread(self, instances: pd.DataFrame, engines: pd.DataFrame) -> Array:
        """How far predictions are off, 1 where all is work: launches are known less well; shape (n_engines,)."""
        layers = distinct_layers(instances, len(engines))
        work, launch = _layer_times(layers, self.parameters_)[:2]
        share = (layers.counts @ launch) / (layers.counts @ (work + launch))
        made: Array = np.hypot(1.0, _LAUNCH_ERROR * share)
        return made

    def similarity(self, instances: pd.DataFrame, engines: pd.DataFrame) -> Array:
        """Standardised features in which near engines err alike; shape (n_engines, n_features)."""
        return self._similarity(distinct_layers(instances, len(engines)), engines)

    def _similarity(self, layers: DistinctLayers, engines: pd.DataFrame) -> Array:
        made: Array = (self._engine_features(layers, engines) - self.process_["mean"]) / self.process_["spread"]
        return made

    def layer_times(self, instances: pd.DataFrame) -> Array:
        """Time of each layer, seconds; shape (n_layers,)."""
        n_engines = int(instances["row"].max()) + 1
        layers = distinct_layers(instances, n_engines)
        work, launch = _layer_times(layers, self.parameters_)[:2]
        made: Array = (work + launch)[layers.index]
        return made

    def method(self, instances: pd.DataFrame, engines: pd.DataFrame) -> tuple[Array, Array]:
        """What each engine's method adds to the times of its layers, seconds, and its factor on the sum of both.

        Shape (n_engines,) each. Trees on top of the layer times may shorten the launches that a method saves on, so
        nothing is taken away.
        """
        layers = distinct_layers(instances, len(engines))
        work, launch = _layer_times(layers, self.parameters_)[:2]
        whole = np.exp(self._log_physics(layers, engines))
        scale = np.exp(self._of_cell("cell_scale", layers, engines))
        return np.maximum(whole / scale - layers.counts @ (work + launch), 0.0), scale

    def _log_physics(self, layers: DistinctLayers, engines: pd.DataFrame) -> Array:
        work, launch = _layer_times(layers, self.parameters_)[:2]
        cell = {name: self._of_cell(name, layers, engines) for name in _SHARED}
        total = layers.counts @ work + (layers.counts @ launch) * np.exp(cell["cell_launch"])
        total += _START["call_s"] * np.exp(cell["cell_call"])
        total += _copies(engines) * (layers.counts @ layers.copied) / _COPY_BYTES_PER_S * np.exp(cell["cell_copy"])
        made: Array = np.log(total) + cell["cell_scale"]
        return made

    def _of_cell(self, name: str, layers: DistinctLayers, engines: pd.DataFrame) -> Array:
        """A method's coefficient of each engine; of a method never seen, what those that it shares something with say.

        Shape (n_engines,).
        """
        cells, first, code = np.unique(cell_of(engines).to_numpy(str), return_index=True, return_inverse=True)
        stands_for = [self._methods(cell) for cell in cells]
        asked = np.repeat(np.arange(len(cells)), [len(methods) for methods in stands_for])
        methods = [method for one in stands_for for method in one]
        alike = self._covariance(name, methods, _place(layers)[first][asked])
        made: Array = (np.bincount(asked, alike @ self.parameters_[name]) / np.bincount(asked))[code]
        return made

    def _methods(self, cell: str) -> list[str]:
        """What a cell stands for: itself, or without a laboratory those that measured its device, else its kind."""
        device, lab, kind = cell.split("|")
        known = [one.split("|") for one in self.cells_]
        if lab or not known:
            return [cell]
        labs = {b for a, b, c in known if (a, c) == (device, kind)} or {b for _, b, c in known if c == kind}
        return [f"{device}|{b}|{kind}" for b in sorted(labs or {b for _, b, _ in known})]

    def _covariance(self, name: str, cells: Sequence[str], places: Array) -> Array:
        """Prior covariance of methods' coefficients with those of `cells_`, shape (n_cells, n_known)."""
        along, device, lab, kind, own = (sd**2 for sd in _SHARED[name])
        asked, known = (np.array([cell.split("|") for cell in c]).T for c in (cells, self.cells_))
        same = {key: a[:, None] == b for key, a, b in zip(_CELL_KEY, asked, known, strict=True)}
        way = same["lab"] & same["latency_kind"]
        made: Array = along * places @ self.places_.T + device * same["device"] + lab * way
        made += kind * same["latency_kind"] + own * (way & same["device"])
        return made

    def _engine_features(self, layers: DistinctLayers, engines: pd.DataFrame) -> Array:
        """What makes engines similar: shares of time by class, totals, precision, device; shape (n, n_features)."""
        work, launch = _layer_times(layers, self.parameters_)[:2]
        time = work + launch
        by_class = np.eye(len(CLASSES))[layers.classes]
        total, number = layers.counts @ time, np.asarray(layers.counts.sum(axis=1)).ravel()
        compute, memory = layers.counts @ layers.compute_s, layers.counts @ layers.memory_s
        precision = engines["precision"].to_numpy()
        return np.column_stack(
            [
                (layers.counts @ (by_class * time[:, None])) / total[:, None],
                np.log(total), np.log(number), np.log(total / number), np.log(compute / total),
                np.log(memory / total), np.log(compute / memory), np.log(engines["batch_size"].to_numpy(float)),
                precision == "fp16", precision == "int8", engines["latency_kind"] == "framework_mean",
                _place(layers),
            ]
        ).astype(float)  # fmt: skip

    def _fit_process(self, scaled: Array, residual: Array, noise: Array) -> None:
        chosen = np.arange(len(scaled))
        if len(chosen) > self.landmarks:
            chosen = np.sort(np.random.default_rng(self.seed).choice(chosen, self.landmarks, replace=False))
        landmarks = scaled[chosen]
        if len(landmarks) == len(scaled):
            weights = np.linalg.solve(_kernel(scaled, scaled) + np.diag(noise), residual)
        else:  # subset of regressors
            cross = _kernel(landmarks, scaled) / noise
            inner = cross @ _kernel(scaled, landmarks) + _kernel(landmarks, landmarks) + 1e-8 * np.eye(len(landmarks))
            weights = np.linalg.solve(inner, cross @ residual)
        self.process_ |= {"landmarks": landmarks, "weights": weights}

    def to_dict(self) -> dict[str, Any]:
        """JSON form."""
        return {
            "classes": list(CLASSES),
            "cells": list(self.cells_),
            "places": self.places_.tolist(),
            "parameters": {name: np.asarray(v).tolist() for name, v in self.parameters_.items()},
            "process": {name: np.asarray(v).tolist() for name, v in self.process_.items()},
        }

    @classmethod
    def from_dict(cls, facts: Mapping[str, Any]) -> EngineStage:
        """From the JSON form.

        Raises:
            FormatError: It was trained with other layer kinds, or before methods shared anything.
        """
        if tuple(facts["classes"]) != CLASSES or "places" not in facts:
            raise FormatError("the engine stage was trained with other layer kinds; train it again with this perfpred")
        return cls(
            smooth="weights" in facts["process"],
            cells_=tuple(facts["cells"]),
            places_=np.asarray(facts["places"], float),
            parameters_={name: np.asarray(v, float) for name, v in facts["parameters"].items()},
            process_={name: np.asarray(v, float) for name, v in facts["process"].items()},
        )


#: Of the Gaussian process: its length, and the variance of the noise over its own, with one laboratory and with several
#: (where the tighter coefficients leave it more to explain).
_LENGTH: Final = 2.0
_NOISE, _NOISE_SEVERAL = 1.0, 0.14


def _kernel(a: Array, b: Array) -> Array:
    """Squared exponential over standardised features, its length grown with their number."""
    squared = (a**2).sum(axis=1)[:, None] + (b**2).sum(axis=1)[None] - 2 * a @ b.T
    length = _LENGTH * np.sqrt(a.shape[1]) / 3
    made: Array = np.exp(-0.5 * np.maximum(squared, 0.0) / length**2)
    return made


def _place(layers: DistinctLayers) -> Array:
    """Numbers of the device of each engine, shape (n_engines, n_numbers)."""
    made: Array = (layers.counts @ layers.device) / np.asarray(layers.counts.sum(axis=1))
    return made


def cell_of(engines: pd.DataFrame) -> pd.Series[str]:
    """Device, laboratory and latency kind of each engine, joined by `|`: rows of one method on one device."""
    device, lab, kind = (engines[c].fillna("").astype(str) for c in _CELL_KEY)
    return device + "|" + lab.str.replace(_ROUND, r"\1", regex=True) + "|" + kind


def _copies(engines: pd.DataFrame) -> Array:
    """1 where host-device copies are inside the latency, else 0."""
    return (engines["latency_kind"] == "with_io").to_numpy(float)


def _layer_times(layers: DistinctLayers, p: Mapping[str, Array]) -> tuple[Array, Array, Array]:
    """Working time and launch of each distinct layer, seconds, and the computing share of the smooth maximum."""
    common = p["common"]
    log_compute = np.log(layers.compute_s * _START["compute"]) + common[0] + p["compute"][layers.classes]
    log_compute += layers.compute_size @ p["compute_size"] + layers.device @ p["compute_device"]
    log_memory = np.log(layers.memory_s * _START["memory"]) + common[1] + p["memory"][layers.classes]
    log_memory += layers.memory_size @ p["memory_size"] + layers.device @ p["memory_device"]
    share = 1 / (1 + np.exp(np.clip(_SHARPNESS * (log_memory - log_compute), -500, 500)))
    longer = np.maximum(log_compute, log_memory)
    excess = np.log1p(np.exp(-_SHARPNESS * np.abs(log_compute - log_memory))) / _SHARPNESS
    log_launch = common[2] + p["launch"][layers.classes] + layers.launch_size @ p["launch_size"]
    launch = layers.launches * _START["launch_s"] * np.exp(log_launch + layers.device @ p["launch_device"])
    return np.exp(longer + excess), launch, share


class _Objective:
    """Robust squared log error of the totals plus the pull of the coefficients, with its gradient."""

    def __init__(
        self,
        layers: DistinctLayers,
        cell: Array,
        copies: Array,
        log_latency: Array,
        weight: Array,
        shared: Mapping[str, Array],
        pull: Mapping[str, float],
    ) -> None:
        self._layers, self._cell, self._target, self._weight = layers, cell, log_latency, weight
        self._copied = copies * (layers.counts @ layers.copied) / _COPY_BYTES_PER_S
        self._transposed = layers.counts.T.tocsr()
        # Cells are searched in coordinates that are independent under their prior.
        self._root = {name: np.linalg.cholesky(k + 1e-4 * np.eye(len(k))) for name, k in shared.items()}
        sizes = {
            "common": 3,
            **dict.fromkeys(("compute", "memory", "launch"), len(CLASSES)),
            "compute_size": layers.compute_size.shape[1],
            "memory_size": layers.memory_size.shape[1],
            "launch_size": layers.launch_size.shape[1],
            **dict.fromkeys(("compute_device", "memory_device", "launch_device"), layers.device.shape[1]),
            **{name: len(root) for name, root in self._root.items()},
        }
        ends = np.cumsum(list(sizes.values()))
        self._slices = {
            name: slice(int(end) - size, int(end)) for (name, size), end in zip(sizes.items(), ends, strict=True)
        }
        self._pull = np.concatenate([np.full(size, pull.get(name, _PULL_CELL)) for name, size in sizes.items()])

    def solve(self) -> dict[str, Array]:
        """The coefficients with the least loss; those of cells as weights of their covariance with any cell."""
        found = minimize(self._loss, np.zeros(len(self._pull)), jac=True, method="L-BFGS-B", options={"maxiter": 250})
        p = {name: found.x[part] for name, part in self._slices.items()}
        return p | {name: np.linalg.solve(root.T, p[name]) for name, root in self._root.items()}

    def _loss(self, v: Array) -> tuple[float, Array]:
        p = {name: v[part] for name, part in self._slices.items()}
        p |= {name: root @ p[name] for name, root in self._root.items()}
        layers, cell = self._layers, self._cell
        work, launch, share = _layer_times(layers, p)
        slower = np.exp(p["cell_launch"])[cell]
        launches = (layers.counts @ launch) * slower
        call = _START["call_s"] * np.exp(p["cell_call"])[cell]
        copies = self._copied * np.exp(p["cell_copy"])[cell]
        total = layers.counts @ work + launches + call + copies
        residual = np.log(total) + p["cell_scale"][cell] - self._target
        root = np.sqrt(1 + (residual / _ROBUST) ** 2)
        loss = 2 * _ROBUST**2 * (self._weight * (root - 1)).sum() + (self._pull * v**2).sum()

        outer = 2 * self._weight * residual / root
        inner = outer / total
        of_work = (self._transposed @ inner) * work
        of_compute, of_memory = of_work * share, of_work * (1 - share)
        of_launch = (self._transposed @ (inner * slower)) * launch

        def by_class(x: Array) -> Array:
            return np.bincount(layers.classes, x, len(CLASSES))

        def by_cell(name: str, x: Array) -> Array:
            made: Array = self._root[name].T @ np.bincount(cell, x, len(self._root[name]))
            return made

        slope = {
            "common": np.array([of_compute.sum(), of_memory.sum(), of_launch.sum()]),
            "compute": by_class(of_compute), "memory": by_class(of_memory), "launch": by_class(of_launch),
            "compute_size": layers.compute_size.T @ of_compute, "memory_size": layers.memory_size.T @ of_memory,
            "launch_size": layers.launch_size.T @ of_launch,
            "compute_device": layers.device.T @ of_compute, "memory_device": layers.device.T @ of_memory,
            "launch_device": layers.device.T @ of_launch,
            "cell_scale": by_cell("cell_scale", outer), "cell_call": by_cell("cell_call", inner * call),
            "cell_launch": by_cell("cell_launch", inner * launches), "cell_copy": by_cell("cell_copy", inner * copies),
        }  # fmt: skip
        return float(loss), np.concatenate([slope[name] for name in self._slices]) + 2 * self._pull * v

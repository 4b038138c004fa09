"""The layer stage: boosted trees and a perceptron that learn from measured layer times and whole engines at once.

Both give each layer a factor on a physical time. Where a profiled pass timed the layers, their times are the target;
every engine, profiled or not, adds that the times of its layers sum to its latency: the gradient of the engine's error
reaches each layer of the trees through its share of the sum. The perceptron then learns the same layers, with the
trees' answers, corrected by what their engines are still off, standing in for times that were not measured. Trees find
the steps between kernels, the perceptron what lies between sizes; they disagree most where a layer is least like those
they learned from.
"""

from __future__ import annotations

import gzip
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
import pandas as pd
import xgboost as xgb
from scipy.sparse import csr_matrix

from perfpred.errors import FormatError
from perfpred.features import LAYER_COLUMNS, layer_features, without_groups
from perfpred.regressors import Perceptron

Array = np.ndarray

_SETTINGS: Final[dict[str, Any]] = {
    "eta": 0.2, "max_depth": 0, "max_leaves": 300, "grow_policy": "lossguide", "min_child_weight": 0.1,
    "subsample": 0.8, "colsample_bytree": 0.4, "lambda": 0.02, "tree_method": "hist", "max_bin": 64,
    "base_score": 0.0, "nthread": 1,
}  # fmt: skip
#: File of each booster, and folder of the perceptron.
_FILE, _PERCEPTRON = "layer-{}.ubj.gz", "layer-perceptron"
#: Log residuals beyond this count linearly, those of single layers beyond its double.
_ROBUST: Final = 0.15
#: Log residuals up to this count as relative errors where the answer is too high.
_STEEPEST: Final = 1.5
#: Weight of an engine's timed layers together, in engines.
_LAYERS_WEIGHT: Final = 5.0
#: Weight of probes, which are many and of sizes that few networks hold, and of what was measured beside other work.
_UNJUDGED_WEIGHT: Final = 0.4
#: Of one layer in it: a layer that is most of its engine must not be all that is learned from it.
_LARGEST_SHARE: Final = 0.5
#: Sums of layer times this far from the latency were not timed under like conditions.
_COMPLETE: Final = (0.6, 1.6)
#: What an engine's layers take of its log residual, at most.
_LARGEST_LEFT: Final = 0.3
#: The factor stays within exp(+-6).
_FARTHEST: Final = 6.0
#: The perceptron's share of the answer, how far it moves the trees' at most, and the spread of a layer's log factor for
#: each unit that they lie apart; chosen on lineages held out.
_SHARE, _FARTHEST_APART, _SPREAD = 0.5, 1.0, 1.25
#: Passes of the perceptron over the layers, steps of each, and layers of a step at least and at most.
_PASSES, _STEPS, _BATCH = 30, 256, (32, 1024)


@dataclass(frozen=True, kw_only=True)
class LayerTargets:
    """What is known of engines and their layers; shapes (n_engines,) and (n_layers,), n_layers counting instances.

    Attributes:
        row: Engine of each layer.
        base_s: Physical time of each layer, seconds.
        layer_s: Measured time of each layer, seconds, NaN where unknown.
        latency_s: Latency of each engine, seconds, its method's scale taken out.
        added_s: What the method adds to the layers of each engine, seconds.
        weight: Of each engine.
        unjudged: Whether each engine is one that is never judged, such as a probe.
    """

    row: Array
    base_s: Array
    layer_s: Array
    latency_s: Array
    added_s: Array
    weight: Array
    unjudged: Array


@dataclass
class LayerStage:
    """Factor of each layer on its physical time.

    Attributes:
        drop: Feature groups left out.
        rounds: Trees of each booster.
        members: Boosters whose mean is the trees' answer.
        seed: Of the rows and columns each tree sees, and of the perceptron.
    """

    drop: tuple[str, ...] = ()
    rounds: int = 150
    members: int = 2
    seed: int = 0
    boosters_: list[xgb.Booster] = field(default_factory=list)
    perceptron_: Perceptron = field(default_factory=Perceptron)

    def fit(self, layers: pd.DataFrame, targets: LayerTargets) -> LayerStage:
        """Fits on the layers of measured engines.

        Args:
            layers: As `perfpred.instances.layer_instances` gives them.
            targets: In the same order.
        """
        index, first = distinct(layers)
        problem = _Problem(index, first, targets)
        features = self._features(layers.iloc[first])
        # Without names, which each round would compare again.
        data = xgb.DMatrix(features.to_numpy(), base_margin=np.zeros(len(first)))
        self.boosters_, margins = [], []
        for member in range(self.members):
            booster = xgb.Booster({**_SETTINGS, "seed": self.seed * self.members + member}, [data])
            for step in range(self.rounds):
                slope, curvature = problem.slopes(booster.predict(data, output_margin=True, training=True))
                booster.boost(data, step, grad=slope, hess=curvature)
            margins.append(booster.predict(data, output_margin=True))
            booster.feature_names = list(features.columns)
            self.boosters_.append(booster)
        target, weight = problem.lessons(np.mean(margins, axis=0, dtype=float))
        batch = int(np.clip(len(first) // _STEPS, *_BATCH))
        self.perceptron_ = Perceptron(
            hidden=(256, 256, 128), epochs=_PASSES, weight_decay=0.1, batch=batch, smooth=0.03, seed=self.seed
        )
        self.perceptron_.fit(features, target, weight)
        return self

    def factor(self, layers: pd.DataFrame) -> tuple[Array, Array]:
        """Factor on the physical time of each layer, and how far the perceptron lies above the middle of it and the trees.

        The distance is of logarithms. Of a time whose logarithm spreads by s around m, exp(m - s^2) has the least
        expected relative error. Shape (n_layers,) each.
        """
        index, first = distinct(layers)
        features = self._features(layers.iloc[first])
        data = xgb.DMatrix(features, base_margin=np.zeros(len(first)))
        trees = np.mean([b.predict(data, output_margin=True) for b in self.boosters_], axis=0, dtype=float)
        gap = np.clip(self.perceptron_.predict(features) - trees, -_FARTHEST_APART, _FARTHEST_APART)
        apart = gap / 2
        made = trees + _SHARE * gap - (_SPREAD * apart) ** 2
        return np.exp(np.clip(made, -_FARTHEST, _FARTHEST))[index], apart[index]

    def _features(self, layers: pd.DataFrame) -> pd.DataFrame:
        return without_groups(layer_features(layers), self.drop).astype(np.float32)

    def save(self, folder: Path) -> dict[str, str]:
        """Writes boosters in XGBoost's own format, compressed, and the perceptron; returns the SHA-256 of each file."""
        for member, booster in enumerate(self.boosters_):
            content = gzip.compress(bytes(booster.save_raw("ubj")), mtime=0)
            (folder / _FILE.format(member)).write_bytes(content)
        self.perceptron_.save(folder / _PERCEPTRON)
        files = [folder / _FILE.format(member) for member in range(len(self.boosters_))]
        files += sorted((folder / _PERCEPTRON).iterdir())
        return {path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}

    @classmethod
    def load(cls, folder: Path, drop: tuple[str, ...], digests: Mapping[str, str]) -> LayerStage:
        """Reads what `save` wrote.

        Raises:
            FormatError: A file is missing or another.
        """
        boosters = []
        for name, digest in digests.items():
            path = folder / name
            if not path.exists():
                raise FormatError(f"{path}: is missing; copy the whole predictor folder, or train it again")
            content = path.read_bytes()
            # XGBoost reads some damaged files beyond their end and takes the process with it.
            if hashlib.sha256(content).hexdigest() != digest:
                raise FormatError(f"{path}: is damaged; copy the predictor again, or train it again")
            if path.parent == folder:
                booster = xgb.Booster()
                booster.load_model(bytearray(gzip.decompress(content)))
                boosters.append(booster)
        perceptron = Perceptron.load(folder / _PERCEPTRON)
        return cls(drop=drop, members=len(boosters), boosters_=boosters, perceptron_=perceptron)


def distinct(layers: pd.DataFrame) -> tuple[Array, Array]:
    """Layers that no feature tells apart: the number of each instance's, and the first instance of each."""
    key = layers[list(LAYER_COLUMNS)].assign(op_types=layers["op_types"].map(",".join))
    index = key.groupby(list(key.columns), dropna=False, sort=False).ngroup().to_numpy()
    return index, np.unique(index, return_index=True)[1]


class _Problem:
    """Slopes and curvatures of the loss with respect to the log factor of each distinct layer."""

    def __init__(self, index: Array, first: Array, targets: LayerTargets) -> None:
        n_engines, n_layers = len(targets.latency_s), len(first)
        ones = np.ones(len(index))
        self._counts = csr_matrix((ones, (targets.row, index)), shape=(n_engines, n_layers))
        self._transposed = self._counts.T.tocsr()
        self._base = targets.base_s[first]
        self._added, self._log_latency = targets.added_s, np.log(targets.latency_s)
        trust = np.where(targets.unjudged, _UNJUDGED_WEIGHT, 1.0)
        self._weight = trust * targets.weight / targets.weight.mean()
        time, share = _timed_shares(targets)
        share *= trust[targets.row]
        known = np.flatnonzero(share > 0)
        weight = np.bincount(index[known], share[known], n_layers)
        log_time = np.bincount(index[known], share[known] * np.log(time[known]), n_layers)
        self._layer_weight = _LAYERS_WEIGHT * weight
        self._log_factor = np.where(weight > 0, log_time / np.maximum(weight, 1e-300) - np.log(self._base), 0.0)

    def slopes(self, margin: Array) -> tuple[Array, Array]:
        time = self._base * np.exp(np.clip(margin, -_FARTHEST, _FARTHEST))
        total = self._counts @ time + self._added
        residual = np.log(total) - self._log_latency
        pull = self._weight * _steepness(residual, _ROBUST) / total
        apart = margin - self._log_factor
        hold = self._layer_weight * _steepness(apart, 2 * _ROBUST)
        slope = (self._transposed @ (pull * residual)) * time + hold * apart
        # Layers move together: the share itself, not its square, keeps a step from going too far.
        curvature = (self._transposed @ pull) * time + hold
        return slope, np.maximum(curvature, 1e-4)

    def lessons(self, margin: Array) -> tuple[Array, Array]:
        """Log factor of each distinct layer as its times and its engines have it, and its weight.

        Engines share out what `margin`, an answer that is nearly right, leaves of their latencies.
        """
        time = self._base * np.exp(np.clip(margin, -_FARTHEST, _FARTHEST))
        total = self._counts @ time + self._added
        pull = self._weight / total
        share = (self._transposed @ pull) * time
        left = (self._transposed @ (pull * (self._log_latency - np.log(total)))) * time / np.maximum(share, 1e-12)
        weight = self._layer_weight + share
        told = self._layer_weight * self._log_factor + share * (margin + np.clip(left, -_LARGEST_LEFT, _LARGEST_LEFT))
        return told / weight, weight


def _steepness(log_error: Array, robust: float) -> Array:
    """Slope of the loss over the log error.

    Beyond `robust` errors count linearly, and too high an answer as its relative error: where a runtime takes now a
    fast and now a slow kernel, ten times too high is worse than ten times too low.
    """
    made: Array = np.exp(np.clip(log_error, 0, _STEEPEST)) / np.sqrt(1 + (log_error / robust) ** 2)
    return made


def _timed_shares(targets: LayerTargets) -> tuple[Array, Array]:
    """Measured time of each layer, scaled so that an engine's sum to its latency, and its share of it, 0 if unknown."""
    known = np.isfinite(targets.layer_s) & (targets.layer_s > 0)
    measured = np.where(known, targets.layer_s, 0.0)
    n_engines = len(targets.latency_s)
    total = np.bincount(targets.row, measured, n_engines)
    whole = targets.latency_s - targets.added_s
    scale = whole / np.maximum(total, 1e-12)
    complete = (scale > _COMPLETE[0]) & (scale < _COMPLETE[1])
    time = measured * scale[targets.row]
    share = np.where(known & complete[targets.row], np.minimum(time / whole[targets.row], _LARGEST_SHARE), 0.0)
    return time, share

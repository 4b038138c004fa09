"""Boosted trees over layers that learn from measured layer times and from whole engines at once.

The trees give each layer a factor on a physical time. Where a profiled pass timed the layers, their times are the
target; every engine, profiled or not, adds that the times of its layers sum to its latency: the gradient of the
engine's error reaches each layer through its share of the sum. Members that see other samples of rows and features
disagree most where a layer is least like those they learned from.
"""

from __future__ import annotations

import gzip
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
import pandas as pd
import xgboost as xgb
from scipy.sparse import csr_matrix

from perfpred.errors import FormatError
from perfpred.features import LAYER_COLUMNS, layer_features, without_groups

Array = np.ndarray

_SETTINGS: Final[dict[str, Any]] = {
    "eta": 0.1, "max_depth": 0, "max_leaves": 300, "grow_policy": "lossguide", "min_child_weight": 0.1,
    "subsample": 0.8, "colsample_bytree": 0.4, "lambda": 0.02, "tree_method": "hist", "max_bin": 64,
    "base_score": 0.0, "nthread": 1,
}  # fmt: skip
#: File of each member.
_FILE: Final = "layer-{}.ubj.gz"
#: Log residuals beyond this count linearly, those of single layers beyond its double.
_ROBUST: Final = 0.15
#: Weight of an engine's timed layers together, in engines.
_LAYERS_WEIGHT: Final = 5.0
#: Of one layer in it: a layer that is most of its engine must not be all that is learned from it.
_LARGEST_SHARE: Final = 0.5
#: Sums of layer times this far from the latency were not timed under like conditions.
_COMPLETE: Final = (0.6, 1.6)
#: The factor stays within exp(+-6).
_FARTHEST: Final = 6.0
#: Spread of a layer's log factor for each unit its members lie apart, seen on lineages held out.
_SPREAD: Final = 3.0


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
    """

    row: Array
    base_s: Array
    layer_s: Array
    latency_s: Array
    added_s: Array
    weight: Array


@dataclass
class LayerTrees:
    """Factor of each layer on its physical time.

    Attributes:
        drop: Feature groups left out.
        rounds: Trees of each member.
        members: Boosters whose mean answers.
        seed: Of the rows and columns each tree sees.
    """

    drop: tuple[str, ...] = ()
    rounds: int = 300
    members: int = 2
    seed: int = 0
    boosters_: list[xgb.Booster] = field(default_factory=list)

    def fit(self, layers: pd.DataFrame, targets: LayerTargets) -> LayerTrees:
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
        self.boosters_ = []
        for member in range(self.members):
            booster = xgb.Booster({**_SETTINGS, "seed": self.seed * self.members + member}, [data])
            for step in range(self.rounds):
                slope, curvature = problem.slopes(booster.predict(data, output_margin=True, training=True))
                booster.boost(data, step, grad=slope, hess=curvature)
            booster.feature_names = list(features.columns)
            self.boosters_.append(booster)
        return self

    def factor(self, layers: pd.DataFrame) -> tuple[Array, Array]:
        """Factor on the physical time of each layer, and how far the members' logarithms lie apart; shape (n_layers,).

        Of a time whose logarithm spreads by s around m, exp(m - s^2) has the least expected relative error.
        """
        index, first = distinct(layers)
        data = xgb.DMatrix(self._features(layers.iloc[first]), base_margin=np.zeros(len(first)))
        margins = np.array([booster.predict(data, output_margin=True) for booster in self.boosters_], float)
        apart = margins.std(axis=0)
        lowered = margins.mean(axis=0) - np.minimum((_SPREAD * apart) ** 2, 1.0)
        return np.exp(np.clip(lowered, -_FARTHEST, _FARTHEST))[index], apart[index]

    def _features(self, layers: pd.DataFrame) -> pd.DataFrame:
        return without_groups(layer_features(layers), self.drop).astype(np.float32)

    def save(self, folder: Path) -> list[str]:
        """Writes each member in XGBoost's own format, compressed; returns the SHA-256 of each file."""
        digests = []
        for member, booster in enumerate(self.boosters_):
            content = gzip.compress(bytes(booster.save_raw("ubj")), mtime=0)
            (folder / _FILE.format(member)).write_bytes(content)
            digests.append(hashlib.sha256(content).hexdigest())
        return digests

    @classmethod
    def load(cls, folder: Path, drop: tuple[str, ...], digests: Sequence[str]) -> LayerTrees:
        """Reads what `save` wrote.

        Raises:
            FormatError: A file is missing or another.
        """
        boosters = []
        for member, digest in enumerate(digests):
            path = folder / _FILE.format(member)
            if not path.exists():
                raise FormatError(f"{path}: is missing; copy the whole predictor folder, or train it again")
            content = path.read_bytes()
            # XGBoost reads some damaged files beyond their end and takes the process with it.
            if hashlib.sha256(content).hexdigest() != digest:
                raise FormatError(f"{path}: is damaged; copy the predictor again, or train it again")
            booster = xgb.Booster()
            booster.load_model(bytearray(gzip.decompress(content)))
            boosters.append(booster)
        return cls(drop=drop, members=len(boosters), boosters_=boosters)


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
        self._weight = targets.weight / targets.weight.mean()
        time, share = _timed_shares(targets)
        known = np.flatnonzero(share > 0)
        weight = np.bincount(index[known], share[known], n_layers)
        log_time = np.bincount(index[known], share[known] * np.log(time[known]), n_layers)
        self._layer_weight = _LAYERS_WEIGHT * weight
        self._log_factor = np.where(weight > 0, log_time / np.maximum(weight, 1e-300) - np.log(self._base), 0.0)

    def slopes(self, margin: Array) -> tuple[Array, Array]:
        time = self._base * np.exp(np.clip(margin, -_FARTHEST, _FARTHEST))
        total = self._counts @ time + self._added
        residual = np.log(total) - self._log_latency
        pull = self._weight / np.sqrt(1 + (residual / _ROBUST) ** 2) / total
        apart = margin - self._log_factor
        hold = self._layer_weight / np.sqrt(1 + (apart / (2 * _ROBUST)) ** 2)
        slope = (self._transposed @ (pull * residual)) * time + hold * apart
        # Layers move together: the share itself, not its square, keeps a step from going too far.
        curvature = (self._transposed @ pull) * time + hold
        return slope, np.maximum(curvature, 1e-4)


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

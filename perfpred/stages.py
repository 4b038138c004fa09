"""The two stages of a prediction: the time of each layer, then the latency of the engine they make.

The layer stage starts from physics, a non-negative sum of compute time, memory time and a launch, whose
coefficients per layer kind are learned from whole-engine latencies, so that it needs no layer times. Where layer
times were measured, boosted trees learn how the time departs from that. The engine stage learns how the latency
departs from the sum of its layers: launches overlap, formats change, and laboratories measure differently.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
import pandas as pd
import xgboost as xgb
from scipy.optimize import nnls

from perfpred.errors import FormatError
from perfpred.features import bound_s, engine_features, layer_features, without_groups
from perfpred.layer import KINDS

_FLOOR_S: Final = 1e-9


@dataclass
class Physics:
    """Layer time as `compute_s / e_c + memory_s / e_m + launch`, coefficients per kind, learned from totals.

    `coefficients_` has shape (n_kinds, 3): factors of compute and memory time, and seconds at a clock of 1 GHz.
    """

    shrink: float = 1.0
    coefficients_: np.ndarray = field(default_factory=lambda: np.tile([1.0, 1.0, 2e-6], (len(KINDS), 1)))

    @staticmethod
    def _terms(instances: pd.DataFrame) -> np.ndarray:
        bound = bound_s(instances)
        launch = 1e9 / instances["clock_hz"].to_numpy(float)
        return np.column_stack([bound["compute_s"], bound["memory_s"], launch])

    def fit(self, instances: pd.DataFrame, latency_s: np.ndarray) -> Physics:
        """Fits the coefficients on relative error; kinds with few layers stay near the common ones."""
        terms = self._terms(instances)
        kinds = instances["kind"].map({k: i for i, k in enumerate(KINDS)}).to_numpy()
        rows = instances["row"].to_numpy()
        design = np.zeros((len(latency_s), len(KINDS), 3))
        np.add.at(design, (rows, kinds), terms)
        scaled = design / latency_s[:, None, None]
        ones = np.ones(len(latency_s))
        common, _ = nnls(scaled.sum(axis=1), ones)
        common = np.maximum(common, [1e-2, 1e-2, 1e-8])
        # In units of the common coefficients, each kind's are drawn towards 1 as by `shrink**2` engines.
        unit = scaled.reshape(len(ones), -1) * np.tile(common, len(KINDS))
        width = unit.shape[1]
        solution, _ = nnls(
            np.vstack([unit, self.shrink * np.eye(width)]),
            np.concatenate([ones, np.full(width, self.shrink)]),
            maxiter=50 * width,
        )
        self.coefficients_ = np.maximum(solution, 0.02).reshape(len(KINDS), 3) * common
        return self

    def predict(self, instances: pd.DataFrame) -> np.ndarray:
        """Time of each layer, seconds; shape (n_layers,)."""
        kinds = instances["kind"].map({k: i for i, k in enumerate(KINDS)}).to_numpy()
        made: np.ndarray = np.maximum((self._terms(instances) * self.coefficients_[kinds]).sum(axis=1), _FLOOR_S)
        return made


def boosted_trees(seed: int = 0, **changes: Any) -> xgb.XGBRegressor:
    """The package's usual trees; small steps, since the sets are small and the targets are residuals."""
    settings = {
        "n_estimators": 400,
        "max_depth": 5,
        "learning_rate": 0.05,
        "min_child_weight": 4,
        "subsample": 0.7,
        "colsample_bytree": 0.5,
        "reg_lambda": 4.0,
        "objective": "reg:squarederror",
        "tree_method": "hist",
        "n_jobs": 1,  # the sets are small: threads would cost more than they give
        "random_state": seed,
    }
    return xgb.XGBRegressor(**{**settings, **changes})


@dataclass
class LayerStage:
    """Time of each layer: physics from totals, corrected by trees where layer times were measured."""

    drop: Sequence[str] = ()
    seed: int = 0
    physics_: Physics = field(default_factory=Physics)
    trees_: xgb.XGBRegressor | None = None

    def fit(self, instances: pd.DataFrame, latency_s: np.ndarray, layer_time_s: np.ndarray | None = None) -> LayerStage:
        """Fits on engines' latencies, shape (n_engines,), and, where known, layer times, shape (n_layers,)."""
        self.physics_ = Physics().fit(instances, latency_s)
        self.trees_ = None
        if layer_time_s is not None and np.isfinite(layer_time_s).any():
            known = np.flatnonzero(np.isfinite(layer_time_s) & (layer_time_s > 0))
            part = instances.iloc[known]
            target = np.log(layer_time_s[known] / self.physics_.predict(part))
            self.trees_ = boosted_trees(self.seed, n_estimators=600, max_depth=8, min_child_weight=2)
            self.trees_.fit(self._features(part), target)
        return self

    def _features(self, instances: pd.DataFrame) -> pd.DataFrame:
        return without_groups(layer_features(instances), self.drop)

    def predict(self, instances: pd.DataFrame) -> np.ndarray:
        """Time of each layer, seconds; shape (n_layers,)."""
        made = self.physics_.predict(instances)
        if self.trees_ is not None:
            made = made * np.exp(self.trees_.predict(self._features(instances)).astype(float))
        return made

    def save(self, folder: Path) -> dict[str, Any]:
        """Writes the trees beside the manifest and returns the rest for it."""
        if self.trees_ is not None:
            self.trees_.save_model(folder / "layer.ubj")
        return {"physics": self.physics_.coefficients_.tolist(), "kinds": list(KINDS), "trees": self.trees_ is not None}

    @classmethod
    def load(cls, folder: Path, facts: Mapping[str, Any], drop: Sequence[str]) -> LayerStage:
        """The stage a manifest describes."""
        if facts["kinds"] != list(KINDS):
            raise FormatError(f"{folder}: was trained with other layer kinds; train it again with this perfpred")
        physics = Physics(coefficients_=np.asarray(facts["physics"], float))
        return cls(drop=drop, physics_=physics, trees_=_load_trees(folder / "layer.ubj") if facts["trees"] else None)


@dataclass
class EngineStage:
    """Latency of an engine from its layers' times: log ratio by boosted trees."""

    drop: Sequence[str] = ()
    seed: int = 0
    trees_: xgb.XGBRegressor | None = None

    def _features(self, instances: pd.DataFrame, layer_s: np.ndarray) -> pd.DataFrame:
        return without_groups(engine_features(instances, layer_s), self.drop)

    def fit(self, instances: pd.DataFrame, layer_s: np.ndarray, latency_s: np.ndarray) -> EngineStage:
        """Fits on engines; `latency_s` has shape (n_engines,), in the order of the instances' `row`."""
        features = self._features(instances, layer_s)
        self.trees_ = boosted_trees(self.seed)
        self.trees_.fit(features, np.log(latency_s) - features["totals:time"])
        return self

    def predict(self, instances: pd.DataFrame, layer_s: np.ndarray) -> np.ndarray:
        """Latency of each engine, seconds; shape (n_engines,)."""
        features = self._features(instances, layer_s)
        total = features["totals:time"].to_numpy()
        departure = self.trees_.predict(features).astype(float) if self.trees_ is not None else 0.0
        made: np.ndarray = np.exp(total + departure)
        return made

    def save(self, folder: Path) -> dict[str, Any]:
        """Writes the trees beside the manifest and returns the rest for it."""
        if self.trees_ is not None:
            self.trees_.save_model(folder / "engine.ubj")
        return {"trees": self.trees_ is not None}

    @classmethod
    def load(cls, folder: Path, facts: Mapping[str, Any], drop: Sequence[str]) -> EngineStage:
        """The stage a manifest describes."""
        return cls(drop=drop, trees_=_load_trees(folder / "engine.ubj") if facts["trees"] else None)


def _load_trees(path: Path) -> xgb.XGBRegressor:
    if not path.exists():
        raise FormatError(f"{path}: is missing; copy the whole predictor folder, or train it again")
    trees = xgb.XGBRegressor()
    try:
        trees.load_model(path)
    except xgb.core.XGBoostError as error:
        raise FormatError(f"{path}: is damaged; copy the predictor again, or train it again") from error
    return trees

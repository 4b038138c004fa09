"""The stages of a prediction: the time of each layer, then the latency of the engine they make.

Physics comes first: layer times and method terms learned from whole-engine latencies (`perfpred.engine_stage`), so
that no layer times are needed. Boosted trees then learn how layers depart from it, where layer times were measured,
and how engines depart from the sum of their layers. Tables of single timed convolutions have a stage of their own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import pandas as pd
import xgboost as xgb

from perfpred.convolution_stage import ConvolutionStage
from perfpred.engine_stage import EngineStage
from perfpred.errors import FormatError, PredictorError
from perfpred.features import engine_features, layer_features, without_groups

#: Latency kind of rows that time one layer alone.
LAYER_KIND: Final = "layer"
#: Fewest engines that boosted trees are fitted on: on less, they follow single families.
_FEWEST_ENGINES: Final = 400
_FEWEST_LAYERS: Final = 2000


def boosted_trees(seed: int = 0, **changes: Any) -> xgb.XGBRegressor:
    """The package's usual trees; small steps, since the sets are small and the targets are residuals."""
    settings = {
        "n_estimators": 500,
        "max_depth": 4,
        "learning_rate": 0.04,
        "min_child_weight": 5,
        "subsample": 0.7,
        "colsample_bytree": 0.5,
        "reg_lambda": 4.0,
        "objective": "reg:pseudohubererror",
        "huber_slope": 0.2,
        "tree_method": "hist",
        "n_jobs": 1,  # the sets are small: threads would cost more than they give
        "random_state": seed,
    }
    return xgb.XGBRegressor(**{**settings, **changes})


@dataclass
class Stages:
    """Everything between layer instances and latencies.

    Attributes:
        drop: Feature groups the trees do without.
        trees: Whether trees follow the physics.
        seed: Of every random choice.
    """

    drop: Sequence[str] = ()
    trees: bool = False
    seed: int = 0
    physics_: EngineStage | None = None
    layer_trees_: xgb.XGBRegressor | None = None
    engine_trees_: xgb.XGBRegressor | None = None
    convolutions_: ConvolutionStage | None = None

    def fit(self, engines: pd.DataFrame, instances: pd.DataFrame, layer_time_s: np.ndarray) -> Stages:
        """Fits on measured engines.

        Args:
            engines: Rows of a dataset's `engines` table.
            instances: Their layers, as of `perfpred.instances.layer_instances`.
            layer_time_s: Measured time of each instance, seconds, NaN where unknown; shape (n_layers,).
        """
        whole, single = _apart(engines)
        self.physics_ = self.layer_trees_ = self.engine_trees_ = self.convolutions_ = None
        if len(single):
            _, layers = select(instances, single)
            self.convolutions_ = ConvolutionStage().fit(layers, _latency(engines.iloc[single]))
        if len(whole):
            inside, layers = select(instances, whole)
            self._fit_engines(engines.iloc[whole].reset_index(drop=True), layers, layer_time_s[inside])
        return self

    def _fit_engines(self, engines: pd.DataFrame, layers: pd.DataFrame, layer_time_s: np.ndarray) -> None:
        self.physics_ = EngineStage(seed=self.seed).fit(layers, engines)
        if not self.trees:
            return
        known = np.flatnonzero(np.isfinite(layer_time_s) & (layer_time_s > 0))
        if len(known) >= _FEWEST_LAYERS:
            part = layers.iloc[known].assign(row=layers["row"].iloc[known].rank(method="dense").astype(int) - 1)
            target = np.log(layer_time_s[known] / self.physics_.layer_times(part))
            self.layer_trees_ = boosted_trees(self.seed, max_depth=7, n_estimators=400)
            self.layer_trees_.fit(self._layer_features(part), target)
        if len(engines) >= _FEWEST_ENGINES:
            target = np.log(_latency(engines)) - self.physics_.predict(layers, engines)
            self.engine_trees_ = boosted_trees(self.seed)
            self.engine_trees_.fit(self._engine_features(layers), target)

    def _layer_features(self, layers: pd.DataFrame) -> pd.DataFrame:
        return without_groups(layer_features(layers), self.drop)

    def _engine_features(self, layers: pd.DataFrame) -> pd.DataFrame:
        return without_groups(self.features(layers), self.drop)

    def features(self, instances: pd.DataFrame) -> pd.DataFrame:
        """Features of engines, shape (n_engines, n_features); their ranges tell what extrapolates."""
        return engine_features(instances, self.layer_times(instances))

    def similarity(self, engines: pd.DataFrame, instances: pd.DataFrame) -> np.ndarray:
        """Standardised features in which near engines err alike; shape (n_engines, n_features)."""
        if self.physics_ is None:
            raise PredictorError("single layers are not calibrated; give a predictor trained on engines")
        return self.physics_.similarity(instances, engines)

    def layer_times(self, instances: pd.DataFrame) -> np.ndarray:
        """Time of each layer, seconds; shape (n_layers,)."""
        if self.physics_ is None:
            return self._convolutions(instances)
        made = self.physics_.layer_times(instances)
        if self.layer_trees_ is not None:
            made = made * np.exp(self.layer_trees_.predict(self._layer_features(instances)).astype(float))
        return made

    def _convolutions(self, instances: pd.DataFrame) -> np.ndarray:
        if self.convolutions_ is None:
            raise PredictorError(
                "the predictor was trained on no layer tables; train one with `import conv-table` data"
            )
        return self.convolutions_.predict(instances)

    def latencies(self, engines: pd.DataFrame, instances: pd.DataFrame) -> np.ndarray:
        """Latency of each engine, seconds; shape (n_engines,).

        Raises:
            PredictorError: Whole engines are asked of a predictor of single layers, or the reverse.
        """
        made = np.full(len(engines), np.nan)
        whole, single = _apart(engines)
        if len(single):
            _, layers = select(instances, single)
            made[single] = np.bincount(layers["row"], self._convolutions(layers), len(single))
        if len(whole):
            if self.physics_ is None:
                raise PredictorError("the predictor was trained on single layers, not on engines; train one on engines")
            _, layers = select(instances, whole)
            asked = engines.iloc[whole].reset_index(drop=True)
            log_s = self.physics_.predict(layers, asked)
            if self.engine_trees_ is not None:
                log_s = log_s + self.engine_trees_.predict(self._engine_features(layers)).astype(float)
            made[whole] = np.exp(log_s)
        return made

    def save(self, folder: Path) -> dict[str, Any]:
        """Writes trees beside the manifest and returns the rest for it."""
        for name, trees in (("layer", self.layer_trees_), ("engine", self.engine_trees_)):
            if trees is not None:
                trees.save_model(folder / f"{name}.ubj")
        return {
            "trees": self.trees,
            "physics": self.physics_.to_dict() if self.physics_ else None,
            "layer_trees": self.layer_trees_ is not None,
            "engine_trees": self.engine_trees_ is not None,
            "convolutions": self.convolutions_.save(folder) if self.convolutions_ else None,
        }

    @classmethod
    def load(cls, folder: Path, facts: Mapping[str, Any], drop: Sequence[str]) -> Stages:
        """The stages a manifest describes."""
        return cls(
            drop=drop,
            trees=facts["trees"],
            physics_=EngineStage.from_dict(facts["physics"]) if facts["physics"] else None,
            layer_trees_=_load_trees(folder / "layer.ubj") if facts["layer_trees"] else None,
            engine_trees_=_load_trees(folder / "engine.ubj") if facts["engine_trees"] else None,
            convolutions_=ConvolutionStage.load(folder, facts["convolutions"]) if facts["convolutions"] else None,
        )


def select(instances: pd.DataFrame, rows: np.ndarray) -> tuple[np.ndarray, pd.DataFrame]:
    """Instances of some engines, renumbered by their position in `rows`; also where they stood."""
    position = pd.Series(np.arange(len(rows)), index=rows)
    new = instances["row"].map(position)
    inside = np.flatnonzero(new.notna().to_numpy())
    part = instances.iloc[inside].assign(row=new.iloc[inside].astype(int).to_numpy())
    order = np.argsort(part["row"].to_numpy(), kind="stable")
    return inside[order], part.iloc[order].reset_index(drop=True)


def _apart(engines: pd.DataFrame) -> tuple[np.ndarray, np.ndarray]:
    """Positions of whole engines and of single layers."""
    single = engines["latency_kind"].eq(LAYER_KIND).to_numpy()
    return np.flatnonzero(~single), np.flatnonzero(single)


def _latency(engines: pd.DataFrame) -> np.ndarray:
    return engines["latency_s"].to_numpy(float)


def _load_trees(path: Path) -> xgb.XGBRegressor:
    if not path.exists():
        raise FormatError(f"{path}: is missing; copy the whole predictor folder, or train it again")
    trees = xgb.XGBRegressor()
    try:
        trees.load_model(path)
    except xgb.core.XGBoostError as error:
        raise FormatError(f"{path}: is damaged; copy the predictor again, or train it again") from error
    return trees

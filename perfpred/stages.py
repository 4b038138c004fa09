"""The stages of a prediction: the time of each layer, then the latency of the engine they make.

Physics comes first: layer times and method terms learned from whole-engine latencies (`perfpred.engine_stage`), so
that no layer times are needed. Where layers were timed too, trees and a perceptron (`perfpred.layer_stage`) learn how
layers depart from it. Tables of single timed convolutions have a stage of their own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import pandas as pd

from perfpred.convolution_stage import ConvolutionStage
from perfpred.engine_stage import EngineStage
from perfpred.errors import PredictorError
from perfpred.features import engine_features
from perfpred.layer_stage import LayerStage, LayerTargets
from perfpred.scores import probes, unjudged

#: Latency kind of rows that time one layer alone.
LAYER_KIND: Final = "layer"
#: Fewest timed layers that the layer stage is fitted on: on less, it follows single networks.
_FEWEST_LAYERS: Final = 2000
#: Error of the layer stage for each unit its members lie apart, over the error of physics alone, the least they lie
#: apart, and the share of it that layers don't cancel out: all seen on lineages held out.
_ERROR_OF_LAYERS, _LEAST_APART, _LASTING = 13.5, 0.02, 0.5
#: Engines that settle the coefficients of the physics where the layer stage follows it, at most. They are of networks:
#: probes, whose layers are of all sizes, would pull the physics away from what networks hold.
_PHYSICS_ENGINES: Final = 4000


@dataclass(frozen=True)
class Forecast:
    """What the stages answer.

    Attributes:
        layer_s: Time of each layer, seconds, shape (n_layers,).
        latency_s: Latency of each engine, seconds, shape (n_engines,).
        spread: Expected error of each latency, over what physics alone is off by; shape (n_engines,).
    """

    layer_s: np.ndarray
    latency_s: np.ndarray
    spread: np.ndarray


@dataclass
class Stages:
    """Everything between layer instances and latencies.

    Attributes:
        drop: Feature groups the layer stage does without.
        trees: Whether the layer stage follows the physics where layers were timed.
        seed: Of every random choice.
    """

    drop: Sequence[str] = ()
    trees: bool = True
    seed: int = 0
    physics_: EngineStage | None = None
    layer_stage_: LayerStage | None = None
    convolutions_: ConvolutionStage | None = None

    def fit(self, engines: pd.DataFrame, instances: pd.DataFrame, layer_time_s: np.ndarray) -> Stages:
        """Fits on measured engines.

        Args:
            engines: Rows of a dataset's `engines` table.
            instances: Their layers, as of `perfpred.instances.layer_instances`.
            layer_time_s: Measured time of each instance, seconds, NaN where unknown; shape (n_layers,).
        """
        whole, single = _apart(engines)
        self.physics_ = self.layer_stage_ = self.convolutions_ = None
        if len(single):
            _, layers = select(instances, single)
            self.convolutions_ = ConvolutionStage().fit(layers, _latency(engines.iloc[single]))
        if len(whole):
            inside, layers = select(instances, whole)
            self._fit_engines(engines.iloc[whole].reset_index(drop=True), layers, layer_time_s[inside])
        return self

    def _fit_engines(self, engines: pd.DataFrame, layers: pd.DataFrame, layer_time_s: np.ndarray) -> None:
        timed = int((np.isfinite(layer_time_s) & (layer_time_s > 0)).sum())
        if not self.trees or timed < _FEWEST_LAYERS:
            self.physics_ = EngineStage(seed=self.seed).fit(layers, engines)
            return
        probe = probes(engines)
        chosen = np.flatnonzero(~probe | probe.all())  # a fold may leave out every network
        if len(chosen) > _PHYSICS_ENGINES:
            random = np.random.default_rng(self.seed)
            chosen = np.sort(random.choice(chosen, _PHYSICS_ENGINES, replace=False))
        _, part = select(layers, chosen)
        physics = EngineStage(smooth=False, seed=self.seed).fit(part, engines.iloc[chosen].reset_index(drop=True))
        added_s, scale = physics.method(layers, engines)
        targets = LayerTargets(
            row=layers["row"].to_numpy(int),
            base_s=physics.layer_times(layers),
            layer_s=layer_time_s,
            latency_s=_latency(engines) / scale,
            added_s=added_s,
            weight=engines.groupby("network")["network"].transform("size").to_numpy(float) ** -0.5,
            unjudged=unjudged(engines),
        )
        self.physics_ = physics
        self.layer_stage_ = LayerStage(drop=tuple(self.drop), seed=self.seed).fit(layers, targets)

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
        return self._layers(instances)[0]

    def _layers(self, instances: pd.DataFrame) -> tuple[np.ndarray, np.ndarray | None]:
        """Time of each layer, seconds, and how far the layer stage's members lie apart; `None` without it."""
        if self.physics_ is None:
            return self._convolutions(instances), None
        made = self.physics_.layer_times(instances)
        if self.layer_stage_ is None:
            return made, None
        factor, apart = self.layer_stage_.factor(instances)
        return made * factor, apart

    def _convolutions(self, instances: pd.DataFrame) -> np.ndarray:
        if self.convolutions_ is None:
            raise PredictorError(
                "the predictor was trained on no layer tables; train one with `import conv-table` data"
            )
        return self.convolutions_.predict(instances)

    def forecast(self, engines: pd.DataFrame, instances: pd.DataFrame) -> Forecast:
        """Answers of whole engines, of single layers, or of both.

        Raises:
            PredictorError: Whole engines are asked of a predictor of single layers, or the reverse.
        """
        made = Forecast(np.full(len(instances), np.nan), np.full(len(engines), np.nan), np.ones(len(engines)))
        whole, single = _apart(engines)
        if len(single):
            inside, layers = select(instances, single)
            made.layer_s[inside] = self._convolutions(layers)
            made.latency_s[single] = np.bincount(layers["row"], made.layer_s[inside], len(single))
        if len(whole):
            inside, layers = select(instances, whole)
            told = self._whole(engines.iloc[whole].reset_index(drop=True), layers)
            made.layer_s[inside], made.latency_s[whole], made.spread[whole] = told
        return made

    def _whole(self, engines: pd.DataFrame, layers: pd.DataFrame) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        if self.physics_ is None:
            raise PredictorError("the predictor was trained on single layers, not on engines; train one on engines")
        time, apart = self._layers(layers)
        if apart is None:
            return time, np.exp(self.physics_.predict(layers, engines)), self.physics_.spread(layers, engines)
        row, n = layers["row"].to_numpy(int), len(engines)
        total = np.bincount(row, time, n)
        added_s, scale = self.physics_.method(layers, engines)
        # Where the members lie apart to both sides, an engine's layers make up for each other, in part.
        sum_apart, each_apart = (np.bincount(row, time * by, n) / total for by in (apart, np.abs(apart)))
        # Over what physics alone is off by: folds of one predictor may differ in stages.
        spread = _ERROR_OF_LAYERS * np.sqrt(_LEAST_APART**2 + sum_apart**2 + (_LASTING * each_apart) ** 2)
        return time, (total + added_s) * scale, spread

    def save(self, folder: Path) -> dict[str, Any]:
        """Writes the layer stage beside the manifest and returns the rest for it."""
        return {
            "trees": self.trees,
            "physics": self.physics_.to_dict() if self.physics_ else None,
            "layer_stage": self.layer_stage_.save(folder) if self.layer_stage_ else None,
            "convolutions": self.convolutions_.save(folder) if self.convolutions_ else None,
        }

    @classmethod
    def load(cls, folder: Path, facts: Mapping[str, Any], drop: Sequence[str]) -> Stages:
        """The stages a manifest describes."""
        return cls(
            drop=drop,
            trees=facts["trees"],
            physics_=EngineStage.from_dict(facts["physics"]) if facts["physics"] else None,
            layer_stage_=LayerStage.load(folder, tuple(drop), facts["layer_stage"]) if facts["layer_stage"] else None,
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

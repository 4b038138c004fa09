"""Honest intervals: held-out residuals, over how far each prediction was expected to be off."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike
from sklearn.model_selection import GroupKFold

from perfpred.scores import unjudged
from perfpred.stages import LAYER_KIND, Stages, select

#: Intervals of networks outside the training range are this much wider, on the log scale.
_STRETCH: Final = 2.0
_PROBABILITY: Final = np.linspace(0, 1, 201)
#: A group of n rows counts as the square root of n: its rows err alike, and few groups hold most of the rows.
_WITHIN: Final = -0.5
#: Grid of devices that were left out whole; rows that time one layer alone have one of their kind's name.
_UNSEEN_DEVICE: Final = "unseen device"
#: Fewest devices of which each is left out whole, to see how wide the intervals of unseen ones have to be.
_FEWEST_DEVICES: Final = 5


@dataclass
class Residuals:
    """Held-out residuals `log(measured / predicted) / spread`: intervals and probabilities are read off them.

    Split-conformal on the engine level: a new network of a lineage never seen is exchangeable with the held-out
    ones. Kept as grids of quantiles: of all devices together, of devices left out whole where that was tried, of
    single layers, and of devices calibrated by measurements.
    """

    grids_: dict[str, list[float]] = field(default_factory=dict)
    rows_: dict[str, float] = field(default_factory=dict)

    def fit(
        self,
        engines: pd.DataFrame,
        residual: ArrayLike,
        *,
        spread: ArrayLike = 1.0,
        groups: ArrayLike | None = None,
        unseen_device: bool = False,
    ) -> Residuals:
        """Keeps the quantiles of residuals.

        Args:
            engines: What was held out, shape (n_engines, n_columns).
            residual: Log of measured over predicted, shape (n_engines,); NaN where unknown.
            spread: Expected size of each residual, up to a common factor.
            groups: What was left out together; by default lineages.
            unseen_device: Whether devices were left out whole; kept apart from the rest.
        """
        scaled = np.asarray(residual, float) / np.asarray(spread, float)
        named = engines["lineage"].fillna(engines["family"]).fillna(engines["network"]) if groups is None else groups
        group = np.asarray(named).astype(str)
        layer = engines["latency_kind"].eq(LAYER_KIND).to_numpy()
        for key, chosen in ((_UNSEEN_DEVICE if unseen_device else "", ~layer), (LAYER_KIND, layer)):
            told = chosen & np.isfinite(scaled)
            if told.any():
                self._keep(key, scaled[told], pd.Series(group[told]))
        return self

    def _keep(self, key: str, scaled: np.ndarray, group: pd.Series[str]) -> None:
        weight = group.map(group.value_counts()).to_numpy(float) ** _WITHIN
        order = np.argsort(scaled)
        share = np.cumsum(weight[order]) - weight[order] / 2
        self.grids_[key] = np.interp(_PROBABILITY, share / weight.sum(), scaled[order]).tolist()
        self.rows_[key] = float(weight.sum() ** 2 / (weight**2).sum())

    def grid(self, device: str, latency_kind: str, *, known: bool = True) -> tuple[np.ndarray, float]:
        """Quantiles that hold for a device, and the rows behind them.

        The device's own after calibration; else those of unseen devices, where it is one and they were tried.
        """
        shared = LAYER_KIND if latency_kind == LAYER_KIND else ""
        for key in (f"{device}|{latency_kind}", shared if known else _UNSEEN_DEVICE, shared):
            if key in self.grids_:
                return np.asarray(self.grids_[key]), self.rows_[key]
        return np.linspace(-1.0, 1.0, len(_PROBABILITY)), 0.0

    def of(
        self,
        engine: pd.DataFrame,
        latency_s: float,
        level: float,
        budget_s: float | None,
        *,
        stretched: bool,
        spread: float = 1.0,
        known: bool = True,
    ) -> tuple[tuple[float, float], float | None]:
        """Interval at a level, and the probability of meeting a budget.

        The interval always holds the predicted latency. The finite-sample correction is that of split-conformal
        prediction, (n + 1) / n.

        Args:
            engine: One row with device and latency_kind.
            latency_s: Predicted, seconds.
            level: Share of latencies that the interval is to hold.
            budget_s: Time to meet, seconds.
            stretched: Whether the network lies outside the range of training.
            spread: Expected size of the residual, as in `fit`.
            known: Whether the device was trained on.
        """
        first = engine.iloc[0]
        grid, rows = self.grid(str(first["device"]), str(first["latency_kind"]), known=known)
        grid = grid * spread * (_STRETCH if stretched else 1.0)
        covered = min(level * (rows + 1) / rows, 1.0) if rows else 1.0
        low, high = np.interp([(1 - covered) / 2, (1 + covered) / 2], _PROBABILITY, grid)
        interval = (latency_s * float(np.exp(min(low, 0.0))), latency_s * float(np.exp(max(high, 0.0))))
        if budget_s is None:
            return interval, None
        return interval, float(np.interp(np.log(budget_s / latency_s), grid, _PROBABILITY))

    def to_dict(self) -> dict[str, Any]:
        """JSON form."""
        return {"grids": self.grids_, "rows": self.rows_}

    @classmethod
    def from_dict(cls, facts: Mapping[str, Any]) -> Residuals:
        """From the JSON form."""
        return cls(dict(facts["grids"]), dict(facts["rows"]))


def crossed_intervals(frame: pd.DataFrame, groups: np.ndarray, level: float) -> np.ndarray:
    """Interval of each held-out row from the residuals of all other folds, seconds; shape (2, n_rows).

    Args:
        frame: Columns engine_id, device, latency_kind, fold_number, measured_s, predicted_s and spread.
        groups: What was left out together, shape (n_rows,).
        level: Of the intervals.
    """
    ends = np.full((2, len(frame)), np.nan)
    fold, spread = frame["fold_number"].to_numpy(), frame["spread"].to_numpy()
    residual = np.log(frame["measured_s"].to_numpy() / frame["predicted_s"].to_numpy())
    for number in np.unique(fold):
        here = fold == number
        other = ~(here | frame["engine_id"].isin(frame.loc[here, "engine_id"]).to_numpy())
        if other.any():
            known = Residuals().fit(frame[other], residual[other], spread=spread[other], groups=groups[other])
            ends[:, here] = unit_intervals(known, frame[here], level)
    made: np.ndarray = ends * frame["predicted_s"].to_numpy()
    return made


def unit_intervals(residuals: Residuals, frame: pd.DataFrame, level: float) -> np.ndarray:
    """Interval of each row for a prediction of one second, shape (2, n_rows); of columns device, latency_kind, spread."""
    ends = np.empty((2, len(frame)))
    for rows in frame.groupby(["device", "latency_kind"], dropna=False).indices.values():
        low, high = residuals.of(frame.iloc[rows[:1]], 1.0, level, None, stretched=False)[0]
        ends[0, rows], ends[1, rows] = low, high  # of one device and kind but for the spread, a factor of logarithms
    made: np.ndarray = ends ** frame["spread"].to_numpy()
    return made


def held_out_residuals(
    new_stages: Callable[[], Stages],
    engines: pd.DataFrame,
    instances: pd.DataFrame,
    times: np.ndarray,
    *,
    groups: pd.Series[str],
    folds: int,
) -> Residuals:
    """Residuals of groups held out in turn, and where there are devices enough to learn from, of devices held out.

    Args:
        new_stages: Gives stages that have learned nothing.
        engines: Measured, shape (n_engines, n_columns).
        instances: Their layers, as of `perfpred.instances.layer_instances`.
        times: Measured time of each instance, seconds, NaN where unknown.
        groups: What is held out together, such as lineages; at least two.
        folds: Groups of groups.
    """
    everything, judged = np.arange(len(engines)), ~unjudged(engines)
    own = groups[judged]
    dealt = GroupKFold(min(folds, own.nunique())).split(own, groups=own)
    held_out = [groups.isin(own.iloc[test]).to_numpy() for _, test in dealt]
    splits = [(everything[~out], everything[out & judged]) for out in held_out]
    if engines["latency_kind"].eq(LAYER_KIND).all():
        splits = splits[:1]  # tables of single layers are large: there one fold stands for all
    residual, spread = _held_out(new_stages, engines, instances, times, splits)
    made = Residuals().fit(engines, residual, spread=spread)
    device = engines["device"].to_numpy(str)
    if len(np.unique(device)) >= _FEWEST_DEVICES:
        apart = [
            (np.flatnonzero(device != one), np.flatnonzero((device == one) & judged))
            for one in np.unique(device[judged])
        ]
        residual, spread = _held_out(new_stages, engines, instances, times, apart)
        made.fit(engines, residual, spread=spread, groups=device, unseen_device=True)
    return made


def _held_out(
    new_stages: Callable[[], Stages],
    engines: pd.DataFrame,
    instances: pd.DataFrame,
    times: np.ndarray,
    splits: Iterable[tuple[np.ndarray, np.ndarray]],
) -> tuple[np.ndarray, np.ndarray]:
    """Log residual of each engine by stages trained without it, NaN where none was, and its spread."""
    residual, spread = np.full(len(engines), np.nan), np.ones(len(engines))
    for train, test in splits:
        inside, learned = select(instances, train)
        stages = new_stages().fit(engines.iloc[train].reset_index(drop=True), learned, times[inside])
        rows, (_, asked) = engines.iloc[test].reset_index(drop=True), select(instances, test)
        told = stages.forecast(rows, asked)
        residual[test], spread[test] = np.log(rows["latency_s"].to_numpy(float) / told.latency_s), told.spread
    return residual, spread

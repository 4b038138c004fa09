"""Transfer to one's own device: a few measurements correct a predictor for a device it hardly knows.

The correction is a log factor from a Gaussian process over similar engines (`perfpred.shots`): one measurement moves
the scale, more of them also tell apart what the device is good and bad at. Which networks are most worth measuring is
chosen under a simpler prior, a scale and a slope per feature: those that leave the least variance over all networks.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import pandas as pd

from perfpred.calibration import Residuals
from perfpred.contrast import Contrast
from perfpred.corpus import PROBE
from perfpred.dataset import Dataset
from perfpred.errors import DatasetError, UsageError
from perfpred.instances import device_of, layer_instances
from perfpred.parallel import each
from perfpred.scores import concordant
from perfpred.shots import Shots
from perfpred.splits import Split, networks, scorable, splits, subset

if TYPE_CHECKING:
    from perfpred.corpus import CorpusNetwork
    from perfpred.predictor import LatencyPredictor

#: Prior standard deviations by which networks are chosen: of a device's factor, of its change over one standard
#: deviation of a feature, and of a measurement, on the log scale.
_SCALE_SD: Final = 0.5
_SLOPE_SD: Final = 0.05
_NOISE_SD: Final = 0.12
#: The predictor's own residuals count as much as this many measurements in the width of new intervals.
_PRIOR_ROWS: Final = 10


@dataclass
class Transfers:
    """What measurements of single devices taught, by device."""

    shots_: dict[str, Shots] = field(default_factory=dict)

    def of(self, engines: pd.DataFrame, similarity: np.ndarray) -> np.ndarray:
        """Log factor of each engine; shape (n_engines,), zero on devices never calibrated."""
        made = np.zeros(len(engines))
        device = engines["device"].to_numpy()
        for slug, shots in self.shots_.items():
            here = device == slug
            made[here] = shots.predict(similarity[here])
        return made

    def to_dict(self) -> dict[str, Any]:
        """JSON form."""
        return {"shots": {device: shots.to_dict() for device, shots in self.shots_.items()}}

    @classmethod
    def from_dict(cls, facts: Mapping[str, Any]) -> Transfers:
        """From the JSON form."""
        return cls({device: Shots.from_dict(shots) for device, shots in facts["shots"].items()})


def _prior(n_features: int) -> np.ndarray:
    return np.array([_SCALE_SD**2, *[_SLOPE_SD**2] * n_features])


def calibrated(predictor: LatencyPredictor, measurements: Dataset, device: str) -> LatencyPredictor:
    """A predictor corrected by measurements of one device; the one given stays as it is.

    Args:
        predictor: Trained; for a device calibrated before, the new measurements replace the old ones.
        measurements: At least one good engine on the device, of the predictor's runtime.
        device: Slug.

    Raises:
        DatasetError: No measured engine on the device, or of another runtime.
    """
    rows = scorable(measurements)
    here = rows.engines["device"].eq(device).to_numpy()
    if not here.any():
        found = ", ".join(sorted(rows.engines["device"].unique())) or "no measured engine"
        raise DatasetError(f"the measurements hold nothing of device '{device}' but {found}; name it with --device")
    rows = subset(rows, np.flatnonzero(here))
    runtimes = set(rows.engines["runtime"])
    if runtimes != {predictor.facts_["runtime"]}:
        raise DatasetError(
            f"the predictor is of runtime {predictor.facts_['runtime']}, the measurements of "
            f"{', '.join(sorted(runtimes))}; collect with --runtime {predictor.facts_['runtime']}"
        )
    others = {slug: shots for slug, shots in predictor.transfers_.shots_.items() if slug != device}
    bare = replace(predictor, transfers_=Transfers(others))
    residual = np.log(rows.engines["latency_s"].to_numpy(float) / bare.predict_engines(rows.engines, rows.layers))
    learned = Shots().fit(_similarity(bare, rows), residual)
    counts = (rows.engines["precision"] + "/" + rows.engines["latency_kind"]).value_counts()
    own = rows.engines[rows.engines["device_json"].notna()]
    hosts = {device: device_of(dict(own.iloc[0])).to_dict()} if len(own) else {}
    facts = bare.facts_ | {
        "cells": bare.facts_.get("cells", {}) | {device: {str(cell): int(n) for cell, n in counts.items()}},
        "hosts": bare.facts_.get("hosts", {}) | hosts,
        "calibrated": bare.facts_.get("calibrated", {}) | {device: len(rows.engines)},
    }
    nodes = layer_instances(rows.engines, rows.layers_at("node"))
    return replace(
        bare,
        transfers_=Transfers(others | {device: learned}),
        residuals_=_widened(bare.residuals_, rows.engines, learned.left_out() / _spread(bare, rows)),
        contrast_=_recalibrated(bare.contrast_, Contrast().fit(rows.engines, nodes)),
        facts_=facts,
    )


def _similarity(predictor: Any, rows: Dataset) -> np.ndarray:
    instances = layer_instances(rows.engines, rows.layers_at(predictor.level))
    made: np.ndarray = predictor.stages_.similarity(rows.engines, instances)
    return made


def _spread(predictor: Any, rows: Dataset) -> np.ndarray:
    made: np.ndarray = predictor.forecast_engines(rows.engines, rows.layers)[1]
    return made


def _recalibrated(old: Contrast, new: Contrast) -> Contrast:
    """Baselines of the measured groups as the measurements have them, the others as before."""
    made = {
        name: fitted | {group: one for group, one in new.fitted_.get(name, {}).items() if group}
        for name, fitted in old.fitted_.items()
    }
    return Contrast(made)


def _widened(residuals: Residuals, engines: pd.DataFrame, left_out: np.ndarray) -> Residuals:
    """Residuals of the calibrated device: the shape known before, as wide as the measurements left out say."""
    made = Residuals(dict(residuals.grids_), dict(residuals.rows_))
    grid = np.asarray(residuals.grids_.get("", []))
    spread = float(np.sqrt(np.mean(grid**2))) if len(grid) else 0.0
    for kind, rows in engines.reset_index(drop=True).groupby("latency_kind").indices.items() if spread else ():
        seen = np.sum(left_out[rows] ** 2)
        wide = np.sqrt((_PRIOR_ROWS * spread**2 + seen) / (_PRIOR_ROWS + len(rows)))
        key = f"{engines['device'].iloc[0]}|{kind}"
        made.grids_[key] = (grid * wide / spread).tolist()
        made.rows_[key] = _PRIOR_ROWS + len(rows)
    return made


def choose_calibration(networks: Iterable[CorpusNetwork], count: int) -> list[str]:
    """Names of the corpus networks most worth measuring on a new device, the most telling first.

    Raises:
        UsageError: `count` is not between 1 and the number of networks.
    """
    known = [n for n in networks if n.gflops and n.lineage != PROBE]
    work, params, nodes = (
        np.log([max(float(v or 0), 1e-3) for v in values])
        for values in zip(*((n.gflops, n.params, n.nodes) for n in known), strict=True)
    )
    table = pd.DataFrame(
        {"work": work, "params": params, "nodes": nodes, "intensity": work - params, "depth": work - nodes}
    )
    return [known[row].name for row in most_telling(table, count)]


def most_telling(features: pd.DataFrame, count: int) -> list[int]:
    """Positions of the rows whose measurement tells most of a linear correction, the most telling first.

    Greedy: each next one leaves the least variance of the correction, summed over all rows, under a prior that
    trusts the scale least and every standardised feature equally.

    Args:
        features: One row a network, shape (n_networks, n_features).
        count: How many to choose.

    Raises:
        UsageError: `count` is not between 1 and the number of rows.
    """
    if not 1 <= count <= len(features):
        raise UsageError(f"can't choose {count} of {len(features)} networks; give a number from 1 to {len(features)}")
    values = features.to_numpy(float)
    spread = values.std(axis=0)
    scaled = (values - values.mean(axis=0)) / np.where(spread > 0, spread, 1.0)
    design = np.column_stack([np.ones(len(scaled)), scaled])
    covariance = np.diag(_prior(scaled.shape[1]))
    chosen: list[int] = []
    for _ in range(count):
        projected = design @ covariance
        own = np.einsum("ij,ij->i", projected, design) + _NOISE_SD**2
        gain = ((design @ projected.T) ** 2).sum(axis=0) / own
        gain[chosen] = -np.inf
        best = int(gain.argmax())
        chosen.append(best)
        covariance -= np.outer(projected[best], projected[best]) / own[best]
    return chosen


def kshot(
    predictor: Any,
    dataset: Dataset,
    *,
    shots: Sequence[int] = (0, 1, 3, 5, 10, 20),
    draws: int = 20,
    seed: int = 0,
    devices: Sequence[str] | None = None,
    n_jobs: int = 1,
) -> pd.DataFrame:
    """Scores calibration on devices left out in turn: k measurements of k networks, the other networks are scored.

    Args:
        predictor: Settings to train with, on the other devices.
        dataset: Measured rows of several devices, partitions or modes.
        shots: Numbers of measurements; 0 is the specification alone.
        draws: Random choices of networks for each number.
        seed: Of the choices.
        devices: What to leave out, such as `h200-sxm` or `8 SMs`; all in turn by default.
        n_jobs: Processes, one place each.

    Returns:
        One row a place, k and draw: n (rows scored), mape, within_10 and concordance of the predictor, and the MAPE
        of `scaled_roofline` and `nearest` (the same network on the nearest device) under one scale fitted on the
        same k measurements; at k = 0 as the other devices and the specifications have it.
    """
    rows = scorable(dataset)
    every = [s for s in splits(rows.engines, "device") if devices is None or s.name in devices]
    if not every:
        raise UsageError(f"no device {', '.join(devices or ())} to leave out; see `perfpred dataset show`")
    parts = each(_shots, rows, ((predictor, split, shots, draws, seed) for split in every), n_jobs=n_jobs)
    return pd.DataFrame([row for part in parts for row in part])


def _shots(
    rows: Dataset, predictor: Any, split: Split, shots: Sequence[int], draws: int, seed: int
) -> list[dict[str, Any]]:
    from perfpred.evaluate import baseline_columns, nearest_columns, unfitted

    fitted = unfitted(predictor)
    fitted.fit(subset(rows, split.train))
    asked = subset(rows, split.test)
    measured = asked.engines["latency_s"].to_numpy(float)
    made = {
        "mape": fitted.predict_engines(asked.engines, asked.layers),
        "scaled_roofline": baseline_columns(rows, [split], ["scaled_roofline"])["fused:scaled_roofline"],
        "nearest": nearest_columns(rows, [split])["nearest"],
    }
    similarity = _similarity(fitted, asked)
    network = networks(asked.engines).to_numpy()
    random = np.random.default_rng(seed)
    found = []
    for k in shots:
        for draw in range(draws if k else 1):
            if k > len(set(network)) // 2:
                continue
            order = random.permutation(len(network))
            _, firsts = np.unique(network[order], return_index=True)
            drawn = random.choice(order[firsts], size=k, replace=False)
            rest = ~np.isin(network, network[drawn])
            row: dict[str, Any] = {"device": split.name, "k": k, "draw": draw, "n": int(rest.sum())}
            for name, predicted in made.items():
                residual = np.log(measured / predicted)
                known = drawn[np.isfinite(residual[drawn])]
                factor = np.zeros(len(predicted))
                if len(known) and name == "mape":
                    factor = Shots().fit(similarity[known], residual[known]).predict(similarity)
                elif len(known):
                    factor += np.median(residual[known])
                error = np.abs(predicted * np.exp(factor) / measured - 1)[rest]
                row[name] = float(np.nanmean(error)) if np.isfinite(error).any() else None
                if name == "mape":
                    right, pairs = concordant(measured[rest], (predicted * np.exp(factor))[rest])
                    row |= {"within_10": float((error <= 0.1).mean()), "concordance": right / pairs if pairs else None}
            found.append(row)
    return found

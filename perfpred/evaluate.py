"""Evaluation: predictions of rows never trained on, baselines fitted on the same training rows, and their scores."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Final, Protocol

import numpy as np
import pandas as pd

from perfpred.baselines import BASELINES, fit_groups, predict_groups
from perfpred.calibration import crossed_intervals, unit_intervals
from perfpred.dataset import Dataset
from perfpred.errors import DatasetError
from perfpred.instances import layer_instances
from perfpred.parallel import each
from perfpred.scores import cells, lineages, noise_floor, score, score_table, unjudged
from perfpred.splits import PROTOCOLS, Split, networks, places, scorable, splits, subset

__all__ = ["PROTOCOLS", "Evaluation", "Forecaster", "baseline_columns", "evaluate", "out_of_sample", "score", "unseen"]

FORMAT: Final = "perfpred.evaluation"
VERSION: Final = 1
#: What a baseline is calibrated within; smaller groups than `_FEWEST` rows, or none, take a fit on all rows.
GRANULARITY: Final = ("runtime", "device", "precision", "latency_kind")
_FEWEST: Final = 10
#: What baselines read of a layer; the rest is left behind, since a dataset has millions of unfused nodes.
_READ: Final = (
    "structure", "layer_index", "kind", "dtype", "flops", "dram_bytes", "input_bytes", "output_bytes", "weight_bytes",
)  # fmt: skip
_NEAREST: Final = ("sm_count", "clock_hz", "dram_bytes_per_s", "peak_fp32", "peak_fp16")
_SHOWN: Final = (
    "engine_id", "network", "network_id", "family", "lineage", "runtime", "device", "mode", "sm_count", "precision",
    "batch_size", "latency_kind", "lab",
)  # fmt: skip
#: Columns of the predictions in the JSON form.
_KEPT: Final = (
    "predictor", "network", "family", "lineage", "device", "mode", "sm_count", "precision", "batch_size",
    "latency_kind", "fold", "measured_s", "predicted_s", "low_s", "high_s",
)  # fmt: skip


class Forecaster(Protocol):
    """What is evaluated: `LatencyPredictor`, or a variation of it for an ablation."""

    def fit(self, dataset: Dataset) -> Any:
        """Learns from every good engine."""
        ...

    def predict_engines(self, engines: pd.DataFrame, layers: pd.DataFrame) -> np.ndarray:
        """Latency of engines, seconds; shape (n_engines,)."""
        ...


def unfitted(predictor: Any) -> Any:
    """A predictor of the same settings that has learned nothing, without intervals of its own."""
    settings = {f.name: getattr(predictor, f.name) for f in fields(predictor) if not f.name.endswith("_")}
    return type(predictor)(**(settings | ({"folds": 0} if "folds" in settings else {})))


def out_of_sample(
    predictor: Any,
    dataset: Dataset,
    *,
    protocol: str = "lineage",
    folds: int | None = 5,
    seed: int = 0,
    baselines: Sequence[str] = tuple(BASELINES),
    level: float = 0.9,
    n_jobs: int = 1,
) -> pd.DataFrame:
    """Predicts every engine by a predictor trained without it, as a protocol has it.

    Intervals of a fold come from the residuals of the other folds: no row's own latency is in its interval.

    Args:
        predictor: Settings to train with; what it has learned is not used.
        dataset: Rows; of repeated builds the first, optimised ones alone.
        protocol: One of `PROTOCOLS` but kshot (see `perfpred.transfer.kshot`).
        folds: Groups of groups; None leaves out one at a time.
        seed: Of the dealing into folds.
        baselines: Names in `perfpred.baselines.BASELINES`; fitted on unfused nodes and on fused layers.
        level: Of the intervals.
        n_jobs: Processes, one fold each.

    Returns:
        One row a tested engine: what names it, `fold`, `measured_s` (also as `latency_s`), `predicted_s`, `low_s`,
        `high_s`, `node:NAME` and `fused:NAME` of each baseline, and for the device protocol `nearest` (the same
        network on the nearest place in training, one scale from the specifications) and `nearest_fitted` (one scale
        fitted on the tested rows themselves, the best it could do).
    """
    rows = scorable(dataset)
    every = list(splits(rows.engines, protocol, folds=folds, seed=seed))
    made = each(_predicted, rows, ((unfitted(predictor), split) for split in every), n_jobs=n_jobs)
    frame = _described(rows.engines, every, made)
    groups = frame["fold"] if protocol == "device" else lineages(frame)
    frame["low_s"], frame["high_s"] = crossed_intervals(frame, groups.to_numpy(str), level)
    columns = baseline_columns(rows, every, baselines, n_jobs=n_jobs)
    if protocol == "device":
        columns |= nearest_columns(rows, every)
    return pd.concat([frame, pd.DataFrame(columns, index=frame.index)], axis=1)


def unseen(predictor: Any, dataset: Dataset, *, level: float = 0.9) -> pd.DataFrame:
    """Predictions by a trained predictor of the rows whose networks it was not trained on; no fold, no baselines.

    Raises:
        DatasetError: It was trained on every network of the dataset.
    """
    rows = scorable(dataset)
    known = set(predictor.facts_.get("networks", ()))
    new = ~(networks(rows.engines).isin(known) | rows.engines["network"].isin(known)).to_numpy()
    new &= ~unjudged(rows.engines)
    if not new.any():
        raise DatasetError(
            "the predictor was trained on every network of the dataset; give --protocol lineage to train without them"
        )
    rows = subset(rows, np.flatnonzero(new))
    everything = Split(name="unseen", train=np.array([], int), test=np.arange(len(rows.engines)))
    frame = _described(rows.engines, [everything], [_answers(predictor, rows)])
    low, high = unit_intervals(predictor.residuals_, frame, level) * frame["predicted_s"].to_numpy()
    return frame.assign(low_s=low, high_s=high)


def _predicted(rows: Dataset, predictor: Any, split: Split) -> np.ndarray:
    predictor.fit(subset(rows, split.train))
    return _answers(predictor, subset(rows, split.test))


def _answers(predictor: Any, asked: Dataset) -> np.ndarray:
    """Latency, seconds, and its expected relative error, 1 where the predictor knows none; shape (n_engines, 2)."""
    if hasattr(predictor, "forecast_engines"):
        return np.column_stack(predictor.forecast_engines(asked.engines, asked.layers))
    return np.column_stack([predictor.predict_engines(asked.engines, asked.layers), np.ones(len(asked.engines))])


def _described(engines: pd.DataFrame, every: Sequence[Split], answers: Sequence[np.ndarray]) -> pd.DataFrame:
    tested = np.concatenate([split.test for split in every])
    frame = engines.iloc[tested][list(_SHOWN)].reset_index(drop=True)
    frame["fold"] = np.repeat([split.name for split in every], [len(split.test) for split in every])
    frame["fold_number"] = np.repeat(np.arange(len(every)), [len(split.test) for split in every])
    frame["latency_s"] = engines["latency_s"].to_numpy(float)[tested]
    frame["measured_s"] = frame["latency_s"]
    frame["predicted_s"], frame["spread"] = np.concatenate(answers).T
    return frame


def baseline_columns(
    rows: Dataset, every: Sequence[Split], names: Sequence[str], *, n_jobs: int = 1
) -> dict[str, np.ndarray]:
    """Baselines of the tested rows, fitted on each split's training rows, seconds.

    Calibrated within `GRANULARITY`, the pure bounds not at all; rows that are never judged, such as probes, would lead
    them astray and are left out.
    Levels are `node`, what a network says by itself, and `fused`, what knowing the optimiser's layers adds.
    """
    asked = [(names, level, split) for level in ("node", "fused") for split in every] if names else []
    parts = each(_calibrated, rows, asked, n_jobs=n_jobs)
    at = {"node": parts[: len(every)], "fused": parts[len(every) :]}
    return {f"{level}:{name}": np.concatenate([part[name] for part in at[level]]) for level in at for name in names}


def _calibrated(rows: Dataset, names: Sequence[str], level: str, split: Split) -> dict[str, np.ndarray]:
    """Baselines of one split at one level, seconds."""
    aside = unjudged(rows.engines.iloc[split.train])
    train = split.train[~aside | aside.all()]
    groups = cells(rows.engines, GRANULARITY).to_numpy()
    sizes = pd.Series(groups[train]).value_counts()
    large = set(sizes[sizes >= _FEWEST].index)
    own = np.where([g in large for g in groups], groups, "")
    layers = rows.layers_at(level)[list(_READ)]

    def instances(chosen: np.ndarray) -> pd.DataFrame:
        found = layer_instances(rows.engines.iloc[chosen].reset_index(drop=True), layers)
        return found.astype(dict.fromkeys(("kind", "dtype", "precision"), "category"))  # quick to compare

    latency_s = rows.engines["latency_s"].to_numpy(float)[train]
    fitted = fit_groups(names, instances(train), latency_s, list(own[train]))
    return predict_groups(fitted, instances(split.test), list(own[split.test]))


def nearest_columns(rows: Dataset, every: Sequence[Split]) -> dict[str, np.ndarray]:
    """The same network, batch, precision and kind as measured on the nearest place in training, times one scale.

    A place is a device at a partition size and power mode; near is near in the logarithms of its specification. The
    scale is one for each pair of places.
    """
    engines = rows.engines
    numbers = layer_instances(engines, rows.layers_at("node")[list(_READ)]).drop_duplicates("row")
    traits = np.log1p(numbers[list(_NEAREST)].to_numpy(float))
    place = places(engines).to_numpy()
    same = cells(engines, ["network_id", "precision", "batch_size", "latency_kind", "lab"]).to_numpy()
    latency_s = engines["latency_s"].to_numpy(float)
    bound_s = _bounds(rows)
    parts: dict[str, list[np.ndarray]] = {"nearest": [], "nearest_fitted": []}
    for split in every:
        there = np.full((2, len(split.test)), np.nan)
        for here in pd.Series(place[split.test]).groupby(place[split.test]).indices.values():
            asked = split.test[here]
            distance = np.linalg.norm(traits[split.train] - traits[asked[0]], axis=1)
            order = split.train[np.argsort(distance, kind="stable")]
            firsts = pd.Series(order, index=same[order])
            found = firsts[~firsts.index.duplicated()].reindex(same[asked])
            paired = np.flatnonzero(found.notna())
            source = found.iloc[paired].to_numpy(int)
            for rows_of in pd.Series(place[source]).groupby(place[source]).indices.values():
                target, origin = paired[rows_of], source[rows_of]
                known, measured = latency_s[origin], latency_s[asked[target]]
                stated = _scale(bound_s[origin], bound_s[asked[target]])
                there[0, here[target]] = known * stated
                # Fewer rows would be divided by themselves.
                there[1, here[target]] = known * (_scale(known, measured) if len(known) >= _FEWEST else stated)
        parts["nearest"].append(there[0])
        parts["nearest_fitted"].append(there[1])
    return {name: np.concatenate(part) for name, part in parts.items()}


def _bounds(rows: Dataset) -> np.ndarray:
    """Pure roofline of each engine, seconds."""
    instances = layer_instances(rows.engines, rows.layers_at("fused")[list(_READ)])
    return np.asarray(BASELINES["roofline"]().predict(instances), float)


def _scale(there: np.ndarray, here: np.ndarray) -> float:
    return float(np.exp(np.median(np.log(here / there))))


@dataclass(kw_only=True)
class Evaluation:
    """Predictions of rows never trained on, and what is needed to judge and repeat them.

    Attributes:
        predictions: Rows of `out_of_sample` or `unseen`, with the predictor's name in `predictor`.
        protocol: One of `PROTOCOLS`, or `unseen networks` for predictors as they are.
        dataset: Digest of the dataset.
        noise: As of `perfpred.scores.noise_floor`.
        shots: As of `perfpred.transfer.kshot`, for that protocol.
    """

    predictions: pd.DataFrame
    protocol: str
    dataset: str
    seed: int = 0
    folds: int | None = None
    level: float = 0.9
    noise: Mapping[str, Any] = field(default_factory=dict)
    shots: pd.DataFrame | None = None

    def scores(self, by: Sequence[str] = ("latency_kind",)) -> pd.DataFrame:
        """Scores of each predictor and baseline, rows grouped by columns such as latency_kind, device or lineage."""
        parts = []
        for number, (name, rows) in enumerate(self.predictions.groupby("predictor", sort=False)):
            shared = [str(c) for c in rows if ":" in str(c) or str(c).startswith("nearest")]
            baselines = shared if number == 0 else []
            table = score_table(rows, ["predicted_s", *baselines], by)
            parts.append(table.assign(prediction=table["prediction"].replace("predicted_s", str(name))))
        return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame()

    def show(self, console: Any) -> None:
        """Prints the scores on a rich console."""
        from perfpred.show import table

        if self.shots is not None:
            figures = ["mape", "within_10", "concordance", "scaled_roofline", "nearest"]
            median = self.shots.groupby(["predictor", "device", "k"])[figures].median().reset_index()
            table(console, "median over draws", _records(median))
            return
        shown = [
            "latency_kind", "prediction", "n", "mape", "median_ape", "within_5", "within_10", "kendall_tau",
            "concordance", "coverage", "width",
        ]  # fmt: skip
        table(
            console,
            f"protocol {self.protocol}, dataset {self.dataset}, seed {self.seed}",
            _records(self.scores()[shown]),
        )
        if self.noise.get("mape") is not None:
            console.print(f"noise floor: MAPE {self.noise['mape']:.2%} between builds of the same network")
        console.print(f"baselines calibrated per {', '.join(GRANULARITY)}")

    def save(self, path: str | Path) -> None:
        """Writes the JSON form, predictions included, for `perfpred report`."""
        Path(path).write_text(json.dumps(self.to_dict(predictions=True)) + "\n", encoding="utf-8")

    def to_dict(self, *, predictions: bool = False) -> dict[str, Any]:
        """JSON form: scores by kind, device and lineage, with seed, digest, noise floor and granularity."""
        made: dict[str, Any] = {
            "format": FORMAT,
            "version": VERSION,
            "protocol": self.protocol,
            "dataset": self.dataset,
            "seed": self.seed,
            "folds": self.folds,
            "level": self.level,
            "noise_floor": dict(self.noise),
            "baselines_calibrated_per": list(GRANULARITY),
        }
        if self.shots is not None:
            return made | {"shots": _records(self.shots)}
        place = ["device", *(["sm_count"] if self.predictions["sm_count"].nunique() > 1 else [])]
        fold = ["fold", "batch_size"] if self.protocol == "device" else ["fold"]
        return made | {
            "scores": _records(self.scores()),
            "by_device": _records(self.scores(["latency_kind", *place, "precision"])),
            "by_lineage": _records(self.scores(["lineage"])),
            "by_fold": _records(self.scores(fold)),
            **({"predictions": _records(self.predictions[list(_KEPT)])} if predictions else {}),
        }


def _records(table: pd.DataFrame) -> list[dict[str, Any]]:
    plain = table.astype(object).where(table.notna(), None)
    return [
        {str(k): v.item() if isinstance(v, np.generic) else v for k, v in row.items()}
        for row in plain.to_dict("records")
    ]


def evaluate(
    predictors: Sequence[Any],
    dataset: Dataset,
    *,
    protocol: str | None = None,
    folds: int | None = 5,
    seed: int = 0,
    baselines: Sequence[str] = tuple(BASELINES),
    level: float = 0.9,
    n_jobs: int = 1,
    **shots: Any,
) -> Evaluation:
    """Scores predictors on rows they never saw.

    Args:
        predictors: Trained ones, or with a protocol settings to train with; told apart by their names.
        dataset: Measured rows of one runtime.
        protocol: One of `PROTOCOLS`; None scores the predictors as they are, on networks they were not trained on.
        folds: As for `out_of_sample`.
        seed: Of every random choice.
        baselines: As for `out_of_sample`.
        level: Of the intervals.
        n_jobs: Processes.
        **shots: Arguments of `perfpred.transfer.kshot`, for that protocol.

    Raises:
        DatasetError: Nothing is left to score.
        UsageError: Unknown protocol.
    """
    made = Evaluation(
        predictions=pd.DataFrame(),
        protocol=protocol or "unseen networks",
        dataset=dataset.digest(),
        seed=seed,
        folds=folds if protocol else None,
        level=level,
        noise=noise_floor(dataset.good),
    )
    parts = []
    for number, predictor in enumerate(predictors):
        if protocol == "kshot":
            from perfpred.transfer import kshot

            found = kshot(predictor, dataset, seed=seed, n_jobs=n_jobs, **shots).assign(predictor=predictor.name)
        elif protocol is None:
            found = unseen(predictor, dataset, level=level).assign(predictor=predictor.name)
        else:
            found = out_of_sample(
                predictor,
                dataset,
                protocol=protocol,
                folds=folds,
                seed=seed,
                baselines=baselines if number == 0 else (),
                level=level,
                n_jobs=n_jobs,
            ).assign(predictor=predictor.name)
        parts.append(found)
    table = pd.concat(parts, ignore_index=True)
    if protocol == "kshot":
        made.shots = table
    else:
        made.predictions = table
    return made

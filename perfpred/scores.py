"""How good predictions are: errors, ranks, intervals, and the noise below which no predictor can be told apart."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any, Final

import numpy as np
import pandas as pd

from perfpred.corpus import PROBE
from perfpred.errors import DatasetError
from perfpred.measure import SHARED

#: Within one of these the order of networks means something: everything but the network and its batch is equal.
RANKING_CELL: Final = ("device", "mode", "sm_count", "precision", "latency_kind")
#: What is equal between builds of one network in one place.
BUILD_KEY: Final = (
    "network_id", "runtime", "device", "mode", "sm_count", "precision", "typing", "optimisation", "batch_size",
    "input_shape", "latency_kind", "lab",
)  # fmt: skip
#: Mean absolute value of a standard normal variable: turns a standard deviation into a MAPE.
_MEAN_OF_NORMAL: Final = float(np.sqrt(2 / np.pi))
_MOST_RANKED: Final = 1500
_PAUSE: Final = pd.Timedelta(minutes=10)


def score(
    engines: pd.DataFrame,
    predicted_s: np.ndarray | pd.Series[float],
    interval: tuple[np.ndarray, np.ndarray] | None = None,
) -> dict[str, Any]:
    """Scores predictions of measured engines.

    Args:
        engines: Measured rows with `latency_s`, `network`, `lineage` and the columns of `RANKING_CELL`.
        predicted_s: Shape (n_engines,); rows without a prediction (NaN) are left out and counted in `n_missing`.
        interval: Lower and upper ends, seconds, each of shape (n_engines,).

    Returns:
        n, n_missing, n_networks, mape, macro_mape (mean over lineages), median_ape, within_5, within_10,
        kendall_tau (mean over cells), concordance of pairs measured within a factor of two and their number,
        coverage, median and mean width over the prediction. Shares and errors are fractions; None where nothing can be said.
    """
    predicted = np.asarray(predicted_s, float)
    known = np.isfinite(predicted)
    rows, predicted = engines[known], predicted[known]
    made: dict[str, Any] = {
        "n": len(rows),
        "n_missing": int((~known).sum()),
        "n_networks": int(rows["network"].nunique()),
    }
    names = ("mape", "macro_mape", "median_ape", "within_5", "within_10", "kendall_tau", "concordance")
    made |= dict.fromkeys((*names, "coverage", "width", "mean_width"))
    made["pairs"] = 0
    if not len(rows):
        return made
    measured = rows["latency_s"].to_numpy(float)
    error = np.abs(predicted / measured - 1)
    made["mape"] = float(error.mean())
    made["macro_mape"] = float(pd.Series(error).groupby(lineages(rows).to_numpy()).mean().mean())
    made["median_ape"] = float(np.median(error))
    made["within_5"], made["within_10"] = float((error <= 0.05).mean()), float((error <= 0.10).mean())
    made |= _ranks(rows, measured, predicted)
    if interval is not None:
        low, high = (np.asarray(end, float)[known] for end in interval)
        if np.isfinite(low).all() and np.isfinite(high).all():
            made["coverage"] = float(((low <= measured) & (measured <= high)).mean())
            width = (high - low) / predicted
            made["width"], made["mean_width"] = float(np.median(width)), float(width.mean())
    return made


def lineages(engines: pd.DataFrame) -> pd.Series[str]:
    """Lineage of each row, else its family, else the network itself."""
    named = engines["lineage"].where(engines["lineage"].notna(), engines["family"])
    return named.where(named.notna(), engines["network"]).astype(str)


def probes(engines: pd.DataFrame) -> np.ndarray:
    """Which rows are probes; shape (n_engines,)."""
    made: np.ndarray = engines["lineage"].eq(PROBE).to_numpy(bool, na_value=False)
    return made


def unjudged(engines: pd.DataFrame) -> np.ndarray:
    """Which rows are learned from and never judged, shape (n_engines,): probes, and those measured beside others.

    Where every network was measured beside others, there is nothing better to judge by.
    """
    probe = probes(engines)
    shared = [flags is not None and SHARED in flags for flags in engines["flags"]]
    made: np.ndarray = probe | np.array(shared, bool)
    return probe if made.all() else made


def cells(engines: pd.DataFrame, columns: Sequence[str]) -> pd.Series[str]:
    """One label a row of several columns, absent values left empty; rows of equal label belong together."""
    made = pd.Series("", index=engines.index)
    for column in columns:
        made = made + engines[column].astype(object).where(engines[column].notna(), "").astype(str) + "/"
    return made.str.rstrip("/")


def _ranks(engines: pd.DataFrame, measured: np.ndarray, predicted: np.ndarray) -> dict[str, Any]:
    """Rank figures within each cell, never across devices."""
    from scipy.stats import kendalltau  # here, since a predictor imports this module and this import is slow

    taus, right, pairs = [], 0.0, 0
    for rows in pd.Series(range(len(engines))).groupby(cells(engines, RANKING_CELL).to_numpy()).indices.values():
        chosen = rows[:: max(1, -(-len(rows) // _MOST_RANKED))]  # the pairs of thousands would say no more
        if len(chosen) >= 3:
            tau = kendalltau(measured[chosen], predicted[chosen]).statistic
            taus += [float(tau)] if np.isfinite(tau) else []
        good, count = concordant(measured[chosen], predicted[chosen])
        right, pairs = right + good, pairs + count
    return {
        "kendall_tau": float(np.mean(taus)) if taus else None,
        "concordance": right / pairs if pairs else None,
        "pairs": pairs,
    }


def concordant(measured: np.ndarray, predicted: np.ndarray, within: float = 2.0) -> tuple[float, int]:
    """Pairs in the right order, a tie of predictions counting half, and pairs measured within a factor."""
    first, second = np.triu_indices(len(measured), 1)
    gap = np.log(measured[first] / measured[second])
    close = (np.abs(gap) <= np.log(within)) & (gap != 0)
    agreed = np.sign(gap[close]) * np.sign(np.log(predicted[first] / predicted[second])[close])
    return float((agreed > 0).sum() + 0.5 * (agreed == 0).sum()), int(close.sum())


def error_ratio(
    engines: pd.DataFrame,
    baseline_s: np.ndarray | pd.Series[float],
    predicted_s: np.ndarray | pd.Series[float],
    *,
    draws: int = 1000,
    seed: int = 0,
) -> dict[str, float]:
    """How many times larger a baseline's MAPE is, with a 90 % bootstrap interval over families.

    Returns:
        ratio, low, high; only rows that both predict count.
    """
    measured = engines["latency_s"].to_numpy(float)
    errors = pd.DataFrame(
        {
            "baseline": np.abs(np.asarray(baseline_s, float) / measured - 1),
            "predicted": np.abs(np.asarray(predicted_s, float) / measured - 1),
            "family": engines["family"].where(engines["family"].notna(), engines["network"]).astype(str).to_numpy(),
        }
    ).dropna()
    if errors.empty:
        raise DatasetError("no row has both predictions; score the same rows with both")
    sums = errors.groupby("family")[["baseline", "predicted"]].sum().to_numpy()
    picks = np.random.default_rng(seed).integers(0, len(sums), (draws, len(sums)))
    drawn = sums[picks].sum(axis=1)
    low, high = np.quantile(drawn[:, 0] / drawn[:, 1], [0.05, 0.95])
    total = sums.sum(axis=0)
    return {"ratio": float(total[0] / total[1]), "low": float(low), "high": float(high)}


def noise_floor(engines: pd.DataFrame) -> dict[str, Any]:
    """The MAPE that builds of the same network in the same place have among themselves.

    Rows of one `BUILD_KEY` and the same runtime options are builds of one thing; a pause of more than ten minutes
    between two of them begins another session.

    Returns:
        cv_build within sessions and cv_session between their means, pooled coefficients of variation (None where
        nothing was repeated), the number of repeated keys behind each, and `mape`: 0.8 sqrt(cv_build^2 +
        cv_session^2), 0.8 being the mean absolute value of a standard normal variable.
    """
    key = cells(engines, BUILD_KEY) + "/" + engines["provenance_json"].map(_options)
    rows = pd.DataFrame({"key": key, "log": np.log(engines["latency_s"].astype(float))})
    rows["time"] = pd.to_datetime(engines["collected_at"], utc=True, errors="coerce", format="ISO8601")
    rows = rows.sort_values(["key", "time"])
    rows["session"] = (rows.groupby("key")["time"].diff() > _PAUSE).groupby(rows["key"]).cumsum()
    sessions = rows.groupby(["key", "session"])["log"]
    cv_build, n_build = _pooled(sessions.var(), sessions.size())
    means = sessions.mean().groupby("key")
    cv_session, n_session = _pooled(means.var(), means.size())
    known = [cv for cv in (cv_build, cv_session) if cv is not None]
    return {
        "cv_build": cv_build,
        "n_build": n_build,
        "cv_session": cv_session,
        "n_session": n_session,
        "mape": _MEAN_OF_NORMAL * float(np.sqrt(np.sum(np.square(known)))) if known else None,
    }


def _options(provenance: str | None) -> str:
    options = json.loads(provenance).get("options") if provenance else None
    return json.dumps(options or {}, sort_keys=True)


def _pooled(variance: pd.Series[float], count: pd.Series[int]) -> tuple[float | None, int]:
    """Root of the pooled variance over groups of two and more, and how many groups those are."""
    repeated = count > 1
    if not repeated.any():
        return None, 0
    freedom = count[repeated] - 1
    return float(np.sqrt((variance[repeated] * freedom).sum() / freedom.sum())), int(repeated.sum())


def score_table(frame: pd.DataFrame, columns: Sequence[str], by: Sequence[str] = ("latency_kind",)) -> pd.DataFrame:
    """Scores of several predictions of the same rows.

    Args:
        frame: Measured rows with a column for each prediction; `low_s` and `high_s` belong to `predicted_s`.
        columns: Prediction columns.
        by: Columns whose values are scored apart; empty for all rows together.

    Returns:
        One row a group and prediction: the columns of `by`, `prediction`, and those of `score`.
    """
    return pd.DataFrame(
        {
            **dict(zip(by, group, strict=True)),
            "prediction": column,
            **score(
                rows,
                rows[column],
                (rows["low_s"].to_numpy(), rows["high_s"].to_numpy())
                if column == "predicted_s" and "low_s" in rows
                else None,
            ),
        }
        for group, rows in _grouped(frame, by)
        for column in columns
    )


def _grouped(frame: pd.DataFrame, by: Sequence[str]) -> Iterator[tuple[tuple[Any, ...], pd.DataFrame]]:
    if not by:
        yield (), frame
        return
    labels = [frame[c].astype(object).where(frame[c].notna(), "") for c in by]
    yield from frame.groupby(labels, sort=True)

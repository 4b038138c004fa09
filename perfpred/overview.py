"""What a dataset holds: counts, coverage, noise, flags, failures."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pandas as pd

from perfpred.dataset import Dataset

Records = list[dict[str, Any]]


def overview(dataset: Dataset) -> dict[str, Records]:
    """Tables by title."""
    good = dataset.good
    return {
        f"{len(good)} engines, {good['network'].nunique()} networks, {good['lineage'].nunique()} lineages": _counts(
            good
        ),
        "coverage: engines by lineage and device": _coverage(good),
        "quality flags": _flags(good),
        "noise (coefficient of variation)": noise(dataset),
        "failures": failures(dataset),
    }


def _counts(good: pd.DataFrame) -> Records:
    keys = ["runtime", "device", "sm_count", "precision", "batch_size", "latency_kind"]
    counted = good.groupby(keys, dropna=False).agg(engines=("engine_id", "size"), networks=("network", "nunique"))
    return _records(counted.reset_index())


def _coverage(good: pd.DataFrame) -> Records:
    where = good["device"] + " " + good["precision"]
    table = pd.crosstab(good["lineage"].fillna(good["family"]), where)
    return _records(table.reset_index(names="lineage"))


def _flags(good: pd.DataFrame) -> Records:
    flagged = good["flags"].explode().dropna()
    share = flagged.value_counts() / max(len(good), 1)
    any_flag = float(good["engine_id"].isin(good.loc[flagged.index, "engine_id"]).mean()) if len(good) else 0.0
    return [{"flag": "any", "share": any_flag}, *({"flag": str(f), "share": float(v)} for f, v in share.items())]


def noise(dataset: Dataset) -> Records:
    """Spread between runs within an engine, and between rebuilds in fresh processes, by device and by lineage.

    `floor` is the mean absolute relative error that no predictor can beat on rebuilt rows: about 0.8 times the
    rebuild spread, which holds both the build and the process start (mean absolute deviation of a normal law).
    """
    good = dataset.good
    key = ["network", "device", "sm_count", "precision", "batch_size", "optimisation", "latency_kind"]
    rows = []
    grouped = good.assign(lineage=good["lineage"].fillna(good["family"])).groupby("lineage")
    devices = good.groupby("device") if good["device"].nunique() > 1 else ()
    parts = [*((f"all on {n}", g) for n, g in devices), *((str(n), g) for n, g in grouped)]
    for lineage, part in [("all", good), *parts]:
        repeated = part.groupby(key, dropna=False)["latency_s"].agg(["size", "mean", "std"])
        repeated = repeated[repeated["size"] >= 3]
        spread = (repeated["std"] / repeated["mean"]).to_numpy(float)
        rows.append(
            {
                "lineage": lineage,
                "engines": len(part),
                "run_to_run": float(part["cv"].median()) if part["cv"].notna().any() else None,
                "rebuilt": len(repeated),
                "rebuild_to_rebuild": float(np.median(spread)) if len(spread) else None,
                "floor": float(0.8 * np.sqrt(np.mean(spread**2))) if len(spread) else None,
            }
        )
    return rows


def failures(dataset: Dataset) -> Records:
    """Causes of failed rows, commonest first."""
    failed = dataset.engines[dataset.engines["status"] == "failed"]
    causes = failed["error"].map(lambda text: str(json.loads(text).get("class", "unknown")) if text else "unknown")
    return [{"cause": str(c), "engines": int(n)} for c, n in causes.value_counts().items()]


def _records(frame: pd.DataFrame) -> Records:
    return [{str(k): v for k, v in row.items()} for row in frame.to_dict("records")]

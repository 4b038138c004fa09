"""Measured layer times, joined to the layers a predictor reads."""

from __future__ import annotations

import numpy as np
import pandas as pd

from perfpred.dataset import Dataset


def layer_times(instances: pd.DataFrame, engines: pd.DataFrame, dataset: Dataset) -> np.ndarray:
    """Measured time of each layer instance where one layer's nodes were timed together, else NaN."""
    made = np.full(len(instances), np.nan)
    alone = engines["latency_kind"].eq("layer").to_numpy()
    if alone.any():
        lone = alone[instances["row"].to_numpy()]
        made[lone] = engines["latency_s"].to_numpy(float)[instances["row"].to_numpy()[lone]]
    if len(dataset.times):
        summed = _summed(instances, engines["engine_id"], dataset.times)
        made = np.where(np.isfinite(summed), summed, made)
    return made


def _summed(instances: pd.DataFrame, engine_ids: pd.Series[str], times: pd.DataFrame) -> np.ndarray:
    """Time of each layer instance: the sum over what the runtime timed of its nodes.

    A timed unit whose nodes lie in several layers says nothing of either, so those layers stay NaN, as do layers
    of which nothing was timed. Shape (n_layers,), seconds.
    """
    timed = times.explode("onnx_nodes")[["engine_id", "onnx_nodes", "time_s"]].dropna()
    timed = timed.rename_axis("unit").reset_index().rename(columns={"onnx_nodes": "node"})
    rows = np.flatnonzero(engine_ids.isin(set(timed["engine_id"])))
    inside = np.flatnonzero(instances["row"].isin(rows))
    owned = pd.DataFrame(
        {
            "layer": inside,
            "engine_id": engine_ids.to_numpy()[instances["row"].to_numpy()[inside]],
            "node": instances["onnx_nodes"].to_numpy()[inside],
        }
    ).explode("node")
    pairs = timed.merge(owned, on=["engine_id", "node"])[["unit", "layer", "time_s"]].drop_duplicates(["unit", "layer"])
    shared = pairs["unit"].duplicated(keep=False)
    made = np.full(len(instances), np.nan)
    alone = pairs[~shared].groupby("layer")["time_s"].sum()
    made[alone.index.to_numpy(int)] = alone.to_numpy()
    made[pairs.loc[shared, "layer"].to_numpy(int)] = np.nan
    return made

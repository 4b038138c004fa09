"""How much of the error does each thing that a predictor knows remove, the optimiser's layers above all?

Command: python experiments/ablation.py
Output: experiments/results/ablation.csv, .json, .md and .png

The same boosted trees on the same five folds of whole lineages know more at each step: shapes (operator counts, layer
sizes, batch, precision), then cost (operations, bytes, and their roofline on one and the same reference device), then
the device (its numbers, and its own roofline). Last the trees give way to the package's engine stage: physics and a
Gaussian process. Each step is taken on the network's nodes and on the fused layers an optimiser makes of them; what the
builder itself reported is not scored, since it is known for engines already built only. Intervals are 90 % of a
bootstrap over lineages, paired where two steps are compared.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

import numpy as np
import pandas as pd
import xgboost as xgb
from written import RESULTS, percent, write

from perfpred.corpus import datasets_folder
from perfpred.dataset import Dataset
from perfpred.features import DEVICE_NUMBERS, GROUPS, bound_s, engine_features, layer_features, without_groups
from perfpred.instances import layer_instances
from perfpred.plots import COLOURS, figure
from perfpred.predictor import LatencyPredictor
from perfpred.scores import lineages
from perfpred.splits import Split, scorable, splits, subset

DATASET = "gpu-onnxruntime"
SEED = 0
FOLDS = 5
DRAWS = 2000
LEVELS = ("node", "fused")
STEPS = {"shape": "shape", "cost": "+ cost", "device": "+ device", "engine": "engine stage"}
#: In the order in which knowledge is added.
LADDER = (("shape", "node"), ("cost", "node"), ("cost", "fused"), ("device", "fused"), ("engine", "fused"))
SIZES = [f"shape:{size}" for size in ("m", "n", "k", "groups", "c", "k_out", "h", "w", "r", "stride")]


def boosted_trees() -> xgb.XGBRegressor:
    """Trees for whole engines; small steps, since the sets are small and the targets are residuals."""
    return xgb.XGBRegressor(
        n_estimators=500, max_depth=4, learning_rate=0.04, min_child_weight=5, subsample=0.7, colsample_bytree=0.5,
        reg_lambda=4.0, objective="reg:pseudohubererror", huber_slope=0.2, tree_method="hist", n_jobs=1,
        random_state=SEED,
    )  # fmt: skip


def reference_device(instances: pd.DataFrame) -> pd.DataFrame:
    """The same layers as if every engine ran on one device, of median numbers."""
    return instances.assign(**{number: instances[number].median() for number in DEVICE_NUMBERS})


def known(step: str, instances: pd.DataFrame) -> tuple[pd.DataFrame, np.ndarray]:
    """Features a step knows, and the log of seconds its target is taken over; one row an engine."""
    layers = instances if step == "device" else reference_device(instances)
    if step == "shape":
        features = engine_features(layers, np.ones(len(layers)))
        sizes = layer_features(layers)[SIZES].groupby(layers["row"]).mean()
        kept = without_groups(features, ("totals", "fusion", "device"))
        return pd.concat([kept, sizes, features["totals:n_layers"]], axis=1), np.zeros(len(features))
    bound = bound_s(layers)["roofline_s"].to_numpy()
    features = engine_features(layers, bound + 1e-9)
    made = features if step == "device" else without_groups(features, ("device",))
    return made, features["totals:roofline"].to_numpy()


def regressed(features: pd.DataFrame, offset: np.ndarray, latency_s: np.ndarray, every: list[Split]) -> np.ndarray:
    """Latency of each engine by trees that never saw its lineage, seconds; shape (n_engines,)."""
    made, target = np.empty(len(latency_s)), np.log(latency_s) - offset
    for split in every:
        middle = np.median(target[split.train])  # the trees' loss expects residuals
        trees = boosted_trees().fit(features.iloc[split.train], target[split.train] - middle)
        made[split.test] = trees.predict(features.iloc[split.test]) + middle + offset[split.test]
    return np.exp(made)


def staged(rows: Dataset, every: list[Split], level: str) -> np.ndarray:
    """Latency of each engine by the package's predictor that never saw its lineage, seconds."""
    made = np.empty(len(rows.engines))
    for split in every:
        predictor = LatencyPredictor(level=level, folds=0, seed=SEED).fit(subset(rows, split.train))
        asked = subset(rows, split.test)
        made[split.test] = predictor.predict_engines(asked.engines, asked.layers)
    return made


def predicted(rows: Dataset) -> Iterator[tuple[str, str, str, np.ndarray]]:
    """Every step on every level, then the trees' last step less a group: step, level, group left out, latencies."""
    every = list(splits(rows.engines, "lineage", folds=FOLDS, seed=SEED))
    latency_s = rows.engines["latency_s"].to_numpy(float)
    for level in LEVELS:
        instances = layer_instances(rows.engines, rows.layers_at(level))
        for step in ("shape", "cost", "device"):
            features, offset = known(step, instances)
            yield step, level, "", regressed(features, offset, latency_s, every)
        for group in GROUPS if level == "fused" else ():
            fewer = without_groups(features, [group])
            if fewer.shape != features.shape:
                yield "device", level, group, regressed(fewer, offset, latency_s, every)
        yield "engine", level, "", staged(rows, every, level)


def drawn_mape(error: np.ndarray, lineage: pd.Series) -> np.ndarray:
    """Bootstrap of the MAPE over lineages, shape (DRAWS,); the same draws for every error."""
    sums = pd.DataFrame({"error": error, "n": 1.0}).groupby(lineage.to_numpy()).sum().to_numpy()
    picks = np.random.default_rng(SEED).integers(0, len(sums), (DRAWS, len(sums)))
    totals = sums[picks].sum(axis=1)
    made: np.ndarray = totals[:, 0] / totals[:, 1]
    return made


def compared(errors: dict[tuple[str, str, str], np.ndarray], lineage: pd.Series) -> pd.DataFrame:
    """Share of the error that is gone between two steps, with its interval."""
    pairs = [("ladder", (*a, ""), (*b, "")) for a, b in pairwise(LADDER)]
    pairs += [("nodes to fused layers", (step, "node", ""), (step, "fused", "")) for step in STEPS]
    pairs += [("group put back", key, ("device", "fused", "")) for key in errors if key[2]]
    made = []
    for question, before, after in pairs:
        drawn = 1 - drawn_mape(errors[after], lineage) / drawn_mape(errors[before], lineage)
        low, high = np.quantile(drawn, [0.05, 0.95])
        made.append(
            {
                "question": question, "from": _label(before), "to": _label(after),
                "mape_before": errors[before].mean(), "mape_after": errors[after].mean(),
                "error_removed": 1 - errors[after].mean() / errors[before].mean(), "low": low, "high": high,
            }
        )  # fmt: skip
    return pd.DataFrame(made)


def _label(key: tuple[str, str, str]) -> str:
    step, level, group = key
    layers = "nodes" if level == "node" else "fused layers"
    return f"{STEPS[step]}, {layers}" + (f", without {group}" if group else "")


def scored(errors: dict[tuple[str, str, str], np.ndarray], lineage: pd.Series) -> pd.DataFrame:
    """Errors of each step on each level, with the interval of the MAPE over lineages."""
    made = []
    for (step, level, group), error in errors.items():
        low, high = np.quantile(drawn_mape(error, lineage), [0.05, 0.95])
        made.append(
            {
                "step": step, "level": level, "left_out": group, "n": len(error), "lineages": lineage.nunique(),
                "mape": error.mean(), "low": low, "high": high,
                "macro_mape": pd.Series(error).groupby(lineage.to_numpy()).mean().mean(),
                "median_ape": np.median(error), "within_10": (error <= 0.1).mean(),
            }
        )  # fmt: skip
    return pd.DataFrame(made)


def findings(scores: pd.DataFrame, changes: pd.DataFrame) -> list[str]:
    """Sentences with the numbers of the tables."""
    first = scores.iloc[0]
    mape = scores[scores["left_out"] == ""].set_index(["step", "level"])["mape"]
    path = " → ".join(f"{_label((*place, ''))} {percent(mape[place])}" for place in LADDER)
    said = [f"{first['n']} engines of {first['lineages']} lineages of {DATASET}, lineages unseen. MAPE: {path}."]
    for row in changes[changes["question"] == "nodes to fused layers"].to_dict("records"):
        clear = row["low"] > 0 or row["high"] < 0
        said.append(
            f"Fused layers instead of nodes, all else equal ({row['from'].rpartition(', ')[0]}): MAPE "
            f"{percent(row['mape_before'])} to {percent(row['mape_after'])}, the error changes by "
            f"{percent(-row['error_removed'])} (90 % interval {percent(-row['high'])} to {percent(-row['low'])}): "
            + ("the interval leaves out zero." if clear else "no difference can be told.")
        )
    for row in changes[changes["question"] == "group put back"].to_dict("records"):
        said.append(
            f"The trees {row['from'].rpartition(', ')[2]}: MAPE {percent(row['mape_before'])} instead of "
            f"{percent(row['mape_after'])}."
        )
    return said


def draw(scores: pd.DataFrame) -> None:
    """MAPE of each step on both levels."""
    with figure(RESULTS / "ablation.png", title="Error on lineages never trained on") as axes:
        for colour, level, shift in zip(COLOURS, LEVELS, (-0.08, 0.08), strict=False):
            part = scores[(scores["level"] == level) & (scores["left_out"] == "")].set_index("step").loc[list(STEPS)]
            ends = 100 * np.array([part["mape"] - part["low"], part["high"] - part["mape"]])
            label = "nodes" if level == "node" else "fused layers"
            where = np.arange(len(part)) + shift
            axes.errorbar(where, 100 * part["mape"], ends, fmt="o", capsize=3, color=colour, label=label)
        axes.set_xticks(range(len(STEPS)), STEPS.values())
        axes.set_ylabel("MAPE, %; 90 % interval over lineages")
        axes.set_ylim(bottom=0)
        axes.legend(frameon=False)


def main() -> None:
    """Trains every step and compares them."""
    rows = scorable(Dataset.read(datasets_folder() / DATASET))
    measured, lineage = rows.engines["latency_s"].to_numpy(float), lineages(rows.engines)
    errors = {}
    for step, level, group, latency_s in predicted(rows):
        errors[step, level, group] = np.abs(latency_s / measured - 1)
        print(f"{_label((step, level, group))}: {percent(errors[step, level, group].mean())}", flush=True)
    scores, changes = scored(errors, lineage), compared(errors, lineage)
    draw(scores)
    said = findings(scores, changes)
    write(
        "ablation",
        "What each thing known takes off the error",
        tables={
            "scores": scores,
            "Share of the error removed": changes,
            "Errors of each step": scores[scores["left_out"] == ""].drop(columns="left_out"),
        },
        findings=said,
        figures=["ablation.png"],
    )
    print("\n".join(said))


if __name__ == "__main__":
    main()

"""How much of the error does each thing that a predictor knows remove, the optimiser's layers above all?

Command: PERFPRED_REFERENCE_DATA=... python experiments/ablation.py [--published DATASET] [--engines N]
Output: experiments/results/ablation.csv, .json, .md and .png

The same boosted trees on the same folds of whole lineages know more at each step: shapes (operator counts, layer
sizes, batch, precision), then cost (operations, bytes, and their roofline on one and the same reference device), then
the fusion structure (costs of the layers an optimiser makes of the nodes, and nodes per layer), then the device (its
numbers, and its own roofline). Then the trees over engines give way to the package's stages: physics alone, and physics
with trees over layers where layers were timed. Every step is taken on the network's nodes, on the layers the rules
foresee, and on the layers the runtime itself reported (`reported_layers.py`; there are none for published TensorRT).
Last, the whole predictor does without each group of features of its trees over layers.

Trees over engines know nothing of how a laboratory measured, which the stages do. On nodes, a kernel's time counts for
the node it is named after. Measured rows are a sample with a fixed seed that keeps every lineage, of the GPU's as large
as asked for; rows that are never judged are left out. Intervals are 90 % of a bootstrap over lineages, paired where two
steps are compared. `--published` names the folder where `perfpred import published` already wrote the published tables;
without them and the reference data the measured rows alone are ablated.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice, pairwise

import numpy as np
import pandas as pd
import xgboost as xgb
from accuracy import PUBLISHED, published_dataset
from reported_layers import reportable, with_reported_layers
from written import RESULTS, percent, sampled, write

from perfpred.corpus import datasets_folder
from perfpred.dataset import Dataset
from perfpred.features import DEVICE_NUMBERS, bound_s, engine_features, layer_features, without_groups
from perfpred.instances import layer_instances
from perfpred.parallel import each
from perfpred.plots import COLOURS, figure
from perfpred.predictor import LatencyPredictor
from perfpred.scores import lineages, unjudged
from perfpred.splits import Split, scorable, splits, subset

#: Engines taken of each measured dataset, of the first unless told; of the first the feature groups are ablated too.
SAMPLES = {"gpu-onnxruntime": 130, "cpu-onnxruntime": 90}
SEED = 0
FOLDS = 3
DRAWS = 2000
LEVELS = {"node": "nodes", "fused": "fused layers", "builder": "reported layers"}
STEPS = {
    "shape": "shape", "cost": "+ cost", "device": "+ device", "physics": "physics", "trees": "physics, layer trees",
}  # fmt: skip
#: In the order in which knowledge is added; what the optimiser makes of the nodes is the third.
LADDER = (
    ("shape", "node", ""), ("cost", "node", ""), ("cost", "fused", ""), ("device", "fused", ""),
    ("physics", "fused", ""), ("trees", "fused", ""),
)  # fmt: skip
#: Groups of features of the trees over layers.
GROUPS = ("shape", "cost", "fusion", "tile", "bound", "precision")
SIZES = [f"shape:{size}" for size in ("m", "n", "k", "groups", "c", "k_out", "h", "w", "r", "stride")]

Key = tuple[str, str, str]


@dataclass(kw_only=True)
class Ablated:
    """One dataset's rows and the error of each step on them.

    Attributes:
        name: Of the dataset.
        rows: Engines and their layers at all levels to be had.
        among: Engines that they were drawn from.
        errors: Absolute relative error of each engine by step, level and feature group left out.
    """

    name: str
    rows: Dataset
    among: int
    errors: dict[Key, np.ndarray] = field(default_factory=dict)

    @property
    def lineage(self) -> pd.Series:
        """Lineage of each engine."""
        return lineages(self.rows.engines)


def boosted_trees() -> xgb.XGBRegressor:
    """Trees for whole engines; small steps, since the sets are small."""
    return xgb.XGBRegressor(
        n_estimators=500, max_depth=4, learning_rate=0.04, min_child_weight=5, subsample=0.7, colsample_bytree=0.5,
        reg_lambda=4.0, tree_method="hist", n_jobs=1, random_state=SEED,
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


def regressed(rows: Dataset, level: str, step: str, split: Split) -> np.ndarray:
    """Latency of the split's tested engines by trees over engines, seconds; shape (n_tested,)."""
    features, offset = known(step, layer_instances(rows.engines, rows.layers_at(level)))
    target = np.log(rows.engines["latency_s"].to_numpy(float)) - offset
    trees = boosted_trees().fit(features.iloc[split.train], target[split.train])
    made: np.ndarray = np.exp(trees.predict(features.iloc[split.test]) + offset[split.test])
    return made


def staged(rows: Dataset, level: str, step: str, drop: str, split: Split) -> np.ndarray:
    """Latency of the split's tested engines by the package's predictor, seconds; shape (n_tested,)."""
    predictor = LatencyPredictor(
        level=level, drop=[drop] if drop else [], trees=step == "trees", folds=0, seed=SEED
    ).fit(subset(rows, split.train))
    asked = subset(rows, split.test)
    return predictor.predict_engines(asked.engines, asked.layers)


def predicted(rows: Dataset, groups: Sequence[str]) -> Iterator[tuple[Key, np.ndarray]]:
    """Every step on every level, then the last without each of the feature groups, with the latencies it gives.

    Of engines whose lineage was not trained on, seconds; shape (n_engines,).
    """
    every = list(splits(rows.engines, "lineage", folds=FOLDS, seed=SEED))
    levels = [level for level in LEVELS if len(rows.layers_at(level))]
    steps = list(STEPS) if len(rows.times) else list(STEPS)[:-1]
    keys = [(step, level, "") for step in reversed(steps) for level in levels]
    keys += [("trees", "fused", group) for group in groups if "trees" in steps]
    parts = iter(each(_latency, rows, ((*key, split) for key in keys for split in every), n_jobs=-1))
    for key in keys:
        made = np.empty(len(rows.engines))
        for split, part in zip(every, islice(parts, len(every)), strict=True):
            made[split.test] = part
        yield key, made


def _latency(rows: Dataset, step: str, level: str, drop: str, split: Split) -> np.ndarray:
    at = Dataset(engines=rows.engines, layers=rows.layers_at(level), times=rows.times)
    return staged(at, level, step, drop, split) if step in ("physics", "trees") else regressed(at, level, step, split)


def drawn_mape(error: np.ndarray, lineage: pd.Series) -> np.ndarray:
    """Bootstrap of the MAPE over lineages, shape (DRAWS,); the same draws for every error."""
    sums = pd.DataFrame({"error": error, "n": 1.0}).groupby(lineage.to_numpy()).sum().to_numpy()
    picks = np.random.default_rng(SEED).integers(0, len(sums), (DRAWS, len(sums)))
    totals = sums[picks].sum(axis=1)
    made: np.ndarray = totals[:, 0] / totals[:, 1]
    return made


def compared(found: Ablated) -> pd.DataFrame:
    """Share of the error that is gone between two steps, with its interval."""
    errors = found.errors
    pairs = [("ladder", a, b) for a, b in pairwise(LADDER)]
    for before, after in (("node", "fused"), ("fused", "builder"), ("node", "builder")):
        pairs += [(f"{LEVELS[before]} to {LEVELS[after]}", (s, before, ""), (s, after, "")) for s in STEPS]
    pairs += [("group put back", key, ("trees", "fused", "")) for key in errors if key[2]]
    made = []
    for question, before, after in pairs:
        if before not in errors or after not in errors:
            continue
        drawn = 1 - drawn_mape(errors[after], found.lineage) / drawn_mape(errors[before], found.lineage)
        low, high = np.quantile(drawn, [0.05, 0.95])
        made.append(
            {
                "dataset": found.name, "question": question, "from": _label(before), "to": _label(after),
                "mape_before": errors[before].mean(), "mape_after": errors[after].mean(),
                "error_removed": 1 - errors[after].mean() / errors[before].mean(), "low": low, "high": high,
            }
        )  # fmt: skip
    return pd.DataFrame(made)


def _label(key: Key) -> str:
    step, level, group = key
    return f"{STEPS[step]}, {LEVELS[level]}" + (f", without {group}" if group else "")


def scored(found: Ablated) -> pd.DataFrame:
    """Errors of each step on each level, with the interval of the MAPE over lineages."""
    made, lineage = [], found.lineage
    for (step, level, group), error in found.errors.items():
        low, high = np.quantile(drawn_mape(error, lineage), [0.05, 0.95])
        made.append(
            {
                "dataset": found.name, "step": step, "level": level, "left_out": group, "n": len(error),
                "lineages": lineage.nunique(), "mape": error.mean(), "low": low, "high": high,
                "macro_mape": pd.Series(error).groupby(lineage.to_numpy()).mean().mean(),
                "median_ape": np.median(error), "within_10": (error <= 0.1).mean(),
            }
        )  # fmt: skip
    return pd.DataFrame(made)


def findings(found: Ablated, changes: pd.DataFrame) -> list[str]:
    """Sentences with the numbers of the tables."""
    n, mape = len(found.rows.engines), {key: error.mean() for key, error in found.errors.items()}
    path = " → ".join(f"{_label(key)} {percent(mape[key])}" for key in LADDER if key in mape)
    drawn = f"{n} engines, drawn from {found.among} with seed {SEED}," if n < found.among else f"{n} engines"
    said = [f"{found.name}, {drawn} of {found.lineage.nunique()} lineages, lineages unseen. MAPE: {path}."]
    for question, part in changes.groupby("question", sort=False):
        if " to " not in str(question):
            continue
        steps = [f"{row['from'].rpartition(', ')[0]} {_removed(row)}" for row in part.to_dict("records")]
        said.append(
            f"{found.name}, from {question}, all else equal, the error changes by: {'; '.join(steps)}. "
            f"{_told(part)} can be told from no change."
        )
    groups = changes[changes["question"] == "group put back"]
    if len(groups):
        each = [f"{r['from'].rpartition(' ')[2]} {percent(r['mape_before'])}" for r in groups.to_dict("records")]
        whole = percent(groups["mape_after"].iloc[0])
        said.append(
            f"{found.name}, the predictor's trees over layers without one group of features, {whole} with all: "
            f"{', '.join(each)}. {_told(groups)} can be told from no change."
        )
    return said


def _removed(row: dict[str, float]) -> str:
    return f"{-row['error_removed']:+.1%} (90 % interval {-row['high']:+.1%} to {-row['low']:+.1%})"


def _told(part: pd.DataFrame) -> str:
    clear = ((part["low"] > 0) | (part["high"] < 0)).sum()
    return f"{clear} of {len(part)} changes"


def of_recordings() -> list[str]:
    """What is known of layers that classic TensorRT reports: too few engines to learn from, enough to compare."""
    stored = RESULTS / "fusion_agreement.json"
    told = json.loads(stored.read_text())["summary"].get("tensorrt", {}).get("all") if stored.exists() else None
    return [
        f"Classic TensorRT reports its layers in {told['networks']} recorded engines alone, too few to train on; there the "
        f"foreseen layers are the reported ones with F1 {told['f1']:.3f} (`fusion_agreement`)."
    ] if told else []  # fmt: skip


def draw(scores: pd.DataFrame) -> None:
    """MAPE of each step on all levels, a panel a dataset."""
    names = list(dict.fromkeys(scores["dataset"]))
    with figure(RESULTS / "ablation.png", width=4.2 * len(names), height=4.0) as axes:
        canvas = axes.figure
        axes.remove()
        for place, name in enumerate(names):
            panel = canvas.add_subplot(1, len(names), place + 1)
            part = scores[(scores["dataset"] == name) & (scores["left_out"] == "")]
            for number, (level, label) in enumerate(LEVELS.items()):
                at = part[part["level"] == level].set_index("step").reindex(list(STEPS))
                ends = 100 * np.array([at["mape"] - at["low"], at["high"] - at["mape"]])
                where = np.arange(len(at)) + 0.13 * (number - 1)
                panel.errorbar(
                    where, 100 * at["mape"], ends, fmt="o", ms=4, capsize=2, color=COLOURS[number], label=label
                )
            panel.set_xticks(range(len(STEPS)), [text.replace(", ", ",\n") for text in STEPS.values()], fontsize=7)
            panel.set_title(f"{name} ({part['n'].iloc[0]} engines)", fontsize=9)
            panel.set_yscale("log")
            panel.yaxis.set_major_formatter("{x:g}")
            panel.yaxis.set_minor_formatter("{x:g}")
            panel.tick_params(axis="y", which="minor", labelsize=7)
            panel.spines[["top", "right"]].set_visible(False)
            if place == 0:
                panel.set_ylabel("MAPE on unseen lineages, %; 90 % interval")
                panel.legend(frameon=False, fontsize=8)


def sources(samples: Mapping[str, int], imported: str | None) -> Iterator[Ablated]:
    """Rows of each dataset, with the layers that its runtime reported where it did."""
    for name, most in samples.items():
        rows = scorable(Dataset.read(datasets_folder() / name))
        judged = np.flatnonzero(~unjudged(rows.engines))
        told = np.intersect1d(judged, reportable(rows))
        among = told if len(told) else judged
        chosen = among[sampled(rows.engines.iloc[among], most, SEED)]
        part = with_reported_layers(rows, chosen) if len(told) else subset(rows, chosen)
        yield Ablated(name=name, rows=part, among=len(among))
    published = published_dataset(imported)
    if published is not None:
        rows = scorable(published)
        yield Ablated(name=PUBLISHED, rows=rows, among=len(rows.engines))


def main() -> None:
    """Trains every step on every dataset and compares them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--published", metavar="DATASET", help="folder where the published tables are imported")
    first = next(iter(SAMPLES))
    parser.add_argument("--engines", type=int, default=SAMPLES[first], help=f"engines taken of {first}")
    given = parser.parse_args()
    scores, changes, said = [], [], []
    for found in sources(SAMPLES | {first: given.engines}, given.published):
        measured = found.rows.engines["latency_s"].to_numpy(float)
        for key, latency_s in predicted(found.rows, GROUPS if found.name == first else ()):
            found.errors[key] = np.abs(latency_s / measured - 1)
            print(f"{found.name}, {_label(key)}: {percent(found.errors[key].mean())}", flush=True)
        scores.append(scored(found))
        changes.append(compared(found))
        said += findings(found, changes[-1])
    table, change = pd.concat(scores, ignore_index=True), pd.concat(changes, ignore_index=True)
    draw(table)
    said += of_recordings() if PUBLISHED in set(table["dataset"]) else []
    write(
        "ablation",
        "What each thing known takes off the error",
        tables={
            "scores": table,
            "Share of the error removed": change,
            "Errors of each step": table[table["left_out"] == ""].drop(columns="left_out"),
        },
        findings=said,
        figures=["ablation.png"],
        most=90,
        options=f"--engines {given.engines}" if given.engines != SAMPLES[first] else "",
    )
    print("\n".join(said))


if __name__ == "__main__":
    main()

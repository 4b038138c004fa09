"""How many networks does a predictor need, and how many measurements a device that it has never seen?

Command: PERFPRED_REFERENCE_DATA=... python experiments/transfer.py [--published DATASET]
Output: experiments/results/transfer.csv, .json, .md, .png and learning_curve.png

On a sample of our GPU rows with a fixed seed, which keeps every lineage, and on the published TensorRT tables where the
reference data are given (`--published` names the folder where `perfpred import published` already wrote them); probes
are left out. Learning curve: in each of three folds of whole lineages, the predictor is trained on the engines of a
random choice of the other lineages' networks, more and more of them, and scored on the fold. Transfer: each device and
partition size of our rows, and each published Jetson, is left out in turn, k of its networks are measured, and its other
networks are scored; k = 0 is the specification alone. The roofline and the latency on the nearest device have one scale
from the same measurements. Which networks to measure first: those that tell most of a linear correction
(`perfpred.transfer.most_telling`, from work, weights and layers alone) against random ones.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from typing import ClassVar

import numpy as np
import pandas as pd
from accuracy import PUBLISHED, published_dataset
from written import RESULTS, percent, sampled, write

from perfpred.corpus import Corpus, datasets_folder
from perfpred.dataset import Dataset
from perfpred.instances import layer_instances
from perfpred.parallel import each
from perfpred.plots import COLOURS, figure
from perfpred.predictor import LatencyPredictor
from perfpred.scores import unjudged
from perfpred.shots import Shots
from perfpred.splits import Split, networks, scorable, splits, subset
from perfpred.transfer import choose_calibration, kshot, most_telling

DATASET = "gpu-onnxruntime"
ENGINES = 200
SEED = 0
FOLDS = 3
TRAINING_NETWORKS = (10, 40, 160)
CHOICES = 2
SHOTS = (0, 1, 3, 5, 10, 20)
DRAWS = 20
FIRST = 10
NAMES = {
    "perfpred": "perfpred", "telling": "perfpred, telling networks first", "scaled_roofline": "scaled roofline",
    "nearest": "nearest device, scaled",
}  # fmt: skip


class Kept(LatencyPredictor):
    """A predictor that remembers who was trained last: one training serves two ways to choose networks."""

    last: ClassVar[LatencyPredictor]

    def fit(self, dataset: Dataset) -> LatencyPredictor:
        """Learns as ever."""
        type(self).last = super().fit(dataset)
        return self


def learned(rows: Dataset) -> pd.DataFrame:
    """Error on each fold of lineages after training on some networks of the others."""
    network = networks(rows.engines).to_numpy()
    random = np.random.default_rng(SEED)
    asked = []
    for split in splits(rows.engines, "lineage", folds=FOLDS, seed=SEED):
        there = np.unique(network[split.train])
        counts = [n for n in TRAINING_NETWORKS if n < len(there)]
        for count in counts if len(counts) == len(TRAINING_NETWORKS) else [*counts, len(there)]:
            for choice in range(CHOICES if count < min(len(there), max(TRAINING_NETWORKS)) else 1):
                picked = random.choice(there, count, replace=False)
                chosen = split.train[np.isin(network[split.train], picked)]
                about = {"fold": split.name, "networks": str(count if count < len(there) else "all"), "choice": choice}
                asked.append((about, chosen, split.test))
    return pd.DataFrame(each(_learned, rows, reversed(asked), n_jobs=-1))


def _learned(rows: Dataset, about: dict[str, object], train: np.ndarray, test: np.ndarray) -> dict[str, object]:
    known, tested = subset(rows, train), subset(rows, test)
    predictor = LatencyPredictor(folds=0, seed=SEED).fit(known)
    measured = tested.engines["latency_s"].to_numpy(float)
    error = np.abs(predictor.predict_engines(tested.engines, tested.layers) / measured - 1)
    return {
        **about, "engines": len(known.engines), "n": len(error), "mape": error.mean(), "median_ape": np.median(error),
        "within_10": (error <= 0.1).mean(),
    }  # fmt: skip


def curve(learning: pd.DataFrame) -> pd.DataFrame:
    """The learning curve, folds weighted by their rows; spread over the choices of networks."""
    weighted = learning.assign(error=learning["mape"] * learning["n"])
    made = weighted.groupby(["networks", "choice"], sort=False)[["error", "n", "engines"]].sum().reset_index()
    made["mape"] = made["error"] / made["n"]
    grouped = made.groupby("networks", sort=False)
    table = pd.DataFrame(
        {
            "n": grouped["n"].first(), "training_engines": grouped["engines"].mean() / FOLDS,
            "choices": grouped.size(), "mape": grouped["mape"].mean(), "least": grouped["mape"].min(),
            "most": grouped["mape"].max(),
        }
    ).reset_index()  # fmt: skip
    return table.sort_values("training_engines", ignore_index=True)


def places_of(rows: Dataset) -> list[str]:
    """What is left out in turn: Jetsons where there are any, else every device and partition size."""
    every = [split.name for split in splits(rows.engines, "device")]
    return [name for name in every if name.startswith("jetson-")] or every


def measured_first(rows: Dataset) -> pd.DataFrame:
    """k-shot scores of every place left out, a row a place, k and draw: random networks, and the most telling ones."""
    every = places_of(rows)
    left_out = [split for split in splits(rows.engines, "device") if split.name in every]
    return pd.concat(each(_place, rows, ((split,) for split in left_out), n_jobs=-1), ignore_index=True)


def _place(rows: Dataset, split: Split) -> pd.DataFrame:
    random = kshot(Kept(), rows, shots=SHOTS, draws=DRAWS, seed=SEED, devices=[split.name])
    telling = _telling(Kept.last, subset(rows, split.test)).assign(device=split.name)
    return random.rename(columns={"mape": "perfpred"}).merge(telling, on=["device", "k", "draw"], how="left")


def _telling(predictor: LatencyPredictor, asked: Dataset) -> pd.DataFrame:
    """Error by k and draw where the most telling networks are measured; draws are of the engines of each."""
    instances = layer_instances(asked.engines, asked.layers_at(predictor.level))
    similarity = predictor.stages_.similarity(asked.engines, instances)
    predicted = predictor.predict_engines(asked.engines, asked.layers)
    measured = asked.engines["latency_s"].to_numpy(float)
    network = networks(asked.engines).to_numpy()
    sizes = _sizes(instances, network)
    order = sizes.index[most_telling(sizes, min(max(SHOTS), len(sizes)))]
    random = np.random.default_rng(SEED)
    made = []
    for k in (k for k in SHOTS if 0 < k <= len(sizes) // 2):
        rest = ~np.isin(network, order[:k])
        for draw in range(DRAWS):
            drawn = [random.choice(np.flatnonzero(network == name)) for name in order[:k]]
            moved = Shots().fit(similarity[drawn], np.log(measured / predicted)[drawn]).predict(similarity)
            error = np.abs(predicted * np.exp(moved) / measured - 1)[rest]
            made.append({"k": k, "draw": draw, "telling": error.mean()})
    return pd.DataFrame(made, columns=["k", "draw", "telling"])


def _sizes(instances: pd.DataFrame, network: np.ndarray) -> pd.DataFrame:
    """What is known of each network before anything is measured, as logarithms; index the network."""
    grouped = instances.groupby("row")
    totals = grouped[["flops", "weight_bytes"]].sum().astype(float).assign(layers=grouped.size())
    work, weights, layers = np.log1p(totals.groupby(network).mean()).to_numpy().T
    columns = {"work": work, "weights": weights, "layers": layers, "reuse": work - weights, "depth": work - layers}
    return pd.DataFrame(columns, index=np.unique(network))


def by_k(shots: pd.DataFrame) -> pd.DataFrame:
    """Median over draws for each device and k."""
    grouped = shots.astype(dict.fromkeys(NAMES, float)).groupby(["device", "k"])
    made = grouped[[*NAMES, "within_10"]].median()
    return made.rename(columns=NAMES).assign(n=grouped["n"].median(), draws=grouped.size()).reset_index()


def over_devices(table: pd.DataFrame) -> pd.DataFrame:
    """Mean over the devices that have every k up to 10, so that the points of the curve are of the same devices."""
    full = table.groupby("device")["k"].max()
    most = min(10, int(full.max()))
    part = table[table["device"].isin(full[full >= most].index) & (table["k"] <= most)]
    grouped = part.groupby("k")
    near = grouped[NAMES["nearest"]].count()
    made = grouped[list(NAMES.values())].mean()
    return made.assign(devices=grouped["device"].nunique(), devices_with_nearest=near).reset_index()


def first_networks() -> pd.DataFrame:
    """The corpus networks most worth measuring on a new device, the most telling first."""
    corpus = Corpus.load()
    names = choose_calibration(corpus, FIRST)
    return pd.DataFrame(
        {
            "order": range(1, FIRST + 1), "network": names, "lineage": [corpus[n].lineage for n in names],
            "gflops": [corpus[n].gflops for n in names], "nodes": [corpus[n].nodes for n in names],
        }
    )  # fmt: skip


def findings(name: str, drawn: str, learning: pd.DataFrame, table: pd.DataFrame, mean: pd.DataFrame) -> list[str]:
    """Sentences on one dataset, with the numbers of the tables."""
    said = [
        f"{name}, {drawn}: learning curve, lineages unseen, {learning['n'].iloc[0]} rows scored: MAPE "
        + ", ".join(f"{percent(r['mape'])} from {r['networks']} networks" for r in learning.to_dict("records"))
        + "."
    ]
    for row in mean.to_dict("records"):
        said.append(
            f"{name}, k = {row['k']}, mean of {row['devices']} unseen places: MAPE "
            + ", ".join(f"{label} {percent(row[label])}" for label in NAMES.values() if pd.notna(row[label]))
            + "."
        )
    both = table.dropna(subset=[NAMES["telling"]])
    if len(both):
        better = (both[NAMES["telling"]] < both["perfpred"]).sum()
        said.append(
            f"{name}: measuring the most telling networks first is better than random ones in {better} of {len(both)} places "
            f"and numbers of measurements; the error is a median {(both[NAMES['telling']] / both['perfpred']).median():.2f} "
            "times that of random choice."
        )
    for device, part in table.groupby("device"):
        rows = part.set_index("k")
        shown = ", ".join(f"{percent(rows.loc[k, 'perfpred'])} at k = {k}" for k in rows.index)
        said.append(f"{name}, {device} ({rows['n'].max():.0f} rows): MAPE {shown}.")
    return said


def draw_shots(tables: dict[str, pd.DataFrame]) -> None:
    """The error on each unseen place over k, a panel a dataset."""
    with figure(RESULTS / "transfer.png", width=5.2 * len(tables), height=4.0) as axes:
        canvas = axes.figure
        axes.remove()
        for place, (name, table) in enumerate(tables.items()):
            panel = canvas.add_subplot(1, len(tables), place + 1)
            for number, (device, part) in enumerate(table.groupby("device")):
                style = ("-", "--")[number // len(COLOURS) % 2]
                colour = COLOURS[number % len(COLOURS)]
                panel.plot(part["k"], 100 * part["perfpred"], style, marker="o", ms=3, color=colour, label=device)
            panel.set_title(f"{name}: places never trained on", fontsize=9)
            panel.set_xlabel("networks measured there")
            panel.set_ylabel("MAPE, %; median of draws")
            panel.set_yscale("log")
            panel.yaxis.set_major_formatter("{x:g}")
            panel.yaxis.set_minor_formatter("{x:g}")
            panel.tick_params(which="minor", labelsize=7)
            panel.spines[["top", "right"]].set_visible(False)
            panel.legend(frameon=False, fontsize="x-small", ncols=2)


def draw_learning(learnings: dict[str, pd.DataFrame]) -> None:
    """The learning curves."""
    with figure(RESULTS / "learning_curve.png", title="Lineages never trained on") as axes:
        for colour, (name, learning) in zip(COLOURS, learnings.items(), strict=False):
            counts = learning["training_engines"]
            axes.fill_between(counts, 100 * learning["least"], 100 * learning["most"], color=colour, alpha=0.2, lw=0)
            axes.plot(counts, 100 * learning["mape"], marker="o", color=colour, label=name)
            for row in learning.to_dict("records"):
                at = (row["training_engines"], 100 * row["mape"])
                axes.annotate(str(row["networks"]), at, (0, 6), textcoords="offset points", ha="center", fontsize=7)
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter("{x:g}")
        axes.xaxis.set_minor_formatter("")
        axes.set_xlabel("engines trained on; networks beside the dots")
        axes.set_ylabel("MAPE, %; band: least and most of the choices")
        axes.set_ylim(bottom=0)
        axes.legend(frameon=False)


def report(found: dict[str, tuple[str, pd.DataFrame, pd.DataFrame]]) -> None:
    """Writes learning curve and shots of each dataset, with a word on what was drawn of it."""
    tables: dict[str, pd.DataFrame] = {"shots": pd.concat([s.assign(dataset=n) for n, (_, _, s) in found.items()])}
    said = []
    for name, (drawn, learning, shots) in found.items():
        table = by_k(shots)
        mean = over_devices(table)
        said += findings(name, drawn, learning, table, mean)
        tables[f"{name}: learning curve, lineages unseen"] = learning
        tables[f"{name}: mean over unseen places"] = mean
        tables[f"{name}: each unseen place, median of draws"] = table
    tables["Networks of the corpus to measure first on a new device"] = first_networks()
    draw_shots({name: by_k(shots) for name, (_, _, shots) in found.items()})
    draw_learning({name: learning for name, (_, learning, _) in found.items()})
    title = "How many networks to train on, and how many to measure on a new device"
    write("transfer", title, tables=tables, findings=said, figures=["transfer.png", "learning_curve.png"], most=60)
    print("\n".join(said))


def sources(imported: str | None) -> Iterator[tuple[str, Dataset, int]]:
    """Name and rows of each dataset, and the engines that the rows were drawn from."""
    rows = scorable(Dataset.read(datasets_folder() / DATASET))
    rows = subset(rows, np.flatnonzero(~unjudged(rows.engines)))
    yield DATASET, subset(rows, sampled(rows.engines, ENGINES, SEED)), len(rows.engines)
    published = published_dataset(imported)
    if published is not None:
        rows = scorable(published)
        yield PUBLISHED, rows, len(rows.engines)


def main() -> None:
    """Scores learning and transfer."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--published", metavar="DATASET", help="folder where the published tables are imported")
    found = {}
    for name, rows, among in sources(parser.parse_args().published):
        taken = len(rows.engines)
        drawn = f"{taken} of {among} engines drawn with seed {SEED}" if taken < among else f"{among} engines"
        found[name] = (drawn, curve(learned(rows)), measured_first(rows))
    report(found)


if __name__ == "__main__":
    main()

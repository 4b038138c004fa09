"""How many networks does a predictor need, and how many measurements a device that it has never seen?

Command: PERFPRED_REFERENCE_DATA=... python experiments/transfer.py [--published DATASET]
Output: experiments/results/transfer.csv, .json, .md and .png

Learning curve: in each of five folds of whole lineages, the predictor is trained on a random choice of the other
lineages' networks, more and more of them, and scored on the fold. Transfer: each Jetson of the published TensorRT
tables is left out in turn, k of its networks are measured, and its other networks are scored; k = 0 is the
specification alone. The roofline and the latency on the nearest device have one scale from the same measurements.
Which networks to measure first is chosen by how much they tell (`perfpred.transfer.choose_calibration`). Without
reference data the devices and partition sizes of our GPU rows are left out instead.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator

import numpy as np
import pandas as pd
from accuracy import PUBLISHED, published_dataset
from written import RESULTS, percent, write

from perfpred.corpus import Corpus, datasets_folder
from perfpred.dataset import Dataset
from perfpred.plots import COLOURS, figure
from perfpred.predictor import LatencyPredictor
from perfpred.splits import networks, scorable, splits, subset
from perfpred.transfer import choose_calibration, kshot

DATASET = "gpu-onnxruntime"
SEED = 0
FOLDS = 5
TRAINING_NETWORKS = (10, 40, 160)
CHOICES = 2
SHOTS = (0, 1, 3, 5, 10, 20)
DRAWS = 20
FIRST = 10
NAMES = {"mape": "perfpred", "scaled_roofline": "scaled roofline", "nearest": "nearest device, scaled"}


def learned(dataset: Dataset) -> Iterator[dict[str, object]]:
    """Error on each fold of lineages after training on some networks of the others."""
    rows = scorable(dataset)
    network = networks(rows.engines).to_numpy()
    random = np.random.default_rng(SEED)
    for split in splits(rows.engines, "lineage", folds=FOLDS, seed=SEED):
        asked = subset(rows, split.test)
        measured = asked.engines["latency_s"].to_numpy(float)
        there = np.unique(network[split.train])
        for count in (*(n for n in TRAINING_NETWORKS if n < len(there)), len(there)):
            for choice in range(CHOICES if count < len(there) else 1):
                chosen = split.train[np.isin(network[split.train], random.choice(there, count, replace=False))]
                predictor = LatencyPredictor(folds=0, seed=SEED).fit(subset(rows, chosen))
                error = np.abs(predictor.predict_engines(asked.engines, asked.layers) / measured - 1)
                yield {
                    "fold": split.name, "networks": count if count < len(there) else "all", "choice": choice,
                    "engines": len(chosen), "n": len(error), "mape": error.mean(), "median_ape": np.median(error),
                    "within_10": (error <= 0.1).mean(),
                }  # fmt: skip


def curve(learning: pd.DataFrame) -> pd.DataFrame:
    """The learning curve, folds weighted by their rows; spread over the choices of networks."""
    weighted = learning.assign(error=learning["mape"] * learning["n"])
    made = weighted.groupby(["networks", "choice"], sort=False)[["error", "n", "engines"]].sum().reset_index()
    made["mape"] = made["error"] / made["n"]
    grouped = made.groupby("networks", sort=False)
    return pd.DataFrame(
        {
            "n": grouped["n"].first(), "training_engines": grouped["engines"].mean() / FOLDS,
            "choices": grouped.size(), "mape": grouped["mape"].mean(), "least": grouped["mape"].min(),
            "most": grouped["mape"].max(),
        }
    ).reset_index()  # fmt: skip


def left_out(imported: str | None) -> tuple[str, pd.DataFrame]:
    """k-shot scores of every device left out, one row a device, k and draw."""
    published = published_dataset(imported)
    name, dataset = (PUBLISHED, published) if published else (DATASET, Dataset.read(datasets_folder() / DATASET))
    every = [s.name for s in splits(scorable(dataset).engines, "device")]
    devices = [d for d in every if d.startswith("jetson-")] or every
    return name, kshot(LatencyPredictor(), dataset, shots=SHOTS, draws=DRAWS, seed=SEED, devices=devices)


def by_k(shots: pd.DataFrame) -> pd.DataFrame:
    """Median over draws for each device and k."""
    grouped = shots.astype(dict.fromkeys(NAMES, float)).groupby(["device", "k"])
    made = grouped[[*NAMES, "within_10"]].median()
    return made.rename(columns=NAMES).assign(n=grouped["n"].median(), draws=grouped.size()).reset_index()


def over_devices(table: pd.DataFrame) -> pd.DataFrame:
    """Mean over the devices that have every k up to 10, so that the points of the curve are of the same devices."""
    full = table.groupby("device")["k"].max()
    part = table[table["device"].isin(full[full >= 10].index) & (table["k"] <= 10)]
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


def findings(learning: pd.DataFrame, name: str, table: pd.DataFrame, mean: pd.DataFrame) -> list[str]:
    """Sentences with the numbers of the tables."""
    said = [
        f"Learning curve on {DATASET}, lineages unseen, {learning['n'].iloc[0]} rows: MAPE "
        + ", ".join(f"{percent(r['mape'])} from {r['networks']} networks" for r in learning.to_dict("records"))
        + "."
    ]
    for row in mean.to_dict("records"):
        said.append(
            f"{name}, k = {row['k']}, mean of {row['devices']} unseen devices: MAPE "
            + ", ".join(f"{label} {percent(row[label])}" for label in NAMES.values() if pd.notna(row[label]))
            + "."
        )
    for device, part in table.groupby("device"):
        rows = part.set_index("k")
        shown = ", ".join(f"{percent(rows.loc[k, 'perfpred'])} at k = {k}" for k in rows.index)
        said.append(f"{device} ({rows['n'].max():.0f} rows): MAPE {shown}.")
    return said


def draw(learning: pd.DataFrame, table: pd.DataFrame) -> None:
    """The learning curve, and the error on each unseen device over k."""
    with figure(RESULTS / "transfer.png", title="Transfer to devices never trained on") as axes:
        for number, (device, part) in enumerate(table.groupby("device")):
            style = ("-", "--")[number // len(COLOURS) % 2]
            colour = COLOURS[number % len(COLOURS)]
            axes.plot(part["k"], 100 * part["perfpred"], style, marker="o", ms=3, color=colour, label=device)
        axes.set_xlabel("networks measured on the device")
        axes.set_ylabel("MAPE, %; median of draws")
        axes.set_yscale("log")
        axes.legend(frameon=False, fontsize="x-small", ncols=2)
    with figure(RESULTS / "learning_curve.png", title="Lineages never trained on") as axes:
        places = np.arange(len(learning))
        axes.fill_between(places, 100 * learning["least"], 100 * learning["most"], color=COLOURS[0], alpha=0.2, lw=0)
        axes.plot(places, 100 * learning["mape"], marker="o", color=COLOURS[0])
        axes.set_xticks(places, learning["networks"].astype(str))
        axes.set_xlabel("networks trained on")
        axes.set_ylabel("MAPE, %; band: least and most of the choices")
        axes.set_ylim(bottom=0)


def report(learning: pd.DataFrame, name: str, shots: pd.DataFrame) -> None:
    """Writes the learning curve and the transfer to each device."""
    table = by_k(shots)
    mean = over_devices(table)
    draw(learning, table)
    said = findings(learning, name, table, mean)
    write(
        "transfer",
        "How many networks to train on, and how many to measure on a new device",
        tables={
            "shots": shots,
            f"Learning curve on {DATASET}, lineages unseen": learning,
            f"{name}: mean over unseen devices": mean,
            f"{name}: each unseen device, median of draws": table,
            "Networks to measure first on a new device": first_networks(),
        },
        findings=said,
        figures=["transfer.png", "learning_curve.png"],
        most=60,
    )
    print("\n".join(said))


def main() -> None:
    """Scores learning and transfer."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--published", metavar="DATASET", help="folder where the published tables are imported")
    imported = parser.parse_args().published
    learning = curve(pd.DataFrame(learned(Dataset.read(datasets_folder() / DATASET))))
    report(learning, *left_out(imported))


if __name__ == "__main__":
    main()

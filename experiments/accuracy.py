"""How far off is each predictor and baseline on lineages, families and devices it never saw?

Command: PERFPRED_REFERENCE_DATA=... python experiments/accuracy.py [--published DATASET]
         python experiments/accuracy.py --full [--protocol lineage ...] [--dataset gpu-onnxruntime ...]
Output: experiments/results/accuracy.csv, .json, .md and .png; accuracy_full.* with --full

Grouped splits alone, three folds: whole lineages, whole families, or whole devices and partition sizes are left out.
Every baseline is calibrated on the same training rows, per device, precision and latency kind, on the nodes as the
network has them and on the fused layers. Places left out overlap: a row counts for its device and for its partition.
The predictor is compared with the baseline that turned out best on the tested rows themselves, which favours the
baselines. Of each dataset a sample with a fixed seed, which keeps every lineage, is trained on and scored. `--full`
trains on and scores all engines, in five folds, up to half an hour of a core for each protocol; lines of protocols not
asked for stay if they were made of the same data, and `--dataset` leaves others out. Without reference data the measured
datasets alone are scored; `--published` names the folder where `perfpred import published` already wrote the published
tables.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import pandas as pd
from joblib import Parallel, delayed
from written import RESULTS, percent, reference_data, sampled, write

from perfpred.corpus import datasets_folder
from perfpred.dataset import Dataset, concat
from perfpred.errors import DatasetError
from perfpred.evaluate import evaluate
from perfpred.imports import dataset_from_published
from perfpred.plots import COLOURS, figure
from perfpred.predictor import LatencyPredictor
from perfpred.scores import error_ratio, lineages, noise_floor, score_table, unjudged
from perfpred.splits import places, scorable, splits, subset

MEASURED = ("gpu-onnxruntime", "cpu-onnxruntime")
PUBLISHED = "published TensorRT"
TABLES = ("tensorrt_published.csv", "tensorrt_published_detectors.csv")
PROTOCOLS = ("lineage", "family", "device")
#: Engines of a measured dataset that are trained on and scored, at most, and folds that they are dealt to; published ones
#: are on many devices.
ENGINES, PUBLISHED_ENGINES, FOLDS = 180, 450, 3
#: Folds where all engines are asked for.
FULL_FOLDS = 5
SEED = 0
CELL = ["dataset", "protocol", "latency_kind"]
SCORES = [
    "drawn", "among", "n", "n_networks", "mape", "macro_mape", "median_ape", "within_10", "kendall_tau", "concordance",
    "coverage", "width",
]  # fmt: skip
ALL = "all"
TICKS = (10, 20, 30, 50, 70, 100, 150)
LEFT_OUT = "Each device or partition size left out"
RATIOS = "Error of the best baseline over that of perfpred, 90 % interval over families"
HELD = "What the 90 % intervals hold, of parts of the rows"
TABLES_OF = {"scores": "Scores by latency kind", "ratios": RATIOS, "left out": LEFT_OUT, "held": HELD}
#: Rows of a lineage that is small, and of one that is larger than most.
SIZES = (30, 100, 300)
LABELS = {"": "perfpred", "node": "baselines on nodes", "fused": "baselines on fused layers"}


def published_dataset(imported: str | None = None) -> Dataset | None:
    """The published tables as a dataset: read where already imported, else imported, which takes minutes."""
    if imported:
        return Dataset.read(imported)
    folder = reference_data()
    return concat([dataset_from_published(folder / table) for table in TABLES]) if folder else None


def measured() -> Iterator[tuple[str, Dataset]]:
    """What we measured ourselves, by name."""
    for name in MEASURED:
        yield name, Dataset.read(datasets_folder() / name)


def datasets(imported: str | None) -> Iterator[tuple[str, Dataset]]:
    """What is scored, by name."""
    yield from measured()
    published = published_dataset(imported)
    if published is not None:
        yield PUBLISHED, published


def baselines_of(rows: pd.DataFrame, level: str = "") -> list[str]:
    """Baseline columns of predictions, of one level or of all."""
    return [str(c) for c in rows if (":" in str(c) and str(c).startswith(level)) or (not level and c == "nearest")]


def scored(rows: pd.DataFrame) -> pd.DataFrame:
    """Scores of the predictor and all baselines, all latency kinds together and apart."""
    columns = ["predicted_s", *baselines_of(rows)]
    apart = score_table(rows, columns) if rows["latency_kind"].nunique() > 1 else pd.DataFrame()
    together = score_table(rows, columns, by=()).assign(latency_kind=ALL)
    table = pd.concat([together, apart], ignore_index=True)
    level, _, name = table["prediction"].str.rpartition(":").to_numpy().T
    return table.assign(level=level, prediction=np.where(name == "predicted_s", "perfpred", name))


def ratios(rows: pd.DataFrame) -> list[dict[str, object]]:
    """Error of the best baseline of each level over that of the predictor, over all kinds together and apart."""
    parts = [(ALL, rows), *(rows.groupby("latency_kind") if rows["latency_kind"].nunique() > 1 else [])]
    made = []
    for kind, part in parts:
        for level in ("node", "fused"):
            mape = {c: (part[c] / part["measured_s"] - 1).abs().mean() for c in baselines_of(part, f"{level}:")}
            best = min(mape, key=mape.__getitem__)
            against = error_ratio(part, part[best], part["predicted_s"], seed=SEED)
            made.append(
                {
                    "latency_kind": kind, "best of": level, "baseline": best.partition(":")[2], "n": len(part),
                    "families": int(part["family"].nunique()), "baseline_mape": mape[best],
                    "perfpred_mape": float((part["predicted_s"] / part["measured_s"] - 1).abs().mean()), **against,
                }
            )  # fmt: skip
    return made


def left_out(rows: pd.DataFrame) -> pd.DataFrame:
    """Error on each device or partition size left out, with the best scaled baseline of the nodes beside it."""
    table = score_table(rows, ["predicted_s", "node:scaled_roofline", "fused:scaled_roofline", "nearest"], by=["fold"])
    wide = table.pivot(index="fold", columns="prediction", values="mape").reset_index()
    own = table[table["prediction"] == "predicted_s"][["fold", "n", "within_10", "coverage", "width"]]
    error, batch = (rows["predicted_s"] / rows["measured_s"] - 1).abs(), rows["batch_size"]
    parts = {"perfpred, batch 1": error.where(batch.eq(1)), "perfpred, batch 8 and more": error.where(batch.ge(8))}
    by_batch = pd.DataFrame(parts).groupby(rows["fold"]).mean().reset_index()
    made = own.merge(wide, on="fold").merge(by_batch, on="fold")
    return made.rename(columns={"predicted_s": "perfpred", "fold": "left out"})


def held(rows: pd.DataFrame) -> pd.DataFrame:
    """Coverage and width of the intervals by device, precision, latency kind, and rows of the lineage."""
    lineage = lineages(rows)
    edges = [0, *SIZES, np.inf]
    names = [f"{low + 1:.0f} to {high:.0f}" if np.isfinite(high) else f"over {low}" for low, high in pairwise(edges)]
    parts = {
        "device": places(rows), "precision": rows["precision"], "latency kind": rows["latency_kind"],
        "rows of the lineage": pd.cut(lineage.groupby(lineage).transform("size"), edges, labels=names),
    }  # fmt: skip
    tables = [
        score_table(rows.assign(part=values.astype(str)), ["predicted_s"], by=["part"]).assign(of=name)
        for name, values in parts.items()
    ]
    return pd.concat(tables, ignore_index=True)[["of", "part", "n", "n_networks", "mape", "coverage", "width"]]


@dataclass(frozen=True, kw_only=True)
class Source:
    """Rows of one dataset that are trained on and scored, and what is said of all of them.

    Attributes:
        name: Of the dataset.
        rows: Drawn from it.
        among: Engines that they were drawn from.
        noise_mape: Its noise floor; `None` where nothing was built twice.
        digest: Of the dataset.
    """

    name: str
    rows: Dataset
    among: int
    noise_mape: float | None
    digest: str


def drawn(name: str, dataset: Dataset, most: int | None) -> Source:
    """A sample, a third at most of rows that are trained on alone, or everything."""
    rows = scorable(dataset)
    part = rows
    if most is not None:
        aside = unjudged(rows.engines)
        parts = np.flatnonzero(aside), np.flatnonzero(~aside)
        counts = (few := min(most // 3, len(parts[0]))), most - few
        chosen = [p[sampled(rows.engines.iloc[p], n, SEED)] for p, n in zip(parts, counts, strict=True) if n]
        part = subset(rows, np.sort(np.concatenate(chosen)))
    floor = noise_floor(dataset.good).get("mape")
    return Source(name=name, rows=part, among=len(rows.engines), noise_mape=floor, digest=dataset.digest())


def evaluated(source: Source, protocol: str, *, folds: int, n_jobs: int) -> dict[str, pd.DataFrame] | None:
    """All tables of one dataset under one protocol; `None` where the dataset has too few groups."""
    begun, part = time.monotonic(), source.rows
    try:
        if len(list(splits(part.engines, protocol, folds=folds, seed=SEED))) < 2:
            raise DatasetError("networks of one device alone are judged; nothing is left to compare its intervals with")
        found = evaluate([LatencyPredictor()], part, protocol=protocol, folds=folds, seed=SEED, n_jobs=n_jobs)
    except DatasetError as error:
        print(f"{source.name}, {protocol}: {error}")
        return None
    rows = found.predictions
    made = {
        "scores": scored(rows).assign(noise_mape=source.noise_mape, drawn=len(part.engines), among=source.among),
        "ratios": pd.DataFrame(ratios(rows)),
        "left out": left_out(rows) if protocol == "device" else pd.DataFrame(),
        "held": pd.DataFrame() if protocol == "device" else held(rows),
    }
    print(f"{source.name}, {protocol}: {len(rows)} rows, {time.monotonic() - begun:.0f} s", flush=True)
    about = {"dataset": source.name, "protocol": protocol, "data": source.digest}
    return {key: table.assign(**about) for key, table in made.items()}


def earlier(asked: Sequence[tuple[str, str]], digests: Sequence[str]) -> list[dict[str, pd.DataFrame]]:
    """Tables that `--full` left of what is not asked for, a dataset and a protocol each, if made of the same data."""
    stored = RESULTS / "accuracy_full.json"
    found = json.loads(stored.read_text())["tables"] if stored.exists() else {}
    tables = {key: pd.DataFrame(found.get(caption, [])) for key, caption in TABLES_OF.items()}
    if tables["scores"].empty:
        return []

    def kept(table: pd.DataFrame) -> pd.DataFrame:
        again = [cell in asked for cell in zip(table["dataset"], table["protocol"], strict=True)]
        return table[~np.array(again, bool) & table["data"].isin(digests)]

    return [{key: kept(table) if len(table) else table for key, table in tables.items()}]


def findings(scores: pd.DataFrame, ratio: pd.DataFrame) -> list[str]:
    """Sentences with the numbers of the tables."""
    said = []
    whole = scores[(scores["latency_kind"] == ALL) & (scores["prediction"] == "perfpred")]
    for row in whole.to_dict("records"):
        floor = row["noise_mape"]
        against = ratio[(ratio[CELL] == [row[c] for c in CELL]).all(axis=1)].set_index("best of")
        compared = " and ".join(
            f"the best baseline on "
            f"{'nodes' if level == 'node' else 'fused layers'} ({best['baseline']}) has {best['ratio']:.2f} times as much ({best['low']:.2f} to {best['high']:.2f})"
            for level, best in against.iterrows()
        )
        said.append(
            f"{row['dataset']}, unseen {row['protocol']} ({row['n']} rows, {row['n_networks']} networks"
            + (
                f"; {row['drawn']} of {row['among']} engines drawn with seed {SEED}"
                if row["drawn"] < row["among"]
                else ""
            )
            + f"): MAPE "
            f"{percent(row['mape'])}, median {percent(row['median_ape'])}, {compared}. The 90 % intervals hold "
            f"{percent(row['coverage'])} and are {row['width']:.2f} of the prediction wide; "
            + (f"noise floor {percent(floor)}." if pd.notna(floor) else "nothing was built twice: no noise floor.")
        )
    return said


def draw(scores: pd.DataFrame) -> None:
    """MAPE of the predictor and of every calibrated baseline, one line a dataset and protocol."""
    whole = scores[(scores["latency_kind"] == ALL) & (scores["prediction"] != "roofline")]
    cells = list(whole.groupby(["dataset", "protocol"], sort=False))
    with figure(RESULTS / "accuracy.png", width=7.2, height=1.2 + 0.38 * len(cells)) as axes:
        for place, (_, part) in enumerate(cells):
            for colour, (level, label) in zip(COLOURS, LABELS.items(), strict=False):
                dots = part[(part["level"] == level) & (part["prediction"] != "nearest")]
                shown = label if place == 0 else None
                marker = "D" if label == "perfpred" else "|"
                axes.plot(100 * dots["mape"], [place] * len(dots), marker, color=colour, label=shown, ms=7, mew=1.8)
        axes.set_yticks(range(len(cells)), [", unseen ".join(name) for name, _ in cells])
        axes.set_xlabel("MAPE, %")
        axes.set_xscale("log")
        axes.set_xticks(TICKS, map(str, TICKS))
        axes.minorticks_off()
        axes.set_ylim(len(cells) - 0.5, -0.5)
        axes.figure.legend(frameon=False, fontsize="small", loc="outside lower center", ncols=3)


def report(made: Sequence[dict[str, pd.DataFrame]], *, full: bool = False) -> None:
    """Writes the results of datasets and protocols; `full` says that nothing was sampled."""
    scores, ratio, left, intervals = (
        pd.concat([tables[key] for tables in made if len(tables[key])] or [pd.DataFrame()], ignore_index=True)
        for key in TABLES_OF
    )
    scores = scores[[*CELL, "level", "prediction", *SCORES, "n_missing", "noise_mape", "data"]]
    whole = scores[scores["latency_kind"] == ALL].drop(columns=["latency_kind", "n_missing", "drawn", "among", "data"])
    said = findings(scores, ratio)
    figures = [] if full else ["accuracy.png"]
    if not full:
        draw(scores)
    write(
        "accuracy_full" if full else "accuracy",
        "Accuracy on lineages, families and devices never trained on" + (", all engines" if full else ""),
        tables={
            "scores": scores,
            RATIOS: _first(ratio, CELL),
            "Every predictor and baseline": whole,
            **({LEFT_OUT: _first(left, ["dataset", "left out"])} if len(left) else {}),
            HELD: _first(intervals, ["dataset", "protocol"]),
            **({TABLES_OF["scores"]: scores} if full else {}),  # what `earlier` reads
        },
        findings=said,
        figures=figures,
        most=150,
        command="python experiments/accuracy.py" + (" --full" if full else ""),
    )
    print("\n".join(said))


def main() -> None:
    """Scores samples of every dataset under every protocol, or all engines of what is asked for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--published", metavar="DATASET", help="folder where the published tables are imported")
    parser.add_argument("--full", action="store_true", help="all engines")
    parser.add_argument("--protocol", nargs="*", default=list(PROTOCOLS), choices=PROTOCOLS, help="with --full")
    names = [*MEASURED, PUBLISHED]
    parser.add_argument("--dataset", nargs="*", default=names, choices=names, help="with --full")
    given = parser.parse_args()
    every = datasets(given.published)
    if not given.full:
        most = dict.fromkeys(MEASURED, ENGINES) | {PUBLISHED: PUBLISHED_ENGINES}
        sources = [drawn(name, dataset, most[name]) for name, dataset in every]
        cells = [(source, protocol) for protocol in reversed(PROTOCOLS) for source in sources]  # the longest first
        found = Parallel(n_jobs=-1)(delayed(evaluated)(*cell, folds=FOLDS, n_jobs=1) for cell in cells)
        by_cell = {(source.name, protocol): tables for (source, protocol), tables in zip(cells, found, strict=True)}
        order = [(source.name, protocol) for source in sources for protocol in PROTOCOLS]
        report([tables for cell in order if (tables := by_cell[cell])])
        return
    sources = [drawn(name, dataset, None) for name, dataset in every]
    asked = [(source, protocol) for protocol in given.protocol for source in sources if source.name in given.dataset]
    made = earlier([(source.name, protocol) for source, protocol in asked], [source.digest for source in sources])
    for source, protocol in asked:
        made += [tables] if (tables := evaluated(source, protocol, folds=FULL_FOLDS, n_jobs=-1)) else []
        report(made, full=True)


def _first(table: pd.DataFrame, columns: list[str]) -> pd.DataFrame:
    return table[[*columns, *(c for c in table if c not in columns)]]


if __name__ == "__main__":
    main()

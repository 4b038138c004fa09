"""What every experiment leaves in `experiments/results`: a tidy CSV, a JSON of its tables, and a short text."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pandas as pd

from perfpred.corpus import datasets_folder
from perfpred.dataset import Dataset
from perfpred.scores import lineages, unjudged
from perfpred.splits import subset

RESULTS = Path(__file__).resolve().parent / "results"
FORMAT = "perfpred.experiment"
VERSION = 1


def write(
    name: str,
    title: str,
    *,
    tables: Mapping[str, pd.DataFrame],
    findings: list[str],
    figures: list[str],
    most: int = 16,
    options: str = "",
    command: str | None = None,
) -> None:
    """Writes `NAME.csv`, `NAME.json` and `NAME.md`.

    Args:
        name: Of the script, without ending.
        title: What was asked.
        tables: By caption; the first is the CSV, the JSON holds the others, the text at most `most` rows of each.
        findings: Sentences whose numbers come from the tables.
        figures: PNG files beside the text.
        most: Rows a table of the text has at most.
        options: What the script was given that its results depend on.
        command: That makes them, if the script has another name.
    """
    command = command or f"python experiments/{name}.py {options}".strip()
    (_, first), *others = tables.items()
    first.to_csv(RESULTS / f"{name}.csv", index=False, float_format="%.6g")
    about = {"format": FORMAT, "version": VERSION, "title": title, "command": command, "findings": findings}
    records = {caption: json.loads(table.to_json(orient="records")) for caption, table in others}
    found = {**about, "csv": f"{name}.csv", "figures": figures, "tables": records}
    (RESULTS / f"{name}.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    lines = [f"# {title}", "", f"`{command}`", "", *(f"* {sentence}" for sentence in findings), ""]
    lines += [f"![{title}]({figure})\n" for figure in figures]
    for caption, table in others:
        lines += [f"**{caption}**" + (f" (first {most} of {len(table)})" if len(table) > most else ""), ""]
        lines += [*markdown(table.head(most)), ""]
    (RESULTS / f"{name}.md").write_text("\n".join(lines), encoding="utf-8")


def markdown(table: pd.DataFrame) -> list[str]:
    """A table as Markdown lines; three significant digits."""
    head = [f"| {' | '.join(map(str, table.columns))} |", "|" + "---|" * len(table.columns)]
    return [*head, *(f"| {' | '.join(_cell(v) for v in row)} |" for row in table.itertuples(index=False))]


def _cell(value: object) -> str:
    if value is None or value is pd.NA or (isinstance(value, float) and np.isnan(value)):
        return ""
    if isinstance(value, float):
        return f"{value:.0f}" if abs(value) >= 1000 else f"{value:.3g}"
    return str(value).replace("|", "/")


def gpu_datasets() -> dict[str, Dataset]:
    """The committed GPU datasets by folder name; rows that are never judged, such as probes, are left out."""
    found = sorted(datasets_folder().glob("gpu-*/engines.parquet"))
    if not found:
        print(f"no gpu-* dataset in {datasets_folder()}: measured rows are left out")
    return {path.parent.name: _judged(Dataset.read(path.parent)) for path in found}


def _judged(dataset: Dataset) -> Dataset:
    return subset(dataset, np.flatnonzero(~unjudged(dataset.engines)))


def gpu_engines(datasets: Mapping[str, Dataset]) -> pd.DataFrame:
    """Measured engines of several datasets, the dataset's name in `dataset`."""
    parts = [dataset.good.assign(dataset=name) for name, dataset in datasets.items()]
    rows = pd.concat(parts, ignore_index=True)
    return rows[rows["latency_kind"] == "gpu_compute"].reset_index(drop=True)


def fused_times(dataset: Dataset, level: str = "fused") -> pd.DataFrame:
    """Measured time of each layer of profiled engines: `engine_id`, the layer's columns, `time_s`, `kernels`.

    A timed runtime node counts for the layer that holds it; layers of which nothing was timed are left out.
    """
    timed = dataset.times.explode("onnx_nodes").dropna(subset=["onnx_nodes"])
    timed = timed.merge(dataset.engines[["engine_id", "structure"]].drop_duplicates("engine_id"), on="engine_id")
    layers = dataset.layers_at(level)
    layers = layers[layers["structure"].isin(set(timed["structure"]))]
    owners = layers[["structure", "layer_index", "onnx_nodes"]].explode("onnx_nodes")
    joined = timed.merge(owners, on=["structure", "onnx_nodes"])
    keys = ["engine_id", "structure", "layer_index"]
    summed = joined.groupby(keys, sort=False).agg(time_s=("time_s", "sum"), kernels=("kernels", _chained)).reset_index()
    return summed.merge(layers, on=["structure", "layer_index"]).sort_values(keys, ignore_index=True)


def _chained(parts: pd.Series) -> list[str]:
    return [str(kernel) for part in parts for kernel in (part if part is not None else [])]


def reference_data() -> Path | None:
    """Folder of the published tables, or `None` with a notice where it isn't given."""
    folder = os.environ.get("PERFPRED_REFERENCE_DATA")
    if folder:
        return Path(folder)
    print("PERFPRED_REFERENCE_DATA is not set: published tables are left out")
    return None


def sampled(engines: pd.DataFrame, most: int, seed: int = 0) -> np.ndarray:
    """Positions of at most `most` engines, drawn at random; every lineage keeps its share, and at least one."""
    random = np.random.default_rng(seed)
    order = random.permutation(len(engines))
    group = lineages(engines).reset_index(drop=True).iloc[order]
    place = group.groupby(group).cumcount()
    place = place.where(place == 0, place + random.random(len(group)))
    first = np.argsort((place / group.groupby(group).transform("size")).to_numpy(), kind="stable")[:most]
    return np.sort(order[first])


def percent(value: float) -> str:
    """A fraction as text."""
    return f"{100 * value:.1f} %"

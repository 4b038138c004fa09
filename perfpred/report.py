"""A self-contained HTML page from datasets, predictors, evaluations and networks; it needs nothing from outside."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
import pandas as pd

from perfpred import __version__, charts
from perfpred.dataset import Dataset
from perfpred.errors import FormatError, PerfpredError, RuntimeUnavailableError, UsageError
from perfpred.evaluate import FORMAT as EVALUATION_FORMAT
from perfpred.evaluate import VERSION as EVALUATION_VERSION
from perfpred.evaluate import evaluate
from perfpred.overview import overview
from perfpred.prediction import Prediction
from perfpred.predictor import LatencyPredictor
from perfpred.scores import lineages

_TEMPLATE: Final = Path(__file__).with_name("templates") / "report.html"
_FRACTIONS: Final = frozenset(
    {"mape", "macro_mape", "median_ape", "within_5", "within_10", "concordance", "coverage", "width", "share",
     "scaled_roofline", "nearest", "run_to_run", "rebuild_to_rebuild", "floor", "error"}
)  # fmt: skip


@dataclass
class Section:
    """A part of the page: a title for the navigation, then text, figures and tables in order."""

    title: str
    blocks: list[dict[str, Any]] = field(default_factory=list)
    anchor: str = ""

    def say(self, text: str) -> Section:
        """Adds a paragraph."""
        self.blocks.append({"text": text})
        return self

    def chart(self, svg: str, caption: str, *, searchable: bool = False) -> Section:
        """Adds an SVG of `perfpred.charts`; a searchable one gets a field that dims what doesn't match."""
        self.blocks.append({"svg": svg, "caption": caption, "filter": searchable})
        return self

    def image(self, png: bytes, caption: str) -> Section:
        """Adds a PNG."""
        self.blocks.append({"png": base64.b64encode(png).decode(), "caption": caption})
        return self

    def table(self, caption: str, rows: Sequence[Mapping[str, Any]]) -> Section:
        """Adds a sortable table of records with the same keys; names ending in `_s` are times in seconds."""
        if not rows:
            return self.say(f"{caption}: none.")
        columns = [str(c) for c in rows[0]]
        cells = [[_cell(column, row.get(column)) for column in columns] for row in rows]
        named = [{"cells": row, "name": " ".join(str(c["text"]) for c in row).lower()} for row in cells]
        shown = [c.removesuffix("_s").replace("_", " ") for c in columns]
        self.blocks.append({"caption": caption, "columns": shown, "rows": named})
        return self


def _cell(column: str, value: Any) -> dict[str, Any]:
    if value is None or (isinstance(value, float) and not np.isfinite(value)) or value is pd.NA:
        return {"text": "–", "number": None}
    if isinstance(value, (bool, str)) or not isinstance(value, (int, float, np.number)):
        return {"text": str(value), "number": None}
    number = float(value)
    if column.endswith("_s"):
        text = charts.seconds(number)
    elif column in _FRACTIONS:
        text = charts.percent(number)
    else:
        text = f"{number:,.0f}" if number == int(number) else f"{number:.3g}"
    return {"text": text, "number": number}


def page(title: str, sections: Sequence[Section], *, subtitle: str = "") -> str:
    """The HTML of a page.

    Raises:
        RuntimeUnavailableError: jinja2 is not installed.
    """
    try:
        from jinja2 import Environment
    except ImportError as error:
        raise RuntimeUnavailableError("report pages need jinja2; pip install 'perfpred[report]'") from error
    taken: dict[str, int] = {}
    for section in sections:
        slug = re.sub(r"[^a-z0-9]+", "-", section.title.lower()).strip("-") or "section"
        taken[slug] = taken.get(slug, 0) + 1
        section.anchor = slug if taken[slug] == 1 else f"{slug}-{taken[slug]}"
    template = Environment(autoescape=True, trim_blocks=True).from_string(_TEMPLATE.read_text(encoding="utf-8"))
    return template.render(title=title, subtitle=subtitle, sections=sections, footer=f"Made by perfpred {__version__}.")


def write_report(paths: Sequence[str | Path], file: str | Path, *, devices: Sequence[str] = ()) -> None:
    """Writes a page from datasets, predictors, saved evaluations and ONNX files.

    A predictor beside a dataset is scored on the networks it was not trained on; ONNX files are predicted on every
    device by the predictor given, or by the shipped ones.

    Raises:
        UsageError: A path is none of these, or ONNX files come without a device.
    """
    if not paths:
        raise UsageError("name a dataset, a predictor, an evaluation or ONNX files to report on")
    datasets: dict[str, Dataset] = {}
    predictors: list[LatencyPredictor] = []
    evaluations: list[Mapping[str, Any]] = []
    networks: list[Path] = []
    for path in map(Path, paths):
        if (path / "engines.parquet").exists():
            datasets[path.name] = Dataset.read(path)
        elif (path / "manifest.json").exists():
            predictors.append(LatencyPredictor.load(path))
        elif path.suffix == ".json" and path.is_file():
            evaluations.append(read_evaluation(path))
        elif path.suffix == ".onnx" and path.is_file():
            networks.append(path)
        else:
            raise UsageError(f"{path}: no dataset, predictor, evaluation (.json) or ONNX file")
    sections = [section for name, dataset in datasets.items() for section in dataset_sections(name, dataset)]
    for predictor in predictors:
        sections.append(predictor_section(predictor))
        for name, dataset in datasets.items():
            try:
                found = evaluate([predictor], dataset)
            except PerfpredError as error:
                sections.append(Section(f"{predictor.name} on {name}").say(str(error)))
                continue
            sections.append(evaluation_section(found.to_dict(predictions=True), f"{predictor.name} on {name}"))
    sections += [evaluation_section(found) for found in evaluations]
    if networks:
        sections += _network_sections(networks, devices, predictors)
    title = "perfpred report"
    Path(file).write_text(page(title, sections, subtitle=", ".join(Path(p).name for p in paths)), encoding="utf-8")


def read_evaluation(path: Path) -> Mapping[str, Any]:
    """What `Evaluation.save` or `perfpred evaluate --json` wrote.

    Raises:
        FormatError: Another format or version.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise FormatError(f"{path}: is not JSON; write it with `perfpred evaluate --json`") from error
    if not isinstance(found, dict) or found.get("format") != EVALUATION_FORMAT:
        raise FormatError(f"{path}: is no {EVALUATION_FORMAT}; write it with `perfpred evaluate --json`")
    if found.get("version") != EVALUATION_VERSION:
        raise FormatError(
            f"{path}: is {EVALUATION_FORMAT} version {found.get('version')}; this perfpred reads {EVALUATION_VERSION}. "
            "Evaluate again."
        )
    return found


def dataset_sections(name: str, dataset: Dataset) -> list[Section]:
    """What a dataset holds, how noisy it is, and how latencies spread over lineages."""
    made = Section(f"Dataset {name}").say(f"Digest {dataset.digest()}.")
    for caption, rows in overview(dataset).items():
        made.table(caption, rows)
    good = dataset.good
    if len(good):
        svg = charts.spreads(
            good["latency_s"].reset_index(drop=True),
            lineages(good).reset_index(drop=True),
            unit="seconds",
            name="latency by lineage",
        )
        made.chart(svg, "Latency by lineage: 5th to 95th percentile, middle half, median.")
    return [made]


def predictor_section(predictor: LatencyPredictor) -> Section:
    """What a predictor was trained on."""
    facts = predictor.facts_
    made = Section(f"Predictor {predictor.name}").say(
        f"Runtime {facts['runtime']}; {facts['n_engines']} engines of {facts['n_networks']} networks; "
        f"dataset {facts['dataset']}."
    )
    rows = [
        {"device": device, "precision / latency kind": cell, "engines": n}
        for device, cells in facts["cells"].items()
        for cell, n in cells.items()
    ]
    return made.table("Training rows", rows)


def evaluation_section(found: Mapping[str, Any], title: str | None = None) -> Section:
    """Scores of an evaluation's JSON form and, where its predictions are in it, the figures."""
    made = Section(title or f"Protocol {found['protocol']}")
    floor = (found.get("noise_floor") or {}).get("mape")
    made.say(
        f"Dataset {found['dataset']}, seed {found['seed']}; baselines calibrated per "
        f"{', '.join(found['baselines_calibrated_per'])}. "
        + (f"Noise floor: MAPE {charts.percent(floor)} between builds of one network." if floor else "")
    )
    if "shots" in found:
        shots = pd.DataFrame(found["shots"])
        keys = ["predictor", "device", "k"]
        middle = shots.groupby(keys)[["mape", "scaled_roofline", "nearest"]].median().reset_index()
        return made.table("Median over draws, by number of measurements", _records(middle))
    scores = [{k: v for k, v in row.items() if k != "n_missing"} for row in found["scores"]]
    made.table("Scores", scores)
    ranked = sorted((row for row in scores if row["mape"] is not None), key=lambda row: row["mape"])
    kinds = len({row["latency_kind"] for row in ranked}) > 1
    labels = [f"{row['prediction']} {row['latency_kind'] if kinds else ''}".strip() for row in ranked]
    made.chart(
        charts.bars(labels, [min(row["mape"], 2.0) for row in ranked], unit="percent", name="MAPE by predictor"),
        "Mean absolute percentage error; bars end at 200 %.",
    )
    if found.get("predictions"):
        _prediction_charts(made, pd.DataFrame(found["predictions"]), float(found["level"]))
    return made.table("By lineage", found["by_lineage"]).table("By device and precision", found["by_device"])


def _prediction_charts(made: Section, rows: pd.DataFrame, level: float) -> None:
    rows = rows[rows["predictor"] == rows["predictor"].iloc[0]]
    batch = ", batch " + rows["batch_size"].astype(str)
    rows = rows.assign(label=rows["network"] + " on " + rows["device"] + ", " + rows["precision"] + batch)
    group = next((c for c in ("device", "precision") if rows[c].nunique() > 1), "lineage")
    made.chart(
        charts.scatter(rows, group=group),
        "Measured against predicted latency; the line is equality, the dashes 10 % off. Hover for names.",
        searchable=True,
    )
    lineage = rows["lineage"].fillna(rows["network"])
    error = (rows["predicted_s"] / rows["measured_s"] - 1).abs()
    made.chart(
        charts.spreads(error, lineage, name="error by lineage"),
        "Absolute error by lineage: 5th to 95th percentile, middle half, median; number of engines in brackets.",
        searchable=True,
    )
    if rows["low_s"].notna().all():
        inside = (rows["low_s"] <= rows["measured_s"]) & (rows["measured_s"] <= rows["high_s"])
        covered = inside.groupby(lineage.to_numpy()).mean().sort_values()
        svg = charts.bars(
            list(covered.index), covered.to_list(), target=level, unit="percent", name="coverage of intervals"
        )
        made.chart(svg, f"Share of engines inside their {level:.0%} interval, by lineage; the line is {level:.0%}.")


def _network_sections(
    networks: Sequence[Path], devices: Sequence[str], predictors: Sequence[LatencyPredictor]
) -> Iterable[Section]:
    from perfpred.defaults import load_predictor

    if not devices:
        raise UsageError("ONNX files need a device to be predicted on; give --device D")
    asked: Any = predictors[0] if predictors else load_predictor()
    for path in networks:
        yield network_section(path.name, [asked.predict(path, device=device) for device in devices])


def network_section(name: str, predictions: Sequence[Prediction]) -> Section:
    """One network: devices compared, and the waterfall of its layers on the first of them."""
    made = Section(f"Network {name}")
    rows = [
        {
            "device": p.device,
            "precision": p.precision,
            "batch_size": p.batch_size,
            "predicted_s": p.latency_s,
            "low_s": p.interval_s[0],
            "high_s": p.interval_s[1],
            **{f"{baseline}_s": value for baseline, value in p.baselines_s.items()},
            "basis": p.basis,
        }
        for p in predictions
    ]
    made.table("Predictions", rows)
    if len(predictions) > 1:
        svg = charts.bars(
            [p.device for p in predictions],
            [p.latency_s for p in predictions],
            ends=[p.interval_s for p in predictions],
            name=f"latency of {name} by device",
        )
        made.chart(svg, "Predicted latency by device, with the interval.")
    first = predictions[0]
    layers = pd.DataFrame([layer.to_dict() for layer in first.layers])
    if len(layers):
        svg = charts.waterfall(layers, name=f"layers of {name} on {first.device}")
        made.chart(svg, f"Layers on {first.device}, {first.precision}, in order of execution.", searchable=True)
    return made


def _records(frame: pd.DataFrame) -> list[dict[str, Any]]:
    return [{str(k): v for k, v in row.items()} for row in frame.to_dict("records")]

"""What a report page says of datasets, predictors, evaluations, experiment results and networks."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import pandas as pd

from perfpred import charts
from perfpred.dataset import Dataset
from perfpred.errors import FormatError, PerfpredError, UsageError
from perfpred.evaluate import FORMAT as EVALUATION_FORMAT
from perfpred.evaluate import VERSION as EVALUATION_VERSION
from perfpred.evaluate import evaluate
from perfpred.features import bound_s
from perfpred.instances import layer_instances
from perfpred.markdown import parts
from perfpred.overview import overview
from perfpred.page import Section, page
from perfpred.prediction import Prediction
from perfpred.predictor import LatencyPredictor
from perfpred.scores import cells, lineages, unjudged
from perfpred.splits import places, scorable, subset
from perfpred.timed import layer_times

#: Engines two places must share to be compared.
_FEWEST_SHARED: Final = 5
#: Layers of the engine whose layers are shown.
_READABLE: Final = 40
#: Time of a kernel that does nothing; it only labels layers.
_LAUNCH_S: Final = 3e-6


def write_report(paths: Sequence[str | Path], file: str | Path, *, devices: Sequence[str] = ()) -> None:
    """Writes a page from datasets, predictors, saved evaluations, folders of experiment results and ONNX files.

    A predictor beside a dataset is scored on the networks it was not trained on; of a folder of results every Markdown
    page is shown with its figures; ONNX files are predicted on every device by the predictor given, or by the shipped
    ones.

    Raises:
        UsageError: A path is none of these, or ONNX files come without a device.
    """
    if not paths:
        raise UsageError("name a dataset, a predictor, an evaluation, a folder of results or ONNX files to report on")
    datasets: dict[str, Dataset] = {}
    predictors: list[LatencyPredictor] = []
    evaluations: list[Mapping[str, Any]] = []
    pages: list[Path] = []
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
        elif written := sorted(path.glob("*.md")):
            pages += written
        else:
            raise UsageError(f"{path}: no dataset, predictor, evaluation (.json), folder of results or ONNX file")
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
    sections += [result_section(page) for page in pages]
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
    judged = scorable(dataset)
    judged = subset(judged, np.flatnonzero(~unjudged(judged.engines)))
    return [made, *_places_section(name, judged.engines), *_layers_section(name, judged)]


def _places_section(name: str, engines: pd.DataFrame) -> Iterable[Section]:
    """Devices and partitions compared on the engines that both measured; nothing where there is one place alone."""
    same = cells(engines, ["network", "precision", "batch_size", "latency_kind", "lab"])
    latency_s = engines["latency_s"].groupby([same, places(engines)]).median().unstack()
    first = str(latency_s.count().idxmax()) if latency_s.shape[1] else ""
    times = latency_s.div(latency_s[first], axis=0).drop(columns=first) if first else latency_s
    known = times.loc[:, times.count() >= _FEWEST_SHARED].dropna(how="all")
    if known.empty:
        return
    ends = known.quantile([0.05, 0.5, 0.95]).T.set_axis(["low", "middle", "high"], axis=1).sort_values("middle")
    rows = [
        {"place": str(place), "engines shared": int(known[place].count()), "median": row["middle"],
         "5th percentile": row["low"], "95th percentile": row["high"]}
        for place, row in ends.iterrows()
    ]  # fmt: skip
    made = Section(f"Devices of {name}").say(
        f"Latency over that of the same network, precision and batch size on {first}, where both were measured."
    )
    svg = charts.bars(
        [str(place) for place in ends.index], ends["middle"].to_list(),
        ends=list(zip(ends["low"], ends["high"], strict=True)), target=1.0, unit="percent",
        name=f"latency over that on {first}",
    )  # fmt: skip
    made.chart(svg, f"Latency over that on {first}, the line: median, and 5th to 95th percentile.")
    yield made.table(f"Times the latency on {first}", rows)


def _layers_section(name: str, rows: Dataset) -> Iterable[Section]:
    """Measured layers of one engine: of those that were profiled, one of a size that can be read."""
    engines = rows.engines[rows.engines["engine_id"].isin(set(rows.times["engine_id"]))].reset_index(drop=True)
    if engines.empty:
        return
    counts = rows.layers_at("fused").groupby("structure").size().reindex(engines["structure"]).to_numpy()
    chosen = engines.assign(far=np.abs(counts - _READABLE)).sort_values(["far", "network", "engine_id"]).iloc[[0]]
    chosen = chosen.drop(columns="far").reset_index(drop=True)
    layers = layer_instances(chosen, rows.layers_at("fused"))
    bound = bound_s(layers)
    limit = np.where(bound["compute_s"] >= bound["memory_s"], "compute", "memory")
    layers = layers.assign(time_s=layer_times(layers, chosen, rows))
    layers["bound"] = np.where(bound["roofline_s"] < _LAUNCH_S, "launch", limit)
    engine, timed = chosen.iloc[0], layers["time_s"].notna()
    made = Section(f"Layers of {engine['network']} in {name}").say(
        f"Measured on {engine['device']}, {engine['precision']}, batch {engine['batch_size']}: {int(timed.sum())} of "
        f"{len(layers)} layers were timed alone and add up to {charts.seconds(float(layers['time_s'].sum()))}; the engine "
        f"takes {charts.seconds(float(engine['latency_s']))}."
    )
    svg = charts.waterfall(layers[timed].reset_index(drop=True), name=f"layers of {engine['network']}")
    caption = (
        f"Layers in order of execution; launch-bound are those whose roofline is below {charts.seconds(_LAUNCH_S)}."
    )
    yield made.chart(svg, caption, searchable=True)


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


def result_section(page: Path) -> Section:
    """The results of one experiment: a Markdown page, and the PNG figures it names beside it.

    Raises:
        FormatError: A figure is missing.
    """
    made, caption = Section(page.stem), ""
    for number, (kind, content) in enumerate(parts(page.read_text(encoding="utf-8"))):
        if kind == "heading" and number == 0:
            made.title = content
        elif kind == "heading":
            made.head(content)
        elif kind == "points":
            made.points(content)
        elif kind == "figure":
            for about, file in content:
                try:
                    made.image((page.parent / file).read_bytes(), about)
                except OSError as error:
                    raise FormatError(f"{page}: its figure {file} can't be read; run the experiment again") from error
        elif kind == "table":
            made.table(caption or "Table", content)
        elif not content.startswith("**"):
            made.say(content)
        caption = content.replace("**", "") if kind == "text" and content.startswith("**") else ""
    return made


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

"""The demonstration: measure networks on this CPU, train, and predict lineages that were never measured.

Command: `make demo`, or `python -m perfpred.demo`. Output: a table, and `.demo/report.html`. What was measured is
kept in `.demo/cpu`, and a second run goes on from there.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from perfpred.charts import seconds
from perfpred.collect import grid, run_plan
from perfpred.consoles import show_on
from perfpred.corpus import GRAPH_SUFFIX, GRAPHS, Corpus
from perfpred.dataset import Dataset
from perfpred.errors import PerfpredError
from perfpred.evaluate import evaluate
from perfpred.gather import finish
from perfpred.page import page
from perfpred.prediction import Prediction
from perfpred.predictor import LatencyPredictor
from perfpred.report import dataset_sections, evaluation_section, network_section
from perfpred.splits import subset

TRAINED: Final = (
    "torchvision.resnet18", "timm.resnet18d", "torchvision.resnet34@160", "torchvision.resnet50@128",
    "torchvision.mobilenet_v2", "torchvision.mobilenet_v2@160", "torchvision.mobilenet_v3_small",
    "torchvision.mobilenet_v3_large", "torchvision.mnasnet0_5", "torchvision.mnasnet1_0", "timm.mobilenetv1_100",
    "timm.rexnet_100", "torchvision.efficientnet_b0", "timm.mixnet_s", "torchvision.shufflenet_v2_x0_5",
    "torchvision.shufflenet_v2_x1_0", "torchvision.squeezenet1_1", "timm.ghostnet_100", "timm.vit_tiny_patch16_224",
    "timm.deit_small_patch16_224", "torchvision.googlenet", "timm.dla46_c", "timm.dla34",
)  # fmt: skip
#: Of lineages that none of the trained ones belongs to.
UNSEEN: Final = (
    "timm.regnetx_002", "torchvision.regnet_y_400mf", "timm.regnety_008", "timm.repvgg_a0", "timm.cspdarknet53",
    "detector.yolov5-n@320", "torchvision.densenet121", "timm.mixer_s16_224",
)  # fmt: skip
_FEWEST: Final = 24


def measure(corpus: Corpus, folder: Path) -> Dataset:
    """Measures the networks on this CPU, those already measured left out, and returns the dataset."""
    chosen = [corpus[name] for name in (*TRAINED, *UNSEEN)]
    sources = [corpus.folder / GRAPHS / f"{network.name}{GRAPH_SUFFIX}" for network in chosen]
    plan = grid([n.name for n in chosen], precisions=["fp32"], target="cpu", layers=True)
    columns = (TextColumn("measuring"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=show_on(sys.stderr)) as bar:
        task = bar.add_task("networks", total=len(plan.units))
        run_plan(plan, sources, folder, report=lambda made: bar.update(task, completed=made.done + made.skipped))
        bar.update(task, completed=len(plan.units))
    return finish(folder, sources, corpus)


def run(folder: Path) -> int:
    """Measures, trains, predicts, prints and writes the page; returns the exit status."""
    begin = time.monotonic()
    out = show_on(sys.stdout)
    corpus = Corpus.load()
    dataset = measure(corpus, folder / "cpu")
    good = dataset.good
    if len(good) < _FEWEST:
        out.print(f"only {len(good)} networks could be measured; `perfpred dataset show {folder / 'cpu'}` says why")
        return 1
    trained = subset(dataset, np.flatnonzero(dataset.engines["network"].isin(TRAINED)))
    predictor = LatencyPredictor(name="demo").fit(trained)
    predictor.save(folder / "predictor")
    measured = dict(zip(good["network"], good["latency_s"], strict=True))
    device = str(good["device"].iloc[0])
    predictions = {
        name: predictor.predict(corpus.model(name), device=device, precision="fp32")
        for name in UNSEEN
        if name in measured
    }
    out.print(_table(corpus, measured, predictions))
    error = [abs(p.latency_s / measured[name] - 1) for name, p in predictions.items()]
    roofline = [abs(p.baselines_s["roofline"] / measured[name] - 1) for name, p in predictions.items()]
    inside = [p.interval_s[0] <= measured[name] <= p.interval_s[1] for name, p in predictions.items()]
    out.print(
        f"{len(predictions)} networks of lineages never measured: mean error {np.mean(error):.0%}, fitted roofline "
        f"{np.mean(roofline):.0%}; {sum(inside)} inside their 90 % interval. Trained on {len(trained.good)} networks."
    )
    _write_page(folder, dataset, predictor, predictions)
    out.print(f"{folder / 'report.html'} written; {time.monotonic() - begin:.0f} s in all")
    return 0


def _table(corpus: Corpus, measured: dict[str, float], predictions: dict[str, Prediction]) -> Table:
    made = Table(title="Networks never measured, on this CPU", title_justify="left", box=None, pad_edge=False)
    for column in ("network", "lineage", "measured", "predicted", "90 % interval", "error", "roofline", "error"):
        made.add_column(column, no_wrap=True)
    for name, p in predictions.items():
        roofline = p.baselines_s["roofline"]
        made.add_row(
            name,
            corpus[name].lineage,
            seconds(measured[name]),
            seconds(p.latency_s),
            f"{seconds(p.interval_s[0])} to {seconds(p.interval_s[1])}",
            f"{p.latency_s / measured[name] - 1:+.0%}",
            seconds(roofline),
            f"{roofline / measured[name] - 1:+.0%}",
        )
    return made


def _write_page(
    folder: Path, dataset: Dataset, predictor: LatencyPredictor, predictions: dict[str, Prediction]
) -> None:
    held_out = evaluate([predictor], dataset).to_dict(predictions=True)
    crossed = evaluate([predictor], dataset, protocol="lineage", folds=4).to_dict(predictions=True)
    sections = [
        evaluation_section(held_out, "Lineages never measured"),
        evaluation_section(crossed, "Each lineage predicted by the others"),
        *(network_section(name, [p]) for name, p in list(predictions.items())[:2]),
        *dataset_sections("of this CPU", dataset),
    ]
    text = page("Latency predicted before it is measured", sections, subtitle="perfpred demonstration, on this CPU")
    (folder / "report.html").write_text(text, encoding="utf-8")


def main(arguments: Sequence[str] | None = None) -> Any:
    """Entry point of `python -m perfpred.demo`."""
    parser = argparse.ArgumentParser(description="Measure, train and predict on this CPU.")
    parser.add_argument("--out", type=Path, default=Path(".demo"))
    given = parser.parse_args(arguments)
    try:
        return run(given.out)
    except PerfpredError as error:
        show_on(sys.stderr).print(f"error: {error}", markup=False)
        return 1


if __name__ == "__main__":
    sys.exit(main())

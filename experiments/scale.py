"""What do a prediction, a training and a collection cost, and how does that grow with size?

Command: python experiments/scale.py [--full]
Output: experiments/results/scale.csv, .json, .md and .png

Seconds of processor time of one thread, so that other load does not count; set OMP_NUM_THREADS=1. A prediction is taken
apart for a dozen corpus networks evenly spread over the order of their node counts: reading and binding the graph,
fusing it for TensorRT, and the whole answer from a network already loaded, with interval, layers and baselines.
Training is timed without intervals, which cost as much again for each fold, on more and more judged engines; `--full`
goes on to all of them. Collection is read off the committed rows: the build of an engine, and the wall time of the
campaigns over their engines, pauses of more than ten minutes left out.
These are times of the machine that ran the script; other experiments give the same figures everywhere, this one not.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
from written import RESULTS, write

from perfpred.corpus import Corpus, datasets_folder
from perfpred.dataset import Dataset
from perfpred.defaults import load_predictor
from perfpred.fusion import fuse
from perfpred.network import load_network
from perfpred.plots import COLOURS, figure
from perfpred.predictor import LatencyPredictor
from perfpred.scores import unjudged
from perfpred.splits import scorable, subset

DATASETS = ("gpu-onnxruntime", "cpu-onnxruntime")
DEVICE, RUNTIME, PRECISION = "jetson-agx-orin-64gb", "tensorrt", "fp16"
NETWORKS = 12
ROWS = (50, 100, 200, 400)
REPEATS = 5
SEED = 0
PAUSE_S = 600
PARTS = {"load_s": "read and bind", "fuse_s": "fuse", "predict_s": "predict"}


def timed(call: Callable[[], Any], repeats: int = REPEATS) -> tuple[float, Any]:
    """Median processor time of a call, seconds, and what it returned."""
    taken, made = [], None
    for _ in range(repeats):
        begun = time.process_time()
        made = call()
        taken.append(time.process_time() - begun)
    return float(np.median(taken)), made


def predictions() -> pd.DataFrame:
    """Cost of predicting networks of all sizes."""
    corpus = Corpus.load()
    ordered = sorted(corpus, key=lambda network: network.nodes)
    predictor = load_predictor().choose(DEVICE, RUNTIME)
    made = []
    for place in np.linspace(0, len(ordered) - 1, NETWORKS).round().astype(int):
        name = ordered[place].name
        model = corpus.model(name)
        load_s, network = timed(lambda model=model: load_network(model))
        typed = network.with_precision(PRECISION)
        fuse_s, layers = timed(lambda typed=typed: fuse(typed, RUNTIME))
        predict_s, _ = timed(lambda network=network: predictor.predict(network, device=DEVICE, precision=PRECISION))
        made.append(
            {
                "network": name, "nodes": len(network.nodes), "layers": len(layers), "load_s": load_s,
                "fuse_s": fuse_s, "predict_s": predict_s,
            }
        )  # fmt: skip
    return pd.DataFrame(made).sort_values("nodes", ignore_index=True)


def trainings(*, full: bool) -> pd.DataFrame:
    """Cost of training on more and more engines of the GPU dataset, in the end on all if asked."""
    rows = scorable(Dataset.read(datasets_folder() / DATASETS[0]))
    order = np.random.default_rng(SEED).permutation(np.flatnonzero(~unjudged(rows.engines)))
    total = len(order)
    made = []
    for count in sorted({min(n, total) for n in ROWS} | ({total} if full else set())):
        part = subset(rows, np.sort(order[:count]))
        fit_s, _ = timed(lambda part=part: LatencyPredictor(folds=0, seed=SEED).fit(part), repeats=1)
        made.append({"engines": count, "fit_s": fit_s, "engines_per_s": count / fit_s})
    return pd.DataFrame(made)


def collections() -> pd.DataFrame:
    """Cost of collecting, from the rows: build, and wall time of the campaigns for each engine."""
    made = []
    for name in DATASETS:
        engines = Dataset.read(datasets_folder() / name).good
        when = pd.to_datetime(engines["collected_at"], utc=True, format="ISO8601").sort_values()
        gap_s = when.diff().dt.total_seconds()
        made.append(
            {
                "dataset": name, "engines": len(engines), "build_s": engines["build_s"].median(),
                "build_s_90": engines["build_s"].quantile(0.9), "wall_s_per_engine": gap_s[gap_s < PAUSE_S].sum() / len(engines),
            }
        )  # fmt: skip
    return pd.DataFrame(made)


def slope(sizes: pd.Series, seconds: pd.Series) -> float:
    """Exponent of growth: the slope between logarithms."""
    return float(np.polyfit(np.log(sizes), np.log(seconds), 1)[0])


def findings(predicting: pd.DataFrame, training: pd.DataFrame, collecting: pd.DataFrame) -> list[str]:
    """Sentences with the numbers of the tables."""
    least, most = predicting.iloc[0], predicting.iloc[-1]
    said = [
        f"{label}: {1e3 * least[part]:.1f} ms at {least['nodes']} nodes, {1e3 * predicting[part].median():.0f} ms in the "
        f"median, {1e3 * most[part]:.0f} ms at {most['nodes']} nodes; grows as nodes to the power "
        f"{slope(predicting['nodes'], predicting[part]):.2f}."
        for part, label in PARTS.items()
    ]
    small, large = training.iloc[0], training.iloc[-1]
    said.append(
        f"Training without intervals: {small['fit_s']:.1f} s on {small['engines']:.0f} engines, {large['fit_s']:.1f} s "
        f"on {large['engines']:.0f}; grows as engines to the power {slope(training['engines'], training['fit_s']):.2f}."
    )
    for row in collecting.to_dict("records"):
        said.append(
            f"Collecting {row['dataset']}: {row['build_s']:.2f} s to build an engine in the median (90 % within "
            f"{row['build_s_90']:.1f} s), {row['wall_s_per_engine']:.1f} s of wall time for each engine, all processes together."
        )
    return said


def draw(predicting: pd.DataFrame) -> None:
    """Cost of the parts of a prediction over the number of nodes."""
    with figure(RESULTS / "scale.png", title="Cost of a prediction, one thread") as axes:
        for colour, (part, label) in zip(COLOURS, PARTS.items(), strict=False):
            axes.loglog(predicting["nodes"], 1e3 * predicting[part], marker="o", color=colour, label=label)
        axes.set_xlabel("nodes of the network")
        axes.set_ylabel("processor time, ms")
        axes.legend(frameon=False)


def main() -> None:
    """Times predictions and trainings."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--full", action="store_true", help="train on all engines too")
    full = parser.parse_args().full
    predicting, training, collecting = predictions(), trainings(full=full), collections()
    draw(predicting)
    said = findings(predicting, training, collecting)
    write(
        "scale",
        "What prediction, training and collection cost",
        tables={
            "predictions": predicting,
            "Predictions, seconds of processor time": predicting,
            "Training without intervals, seconds of processor time": training,
            "Collection, seconds": collecting,
        },
        findings=said,
        figures=["scale.png"],
        options="--full" if full else "",
    )
    print("\n".join(said))


if __name__ == "__main__":
    main()

"""How much does optimisation gain, and how does a predictor of un-optimised latency misjudge optimised engines?

Command: PERFPRED_REFERENCE_DATA=... python experiments/optimisation_gain.py
Output: experiments/results/optimisation_gain.csv, .json, .md and .png

Pairs of the same network on the same device, optimised and not: PyTorch against TensorRT on Jetson boards (torch2trt),
TensorFlow against TF-TRT (tf_trt_models), eager against compiled PyTorch (timm), and ONNX Runtime on our GPUs with its
graph optimiser off and on. Misjudgement, all on families never trained on: the un-optimised latency itself times
the gain of the other families (no predictor of un-optimised latency can know more), and the same regressor trained on
un-optimised or on optimised latencies. Without reference data the GPU rows alone are compared. Published
latencies stay where they are: the results hold gains and errors alone.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import numpy as np
import pandas as pd
from sklearn.ensemble import HistGradientBoostingRegressor
from sklearn.model_selection import GroupKFold
from written import RESULTS, gpu_datasets, gpu_engines, percent, reference_data, write

from perfpred.dataset import Dataset
from perfpred.plots import figure
from perfpred.predictor import LatencyPredictor
from perfpred.published import dataset_from_published, lab_of
from perfpred.splits import subset

SEED = 0
PAIR = ["network", "family", "device", "batch_size", "unoptimised_s", "optimised_s"]
#: Sizes a regressor sees of timm's networks; nothing of what was compiled.
SIZES = ["infer_gmacs", "infer_macts", "param_count", "infer_img_size", "infer_batch_size"]


def published_pairs(folder: Path) -> pd.DataFrame:
    """TensorRT rows whose note holds the framework's own latency."""
    table = pd.read_csv(folder / "tensorrt_published.csv")
    note = table["note"].fillna("")
    framework_ms = note.str.extract(r"(?:pytorch_ms=|tf_fp32=)([\d.]+)")[0].astype(float)
    table = table.assign(
        comparison=table["source"].map(lab_of)
        + np.where(note.str.contains("tf_fp32"), ": TF FP32 to TF-TRT FP16", ": PyTorch to TensorRT"),
        unoptimised_s=framework_ms / 1e3,
        optimised_s=table["latency_ms"] / 1e3,
    )
    return table[framework_ms.notna()][["comparison", *PAIR]].reset_index(drop=True)


def timm_pairs(folder: Path) -> pd.DataFrame:
    """Eager and compiled time per image of the same network at the same size; sizes kept for the regressor."""
    stem = folder / "pytorch_gpu_timm" / "benchmark-infer-amp-nchw-pt291-cu128-4090"
    key = ["model", "infer_img_size"]
    eager, compiled = (pd.read_csv(f"{stem}{part}.csv") for part in ("", "-dynamo"))
    both = eager.merge(
        compiled[[*key, "infer_samples_per_sec", "infer_batch_size"]], on=key, suffixes=("", "_compiled")
    )
    both = both[both["infer_batch_size"] == both["infer_batch_size_compiled"]].reset_index(drop=True)
    return both.assign(
        comparison="timm: PyTorch eager to compiled",
        network=both["model"],
        family=both["model"].str.extract(r"^(?:tf_|test_|gc|legacy_|)([a-z]+)")[0].fillna(both["model"]),
        device="rtx-4090",
        batch_size=both["infer_batch_size"],
        unoptimised_s=1 / both["infer_samples_per_sec"],
        optimised_s=1 / both["infer_samples_per_sec_compiled"],
    )


def runtime_pairs() -> pd.DataFrame:
    """Our rows with ONNX Runtime's graph optimiser off beside those with it on, of one device and partition."""
    datasets = gpu_datasets()
    if not datasets:
        return pd.DataFrame(columns=["comparison", *PAIR])
    rows = gpu_engines(datasets)
    rows = rows[rows["rebuild"] == 0]
    key = ["dataset", "network", "device", "sm_count", "precision", "batch_size"]
    off, on = (rows[rows["optimisation"] == word] for word in ("off", "all"))
    both = off[[*key, "family", "lineage", "latency_s"]].merge(on[[*key, "latency_s"]], on=key, suffixes=("", "_on"))
    return both.assign(
        comparison="ONNX Runtime CUDA: graph optimiser off to all",
        family=both["lineage"].fillna(both["family"]),
        unoptimised_s=both["latency_s"],
        optimised_s=both["latency_s_on"],
    )[["comparison", *PAIR]]


def ape(predicted: np.ndarray, measured: np.ndarray) -> np.ndarray:
    """Absolute relative error."""
    return np.abs(predicted / measured - 1)


def gain_known(pairs: pd.DataFrame) -> np.ndarray:
    """Optimised latency from the exact un-optimised one and the median gain of all other families."""
    gain = np.log(pairs["unoptimised_s"] / pairs["optimised_s"])
    others = {family: gain[pairs["family"] != family].median() for family in pairs["family"].unique()}
    return (pairs["unoptimised_s"] / np.exp(pairs["family"].map(others))).to_numpy()


def regressed(pairs: pd.DataFrame, label: str) -> np.ndarray:
    """The label of each network from its sizes, by trees trained on other families, seconds."""
    sizes, target = np.log(pairs[SIZES].to_numpy(float) + 1e-3), np.log(pairs[label])
    made = np.empty(len(pairs))
    for train, test in GroupKFold(5, shuffle=True, random_state=SEED).split(sizes, groups=pairs["family"]):
        trees = HistGradientBoostingRegressor(random_state=SEED, max_iter=150, min_samples_leaf=10)
        made[test] = trees.fit(sizes[train], target.iloc[train]).predict(sizes[test])
    return np.exp(made)


def torch2trt_dataset(folder: Path) -> tuple[Dataset, np.ndarray]:
    """The TensorRT rows that have a PyTorch latency, with their graphs, and that latency, seconds."""
    table = pd.read_csv(folder / "tensorrt_published.csv", dtype=str, keep_default_na=False)
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / "torch2trt.csv"
        table[table["note"].str.contains("pytorch_ms=")].to_csv(path, index=False)
        dataset = dataset_from_published(path)
    note = dataset.engines["provenance_json"].map(lambda text: json.loads(text)["note"])
    return dataset, note.str.extract(r"pytorch_ms=([\d.]+)")[0].astype(float).to_numpy() / 1e3


def predicted(dataset: Dataset, latency_s: np.ndarray, level: str) -> np.ndarray:
    """Latencies by predictors trained on other lineages, whose label is `latency_s`; shape (n_engines,)."""
    labelled = Dataset(engines=dataset.engines.assign(latency_s=latency_s), layers=dataset.layers, times=dataset.times)
    made = np.empty(len(latency_s))
    for train, test in GroupKFold(5, shuffle=True, random_state=SEED).split(made, groups=dataset.engines["lineage"]):
        predictor = LatencyPredictor(level=level, folds=0, seed=SEED).fit(subset(labelled, train))
        asked = subset(labelled, test)
        made[test] = predictor.predict_engines(asked.engines, asked.layers)
    return made


def misjudged_by_predictor(folder: Path) -> pd.DataFrame:
    """Errors on TensorRT latency of the package's predictor, trained on PyTorch or on TensorRT."""
    dataset, plain_s = torch2trt_dataset(folder)
    engines = dataset.engines
    measured = engines["latency_s"].to_numpy()
    unoptimised = predicted(dataset, plain_s, "node")
    rescaled = unoptimised.copy()
    gain = pd.Series(np.log(plain_s / measured))
    for (lineage, device), rows in engines.groupby(["lineage", "device"]):
        others = (engines["lineage"] != lineage) & (engines["device"] == device)
        rescaled[rows.index] /= np.exp(gain[others].median())
    label = "torch2trt: PyTorch to TensorRT, both Jetsons"
    return pd.DataFrame(
        [
            scored(label, "predictor trained on PyTorch", ape(unoptimised, measured)),
            scored(label, "predictor trained on PyTorch / gain of other lineages", ape(rescaled, measured)),
            scored(label, "predictor trained on TensorRT", ape(predicted(dataset, measured, "fused"), measured)),
        ]
    )


def scored(comparison: str, what: str, error: np.ndarray) -> dict[str, object]:
    """One line of the table of misjudgements."""
    return {
        "comparison": comparison, "predicted from": what, "n": len(error), "mape": float(error.mean()),
        "median_ape": float(np.median(error)), "within_10": float((error <= 0.1).mean()),
        "ape_90": float(np.quantile(error, 0.9)),
    }  # fmt: skip


def misjudged(pairs: pd.DataFrame, timm: pd.DataFrame) -> pd.DataFrame:
    """Errors on optimised latency of what knows un-optimised latency only, and of the regressor that does not."""
    rows = []
    for name, part in pairs.groupby(["comparison", "device"]):
        part = part.reset_index(drop=True)
        measured, label = part["optimised_s"].to_numpy(), ", ".join(name)
        rows.append(scored(label, "un-optimised latency as it is", ape(part["unoptimised_s"].to_numpy(), measured)))
        if part["family"].nunique() > 2:
            rows.append(scored(label, "un-optimised latency / gain of other families", ape(gain_known(part), measured)))
    if len(timm):
        measured = timm["optimised_s"].to_numpy()
        label = "timm: PyTorch eager to compiled, rtx-4090"
        eager = regressed(timm, "unoptimised_s")
        rescaled = gain_known(timm.assign(unoptimised_s=eager))
        rows.append(scored(label, "regressor trained un-optimised", ape(eager, measured)))
        rows.append(scored(label, "regressor trained un-optimised / gain of other families", ape(rescaled, measured)))
        rows.append(scored(label, "regressor trained optimised", ape(regressed(timm, "optimised_s"), measured)))
    return pd.DataFrame(rows)


def by_family(pairs: pd.DataFrame, keys: list[str]) -> pd.DataFrame:
    """Spread of the gain (un-optimised over optimised latency) in each group."""
    grouped = pairs.groupby(keys)["gain"]
    made = grouped.agg(n="size", median="median", least="min", most="max").reset_index()
    return made.sort_values("n", ascending=False, kind="stable", ignore_index=True)


def findings(pairs: pd.DataFrame, misjudgement: pd.DataFrame) -> list[str]:
    """Sentences with the numbers of the tables."""
    said = []
    for (comparison, device), part in pairs.groupby(["comparison", "device"]):
        families = part.groupby("family")["gain"].median()
        families = (
            families[part.groupby("family").size() >= 2] if (part["family"].value_counts() >= 2).any() else families
        )
        least, most = part.loc[part["gain"].idxmin()], part.loc[part["gain"].idxmax()]
        said.append(
            f"{comparison}, {device}: {len(part)} networks, median gain {part['gain'].median():.2f} times, from "
            f"{least['gain']:.2f} ({least['network']}) to {most['gain']:.2f} ({most['network']}); "
            f"{percent((part['gain'] < 1).mean())} got slower; by family the median goes from {families.min():.2f} "
            f"({families.idxmin()}) to {families.max():.2f} ({families.idxmax()})."
        )
    for comparison, part in misjudgement.groupby("comparison", sort=False):
        errors = "; ".join(f"{r['predicted from']} {percent(r['mape'])}" for r in part.to_dict("records"))
        said.append(f"Mean error on optimised latency, {comparison}: {errors}.")
    return said


def draw(pairs: pd.DataFrame) -> None:
    """Boxes of the gain by comparison and device, whiskers at the 5th and 95th percentile."""
    parts = {f"{' on '.join(key)} ({len(part)})": part["gain"] for key, part in pairs.groupby(["comparison", "device"])}
    order = sorted(parts, key=lambda name: -parts[name].median())
    with figure(RESULTS / "optimisation_gain.png", width=8, height=0.9 + 0.4 * len(order)) as axes:
        axes.boxplot([parts[name] for name in order], orientation="horizontal", whis=(5, 95), sym="")
        axes.axvline(1.0, color="grey", lw=0.8, ls="--")
        axes.set_yticks(range(1, len(order) + 1), order, fontsize=8)
        axes.set_xlabel("times as fast after optimisation")


def main() -> None:
    """Compare, write and print."""
    folder = reference_data()
    timm = timm_pairs(folder) if folder else pd.DataFrame()
    parts = [published_pairs(folder), timm[["comparison", *PAIR]]] if folder else []
    pairs = pd.concat([part for part in (*parts, runtime_pairs()) if len(part)], ignore_index=True)
    pairs["gain"] = pairs["unoptimised_s"] / pairs["optimised_s"]
    misjudgement = misjudged(pairs, timm)
    if folder:
        misjudgement = pd.concat([misjudgement, misjudged_by_predictor(folder)], ignore_index=True)
    draw(pairs)
    said = findings(pairs, misjudgement)
    write(
        "optimisation_gain",
        "What optimisation gains, and how un-optimised latency misjudges it",
        tables={
            "pairs": pairs[["comparison", "network", "family", "device", "batch_size", "gain"]],
            "Errors on optimised latency": misjudgement,
            "Gain by family and device": by_family(pairs, ["comparison", "device", "family"]),
        },
        findings=said,
        figures=["optimisation_gain.png"],
    )
    print("\n".join(said))


if __name__ == "__main__":
    main()

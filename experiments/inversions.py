"""Is more hardware faster? Where a stronger device or a larger partition does not help, and which layers are to blame.

Command: PERFPRED_REFERENCE_DATA=... python experiments/inversions.py
Output: experiments/results/inversions.csv, .json, .md and .png

Pairs of the same network, precision, batch and kind of latency, measured by one laboratory on two devices (or
partitions) of which one has at least the other's memory bandwidth and peak rate at that precision, and more of one. A pair is
inverted where the stronger one takes more than 2 % longer, and flat where it gains less than 5 %. Our GPU rows are
paired within one dataset and device over SM counts and, at equal SM counts, over H100 and H200 (same SMs, faster
memory). Layers of profiled pairs are compared one by one. Published figures are TensorRT; timm's are compiled PyTorch throughput.
Published latencies stay where they are: of pairs the results hold the ratio alone, and of these only what gains less
than 5 %.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache
from itertools import combinations
from pathlib import Path

import numpy as np
import pandas as pd
from written import RESULTS, fused_times, gpu_datasets, gpu_engines, percent, reference_data, write

from perfpred.dataset import Dataset
from perfpred.device import load_device
from perfpred.plots import figure
from perfpred.published import lab_of

INVERTED, FLAT = 1.02, 0.95
#: A layer is slower only if it loses this as well: kernels are timed to some 30 ns.
LEAST_LOSS_S = 1e-7
#: Pairs of layers below which nothing is said of two places.
MANY = 200
WORKLOAD = ["network", "precision", "batch_size"]
COLUMNS = ["comparison", "weaker", "stronger", *WORKLOAD, "lab", "latency_kind", "ratio"]


@cache
def strength(device: str, sm_count: int | None, precision: str) -> tuple[float, float]:
    """Memory bandwidth and peak rate at a precision."""
    found = load_device(device, sm_count=sm_count)
    return found.dram_bytes_per_s, found.peak(precision)


def paired(
    rows: pd.DataFrame, keys: list[str], of: Callable[[Mapping[str, object]], tuple[float, float]], comparison: str
) -> pd.DataFrame:
    """Ordered pairs within groups of `keys`; `of` says how strong a row's hardware is, `place` what it's called."""
    made = []
    for _, group in rows.groupby(keys, dropna=False):
        if len(group) < 2:
            continue
        for first, second in combinations(group.to_dict("records"), 2):
            a, b = of(first), of(second)
            if a == b or first["place"] == second["place"]:
                continue
            if all(x <= y for x, y in zip(b, a, strict=True)):
                first, second, a, b = second, first, b, a
            if all(x <= y for x, y in zip(a, b, strict=True)):
                made.append(
                    {
                        **{name: first[name] for name in (*WORKLOAD, "lab", "latency_kind")},
                        "comparison": comparison, "weaker": first["place"], "stronger": second["place"],
                        "ratio": second["latency_s"] / first["latency_s"],
                        "weaker_id": first.get("engine_id"), "stronger_id": second.get("engine_id"),
                    }
                )  # fmt: skip
    return pd.DataFrame(made, columns=[*COLUMNS, "weaker_id", "stronger_id"])


def published(folder: Path) -> pd.DataFrame:
    """Pairs of the published TensorRT table; copies, suspect values and low-power submissions are left out."""
    table = pd.read_csv(folder / "tensorrt_published.csv")
    note = table["note"].fillna("") + table["power_mode"].fillna("")
    table = table[~note.str.contains("copy_of|suspect|MaxQ")].assign(
        lab=lambda t: t["source"].map(lab_of), latency_s=lambda t: t["latency_ms"] / 1e3, place=lambda t: t["device"]
    )
    keys = ["source", "source_path", *WORKLOAD, "input_shape", "latency_kind"]
    table["source_path"] = np.where(table["lab"] == "torch2trt", table["latency_kind"], "")
    return paired(table, keys, lambda r: strength(r["device"], None, r["precision"]), "published TensorRT")


def timm(folder: Path) -> pd.DataFrame:
    """Pairs of compiled PyTorch on RTX 4090 and RTX 5090, largest batch that fits where it is the same."""
    parts = []
    for device, stem in (("rtx-4090", "pt291-cu128-4090-dynamo"), ("rtx-5090", "pt291-cu130-5090-dynamo")):
        table = pd.read_csv(folder / "pytorch_gpu_timm" / f"benchmark-infer-amp-nchw-{stem}.csv")
        parts.append(table.assign(device=device, place=device, precision="fp16", lab="timm", network=table["model"]))
    rows = pd.concat(parts, ignore_index=True).rename(columns={"infer_batch_size": "batch_size"})
    rows["latency_s"] = rows["batch_size"] / rows["infer_samples_per_sec"]
    rows["latency_kind"] = "throughput_inverse"
    order = {"rtx-4090": (1.0, 1.0), "rtx-5090": (2.0, 2.0)}
    keys = [*WORKLOAD, "infer_img_size"]
    return paired(rows, keys, lambda r: order[str(r["device"])], "timm, compiled PyTorch")


def measured(datasets: Mapping[str, Dataset]) -> pd.DataFrame:
    """Pairs of our rows: over SM counts within a dataset and device, and over devices at equal SM counts."""
    rows = gpu_engines(datasets)
    rows = rows[(rows["rebuild"] == 0) & (rows["optimisation"] == "all")]
    rows = rows.assign(place=rows["device"] + "/" + rows["sm_count"].astype(str), lab=rows["dataset"])

    def of(row: Mapping[str, object]) -> tuple[float, float]:
        return strength(str(row["device"]), int(str(row["sm_count"])), str(row["precision"]))

    sizes = paired(rows, ["dataset", "device", *WORKLOAD], of, "SM partitions, ONNX Runtime CUDA")
    devices = paired(rows, ["dataset", "sm_count", *WORKLOAD], of, "H100 to H200, ONNX Runtime CUDA")
    return pd.concat([part for part in (sizes, devices) if len(part)], ignore_index=True)


def blamed(pairs: pd.DataFrame, datasets: Mapping[str, Dataset]) -> pd.DataFrame:
    """Layers of pairs profiled on both sides: what each gained or lost, and whether its kernels changed."""
    made = []
    for name, dataset in datasets.items():
        timed = set(dataset.times["engine_id"])
        ours = pairs[(pairs["lab"] == name) & pairs["weaker_id"].isin(timed) & pairs["stronger_id"].isin(timed)]
        if ours.empty:
            continue
        layers = fused_times(dataset)
        by_engine = dict(list(layers.groupby("engine_id")))
        for pair in ours.to_dict("records"):
            if pair["weaker_id"] not in by_engine or pair["stronger_id"] not in by_engine:
                continue
            both = by_engine[pair["weaker_id"]].merge(
                by_engine[pair["stronger_id"]][["layer_index", "time_s", "kernels"]],
                on="layer_index",
                suffixes=("", "_stronger"),
            )
            made.append(
                pd.DataFrame(
                    {
                        **{column: pair[column] for column in ("comparison", "weaker", "stronger", "network", "ratio")},
                        "kind": both["kind"],
                        "layer": both["name"].to_numpy(),
                        "weaker_layer_s": both["time_s"],
                        "stronger_layer_s": both["time_s_stronger"],
                        "other kernels": [
                            set(a) != set(b) for a, b in zip(both["kernels"], both["kernels_stronger"], strict=True)
                        ],
                    }
                )
            )
    return pd.concat(made, ignore_index=True) if made else pd.DataFrame()


def slower(layers: pd.DataFrame) -> pd.Series:
    """Whether a layer loses time on the stronger side, beyond what its timing can resolve."""
    lost_s = layers["stronger_layer_s"] - layers["weaker_layer_s"]
    return (lost_s > (INVERTED - 1) * layers["weaker_layer_s"]) & (lost_s > LEAST_LOSS_S)


def by_kind(layers: pd.DataFrame) -> pd.DataFrame:
    """How layers of each kind fare with more SMs: share inverted or flat, share whose kernels change."""
    ratio = layers["stronger_layer_s"] / layers["weaker_layer_s"]
    table = layers.assign(
        inverted=slower(layers),
        flat=(ratio > FLAT) & ~slower(layers),
        ratio=ratio,
        lost_s=(layers["stronger_layer_s"] - layers["weaker_layer_s"]).clip(lower=0),
    )
    grouped = table.groupby(["weaker", "stronger", "kind"])
    made = grouped.agg(
        layers=("ratio", "size"), median_ratio=("ratio", "median"), inverted=("inverted", "mean"), flat=("flat", "mean"),
        kernels_change=("other kernels", "mean"), lost_s=("lost_s", "sum"),
    )  # fmt: skip
    return made.reset_index().sort_values(
        ["weaker", "stronger", "lost_s"], ascending=[True, True, False], ignore_index=True
    )


def summary(pairs: pd.DataFrame) -> pd.DataFrame:
    """Counts by comparison and pair of places."""
    table = pairs.assign(
        inverted=pairs["ratio"] > INVERTED, flat=(pairs["ratio"] > FLAT) & (pairs["ratio"] <= INVERTED)
    )
    grouped = table.groupby(["comparison", "weaker", "stronger"], sort=False)
    made = grouped.agg(
        pairs=("ratio", "size"), median_ratio=("ratio", "median"), inverted=("inverted", "sum"), flat=("flat", "sum"),
        worst=("ratio", "max"),
    )  # fmt: skip
    return made.reset_index().sort_values("inverted", ascending=False, ignore_index=True)


def findings(pairs: pd.DataFrame, layers: pd.DataFrame) -> list[str]:
    """Sentences with the numbers of the tables."""
    said = []
    for comparison, part in pairs.groupby("comparison", sort=False):
        inverted = part[part["ratio"] > INVERTED]
        flat = part[(part["ratio"] > FLAT) & (part["ratio"] <= INVERTED)]
        text = (
            f"{comparison}: of {len(part)} pairs of {part['network'].nunique()} networks, {len(inverted)} "
            f"({percent(len(inverted) / len(part))}) are more than 2 % slower on the stronger side, {len(flat)} "
            f"({percent(len(flat) / len(part))}) gain less than 5 %."
        )
        worst = part.loc[part["ratio"].idxmax()]
        text += (
            f" Worst: {worst['network']} ({worst['precision']}, batch {worst['batch_size']}, {worst['lab']}) takes "
            f"{worst['ratio']:.2f} times as long on {worst['stronger']} as on {worst['weaker']}."
        )
        said.append(text)
    for (weaker, stronger), part in layers.groupby(["weaker", "stronger"]):
        slow = part[slower(part)]
        if len(part) < MANY or slow.empty:
            continue
        lost = (slow["stronger_layer_s"] - slow["weaker_layer_s"]).groupby(slow["kind"]).sum().sort_values()
        said.append(
            f"Layers from {weaker} to {stronger}: {len(slow)} of {len(part)} ({percent(len(slow) / len(part))}) lose more than 2 % "
            f"and 0.1 µs, {percent(lost.iloc[-1] / lost.sum())} of it in {lost.index[-1]} layers; kernels change in "
            f"{percent(part['other kernels'].mean())} of layers."
        )
    return said


def responsible(layers: pd.DataFrame) -> pd.DataFrame:
    """The layers that lose most in each of the pairs that gain least."""
    lost = layers.assign(lost_us=1e6 * (layers["stronger_layer_s"] - layers["weaker_layer_s"]))
    worst = lost[lost["ratio"] > FLAT].sort_values(["ratio", "lost_us"], ascending=False)
    pairs = ["network", "weaker", "stronger"]
    columns = [*pairs, "ratio", "layer", "kind", "weaker_layer_s", "lost_us", "other kernels"]
    return worst.groupby(pairs, sort=False).head(4)[columns].reset_index(drop=True)


def draw(pairs: pd.DataFrame) -> None:
    """Distribution of the ratio by comparison."""
    with figure(RESULTS / "inversions.png", title="Is the stronger hardware faster?") as axes:
        for comparison, part in pairs.groupby("comparison", sort=False):
            ordered = np.sort(part["ratio"])
            axes.plot(ordered, np.linspace(0, 1, len(ordered)), label=f"{comparison} ({len(part)})")
        axes.axvline(1.0, color="grey", lw=0.8, ls="--")
        axes.set(xlabel="latency on the stronger over the weaker side", ylabel="share of pairs at or below")
        axes.legend(fontsize=7, frameon=False)


def main() -> None:
    """Pair, blame, write and print."""
    folder, datasets = reference_data(), gpu_datasets()
    parts = [published(folder), timm(folder)] if folder else []
    parts += [measured(datasets)] if datasets else []
    pairs = pd.concat([part for part in parts if len(part)], ignore_index=True)
    layers = blamed(pairs, datasets)
    draw(pairs)
    said = findings(pairs, layers) if len(layers) else findings(pairs, pd.DataFrame(columns=["weaker", "stronger"]))
    flat = pairs[pairs["ratio"] > FLAT].sort_values("ratio", ascending=False)[COLUMNS].reset_index(drop=True)
    inverted = flat[flat["ratio"] > INVERTED]
    tables = {"pairs": flat, "Pairs by device": summary(pairs), "Inverted pairs": inverted}
    if len(layers):
        tables |= {
            "Layers that lose most where more SMs gain least": responsible(layers),
            "Layers by kind": by_kind(layers),
        }
    write(
        "inversions", "More hardware, not faster", tables=tables, findings=said, figures=["inversions.png"]
    )  # fmt: skip
    print("\n".join(said))


if __name__ == "__main__":
    main()

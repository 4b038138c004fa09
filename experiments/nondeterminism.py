"""What repeats and what does not, of runs, rebuilds, devices, outputs, structures of real builds, and labels?

Command: python experiments/nondeterminism.py [--no-builds]
Output: experiments/results/nondeterminism.csv, .json, .md and .png

From the GPU datasets: spread within an engine, between rebuilds in fresh processes, and over partitions and devices,
of latency, kernels and output digests. TensorRT-RTX is built twice on this CPU for each of a few networks, precisions
and compute capabilities (left out with a notice where it isn't installed, or with --no-builds). A small network
trained on scikit-learn's digits runs in float32, float16 and int8, with ONNX Runtime's graph optimiser off and on:
accuracy on 40 % held-out images and labels that flip. Accuracy on ImageNet is not measured: the corpus has no trained
weights.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import json
import logging
import tempfile
from collections import Counter
from collections.abc import Collection, Iterator
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pandas as pd
from digits import as_onnx, digits, train
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
from written import RESULTS, gpu_datasets, gpu_engines, percent, write

from perfpred.corpus import datasets_folder
from perfpred.errors import PerfpredError
from perfpred.plots import figure
from perfpred.raw import records
from perfpred.runtimes.rtx_build import rtx_engine
from perfpred.weights import to_fp16

SEEDS = range(3)
#: Standard deviation of what is added to images whose pixels are 0 to 1; without any, the task is easy.
NOISES = (0.0, 0.3)
_NO_KERNEL = ("Memcpy", "Memset")
BUILT = ("torchvision.resnet18", "torchvision.squeezenet1_1", "torchvision.mobilenet_v2", "timm.vit_tiny_patch16_224")
#: Precision and compute capability of each build; the first is what others are compared with.
BUILDS = (("fp16", "SM86"), ("fp16", "SM75"), ("fp16", "SM89"), ("fp16", "SM120"), ("tf32", "SM86"), ("fp32", "SM86"))


def repeats(rows: pd.DataFrame, outputs: dict[str, dict[str, Any]]) -> pd.DataFrame:
    """Rebuilt engines by network: spread of latency, number of kernels and distinct outputs over rebuilds."""
    rows = rows[rows["optimisation"] == "all"]
    facts = rows["environment_json"].map(lambda text: json.loads(text or "{}"))
    rows = rows.assign(
        kernels=[(f.get("graph_nodes") or {}).get("kernel") for f in facts],
        output=[outputs.get(e, {}).get("digest") for e in rows["engine_id"]],
        difference=[outputs.get(e, {}).get("max_relative_difference") for e in rows["engine_id"]],
    )
    grouped = rows.groupby(["dataset", "network", "device", "sm_count", "precision", "batch_size"])
    made = grouped.agg(
        rebuilds=("rebuild", "nunique"),
        within_cv=("cv", "median"),
        spread=("latency_s", lambda s: s.max() / s.min() - 1),
        kernel_counts=("kernels", "nunique"),
        distinct_outputs=("output", "nunique"),
        checked=("output", "count"),
        difference_to_fp32=("difference", "max"),
    ).reset_index()
    return made[made["rebuilds"] > 1].reset_index(drop=True)


def output_digests(folders: list[Path]) -> dict[str, dict[str, Any]]:
    """What raw records say of the outputs of checked engines, by engine."""
    found = (record for folder in folders for record in records(folder))
    return {record["engine_id"]: record["outputs"] for record in found if record.get("outputs")}


def kernel_lists(folders: list[Path], networks: Collection[str]) -> pd.DataFrame:
    """Profiled engines of one of the networks on two partitions or devices: share of kernels that are not the same."""
    lists: dict[tuple[str, str, int], dict[tuple[str, int], Counter[str]]] = {}
    for record in (record for folder in folders for record in records(folder)):
        found = record.get("kernels")
        if found and record["optimisation"] == "all" and record["network"] in networks:
            names = Counter(found["names"][i] for i in found["name"] if not found["names"][i].startswith(_NO_KERNEL))
            workload = (record["network"], record["precision"], record["batch_size"])
            lists.setdefault(workload, {}).setdefault((record["device"], record["sm_count"]), names)
    made = []
    for (network, precision, batch_size), places in lists.items():
        for (a, first), (b, second) in combinations(sorted(places.items()), 2):
            shared = (first & second).total()
            made.append(
                {
                    "pair": "other partition" if a[0] == b[0] else "other device",
                    "network": network, "precision": precision, "batch_size": batch_size,
                    "first": f"{a[0]}/{a[1]}", "second": f"{b[0]}/{b[1]}", "kernels": max(first.total(), second.total()),
                    "changed": 1 - shared / max(first.total(), second.total()),
                }
            )  # fmt: skip
    return pd.DataFrame(made)


def structure_of(name: str, precision: str, capability: str) -> tuple[Counter[tuple[str, ...]], str]:
    """Nodes that share a layer, and everything the build log says."""
    _, engine = rtx_engine(
        datasets_folder() / "graphs" / f"{name}.onnx.zst",
        precision=precision,
        batch_size=1,
        compute_capability=capability,
    )
    said = [(e.layer_type, e.onnx_nodes, e.inputs, e.outputs, e.tactic, str(e.attributes)) for e in engine]
    return Counter(tuple(sorted(layer.onnx_nodes)) for layer in engine), repr(said)


def hashed(text: str) -> str:
    """Twelve digits of a SHA-256."""
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def real_builds() -> pd.DataFrame:
    """Each network built twice by TensorRT-RTX on this CPU, and once for other precisions and capabilities."""
    rows = []
    for name in BUILT:
        first: Counter[tuple[str, ...]] | None = None
        for precision, capability in (BUILDS[0], *BUILDS):
            try:
                layers, log = structure_of(name, precision, capability)
            except PerfpredError as error:
                print(f"{name} {precision} {capability}: {error}")
                continue
            first = first or layers
            rows.append(
                {
                    "network": name, "precision": precision, "capability": capability, "layers": layers.total(),
                    "fusion": hashed(repr(sorted(layers.items()))), "log": hashed(log),
                    "layers_of_the_first": (layers & first).total() / max(layers.total(), first.total()),
                }
            )  # fmt: skip
    return pd.DataFrame(rows)


class Images(CalibrationDataReader):
    """Images one by one, as the quantiser asks for them."""

    def __init__(self, images: np.ndarray) -> None:
        self.images: Iterator[np.ndarray] = iter(images)

    def get_next(self) -> dict[str, np.ndarray] | None:
        """The next image, `None` at the end."""
        image = next(self.images, None)
        return None if image is None else {"x": image[None]}


def variants(model: onnx.ModelProto, images: np.ndarray) -> dict[str, onnx.ModelProto]:
    """The network in float32, float16 and int8 (static, per tensor, calibrated on 100 training images)."""
    logging.disable(logging.WARNING)  # The quantiser advises a preprocessing that this network does not need.
    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder) / "a.onnx", Path(folder) / "b.onnx"
        onnx.save(model, source)
        quantize_static(source, target, Images(images[:100]), quant_format=QuantFormat.QDQ, weight_type=QuantType.QInt8)
        return {"fp32": model, "fp16": to_fp16(model), "int8": onnx.load(target)}


def logits(model: onnx.ModelProto, images: np.ndarray, *, optimised: bool, batch_size: int) -> np.ndarray:
    """Outputs of ONNX Runtime on the CPU, one thread, shape (n, 10)."""
    options = ort.SessionOptions()
    level = ort.GraphOptimizationLevel
    options.graph_optimization_level = level.ORT_ENABLE_ALL if optimised else level.ORT_DISABLE_ALL
    options.intra_op_num_threads, options.log_severity_level = 1, 3
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    half = session.get_inputs()[0].type == "tensor(float16)"
    parts = [images[i : i + batch_size] for i in range(0, len(images), batch_size)]
    made = [session.run(None, {"x": part.astype(np.float16) if half else part})[0] for part in parts]
    return np.concatenate(made).astype(np.float32)


def trained() -> pd.DataFrame:
    """Accuracy and label flips of the digits network by precision, optimiser, batch size and noise on the images."""
    rows = []
    for seed in SEEDS:
        images, held, labels, truth = digits(seed)
        models = variants(as_onnx(train(images, labels, seed)), images)
        for noise in NOISES:
            seen = held + np.random.default_rng(seed).normal(0, noise, held.shape).astype(np.float32)
            for precision, model in models.items():
                rows += [
                    {"seed": seed, "noise": noise, "precision": precision, "optimiser": "all" if optimised else "off"}
                    | compared(models["fp32"], model, seen, truth, optimised=optimised, batch_size=batch_size)
                    for optimised, batch_size in ((False, 1), (True, 1), (True, 64))
                ]
    return pd.DataFrame(rows)


def compared(
    reference: onnx.ModelProto,
    model: onnx.ModelProto,
    images: np.ndarray,
    truth: np.ndarray,
    *,
    optimised: bool,
    batch_size: int,
) -> dict[str, object]:
    """One variant against un-optimised float32, against itself un-optimised, and against itself run again."""
    first, plain = (logits(m, images, optimised=False, batch_size=1) for m in (reference, model))
    found, again = (logits(model, images, optimised=optimised, batch_size=batch_size) for _ in range(2))
    label = found.argmax(1)
    return {
        "batch_size": batch_size, "images": len(images), "accuracy": float((label == truth).mean()),
        "flips_from_fp32": int((label != first.argmax(1)).sum()),
        "flips_from_off": int((label != plain.argmax(1)).sum()),
        "images_that_differ_from_off": int((found != plain).any(1).sum()),
        "largest_difference_from_off": float(np.abs(found - plain).max()), "repeats_itself": bool((again == found).all()),
    }  # fmt: skip


def said_of_gpu(rows: pd.DataFrame, rebuilt: pd.DataFrame, lists: pd.DataFrame) -> list[str]:
    """Sentences on measured engines."""
    cv = rows["cv"].dropna()
    said = [
        f"Within an engine, {len(cv)} engines: median coefficient of variation {percent(cv.median())}, 90th percentile "
        f"{percent(cv.quantile(0.9))}."
    ]
    if len(rebuilt):
        checked = rebuilt[rebuilt["checked"] > 1]
        said.append(
            f"Between rebuilds in fresh processes ({len(rebuilt)} networks, {int(rebuilt['rebuilds'].sum())} builds): "
            f"latency spreads by {percent(rebuilt['spread'].median())} in the median and {percent(rebuilt['spread'].max())} "
            f"at most ({rebuilt.loc[rebuilt['spread'].idxmax(), 'network']}); the number of kernels changes in "
            f"{int((rebuilt['kernel_counts'] > 1).sum())} networks, the outputs are not bit-identical in "
            f"{int((checked['distinct_outputs'] > 1).sum())} of {len(checked)} checked; fp16 outputs differ from float32 by up "
            f"to {percent(checked['difference_to_fp32'].max())} of the largest value."
        )
    for pair, part in lists.groupby("pair") if len(lists) else ():
        most = part.loc[part["changed"].idxmax()]
        said.append(
            f"Kernels on {pair.replace('other', 'another')}: of {len(part)} pairs of profiled engines of one network, "
            f"{percent((part['changed'] > 0).mean())} do not run the same kernels; {percent(part['changed'].mean())} of kernels change "
            "in the mean"
            + (
                f", {percent(most['changed'])} at most ({most['network']}, {most['first']} to {most['second']})."
                if most["changed"]
                else "."
            )
        )
    return said


def said_of_builds(builds: pd.DataFrame) -> list[str]:
    """Sentences on structure hashes."""
    precision, capability = BUILDS[0]
    base = builds[(builds["precision"] == precision) & (builds["capability"] == capability)]
    twice = base.groupby("network")[["fusion", "log"]].nunique()
    said = [
        f"TensorRT-RTX, {len(twice)} networks built twice ({precision}, {capability}): {int((twice['fusion'] > 1).sum())} fuse other "
        f"nodes the second time, {int((twice['log'] > 1).sum())} differ anywhere in the build log."
    ]
    first = base.drop_duplicates("network").set_index("network")
    for other in BUILDS[1:]:
        rows = builds[(builds["precision"] == other[0]) & (builds["capability"] == other[1])].set_index("network")
        if len(rows):
            fusion = (rows["fusion"] != first["fusion"].reindex(rows.index)).sum()
            log = (rows["log"] != first["log"].reindex(rows.index)).sum()
            said.append(
                f"TensorRT-RTX, {other[0]} for {other[1]} instead: {int(fusion)} of {len(rows)} networks fuse other nodes "
                f"({percent(rows['layers_of_the_first'].min())} to {percent(rows['layers_of_the_first'].max())} of layers stay), "
                f"{int(log)} differ anywhere in the log."
            )
    return said


def said_of_labels(found: pd.DataFrame) -> list[str]:
    """Sentences on the digits network."""
    said = []
    for (noise, precision), part in found[found["batch_size"] == 1].groupby(["noise", "precision"]):
        off, on = (part[part["optimiser"] == word] for word in ("off", "all"))
        images = on["images"].sum()
        said.append(
            f"Digits, noise {noise:g}, {precision}: accuracy {percent(off['accuracy'].mean())} un-optimised, "
            f"{percent(on['accuracy'].mean())} optimised; of {images} labels {on['flips_from_fp32'].sum()} flip against un-optimised "
            f"fp32, {on['flips_from_off'].sum()} by the optimiser alone, which changes some bit of "
            f"{percent(on['images_that_differ_from_off'].sum() / images)} of outputs (by "
            f"{on['largest_difference_from_off'].max():.2g} at most)."
        )
    same = (
        "every variant repeats itself bit by bit"
        if found["repeats_itself"].all()
        else "not every variant repeats itself"
    )
    return [*said, f"Digits, run again in a new session: {same}. Accuracy on ImageNet is not measured."]


def draw(rebuilt: pd.DataFrame, rows: pd.DataFrame) -> None:
    """Spread within an engine and between rebuilds, by network."""
    with figure(RESULTS / "nondeterminism.png", title="What does not repeat: latency") as axes:
        series = {"within an engine, coefficient of variation": rows["cv"].dropna()}
        if len(rebuilt):
            series["between rebuilds, largest over smallest median"] = rebuilt["spread"]
        for label, values in series.items():
            axes.plot(100 * np.sort(values), np.linspace(0, 1, len(values)), label=f"{label} ({len(values)})")
        axes.set(xlabel="spread, %", ylabel="share of engines at or below", xscale="symlog")
        axes.set_xlim(left=0)
        axes.legend(fontsize=7, frameon=False)


def main() -> None:
    """Compare, build, train, write and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--no-builds", action="store_true", help="leave TensorRT-RTX out")
    without = parser.parse_args().no_builds
    labels = trained()
    said = said_of_labels(labels)
    tables = {"Digits by precision, optimiser, batch size and noise": labels}
    figures = []
    datasets = gpu_datasets()
    if datasets:
        rows = gpu_engines(datasets)
        folders = [datasets_folder() / name for name in datasets]
        rebuilt, lists = repeats(rows, output_digests(folders)), kernel_lists(folders, set(rows["network"]))
        said = [*said_of_gpu(rows, rebuilt, lists), *said]
        draw(rebuilt, rows)
        figures = ["nondeterminism.png"]
        tables = {"kernel lists of pairs": lists, "Rebuilds by network": rebuilt, **tables}
    if without or importlib.util.find_spec("tensorrt_rtx") is None:
        print("TensorRT-RTX is left out: not installed, or --no-builds")
    else:
        builds = real_builds()
        said += said_of_builds(builds)
        tables["TensorRT-RTX builds"] = builds
    print("\n".join(said))
    write("nondeterminism", "What repeats and what does not", tables=tables, findings=said, figures=figures)


if __name__ == "__main__":
    main()

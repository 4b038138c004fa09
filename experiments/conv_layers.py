"""How well are TensorRT convolution layers of unseen widths predicted from geometry and device numbers alone?

Command: PERFPRED_REFERENCE_DATA=... python experiments/conv_layers.py [--quick] [--precision fp16 ...] [--split ...]
Output: experiments/results/conv_layers.csv, .json and .md

Single layers on a V100 (tensorrt_v100_conv_layers.csv.xz), each precision apart. Five folds by unseen (Cin, Cout)
pair, unseen Cin and unseen Cout. Two easier splits, one fold each, are upper bounds and no evidence: `size` leaves
out (Cin, Cout, input size) triples, `random` rows, so that neighbours of every test row were trained on; what they
leave is mostly the table's own noise. `predictor` is `ConvolutionRegressor`; its parts stand beside it. Baselines,
fitted on the same rows: roofline times one scale, and affine roofline. `--quick` takes an eighth of the rows and
prints only; a run of some precisions or splits replaces their lines in the results and keeps the others.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import numpy as np
import pandas as pd
from sklearn.model_selection import GroupKFold, ShuffleSplit
from written import reference_data

from perfpred.convolution import convolution_features
from perfpred.convolution_stage import ConvolutionRegressor
from perfpred.device import load_device

RESULTS = Path(__file__).resolve().parent / "results"
TABLE = "tensorrt_v100_conv_layers.csv.xz"
ELEMENT_BYTES = {"fp32": 4, "fp16": 2, "int8": 1}
SPLITS = ("pair", "cin", "cout", "size", "random")
SEED = 0


def features_of(rows: pd.DataFrame, precision: str) -> tuple[pd.DataFrame, np.ndarray]:
    """Features and log bound of the table's rows; padding is taken as same."""
    out = -(-rows["in_h"] // rows["stride"])
    geometry = pd.DataFrame(
        {
            "batch": rows["batch"], "in_channels": rows["in_channels"], "out_channels": rows["out_channels"],
            "in_h": rows["in_h"], "in_w": rows["in_w"], "out_h": out, "out_w": -(-rows["in_w"] // rows["stride"]),
            "kernel_h": rows["kernel"], "kernel_w": rows["kernel"], "stride": rows["stride"],
            "groups": rows["in_channels"].where(rows["conv_type"] == "depthwise", 1),
            "added_tensors": rows["residual_add"], "element_bytes": ELEMENT_BYTES[precision],
        }
    )  # fmt: skip
    device = load_device("tesla-v100")
    return convolution_features(
        geometry,
        peak_flops=device.peak(precision),
        vector_flops=device.peak("fp32"),
        sm_count=device.sm_count,
        dram_bytes_per_s=device.dram_bytes_per_s,
        l2_bytes=device.l2_bytes,
    )


def folds(rows: pd.DataFrame, split: str) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Training and test positions of each fold."""
    if split == "random":
        yield from ShuffleSplit(1, test_size=0.2, random_state=SEED).split(rows)
        return
    pair = rows["in_channels"].astype(str) + ":" + rows["out_channels"].astype(str)
    size = pair + ":" + rows["in_h"].astype(str)
    groups = {"pair": pair, "cin": rows["in_channels"], "cout": rows["out_channels"], "size": size}[split]
    found = GroupKFold(5, shuffle=True, random_state=SEED).split(rows, groups=groups)
    yield from islice(found, 1 if split == "size" else 5)


def roofline_answers(
    roofline: np.ndarray, target: np.ndarray, train: np.ndarray, test: np.ndarray
) -> dict[str, np.ndarray]:
    """Log seconds of both baselines on the test rows, fitted on the relative error of the training rows."""
    time_s, bound_s = np.exp(target[train]), np.exp(roofline[train])
    scale, launch_s = np.linalg.lstsq(np.stack([bound_s / time_s, 1 / time_s], 1), np.ones(len(train)), rcond=None)[0]
    return {
        "roofline x one scale": roofline[test] + np.mean(target[train] - roofline[train]),
        "affine roofline": np.log(np.maximum(scale * np.exp(roofline[test]) + launch_s, 1e-7)),
    }


def scores(precision: str, split: str, name: str, predicted: np.ndarray, target: np.ndarray) -> dict[str, object]:
    """One line of the table of results; errors in percent."""
    error = np.abs(np.exp(predicted - target) - 1) * 100
    within = {f"within_{x}_percent": round(float((error <= x).mean() * 100), 1) for x in (5, 10)}
    mape, median = round(float(error.mean()), 2), round(float(np.median(error)), 2)
    return {
        "precision": precision,
        "split": split,
        "regressor": name,
        "rows": len(error),
        "mape": mape,
        "median": median,
        **within,
    }


def evaluate(rows: pd.DataFrame, precision: str, split: str) -> list[dict[str, object]]:
    """Out-of-fold scores of every regressor and baseline."""
    X, bound = features_of(rows, precision)
    target = np.log(rows["latency_ms"].to_numpy() / 1e3)
    answers: dict[str, list[np.ndarray]] = {}
    tested: list[np.ndarray] = []
    for train, test in folds(rows, split):
        regressor = ConvolutionRegressor().fit(X.iloc[train], target[train] - bound[train])
        carried = regressor.kriging.predict(X.iloc[test]) + bound[test]
        beside = X.iloc[test].assign(carried=carried - bound[test])
        trees, perceptron = (carried + member.predict(beside) for member in regressor.blend.members)
        fold = {
            "kriging": carried,
            "kriging, then trees": trees,
            "kriging, then perceptron": perceptron,
            "predictor": (trees + perceptron) / 2,
            **roofline_answers(X["roofline_s"].to_numpy(), target, train, test),
        }
        for name, values in fold.items():
            answers.setdefault(name, []).append(values)
        tested.append(test)
    order = np.concatenate(tested)
    return [scores(precision, split, name, np.concatenate(v), target[order]) for name, v in answers.items()]


def write(lines: list[dict[str, object]], digest: str) -> None:
    """Write the three result files; lines of other precisions and splits stay where the table is the same."""
    stored = RESULTS / "conv_layers.json"
    earlier = json.loads(stored.read_text()) if stored.exists() else {}
    done = {(line["precision"], line["split"]) for line in lines}
    if earlier.get("sha256") == digest and earlier.get("seed") == SEED:
        lines = lines + [x for x in earlier["scores"] if (x["precision"], x["split"]) not in done]
    lines = sorted(lines, key=lambda x: (SPLITS.index(str(x["split"])), str(x["precision"]), float(str(x["mape"]))))
    table = pd.DataFrame(lines)
    table.to_csv(RESULTS / "conv_layers.csv", index=False)
    about = {"command": "python experiments/conv_layers.py", "seed": SEED, "table": TABLE, "sha256": digest}
    stored.write_text(json.dumps({**about, "scores": lines}, indent=1) + "\n")
    head = " | ".join(table.columns)
    body = "\n".join("| " + " | ".join(str(v) for v in row) + " |" for row in table.itertuples(index=False))
    text = (
        f"# TensorRT convolution layers on a V100, unseen widths\n\n`{about['command']}`, seed {SEED}, {TABLE} "
        f"sha256 `{digest[:16]}`. Errors in percent; `size` and `random` are upper bounds and no evidence: what they leave is "
        f"mostly the table's own noise.\n\n| {head} |\n|{'---|' * len(table.columns)}\n{body}\n"
    )
    (RESULTS / "conv_layers.md").write_text(text)


def main() -> None:
    """Run every precision and split."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="an eighth of the rows; prints only")
    parser.add_argument("--precision", nargs="*", default=["fp16", "fp32", "int8"], choices=list(ELEMENT_BYTES))
    parser.add_argument("--split", nargs="*", default=list(SPLITS), choices=SPLITS)
    arguments = parser.parse_args()
    folder = reference_data()
    if folder is None:
        return
    path = folder / TABLE
    table = pd.read_csv(path)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    lines: list[dict[str, object]] = []
    for split in arguments.split:
        for precision in arguments.precision:
            rows = table[table["precision"] == precision].reset_index(drop=True)
            if arguments.quick:
                rows = rows.sample(frac=1 / 8, random_state=SEED).reset_index(drop=True)
            began = time.monotonic()
            found = evaluate(rows, precision, split)
            print(
                pd.DataFrame(found).to_string(index=False, header=True),
                f"\n{time.monotonic() - began:.0f} s",
                flush=True,
            )
            lines += found
            if not arguments.quick:
                write(lines, digest)


if __name__ == "__main__":
    main()

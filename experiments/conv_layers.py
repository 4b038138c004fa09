"""How well are TensorRT convolution layers of unseen widths predicted from geometry and device numbers alone?

Command: PERFPRED_REFERENCE_DATA=... python experiments/conv_layers.py [--full] [--precision fp16 ...] [--split ...]
Output: experiments/results/conv_layers.csv, .json and .md

Single layers on a V100 (tensorrt_v100_conv_layers.csv.xz), each precision apart. Five folds by unseen (Cin, Cout)
pair, unseen Cin and unseen Cout. Two easier splits, one fold each, are upper bounds and no evidence: `size` leaves
out (Cin, Cout, input size) triples, `random` rows, so that neighbours of every test row were trained on; what they
leave is mostly the table's own noise, as no layer was timed twice. `predictor` is `ConvolutionRegressor`; its parts
stand beside it; its settings were chosen on other folds (unseen pair, fp16, another seed). Baselines, fitted on the
same rows: roofline times one scale, and affine roofline. One row in `SHARE` is taken, with a fixed seed; `--full` takes
all, for two hours of a core. A run of some precisions or splits replaces their lines in the results and keeps the others,
if these were made of the same rows; results of all rows stay unless `--full` makes them again.
"""

from __future__ import annotations

import argparse
import hashlib
import json
from collections.abc import Iterator
from itertools import islice

import numpy as np
import pandas as pd
from joblib import Parallel, delayed
from sklearn.model_selection import GroupKFold, ShuffleSplit
from written import RESULTS, percent, reference_data, write

from perfpred.convolution import convolution_features
from perfpred.convolution_stage import ConvolutionRegressor
from perfpred.device import load_device

TABLE = "tensorrt_v100_conv_layers.csv.xz"
ELEMENT_BYTES = {"fp32": 4, "fp16": 2, "int8": 1}
SPLITS = ("pair", "cin", "cout", "size", "random")
#: No evidence: neighbours of every test row were trained on.
EASIER = ("size", "random")
BASELINES = ("roofline x one scale", "affine roofline")
#: One row in this many is taken unless all are asked for.
SHARE = 12
SEED = 0
MEASURED = "measured"
SCORES = "Errors by split, precision and regressor"


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
        BASELINES[0]: roofline[test] + np.mean(target[train] - roofline[train]),
        BASELINES[1]: np.log(np.maximum(scale * np.exp(roofline[test]) + launch_s, 1e-7)),
    }


def scores(precision: str, split: str, name: str, predicted: np.ndarray, target: np.ndarray) -> dict[str, object]:
    """One line of the table of results."""
    error = np.abs(np.exp(predicted - target) - 1)
    return {
        "precision": precision, "split": split, "regressor": name, "rows": len(error), "mape": float(error.mean()),
        "median": float(np.median(error)), "within_5": float((error <= 0.05).mean()),
        "within_10": float((error <= 0.1).mean()),
    }  # fmt: skip


def judged(rows: pd.DataFrame, precision: str, train: np.ndarray, test: np.ndarray) -> pd.DataFrame:
    """Log seconds that every regressor and baseline, fitted on one fold, answers for its test rows, and measured ones."""
    X, bound = features_of(rows, precision)
    target = np.log(rows["latency_ms"].to_numpy() / 1e3)
    regressor = ConvolutionRegressor().fit(X.iloc[train], target[train] - bound[train])
    carried = regressor.kriging.predict(X.iloc[test]) + bound[test]
    beside = X.iloc[test].assign(carried=carried - bound[test])
    trees, perceptron = (carried + member.predict(beside) for member in regressor.blend.members)
    answers = {
        "kriging": carried,
        "kriging, then trees": trees,
        "kriging, then perceptron": perceptron,
        "predictor": regressor.predict(X.iloc[test]) + bound[test],
        **roofline_answers(X["roofline_s"].to_numpy(), target, train, test),
    }
    return pd.DataFrame({**answers, MEASURED: target[test]})


def earlier(source: dict[str, object]) -> list[dict[str, object]] | None:
    """Lines of the results there are, if they were made of the same rows; `None` if they were made of more."""
    stored = RESULTS / "conv_layers.json"
    found = json.loads(stored.read_text()).get("tables", {}) if stored.exists() else {}
    [origin] = found.get("Source", [{}])
    if origin == {**source, "taken": source["rows"]} != source:
        return None
    return list(found[SCORES]) if origin == source else []


def findings(table: pd.DataFrame, source: dict[str, object]) -> list[str]:
    """Sentences with the numbers of the table."""
    said = [f"{source['taken']} of {source['rows']} rows of {source['table']}, seed {SEED}."]
    floors = table[(table["split"] == "random") & (table["regressor"] == "predictor")].set_index("precision")["mape"]
    for (split, precision), part in table[~table["split"].isin(EASIER)].groupby(["split", "precision"], sort=False):
        by = part.set_index("regressor")["mape"]
        said.append(
            f"Unseen {split}, {precision}, {part['rows'].iloc[0]} rows: MAPE {percent(by['predictor'])}, without its trees "
            f"and perceptron {percent(by['kriging'])}, "
            + ", ".join(f"{name} {percent(by[name])}" for name in BASELINES)
            + (f"; rows left out at random {percent(floors[precision])}." if precision in floors else ".")
        )
    easier = table[table["split"].isin(EASIER) & (table["regressor"] == "predictor")]
    shown = ", ".join(f"{r['split']} {r['precision']} {percent(r['mape'])}" for r in easier.to_dict("records"))
    return [*said, f"Easier splits, upper bounds and no evidence: {shown}."] if len(easier) else said


def report(lines: list[dict[str, object]], source: dict[str, object], options: str) -> None:
    """Writes the results; lines of other precisions and splits stay where the rows are the same."""
    done = {(line["precision"], line["split"]) for line in lines}
    stored = earlier(source) or []
    table = pd.DataFrame([*lines, *(x for x in stored if (x["precision"], x["split"]) not in done)])
    place = table["split"].map(SPLITS.index)
    table = table.assign(place=place).sort_values(["place", "precision", "mape"]).drop(columns="place")
    table = table.reset_index(drop=True)
    tables = {"scores": table, SCORES: table, "Source": pd.DataFrame([source])}
    title = "TensorRT convolution layers on a V100, unseen widths"
    write("conv_layers", title, tables=tables, findings=findings(table, source), figures=[], most=120, options=options)


def main() -> None:
    """Runs every precision and split."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--full", action="store_true", help=f"all rows instead of one in {SHARE}")
    parser.add_argument("--precision", nargs="*", default=["fp16", "fp32", "int8"], choices=list(ELEMENT_BYTES))
    parser.add_argument("--split", nargs="*", default=list(SPLITS), choices=SPLITS)
    given = parser.parse_args()
    folder = reference_data()
    if folder is None:
        return
    table = pd.read_csv(folder / TABLE)
    rows = table if given.full else table.sample(frac=1 / SHARE, random_state=SEED).reset_index(drop=True)
    digest = hashlib.sha256((folder / TABLE).read_bytes()).hexdigest()
    source = {"table": TABLE, "sha256": digest, "rows": len(table), "taken": len(rows), "seed": SEED}
    if earlier(source) is None:
        print("results of all rows are kept; --full makes them again")
        return
    own = {name: rows[rows["precision"] == name].reset_index(drop=True) for name in given.precision}
    cells = [(split, name, list(folds(own[name], split))) for split in given.split for name in given.precision]
    parts = Parallel(n_jobs=-1, return_as="generator")(
        delayed(judged)(own[name], name, train, test) for _, name, parted in cells for train, test in parted
    )
    lines = []
    for split, name, parted in cells:
        made = pd.concat(islice(parts, len(parted)))
        measured = made.pop(MEASURED).to_numpy()
        found = [scores(name, split, column, made[column].to_numpy(), measured) for column in made]
        print(pd.DataFrame(found).to_string(index=False), flush=True)
        lines += found
        report(lines, source, "--full" if given.full else "")


if __name__ == "__main__":
    main()

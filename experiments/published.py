"""How well is published whole-engine TensorRT latency predicted, on devices and for network families never seen?

Command: python experiments/published.py DATASET [--out experiments/results]
Output: published.json and published.md in experiments/results

DATASET is the folder that `perfpred import published tensorrt_published.csv tensorrt_published_detectors.csv` wrote.

Unseen device: each Jetson is left out whole (with its twin of other memory size); zero-shot order of pairs measured
within a factor of two, and k measurements of the device as calibration: one scale, or `Shots`. Baselines under the
same k: roofline times one scale, and the same network on the nearest device times one scale.
Unseen family: each family is left out in turn; scored in device x kind cells with at least 8 families and 30 rows,
and on all Jetsons together with a bootstrap over families. Baselines are calibrated per device, laboratory and kind.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from joblib import Parallel, delayed

from perfpred.baselines import fit_groups, predict_groups
from perfpred.calibration import Residuals
from perfpred.dataset import Dataset
from perfpred.engine_stage import EngineStage, cell_of
from perfpred.features import bound_s
from perfpred.instances import layer_instances
from perfpred.scores import concordant, error_ratio
from perfpred.shots import Shots

TWINS = {"jetson-nano": "jetson-nano-2gb", "jetson-nano-2gb": "jetson-nano"}
BASELINES = ("scaled_roofline", "affine_roofline", "bsp", "flops_line")
LEVELS = ("node", "fused")
#: What baselines read of a layer.
READ = (
    "structure", "layer_index", "kind", "dtype", "flops", "dram_bytes", "input_bytes", "output_bytes", "weight_bytes",
)  # fmt: skip
#: Shares of the families that one process takes at a time: the rows travel to it once a share.
SHARES = 4
TRAITS = ("dram_bytes_per_s", "peak_fp16", "sm_count", "clock_hz")
KS, DRAWS, SEED, LEVEL = (1, 3, 5, 10), 20, 0, 0.9


class Rows:
    """Engines with their layers, fused for the predictor and at both levels for baselines, and ways to take some."""

    def __init__(self, dataset: Dataset) -> None:
        self.engines = dataset.good.reset_index(drop=True)
        self.levels = {"": layer_instances(self.engines, dataset.layers_at("fused"))}
        for level in LEVELS:
            read = layer_instances(self.engines, dataset.layers_at(level)[list(READ)])
            self.levels[level] = read.astype(dict.fromkeys(("kind", "dtype", "precision"), "category"))
        self.latency_s = self.engines["latency_s"].to_numpy(float)
        self.cell = cell_of(self.engines).to_numpy(str)

    def take(self, rows: np.ndarray, level: str = "") -> tuple[pd.DataFrame, pd.DataFrame]:
        """Instances and engines of some rows, given by a mask, renumbered; of a level what baselines read alone."""
        position = np.full(len(self.engines), -1)
        position[rows] = np.arange(rows.sum())
        instances = self.levels[level]
        number = position[instances["row"].to_numpy(int)]
        return instances[number >= 0].assign(row=number[number >= 0]), self.engines[rows].reset_index(drop=True)


def error(predicted: np.ndarray, measured: np.ndarray) -> float:
    """Mean absolute percentage error, as a fraction."""
    return float(np.mean(np.abs(predicted / measured - 1)))


def order(rows: Rows, predicted: np.ndarray, chosen: np.ndarray) -> tuple[float, int]:
    """Concordance of pairs within a factor of two, in cells of one device, method, precision and batch size."""
    label = rows.cell + rows.engines["precision"].to_numpy(str) + rows.engines["batch_size"].to_numpy(str)
    right = pairs = 0.0
    for one in np.unique(label[chosen]):
        here = chosen & (label == one)
        good, count = concordant(rows.latency_s[here], predicted[here])
        right, pairs = right + good, pairs + count
    return right / max(pairs, 1), int(pairs)


def nearest(rows: Rows, train: np.ndarray, test: np.ndarray) -> np.ndarray:
    """Log latency of the same network, batch and precision on the nearest device trained on; NaN where there is none."""
    traits = rows.levels[""].drop_duplicates("row").set_index("row")[list(TRAITS)]
    log_traits = np.log(traits.to_numpy(float))
    key = (rows.engines["network_id"] + rows.engines["precision"]).to_numpy(str) + rows.engines["batch_size"].to_numpy(
        str
    )
    made = np.full(len(rows.engines), np.nan)
    for row in np.flatnonzero(test):
        same = np.flatnonzero(train & (key == key[row]))
        if len(same):
            distance = np.linalg.norm(log_traits[same] - log_traits[row], axis=1)
            made[row] = np.log(np.median(rows.latency_s[same[distance <= distance.min() + 1e-9]]))
    return made


def unseen_device(rows: Rows) -> dict[str, Any]:
    """Leaves out each Jetson; see the module."""
    engines = rows.engines
    n = len(engines)
    log_made, roofline, near, spread = (np.full(n, np.nan) for _ in range(4))
    similarity: dict[int, np.ndarray] = {}
    jetson = engines["device"].str.startswith("jetson").to_numpy()
    for device in sorted(engines.loc[jetson, "device"].unique()):
        test = (engines["device"] == device).to_numpy()
        train = ~engines["device"].isin([device, TWINS.get(device, device)]).to_numpy()
        stage = EngineStage().fit(*rows.take(train))
        asked = rows.take(test)
        log_made[test], spread[test] = stage.predict(*asked), stage.spread(*asked)
        similarity |= dict(zip(np.flatnonzero(test), stage.similarity(*asked), strict=True))
        bound = bound_s(asked[0])["roofline_s"].groupby(asked[0]["row"]).sum()
        roofline[test] = np.log(bound.to_numpy())
        near[test] = nearest(rows, train, test)[test]
    flops = rows.levels[""].groupby("row")["flops"].sum().to_numpy(float)
    shots = {}
    for cell in np.unique(rows.cell[jetson]):
        here = np.flatnonzero(rows.cell == cell)
        if engines["network_id"].iloc[here].nunique() >= 9:
            shots[cell] = _shots(rows, here, log_made, roofline, near, np.array([similarity[i] for i in here]))
    low, high = intervals(rows, np.exp(log_made), spread, engines["device"].replace(TWINS).to_numpy(str), jetson)
    inside, width = (low <= rows.latency_s) & (rows.latency_s <= high), (high - low) / np.exp(log_made)
    zero = {"perfpred": order(rows, np.exp(log_made), jetson), "roofline": order(rows, np.exp(roofline), jetson)}
    zero["flops"] = order(rows, flops, jetson)
    return {
        "zero_shot_concordance": {name: round(value, 4) for name, (value, _) in zero.items()},
        "pairs": zero["perfpred"][1],
        "zero_shot_coverage": float(inside[jetson].mean()),
        "zero_shot_width": float(np.median(width[jetson])),
        "zero_shot_median_ape": float(np.median(np.abs(np.exp(log_made[jetson]) / rows.latency_s[jetson] - 1))),
        "cells": shots,
        "median_over_cells": {
            method: {k: _median([cell[method].get(k) for cell in shots.values()]) for k in KS}
            for method in ("one scale", "shots", "scaled roofline", "scaled nearest", "shots where nearest")
        },
    }


def _median(values: list[float | None]) -> float | None:
    known = [v for v in values if v is not None]
    return float(np.median(known)) if known else None


def _shots(
    rows: Rows, here: np.ndarray, made: np.ndarray, roofline: np.ndarray, near: np.ndarray, similarity: np.ndarray
) -> dict[str, Any]:
    network = rows.engines["network_id"].iloc[here].to_numpy(str)
    target = np.log(rows.latency_s[here])
    every = np.unique(network)
    found: dict[str, Any] = {"n": len(here), "networks": len(every)}
    for k in KS:
        drawn: dict[str, list[float]] = {}
        random = np.random.default_rng(SEED)
        for _ in range(DRAWS if len(every) >= k + 3 else 0):
            known = np.isin(network, random.choice(every, k, replace=False))
            rest = ~known
            residual = target - made[here]
            moved = {
                "one scale": made[here] + np.median(residual[known]),
                "shots": made[here] + Shots().fit(similarity[known], residual[known]).predict(similarity),
                "scaled roofline": roofline[here] + np.median((target - roofline[here])[known]),
            }
            paired = np.isfinite(near[here])
            if (paired & known).any() and (paired & rest).any():
                scaled = near[here] + np.median((target - near[here])[known & paired])
                drawn.setdefault("scaled nearest", []).append(_rest(scaled, target, rest & paired))
                drawn.setdefault("shots where nearest", []).append(_rest(moved["shots"], target, rest & paired))
            for name, log_s in moved.items():
                drawn.setdefault(name, []).append(_rest(log_s, target, rest))
        for name, errors in drawn.items():
            found.setdefault(name, {})[k] = round(float(np.median(errors)), 4)
    return found | {
        name: {}
        for name in ("one scale", "shots", "scaled roofline", "scaled nearest", "shots where nearest")
        if name not in found
    }


def _rest(log_s: np.ndarray, target: np.ndarray, rest: np.ndarray) -> float:
    return error(np.exp(log_s[rest]), np.exp(target[rest]))


def unseen_family(rows: Rows) -> dict[str, Any]:
    """Leaves out each family; see the module."""
    engines = rows.engines
    family = engines["family"].to_numpy(str)
    made, spread = np.full(len(engines), np.nan), np.full(len(engines), np.nan)
    others = {f"{level} {name}": made.copy() for name in BASELINES for level in LEVELS}
    every = [family == one for one in np.unique(family)]
    shares = [every[first::SHARES] for first in range(SHARES)]
    found = Parallel(n_jobs=-1)(delayed(_without)(rows, share) for share in shares)
    for test, (latency_s, expected, baselines) in zip(*map(chain.from_iterable, (shares, found)), strict=True):
        made[test], spread[test] = latency_s, expected
        for column, values in baselines.items():
            others[column][test] = values
    place = (engines["device"] + "|" + engines["latency_kind"]).to_numpy(str)
    jetson = engines["device"].str.startswith("jetson").to_numpy()
    # A laboratory that measured one family only has no row left to learn its method from.
    learnable = engines.groupby(cell_of(engines))["family"].transform("nunique").to_numpy() > 1
    groups = {p: place == p for p in np.unique(place) if _large(engines, place == p)}
    groups["all Jetsons"] = jetson
    groups["all Jetsons, method known from other families"] = jetson & learnable
    groups["all"] = np.ones(len(engines), bool)
    low, high = intervals(rows, made, spread, family, groups["all"])
    return {name: _scored(rows, made, others, low, high, chosen) for name, chosen in groups.items()}


def _without(rows: Rows, every: Sequence[np.ndarray]) -> list[tuple[np.ndarray, np.ndarray, dict[str, np.ndarray]]]:
    """Latency of each set of rows left out, seconds, its expected error, and baselines, learned from the other rows."""
    found = []
    for test in every:
        stage, asked = EngineStage().fit(*rows.take(~test)), rows.take(test)
        baselines = {}
        for level in LEVELS:
            (inside, known), (unseen, unknown) = rows.take(~test, level), rows.take(test, level)
            fitted = fit_groups(BASELINES, inside, known["latency_s"].to_numpy(float), list(cell_of(known)))
            told = predict_groups(fitted, unseen, list(cell_of(unknown)))
            baselines |= {f"{level} {name}": values for name, values in told.items()}
        found.append((np.exp(stage.predict(*asked)), stage.spread(*asked), baselines))
    return found


def _large(engines: pd.DataFrame, chosen: np.ndarray) -> bool:
    return bool(engines["family"][chosen].nunique() >= 8 and chosen.sum() >= 30)


def intervals(
    rows: Rows, made: np.ndarray, spread: np.ndarray, unit: np.ndarray, held_out: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Ends of the interval of each row held out, seconds, from the residuals of the other units that were left out."""
    residual = np.log(rows.latency_s / made)
    low, high = np.full(len(made), np.nan), np.full(len(made), np.nan)
    for one in np.unique(unit[held_out]):
        other = held_out & (unit != one)
        known = Residuals().fit(rows.engines[other], residual[other], spread=spread[other], groups=unit[other])
        for row in np.flatnonzero(held_out & (unit == one)):
            asked = rows.engines.iloc[[row]]
            (low[row], high[row]), _ = known.of(asked, made[row], LEVEL, None, stretched=False, spread=spread[row])
    return low, high


def _scored(
    rows: Rows,
    made: np.ndarray,
    others: Mapping[str, np.ndarray],
    low: np.ndarray,
    high: np.ndarray,
    chosen: np.ndarray,
) -> dict[str, Any]:
    measured, predicted = rows.latency_s[chosen], made[chosen]
    ape = np.abs(predicted / measured - 1)
    rng = np.random.default_rng(SEED)
    by_family = pd.Series(ape).groupby(rows.engines["family"][chosen].to_numpy(str)).agg(["sum", "size"])
    drawn = [by_family.sample(frac=1, replace=True, random_state=rng) for _ in range(1000)]
    boot = np.quantile([d["sum"].sum() / d["size"].sum() for d in drawn], [0.05, 0.95])
    found = {
        "n": int(chosen.sum()),
        "families": len(by_family),
        "mape": float(ape.mean()),
        "mape_90": [float(b) for b in boot],
        "median_ape": float(np.median(ape)),
        "within_10": float((ape <= 0.1).mean()),
        "concordance": order(rows, made, chosen)[0],
        "coverage": float(((low[chosen] <= measured) & (measured <= high[chosen])).mean()),
        "width": float(np.median((high[chosen] - low[chosen]) / predicted)),
    }
    for name, baseline in others.items():
        found[name] = {
            "mape": error(baseline[chosen], measured),
            **error_ratio(rows.engines[chosen], baseline[chosen], predicted),
        }
    return found


def table(results: Mapping[str, Any]) -> str:
    """The results as Markdown."""
    device, family = results["unseen device"], results["unseen family"]
    lines = ["# Published TensorRT latency", "", "`python experiments/published.py DATASET`", ""]
    lines += [
        f"Dataset {results['dataset']}, {results['engines']} engines, seed {SEED}.",
        "",
        "## Unseen Jetson",
        "",
        f"Concordance of {device['pairs']} pairs measured within 2x, zero-shot: "
        + ", ".join(f"{name} {value:.1%}" for name, value in device["zero_shot_concordance"].items())
        + f". Median error from the specification alone: {device['zero_shot_median_ape']:.1%}; the 90 % intervals hold "
        f"{device['zero_shot_coverage']:.0%} and are {device['zero_shot_width']:.0%} of the prediction wide.",
        "",
        f"MAPE after k measurements, median of {DRAWS} draws:",
        "",
        "| cell | networks | "
        + " | ".join(f"{m}, k = {k}" for m in ("shots", "one scale", "scaled roofline") for k in KS)
        + " |",
        "|---" * (2 + 3 * len(KS)) + "|",
    ]
    for cell, found in device["cells"].items():
        values = [found[m].get(k) for m in ("shots", "one scale", "scaled roofline") for k in KS]
        lines.append(
            f"| {cell.replace('|', ' / ')} | {found['networks']} | "
            + " | ".join("–" if v is None else f"{v:.1%}" for v in values)
            + " |"
        )
    lines += ["", "| median over cells | " + " | ".join(f"k = {k}" for k in KS) + " |", "|---" * (1 + len(KS)) + "|"]
    for method, by_k in device["median_over_cells"].items():
        lines.append(f"| {method} | " + " | ".join("–" if v is None else f"{v:.1%}" for v in by_k.values()) + " |")
    lines += [
        "",
        "## Unseen family",
        "",
        "| rows | n | families | MAPE (90 % of bootstraps) | median | within 10 % | concordance | coverage | width |",
        "|---" * 9 + "|",
    ]
    for name, f in family.items():
        lines.append(
            f"| {name.replace('|', ' / ')} | {f['n']} | {f['families']} | {f['mape']:.1%} ({f['mape_90'][0]:.1%} to {f['mape_90'][1]:.1%}) "
            f"| {f['median_ape']:.1%} | {f['within_10']:.0%} | {f['concordance']:.1%} | {f['coverage']:.0%} | {f['width']:.0%} |"
        )
    columns = [f"{level} {name}" for level in LEVELS for name in BASELINES]
    lines += ["", "MAPE of baselines calibrated per device, laboratory and kind, with the ratio to ours:", ""]
    lines += ["| rows | " + " | ".join(columns) + " |", "|---" * (1 + len(columns)) + "|"]
    for name, f in family.items():
        lines.append(
            f"| {name.replace('|', ' / ')} | "
            + " | ".join(f"{f[c]['mape']:.0%} ({f[c]['ratio']:.1f}x)" for c in columns)
            + " |"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    """Runs both protocols and writes the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("dataset", type=Path)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    asked = parser.parse_args()
    dataset = Dataset.read(asked.dataset)
    rows = Rows(dataset)
    results: dict[str, Any] = {"dataset": dataset.digest(), "engines": len(rows.engines), "seed": SEED}
    results["unseen device"] = unseen_device(rows)
    results["unseen family"] = unseen_family(rows)
    asked.out.mkdir(parents=True, exist_ok=True)
    (asked.out / "published.json").write_text(json.dumps(results, indent=1) + "\n")
    text = table(results)
    (asked.out / "published.md").write_text(text)
    sys.stdout.write(text)


if __name__ == "__main__":
    main()

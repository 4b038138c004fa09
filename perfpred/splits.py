"""Splits that say what was unseen: rows of one network never stand on both sides, unless a device is what is new.

Probes, and rows measured beside others, are never tested: they are trained on wherever what is new is not theirs.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import numpy as np
import pandas as pd

from perfpred.dataset import Dataset
from perfpred.errors import DatasetError, UsageError
from perfpred.scores import cells, lineages, probes, unjudged

PROTOCOLS: Final = ("random", "family", "lineage", "device", "batch", "precision", "kshot")
#: Stands for the fold of rows that are in none.
_NO_FOLD: Final = -1
#: What is one device here: a partition or a power mode counts as its own.
PLACE: Final = ("device", "mode", "sm_count")


@dataclass(frozen=True, kw_only=True)
class Split:
    """Positions of training and test rows, and what the test rows have that training lacks."""

    name: str
    train: np.ndarray
    test: np.ndarray


def scorable(dataset: Dataset) -> Dataset:
    """Good engines as users build them, each once: optimised, first build; repeats serve the noise floor."""
    good = dataset.good
    optimised = good["optimisation"].isna() | good["optimisation"].eq("all")
    kept = good[optimised & good["rebuild"].fillna(0).eq(0)]
    return subset(Dataset(engines=kept, layers=dataset.layers, times=dataset.times), np.arange(len(kept)))


def subset(dataset: Dataset, rows: np.ndarray) -> Dataset:
    """The engines at some positions, with their layers and times."""
    engines = dataset.engines.iloc[rows].reset_index(drop=True)
    layers, times = dataset.layers, dataset.times
    return Dataset(
        engines=engines,
        layers=layers[layers["structure"].isin(set(engines["structure"]))],
        times=times[times["engine_id"].isin(set(engines["engine_id"]))],
    )


def networks(engines: pd.DataFrame) -> pd.Series[str]:
    """Identity of each row's network: the hash of its structure, else its name."""
    return engines["network_id"].where(engines["network_id"].notna(), engines["network"]).astype(str)


def places(engines: pd.DataFrame) -> pd.Series[str]:
    """Label of each row's device, partition and power mode included where there are several."""
    varied = [c for c in PLACE[1:] if (engines.groupby("device")[c].nunique(dropna=False) > 1).any()]
    return cells(engines, ["device", *varied])


def splits(engines: pd.DataFrame, protocol: str, *, folds: int | None = 5, seed: int = 0) -> Iterator[Split]:
    """Splits of a protocol.

    `random` deals out networks, `family` and `lineage` whole groups of them: each row is tested once. `device`
    leaves out one device at a time with all its partitions, then one partition size at a time on all devices, so a
    row may be tested twice; its network stays in training on the others. `batch` and
    `precision` leave out one value and test it on networks that training holds at no value at all.

    Args:
        engines: Rows, as of `scorable`.
        protocol: One of `PROTOCOLS` but kshot, which draws its own.
        folds: Groups of groups; None leaves out one at a time.
        seed: Of the dealing.

    Raises:
        UsageError: Unknown protocol.
        DatasetError: There is only one group.
    """
    if protocol not in PROTOCOLS or protocol == "kshot":
        raise UsageError(f"protocol '{protocol}' is unknown; give one of {', '.join(PROTOCOLS)}")
    everything, probe, judged = np.arange(len(engines)), probes(engines), ~unjudged(engines)
    if protocol == "device":
        for name, left_out in _left_out_devices(engines):
            if (left_out & judged).any():
                yield Split(name=name, train=everything[~left_out], test=everything[left_out & judged])
        return
    group = {"family": engines["family"].fillna(engines["network"]), "lineage": lineages(engines)}.get(
        protocol, networks(engines)
    )
    fold = np.full(len(engines), _NO_FOLD)
    fold[~probe] = deal(_joined(group[~probe], networks(engines)[~probe]), folds, seed)
    numbers = sorted(set(fold[judged]))
    if protocol in ("random", "family", "lineage"):
        _two(protocol, fold[judged])
        for number in numbers:
            yield Split(
                name=_name(group, fold == number),
                train=everything[fold != number],
                test=everything[(fold == number) & judged],
            )
        return
    value = engines["batch_size" if protocol == "batch" else "precision"].astype(str).to_numpy()
    _two(protocol, value)
    for left_out in sorted(set(value)):
        for number in numbers:
            train = everything[(fold != number) & (value != left_out)]
            test = everything[(fold == number) & (value == left_out) & judged]
            if len(train) and len(test):
                yield Split(name=left_out, train=train, test=test)


def _left_out_devices(engines: pd.DataFrame) -> Iterator[tuple[str, np.ndarray]]:
    devices = sorted(engines["device"].unique())
    for device in devices if len(devices) > 1 else ():
        yield str(device), engines["device"].eq(device).to_numpy()
    partitioned = engines.groupby("device")["sm_count"].transform("nunique") > 1
    counts = sorted(engines.loc[partitioned, "sm_count"].unique())
    for count in counts:
        yield f"{count} SMs", (partitioned & engines["sm_count"].eq(count)).to_numpy(bool)
    if len(devices) < 2 and not counts:
        _two("device", engines["device"].to_numpy())


def deal(groups: pd.Series[str], folds: int | None, seed: int) -> np.ndarray:
    """Fold of each row, shape (n_rows,): whole groups, largest first, to the fold with the fewest rows so far."""
    sizes = groups.value_counts()
    names = sizes.index.to_numpy()[np.random.default_rng(seed).permutation(len(sizes))]
    names = names[np.argsort(-sizes[names].to_numpy(), kind="stable")]
    filled = np.zeros(min(folds or len(names), len(names)), int)
    fold_of = {}
    for name in names:
        fold_of[name] = int(filled.argmin())
        filled[fold_of[name]] += sizes[name]
    return groups.map(fold_of).to_numpy(int)


def _joined(groups: pd.Series[str], network: pd.Series[str]) -> pd.Series[str]:
    """Groups, those that share a network made one: a network filed under two families still takes one side."""
    made = groups.astype(str).reset_index(drop=True)
    while True:
        first = made.groupby(network.to_numpy()).transform("min")
        merged = first.groupby(made.to_numpy()).transform("min")
        if merged.equals(made):
            return made
        made = merged


def _name(groups: pd.Series[str], chosen: np.ndarray) -> str:
    inside = sorted(set(groups[chosen].astype(str)))
    return ", ".join(inside) if len(inside) <= 3 else f"{', '.join(inside[:2])} and {len(inside) - 2} more"


def _two(protocol: str, labels: np.ndarray) -> None:
    if len(set(labels)) < 2:
        raise DatasetError(f"protocol {protocol} needs at least two groups, the dataset has one; collect more")

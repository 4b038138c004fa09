"""Layer instances: every layer of every engine, joined with the device it runs on. What both stages learn from."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pandas as pd

from perfpred.device import Device, load_device
from perfpred.features import DEVICE_NUMBERS, device_numbers

_ENGINE_COLUMNS = ("structure", "precision", "batch_size")
_DEVICE_KEY = ["device", "mode", "sm_count", "device_json"]


def device_of(engine: dict[str, Any]) -> Device:
    """Specification of the device an engine row was measured on.

    A row that carries its own specification (a host found by detection) is taken at its word.
    """
    if engine.get("device_json"):
        return Device.from_dict(json.loads(engine["device_json"]))
    count = engine.get("sm_count")
    return load_device(
        engine["device"], mode=engine.get("mode") or None, sm_count=None if pd.isna(count) else int(count)
    )


def layer_instances(engines: pd.DataFrame, layers: pd.DataFrame) -> pd.DataFrame:
    """Joins engines with their layers and devices.

    Args:
        engines: Rows of a dataset's `engines` table.
        layers: Rows of its `layers` table, at one level.

    Returns:
        The layers' columns, the engine's precision and batch size, `DEVICE_NUMBERS`, and `row`: the position in
        `engines` each layer belongs to; sorted by row, then graph order.
    """
    numbers = _numbers(engines)
    head = pd.concat([engines[list(_ENGINE_COLUMNS)].reset_index(drop=True), numbers], axis=1)
    head.insert(0, "row", np.arange(len(head)))
    made = head.merge(layers, on="structure", how="inner", sort=False)
    return made.sort_values(["row", "layer_index"], kind="stable", ignore_index=True)


def _numbers(engines: pd.DataFrame) -> pd.DataFrame:
    """`DEVICE_NUMBERS` of each engine; one look-up per distinct device."""
    key = engines[_DEVICE_KEY].astype(object).where(engines[_DEVICE_KEY].notna(), None)
    codes, firsts = pd.factorize(pd.Series(list(key.itertuples(index=False, name=None))))
    table = np.array([_row(dict(zip(_DEVICE_KEY, first, strict=True))) for first in firsts])
    return pd.DataFrame(table[codes], columns=list(DEVICE_NUMBERS))


def _row(engine: dict[str, Any]) -> list[float]:
    numbers = device_numbers(device_of(engine))
    return [numbers[name] for name in DEVICE_NUMBERS]

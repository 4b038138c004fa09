"""A table of single convolution layers, brought into the dataset schema: each row an engine of one layer."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Final

import pandas as pd

from perfpred.dataset import Dataset, engine_frame, layer_frame
from perfpred.device import device_slugs
from perfpred.errors import UsageError
from perfpred.group import conv_layer
from perfpred.layer import PRECISIONS
from perfpred.table import read_csv, refuse, refuse_unknown

#: Columns of the table with their types; others are ignored.
COLUMNS: Final[Mapping[str, type]] = {
    "conv_type": str,
    **dict.fromkeys(("batch", "in_channels", "in_h", "in_w", "out_channels", "kernel", "stride"), int),
    "residual_add": str,
    "precision": str,
    "latency_ms": float,
    "upstream_file": str,
}
_DTYPES: Final = {"fp32": "float32", "tf32": "float32", "fp16": "float16", "bf16": "bfloat16", "int8": "int8"}


def dataset_from_conv_table(
    path: str | Path,
    *,
    device: str = "tesla-v100",
    lab: str = "lightweight-neural-architecture-search",
    sample: int | None = None,
    seed: int = 0,
) -> Dataset:
    """Brings a table of convolution layers into a dataset.

    Args:
        path: CSV with the columns of `COLUMNS`; `conv_type` is regular or depthwise, `residual_add` 0 or 1, padding
            keeps the size.
        device: Where they were measured.
        lab: Who measured them.
        sample: Take that many rows, drawn with `seed`.
        seed: Of the draw.

    Raises:
        DatasetError: The table is at fault; names line, column and fix.
        UsageError: The device is unknown.
    """
    if device not in device_slugs():
        raise UsageError(f"unknown device '{device}'; `perfpred devices` lists them")
    table = read_csv(path, COLUMNS, optional={"upstream_file"})
    refuse_unknown(path, table, "conv_type", ("regular", "depthwise"))
    refuse_unknown(path, table, "residual_add", ("0", "1"))
    refuse_unknown(path, table, "precision", tuple(p for p in PRECISIONS if p in _DTYPES))
    wide = (table["conv_type"] == "depthwise") & (table["out_channels"] % table["in_channels"] != 0)
    refuse(path, table, wide, "out_channels", "is no multiple of in_channels, as depthwise layers need; correct it")
    key = [c for c in COLUMNS if c not in ("latency_ms", "upstream_file")]
    refuse(path, table, table.duplicated(key), "latency_ms", "belongs to a layer given before; keep one row of each")
    if sample is not None and sample < len(table):
        table = table.sample(sample, random_state=seed).sort_index()
    engines, layers = [], []
    for row in table.to_dict("records"):
        depthwise, dtype = row["conv_type"] == "depthwise", _DTYPES[row["precision"]]
        layer = conv_layer(
            batch=row["batch"], c=row["in_channels"], h=row["in_h"], w=row["in_w"], k_out=row["out_channels"],
            r=row["kernel"], stride=row["stride"], groups=row["in_channels"] if depthwise else 1, dtype=dtype,
            residual_add=row["residual_add"] == "1",
        )  # fmt: skip
        name = (
            f"conv-{row['conv_type']}-{row['in_channels']}-{row['out_channels']}-{row['in_h']}x{row['in_w']}"
            f"-k{row['kernel']}-s{row['stride']}{'-add' if row['residual_add'] == '1' else ''}"
        )
        structure = f"{name}/{row['batch']}/{row['precision']}/table"
        layers.append((layer, structure))
        engines.append(
            {
                "engine_id": f"{lab}/{device}/{structure}",
                "structure": structure,
                "network": name,
                "network_id": name,
                "family": f"{row['in_channels']}-{row['out_channels']}",
                "lineage": "convolution",
                "runtime": "tensorrt",
                "device": device,
                "precision": row["precision"],
                "batch_size": row["batch"],
                "input_shape": f"{row['batch']}x{row['in_channels']}x{row['in_h']}x{row['in_w']}",
                "status": "good",
                "latency_kind": "layer",
                "latency_s": row["latency_ms"] / 1e3,
                "lab": lab,
                "mapping": "exact",
                "flags": [],
            }
        )
    frames = layer_frame((layer for layer, _ in layers), structure="", level="fused")
    frames["structure"] = [structure for _, structure in layers]
    frames["layer_index"] = pd.array([0] * len(frames), dtype="Int64")
    return Dataset(engines=engine_frame(engines), layers=frames)

"""Measurements on disk: versioned Parquet, facts only; features are derived when read.

A dataset is a folder with three tables:

* `engines.parquet`: one row a measured (or failed) engine: what was built, where, its latency and every sample.
* `layers.parquet`: the layers of each *structure* (network x shapes x precision x rule set), at level `node`
  (nothing fused), `fused` (this package's rules) or `builder` (reported by the runtime).
* `times.parquet`: time of single layers where a profiled pass was made, by engine and layer name.

Each file carries its format and version in the Parquet metadata; a reader that meets another version refuses.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from perfpred.errors import DatasetError, FormatError
from perfpred.layer import KINDS, PRECISIONS, Layer

VERSION: Final = 1
LATENCY_KINDS: Final = (
    "gpu_compute",
    "host_sync",
    "with_io",
    "framework_mean",
    "throughput_inverse",
    "cpu",
    "layer",
)
LEVELS: Final = ("node", "fused", "builder")

_TEXT, _INT, _FLOAT = pa.string(), pa.int64(), pa.float64()

#: Sizes of a layer's anchor, `perfpred.layer.Layer.geometry`; absent ones are null.
GEOMETRY: Final = (
    "m", "n", "k", "groups", "batch", "c", "h", "w", "p", "q", "r", "s", "stride", "dilation", "k_out",
)  # fmt: skip

SCHEMAS: Final[Mapping[str, pa.Schema]] = {
    "engines": pa.schema(
        [
            # Identity.
            ("engine_id", _TEXT), ("structure", _TEXT), ("network", _TEXT), ("network_id", _TEXT),
            ("family", _TEXT), ("lineage", _TEXT),
            # What was built and where.
            ("runtime", _TEXT), ("runtime_version", _TEXT), ("device", _TEXT), ("mode", _TEXT),
            ("sm_count", _INT), ("device_json", _TEXT), ("precision", _TEXT), ("typing", _TEXT),
            ("optimisation", _TEXT), ("batch_size", _INT), ("input_shape", _TEXT), ("rebuild", _INT),
            # What was measured.
            ("status", _TEXT), ("error", _TEXT), ("latency_kind", _TEXT), ("latency_s", _FLOAT),
            ("host_sync_s", _FLOAT), ("isolated_s", _FLOAT), ("enqueue_s", _FLOAT), ("cv", _FLOAT),
            ("samples_s", pa.list_(pa.float32())), ("flags", pa.list_(_TEXT)),
            ("build_s", _FLOAT), ("engine_bytes", _INT), ("device_memory_bytes", _INT),
            # Where the number comes from.
            ("lab", _TEXT), ("trust", _TEXT), ("mapping", _TEXT), ("provenance_json", _TEXT),
            ("environment_json", _TEXT), ("collected_at", _TEXT),
        ]
    ),
    "layers": pa.schema(
        [
            ("structure", _TEXT), ("level", _TEXT), ("layer_index", _INT), ("name", _TEXT), ("kind", _TEXT),
            ("onnx_nodes", pa.list_(_TEXT)), ("op_types", pa.list_(_TEXT)), ("rule", _TEXT), ("dtype", _TEXT),
            ("n_inputs", _INT), ("n_outputs", _INT), ("input_bytes", _INT), ("output_bytes", _INT),
            ("weight_bytes", _INT), ("flops", _INT), ("dram_bytes", _INT), ("shapes_json", _TEXT),
            *((name, _INT) for name in GEOMETRY),
        ]
    ),
    "times": pa.schema(
        [
            ("engine_id", _TEXT), ("name", _TEXT), ("onnx_nodes", pa.list_(_TEXT)), ("time_s", _FLOAT),
            ("time_iqr_s", _FLOAT), ("n_samples", _INT), ("kernels", pa.list_(_TEXT)), ("n_kernels", _INT),
        ]
    ),
}  # fmt: skip


@dataclass(kw_only=True)
class Dataset:
    """Engines, their layers and layer times, as data frames with the columns of `SCHEMAS`."""

    engines: pd.DataFrame = field(default_factory=lambda: _empty("engines"))
    layers: pd.DataFrame = field(default_factory=lambda: _empty("layers"))
    times: pd.DataFrame = field(default_factory=lambda: _empty("times"))

    @classmethod
    def read(cls, folder: str | Path) -> Dataset:
        """Reads and checks a dataset.

        Raises:
            FormatError: A file is missing, damaged, headerless or of another version.
            DatasetError: The content is inconsistent.
        """
        path = Path(folder)
        if not (path / "engines.parquet").exists():
            raise FormatError(
                f"{path}: holds no engines.parquet; name a dataset folder, or make one with `perfpred collect`"
            )
        made = cls(**{name: _read_table(path / f"{name}.parquet", name) for name in SCHEMAS})
        made.check()
        return made

    def write(self, folder: str | Path) -> None:
        """Writes the tables, each atomically; a reader never sees half a file."""
        self.check()
        path = Path(folder)
        path.mkdir(parents=True, exist_ok=True)
        for name in SCHEMAS:
            _write_table(path / f"{name}.parquet", name, getattr(self, name))

    @property
    def good(self) -> pd.DataFrame:
        """Engines that were measured; shape (n_good, columns)."""
        return self.engines[self.engines["status"] == "good"]

    def layers_at(self, level: str) -> pd.DataFrame:
        """Layers of every structure at one level, in graph order."""
        return self.layers[self.layers["level"] == level]

    def digest(self) -> str:
        """Hash of the facts a predictor learns from; stored with whatever is trained or scored on them."""
        columns = ["engine_id", "latency_kind", "latency_s", "status"]
        rows = self.engines[columns].sort_values(columns[:2]).to_csv(index=False)
        return hashlib.sha256(rows.encode()).hexdigest()[:16]

    def check(self) -> None:
        """Validates: known words, positive times, unique keys, layers for every measured structure.

        Raises:
            DatasetError: Names the first row at fault.
        """
        good = self.good
        _refuse(~self.engines["status"].isin(["good", "failed"]), self.engines, "status must be good or failed")
        _refuse(
            ~good["latency_kind"].isin(LATENCY_KINDS),
            good,
            f"latency_kind must be one of {', '.join(LATENCY_KINDS)}",
        )
        _refuse(~good["precision"].isin(PRECISIONS), good, f"precision must be one of {', '.join(PRECISIONS)}")
        _refuse(~(good["latency_s"] > 0), good, "latency_s must be positive")
        key = ["engine_id", "latency_kind"]
        _refuse(self.engines.duplicated(key), self.engines, "engine_id and latency_kind must be unique together")
        _refuse(~(good["batch_size"] >= 1), good, "batch_size must be 1 or more")
        _refuse(~self.layers["kind"].isin(KINDS), self.layers, f"kind must be one of {', '.join(KINDS)}")
        _refuse(~self.layers["level"].isin(LEVELS), self.layers, f"level must be one of {', '.join(LEVELS)}")
        _refuse(~(self.times["time_s"] >= 0), self.times, "time_s must not be negative")
        known = set(self.layers["structure"])
        _refuse(~good["structure"].isin(known), good, "the layers of its structure are missing")
        summed = self.times.groupby("engine_id")["time_s"].sum()
        # A layer pass holds event overhead, so its sum may exceed the engine; ten times over means mixed units.
        latency = good.drop_duplicates("engine_id").set_index("engine_id")["latency_s"].reindex(summed.index)
        wild = summed[(summed / latency) > 10]
        if len(wild):
            raise DatasetError(
                f"layer times of engine '{wild.index[0]}' add up to ten times its latency; check their unit"
            )


def concat(parts: Sequence[Dataset]) -> Dataset:
    """One dataset of several; engines and structures that repeat are kept once."""
    if not parts:
        raise DatasetError("no dataset given; name at least one folder")
    engines = pd.concat([p.engines for p in parts], ignore_index=True).drop_duplicates(["engine_id", "latency_kind"])
    layers = pd.concat([p.layers for p in parts], ignore_index=True)
    times = pd.concat([p.times for p in parts], ignore_index=True)
    return Dataset(
        engines=engines.reset_index(drop=True),
        layers=layers.drop_duplicates(["structure", "level", "layer_index"]).reset_index(drop=True),
        times=times.drop_duplicates(["engine_id", "name"]).reset_index(drop=True),
    )


def layer_frame(layers: Iterable[Layer], *, structure: str, level: str) -> pd.DataFrame:
    """Layers as rows of the `layers` table, in graph order."""
    made = list(layers)
    columns: dict[str, list[Any]] = {
        "structure": [structure] * len(made),
        "level": [level] * len(made),
        "layer_index": list(range(len(made))),
        "name": [layer.name for layer in made],
        "kind": [layer.kind for layer in made],
        "onnx_nodes": [list(layer.onnx_nodes) for layer in made],
        "op_types": [list(layer.op_types) for layer in made],
        "rule": [layer.rule for layer in made],
        "dtype": [layer.dtype for layer in made],
        "n_inputs": [len(layer.inputs) for layer in made],
        "n_outputs": [len(layer.outputs) for layer in made],
        "input_bytes": [sum(t.nbytes for t in layer.inputs) for layer in made],
        "output_bytes": [sum(t.nbytes for t in layer.outputs) for layer in made],
        "weight_bytes": [layer.weight_bytes for layer in made],
        "flops": [layer.flops for layer in made],
        "dram_bytes": [layer.dram_bytes for layer in made],
        "shapes_json": [_shapes_json(layer) for layer in made],
        **{name: [layer.geometry.get(name) for layer in made] for name in GEOMETRY},
    }
    # Types are given here, not found out as `_conform` does: a network is two such frames, a dataset thousands.
    types = {c.name: "Int64" if pa.types.is_integer(c.type) else "object" for c in SCHEMAS["layers"]}
    return pd.DataFrame({name: pd.Series(columns[name], dtype=types[name]) for name in types})


def _shapes_json(layer: Layer) -> str:
    shapes = {
        "inputs": [[list(t.shape), t.dtype] for t in layer.inputs],
        "outputs": [[list(t.shape), t.dtype] for t in layer.outputs],
    }
    return json.dumps(shapes, separators=(",", ":"))


def engine_frame(rows: Iterable[Mapping[str, Any]]) -> pd.DataFrame:
    """Mappings as rows of the `engines` table; columns left out are null.

    Raises:
        DatasetError: A key is no column of the table.
    """
    made = pd.DataFrame(list(rows))
    unknown = set(made.columns) - set(SCHEMAS["engines"].names)
    if unknown:
        raise DatasetError(f"engines have no column {', '.join(sorted(unknown))}; see perfpred.dataset.SCHEMAS")
    return _conform(made, "engines")


def time_frame(rows: Iterable[Mapping[str, Any]]) -> pd.DataFrame:
    """Mappings as rows of the `times` table."""
    return _conform(pd.DataFrame(list(rows)), "times")


def _empty(name: str) -> pd.DataFrame:
    return _conform(pd.DataFrame(), name)


def _conform(frame: pd.DataFrame, name: str) -> pd.DataFrame:
    """The frame with exactly the columns and types of the schema; integers that may be absent are nullable."""
    made: dict[str, Any] = {}
    for column in SCHEMAS[name]:
        values = frame[column.name] if column.name in frame else pd.Series([None] * len(frame), dtype=object)
        if pa.types.is_integer(column.type):
            made[column.name] = pd.to_numeric(values).astype("Int64")
        elif pa.types.is_floating(column.type):
            made[column.name] = pd.to_numeric(values).astype("float64")
        else:
            made[column.name] = values.astype(object).where(values.notna(), None)
    return pd.DataFrame(made).reset_index(drop=True)


#: Layers repeat from engine to engine over long distances: whole columns in one page compress best, and without
#: dictionaries.
_STORAGE: Final[Mapping[str, Any]] = {
    "compression": "zstd", "compression_level": 12, "use_dictionary": False, "data_page_size": 1 << 26,
    "row_group_size": 1 << 23,
}  # fmt: skip


def _header(name: str) -> dict[bytes, bytes]:
    return {b"format": f"perfpred.{name}".encode(), b"version": str(VERSION).encode()}


def _write_table(path: Path, name: str, frame: pd.DataFrame) -> None:
    table = pa.Table.from_pandas(_conform(frame, name), schema=SCHEMAS[name], preserve_index=False)
    table = table.replace_schema_metadata({**(table.schema.metadata or {}), **_header(name)})
    partial = path.with_suffix(".partial")
    pq.write_table(table, partial, **_STORAGE)
    os.replace(partial, path)


def _read_table(path: Path, name: str) -> pd.DataFrame:
    if not path.exists():
        if name == "engines":
            raise FormatError(f"{path}: is missing; the folder is not a dataset")
        return _empty(name)
    try:
        table = pq.read_table(path)
    except (pa.ArrowInvalid, OSError) as error:
        raise FormatError(f"{path}: not a Parquet file, or a truncated one; collect or copy it again") from error
    metadata = table.schema.metadata or {}
    found = metadata.get(b"format", b"").decode()
    if found != f"perfpred.{name}":
        raise FormatError(
            f"{path}: is {found or 'a table without a header'}, not perfpred.{name}; only perfpred writes datasets"
        )
    version = metadata.get(b"version", b"?").decode()
    if version != str(VERSION):
        raise FormatError(
            f"{path}: is perfpred.{name} version {version}; this perfpred reads {VERSION}. Upgrade perfpred or collect again."
        )
    return _conform(table.to_pandas(), name)


def _refuse(at_fault: pd.Series[bool], frame: pd.DataFrame, what: str) -> None:
    bad = np.flatnonzero(at_fault.to_numpy(dtype=bool, na_value=True))
    if len(bad):
        row = frame.iloc[int(bad[0])]
        label = row.get("engine_id") or row.get("structure")
        raise DatasetError(f"row {int(bad[0])} ('{label}'): {what} ({len(bad)} rows)")

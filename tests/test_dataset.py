"""Tables on disk: round trip, refusals that name the row, headers that say what a file is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from made import dataset

from perfpred.dataset import SCHEMAS, Dataset, concat, engine_frame, time_frame
from perfpred.errors import DatasetError, FormatError


def small(**changes: Any) -> Dataset:
    made = dataset(4, ("jetson-orin-nano",))
    return Dataset(engines=made.engines.assign(**changes), layers=made.layers.copy(), times=made.times)


def timed() -> Dataset:
    made = small()
    first = str(made.engines["engine_id"].iloc[0])
    made.times = time_frame([{"engine_id": first, "name": "conv0", "onnx_nodes": ["conv0"], "time_s": 1e-6}])
    return made


def test_round_trip_keeps_every_value(tmp_path: Path) -> None:
    made = timed()
    made.engines["samples_s"] = [np.arange(3, dtype=np.float32)] * 4
    made.write(tmp_path / "d")
    again = Dataset.read(tmp_path / "d")
    assert again.digest() == made.digest()
    for name in SCHEMAS:
        assert list(getattr(again, name).columns) == SCHEMAS[name].names
        assert len(getattr(again, name)) == len(getattr(made, name))
    assert list(again.engines["samples_s"].iloc[0]) == [0.0, 1.0, 2.0]
    assert again.engines["latency_s"].tolist() == made.engines["latency_s"].tolist()
    assert list(again.layers["onnx_nodes"].iloc[0]) == list(made.layers["onnx_nodes"].iloc[0])
    assert not list((tmp_path / "d").glob("*.partial"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"latency_s": 0.0}, r"row 0 \('0-1-fp16-jetson-orin-nano'\): latency_s must be positive \(4 rows\)"),
        ({"latency_s": np.nan}, "latency_s must be positive"),
        ({"latency_kind": "wall"}, "latency_kind must be one of gpu_compute"),
        ({"precision": "half"}, "precision must be one of fp32"),
        ({"status": "maybe"}, "status must be good or failed"),
        ({"batch_size": 0}, "batch_size must be 1 or more"),
        ({"engine_id": "same"}, "unique together"),
        ({"structure": "lost"}, "layers of its structure are missing"),
    ],
)
def test_bad_engines_are_refused(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(DatasetError, match=message):
        small(**changes).write(tmp_path / "d")
    assert not (tmp_path / "d").exists()


def test_bad_layers_and_times_are_refused() -> None:
    made = small()
    made.layers["kind"] = "magic"
    with pytest.raises(DatasetError, match="kind must be one of conv"):
        made.check()
    made = timed()
    made.times["time_s"] = 1.0
    with pytest.raises(DatasetError, match="ten times its latency; check their unit"):
        made.check()


def test_failed_rows_need_no_latency() -> None:
    made = small(status="failed", latency_s=np.nan, structure=None)
    made.check()
    assert made.good.empty


def test_foreign_and_damaged_files_are_refused(tmp_path: Path) -> None:
    small().write(tmp_path / "d")
    engines = tmp_path / "d" / "engines.parquet"
    table = pq.read_table(engines)
    for metadata, message in (
        ({b"format": b"perfpred.engines", b"version": b"2"}, "version 2; this perfpred reads 1"),
        ({b"format": b"perfpred.layers", b"version": b"1"}, r"is perfpred.layers, not perfpred.engines"),
        ({}, "a table without a header"),
    ):
        pq.write_table(table.replace_schema_metadata(metadata), engines)
        with pytest.raises(FormatError, match=message):
            Dataset.read(tmp_path / "d")
    engines.write_bytes(engines.read_bytes()[:100])
    with pytest.raises(FormatError, match="truncated"):
        Dataset.read(tmp_path / "d")
    with pytest.raises(FormatError, match="perfpred collect"):
        Dataset.read(tmp_path)


def test_joining_keeps_repeats_once() -> None:
    made = timed()
    both = concat([made, timed(), dataset(6, ("jetson-orin-nano",))])
    assert len(both.engines) == 6
    assert len(both.times) == 1
    assert not both.layers.duplicated(["structure", "level", "layer_index"]).any()
    with pytest.raises(DatasetError, match="name at least one folder"):
        concat([])


def test_digest_follows_the_facts() -> None:
    made = small()
    shuffled = Dataset(engines=made.engines.sample(frac=1, random_state=0), layers=made.layers)
    assert shuffled.digest() == made.digest()
    changed = small(latency_s=made.engines["latency_s"] * 1.001)
    assert changed.digest() != made.digest()


def test_unknown_columns_are_refused() -> None:
    with pytest.raises(DatasetError, match="no column speed"):
        engine_frame([{"engine_id": "a", "speed": 3}])


def test_schema_types_survive_absent_values() -> None:
    made = engine_frame([{"engine_id": "a"}])
    assert made["sm_count"].dtype == pd.Int64Dtype()
    assert pa.Table.from_pandas(made, schema=SCHEMAS["engines"], preserve_index=False).num_rows == 1

"""Recorded engines: our own small ones in trtexec's and Torch-TensorRT's formats, and the reference recordings."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest

from perfpred.errors import EngineFormatError
from perfpred.recording import read_profile, read_recording, read_times

TIMES = {
    **{"startEnqMs": 1.0, "endEnqMs": 1.1, "startH2dMs": 1.0, "endH2dMs": 1.2, "startComputeMs": 1.2},
    **{"endComputeMs": 3.2, "startD2hMs": 3.2, "endD2hMs": 3.3, "h2dMs": 0.2, "computeMs": 2.0, "d2hMs": 0.1},
    "latencyMs": 2.3,
}


def graph(*names: str) -> str:
    tensor = {"Name": "t", "Dimensions": [1, 8], "Format/Datatype": "Row major linear FP32"}
    layers = [{"Name": n, "LayerType": "CaskConvolution", "Inputs": [tensor], "Outputs": [tensor]} for n in names]
    return json.dumps({"Layers": layers, "Bindings": ["x", "y"]})


def profile(*rows: tuple[str, float], count: int = 10) -> list[dict[str, Any]]:
    body = [{"name": n, "timeMs": m * count, "averageMs": m, "medianMs": m / 2, "percentage": 50.0} for n, m in rows]
    return [{"count": count}, *body]


def test_profile_takes_the_median_and_the_mean_where_there_is_none(tmp_path: Path) -> None:
    rows = profile(("a", 0.2), ("b", 0.4))
    del rows[2]["medianMs"]  # before 8.4
    path = tmp_path / "p.json"
    path.write_text(json.dumps(rows))
    read = read_profile(path)
    assert read.runs == 10
    assert read.times == (("a", pytest.approx(1e-4)), ("b", pytest.approx(4e-4)))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[]", "expected a list that starts with"),
        ('[{"count": 1}, {"timeMs": 1}]', "record 1: expected an object with a `name`"),
        ('[{"count": 1}, {"name": "a"}]', r"record 1 \('a'\): expected `medianMs` or `averageMs`"),
        ('[{"count": 1}, {"na', "the file is truncated or damaged"),
    ],
)
def test_malformed_profiles_name_the_record(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "p.json").write_text(text)
    with pytest.raises(EngineFormatError, match=message):
        read_profile(tmp_path / "p.json")


def test_times_keep_every_column_in_seconds(tmp_path: Path) -> None:
    path = tmp_path / "t.json"
    path.write_text(json.dumps([TIMES, {**TIMES, "computeMs": 4.0}]))
    times = read_times(path)
    assert times.compute_s == (pytest.approx(2e-3), pytest.approx(4e-3))
    assert times.latency_s == (pytest.approx(2.3e-3),) * 2
    assert times.raw["startEnqMs"] == (pytest.approx(1e-3),) * 2


def test_times_without_a_column_say_which(tmp_path: Path) -> None:
    path = tmp_path / "t.json"
    path.write_text(json.dumps([TIMES, {k: v for k, v in TIMES.items() if k != "computeMs"}]))
    with pytest.raises(EngineFormatError, match="record 1: expected `computeMs`"):
        read_times(path)


def test_folder_with_profile_and_metadata(tmp_path: Path) -> None:
    (tmp_path / "graph.json").write_text(graph("a", "b"))
    (tmp_path / "profile.json").write_text(json.dumps(profile(("b", 0.4), ("a", 0.2))))
    summary = {"performance_summary": {"GPU Compute Time": [0.1, 0.9, 0.5, 0.4, 0.8]}}
    (tmp_path / "profile.metadata.json").write_text(json.dumps(summary))
    recording = read_recording(tmp_path)
    assert [layer.time_s for layer in recording.layers] == [pytest.approx(1e-4), pytest.approx(2e-4)]
    assert (recording.runs, recording.latency_kind) == (10, "gpu_compute")
    assert recording.latency_s == pytest.approx(4e-4)


def test_stem_with_several_files(tmp_path: Path) -> None:
    (tmp_path / "net.engine.graph.json").write_text(graph("a"))
    recording = read_recording(tmp_path / "net.engine")
    assert (recording.name, recording.runs, recording.latency_s) == ("net.engine", 0, None)


def test_torch_tensorrt_files(tmp_path: Path) -> None:
    (tmp_path / "graph.json").write_text(graph("a"))
    (tmp_path / "layer_latency.json").write_text(json.dumps({"a": [0.1, 0.3, 0.2]}))
    (tmp_path / "benchmark.json").write_text(json.dumps(json.dumps({"latencies": [0.002, 0.001, 0.003]})))
    recording = read_recording(tmp_path)
    assert recording.layers[0].time_s == pytest.approx(2e-4)
    assert (recording.latency_s, recording.latency_kind, recording.runs) == (0.002, "host_sync", 3)


def test_profile_of_another_engine_is_refused(tmp_path: Path) -> None:
    (tmp_path / "graph.json").write_text(graph("a"))
    (tmp_path / "profile.json").write_text(json.dumps(profile(("z", 0.4))))
    with pytest.raises(EngineFormatError, match="expected 1 rows named 'a', found 0"):
        read_recording(tmp_path)


def test_folder_without_a_graph_says_what_was_expected(tmp_path: Path) -> None:
    with pytest.raises(EngineFormatError, match=r"expected graph\.json"):
        read_recording(tmp_path)


def test_reference_recordings_read_as_their_index_says(reference_data: Path) -> None:
    folder = reference_data / "tensorrt_engines"
    with (folder / "index.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) >= 7
    for row in rows:
        recording = read_recording(folder / row["engine"])
        assert len(recording.layers) == int(row["graph_layers"])
        assert recording.runs == int(row["profiled_runs"])
        assert recording.latency_s == pytest.approx(float(row["engine_median_ms"]) * 1e-3, rel=1e-4)
        total = sum(layer.time_s or 0 for layer in recording.layers)
        assert total == pytest.approx(float(row["sum_layer_average_ms"]) * 1e-3, rel=0.02)

"""Importers: schemas with clear errors, mapping of published networks, trtexec exports."""

from __future__ import annotations

import json
import tarfile
from pathlib import Path

import numpy as np
import onnx
import pandas as pd
import pytest
from onnx import TensorProto, helper, numpy_helper

from perfpred.conv_table import dataset_from_conv_table
from perfpred.corpus import Corpus
from perfpred.errors import DatasetError, UsageError
from perfpred.imports import dataset_from_trtexec
from perfpred.published import REBUILT, dataset_from_published, lab_of, read_published


def _model(size: int = 8) -> onnx.ModelProto:
    weight = numpy_helper.from_array(np.zeros((4, 3, 3, 3), np.float32), "w")
    graph = helper.make_graph(
        [
            helper.make_node("Conv", ["x", "w"], ["y"], name="conv", pads=[1, 1, 1, 1]),
            helper.make_node("Relu", ["y"], ["z"], name="relu"),
        ],
        "tiny",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 3, size, size])],
        [helper.make_tensor_value_info("z", TensorProto.FLOAT, None)],
        [weight],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def _row(**changes: str) -> dict[str, str]:
    row = {
        "source": "example.org/some-lab", "device": "jetson-nano", "precision": "fp16", "batch_size": "2",
        "network": "tiny", "zoo": "", "graph": "tiny.onnx", "input_shape": "2x3x8x8", "latency_ms": "1.5",
        "latency_kind": "gpu_compute", "power_mode": "", "note": "", "family": "tinies",
    }  # fmt: skip
    return {**row, **changes}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    onnx.save(_model(), tmp_path / "tiny.onnx")
    return tmp_path


def _table(folder: Path, *rows: dict[str, str]) -> Path:
    path = folder / "table.csv"
    pd.DataFrame(list(rows)).to_csv(path, index=False)
    return path


def _import(path: Path, **options: Path) -> pd.DataFrame:
    made = dataset_from_published(path, corpus=Corpus((), path.parent), **options)
    made.check()
    return made.engines


def test_rows_keep_their_facts_and_copies_are_dropped(folder: Path) -> None:
    rows = [_row(), _row(power_mode="MaxQ", note="suspect: slow"), _row(network="again", note="x; copy_of=tiny")]
    engines = _import(_table(folder, *rows))
    assert engines["latency_s"].tolist() == [0.0015, 0.0015]
    assert engines["lab"].tolist() == ["some-lab", "some-lab MaxQ"]
    assert engines["mapping"].tolist() == ["exact", "exact"]
    assert [list(flags) for flags in engines["flags"]] == [[], ["suspect"]]
    assert json.loads(engines["provenance_json"][0])["source"] == "example.org/some-lab"


def test_layers_are_bound_to_the_stated_batch_and_precision(folder: Path) -> None:
    made = dataset_from_published(_table(folder, _row()), corpus=Corpus((), folder))
    fused = made.layers_at("fused")
    conv = fused[fused["kind"] == "conv"].iloc[0]
    assert conv["batch"] == 2
    assert conv["dtype"] == "float16"
    assert conv["flops"] >= 2 * 2 * 4 * 8 * 8 * 27
    assert set(made.layers_at("node")["structure"]) == set(fused["structure"])


def test_a_builder_name_finds_a_graph_of_its_size_in_the_folder(folder: Path) -> None:
    onnx.save(_model(16), folder / "timm.tiny@16.onnx")
    path = _table(folder, _row(zoo="timm/tiny", graph="", input_shape="2x3x16x16"), _row(zoo="timm/tiny", graph=""))
    engines = _import(path, graphs_root=folder)
    assert engines["network"].tolist() == ["timm.tiny@16"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"latency_ms": "fast"}, "line 3: latency_ms 'fast' is not a positive number"),
        ({"latency_ms": "-1"}, "line 3: latency_ms '-1'"),
        ({"batch_size": "1.5"}, "line 3: batch_size '1.5' is not a positive whole number"),
        ({"device": "jetson-nani"}, "line 3: device 'jetson-nani' is unknown; use one of jetson-nano"),
        ({"precision": "half"}, "line 3: precision 'half' is unknown"),
        ({"latency_kind": "gpu"}, "line 3: latency_kind 'gpu' is unknown"),
        ({"graph": "lost.onnx"}, "the graph that the table names is missing"),
    ],
)
def test_bad_rows_are_named(folder: Path, changes: dict[str, str], message: str) -> None:
    with pytest.raises(DatasetError, match=message.replace(".", r"\.")):
        _import(_table(folder, _row(), _row(**changes)))


def test_a_missing_column_is_named_with_what_is_near(folder: Path) -> None:
    row = _row()
    row["latency"] = row.pop("latency_ms")
    with pytest.raises(DatasetError, match=r"no column 'latency_ms' \(rename 'latency'"):
        read_published(_table(folder, row))


def test_an_unreadable_table_is_named(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"absent\.csv: can't be read"):
        read_published(tmp_path / "absent.csv")


_CONV = {
    "conv_type": "regular", "batch": 1, "in_channels": 16, "in_h": 8, "in_w": 8, "out_channels": 32, "kernel": 3,
    "stride": 2, "residual_add": 0, "precision": "fp16", "latency_ms": 0.02, "upstream_file": "f",
}  # fmt: skip


def test_each_convolution_is_an_engine_of_one_layer(tmp_path: Path) -> None:
    rows = [_CONV, {**_CONV, "conv_type": "depthwise", "out_channels": 16, "precision": "int8", "residual_add": 1}]
    path = tmp_path / "layers.csv"
    pd.DataFrame(rows).to_csv(path, index=False)
    made = dataset_from_conv_table(path)
    made.check()
    assert made.engines["latency_kind"].tolist() == ["layer", "layer"]
    regular, depthwise = (made.layers.iloc[i] for i in (0, 1))
    assert regular["flops"] >= 2 * 16 * 32 * 9 * 16
    assert (regular["m"], regular["n"], regular["k"]) == (16, 32, 144)
    assert depthwise["kind"] == "depthwise_conv"
    assert depthwise["dtype"] == "int8"
    assert depthwise["n_inputs"] == 2


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{**_CONV, "kernel": 0}], "line 2: kernel '0' is not a positive whole number"),
        ([_CONV, {**_CONV, "latency_ms": 0.03}], "line 3: latency_ms '0.03' belongs to a layer given before"),
        ([{**_CONV, "conv_type": "depthwise", "out_channels": 24}], "no multiple of in_channels"),
        ([{**_CONV, "conv_type": "dense"}], "conv_type 'dense' is unknown"),
    ],
)
def test_bad_convolutions_are_named(tmp_path: Path, rows: list[dict[str, object]], message: str) -> None:
    path = tmp_path / "layers.csv"
    pd.DataFrame(rows).to_csv(path, index=False)
    with pytest.raises(DatasetError, match=message):
        dataset_from_conv_table(path)


def _tensor(name: str, channels: int) -> dict[str, object]:
    return {"Name": name, "Dimensions": [1, channels, 8, 8], "Format/Datatype": "Row major linear FP16 format"}


def _exports(folder: Path, stem: str = "tiny", *, transfers: float = 0.0) -> None:
    layer = {
        "Name": "conv + relu", "LayerType": "CaskConvolution", "Inputs": [_tensor("x", 3)],
        "Outputs": [_tensor("z", 4)], "TacticName": "some", "StreamId": 0, "Metadata": "[ONNX Layer: conv]\x1e[ONNX Layer: relu]",
    }  # fmt: skip
    sample = {
        "startEnqMs": 0, "endEnqMs": 0, "startH2dMs": 0, "endH2dMs": 0, "startComputeMs": 0, "endComputeMs": 0,
        "startD2hMs": 0, "endD2hMs": 0, "h2dMs": transfers, "d2hMs": transfers,
    }  # fmt: skip
    times = [{**sample, "computeMs": t, "latencyMs": t + 2 * transfers} for t in (1.0, 2.0, 9.0)]
    profile = [
        {"count": 50},
        {"name": "conv + relu", "averageMs": 1.1, "medianMs": 1.0, "timeMs": 55, "percentage": 100},
    ]
    for part, content in (("layers", {"Layers": [layer]}), ("times", times), ("profile", profile)):
        (folder / f"{stem}.{part}.json").write_text(json.dumps(content))


def test_trtexec_exports_become_an_engine_with_builder_layers(folder: Path) -> None:
    _exports(folder)
    files = [folder / f"tiny.{part}.json" for part in ("layers", "times", "profile")]
    made = dataset_from_trtexec(files, network=folder / "tiny.onnx", device="jetson-nano")
    made.check()
    assert made.engines["latency_s"].tolist() == [0.002]
    assert made.engines["precision"].tolist() == ["fp16"]
    builder = made.layers_at("builder")
    assert [list(nodes) for nodes in builder["onnx_nodes"]] == [["conv", "relu"]]
    assert made.times["time_s"].tolist() == [0.001]
    assert made.times["n_samples"].tolist() == [50]


def test_an_archive_of_exports_finds_its_networks_by_stem(folder: Path, tmp_path: Path) -> None:
    _exports(folder, transfers=0.5)
    archive = tmp_path / "results.tar"
    with tarfile.open(archive, "w") as tar:
        for file in folder.glob("tiny.*.json"):
            tar.add(file, f"measured/{file.name}")
    made = dataset_from_trtexec([archive], network=folder, device="jetson-nano")
    assert dict(zip(made.engines["latency_kind"], made.engines["latency_s"], strict=True)) == {
        "gpu_compute": 0.002,
        "with_io": 0.003,
    }
    (folder / "tiny.onnx").unlink()
    with pytest.raises(UsageError, match=r"tiny\.onnx: the network of engine 'tiny' is missing"):
        dataset_from_trtexec([archive], network=folder, device="jetson-nano")


def test_nothing_to_import_is_said(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no trtexec export"):
        dataset_from_trtexec([tmp_path], network=tmp_path, device="jetson-nano")
    with pytest.raises(UsageError, match="unknown device"):
        dataset_from_trtexec([tmp_path], network=tmp_path, device="nano")


def test_every_rebuilt_name_occurs_in_the_table(reference_data: Path) -> None:
    table = read_published(reference_data / "tensorrt_published.csv")
    named = set(zip(map(lab_of, table["source"]), table["network"], strict=True))
    assert set(REBUILT) <= named


def test_enough_published_rows_have_a_graph(reference_data: Path) -> None:
    from perfpred.published import Graphs

    graphs = Graphs(Corpus.load(), None, reference_data)
    main = read_published(reference_data / "tensorrt_published.csv")
    mapped = main[[graphs.find(row) is not None for row in main.to_dict("records")]]
    detectors = read_published(reference_data / "tensorrt_published_detectors.csv")
    found = [graphs.find(row) is not None for row in detectors.to_dict("records")]
    assert all(found)
    assert len(found) == 128
    assert len(mapped) + len(found) >= 1150
    assert mapped["device"].str.startswith("jetson").sum() >= 160

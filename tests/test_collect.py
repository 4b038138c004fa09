from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from test_runtimes import small_network

from perfpred import environment
from perfpred.assemble import dataset_from_records
from perfpred.campaign import Progress
from perfpred.collect import LineReport, collect, cpu_groups, gpu_ordinals, main, records
from perfpred.errors import NetworkError, UsageError
from perfpred.measure import Loop
from perfpred.network import load_network
from perfpred.prepare import find_networks, graph_digest, load_filled, make_inputs, network_name, prepare
from perfpred.unit import Plan, Unit, engine_id, engine_key
from perfpred.weights import strip_weights
from perfpred.worker import Worker, parse_cores, serve


def stripped(folder: Path, name: str = "small") -> Path:
    folder.mkdir(exist_ok=True)
    path = small_network(folder / f"{name}.onnx")
    onnx.save(strip_weights(onnx.load(path)), path)
    return path


def test_collecting_on_this_cpu(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    stripped(tmp_path / "nets")
    (tmp_path / "nets" / "broken.onnx").write_bytes(b"nonsense")
    how = {
        "target": "cpu",
        "precisions": ("fp32", "int8"),
        "optimisation": ("all", "off"),
        "layers": True,
        "check_outputs": True,
        "cores": "0",
        "host": "bench",
    }
    progress = collect([tmp_path / "nets"], out=tmp_path / "out", **how)
    assert progress.good == 4
    assert progress.failed == Counter({"prepare: NetworkError": 4})
    rows = {(r["precision"], r["optimisation"]): r for r in records(tmp_path / "out") if r["status"] == "good"}
    row = rows["fp32", "all"]
    assert row["latency_kind"] == "cpu"
    assert row["latency_s"] == pytest.approx(np.median(row["samples_s"]), rel=1e-3)
    assert row["device"] == row["environment"]["device_spec"]["slug"] == "bench"
    assert row["environment"]["cores"] == [0]
    assert row["environment"]["cpu"]
    assert row["outputs"]["max_relative_difference"] < 1e-4
    assert rows["int8", "all"]["outputs"]["max_relative_difference"] > 1e-4
    assert row["outputs"]["digest"] != rows["int8", "all"]["outputs"]["digest"]
    assert {layer["op_type"] for layer in rows["fp32", "off"]["layers"]} == {"Conv", "Relu", "Add"}
    assert collect([tmp_path / "nets"], out=tmp_path / "out", **how).skipped == 8
    # What dynamic quantisation puts around a node is timed as that node's.
    made = dataset_from_records(records(tmp_path / "out"), find_networks([tmp_path / "nets"]))
    times = made.times.merge(made.engines[["engine_id", "precision", "optimisation"]], on="engine_id")
    quantised = times[times["precision"].eq("int8") & times["optimisation"].eq("all")]
    own = quantised[quantised["name"].ne("x_QuantizeLinear")]  # of the network's input, which no node writes
    assert len(own) > 3
    assert own["onnx_nodes"].map(len).eq(1).all()


def test_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("onnxruntime")
    nets = str(stripped(tmp_path / "nets").parent)
    plan = tmp_path / "plan.json"
    common = [nets, "--out", str(tmp_path / "out")]
    assert main([*common, "--target", "cpu", "--precision", "fp32", "--save-plan", str(plan)]) == 0
    assert Plan.load(plan).units == (Unit(network="small", precision="fp32", target="cpu"),)
    assert not (tmp_path / "out").exists()
    assert main([*common, "--plan", str(plan), "--pack", str(tmp_path / "packed")]) == 0
    printed = capsys.readouterr().err
    assert "planned 1, had 0, good 1, left 0" in printed
    assert "packed: raw-0.jsonl.xz" in printed
    assert len(list(records(tmp_path / "packed"))) == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["/nowhere/at/all", "--out", "{out}"], "does not exist; give ONNX files or folders"),
        (["{nets}", "--out", "{out}", "--precision", "fp12"], "unknown precision 'fp12'"),
        (["{nets}", "--out", "{out}", "--gpus", "x"], "'x' is not a list of cores"),
        (["{nets}", "--out", "{other}", "--target", "cpu", "--precision", "fp32"], "use another output folder"),
        (["{nets}", "--out", "{out}", "--plan", "{nets}/small.onnx"], "is not a plan"),
        (["{nets}", "--out", "{out}", "--target", "cpu", "--host", "h100-sxm"], "is another device"),
        (
            ["{nets}", "--out", "{out}", "--target", "cpu", "--host", "a", "--cluster", "b"],
            "a cluster measures on others",
        ),
    ],
)
def test_mistakes_are_one_line(
    arguments: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    nets = stripped(tmp_path / "nets").parent
    other = tmp_path / "other"
    other.mkdir()
    (other / "raw.format.json").write_text('{"format": "perfpred.raw", "version": 0}')
    filled = [a.format(nets=nets, out=tmp_path / "out", other=other) for a in arguments]
    assert main(filled) in (1, 2)
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("error: ")
    assert message in lines[0]


def test_a_machine_without_a_gpu_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UsageError, match=r"no NVIDIA GPU found.*--gpus 0"):
        gpu_ordinals("all")
    fake = tmp_path / "nvidia-smi"
    fake.write_text("#!/bin/sh\necho 'GPU 0: Imaginary'\necho 'GPU 1: Imaginary'\n")
    fake.chmod(0o755)
    assert gpu_ordinals("all") == [0, 1]
    assert gpu_ordinals("1,3-4") == [1, 3, 4]


def test_cpu_workers_get_disjoint_cores() -> None:
    assert cpu_groups("8-15", 4) == ["8,9,10,11", "12,13,14,15"]
    assert cpu_groups("8-15", None) == ["8,9,10,11,12,13,14,15"]
    assert cpu_groups("", None) == [""]
    with pytest.raises(UsageError, match="2 cores can't hold a worker of 4"):
        cpu_groups("0-1", 4)
    with pytest.raises(UsageError, match="not a list of cores"):
        parse_cores("a-b")


def test_progress_line_tells_rate_and_time_left() -> None:
    report = LineReport()
    report._begin -= 60
    line = report.line(Progress(planned=100, skipped=10, good=28, failed=Counter({"build: X": 2})))
    assert line == "40/100 rows, 2 failed, 30.0 rows/min, 2.0 min left"


# Identity -----------------------------------------------------------------------------------------------------


def test_identity_covers_what_makes_an_engine() -> None:
    def identity(device_sms: int | None = 132, graph: str = "g", device: str = "h100-sxm", **changes: object) -> str:
        unit = Unit(**{"network": "a", "precision": "fp16", **changes})
        return engine_id(engine_key(unit, graph=graph, device=device, device_sms=device_sms))

    base = identity()
    assert identity(sm_count=132) == base
    assert identity(detail=True, layers=True) == base
    different = [
        identity(sm_count=16),
        identity(batch_size=4),
        identity(precision="tf32"),
        identity(optimisation="off"),
        identity(rebuild=1),
        identity(options={"prefer_nhwc": "1"}),
        identity(graph="h"),
        identity(device="h200-sxm"),
        identity(runtime="tensorrt"),
    ]
    assert len({base, *different}) == len(different) + 1


@pytest.mark.parametrize(
    ("unit", "precision"),
    [
        ({"precision": "tf32"}, "fp32"),
        ({"precision": "fp16"}, "fp16"),
        ({"precision": "int8"}, "int8"),
        ({"precision": "fp16", "runtime": "tensorrt"}, "fp32"),
        ({"precision": "fp16", "runtime": "tensorrt", "options": {"typing": "strong"}}, "fp16"),
        ({"precision": "fp16", "runtime": "tensorrt-rtx"}, "fp16"),
        ({"precision": "int8", "runtime": "tensorrt-rtx"}, "fp32"),
    ],
)
def test_the_graph_handed_to_the_runtime(unit: dict, precision: str) -> None:
    assert Unit(network="a", **unit).graph_precision == precision


# Preparation --------------------------------------------------------------------------------------------------


def test_networks_are_found_and_named(tmp_path: Path) -> None:
    zstandard = pytest.importorskip("zstandard")
    path = stripped(tmp_path / "nets", "a@160")
    packed = tmp_path / "nets" / "b.c.onnx.zst"
    packed.write_bytes(zstandard.ZstdCompressor().compress(path.read_bytes()))
    found = find_networks([tmp_path / "nets"])
    assert list(found) == ["a@160", "b.c"]
    assert graph_digest(found["b.c"]) == graph_digest(found["a@160"])
    assert network_name(Path("x.pb")) == "x.pb"
    (tmp_path / "again").mkdir()
    small_network(tmp_path / "again" / "a@160.onnx")
    with pytest.raises(UsageError, match="two networks are called 'a@160'"):
        find_networks([tmp_path / "nets", tmp_path / "again"])


def test_weights_that_are_there_are_kept(tmp_path: Path) -> None:
    model = onnx.load(small_network(tmp_path / "small.onnx"))
    weight = numpy_helper.to_array(model.graph.initializer[0])
    onnx.save(model, tmp_path / "external.onnx", save_as_external_data=True, location="weights.bin", size_threshold=0)
    loaded = load_filled(tmp_path / "external.onnx")
    np.testing.assert_array_equal(numpy_helper.to_array(loaded.graph.initializer[0]), weight)
    (tmp_path / "weights.bin").unlink()
    filled = numpy_helper.to_array(load_filled(tmp_path / "external.onnx").graph.initializer[0])
    assert filled.shape == weight.shape
    assert not np.array_equal(filled, weight)


def test_roles_of_weights_go_unremarked(tmp_path: Path) -> None:
    """Warnings are errors in tests."""
    weight = numpy_helper.from_array(np.arange(1000, dtype=np.float32), "gamma")
    infos = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 1000]) for name in ("x", "y")]
    graph = helper.make_graph([helper.make_node("Mul", ["x", "gamma"], ["y"])], "g", infos[:1], infos[1:], [weight])
    free = strip_weights(helper.make_model(graph))
    assert {entry.key for entry in free.graph.initializer[0].external_data} == {"location", "role"}
    (tmp_path / "net.onnx").write_bytes(free.SerializeToString())
    assert [node.op_type for node in load_network(tmp_path / "net.onnx").nodes] == ["Mul"]
    (tmp_path / "weights.bin").write_bytes(weight.raw_data)
    (loaded,) = load_filled(tmp_path / "net.onnx").graph.initializer
    np.testing.assert_array_equal(numpy_helper.to_array(loaded), np.arange(1000))


def test_preparing_halves_and_binds(tmp_path: Path) -> None:
    path = stripped(tmp_path / "nets")
    model = onnx.load(prepare(path, precision="fp16", batch_size=3, folder=tmp_path / "out"))
    (value,) = model.graph.input
    assert value.type.tensor_type.elem_type == TensorProto.FLOAT16
    assert [d.dim_value for d in value.type.tensor_type.shape.dim] == [3, 8, 16, 16]
    with pytest.raises(UsageError, match="can't be prepared in 'fp8'"):
        prepare(path, precision="fp8", batch_size=1, folder=tmp_path)


def test_inputs_respect_what_they_mean() -> None:
    table = numpy_helper.from_array(np.zeros((5, 4), np.float32), "table")
    graph = helper.make_graph(
        [helper.make_node("Gather", ["table", "input_ids"], ["y"])],
        "lookup",
        [
            helper.make_tensor_value_info("input_ids", TensorProto.INT64, [2, 64]),
            helper.make_tensor_value_info("attention_mask", TensorProto.INT64, [2, 64]),
            helper.make_tensor_value_info("image", TensorProto.FLOAT16, [1, 3, 4, 4]),
            helper.make_tensor_value_info("flag", TensorProto.BOOL, [1]),
        ],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [2, 64, 4])],
        [table],
    )
    model = helper.make_model(graph)
    inputs = make_inputs(model)
    assert inputs["input_ids"].min() >= 0
    assert set(np.unique(inputs["input_ids"])) == {0, 1, 2, 3, 4}
    assert np.all(inputs["attention_mask"] == 1)
    assert inputs["image"].dtype == np.float16
    assert np.std(inputs["image"].astype(np.float32)) > 0.5
    assert inputs["flag"].all()
    np.testing.assert_array_equal(make_inputs(model)["image"], inputs["image"])
    graph.input[2].type.tensor_type.shape.dim[0].dim_param = "n"
    with pytest.raises(NetworkError, match="input 'image' has a dynamic dimension"):
        make_inputs(helper.make_model(graph))


# Worker -------------------------------------------------------------------------------------------------------


def test_a_worker_answers_errors_and_goes_on(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    path = stripped(tmp_path / "nets")
    requests = [
        {"op": "hello"},
        {"op": "measure"},
        {
            "op": "prepare",
            "path": str(path),
            "precision": "fp32",
            "batch_size": 1,
            "folder": str(tmp_path / "p"),
            "reference": False,
        },
        {
            "op": "build",
            "unit": {"network": "small", "precision": "fp32", "target": "cpu"},
            "model": str(tmp_path / "p" / "model.onnx"),
        },
        {"op": "build", "unit": {"network": "small", "precision": "fp32", "target": "cpu"}, "model": "missing.onnx"},
        {"op": "nonsense"},
    ]
    replies = tmp_path / "replies"
    with replies.open("w") as out:
        serve(Worker("cpu", loop=Loop()), [json.dumps(r) for r in requests], out)
    answers = [json.loads(line) for line in replies.read_text().splitlines()]
    assert [answer["ok"] for answer in answers] == [True, False, True, True, False, False]
    assert answers[0]["value"]["device"] == "cpu"
    assert answers[1]["error"] == {"class": "UsageError", "message": "nothing is built: ask for a build first"}
    assert not answers[4]["fatal"]


def test_libraries_that_print_do_not_disturb_the_protocol(tmp_path: Path) -> None:
    script = "import sys; sys.stdin = iter(()); from perfpred import worker; worker.serve = lambda w, i, o: (print('noise'), o.write('reply\\n'), o.flush()); sys.argv = ['w', '--target', 'cpu']; worker.main()"
    answer = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, env={**os.environ}
    )
    assert answer.stdout == "reply\n"
    assert "noise" in answer.stderr


# Environment --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "slug"),
    [
        ("NVIDIA H100 80GB HBM3", "h100-sxm"),
        ("NVIDIA H200", "h200-sxm"),
        ("NVIDIA A100-SXM4-80GB", "a100-sxm-80gb"),
        ("Tesla T4", "tesla-t4"),
        ("Tesla V100-SXM2-16GB", "tesla-v100"),
        ("NVIDIA GeForce RTX 3090", "rtx-3090"),
        ("NVIDIA GeForce RTX 4090", "rtx-4090"),
    ],
)
def test_device_slugs(name: str, slug: str) -> None:
    assert environment.device_slug(name) == slug


def test_throttling_is_read_from_the_reasons() -> None:
    assert not environment.throttled({"clock_event_reasons": 0x1}, {})
    assert environment.throttled({}, {"clock_event_reasons": 0x40})


def test_gpu_state_through_nvidia_smi(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", None)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    fake = tmp_path / "nvidia-smi"
    fake.write_text("#!/bin/sh\necho '1980, 2619, 41, 92.50, 0x0000000000000004, 580.1'\n")
    fake.chmod(0o755)
    state = environment.GpuMonitor("0000:00:06.0").state()
    assert state == {
        "sm_clock_hz": 1_980_000_000,
        "memory_clock_hz": 2_619_000_000,
        "temperature_c": 41,
        "power_w": 92.5,
        "clock_event_reasons": 4,
    }
    fake.write_text("#!/bin/sh\nexit 9\n")
    assert environment.GpuMonitor().state() == {}
    assert environment.GpuMonitor().facts() == {}

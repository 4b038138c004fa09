from __future__ import annotations

import json
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from perfpred import kernels
from perfpred.errors import BuildError, MeasurementError, RuntimeUnavailableError
from perfpred.prepare import prepare, read_inputs
from perfpred.runtimes import onnxruntime as ort


def small_network(path: Path) -> Path:
    """Two convolutions with a residual, dynamic batch axis, weights inline."""
    rng = np.random.default_rng(0)
    weights = [rng.standard_normal((8, 8, 3, 3)).astype(np.float32) * 0.1 for _ in range(2)]
    nodes = [
        helper.make_node("Conv", ["x", "w0"], ["a"], name="first", pads=[1] * 4),
        helper.make_node("Relu", ["a"], ["b"], name="act"),
        helper.make_node("Conv", ["b", "w1"], ["c"], name="second", pads=[1] * 4),
        helper.make_node("Add", ["c", "x"], ["y"], name="residual"),
    ]
    shape = ["batch", 8, 16, 16]
    graph = helper.make_graph(
        nodes,
        "small",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, shape)],
        [numpy_helper.from_array(w, f"w{i}") for i, w in enumerate(weights)],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), path)
    return path


@pytest.fixture
def model(tmp_path: Path) -> Path:
    source = small_network(tmp_path / "small.onnx")
    return prepare(source, precision="fp32", batch_size=2, folder=tmp_path / "prepared")


def test_cpu_engine_runs_and_profiles(model: Path, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    inputs = read_inputs(model)
    assert inputs["x"].shape == (2, 8, 16, 16)
    plain = ort.build_cpu(model, inputs, threads=1, optimisation="off")
    engine = ort.build_cpu(model, inputs, threads=1, profile=tmp_path / "profile")
    for _ in range(3):
        engine.run()
    assert ort.relative_difference(plain.outputs(), engine.outputs()) < 1e-5
    layers = ort.layer_times(engine.session.end_profiling())
    convolutions = [layer for layer in layers if "Conv" in layer["op_type"]]
    assert len(convolutions) == 2
    assert all(layer["runs"] == 3 and layer["time_s"] >= 0 for layer in layers)


def test_a_network_the_runtime_refuses_is_a_build_error(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    (tmp_path / "bad.onnx").write_bytes(b"nonsense")
    with pytest.raises(BuildError):
        ort.build_cpu(tmp_path / "bad.onnx", {})


def test_a_runtime_without_the_provider_names_the_fix(monkeypatch: pytest.MonkeyPatch) -> None:
    module = types.ModuleType("onnxruntime")
    module.get_available_providers = lambda: ["CPUExecutionProvider"]
    monkeypatch.setitem(sys.modules, "onnxruntime", module)
    with pytest.raises(RuntimeUnavailableError, match=r"no CUDAExecutionProvider: pip install perfpred\[ort-gpu\]"):
        ort.load_runtime("cuda")
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(RuntimeUnavailableError, match=r"pip install perfpred\[ort\]"):
        ort.load_runtime("cpu")
    assert ort.version() is None


class FakeOnnxRuntime(types.ModuleType):
    """Answers like ONNX Runtime with CUDA and keeps what it was asked."""

    def __init__(self, session_error: Exception | None = None, fell_back: bool = False) -> None:
        super().__init__("onnxruntime")
        self.calls: list[tuple[Any, ...]] = []
        calls = self.calls
        self.GraphOptimizationLevel = types.SimpleNamespace(ORT_ENABLE_ALL="all", ORT_DISABLE_ALL="off")
        self.SessionOptions = types.SimpleNamespace

        class Value:
            def __init__(self, array: Any) -> None:
                self.array = array

            @staticmethod
            def ortvalue_from_numpy(array: Any, device: str, number: int) -> Value:
                calls.append(("upload", array.shape, device, number))
                return Value(array)

            def numpy(self) -> Any:
                return self.array

        class Binding:
            def bind_ortvalue_input(self, name: str, value: Value) -> None:
                calls.append(("input", name))

            def bind_output(self, name: str, device: str, number: int) -> None:
                calls.append(("output anywhere", name, device, number))

            def bind_ortvalue_output(self, name: str, value: Value) -> None:
                calls.append(("output fixed", name))

            def get_outputs(self) -> list[Value]:
                return [Value(np.full(3, 2.0))]

            def clear_binding_outputs(self) -> None:
                calls.append(("clear",))

        class RunOptions:
            def add_run_config_entry(self, key: str, value: str) -> None:
                calls.append(("run option", key, value))

        class Session:
            def __init__(self, model: str, options: Any, providers: list[Any]) -> None:
                calls.append(("session", options.graph_optimization_level, providers))
                if session_error:
                    raise session_error

            def get_providers(self) -> list[str]:
                return ["CPUExecutionProvider"] if fell_back else ["CUDAExecutionProvider", "CPUExecutionProvider"]

            def io_binding(self) -> Binding:
                return Binding()

            def get_outputs(self) -> list[Any]:
                return [types.SimpleNamespace(name="y")]

            def run_with_iobinding(self, binding: Binding, options: Any = None) -> None:
                calls.append(("run", "asynchronous" if options else "synchronous"))

            def get_provider_options(self) -> dict[str, dict[str, str]]:
                return {"CUDAExecutionProvider": {"use_tf32": "1", "user_compute_stream": "123"}}

        self.OrtValue, self.RunOptions, self.InferenceSession = Value, RunOptions, Session

    def get_available_providers(self) -> list[str]:
        return ["TensorrtExecutionProvider", "CUDAExecutionProvider", "CPUExecutionProvider"]

    def set_default_logger_severity(self, level: int) -> None:
        pass


INPUTS = {"x": np.zeros((1, 3), np.float16)}


def test_a_cuda_engine_fixes_its_addresses_before_it_is_captured(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = FakeOnnxRuntime()
    monkeypatch.setitem(sys.modules, "onnxruntime", fake)
    engine = ort.build_cuda(Path("m.onnx"), INPUTS, precision="fp16", stream=77, device=1, optimisation="off")
    engine.enqueue(77)
    assert fake.calls == [
        ("run option", "disable_synchronize_execution_providers", "1"),
        ("session", "off", [("CUDAExecutionProvider", {"device_id": "1", "user_compute_stream": "77"})]),
        ("upload", (1, 3), "cuda", 1),
        ("input", "x"),
        ("output anywhere", "y", "cuda", 1),
        ("run", "synchronous"),
        ("clear",),
        ("output fixed", "y"),
        ("run", "asynchronous"),
    ]
    np.testing.assert_array_equal(engine.outputs()["y"], np.full(3, 2.0))
    assert ort.provider_options(engine.session) == {"CUDAExecutionProvider": {"use_tf32": "1"}}


@pytest.mark.parametrize(
    ("precision", "provider", "expected"),
    [
        ("tf32", "cuda", {}),
        ("fp32", "cuda", {"use_tf32": "0"}),
        ("fp16", "tensorrt", {"trt_fp16_enable": "1"}),
    ],
)
def test_provider_options_by_precision(
    monkeypatch: pytest.MonkeyPatch, precision: str, provider: str, expected: dict[str, str]
) -> None:
    fake = FakeOnnxRuntime()
    # The TensorRT provider is first in the list, as a real session reports it.
    monkeypatch.setitem(sys.modules, "onnxruntime", fake)
    monkeypatch.setattr(
        fake.InferenceSession, "get_providers", lambda self: ["TensorrtExecutionProvider", "CUDAExecutionProvider"]
    )
    ort.build_cuda(Path("m.onnx"), INPUTS, precision=precision, stream=7, provider=provider, options={"extra": "1"})
    (_, _, providers) = next(call for call in fake.calls if call[0] == "session")
    base = {"device_id": "0", "user_compute_stream": "7", "extra": "1"}
    assert providers[0] == (ort.PROVIDERS[provider], {**base, **expected})
    assert len(providers) == (2 if provider == "tensorrt" else 1)


def test_cuda_failures_are_build_errors(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", FakeOnnxRuntime(session_error=RuntimeError("no kernel for Foo")))
    with pytest.raises(BuildError, match="RuntimeError: no kernel for Foo"):
        ort.build_cuda(Path("m.onnx"), INPUTS, precision="fp16", stream=1)
    monkeypatch.setitem(sys.modules, "onnxruntime", FakeOnnxRuntime(fell_back=True))
    with pytest.raises(BuildError, match="fell back"):
        ort.build_cuda(Path("m.onnx"), INPUTS, precision="fp16", stream=1)


def test_a_profile_without_nodes_is_refused(tmp_path: Path) -> None:
    (tmp_path / "p.json").write_text("[]")
    with pytest.raises(MeasurementError, match="no node times"):
        ort.layer_times(tmp_path / "p.json")


def test_relative_difference_is_relative_to_the_largest_value() -> None:
    reference = {"y": np.array([0.0, -4.0, 2.0])}
    assert ort.relative_difference(reference, {"y": np.array([0.1, -4.0, 2.0], np.float16)}) == pytest.approx(
        0.025, rel=1e-2
    )
    assert ort.relative_difference({"y": np.zeros(2)}, {"y": np.zeros(2)}) == 0.0


# Kernels ------------------------------------------------------------------------------------------------------


def event(cat: str, name: str, ts: float, dur: float, **args: Any) -> dict[str, Any]:
    return {"ph": "X", "cat": cat, "name": name, "ts": ts, "dur": dur, "args": args}


def test_kernels_are_attributed_by_launch_time(tmp_path: Path) -> None:
    trace = {
        "baseTimeNanoseconds": 1_000_000_000,
        "traceEvents": [
            event("cuda_runtime", "cudaLaunchKernel", 110.0, 2.0, correlation=1),
            event("cuda_runtime", "cudaLaunchKernel", 121.5, 2.0, correlation=2),
            event("cuda_runtime", "cudaMemcpyAsync", 300.0, 2.0, correlation=3),
            event("kernel", "relu", 150.0, 5.0, correlation=2),
            event("kernel", "conv", 130.0, 12.5, correlation=1),
            event("gpu_memcpy", "Memcpy DtoD", 310.0, 1.0, correlation=3),
            {"ph": "M", "name": "process_name"},
        ],
    }
    work = kernels.activity_from_trace(trace)
    assert [(w["name"], w["time_s"]) for w in work] == [("conv", 12.5e-6), ("relu", 5e-6), ("Memcpy DtoD", 1e-6)]
    profile = tmp_path / "profile.json"
    run = {"cat": "Session", "name": "model_run", "dur": 100}
    profile.write_text(
        json.dumps(
            [
                {**run, "ts": 10},
                {"cat": "Node", "name": "old_kernel_time", "ts": 20, "dur": 5, "args": {"op_name": "Conv"}},
                {**run, "ts": 1100},
                {"cat": "Node", "name": "c_kernel_time", "ts": 1105, "dur": 10, "args": {"op_name": "Conv"}},
                {"cat": "Node", "name": "r_kernel_time", "ts": 1118, "dur": 6, "args": {"op_name": "Relu"}},
            ]
        )
    )
    windows = kernels.node_windows(profile, start_ns=1_000_000_000 - 1_000_000)
    assert [window[2] for window in windows] == ["c", "r"]
    assert kernels.attribute(work, windows) == [("c", "Conv"), ("r", "Relu"), None]


def test_a_trace_without_any_node_says_so(tmp_path: Path) -> None:
    launch, kernel = (
        event("cuda_runtime", "cudaLaunchKernel", 5.0, 2.0, correlation=1),
        event("kernel", "conv", 9.0, 3.0, correlation=1),
    )
    files = {name: tmp_path / name for name in ("plain", "replayed", "profile")}
    files["plain"].write_text(json.dumps({"baseTimeNanoseconds": 0, "traceEvents": [launch, kernel]}))
    files["replayed"].write_text(json.dumps({"traceEvents": [kernel]}))
    node = {"cat": "Node", "name": "c_kernel_time", "ts": 3, "dur": 10, "args": {"op_name": "Conv"}}
    files["profile"].write_text(json.dumps([{"cat": "Session", "name": "model_run", "ts": 0, "dur": 20}, node]))
    trace = kernels.Trace(replays=1, profile_start_ns=0, **files)
    saved = {name: path.read_text() for name, path in files.items()}
    assert kernels.columns_of(trace)["node"] == ["c"]
    assert not any(path.exists() for path in files.values())
    for name, text in saved.items():
        files[name].write_text(text)
    late = kernels.Trace(replays=1, profile_start_ns=10**9, **files)
    with pytest.raises(MeasurementError, match="no kernel falls into a node: 1 kernels, launches seen 1"):
        kernels.columns_of(late)


def test_durations_come_from_replays_and_nodes_from_the_plain_run() -> None:
    def work(*names: str, time_s: float = 9e-6) -> list[dict[str, Any]]:
        return [{"name": name, "time_s": time_s} for name in names]

    plain = work("copy", "a", "b", "a")
    nodes = [None, ("n0", "Conv"), ("n1", "Relu"), ("n2", "Conv")]
    replays = work("a", "b", "a", time_s=2e-6) + work("a", "b", "a", time_s=4e-6) + work("a", "b", "a", time_s=3e-6)
    columns = kernels.kernel_columns(plain, nodes, replays, 3)
    assert [columns["names"][i] for i in columns["name"]] == ["a", "b", "a"]
    assert columns["node"] == ["n0", "n1", "n2"]
    assert columns["time_s"] == [3e-6] * 3
    uneven = kernels.kernel_columns(plain, nodes, replays[:-1], 3)
    assert [uneven["names"][i] for i in uneven["name"]] == ["copy", "a", "b", "a"]
    assert uneven["time_s"] == [9e-6] * 4

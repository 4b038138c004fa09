"""The TensorRT code: builds for real through TensorRT-RTX on a CPU; GPU-only calls against modules that record them."""

from __future__ import annotations

import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from fake_cuda import FakeCuda
from onnx import TensorProto, helper, numpy_helper

from perfpred.errors import BuildError, MeasurementError, RuntimeUnavailableError, UsageError
from perfpred.runtimes import tensorrt
from perfpred.runtimes.tensorrt_options import BuildOptions, options_from, precision_honoured
from perfpred.weights import to_fp16

RNG = np.random.default_rng(0)


def weights(*shape: int) -> onnx.TensorProto:
    return numpy_helper.from_array((RNG.standard_normal(shape) * 0.1).astype(np.float32))


class Graph:
    """A small network, written op by op."""

    def __init__(self, *shape: int) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: list[onnx.TensorProto] = []
        self.shape = shape
        self.last = "x"

    def weight(self, *shape: int) -> str:
        tensor = weights(*shape)
        tensor.name = f"w{len(self.initializers)}"
        self.initializers.append(tensor)
        return tensor.name

    def add(self, kind: str, *inputs: str, **attributes: Any) -> str:
        self.last = f"t{len(self.nodes)}"
        self.nodes.append(
            helper.make_node(kind, list(inputs), [self.last], name=f"{kind}_{len(self.nodes)}", **attributes)
        )
        return self.last

    def conv(self, source: str, channels: int, out: int, size: int = 3, **attributes: Any) -> str:
        group = attributes.get("group", 1)
        return self.add(
            "Conv", source, self.weight(out, channels // group, size, size), pads=[size // 2] * 4, **attributes
        )

    def model(self) -> onnx.ModelProto:
        graph = helper.make_graph(
            self.nodes,
            "small",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, self.shape)],
            [helper.make_tensor_value_info(self.last, TensorProto.FLOAT, None)],
            self.initializers,
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
        return onnx.shape_inference.infer_shapes(model)


def conv_relu(g: Graph) -> None:
    g.add("Relu", g.conv("x", 16, 32))


def residual(g: Graph) -> None:
    first = g.add("Relu", g.conv("x", 16, 16))
    g.add("Relu", g.add("Add", g.conv(first, 16, 16), "x"))


def depthwise(g: Graph) -> None:
    g.conv(g.add("Relu", g.conv("x", 16, 16, group=16)), 16, 32, size=1)


def squeeze_excite(g: Graph) -> None:
    y = g.conv("x", 16, 16)
    s = g.add("Relu", g.conv(g.add("GlobalAveragePool", y), 16, 8, size=1))
    g.add("Mul", y, g.add("Sigmoid", g.conv(s, 8, 16, size=1)))


def pool(g: Graph) -> None:
    g.add("MaxPool", g.conv("x", 16, 16), kernel_shape=[2, 2], strides=[2, 2])


def classifier(g: Graph) -> None:
    g.add("Gemm", g.add("Flatten", g.add("GlobalAveragePool", g.conv("x", 16, 64))), g.weight(64, 10))


def branches(g: Graph) -> None:
    g.add("Concat", g.conv("x", 16, 16, size=1), g.conv("x", 16, 16), axis=1)


def silu(g: Graph) -> None:
    y = g.conv("x", 16, 16)
    g.add("Mul", y, g.add("Sigmoid", y))


def upsample(g: Graph) -> None:
    g.add("ConvTranspose", "x", g.weight(16, 8, 2, 2), strides=[2, 2])


def mlp(g: Graph) -> None:
    y = g.add("MatMul", "x", g.weight(16, 64))
    g.add("MatMul", g.add("Relu", y), g.weight(64, 16))


def softmax(g: Graph) -> None:
    g.add("Softmax", g.add("MatMul", "x", g.weight(16, 16)), axis=-1)


def normalise(g: Graph) -> None:
    g.add("LayerNormalization", "x", g.weight(16), g.weight(16), axis=-1)


NETWORKS = [
    *((make, (1, 16, 16, 16)) for make in (conv_relu, residual, depthwise, squeeze_excite, pool, classifier)),
    *((make, (1, 16, 16, 16)) for make in (branches, silu, upsample, mlp, softmax, normalise)),
]


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize(("make", "shape"), NETWORKS, ids=[make.__name__ for make, _ in NETWORKS])
def test_real_build_without_a_gpu(make: Any, shape: tuple[int, ...], precision: str, tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx")
    tensorrt.load_runtime("tensorrt-rtx")
    graph = Graph(*shape)
    make(graph)
    model = graph.model() if precision == "fp32" else to_fp16(graph.model())
    path = tmp_path / "model.onnx"
    onnx.save(model, path)
    options = options_from(precision, "tensorrt-rtx", "all", {"compute_capability": "SM86", "workspace": str(1 << 28)})
    plan = tensorrt.build(path, options)
    assert plan.typing == "strong"
    assert plan.facts["plan_bytes"] == len(plan.data) > 1000
    assert plan.layer_dump.startswith("Layers:")
    assert precision_honoured(plan.layer_dump, precision)
    if precision == "fp32":
        assert not precision_honoured(plan.layer_dump, "fp16")


def test_real_parser_refusal_is_one_clear_error(tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx")
    tensorrt.load_runtime("tensorrt-rtx")
    path = tmp_path / "model.onnx"
    path.write_bytes(b"not a network")
    with pytest.raises(BuildError, match="parser refused the network"):
        tensorrt.build(path, BuildOptions(typing="strong"))


def test_real_flag_that_is_gone_raises(tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx")
    tensorrt.load_runtime("tensorrt-rtx")
    graph = Graph(1, 16, 8, 8)
    conv_relu(graph)
    onnx.save(graph.model(), tmp_path / "model.onnx")
    with pytest.raises(UsageError, match="typing=strong"):
        tensorrt.build(tmp_path / "model.onnx", BuildOptions(precision="fp16", typing="weak"))
    with pytest.raises(UsageError, match="SM12"):
        tensorrt.build(tmp_path / "model.onnx", BuildOptions(typing="strong", compute_capability="SM12"))


# Recorded calls: what a GPU would be asked, for each generation of the interface ------------------------------


class Recorder:
    """A module that answers like TensorRT of some generation and keeps what it was asked."""

    def __init__(
        self, version: str, *, flags: bool, strong: bool, level: bool, runtime_config: bool, cache: bool
    ) -> None:
        self.calls: list[tuple[Any, ...]] = []
        calls = self.calls
        self.module = module = types.ModuleType("tensorrt")
        module.__version__ = version

        class Severity:
            WARNING = 2

        class Logger:
            def __init__(self) -> None:
                pass

        Logger.Severity = Severity

        class Profiler:
            def __init__(self) -> None:
                pass

        class Tensor:
            itemsize = 2

        class Context:
            engine_profile = None

            def __init__(self) -> None:
                self.enqueue_emits_profile = True
                self.profiler = None

            def set_input_shape(self, name: str, shape: Any) -> None:
                calls.append(("set_input_shape", name, tuple(shape)))

            def set_tensor_address(self, name: str, address: int) -> None:
                calls.append(("set_tensor_address", name))

            def get_tensor_shape(self, name: str) -> tuple[int, ...]:
                return (1, 4)

            def execute_async_v3(self, stream: int) -> bool:
                calls.append(("execute_async_v3", stream))
                return True

            def report_to_profiler(self) -> None:
                for name, milliseconds in (("conv", 0.5), ("conv", 0.25), ("relu", 0.125)):
                    self.profiler.report_layer_time(name, milliseconds)

        class Engine:
            num_io_tensors = 2
            device_memory_size = 1000

            def get_tensor_name(self, index: int) -> str:
                return ("x", "y")[index]

            def get_tensor_mode(self, name: str) -> str:
                return {"x": "in", "y": "out"}[name]

            def get_tensor_dtype(self, name: str) -> Any:
                return Tensor

            def get_tensor_shape(self, name: str) -> tuple[int, ...]:
                return (-1, 4)

            def create_execution_context(self, config: Any = None) -> Context:
                calls.append(("create_execution_context", getattr(config, "strategy", None)))
                return Context()

            def create_engine_inspector(self) -> Any:
                return types.SimpleNamespace(
                    execution_context=None,
                    get_engine_information=lambda form: '{"Layers": [{"Name": "conv", "Format": "Half"}]}',
                )

        class Config:
            def __init__(self) -> None:
                if level:
                    self.builder_optimization_level = 3
                    self.max_aux_streams = 1

            def set_flag(self, flag: str) -> None:
                calls.append(("set_flag", flag))

            def clear_flag(self, flag: str) -> None:
                calls.append(("clear_flag", flag))

            def set_memory_pool_limit(self, pool: str, size: int) -> None:
                calls.append(("workspace", size))

        if cache:
            Config.create_timing_cache = lambda self, data: calls.append(("cache", data)) or "cache"
            Config.set_timing_cache = lambda self, cache, ignore: None
            Config.get_timing_cache = lambda self: types.SimpleNamespace(serialize=lambda: b"timings")
        if runtime_config:

            class RuntimeConfig:
                dynamic_shapes_kernel_specialization_strategy = "LAZY"

                @property
                def strategy(self) -> str:
                    return self.dynamic_shapes_kernel_specialization_strategy

            Engine.create_runtime_config = lambda self: RuntimeConfig()
            module.DynamicShapesKernelSpecializationStrategy = types.SimpleNamespace(EAGER="EAGER")

        class Builder:
            def __init__(self, log: Any) -> None:
                self.log = log

            def create_network(self, flags: int) -> str:
                calls.append(("create_network", flags))
                return "network"

            def create_builder_config(self) -> Config:
                self.config = Config()
                return self.config

            def build_serialized_network(self, network: str, config: Config) -> bytes | None:
                if level:
                    calls.append(("level", config.builder_optimization_level, config.max_aux_streams))
                if recorder.refuse_build:
                    self.log.log(1, "out of workspace")
                    return None
                return b"plan"

        class Parser:
            num_errors = 0

            def __init__(self, network: str, log: Any) -> None:
                pass

            def parse_from_file(self, path: str) -> bool:
                return True

        class Runtime:
            def __init__(self, log: Any) -> None:
                self.log = log

            def deserialize_cuda_engine(self, data: bytes) -> Engine | None:
                if recorder.refuse_engine:
                    self.log.log(1, "TensorRT-RTX does not support this compute capability")
                    return None
                return Engine()

        recorder = self
        self.refuse_build = self.refuse_engine = False
        self.engine = Engine
        self.context = Context
        module.ILogger = Logger
        module.IProfiler = Profiler
        module.Builder = Builder
        module.OnnxParser = Parser
        module.Runtime = Runtime
        module.ProfilingVerbosity = types.SimpleNamespace(DETAILED="detailed")
        module.MemoryPoolType = types.SimpleNamespace(WORKSPACE="workspace")
        module.TensorIOMode = types.SimpleNamespace(INPUT="in", OUTPUT="out")
        module.DeviceType = types.SimpleNamespace(DLA="dla")
        module.LayerInformationFormat = types.SimpleNamespace(JSON="json")
        module.nptype = lambda dtype: np.float16
        module.BuilderFlag = types.SimpleNamespace(TF32="TF32", GPU_FALLBACK="GPU_FALLBACK")
        if flags:
            module.BuilderFlag.FP16, module.BuilderFlag.INT8 = "FP16", "INT8"
            module.NetworkDefinitionCreationFlag = types.SimpleNamespace(EXPLICIT_BATCH=0)
            if strong:
                module.NetworkDefinitionCreationFlag.STRONGLY_TYPED = 1


GENERATIONS = {
    "8.5": {"flags": True, "strong": False, "level": False, "runtime_config": False, "cache": True},
    "10.3": {"flags": True, "strong": True, "level": True, "runtime_config": False, "cache": True},
    "11.4": {"flags": False, "strong": False, "level": True, "runtime_config": True, "cache": True},
    "1.7-rtx": {"flags": False, "strong": False, "level": True, "runtime_config": True, "cache": False},
}


def generation(monkeypatch: pytest.MonkeyPatch, version: str) -> Recorder:
    recorder = Recorder(version, **GENERATIONS[version])
    name = "tensorrt_rtx" if "rtx" in version else "tensorrt"
    monkeypatch.setitem(sys.modules, name, recorder.module)
    tensorrt.load_runtime("tensorrt-rtx" if "rtx" in version else "tensorrt")
    return recorder


INPUTS = {"x": np.ones((1, 4), np.float16)}


class Memory(FakeCuda):
    """Device memory that remembers what was put where."""

    def __init__(self) -> None:
        super().__init__()
        self.held: dict[int, int] = {}

    def malloc(self, nbytes: int) -> int:
        address = 4096 * (len(self.held) + 1)
        self.held[address] = nbytes
        return address

    def free(self, address: int) -> None:
        del self.held[address]

    def upload(self, address: int, array: Any) -> None:
        assert self.held[address] == array.nbytes

    def download(self, array: Any, address: int) -> None:
        assert self.held[address] == array.nbytes
        array[...] = 7


@pytest.mark.parametrize(
    ("version", "typing", "network_flags", "flags"),
    [
        ("8.5", "weak", 1, [("set_flag", "FP16")]),
        ("10.3", "weak", 1, [("set_flag", "FP16")]),
        ("10.3", "strong", 3, []),
        ("11.4", "strong", 0, []),
        ("1.7-rtx", "strong", 0, []),
    ],
)
def test_build_and_run_calls_of_each_generation(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, version: str, typing: str, network_flags: int, flags: list
) -> None:
    recorder = generation(monkeypatch, version)
    (tmp_path / "m.onnx").write_bytes(b"")
    cuda = Memory()
    runtime = "tensorrt-rtx" if "rtx" in version else "tensorrt"
    engine, facts = tensorrt.build_engine(
        tmp_path / "m.onnx",
        INPUTS,
        runtime=runtime,
        precision="fp16",
        optimisation="all",
        options={"typing": typing, "workspace": "1024"},
        cuda=cuda,
    )
    calls = recorder.calls
    assert ("create_network", network_flags) in calls
    assert [call for call in calls if call[0] == "set_flag"] == flags
    assert ("workspace", 1024) in calls
    assert (("cache", b"") in calls) == GENERATIONS[version]["cache"]
    eager = "EAGER" if GENERATIONS[version]["runtime_config"] else None
    assert ("create_execution_context", eager) in calls
    assert ("set_input_shape", "x", (1, 4)) in calls
    engine.enqueue(5)
    assert calls[-1] == ("execute_async_v3", 5)
    assert facts["typing"] == typing
    assert facts["build_flags"] == []
    assert facts["device_memory_bytes"] == 1000
    np.testing.assert_array_equal(engine.outputs()["y"], np.full((1, 4), 7, np.float16))
    layers = engine.layer_times(5, runs=3)
    assert [(layer["name"], layer["occurrence"], layer["time_s"]) for layer in layers] == [
        ("conv", 0, 0.5e-3),
        ("conv", 1, 0.25e-3),
        ("relu", 0, 0.125e-3),
    ]
    engine.close()
    assert cuda.held == {}


def test_tf32_is_switched_off_for_fp32_only(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    recorder = generation(monkeypatch, "10.3")
    for precision, cleared in (("tf32", False), ("fp32", True)):
        recorder.calls.clear()
        tensorrt.build(tmp_path / "m.onnx", BuildOptions(precision=precision))
        assert (("clear_flag", "TF32") in recorder.calls) == cleared


def test_levels_dla_and_timing_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    recorder = generation(monkeypatch, "10.3")
    cache = tmp_path / "timing"
    options = options_from(
        "fp16", "tensorrt", "off", {"aux_streams": "0", "dla": "1", "timing_cache": str(cache), "typing": "weak"}
    )
    assert tensorrt.build(tmp_path / "m.onnx", options).facts["timing_cache"] == "reused"
    assert ("level", 0, 0) in recorder.calls
    assert ("set_flag", "GPU_FALLBACK") in recorder.calls
    assert cache.read_bytes() == b"timings"
    tensorrt.build(tmp_path / "m.onnx", options)
    assert ("cache", b"timings") in recorder.calls


def test_missing_capabilities_are_refused_by_name(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    generation(monkeypatch, "8.5")
    with pytest.raises(UsageError, match=r"no builder_optimization_level \(it came with 8\.6\)"):
        tensorrt.build(tmp_path / "m.onnx", BuildOptions(level=5))
    with pytest.raises(UsageError, match="no strong typing"):
        tensorrt.build(tmp_path / "m.onnx", BuildOptions(typing="strong"))
    generation(monkeypatch, "11.4")
    with pytest.raises(UsageError, match="no FP16 flag: use typing=strong"):
        tensorrt.build(tmp_path / "m.onnx", BuildOptions(typing="weak"))


def test_refusals_carry_the_words_of_tensorrt(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    recorder = generation(monkeypatch, "1.7-rtx")
    recorder.refuse_engine = True
    plan = tensorrt.build(tmp_path / "m.onnx", BuildOptions(typing="strong"))
    with pytest.raises(BuildError, match="does not support this compute capability"):
        tensorrt.TensorRtEngine(plan, INPUTS, Memory())
    recorder.refuse_build = True
    with pytest.raises(BuildError, match="out of workspace"):
        tensorrt.build(tmp_path / "m.onnx", BuildOptions(typing="strong"))


def test_an_engine_that_refuses_to_run_raises(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    recorder = generation(monkeypatch, "10.3")
    engine = tensorrt.TensorRtEngine(tensorrt.build(tmp_path / "m.onnx", BuildOptions()), INPUTS, Memory())
    recorder.context.execute_async_v3 = lambda self, stream: False
    with pytest.raises(MeasurementError, match="refused to run"):
        engine.enqueue(1)


def test_a_precision_the_builder_ignored_is_flagged(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    recorder = generation(monkeypatch, "10.3")
    monkeypatch.setattr(
        recorder.engine,
        "create_engine_inspector",
        lambda self: types.SimpleNamespace(get_engine_information=lambda form: '{"Layers": [{"Format": "FP32"}]}'),
    )
    (tmp_path / "m.onnx").write_bytes(b"")
    _, facts = tensorrt.build_engine(
        tmp_path / "m.onnx", INPUTS, runtime="tensorrt", precision="fp16", optimisation="all", options={}, cuda=Memory()
    )
    assert facts["build_flags"] == ["precision_ignored"]


def test_int8_needs_explicit_quantisation(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    generation(monkeypatch, "10.3")
    (tmp_path / "m.onnx").write_bytes(b"Conv Relu")
    with pytest.raises(BuildError, match="QuantizeLinear/DequantizeLinear"):
        tensorrt.build_engine(
            tmp_path / "m.onnx",
            INPUTS,
            runtime="tensorrt",
            precision="int8",
            optimisation="all",
            options={},
            cuda=Memory(),
        )


def test_a_missing_runtime_names_the_fix(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    with pytest.raises(RuntimeUnavailableError, match="JetPack's own TensorRT"):
        tensorrt.load_runtime("tensorrt")
    monkeypatch.setitem(sys.modules, "tensorrt", types.ModuleType("tensorrt"))
    with pytest.raises(RuntimeUnavailableError, match="tensorrt is not installed"):
        tensorrt.load_runtime("tensorrt")
    with pytest.raises(UsageError, match="unknown runtime 'openvino'"):
        tensorrt.load_runtime("openvino")


def test_unknown_options_are_refused() -> None:
    with pytest.raises(UsageError, match="unknown TensorRT options speed"):
        options_from("fp16", "tensorrt", "all", {"speed": "9"})
    with pytest.raises(UsageError, match="level='high'"):
        options_from("fp16", "tensorrt", "all", {"level": "high"})

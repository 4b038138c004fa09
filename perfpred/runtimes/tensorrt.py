"""TensorRT 8.5 to 11 and TensorRT-RTX on one code path; what a version offers is probed, never guessed.

`build` needs no GPU with TensorRT-RTX. The lines that only a GPU can run are those of `TensorRtEngine`.
"""

from __future__ import annotations

import importlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from perfpred.cuda import Cuda
from perfpred.errors import BuildError, MeasurementError, RuntimeUnavailableError, UsageError
from perfpred.runtimes.tensorrt_options import (
    BuildOptions,
    options_from,
    precision_honoured,
    require_explicit_quantisation,
)

if TYPE_CHECKING:
    import tensorrt as trt  # noqa: TID251 - for the type checker; `load_runtime` imports it

#: Module of each runtime and the way to get it.
MODULES: Final = {
    "tensorrt": ("tensorrt", "pip install perfpred[tensorrt] on x86-64; a Jetson uses JetPack's own TensorRT"),
    "tensorrt-rtx": ("tensorrt_rtx", "pip install perfpred[tensorrt-rtx] (x86-64)"),
}
_FLAGS: Final = {"fp16": "FP16", "bf16": "BF16", "int8": "INT8", "fp8": "FP8"}


def load_runtime(runtime: str) -> str:
    """Import the module behind `tensorrt` or `tensorrt-rtx`; the functions here use the one loaded last.

    Returns:
        Its version.

    Raises:
        RuntimeUnavailableError: Not installed.
    """
    if runtime not in MODULES:
        raise UsageError(f"unknown runtime '{runtime}'; known here: {', '.join(MODULES)}")
    name, fix = MODULES[runtime]
    try:
        module = importlib.import_module(name)
    except ImportError as error:
        raise RuntimeUnavailableError(f"{name} is not installed: {fix}") from error
    if not hasattr(module, "Builder"):  # type stubs leave an empty package of that name
        raise RuntimeUnavailableError(f"{name} is not installed: {fix}")
    globals()["trt"] = module
    return str(trt.__version__)


@dataclass(frozen=True, kw_only=True)
class BuiltPlan:
    """A serialized engine and what was learnt while building it.

    Attributes:
        data: The plan.
        typing: `weak` or `strong`, as it was in the end.
        facts: Version, options in force, sizes.
        messages: What the builder logged, most severe first.
        layer_dump: Layers as TensorRT-RTX logs them; empty elsewhere.
    """

    data: bytes
    typing: str
    facts: dict[str, Any] = field(default_factory=dict)
    messages: tuple[str, ...] = ()
    layer_dump: str = ""


def _log() -> Any:
    class Log(trt.ILogger):  # type: ignore[misc, unused-ignore]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.messages: list[tuple[int, str]] = []
            self.layer_dump = ""

        def log(self, severity: trt.ILogger.Severity, msg: str) -> None:
            if msg.startswith("Layers:"):
                self.layer_dump = msg
            elif int(severity) <= int(trt.ILogger.Severity.WARNING):
                self.messages.append((int(severity), msg.strip()))

        def first(self, fallback: str) -> str:
            return min(self.messages, default=(0, fallback))[1]

    return Log()


def build(model: Path, options: BuildOptions) -> BuiltPlan:
    """Build an engine of a network with static shapes.

    Args:
        model: ONNX file with weights.
        options: How.

    Raises:
        BuildError: The parser or the builder refused; the message is TensorRT's own.
        UsageError: An option this version does not have.
    """
    log = _log()
    builder = trt.Builder(log)
    network = builder.create_network(_network_flags(options))
    parser = trt.OnnxParser(network, log)
    if not parser.parse_from_file(str(model)):
        errors = [parser.get_error(i).desc() for i in range(parser.num_errors)]
        raise BuildError(f"TensorRT's parser refused the network: {'; '.join(errors) or log.first('no reason given')}")
    config = builder.create_builder_config()
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    _set_precision(config, options)
    _set_limits(config, options)
    _set_target(config, options)
    cache = _timing_cache(config, options)
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise BuildError(f"TensorRT could not build the network: {log.first('no reason given')}")
    if options.timing_cache is not None and cache is not None:
        _save_cache(options.timing_cache, config.get_timing_cache().serialize())
    data = bytes(plan)
    return BuiltPlan(
        data=data,
        typing="strong" if _always_strong() else options.typing,
        facts={
            "runtime_version": str(trt.__version__),
            "plan_bytes": len(data),
            "timing_cache": "reused" if options.timing_cache and cache is not None else "fresh",
            "workspace_bytes": options.workspace_bytes,
            "level": getattr(config, "builder_optimization_level", None),
            "aux_streams": options.aux_streams,
        },
        messages=tuple(text for _, text in sorted(log.messages)[:20]),
        layer_dump=log.layer_dump,
    )


def _always_strong() -> bool:
    return not hasattr(trt.BuilderFlag, "FP16")


def _network_flags(options: BuildOptions) -> int:
    flags = 0
    kinds: Any = getattr(trt, "NetworkDefinitionCreationFlag", None)
    if hasattr(kinds, "EXPLICIT_BATCH"):
        flags |= 1 << int(kinds.EXPLICIT_BATCH)
    if options.typing == "strong" and not _always_strong():
        if not hasattr(kinds, "STRONGLY_TYPED"):
            raise UsageError(f"TensorRT {trt.__version__} has no strong typing: use typing=weak")
        flags |= 1 << int(kinds.STRONGLY_TYPED)
    return flags


def _set_precision(config: trt.IBuilderConfig, options: BuildOptions) -> None:
    if options.precision == "fp32" and hasattr(trt.BuilderFlag, "TF32"):
        config.clear_flag(trt.BuilderFlag.TF32)
    if options.typing == "strong" or options.precision not in _FLAGS:
        return
    name = _FLAGS[options.precision]
    if not hasattr(trt.BuilderFlag, name):
        raise UsageError(
            f"TensorRT {trt.__version__} has no {name} flag: use typing=strong, which takes types from the graph"
        )
    config.set_flag(getattr(trt.BuilderFlag, name))
    if options.precision == "int8":
        config.set_flag(trt.BuilderFlag.FP16)


def _set_limits(config: trt.IBuilderConfig, options: BuildOptions) -> None:
    if options.workspace_bytes is not None:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, options.workspace_bytes)
    for attribute, value in (
        ("builder_optimization_level", options.level),
        ("max_aux_streams", options.aux_streams),
    ):
        if value is None:
            continue
        if not hasattr(config, attribute):
            raise UsageError(f"TensorRT {trt.__version__} has no {attribute} (it came with 8.6)")
        setattr(config, attribute, value)


def _set_target(config: trt.IBuilderConfig, options: BuildOptions) -> None:
    if options.dla_core is not None:
        config.default_device_type = trt.DeviceType.DLA
        config.DLA_core = options.dla_core
        config.set_flag(trt.BuilderFlag.GPU_FALLBACK)
    if options.compute_capability is not None:
        if not hasattr(config, "set_compute_capability"):
            raise UsageError(
                f"TensorRT {trt.__version__} builds for the GPU at hand only; leave compute_capability out"
            )
        target = getattr(vars(trt)["ComputeCapability"], options.compute_capability, None)
        if target is None:
            raise UsageError(f"TensorRT-RTX {trt.__version__} can't target '{options.compute_capability}'")
        rtx: Any = config
        rtx.num_compute_capabilities = 1
        rtx.set_compute_capability(target, 0)


def _timing_cache(config: trt.IBuilderConfig, options: BuildOptions) -> trt.ITimingCache | None:
    # TensorRT-RTX still has the calls, but times nothing while it builds and warns of them.
    if not hasattr(config, "create_timing_cache") or hasattr(config, "set_compute_capability"):
        return None
    path = options.timing_cache
    stored = path.read_bytes() if path is not None and path.exists() else b""
    cache = config.create_timing_cache(stored)
    if cache is not None:
        config.set_timing_cache(cache, False)
    return cache


def _save_cache(path: Path, serialized: Any) -> None:
    part = path.with_suffix(".part")
    part.write_bytes(bytes(serialized))
    os.replace(part, path)


def _shape(dims: Any) -> tuple[int, ...]:
    return tuple(int(size) for size in dims)


class TensorRtEngine:
    """An engine with its tensors on the GPU. Only a TensorRT GPU runs what is in here.

    Args:
        plan: Built for this GPU.
        inputs: Values by input name.
        cuda: Open device.

    Raises:
        BuildError: The runtime refused the plan, such as TensorRT-RTX on an unsupported compute capability.
    """

    def __init__(self, plan: BuiltPlan, inputs: Mapping[str, NDArray[Any]], cuda: Cuda) -> None:
        log = _log()
        self._cuda = cuda
        self._runtime = trt.Runtime(log)
        self.engine = self._runtime.deserialize_cuda_engine(plan.data)
        if self.engine is None:
            raise BuildError(f"the runtime refused the engine: {log.first('no reason given')}")
        self._inputs = inputs
        self._addresses: dict[str, int] = {}
        self._context = self._new_context()
        self._outputs: dict[str, tuple[int, tuple[int, ...], Any]] = {}
        for index in range(self.engine.num_io_tensors):
            self._place(self.engine.get_tensor_name(index))

    def _new_context(self) -> trt.IExecutionContext:
        if not hasattr(self.engine, "create_runtime_config"):
            return self.engine.create_execution_context()
        config = self.engine.create_runtime_config()
        kinds = getattr(trt, "DynamicShapesKernelSpecializationStrategy", None)
        if kinds is not None and hasattr(config, "dynamic_shapes_kernel_specialization_strategy"):
            # Kernels are compiled before the first measured run rather than behind its back.
            config.dynamic_shapes_kernel_specialization_strategy = kinds.EAGER
        return self.engine.create_execution_context(config)

    def _place(self, name: str) -> None:
        if self.engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT:
            value = np.ascontiguousarray(self._inputs[name])
            if -1 in _shape(self.engine.get_tensor_shape(name)):
                self._context.set_input_shape(name, value.shape)
            address = self._cuda.malloc(value.nbytes)
            self._cuda.upload(address, value)
        else:
            shape = _shape(self._context.get_tensor_shape(name))
            dtype = self.engine.get_tensor_dtype(name)
            elements = int(np.prod(shape, dtype=np.int64))
            address = self._cuda.malloc(elements * max(int(dtype.itemsize), 1))
            self._outputs[name] = (address, shape, dtype)
        self._addresses[name] = address
        self._context.set_tensor_address(name, address)

    def enqueue(self, stream: int) -> None:
        """Submit one inference."""
        if not self._context.execute_async_v3(stream):
            raise MeasurementError("execute_async_v3 refused to run the engine")

    def outputs(self) -> dict[str, NDArray[Any]]:
        """Values of the outputs after the last run; types numpy lacks are left out."""
        values = {}
        numpy_type: Any = trt.nptype
        for name, (address, shape, dtype) in self._outputs.items():
            try:
                array: NDArray[Any] = np.empty(shape, numpy_type(dtype))
            except TypeError:
                continue
            self._cuda.download(array, address)
            values[name] = array
        return values

    def inspector(self) -> str:
        """Layer information, JSON."""
        inspector = self.engine.create_engine_inspector()
        inspector.execution_context = self._context
        return str(inspector.get_engine_information(trt.LayerInformationFormat.JSON))

    def facts(self) -> dict[str, Any]:
        """Device memory and auxiliary streams, as far as this version tells."""
        memory = getattr(self.engine, "device_memory_size_v2", None)
        return {
            "device_memory_bytes": memory if memory is not None else getattr(self.engine, "device_memory_size", None),
            "num_aux_streams": getattr(self.engine, "num_aux_streams", None),
        }

    def layer_times(self, stream: int, runs: int = 50) -> list[dict[str, Any]]:
        """Per-layer times of a separate profiled pass without a graph, in order of execution."""
        profiler = _profiler()
        context = self._new_context()
        for name, address in self._addresses.items():
            if name not in self._outputs and -1 in _shape(self.engine.get_tensor_shape(name)):
                context.set_input_shape(name, self._inputs[name].shape)
            context.set_tensor_address(name, address)
        context.profiler = profiler
        explicit = hasattr(context, "enqueue_emits_profile")
        if explicit:
            context.enqueue_emits_profile = False
        for _ in range(runs + 5):
            profiler.begin()
            context.execute_async_v3(stream)
            self._cuda.synchronize(stream)
            if explicit:
                context.report_to_profiler()
        times: list[dict[str, Any]] = profiler.layers(skip=5)
        return times

    def close(self) -> None:
        """Free device memory."""
        for address in self._addresses.values():
            self._cuda.free(address)
        self._addresses.clear()


def _profiler() -> Any:
    class Profiler(trt.IProfiler):  # type: ignore[misc, unused-ignore]
        def __init__(self) -> None:
            trt.IProfiler.__init__(self)
            self.runs: list[dict[tuple[str, int], float]] = []
            self._seen: dict[str, int] = {}

        def begin(self) -> None:
            self.runs.append({})
            self._seen = {}

        def report_layer_time(self, layer_name: str, ms: float) -> None:
            occurrence = self._seen.get(layer_name, 0)
            self._seen[layer_name] = occurrence + 1
            self.runs[-1][layer_name, occurrence] = ms * 1e-3

        def layers(self, skip: int) -> list[dict[str, Any]]:
            kept = self.runs[skip:]
            return [
                {"name": name, "occurrence": occurrence, "time_s": median(run[name, occurrence] for run in kept)}
                for name, occurrence in (kept[0] if kept else {})
            ]

    return Profiler()


def build_engine(
    model: Path,
    inputs: Mapping[str, NDArray[Any]],
    *,
    runtime: str,
    precision: str,
    optimisation: str,
    options: Mapping[str, str],
    cuda: Cuda,
) -> tuple[TensorRtEngine, dict[str, Any]]:
    """Build, deserialize and describe an engine.

    Returns:
        The engine, and what goes into its row: typing, versions, sizes, inspector JSON, flags.
    """
    load_runtime(runtime)
    chosen = options_from(precision, runtime, optimisation, options)
    require_explicit_quantisation(model, precision)
    plan = build(model, chosen)
    engine = TensorRtEngine(plan, inputs, cuda)
    layers = engine.inspector()
    flags = [] if precision_honoured(layers, precision) else ["precision_ignored"]
    return engine, {
        "typing": plan.typing,
        **plan.facts,
        **engine.facts(),
        "messages": list(plan.messages),
        "inspector": json.loads(layers, strict=False),
        "build_flags": flags,
    }

"""ONNX Runtime: CUDA, TensorRT execution provider, and CPU.

A CUDA engine keeps inputs and outputs on the GPU and submits to the stream it was built for, without waiting, so
that the measuring loop can capture and queue it like any other engine.
"""

from __future__ import annotations

import ctypes
import importlib
import importlib.util
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from perfpred.errors import BuildError, MeasurementError, RuntimeUnavailableError

PROVIDERS: Final = {
    "cuda": "CUDAExecutionProvider",
    "tensorrt": "TensorrtExecutionProvider",
    "cpu": "CPUExecutionProvider",
}
#: Order matters: a library comes after those it needs.
_CUDA_LIBRARIES: Final = ("cudart", "nvrtc", "cublasLt", "cublas", "cufft", "curand", "cudnn")


def load_runtime(provider: str = "cpu") -> Any:
    """Import ONNX Runtime and, for a GPU provider, the CUDA libraries that Python packages bring along.

    Raises:
        RuntimeUnavailableError: Not installed, or built without the provider.
    """
    if provider != "cpu":
        _load_cuda_libraries()
    try:
        runtime = importlib.import_module("onnxruntime")
    except ImportError as error:
        extra = "ort" if provider == "cpu" else "ort-gpu"
        raise RuntimeUnavailableError(f"ONNX Runtime is not installed: pip install perfpred[{extra}]") from error
    if PROVIDERS[provider] not in runtime.get_available_providers():
        raise RuntimeUnavailableError(
            f"this ONNX Runtime has no {PROVIDERS[provider]}: pip install perfpred[ort-gpu] in place of onnxruntime"
        )
    runtime.set_default_logger_severity(4)
    return runtime


def _load_cuda_libraries() -> None:
    # The runtime looks beside itself only; the packages may be installed elsewhere on the path.
    spec = importlib.util.find_spec("nvidia")
    for library in _CUDA_LIBRARIES:
        for root in (spec.submodule_search_locations or []) if spec else []:
            for path in sorted(Path(root).glob(f"*/lib/lib{library}.so.*")):
                ctypes.CDLL(str(path), ctypes.RTLD_GLOBAL)


def version() -> str | None:
    """Version of the ONNX Runtime in use; None where none is installed."""
    try:
        return str(importlib.import_module("onnxruntime").__version__)
    except ImportError:
        return None


def cudnn_version() -> str | None:
    """Version of the cuDNN library in this process, `9.10.2`; None where none is loaded."""
    try:
        number = int(ctypes.CDLL("libcudnn.so.9").cudnnGetVersion())
    except (OSError, AttributeError):
        return None
    return f"{number // 10000}.{number // 100 % 100}.{number % 100}"


def _session_options(runtime: Any, optimisation: str, threads: int | None, profile: Path | None) -> Any:
    levels = runtime.GraphOptimizationLevel
    options = runtime.SessionOptions()
    options.log_severity_level = 4
    options.graph_optimization_level = {"all": levels.ORT_ENABLE_ALL, "off": levels.ORT_DISABLE_ALL}[optimisation]
    if threads:
        options.intra_op_num_threads = threads
    if profile is not None:
        options.enable_profiling = True
        options.profile_file_prefix = str(profile)
    return options


class OnnxRuntimeEngine:
    """A session with everything on the GPU, bound to one stream."""

    def __init__(self, session: Any, inputs: Mapping[str, NDArray[Any]], device: int, run_options: Any) -> None:
        runtime = importlib.import_module("onnxruntime")
        self.session = session
        self._run_options = run_options
        self._inputs = {
            name: runtime.OrtValue.ortvalue_from_numpy(array, "cuda", device) for name, array in inputs.items()
        }
        binding = session.io_binding()
        for name, value in self._inputs.items():
            binding.bind_ortvalue_input(name, value)
        names = [output.name for output in session.get_outputs()]
        for name in names:
            binding.bind_output(name, "cuda", device)
        session.run_with_iobinding(binding)
        # From here on the outputs live where the first run has put them: a captured graph needs fixed addresses.
        self._outputs = dict(zip(names, binding.get_outputs(), strict=True))
        binding.clear_binding_outputs()
        for name, value in self._outputs.items():
            binding.bind_ortvalue_output(name, value)
        self._binding = binding

    def enqueue(self, stream: int) -> None:
        """Submit one inference to the stream given at build time."""
        self.session.run_with_iobinding(self._binding, self._run_options)

    @property
    def profiling_start_ns(self) -> int:
        """Zero of the session's own profile, nanoseconds since the epoch."""
        return int(self.session.get_profiling_start_time_ns())

    def end_profiling(self) -> str:
        """Stop the session's own profile; return its file."""
        return str(self.session.end_profiling())

    def outputs(self) -> dict[str, NDArray[Any]]:
        """Values of the outputs after the last run."""
        return {name: value.numpy() for name, value in self._outputs.items()}


def build_cuda(
    model: Path,
    inputs: Mapping[str, NDArray[Any]],
    *,
    precision: str,
    stream: int,
    device: int = 0,
    optimisation: str = "all",
    provider: str = "cuda",
    options: Mapping[str, str] | None = None,
    profile: Path | None = None,
) -> OnnxRuntimeEngine:
    """Build an engine and run it once.

    Args:
        model: Network with weights and static shapes; float16 inputs and outputs for fp16.
        inputs: Values by input name.
        precision: `tf32` leaves the provider at its defaults; `fp32` switches TF32 off.
        stream: Stream to submit to.
        device: Ordinal of the GPU.
        optimisation: `all` or `off`.
        provider: `cuda` or `tensorrt`.
        options: Further provider options, strings.
        profile: Prefix of the file for ONNX Runtime's own profile.

    Raises:
        BuildError: The runtime refused the network, or its first run failed.
    """
    runtime = load_runtime(provider)
    provider_options = {"device_id": str(device), "user_compute_stream": str(stream), **(options or {})}
    if precision == "fp32" and provider == "cuda":
        provider_options["use_tf32"] = "0"
    if provider == "tensorrt":
        provider_options.setdefault("trt_fp16_enable", "1" if precision == "fp16" else "0")
    chosen: list[Any] = [(PROVIDERS[provider], provider_options)]
    if provider == "tensorrt":
        chosen.append((PROVIDERS["cuda"], {"device_id": str(device), "user_compute_stream": str(stream)}))
    run_options = runtime.RunOptions()
    run_options.add_run_config_entry("disable_synchronize_execution_providers", "1")
    try:
        session = runtime.InferenceSession(
            str(model), _session_options(runtime, optimisation, None, profile), providers=chosen
        )
        if PROVIDERS[provider] not in session.get_providers():
            raise BuildError(f"ONNX Runtime fell back to {session.get_providers()}: its CUDA libraries did not load")
        return OnnxRuntimeEngine(session, inputs, device, run_options)
    except BuildError:
        raise
    except Exception as error:  # the runtime's exceptions share no public base
        raise BuildError(f"{type(error).__name__}: {error}") from error


def provider_options(session: Any) -> dict[str, dict[str, str]]:
    """Every option of every provider in force, addresses left out."""
    return {
        provider: {key: value for key, value in options.items() if key != "user_compute_stream"}
        for provider, options in session.get_provider_options().items()
    }


class CpuEngine:
    """A session on the host's processor."""

    def __init__(self, session: Any, inputs: Mapping[str, NDArray[Any]]) -> None:
        self.session = session
        self._inputs = dict(inputs)
        self._names = [output.name for output in session.get_outputs()]
        self._last: Sequence[NDArray[Any]] = ()

    def run(self) -> None:
        """One inference, returning when done."""
        self._last = self.session.run(self._names, self._inputs)

    def outputs(self) -> dict[str, NDArray[Any]]:
        """Values of the outputs after the last run."""
        return dict(zip(self._names, self._last, strict=True))


def build_cpu(
    model: Path,
    inputs: Mapping[str, NDArray[Any]],
    *,
    threads: int | None = None,
    optimisation: str = "all",
    profile: Path | None = None,
) -> CpuEngine:
    """Build a CPU engine and run it once.

    Args:
        model: Network with weights and static shapes.
        inputs: Values by input name.
        threads: Threads within an operator; the runtime's choice by default.
        optimisation: `all` or `off`.
        profile: Prefix of the file for ONNX Runtime's own profile.

    Raises:
        BuildError: The runtime refused the network, or its first run failed.
    """
    runtime = load_runtime("cpu")
    try:
        options = _session_options(runtime, optimisation, threads, profile)
        engine = CpuEngine(runtime.InferenceSession(str(model), options, providers=[PROVIDERS["cpu"]]), inputs)
        engine.run()
    except Exception as error:
        raise BuildError(f"{type(error).__name__}: {error}") from error
    return engine


def layer_times(profile: str | Path, *, skip_runs: int = 1) -> list[dict[str, Any]]:
    """Per-node times of an ONNX Runtime profile, in order of execution.

    Args:
        profile: JSON file that `end_profiling` wrote.
        skip_runs: Runs at the start that don't count.

    Returns:
        One record per executed node: `name`, `op_type`, `provider`, `time_s` (median), `runs`.

    Raises:
        MeasurementError: The profile holds no node after the skipped runs.
    """
    events = json.loads(Path(profile).read_text())
    times: dict[str, list[float]] = {}
    facts: dict[str, dict[str, Any]] = {}
    for event in events:
        if event.get("cat") != "Node" or not event["name"].endswith("_kernel_time"):
            continue
        name = event["name"][: -len("_kernel_time")]
        arguments = event.get("args", {})
        facts.setdefault(
            name, {"name": name, "op_type": arguments.get("op_name"), "provider": arguments.get("provider")}
        )
        times.setdefault(name, []).append(event["dur"] * 1e-6)
    layers = [
        {**facts[name], "time_s": median(values[skip_runs:]), "runs": len(values) - skip_runs}
        for name, values in times.items()
        if len(values) > skip_runs
    ]
    if not layers:
        raise MeasurementError(f"'{profile}' holds no node times after {skip_runs} skipped runs")
    return layers


def relative_difference(first: Mapping[str, NDArray[Any]], second: Mapping[str, NDArray[Any]]) -> float:
    """Largest difference of two sets of outputs, relative to the largest magnitude of each output."""
    worst = 0.0
    for name, reference in first.items():
        scale = float(np.max(np.abs(reference), initial=0.0)) or 1.0
        gap = np.abs(second[name].astype(np.float64) - reference.astype(np.float64))
        worst = max(worst, float(np.max(gap, initial=0.0)) / scale)
    return worst

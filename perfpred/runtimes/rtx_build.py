"""TensorRT-RTX's ahead-of-time build on a CPU: the real engine structure with no GPU.

Each build runs in a process of its own, because the builder's answer may depend on what it built before
(seen with 1.7.1: after a failed build the next one in that process gave another graph).
Requires the extra `tensorrt-rtx` on x86-64.
"""

from __future__ import annotations

import argparse
import importlib
import json
import re
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import onnx

from perfpred.device import load_device
from perfpred.engine import EngineLayer, layers_from_build_log, layers_from_engine
from perfpred.errors import BuildError, RuntimeUnavailableError, UsageError
from perfpred.layer import Layer
from perfpred.network import Network, load_network
from perfpred.prepare import load_filled
from perfpred.weights import to_fp16

#: Targets of TensorRT-RTX 1.7; a device of another capability has no engine of this runtime.
COMPUTE_CAPABILITIES: Final = ("SM75", "SM80", "SM86", "SM89", "SM120", "SM121")
PRECISIONS: Final = ("fp32", "tf32", "fp16", "int8")
_TIMEOUT_S: Final = 300.0
#: Above this size a model's weights go to a second file, as one protobuf message holds at most 2 GiB.
_INLINE_BYTES: Final = 1_900_000_000


def build_layer_dump(
    onnx_path: str | Path,
    *,
    precision: str = "fp16",
    compute_capability: str = "SM86",
    shapes: Mapping[str, Sequence[int]] | None = None,
) -> str:
    """Builds an engine in this process and returns the `Layers:` message of its log.

    Args:
        onnx_path: A model with weights, already in the precision wanted: precision is a property of the graph.
        precision: `fp32` switches TF32 off; the others change nothing.
        compute_capability: One of `COMPUTE_CAPABILITIES`.
        shapes: Shapes of inputs whose dimensions are dynamic; 1 where absent.

    Raises:
        RuntimeUnavailableError: TensorRT-RTX isn't installed.
        BuildError: The model was refused or the build failed; holds the builder's own words.
    """
    try:
        trt: Any = importlib.import_module("tensorrt_rtx")
    except ImportError as error:
        raise RuntimeUnavailableError(
            "TensorRT-RTX isn't installed; pip install 'perfpred[tensorrt-rtx]' (x86-64 only)"
        ) from error
    target = getattr(trt.ComputeCapability, compute_capability, None)
    if target is None:
        raise UsageError(f"compute capability '{compute_capability}' is unknown; {', '.join(COMPUTE_CAPABILITIES)}")

    class Log(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.errors: list[str] = []
            self.layers = ""

        def log(self, severity: Any, message: str) -> None:
            if severity <= trt.ILogger.ERROR:
                self.errors.append(message.strip())
            elif message.startswith("Layers:"):
                self.layers = message

    log = Log()
    builder = trt.Builder(log)
    network = builder.create_network(0)
    parser = trt.OnnxParser(network, log)
    if not parser.parse_from_file(str(onnx_path)):
        reasons = [parser.get_error(i).desc() for i in range(parser.num_errors)] or log.errors or ["no reason given"]
        raise BuildError(f"TensorRT-RTX can't parse the network: {_one_line(reasons[0])}")
    config = builder.create_builder_config()
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    config.num_compute_capabilities = 1
    config.set_compute_capability(target, 0)
    if precision == "fp32":
        config.clear_flag(trt.BuilderFlag.TF32)
    profile = builder.create_optimization_profile()
    for i in range(network.num_inputs):
        tensor = network.get_input(i)
        shape = tuple((shapes or {}).get(tensor.name, (max(d, 1) for d in tensor.shape)))
        profile.set_shape(tensor.name, shape, shape, shape)
    config.add_optimization_profile(profile)
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise BuildError(
            f"TensorRT-RTX can't build the network: {_one_line('; '.join(log.errors) or 'no reason given')}"
        )
    if not log.layers:
        raise BuildError("TensorRT-RTX built the network but logged no layers; this version isn't supported")
    return log.layers


def _one_line(text: str) -> str:
    return re.sub(r"\s+", " ", text)[:400]


def engine_in_child(
    model: onnx.ModelProto,
    *,
    compute_capability: str = "SM86",
    precision: str = "fp16",
    timeout_s: float = _TIMEOUT_S,
) -> str:
    """Builds a model with static shapes and weights in a child process; returns the `Layers:` message.

    Raises:
        RuntimeUnavailableError: TensorRT-RTX isn't installed.
        BuildError: The build failed, crashed or took longer than `timeout_s`.
    """
    with tempfile.TemporaryDirectory(prefix="perfpred-rtx-") as folder:
        path, out = Path(folder) / "model.onnx", Path(folder) / "layers.txt"
        if model.ByteSize() > _INLINE_BYTES:
            onnx.save(model, path, save_as_external_data=True, location="weights.bin", size_threshold=1024)
        else:
            path.write_bytes(model.SerializeToString())
        command = [sys.executable, "-m", __name__, str(path), str(out), compute_capability, precision]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=timeout_s, check=False)
        except subprocess.TimeoutExpired as error:
            raise BuildError(
                f"TensorRT-RTX took longer than {timeout_s:.0f} s to build; give more time or a smaller input"
            ) from error
        if done.returncode == 0:
            return out.read_text(encoding="utf-8")
        try:
            failure = json.loads(done.stdout.strip().splitlines()[-1])
        except (IndexError, json.JSONDecodeError):
            tail = _one_line(done.stderr[-400:]) or "no output"
            raise BuildError(f"TensorRT-RTX's build process ended with status {done.returncode}: {tail}") from None
        kinds = {k.__name__: k for k in (BuildError, RuntimeUnavailableError, UsageError)}
        raise kinds.get(failure["kind"], BuildError)(failure["message"])


def rtx_engine(
    source: str | Path,
    *,
    precision: str = "fp16",
    batch_size: int | None = None,
    inputs: Mapping[str, Sequence[int]] | None = None,
    compute_capability: str = "SM86",
    timeout_s: float = _TIMEOUT_S,
) -> tuple[Network, tuple[EngineLayer, ...]]:
    """Builds a network with TensorRT-RTX: the network as built, and the engine's layers.

    Weights that the file lacks are filled with random values; for fp16 the graph is cast.

    Args:
        source: ONNX file, plain or compressed, with or without weights.
        precision: fp32, tf32 or fp16; int8 for a graph with Q/DQ nodes, built as it is.
        batch_size: See `load_network`.
        inputs: See `load_network`.
        compute_capability: One of `COMPUTE_CAPABILITIES`.
        timeout_s: Seconds the build may take.

    Raises:
        UsageError: Precision or compute capability this runtime doesn't have.
        NetworkError: The file can't be read or bound to static shapes.
        RuntimeUnavailableError: TensorRT-RTX isn't installed.
        BuildError: The build failed.
    """
    if precision not in PRECISIONS:
        raise UsageError(f"TensorRT-RTX is built here in {', '.join(PRECISIONS)}, not in {precision}")
    model = load_filled(Path(source))
    if precision == "fp16":
        model = to_fp16(model)
    name_nodes(model)
    network = load_network(model, batch_size=batch_size, inputs=inputs, name=Path(source).name)
    if precision == "int8" and not network.quantized:
        raise UsageError(f"{source}: holds no Q/DQ nodes; TensorRT-RTX takes int8 from the graph, quantise it first")
    bind_inputs(model, network)
    dump = engine_in_child(model, compute_capability=compute_capability, precision=precision, timeout_s=timeout_s)
    return network, layers_from_build_log(dump, source="TensorRT-RTX build log")


def rtx_layers(
    source: str | Path,
    *,
    device: str | None = None,
    compute_capability: str | None = None,
    precision: str = "fp16",
    batch_size: int | None = None,
    inputs: Mapping[str, Sequence[int]] | None = None,
    timeout_s: float = _TIMEOUT_S,
) -> list[Layer]:
    """Layers of the engine TensorRT-RTX builds for a device, on any x86-64 machine.

    Args:
        source: ONNX file, plain or compressed, with or without weights.
        device: Slug such as `rtx-4090`; gives the compute capability.
        compute_capability: Such as `SM86`; wins over `device`.
        precision: See `rtx_engine`.
        batch_size: See `load_network`.
        inputs: See `load_network`.
        timeout_s: Seconds the build may take.

    Raises:
        PerfpredError: See `rtx_engine`; also `UsageError` for a device this runtime doesn't support.
    """
    capability = compute_capability or (capability_of(device) if device else "SM86")
    network, engine = rtx_engine(
        source,
        precision=precision,
        batch_size=batch_size,
        inputs=inputs,
        compute_capability=capability,
        timeout_s=timeout_s,
    )
    return layers_from_engine(engine, network)


def capability_of(device: str) -> str:
    """TensorRT-RTX's word for a device's compute capability.

    Raises:
        UsageError: TensorRT-RTX doesn't support the device.
    """
    number = load_device(device).compute_capability
    word = f"SM{round(number * 10)}"
    if word not in COMPUTE_CAPABILITIES:
        raise UsageError(
            f"TensorRT-RTX doesn't support {device} (compute capability {number}); "
            f"it builds for {', '.join(COMPUTE_CAPABILITIES)}, use --runtime tensorrt"
        )
    return word


def name_nodes(model: onnx.ModelProto) -> None:
    """Gives every node a unique name, so that the build log's names are the network's."""
    counts = Counter(node.name for node in model.graph.node)
    for i, node in enumerate(model.graph.node):
        if not node.name or counts[node.name] > 1:
            node.name = f"{node.name or node.op_type}_{i}"


def bind_inputs(model: onnx.ModelProto, network: Network) -> None:
    """Gives the model's inputs the static shapes of `network`."""
    shapes = {t.name: t.shape for t in network.inputs}
    for value in model.graph.input:
        if value.name in shapes:
            for dim, size in zip(value.type.tensor_type.shape.dim, shapes[value.name], strict=True):
                dim.dim_value = size
    # Shapes declared for inner tensors and outputs may hold the symbols just bound; the builder infers them itself.
    del model.graph.value_info[:]
    for value in model.graph.output:
        for dim in value.type.tensor_type.shape.dim:
            dim.Clear()


def _main() -> int:
    parser = argparse.ArgumentParser(description="Build one network with TensorRT-RTX and keep the layers it logs.")
    for name in ("onnx_path", "out", "compute_capability", "precision"):
        parser.add_argument(name)
    given = parser.parse_args()
    try:
        dump = build_layer_dump(given.onnx_path, precision=given.precision, compute_capability=given.compute_capability)
    except (BuildError, RuntimeUnavailableError, UsageError) as error:
        sys.stdout.write(json.dumps({"kind": type(error).__name__, "message": str(error)}) + "\n")
        return 1
    Path(given.out).write_text(dump, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(_main())

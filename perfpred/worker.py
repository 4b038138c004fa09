"""A child process that prepares networks and measures engines: one JSON request a line in, one JSON reply a line out.

Everything that can crash, hang or leak lives here; the campaign that started it survives and starts another.
"""

from __future__ import annotations

import argparse
import ctypes
import hashlib
import json
import os
import signal
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime, timezone
from functools import cached_property
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from perfpred import kernels, measure
from perfpred.cuda import Cuda, open_cuda
from perfpred.environment import GpuMonitor, device_slug, host, physical_cores, throttled
from perfpred.errors import PerfpredError, UsageError
from perfpred.host import detect_host
from perfpred.prepare import prepare, read_inputs, save_arrays
from perfpred.runtimes import onnxruntime as ort
from perfpred.runtimes import tensorrt
from perfpred.unit import Unit, unit_from_json

_PR_SET_PDEATHSIG = 1

Outputs = Mapping[str, NDArray[Any]]


@dataclass(kw_only=True)
class _Built:
    """An engine ready to be measured."""

    unit: Unit
    model: Path
    engine: Any
    stream: int = 0
    facts: dict[str, Any] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    started: str = ""
    before: dict[str, Any] = field(default_factory=dict)
    after: dict[str, Any] = field(default_factory=dict)
    measurement: measure.Measurement | None = None
    layers: list[dict[str, Any]] | None = None
    trace: kernels.Trace | None = None


class Worker:
    """Serves requests on one device.

    Args:
        target: `gpu` or `cpu`.
        device: Ordinal of the GPU.
        backend: CUDA binding.
        cores: Cores this process is pinned to; empty for no pinning.
        host: Device slug of this machine's CPU in records.
        loop: Repetitions.
    """

    def __init__(
        self,
        target: str = "gpu",
        device: int = 0,
        backend: str = "auto",
        cores: tuple[int, ...] = (),
        host: str = "cpu",
        loop: measure.Loop | None = None,
    ) -> None:
        self.target = target
        self.device = device
        self.backend = backend
        self.cores = cores
        self.host = host
        self.loop = loop or measure.Loop()
        self._pending: _Built | None = None
        if cores:
            os.sched_setaffinity(0, cores)

    @cached_property
    def cuda(self) -> Cuda:
        """The open device."""
        return open_cuda(self.backend, self.device, partitions=True)

    @cached_property
    def monitor(self) -> GpuMonitor:
        """Reader of the GPU's state."""
        return GpuMonitor(self.cuda.bus_id)

    @cached_property
    def _scratch(self) -> tempfile.TemporaryDirectory[str]:
        return tempfile.TemporaryDirectory(prefix="perfpred-")

    @cached_property
    def threads(self) -> int:
        """Threads of a CPU engine."""
        return len(self.cores) or physical_cores()

    # Requests ---------------------------------------------------------------------------------------------

    def clear(self) -> None:
        """Run something short on the GPU, so that it forgets the partitions other processes have used."""
        stream = self.cuda.partition_stream(None)
        for _ in range(3):
            self.cuda.spin(stream, 1e-4)
            self.cuda.synchronize(stream)

    def hello(self) -> dict[str, Any]:
        """Describe the device."""
        if self.target == "cpu":
            return {"device": self.host, "device_name": host()["cpu"], "sms": None}
        return {
            "device": device_slug(self.cuda.name),
            "device_name": self.cuda.name,
            "sms": self.cuda.attribute("sm_count"),
        }

    @cached_property
    def environment(self) -> dict[str, Any]:
        """Everything about host, device and versions that does not change between rows."""
        facts: dict[str, Any] = {**host(), **self.hello()}
        if self.target == "cpu":
            spec = replace(detect_host(), slug=self.host).to_dict()
            return {
                **facts,
                "device_spec": spec,
                "onnxruntime": ort.version(),
                "threads": self.threads,
                "cores": list(self.cores),
            }
        major, minor = self.cuda.attribute("major"), self.cuda.attribute("minor")
        return {
            **facts,
            **self.monitor.facts(),
            "cuda_backend": self.cuda.backend,
            "cuda_driver": self.cuda.driver_version,
            "onnxruntime": ort.version(),
            "cudnn": ort.cudnn_version(),
            "compute_capability": f"{major}.{minor}",
        }

    def prepare(self, *, path: str, precision: str, batch_size: int, folder: str, reference: bool) -> dict[str, Any]:
        """Write the model and its inputs; see `perfpred.prepare.prepare`."""
        model = prepare(Path(path), precision=precision, batch_size=batch_size, folder=Path(folder))
        if reference:
            base = prepare(Path(path), precision="fp32", batch_size=batch_size, folder=Path(folder) / "reference")
            engine = ort.build_cpu(base, read_inputs(base), threads=1)
            save_arrays(Path(folder) / "reference.npz", engine.outputs())
        return {"model": str(model)}

    def build(self, *, unit: Mapping[str, Any], model: str) -> dict[str, Any]:
        """Build one engine and run it once; `measure` takes it from there."""
        self._pending = None
        wanted, path = unit_from_json(unit), Path(model)
        begin = time.perf_counter()
        built = self._build_cpu(wanted, path) if wanted.target == "cpu" else self._build_gpu(wanted, path)
        built.seconds["build"] = round(time.perf_counter() - begin, 4)
        self._pending = built
        return {"build_s": built.seconds["build"]}

    def measure(self) -> None:
        """Measure the engine built last: all that needs the device for itself, and nothing else."""
        built = self._pending
        if built is None:
            raise UsageError("nothing is built: ask for a build first")
        built.started = datetime.now(timezone.utc).isoformat(timespec="seconds")
        if built.unit.target == "cpu":
            self._measure_cpu(built)
        else:
            self._measure_gpu(built)

    def report(self) -> dict[str, Any]:
        """Raw record, without identity, of the engine measured last; frees the engine."""
        built, self._pending = self._pending, None
        if built is None or built.measurement is None:
            raise UsageError("nothing is measured: ask for a measurement first")
        record = _record(built.measurement)
        record["flags"].extend(built.facts.pop("build_flags", ()))
        if throttled(built.before, built.after):
            record["flags"].append("throttled")
        return {
            "started": built.started,
            "environment": self.environment,
            **record,
            "before": built.before,
            "after": built.after,
            **built.facts,
            **self._extras(built),
            "seconds": {**built.seconds, **built.measurement.seconds},
        }

    def _extras(self, built: _Built) -> dict[str, Any]:
        extras: dict[str, Any] = {}
        if built.unit.check_outputs:
            extras["outputs"] = _check_outputs(built.engine.outputs(), built.model)
        if built.layers is not None:
            extras["layers"] = built.layers
        if built.trace is not None:
            try:
                extras["kernels"] = kernels.columns_of(built.trace)
            except Exception as error:  # noqa: BLE001 - the latency is measured: a profile that can't be read costs itself only
                extras["kernels_error"] = describe(error)
        return extras

    # Devices ----------------------------------------------------------------------------------------------

    def _build_gpu(self, unit: Unit, model: Path) -> _Built:
        stream = self.cuda.partition_stream(unit.sm_count)
        free_before, _ = self.cuda.memory()
        build = self._build_onnxruntime if unit.runtime == "onnxruntime" else self._build_tensorrt
        engine, facts = build(unit, model, stream)
        engine.enqueue(stream)
        self.cuda.synchronize(stream)
        facts["memory_bytes"] = max(free_before - self.cuda.memory()[0], 0)
        return _Built(unit=unit, model=model, engine=engine, stream=stream, facts=facts)

    def _build_onnxruntime(self, unit: Unit, model: Path, stream: int) -> tuple[Any, dict[str, Any]]:
        options = dict(unit.options)
        profiled = unit.layers and kernels.available()
        if profiled:
            kernels.warm_up()
        engine = ort.build_cuda(
            model,
            read_inputs(model),
            precision=unit.precision,
            stream=stream,
            device=self.device,
            optimisation=unit.optimisation,
            provider=options.pop("provider", "cuda"),
            options=options,
            profile=Path(self._scratch.name) / "profile" if profiled else None,
        )
        return engine, {"provider_options": ort.provider_options(engine.session), "typing": "strong"}

    def _build_tensorrt(self, unit: Unit, model: Path, stream: int) -> tuple[Any, dict[str, Any]]:
        return tensorrt.build_engine(
            model,
            read_inputs(model),
            runtime=unit.runtime,
            precision=unit.precision,
            optimisation=unit.optimisation,
            options=unit.options,
            cuda=self.cuda,
        )

    def _measure_gpu(self, built: _Built) -> None:
        unit, engine, stream = built.unit, built.engine, built.stream
        built.before = self.monitor.state()
        built.measurement = measure.measure_gpu(self.cuda, engine, stream, self.loop, detail=unit.detail)
        built.after = self.monitor.state()
        if not unit.layers:
            return
        begin = time.perf_counter()
        if hasattr(engine, "layer_times"):
            built.layers = engine.layer_times(stream)
        elif kernels.available():
            built.trace = kernels.record_engine(self.cuda, engine, stream)
        built.seconds["layers"] = round(time.perf_counter() - begin, 4)

    def _build_cpu(self, unit: Unit, model: Path) -> _Built:
        engine = ort.build_cpu(model, read_inputs(model), threads=self.threads, optimisation=unit.optimisation)
        facts = {"provider_options": ort.provider_options(engine.session), "typing": "strong"}
        return _Built(unit=unit, model=model, engine=engine, facts=facts)

    def _measure_cpu(self, built: _Built) -> None:
        built.measurement = measure.measure_cpu(built.engine.run)
        if built.unit.layers:
            built.layers = self._layers_cpu(built.unit, built.model, read_inputs(built.model))

    def _layers_cpu(self, unit: Unit, model: Path, inputs: Outputs) -> list[dict[str, Any]]:
        with tempfile.TemporaryDirectory() as folder:
            engine = ort.build_cpu(
                model,
                inputs,
                threads=self.threads,
                optimisation=unit.optimisation,
                profile=Path(folder) / "profile",
            )
            begin, runs = time.perf_counter(), 0
            while runs < 20 and (runs < 6 or time.perf_counter() - begin < 2):
                engine.run()
                runs += 1
            return ort.layer_times(engine.session.end_profiling())


def _record(measurement: measure.Measurement) -> dict[str, Any]:
    def listed(samples: measure.Samples) -> list[float]:
        return [round(float(value), 9) for value in samples]

    return {
        "latency_kind": measurement.kind,
        "latency_s": measurement.latency_s,
        "host_sync_s": measurement.host_sync_s,
        "enqueue_s": measurement.enqueue_s,
        "isolated_s": measurement.isolated_s,
        "back_to_back_s": measurement.back_to_back_s,
        "samples_s": listed(measurement.samples),
        "host_sync_samples_s": listed(measurement.host_sync_samples),
        "warmup_runs": measurement.warmup_runs,
        "graph_nodes": measurement.graph_nodes,
        "flags": list(measurement.flags),
    }


def _check_outputs(outputs: Outputs, model: Path) -> dict[str, Any]:
    """Digest, probe values and largest relative difference against the float32 reference, where there is one."""
    digest = hashlib.sha256()
    probes = {}
    for name in sorted(outputs):
        values = np.ascontiguousarray(outputs[name])
        digest.update(values.tobytes())
        flat = values.reshape(-1)
        probes[name] = [float(v) for v in flat[:: max(1, flat.size // 32)][:32]]
    result: dict[str, Any] = {"digest": digest.hexdigest()[:32], "probes": probes}
    reference = model.parent / "reference.npz"
    if reference.exists():
        with np.load(reference) as arrays:
            result["max_relative_difference"] = ort.relative_difference(dict(arrays), outputs)
    return result


def serve(worker: Any, requests: IO[str], replies: IO[str]) -> None:
    """Answer requests until the input ends.

    A request is `{"op": NAME, ...arguments}`; the reply is `{"ok": true, "value": ...}` or
    `{"ok": false, "error": {"class": ..., "message": ...}, "fatal": bool}`. After a fatal error the process is of
    no use any more.
    """
    for line in requests:
        request = json.loads(line)
        try:
            reply = {"ok": True, "value": getattr(worker, request.pop("op"))(**request)}
        except Exception as error:  # noqa: BLE001 - whatever goes wrong costs this row only, and is recorded
            # One failed TensorRT build can change what the same process builds next.
            spoilt = request.get("unit", {}).get("runtime", "onnxruntime") != "onnxruntime"
            reply = {"ok": False, "error": describe(error), "fatal": spoilt or not _alive(worker)}
        replies.write(json.dumps(reply) + "\n")
        replies.flush()


def describe(error: BaseException) -> dict[str, str]:
    """Class and message of an error, shortened."""
    return {"class": type(error).__name__, "message": " ".join(str(error).split())[:600]}


def _alive(worker: Any) -> bool:
    """Whether the GPU context still answers: some CUDA errors end it for the whole process."""
    cuda = worker.__dict__.get("cuda")
    if cuda is None:
        return True
    try:
        cuda.call("cuCtxSynchronize")
    except PerfpredError:
        return False
    return True


def parse_cores(text: str) -> tuple[int, ...]:
    """Core numbers of a list such as `0-3,8`."""
    cores: list[int] = []
    try:
        for part in filter(None, text.split(",")):
            first, _, last = part.partition("-")
            cores.extend(range(int(first), int(last or first) + 1))
    except ValueError as error:
        raise UsageError(f"'{text}' is not a list of cores such as 0-3,8") from error
    return tuple(cores)


def main() -> None:
    """Entry point of `python -m perfpred.worker`."""
    parser = argparse.ArgumentParser(description="Serve measuring requests on standard input.")
    parser.add_argument("--target", default="gpu")
    parser.add_argument("--device", type=int, default=0)
    parser.add_argument("--cuda", default="auto")
    parser.add_argument("--cores", default="")
    parser.add_argument("--host", default="cpu")
    arguments = parser.parse_args()
    if sys.platform == "linux":
        # A worker that hangs must not outlive the campaign that would have killed it.
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    # Libraries print to standard output now and then: replies get a descriptor of their own.
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    worker = Worker(arguments.target, arguments.device, arguments.cuda, parse_cores(arguments.cores), arguments.host)
    serve(worker, sys.stdin, replies)


if __name__ == "__main__":
    main()

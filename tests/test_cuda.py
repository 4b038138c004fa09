"""The CUDA bindings against drivers that exist in Python only: what is passed, what comes back, what is refused."""

from __future__ import annotations

import ctypes
import sys
import types
from enum import IntEnum
from typing import Any

import numpy as np
import pytest

from perfpred.cuda import Cuda, open_cuda
from perfpred.cuda_ctypes import CudaCtypes
from perfpred.errors import DeviceError, MeasurementError, RuntimeUnavailableError, UsageError

ADDRESS = 0x7F00_0000_1000


class Driver:
    """A driver with one GPU of 132 SMs; every function returns its status and outputs."""

    def __init__(self) -> None:
        self.calls: list[tuple[Any, ...]] = []
        self.memory = np.zeros(64, np.uint8)
        self.status: dict[str, int] = {}

    def answer(self, name: str, *inputs: Any) -> tuple[int, tuple[Any, ...]]:
        self.calls.append((name, *inputs))
        if name in self.status:
            return self.status[name], (0,) * len(self.outputs(name, inputs))
        return 0, self.outputs(name, inputs)

    def outputs(self, name: str, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        return {
            "cuDeviceGetCount": (1,),
            "cuDeviceGet": (0,),
            "cuDevicePrimaryCtxRetain": (0xC0,),
            "cuLibraryLoadData": (0x11,),
            "cuLibraryGetKernel": (0x5B,),
            "cuModuleLoadData": (0x12,),
            "cuModuleGetFunction": (0x5B,),
            "cuDeviceGetName": (b"NVIDIA Imaginary 80GB\0\0",),
            "cuDeviceGetPCIBusId": (b"0000:00:06.0\0",),
            "cuDriverGetVersion": (13000,),
            "cuDeviceGetAttribute": ({16: 132, 75: 9, 76: 0, 38: 50 << 20}.get(inputs[0] if inputs else 0, 0),),
            "cuMemGetInfo": (7 << 30, 8 << 30),
            "cuMemAlloc": (ADDRESS,),
            "cuStreamCreate": (0x57,),
            "cuEventCreate": (0xE7,),
            "cuEventElapsedTime": (2.5,),
            "cuStreamEndCapture": (0x6A,),
            "cuGraphInstantiate": (0x6E,),
            "cuGetErrorName": (b"CUDA_ERROR_OUT_OF_MEMORY",),
        }.get(name, ())


class CtypesLibrary:
    """`Driver` behind C calling conventions."""

    def __init__(self, driver: Driver) -> None:
        self.driver = driver

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        if name == "cuGraphGetNodes":
            return self.nodes
        if name == "cuGraphNodeGetType":
            return self.node_type
        if name == "cuLaunchKernel":
            return self.launch
        exported = {real: short for short, real in CudaCtypes._EXPORTED.items()}
        plain = exported.get(name, name)

        def call(*arguments: Any) -> int:
            signature = CudaCtypes._SIGNATURES[plain]
            assert len(arguments) == len(signature)
            inputs, slots = [], []
            for kind, argument in zip(signature, arguments, strict=True):
                if kind == "N":
                    slots.append(argument)
                elif kind.isupper():
                    slots.append(argument._obj)
                else:
                    inputs.append(argument.value)
            status, outputs = self.driver.answer(plain, *inputs)
            if not status:
                for slot, output in zip(slots, outputs, strict=True):
                    slot.value = output
            return status

        return call

    def nodes(self, graph: Any, nodes: Any, count: Any) -> int:
        count._obj.value = 3
        if nodes is not None:
            nodes[0], nodes[1], nodes[2] = 1, 2, 3
        return 0

    def node_type(self, node: Any, kind: Any) -> int:
        kind._obj.value = 0 if node.value < 3 else 1
        return 0

    def launch(self, function: Any, *rest: Any) -> int:
        grid, (shared, stream, values, extra) = rest[:6], rest[6:]
        assert [g.value for g in grid] == [1] * 6
        assert (shared.value, extra.value) == (0, None)
        nanoseconds = ctypes.cast(values[0], ctypes.POINTER(ctypes.c_uint64))[0]
        self.driver.calls.append(("launch", function.value, stream.value, nanoseconds))
        return 0


def bindings_module(driver: Driver) -> types.ModuleType:
    """`Driver` as cuda-bindings presents it."""
    module = types.ModuleType("cuda.bindings.driver")

    class CUresult(IntEnum):
        SUCCESS = 0
        OUT_OF_MEMORY = 2
        NOT_READY = 600

    class CUdevice_attribute(IntEnum):
        SM = 16
        L2 = 38
        MAJOR = 75
        MINOR = 76

    class CUstreamCaptureMode(IntEnum):
        RELAXED = 2

    class CUdevResourceType(IntEnum):
        SM = 1

    module.CUresult, module.CUdevice_attribute = CUresult, CUdevice_attribute
    module.CUstreamCaptureMode, module.CUdevResourceType = CUstreamCaptureMode, CUdevResourceType

    def special(name: str, inputs: tuple[Any, ...]) -> tuple[Any, ...] | None:
        if name == "cuLaunchKernel":
            driver.calls.append(("launch", inputs[0], inputs[8], inputs[9][0][0]))
            return (CUresult(0),)
        if name == "cuGraphGetNodes":
            return (CUresult(0), [1, 2, 3] if inputs[1] else [], 3)
        if name == "cuGraphNodeGetType":
            return (CUresult(0), 0 if inputs[0] < 3 else 1)
        if name == "cuDeviceGetDevResource":
            return (CUresult(0), "whole")
        if name == "cuDevSmResourceSplitByCount":
            rounded = -(-inputs[3] // 8) * 8
            group = types.SimpleNamespace(sm=types.SimpleNamespace(smCount=rounded))
            return (CUresult(0), [group], 1, "rest")
        if name == "cuDevResourceGenerateDesc":
            return (CUresult(0), "description")
        if name == "cuGreenCtxCreate":
            return (CUresult(0), "green")
        if name == "cuGreenCtxStreamCreate":
            driver.calls.append((name, *inputs))
            return (CUresult(0), 0x67)
        return None

    def make(name: str) -> Any:
        def call(*inputs: Any) -> tuple[Any, ...]:
            known = special(name, inputs)
            if known is not None:
                return known
            status, outputs = driver.answer(name, *inputs)
            return (CUresult(status), *outputs)

        return call

    module.__getattr__ = lambda name: make(name)
    return module


@pytest.fixture
def driver() -> Driver:
    return Driver()


def opened(backend: str, driver: Driver, monkeypatch: pytest.MonkeyPatch) -> Cuda:
    if backend == "ctypes":
        monkeypatch.setattr(ctypes, "CDLL", lambda name: CtypesLibrary(driver))
    else:
        package = types.ModuleType("cuda.bindings")
        for name, module in (("cuda.bindings", package), ("cuda.bindings.driver", bindings_module(driver))):
            monkeypatch.setitem(sys.modules, name, module)
        monkeypatch.setitem(sys.modules, "cuda", types.ModuleType("cuda"))
    return open_cuda(backend, 0)


BOTH = pytest.mark.parametrize("backend", ["ctypes", "cuda-bindings"])


@BOTH
def test_device_facts(backend: str, driver: Driver, monkeypatch: pytest.MonkeyPatch) -> None:
    cuda = opened(backend, driver, monkeypatch)
    assert cuda.backend == backend
    assert (cuda.name, cuda.bus_id) == ("NVIDIA Imaginary 80GB", "0000:00:06.0")
    assert cuda.driver_version == 13000
    assert (cuda.attribute("sm_count"), cuda.attribute("major")) == (132, 9)
    assert cuda.memory() == (7 << 30, 8 << 30)


@BOTH
def test_memory_calls(backend: str, driver: Driver, monkeypatch: pytest.MonkeyPatch) -> None:
    cuda = opened(backend, driver, monkeypatch)
    address = cuda.malloc(0)
    assert ("cuMemAlloc", 1) in driver.calls
    array = np.arange(6, dtype=np.float32)
    cuda.upload(address, array)
    assert driver.calls[-1] == ("cuMemcpyHtoD", ADDRESS, array.ctypes.data, 24)
    cuda.download(array, address)
    assert driver.calls[-1] == ("cuMemcpyDtoH", array.ctypes.data, ADDRESS, 24)
    cuda.free(address)
    assert driver.calls[-1] == ("cuMemFree", ADDRESS)


@BOTH
def test_events_and_spin(backend: str, driver: Driver, monkeypatch: pytest.MonkeyPatch) -> None:
    cuda = opened(backend, driver, monkeypatch)
    stream, event = cuda.stream(), cuda.event()
    cuda.record(event, stream)
    assert driver.calls[-1] == ("cuEventRecord", event, stream)
    assert cuda.elapsed_s(event, event) == pytest.approx(2.5e-3)
    cuda.spin(stream, 0.5e-3)
    assert driver.calls[-1] == ("launch", 0x5B, stream, 500_000)
    assert cuda.happened(event)
    driver.status["cuEventQuery"] = 600
    assert not cuda.happened(event)
    driver.status["cuEventQuery"] = 2
    with pytest.raises(MeasurementError, match=r"cuEventQuery failed.*2 \(CUDA_ERROR_OUT_OF_MEMORY\)"):
        cuda.happened(event)


@BOTH
def test_capture_counts_nodes_and_frees_the_template(
    backend: str, driver: Driver, monkeypatch: pytest.MonkeyPatch
) -> None:
    cuda = opened(backend, driver, monkeypatch)
    cuda.begin_capture(5)
    assert driver.calls[-1] == ("cuStreamBeginCapture", 5, 2)
    assert cuda.end_capture(5) == (0x6E, {"kernel": 2, "memcpy": 1})
    assert ("cuGraphDestroy", 0x6A) in driver.calls
    cuda.launch(0x6E, 5)
    assert driver.calls[-1] == ("cuGraphLaunch", 0x6E, 5)
    cuda.abandon_capture(5)
    assert driver.calls[-1] == ("cuGraphDestroy", 0x6A)


@BOTH
def test_the_whole_gpu_needs_no_partition(backend: str, driver: Driver, monkeypatch: pytest.MonkeyPatch) -> None:
    cuda = opened(backend, driver, monkeypatch)
    assert cuda.partition_stream(None) == cuda.partition_stream(132) == 0x57
    assert [call[0] for call in driver.calls].count("cuStreamCreate") == 1


def test_partitions_through_green_contexts(driver: Driver, monkeypatch: pytest.MonkeyPatch) -> None:
    cuda = opened("cuda-bindings", driver, monkeypatch)
    assert cuda.partition_stream(16) == cuda.partition_stream(16) == 0x67
    assert driver.calls.count(("cuGreenCtxStreamCreate", "green", 1, 0)) == 1
    with pytest.raises(DeviceError, match="can't be split into 10 SMs; the nearest partition has 16"):
        cuda.partition_stream(10)


def test_partitions_need_cuda_bindings(driver: Driver, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(RuntimeUnavailableError, match="need cuda-bindings, not ctypes"):
        opened("ctypes", driver, monkeypatch).partition_stream(16)


def test_an_old_driver_loads_the_spin_kernel_as_a_module(driver: Driver, monkeypatch: pytest.MonkeyPatch) -> None:
    class OldLibrary(CtypesLibrary):
        def __getattr__(self, name: str) -> Any:
            if name.startswith("cuLibrary"):
                raise AttributeError(name)
            return super().__getattr__(name)

    monkeypatch.setattr(ctypes, "CDLL", lambda name: OldLibrary(driver))
    open_cuda("ctypes", 0)
    assert [call[0] for call in driver.calls][-1] == "cuModuleGetFunction"


@BOTH
def test_a_device_that_does_not_exist(backend: str, driver: Driver, monkeypatch: pytest.MonkeyPatch) -> None:
    opened(backend, driver, monkeypatch)
    with pytest.raises(DeviceError, match="GPU 3 does not exist; this machine has 1"):
        open_cuda(backend, 3)


def test_pycuda_shares_the_primary_context(driver: Driver, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []

    class Stream:
        handle = 0x99

        def __init__(self, flags: int) -> None:
            seen.append(("stream", flags))

        def synchronize(self) -> None:
            seen.append("synchronize")

    class Event:
        def record(self, stream: Stream) -> None:
            seen.append(("record", stream.handle))

        def synchronize(self) -> None:
            seen.append("wait")

        def query(self) -> bool:
            return False

        def time_since(self, other: Event) -> float:
            return 4.0

    context = types.SimpleNamespace(push=lambda: seen.append("push"), pop=lambda: None)
    module = types.ModuleType("pycuda.driver")
    module.Device = lambda n: types.SimpleNamespace(retain_primary_context=lambda: context)
    module.Stream, module.Event = Stream, Event
    module.module_from_buffer = lambda ptx: types.SimpleNamespace(
        get_function=lambda name: lambda value, **how: seen.append((name, int(value), how["stream"].handle))
    )
    module.mem_alloc = lambda nbytes: type(
        "Allocation", (), {"__int__": lambda s: 77, "free": lambda s: seen.append("free")}
    )()
    module.memcpy_htod = lambda address, array: seen.append(("htod", address, array.nbytes))
    module.memcpy_dtoh = lambda array, address: seen.append(("dtoh", address, array.nbytes))
    monkeypatch.setitem(sys.modules, "pycuda", types.ModuleType("pycuda"))
    monkeypatch.setitem(sys.modules, "pycuda.driver", module)
    monkeypatch.setattr(ctypes, "CDLL", lambda name: CtypesLibrary(driver))
    cuda = open_cuda("auto", 0)
    assert cuda.backend == "pycuda"
    assert seen == ["push"]
    stream, event, later = cuda.stream(), cuda.event(), cuda.event()
    cuda.record(event, stream)
    cuda.spin(stream, 1e-3)
    cuda.wait(event)
    cuda.synchronize(stream)
    assert seen[1:] == [("stream", 1), ("record", 0x99), ("spin", 1_000_000, 0x99), "wait", "synchronize"]
    assert not cuda.happened(event)
    assert cuda.elapsed_s(event, later) == pytest.approx(4e-3)
    address = cuda.malloc(8)
    cuda.upload(address, np.zeros(2, np.float32))
    cuda.download(np.zeros(2, np.float32), address)
    cuda.free(address)
    assert seen[-3:] == [("htod", 77, 8), ("dtoh", 77, 8), "free"]
    assert cuda.end_capture(stream) == (0x6E, {"kernel": 2, "memcpy": 1})


def test_missing_bindings_and_drivers_name_the_fix(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match="unknown CUDA backend 'opencl'"):
        open_cuda("opencl")
    for name in ("pycuda", "pycuda.driver", "cuda", "cuda.bindings", "cuda.bindings.driver"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(RuntimeUnavailableError, match=r"pip install perfpred\[tensorrt\]"):
        open_cuda("pycuda")

    def missing(name: str) -> Any:
        raise OSError(name)

    monkeypatch.setattr(ctypes, "CDLL", missing)
    with pytest.raises(RuntimeUnavailableError, match="no NVIDIA driver"):
        open_cuda("auto")

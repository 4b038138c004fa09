"""The few CUDA driver calls a measurement needs, behind three interchangeable bindings.

`open_cuda` picks PyCUDA where it is installed, then cuda-bindings, then plain ctypes on the driver library; each
record names the one used. Handles (streams, events, graphs) are plain integers, so any runtime takes them.
Partitions of a GPU (green contexts) need cuda-bindings.
"""

from __future__ import annotations

import ctypes
import importlib
from abc import ABC, abstractmethod
from collections import Counter
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from perfpred.errors import DeviceError, MeasurementError, RuntimeUnavailableError, UsageError

BACKENDS: Final = ("pycuda", "cuda-bindings", "ctypes")

_NOT_READY: Final = 600
NON_BLOCKING: Final = 1
_CAPTURE_RELAXED: Final = 2
_RESOURCE_SM: Final = 1
_NODE_TYPES: Final = {0: "kernel", 1: "memcpy", 2: "memset", 3: "host", 4: "graph", 5: "empty", 10: "alloc", 11: "free"}
_ATTRIBUTE: Final = {
    **{"clock_khz": 13, "sm_count": 16, "memory_clock_khz": 36, "bus_bits": 37, "l2_bytes": 38},
    **{"major": 75, "minor": 76},
}

# One thread that watches the GPU's own clock: holds a stream busy without touching memory or other units.
SPIN_PTX: Final = b"""
.version 6.0
.target sm_50
.address_size 64
.visible .entry spin(.param .u64 nanoseconds)
{
    .reg .u64 %rd<5>;
    .reg .pred %p;
    ld.param.u64 %rd1, [nanoseconds];
    mov.u64 %rd2, %globaltimer;
again:
    mov.u64 %rd3, %globaltimer;
    sub.u64 %rd4, %rd3, %rd2;
    setp.lt.u64 %p, %rd4, %rd1;
    @%p bra again;
    ret;
}
"""
_SPIN_IMAGE: Final = ctypes.create_string_buffer(SPIN_PTX)


class Cuda(ABC):
    """One device through one binding; its primary context is current on the thread that opened it.

    Attributes:
        backend: One of `BACKENDS`.
        device: Ordinal of the device.
    """

    backend: str = ""

    def __init__(self, device: int = 0) -> None:
        self.device = device
        self._partitions: dict[int, tuple[int, Any]] = {}
        self.call("cuInit", 0)
        count = self.call("cuDeviceGetCount")
        if not 0 <= device < count:
            raise DeviceError(f"GPU {device} does not exist; this machine has {count}, numbered from 0")
        self._handle = self.call("cuDeviceGet", device)
        self._context = self.call("cuDevicePrimaryCtxRetain", self._handle)
        self.make_current()
        self._spin = self._load_spin()

    def _load_spin(self) -> Any:
        image = ctypes.addressof(_SPIN_IMAGE)
        try:
            # A library's kernel takes its context from the stream it is launched on: partitions need that.
            library = self.call("cuLibraryLoadData", image, None, None, 0, None, None, 0)
            return self.call("cuLibraryGetKernel", library, b"spin")
        except AttributeError:  # driver older than CUDA 12
            return self.call("cuModuleGetFunction", self.call("cuModuleLoadData", image), b"spin")

    @abstractmethod
    def invoke(self, name: str, *arguments: Any) -> tuple[int, tuple[Any, ...]]:
        """Call driver function `name` with its input arguments; return its status and outputs."""

    @abstractmethod
    def _launch_spin(self, stream: int, nanoseconds: int) -> int:
        """Enqueue the spin kernel; return the status."""

    def call(self, name: str, *arguments: Any) -> Any:
        """Call a driver function; return its output (None, one value or a tuple).

        Raises:
            MeasurementError: The driver returned an error.
        """
        status, outputs = self.invoke(name, *arguments)
        self._check(name, status)
        return None if not outputs else outputs[0] if len(outputs) == 1 else outputs

    def _check(self, name: str, status: int) -> None:
        if status:
            raise MeasurementError(f"{name} failed with CUDA driver error {status} ({self._error_name(status)})")

    def _error_name(self, status: int) -> str:
        failed, outputs = self.invoke("cuGetErrorName", status)
        return "unknown" if failed or not outputs[0] else bytes(outputs[0]).decode()

    # Device -----------------------------------------------------------------------------------------------

    def make_current(self) -> None:
        """Make the primary context current on this thread."""
        self.call("cuCtxSetCurrent", self._context)

    def attribute(self, name: str) -> int:
        """Device attribute: a key of `_ATTRIBUTE`; `major` and `minor` are the compute capability."""
        return int(self.call("cuDeviceGetAttribute", _ATTRIBUTE[name], self._handle))

    @property
    def name(self) -> str:
        """Marketing name, such as `NVIDIA H100 80GB HBM3`."""
        return bytes(self.call("cuDeviceGetName", 256, self._handle)).split(b"\0")[0].decode()

    @property
    def driver_version(self) -> int:
        """CUDA version of the driver, 1000 x major + 10 x minor."""
        return int(self.call("cuDriverGetVersion"))

    @property
    def bus_id(self) -> str:
        """PCI address, the name NVML knows the device by."""
        return bytes(self.call("cuDeviceGetPCIBusId", 64, self._handle)).split(b"\0")[0].decode()

    def memory(self) -> tuple[int, int]:
        """Free and total device memory in bytes."""
        free, total = self.call("cuMemGetInfo")
        return int(free), int(total)

    # Memory -----------------------------------------------------------------------------------------------

    def malloc(self, nbytes: int) -> int:
        """Allocate device memory; return its address."""
        return int(self.call("cuMemAlloc", max(nbytes, 1)))

    def free(self, address: int) -> None:
        """Free device memory."""
        self.call("cuMemFree", address)

    def upload(self, address: int, array: NDArray[Any]) -> None:
        """Copy a host array to the device; returns when done."""
        array = np.ascontiguousarray(array)
        self.call("cuMemcpyHtoD", address, array.ctypes.data, array.nbytes)

    def download(self, array: NDArray[Any], address: int) -> None:
        """Fill a contiguous host array from the device; returns when done."""
        self.call("cuMemcpyDtoH", array.ctypes.data, address, array.nbytes)

    # Streams, events, graphs ------------------------------------------------------------------------------

    def stream(self) -> int:
        """Create a stream that does not wait for the default stream."""
        return int(self.call("cuStreamCreate", NON_BLOCKING))

    def synchronize(self, stream: int) -> None:
        """Wait until the stream is empty."""
        self.call("cuStreamSynchronize", stream)

    def event(self) -> int:
        """Create a timing event."""
        return int(self.call("cuEventCreate", 0))

    def destroy_event(self, event: int) -> None:
        """Free an event."""
        self.call("cuEventDestroy", event)

    def record(self, event: int, stream: int) -> None:
        """Enqueue an event."""
        self.call("cuEventRecord", event, stream)

    def wait(self, event: int) -> None:
        """Wait until the event has happened."""
        self.call("cuEventSynchronize", event)

    def happened(self, event: int) -> bool:
        """Whether the event has happened already."""
        status, _ = self.invoke("cuEventQuery", event)
        if status not in (0, _NOT_READY):
            self._check("cuEventQuery", status)
        return status == 0

    def elapsed_s(self, start: int, end: int) -> float:
        """Seconds between two events that have happened."""
        return float(self.call("cuEventElapsedTime", start, end)) * 1e-3

    def spin(self, stream: int, duration_s: float) -> None:
        """Enqueue a kernel of one thread that lasts `duration_s`."""
        self._check("cuLaunchKernel", self._launch_spin(stream, round(duration_s * 1e9)))

    def begin_capture(self, stream: int) -> None:
        """Start to record the stream's work into a graph instead of running it."""
        self.call("cuStreamBeginCapture", stream, _CAPTURE_RELAXED)

    def end_capture(self, stream: int) -> tuple[int, dict[str, int]]:
        """Stop recording; return the executable graph and its number of nodes by type."""
        graph = self.call("cuStreamEndCapture", stream)
        if not int(graph):
            raise MeasurementError("graph capture was invalidated: the engine made a call that can't be captured")
        try:
            kinds = Counter(_NODE_TYPES.get(kind, f"type_{kind}") for kind in self._node_types(graph))
            return int(self.call("cuGraphInstantiate", graph, 0)), dict(sorted(kinds.items()))
        finally:
            self.call("cuGraphDestroy", graph)

    def abandon_capture(self, stream: int) -> None:
        """Leave capture mode after a failure, whatever state the capture is in."""
        status, outputs = self.invoke("cuStreamEndCapture", stream)
        if not status and int(outputs[0]):
            self.call("cuGraphDestroy", outputs[0])

    @abstractmethod
    def _node_types(self, graph: Any) -> list[int]:
        """Driver's type number of every node of a graph."""

    def launch(self, graph: int, stream: int) -> None:
        """Enqueue one replay of an executable graph."""
        self.call("cuGraphLaunch", graph, stream)

    def destroy_graph(self, graph: int) -> None:
        """Free an executable graph."""
        self.call("cuGraphExecDestroy", graph)

    # Partitions -------------------------------------------------------------------------------------------

    def partition_stream(self, sm_count: int | None) -> int:
        """Stream whose kernels may use `sm_count` SMs only (None: all). Made once, then reused.

        Raises:
            DeviceError: The GPU can't be split so; names the nearest size it offers.
        """
        key = sm_count or self.attribute("sm_count")
        if key not in self._partitions:
            whole = key == self.attribute("sm_count")
            self._partitions[key] = (self.stream(), None) if whole else self._green_stream(key)
        return self._partitions[key][0]

    def _green_stream(self, sm_count: int) -> tuple[int, Any]:
        raise RuntimeUnavailableError(
            f"SM partitions need cuda-bindings, not {self.backend}: pip install cuda-python, or --cuda cuda-bindings"
        )


class CudaBindings(Cuda):
    """NVIDIA's cuda-bindings package."""

    backend = "cuda-bindings"
    _ENUMS: Final = {
        "cuDeviceGetAttribute": ("CUdevice_attribute", 0),
        "cuStreamBeginCapture": ("CUstreamCaptureMode", 1),
        "cuGetErrorName": ("CUresult", 0),
    }

    def __init__(self, device: int = 0) -> None:
        self._driver = importlib.import_module("cuda.bindings.driver")
        super().__init__(device)

    def invoke(self, name: str, *arguments: Any) -> tuple[int, tuple[Any, ...]]:
        """See `Cuda.invoke`."""
        if name in self._ENUMS:
            enum, index = self._ENUMS[name]
            values = list(arguments)
            values[index] = getattr(self._driver, enum)(values[index])
            arguments = tuple(values)
        status, *outputs = getattr(self._driver, name)(*arguments)
        return int(status), tuple(outputs)

    def _launch_spin(self, stream: int, nanoseconds: int) -> int:
        values = ((nanoseconds,), (ctypes.c_uint64,))
        status, _ = self.invoke("cuLaunchKernel", self._spin, 1, 1, 1, 1, 1, 1, 0, stream, values, 0)
        return status

    def _node_types(self, graph: Any) -> list[int]:
        _, count = self.call("cuGraphGetNodes", graph, 0)
        nodes, _ = self.call("cuGraphGetNodes", graph, count)
        return [int(self.call("cuGraphNodeGetType", node)) for node in nodes]

    def _green_stream(self, sm_count: int) -> tuple[int, Any]:
        kind = self._driver.CUdevResourceType(_RESOURCE_SM)
        whole = self.call("cuDeviceGetDevResource", self._handle, kind)
        groups, _, _ = self.call("cuDevSmResourceSplitByCount", 1, whole, 0, sm_count)
        offered = int(groups[0].sm.smCount) if groups else 0
        if offered != sm_count:
            raise DeviceError(f"{self.name} can't be split into {sm_count} SMs; the nearest partition has {offered}")
        description = self.call("cuDevResourceGenerateDesc", groups[:1], 1)
        green = self.call("cuGreenCtxCreate", description, self._handle, 1)
        stream = self.call("cuGreenCtxStreamCreate", green, NON_BLOCKING, 0)
        return int(stream), green


def _class_of(backend: str) -> type[Cuda]:
    if backend == "cuda-bindings":
        return CudaBindings
    module = importlib.import_module("perfpred.cuda_ctypes")
    return vars(module)["PyCuda" if backend == "pycuda" else "CudaCtypes"]  # type: ignore[no-any-return]


def open_cuda(backend: str = "auto", device: int = 0, partitions: bool = False) -> Cuda:
    """Open a device.

    Args:
        backend: One of `BACKENDS`, or `auto` for the first that is installed.
        device: Ordinal of the device.
        partitions: True where SM partitions will be asked for; `auto` then starts at cuda-bindings.

    Raises:
        RuntimeUnavailableError: No binding, or no driver.
        DeviceError: No such device.
    """
    if backend not in (*BACKENDS, "auto"):
        raise UsageError(f"unknown CUDA backend '{backend}'; known: auto, {', '.join(BACKENDS)}")
    names = [backend] if backend != "auto" else list(BACKENDS[1:] if partitions else BACKENDS)
    missing = []
    for name in names:
        try:
            return _class_of(name)(device)
        except ImportError:
            missing.append(name)
        except RuntimeError as error:  # cuda-bindings reports a missing driver so
            raise RuntimeUnavailableError(f"no usable NVIDIA driver on this machine: {error}") from error
    raise RuntimeUnavailableError(f"CUDA binding {missing[0]} is not installed: pip install perfpred[tensorrt]")

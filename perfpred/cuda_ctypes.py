"""The driver library through ctypes, and PyCUDA on top of it."""

from __future__ import annotations

import atexit
import ctypes
import importlib
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from perfpred.cuda import NON_BLOCKING, SPIN_PTX, Cuda
from perfpred.errors import RuntimeUnavailableError


class CudaCtypes(Cuda):
    """The driver library itself, for machines with nothing but the driver."""

    backend = "ctypes"
    # Argument types in order: capitals are outputs. p handle or address, i 32-bit, q 64-bit, f float, b bytes.
    _SIGNATURES: Final = {
        "cuInit": "i",
        "cuDriverGetVersion": "I",
        "cuGetErrorName": "iB",
        "cuDeviceGetCount": "I",
        "cuDeviceGet": "Ii",
        "cuDeviceGetName": "Nii",
        "cuDeviceGetPCIBusId": "Nii",
        "cuDeviceGetAttribute": "Iii",
        "cuDevicePrimaryCtxRetain": "Pi",
        "cuCtxSetCurrent": "p",
        "cuCtxSynchronize": "",
        "cuLibraryLoadData": "Ppppippi",
        "cuLibraryGetKernel": "Ppb",
        "cuModuleLoadData": "Pp",
        "cuModuleGetFunction": "Ppb",
        "cuMemGetInfo": "QQ",
        "cuMemAlloc": "Pq",
        "cuMemFree": "p",
        "cuMemcpyHtoD": "ppq",
        "cuMemcpyDtoH": "ppq",
        "cuStreamCreate": "Pi",
        "cuStreamSynchronize": "p",
        "cuStreamBeginCapture": "pi",
        "cuStreamEndCapture": "pP",
        "cuEventCreate": "Pi",
        "cuEventDestroy": "p",
        "cuEventRecord": "pp",
        "cuEventSynchronize": "p",
        "cuEventQuery": "p",
        "cuEventElapsedTime": "Fpp",
        "cuGraphInstantiate": "Ppq",
        "cuGraphDestroy": "p",
        "cuGraphLaunch": "pp",
        "cuGraphExecDestroy": "p",
    }
    _EXPORTED: Final = {
        **{
            name: f"{name}_v2"
            for name in (
                "cuMemGetInfo",
                "cuMemAlloc",
                "cuMemFree",
                "cuMemcpyHtoD",
                "cuMemcpyDtoH",
                "cuStreamBeginCapture",
                "cuEventDestroy",
            )
        },
        "cuGraphInstantiate": "cuGraphInstantiateWithFlags",
    }
    _TYPES: Final[dict[str, Any]] = {
        "p": ctypes.c_void_p,
        "i": ctypes.c_int,
        "q": ctypes.c_uint64,
        "f": ctypes.c_float,
        "b": ctypes.c_char_p,
    }

    def __init__(self, device: int = 0) -> None:
        try:
            self._library = ctypes.CDLL("libcuda.so.1")
        except OSError as error:
            raise RuntimeUnavailableError(
                "no NVIDIA driver on this machine (libcuda.so.1 is missing): install the driver"
            ) from error
        super().__init__(device)

    def invoke(self, name: str, *arguments: Any) -> tuple[int, tuple[Any, ...]]:
        """See `Cuda.invoke`."""
        function = getattr(self._library, self._EXPORTED.get(name, name))
        given = iter(arguments)
        passed: list[Any] = []
        outputs: list[Any] = []
        for kind in self._SIGNATURES[name]:
            if kind == "N":
                outputs.append(ctypes.create_string_buffer(256))
                passed.append(outputs[-1])
            elif kind.isupper():
                outputs.append(self._TYPES[kind.lower()]())
                passed.append(ctypes.byref(outputs[-1]))
            else:
                passed.append(self._TYPES[kind](next(given)))
        return function(*passed), tuple(output.value or 0 for output in outputs)

    def _node_types(self, graph: Any) -> list[int]:
        count, kind = ctypes.c_size_t(), ctypes.c_int()
        handle = ctypes.c_void_p(graph)
        self._check("cuGraphGetNodes", self._library.cuGraphGetNodes(handle, None, ctypes.byref(count)))
        nodes = (ctypes.c_void_p * count.value)()
        self._check("cuGraphGetNodes", self._library.cuGraphGetNodes(handle, nodes, ctypes.byref(count)))
        kinds = []
        for node in nodes:
            status = self._library.cuGraphNodeGetType(ctypes.c_void_p(node), ctypes.byref(kind))
            self._check("cuGraphNodeGetType", status)
            kinds.append(kind.value)
        return kinds

    def _launch_spin(self, stream: int, nanoseconds: int) -> int:
        value = ctypes.c_uint64(nanoseconds)
        values = (ctypes.c_void_p * 1)(ctypes.addressof(value))
        one = [ctypes.c_uint(1)] * 6
        pointer = ctypes.c_void_p
        return int(
            self._library.cuLaunchKernel(
                pointer(self._spin), *one, ctypes.c_uint(0), pointer(stream), values, pointer(None)
            )
        )


class PyCuda(CudaCtypes):
    """PyCUDA for streams, events, memory and the spin kernel; graphs, which it lacks, through the driver."""

    backend = "pycuda"

    def __init__(self, device: int = 0) -> None:
        self._pycuda = importlib.import_module("pycuda.driver")
        self._objects: dict[int, Any] = {}
        super().__init__(device)
        # The handle is cached: PyCUDA and every runtime then share the primary context.
        self._primary = self._pycuda.Device(device).retain_primary_context()
        self._primary.push()
        atexit.register(self._primary.pop)  # PyCUDA aborts the process where a context is left behind
        self._kernel = self._pycuda.module_from_buffer(SPIN_PTX).get_function("spin")

    def _keep(self, handle: int, thing: Any) -> int:
        self._objects[handle] = thing
        return handle

    def malloc(self, nbytes: int) -> int:
        """See `Cuda.malloc`."""
        allocation = self._pycuda.mem_alloc(max(nbytes, 1))
        return self._keep(int(allocation), allocation)

    def free(self, address: int) -> None:
        """See `Cuda.free`."""
        self._objects.pop(address).free()

    def upload(self, address: int, array: NDArray[Any]) -> None:
        """See `Cuda.upload`."""
        self._pycuda.memcpy_htod(address, np.ascontiguousarray(array))

    def download(self, array: NDArray[Any], address: int) -> None:
        """See `Cuda.download`."""
        self._pycuda.memcpy_dtoh(array, address)

    def stream(self) -> int:
        """See `Cuda.stream`."""
        stream = self._pycuda.Stream(NON_BLOCKING)
        return self._keep(int(stream.handle), stream)

    def synchronize(self, stream: int) -> None:
        """See `Cuda.synchronize`."""
        self._objects[stream].synchronize()

    def event(self) -> int:
        """See `Cuda.event`."""
        event = self._pycuda.Event()
        return self._keep(id(event), event)

    def destroy_event(self, event: int) -> None:
        """See `Cuda.destroy_event`."""
        del self._objects[event]

    def record(self, event: int, stream: int) -> None:
        """See `Cuda.record`."""
        self._objects[event].record(self._objects[stream])

    def wait(self, event: int) -> None:
        """See `Cuda.wait`."""
        self._objects[event].synchronize()

    def happened(self, event: int) -> bool:
        """See `Cuda.happened`."""
        return bool(self._objects[event].query())

    def elapsed_s(self, start: int, end: int) -> float:
        """See `Cuda.elapsed_s`."""
        return float(self._objects[end].time_since(self._objects[start])) * 1e-3

    def spin(self, stream: int, duration_s: float) -> None:
        """See `Cuda.spin`."""
        nanoseconds = np.uint64(round(duration_s * 1e9))
        self._kernel(nanoseconds, block=(1, 1, 1), grid=(1, 1), stream=self._objects[stream])

"""A GPU that exists in the clock only: streams are busy until a point in time, events happen at one."""

from __future__ import annotations

import time
from collections import Counter
from typing import Any

from perfpred.cuda import Cuda
from perfpred.errors import MeasurementError


class FakeCuda(Cuda):
    """Runs in real time, so the measuring loop is exercised as on a device."""

    backend = "fake"

    def __init__(self, latency_s: float = 3e-4, submit_s: float = 0.0, sms: int = 132) -> None:
        self.device = 0
        self._partitions = {}
        self.latency_s = latency_s
        self.submit_s = submit_s
        self.sms = sms
        self.busy_until: Counter[int] = Counter()
        self.events: dict[int, float] = {}
        self.capturing = False
        self.graphs = 0
        self.launches = 0
        self.nodes = {"kernel": 5}
        self.refuse: str | None = None

    def invoke(self, name: str, *arguments: Any) -> tuple[int, tuple[Any, ...]]:
        raise AssertionError(f"{name} reached the driver")

    def _launch_spin(self, stream: int, nanoseconds: int) -> int:
        self._work(stream, nanoseconds * 1e-9)
        return 0

    def _node_types(self, graph: Any) -> list[int]:
        return []

    def _work(self, stream: int, seconds: float) -> None:
        self.busy_until[stream] = max(self.busy_until[stream], time.perf_counter()) + seconds

    def attribute(self, name: str) -> int:
        return {"sm_count": self.sms, "major": 9, "minor": 0, "l2_bytes": 50 << 20}[name]

    def stream(self) -> int:
        return len(self._partitions) + 1

    def _green_stream(self, sm_count: int) -> tuple[int, Any]:
        return self.stream(), "green"

    def memory(self) -> tuple[int, int]:
        return 1 << 30, 2 << 30

    def synchronize(self, stream: int) -> None:
        time.sleep(max(0.0, self.busy_until[stream] - time.perf_counter()))

    def event(self) -> int:
        self.events[len(self.events) + 1] = 0.0
        return len(self.events)

    def destroy_event(self, event: int) -> None:
        pass

    def record(self, event: int, stream: int) -> None:
        self.events[event] = max(self.busy_until[stream], time.perf_counter())

    def wait(self, event: int) -> None:
        time.sleep(max(0.0, self.events[event] - time.perf_counter()))

    def happened(self, event: int) -> bool:
        return time.perf_counter() >= self.events[event]

    def elapsed_s(self, start: int, end: int) -> float:
        return self.events[end] - self.events[start]

    def begin_capture(self, stream: int) -> None:
        self.capturing = True

    def end_capture(self, stream: int) -> tuple[int, dict[str, int]]:
        self.capturing = False
        if self.refuse == "capture":
            raise MeasurementError("graph capture was invalidated")
        self.graphs += 1
        return 7, dict(self.nodes)

    def abandon_capture(self, stream: int) -> None:
        self.capturing = False

    def launch(self, graph: int, stream: int) -> None:
        if self.submit_s:
            time.sleep(self.submit_s)
        self.launches += 1
        self._work(stream, self.latency_s)

    def destroy_graph(self, graph: int) -> None:
        self.graphs -= 1


class FakeEngine:
    """Submits work of the device's latency."""

    def __init__(self, cuda: FakeCuda, error: Exception | None = None) -> None:
        self.cuda = cuda
        self.error = error
        self.enqueued = 0

    def enqueue(self, stream: int) -> None:
        if self.error:
            raise self.error
        self.enqueued += 1
        if not self.cuda.capturing:
            self.cuda._work(stream, self.cuda.latency_s)

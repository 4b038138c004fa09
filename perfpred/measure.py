"""The measuring loop, written once for every runtime: warm-up, graph capture, queued replay, statistics, flags.

`gpu_compute` is queued replay: the stream is first held busy by a spin kernel, then replays are enqueued, each
between its own two events. A replay counts only if its first event had not yet happened when the host had finished
submitting it, so that no sample holds host time. `host_sync` is event, replay, event, synchronise.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final, Protocol

import numpy as np
from numpy.typing import NDArray

from perfpred.cuda import Cuda
from perfpred.errors import MeasurementError

Samples = NDArray[np.float32]

#: Quality limits: coefficient of variation, interquartile range over median, enqueue time over GPU time.
MAX_CV: Final = 0.025
MAX_IQR: Final = 0.1
MAX_ENQUEUE: Final = 0.8
#: Flag of rows taken on a CPU while other workers measured on its other cores: they share caches, memory and clock.
SHARED: Final = "shared"

_SPIN_S: Final = 0.5e-3
_MAX_SPINS: Final = 64


class Engine(Protocol):
    """A built network as the loop sees it."""

    def enqueue(self, stream: int) -> None:
        """Submit one inference on a stream and return without waiting."""


@dataclass(frozen=True, kw_only=True)
class Loop:
    """How long to warm up and how often to repeat; the defaults are the reference protocol.

    Attributes:
        warmup_runs: Least number of warm-up runs.
        warmup_s: Least warm-up time.
        warmup_limit_s: Warm-up stops here even where successive windows still differ.
        stable: Relative difference of two successive windows that counts as stable.
        replays: Least number of queued replays.
        max_replays: Number of queued replays of a fast network.
        limit_s: Time after which a slow network stops short of `replays`; the row is then flagged.
        capture: Replay a captured graph; without it every sample submits the engine anew.
    """

    warmup_runs: int = 10
    warmup_s: float = 0.1
    warmup_limit_s: float = 0.6
    stable: float = 0.01
    replays: int = 100
    max_replays: int = 200
    limit_s: float = 3.0
    capture: bool = True


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """What the loop measured; times in seconds.

    Attributes:
        kind: Latency kind of `latency_s`: `gpu_compute` or `cpu`.
        latency_s: Median of `samples`.
        samples: Every sample behind the label.
        host_sync_s: Median of event, replay, event, synchronise; None on a CPU.
        host_sync_samples: Every sample behind it.
        enqueue_s: Median host time to submit one replay.
        isolated_s: Median wall-clock time with a synchronise after each run, where asked for.
        back_to_back_s: Time per run of an uninterrupted train of replays, where asked for.
        warmup_runs: Runs before the first sample.
        graph_nodes: Number of nodes of the captured graph by type; empty without capture.
        flags: What is wrong with the row, in words.
        seconds: Where the wall time went: warmup, queued, host_sync, detail.
    """

    kind: str
    latency_s: float
    samples: Samples
    host_sync_s: float | None = None
    host_sync_samples: Samples = field(default_factory=lambda: np.empty(0, np.float32))
    enqueue_s: float | None = None
    isolated_s: float | None = None
    back_to_back_s: float | None = None
    warmup_runs: int = 0
    graph_nodes: dict[str, int] = field(default_factory=dict)
    flags: tuple[str, ...] = ()
    seconds: dict[str, float] = field(default_factory=dict)


def measure_gpu(
    cuda: Cuda, engine: Engine, stream: int, loop: Loop | None = None, *, detail: bool = False
) -> Measurement:
    """Measure an engine that has already run once on `stream`.

    Args:
        cuda: Open device.
        engine: Anything that can be enqueued.
        stream: Stream of the partition to measure on.
        loop: Repetitions; the reference protocol by default.
        detail: Also time isolated and back-to-back runs.

    Raises:
        MeasurementError: Capture or a CUDA call failed.
    """
    loop = loop or Loop()
    graph, nodes = _capture(cuda, engine, stream) if loop.capture else (None, {})

    def replay() -> None:
        if graph is None:
            engine.enqueue(stream)
        else:
            cuda.launch(graph, stream)

    events = [cuda.event() for _ in range(2 * _MAX_BATCH + 1)]
    clock = _Laps()
    try:
        estimate_s, runs, steady = _warm_up(cuda, replay, stream, events, loop)
        clock.lap("warmup")
        wanted = _replays(estimate_s, loop)
        samples, enqueue_s, dry = _queued(cuda, replay, stream, events, wanted, estimate_s)
        clock.lap("queued")
        synchronised = _synchronised(cuda, replay, stream, events, _between(int(0.05 / estimate_s), 10, 50))
        clock.lap("host_sync")
        isolated_s, back_to_back_s = (
            _detail(cuda, replay, stream, events, _between(int(0.1 / estimate_s), 10, 50)) if detail else (None, None)
        )
        clock.lap("detail")
    finally:
        for event in events:
            cuda.destroy_event(event)
        if graph is not None:
            cuda.destroy_graph(graph)
    latency_s, host_sync_s = float(np.median(samples)), float(np.median(synchronised))
    flags = quality_flags(samples, enqueue_s=enqueue_s)
    conditions = {
        # A replay launched from a captured graph has next to no submission, so the two labels differ by noise only.
        "queue_ran_dry": dry or latency_s > host_sync_s * (1 + MAX_CV),
        "unstable_warmup": not steady,
        "few_replays": len(samples) < loop.replays,
    }
    return Measurement(
        kind="gpu_compute",
        latency_s=latency_s,
        samples=samples,
        host_sync_s=host_sync_s,
        host_sync_samples=synchronised,
        enqueue_s=enqueue_s,
        isolated_s=isolated_s,
        back_to_back_s=back_to_back_s,
        warmup_runs=runs,
        graph_nodes=nodes,
        flags=(*flags, *(name for name, holds in conditions.items() if holds)),
        seconds=clock.laps,
    )


def measure_cpu(
    run: Callable[[], None], *, warmup_s: float = 0.3, runs: int = 50, least: int = 10, limit_s: float = 3.0
) -> Measurement:
    """Measure a blocking inference by wall clock; the latency kind is `cpu`.

    Args:
        run: One inference, returning when done.
        warmup_s: Least warm-up time; at least three runs.
        runs: Samples wanted.
        least: Samples taken even where `limit_s` is over.
        limit_s: Time limit for the samples.
    """
    clock = _Laps()
    warmups, begin = 0, time.perf_counter()
    while warmups < 3 or time.perf_counter() - begin < warmup_s:
        run()
        warmups += 1
    clock.lap("warmup")
    times: list[float] = []
    begin = time.perf_counter()
    while len(times) < runs and (len(times) < least or time.perf_counter() - begin < limit_s):
        times.append(_wall_s(run))
    clock.lap("samples")
    samples = np.asarray(times, np.float32)
    return Measurement(
        kind="cpu",
        latency_s=float(np.median(samples)),
        samples=samples,
        warmup_runs=warmups,
        flags=quality_flags(samples),
        seconds=clock.laps,
    )


def quality_flags(samples: Samples, *, enqueue_s: float | None = None) -> tuple[str, ...]:
    """Name what makes a series of samples doubtful: `cv`, `iqr` and `enqueue`."""
    values = samples.astype(np.float64)
    median = float(np.median(values))
    low, high = np.quantile(values, [0.25, 0.75])
    flags = []
    if values.std() > MAX_CV * values.mean():
        flags.append("cv")
    if high - low > MAX_IQR * median:
        flags.append("iqr")
    if enqueue_s is not None and enqueue_s > MAX_ENQUEUE * median:
        flags.append("enqueue")
    return tuple(flags)


_MAX_BATCH: Final = 25


def _between(value: int, low: int, high: int) -> int:
    return max(low, min(high, value))


def _replays(estimate_s: float, loop: Loop) -> int:
    affordable = int(loop.limit_s / estimate_s)
    fast = _between(int(0.12 / estimate_s), loop.replays, loop.max_replays)
    return fast if affordable >= loop.replays else max(20, affordable)


def _wall_s(action: Callable[[], None]) -> float:
    begin = time.perf_counter()
    action()
    return time.perf_counter() - begin


class _Laps:
    """Seconds between successive marks."""

    def __init__(self) -> None:
        self.laps: dict[str, float] = {}
        self._last = time.perf_counter()

    def lap(self, name: str) -> None:
        now = time.perf_counter()
        self.laps[name] = round(now - self._last, 4)
        self._last = now


def _capture(cuda: Cuda, engine: Engine, stream: int) -> tuple[int, dict[str, int]]:
    cuda.synchronize(stream)
    cuda.begin_capture(stream)
    try:
        engine.enqueue(stream)
    except BaseException:
        cuda.abandon_capture(stream)
        raise
    graph, nodes = cuda.end_capture(stream)
    if nodes.get("host"):
        # A callback into the runtime frees what it was captured with; a second replay would free it again.
        cuda.destroy_graph(graph)
        raise MeasurementError(f"the captured graph calls back into the host {nodes['host']} times")
    return graph, nodes


def _warm_up(
    cuda: Cuda, replay: Callable[[], None], stream: int, events: Sequence[int], loop: Loop
) -> tuple[float, int, bool]:
    """Replay until stable; return seconds per run, the number of runs and whether it became stable."""
    begin = time.perf_counter()
    runs, window, before = 0, 1, 0.0
    while True:
        cuda.record(events[0], stream)
        for _ in range(window):
            replay()
        cuda.record(events[1], stream)
        cuda.wait(events[1])
        runs += window
        per_run_s = max(cuda.elapsed_s(events[0], events[1]) / window, 1e-7)
        spent = time.perf_counter() - begin
        steady = abs(per_run_s - before) <= loop.stable * per_run_s
        if runs >= loop.warmup_runs and spent >= loop.warmup_s and (steady or spent >= loop.warmup_limit_s):
            return per_run_s, runs, steady
        before, window = per_run_s, _between(int(0.02 / per_run_s), 1, 50)


def _queued(
    cuda: Cuda, replay: Callable[[], None], stream: int, events: Sequence[int], wanted: int, estimate_s: float
) -> tuple[Samples, float, bool]:
    """Queued replay; return samples, median submission time and whether the queue could not be kept full."""
    held, pairs = events[-1], [(events[2 * i], events[2 * i + 1]) for i in range(_MAX_BATCH)]
    good: list[float] = []
    dirty: list[float] = []
    enqueue: list[float] = []
    batch, spins = _between(int(0.025 / estimate_s), 5, _MAX_BATCH), 1
    while len(good) < wanted and len(dirty) < wanted:
        for _ in range(spins):
            cuda.spin(stream, _SPIN_S)
        cuda.record(held, stream)
        clean = []
        for start, end in pairs[:batch]:
            begin = time.perf_counter()
            cuda.record(start, stream)
            replay()
            enqueue.append(time.perf_counter() - begin)
            clean.append(not cuda.happened(start))
            cuda.record(end, stream)
        cuda.wait(pairs[batch - 1][1])
        for (start, end), queued in zip(pairs[:batch], clean, strict=True):
            (good if queued else dirty).append(cuda.elapsed_s(start, end))
        if not all(clean):
            spins = min(_MAX_SPINS, 2 * spins)
    dry = len(good) < wanted
    samples = np.asarray(good + dirty if dry else good, np.float64)
    return np.round(samples, 9).astype(np.float32), float(np.median(enqueue)), dry


def _synchronised(cuda: Cuda, replay: Callable[[], None], stream: int, events: Sequence[int], count: int) -> Samples:
    samples = []
    cuda.synchronize(stream)
    for _ in range(count):
        cuda.record(events[0], stream)
        replay()
        cuda.record(events[1], stream)
        cuda.wait(events[1])
        samples.append(cuda.elapsed_s(events[0], events[1]))
    return np.round(samples, 9).astype(np.float32)


def _detail(
    cuda: Cuda, replay: Callable[[], None], stream: int, events: Sequence[int], count: int
) -> tuple[float, float]:
    """Isolated (wall clock, one run at a time) and back-to-back (one uninterrupted train) seconds per run."""

    def isolated() -> None:
        replay()
        cuda.synchronize(stream)

    alone = float(np.median([_wall_s(isolated) for _ in range(count)]))
    cuda.spin(stream, _SPIN_S)
    cuda.record(events[0], stream)
    for _ in range(count):
        replay()
    cuda.record(events[1], stream)
    cuda.wait(events[1])
    return alone, cuda.elapsed_s(events[0], events[1]) / count

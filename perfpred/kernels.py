"""Kernel names and durations of an engine through CUPTI activity, as torch.profiler records it.

Two recordings make one table. A plain run, during which ONNX Runtime's own profile is on, gives the launch order and
which node launched what (by host time); replays of the captured graph give the durations without launch gaps.
"""

from __future__ import annotations

import bisect
import importlib
import importlib.util
import json
import os
import tempfile
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from statistics import median
from typing import Any, Final

from perfpred.cuda import Cuda
from perfpred.errors import MeasurementError

_DEVICE_WORK: Final = ("kernel", "gpu_memcpy", "gpu_memset")
_LAUNCHES: Final = ("cuda_runtime", "cuda_driver")


def available() -> bool:
    """Whether torch.profiler can be imported here."""
    return importlib.util.find_spec("torch") is not None


@lru_cache(maxsize=1)
def warm_up() -> None:
    """Load the profiler and make its first recording, which takes seconds; later calls do nothing."""
    record_activity(lambda: None).unlink()


def record_activity(action: Callable[[], None]) -> Path:
    """Record device work during `action`, which submits work and waits for it.

    Returns:
        Chrome trace; `activity_of` reads and removes it.
    """
    profiler = importlib.import_module("torch.profiler")
    activities = [profiler.ProfilerActivity.CPU, profiler.ProfilerActivity.CUDA]
    with profiler.profile(activities=activities) as recording:
        action()
    handle, path = tempfile.mkstemp(prefix="perfpred-trace-", suffix=".json")
    os.close(handle)
    # Written at once: the next recording takes away what the launches of this one were.
    recording.export_chrome_trace(path)
    return Path(path)


def activity_of(recording: Path) -> list[dict[str, Any]]:
    """Device work of a recording, which is removed; see `activity_from_trace`."""
    try:
        return activity_from_trace(json.loads(recording.read_text()))
    finally:
        recording.unlink(missing_ok=True)


def activity_from_trace(trace: dict[str, Any]) -> list[dict[str, Any]]:
    """Device work of a Chrome trace written by torch.profiler, in order of execution.

    Returns:
        One record per kernel, copy or fill: `name`, `time_s`, `start_s`, and `launched_ns` (host time of the launch,
        nanoseconds since the epoch), None where the launch was not seen.
    """
    base_ns = int(trace.get("baseTimeNanoseconds", 0))
    events = [event for event in trace["traceEvents"] if event.get("ph") == "X"]
    launches = {
        event["args"]["correlation"]: base_ns + round(float(event["ts"]) * 1000)
        for event in events
        if event.get("cat") in _LAUNCHES and "correlation" in event.get("args", {})
    }
    work = sorted((event for event in events if event.get("cat") in _DEVICE_WORK), key=lambda event: float(event["ts"]))
    return [
        {
            "name": event["name"],
            "time_s": round(float(event["dur"]) * 1e-6, 9),
            "start_s": round(float(event["ts"]) * 1e-6, 9),
            "launched_ns": launches.get(event["args"].get("correlation")),
        }
        for event in work
    ]


def node_windows(profile: Path, start_ns: int, run: int = -1) -> list[tuple[int, int, str, str]]:
    """Host-time windows of the nodes of one run in an ONNX Runtime profile.

    Args:
        profile: JSON file of the session's profile.
        start_ns: `session.get_profiling_start_time_ns()`.
        run: Which run, -1 for the last.

    Returns:
        Begin and end in nanoseconds since the epoch, node name, operator type; in order.
    """
    events = json.loads(profile.read_text())
    runs = [e for e in events if e.get("cat") == "Session" and e.get("name") == "model_run"]
    chosen = sorted(runs, key=lambda e: float(e["ts"]))[run]
    begin, end = float(chosen["ts"]), float(chosen["ts"]) + float(chosen["dur"])
    windows = []
    for event in events:
        if event.get("cat") != "Node" or not event["name"].endswith("_kernel_time"):
            continue
        if begin <= event["ts"] <= end:
            first = start_ns + int(event["ts"]) * 1000
            name = event["name"][: -len("_kernel_time")]
            operator = event.get("args", {}).get("op_name", "")
            windows.append((first, first + int(event["dur"]) * 1000, name, operator))
    return sorted(windows)


def attribute(
    launched: Sequence[dict[str, Any]], windows: Sequence[tuple[int, int, str, str]], slack_ns: int = 2000
) -> list[tuple[str, str] | None]:
    """Node and operator type behind each launch; None where no node's window holds it.

    Args:
        launched: Records of `activity_of` for one plain run.
        windows: Of the same run.
        slack_ns: Windows are rounded to microseconds.
    """
    begins = [window[0] for window in windows]
    found: list[tuple[str, str] | None] = []
    for record in launched:
        at = record["launched_ns"]
        index = bisect.bisect_right(begins, (at or 0) + slack_ns) - 1
        inside = at is not None and index >= 0 and at <= windows[index][1] + slack_ns
        if inside and at < windows[index][0] and index and at <= windows[index - 1][1]:
            index -= 1
        found.append((windows[index][2], windows[index][3]) if inside else None)
    return found


@dataclass(frozen=True, kw_only=True)
class Trace:
    """What was recorded of an engine while it had the device for itself.

    Attributes:
        plain: Recording of one plain run.
        replayed: Recording of graph replays.
        replays: Their number.
        profile: The runtime's own profile of the plain run.
        profile_start_ns: Its zero, nanoseconds since the epoch.
    """

    plain: Path
    replayed: Path
    replays: int
    profile: Path
    profile_start_ns: int


def record_engine(cuda: Cuda, engine: Any, stream: int, replays: int = 10) -> Trace:
    """Record the kernels of a built ONNX Runtime engine whose session profiles itself.

    Args:
        cuda: Open device.
        engine: With `enqueue`, `end_profiling` and `profiling_start_ns`.
        stream: Stream it was built for.
        replays: Graph replays behind each duration.
    """

    def plain_run() -> None:
        engine.enqueue(stream)
        cuda.synchronize(stream)

    plain = record_activity(plain_run)
    start_ns = engine.profiling_start_ns
    profile = Path(engine.end_profiling())
    cuda.begin_capture(stream)
    try:
        engine.enqueue(stream)
    except BaseException:
        cuda.abandon_capture(stream)
        raise
    graph, _ = cuda.end_capture(stream)

    def replay() -> None:
        for _ in range(replays):
            cuda.launch(graph, stream)
        cuda.synchronize(stream)

    try:
        replay()
        replayed = record_activity(replay)
    finally:
        cuda.destroy_graph(graph)
    return Trace(plain=plain, replayed=replayed, replays=replays, profile=profile, profile_start_ns=start_ns)


def columns_of(trace: Trace) -> dict[str, list[Any]]:
    """Kernels of a recorded engine; needs the device no more.

    Returns:
        Columns `names` (distinct kernel names), `name` (index into them), `time_s` (median over replays), `node`,
        `op_type` (None where not attributed); one entry per kernel, copy or fill in order of execution.

    Raises:
        MeasurementError: Not one kernel falls into the time of a node.
    """
    plain, replayed = activity_of(trace.plain), activity_of(trace.replayed)
    windows = node_windows(trace.profile, trace.profile_start_ns)
    trace.profile.unlink(missing_ok=True)
    nodes = attribute(plain, windows)
    if not any(nodes):
        launches = [record["launched_ns"] for record in plain if record["launched_ns"]]
        raise MeasurementError(
            f"no kernel falls into a node: {len(plain)} kernels, launches seen {len(launches)} from "
            f"{min(launches, default=0)} to {max(launches, default=0)} ns, {len(windows)} nodes from "
            f"{min((w[0] for w in windows), default=0)} to {max((w[1] for w in windows), default=0)} ns"
        )
    return kernel_columns(plain, nodes, replayed, trace.replays)


def kernel_columns(
    plain: Sequence[dict[str, Any]],
    nodes: Sequence[tuple[str, str] | None],
    replayed: Sequence[dict[str, Any]],
    count: int,
) -> dict[str, list[Any]]:
    """Join the launch order of a plain run with the durations of graph replays.

    Args:
        plain: Device work of one plain run.
        nodes: Node and operator of each, same order.
        replayed: Device work of `count` replays.
        count: Number of replays.

    Returns:
        Columns as `columns_of` gives them. Durations are those of the plain run where the replays differ among
        themselves.
    """
    per_run, rest = divmod(len(replayed), count)
    runs = [replayed[i * per_run : (i + 1) * per_run] for i in range(count)]
    orders = [[record["name"] for record in run] for run in runs]
    usable = bool(per_run) and not rest and all(order == orders[0] for order in orders)
    order = orders[0] if usable else [record["name"] for record in plain]
    times = (
        [median(run[i]["time_s"] for run in runs) for i in range(per_run)]
        if usable
        else [record["time_s"] for record in plain]
    )
    # A copy may exist in one of the two only, so nodes are matched by the occurrence of a name.
    known: dict[str, deque[tuple[str, str] | None]] = {}
    for record, node in zip(plain, nodes, strict=True):
        known.setdefault(record["name"], deque()).append(node)
    matched = [known[name].popleft() if known.get(name) else None for name in order]
    names = sorted(set(order))
    return {
        "names": names,
        "name": [names.index(name) for name in order],
        "time_s": [round(time_s, 9) for time_s in times],
        "node": [node[0] if node else None for node in matched],
        "op_type": [node[1] if node else None for node in matched],
    }

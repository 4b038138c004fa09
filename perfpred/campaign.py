"""A campaign: units go to worker processes, records come back, and whatever dies costs one row at most.

Preparation (CPU) runs ahead of measurement in processes of its own. One thread per device talks to one worker
process over pipes; this process is the only one that writes records.
"""

from __future__ import annotations

import contextlib
import os
import queue
import shutil
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Any, Final

from perfpred.child import (
    PREPARE_TIMEOUT_S,
    START_TIMEOUT_S,
    Child,
    ChildLostError,
    Device,
    RequestFailedError,
    failure,
    identity_of,
    measure_unit,
    worker_command,
)
from perfpred.errors import MeasurementError, UsageError
from perfpred.measure import SHARED
from perfpred.prepare import graph_digest
from perfpred.raw import RawStore
from perfpred.unit import Unit, engine_id, engine_key

_PREFIX: Final = "perfpred-campaign-"


def _memory_folder() -> Path:
    shared = Path("/dev/shm")
    return shared if os.access(shared, os.W_OK) else Path(tempfile.gettempdir())


def _remove_abandoned(parent: Path) -> None:
    """Remove prepared models of campaigns that were killed."""
    for folder in parent.glob(f"{_PREFIX}*"):
        pid = folder.name[len(_PREFIX) :].partition("-")[0]
        if pid.isdigit() and not Path(f"/proc/{pid}").exists():
            shutil.rmtree(folder, ignore_errors=True)


@dataclass
class _Job:
    """Neighbouring units of a plan that share one prepared model."""

    number: int
    units: list[Unit]
    path: Path
    digest: str
    folder: Path
    model: str = ""
    failure: dict[str, Any] | None = None


@dataclass
class Progress:
    """How far a campaign is.

    Attributes:
        planned: Units of the plan.
        skipped: Units that had a record before.
        good: Rows measured now.
        failed: Rows recorded as failures now, by error class.
        build_s: Seconds in which workers built, summed over workers.
        measure_s: Seconds in which devices measured, summed over devices.
        wall_s: Seconds since a worker was ready, summed over workers.
        stopped: Why the campaign stopped early; empty where it ran to its end.
    """

    planned: int = 0
    skipped: int = 0
    good: int = 0
    failed: Counter[str] = field(default_factory=Counter)
    build_s: float = 0.0
    measure_s: float = 0.0
    wall_s: float = 0.0
    stopped: str = ""

    def count(self, record: Mapping[str, Any]) -> None:
        """Add a row that was written now."""
        if record["status"] == "good":
            self.good += 1
        else:
            self.failed[f"{record['error']['stage']}: {record['error']['class']}"] += 1

    @property
    def done(self) -> int:
        """Rows written now."""
        return self.good + sum(self.failed.values())

    @property
    def left(self) -> int:
        """Units still without a record."""
        return self.planned - self.skipped - self.done


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How a campaign runs.

    Attributes:
        commands: Worker command of each device.
        workers: Workers that share a device: while one measures, the others are stopped.
        clear: Let another process run a short kernel on the device before each measurement.
        preparers: Processes that prepare networks ahead.
        preparer: Their command.
        row_timeout_s: A row that takes longer is a failure and its worker is killed.
        deadline_s: No row is started later than this after the start; None for no limit.
        retry_failed: Measure again what has a failure recorded.
        scratch: Folder for prepared models; a memory-backed one by default.
        logs: Folder for what workers print; None discards it.
    """

    commands: Sequence[Sequence[str]]
    workers: int = 1
    clear: bool = False
    preparers: int = 1
    preparer: Sequence[str] = ()
    row_timeout_s: float = 180.0
    deadline_s: float | None = None
    retry_failed: bool = False
    scratch: Path | None = None
    logs: Path | None = None


class Campaign:
    """Measures the units of a plan that have no record yet.

    Args:
        units: Units in order.
        networks: Graph file by network name.
        store: Where records go.
        settings: How to run.
        report: Called with the progress after every row.
    """

    def __init__(
        self,
        units: Sequence[Unit],
        networks: Mapping[str, Path],
        store: RawStore,
        settings: Settings,
        report: Callable[[Progress], None] | None = None,
    ) -> None:
        missing = sorted({unit.network for unit in units} - set(networks))
        if missing:
            raise UsageError(f"no graph for {len(missing)} networks of the plan, first '{missing[0]}'")
        self._units = list(units)
        self._networks = networks
        self._store = store
        self._settings = settings
        self._report = report or (lambda progress: None)
        self._statuses = store.statuses()
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._device: Mapping[str, Any] | None = None
        self._not_started = 0
        self._open_jobs = 0
        self._errors: list[BaseException] = []
        self._begin = time.monotonic()
        self._jobs: queue.Queue[_Job] = queue.Queue()
        self._ready: queue.Queue[_Job | None] = queue.Queue()
        self._devices = [
            Device(command, self._child(command, f"clear{number}") if settings.clear else None)
            for number, command in enumerate(settings.commands)
        ]
        self._workers = [device for device in self._devices for _ in range(max(1, settings.workers))]
        self._room = threading.Semaphore(settings.preparers + 2 * len(self._workers))
        self.progress = Progress(planned=len(self._units))

    def run(self) -> Progress:
        """Run until all units have a record, the deadline, or an interrupt.

        Raises:
            OSError: Records can't be written; rows measured so far are safe.
            PerfpredError: No worker could be started.
        """
        parent = self._settings.scratch or _memory_folder()
        _remove_abandoned(parent)
        with tempfile.TemporaryDirectory(prefix=f"{_PREFIX}{os.getpid()}-", dir=parent) as folder:
            self._queue_jobs(Path(folder))
            threads = [
                *(threading.Thread(target=self._guarded, args=(self._prepare_loop, n)) for n in self._preparers()),
                *(threading.Thread(target=self._guarded, args=(self._worker_loop, n)) for n in self._numbers()),
            ]
            self._open_jobs = self._jobs.qsize()
            if not self._open_jobs:
                return self.progress
            for device in self._devices:
                if device.clearer is not None:
                    # A child dies with the thread that started it, and this thread outlives the others.
                    device.clearer.start()
            for thread in threads:
                thread.start()
            try:
                for thread in threads:
                    while thread.is_alive():
                        thread.join(0.5)
            except BaseException:
                self._halt("interrupted")
                raise
            finally:
                for thread in threads:
                    thread.join()
                for device in self._devices:
                    if device.clearer is not None:
                        device.clearer.close()
        if self._errors:
            raise self._errors[0]
        return self.progress

    def _preparers(self) -> range:
        return range(max(1, self._settings.preparers))

    def _numbers(self) -> range:
        return range(len(self._workers))

    def _queue_jobs(self, folder: Path) -> None:
        digests: dict[str, str] = {}
        groups = groupby(self._units, key=lambda unit: unit.preparation)
        for number, ((network, *_), group) in enumerate(groups):
            path = self._networks[network]
            digest = digests.get(network) or digests.setdefault(network, graph_digest(path))
            self._jobs.put(_Job(number, list(group), path, digest, folder / str(number)))

    # Control ----------------------------------------------------------------------------------------------

    def _guarded(self, loop: Callable[[int], None], number: int) -> None:
        try:
            loop(number)
        except BaseException as error:  # noqa: BLE001 - raised again in the main thread
            self._errors.append(error)
            self._halt(str(error))

    def _halt(self, why: str) -> None:
        with self._lock:
            self.progress.stopped = self.progress.stopped or why
        self._stop.set()
        for _ in self._numbers():
            self._ready.put(None)

    def _out_of_time(self) -> bool:
        limit = self._settings.deadline_s
        if not self._stop.is_set() and limit is not None and time.monotonic() - self._begin > limit:
            self._halt("deadline")
        return self._stop.is_set()

    def _child(self, command: Sequence[str], name: str) -> Child:
        logs = self._settings.logs
        if logs:
            logs.mkdir(parents=True, exist_ok=True)
        return Child(command, logs / f"{name}.log" if logs else None)

    # Preparation ------------------------------------------------------------------------------------------

    def _prepare_loop(self, number: int) -> None:
        child = self._child(self._settings.preparer or worker_command("cpu"), f"prepare{number}")
        try:
            while not self._out_of_time():
                if not self._room.acquire(timeout=0.5):
                    continue
                try:
                    job = self._jobs.get_nowait()
                except queue.Empty:
                    return
                self._prepare(child, job)
                self._ready.put(job)
        finally:
            child.close(kill=True)

    def _prepare(self, child: Child, job: _Job) -> None:
        first = job.units[0]
        if all(self._known(unit, job) for unit in job.units):
            return
        try:
            job.model = child.ask(
                PREPARE_TIMEOUT_S,
                op="prepare",
                path=str(job.path.resolve()),
                precision=first.graph_precision,
                batch_size=first.batch_size,
                folder=str(job.folder),
                reference=first.check_outputs,
            )["model"]
        except RequestFailedError as error:
            job.failure = failure("prepare", error.error)
        except ChildLostError as error:
            job.failure = failure("prepare", {"class": "ChildLostError", "message": str(error)})

    # Measurement ------------------------------------------------------------------------------------------

    def _worker_loop(self, number: int) -> None:
        device = self._workers[number]
        child = self._child(device.command, f"worker{number}")
        device.children.append(child)
        try:
            facts = self._greet(child)
            if facts is None:
                return
            begin = time.monotonic()
            while not self._out_of_time():
                job = self._next_job()
                if job is None:
                    break
                self._measure_job(device, child, facts, job)
                shutil.rmtree(job.folder, ignore_errors=True)
                self._room.release()
                with self._lock:
                    self._open_jobs -= 1
                    if not self._open_jobs:
                        for _ in self._numbers():
                            self._ready.put(None)
            with self._lock:
                self.progress.wall_s += time.monotonic() - begin
        finally:
            child.close(kill=self._stop.is_set())

    def _greet(self, child: Child) -> Mapping[str, Any] | None:
        """Device of a worker; None where it does not start while others do."""
        try:
            device: Mapping[str, Any] = child.ask(START_TIMEOUT_S, op="hello")
        except MeasurementError:
            with self._lock:
                self._not_started += 1
                last = self._not_started == len(self._workers)
            if last:
                raise
            return None
        with self._lock:
            self._device = device
        return device

    def _next_job(self) -> _Job | None:
        while not self._out_of_time():
            with contextlib.suppress(queue.Empty):
                return self._ready.get(timeout=0.5)
        return None

    def _key(self, unit: Unit, job: _Job, device: Mapping[str, Any]) -> dict[str, Any]:
        return engine_key(unit, graph=job.digest, device=device["device"], device_sms=device["sms"])

    def _known(self, unit: Unit, job: _Job) -> bool:
        device = self._device
        return device is not None and self._recorded(engine_id(self._key(unit, job, device)))

    def _recorded(self, identity: str) -> bool:
        status = self._statuses.get(identity)
        return status == "good" or (status is not None and not self._settings.retry_failed)

    def _measure_job(self, device: Device, child: Child, facts: Mapping[str, Any], job: _Job) -> None:
        for unit in job.units:
            if self._out_of_time():
                break
            key = self._key(unit, job, facts)
            identity = engine_id(key)
            with self._lock:
                if self._recorded(identity):
                    self.progress.skipped += 1
                    continue
                self._statuses[identity] = "good"  # claimed: a plan may list a unit twice
            record = self._outcome(device, child, unit, job)
            self._store.write({**identity_of(unit, key), **record})
            with self._lock:
                self.progress.count(record)
                self._report(self.progress)

    def _outcome(self, device: Device, child: Child, unit: Unit, job: _Job) -> dict[str, Any]:
        if job.failure:
            return job.failure
        settings = self._settings
        record, build_s, measure_s = measure_unit(
            device, child, unit, job.model, limit_s=settings.row_timeout_s, sharing=settings.workers
        )
        if record["status"] == "good" and unit.target == "cpu" and len(settings.commands) > 1:
            record["flags"].append(SHARED)
        with self._lock:
            self.progress.build_s += build_s
            self.progress.measure_s += measure_s
        return record

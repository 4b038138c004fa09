"""The same units on a dask.distributed cluster: a fleet of devices, one dask worker on each.

Start `dask scheduler` somewhere and, on every device, `dask worker ADDRESS --nthreads 1`, with this package
installed there. Dask moves jobs and survives lost machines; on each device a child process builds and measures, so
that whatever crashes there costs one row. Records come back to the caller, who alone writes them.
"""

from __future__ import annotations

import importlib
import tempfile
from collections.abc import Callable, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

from perfpred.campaign import Progress
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
from perfpred.errors import PerfpredError, RuntimeUnavailableError, UsageError
from perfpred.prepare import graph_digest, read_graph_bytes
from perfpred.raw import RawStore
from perfpred.unit import Unit, engine_id, engine_key, unit_from_json, unit_to_json

#: A job that took this many dask workers down with it is recorded as a failure.
_RETRIES: Final = 3


def describe_device(command: Sequence[str]) -> dict[str, Any]:
    """Device of the machine this runs on; `error` where its worker process does not start."""
    child = Child(command)
    try:
        device: dict[str, Any] = child.ask(START_TIMEOUT_S, op="hello")
        return device
    except PerfpredError as error:
        return {"error": str(error)}
    finally:
        child.close()


def measure_job(
    command: Sequence[str], graph: bytes, name: str, units: Sequence[Mapping[str, Any]], row_timeout_s: float
) -> list[dict[str, Any]]:
    """Prepare one network and measure its units on the machine this runs on.

    Args:
        command: Of the worker process.
        graph: Serialized ONNX without weights.
        name: Of the network.
        units: Units that share one preparation, as JSON.
        row_timeout_s: Longest time for one row.

    Returns:
        One record without identity per unit, same order.
    """
    child = Child(command)
    wanted = [unit_from_json(unit) for unit in units]
    with tempfile.TemporaryDirectory(prefix="perfpred-") as folder:
        source = Path(folder) / f"{name}.onnx"
        source.write_bytes(graph)
        try:
            model = child.ask(
                PREPARE_TIMEOUT_S,
                op="prepare",
                path=str(source),
                precision=wanted[0].graph_precision,
                batch_size=wanted[0].batch_size,
                folder=str(Path(folder) / "prepared"),
                reference=wanted[0].check_outputs,
            )["model"]
        except RequestFailedError as error:
            return [failure("prepare", error.error)] * len(wanted)
        except ChildLostError as error:
            return [failure("prepare", {"class": "ChildLostError", "message": str(error)})] * len(wanted)
        clearer = Child(command) if wanted[0].target == "gpu" else None
        device = Device(command, clearer)
        try:
            return [measure_unit(device, child, unit, model, limit_s=row_timeout_s)[0] for unit in wanted]
        finally:
            child.close()
            if clearer is not None:
                clearer.close()


def run_on_cluster(
    units: Sequence[Unit],
    networks: Mapping[str, Path],
    store: RawStore,
    address: str,
    *,
    row_timeout_s: float = 180.0,
    retry_failed: bool = False,
    command: Sequence[str] | None = None,
    report: Callable[[Progress], None] | None = None,
) -> Progress:
    """Measure every unit that has no record yet, once per kind of device in the cluster.

    Args:
        units: Units in order.
        networks: Graph file by network name.
        store: Where records go.
        address: Of the scheduler, such as `tcp://10.0.0.1:8786`.
        row_timeout_s: Longest time for one row.
        retry_failed: Measure recorded failures again.
        command: Of the worker process on every device.
        report: Called after every job.

    Raises:
        RuntimeUnavailableError: dask.distributed is not installed, or no device answers.
    """
    try:
        distributed: Any = importlib.import_module("distributed")
    except ImportError as error:
        raise RuntimeUnavailableError("--cluster needs dask.distributed: pip install perfpred[cluster]") from error
    if missing := sorted({unit.network for unit in units} - set(networks)):
        raise UsageError(f"no graph for {len(missing)} networks of the plan, first '{missing[0]}'")
    command = list(command or worker_command(units[0].target))
    with distributed.Client(address) as client:
        devices = client.run(describe_device, command)
        usable = {worker: device for worker, device in devices.items() if "error" not in device}
        if not usable:
            reasons = sorted({device["error"] for device in devices.values()}) or ["no worker is connected"]
            raise RuntimeUnavailableError(f"no device of the cluster can measure: {reasons[0]}")
        kinds = {device["device"]: device for device in usable.values()}
        progress = Progress(planned=len(units) * len(kinds))
        statuses = store.statuses()
        pending: dict[Any, list[tuple[Unit, dict[str, Any]]]] = {}
        for slug, device in kinds.items():
            # By host, not by address: a worker that was restarted has another port.
            hosts = {urlsplit(worker).hostname for worker, other in usable.items() if other["device"] == slug}
            for _, group in groupby(units, key=lambda unit: unit.preparation):
                job = []
                for unit in group:
                    path = networks[unit.network]
                    key = engine_key(unit, graph=graph_digest(path), device=slug, device_sms=device["sms"])
                    status = statuses.get(engine_id(key))
                    if status == "good" or (status is not None and not retry_failed):
                        progress.skipped += 1
                    else:
                        statuses[engine_id(key)] = "good"
                        job.append((unit, key))
                if job:
                    future = client.submit(
                        measure_job,
                        command,
                        read_graph_bytes(networks[job[0][0].network]),
                        job[0][0].network,
                        [unit_to_json(unit) for unit, _ in job],
                        row_timeout_s,
                        workers=sorted(filter(None, hosts)) if len(kinds) > 1 else None,
                        pure=False,
                        retries=_RETRIES,
                    )
                    pending[future] = job
        for future in distributed.as_completed(list(pending)):
            job = pending.pop(future)
            for (unit, key), record in zip(job, _results(future, len(job)), strict=True):
                store.write({**identity_of(unit, key), **record})
                progress.count(record)
            if report:
                report(progress)
    return progress


def _results(future: Any, count: int) -> list[dict[str, Any]]:
    try:
        results: list[dict[str, Any]] = future.result()
        return results
    except Exception as error:  # noqa: BLE001 - dask raises what the job raised, or its own KilledWorker
        lost = {"class": type(error).__name__, "message": " ".join(str(error).split())[:600]}
        return [failure("cluster", lost)] * count

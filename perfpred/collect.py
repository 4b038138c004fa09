"""Collecting: networks in, trustworthy raw records out; interrupted campaigns go on where they stopped."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from perfpred.campaign import Campaign, Progress, Settings
from perfpred.child import worker_command
from perfpred.cluster import run_on_cluster
from perfpred.device import device_slugs
from perfpred.errors import PerfpredError, UsageError
from perfpred.prepare import find_networks
from perfpred.raw import RawStore, pack, records
from perfpred.unit import Plan, grid
from perfpred.worker import parse_cores

__all__ = ["Plan", "collect", "grid", "pack", "records", "run_plan"]


def gpu_ordinals(selection: str) -> list[int]:
    """GPU numbers of `all` or a list such as `0,2-3`.

    Raises:
        UsageError: Not a list of numbers, or no NVIDIA GPU here.
    """
    if selection != "all":
        return list(parse_cores(selection))
    try:
        answer = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=60, check=True)
        count = sum(line.startswith("GPU ") for line in answer.stdout.splitlines())
    except (OSError, subprocess.SubprocessError):
        count = 0
    if not count:
        raise UsageError("no NVIDIA GPU found (nvidia-smi -L lists none); name GPUs with --gpus 0 or use --device cpu")
    return list(range(count))


def cpu_groups(cores: str, per_worker: int | None) -> list[str]:
    """Split cores into disjoint groups, one per worker, as core lists."""
    numbers = parse_cores(cores)
    if not numbers:
        return [""]
    size = per_worker or len(numbers)
    groups = [numbers[start : start + size] for start in range(0, len(numbers) - size + 1, size)]
    if not groups:
        raise UsageError(f"{len(numbers)} cores can't hold a worker of {size}")
    return [",".join(map(str, group)) for group in groups]


def run_plan(
    plan: Plan,
    sources: Sequence[str | Path],
    out: str | Path,
    *,
    gpus: str = "0",
    workers_per_gpu: int = 1,
    cuda: str = "auto",
    cores: str = "",
    cores_per_worker: int | None = None,
    host: str = "cpu",
    preparers: int | None = None,
    row_timeout_s: float = 180.0,
    deadline_s: float | None = None,
    retry_failed: bool = False,
    logs: str | Path | None = None,
    cluster: str | None = None,
    report: Callable[[Progress], None] | None = None,
) -> Progress:
    """Measure every unit of a plan that has no record yet.

    Args:
        plan: Units; all for one target, `gpu` or `cpu`.
        sources: ONNX files or folders that hold the plan's networks.
        out: Dataset folder.
        gpus: `all` or ordinals such as `0,2-3`; one worker each.
        workers_per_gpu: Workers that build in turn on each GPU; while one measures, the others are stopped.
        cuda: CUDA binding.
        cores: Cores that CPU workers are pinned to, such as `64-79`.
        cores_per_worker: Size of each CPU worker's group; all cores in one by default.
        host: What records call this machine's CPU as a device; predictors then tell it from other CPUs.
        preparers: Processes that prepare networks; three per GPU where there are cores enough.
        row_timeout_s: Longest time for one row.
        deadline_s: Start no row later than this.
        retry_failed: Measure recorded failures again.
        logs: Folder for the workers' output.
        cluster: Scheduler address of a dask.distributed cluster to measure on instead of this machine.
        report: Called after every row.

    Returns:
        What was done.
    """
    if host != "cpu" and host in device_slugs():
        raise UsageError(f"--host {host} is another device; give this CPU a name of its own")
    if host != "cpu" and cluster:
        raise UsageError("--host names this machine's CPU, and a cluster measures on others; leave one of them out")
    targets = {unit.target for unit in plan}
    if len(targets) != 1:
        raise UsageError(f"a plan measures one target; this one names {', '.join(sorted(targets)) or 'none'}")
    networks = find_networks([Path(source) for source in sources])
    store = RawStore(out)
    if cluster:
        return run_on_cluster(
            plan.units,
            networks,
            store,
            cluster,
            row_timeout_s=row_timeout_s,
            retry_failed=retry_failed,
            report=report,
        )
    if targets == {"gpu"}:
        commands = [worker_command("gpu", device=n, cuda=cuda) for n in gpu_ordinals(gpus)]
        spare = (os.cpu_count() or 1) - workers_per_gpu * len(commands)
        ahead = preparers or max(1, min(3 * len(commands), spare))
    else:
        commands = [worker_command("cpu", cores=group, host=host) for group in cpu_groups(cores, cores_per_worker)]
        ahead = preparers or 1
    settings = Settings(
        commands=commands,
        workers=workers_per_gpu if targets == {"gpu"} else 1,
        clear=targets == {"gpu"},
        preparers=ahead,
        row_timeout_s=row_timeout_s,
        deadline_s=deadline_s,
        retry_failed=retry_failed,
        logs=Path(logs) if logs else None,
    )
    return Campaign(plan.units, networks, store, settings, report).run()


def collect(
    networks: Sequence[str | Path],
    *,
    out: str | Path,
    runtime: str = "onnxruntime",
    target: str = "gpu",
    precisions: Sequence[str] = ("fp16",),
    batch_sizes: Sequence[int] = (1,),
    sm_counts: Sequence[int | None] = (None,),
    optimisation: Sequence[str] = ("all",),
    rebuilds: int = 0,
    detail: bool = False,
    layers: bool = False,
    check_outputs: bool = False,
    **how: Any,
) -> Progress:
    """Measure networks and write one raw record per engine; resuming is the default.

    Args:
        networks: ONNX files or folders, weights not needed.
        out: Dataset folder.
        runtime: `onnxruntime`, `tensorrt` or `tensorrt-rtx`.
        target: `gpu` or `cpu`.
        precisions: Of each network.
        batch_sizes: Values of the batch axis.
        sm_counts: Partitions; None is the whole device.
        optimisation: `all`, `off` or both.
        rebuilds: Fresh builds beyond the first.
        detail: Also isolated and back-to-back times.
        layers: Also per-layer times.
        check_outputs: Also compare outputs with the float32 reference.
        **how: Arguments of `run_plan`.

    Returns:
        What was done.
    """
    plan = grid(
        find_networks([Path(source) for source in networks]),
        precisions=precisions,
        batch_sizes=batch_sizes,
        sm_counts=sm_counts,
        optimisations=optimisation,
        rebuilds=rebuilds,
        runtime=runtime,
        target=target,
        detail=detail,
        layers=layers,
        check_outputs=check_outputs,
    )
    return run_plan(plan, networks, out, **how)


class LineReport:
    """Prints progress to standard error every few seconds.

    Args:
        every_s: Least time between lines.
    """

    def __init__(self, every_s: float = 10.0) -> None:
        self._every_s = every_s
        self._begin = self._last = time.monotonic()

    def __call__(self, progress: Progress) -> None:
        """Print where the campaign is, unless it did so a moment ago."""
        now = time.monotonic()
        if now - self._last < self._every_s and progress.left:
            return
        self._last = now
        print(self.line(progress), file=sys.stderr, flush=True)  # noqa: T201 - this class is the printing

    def line(self, progress: Progress) -> str:
        """One line: rows, failures, rate, time left."""
        minutes = max(time.monotonic() - self._begin, 1e-6) / 60
        rate = progress.done / minutes
        left = f"{progress.left / rate:.1f} min left" if rate else "time left unknown"
        failed = sum(progress.failed.values())
        done = f"{progress.done + progress.skipped}/{progress.planned} rows"
        return f"{done}, {failed} failed, {rate:.1f} rows/min, {left}"


def _numbers(text: str) -> list[int]:
    return [int(part) for part in text.split(",") if part]


def _sm_counts(text: str) -> list[int | None]:
    return [None if part == "all" else int(part) for part in text.split(",") if part]


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point of `python -m perfpred.collect`, for machines without the command-line extras."""
    parser = argparse.ArgumentParser(description="Measure networks; see perfpred collect.")
    parser.add_argument("networks", nargs="+", help="ONNX files or folders")
    parser.add_argument("--out", required=True)
    parser.add_argument("--plan", help="measure this plan instead of a grid")
    parser.add_argument("--save-plan", help="write the grid as a plan and stop")
    parser.add_argument("--runtime", default="onnxruntime")
    parser.add_argument("--target", default="gpu")
    parser.add_argument("--precision", default="fp16")
    parser.add_argument("--batch-size", default="1")
    parser.add_argument("--sm-count", default="all")
    parser.add_argument("--optimisation", default="all")
    parser.add_argument("--rebuilds", type=int, default=0)
    parser.add_argument("--detail", action="store_true")
    parser.add_argument("--layers", action="store_true")
    parser.add_argument("--check-outputs", action="store_true")
    parser.add_argument("--gpus", default="all")
    parser.add_argument("--workers-per-gpu", type=int, default=1)
    parser.add_argument("--cuda", default="auto")
    parser.add_argument("--cores", default="")
    parser.add_argument("--cores-per-worker", type=int)
    parser.add_argument("--host", default="cpu")
    parser.add_argument("--preparers", type=int)
    parser.add_argument("--row-timeout", type=float, default=180.0)
    parser.add_argument("--deadline", type=float)
    parser.add_argument("--retry-failed", action="store_true")
    parser.add_argument("--logs")
    parser.add_argument("--cluster", help="scheduler address of a dask.distributed cluster")
    parser.add_argument("--pack", help="at the end, write all records, compressed, into this folder")
    given = parser.parse_args(arguments)
    try:
        plan = Plan.load(given.plan) if given.plan else _grid_from(given)
        if given.save_plan:
            plan.save(given.save_plan)
            return 0
        begin = time.monotonic()
        progress = run_plan(
            plan,
            given.networks,
            given.out,
            gpus=given.gpus,
            workers_per_gpu=given.workers_per_gpu,
            cuda=given.cuda,
            cores=given.cores,
            cores_per_worker=given.cores_per_worker,
            host=given.host,
            preparers=given.preparers,
            row_timeout_s=given.row_timeout,
            deadline_s=given.deadline,
            retry_failed=given.retry_failed,
            logs=given.logs,
            cluster=given.cluster,
            report=LineReport(),
        )
    except PerfpredError as error:
        _say([f"error: {error}"])
        return 2 if isinstance(error, UsageError) else 1
    _say(_summary(progress, time.monotonic() - begin))
    if given.pack:
        _say(f"packed: {path.name}, {path.stat().st_size} bytes" for path in pack(given.out, given.pack))
    return 0


def _grid_from(given: argparse.Namespace) -> Plan:
    return grid(
        find_networks([Path(source) for source in given.networks]),
        precisions=given.precision.split(","),
        batch_sizes=_numbers(given.batch_size),
        sm_counts=_sm_counts(given.sm_count),
        optimisations=given.optimisation.split(","),
        rebuilds=given.rebuilds,
        runtime=given.runtime,
        target=given.target,
        detail=given.detail,
        layers=given.layers,
        check_outputs=given.check_outputs,
    )


def _summary(progress: Progress, seconds: float) -> Iterable[str]:
    share = (progress.build_s + progress.measure_s) / max(progress.wall_s, 1e-6)
    each = 1e3 * progress.measure_s / max(progress.good, 1)
    yield f"planned {progress.planned}, had {progress.skipped}, good {progress.good}, left {progress.left}"
    yield f"rate {60 * progress.done / max(seconds, 1e-6):.1f} rows/min, workers build or measure {share:.0%} of their time, {each:.0f} ms measuring a row"
    for cause, count in progress.failed.most_common():
        yield f"failed {count}: {cause}"
    if progress.stopped:
        yield f"stopped: {progress.stopped}"


def _say(lines: Iterable[str]) -> None:
    for line in lines:
        print(line, file=sys.stderr)  # noqa: T201 - command-line entry point


if __name__ == "__main__":
    sys.exit(main())

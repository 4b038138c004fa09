from __future__ import annotations

import os
import random
import signal
import sys
import threading
import time
from pathlib import Path

import pytest

from perfpred.cluster import describe_device, run_on_cluster
from perfpred.errors import RuntimeUnavailableError, UsageError
from perfpred.raw import RawStore, records
from perfpred.unit import grid

distributed = pytest.importorskip("distributed")
pytestmark = pytest.mark.filterwarnings("default")

FAKE = [sys.executable, str(Path(__file__).with_name("fake_worker.py"))]


def networks(folder: Path, count: int) -> dict[str, Path]:
    folder.mkdir()
    paths = {f"n{i}": folder / f"n{i}.onnx" for i in range(count)}
    for name, path in paths.items():
        path.write_text(name)
    return paths


@pytest.fixture(scope="module")
def cluster():
    with distributed.LocalCluster(
        n_workers=3, threads_per_worker=1, processes=True, dashboard_address=None, silence_logs=50
    ) as running:
        yield running


def test_a_killed_dask_worker_costs_no_row(cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = networks(tmp_path / "nets", 24)
    plan = grid(paths, sm_counts=(8, None))
    with distributed.Client(cluster) as client:
        client.run(os.environ.__setitem__, "FAKE_ROW_S", "0.05")
        victim = random.Random(3).choice(sorted(client.run(os.getpid).values()))
    killer = threading.Timer(1.5, os.kill, (victim, signal.SIGKILL))
    killer.start()
    out = tmp_path / "out"
    progress = run_on_cluster(plan.units, paths, RawStore(out), cluster.scheduler_address, command=FAKE)
    killer.join()
    rows = list(records(out))
    assert progress.good == 48
    assert len({row["engine_id"] for row in rows}) == len(rows) == 48
    assert {row["status"] for row in rows} == {"good"}
    assert {row["device"] for row in rows} == {"fake-gpu"}
    begin = time.monotonic()
    again = run_on_cluster(plan.units, paths, RawStore(out), cluster.scheduler_address, command=FAKE)
    assert (again.skipped, again.done) == (48, 0)
    assert time.monotonic() - begin < 20


def test_failures_on_the_device_are_rows(cluster, tmp_path: Path) -> None:
    paths = networks(tmp_path / "nets", 1)
    paths |= dict.fromkeys(("crash", "refused"), paths["n0"])
    progress = run_on_cluster(
        grid(paths).units, paths, RawStore(tmp_path / "out"), cluster.scheduler_address, command=FAKE
    )
    assert progress.good == 1
    assert progress.failed == {"build: ChildLostError": 1, "build: RuntimeError": 1}


def test_a_cluster_without_a_usable_device_says_why(cluster, tmp_path: Path) -> None:
    paths = networks(tmp_path / "nets", 1)
    broken = [sys.executable, "-c", "raise SystemExit(4)"]
    assert "exit status 4" in describe_device(broken)["error"]
    with pytest.raises(RuntimeUnavailableError, match=r"no device of the cluster can measure.*exit status 4"):
        run_on_cluster(grid(paths).units, paths, RawStore(tmp_path / "o"), cluster.scheduler_address, command=broken)
    with pytest.raises(UsageError, match="'nowhere'"):
        run_on_cluster(grid(["nowhere"]).units, paths, RawStore(tmp_path / "o"), cluster.scheduler_address)

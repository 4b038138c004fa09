from __future__ import annotations

import contextlib
import dataclasses
import errno
import json
import os
import random
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections import Counter
from pathlib import Path

import pytest

import perfpred.raw
from perfpred.campaign import Campaign, Settings
from perfpred.child import Child, ChildLostError
from perfpred.errors import FormatError, UsageError
from perfpred.measure import SHARED
from perfpred.raw import RawStore, pack, records
from perfpred.unit import Plan, Unit, grid

FAKE = (sys.executable, str(Path(__file__).with_name("fake_worker.py")))


def networks(folder: Path, *names: str) -> dict[str, Path]:
    folder.mkdir(exist_ok=True)
    paths = {name: folder / f"{name}.onnx" for name in names}
    for name, path in paths.items():
        path.write_text(name)
    return paths


def campaign(units, paths, out: Path, workers: int = 1, **settings) -> Campaign:
    options = {"row_timeout_s": 20.0, "preparers": 1, "preparer": FAKE, **settings}
    return Campaign(list(units), paths, RawStore(out), Settings(commands=[FAKE] * workers, **options))


def found(out: Path) -> dict[str, dict]:
    rows = list(records(out))
    assert len({row["engine_id"] for row in rows}) == len(rows)
    assert not list(out.rglob("*.part"))
    return {f"{row['network']} {row['batch_size']} {row['sm_count']} {row['rebuild']}": row for row in rows}


def test_every_unit_gets_one_record_and_resuming_measures_nothing(tmp_path: Path) -> None:
    paths = networks(tmp_path / "nets", "a", "b", "c")
    plan = grid(paths, batch_sizes=(1, 4), sm_counts=(8, None))
    progress = campaign(plan, paths, tmp_path / "out", workers=2).run()
    assert (progress.good, progress.left, progress.failed) == (12, 0, Counter())
    rows = found(tmp_path / "out")
    assert len(rows) == 12
    assert rows["a 4 132 0"]["model"] == "a fp16 4"
    again = campaign(plan, paths, tmp_path / "out").run()
    assert (again.skipped, again.done) == (12, 0)


def test_whatever_goes_wrong_costs_one_row_and_is_recorded(tmp_path: Path) -> None:
    paths = networks(
        tmp_path / "nets", "good1", "crash", "hang", "dies-late", "refused", "refused-fatal", "unreadable", "good2"
    )
    progress = campaign(grid(paths), paths, tmp_path / "out", row_timeout_s=1.0).run()
    assert progress.good == 2
    rows = found(tmp_path / "out")
    errors = {name.split()[0]: row["error"] for name, row in rows.items() if row["status"] == "failed"}
    assert errors["crash"]["message"] == "the worker process died (signal 9)"
    assert errors["hang"]["message"].startswith("no answer within 1 s")
    assert errors["refused"] == {
        "stage": "build",
        "class": "RuntimeError",
        "message": "operator Frobnicate is not supported",
    }
    assert errors["unreadable"]["stage"] == "prepare"
    assert errors["dies-late"]["stage"] == "measure"
    assert set(errors) == {"crash", "hang", "dies-late", "refused", "refused-fatal", "unreadable"}


def test_workers_sharing_a_device_measure_one_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAKE_ROW_S", "0.02")
    paths = networks(tmp_path / "nets", *(f"n{i}" for i in range(20)), "hang", "crash")
    run = campaign(grid(paths), paths, tmp_path / "out", row_timeout_s=0.5)
    settings = dataclasses.replace(run._settings, workers=3, clear=True)
    run = Campaign(list(grid(paths)), paths, RawStore(tmp_path / "out"), settings)
    begin = time.monotonic()
    progress = run.run()
    assert progress.good == 20
    assert 20 * 0.02 <= progress.measure_s <= time.monotonic() - begin
    processes = {row["process"] for row in records(tmp_path / "out") if row["status"] == "good"}
    assert len(processes) > 1


def test_cpu_workers_side_by_side_say_so_in_every_row(tmp_path: Path) -> None:
    paths = networks(tmp_path / "nets", "a", "b")
    for target, workers, shared in (("cpu", 2, True), ("cpu", 1, False), ("gpu", 2, False)):
        out = tmp_path / f"{target}-{workers}"
        campaign(grid(paths, target=target), paths, out, workers=workers).run()
        assert [SHARED in row["flags"] for row in records(out)] == [shared] * 2


def test_failures_are_kept_unless_asked_again(tmp_path: Path) -> None:
    paths = networks(tmp_path / "nets", "refused")
    campaign(grid(paths), paths, tmp_path / "out").run()
    assert campaign(grid(paths), paths, tmp_path / "out").run().skipped == 1
    assert sum(campaign(grid(paths), paths, tmp_path / "out", retry_failed=True).run().failed.values()) == 1


def test_rebuilds_run_in_fresh_processes(tmp_path: Path) -> None:
    paths = networks(tmp_path / "nets", "a")
    campaign(grid(paths, rebuilds=3), paths, tmp_path / "out").run()
    processes = [row["process"] for row in records(tmp_path / "out")]
    assert len(processes) == len(set(processes)) == 4


def test_the_deadline_stops_cleanly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAKE_ROW_S", "0.2")
    paths = networks(tmp_path / "nets", *(f"n{i}" for i in range(60)))
    progress = campaign(grid(paths), paths, tmp_path / "out", deadline_s=4.0).run()
    assert progress.stopped == "deadline"
    assert 0 < progress.good < 60
    assert len(found(tmp_path / "out")) == progress.good


def test_workers_that_end_early_leave_the_others_their_device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAKE_ROW_S", "0.1")
    paths = networks(tmp_path / "nets", *(f"n{i}" for i in range(60)))
    settings = dataclasses.replace(
        campaign(grid(paths), paths, tmp_path / "out")._settings, workers=6, clear=True, deadline_s=3.0
    )
    progress = Campaign(list(grid(paths)), paths, RawStore(tmp_path / "out"), settings).run()
    assert progress.stopped == "deadline"
    assert progress.good
    assert not progress.failed


def test_worker_killed_at_thirty_moments(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAKE_ROW_S", "0.02")  # so that the campaign outlasts the kills on a fast machine
    names = [f"n{i}" for i in range(200)]
    paths = networks(tmp_path / "nets", *names)
    run = campaign(grid(paths), paths, tmp_path / "out", workers=2)
    children: list[Child] = []
    make = run._child
    run._child = lambda command, name: children.append(make(command, name)) or children[-1]
    kills = 0
    thread = threading.Thread(target=run.run)
    thread.start()
    while thread.is_alive() and not run.progress.done:
        time.sleep(0.005)  # a campaign of which no worker ever starts gives up, and rightly
    rng = random.Random(1)
    while thread.is_alive() and kills < 30:
        time.sleep(rng.uniform(0.005, 0.06))
        pid = rng.choice(children).pid if children else None
        if pid:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
                kills += 1
    thread.join()
    rows = found(tmp_path / "out")
    assert {name.split()[0] for name in rows} == set(names)
    lost = [row for row in rows.values() if row["status"] == "failed"]
    assert kills == 30
    assert len(lost) <= kills
    assert {row["error"]["class"] for row in lost} <= {"ChildLostError"}


_DRIVER = """
    import sys
    from pathlib import Path
    sys.path.insert(0, {tests!r})
    from test_campaign import campaign
    from perfpred.unit import grid
    paths = {{p.stem: p for p in sorted(Path({nets!r}).iterdir())}}
    campaign(grid(paths), paths, Path({out!r}), workers=2).run()
"""


def test_campaign_killed_at_thirty_moments(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAKE_ROW_S", "0.01")
    names = [f"n{i}" for i in range(150)]
    paths = networks(tmp_path / "nets", *names)
    out = tmp_path / "out"
    script = textwrap.dedent(
        _DRIVER.format(tests=str(Path(__file__).parent), nets=str(tmp_path / "nets"), out=str(out))
    )
    rng = random.Random(2)
    before = 0
    for _ in range(30):
        driver = subprocess.Popen([sys.executable, "-c", script], start_new_session=True)
        # Most moments lie in the measuring; imports take the first part of a second.
        with contextlib.suppress(subprocess.TimeoutExpired):
            driver.wait(timeout=rng.uniform(0.1, 0.9))
        driver.kill()
        driver.wait()
        if (out / "raw.format.json").exists():
            rows = list(records(out))
            assert len(rows) >= before
            before = len(rows)
    campaign(grid(paths), paths, out, workers=2).run()
    rows = found(out)
    assert {name.split()[0] for name in rows} == set(names)
    assert all(row["status"] == "good" for row in rows.values())


def test_a_full_disk_stops_with_nothing_half_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = networks(tmp_path / "nets", *(f"n{i}" for i in range(10)))
    writes = Counter()
    real = os.fsync

    def fsync(descriptor: int) -> None:
        writes["n"] += 1
        if writes["n"] > 5:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(descriptor)

    monkeypatch.setattr(perfpred.raw.os, "fsync", fsync)
    with pytest.raises(OSError, match="No space left"):
        campaign(grid(paths), paths, tmp_path / "out").run()
    kept = found(tmp_path / "out")
    assert 0 < len(kept) < 10
    monkeypatch.undo()
    campaign(grid(paths), paths, tmp_path / "out").run()
    assert len(found(tmp_path / "out")) == 10


def test_an_output_folder_of_another_version_is_refused(tmp_path: Path) -> None:
    (tmp_path / "raw.format.json").write_text('{"format": "perfpred.raw", "version": 99}')
    with pytest.raises(FormatError, match=r"version 99.*use another output folder"):
        RawStore(tmp_path)


def test_a_damaged_record_is_named(tmp_path: Path) -> None:
    store = RawStore(tmp_path)
    store.write({"engine_id": "x", "status": "good"})
    (tmp_path / "raw" / "y.json").write_text("{")
    with pytest.raises(FormatError, match=r"y\.json"):
        list(records(tmp_path))


def test_packed_records_count_as_recorded(tmp_path: Path) -> None:
    paths = networks(tmp_path / "nets", "a", "b", "c")
    campaign(grid(paths), paths, tmp_path / "out").run()
    files = pack(tmp_path / "out", tmp_path / "packed", per_file=2)
    assert [path.name for path in files] == ["raw-0.jsonl.xz", "raw-1.jsonl.xz"]
    assert list(records(tmp_path / "packed")) == sorted(
        records(tmp_path / "out"), key=lambda row: str(row["engine_id"])
    )
    assert campaign(grid(paths), paths, tmp_path / "packed").run().skipped == 3


def test_plans_survive_a_round_trip(tmp_path: Path) -> None:
    plan = grid(["a"], precisions=("fp16", "tf32"), sm_counts=(8, None), optimisations=("off",), detail=True)
    plan.save(tmp_path / "plan.json")
    assert Plan.load(tmp_path / "plan.json") == plan
    content = json.loads((tmp_path / "plan.json").read_text())
    assert content["units"][0]["sm_count"] == 8
    (tmp_path / "plan.json").write_text(json.dumps({**content, "version": 7}))
    with pytest.raises(FormatError, match="version 7"):
        Plan.load(tmp_path / "plan.json")


def test_units_refuse_nonsense() -> None:
    with pytest.raises(UsageError, match="fp12"):
        Unit(network="a", precision="fp12")
    with pytest.raises(UsageError, match="batch size 0"):
        Unit(network="a", precision="fp16", batch_size=0)


def test_a_plan_with_unknown_networks_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="'nowhere'"):
        campaign(grid(["nowhere"]), {}, tmp_path / "out")


def test_workers_that_never_start_end_the_campaign(tmp_path: Path) -> None:
    paths = networks(tmp_path / "nets", "a")
    settings = Settings(commands=[[sys.executable, "-c", "raise SystemExit(3)"]], preparer=FAKE)
    with pytest.raises(ChildLostError, match="exit status 3"):
        Campaign(list(grid(paths)), paths, RawStore(tmp_path / "out"), settings).run()

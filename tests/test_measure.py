from __future__ import annotations

import numpy as np
import pytest
from fake_cuda import FakeCuda, FakeEngine

from perfpred.errors import MeasurementError
from perfpred.measure import Loop, measure_cpu, measure_gpu, quality_flags

QUICK = Loop(warmup_s=0.01, warmup_limit_s=0.05, replays=60, max_replays=80, limit_s=1.0)


def test_queued_replay_holds_no_host_time() -> None:
    cuda = FakeCuda(latency_s=4e-4, submit_s=1.5e-4)
    result = measure_gpu(cuda, FakeEngine(cuda), 1, QUICK)
    assert result.latency_s == pytest.approx(4e-4, rel=1e-3)
    # The synchronised label holds the submission, as on a real host.
    assert result.host_sync_s > 5e-4
    assert "queue_ran_dry" not in result.flags
    assert len(result.samples) >= QUICK.replays
    assert result.samples.dtype == np.float32


def test_a_queue_that_cannot_be_kept_full_is_flagged() -> None:
    cuda = FakeCuda(latency_s=2e-5, submit_s=5e-3)
    result = measure_gpu(cuda, FakeEngine(cuda), 1, Loop(warmup_s=0.0, warmup_runs=1, replays=3, max_replays=3))
    assert {"queue_ran_dry", "enqueue"} <= set(result.flags) or len(result.samples) >= 3


def test_the_engine_is_captured_once_and_then_replayed() -> None:
    cuda = FakeCuda()
    engine = FakeEngine(cuda)
    result = measure_gpu(cuda, engine, 1, QUICK)
    assert engine.enqueued == 1
    assert cuda.launches > QUICK.replays
    assert cuda.graphs == 0
    assert result.graph_nodes == {"kernel": 5}


def test_without_capture_every_run_is_submitted() -> None:
    cuda = FakeCuda()
    engine = FakeEngine(cuda)
    measure_gpu(cuda, engine, 1, Loop(warmup_s=0.0, replays=30, max_replays=30, capture=False))
    assert cuda.launches == 0
    assert engine.enqueued > 30


def test_a_failed_capture_leaves_the_stream_usable() -> None:
    cuda = FakeCuda()
    with pytest.raises(RuntimeError, match="unsupported"):
        measure_gpu(cuda, FakeEngine(cuda, RuntimeError("unsupported")), 1, QUICK)
    assert not cuda.capturing
    cuda.refuse = "capture"
    with pytest.raises(MeasurementError, match="invalidated"):
        measure_gpu(cuda, FakeEngine(cuda), 1, QUICK)


def test_a_graph_that_calls_back_is_refused() -> None:
    cuda = FakeCuda()
    cuda.nodes = {"kernel": 3, "host": 2}
    with pytest.raises(MeasurementError, match="2 times"):
        measure_gpu(cuda, FakeEngine(cuda), 1, QUICK)
    assert cuda.graphs == 0


def test_slow_networks_stop_early_and_say_so() -> None:
    cuda = FakeCuda(latency_s=0.01)
    result = measure_gpu(cuda, FakeEngine(cuda), 1, Loop(warmup_s=0.0, limit_s=0.25))
    assert 20 <= len(result.samples) <= 30
    assert "few_replays" in result.flags


def test_detail_adds_isolated_and_back_to_back() -> None:
    cuda = FakeCuda(latency_s=5e-4)
    result = measure_gpu(cuda, FakeEngine(cuda), 1, QUICK, detail=True)
    assert result.isolated_s >= 5e-4
    assert result.back_to_back_s == pytest.approx(5e-4, rel=1e-3)


def test_cpu_loop_takes_wall_clock() -> None:
    ran = []
    result = measure_cpu(lambda: ran.append(1), warmup_s=0.0, runs=20)
    assert result.kind == "cpu"
    assert len(result.samples) == 20
    assert len(ran) == 23
    assert result.host_sync_s is None


@pytest.mark.parametrize(
    ("samples", "enqueue_s", "flags"),
    [
        (np.full(50, 1e-3), 1e-4, ()),
        (np.full(50, 1e-3), 9e-4, ("enqueue",)),
        (np.r_[np.full(49, 1e-3), 5e-3], None, ("cv",)),
        (np.linspace(1e-3, 2e-3, 50), None, ("cv", "iqr")),
    ],
)
def test_quality_flags(samples: np.ndarray, enqueue_s: float | None, flags: tuple[str, ...]) -> None:
    assert quality_flags(samples.astype(np.float32), enqueue_s=enqueue_s) == flags

"""Work on one dataset: the same whether one process does it or two, in the order asked."""

from __future__ import annotations

import numpy as np
import pytest

from perfpred.dataset import Dataset
from perfpred.parallel import each
from tests.made import dataset


def _latency(rows: Dataset, first: int, count: int) -> tuple[int, np.ndarray, int]:
    return first, rows.engines["latency_s"].to_numpy(float)[first : first + count], len(rows.layers)


def _failing(rows: Dataset, first: int) -> None:
    raise ValueError(f"task {first} of {len(rows.engines)} rows")


def test_two_processes_do_what_one_does() -> None:
    rows = dataset(8)
    tasks = [(6, 2), (0, 3), (3, 1)]
    alone, together = (each(_latency, rows, tasks, n_jobs=jobs) for jobs in (1, 2))
    assert [first for first, _, _ in together] == [6, 0, 3]
    for one, other in zip(alone, together, strict=True):
        np.testing.assert_array_equal(one[1], other[1])
        assert one[2] == other[2] == len(rows.layers)
    assert each(_latency, rows, [], n_jobs=2) == []


def test_an_error_of_a_task_is_raised() -> None:
    rows = dataset(8)
    for jobs in (1, 2):
        with pytest.raises(ValueError, match=f"of {len(rows.engines)} rows"):
            each(_failing, rows, [(0,), (1,)], n_jobs=jobs)

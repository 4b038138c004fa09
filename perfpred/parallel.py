"""Work on one dataset by several processes, each of which reads it once: sending rows with every task costs more."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import lru_cache
from tempfile import TemporaryDirectory
from typing import Any, TypeVar

from joblib import Parallel, delayed

from perfpred.dataset import Dataset

Result = TypeVar("Result")


def each(
    work: Callable[..., Result], dataset: Dataset, tasks: Iterable[tuple[Any, ...]], *, n_jobs: int
) -> list[Result]:
    """`work(dataset, *task)` of each task, in order.

    Args:
        work: A function of a module; it leaves the dataset as it is.
        dataset: Its rows are numbered from 0.
        tasks: What differs, such as positions of rows.
        n_jobs: Processes, -1 for all cores; 1 works here.
    """
    asked = list(tasks)
    if n_jobs == 1 or len(asked) < 2:
        return [work(dataset, *task) for task in asked]
    with TemporaryDirectory(prefix="perfpred-") as folder:
        dataset.write(folder)
        return list(Parallel(n_jobs=n_jobs)(delayed(_on)(work, folder, task) for task in asked))


def _on(work: Callable[..., Result], folder: str, task: tuple[Any, ...]) -> Result:
    return work(_read(folder), *task)


@lru_cache(maxsize=1)
def _read(folder: str) -> Dataset:
    return Dataset.read(folder)

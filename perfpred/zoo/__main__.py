"""`python -m perfpred.zoo`: rebuilds, checks and describes the corpus.

build   export networks of the zoo that the table lacks, check them and add them (extra `zoo`)
check   run the graphs in ONNX Runtime (needs no PyTorch)
table   recompute the columns that follow from the graphs
"""

from __future__ import annotations

import argparse
import csv
import fcntl
import multiprocessing
import os
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, fields, replace
from fnmatch import fnmatchcase
from multiprocessing.connection import Connection
from pathlib import Path

import onnx
import zstandard
from onnx import ModelProto

from perfpred.corpus import (
    GRAPH_SUFFIX,
    GRAPHS,
    TABLE,
    Corpus,
    CorpusNetwork,
    described,
    read_graph,
    read_table,
    write_table,
)
from perfpred.cost import network_cost
from perfpred.errors import NetworkError, UnsupportedOperatorError
from perfpred.network import load_network
from perfpred.zoo import NetworkSpec, specs
from perfpred.zoo.check import CheckResult, check

_LARGEST_GRAPH_BYTES = 200_000
_LONGEST_EXPORT_S = 120


def _selected(selection: str) -> Iterator[NetworkSpec]:
    patterns = [part.strip() for part in selection.split(",")]
    for spec in specs():
        fields_ = (spec.name, f"family={spec.family}", f"lineage={spec.lineage}")
        if selection == "all" or any(fnmatchcase(field, pattern) for field in fields_ for pattern in patterns):
            yield spec


def _row(spec: NetworkSpec, model: ModelProto) -> CorpusNetwork:
    row = CorpusNetwork(
        id="",
        name=spec.name,
        family=spec.family,
        lineage=spec.lineage,
        source=spec.source,
        licence=spec.licence,
        opset=0,
        inputs="",
        nodes=0,
        gflops=None,
        params=0,
        split="",
    )
    return replace(described(model, row), gflops=_gflops(model))


def _add(folder: Path, row: CorpusNetwork, model: ModelProto, *, checked: bool) -> str:
    """Write a network's graph and row, or its name beside the row of the same structure; returns what was done.

    The table is read again under a lock, so that builds of different networks can run side by side.

    Raises:
        NetworkError: the graph is too large, or it fails the check.
    """
    data = zstandard.ZstdCompressor(level=19).compress(model.SerializeToString())
    if len(data) > _LARGEST_GRAPH_BYTES:
        raise NetworkError(f"compressed graph of {len(data)} bytes, more than {_LARGEST_GRAPH_BYTES}")
    if checked and (error := check(model, row.name).error):
        raise NetworkError(error)
    table = folder / TABLE
    with _locked(folder / GRAPHS):
        rows = {known.id: known for known in _rows(folder)}
        known = rows.get(row.id)
        if known is not None:
            rows[row.id] = replace(known, aliases=tuple({*known.aliases, row.name}))
            done = f"same structure as {known.name}"
        else:
            rows[row.id] = row
            (folder / GRAPHS / f"{row.name}{GRAPH_SUFFIX}").write_bytes(data)
            done = f"{row.nodes} nodes, {len(data)} bytes"
        write_table(rows.values(), table)
    return done


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    lock = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
    finally:
        os.close(lock)


def _rows(folder: Path) -> list[CorpusNetwork]:
    table = folder / TABLE
    return read_table(table) if table.exists() else []


def _export_into(spec: NetworkSpec, results: Connection) -> None:
    from perfpred.zoo.export import export

    try:
        results.send_bytes(export(spec).SerializeToString())
    except Exception as error:  # noqa: BLE001 (the parent reports it)
        results.send_bytes(b"")
        results.send(f"{type(error).__name__}: {' '.join(str(error).split())[:200]}")


def _export(spec: NetworkSpec) -> ModelProto:
    """Export in a child process: some traces never end, and the exporter can't be interrupted.

    Raises:
        NetworkError: the export failed or took longer than `_LONGEST_EXPORT_S`.
    """
    fork = multiprocessing.get_context("fork")
    results, send = fork.Pipe(duplex=False)
    child = fork.Process(target=_export_into, args=(spec, send), daemon=True)
    child.start()
    send.close()
    try:
        if not results.poll(_LONGEST_EXPORT_S):
            raise NetworkError(f"export took longer than {_LONGEST_EXPORT_S} s")
        data = results.recv_bytes()
        if not data:
            raise NetworkError(results.recv())
        return onnx.load_from_string(data)
    except EOFError as error:
        raise NetworkError("the exporting process died") from error
    finally:
        child.kill()
        child.join()


def build(selection: str, folder: Path, *, limit: int | None, checked: bool) -> int:
    """Add every selected network that the table lacks; returns the number of failures, reported one a line."""
    (folder / GRAPHS).mkdir(parents=True, exist_ok=True)
    failures = added = 0
    for spec in _selected(selection):
        if added == limit:
            break
        if any(spec.name in (row.name, *row.aliases) for row in _rows(folder)):
            continue
        started = time.perf_counter()
        try:
            model = _export(spec)
            done = _add(folder, _row(spec, model), model, checked=checked)
        except Exception as error:  # noqa: BLE001 (one network that fails must not stop the rest)
            failures += 1
            _say(f"{spec.name}: failed: {type(error).__name__}: {' '.join(str(error).split())[:200]}")
            continue
        added += 1
        _say(f"{spec.name}: {done}, {time.perf_counter() - started:.1f} s")
    return failures


def _say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def _check_file(path: Path, half: bool) -> CheckResult:
    name = path.name.removesuffix(GRAPH_SUFFIX)
    return check(read_graph(path), name, half=half)


def check_corpus(corpus: Corpus, selection: str, jobs: int, half: bool, out: Path | None) -> int:
    """Check the selected graphs, write a report where asked to, and return the number of failures."""
    networks = sorted(corpus.select(selection), key=lambda n: -(n.gflops or 0))
    paths = [corpus.folder / GRAPHS / f"{network.name}{GRAPH_SUFFIX}" for network in networks]
    results = []
    with ProcessPoolExecutor(jobs) as pool:
        for result in pool.map(_check_file, paths, [half] * len(paths)):
            results.append(result)
            if result.error:
                _say(f"{result.name}: {result.error}")
    if out is not None:
        with out.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, [field.name for field in fields(CheckResult)], lineterminator="\n")
            writer.writeheader()
            writer.writerows(map(asdict, sorted(results, key=lambda r: r.name)))
    failures = sum(bool(result.error) for result in results)
    _say(f"{len(results)} networks checked at batch 1 and 4, {failures} failed")
    return failures


def _gflops(model: ModelProto) -> float:
    """Return 1e9 operations of one inference at batch 1.

    Raises:
        NetworkError: the graph can't be bound to static shapes.
        UnsupportedOperatorError: an operator has no rule.
    """
    cost = network_cost(load_network(model, batch_size=1).nodes)
    if cost.estimated:
        raise UnsupportedOperatorError(f"no cost rule for {', '.join(cost.estimated)}")
    return cost.flops / 1e9


def table(folder: Path) -> None:
    """Recompute the table's derived columns from the graphs, and drop rows whose graph is gone."""
    rows = []
    with _locked(folder / GRAPHS):
        for row in read_table(folder / TABLE):
            path = folder / GRAPHS / f"{row.name}{GRAPH_SUFFIX}"
            if path.exists():
                model = read_graph(path)
                rows.append(replace(described(model, row), gflops=_gflops(model)))
        write_table(rows, folder / TABLE)


def main() -> int:
    """Run the command line; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m perfpred.zoo", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    for name in ("build", "check", "table"):
        command = commands.add_parser(name)
        command.add_argument("--datasets", type=Path, default="datasets", help="folder of table and graphs")
        if name != "table":
            command.add_argument("--select", default="all", help="names, globs, family=X, lineage=X; comma-separated")
        if name == "build":
            command.add_argument("--out", dest="datasets", type=Path, help="the same as --datasets")
            command.add_argument("--limit", type=int, help="stop after adding this many")
            command.add_argument("--unchecked", action="store_true", help="leave the check to a later `check`")
        if name == "check":
            command.add_argument("--jobs", type=int, default=1)
            command.add_argument("--fp16", action="store_true", help="check native float16 graphs")
            command.add_argument("--out", type=Path, help="write a CSV report")
    arguments = parser.parse_args()
    if arguments.command == "build":
        failures = build(arguments.select, arguments.datasets, limit=arguments.limit, checked=not arguments.unchecked)
        return int(failures > 0)
    if arguments.command == "check":
        corpus = Corpus.load(arguments.datasets)
        return int(check_corpus(corpus, arguments.select, arguments.jobs, arguments.fp16, arguments.out) > 0)
    table(arguments.datasets)
    return 0


if __name__ == "__main__":
    sys.exit(main())

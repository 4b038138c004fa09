"""`python -m perfpred.zoo`: rebuilds, checks and describes the corpus.

build   export networks of the zoo that the table lacks, check them and add them (extra `zoo`)
check   run the graphs in ONNX Runtime (needs no PyTorch)
table   recompute the columns that follow from the graphs
"""

from __future__ import annotations

import argparse
import csv
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, fields, replace
from fnmatch import fnmatchcase
from pathlib import Path

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
from perfpred.zoo import NetworkSpec, specs
from perfpred.zoo.check import CheckResult, check

_LARGEST_GRAPH_BYTES = 200_000


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
    return described(model, row)


def build(selection: str, folder: Path, *, limit: int | None, checked: bool) -> int:
    """Add every selected network that the table lacks; returns the number of failures, printed one a line."""
    from perfpred.zoo.export import export

    table = folder / TABLE
    (folder / GRAPHS).mkdir(parents=True, exist_ok=True)
    rows = {row.name: row for row in read_table(table)} if table.exists() else {}
    by_id = {row.id: row.name for row in rows.values()}
    known = {name for row in rows.values() for name in (row.name, *row.aliases)}
    failures = added = 0
    for spec in _selected(selection):
        if spec.name in known or added == limit:
            continue
        started = time.perf_counter()
        try:
            model = export(spec)
        except Exception as error:  # one network that can't be exported must not stop the rest
            failures += 1
            print(f"{spec.name}: export failed: {' '.join(str(error).split())[:200]}", flush=True)
            continue
        row = _row(spec, model)
        if row.id in by_id:
            original = rows[by_id[row.id]]
            rows[original.name] = replace(original, aliases=(*original.aliases, spec.name))
            note = f"same structure as {original.name}"
        else:
            data = zstandard.ZstdCompressor(level=19).compress(model.SerializeToString())
            error = check(model, spec.name).error if checked else ""
            if error or len(data) > _LARGEST_GRAPH_BYTES:
                failures += 1
                print(f"{spec.name}: {error or f'graph of {len(data)} bytes'}", flush=True)
                continue
            (folder / GRAPHS / f"{spec.name}{GRAPH_SUFFIX}").write_bytes(data)
            rows[spec.name], by_id[row.id] = row, spec.name
            note = f"{row.nodes} nodes, {len(data)} bytes"
        added += 1
        write_table(rows.values(), table)
        print(f"{spec.name}: {note}, {time.perf_counter() - started:.1f} s", flush=True)
    return failures


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
                print(f"{result.name}: {result.error}", flush=True)
    if out is not None:
        with out.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, [field.name for field in fields(CheckResult)], lineterminator="\n")
            writer.writeheader()
            writer.writerows(map(asdict, sorted(results, key=lambda r: r.name)))
    failures = sum(bool(result.error) for result in results)
    print(f"{len(results)} networks checked at batch 1 and 4, {failures} failed")
    return failures


def _gflops(model: ModelProto) -> float | None:
    try:
        from perfpred.cost import network_cost
        from perfpred.network import load_network
    except ImportError:
        return None
    return network_cost(load_network(model, batch_size=1)).flops / 1e9


def table(folder: Path) -> None:
    """Recompute the table's derived columns from the graphs, and drop rows whose graph is gone."""
    rows = []
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
        command.add_argument("--select", default="all", help="names, globs, family=X, lineage=X; comma-separated")
        command.add_argument("--datasets", "--out" if name == "build" else "--folder", type=Path, default="datasets")
        if name == "build":
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

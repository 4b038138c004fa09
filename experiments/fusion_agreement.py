"""How well do the fusion rules agree with real builders?

Every builder says which ONNX nodes it runs as one layer; so do our rules. Both are partitions of the nodes the builder
names (others are counted and left out). Scores of a network: F1 over pairs of nodes in one layer, the share of the
builder's groups of two nodes and more that ours match exactly, and the error of the layer count: over the layers that
run named nodes, and over all, with the copies that a builder adds between formats and names no node for. Beside ours
stand the trivial rules "conv + BN + activation".

Builders: TensorRT-RTX (fp16, SM86, built here on the CPU), recorded TensorRT 8.x engines (reference data), ONNX
Runtime's optimised models (CPU). The RTX rules were developed on the lineages that `is_development` names and are
reported on the others.

Command: python experiments/fusion_agreement.py [--select sample:240] [--cache FOLDER]
Output: experiments/results/fusion_agreement.csv, .json and .md

By default two networks of each lineage are built; builds are kept in the folder given. Disagreements of some networks:
python experiments/fusion_agreement.py --builder tensorrt-rtx --select 'timm.vit*' --show 10
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import json
import os
import statistics
import tempfile
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import onnx
from classic_engines import classic_cases
from joblib import Parallel, delayed

from perfpred.corpus import Corpus, CorpusNetwork
from perfpred.engine import EngineLayer, layers_from_build_log, partition_from_engine
from perfpred.errors import PerfpredError
from perfpred.fusion import fuse, groups
from perfpred.network import Network, load_network
from perfpred.ort_graph import layers_from_optimised_model
from perfpred.runtimes.rtx_build import bind_inputs, engine_in_child, name_nodes
from perfpred.weights import bind_batch, fill_weights, to_fp16

RESULTS = Path(__file__).parent / "results"
TARGETS = {"tensorrt-rtx": 0.92, "tensorrt": 0.92, "onnxruntime": 0.97}

Partition = Mapping[str, int]


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """Scores of one network: a row of the table."""

    builder: str
    network: str
    lineage: str
    part: str
    nodes: int
    unnamed: int
    f1: float
    exact: int
    multi: int
    layers: int
    builder_layers: int
    all_layers: int
    builder_all_layers: int
    trivial_f1: float
    trivial_exact: int


def is_development(lineage: str) -> bool:
    """Whether rules may be developed on a lineage; fixed by the hash of its name."""
    return hashlib.sha256(f"perfpred fusion rules: {lineage}".encode()).digest()[0] % 2 == 0


def pair_f1(ours: Partition, theirs: Partition) -> float:
    """F1 over pairs of nodes in one group, on the nodes that `theirs` names; 1 where neither joins any."""

    def pairs(keys: Iterator[object]) -> int:
        return sum(n * (n - 1) // 2 for n in Counter(keys).values())

    both = pairs((ours[n], g) for n, g in theirs.items())
    total = pairs(ours[n] for n in theirs) + pairs(iter(theirs.values()))
    return 2 * both / total if total else 1.0


def sets_of(partition: Partition, nodes: Sequence[str]) -> set[frozenset[str]]:
    """The groups of a partition, restricted to some nodes."""
    found: dict[int, set[str]] = defaultdict(set)
    for n in nodes:
        found[partition[n]].add(n)
    return {frozenset(s) for s in found.values()}


def exact(ours: Partition, theirs: Partition) -> tuple[int, int]:
    """Groups of two nodes and more in `theirs` that ours match exactly, and how many there are."""
    nodes = list(theirs)
    wanted = [s for s in sets_of(theirs, nodes) if len(s) > 1]
    made = sets_of(ours, nodes)
    return sum(s in made for s in wanted), len(wanted)


def partition_by_rules(network: Network, rules: str) -> dict[str, int]:
    """Group number of every node."""
    return {node.name: g for g, group in enumerate(groups(network, rules)) for node in group.nodes}


def partition_of(engine: Sequence[EngineLayer], network: Network) -> dict[str, int]:
    """Layer number of every node the engine names."""
    found = partition_from_engine(engine, network)
    return {node.name: i for i, (_, nodes) in enumerate(found) for node in nodes}


def agreement(network: Network, theirs: Partition, *, rules: str, lineage: str, builder_all_layers: int) -> Agreement:
    """Scores of one network."""
    ours, trivial = partition_by_rules(network, rules), partition_by_rules(network, "trivial")
    matched, multi = exact(ours, theirs)
    return Agreement(
        builder=rules,
        network=network.name,
        lineage=lineage,
        part="development" if is_development(lineage) else "held out",
        nodes=len(network.nodes),
        unnamed=len(network.nodes) - len(theirs),
        f1=pair_f1(ours, theirs),
        exact=matched,
        multi=multi,
        layers=len({ours[n] for n in theirs}),
        builder_layers=len(set(theirs.values())),
        all_layers=len(fuse(network, rules)),
        builder_all_layers=builder_all_layers,
        trivial_f1=pair_f1(trivial, theirs),
        trivial_exact=exact(trivial, theirs)[0],
    )


def rtx_case(corpus: Corpus, row: CorpusNetwork, cache: Path, *, build: bool) -> tuple[Network, Sequence[EngineLayer]]:
    """A corpus network as TensorRT-RTX builds it in fp16 for SM86; builds are kept in `cache`."""
    model = to_fp16(corpus.model(row.name))
    name_nodes(model)
    network = load_network(model, batch_size=1, name=row.name)
    dump = cache / "tensorrt-rtx-fp16-SM86" / f"{row.name}.txt"
    if not dump.exists():
        failed = dump.with_suffix(".error")
        if failed.exists() or not build:
            raise PerfpredError(failed.read_text() if failed.exists() else "not built yet")
        dump.parent.mkdir(parents=True, exist_ok=True)
        model = fill_weights(model)
        bind_inputs(model, network)
        try:
            dump.write_text(engine_in_child(model))
        except PerfpredError as error:
            failed.write_text(str(error))
            raise
    return network, layers_from_build_log(dump.read_text(), source=row.name)


def ort_case(corpus: Corpus, row: CorpusNetwork, cache: Path) -> tuple[Network, Sequence[EngineLayer]]:
    """A corpus network as ONNX Runtime optimises it for the CPU at its default level, all."""
    graph = corpus.model(row.name)
    network = load_network(graph, batch_size=1, name=row.name)
    optimised = cache / "onnxruntime-cpu" / f"{row.name}.onnx"
    if not optimised.exists():
        import onnxruntime

        optimised.parent.mkdir(parents=True, exist_ok=True)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        options.log_severity_level = 4
        with tempfile.TemporaryDirectory() as folder:
            options.optimized_model_filepath = str(Path(folder) / "optimised.onnx")
            model = bind_batch(fill_weights(graph), 1)
            onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
            slim = onnx.load(options.optimized_model_filepath, load_external_data=False)
        for tensor in slim.graph.initializer:
            if len(tensor.raw_data) > 1024:
                tensor.ClearField("raw_data")
        optimised.write_bytes(slim.SerializeToString())
    return network, layers_from_optimised_model(optimised, network)


def corpus_agreements(
    builder: str, corpus: Corpus, rows: Sequence[CorpusNetwork], cache: Path, *, show: int, build: bool
) -> tuple[list[Agreement], dict[str, str]]:
    """Scores of corpus networks and the reason of each that has none."""
    calls = (delayed(_corpus_agreement)(builder, corpus, row, cache, show=show, build=build) for row in rows)
    made = dict(zip([row.name for row in rows], Parallel(n_jobs=1 if show else -1)(calls), strict=True))
    failed = {name: found for name, found in made.items() if isinstance(found, str)}
    return [found for found in made.values() if isinstance(found, Agreement)], failed


def _corpus_agreement(
    builder: str, corpus: Corpus, row: CorpusNetwork, cache: Path, *, show: int, build: bool
) -> Agreement | str:
    try:
        if builder == "tensorrt-rtx":
            network, engine = rtx_case(corpus, row, cache, build=build)
            theirs = partition_of(engine, network)
        else:
            network, engine = ort_case(corpus, row, cache)
            theirs = {n: i for i, layer in enumerate(engine) for n in layer.onnx_nodes}
    except Exception as error:  # noqa: BLE001  a network that one builder refuses is reported, the others go on
        return f"{type(error).__name__}: {error}".splitlines()[0][:200]
    counted = sum(layer.role == "compute" for layer in engine)
    if show:
        print_disagreements(network, engine, theirs, builder, show)
    return agreement(network, theirs, rules=builder, lineage=row.lineage, builder_all_layers=counted)


def print_disagreements(
    network: Network, engine: Sequence[EngineLayer], theirs: Partition, rules: str, limit: int
) -> None:
    """Groups that only one side makes."""
    ours = partition_by_rules(network, rules)
    label = {n.name: f"{n.op_type}{i}" for i, n in enumerate(network.nodes)}
    place = {n.name: i for i, n in enumerate(network.nodes)}
    a, b = sets_of(ours, list(theirs)), sets_of(theirs, list(theirs))
    print(f"{network.name}: F1 {pair_f1(ours, theirs):.3f}, exact {exact(ours, theirs)}")
    for group in sorted(a ^ b, key=lambda s: min(place[n] for n in s))[:limit]:
        side = "ours   " if group in a else f"builder {engine[theirs[next(iter(group))]].layer_type}"
        print("   ", side, " ".join(label[n] for n in sorted(group, key=place.__getitem__)))


def summary(rows: Sequence[Agreement]) -> dict[str, float]:
    """Means over networks; the count error is the median."""
    return {
        "networks": len(rows),
        "f1": statistics.fmean(r.f1 for r in rows),
        "exact_share": sum(r.exact for r in rows) / max(sum(r.multi for r in rows), 1),
        "exact_share_per_network": statistics.fmean([r.exact / r.multi for r in rows if r.multi] or [1.0]),
        "layer_count_error_median": statistics.median(abs(r.layers / r.builder_layers - 1) for r in rows),
        "all_layer_count_error_median": statistics.median(abs(r.all_layers / r.builder_all_layers - 1) for r in rows),
        "trivial_f1": statistics.fmean(r.trivial_f1 for r in rows),
        "trivial_exact_share": sum(r.trivial_exact for r in rows) / max(sum(r.multi for r in rows), 1),
        "unnamed_share": sum(r.unnamed for r in rows) / sum(r.nodes for r in rows),
    }


def classic_agreements(corpus: Corpus, folder: Path, *, show: int) -> tuple[list[Agreement], dict[str, str]]:
    """Scores of the recorded classic engines, and the names of each recording that nothing matches."""
    found, unmatched = [], {}
    for case in classic_cases(folder, corpus):
        theirs = partition_of(case.engine, case.network)
        lineage = corpus[case.corpus_name].lineage
        counted = sum(layer.role == "compute" for layer in case.engine)
        found.append(agreement(case.network, theirs, rules="tensorrt", lineage=lineage, builder_all_layers=counted))
        if case.unmatched:
            unmatched[case.name] = f"{len(case.unmatched)} names unmatched, such as {', '.join(case.unmatched[:3])}"
        if show:
            print_disagreements(case.network, case.engine, theirs, "tensorrt", show)
    return found, unmatched


def report(rows: Sequence[Agreement], failed: Mapping[str, Mapping[str, str]], select: str) -> str:
    """The results as Markdown."""
    lines = [
        "# Agreement of the fusion rules with real builders",
        "",
        f"`python experiments/fusion_agreement.py --select {select}`",
        "",
    ]
    for builder in TARGETS:
        some = [r for r in rows if r.builder == builder]
        if some:
            s = summary(some)
            lines.append(
                f"* {builder}: F1 {s['f1']:.3f} on {len(some)} networks (target {TARGETS[builder]}), {s['exact_share']:.1%} of the "
                f"builder's groups exactly, layer count off by {s['layer_count_error_median']:.1%} in the median; "
                f'"conv + BN + activation" alone has F1 {s["trivial_f1"]:.3f}.'
            )
    lines.append("")
    lines += [
        "| builder | part | networks | F1 | target | exact groups | count error (median) | with copies | trivial F1 | trivial exact |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for builder in TARGETS:
        for part in ("development", "held out", "all"):
            some = [r for r in rows if r.builder == builder and part in (r.part, "all")]
            if some:
                s = summary(some)
                lines.append(
                    f"| {builder} | {part} | {len(some)} | {s['f1']:.3f} | {TARGETS[builder]} | "
                    f"{s['exact_share']:.1%} | {s['layer_count_error_median']:.1%} | "
                    f"{s['all_layer_count_error_median']:.1%} | {s['trivial_f1']:.3f} | "
                    f"{s['trivial_exact_share']:.1%} |"
                )
    for builder in TARGETS:
        some = [r for r in rows if r.builder == builder]
        if not some:
            continue
        lines += [
            "",
            f"## {builder}: by lineage",
            "",
            "| lineage | part | networks | F1 | exact groups | count error |",
        ]
        lines.append("|---|---|---|---|---|---|")
        for lineage in sorted({r.lineage for r in some}):
            group = [r for r in some if r.lineage == lineage]
            s = summary(group)
            lines.append(
                f"| {lineage} | {group[0].part} | {len(group)} | {s['f1']:.3f} | {s['exact_share']:.1%} | "
                f"{s['layer_count_error_median']:.1%} |"
            )
        lines += ["", f"### {builder}: worst", "", "| network | lineage | F1 | exact | layers | builder's layers |"]
        lines.append("|---|---|---|---|---|---|")
        for r in sorted(some, key=lambda r: r.f1)[:12]:
            lines.append(
                f"| {r.network} | {r.lineage} | {r.f1:.3f} | {r.exact}/{r.multi} | {r.layers} | {r.builder_layers} |"
            )
        lines += ["", f"Nodes the builder doesn't name: {summary(some)['unnamed_share']:.1%}, left out of the scores."]
        if failed.get(builder):
            lines += ["", "Not scored or only in part:", ""]
            lines += [f"* {name}: {reason}" for name, reason in sorted(failed[builder].items())]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Runs the comparison and writes `results/fusion_agreement.{csv,json,md}` unless disagreements are only shown."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--builder", choices=[*TARGETS], action="append", help="only these builders")
    parser.add_argument(
        "--select", default="sample:34", help="corpus selection, one network of each lineage by default"
    )
    parser.add_argument(
        "--cache", type=Path, default=Path(tempfile.gettempdir()) / "perfpred-fusion", help="kept builds"
    )
    parser.add_argument("--no-build", action="store_true", help="score only what the cache holds")
    parser.add_argument(
        "--show", type=int, default=0, metavar="N", help="print N disagreements a network, write nothing"
    )
    given = parser.parse_args()
    corpus = Corpus.load()
    selected = corpus.select(given.select)
    rows: list[Agreement] = []
    failed: dict[str, dict[str, str]] = {}
    reference = os.environ.get("PERFPRED_REFERENCE_DATA")
    for builder in given.builder or TARGETS:
        if builder == "tensorrt":
            if reference is None:
                print("PERFPRED_REFERENCE_DATA is not set: recorded engines are left out")
                continue
            found, bad = classic_agreements(corpus, Path(reference) / "tensorrt_engines", show=given.show)
        else:
            found, bad = corpus_agreements(
                builder, corpus, selected, given.cache, show=given.show, build=not given.no_build
            )
        rows += found
        failed[builder] = bad
        if found:
            print(builder, {key: round(value, 3) for key, value in summary(found).items()})
    if given.show or not rows:
        return
    RESULTS.mkdir(exist_ok=True)
    with (RESULTS / "fusion_agreement.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(asdict(rows[0])), lineterminator="\n")
        writer.writeheader()
        for r in rows:
            writer.writerow({k: round(v, 4) if isinstance(v, float) else v for k, v in asdict(r).items()})
    summaries = {
        builder: {
            part: {k: round(v, 4) for k, v in summary(some).items()}
            for part in ("development", "held out", "all")
            if (some := [r for r in rows if r.builder == builder and part in (r.part, "all")])
        }
        for builder in TARGETS
    }
    command = f"python experiments/fusion_agreement.py --select {given.select}"
    (RESULTS / "fusion_agreement.json").write_text(
        json.dumps({"command": command, "summary": summaries, "failed": failed}, indent=1) + "\n"
    )
    (RESULTS / "fusion_agreement.md").write_text(report(rows, failed, given.select))


if __name__ == "__main__":
    main()

"""Does ONNX Runtime launch on a GPU what the rules `onnxruntime-cuda` say it runs as one layer?

Command: python experiments/cuda_launches.py [--full]
Output: experiments/results/cuda_launches.csv, .json and .md

The committed kernel traces name every node of the optimised graph that launched kernels. A node of the original graph
that launched under its own name was not fused into another that did. Per network and precision: layers that the rules
foresee against nodes that launched; layers that hold two launched nodes (joined in error); nodes alone in a layer that
never launched (fused or folded away in truth). Reshapes and their like launch nothing and are not counted. Of the
traced networks and precisions a sample with a fixed seed is taken, which keeps every lineage; `--full` takes all.
"""

from __future__ import annotations

import argparse
from collections.abc import Collection

import pandas as pd
from written import gpu_datasets, percent, sampled, write

from perfpred.corpus import Corpus
from perfpred.fusion import groups
from perfpred.labels import labels_of
from perfpred.network import Network, load_network

RULES = "onnxruntime-cuda"
#: Traced networks and precisions taken of each dataset, at most.
ENGINES = 200
SEED = 0


def launches(network: Network, launched: Collection[str], rules: str = RULES) -> dict[str, int]:
    """Counts of one network: nodes launched, layers foreseen, layers joined in error, nodes left alone in error.

    Args:
        network: The original graph in the precision that ran.
        launched: Names of the nodes of the optimised graph that launched kernels.
        rules: Name of a rule set.
    """
    working = [[n for n in group.nodes if "view" not in labels_of(n)] for group in groups(network, rules)]
    layers = [nodes for nodes in working if nodes]
    # A transpose is moved through the graph and merged with others: that it ran says nothing of its neighbours.
    named = [sum(n.name in launched and n.op_type != "Transpose" for n in nodes) for nodes in layers]
    return {
        "launched": len(launched),
        "layers": len(layers),
        "joined in error": sum(count > 1 for count in named),
        "alone in error": sum(len(nodes) == 1 and nodes[0].name not in launched for nodes in layers),
    }


def compared(most: int | None) -> tuple[pd.DataFrame, int]:
    """A row for each network and precision that was traced with its optimiser on, or for some; and how many there are."""
    corpus, rows, among = Corpus.load(), [], 0
    for dataset in gpu_datasets().values():
        engines = dataset.engines[dataset.engines["engine_id"].isin(dataset.times["engine_id"].unique())]
        engines = engines[(engines["optimisation"] == "all") & engines["network"].map(corpus.__contains__)]
        engines = engines.drop_duplicates(["network", "precision"])
        among += len(engines)
        chosen = engines.iloc[sampled(engines, most or len(engines), SEED)]
        times = dataset.times[dataset.times["engine_id"].isin(set(chosen["engine_id"]))]
        names = times.groupby("engine_id")["name"].agg(frozenset)
        for engine in chosen.to_dict("records"):
            model = corpus.model(engine["network"])
            network = load_network(model, batch_size=engine["batch_size"]).with_precision(engine["precision"])
            about = {key: engine[key] for key in ("network", "lineage", "precision")}
            rows.append({**about, **launches(network, names[engine["engine_id"]])})
    found = pd.DataFrame(rows).drop_duplicates(["network", "precision"])
    found["count error"] = found["layers"] / found["launched"] - 1
    return found.sort_values(["network", "precision"], ignore_index=True), among


def findings(found: pd.DataFrame, among: int) -> list[str]:
    """Sentences with the numbers of the table."""
    error = found["count error"].abs()
    totals = found[["launched", "layers", "joined in error", "alone in error"]].sum()
    return [
        f"{len(found)} of {among} traced networks and precisions: layer count off by {percent(error.mean())} on average, median "
        f"{percent(error.median())}, 90th percentile {percent(error.quantile(0.9))}.",
        f"{totals['launched']} nodes launched, {totals['layers']} layers foreseen; {totals['joined in error']} layers "
        f"hold nodes that launched apart, {totals['alone in error']} nodes left alone never launched.",
    ]


def main() -> None:
    """Compare, write and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--full", action="store_true", help="all traced networks")
    full = parser.parse_args().full
    found, among = compared(None if full else ENGINES)
    error, said = found["count error"].abs(), findings(found, among)
    by = found.assign(error=error).groupby(["lineage", "precision"])
    lineages = by.agg(networks=("network", "size"), mean_count_error=("error", "mean"), worst=("error", "max"))
    worst = found.assign(error=error).sort_values("error", ascending=False, kind="stable").drop(columns="error")
    write(
        "cuda_launches",
        "Layers foreseen and nodes launched by ONNX Runtime on CUDA",
        tables={
            "networks": found,
            "Networks furthest off": worst.head(16),
            "By lineage": lineages.reset_index(),
        },
        findings=said,
        figures=[],
        options="--full" if full else "",
    )
    print("\n".join(said))


if __name__ == "__main__":
    main()

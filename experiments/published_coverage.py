"""How much of the published TensorRT measurements has a graph, and are the graphs faithful?

Command: PERFPRED_REFERENCE_DATA=... python experiments/published_coverage.py
Output: experiments/results/published_coverage.csv (rows mapped, by source, device, kind and precision), .json and .md,
and published_faithful.csv (parameters and multiply-adds of each mapped builder beside the reference count of the same
architecture)

Copies in the tables are left out. Latencies stay where they are: the results hold counts alone.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
from written import RESULTS, reference_data, write

from perfpred.corpus import Corpus
from perfpred.cost import node_flops, node_kind
from perfpred.layer import Node
from perfpred.network import load_network
from perfpred.published import Graphs, lab_of, read_published

TABLES = ("tensorrt_published.csv", "tensorrt_published_detectors.csv")
#: Kinds whose multiply-adds the reference counts.
COUNTED = ("conv", "depthwise_conv", "deconv", "gemm", "attention")


def mapped_rows(folder: Path) -> pd.DataFrame:
    """Every row that is no copy, with the name and kind of its mapping; empty where it has none."""
    graphs = Graphs(Corpus.load(), None, folder)
    parts = []
    for table in TABLES:
        rows = read_published(folder / table)
        found = [graphs.find(row) for row in rows.to_dict("records")]
        rows["graph_name"] = ["" if m is None else m.name for m in found]
        rows["mapping"] = ["none" if m is None else m.mapping for m in found]
        parts.append(rows.assign(table=table))
    return pd.concat(parts, ignore_index=True)


def coverage(rows: pd.DataFrame) -> pd.DataFrame:
    """Counts by source, device, latency kind and precision."""
    rows = rows.assign(lab=rows["source"].map(lab_of))
    keys = ["table", "lab", "device", "latency_kind", "precision"]
    return (
        rows.groupby(keys)
        .agg(
            rows=("mapping", "size"),
            exact=("mapping", lambda m: int((m == "exact").sum())),
            approx=("mapping", lambda m: int((m == "approx").sum())),
            networks=("graph_name", lambda n: n[n != ""].nunique()),
            families=("family", "nunique"),
        )
        .reset_index()
    )


def _multiplies(node: Node) -> bool:
    return node_kind(node) in COUNTED


def faithful(rows: pd.DataFrame, folder: Path) -> pd.DataFrame:
    """Parameters (1e6) and multiply-adds (1e9) of each mapped builder and of the reference count."""
    stats = pd.read_csv(folder / "zoo_stats.csv")
    known: dict[tuple[str, int, int], Any] = {(r.zoo, r.input_h, r.input_w): r for r in stats.itertuples()}
    corpus = Corpus.load()
    made = []
    for (zoo, shape, name), _ in rows[(rows["zoo"] != "") & (rows["graph_name"] != "")].groupby(
        ["zoo", rows["input_shape"].str.split("x", n=1).str[1], "graph_name"]
    ):
        height, width = map(int, shape.split("x")[1:])
        reference = known.get((zoo, height, width))
        if reference is None:
            continue
        network = load_network(corpus.model(name), batch_size=1)
        multiplied = sum(node_flops(node) for node in network.nodes if _multiplies(node)) / 2e9
        made.append(
            {
                "zoo": zoo,
                "input": f"{height}x{width}",
                "graph": name,
                "params_m": network.parameters / 1e6,
                "params_reference_m": reference.params_m,
                "gmacs": multiplied,
                "gmacs_reference": reference.gmacs,
            }
        )
    table = pd.DataFrame(made)
    table["params_difference"] = table["params_m"] / table["params_reference_m"] - 1
    table["gmacs_difference"] = table["gmacs"] / table["gmacs_reference"] - 1
    return table


def findings(rows: pd.DataFrame, check: pd.DataFrame) -> list[str]:
    """Sentences with the numbers of the tables."""
    mapped = rows[rows["mapping"] != "none"]
    exact = int((mapped["mapping"] == "exact").sum())
    jetson = mapped["device"].str.startswith("jetson").sum()
    off = check[~_within(check)]
    named = ", ".join(f"{r['zoo']} at {r['input']}" for r in off.to_dict("records"))
    return [
        f"{len(rows)} rows without copies; {len(mapped)} have a graph ({exact} exact, {len(mapped) - exact} approximate), "
        f"{jetson} of them on a Jetson; {mapped['graph_name'].nunique()} graphs.",
        f"{len(check)} builders checked: {len(check) - len(off)} have parameters within 1.4 % and multiply-adds within 2 % of "
        f"the reference count" + (f"; others: {named}." if named else "."),
    ]


def _within(check: pd.DataFrame) -> pd.Series:
    return (check["params_difference"].abs() <= 0.014) & (check["gmacs_difference"].abs() <= 0.02)


def main() -> None:
    """Counts, checks, writes and prints."""
    folder = reference_data()
    if folder is None:
        return
    rows = mapped_rows(folder)
    check, table = faithful(rows, folder), coverage(rows)
    check.round(5).to_csv(RESULTS / "published_faithful.csv", index=False)
    said = findings(rows, check)
    tables = {"coverage": table, "Rows with a graph": table, "Builders outside": check[~_within(check)]}
    title = "Published measurements that have a graph"
    write("published_coverage", title, tables=tables, findings=said, figures=[], most=200)
    print("\n".join(said))


if __name__ == "__main__":
    main()

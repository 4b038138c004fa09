"""How much of the published TensorRT measurements has a graph, and whether the graphs are faithful.

    python experiments/published_coverage.py REFERENCE_DATA [--out experiments/results]

Writes `published_coverage.csv` (rows mapped, by source, device, kind and precision) and `published_faithful.csv`
(parameters and multiply-adds of each mapped builder beside the reference count of the same architecture).
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import pandas as pd

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


def main() -> None:
    """Writes both tables and prints the sums."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("reference_data", type=Path)
    parser.add_argument("--out", type=Path, default=Path("experiments/results"))
    asked = parser.parse_args()
    rows = mapped_rows(asked.reference_data)
    check = faithful(rows, asked.reference_data)
    asked.out.mkdir(parents=True, exist_ok=True)
    coverage(rows).to_csv(asked.out / "published_coverage.csv", index=False)
    check.round(5).to_csv(asked.out / "published_faithful.csv", index=False)
    main_table = rows[rows["table"] == TABLES[0]]
    mapped = rows[rows["mapping"] != "none"]
    jetson = main_table["device"].str.startswith("jetson") & (main_table["mapping"] != "none")
    within = (check["params_difference"].abs() <= 0.014) & (check["gmacs_difference"].abs() <= 0.02)
    lines = [
        f"rows without copies: {len(rows)}; mapped: {len(mapped)} "
        f"(exact {int((mapped['mapping'] == 'exact').sum())}, approx {int((mapped['mapping'] == 'approx').sum())})",
        f"main table: {int((main_table['mapping'] != 'none').sum())} mapped, {int(jetson.sum())} of them Jetson; "
        f"detectors: {int((rows['table'] == TABLES[1]).sum())}",
        f"builders checked: {len(check)}; parameters within 1.4 % and multiply-adds within 2 %: {int(within.sum())}",
        check[~within].to_string(index=False),
    ]
    sys.stdout.write("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()

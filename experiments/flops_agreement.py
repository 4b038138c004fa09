"""Do our FLOPs and parameters agree with a well-kept counter and with published figures?

Command: PERFPRED_REFERENCE_DATA=... python experiments/flops_agreement.py [--full]
Output: experiments/results/flops_agreement.csv, flops_published.csv and flops_agreement.md
Command: python experiments/flops_agreement.py count [--networks 160]
Output: experiments/results/flops_counter.csv; needs the extra zoo

The second command counts corpus networks with `torch.utils.flop_counter` (matrix products, convolutions and
attention; 2 per multiply-accumulate). The first infers shapes and cost of corpus networks, names operators without a
rule, and compares with that file, with the published figures below and, where PERFPRED_REFERENCE_DATA names the
reference folder, with its own count `zoo_stats.csv`. It takes the networks of those, and some of every lineage besides;
with --full all.
"""

from __future__ import annotations

import argparse
import csv
import time
import warnings
from collections.abc import Sequence
from pathlib import Path

import pandas as pd
from written import RESULTS, reference_data

from perfpred.corpus import Corpus, name_of
from perfpred.cost import network_cost, node_kind
from perfpred.group import node_geometry
from perfpred.layer import Node
from perfpred.network import Network, load_network

COUNTED = RESULTS / "flops_counter.csv"
TOLERANCE = 0.01
#: Networks spread over the lineages, besides those that others counted too.
SAMPLE = 200

_TORCHVISION = "torchvision 0.29.1, metadata of the weights"
#: Published parameters in millions and giga-multiply-accumulates at the corpus input size.
PUBLISHED = {
    "torchvision.alexnet": (61.101, 0.714, _TORCHVISION),
    "torchvision.vgg11": (132.863, 7.609, _TORCHVISION),
    "torchvision.vgg16": (138.358, 15.47, _TORCHVISION),
    "torchvision.googlenet": (6.625, 1.498, _TORCHVISION),
    "torchvision.inception_v3": (23.835, 5.713, f"{_TORCHVISION}, less the auxiliary head of 3.327 M"),
    "torchvision.resnet18": (11.690, 1.814, _TORCHVISION),
    "torchvision.resnet50": (25.557, 4.089, _TORCHVISION),
    "torchvision.resnext50_32x4d": (25.029, 4.230, _TORCHVISION),
    "torchvision.wide_resnet50_2": (68.883, 11.398, _TORCHVISION),
    "torchvision.densenet121": (7.979, 2.834, _TORCHVISION),
    "torchvision.mobilenet_v2": (3.505, 0.301, _TORCHVISION),
    "torchvision.mobilenet_v3_large": (5.483, 0.217, _TORCHVISION),
    "torchvision.mobilenet_v3_small": (2.543, 0.057, _TORCHVISION),
    "torchvision.mnasnet1_0": (4.383, 0.314, _TORCHVISION),
    "torchvision.squeezenet1_1": (1.235, 0.349, _TORCHVISION),
    "torchvision.shufflenet_v2_x1_0": (2.279, 0.145, _TORCHVISION),
    "torchvision.efficientnet_b0": (5.289, 0.386, _TORCHVISION),
    "torchvision.ssdlite320_mobilenet_v3_large": (3.440, 0.583, _TORCHVISION),
    "timm.convnext_tiny": (28.589, 4.456, f"{_TORCHVISION} (convnext_tiny)"),
    "timm.swin_tiny_patch4_window7_224": (
        28.288,
        4.491,
        f"{_TORCHVISION} (swin_t); position biases are expanded in the graph",
    ),
    "timm.vit_base_patch16_224": (86.568, 17.564, f"{_TORCHVISION} (vit_b_16)"),
    "timm.regnety_008": (6.3, 0.8, "Radosavovic et al., CVPR 2020, table of RegNetY"),
    "timm.deit_small_patch16_224": (22.0, 4.6, "Touvron et al., ICML 2021"),
}

#: Networks where counts may differ by more than the tolerance, and why.
EXCEPTIONS: dict[str, str] = {}


def matrix_flops(node: Node) -> int:
    """Return the FLOPs of convolutions and matrix products alone, which is what PyTorch's counter counts."""
    if node_kind(node) not in ("conv", "depthwise_conv", "deconv", "gemm", "attention", "recurrent"):
        return 0
    size = node_geometry(node)
    products = 2 if node_kind(node) == "attention" else 1
    return 2 * products * size["m"] * size["n"] * size["k"] * size["groups"] * size.get("steps", 1)


def chosen(corpus: Corpus, *, full: bool) -> list[str]:
    """Names of the networks that are costed: all, or those that others counted too and a sample of the lineages."""
    if full:
        return [entry.name for entry in corpus]
    names = {entry.name for entry in corpus.sample(SAMPLE)} | PUBLISHED.keys()
    names |= set(pd.read_csv(COUNTED)["name"]) if COUNTED.exists() else set()
    if reference := reference_data():
        counted = pd.read_csv(reference / "zoo_stats.csv")
        names |= {
            name for row in counted.itertuples() for name in (name_of(row.zoo), f"{name_of(row.zoo)}@{row.input_h}")
        }
    return [entry.name for entry in corpus if entry.name in names]


def costs(corpus: Corpus, names: Sequence[str]) -> pd.DataFrame:
    """Infer shapes and cost of networks of the corpus; one row a network."""
    rows = []
    for entry in map(corpus.__getitem__, names):
        model = corpus.model(entry.name)
        start = time.perf_counter()
        network: Network = load_network(model, batch_size=1, name=entry.name)
        bound = time.perf_counter()
        cost = network_cost(network.nodes)
        done = time.perf_counter()
        rows.append(
            {
                **{"name": entry.name, "family": entry.family, "lineage": entry.lineage, "inputs": entry.inputs},
                **{"nodes": len(network.nodes), "params": entry.params, "gflops": cost.flops / 1e9},
                "matrix_gflops": sum(map(matrix_flops, network.nodes)) / 1e9,
                "dram_mb": cost.dram_bytes / 1e6,
                "without_rule": " ".join(cost.estimated),
                **{"shapes_s": bound - start, "cost_s": done - bound},
            }
        )
    return pd.DataFrame(rows)


def count(networks: int) -> None:
    """Count modules of the zoo with PyTorch's counter and write the table; earlier rows are kept."""
    import torch  # noqa: TID251
    from torch.utils.flop_counter import FlopCounterMode  # noqa: TID251

    from perfpred.zoo import specs
    from perfpred.zoo.export import random_initialisation_skipped

    corpus = Corpus.load()
    wanted = {n.name for n in corpus.sample(networks)} | {name for name in PUBLISHED if name in corpus}
    rows = {}
    if COUNTED.exists():
        with COUNTED.open(newline="") as file:
            rows = {row["name"]: row for row in csv.DictReader(file)}
    for spec in specs():
        if spec.name not in wanted or spec.name in rows:
            continue
        with random_initialisation_skipped(), warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            module, inputs = spec.build()
            module.eval()
            # Shapes are all that counting needs, so no arithmetic is done.
            counter = FlopCounterMode(display=False)
            try:
                module, inputs = module.to("meta"), tuple(x[:1].to("meta") for x in inputs)
                with counter:
                    module(*inputs)
            except (RuntimeError, NotImplementedError, TypeError, ValueError) as error:
                print(f"{spec.name}: not counted ({str(error).splitlines()[0][:120]})")
                continue
        params = sum(p.numel() for p in module.parameters())
        rows[spec.name] = {
            "name": spec.name,
            "counter_gflops": counter.get_total_flops() / 1e9,
            "module_params": params,
        }
        print(f"{spec.name}: {counter.get_total_flops() / 1e9:.4g} GFLOPs")
    RESULTS.mkdir(exist_ok=True)
    with COUNTED.open("w", newline="") as file:
        writer = csv.DictWriter(file, ["name", "counter_gflops", "module_params"], lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows[name] for name in sorted(rows))


def compare(*, full: bool) -> None:
    """Cost the corpus or a part of it, compare, write the tables and the paragraph."""
    corpus = Corpus.load()
    names = chosen(corpus, full=full)
    found = costs(corpus, names).set_index("name")
    RESULTS.mkdir(exist_ok=True)
    lines = [
        "# FLOPs and parameters against others' counts",
        "",
        f"`python experiments/flops_agreement.py{' --full' if full else ''}`",
        "",
        f"{len(found)} of {len(corpus)} networks of the corpus, of {found['family'].nunique()} families and "
        f"{found['lineage'].nunique()} lineages; {int(found['nodes'].sum())} nodes. Shape inference took "
        f"{found['shapes_s'].sum():.1f} s and cost {found['cost_s'].sum():.1f} s in one process; networks with an "
        f"operator without a rule: {int((found['without_rule'] != '').sum())}.",
        "",
    ]
    if COUNTED.exists():
        both = found.join(pd.read_csv(COUNTED).set_index("name"), how="inner")
        both["ratio"] = both["matrix_gflops"] / both["counter_gflops"]
        both["agrees"] = (both["ratio"] - 1).abs() <= TOLERANCE
        both["reason"] = [EXCEPTIONS.get(n, "") if not ok else "" for n, ok in both["agrees"].items()]
        both[["lineage", "matrix_gflops", "counter_gflops", "ratio", "reason"]].round(5).to_csv(
            RESULTS / "flops_agreement.csv"
        )
        good = both[both["agrees"]]
        lines += [
            f"`torch.utils.flop_counter`: {len(good)} of {len(both)} networks counted agree within "
            f"{TOLERANCE:.0%}, of {good['lineage'].nunique()} lineages{'.' if len(good) == len(both) else '; not:'}",
            "",
            *(f"- {n}: {r.ratio:.3f}; {r.reason or 'unexplained'}" for n, r in both[~both["agrees"]].iterrows()),
            *([""] if len(good) < len(both) else []),
        ]
    lines += published(found)
    if reference := reference_data():
        lines += zoo_stats(found, reference / "zoo_stats.csv")
    (RESULTS / "flops_agreement.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
    print("\n".join(lines))


def published(found: pd.DataFrame) -> list[str]:
    """Compare parameters and GMACs with published figures; returns a Markdown table."""
    rows = []
    for name, (params_m, gmacs, source) in PUBLISHED.items():
        if name in found.index:
            ours = found.loc[name]
            own_m, own_g = ours["params"] / 1e6, ours["matrix_gflops"] / 2
            rows.append((name, own_m, params_m, own_m / params_m, own_g, gmacs, own_g / gmacs, source))
    names = ("network", "params_m", "published_params_m", "params_ratio", "gmacs", "published_gmacs", "ratio", "source")
    table = pd.DataFrame(rows, columns=list(names)).round(4)
    table.to_csv(RESULTS / "flops_published.csv", index=False)
    cells = [f"| {' | '.join(map(str, row))} |" for row in table.itertuples(index=False)]
    return [
        "Published figures (parameters of the graph have batch normalisation folded into convolutions):",
        "",
        f"| {' | '.join(names)} |",
        f"|{'---|' * len(names)}",
        *cells,
        "",
    ]


def zoo_stats(found: pd.DataFrame, path: Path) -> list[str]:
    """Compare with the reference folder's own count, at equal input sizes."""
    ratios = []
    for row in pd.read_csv(path).itertuples(index=False):
        for name in (name_of(row.zoo), f"{name_of(row.zoo)}@{row.input_h}"):
            if name in found.index and found.loc[name, "inputs"] == f"3x{row.input_h}x{row.input_w}":
                ratios.append((name, found.loc[name, "matrix_gflops"] / 2 / row.gmacs))
    off = [f"{name} {ratio:.3f}" for name, ratio in ratios if abs(ratio - 1) > TOLERANCE]
    return [
        f"Reference count `zoo_stats.csv`: {len(ratios) - len(off)} of {len(ratios)} networks within "
        f"{TOLERANCE:.0%}{'; others: ' + ', '.join(off) if off else ''}.",
    ]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", nargs="?", choices=("compare", "count"), default="compare")
    parser.add_argument("--networks", type=int, default=160, help="networks to count, spread over the lineages")
    parser.add_argument("--full", action="store_true", help="compare all networks of the corpus")
    arguments = parser.parse_args()
    count(arguments.networks) if arguments.command == "count" else compare(full=arguments.full)

"""Which engines do the measuring campaigns plan?

Command: python experiments/campaign_plans.py
Output: datasets/gpu-onnxruntime/plan-h100.json, plan-h200.json, plan-rebuilds.json and datasets/cpu-onnxruntime/plan.json

Every family meets every partition, its networks by turns; precisions, batch sizes, kernel traces and further options
are sampled by a hash of the name. Networks come in rounds, one of each family at a time: a campaign that stops early
covers all families.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from perfpred.corpus import Corpus, CorpusNetwork
from perfpred.cost import network_cost
from perfpred.network import load_network
from perfpred.unit import Plan, Unit

ROOT = Path(__file__).resolve().parent.parent / "datasets"
PARTITIONS: Sequence[int | None] = (None, 64, 32, 16, 8)
#: Longest engine worth planning: below it a hundred replays take seconds, and every device meets every scale.
LONGEST_S = 0.06
#: Rate one SM reaches on typical convolutions, FLOP/s; only to leave out what would take too long.
SM_FLOPS = 1.5e12
REBUILT = (
    "torchvision.alexnet", "torchvision.vgg16", "torchvision.googlenet", "torchvision.resnet18",
    "torchvision.resnet50", "torchvision.densenet121", "torchvision.mobilenet_v2", "torchvision.mobilenet_v3_large",
    "torchvision.squeezenet1_1", "timm.efficientnet_b0", "timm.vit_tiny_patch16_224", "timm.convnext_tiny",
    "timm.swin_tiny_patch4_window7_224", "timm.regnety_008", "timm.hrnet_w18_small",
)  # fmt: skip


def draw(name: str, what: str) -> float:
    """A number in [0, 1) that depends on the name and the purpose alone."""
    return int.from_bytes(hashlib.sha256(f"{what}/{name}".encode()).digest()[:6], "big") / 2**48


def choose(name: str, what: str, options: Sequence[Any]) -> Any:
    """One of the options, by the name."""
    return options[int(draw(name, what) * len(options))]


def fits(flops: float, batch_size: int, sm_count: int | None) -> bool:
    """Whether an engine is short enough to plan."""
    return flops * batch_size / ((sm_count or 132) * SM_FLOPS) < LONGEST_S


def h100_units(network: CorpusNetwork, flops: float, place: int, siblings: int) -> Iterator[Unit]:
    """Units of one network on the GPU that carries the partitions.

    `place` numbers the network among the `siblings` of its family: partitions are dealt out in turn, so that every
    family meets every one.
    """
    name = network.name
    share = max(2, -(-len(PARTITIONS) // siblings))
    for turn in range(share):
        sms = PARTITIONS[(place * share + turn) % len(PARTITIONS)]
        if fits(flops, 1, sms):
            yield Unit(network=name, precision="fp16", sm_count=sms, layers=True, detail=draw(name, "detail") < 0.1)
    if draw(name, "off") < 0.12:
        yield Unit(network=name, precision="fp16", optimisation="off")
    sms = PARTITIONS[(place + int(5 * draw(network.family, "tf32"))) % len(PARTITIONS)]
    if fits(2 * flops, 1, sms):
        yield Unit(network=name, precision="tf32", sm_count=sms, layers=draw(name, "trace") < 0.3)
    if draw(name, "fp32") < 0.1 and fits(4 * flops, 1, sms):
        yield Unit(network=name, precision="fp32", sm_count=sms)
    batch, sms = choose(name, "batch", (4, 8, 32)), choose(name, "batch-sms", PARTITIONS)
    if draw(name, "batched") < 0.6 and fits(flops, batch, sms):
        yield Unit(network=name, precision="fp16", batch_size=batch, sm_count=sms, layers=draw(name, "trace") < 0.5)


def h200_units(network: CorpusNetwork, flops: float, place: int, siblings: int) -> Iterator[Unit]:
    """Units of one network on the second GPU; the arguments are those of `h100_units`."""
    name = network.name
    sms = PARTITIONS[place % len(PARTITIONS)] if place % 2 else None
    if fits(flops, 1, sms):
        yield Unit(network=name, precision="fp16", sm_count=sms, layers=draw(name, "h200-trace") < 0.3)
    batch = choose(name, "h200-batch", (8, 8, 32))
    if draw(name, "h200-second") < 0.6 and fits(flops, batch, None):
        yield Unit(network=name, precision="fp16", batch_size=batch)
    elif fits(2 * flops, 1, sms):
        yield Unit(network=name, precision="tf32", sm_count=sms)


def cpu_units(network: CorpusNetwork, flops: float, place: int, siblings: int) -> Iterator[Unit]:
    """Units of one network on a CPU; the arguments are those of `h100_units`."""
    name = network.name
    if flops < 25e9:
        yield Unit(network=name, precision="fp32", target="cpu", layers=True)
        if draw(name, "cpu-off") < 0.15:
            yield Unit(network=name, precision="fp32", target="cpu", optimisation="off")
        if draw(name, "int8") < 0.15:
            yield Unit(network=name, precision="int8", target="cpu")


def _in_turn(corpus: Corpus) -> list[CorpusNetwork]:
    """Networks in rounds: the first of each family, then the second, each round in the order of a hash."""
    rank: dict[str, int] = {}
    rounds = []
    for network in sorted(corpus, key=lambda n: draw(n.name, "order")):
        rank[network.family] = rank.get(network.family, -1) + 1
        rounds.append((rank[network.family], len(rounds), network))
    return [network for _, _, network in sorted(rounds, key=lambda r: r[:2])]


def main() -> None:
    """Writes the four plans."""
    corpus = Corpus.load()
    networks = _in_turn(corpus)
    families: dict[str, list[str]] = {}
    for network in networks:
        families.setdefault(network.family, []).append(network.name)
    flops = {}
    for network in networks:
        flops[network.name] = (
            network.gflops * 1e9
            if network.gflops
            else network_cost(load_network(corpus.model(network.name), batch_size=1).nodes).flops
        )
    gpu, cpu = ROOT / "gpu-onnxruntime", ROOT / "cpu-onnxruntime"
    gpu.mkdir(exist_ok=True)
    cpu.mkdir(exist_ok=True)
    plans = {gpu / "plan-h100.json": h100_units, gpu / "plan-h200.json": h200_units, cpu / "plan.json": cpu_units}
    for path, units_of in plans.items():
        units = []
        for network in networks:
            siblings = families[network.family]
            place = siblings.index(network.name)
            units += units_of(network, flops[network.name], place, len(siblings))
        plan = Plan(units=tuple(units))
        plan.save(path)
        print(f"{path.relative_to(ROOT)}: {len(plan.units)} engines of {len(networks)} networks")
    known = {n.name for n in networks}
    rebuilds = Plan(
        units=tuple(
            Unit(network=name, precision="fp16", rebuild=i, check_outputs=True, layers=True)
            for name in REBUILT
            if name in known
            for i in range(10)
        )
    )
    rebuilds.save(gpu / "plan-rebuilds.json")
    print(f"gpu-onnxruntime/plan-rebuilds.json: {len(rebuilds.units)} engines")


if __name__ == "__main__":
    main()

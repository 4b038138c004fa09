"""Which engines do the measuring campaigns plan?

Command: python experiments/campaign_plans.py
Output: datasets/gpu-onnxruntime/plan-h100.json, plan-h200.json and datasets/cpu-onnxruntime/plan.json

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
from perfpred.errors import PerfpredError
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


def gpu_units(network: CorpusNetwork, flops: float, turn: int, place: int) -> Iterator[Unit]:
    """Units of one network on a GPU.

    Args:
        network: The network.
        flops: Its work at batch 1.
        turn: Shifts the partitions, so that a second GPU meets others.
        place: Number of the network among those of its family; the first two get a second unit.
    """
    name = network.name
    whole = (place + turn) % 3 == 0
    sms = None if whole else PARTITIONS[1 + (place * 3 + turn) % 4]
    trace = draw(name, f"trace-{turn}") < 0.4
    if fits(flops, 1, sms):
        yield Unit(network=name, precision="fp16", sm_count=sms, layers=trace, detail=draw(name, "detail") < 0.05)
    if place > 1:
        return
    kind = choose(name, f"second-{turn}", ("tf32", "tf32", "batch", "batch", "partition", "fp32", "off"))
    other = PARTITIONS[(place * 2 + turn + int(5 * draw(network.family, "other"))) % len(PARTITIONS)]
    batch = choose(name, f"batch-{turn}", (4, 8, 32) if turn == 0 else (8, 8, 32))
    if kind == "batch" and fits(flops, batch, other):
        yield Unit(network=name, precision="fp16", batch_size=batch, sm_count=other)
    elif kind in ("tf32", "fp32") and fits(4 * flops, 1, other):
        yield Unit(network=name, precision=kind, sm_count=other)
    elif kind == "off":
        yield Unit(network=name, precision="fp16", optimisation="off")
    elif other != sms and fits(flops, 1, other):
        yield Unit(network=name, precision="fp16", sm_count=other)


def cpu_units(network: CorpusNetwork, flops: float) -> Iterator[Unit]:
    """Units of one network on a CPU."""
    name = network.name
    if flops < 12e9:
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
    """Writes the three plans."""
    corpus = Corpus.load()
    networks = _in_turn(corpus)
    families: dict[str, list[str]] = {}
    for network in networks:
        families.setdefault(network.family, []).append(network.name)
    flops: dict[str, float] = {}
    for network in networks:
        try:
            known_flops = network.gflops * 1e9 if network.gflops else None
            flops[network.name] = known_flops or float(
                network_cost(load_network(corpus.model(network.name), batch_size=1).nodes).flops
            )
        except PerfpredError as error:
            print(f"left out: {error}")
    networks = [n for n in networks if n.name in flops]
    gpu, cpu = ROOT / "gpu-onnxruntime", ROOT / "cpu-onnxruntime"
    gpu.mkdir(exist_ok=True)
    cpu.mkdir(exist_ok=True)
    known = {n.name for n in networks}
    rebuilds = [
        Unit(network=name, precision="fp16", rebuild=i, check_outputs=True)
        for i in range(1, 5)
        for name in REBUILT
        if name in known
    ]
    places = {n.name: families[n.family].index(n.name) for n in networks}
    plans = {
        gpu / "plan-h100.json": [
            *rebuilds,
            *(u for n in networks for u in gpu_units(n, flops[n.name], 0, places[n.name])),
        ],
        gpu / "plan-h200.json": [u for n in networks for u in gpu_units(n, flops[n.name], 1, places[n.name])],
        cpu / "plan.json": [u for n in networks for u in cpu_units(n, flops[n.name])],
    }
    for path, units in plans.items():
        Plan(units=tuple(units)).save(path)
        print(f"{path.relative_to(ROOT)}: {len(units)} engines of {len({u.network for u in units})} networks")


if __name__ == "__main__":
    main()

"""Which engines do the measuring campaigns plan?

Command: python experiments/campaign_plans.py
Output: datasets/gpu-onnxruntime/plan-all.json and plan-probes.json, datasets/cpu-onnxruntime/plan.json and
plan-emerald-rapids.json

Every network meets the whole GPU and some partitions, so that every family meets every partition; precisions, batch
sizes, kernel traces and further options are sampled by a hash of the name. Networks come in rounds, one of each family
at a time: a campaign that stops early covers all families. Probes, whose single layers are for training, have a plan of
their own on the GPU, where the layers of each of their engines are timed.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from perfpred.corpus import PROBE, Corpus, CorpusNetwork
from perfpred.cost import network_cost
from perfpred.errors import PerfpredError
from perfpred.network import load_network
from perfpred.unit import Plan, Unit

ROOT = Path(__file__).resolve().parent.parent / "datasets"
PARTITIONS: Sequence[int | None] = (None, 64, 32, 16, 8)
#: Longest engine worth planning: below it a hundred replays take two seconds, and every device meets every scale.
LONGEST_S = 0.02
#: Rate one SM reaches on typical convolutions, FLOP/s; only to leave out what would take too long.
SM_FLOPS = 1.5e12
#: Work of the largest engine planned for one core of a CPU, FLOP.
CPU_LONGEST_FLOPS = 12e9
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


def gpu_jobs(network: CorpusNetwork, flops: float, place: int) -> Iterator[tuple[float, list[Unit]]]:
    """Units of one network on a GPU, in jobs that share a prepared model.

    Args:
        network: The network.
        flops: Its work at batch 1.
        place: Number of the network among those of its family; shifts the partitions.

    Yields:
        How much later than the first job this one comes, as a share of all networks; and its units.
    """
    name, family = network.name, int(4 * draw(network.family, "partition"))
    parts = [PARTITIONS[1 + (family + place + i) % 4] for i in range(4)]
    batch = choose(name, "batch", (4, 8, 8, 32))

    def traced(what: str) -> bool:
        return draw(name, f"trace-{what}") < 0.4

    half = [
        Unit(network=name, precision="fp16", sm_count=sms, layers=traced(f"{sms}"), detail=draw(name, "detail") < 0.03)
        for sms in (None, parts[0], parts[1])
        if fits(flops, 1, sms)
    ]
    if half and draw(name, "off") < 0.3:
        half.append(replace(half[0], optimisation="off", layers=False))
    yield 0.0, half
    single = [
        Unit(network=name, precision="tf32", sm_count=sms, layers=traced(f"tf32-{sms}"))
        for sms in ((None, parts[2]) if draw(name, "tf32") < 0.6 else (parts[2],))
        if fits(2 * flops, 1, sms)
    ]
    if single and draw(name, "fp32") < 0.15:
        single.append(replace(single[0], precision="fp32", layers=False))
    yield 0.3, single
    yield (
        0.35,
        [
            Unit(network=name, precision="fp16", batch_size=batch, sm_count=sms, layers=traced(f"batch-{sms}"))
            for sms in (None, parts[3])
            if fits(flops, batch, sms)
        ],
    )
    if draw(name, "tf32-batch") < 0.25 and fits(2 * flops, batch, None):
        yield 0.5, [Unit(network=name, precision="tf32", batch_size=batch)]


def probe_units(network: CorpusNetwork) -> list[Unit]:
    """Units of one probe on a GPU: the whole of it and its partitions, all precisions, batches of one and of eight."""
    name = network.name
    first = int(4 * draw(name, "partition"))
    some, other, third, last = (PARTITIONS[1 + (first + i) % 4] for i in range(4))
    return [
        Unit(network=name, precision="fp16", layers=True),
        Unit(network=name, precision="fp16", sm_count=some, layers=True),
        Unit(network=name, precision="tf32", sm_count=choose(name, "tf32", (None, other)), layers=True),
        Unit(network=name, precision="fp16", sm_count=third, batch_size=8, layers=True),
        Unit(network=name, precision="fp16", sm_count=last, layers=True),
        Unit(network=name, precision="tf32", sm_count=third, layers=True),
        Unit(network=name, precision="fp32", sm_count=choose(name, "fp32", (None, last)), layers=True),
        Unit(network=name, precision="fp32", sm_count=some, layers=True),
    ]


def cpu_units(network: CorpusNetwork, flops: float) -> Iterator[Unit]:
    """Units of one network on a CPU."""
    name = network.name
    if flops < CPU_LONGEST_FLOPS:
        yield Unit(network=name, precision="fp32", target="cpu", layers=True)
        if network.lineage != PROBE and draw(name, "cpu-off") < 0.15:
            yield Unit(network=name, precision="fp32", target="cpu", optimisation="off")
        if draw(name, "int8") < (1.0 if network.lineage == PROBE else 0.15):
            yield Unit(network=name, precision="int8", target="cpu")


def second_cpu_units(network: CorpusNetwork, flops: float) -> Iterator[Unit]:
    """Units of one network on a CPU where many are measured side by side, to learn from."""
    if flops < CPU_LONGEST_FLOPS:
        for precision in ("int8",) if network.lineage == PROBE else ("int8", "fp32"):
            yield Unit(network=network.name, precision=precision, target="cpu", layers=True)


def _in_turn(corpus: Corpus) -> list[CorpusNetwork]:
    """Networks in rounds: the first of each family, then the second, each round in the order of a hash."""
    rank: dict[str, int] = {}
    rounds = []
    for network in sorted(corpus, key=lambda n: draw(n.name, "order")):
        rank[network.family] = rank.get(network.family, -1) + 1
        rounds.append((rank[network.family], len(rounds), network))
    return [network for _, _, network in sorted(rounds, key=lambda r: r[:2])]


def main() -> None:
    """Writes the plans."""
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
        Unit(network=name, precision="fp16", rebuild=i, check_outputs=True, layers=i < 4)
        for name in REBUILT
        if name in known
        for i in range(1, 11)
    ]
    jobs = [
        (turn + later * len(networks), units)
        for turn, network in enumerate(n for n in networks if n.lineage != PROBE)
        for later, units in gpu_jobs(network, flops[network.name], families[network.family].index(network.name))
    ]
    plans = {
        gpu / "plan-all.json": [*rebuilds, *(u for _, units in sorted(jobs, key=lambda job: job[0]) for u in units)],
        gpu / "plan-probes.json": [u for n in networks if n.lineage == PROBE for u in probe_units(n)],
        cpu / "plan.json": [
            *(u for n in networks for u in cpu_units(n, flops[n.name])),
            *(
                Unit(network=name, precision="fp32", target="cpu", rebuild=i)
                for name in REBUILT
                if name in known and flops[name] < CPU_LONGEST_FLOPS
                for i in range(1, 4)
            ),
        ],
        cpu / "plan-emerald-rapids.json": [u for n in networks for u in second_cpu_units(n, flops[n.name])],
    }
    for path, units in plans.items():
        Plan(units=tuple(units)).save(path)
        print(f"{path.relative_to(ROOT)}: {len(units)} engines of {len({u.network for u in units})} networks")


if __name__ == "__main__":
    main()

"""How long fusion takes, by nodes of the network: it must stay linear.

A made-up residual network with swish activations is repeated up to the wanted number of nodes. Garbage collection
is off while the clock runs, as `timeit` does it.

    python experiments/fusion_speed.py
"""

from __future__ import annotations

import gc
import json
import statistics
import time
from pathlib import Path

from perfpred.fusion import fuse, groups
from perfpred.layer import Node, TensorSpec
from perfpred.network import Network

RESULTS = Path(__file__).parent / "results"
RULES = ("tensorrt", "tensorrt-rtx", "onnxruntime", "onnxruntime-cuda")
SIZES = (1_000, 5_000, 50_000)
REPEATS = 7


def network(count: int) -> Network:
    """Blocks of convolution, swish, sum and ReLU with `count` nodes in all."""

    def spec(name: str) -> TensorSpec:
        return TensorSpec(name=name, shape=(1, 64, 28, 28), dtype="float16")

    weight = TensorSpec(name="w", shape=(64, 64, 3, 3), dtype="float16", constant=True)
    nodes: list[Node] = []
    x = spec("x")
    for i in range(count // 5):
        a, b, c, d, e = (spec(f"{letter}{i}") for letter in "abcde")
        nodes += [
            Node(name=f"conv{i}", op_type="Conv", inputs=(x, weight), outputs=(a,)),
            Node(name=f"sigmoid{i}", op_type="Sigmoid", inputs=(a,), outputs=(b,)),
            Node(name=f"mul{i}", op_type="Mul", inputs=(a, b), outputs=(c,)),
            Node(name=f"add{i}", op_type="Add", inputs=(c, x), outputs=(d,)),
            Node(name=f"relu{i}", op_type="Relu", inputs=(d,), outputs=(e,)),
        ]
        x = e
    return Network(
        name=f"{count} nodes",
        nodes=tuple(nodes),
        inputs=(spec("x"),),
        outputs=(x,),
        opset=17,
        batch_size=1,
    )


def main() -> None:
    """Times both the grouping and the whole of `fuse`, and writes `results/fusion_speed.json`."""
    rows = []
    for count in SIZES:
        net = network(count)
        for rules in RULES:
            row: dict[str, object] = {"nodes": count, "rules": rules}
            for what, run in (("groups_s", groups), ("fuse_s", fuse)):
                samples = []
                for _ in range(REPEATS if count < SIZES[-1] else 3):
                    gc.disable()
                    start = time.process_time()
                    run(net, rules)
                    samples.append(time.process_time() - start)
                    gc.enable()
                    gc.collect()
                row[what] = round(statistics.median(samples), 5)
            rows.append(row)
            print(row)
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "fusion_speed.json").write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()

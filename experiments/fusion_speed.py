"""How long does fusion take, by nodes of the network? It must stay linear.

Command: python experiments/fusion_speed.py
Output: experiments/results/fusion_speed.csv, .json and .md

A made-up residual network with swish activations is repeated up to the wanted number of nodes. Seconds are processor
time of one thread; garbage collection is off while the clock runs, as `timeit` does it.
"""

from __future__ import annotations

import gc
import statistics
import time

import numpy as np
import pandas as pd
from written import write

from perfpred.fusion import fuse, groups
from perfpred.layer import Node, TensorSpec
from perfpred.network import Network

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


def timed() -> pd.DataFrame:
    """Seconds of the grouping alone and of all of `fuse`, a row a size and rule set."""
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
                row[what] = statistics.median(samples)
            rows.append(row)
    return pd.DataFrame(rows)


def findings(table: pd.DataFrame) -> list[str]:
    """A sentence a rule set, with the numbers of the table."""
    said = []
    for rules, part in table.groupby("rules", sort=False):
        slope = np.polyfit(np.log(part["nodes"]), np.log(part["fuse_s"]), 1)[0]
        times = ", ".join(f"{1e3 * r['fuse_s']:.0f} ms at {r['nodes']} nodes" for r in part.to_dict("records"))
        said.append(f"{rules}: {times}; grows as nodes to the power {slope:.2f}.")
    return said


def main() -> None:
    """Times, writes and prints."""
    table = timed()
    said = findings(table)
    title = "How long fusion takes"
    write("fusion_speed", title, tables={"times": table, "Processor time, seconds": table}, findings=said, figures=[])
    print("\n".join(said))


if __name__ == "__main__":
    main()

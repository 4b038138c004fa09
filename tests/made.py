"""Datasets of small made-up networks, timed by a formula: what is learned from them is known beforehand."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
import onnx
import pandas as pd
from onnx import TensorProto, helper

from perfpred.dataset import Dataset, engine_frame
from perfpred.device import load_device
from perfpred.features import bound_s
from perfpred.instances import layer_instances
from perfpred.lowering import rules_for, structure_frame, structure_key
from perfpred.network import load_network

LINEAGES = ("plain", "wide", "deep", "narrow", "mixed", "tall")
LAUNCH_S = 4e-6


def chain(channels: list[int], size: int, kernel: int = 3) -> onnx.ModelProto:
    """Convolutions with ReLU one after another, weight-free, with a symbolic batch axis."""
    nodes, weights, value = [], [], "x"
    for i, (c_in, c_out) in enumerate(zip([3, *channels], channels, strict=False)):
        weight = TensorProto(name=f"w{i}", data_type=TensorProto.FLOAT, dims=[c_out, c_in, kernel, kernel])
        weight.data_location = TensorProto.EXTERNAL
        entry = weight.external_data.add()
        entry.key, entry.value = "location", "weights.bin"
        weights.append(weight)
        pads = [kernel // 2] * 4
        nodes.append(helper.make_node("Conv", [value, f"w{i}"], [f"c{i}"], name=f"conv{i}", pads=pads))
        nodes.append(helper.make_node("Relu", [f"c{i}"], [f"r{i}"], name=f"relu{i}"))
        value = f"r{i}"
    graph = helper.make_graph(
        nodes,
        "chain",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 3, size, size])],
        [helper.make_tensor_value_info(value, TensorProto.FLOAT, None)],
        weights,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)


def network(number: int) -> onnx.ModelProto:
    """One of the made-up networks; the number decides widths, depth and size."""
    random = np.random.default_rng(number)
    lineage = number % len(LINEAGES)
    depth = int(random.integers(3, 7)) + 3 * (lineage == 2)
    width = int(random.choice([16, 24, 32, 64])) * (2 if lineage == 1 else 1)
    return chain([width * (1 + i % 3) for i in range(depth)], int(random.choice([16, 28, 40, 56])))


def dataset(
    count: int = 24, devices: tuple[str, ...] = ("jetson-orin-nano", "jetson-agx-orin-32gb"), **given: Any
) -> Dataset:
    """Networks on devices, each caller's own copy to change; keywords as of `_dataset`."""
    made = _dataset(count, devices, **given)
    return Dataset(engines=made.engines.copy(), layers=made.layers.copy(), times=made.times.copy())


@lru_cache(maxsize=4)
def _dataset(
    count: int,
    devices: tuple[str, ...],
    *,
    factor: float = 1.6,
    noise: float = 0.02,
    precisions: tuple[str, ...] = ("fp16",),
    batch_sizes: tuple[int, ...] = (1,),
) -> Dataset:
    """Latency is `factor` times the fused roofline plus a launch a layer, with some noise."""
    frames, rows = [], []
    for number in range(count):
        for batch_size in batch_sizes:
            loaded = load_network(network(number), batch_size=batch_size)
            for precision in precisions:
                rules = rules_for("tensorrt", on_cpu=False)
                structure = structure_key(f"id{number}", loaded, precision, rules)
                frames.append(structure_frame(loaded, precision=precision, rules=rules, structure=structure))
                rows += [
                    {
                        "engine_id": f"{number}-{batch_size}-{precision}-{device}",
                        "structure": structure,
                        "network": f"net{number}",
                        "network_id": f"id{number}",
                        "family": f"family{number // 2}",
                        "lineage": LINEAGES[number // 2 % len(LINEAGES)],
                        "runtime": "tensorrt",
                        "device": device,
                        "sm_count": load_device(device).sm_count,
                        "precision": precision,
                        "optimisation": "all",
                        "batch_size": batch_size,
                        "rebuild": 0,
                        "status": "good",
                        "latency_kind": "gpu_compute",
                        "latency_s": 1.0,
                        "lab": "made",
                    }
                    for device in devices
                ]
    layers = pd.concat(frames, ignore_index=True)
    engines = engine_frame(rows)
    instances = layer_instances(engines, layers[layers["level"] == "fused"])
    layer_s = factor * bound_s(instances)["roofline_s"] + LAUNCH_S
    exact = layer_s.groupby(instances["row"]).sum().to_numpy()
    engines["latency_s"] = exact * np.exp(np.random.default_rng(1).normal(0, noise, len(exact)))
    return Dataset(engines=engines, layers=layers)

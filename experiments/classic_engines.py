"""Recorded TensorRT 8.x engines beside the graphs they were built from, rebuilt from the corpus.

The recordings name their nodes as the exporter of their day did; here these names are mapped to the corpus graph of the
same network. Parts of layer names that have no counterpart are returned as unmatched.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import onnx
from onnx import TensorProto, helper

from perfpred.corpus import Corpus
from perfpred.engine import EngineLayer, read_engine
from perfpred.layer_names import nodes_from_name
from perfpred.network import Network, load_network

#: Corpus network of each recording, and how its names are mapped.
RECORDINGS = {
    "alexnet_rtx3060laptop_fp16_torch_onnx_trt": ("torchvision.alexnet", "same"),
    "alexnet_rtx3060laptop_fp16_torch_trt": ("torchvision.alexnet", "torch"),
    "alexnet_rtx3060laptop_fp16_trtexec": ("torchvision.alexnet", "same"),
    "mobilenetv2_titanrtx_qat": ("torchvision.mobilenet_v2", "quantised"),
    "resnet18_a100_fp16": ("torchvision.resnet18", "numbered"),
    "resnet18_a100_fp32": ("torchvision.resnet18", "numbered"),
    "resnet50_tf_rtx3090_fp16": ("torchvision.resnet50", "keras"),
}
_TORCH_WORDS = {"convolution": "Conv", "relu": "Relu", "max_pool2d": "MaxPool", "addmm": "Gemm", "reshape": "Flatten"}


@dataclass(frozen=True, kw_only=True)
class ClassicCase:
    """A recorded engine whose layers name nodes of `network`."""

    name: str
    corpus_name: str
    network: Network
    engine: tuple[EngineLayer, ...]
    unmatched: tuple[str, ...]


def classic_cases(folder: Path, corpus: Corpus) -> Iterator[ClassicCase]:
    """The recordings of a folder `tensorrt_engines` whose network the corpus holds."""
    for name, (corpus_name, naming) in RECORDINGS.items():
        if corpus_name not in corpus:
            continue
        model = corpus.model(corpus_name)
        network = load_network(with_quantisation(model) if naming == "quantised" else model, batch_size=1, name=name)
        engine = read_engine(folder / name / "graph.json")
        table = _table(engine, network, naming)
        known = {node.name for node in network.nodes}
        renamed, unmatched = [], []
        for layer in engine:
            parts = layer.onnx_nodes or nodes_from_name(layer.name)
            mapped = [table.get(part, part) for part in parts]
            unmatched += [part for part, node in zip(parts, mapped, strict=True) if node not in known]
            renamed.append(replace(layer, onnx_nodes=tuple(node for node in mapped if node in known)))
        yield ClassicCase(
            name=name,
            corpus_name=corpus_name,
            network=network,
            engine=tuple(renamed),
            unmatched=tuple(dict.fromkeys(unmatched)),
        )


def _table(engine: tuple[EngineLayer, ...], network: Network, naming: str) -> Mapping[str, str]:
    """Node name in the network for each node name in the recording."""
    if naming == "numbered":  # <operator>_<index in the graph>
        return {f"{node.op_type}_{i}": node.name for i, node in enumerate(network.nodes)}
    if naming == "keras":
        return {part: _keras(part) for layer in engine for part in layer.onnx_nodes}
    if naming == "same":
        return {}
    return _by_order(engine, network, naming)


def _by_order(engine: tuple[EngineLayer, ...], network: Network, naming: str) -> dict[str, str]:
    """Pairs the operators of each type in their order; a recording's number says where it stood in its graph."""
    queues: dict[str, list[str]] = defaultdict(list)
    for node in network.nodes:
        if not node.name.endswith(("_quantize", "_dequantize")):
            queues[node.op_type].append(node.name)
    table = {}
    parts = list(dict.fromkeys(part for layer in engine for part in layer.onnx_nodes))
    if naming == "quantised":
        numbered = [(int(m[2]), m[1], part) for part in parts if (m := re.fullmatch(r"([A-Za-z]+)_(\d+)", part))]
        found = [(op_type, part) for _, op_type, part in sorted(numbered)]
    else:
        # A matrix product and its bias are two layers of one operator; the product stands for it.
        named = [part for part in parts if part.startswith("[") and not part.startswith("[ELEMENTWISE]")]
        words = [(next((w for w in _TORCH_WORDS if f".{w}." in part), None), part) for part in named]
        found = [(_TORCH_WORDS[word], part) for word, part in words if word]
    for op_type, part in found:
        if queues[op_type]:
            table[part] = queues[op_type].pop(0)
    return table


def _keras(part: str) -> str:
    """torchvision's name of a node of Keras's ResNet-50."""
    fixed = {
        "Conv__435": "/conv1/Conv",
        "resnet50/conv1_relu/Relu": "/relu/Relu",
        "resnet50/pool1_pool/MaxPool": "/maxpool/MaxPool",
        "resnet50/avg_pool/Mean": "/avgpool/GlobalAveragePool",
        "resnet50/predictions/MatMul": "/fc/Gemm",
    }
    match = re.fullmatch(r"resnet50/conv(\d)_block(\d+)_(\w+)/\w+", part)
    if match is None:
        return fixed.get(part, part)
    stage, block, what = int(match[1]) - 1, int(match[2]) - 1, match[3]
    path = f"/layer{stage}/layer{stage}.{block}"
    inner = {
        "0_conv": "downsample/downsample.0/Conv",
        "1_conv": "conv1/Conv",
        "2_conv": "conv2/Conv",
        "3_conv": "conv3/Conv",
        "1_relu": "relu/Relu",
        "2_relu": "relu_1/Relu",
        "add": "Add",
        "out": "relu_2/Relu",
    }
    return f"{path}/{inner[what]}"


def with_quantisation(model: onnx.ModelProto) -> onnx.ModelProto:
    """The graph as quantisation-aware training exports it: Q/DQ before every input and weight of a product."""
    quantised = onnx.ModelProto()
    quantised.CopyFrom(model)
    graph = quantised.graph
    for name, dtype, value in (("qat_scale", TensorProto.FLOAT, 0.01), ("qat_zero", TensorProto.INT8, 0)):
        graph.initializer.append(helper.make_tensor(name, dtype, (), [value]))
    nodes = []
    for node in graph.node:
        if node.op_type in ("Conv", "Gemm"):
            for position, side in ((0, "input"), (1, "weight")):
                tensor, stem = node.input[position], f"{node.name}_{side}"
                nodes += [
                    helper.make_node(
                        "QuantizeLinear", [tensor, "qat_scale", "qat_zero"], [f"{stem}_q"], name=f"{stem}_quantize"
                    ),
                    helper.make_node(
                        "DequantizeLinear",
                        [f"{stem}_q", "qat_scale", "qat_zero"],
                        [f"{stem}_dq"],
                        name=f"{stem}_dequantize",
                    ),
                ]
                node.input[position] = f"{stem}_dq"
        nodes.append(node)
    kept = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
    del graph.node[:]
    graph.node.extend(kept)
    return quantised

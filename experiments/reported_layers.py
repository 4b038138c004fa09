"""Layers as a runtime itself says it runs them, at level `builder`, beside those the rules foresee.

ONNX Runtime on a CPU saves the graph it optimised: it is made again here, float32 alone, since int8 graphs hold other
nodes than the network they came from. On a GPU the committed kernel traces name the nodes that launched. Where they
contradict the rules they are right: a layer of which several nodes launched is split, and a lone node that never
launched joins the layer it reads from.
"""

from __future__ import annotations

import importlib
import tempfile
from collections.abc import Collection, Sequence
from pathlib import Path

import numpy as np
import onnx
import pandas as pd
from joblib import Parallel, delayed

from perfpred.corpus import Corpus
from perfpred.dataset import Dataset, layer_frame
from perfpred.errors import PerfpredError
from perfpred.fusion import groups
from perfpred.group import layer_from_nodes
from perfpred.labels import labels_of
from perfpred.layer import Layer, Node
from perfpred.lowering import rules_for
from perfpred.network import Network, load_network
from perfpred.ort_graph import layers_from_optimised_model
from perfpred.splits import subset
from perfpred.weights import bind_batch, fill_weights


def reportable(rows: Dataset) -> np.ndarray:
    """Positions of the engines whose layers ONNX Runtime tells: traced structures, and float32 on a CPU."""
    engines, corpus = rows.engines, Corpus.load()
    on_cpu = engines["latency_kind"].eq("cpu")
    traced = engines["structure"].isin(set(_launched(rows)))
    told = np.where(on_cpu, engines["precision"].eq("fp32"), traced) & engines["runtime"].eq("onnxruntime")
    return np.flatnonzero(told & engines["network"].map(corpus.__contains__))


def with_reported_layers(rows: Dataset, chosen: np.ndarray) -> Dataset:
    """Some of the engines, their reported layers beside the others; an engine of which none can be had is left out."""
    part, launched = subset(rows, chosen), _launched(rows)
    asked = part.engines.drop_duplicates("structure")
    frames = Parallel(n_jobs=-1)(
        delayed(_frame)(*facts, launched.get(facts[0]))
        for facts in asked[["structure", "network", "batch_size", "precision"]].itertuples(index=False, name=None)
    )
    found = pd.concat([frame for frame in frames if frame is not None], ignore_index=True)
    kept = np.flatnonzero(part.engines["structure"].isin(set(found["structure"])))
    layers = pd.concat([part.layers, found], ignore_index=True)
    return subset(Dataset(engines=part.engines, layers=layers, times=part.times), kept)


def _launched(rows: Dataset) -> dict[str, frozenset[str]]:
    """Names of what launched, as the trace of one engine of each structure has them; nodes by their own name."""
    traces = rows.times[rows.times["n_kernels"] > 0].merge(rows.engines[["engine_id", "structure"]], on="engine_id")
    first = traces.groupby("structure")["engine_id"].transform("first")
    traces = traces[traces["engine_id"] == first]
    names = [nodes[0] if len(nodes) else name for nodes, name in zip(traces["onnx_nodes"], traces["name"], strict=True)]
    return pd.Series(names, index=traces["structure"], dtype=object).groupby(level=0).agg(frozenset).to_dict()


def _frame(
    structure: str, name: str, batch_size: int, precision: str, launched: Collection[str] | None
) -> pd.DataFrame | None:
    model = Corpus.load().model(name)
    network = load_network(model, batch_size=int(batch_size), name=name).with_precision(precision)
    try:
        parts = optimised(model, network) if launched is None else traced(network, launched)
    except (PerfpredError, RuntimeError) as error:
        print(f"{name}: no layers told: {error}")
        return None
    return layer_frame([_layer(network, part) for part in parts], structure=structure, level="builder")


def optimised(model: onnx.ModelProto, network: Network) -> list[list[Node]]:
    """Nodes that ONNX Runtime joins on a CPU, taken from the graph it saves; nodes it folds away are in no part."""
    runtime = importlib.import_module("onnxruntime")
    options = runtime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 4
    with tempfile.TemporaryDirectory() as folder:
        options.optimized_model_filepath = str(Path(folder) / "optimised.onnx")
        filled = bind_batch(fill_weights(model), network.batch_size or 1)
        runtime.InferenceSession(filled.SerializeToString(), options, providers=["CPUExecutionProvider"])
        layers = layers_from_optimised_model(options.optimized_model_filepath, network)
    nodes = {node.name: node for node in network.nodes}
    return [[nodes[name] for name in layer.onnx_nodes] for layer in layers if layer.onnx_nodes]


def traced(network: Network, launched: Collection[str]) -> list[list[Node]]:
    """The layers that the rules foresee on CUDA, put right where the names of what launched contradict them."""
    own = {node.name for node in network.nodes}
    renamed = [name for name in launched if name not in own]  # kernels of fused operators, and of moved transposes
    parts: list[list[Node]] = []
    writer: dict[str, int] = {}
    for group in groups(network, rules_for("onnxruntime", on_cpu=False)):
        working = [node for node in group.nodes if "view" not in labels_of(node)]
        lone = len(working) == 1 and working[0].name not in launched
        lone = lone and not any(working[0].op_type in name for name in renamed)
        source = next((writer[t.name] for t in group.nodes[0].activations if t.name in writer), None)
        begun = source if lone and source is not None else len(parts)
        ran = False
        for node in group.nodes:
            runs = node.name in launched and node.op_type != "Transpose"
            begun = len(parts) if ran and runs else begun
            ran = ran or runs
            if begun == len(parts):
                parts.append([])
            parts[begun].append(node)
            writer |= dict.fromkeys([t.name for t in node.outputs], begun)
    return parts


def _layer(network: Network, part: Sequence[Node]) -> Layer:
    inside = {node.name for node in part}
    outputs = {
        t.name
        for node in part
        for t in node.outputs
        if t.name in network.output_names or any(reader.name not in inside for reader in network.consumers(t.name))
    }
    return layer_from_nodes(part, outputs=outputs or {t.name for t in part[-1].outputs}, rule="reported")

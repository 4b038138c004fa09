"""Raw records of campaigns become a dataset: each graph is lowered once, times are joined to its nodes by name."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import pandas as pd
from joblib import Parallel, delayed

from perfpred.dataset import Dataset, engine_frame, time_frame
from perfpred.errors import DatasetError, PerfpredError
from perfpred.lowering import rules_for, structure_frame, structure_key
from perfpred.network import load_network
from perfpred.prepare import graph_digest, read_graph_bytes

#: What ONNX Runtime appends to the name of a node, or of the tensor it writes, when it rewrites the node; the last row
#: is of nodes that dynamic quantisation puts around one.
_REWRITTEN: Final = re.compile(
    r"(_bn|_nchwc|_nhwc|_token_\d+|/\w*Fusion/?|_kernel_time"
    r"|_quant|_MatMul|_scales_mul|_output_scale_mul|_output_quantized_cast|_bias_add|_(?:Deq|Q)uantizeLinear)$"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Origin:
    """What a dataset says of a network beside its graph."""

    network_id: str
    family: str
    lineage: str


def dataset_from_records(
    records: Iterable[Mapping[str, Any]],
    graphs: Mapping[str, Path],
    *,
    origins: Mapping[str, Origin] | None = None,
    lab: str = "perfpred",
    jobs: int = 1,
) -> Dataset:
    """Builds the tables from raw records.

    Args:
        records: As written by a campaign, good and failed.
        graphs: File of each network by the name records use.
        origins: Family and lineage by network name; a network left out is its own family.
        lab: Who measured.
        jobs: Processes that lower graphs.

    Raises:
        DatasetError: The graph of a measured network is missing or not the one measured.
    """
    found = list(records)
    known = origins or {}
    wanted: dict[tuple[str, int, str, str], str] = {}
    digests: dict[str, str] = {}
    for record in found:
        if record["status"] == "good":
            wanted[_asked(record)] = ""
            digests[record["network"]] = record["graph"]
    for name, digest in digests.items():
        if name not in graphs:
            raise DatasetError(f"no graph of network '{name}'; name the folder it was measured from")
        if graph_digest(graphs[name]) != digest:
            raise DatasetError(f"graph of network '{name}' is not the one measured; collect it again")
    asked = list(wanted)
    lowered = Parallel(n_jobs=jobs)(
        delayed(_lower)(graphs[name], name, batch_size, precision, rules)
        for name, batch_size, precision, rules in asked
    )
    frames, nodes = [], {}
    for key, (structure, frame, owners) in zip(asked, lowered, strict=True):
        wanted[key] = structure
        frames.append(frame)
        nodes[structure] = owners
    engines, times = [], []
    for record in found:
        structure = wanted.get(_asked(record)) if record["status"] == "good" else None
        engines.append(_engine_row(record, structure, known.get(record["network"]), lab))
        if structure is not None:
            times.extend(_time_rows(record, nodes[structure]))
    return Dataset(
        engines=engine_frame(engines),
        layers=pd.concat(frames, ignore_index=True).drop_duplicates(["structure", "level", "layer_index"])
        if frames
        else Dataset().layers,
        times=time_frame(times),
    )


def _asked(record: Mapping[str, Any]) -> tuple[str, int, str, str]:
    rules = rules_for(record["runtime"], on_cpu=record["target"] == "cpu")
    return record["network"], record["batch_size"], record["precision"], rules


def _lower(
    path: Path, name: str, batch_size: int, precision: str, rules: str
) -> tuple[str, pd.DataFrame, dict[str, str]]:
    """Structure, its layers, and the node behind each name: its own, or that of a tensor it writes."""
    import onnx

    try:
        network = load_network(onnx.load_from_string(read_graph_bytes(path)), batch_size=batch_size, name=name)
    except PerfpredError as error:
        raise DatasetError(f"{path}: was measured but can't be lowered: {error}") from error
    structure = structure_key(graph_digest(path), network, precision, rules)
    owners = {tensor.name: node.name for node in network.nodes for tensor in node.outputs}
    owners |= {node.name: node.name for node in network.nodes}
    return structure, structure_frame(network, precision=precision, rules=rules, structure=structure), owners


def _engine_row(record: Mapping[str, Any], structure: str | None, origin: Origin | None, lab: str) -> dict[str, Any]:
    environment = dict(record.get("environment") or {})
    spec = environment.pop("device_spec", None)
    environment.update({k: record[k] for k in ("before", "after", "graph_nodes") if k in record})
    samples = np.asarray(record.get("samples_s") or [], dtype=np.float32)
    error = record.get("error")
    return {
        "engine_id": record["engine_id"],
        "structure": structure,
        "network": record["network"],
        "network_id": origin.network_id if origin else record["graph"],
        "family": origin.family if origin else record["network"],
        "lineage": origin.lineage if origin else None,
        "runtime": record["runtime"],
        "runtime_version": (environment.get("packages") or {}).get(record["runtime"]),
        "device": record["device"],
        "mode": environment.get("mode"),
        "sm_count": record["sm_count"],
        "device_json": json.dumps(spec) if spec else None,
        "precision": record["precision"],
        "typing": record.get("typing"),
        "optimisation": record["optimisation"],
        "batch_size": record["batch_size"],
        "rebuild": record["rebuild"],
        "status": record["status"],
        "error": json.dumps(error) if error else None,
        "latency_kind": record.get("latency_kind") or ("cpu" if record["target"] == "cpu" else "gpu_compute"),
        "latency_s": record.get("latency_s"),
        "host_sync_s": record.get("host_sync_s"),
        "isolated_s": record.get("isolated_s"),
        "enqueue_s": record.get("enqueue_s"),
        "cv": float(samples.std() / samples.mean()) if len(samples) > 1 else None,
        "samples_s": samples,
        "flags": list(record.get("flags") or []),
        "build_s": (record.get("seconds") or {}).get("build"),
        "engine_bytes": record.get("engine_bytes"),
        "device_memory_bytes": record.get("memory_bytes"),
        "lab": lab,
        "trust": "A",
        "mapping": "exact",
        "provenance_json": json.dumps(
            {
                "graph": record["graph"],
                "options": record.get("options") or {},
                "provider_options": record.get("provider_options") or {},
            },
            sort_keys=True,
        ),
        "environment_json": json.dumps(environment, sort_keys=True),
        "collected_at": record.get("started"),
    }


def _time_rows(record: Mapping[str, Any], nodes: Mapping[str, str]) -> list[dict[str, Any]]:
    """Times of a profiled pass by runtime node, joined to the nodes of the network where the name says which."""
    traced, layers = record.get("kernels"), record.get("layers")
    if traced:
        kernels = pd.DataFrame({k: traced[k] for k in ("name", "time_s", "node")})
        kernels = kernels[kernels["node"].notna()]
        grouped = kernels.groupby("node", sort=False)
        entries: list[dict[str, Any]] = [
            {
                "name": str(node),
                "time_s": float(part["time_s"].sum()),
                "kernels": [traced["names"][i] for i in part["name"]],
            }
            for node, part in grouped
        ]
    else:
        entries = [
            {"name": e["name"], "time_s": e["time_s"], "n_samples": e.get("runs"), "kernels": []} for e in layers or []
        ]
    rows = []
    for entry in entries:
        behind = _node_behind(entry["name"], nodes)
        rows.append(
            {"engine_id": record["engine_id"], "onnx_nodes": behind, "n_kernels": len(entry["kernels"]), **entry}
        )
    return rows


def _node_behind(name: str, nodes: Mapping[str, str]) -> list[str]:
    """The network's node that a runtime's node stands for; none where no part of the name says."""
    while name not in nodes:
        shorter = _REWRITTEN.sub("", name)
        if shorter == name:
            return []
        name = shorter
    return [nodes[name]]

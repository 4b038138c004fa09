"""Lowering: a network at given shapes, precision and runtime becomes rows of layers, for training and prediction."""

from __future__ import annotations

import pandas as pd

from perfpred.dataset import layer_frame
from perfpred.fusion import fuse
from perfpred.network import Network


def rules_for(runtime: str, *, on_cpu: bool) -> str:
    """Name of the fusion rule set that stands for a runtime on a kind of device."""
    if runtime == "onnxruntime" and not on_cpu:
        return "onnxruntime-cuda"
    return runtime


def structure_key(network_id: str, network: Network, precision: str, rules: str) -> str:
    """Key of a structure: the same network, input shapes, precision and rule set give the same layers."""
    shapes = ",".join("x".join(map(str, t.shape)) for t in network.inputs)
    return f"{network_id}/{shapes}/{precision}/{rules}"


def structure_frame(network: Network, *, precision: str, rules: str, structure: str) -> pd.DataFrame:
    """Layers of a network at levels `node` and `fused`, as rows of a dataset's `layers` table."""
    recast = network.with_precision(precision)
    return pd.concat(
        [
            layer_frame(fuse(recast, "none"), structure=structure, level="node"),
            layer_frame(fuse(recast, rules), structure=structure, level="fused"),
        ],
        ignore_index=True,
    )

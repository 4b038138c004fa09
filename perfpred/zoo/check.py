"""Runs corpus graphs, filled with random weights, in ONNX Runtime on the CPU; needs no PyTorch."""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np
import onnxruntime
from onnx import ModelProto

from perfpred.prepare import make_inputs
from perfpred.weights import bind_batch, fill_weights, to_fp16

CHECKED_BATCHES = (1, 4)


@dataclass(frozen=True, kw_only=True)
class CheckResult:
    """Outcome of one check; `error` is empty where every output is finite and has the batch axis first."""

    name: str
    error: str
    largest: float
    spread: float
    seconds: float


def check(model: ModelProto, name: str, *, half: bool = False, threads: int = 1) -> CheckResult:
    """Run a weight-free graph at `CHECKED_BATCHES` and look at its outputs.

    Args:
        model: graph with a symbolic batch axis, without weights.
        name: what the result is called.
        half: run it as native float16.
        threads: threads of the runtime.
    """
    started = time.perf_counter()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 4
    largest = spread = 0.0
    error = ""
    try:
        graph = to_fp16(model) if half else model
        filled = fill_weights(graph).SerializeToString()
        session = onnxruntime.InferenceSession(filled, options, providers=["CPUExecutionProvider"])
        del filled
        for batch_size in CHECKED_BATCHES:
            outputs = session.run(None, make_inputs(bind_batch(graph, batch_size)))
            floats = [np.asarray(output, np.float64) for output in outputs if output.dtype.kind == "f"]
            if any(output.ndim == 0 or output.shape[0] % batch_size for output in outputs):
                error = f"an output at batch {batch_size} has no batch axis"
            elif not all(np.isfinite(output).all() for output in floats):
                error = f"an output at batch {batch_size} is not finite"
            largest = max([largest, *(float(np.abs(output).max()) for output in floats if output.size)])
            spread = max([spread, *(float(output.std()) for output in floats if output.size)])
    except Exception as caught:  # noqa: BLE001 (whatever the runtime raises is the answer)
        error = " ".join(str(caught).split())[:300] or type(caught).__name__
    seconds = time.perf_counter() - started
    return CheckResult(name=name, error=error, largest=largest, spread=spread, seconds=seconds)

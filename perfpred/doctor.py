"""What an installation can do on this machine."""

from __future__ import annotations

import platform
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from typing import Final

from perfpred import __version__
from perfpred.errors import PerfpredError

#: Module, distribution that brings it, extra to install, what it is for.
_OPTIONAL: Final = (
    ("onnxruntime", ("onnxruntime", "onnxruntime-gpu"), "ort", "collect with ONNX Runtime"),
    ("tensorrt", ("tensorrt",), "tensorrt", "collect with TensorRT"),
    ("tensorrt_rtx", ("tensorrt-rtx-cu13", "tensorrt-rtx-cu12"), "tensorrt-rtx", "real fused layers of TensorRT-RTX"),
    ("pycuda", ("pycuda",), "tensorrt", "CUDA calls (default)"),
    ("cuda.bindings", ("cuda-bindings",), "tensorrt", "CUDA graphs and SM partitions"),
    ("zstandard", ("zstandard",), "ort", "read the corpus"),
    ("matplotlib", ("matplotlib",), "report", "plots and reports"),
    ("distributed", ("distributed",), "cluster", "collect over a fleet"),
)


def findings() -> list[dict[str, str]]:
    """One record per thing looked at: what, state, remark. Nothing is loaded but this package."""
    rows = [_row("perfpred", __version__, f"Python {platform.python_version()} on {platform.machine()}")]
    for module, distributions, extra, purpose in _OPTIONAL:
        found = next((f"{d} {v}" for d in distributions if (v := _version(d))), None)
        if found is None and _present(module):
            found = "present"
        rows.append(_row(module, found or "missing", purpose if found else f"{purpose}: pip install perfpred[{extra}]"))
    rows.append(_asked("host", _host))
    rows.append(_asked("GPU", _gpu))
    rows.append(_asked("predictors", _predictors))
    rows.append(_asked("corpus", _corpus))
    return rows


def _row(what: str, state: str, remark: str) -> dict[str, str]:
    return {"what": what, "state": state, "remark": remark}


def _asked(what: str, question: Callable[[], tuple[str, str]]) -> dict[str, str]:
    try:
        return _row(what, *question())
    except PerfpredError as error:
        return _row(what, "missing", str(error))


def _version(distribution: str) -> str | None:
    try:
        return version(distribution)
    except PackageNotFoundError:
        return None


def _present(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:
        return False


def _host() -> tuple[str, str]:
    from perfpred.host import detect_host

    host = detect_host()
    return host.name, f"{host.sm_count} cores, {host.peak('fp32') / 1e9:.0f} GFLOP/s fp32"


def _gpu() -> tuple[str, str]:
    from perfpred.host import detect_gpu

    gpu = detect_gpu()
    return (gpu.slug, gpu.name) if gpu else ("none", "no NVIDIA driver answers")


def _predictors() -> tuple[str, str]:
    from perfpred.defaults import DefaultPredictors

    found = DefaultPredictors()
    return ", ".join(p.name for p in found.predictors), str(found.folder)


def _corpus() -> tuple[str, str]:
    from perfpred.corpus import Corpus, datasets_folder

    return f"{len(Corpus.load())} networks", str(datasets_folder())

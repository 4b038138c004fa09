"""Measurements made elsewhere, brought into a dataset: published tables, convolution tables, trtexec recordings."""

from __future__ import annotations

import hashlib
import statistics
import tarfile
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import onnx
import pandas as pd

from perfpred.conv_table import dataset_from_conv_table
from perfpred.dataset import Dataset, engine_frame, layer_frame, time_frame
from perfpred.device import device_slugs
from perfpred.engine import EngineLayer, join_times, layers_from_engine, partition_from_engine, read_engine
from perfpred.errors import EngineFormatError, UsageError
from perfpred.layer import PRECISIONS
from perfpred.lowering import rules_for, structure_frame, structure_key
from perfpred.network import load_network
from perfpred.published import dataset_from_published
from perfpred.recording import read_profile, read_recording, read_times
from perfpred.structure import structure_id

__all__ = ["dataset_from_conv_table", "dataset_from_published", "dataset_from_trtexec"]

#: What `corpus export --trtexec-script` makes trtexec write beside each other.
_PARTS: Final = (".times.json", ".profile.json", ".layers.json")
_PRECISION_OF_DTYPE: Final = {"int8": "int8", "float8e4m3fn": "fp8", "float16": "fp16", "bfloat16": "bf16"}


@dataclass(frozen=True, slots=True, kw_only=True)
class _Measured:
    """One engine as trtexec left it; latencies by kind, with the samples where kept."""

    stem: str
    layers: tuple[EngineLayer, ...]
    runs: int
    latencies: dict[str, tuple[float, tuple[float, ...]]]


def dataset_from_trtexec(
    files: Sequence[str | Path],
    *,
    network: str | Path,
    device: str,
    precision: str | None = None,
    batch_size: int | None = None,
) -> Dataset:
    """Brings trtexec's exports into a dataset, with the builder's layers and their times.

    Args:
        files: Any of: `STEM.times.json`, `STEM.profile.json` and `STEM.layers.json` of an engine (one of them stands
            for all), a folder or tar archive of such files, or the folder or stem of a recording with `graph.json`.
        network: The ONNX file that was built, or the folder that holds `STEM.onnx` for every engine.
        device: Slug of the device it ran on.
        precision: Of the build; by default the narrowest type that its layers compute in.
        batch_size: First dimension of the inputs; by default the network's own, or 1.

    Raises:
        UsageError: No engine is found, the network of one is missing, or device or precision are unknown.
        EngineFormatError: A file is malformed; names it and what was expected.
    """
    if device not in device_slugs():
        raise UsageError(f"unknown device '{device}'; `perfpred devices` lists them")
    if precision is not None and precision not in PRECISIONS:
        raise UsageError(f"precision '{precision}' is unknown; give one of {', '.join(PRECISIONS)}")
    engines: list[dict[str, Any]] = []
    layers: list[pd.DataFrame] = []
    times: list[dict[str, Any]] = []
    with _unpacked(files) as paths:
        measured = [engine for path in paths for engine in _engines_at(path)]
    if not measured:
        raise UsageError(
            f"no trtexec export in {', '.join(map(str, files))}; expected STEM.times.json with STEM.layers.json"
        )
    for engine in measured:
        path = Path(network) / f"{engine.stem}.onnx" if Path(network).is_dir() else Path(network)
        if not path.is_file():
            raise UsageError(f"{path}: the network of engine '{engine.stem}' is missing; name its file or folder")
        model = onnx.load(path, load_external_data=False)
        bound = load_network(model, batch_size=batch_size, name=path.stem)
        built = precision or _precision(engine.layers)
        rules = rules_for("tensorrt", on_cpu=False)
        identity = structure_id(model)
        structure = f"{structure_key(identity, bound, built, rules)}/{engine.stem}"
        layers.append(structure_frame(bound, precision=built, rules=rules, structure=structure))
        recast = bound.with_precision(built)
        layers.append(layer_frame(layers_from_engine(engine.layers, recast), structure=structure, level="builder"))
        engine_id = hashlib.sha256(f"{structure}|{device}|{engine.latencies}".encode()).hexdigest()[:16]
        for kind, (latency_s, samples) in engine.latencies.items():
            engines.append(
                {
                    "engine_id": engine_id, "structure": structure, "network": path.stem, "network_id": identity,
                    "family": path.stem, "lineage": path.stem, "runtime": "tensorrt", "device": device,
                    "precision": built, "batch_size": bound.batch_size, "status": "good", "latency_kind": kind,
                    "latency_s": latency_s, "samples_s": list(samples), "flags": [], "lab": "trtexec",
                }
            )  # fmt: skip
        for layer, nodes in partition_from_engine(engine.layers, recast):
            if layer.time_s is not None:
                times.append(
                    {
                        "engine_id": engine_id, "name": layer.name, "onnx_nodes": [n.name for n in nodes],
                        "time_s": layer.time_s, "n_samples": engine.runs,
                    }
                )  # fmt: skip
    kept = pd.concat(layers, ignore_index=True).drop_duplicates(["structure", "level", "layer_index"])
    return Dataset(
        engines=engine_frame(engines),
        layers=kept.reset_index(drop=True),
        times=time_frame(times).drop_duplicates(["engine_id", "name"]).reset_index(drop=True),
    )


@contextmanager
def _unpacked(files: Sequence[str | Path]) -> Iterator[list[Path]]:
    """The paths, archives replaced by folders of their content."""
    with tempfile.TemporaryDirectory(prefix="perfpred-import-") as scratch:
        paths = []
        for index, file in enumerate(map(Path, files)):
            if file.is_file() and tarfile.is_tarfile(file):
                target = Path(scratch) / str(index)
                with tarfile.open(file) as archive:
                    archive.extractall(target, filter="data")
                paths += [target, *(p for p in sorted(target.rglob("*")) if p.is_dir())]
            else:
                paths.append(file)
        yield paths


def _engines_at(path: Path) -> Iterator[_Measured]:
    if (path / "graph.json").is_file() or path.with_name(f"{path.name}.graph.json").is_file():
        recording = read_recording(path)
        if recording.latency_s is None:
            raise EngineFormatError(f"{path}: holds no engine latency; add profile.metadata.json or benchmark.json")
        yield _Measured(
            stem=recording.name,
            layers=recording.layers,
            runs=recording.runs,
            latencies={recording.latency_kind: (recording.latency_s, ())},
        )
    elif path.is_dir():
        for file in sorted(path.glob(f"*{_PARTS[0]}")):
            yield _exported(file.with_name(file.name.removesuffix(_PARTS[0])))
    elif path.exists():
        part = next((p for p in _PARTS if path.name.endswith(p)), None)
        if part is None:
            raise UsageError(f"{path}: is none of {', '.join('STEM' + p for p in _PARTS)}, a folder or a tar archive")
        if part == _PARTS[0] or not path.with_name(path.name.removesuffix(part) + _PARTS[0]).is_file():
            yield _exported(path.with_name(path.name.removesuffix(part)))
    else:
        raise UsageError(f"{path}: does not exist; check the path")


def _exported(stem: Path) -> _Measured:
    """An engine from `STEM.times.json`, `STEM.layers.json` and, where kept, `STEM.profile.json`."""
    times_file, profile_file, layers_file = (stem.with_name(stem.name + part) for part in _PARTS)
    for file in (times_file, layers_file):
        if not file.is_file():
            raise UsageError(f"{file}: is missing; trtexec writes it with --exportTimes and --exportLayerInfo")
    found = read_times(times_file)
    layers, runs = read_engine(layers_file), 0
    if profile_file.is_file():
        profile = read_profile(profile_file)
        layers, runs = join_times(layers, profile.times, source=str(profile_file)), profile.runs
    latencies = {"gpu_compute": (statistics.median(found.compute_s), found.compute_s)}
    if sum(found.raw["h2dMs"]) + sum(found.raw["d2hMs"]) > 0:
        latencies["with_io"] = (statistics.median(found.latency_s), found.latency_s)
    return _Measured(stem=stem.name, layers=layers, runs=runs, latencies=latencies)


def _precision(layers: Sequence[EngineLayer]) -> str:
    """The narrowest type that any computing layer writes."""
    written = {t.dtype for layer in layers if layer.role == "compute" for t in (*layer.inputs, *layer.outputs)}
    return next((made for dtype, made in _PRECISION_OF_DTYPE.items() if dtype in written), "fp32")

"""Recordings of real engines: trtexec's profile, times and layer information, and the files trex keeps beside them.

A recording is a folder (or a common stem) with `graph.json`, `profile.json`, `profile.metadata.json` and
`build.metadata.json`; Torch-TensorRT's recorder writes `layer_latency.json` and `benchmark.json` in place of the
profile. Times are joined to layers by name.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from perfpred.engine import EngineLayer, join_times, parse_json, read_engine, read_text
from perfpred.errors import EngineFormatError

#: Columns of `trtexec --exportTimes` in milliseconds; `endToEndMs` exists up to 8.2 only.
_TIMES = (
    *("startEnqMs", "endEnqMs", "startH2dMs", "endH2dMs", "startComputeMs", "endComputeMs", "startD2hMs", "endD2hMs"),
    *("h2dMs", "computeMs", "d2hMs", "latencyMs"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Profile:
    """Layer times of `trtexec --exportProfile`.

    Attributes:
        runs: Inferences profiled; with 1 (a captured graph) the times are one noisy sample.
        times: Pairs of layer name and seconds per inference: the median where the file has it, else the mean.
    """

    runs: int
    times: tuple[tuple[str, float], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class InferenceTimes:
    """Samples of `trtexec --exportTimes`, one array entry an inference, all in seconds.

    Attributes:
        raw: Every column of the file by its own name, start and end stamps included, converted to seconds.
    """

    raw: Mapping[str, tuple[float, ...]]

    @property
    def compute_s(self) -> tuple[float, ...]:
        """GPU compute time of each inference; back to back, as trtexec keeps two in flight."""
        return self.raw["computeMs"]

    @property
    def latency_s(self) -> tuple[float, ...]:
        """Transfers and compute of each inference."""
        return self.raw["latencyMs"]


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineRecording:
    """A recorded engine.

    Attributes:
        name: Folder or stem.
        layers: Layers with their times where the recording has them.
        runs: Inferences behind the layer times; 0 where there are none.
        latency_s: Median latency of an inference, None where not recorded.
        latency_kind: `gpu_compute` for trtexec, `host_sync` for Torch-TensorRT's wall clock, empty without latency.
        metadata: Content of the metadata files by file stem, such as `profile.metadata`.
    """

    name: str
    layers: tuple[EngineLayer, ...]
    runs: int = 0
    latency_s: float | None = None
    latency_kind: str = ""
    metadata: Mapping[str, Any] = field(default_factory=dict)


def read_profile(path: str | Path) -> Profile:
    """Reads `trtexec --exportProfile`.

    Raises:
        EngineFormatError: Not such a file; names the record and what was expected.
    """
    path = Path(path)
    records = parse_json(read_text(path), source=str(path))
    if not isinstance(records, list) or not records or not isinstance(records[0], dict) or "count" not in records[0]:
        raise EngineFormatError(
            f'{path}: expected a list that starts with {{"count": runs}}, as --exportProfile writes'
        )
    times = []
    for i, record in enumerate(records[1:], 1):
        if not isinstance(record, dict) or not isinstance(record.get("name"), str):
            raise EngineFormatError(f"{path}: record {i}: expected an object with a `name`")
        value = record.get("medianMs", record.get("averageMs"))
        if not isinstance(value, (int, float)):
            raise EngineFormatError(f"{path}: record {i} ('{record['name']}'): expected `medianMs` or `averageMs`")
        times.append((record["name"], value * 1e-3))
    return Profile(runs=int(records[0]["count"]), times=tuple(times))


def read_times(path: str | Path) -> InferenceTimes:
    """Reads `trtexec --exportTimes`.

    Raises:
        EngineFormatError: Not such a file; names the record and the column expected.
    """
    path = Path(path)
    records = parse_json(read_text(path), source=str(path))
    if not isinstance(records, list) or not records:
        raise EngineFormatError(f"{path}: expected a list with an object an inference, as --exportTimes writes")
    columns: dict[str, list[float]] = {}
    for i, record in enumerate(records):
        missing = next((c for c in _TIMES if not isinstance(record, dict) or c not in record), None)
        if missing is not None:
            raise EngineFormatError(f"{path}: record {i}: expected `{missing}` in milliseconds, found none")
        for column, value in record.items():
            if not isinstance(value, (int, float)):
                raise EngineFormatError(f"{path}: record {i}: expected a number for `{column}`, found {value!r}")
            columns.setdefault(column, []).append(value * 1e-3)
    return InferenceTimes(raw={name: tuple(values) for name, values in columns.items()})


def read_recording(path: str | Path) -> EngineRecording:
    """Reads a recorded engine: layers, times joined by name, engine latency and metadata.

    Args:
        path: Folder with `graph.json` and the files beside it, or a stem such as `net.engine` for
            `net.engine.graph.json`, `net.engine.profile.json`, `net.engine.profile.metadata.json`.

    Raises:
        EngineFormatError: A file is missing or malformed, or profile and graph are of different engines.
    """
    path = Path(path)
    stem = f"{path}/" if path.is_dir() else f"{path}."
    files = {name: Path(f"{stem}{name}.json") for name in _FILES}
    if not files["graph"].is_file():
        raise EngineFormatError(
            f"{path}: expected {files['graph'].name} beside it; name the folder or stem of a recording"
        )
    layers = read_engine(files["graph"])
    metadata = {
        name: parse_json(read_text(file), source=str(file))
        for name, file in files.items()
        if name.endswith("metadata") and file.is_file()
    }
    runs = 0
    if files["profile"].is_file():
        profile = read_profile(files["profile"])
        layers, runs = join_times(layers, profile.times, source=str(files["profile"])), profile.runs
    elif files["layer_latency"].is_file():
        samples = _layer_samples(files["layer_latency"])
        runs = min(map(len, samples.values()))
        times = [(name, statistics.median(values)) for name, values in samples.items()]
        layers = join_times(layers, times, source=str(files["layer_latency"]))
    latency_s, kind = _latency(metadata.get("profile.metadata"), files["benchmark"])
    return EngineRecording(
        name=path.name, layers=layers, runs=runs, latency_s=latency_s, latency_kind=kind, metadata=metadata
    )


_FILES = ("graph", "profile", "profile.metadata", "build.metadata", "metadata", "layer_latency", "benchmark")


def _layer_samples(path: Path) -> dict[str, Sequence[float]]:
    """Seconds of each run by layer, from milliseconds."""
    content = parse_json(read_text(path), source=str(path))
    if not isinstance(content, dict) or not content:
        raise EngineFormatError(f"{path}: expected an object with a list of milliseconds a layer")
    for name, values in content.items():
        if not isinstance(values, list) or not values or not all(isinstance(v, (int, float)) for v in values):
            raise EngineFormatError(f"{path}: layer '{name}': expected a list of milliseconds")
    return {name: [v * 1e-3 for v in values] for name, values in content.items()}


def _latency(profile_metadata: Any, benchmark: Path) -> tuple[float | None, str]:
    if profile_metadata is not None:
        try:
            # Minimum, maximum, mean, median, percentiles.
            return profile_metadata["performance_summary"]["GPU Compute Time"][3] * 1e-3, "gpu_compute"
        except (KeyError, IndexError, TypeError):
            raise EngineFormatError(
                "profile.metadata: expected `performance_summary` with `GPU Compute Time` of at least 4 values"
            ) from None
    if benchmark.is_file():
        content = parse_json(read_text(benchmark), source=str(benchmark))
        # The recorder stores JSON text inside a JSON string.
        content = json.loads(content) if isinstance(content, str) else content
        if not isinstance(content, dict) or not content.get("latencies"):
            raise EngineFormatError(f"{benchmark}: expected an object with `latencies` in seconds")
        return statistics.median(content["latencies"]), "host_sync"
    return None, ""

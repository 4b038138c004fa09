"""The predictors that come with the package, and which of them answers for a device."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Final

from perfpred.device import load_device
from perfpred.errors import FormatError, PredictorError, UsageError
from perfpred.prediction import Prediction
from perfpred.predictor import LatencyPredictor

#: What each runtime can run on; TensorRT-RTX engines are never taken for TensorRT's.
RUNTIMES: Final = ("tensorrt", "tensorrt-rtx", "onnxruntime")


def predictors_folder() -> Path:
    """Folder of the default predictors: inside the installed package, or beside it in a checkout."""
    package = Path(__file__).resolve().parent
    for folder in (package / "trained_models", package.parent / "trained_models"):
        if any(folder.glob("*/manifest.json")):
            return folder
    raise PredictorError("no predictor came with this installation; name one with --predictor, or train one")


@dataclass
class DefaultPredictors:
    """Answers with the shipped predictor that covers the device, or else with the nearest in kind."""

    folder: Path = field(default_factory=predictors_folder)

    @cached_property
    def predictors(self) -> Sequence[LatencyPredictor]:
        """All of them, those for TensorRT first."""
        found = [LatencyPredictor.load(path.parent) for path in sorted(self.folder.glob("*/manifest.json"))]
        return sorted(found, key=lambda p: p.facts_["runtime"] != "tensorrt")

    def choose(self, device: str, runtime: str | None = None) -> LatencyPredictor:
        """The predictor for a device: one trained on it, else one trained on its kind of processor.

        Raises:
            UsageError: The runtime is unknown.
            PredictorError: No predictor is of that runtime and kind of processor.
        """
        if runtime is not None and runtime not in RUNTIMES:
            raise UsageError(f"runtime '{runtime}' is unknown; give one of {', '.join(RUNTIMES)}")
        on_cpu = load_device(device).kind == "cpu"
        fitting = [
            p
            for p in self.predictors
            if (runtime is None or p.facts_["runtime"] == runtime) and p.facts_["on_cpu"] == on_cpu
        ]
        if not fitting:
            known = sorted(
                {f"{p.facts_['runtime']} on {'CPU' if p.facts_['on_cpu'] else 'GPU'}" for p in self.predictors}
            )
            raise PredictorError(
                f"no shipped predictor is for {runtime or 'any runtime'} on {device}; there are {', '.join(known)}. "
                "Collect and train one, and name it with --predictor"
            )
        return next((p for p in fitting if p.covers(device)), fitting[0])

    def predict(self, source: Any, *, device: str, runtime: str | None = None, **how: Any) -> Prediction:
        """As `LatencyPredictor.predict`, by the predictor chosen for the device."""
        return self.choose(device, runtime).predict(source, device=device, **how)


def load_predictor(folder: str | Path | None = None) -> LatencyPredictor | DefaultPredictors:
    """A predictor from its folder, or the ones that come with the package.

    Raises:
        FormatError: The folder holds no predictor of this version.
    """
    if folder is None:
        return DefaultPredictors()
    if not Path(folder).is_dir():
        raise FormatError(f"{folder}: is no folder; name one that `perfpred train --out` wrote")
    return LatencyPredictor.load(folder)


def data_behind() -> dict[str, str]:
    """What each device's predictions rest on: rows by runtime, from the shipped predictors."""
    try:
        predictors = DefaultPredictors().predictors
    except PredictorError:
        return {}
    made: dict[str, list[str]] = {}
    for one in predictors:
        for device, cells in one.facts_["cells"].items():
            made.setdefault(device, []).append(f"{sum(cells.values())} {one.facts_['runtime']} rows")
    return {device: ", ".join(rows) for device, rows in made.items()}

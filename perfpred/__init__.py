"""Latency of neural networks after an inference engine has optimised them, predicted before deployment."""

from __future__ import annotations

import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from perfpred.collect import collect
    from perfpred.dataset import Dataset
    from perfpred.defaults import load_predictor
    from perfpred.evaluate import evaluate
    from perfpred.prediction import Prediction
    from perfpred.predictor import LatencyPredictor

__all__ = ["Dataset", "LatencyPredictor", "Prediction", "collect", "evaluate", "load_predictor"]

_HOME = {
    "Dataset": "perfpred.dataset",
    "LatencyPredictor": "perfpred.predictor",
    "Prediction": "perfpred.prediction",
    "collect": "perfpred.collect",
    "evaluate": "perfpred.evaluate",
    "load_predictor": "perfpred.defaults",
}


def __getattr__(name: str) -> Any:
    """Loads a public name when it is first used, so that importing the package loads nothing else."""
    if name not in _HOME:
        raise AttributeError(f"module 'perfpred' has no attribute '{name}'")
    from importlib import import_module

    return getattr(import_module(_HOME[name]), name)


class _Package(ModuleType):
    """Keeps `perfpred.collect` and `perfpred.evaluate` the functions, once the modules of that name are loaded."""

    def __setattr__(self, name: str, value: Any) -> None:
        if not (name in _HOME and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package

"""Ranking: which networks of a folder, or of a Python file that makes them, are fast enough on a device."""

from __future__ import annotations

import importlib.util
import operator
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import onnx

from perfpred.errors import PerfpredError, UsageError, first_line
from perfpred.prediction import Prediction
from perfpred.requests import Request

#: What a constraint can speak of.
QUANTITIES: Final[Mapping[str, Callable[[Prediction], float]]] = {
    "latency_s": lambda p: p.latency_s,
    "interval_low_s": lambda p: p.interval_s[0],
    "interval_high_s": lambda p: p.interval_s[1],
    "inferences_per_s": lambda p: p.batch_size / p.latency_s,
    "flops": lambda p: float(sum(layer.flops for layer in p.layers)),
    "dram_bytes": lambda p: float(sum(layer.dram_bytes for layer in p.layers)),
    "n_layers": lambda p: float(len(p.layers)),
}
_COMPARE: Final[Mapping[str, Callable[[float, float], bool]]] = {
    "<=": operator.le,
    ">=": operator.ge,
    "<": operator.lt,
    ">": operator.gt,
}
_UNITS: Final = {"": 1.0, "s": 1.0, "ms": 1e-3, "us": 1e-6, "k": 1e3, "M": 1e6, "G": 1e9}
_CONSTRAINT: Final = re.compile(r"\s*(\w+)\s*(<=|>=|<|>)\s*([0-9.]+(?:[eE][-+]?\d+)?)\s*([a-zA-Z]*)\s*")


@dataclass(frozen=True, slots=True, kw_only=True)
class Constraint:
    """`quantity compare bound`, as in `latency_s <= 0.005`."""

    quantity: str
    compare: str
    bound: float

    @classmethod
    def parse(cls, text: str) -> Constraint:
        """Reads a constraint such as `latency_s<=0.005`, `latency_s < 5ms` or `flops<=2G`.

        Raises:
            UsageError: Another shape, quantity or unit.
        """
        found = _CONSTRAINT.fullmatch(text)
        if not found:
            raise UsageError(f"constraint '{text}' can't be read; write it as \"latency_s<=0.005\"")
        quantity, compare, number, unit = found.groups()
        if quantity not in QUANTITIES:
            raise UsageError(f"constraint on '{quantity}' is unknown; use one of {', '.join(QUANTITIES)}")
        if unit not in _UNITS:
            raise UsageError(f"unit '{unit}' in constraint '{text}' is unknown; use one of s, ms, us, k, M, G")
        try:
            bound = float(number) * _UNITS[unit]
        except ValueError as error:
            raise UsageError(f"'{number}' in constraint '{text}' is no number; write it as 0.005 or 5e-3") from error
        return cls(quantity=quantity, compare=compare, bound=bound)

    def met(self, prediction: Prediction) -> bool:
        """Whether a prediction satisfies it."""
        return _COMPARE[self.compare](QUANTITIES[self.quantity](prediction), self.bound)


def networks_in(source: str | Path) -> Iterator[tuple[str, Path | onnx.ModelProto]]:
    """Networks of a folder's `.onnx` files, or of `networks()` in a Python file, by name.

    A Python file is run, with all it does: it is the caller's own, named by the caller. Its function `networks()`
    yields pairs of a name and an `onnx.ModelProto`.

    Raises:
        UsageError: Neither a folder with `.onnx` files nor such a Python file.
    """
    path = Path(source)
    if path.is_dir():
        files = sorted(path.glob("*.onnx"))
        if not files:
            raise UsageError(f"{path}: holds no .onnx file; name a folder of networks")
        yield from ((file.name, file) for file in files)
    elif path.suffix == ".py" and path.is_file():
        yield from _made_by(path)
    else:
        raise UsageError(f"{path}: neither a folder of .onnx files nor a Python file with networks()")


def _made_by(path: Path) -> Iterator[tuple[str, onnx.ModelProto]]:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None:
        raise UsageError(f"{path}: can't be imported; give a plain Python file")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
        made = list(module.networks())
    except Exception as error:  # the caller's own code may raise anything
        raise UsageError(f"{path}: networks() failed: {type(error).__name__}: {first_line(error)}") from error
    for pair in made:
        if not (isinstance(pair, tuple) and len(pair) == 2 and isinstance(pair[1], onnx.ModelProto)):
            raise UsageError(f"{path}: networks() must yield pairs (name, onnx.ModelProto)")
        yield str(pair[0]), pair[1]


def ranked(
    source: str | Path, *, device: str, constraints: Sequence[str] = (), **how: Any
) -> tuple[list[Prediction], list[str]]:
    """Predictions of the networks that meet every constraint, fastest first, and messages of those that failed.

    Args:
        source: As for `networks_in`.
        device: Slug.
        constraints: As for `Constraint.parse`; all must be met.
        **how: Further arguments of `Request.checked`, such as precision, batch_size and predictor.

    Raises:
        UsageError: The source, the device or a constraint can't be used.
    """
    asked = [Constraint.parse(text) for text in constraints]
    request = Request.checked(devices=[device], **how)
    rows, errors = [], []
    for name, network in networks_in(source):
        for _, answer in request.answers(network, name):
            if isinstance(answer, PerfpredError):
                errors.append(f"{name}: {answer}")
            elif all(constraint.met(answer) for constraint in asked):
                rows.append(answer)
    return sorted(rows, key=lambda prediction: prediction.latency_s), errors

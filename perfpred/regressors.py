"""Regressors for log ratios: boosted trees, a small perceptron, and their blend.

The target is a logarithm: of a latency, or of a latency over a physical bound. All three minimise the *relative
error* of the latency, `|exp(z - y) - 1|`, because that is what predictors are judged by: where the engine takes
either a fast or a slow kernel for reasons no feature shows, the squared logarithm answers with a time between the
two that never occurs, the relative error with the likelier and cheaper one.

Trees find steps and rules, the perceptron interpolates between widths; their mean beats both. Features are
DataFrames of numbers whose columns are found by name. Files: UBJ for trees, `.npz` arrays for the perceptron, JSON
for the rest.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from itertools import pairwise
from pathlib import Path
from typing import Any, Final, Protocol, TypeVar

import numpy as np
import pandas as pd
import xgboost
from numpy.typing import ArrayLike, NDArray

from perfpred.errors import FormatError, PredictorError

FORMAT: Final = "perfpred.regressor"
VERSION: Final = 1

Floats = NDArray[np.float32]
_Self = TypeVar("_Self", bound="Regressor")


class Regressor(Protocol):
    """What the package asks of a regressor; `dataclasses.replace(regressor)` is an unfitted copy."""

    def fit(self: _Self, X: pd.DataFrame, y: ArrayLike, sample_weight: ArrayLike | None = None) -> _Self:
        """Learn from features, shape (rows, columns), and log targets, shape (rows,)."""
        ...

    def predict(self, X: pd.DataFrame) -> NDArray[np.float64]:
        """Return log targets, shape (rows,)."""
        ...

    def save(self, folder: Path | str) -> None:
        """Write files that `load_regressor` reads."""
        ...


def relative_error_slope(
    difference: NDArray[np.floating[Any]], smooth: float
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return gradient and (positive) curvature of the smoothed relative error.

    The loss is `sqrt(u^2 + smooth^2)` with `u = exp(difference) - 1`: quadratic for small errors, the absolute
    relative error for large ones.

    Args:
        difference: Predicted less true logarithm.
        smooth: Relative error at which the loss turns from quadratic to absolute.
    """
    ratio = np.exp(np.clip(difference.astype(np.float64), -4.0, 2.0))
    error = ratio - 1
    length = np.sqrt(error**2 + smooth**2)
    gradient = error / length * ratio
    curvature = (ratio * smooth) ** 2 / length**3 + np.abs(gradient)
    return gradient, np.maximum(curvature, 0.2)


def _numbers(X: pd.DataFrame, names: Sequence[str]) -> Floats:
    missing = [name for name in names if name not in X.columns]
    if missing:
        raise PredictorError(
            f"features lack {', '.join(missing[:5])} ({len(missing)} of {len(names)}); "
            "compute them with the function that made the training features"
        )
    return X[list(names)].to_numpy(np.float32)


def _write_manifest(folder: Path | str, kind: str, content: Mapping[str, Any]) -> Path:
    path = Path(folder)
    path.mkdir(parents=True, exist_ok=True)
    text = json.dumps({"format": FORMAT, "version": VERSION, "kind": kind, **content}, indent=1)
    (path / "regressor.json").write_text(text + "\n", encoding="utf-8")
    return path


@dataclass(kw_only=True, eq=False)
class BoostedTrees:
    """Gradient-boosted trees on the relative error (xgboost).

    Attributes:
        rounds: Trees.
        depth: Levels of a tree.
        learning_rate: Share of each tree's step that is taken.
        min_leaf: Least sum of curvature in a leaf.
        rows, columns: Shares drawn for each tree.
        smooth: See `relative_error_slope`.
        monotone: Column to +1 or -1 where the target may only rise or fall with it.
        seed: Of the draws.
        threads: Worker threads.
    """

    rounds: int = 1000
    depth: int = 8
    learning_rate: float = 0.05
    min_leaf: float = 10.0
    rows: float = 0.8
    columns: float = 0.5
    smooth: float = 0.2
    monotone: Mapping[str, int] = field(default_factory=dict)
    seed: int = 0
    threads: int = 1

    def fit(self, X: pd.DataFrame, y: ArrayLike, sample_weight: ArrayLike | None = None) -> BoostedTrees:
        """Learn from features, shape (rows, columns), and log targets, shape (rows,)."""
        target = np.asarray(y, float)
        weight = None if sample_weight is None else np.asarray(sample_weight, float)
        self.features_: list[str] = [str(name) for name in X.columns]
        data = xgboost.QuantileDMatrix(
            _numbers(X, self.features_),
            target,
            weight=weight,
            feature_names=self.features_,
            nthread=self.threads,
        )

        def objective(raw: NDArray[np.float32], _: Any) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
            gradient, curvature = relative_error_slope(raw - target, self.smooth)
            return (gradient, curvature) if weight is None else (gradient * weight, curvature * weight)

        params = {
            "max_depth": self.depth,
            "eta": self.learning_rate,
            "min_child_weight": self.min_leaf,
            "subsample": self.rows,
            "colsample_bytree": self.columns,
            "base_score": float(np.median(target)),
            "tree_method": "hist",
            "seed": self.seed,
            "nthread": self.threads,
            "monotone_constraints": {k: v for k, v in self.monotone.items() if k in self.features_},
        }
        self.booster_ = xgboost.train(params, data, self.rounds, obj=objective)
        return self

    def predict(self, X: pd.DataFrame) -> NDArray[np.float64]:
        """Return log targets, shape (rows,)."""
        values = self.booster_.inplace_predict(_numbers(X, self.features_), validate_features=False)
        return np.asarray(values, np.float64)

    def save(self, folder: Path | str) -> None:
        """Write `regressor.json` and `trees.ubj`."""
        params = {f.name: getattr(self, f.name) for f in fields(self)}
        path = _write_manifest(
            folder,
            "trees",
            {"params": {**params, "monotone": dict(self.monotone)}, "features": self.features_},
        )
        self.booster_.save_model(path / "trees.ubj")

    @classmethod
    def load(cls, folder: Path | str) -> BoostedTrees:
        """Return what `save` wrote."""
        manifest = _read_manifest(folder)
        loaded = cls(**manifest["params"])
        loaded.features_ = manifest["features"]
        loaded.booster_ = xgboost.Booster({"nthread": loaded.threads})
        loaded.booster_.load_model(Path(folder) / "trees.ubj")
        return loaded


@dataclass(kw_only=True, eq=False)
class Perceptron:
    """Fully connected network on standardised features, trained on the relative error (numpy only).

    Rectified units, Adam with decoupled weight decay, a warm-up and a cosine decay of the step. Features are
    clipped to the range seen in training, missing ones take the mean; so it never extrapolates a straight line.

    Attributes:
        hidden: Units of each hidden stage.
        epochs: Passes over the rows.
        learning_rate: Largest step.
        weight_decay: Shrinkage of weights, as a share of the step.
        batch: Rows a step.
        smooth: See `relative_error_slope`.
        seed: Of first weights and order.
    """

    hidden: tuple[int, ...] = (256, 256, 128)
    epochs: int = 60
    learning_rate: float = 2e-3
    weight_decay: float = 1e-4
    batch: int = 512
    smooth: float = 0.1
    seed: int = 0

    def fit(self, X: pd.DataFrame, y: ArrayLike, sample_weight: ArrayLike | None = None) -> Perceptron:
        """Learn from features, shape (rows, columns), and log targets, shape (rows,)."""
        self.features_: list[str] = [str(name) for name in X.columns]
        raw = _numbers(X, self.features_).astype(np.float64)
        target = np.asarray(y, float)
        weight = np.ones_like(target) if sample_weight is None else np.asarray(sample_weight, float)
        weight = weight / weight.mean()
        seen = np.isfinite(raw).any(axis=0)
        raw[:, ~seen] = 0.0
        spread = np.nanstd(raw, axis=0)
        self.state_: dict[str, NDArray[Any]] = {
            "mean": np.nanmean(raw, axis=0),
            "spread": np.where(spread > 1e-9, spread, 1.0),
            "low": np.nanmin(raw, axis=0),
            "high": np.nanmax(raw, axis=0),
            "level": np.array([np.median(target), max(target.std(), 1e-6)]),
        }
        self._descend(self._standardised(raw), target, weight)
        return self

    def _standardised(self, raw: NDArray[np.floating[Any]]) -> Floats:
        state = self.state_
        clipped = np.clip(raw, state["low"], state["high"])
        filled = np.where(np.isfinite(clipped), clipped, state["mean"])
        return np.asarray((filled - state["mean"]) / state["spread"], np.float32)

    def _descend(self, inputs: Floats, target: NDArray[np.float64], weight: NDArray[np.float64]) -> None:
        random = np.random.default_rng(self.seed)
        middle, scale = self.state_["level"]
        sizes = [inputs.shape[1], *self.hidden, 1]
        shapes = [*pairwise(sizes), *((b,) for b in sizes[1:])]
        # All values in one array, weights first: a step is a few operations on it instead of a few on each part.
        value, slope, mean, square, change = np.zeros((5, sum(map(math.prod, shapes))), np.float32)
        parts, slopes = _parts(value, shapes), _parts(slope, shapes)
        weights, biases = parts[: len(self.hidden) + 1], parts[len(self.hidden) + 1 :]
        for weight_of, (a, b) in zip(weights, pairwise(sizes), strict=True):
            weight_of[:] = random.normal(size=(a, b)) * np.sqrt(2 / a)
        weights[-1] *= 0.1
        decayed = value[: sum(w.size for w in weights)]
        per_epoch = -(-len(inputs) // self.batch)
        total, step = per_epoch * self.epochs, 0
        for _ in range(self.epochs):
            order = random.permutation(len(inputs))
            for start in range(0, len(inputs), self.batch):
                rows = order[start : start + self.batch]
                stages = _stages(inputs[rows], weights, biases)
                difference = stages[-1][:, 0] * scale + middle - target[rows]
                gradient, _unused = relative_error_slope(difference, self.smooth)
                _write_slopes(stages, weights, (gradient * weight[rows] / len(rows)).astype(np.float32), slopes)
                step += 1
                rate = self.learning_rate * min(1, step / 200) * 0.5 * (1 + np.cos(np.pi * step / total))
                unbias = np.sqrt(1 - 0.999**step) / (1 - 0.9**step)
                slope += np.float32(1e-12)  # units at rest: their averages would decay to slow denormals
                mean += np.multiply(np.subtract(slope, mean, out=change), np.float32(0.1), out=change)
                np.subtract(np.multiply(slope, slope, out=change), square, out=change)
                square += np.multiply(change, np.float32(0.001), out=change)
                decayed *= np.float32(1 - rate * self.weight_decay)
                np.add(np.sqrt(square, out=change), np.float32(1e-8), out=change)
                value -= np.divide(np.float32(rate * unbias) * mean, change, out=change)
        self.state_ |= {f"weight{i}": w.copy() for i, w in enumerate(weights)}
        self.state_ |= {f"bias{i}": b.copy() for i, b in enumerate(biases)}

    def predict(self, X: pd.DataFrame) -> NDArray[np.float64]:
        """Return log targets, shape (rows,)."""
        state, depth = self.state_, len(self.hidden) + 1
        inputs = self._standardised(_numbers(X, self.features_))
        last = _stages(inputs, [state[f"weight{i}"] for i in range(depth)], [state[f"bias{i}"] for i in range(depth)])[
            -1
        ]
        middle, scale = state["level"]
        return np.asarray(last[:, 0].astype(np.float64) * scale + middle, np.float64)

    def save(self, folder: Path | str) -> None:
        """Write `regressor.json` and `perceptron.npz`."""
        params = {f.name: getattr(self, f.name) for f in fields(self)}
        path = _write_manifest(folder, "perceptron", {"params": params, "features": self.features_})
        np.savez_compressed(path / "perceptron.npz", allow_pickle=False, **self.state_)

    @classmethod
    def load(cls, folder: Path | str) -> Perceptron:
        """Return what `save` wrote."""
        manifest = _read_manifest(folder)
        params = manifest["params"]
        loaded = cls(**{**params, "hidden": tuple(params["hidden"])})
        loaded.features_ = manifest["features"]
        with np.load(Path(folder) / "perceptron.npz", allow_pickle=False) as arrays:
            loaded.state_ = dict(arrays)
        return loaded


def _stages(inputs: Floats, weights: Sequence[Floats], biases: Sequence[Floats]) -> list[Floats]:
    """Return inputs, each hidden stage after rectification, and the output, shape (rows, 1)."""
    stages = [inputs]
    for i, (weight, bias) in enumerate(zip(weights, biases, strict=True)):
        stage = stages[-1] @ weight
        stage += bias
        stages.append(np.maximum(stage, 0, out=stage) if i + 1 < len(weights) else stage)
    return stages


def _parts(values: Floats, shapes: Iterable[tuple[int, ...]]) -> list[Floats]:
    """Return views of consecutive parts of an array, of the shapes given."""
    made, start = [], 0
    for shape in shapes:
        made.append(values[start : start + math.prod(shape)].reshape(shape))
        start += math.prod(shape)
    return made


def _write_slopes(stages: Sequence[Floats], weights: Sequence[Floats], outer: Floats, out: Sequence[Floats]) -> None:
    """Write the loss's gradient by weights, then by biases."""
    back = outer[:, None]
    for i in range(len(weights) - 1, -1, -1):
        np.matmul(stages[i].T, back, out=out[i])
        back.sum(axis=0, out=out[len(weights) + i])
        if i:
            back = back @ weights[i].T
            back *= stages[i] > 0


@dataclass(kw_only=True, eq=False)
class Blend:
    """Mean of several regressors fitted on the same rows.

    Attributes:
        members: Unfitted or fitted regressors, each fitted in place.
        weights: Share of each; equal where left out.
    """

    members: Sequence[BoostedTrees | Perceptron] = field(default_factory=lambda: (BoostedTrees(), Perceptron()))
    weights: Sequence[float] = ()

    def fit(self, X: pd.DataFrame, y: ArrayLike, sample_weight: ArrayLike | None = None) -> Blend:
        """Learn from features, shape (rows, columns), and log targets, shape (rows,)."""
        for member in self.members:
            member.fit(X, y, sample_weight)
        return self

    def predict(self, X: pd.DataFrame) -> NDArray[np.float64]:
        """Return log targets, shape (rows,)."""
        answers = np.stack([member.predict(X) for member in self.members])
        return np.asarray(np.average(answers, axis=0, weights=self.weights or None), np.float64)

    def save(self, folder: Path | str) -> None:
        """Write `regressor.json` and a folder for each member."""
        path = _write_manifest(folder, "blend", {"weights": list(self.weights), "members": len(self.members)})
        for i, member in enumerate(self.members):
            member.save(path / f"member{i}")

    @classmethod
    def load(cls, folder: Path | str) -> Blend:
        """Return what `save` wrote."""
        manifest = _read_manifest(folder)
        members = [load_regressor(Path(folder) / f"member{i}") for i in range(manifest["members"])]
        return cls(members=members, weights=manifest["weights"])


_KINDS: Final[Mapping[str, type[BoostedTrees] | type[Perceptron] | type[Blend]]] = {
    "trees": BoostedTrees,
    "perceptron": Perceptron,
    "blend": Blend,
}


def load_regressor(folder: Path | str) -> Any:
    """Return the regressor saved in a folder, whichever it is.

    Raises:
        FormatError: not a regressor, or of another version.
    """
    return _KINDS[_read_manifest(folder)["kind"]].load(folder)


def _read_manifest(folder: Path | str) -> dict[str, Any]:
    path = Path(folder) / "regressor.json"
    try:
        manifest: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, json.JSONDecodeError) as error:
        raise FormatError(
            f"{path}: can't be read as a {FORMAT} manifest ({error}); save the regressor again"
        ) from error
    if manifest.get("format") != FORMAT or manifest.get("kind") not in _KINDS:
        raise FormatError(f"{path}: not a {FORMAT} of a known kind; is this folder a saved regressor?")
    if manifest.get("version") != VERSION:
        raise FormatError(f"{path}: {FORMAT} version {manifest.get('version')}; this perfpred reads {VERSION}")
    return manifest

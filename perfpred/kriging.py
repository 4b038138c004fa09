"""Gaussian process over rows that come in groups, which answers for its own training rows as if their group were new.

A table of layers is a grid: for a pair of widths never timed, the same size, kernel and stride was timed at other
widths. The process carries those times over. A regressor stacked on top needs the same columns for its training
rows, without the row's own group in them: `left_out_` gives that, in closed form from the inverse covariance.

The kernel is a sum of Matern 3/2, from smooth to short-ranged, each with a length for every column. Lengths,
variances and noise minimise the relative error of the left-out answers, by Adam on random parts of the strata: first
for all strata together, then, from there, for those alike in some columns. Apart from that, strata (kernel size,
stride, ...) share nothing, which keeps matrices small: O(n^3) for the n rows of a stratum.

Sources: Rasmussen and Williams 2006, chapter 5 (gaussianprocess.org/gpml) for the process and leaving rows out;
Ginsbourger and Schaerer 2021, arXiv 2101.03108, for leaving out groups.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from scipy.linalg import lapack

from perfpred.errors import FormatError, PredictorError
from perfpred.regressors import relative_error_slope

FORMAT: Final = "perfpred.kriging"
VERSION: Final = 2

Floats = NDArray[np.float32]
Array = NDArray[np.float64]

#: First lengths, in standard deviations of a column, of the kernels from smooth to short-ranged.
_FIRST_LENGTHS: Final = (8.0, 4.0, 1.5)

#: First variances: of these kernels and of the noise, of a target in logarithms.
_FIRST_VARIANCES: Final = (1.0, 0.3, 0.1, 0.09)

#: Least variance of the noise; single precision needs some.
_LEAST_NOISE: Final = 0.006


class _Scales(NamedTuple):
    """Numbers of the kernels: lengths, shape (kernels, columns), variances, shape (kernels,), and the noise's."""

    lengths: Floats
    variances: Floats
    noise: float

    @classmethod
    def from_logarithms(cls, logs: Array) -> _Scales:
        values = np.exp(logs).astype(np.float32)
        kernels = len(_FIRST_LENGTHS)
        return cls(values[: -kernels - 1].reshape(kernels, -1), values[-kernels - 1 : -1], float(values[-1]))


#: The gradient by the logarithms of scales, on rows at some positions.
_SlopeOf = Callable[[NDArray[Any], _Scales], Array]


class _Part(NamedTuple):
    """One of the kernels on some rows: scaled rows, exponential and covariance, with the variance in both."""

    rows: Floats
    decay: Floats
    covariance: Floats


@dataclass(kw_only=True, eq=False)
class Kriging:
    """Gaussian process with leave-group-out answers.

    Attributes:
        strata: Columns that split the rows; rows answer only for rows of the same (or nearest) stratum.
        kin: Those of `strata` in which strata must agree to share lengths and variances.
        steps: Steps of the search for lengths and variances, for all strata together.
        refining: Further steps for each set of kin.
        rows: Rows drawn for a step.
        learning_rate: Largest step, in logarithms.
        smooth: Relative error at which the loss turns from quadratic to absolute.
        seed: Of the draws.
    """

    strata: tuple[str, ...] = ()
    kin: tuple[str, ...] = ()
    steps: int = 100
    refining: int = 100
    rows: int = 600
    learning_rate: float = 0.08
    smooth: float = 0.1
    seed: int = 0

    def fit(self, X: pd.DataFrame, y: ArrayLike, groups: ArrayLike) -> Kriging:
        """Learn from rows; afterwards `left_out_`, shape (rows,), holds each row's answer without its group.

        Args:
            X: Numbers, shape (rows, columns), finite.
            y: Log targets, shape (rows,).
            groups: Label of each row's group, shape (rows,).
        """
        target, group = np.asarray(y, float), np.unique(np.asarray(groups), return_inverse=True)[1]
        spread = X.std(ddof=0)
        self.features_ = [str(name) for name in X.columns if spread[name] > 1e-6 and name not in self.strata]
        self.mean_ = X[self.features_].mean().to_numpy(float)
        self.spread_ = spread[self.features_].to_numpy(float)
        self.known_, stratum = np.unique(X[list(self.strata)].to_numpy(float), axis=0, return_inverse=True)
        self.level_ = float(np.median(target))
        standard = self._standardised(X)
        members = [np.flatnonzero(stratum.ravel() == s) for s in range(len(self.known_))]

        def slope(here: NDArray[Any], scales: _Scales) -> Array:
            return _slope(standard[here], target[here] - self.level_, group[here], scales, self.smooth)

        self.scales_ = self._searched(slope, members)
        self.left_out_ = np.empty(len(target))
        self.rows_, self.weights_ = [], []
        for here, scales in zip(members, self.scales_, strict=True):
            centred = (target[here] - self.level_).astype(np.float32)
            parts = _parts(standard[here], standard[here], scales)
            weights, inverse = _solved(_covariance(parts, scales.noise), centred)
            left_out = _left_out(inverse, weights, _members(group[here]))
            self.left_out_[here] = target[here] - left_out
            self.rows_.append(standard[here])
            self.weights_.append(weights)
        return self

    def _searched(self, slope: _SlopeOf, members: list[NDArray[Any]]) -> list[_Scales]:
        """Return each stratum's scales, given the gradient on some rows and the rows of each stratum."""
        columns = len(self.features_)
        repeats = [columns] * len(_FIRST_LENGTHS) + [1] * len(_FIRST_VARIANCES)
        first = np.log(np.repeat([*_FIRST_LENGTHS, *_FIRST_VARIANCES], repeats))
        shared = self._descended(first, self.steps, slope, members)
        alike = self.known_[:, [self.strata.index(name) for name in self.kin]]
        family = np.unique(alike, axis=0, return_inverse=True)[1].ravel()
        families = _members(family)
        own = [self._descended(shared, self.refining, slope, [members[s] for s in kin]) for kin in families]
        return [_Scales.from_logarithms(own[f]) for f in family]

    def _descended(self, logs: Array, steps: int, slope: _SlopeOf, members: list[NDArray[Any]]) -> Array:
        """Return the logarithms of scales after steps of Adam, each on some rows of the next stratum."""
        random = np.random.default_rng(self.seed)
        order = np.concatenate([random.permutation(len(members)) for _ in range(-(-steps // len(members)))])
        mean, square = np.zeros_like(logs), np.zeros_like(logs)
        lengths = len(logs) - len(_FIRST_VARIANCES)
        for step in range(steps):
            here = members[order[step]]
            drawn = random.choice(here, min(self.rows, len(here)), replace=False)
            found = slope(drawn, _Scales.from_logarithms(logs))
            mean += 0.1 * (found - mean)
            square += 0.01 * (found**2 - square)
            rate = self.learning_rate * 0.5 * (1 + np.cos(np.pi * step / steps))
            unbiased = mean / (1 - 0.9 ** (step + 1)) / (np.sqrt(square / (1 - 0.99 ** (step + 1))) + 1e-8)
            logs = logs - rate * unbiased
            logs[:lengths] = np.clip(logs[:lengths], -2, 5)
            logs[-1] = max(logs[-1], np.log(_LEAST_NOISE))
        return logs

    def _standardised(self, X: pd.DataFrame) -> Floats:
        missing = [name for name in (*self.features_, *self.strata) if name not in X.columns]
        if missing:
            raise PredictorError(
                f"features lack {', '.join(missing[:5])}; compute them with the function that made the training features"
            )
        return np.asarray((X[self.features_].to_numpy(float) - self.mean_) / self.spread_, np.float32)

    def predict(self, X: pd.DataFrame) -> Array:
        """Return log targets, shape (rows,)."""
        asked, own = self._standardised(X), X[list(self.strata)].to_numpy(float)
        nearest = np.abs(own[:, None] - self.known_).sum(axis=2).argmin(axis=1)
        made = np.empty(len(X))
        for stratum in np.unique(nearest):
            here = np.flatnonzero(nearest == stratum)
            parts = _parts(asked[here], self.rows_[stratum], self.scales_[stratum])
            made[here] = self.level_ + _covariance(parts, 0.0) @ self.weights_[stratum]
        return made

    def save(self, folder: Path | str) -> None:
        """Write `kriging.json` and `kriging.npz`."""
        path = Path(folder)
        path.mkdir(parents=True, exist_ok=True)
        about = {"format": FORMAT, "version": VERSION, "params": asdict(self), "features": self.features_}
        (path / "kriging.json").write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")
        np.savez_compressed(
            path / "kriging.npz",
            allow_pickle=False,
            **{"mean": self.mean_, "spread": self.spread_, "known": self.known_, "level": np.array(self.level_)},
            **{"lengths": np.stack([scales.lengths for scales in self.scales_])},
            **{"variances": np.stack([scales.variances for scales in self.scales_])},
            **{"noise": np.array([scales.noise for scales in self.scales_])},
            **{"sizes": np.array([len(w) for w in self.weights_])},
            **{"rows": np.concatenate(self.rows_), "weights": np.concatenate(self.weights_)},
        )

    @classmethod
    def load(cls, folder: Path | str) -> Kriging:
        """Return what `save` wrote, without `left_out_`.

        Raises:
            FormatError: not a saved process, or of another version.
        """
        path = Path(folder) / "kriging.json"
        try:
            about = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, json.JSONDecodeError) as error:
            raise FormatError(f"{path}: can't be read as {FORMAT} ({error}); save the predictor again") from error
        if (about.get("format"), about.get("version")) != (FORMAT, VERSION):
            raise FormatError(f"{path}: not {FORMAT} version {VERSION}; save the predictor with this perfpred")
        params = about["params"]
        loaded = cls(**{**params, "strata": tuple(params["strata"]), "kin": tuple(params["kin"])})
        loaded.features_ = about["features"]
        with np.load(Path(folder) / "kriging.npz", allow_pickle=False) as stored:
            loaded.mean_, loaded.spread_, loaded.known_ = stored["mean"], stored["spread"], stored["known"]
            loaded.level_ = float(stored["level"])
            found = zip(stored["lengths"], stored["variances"], stored["noise"], strict=True)
            loaded.scales_ = [_Scales(lengths, variances, float(noise)) for lengths, variances, noise in found]
            ends = np.cumsum(stored["sizes"])[:-1]
            loaded.rows_ = np.split(stored["rows"], ends)
            loaded.weights_ = np.split(stored["weights"], ends)
        return loaded


def _members(labels: NDArray[Any]) -> list[NDArray[Any]]:
    """Return the positions of each label."""
    order = np.argsort(labels, kind="stable")
    return np.split(order, np.flatnonzero(np.diff(labels[order])) + 1)


def _parts(left: Floats, right: Floats, scales: _Scales) -> list[_Part]:
    parts = []
    for lengths, variance in zip(scales.lengths, scales.variances, strict=True):
        a, b = left / lengths, right / lengths
        distance = (-6 * a) @ b.T
        distance += 3 * (a * a).sum(axis=1)[:, None]
        distance += 3 * (b * b).sum(axis=1)
        np.sqrt(np.maximum(distance, 0, out=distance), out=distance)
        decay = np.exp(-distance)
        decay *= variance
        distance += 1
        distance *= decay
        parts.append(_Part(a, decay, distance))
    return parts


def _covariance(parts: list[_Part], noise: float) -> Floats:
    total = parts[0].covariance.copy()
    for part in parts[1:]:
        total += part.covariance
    if noise:
        total[np.diag_indices(len(total))] += noise
    return total


def _solved(covariance: Floats, target: Floats) -> tuple[Floats, Floats]:
    """Return the inverse covariance times the target, and the inverse."""
    factor, failed = lapack.spotrf(covariance.T, lower=1)
    if failed:
        raise PredictorError("the covariance of the rows is singular; look for values that aren't finite")
    weights, _ = lapack.spotrs(factor, target, lower=1)
    inverse, _ = lapack.spotri(factor, lower=1)
    whole = inverse + inverse.T  # above the diagonal, the inverse is zero as the factor was
    whole[np.diag_indices(len(whole))] /= 2
    return weights, whole


def _left_out(inverse: Floats, weights: Floats, groups: list[NDArray[Any]]) -> Array:
    """Return true less left-out answer of each row."""
    left = np.empty(len(weights))
    for own in groups:
        left[own] = np.linalg.solve(inverse[np.ix_(own, own)], weights[own])
    return left


def _slope(rows: Floats, target: Array, labels: NDArray[Any], scales: _Scales, smooth: float) -> Array:
    """Return the gradient of the left-out answers' mean relative error by the logarithms of the scales.

    With C the covariance, w = C^-1 y, left-out differences e_g = (C^-1)_gg^-1 w_g and slope s of the loss by e, let
    v_g = (C^-1)_gg^-1 s_g. Then the gradient by C is C^-1 (V - v y') C^-1 with V the blocks v_g e_g'.
    """
    parts = _parts(rows, rows, scales)
    groups = _members(labels)
    weights, inverse = _solved(_covariance(parts, scales.noise), target.astype(np.float32))
    left = _left_out(inverse, weights, groups)
    slope_by_left = -relative_error_slope(-left, smooth)[0] / len(left)
    pulled = _left_out(inverse, slope_by_left.astype(np.float32), groups).astype(np.float32)
    own = (labels[:, None] == np.unique(labels)).astype(np.float32)
    towards = inverse @ (own * pulled[:, None])
    by_covariance = towards @ ((own * left[:, None].astype(np.float32)).T @ inverse)
    by_covariance -= np.outer(towards.sum(axis=1), weights)
    by_covariance = (by_covariance + by_covariance.T) / 2
    slopes: list[NDArray[Any]] = []
    for part in parts:
        pairs = by_covariance * part.decay
        slopes.append(6 * (part.rows * (part.rows * pairs.sum(axis=1)[:, None] - pairs @ part.rows)).sum(axis=0))
    variances = [float(np.vdot(by_covariance, part.covariance)) for part in parts]
    return np.concatenate([*slopes, [*variances, float(np.trace(by_covariance)) * scales.noise]]).astype(float)

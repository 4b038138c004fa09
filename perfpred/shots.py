"""Calibration by a few measurements of one's own: what they miss, carried over to similar engines.

One scale moves every prediction by the same factor. A device never seen also runs some kinds of network better and
others worse than expected, and k measurements say which: a Gaussian process over the engines' similarity, conditioned
on the k residuals, moves a prediction as far as its network resembles the measured ones, and all by a common factor.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np

#: Standard deviations on the log scale: of the common factor, of what differs between networks, and of the noise;
#: and the length over which networks resemble each other, in standardised features.
_COMMON: Final = 1.0
_AMPLITUDE: Final = 0.4
_NOISE: Final = 0.1
_LENGTH: Final = 0.8


@dataclass
class Shots:
    """Correction learned from k measured engines of one device.

    `features_` has shape (k, n_features), standardised as `EngineStage.similarity` gives them; `weights_` shape (k,).
    """

    features_: np.ndarray = field(default_factory=lambda: np.zeros((0, 0)))
    weights_: np.ndarray = field(default_factory=lambda: np.zeros(0))

    def fit(self, similarity: np.ndarray, residual: np.ndarray) -> Shots:
        """Conditions on `residual`, log(measured / predicted), shape (k,), at `similarity`, shape (k, n_features)."""
        self.features_ = np.asarray(similarity, float)
        inner = _kernel(self.features_, self.features_) + _NOISE**2 * np.eye(len(residual))
        self.weights_ = np.linalg.solve(inner, np.asarray(residual, float))
        return self

    def left_out(self) -> np.ndarray:
        """Residual of each measurement under the other k - 1 alone, shape (k,)."""
        inner = _kernel(self.features_, self.features_) + _NOISE**2 * np.eye(len(self.weights_))
        made: np.ndarray = self.weights_ / np.diag(np.linalg.inv(inner))
        return made

    def predict(self, similarity: np.ndarray) -> np.ndarray:
        """Log correction of each engine, shape (n,); zeros before any measurement."""
        if not len(self.weights_):
            return np.zeros(len(similarity))
        made: np.ndarray = _kernel(np.asarray(similarity, float), self.features_) @ self.weights_
        return made

    def to_dict(self) -> dict[str, Any]:
        """JSON form."""
        return {"features": self.features_.tolist(), "weights": self.weights_.tolist()}

    @classmethod
    def from_dict(cls, facts: Mapping[str, Any]) -> Shots:
        """From the JSON form."""
        return cls(np.asarray(facts["features"], float), np.asarray(facts["weights"], float))


def _kernel(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    squared = (a**2).mean(axis=1)[:, None] + (b**2).mean(axis=1)[None] - 2 * a @ b.T / a.shape[1]
    made: np.ndarray = _COMMON**2 + _AMPLITUDE**2 * np.exp(-0.5 * np.maximum(squared, 0.0) / _LENGTH**2)
    return made

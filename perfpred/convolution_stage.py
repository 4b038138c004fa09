"""Single convolution layers: their time from geometry and device numbers, learned from tables of timed layers.

A Gaussian process carries times over from other widths, boosted trees and a perceptron learn what it misses. Both see
its answers for training rows as if the row's pair of widths were new: that is how good they will be where it matters.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
import pandas as pd

from perfpred.convolution import convolution_features
from perfpred.features import peak_of
from perfpred.kriging import Kriging
from perfpred.layer import DTYPE_BITS
from perfpred.regressors import Blend, BoostedTrees, Perceptron

#: What the geometry columns of a dataset are called in `perfpred.convolution`.
_GEOMETRY: Final[Mapping[str, str]] = {
    "batch": "batch", "in_channels": "c", "out_channels": "k_out", "in_h": "h", "in_w": "w", "out_h": "p",
    "out_w": "q", "kernel_h": "r", "kernel_w": "s", "stride": "stride", "groups": "groups",
}  # fmt: skip

#: Kernels of other sizes or strides are other kernels: how far times carry over is learned for each.
_KIN: Final = ("kernel_h", "kernel_w", "stride", "depthwise")

#: With other epilogues, they share that, but no residuals.
_STRATA: Final = (*_KIN, "added_tensors")


@dataclass(kw_only=True, eq=False)
class ConvolutionRegressor:
    """Log ratio of convolution layers' time to their roofline: a process, and a blend on what it leaves.

    Attributes:
        kriging: Carries times over between layers of one kernel size and stride.
        blend: Learns the rest from all layers.
    """

    kriging: Kriging = field(default_factory=lambda: Kriging(strata=_STRATA, kin=_KIN))
    blend: Blend = field(
        default_factory=lambda: Blend(
            members=(BoostedTrees(rounds=400, learning_rate=0.08, min_leaf=200), Perceptron(epochs=30)),
            weights=(2.0, 1.0),
        )
    )

    def fit(self, X: pd.DataFrame, y: np.ndarray) -> ConvolutionRegressor:
        """Learn from columns of `convolution_features`, shape (layers, columns), and log ratios, shape (layers,)."""
        widths = X.groupby(["in_channels", "out_channels"]).ngroup().to_numpy()
        carried = self.kriging.fit(X, y, widths).left_out_
        self.blend.fit(X.assign(carried=carried), y - carried)
        return self

    def predict(self, X: pd.DataFrame) -> np.ndarray:
        """Return log ratios, shape (layers,)."""
        carried = self.kriging.predict(X)
        return carried + self.blend.predict(X.assign(carried=carried))

    def save(self, folder: Path) -> None:
        """Write a folder for each part."""
        self.kriging.save(folder / "kriging")
        self.blend.save(folder / "blend")

    @classmethod
    def load(cls, folder: Path) -> ConvolutionRegressor:
        """Return what `save` wrote."""
        return cls(kriging=Kriging.load(folder / "kriging"), blend=Blend.load(folder / "blend"))


@dataclass
class ConvolutionStage:
    """One regressor per precision."""

    regressors_: dict[str, ConvolutionRegressor] = field(default_factory=dict)

    def fit(self, instances: pd.DataFrame, time_s: np.ndarray) -> ConvolutionStage:
        """Fits on layer instances, one per measured time; `time_s` has shape (n_layers,)."""
        self.regressors_ = {}
        for precision in sorted(instances["precision"].unique()):
            here = (instances["precision"] == precision).to_numpy()
            features, log_bound = _features(instances[here])
            self.regressors_[str(precision)] = ConvolutionRegressor().fit(features, np.log(time_s[here]) - log_bound)
        return self

    def predict(self, instances: pd.DataFrame) -> np.ndarray:
        """Time of each layer, seconds; NaN at a precision never seen. Shape (n_layers,)."""
        made = np.full(len(instances), np.nan)
        for precision, regressor in self.regressors_.items():
            here = (instances["precision"] == precision).to_numpy()
            if here.any():
                features, log_bound = _features(instances[here])
                made[here] = np.exp(regressor.predict(features) + log_bound)
        return made

    def save(self, folder: Path) -> dict[str, Any]:
        """Writes a folder per precision and returns what the manifest keeps."""
        for precision, regressor in self.regressors_.items():
            regressor.save(folder / f"convolutions-{precision}")
        return {"precisions": sorted(self.regressors_)}

    @classmethod
    def load(cls, folder: Path, facts: Mapping[str, Any]) -> ConvolutionStage:
        """The stage a manifest describes."""
        return cls({p: ConvolutionRegressor.load(folder / f"convolutions-{p}") for p in facts["precisions"]})


def _features(instances: pd.DataFrame) -> tuple[pd.DataFrame, np.ndarray]:
    numbers = {name: pd.to_numeric(instances[column]).fillna(1).to_numpy(float) for name, column in _GEOMETRY.items()}
    geometry = pd.DataFrame(numbers, index=instances.index)
    geometry["added_tensors"] = instances["n_inputs"].to_numpy(float) - 1
    geometry["element_bytes"] = instances["dtype"].map(dict(DTYPE_BITS)).to_numpy(float) / 8
    return convolution_features(
        geometry,
        peak_flops=peak_of(instances),
        vector_flops=instances["peak_fp32"].to_numpy(float),
        sm_count=instances["sm_count"].to_numpy(float),
        dram_bytes_per_s=instances["dram_bytes_per_s"].to_numpy(float),
        l2_bytes=instances["l2_bytes"].to_numpy(float),
    )

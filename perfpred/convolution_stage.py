"""Single convolution layers: their time from geometry and device numbers, learned from tables of timed layers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
import pandas as pd

from perfpred.convolution import convolution_features
from perfpred.features import peak_of
from perfpred.layer import DTYPE_BITS
from perfpred.regressors import Blend, Regressor, load_regressor

#: What the geometry columns of a dataset are called in `perfpred.convolution`.
_GEOMETRY: Final[Mapping[str, str]] = {
    "batch": "batch", "in_channels": "c", "out_channels": "k_out", "in_h": "h", "in_w": "w", "out_h": "p",
    "out_w": "q", "kernel_h": "r", "kernel_w": "s", "stride": "stride", "groups": "groups",
}  # fmt: skip


@dataclass
class ConvolutionStage:
    """One regressor per precision on the log ratio of a layer's time to its roofline."""

    regressors_: dict[str, Regressor] = field(default_factory=dict)

    def fit(self, instances: pd.DataFrame, time_s: np.ndarray) -> ConvolutionStage:
        """Fits on layer instances, one per measured time; `time_s` has shape (n_layers,)."""
        self.regressors_ = {}
        for precision in sorted(instances["precision"].unique()):
            here = (instances["precision"] == precision).to_numpy()
            features, log_bound = _features(instances[here])
            self.regressors_[str(precision)] = Blend().fit(features, np.log(time_s[here]) - log_bound)
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
        return cls({p: load_regressor(folder / f"convolutions-{p}") for p in facts["precisions"]})


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

"""What a micro-architecture-only predictor would have said: baselines on unfused nodes, kept beside a predictor."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
import pandas as pd

from perfpred.baselines import Baseline, baseline_from_dict, baseline_to_dict, fit_groups, predict_groups

#: Baseline behind each name in `baselines_s`: `roofline` and `bsp` are calibrated, `pure_roofline` is the bound.
_SHOWN: Final[Mapping[str, str]] = {"roofline": "scaled_roofline", "bsp": "bsp", "pure_roofline": "roofline"}


def calibration_groups(engines: pd.DataFrame) -> list[str]:
    """The group each engine's baseline is calibrated in: runtime, device and precision."""
    return [f"{r}/{d}/{p}" for r, d, p in zip(engines["runtime"], engines["device"], engines["precision"], strict=True)]


@dataclass
class Contrast:
    """Baselines calibrated per runtime, device and precision where rows exist, on all rows elsewhere."""

    fitted_: dict[str, dict[str, Baseline]] = field(default_factory=dict)

    def fit(self, engines: pd.DataFrame, nodes: pd.DataFrame) -> Contrast:
        """Fits on measured engines; `nodes` are their layer instances at level `node`."""
        latency_s = engines["latency_s"].to_numpy(float)
        fitted = fit_groups(_SHOWN.values(), nodes, latency_s, calibration_groups(engines))
        self.fitted_ = {shown: fitted[name] for shown, name in _SHOWN.items()}
        return self

    def predict(self, engines: pd.DataFrame, nodes: pd.DataFrame) -> dict[str, np.ndarray]:
        """Latency of each engine by baseline, seconds."""
        return predict_groups(self.fitted_, nodes, calibration_groups(engines))

    def to_dict(self) -> dict[str, Any]:
        """JSON form."""
        return {
            shown: {group: baseline_to_dict(one) for group, one in fitted.items()}
            for shown, fitted in self.fitted_.items()
        }

    @classmethod
    def from_dict(cls, facts: Mapping[str, Any]) -> Contrast:
        """From the JSON form."""
        return cls({shown: {g: baseline_from_dict(v) for g, v in fitted.items()} for shown, fitted in facts.items()})

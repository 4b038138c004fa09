"""Honest intervals: held-out residuals, kept by device and kind of latency."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
import pandas as pd

#: Intervals of networks outside the training range are this much wider, on the log scale.
_STRETCH: Final = 1.5
_GRID: Final = 201


@dataclass
class Residuals:
    """Held-out log residuals `log(measured / predicted)`: intervals and probabilities are read off them.

    Split-conformal on the engine level: a new network of a lineage never seen is exchangeable with the held-out
    ones. Kept as a quantile grid by device and by latency kind; a cell with fewer than 30 rows uses the kind's.
    """

    grids_: dict[str, list[float]] = field(default_factory=dict)
    rows_: dict[str, int] = field(default_factory=dict)

    def fit(self, engines: pd.DataFrame, residual: pd.Series[float] | np.ndarray) -> Residuals:
        """Keeps the quantiles of residuals, shape (n_engines,), by cell."""
        told = np.isfinite(np.asarray(residual, float))
        engines = engines[told].reset_index(drop=True)
        known = pd.Series(np.asarray(residual, float)[told])
        cells = {
            "": pd.Series("", index=known.index),
            "kind": engines["latency_kind"].reset_index(drop=True).astype(str),
            "device": (engines["device"].astype(str) + "|" + engines["latency_kind"].astype(str)).reset_index(
                drop=True
            ),
        }
        for keys in cells.values():
            for key, part in known.groupby(keys.to_numpy()):
                if len(part) >= 30 or str(key) == "":
                    self.grids_[str(key)] = np.quantile(part, np.linspace(0, 1, _GRID)).tolist()
                    self.rows_[str(key)] = len(part)
        return self

    def _grid(self, engine: pd.Series[Any]) -> tuple[np.ndarray, int]:
        for key in (f"{engine['device']}|{engine['latency_kind']}", str(engine["latency_kind"]), ""):
            if key in self.grids_:
                return np.asarray(self.grids_[key]), self.rows_[key]
        return np.array([-1.0, 0.0, 1.0]), 0

    def of(
        self, engine: pd.DataFrame, latency_s: float, level: float, budget_s: float | None, *, stretched: bool
    ) -> tuple[tuple[float, float], float | None]:
        """Interval at a level, and the probability of meeting a budget.

        The interval always holds the predicted latency. The finite-sample correction is that of split-conformal
        prediction, (n + 1) / n.
        """
        grid, rows = self._grid(engine.iloc[0])
        stretch = _STRETCH if stretched else 1.0
        probability = np.linspace(0, 1, len(grid))
        covered = min(level * (rows + 1) / rows, 1.0) if rows else 1.0
        low, high = np.interp([(1 - covered) / 2, (1 + covered) / 2], probability, grid) * stretch
        interval = (latency_s * float(np.exp(min(low, 0.0))), latency_s * float(np.exp(max(high, 0.0))))
        if budget_s is None:
            return interval, None
        return interval, float(np.interp(np.log(budget_s / latency_s), grid * stretch, probability))

    def to_dict(self) -> dict[str, Any]:
        """JSON form."""
        return {"grids": self.grids_, "rows": self.rows_}

    @classmethod
    def from_dict(cls, facts: Mapping[str, Any]) -> Residuals:
        """From the JSON form."""
        return cls(dict(facts["grids"]), dict(facts["rows"]))

"""Micro-architecture-only predictors: what specifications and operation counts say, without the optimiser.

Each takes the same layer instances as the learned stages (`perfpred.instances`), fits its few parameters on one
group of engines (a runtime, device and precision, as the caller groups them), and gives latencies in seconds.
Unfitted, the analytic ones are the pure bounds of the specification. Fits minimise relative or log error.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Final, Protocol, TypeVar

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.optimize import least_squares, nnls

from perfpred.errors import FormatError, PredictorError
from perfpred.features import bound_s
from perfpred.layer import DTYPE_BITS, KINDS

Array = NDArray[np.float64]

_FLOOR_S: Final = 1e-9
_PRODUCTS: Final = ("conv", "depthwise_conv", "deconv", "gemm", "attention", "recurrent")


class Baseline(Protocol):
    """What every baseline offers; rows are numbered by the instances' column `row`."""

    def fit(self, instances: pd.DataFrame, latency_s: Array) -> Baseline:
        """Fit on engines; `latency_s` has shape (n_engines,), in ascending order of `row`."""
        ...

    def predict(self, instances: pd.DataFrame) -> Array:
        """Return latencies, seconds, shape (n_engines,), in ascending order of `row`."""
        ...


B = TypeVar("B", bound=type)
_CLASSES: dict[str, type] = {}


def _stored(cls: B) -> B:
    _CLASSES[cls.__name__] = cls
    return cls


def baseline_to_dict(baseline: Baseline) -> dict[str, Any]:
    """Return a baseline's class and parameters as plain JSON values."""
    return {"class": type(baseline).__name__, **asdict(baseline)}  # type: ignore[call-overload]


def baseline_from_dict(values: Mapping[str, Any]) -> Baseline:
    """Return the baseline that `baseline_to_dict` wrote.

    Raises:
        FormatError: unknown class or parameters.
    """
    known = _CLASSES.get(str(values.get("class")))
    parameters = {name: value for name, value in values.items() if name != "class"}
    if known is None or set(parameters) != {f.name for f in fields(known)}:
        raise FormatError(
            f"no baseline {values.get('class')!r} with {sorted(parameters)}; known: {', '.join(_CLASSES)}"
        )
    made: Baseline = known(**parameters)
    return made


class _Engines:
    """Sums over the layers of each engine."""

    def __init__(self, instances: pd.DataFrame) -> None:
        rows, self.codes = np.unique(instances["row"].to_numpy(), return_inverse=True)
        self.count = len(rows)

    def total(self, values: Array | pd.Series[Any]) -> Array:
        """Sum of a layer quantity, shape (n_engines,)."""
        weights = np.asarray(values, dtype=float)
        return np.bincount(self.codes, weights=weights, minlength=self.count).astype(float)

    def layers(self) -> Array:
        """Number of layers, shape (n_engines,)."""
        return np.bincount(self.codes, minlength=self.count).astype(float)


def _positive(latency_s: Array) -> Array:
    return np.maximum(latency_s, _FLOOR_S)


def _geometric_scale(predicted_s: Array, latency_s: Array) -> float:
    """The factor on predictions that minimises squared log error."""
    return float(np.exp(np.mean(np.log(latency_s) - np.log(_positive(predicted_s)))))


def _relative_nnls(terms: Array, latency_s: Array, ridge: float = 0.0) -> Array:
    """Non-negative factors of terms, shape (n_engines, n_terms), that minimise squared relative error.

    Args:
        terms: Columns whose weighted sum is the latency.
        latency_s: Measured, shape (n_engines,).
        ridge: Pulls factors towards 1 as strongly as `ridge**2` engines would.
    """
    scaled = terms / latency_s[:, None]
    norms = np.linalg.norm(scaled, axis=0)
    norms[norms == 0] = 1.0
    rows, target = scaled / norms, np.ones(len(latency_s))
    if ridge:
        rows = np.vstack([rows, ridge * np.diag(1 / norms)])
        target = np.concatenate([target, np.full(len(norms), ridge)])
    solution, _ = nnls(rows, target, maxiter=100 * terms.shape[1])
    made: Array = solution / norms
    return made


@_stored
@dataclass
class FlopsLine:
    """`t = a * FLOPs + b`; parameters [a, b] in s/FLOP and s."""

    factors: list[float] = field(default_factory=list)

    def _terms(self, instances: pd.DataFrame) -> Array:
        engines = _Engines(instances)
        return np.column_stack([engines.total(instances["flops"]), np.ones(engines.count)])

    def fit(self, instances: pd.DataFrame, latency_s: Array) -> FlopsLine:
        """Fit both factors."""
        self.factors = _relative_nnls(self._terms(instances), latency_s).tolist()
        return self

    def predict(self, instances: pd.DataFrame) -> Array:
        """Return latencies, seconds, shape (n_engines,)."""
        return _line(self._terms(instances), self.factors)


@_stored
@dataclass
class ActivationLine:
    """`t = a * activations + b * inputs + c * FLOPs + d`, small latencies rescaled (Jeykobz/dnn-latency-predictor).

    Activations are the bytes that layers write, inputs those they read. Below `breakpoint_s` the line is replaced
    by `slope * line + offset`; the breakpoint is the decile of the line that helps most.
    """

    factors: list[float] = field(default_factory=list)
    breakpoint_s: float = 0.0
    slope: float = 1.0
    offset: float = 0.0

    def _terms(self, instances: pd.DataFrame) -> Array:
        engines = _Engines(instances)
        columns = [engines.total(instances[name]) for name in ("output_bytes", "input_bytes", "flops")]
        return np.column_stack([*columns, np.ones(engines.count)])

    def fit(self, instances: pd.DataFrame, latency_s: Array) -> ActivationLine:
        """Fit the line, then the correction of its lower end."""
        terms = self._terms(instances)
        self.factors = _relative_nnls(terms, latency_s).tolist()
        line = _line(terms, self.factors)
        self.breakpoint_s, self.slope, self.offset = 0.0, 1.0, 0.0
        best = np.mean((line / latency_s - 1) ** 2)
        for at in np.quantile(line, np.linspace(0.1, 0.9, 9)):
            below = line < at
            if below.sum() < 4:
                continue
            pair = np.column_stack([line[below], np.ones(below.sum())])
            slope, offset = _relative_nnls(pair, latency_s[below])
            error = np.mean((np.where(below, slope * line + offset, line) / latency_s - 1) ** 2)
            if error < best:
                best, self.breakpoint_s, self.slope, self.offset = error, float(at), float(slope), float(offset)
        return self

    def predict(self, instances: pd.DataFrame) -> Array:
        """Return latencies, seconds, shape (n_engines,)."""
        line = _line(self._terms(instances), self.factors)
        return _positive(np.where(line < self.breakpoint_s, self.slope * line + self.offset, line))


def _line(terms: Array, factors: list[float]) -> Array:
    if not factors:
        raise PredictorError("a line has no parameters before it is fitted; fit it on measured engines first")
    return _positive(terms @ np.asarray(factors))


@_stored
@dataclass
class Roofline:
    """`t = sum over layers of max(F / (e_c * P), B / (e_m * W))` (Williams, Waterman and Patterson, 2009).

    With `tied`, one efficiency scales both roofs. Unfitted, both are 1: the pure bound.
    """

    tied: bool = False
    compute_efficiency: float = 1.0
    memory_efficiency: float = 1.0

    def fit(self, instances: pd.DataFrame, latency_s: Array) -> Roofline:
        """Fit the efficiencies on log error."""
        scale = _geometric_scale(Roofline().predict(instances), latency_s)
        self.compute_efficiency = self.memory_efficiency = 1 / scale
        if self.tied:
            return self
        engines, bound = _Engines(instances), bound_s(instances)
        compute, memory = bound["compute_s"].to_numpy(), bound["memory_s"].to_numpy()
        target = np.log(latency_s)

        def residuals(logs: Array) -> Array:
            total = engines.total(np.maximum(compute * np.exp(-logs[0]), memory * np.exp(-logs[1])))
            # A roof that no layer touches stays near the other.
            return np.append(np.log(_positive(total)) - target, 0.01 * (logs[0] - logs[1]))

        found = least_squares(residuals, np.full(2, -np.log(scale)), x_scale=0.1)
        self.compute_efficiency, self.memory_efficiency = np.exp(found.x).tolist()
        return self

    def layer_s(self, instances: pd.DataFrame) -> Array:
        """Return each layer's time, seconds, shape (n_layers,)."""
        bound = bound_s(instances)
        compute = bound["compute_s"].to_numpy() / self.compute_efficiency
        return np.maximum(compute, bound["memory_s"].to_numpy() / self.memory_efficiency)

    def predict(self, instances: pd.DataFrame) -> Array:
        """Return latencies, seconds, shape (n_engines,)."""
        return _positive(_Engines(instances).total(self.layer_s(instances)))


@_stored
@dataclass
class AffineRoofline:
    """`t = a * sum of max(F / P, B / W) + b * layers`: a scaled roofline over a launch floor `b`, seconds."""

    scale: float = 1.0
    launch_s: float = 0.0

    def _terms(self, instances: pd.DataFrame) -> Array:
        engines = _Engines(instances)
        return np.column_stack([engines.total(bound_s(instances)["roofline_s"]), engines.layers()])

    def fit(self, instances: pd.DataFrame, latency_s: Array) -> AffineRoofline:
        """Fit scale and launch."""
        self.scale, self.launch_s = _relative_nnls(self._terms(instances), latency_s).tolist()
        return self

    def predict(self, instances: pd.DataFrame) -> Array:
        """Return latencies, seconds, shape (n_engines,)."""
        return _positive(self._terms(instances) @ np.array([self.scale, self.launch_s]))


@_stored
@dataclass
class Paleo:
    """Compute and memory time add, each at least one clock (TalwalkarLab/paleo); `percent_of_peak` scales both."""

    percent_of_peak: float = 1.0

    def fit(self, instances: pd.DataFrame, latency_s: Array) -> Paleo:
        """Fit the share of peak on log error."""
        self.percent_of_peak = 1 / _geometric_scale(Paleo().predict(instances), latency_s)
        return self

    def predict(self, instances: pd.DataFrame) -> Array:
        """Return latencies, seconds, shape (n_engines,)."""
        bound, tick = bound_s(instances), 1 / instances["clock_hz"].to_numpy(float)
        layer_s = sum(np.maximum(bound[name].to_numpy(), tick) for name in ("compute_s", "memory_s"))
        return _positive(_Engines(instances).total(layer_s) / self.percent_of_peak)


@_stored
@dataclass
class Bsp:
    """The bulk-synchronous model of Amaris et al. (HiPC 2015), a factor lambda per layer kind.

    `t_k = T * (Comp + Comm_GM + Comm_SM) / (clock * cores * lambda)`. The mapping to layers is ours: a thread per
    output element; `K = FLOPs / 2T` multiply-adds a thread at one cycle each; products are tiled by 16 through
    shared memory (2K/16 global loads, 2K shared loads, 2K/16 shared stores), other layers load each input element
    once; one global store; no cache hits. Costs in cycles: global 500, shared 5.

    Attributes:
        inverse_lambda: `1 / lambda` by kind; all 1 unfitted.
    """

    inverse_lambda: dict[str, float] = field(default_factory=lambda: dict.fromkeys(KINDS, 1.0))

    TILE = 16
    GLOBAL_CYCLES = 500.0
    SHARED_CYCLES = 5.0

    def _unscaled_s(self, instances: pd.DataFrame) -> Array:
        width = instances["dtype"].map(dict(DTYPE_BITS)).astype(float).fillna(32).to_numpy() / 8
        threads = np.maximum(instances["output_bytes"].to_numpy(float) / width, 1.0)
        depth = np.maximum(instances["flops"].to_numpy(float) / 2 / threads, 1.0)
        product = instances["kind"].isin(_PRODUCTS).to_numpy()
        read = instances["input_bytes"].to_numpy(float) + instances["weight_bytes"].to_numpy(float)
        loads = np.where(product, 2 * depth / self.TILE, read / width / threads)
        shared = np.where(product, 2 * depth * (1 + 1 / self.TILE), 0.0)
        cycles = threads * (depth + (loads + 1) * self.GLOBAL_CYCLES + shared * self.SHARED_CYCLES)
        cores = instances["sm_count"].to_numpy(float) * instances["cuda_cores_per_sm"].to_numpy(float)
        made: Array = cycles / (instances["clock_hz"].to_numpy(float) * cores)
        return made

    def fit(self, instances: pd.DataFrame, latency_s: Array) -> Bsp:
        """Fit lambda by kind; kinds that decide little stay near the common one."""
        engines, layer_s = _Engines(instances), self._unscaled_s(instances)
        common = _geometric_scale(engines.total(layer_s), latency_s)
        kinds = instances["kind"].to_numpy()
        present = [kind for kind in KINDS if (kinds == kind).any()]
        terms = np.column_stack([engines.total(np.where(kinds == kind, layer_s * common, 0.0)) for kind in present])
        found = dict(zip(present, _relative_nnls(terms, latency_s, ridge=0.1).tolist(), strict=True))
        self.inverse_lambda = {kind: common * found.get(kind, 1.0) for kind in KINDS}
        return self

    def predict(self, instances: pd.DataFrame) -> Array:
        """Return latencies, seconds, shape (n_engines,)."""
        factor = instances["kind"].map(self.inverse_lambda).to_numpy(float)
        return _positive(_Engines(instances).total(self._unscaled_s(instances) * factor))


#: All of them by the name that tables and `baselines_s` use; those of `PURE` need no fit.
BASELINES: Final[Mapping[str, Callable[[], Baseline]]] = {
    "roofline": Roofline,
    "scaled_roofline": lambda: Roofline(tied=True),
    "fitted_roofline": Roofline,
    "affine_roofline": AffineRoofline,
    "paleo": Paleo,
    "bsp": Bsp,
    "flops_line": FlopsLine,
    "activation_line": ActivationLine,
}
PURE: Final = ("roofline",)


def fit_groups(
    names: Iterable[str], instances: pd.DataFrame, latency_s: Array, groups: Sequence[str]
) -> dict[str, dict[str, Baseline]]:
    """Fit baselines per group of engines, and on all of them under the empty name; by name, then group.

    Args:
        names: Of `BASELINES`.
        instances: Layers of all engines.
        latency_s: Shape (n_engines,), in ascending order of `row`.
        groups: The group of each engine, such as `onnxruntime/h100-sxm/fp16`, in the same order.
    """
    made: dict[str, dict[str, Baseline]] = {name: {} for name in names}
    labels = np.asarray(groups, dtype=object)
    rows, codes = np.unique(instances["row"].to_numpy(), return_inverse=True)
    if len(rows) != len(labels) or len(rows) != len(latency_s):
        raise PredictorError(f"{len(rows)} engines have layers, but {len(latency_s)} latencies, {len(labels)} groups")
    for group in dict.fromkeys(("", *groups)):
        chosen = labels == group if group else np.ones(len(labels), bool)
        layers = instances[chosen[codes]]
        for name, fitted in made.items():
            baseline = BASELINES[name]()
            fitted[group] = baseline if name in PURE else baseline.fit(layers, latency_s[chosen])
    return made


def predict_groups(
    fitted: Mapping[str, Mapping[str, Baseline]], instances: pd.DataFrame, groups: Sequence[str]
) -> dict[str, Array]:
    """Return latencies of each baseline by each engine's own group; groups never fitted take the common fit."""
    labels = np.asarray(groups, dtype=object)
    codes = np.unique(instances["row"].to_numpy(), return_inverse=True)[1]
    made = {name: np.zeros(len(labels)) for name in fitted}
    for group in dict.fromkeys(groups):
        chosen = labels == group
        layers = instances[chosen[codes]]
        for name, by_group in fitted.items():
            made[name][chosen] = by_group.get(group, by_group[""]).predict(layers)
    return made

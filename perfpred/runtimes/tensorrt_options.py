"""How a TensorRT engine is asked for, and checks on what came of it; needs no TensorRT."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from perfpred.errors import BuildError, UsageError

#: Words for a type in layer dumps, by precision; a row whose layers never name one was not built as asked.
_DTYPE_WORDS: Final = {
    "fp16": ("Half", "FP16", "Float16"),
    "bf16": ("BFloat16", "BF16"),
    "int8": ("Int8", "INT8"),
    "fp8": ("FP8", "Float8"),
}


@dataclass(frozen=True, kw_only=True)
class BuildOptions:
    """How to build; everything is part of a row's identity.

    Attributes:
        precision: fp32, tf32, fp16, bf16, int8 (explicit Q/DQ) or fp8.
        typing: `weak` lets the builder choose types by flags (TensorRT 8 to 10); `strong` keeps those of the graph.
        workspace_bytes: Memory pool of the builder; None for its default.
        level: Builder optimisation level, 0 to 5; None for its default.
        aux_streams: Most auxiliary streams; None leaves the choice to the builder.
        timing_cache: File to reuse and update; None builds with a fresh cache.
        dla_core: Build for this DLA core, falling back to the GPU; None for the GPU alone.
        compute_capability: Target of an ahead-of-time TensorRT-RTX build, such as `SM86`.
    """

    precision: str = "fp16"
    typing: str = "weak"
    workspace_bytes: int | None = None
    level: int | None = None
    aux_streams: int | None = None
    timing_cache: Path | None = None
    dla_core: int | None = None
    compute_capability: str | None = None


def options_from(precision: str, runtime: str, optimisation: str, options: Mapping[str, str]) -> BuildOptions:
    """Read a unit's options.

    Raises:
        UsageError: An unknown option, or a value of the wrong kind.
    """
    known = {"typing", "workspace", "level", "aux_streams", "timing_cache", "dla", "compute_capability"}
    if unknown := sorted(set(options) - known):
        raise UsageError(f"unknown TensorRT options {', '.join(unknown)}; known: {', '.join(sorted(known))}")

    def number(name: str) -> int | None:
        try:
            return int(options[name]) if name in options else None
        except ValueError:
            raise UsageError(f"TensorRT option {name}='{options[name]}' is not a whole number") from None

    level = number("level")
    return BuildOptions(
        precision=precision,
        typing=options.get("typing", "strong" if runtime == "tensorrt-rtx" else "weak"),
        workspace_bytes=number("workspace"),
        level=0 if optimisation == "off" and level is None else level,
        aux_streams=number("aux_streams"),
        timing_cache=Path(options["timing_cache"]) if "timing_cache" in options else None,
        dla_core=number("dla"),
        compute_capability=options.get("compute_capability"),
    )


def precision_honoured(layers: str, precision: str) -> bool:
    """Whether a layer dump or inspector text names the type asked for; builders ignore requests silently at times."""
    return precision not in _DTYPE_WORDS or any(word in layers for word in _DTYPE_WORDS[precision])


def require_explicit_quantisation(model: Path, precision: str) -> None:
    """Refuse int8 and fp8 for a graph without Q/DQ nodes.

    Raises:
        BuildError: The graph has none.
    """
    if precision in ("int8", "fp8") and b"QuantizeLinear" not in model.read_bytes():
        raise BuildError(f"{precision} needs a graph with QuantizeLinear/DequantizeLinear nodes; quantise it first")

"""Device specifications: what a processor can do, read from JSON files whose every number has a source."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from difflib import get_close_matches
from functools import lru_cache
from importlib import resources
from pathlib import Path
from typing import Any, Final

from perfpred.errors import DeviceError, FormatError

FORMAT: Final = "perfpred.device"
VERSION: Final = 1

#: What runs instead where a device has no path for a precision.
_FALLBACK: Final[Mapping[str, str]] = {
    "tf32": "fp32",
    "bf16": "fp32",
    "fp16": "fp32",
    "int8": "fp16",
    "fp8": "fp16",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class PowerMode:
    """A named power mode; `None` leaves the device's own maximum.

    Attributes:
        mode_id: Number that the board's tool knows it by.
        sm_count: Streaming multiprocessors switched on.
        max_clock_hz: Cap of the GPU clock.
        emc_hz: Cap of the memory clock.
    """

    mode_id: int
    sm_count: int | None = None
    max_clock_hz: float | None = None
    emc_hz: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Device:
    """A processor's specification, in a power mode or partition where one was chosen.

    Attributes:
        slug: Name in commands and tables; `cpu` is the host.
        name: Name as sold, or as the machine reports it.
        kind: `gpu` or `cpu`.
        architecture: Maker's name of the generation.
        compute_capability: CUDA's number, 0 for processors that have none.
        sm_count: Active streaming multiprocessors; cores of a CPU.
        cuda_cores_per_sm: float32 lanes of one of them.
        tensor_cores: Active matrix units.
        clock_hz: Highest clock in this mode.
        dram_bytes_per_s: Memory bandwidth in this mode.
        dram_bytes: Size of the memory, 0 if unknown.
        l2_bytes: Largest cache that all SMs or cores share.
        peak_flops: Dense rate by precision, 2 per multiply-accumulate; those without a path are left out.
        launch_s: Time between kernels that can't be hidden, where known.
        tdp_w: Thermal design power, where known.
        emc_hz: Highest memory clock, where modes cap it.
        mode: Name of the power mode; `None` is unrestricted.
        modes: All named modes.
        aliases: Names that drivers and device trees report.
        source: Where the numbers stand.
        verified: Whether they were read in that source, `unverified_fields` apart.
        unverified_fields: Fields stated from memory, inferred or disputed.
        note: What else to know.
    """

    slug: str
    name: str
    kind: str
    architecture: str = ""
    compute_capability: float = 0.0
    sm_count: int
    cuda_cores_per_sm: int
    tensor_cores: int = 0
    clock_hz: float
    dram_bytes_per_s: float
    dram_bytes: int = 0
    l2_bytes: int
    peak_flops: Mapping[str, float] = field(hash=False)
    launch_s: float | None = None
    tdp_w: float | None = None
    emc_hz: float | None = None
    mode: str | None = None
    modes: Mapping[str, PowerMode] = field(default_factory=dict, hash=False)
    aliases: tuple[str, ...] = ()
    source: str = ""
    verified: bool = False
    unverified_fields: tuple[str, ...] = ()
    note: str = ""

    def peak(self, precision: str) -> float:
        """Return the dense rate at a precision, FLOP/s.

        Where the device has no path for it, the rate of what would run instead: int8 and fp8 as fp16, tf32, bf16
        and fp16 as fp32.
        """
        found = self.peak_flops.get(precision)
        if found is not None:
            return found
        if precision not in _FALLBACK:
            raise DeviceError(f"unknown precision '{precision}'; use fp32, tf32, fp16, bf16, int8 or fp8")
        return self.peak(_FALLBACK[precision])

    def with_mode(self, name: str) -> Device:
        """Return the device in a named power mode: rates follow SMs and clock, bandwidth the memory clock.

        Raises:
            DeviceError: the device has no such mode.
        """
        mode = self.modes.get(name)
        if mode is None:
            names = ", ".join(self.modes) or "none"
            raise DeviceError(f"{self.slug} has no power mode '{name}'; its named modes: {names}")
        clock_hz = min(mode.max_clock_hz or self.clock_hz, self.clock_hz)
        memory = min(mode.emc_hz / self.emc_hz, 1.0) if mode.emc_hz and self.emc_hz else 1.0
        part = self._with_active(mode.sm_count or self.sm_count, clock_hz / self.clock_hz)
        return replace(part, clock_hz=clock_hz, mode=name, dram_bytes_per_s=self.dram_bytes_per_s * memory)

    def with_sm_count(self, sm_count: int) -> Device:
        """Return a partition of that many SMs (or cores).

        Rates scale; bandwidth and L2 stay whole, since partitions of a GPU (green contexts) divide the SMs only
        and a lone partition has memory and L2 to itself.

        Raises:
            DeviceError: not between 1 and the device's SMs.
        """
        if not 1 <= sm_count <= self.sm_count:
            where = f"{self.slug} in mode {self.mode}" if self.mode else self.slug
            raise DeviceError(
                f"{where} has {self.sm_count} SMs; --sm-count {sm_count} is not within 1..{self.sm_count}"
            )
        return self._with_active(sm_count, 1.0)

    def _with_active(self, sm_count: int, clock_ratio: float) -> Device:
        share = sm_count / self.sm_count
        peaks = {precision: rate * share * clock_ratio for precision, rate in self.peak_flops.items()}
        return replace(self, sm_count=sm_count, tensor_cores=round(self.tensor_cores * share), peak_flops=peaks)

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values, with format and version."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        values["peak_flops"] = dict(self.peak_flops)
        values["modes"] = {name: asdict(mode) for name, mode in self.modes.items()}
        values["aliases"], values["unverified_fields"] = list(self.aliases), list(self.unverified_fields)
        return {"format": FORMAT, "version": VERSION, **values}

    @staticmethod
    def from_dict(values: Mapping[str, Any], *, where: str = "device specification") -> Device:
        """Return the device that `to_dict` wrote, or that a device file holds.

        Args:
            values: Plain JSON values.
            where: Names the file in errors.

        Raises:
            FormatError: another format or version, or fields missing or unknown.
        """
        if values.get("format") != FORMAT:
            raise FormatError(f"{where}: format is {values.get('format')!r}, not {FORMAT}; is this a device file?")
        if values.get("version") != VERSION:
            raise FormatError(
                f"{where}: {FORMAT} version {values.get('version')}; this perfpred reads {VERSION}. Upgrade perfpred"
            )
        known = dict(values)
        known.pop("format"), known.pop("version")
        try:
            known["peak_flops"] = {str(k): float(v) for k, v in known["peak_flops"].items()}
            known["modes"] = {name: PowerMode(**mode) for name, mode in known.get("modes", {}).items()}
            for name in ("aliases", "unverified_fields"):
                known[name] = tuple(known.get(name, ()))
            return Device(**known)
        except (TypeError, KeyError, ValueError, AttributeError) as error:
            raise FormatError(f"{where}: not a complete {FORMAT} ({error}); compare with perfpred/devices") from error


@lru_cache(maxsize=1)
def device_slugs() -> tuple[str, ...]:
    """Return the slugs of all device files in order, and `cpu`, the host."""
    folder = resources.files("perfpred") / "devices"
    found = sorted(entry.name[: -len(".json")] for entry in folder.iterdir() if entry.name.endswith(".json"))
    return (*found, "cpu")


@lru_cache(maxsize=256)
def load_device(slug: str, *, mode: str | None = None, sm_count: int | None = None) -> Device:
    """Return a device's specification.

    Args:
        slug: One of `device_slugs()`, or the path of a device file of one's own.
        mode: A named power mode.
        sm_count: A partition of that many SMs.

    Raises:
        DeviceError: unknown slug, mode or partition; the message lists what is near.
        FormatError: the device file can't be read.
    """
    device = _whole_device(slug)
    if mode is not None:
        device = device.with_mode(mode)
    return device if sm_count is None or sm_count == device.sm_count else device.with_sm_count(sm_count)


@lru_cache(maxsize=64)
def _whole_device(slug: str) -> Device:
    if slug == "cpu":
        from perfpred.host import detect_host  # late: host builds on this module

        return detect_host()
    if slug.endswith(".json"):
        return _read(Path(slug).read_text(encoding="utf-8") if Path(slug).is_file() else None, slug)
    if slug not in device_slugs():
        near = get_close_matches(slug, device_slugs(), n=4, cutoff=0.5)
        near += [known for known in device_slugs() if slug and slug in known and known not in near]
        hint = f"did you mean {', '.join(near[:6])}?" if near else f"known: {', '.join(device_slugs())}"
        raise DeviceError(f"unknown device '{slug}'; {hint} `perfpred devices` lists them all")
    path = resources.files("perfpred") / "devices" / f"{slug}.json"
    return _read(path.read_text(encoding="utf-8"), path.name)


def _read(text: str | None, where: str) -> Device:
    if text is None:
        raise DeviceError(f"device file {where} does not exist; `perfpred devices` lists the known slugs")
    try:
        values = json.loads(text)
    except json.JSONDecodeError as error:
        raise FormatError(f"{where}: not JSON ({error})") from error
    if not isinstance(values, dict):
        raise FormatError(f"{where}: holds no device specification")
    return Device.from_dict(values, where=where)

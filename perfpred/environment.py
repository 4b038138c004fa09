"""What a measurement ran on: host, device, versions, clocks. Everything is read, nothing is ever set."""

from __future__ import annotations

import importlib
import importlib.metadata
import os
import platform
import re
import subprocess
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any, Final

#: NVML clock-event bits that spoil a measurement: power cap, hardware slowdown, thermal (software, hardware), brake.
THROTTLE_BITS: Final = 0x4 | 0x8 | 0x20 | 0x40 | 0x80

_PACKAGES: Final = (
    "perfpred",
    "numpy",
    "onnx",
    "onnxruntime",
    "onnxruntime-gpu",
    "cuda-bindings",
    "pycuda",
    "tensorrt",
    "tensorrt_rtx_cu13",
    "nvidia-cudnn-cu13",
    "nvidia-cublas",
    "nvidia-cuda-runtime",
)
# Marketing name (lower case, without vendor words) to device slug, where the two differ by more than spelling.
_SLUGS: Final = (
    (r"h100.*(hbm3|sxm)", "h100-sxm"),
    (r"h100.*pcie", "h100-pcie"),
    (r"h200", "h200-sxm"),
    (r"a100-sxm.*80", "a100-sxm-80gb"),
    (r"a100-sxm.*40", "a100-sxm-40gb"),
    (r"\bt4\b", "tesla-t4"),
    (r"\bv100", "tesla-v100"),
)


def device_slug(name: str) -> str:
    """Device slug from the name a driver reports, such as `h100-sxm` from `NVIDIA H100 80GB HBM3`."""
    plain = re.sub(r"^(nvidia|geforce|tesla)\s+|\bgeforce\s+", "", name.lower()).strip()
    for pattern, slug in _SLUGS:
        if re.search(pattern, plain):
            return slug
    return re.sub(r"[^a-z0-9]+", "-", plain).strip("-")


def cpu_name() -> str:
    """Model name of the host's processor."""
    try:
        found = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    except OSError:
        found = None
    return found.group(1).strip() if found else platform.processor() or platform.machine()


def physical_cores() -> int:
    """Number of physical cores this process may use; logical ones where the host does not tell."""
    allowed = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set(range(os.cpu_count() or 1))
    siblings = set()
    for core in allowed:
        try:
            topology = Path(f"/sys/devices/system/cpu/cpu{core}/topology/thread_siblings_list")
            siblings.add(topology.read_text().strip())
        except OSError:
            siblings.add(str(core))
    return max(len(siblings), 1)


@lru_cache
def host() -> dict[str, Any]:
    """Processor, kernel, Python and package versions."""
    versions = {}
    for package in _PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return {
        "cpu": cpu_name(),
        "logical_cores": os.cpu_count(),
        "kernel": platform.release(),
        "machine": platform.machine(),
        "python": platform.python_version(),
        "packages": versions,
        **_jetson(),
    }


def _jetson() -> dict[str, Any]:
    facts = {}
    for key, path in (("module", "/proc/device-tree/model"), ("l4t", "/etc/nv_tegra_release")):
        try:
            facts[key] = Path(path).read_text(errors="replace").strip("\0\n ")
        except OSError:
            continue
    if facts:
        try:
            answer = subprocess.run(["nvpmodel", "-q"], capture_output=True, text=True, timeout=10, check=False)
            facts["power_mode"] = " ".join(answer.stdout.split())
        except (OSError, subprocess.TimeoutExpired):
            facts["power_mode"] = "unknown: nvpmodel -q did not answer"
    return facts


class GpuMonitor:
    """Reads the state of one GPU through NVML, nvidia-smi or, on a Jetson, sysfs.

    Args:
        bus_id: PCI address as the CUDA driver gives it; None for the first GPU.
    """

    _QUERY: Final = (
        "clocks.sm",
        "clocks.mem",
        "temperature.gpu",
        "power.draw",
        "clocks_throttle_reasons.active",
        "driver_version",
    )

    def __init__(self, bus_id: str | None = None) -> None:
        self._bus_id = bus_id
        self._nvml: Any = None
        self._handle: Any = None
        try:
            self._nvml = importlib.import_module("pynvml")
            self._nvml.nvmlInit()
            self._handle = (
                self._nvml.nvmlDeviceGetHandleByPciBusId(bus_id.encode())
                if bus_id
                else self._nvml.nvmlDeviceGetHandleByIndex(0)
            )
        except Exception:  # noqa: BLE001 - pynvml raises its own class, absent where pynvml is
            self._handle = None

    def state(self) -> dict[str, Any]:
        """Clocks, temperature, power and clock-event reasons now; empty where nothing can be read."""
        if self._handle is not None:
            return self._from_nvml()
        return self._from_nvidia_smi() or self._from_devfreq()

    def _from_nvml(self) -> dict[str, Any]:
        nvml, handle = self._nvml, self._handle
        reasons = getattr(nvml, "nvmlDeviceGetCurrentClocksEventReasons", None)
        reads: dict[str, Callable[[], Any]] = {
            "sm_clock_hz": lambda: nvml.nvmlDeviceGetClockInfo(handle, nvml.NVML_CLOCK_SM) * 1_000_000,
            "memory_clock_hz": lambda: nvml.nvmlDeviceGetClockInfo(handle, nvml.NVML_CLOCK_MEM) * 1_000_000,
            "temperature_c": lambda: nvml.nvmlDeviceGetTemperature(handle, nvml.NVML_TEMPERATURE_GPU),
            "power_w": lambda: nvml.nvmlDeviceGetPowerUsage(handle) / 1000,
            "clock_event_reasons": lambda: (reasons or nvml.nvmlDeviceGetCurrentClocksThrottleReasons)(handle),
        }
        found = {}
        for key, read in reads.items():
            try:
                found[key] = read()
            except nvml.NVMLError:
                continue
        return found

    def _from_nvidia_smi(self) -> dict[str, Any]:
        command = ["nvidia-smi", f"--query-gpu={','.join(self._QUERY)}", "--format=csv,noheader,nounits"]
        if self._bus_id:
            command.append(f"--id={self._bus_id}")
        try:
            answer = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
            sm, memory, temperature, power, reasons, _ = answer.stdout.splitlines()[0].split(", ")
            return {
                "sm_clock_hz": int(sm) * 1_000_000,
                "memory_clock_hz": int(memory) * 1_000_000,
                "temperature_c": int(temperature),
                "power_w": float(power),
                "clock_event_reasons": int(reasons, 16),
            }
        except (OSError, subprocess.SubprocessError, ValueError, IndexError):
            return {}

    @staticmethod
    def _from_devfreq() -> dict[str, Any]:
        for folder in sorted(Path("/sys/class/devfreq").glob("*")):
            if re.search(r"gpu|gv11b|ga10b|gp10b|gm20b|nvgpu", folder.name):
                try:
                    return {"sm_clock_hz": int((folder / "cur_freq").read_text())}
                except (OSError, ValueError):
                    continue
        return {}

    def facts(self) -> dict[str, Any]:
        """Driver version and whether application clocks are locked, as far as the driver tells."""
        if self._handle is None:
            return {}
        nvml = self._nvml
        facts: dict[str, Any] = {}
        reads: dict[str, Callable[[], Any]] = {
            "driver": nvml.nvmlSystemGetDriverVersion,
            "max_sm_clock_hz": lambda: nvml.nvmlDeviceGetMaxClockInfo(self._handle, nvml.NVML_CLOCK_SM) * 1_000_000,
            "power_limit_w": lambda: nvml.nvmlDeviceGetEnforcedPowerLimit(self._handle) / 1000,
        }
        for key, read in reads.items():
            try:
                value = read()
                facts[key] = value.decode() if isinstance(value, bytes) else value
            except nvml.NVMLError:
                continue
        return facts


def throttled(*states: dict[str, Any]) -> bool:
    """Whether any state names a clock-event reason that spoils a measurement."""
    return any(int(state.get("clock_event_reasons", 0)) & THROTTLE_BITS for state in states)

"""The machine itself as a device: its CPU from /proc and /sys, its GPU from the driver."""

from __future__ import annotations

import math
import os
import platform
import re
import time
from functools import lru_cache
from pathlib import Path
from typing import Final

import numpy as np

from perfpred.device import Device, device_slugs, load_device
from perfpred.errors import PerfpredError

#: Memory bandwidth taken where nobody measured: bytes/s that one core draws, and what a socket gives at most.
CORE_BYTES_PER_S: Final = 10e9
SOCKET_BYTES_PER_S: Final = 200e9

#: Tensor-core rate in float16, FLOP per SM and clock, dense, by compute capability (as the device files imply).
_TENSOR_RATE: Final = {7.0: 1024, 7.2: 1024, 7.5: 1024, 8.0: 2048, 8.6: 1024, 8.7: 2048, 8.9: 1024, 9.0: 4096}
_TENSOR_RATE_LATER: Final = {10.0: 8192, 10.3: 8192, 11.0: 8192, 12.0: 1024, 12.1: 1024}
_CORES_64: Final = (6.0, 7.0, 7.2, 7.5, 8.0)


@lru_cache(maxsize=2)
def detect_host(*, measure: bool = False) -> Device:
    """Return the host's CPU as a device with slug `cpu`.

    Cores are the physical ones this process may use, a container's quota included. Rates are clock x cores x
    vector lanes x 2 (two fused multiply-add units); bandwidth is a stated default, or measured by a copy.

    Args:
        measure: Time copies of 128 MB for the bandwidth (a tenth of a second or so) instead of the default.
    """
    info, flags = _cpuinfo()
    cores = _cores(info)
    clock_hz = _clock_hz(info)
    lanes = 32 if "avx512f" in flags else 16 if "avx2" in flags else 8
    unverified = ["clock_hz", "peak_flops", *([] if measure else ["dram_bytes_per_s"])]
    return Device(
        slug="cpu",
        name=info.get("model name") or platform.processor() or platform.machine(),
        kind="cpu",
        architecture=" ".join([platform.machine(), *(f for f in _VECTOR_FLAGS if f in flags)]),
        sm_count=cores,
        cuda_cores_per_sm=lanes,
        clock_hz=clock_hz,
        dram_bytes_per_s=copy_bytes_per_s() if measure else min(CORE_BYTES_PER_S * cores, SOCKET_BYTES_PER_S),
        dram_bytes=_memory_bytes(),
        l2_bytes=_largest_cache_bytes(),
        peak_flops=_cpu_peaks(cores * clock_hz, lanes, flags),
        source="read from the machine" + ("; bandwidth measured by a copy" if measure else ""),
        verified=False,
        unverified_fields=tuple(unverified),
    )


@lru_cache(maxsize=8)
def detect_gpu(index: int = 0) -> Device | None:
    """Return the machine's GPU: a device file where its name is known, else a specification from its attributes.

    Args:
        index: Ordinal of the GPU.

    Returns:
        The device; None without a usable driver or GPU.
    """
    from perfpred.cuda import open_cuda  # late: machines without a GPU never load it

    try:
        cuda = open_cuda(device=index)
        major, minor, sm_count = (cuda.attribute(name) for name in ("major", "minor", "sm_count"))
        board = _text(Path("/proc/device-tree/model")).strip("\0 \n")
        known = device_named(cuda.name) or device_named(board)
        if known is not None:
            return known if sm_count >= known.sm_count else known.with_sm_count(sm_count)
        return device_from_attributes(
            name=board or cuda.name,
            compute_capability=major + minor / 10,
            sm_count=sm_count,
            clock_hz=cuda.attribute("clock_khz") * 1e3,
            memory_clock_hz=cuda.attribute("memory_clock_khz") * 1e3,
            bus_bits=cuda.attribute("bus_bits"),
            l2_bytes=cuda.attribute("l2_bytes"),
            dram_bytes=cuda.memory()[1],
        )
    except PerfpredError:
        return None


def device_named(reported: str) -> Device | None:
    """Return the device whose file lists a name that a driver or device tree reports; None where none does."""
    wanted = reported.casefold()
    for slug in device_slugs():
        if slug != "cpu" and wanted in (alias.casefold() for alias in load_device(slug).aliases):
            return load_device(slug)
    return None


def device_from_attributes(
    *,
    name: str,
    compute_capability: float,
    sm_count: int,
    clock_hz: float,
    memory_clock_hz: float,
    bus_bits: int,
    l2_bytes: int,
    dram_bytes: int,
) -> Device:
    """Return the specification that a GPU's own attributes imply, for a GPU without a device file.

    Rates follow from SMs, clock and what an SM of that compute capability does a clock; bandwidth is the bus at
    double data rate. All of it is unverified: a device file of one's own is better.
    """
    cores = 64 if compute_capability in _CORES_64 else 128
    fp32 = 2.0 * sm_count * cores * clock_hz
    rate = (_TENSOR_RATE | _TENSOR_RATE_LATER).get(compute_capability)
    peaks = {"fp32": fp32, "fp16": fp32 * (1 if compute_capability in (5.0, 5.2, 6.1) else 2)}
    if rate is not None:
        peaks["fp16"] = float(rate) * sm_count * clock_hz
        peaks["int8"] = peaks["fp16"] * (0.5 if compute_capability == 7.0 else 2.0)
        if compute_capability >= 8.0:
            peaks |= {"tf32": peaks["fp16"] / (4 if rate == 1024 else 2), "bf16": peaks["fp16"]}
        if compute_capability >= 8.9:
            peaks["fp8"] = peaks["int8"]
    slug = re.sub(r"[^a-z0-9]+", "-", name.casefold().replace("nvidia", "")).strip("-") or "gpu"
    return Device(
        slug=slug,
        name=name,
        kind="gpu",
        compute_capability=compute_capability,
        sm_count=sm_count,
        cuda_cores_per_sm=cores,
        tensor_cores=0 if rate is None else sm_count * (8 if compute_capability < 8.0 else 4),
        clock_hz=clock_hz,
        dram_bytes_per_s=memory_clock_hz * 2 * bus_bits / 8,
        dram_bytes=dram_bytes,
        l2_bytes=l2_bytes,
        peak_flops=peaks,
        aliases=(name,),
        source="attributes of the driver; rates derived",
        verified=False,
        unverified_fields=("all",),
    )


def copy_bytes_per_s(nbytes: int = 128 * 2**20, repeats: int = 3) -> float:
    """Return the bandwidth of copying arrays, bytes read and written per second, the best of some repeats."""
    source, target = np.ones(nbytes, np.uint8), np.zeros(nbytes, np.uint8)
    best = math.inf
    for _ in range(repeats):
        start = time.perf_counter()
        np.copyto(target, source)
        best = min(best, time.perf_counter() - start)
    return 2 * nbytes / best


_VECTOR_FLAGS: Final = ("avx2", "avx512f", "avx512_vnni", "avx_vnni", "avx512_fp16", "amx_int8", "amx_bf16", "asimd")


def _cpu_peaks(core_hz: float, lanes: int, flags: frozenset[str]) -> dict[str, float]:
    """Rates by precision: dot-product instructions take four int8 values where one float32 fits, tiles 32."""
    fp32 = 2.0 * core_hz * lanes
    peaks = {"fp32": fp32}
    if "avx512_fp16" in flags or "asimdhp" in flags:
        peaks["fp16"] = 2 * fp32
    if flags & {"avx512_vnni", "avx_vnni", "asimddp"}:
        peaks["int8"] = 4 * fp32
    if "avx512_bf16" in flags:
        peaks["bf16"] = 2 * fp32
    # A tile multiply works 16 x 16 x 64 bytes in 16 clocks: 1,024 int8 or 512 bfloat16 MACs a clock.
    if "amx_int8" in flags:
        peaks["int8"] = 2048.0 * core_hz
    if "amx_bf16" in flags:
        peaks["bf16"] = 1024.0 * core_hz
    # Without narrower arithmetic float16 and int8 are widened first.
    return {"fp16": fp32, "int8": fp32, **peaks}


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def _cpuinfo() -> tuple[dict[str, str], frozenset[str]]:
    """The first processor's entries and its instruction-set flags."""
    first = _text(Path("/proc/cpuinfo")).split("\n\n")[0]
    pairs = (line.partition(":") for line in first.splitlines())
    info = {key.strip(): value.strip() for key, _, value in pairs}
    return info, frozenset((info.get("flags") or info.get("Features") or "").split())


def _cores(info: dict[str, str]) -> int:
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota, _, period = _text(Path("/sys/fs/cgroup/cpu.max")).partition(" ")
    if quota.isdigit() and period.strip().isdigit():
        usable = min(usable, max(math.ceil(int(quota) / int(period)), 1))
    siblings, cores = int(info.get("siblings") or 1), int(info.get("cpu cores") or 1)
    return max(math.ceil(usable * min(cores / max(siblings, 1), 1.0)), 1)


def _clock_hz(info: dict[str, str]) -> float:
    limit = _text(Path("/sys/devices/system/cpu/cpu0/cpufreq/cpuinfo_max_freq")).strip()
    if limit.isdigit():
        return int(limit) * 1e3
    named = re.search(r"@\s*([\d.]+)\s*GHz", info.get("model name", ""))
    mhz = float(named[1]) * 1e3 if named else float(info.get("cpu MHz") or 2500.0)
    return round(mhz, -2) * 1e6


def _memory_bytes() -> int:
    found = re.search(r"MemTotal:\s*(\d+) kB", _text(Path("/proc/meminfo")))
    return int(found[1]) * 1024 if found else 0


def _largest_cache_bytes() -> int:
    sizes = [_text(path).strip() for path in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size")]
    known = [int(size[:-1]) * {"K": 2**10, "M": 2**20}[size[-1]] for size in sizes if re.fullmatch(r"\d+[KM]", size)]
    return max(known, default=8 * 2**20)

"""Specifications: the files, modes and partitions, fallbacks, errors, and detection of the machine."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest

from perfpred.device import Device, device_slugs, load_device
from perfpred.errors import DeviceError, FormatError
from perfpred.host import copy_bytes_per_s, detect_host, device_from_attributes, device_named
from perfpred.layer import PRECISIONS

GPUS = [slug for slug in device_slugs() if slug != "cpu"]


@pytest.mark.parametrize("slug", GPUS)
def test_every_file_is_complete_and_consistent(slug: str) -> None:
    device = load_device(slug)
    assert device.slug == slug
    assert device.source
    assert 2 * device.sm_count * device.cuda_cores_per_sm * device.clock_hz == pytest.approx(
        device.peak("fp32"), rel=0.005
    )
    assert all(device.peak(precision) >= device.peak("fp32") * 0.99 for precision in PRECISIONS)
    assert device.dram_bytes_per_s > 1e10
    assert device.l2_bytes >= 2**18
    assert device.verified or "all" in device.unverified_fields
    assert device.mode is None
    assert Device.from_dict(json.loads(json.dumps(device.to_dict()))) == device


def test_facts_agree_with_the_reference_table(reference_data: Path) -> None:
    with (reference_data / "devices.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert {row["device"] for row in rows} <= set(GPUS)
    for row in rows:
        device = load_device(row["device"])
        assert device.sm_count == int(row["sm_count"])
        assert device.clock_hz == pytest.approx(float(row["max_clock_mhz"]) * 1e6)
        assert device.dram_bytes_per_s == pytest.approx(float(row["memory_bandwidth_gb_s"]) * 1e9)
        assert device.peak("fp16") == pytest.approx(float(row["fp16_tflops_dense"]) * 1e12)
        assert device.verified is (row["verified"] != "no")


def test_modes_agree_with_the_reference_table(reference_data: Path) -> None:
    with (reference_data / "devices_power_modes.csv").open(newline="") as file:
        for row in csv.DictReader(file):
            device = load_device(row["device"], mode=row["mode"])
            assert device.sm_count == int(row["sm_count"])
            if row["gpu_max_mhz"]:
                assert device.clock_hz == float(row["gpu_max_mhz"]) * 1e6


def test_mode_scales_rates_with_sms_and_clock_and_bandwidth_with_memory() -> None:
    full, low = load_device("jetson-agx-orin-64gb"), load_device("jetson-agx-orin-64gb", mode="15W")
    assert (low.sm_count, low.clock_hz, low.mode, low.tensor_cores) == (6, 408e6, "15W", 24)
    for precision in ("fp32", "fp16", "int8"):
        assert low.peak(precision) == pytest.approx(full.peak(precision) * 6 / 16 * 408 / 1300.5)
    assert low.dram_bytes_per_s == pytest.approx(full.dram_bytes_per_s * 2133 / 3200)
    assert full.with_mode("MAXN").peak("fp16") == full.peak("fp16")


def test_partition_keeps_memory() -> None:
    full, part = load_device("h100-sxm"), load_device("h100-sxm", sm_count=33)
    assert part.peak("fp16") == pytest.approx(full.peak("fp16") / 4)
    assert (part.dram_bytes_per_s, part.l2_bytes) == (full.dram_bytes_per_s, full.l2_bytes)
    assert load_device("h100-sxm", sm_count=132) == full


def test_missing_paths_fall_back_to_what_runs_instead() -> None:
    nano = load_device("jetson-nano")
    assert nano.peak("int8") == nano.peak("fp16") == pytest.approx(2 * nano.peak("fp32"), rel=0.001)
    assert load_device("tesla-t4").peak("tf32") == load_device("tesla-t4").peak("fp32")
    with pytest.raises(DeviceError, match="unknown precision 'fp4'"):
        nano.peak("fp4")


@pytest.mark.parametrize(
    ("slug", "mode", "sm_count", "message"),
    [
        ("jetson-xavier", None, None, "did you mean .*jetson-xavier-nx"),
        ("orin", None, None, "jetson-agx-orin-64gb|jetson-orin"),
        ("jetson-nano", "5W", None, "no power mode '5W'; its named modes: none"),
        ("jetson-orin-nano", "60W", None, "named modes: 15W, 7W"),
        ("h100-sxm", None, 133, "within 1..132"),
        ("jetson-orin-nano", "7W", 5, "in mode 7W has 4 SMs"),
        ("missing/file.json", None, None, "does not exist"),
    ],
)
def test_wrong_requests_name_the_fix(slug: str, mode: str | None, sm_count: int | None, message: str) -> None:
    with pytest.raises(DeviceError, match=message):
        load_device(slug, mode=mode, sm_count=sm_count)


def test_files_of_ones_own(tmp_path: Path) -> None:
    mine = load_device("jetson-nano").to_dict() | {"slug": "mine", "sm_count": 2}
    path = tmp_path / "mine.json"
    path.write_text(json.dumps(mine))
    assert load_device(str(path)).sm_count == 2
    for change, message in (
        ({"version": 2}, "this perfpred reads 1"),
        ({"format": "x"}, "format is 'x'"),
        ({"surprise": 1}, "surprise"),
    ):
        with pytest.raises(FormatError, match=message):
            Device.from_dict(mine | change)
    path.write_text("{")
    broken = tmp_path / "broken.json"
    broken.write_text("{")
    with pytest.raises(FormatError, match="not JSON"):
        load_device(str(broken))


def test_host_is_a_device() -> None:
    host = load_device("cpu")
    assert host is detect_host()
    assert host.kind == "cpu"
    assert host.sm_count >= 1
    assert host.peak("fp32") == pytest.approx(2 * host.sm_count * host.cuda_cores_per_sm * host.clock_hz)
    assert host.peak("int8") >= host.peak("fp32")
    assert "dram_bytes_per_s" in host.unverified_fields
    assert Device.from_dict(json.loads(json.dumps(host.to_dict()))) == host


def test_copying_measures_a_bandwidth() -> None:
    assert 1e8 < copy_bytes_per_s(nbytes=2**20, repeats=1) < 1e13


def test_reported_names_lead_to_files() -> None:
    found = device_named("NVIDIA H100 80GB HBM3")
    assert found is not None
    assert found.slug == "h100-sxm"
    assert device_named("Voodoo 2") is None


def test_attributes_make_a_specification_like_the_file() -> None:
    for slug, memory_clock_hz, bus_bits in (("rtx-3090", 9.751e9, 384), ("tesla-t4", 5.001e9, 256)):
        known = load_device(slug)
        made = device_from_attributes(
            name=known.name,
            compute_capability=known.compute_capability,
            sm_count=known.sm_count,
            clock_hz=known.clock_hz,
            memory_clock_hz=memory_clock_hz,
            bus_bits=bus_bits,
            l2_bytes=known.l2_bytes,
            dram_bytes=known.dram_bytes,
        )
        assert made.dram_bytes_per_s == pytest.approx(known.dram_bytes_per_s, rel=0.01)
        for precision in ("fp32", "fp16", "int8"):
            assert made.peak(precision) == pytest.approx(known.peak(precision), rel=0.01)
        assert made.tensor_cores == known.tensor_cores

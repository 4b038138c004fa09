"""Commands that make and show data, run as a user runs them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from test_runtimes import small_network

from perfpred.dataset import Dataset


def run(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "perfpred.cli", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=300)


def test_collect_measures_a_network_resumes_and_leaves_a_dataset(tmp_path: Path) -> None:
    network = small_network(tmp_path / "small.onnx")
    collect = ("collect", network, "--device", "cpu", "--precision", "fp32", "--out", tmp_path / "mine")
    made = run(*collect)
    assert made.returncode == 0, made.stderr
    first = Dataset.read(tmp_path / "mine")
    assert first.good["latency_kind"].tolist() == ["cpu"]
    assert first.times["time_s"].gt(0).any()
    assert run(*collect).returncode == 0
    assert Dataset.read(tmp_path / "mine").digest() == first.digest()
    assert "1 engines, 1 networks" in run("dataset", "show", tmp_path / "mine").stdout


def test_collect_asks_for_networks_or_a_selection(tmp_path: Path) -> None:
    asked = run("collect", "--device", "cpu", "--out", tmp_path / "mine")
    assert asked.returncode == 2
    assert "--corpus" in asked.stderr
    assert "Traceback" not in asked.stderr

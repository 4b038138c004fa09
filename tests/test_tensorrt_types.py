"""The TensorRT code against the published type stubs of TensorRT 10."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
CHECKED = [ROOT / "perfpred" / "runtimes" / name for name in ("tensorrt.py", "tensorrt_options.py")]


def usable_stubs(target: Path) -> Path:
    """Copy the stubs; those of 10.13 don't parse (a parameter called `in`) and re-export nothing."""
    found = importlib.util.find_spec("tensorrt_stubs")
    if found is None or found.origin is None:
        pytest.skip("tensorrt-stubs is not installed")
    site = Path(found.origin).parent.parent
    for package in ("tensorrt", "tensorrt_bindings"):
        shutil.copytree(site / package, target / package, ignore=shutil.ignore_patterns("*.py", "__pycache__"))
    for path in target.rglob("*.pyi"):
        text = path.read_text()
        text = re.sub(r"\bin: list", "in_: list", text)
        text = re.sub(r"(def add_scale_nd\(.*channel_axis: int)\)", r"\1 = ...)", text)
        text = re.sub(r"^(from \S+ import (\w+))$", r"\1 as \2", text, flags=re.MULTILINE)
        text = re.sub(r"^import tensorrt_libs.*$", "", text, flags=re.MULTILINE)
        path.write_text(text)
    return target


@pytest.mark.slow
def test_the_tensorrt_code_passes_mypy_against_the_published_stubs(tmp_path: Path) -> None:
    pytest.importorskip("mypy")
    # A type error that only the stubs can reveal must be found, or this test shows nothing.
    wrong = tmp_path / "wrong.py"
    wrong.write_text(
        "import tensorrt as trt\nconfig: trt.IBuilderConfig\nconfig.builder_optimization_level = 'three'\n"
    )
    environment = {**os.environ, "MYPYPATH": str(usable_stubs(tmp_path / "stubs"))}
    command = [
        sys.executable,
        "-m",
        "mypy",
        "--strict",
        "--follow-imports=silent",
        "--cache-dir",
        str(tmp_path / "cache"),
    ]
    answer = subprocess.run(
        [*command, *map(str, CHECKED), str(wrong)],
        capture_output=True,
        text=True,
        env=environment,
        cwd=ROOT,
        check=False,
    )
    errors = [line for line in answer.stdout.splitlines() if ": error:" in line]
    assert any("wrong.py:3" in line and '"int"' in line for line in errors), answer.stdout
    assert not [line for line in errors if "runtimes" in line]

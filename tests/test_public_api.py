"""What users import: quick, without heavy libraries, under the documented names."""

from __future__ import annotations

import subprocess
import sys
import time
from types import FunctionType

import pytest

import perfpred

HEAVY = ("tensorrt", "tensorrt_rtx", "torch", "pycuda", "onnxruntime", "matplotlib", "plotly", "jinja2", "cuda")


def run(code: str) -> str:
    made = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    assert made.returncode == 0, made.stderr
    return made.stdout.strip()


def test_import_is_quick() -> None:
    """Under 0.3 s in a fresh process; the best of several, since other work may hold the processor."""
    code = "import time; t = time.perf_counter(); import perfpred; print(time.perf_counter() - t)"
    assert min(float(run(code)) for _ in range(3)) < 0.3


@pytest.mark.parametrize("module", ["perfpred", "perfpred.cli", "perfpred.predictor", "perfpred.evaluate"])
def test_no_heavy_library_is_loaded(module: str) -> None:
    code = f"import sys, {module}; print([m for m in {HEAVY!r} if m in sys.modules])"
    assert run(code) == "[]"


def test_every_public_name_is_there() -> None:
    for name in perfpred.__all__:
        assert getattr(perfpred, name) is getattr(perfpred, name)
    with pytest.raises(AttributeError, match="no attribute 'predictt'"):
        perfpred.predictt  # noqa: B018


@pytest.mark.parametrize("name", ["collect", "evaluate"])
def test_functions_stay_functions(name: str) -> None:
    """Modules share these names; loading one must not put it in the function's place."""
    code = (
        f"import perfpred, types; import perfpred.{name}; from perfpred.{name} import {name} as there; "
        f"from perfpred import {name}; assert {name} is there is perfpred.{name}; "
        f"print(isinstance({name}, types.FunctionType))"
    )
    assert run(code) == "True"
    assert isinstance(getattr(perfpred, name), FunctionType)


def test_version_is_stated() -> None:
    assert perfpred.__version__.count(".") == 2


def test_help_answers_soon() -> None:
    begin = time.perf_counter()
    made = subprocess.run([sys.executable, "-m", "perfpred.cli", "--help"], capture_output=True, text=True, timeout=120)
    assert made.returncode == 0, made.stderr
    for command in ("predict", "layers", "collect", "import", "corpus", "dataset", "train", "calibrate", "evaluate",
                    "rank", "report", "devices", "doctor"):  # fmt: skip
        assert command in made.stdout
    assert time.perf_counter() - begin < 20

"""Shared fixtures: tiny ONNX builders and the reference data where it is present."""

from __future__ import annotations

import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def reference_data() -> Path:
    """Folder of the published measurements; skips with a notice where it isn't named."""
    folder = os.environ.get("PERFPRED_REFERENCE_DATA")
    if not folder:
        pytest.skip("PERFPRED_REFERENCE_DATA is not set: tests on the reference data are left out")
    return Path(folder)

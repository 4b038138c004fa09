"""What goes out to devices without a modern Python."""

from __future__ import annotations

import os
import subprocess
import tarfile
from pathlib import Path

import onnx
from test_runtimes import small_network

from perfpred.gather import write_trtexec_script
from perfpred.weights import is_external, strip_weights

#: Stands in for trtexec: writes what it is asked to export, and fails on one network.
TRTEXEC = """#!/bin/sh
for argument in "$@"; do
  case $argument in
    --onnx=bad.onnx) exit 1 ;;
    --export*=*) echo '[]' > "${argument#*=}" ;;
  esac
done
"""


def exported(folder: Path, name: str) -> Path:
    path = small_network(folder / f"{name}.onnx")
    onnx.save(strip_weights(onnx.load(path)), path)
    return path


def test_the_trtexec_script_measures_graphs_that_hold_weights_and_survives_one_that_fails(tmp_path: Path) -> None:
    paths = [exported(tmp_path, "bad"), exported(tmp_path, "good")]
    assert any(is_external(t) for t in onnx.load(paths[0], load_external_data=False).graph.initializer)
    script = write_trtexec_script(paths, tmp_path)
    for path in paths:
        graph = onnx.load(path).graph
        assert not any(is_external(tensor) for tensor in graph.initializer)
        assert graph.input[0].type.tensor_type.shape.dim[0].dim_value == 1
    tools = tmp_path / "bin"
    tools.mkdir()
    (tools / "trtexec").write_text(TRTEXEC)
    (tools / "trtexec").chmod(0o755)
    environment = {**os.environ, "PATH": f"{tools}:{os.environ['PATH']}"}
    done = subprocess.run([script], env=environment, capture_output=True, text=True, check=True)
    assert "bad failed" in done.stdout
    with tarfile.open(tmp_path / "results.tar") as archive:
        assert sorted(archive.getnames()) == ["good.layers.json", "good.profile.json", "good.times.json"]

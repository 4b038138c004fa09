"""Every file the package reads back says what it is; another version, a cut or a swap is refused in one line."""

from __future__ import annotations

import ast
import json
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from made import dataset

import perfpred
from perfpred import stages
from perfpred.dataset import Dataset, time_frame
from perfpred.device import Device, load_device
from perfpred.errors import FormatError
from perfpred.evaluate import Evaluation
from perfpred.predictor import LatencyPredictor
from perfpred.raw import RawStore, records
from perfpred.regressors import BoostedTrees, load_regressor
from perfpred.report import read_evaluation
from perfpred.unit import Plan, grid

Reader = Callable[[Path], Any]


def _device(path: Path) -> Reader:
    path.write_text(json.dumps(load_device("jetson-nano").to_dict()))
    numbers = count()

    def read(file: Path) -> Device:
        fresh = file.with_name(f"device{next(numbers)}.json")  # a specification is read once per name
        fresh.write_text(file.read_text())
        return load_device(str(fresh))

    return read


def _plan(path: Path) -> Reader:
    grid(["a"]).save(path)
    return Plan.load


def _evaluation(path: Path) -> Reader:
    engines = dataset(4, ("jetson-orin-nano",)).engines
    frame = engines.assign(predictor="p", predicted_s=1.0, measured_s=1.0, low_s=0.5, high_s=2.0, fold="f")
    Evaluation(predictions=frame, protocol="lineage", dataset="0").save(path)
    return read_evaluation


def _raw(path: Path) -> Reader:
    store = RawStore(path.parent / "raw-dataset")
    store.write({"engine_id": "a", "status": "good"})
    path.write_text((store.folder / "raw" / "a.json").read_text())

    def read(file: Path) -> Any:
        (store.folder / "raw" / "a.json").write_text(file.read_text())
        return list(records(store.folder))

    return read


MAKERS = {"device": _device, "plan": _plan, "evaluation": _evaluation, "raw": _raw}


@pytest.mark.parametrize("kind", sorted(MAKERS))
def test_json_files(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "file.json"
    read = MAKERS[kind](path)
    assert read(path) is not None
    whole = path.read_text()
    content = json.loads(whole)
    assert content["format"].startswith("perfpred.")
    assert isinstance(content["version"], int)
    for change in ({"version": 99}, {"version": None}, {"format": "other"}, {"format": None}):
        path.write_text(json.dumps(content | change))
        with pytest.raises(FormatError) as refused:
            read(path)
        assert "\n" not in str(refused.value)
    for text in (whole[: len(whole) // 2], "", "[]", "null", '"x"'):
        path.write_text(text)
        with pytest.raises(FormatError):
            read(path)


def test_predictor_folders_survive_no_cut(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stages, "_FEWEST_LAYERS", 20)  # so that there are trees to be cut
    made = dataset()
    layers = made.layers_at("fused").merge(made.engines[["engine_id", "structure"]], on="structure")
    timed = layers[["engine_id", "name", "onnx_nodes"]].assign(time_s=1e-5)
    made.times = time_frame(timed.to_dict("records"))
    LatencyPredictor(folds=0).fit(made).save(tmp_path / "p")
    manifest = tmp_path / "p" / "manifest.json"
    content = json.loads(manifest.read_text())
    for key in ("stages", "transfers", "residuals", "contrast", "facts", "name", "level", "drop", "seed"):
        manifest.write_text(json.dumps({k: v for k, v in content.items() if k != key}))
        with pytest.raises(FormatError, match="train the predictor again"):
            LatencyPredictor.load(tmp_path / "p")
    manifest.write_text(json.dumps(content | {"stages": content["stages"] | {"layer_stage": ["layer-0.ubj.gz"]}}))
    with pytest.raises(FormatError, match="train the predictor again"):
        LatencyPredictor.load(tmp_path / "p")
    manifest.write_text(json.dumps(content))
    for name in ("layer-1.ubj.gz", "layer-perceptron/perceptron.npz"):
        part = tmp_path / "p" / name
        whole = part.read_bytes()
        for damaged in (b"", whole[:1], whole[: len(whole) // 2], whole[:-1], bytes(len(whole))):
            part.write_bytes(damaged)
            with pytest.raises(FormatError, match=f"{part.name}: is damaged"):
                LatencyPredictor.load(tmp_path / "p")
        part.unlink()
        with pytest.raises(FormatError, match=f"{part.name}: is missing"):
            LatencyPredictor.load(tmp_path / "p")
        part.write_bytes(whole)


def test_regressor_folders(tmp_path: Path) -> None:
    table = pd.DataFrame({"a": np.arange(40.0), "b": np.arange(40.0) % 7})
    BoostedTrees().fit(table, np.arange(40.0)).save(tmp_path / "r")
    manifests = list((tmp_path / "r").glob("*.json"))
    assert len(manifests) == 1
    content = json.loads(manifests[0].read_text())
    for change in ({"version": 99}, {"format": "other"}):
        manifests[0].write_text(json.dumps(content | change))
        with pytest.raises(FormatError):
            load_regressor(tmp_path / "r")


def test_tables_cut_anywhere_are_refused(tmp_path: Path) -> None:
    dataset(4, ("jetson-orin-nano",)).write(tmp_path / "d")
    for table in ("engines", "layers", "times"):
        path = tmp_path / "d" / f"{table}.parquet"
        whole = path.read_bytes()
        for cut in (0, 3, len(whole) // 2, len(whole) - 1):
            path.write_bytes(whole[:cut])
            with pytest.raises(FormatError, match=f"{table}.parquet"):
                Dataset.read(tmp_path / "d")
        path.write_bytes(whole)
    other = (tmp_path / "d" / "layers.parquet").read_bytes()
    (tmp_path / "d" / "engines.parquet").write_bytes(other)
    with pytest.raises(FormatError, match=r"is perfpred.layers, not perfpred.engines"):
        Dataset.read(tmp_path / "d")


def test_shipped_devices_carry_the_header() -> None:
    files = sorted((Path(perfpred.__file__).parent / "devices").glob("*.json"))
    assert len(files) >= 15
    for file in files:
        content = json.loads(file.read_text())
        assert Device.from_dict(content).slug == file.stem


def test_nothing_is_pickled() -> None:
    """No module loads what could run code: pickle, joblib files, shelve, marshal, arrays of objects."""
    root = Path(perfpred.__file__).parent
    for file in sorted(root.rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text())):
            names = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                names = [f"{node.module}.{alias.name}" for alias in node.names]
            elif isinstance(node, ast.keyword) and node.arg == "allow_pickle":
                assert isinstance(node.value, ast.Constant), file
                assert node.value.value is False, file
            for name in names:
                assert name.split(".")[0] not in ("pickle", "cloudpickle", "dill", "shelve", "marshal"), file
                assert name not in ("joblib.load", "joblib.dump"), file

"""The experiments' scripts on small made-up measurements: they run, and their text follows the data."""

from __future__ import annotations

import importlib
import json
import shutil
from pathlib import Path
from types import ModuleType

import made
import numpy as np
import pandas as pd
import pytest

from perfpred.dataset import Dataset, time_frame
from perfpred.network import load_network

EXPERIMENTS = Path(__file__).resolve().parents[1] / "experiments"
CORPUS = Path(__file__).resolve().parents[1] / "datasets" / "corpus.csv"


def measured(slower: float = 1.5) -> Dataset:
    """Networks on 64 SMs, on 132 where each takes `slower` times as long, un-optimised twice as long; all profiled."""
    base = made.dataset(6, ("h100-sxm",))
    first = base.engines.assign(sm_count=64, optimisation="all", rebuild=0, cv=0.01)
    second = first.assign(engine_id=first["engine_id"] + "-132", sm_count=132, latency_s=first["latency_s"] * slower)
    off = second.assign(engine_id=first["engine_id"] + "-off", optimisation="off", latency_s=second["latency_s"] * 2)
    again = second.assign(engine_id=first["engine_id"] + "-2", rebuild=1, latency_s=second["latency_s"] * 1.01)
    engines = pd.concat([first, second, off, again], ignore_index=True).astype(
        {"sm_count": "Int64", "rebuild": "Int64"}
    )
    fused = base.layers_at("fused")
    times = [
        {
            "engine_id": engine["engine_id"], "name": layer["name"], "onnx_nodes": list(layer["onnx_nodes"])[:1],
            "time_s": engine["latency_s"] / (fused["structure"] == engine["structure"]).sum(), "kernels": ["k"],
        }
        for engine in pd.concat([first, second]).to_dict("records")
        for layer in fused[fused["structure"] == engine["structure"]].to_dict("records")
    ]  # fmt: skip
    return Dataset(engines=engines, layers=base.layers, times=time_frame(times))


@pytest.fixture
def results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of results; the datasets' folder holds the measurements alone, reference data is absent."""
    monkeypatch.syspath_prepend(str(EXPERIMENTS))
    monkeypatch.delenv("PERFPRED_REFERENCE_DATA", raising=False)
    monkeypatch.setenv("PERFPRED_DATASETS", str(tmp_path))
    shutil.copy(CORPUS, tmp_path)
    measured().write(tmp_path / "gpu-made")
    return tmp_path


def run(name: str, results: Path, monkeypatch: pytest.MonkeyPatch, *arguments: str) -> tuple[ModuleType, dict]:
    """Runs a script's `main`; returns the module and what it wrote."""
    module = importlib.import_module(name)
    for holder in (module, importlib.import_module("written")):
        monkeypatch.setattr(holder, "RESULTS", results)
    monkeypatch.setattr("sys.argv", [name, *arguments])
    module.main()
    found = json.loads((results / f"{name}.json").read_text())
    assert all((results / figure).stat().st_size > 0 for figure in found["figures"])
    assert all(sentence in (results / f"{name}.md").read_text() for sentence in found["findings"])
    return module, found


def test_inversions_are_found_and_blamed(results: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, found = run("inversions", results, monkeypatch)
    pairs = pd.read_csv(results / found["csv"])
    assert set(zip(pairs["weaker"], pairs["stronger"], strict=True)) == {("h100-sxm/64", "h100-sxm/132")}
    assert pairs["ratio"].to_numpy() == pytest.approx(1.5)
    assert any("(100.0 %) are more than 2 % slower" in sentence for sentence in found["findings"])
    assert found["tables"]["Layers by kind"][0]["inverted"] == 1.0
    measured(0.5).write(results / "gpu-made")
    _, found = run("inversions", results, monkeypatch)
    assert any(" 0 (0.0 %) are more than 2 % slower" in sentence for sentence in found["findings"])


def test_gain_and_its_misjudgement(results: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module, found = run("optimisation_gain", results, monkeypatch)
    assert pd.read_csv(results / found["csv"])["gain"].to_numpy() == pytest.approx(2.0)
    errors = {row["predicted from"]: row["mape"] for row in found["tables"]["Errors on optimised latency"]}
    assert errors["un-optimised latency as it is"] == pytest.approx(1.0)
    assert errors["un-optimised latency / gain of other families"] == pytest.approx(0.0, abs=1e-9)
    alone = pd.DataFrame({"family": ["a", "b", "c"], "unoptimised_s": [8.0, 2, 2], "optimised_s": [1.0, 1, 1]})
    assert module.gain_known(alone)[0] == pytest.approx(4.0)  # The family's own gain of 8 is not used.


def test_layers_beside_baselines(results: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, found = run("micro_architecture", results, monkeypatch)
    kinds = found["tables"]["By layer kind"]
    assert sum(row["time_share"] for row in kinds) == pytest.approx(1.0)
    assert all(row["roofline mape"] > 0 for row in kinds)


def test_what_repeats(results: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = importlib.import_module("nondeterminism")
    monkeypatch.setattr(module, "SEEDS", range(1))
    _, found = run("nondeterminism", results, monkeypatch, "--no-builds")
    assert {round(row["spread"], 6) for row in found["tables"]["Rebuilds by network"]} == {0.01}
    labels = pd.DataFrame(found["tables"]["Digits by precision, optimiser, batch size and noise"])
    assert labels[labels["noise"] == 0]["accuracy"].min() > 0.9
    assert (labels[(labels["precision"] == "fp32") & (labels["optimiser"] == "off")]["flips_from_fp32"] == 0).all()


def test_digits_network_is_written_as_trained(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(EXPERIMENTS))
    digits, repeats = importlib.import_module("digits"), importlib.import_module("nondeterminism")
    monkeypatch.setattr(digits, "EPOCHS", 1)
    images, held, labels, _ = digits.digits()
    weights = digits.train(images, labels)
    one = np.maximum(digits._patches(held[:4], 1) @ weights["w1"] + weights["b1"], 0).transpose(0, 3, 1, 2)
    two = np.maximum(digits._patches(one, 2) @ weights["w2"] + weights["b2"], 0).transpose(0, 3, 1, 2)
    expected = two.reshape(4, -1) @ weights["w3"] + weights["b3"]
    found = repeats.logits(digits.as_onnx(weights), held[:4], optimised=True, batch_size=2)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


def test_launches_tell_joined_from_missed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(EXPERIMENTS))
    launches = importlib.import_module("cuda_launches").launches
    network = load_network(made.chain([16, 16, 16], 16), batch_size=1)
    every = {node.name for node in network.nodes}
    apart = {"launched": 6, "layers": 6, "joined in error": 0, "alone in error": 0}
    assert launches(network, every) == apart
    assert launches(network, every, "onnxruntime") == {**apart, "layers": 3, "joined in error": 3}
    assert launches(network, every - {"relu1"}) == {**apart, "launched": 5, "alone in error": 1}

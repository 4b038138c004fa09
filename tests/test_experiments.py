"""The experiments' scripts on small made-up measurements: they run, and their text follows the data."""

from __future__ import annotations

import ast
import importlib
import json
import shutil
from collections.abc import Callable
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


def run(
    name: str, results: Path, monkeypatch: pytest.MonkeyPatch, *arguments: str, written: str = ""
) -> tuple[ModuleType, dict]:
    """Runs a script's `main`; returns the module and what it wrote under its own name or another."""
    module = importlib.import_module(name)
    for holder in (module, importlib.import_module("written")):
        monkeypatch.setattr(holder, "RESULTS", results)
    monkeypatch.setattr("sys.argv", [name, *arguments])
    module.main()
    found = json.loads((results / f"{written or name}.json").read_text())
    assert all((results / figure).stat().st_size > 0 for figure in found["figures"])
    assert all(sentence in (results / f"{written or name}.md").read_text() for sentence in found["findings"])
    return module, found


@pytest.mark.parametrize("script", sorted(EXPERIMENTS.glob("*.py")), ids=lambda path: path.stem)
def test_scripts_say_question_command_and_output(script: Path) -> None:
    source = script.read_text()
    said = ast.get_docstring(ast.parse(source)) or ""
    if "__main__" in source:
        assert "?" in said.partition("\n\n")[0]
        assert f"python experiments/{script.name}" in said.partition("Command: ")[2]
        assert "\nOutput: " in said


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
    monkeypatch.setattr(importlib.import_module("micro_architecture"), "FEWEST_PAIRS", 1)
    _, found = run("micro_architecture", results, monkeypatch)
    assert any("at 132 SMs instead of 64" in s and "faster by a median 0.67 times" in s for s in found["findings"])
    measured(0.5).write(results / "gpu-made")
    _, found = run("micro_architecture", results, monkeypatch)
    assert any("at 132 SMs instead of 64" in s and "faster by a median 2.00 times" in s for s in found["findings"])


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


def test_accuracy_follows_the_data(results: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    accuracy = importlib.import_module("accuracy")
    for name, value in {"MEASURED": ("gpu-made",), "PROTOCOLS": ("lineage",), "FOLDS": 2, "ENGINES": 11}.items():
        monkeypatch.setattr(accuracy, name, value)
    _, found = run("accuracy", results, monkeypatch)
    assert "11 of 12 engines drawn with seed 0" in found["findings"][0]
    assert found["command"] == "python experiments/accuracy.py"
    measured(4.0).write(results / "gpu-made")
    _, other = run("accuracy", results, monkeypatch)
    assert other["findings"][0] != found["findings"][0]


def test_full_accuracy_keeps_what_was_made_of_the_same_data(results: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    accuracy = importlib.import_module("accuracy")
    for name, value in {"MEASURED": ("gpu-made",), "FOLDS": 2, "ENGINES": 11}.items():
        monkeypatch.setattr(accuracy, name, value)

    def full(*protocols: str) -> list[str]:
        _, found = run("accuracy", results, monkeypatch, "--full", "--protocol", *protocols, written="accuracy_full")
        assert found["command"] == "python experiments/accuracy.py --full"
        return sorted(sentence for sentence in found["findings"])

    [lineage] = full("lineage")
    assert "unseen lineage (12 rows, 6 networks)" in lineage
    both = full("family")
    assert len(both) == 2
    assert lineage in both
    measured(4.0).write(results / "gpu-made")
    [family] = full("family")
    assert family not in both


def test_ablation_follows_the_data(results: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ablation = importlib.import_module("ablation")
    for name, value in {"SAMPLES": {"gpu-made": 10}, "FOLDS": 2, "DRAWS": 50, "GROUPS": ("fusion",)}.items():
        monkeypatch.setattr(ablation, name, value)
    _, found = run("ablation", results, monkeypatch)
    assert "10 engines, drawn from 12 with seed 0" in found["findings"][0]
    steps = {(row["step"], row["level"]) for row in found["tables"]["Errors of each step"]}
    assert steps == {(step, level) for step in ablation.STEPS for level in ("node", "fused")}
    assert any("without one group of features" in sentence for sentence in found["findings"])
    measured(4.0).write(results / "gpu-made")
    _, other = run("ablation", results, monkeypatch)
    assert other["findings"] != found["findings"]


def test_transfer_follows_the_data(results: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    transfer = importlib.import_module("transfer")
    settings = {"DATASET": "gpu-made", "ENGINES": 100, "TRAINING_NETWORKS": (2,), "SHOTS": (0, 1, 2), "DRAWS": 2}
    for name, value in settings.items():
        monkeypatch.setattr(transfer, name, value)
    _, found = run("transfer", results, monkeypatch)
    assert "12 rows scored: MAPE" in found["findings"][0]
    assert any("measuring the most telling networks first" in sentence for sentence in found["findings"])
    shots = pd.read_csv(results / found["csv"])
    assert set(shots["device"]) == {"64 SMs", "132 SMs"}
    assert shots.loc[shots["k"] > 0, "telling"].notna().all()
    measured(4.0).write(results / "gpu-made")
    _, other = run("transfer", results, monkeypatch)
    assert other["findings"] != found["findings"]


def test_most_telling_networks_come_first(results: Path) -> None:
    transfer = importlib.import_module("transfer")
    instances = pd.DataFrame({"row": [0, 0, 1, 2], "flops": [5, 5, 100, 10], "weight_bytes": [1, 2, 3, 4]})
    sizes = transfer._sizes(instances, np.array(["a", "b", "a"]))
    assert np.expm1(sizes["work"]).to_dict() == pytest.approx({"a": 10, "b": 100})
    assert np.expm1(sizes["layers"]).to_dict() == pytest.approx({"a": 1.5, "b": 1})


def test_samples_keep_every_lineage(results: Path) -> None:
    sampled = importlib.import_module("written").sampled
    engines = pd.DataFrame({"lineage": ["a"] * 90 + ["b"] * 9 + ["c"], "family": "f", "network": "n"})
    chosen = sampled(engines, 20)
    assert len(set(chosen)) == 20
    assert engines["lineage"].iloc[chosen].value_counts().to_dict() == {"a": 17, "b": 2, "c": 1}
    assert (sampled(engines, 20) == chosen).all()
    assert (sampled(engines, 500) == np.arange(100)).all()


def test_reported_layers_are_the_runtime_s(results: Path) -> None:
    reported = importlib.import_module("reported_layers")
    network = load_network(made.chain([16, 16, 16], 16), batch_size=1)

    def names(parts: list[list[object]]) -> list[list[str]]:
        return [[node.name for node in part] for part in parts]

    assert names(reported.optimised(made.chain([16, 16, 16], 16), network)) == [
        [f"conv{i}", f"relu{i}"] for i in range(3)
    ]
    every = {node.name for node in network.nodes}
    assert names(reported.traced(network, every)) == [[name] for i in range(3) for name in (f"conv{i}", f"relu{i}")]
    fused = names(reported.traced(network, every - {"relu1"}))
    assert fused == [["conv0"], ["relu0"], ["conv1", "relu1"], ["conv2"], ["relu2"]]
    layer = reported._layer(network, reported.traced(network, every - {"relu1"})[2])
    assert [t.name for t in layer.outputs] == ["r1"]


def test_convolution_results_follow_the_lines(results: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    conv, written = (importlib.import_module(name) for name in ("conv_layers", "written"))
    for holder in (conv, written):
        monkeypatch.setattr(holder, "RESULTS", results)
    target = np.log([1e-3, 2e-3])

    def lines(split: str, error: float) -> list[dict[str, object]]:
        named = ("predictor", "kriging", *conv.BASELINES)
        return [conv.scores("fp16", split, name, target + np.log1p(error), target) for name in named]

    source = {"table": "t", "sha256": "0", "rows": 16, "taken": 2, "seed": 0}
    conv.report(lines("pair", 0.1), source, "")
    conv.report(lines("cin", 0.3), source, "")
    text = (results / "conv_layers.md").read_text()
    assert "2 of 16 rows" in text
    assert "Unseen pair, fp16, 2 rows: MAPE 10.0 %" in text
    assert "Unseen cin, fp16, 2 rows: MAPE 30.0 %" in text
    conv.report(lines("cin", 0.3), source | {"taken": 16}, "--full")
    text = (results / "conv_layers.md").read_text()
    assert "Unseen pair" not in text  # It was made of other rows.
    assert "conv_layers.py --full" in text
    assert conv.earlier(source) is None  # A sample replaces no results of all rows: the script stops there.
    assert conv.earlier(source | {"taken": 16}) is not None


def _scale(module: ModuleType, factor: float) -> list[str]:
    nodes = pd.DataFrame({"nodes": [10, 100], "load_s": [0.1, factor], "fuse_s": [0.1, 1], "predict_s": [0.1, 1]})
    training = pd.DataFrame({"engines": [50, 100], "fit_s": [1.0, 2.0]})
    collecting = pd.DataFrame({"dataset": ["d"], "build_s": [1.0], "build_s_90": [2.0], "wall_s_per_engine": [1.0]})
    return module.findings(nodes, training, collecting)


def _launches(module: ModuleType, factor: float) -> list[str]:
    columns = {"launched": [10], "layers": [9], "joined in error": [1], "alone in error": [2], "count error": [factor]}
    return module.findings(pd.DataFrame(columns), 3)


def _speed(module: ModuleType, factor: float) -> list[str]:
    return module.findings(pd.DataFrame({"rules": "r", "nodes": [10, 100], "fuse_s": [0.1, factor]}))


def _labels(module: ModuleType, factor: float) -> list[str]:
    columns = {
        "noise": 0.0, "precision": "fp16", "batch_size": 1, "optimiser": ["off", "all"], "accuracy": [0.9, factor],
        "images": 100, "flips_from_fp32": 1, "flips_from_off": 1, "images_that_differ_from_off": 1,
        "largest_difference_from_off": 0.1, "repeats_itself": True,
    }  # fmt: skip
    return module.said_of_labels(pd.DataFrame(columns))


def _coverage(module: ModuleType, factor: float) -> list[str]:
    rows = pd.DataFrame({"mapping": ["exact", "none"], "device": "jetson-nano", "graph_name": ["a", ""]})
    check = pd.DataFrame(
        {"zoo": ["timm/a"], "input": ["9x9"], "params_difference": [factor - 0.5], "gmacs_difference": [0.0]}
    )
    return module.findings(rows, check)


def _agreement(module: ModuleType, factor: float) -> list[str]:
    counts = dict.fromkeys(
        ("nodes", "exact", "multi", "layers", "builder_layers", "all_layers", "builder_all_layers"), 9
    )
    named = {"builder": "tensorrt", "network": "n", "lineage": "l", "part": "held out"}
    row = module.Agreement(**named, **counts, unnamed=0, f1=factor, trivial_f1=0.1, trivial_exact=1)
    return [line for line in module.report([row], {}, "all").splitlines() if line.startswith("* ")]


def _published(module: ModuleType, factor: float) -> list[str]:
    found = json.loads((EXPERIMENTS / "results" / "published.json").read_text())
    found["unseen device"]["zero_shot_median_ape"] = factor
    return module.table(found).splitlines()


def _counted(module: ModuleType, factor: float) -> list[str]:
    name = next(iter(module.PUBLISHED))
    return module.published(pd.DataFrame({"params": [1e6], "matrix_gflops": [factor]}, index=[name]))


@pytest.mark.parametrize(
    ("name", "say"),
    [
        ("scale", _scale), ("cuda_launches", _launches), ("fusion_speed", _speed), ("nondeterminism", _labels),
        ("published_coverage", _coverage), ("fusion_agreement", _agreement), ("published", _published),
        ("flops_agreement", _counted),
    ],
)  # fmt: skip
def test_other_data_another_text(
    results: Path, monkeypatch: pytest.MonkeyPatch, name: str, say: Callable[[ModuleType, float], list[str]]
) -> None:
    module = importlib.import_module(name)
    monkeypatch.setattr(module, "RESULTS", results, raising=False)
    assert say(module, 0.5)
    assert say(module, 0.5) != say(module, 0.25)
    assert say(module, 0.5) == say(module, 0.5)

"""Joining ONNX Runtime's optimised models and profiles to the original graph."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from perfpred.errors import EngineFormatError
from perfpred.fusion import groups
from perfpred.network import load_network
from perfpred.ort_graph import layers_from_optimised_model, times_from_profile, with_times


def model(channels: int = 32) -> onnx.ModelProto:
    """conv + relu, conv + sum + relu, swish, mean, matmul + bias."""
    rng = np.random.default_rng(0)

    def weight(name: str, *shape: int) -> onnx.TensorProto:
        return numpy_helper.from_array(rng.normal(0, 0.1, shape).astype(np.float32), name)

    c = channels
    nodes = [
        helper.make_node("Conv", ["x", "w0"], ["a"], name="conv0", pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["a"], ["b"], name="relu0"),
        helper.make_node("Conv", ["b", "w1"], ["c"], name="conv1", pads=[1, 1, 1, 1]),
        helper.make_node("Add", ["c", "b"], ["d"], name="add1"),
        helper.make_node("Relu", ["d"], ["e"], name="relu1"),
        helper.make_node("Sigmoid", ["e"], ["f"], name="sigmoid2"),
        helper.make_node("Mul", ["e", "f"], ["g"], name="mul2"),
        helper.make_node("GlobalAveragePool", ["g"], ["h"], name="pool3"),
        helper.make_node("Flatten", ["h"], ["i"], name="flat4"),
        helper.make_node("MatMul", ["i", "w5"], ["j"], name="matmul5"),
        helper.make_node("Add", ["j", "b5"], ["y"], name="bias5"),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3, 16, 16])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 10])],
        [weight("w0", c, 3, 3, 3), weight("w1", c, c, 3, 3), weight("w5", c, 10), weight("b5", 10)],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


@pytest.fixture(scope="module")
def optimised(tmp_path_factory: pytest.TempPathFactory) -> Path:
    runtime = pytest.importorskip("onnxruntime")
    path = tmp_path_factory.mktemp("ort") / "optimised.onnx"
    options = runtime.SessionOptions()
    options.optimized_model_filepath = str(path)
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    runtime.InferenceSession(model().SerializeToString(), options, providers=["CPUExecutionProvider"])
    return path


def test_optimised_nodes_are_joined_through_tensors(optimised: Path) -> None:
    layers = layers_from_optimised_model(optimised, load_network(model()))
    behind = {layer.onnx_nodes for layer in layers if layer.onnx_nodes}
    assert ("conv0", "relu0") in behind
    assert ("conv1", "add1", "relu1") in behind
    assert ("sigmoid2", "mul2") in behind
    assert ("matmul5", "bias5") in behind


def test_the_rules_make_the_same_groups(optimised: Path) -> None:
    network = load_network(model())
    theirs = {layer.onnx_nodes for layer in layers_from_optimised_model(optimised, network) if layer.onnx_nodes}
    ours = {tuple(n.name for n in g.nodes) for g in groups(network, "onnxruntime")}
    assert {g for g in theirs if len(g) > 1} == {g for g in ours if len(g) > 1}


def test_a_model_of_another_graph_is_refused(optimised: Path) -> None:
    other = helper.make_model(
        helper.make_graph(
            [helper.make_node("Relu", ["p"], ["q"], name="r")],
            "other",
            [helper.make_tensor_value_info("p", TensorProto.FLOAT, [1])],
            [helper.make_tensor_value_info("q", TensorProto.FLOAT, [1])],
        )
    )
    with pytest.raises(EngineFormatError, match="optimised from another graph"):
        layers_from_optimised_model(optimised, load_network(other))


def test_damaged_models_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "broken.onnx"
    path.write_bytes(b"\x08\x08\xff\xff\xff")
    with pytest.raises(EngineFormatError, match="expected an ONNX model"):
        layers_from_optimised_model(path, load_network(model()))


def test_profile_gives_the_median_of_each_node(tmp_path: Path) -> None:
    events = [{"cat": "Session", "name": "model_run", "dur": 99}]
    events += [{"cat": "Node", "name": "conv0_kernel_time", "dur": d, "args": {}} for d in (10, 30, 20)]
    path = tmp_path / "profile.json"
    path.write_text(json.dumps(events))
    assert times_from_profile(path) == [("conv0", pytest.approx(20e-6))]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{}", "expected a list of trace events"),
        ("[3]", "event 0: expected an object"),
        ('[{"cat": "Node", "name": "a_kernel_time"}]', r"event 0 \('a_kernel_time'\): expected `dur`"),
        ('[{"cat": "Session", "name": "x"}]', "found none; run the session at least once"),
        ('[{"cat": "No', "the file is truncated or damaged"),
    ],
)
def test_malformed_profiles_name_the_event(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "profile.json"
    path.write_text(text)
    with pytest.raises(EngineFormatError, match=message):
        times_from_profile(path)


def test_times_are_added_by_name(optimised: Path) -> None:
    layers = layers_from_optimised_model(optimised, load_network(model()))
    timed = with_times(layers, [(layers[0].name, 1e-5)])
    assert timed[0].time_s == 1e-5
    assert all(layer.time_s is None for layer in timed[1:])

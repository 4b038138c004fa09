"""TensorRT-RTX builds real engines on the CPU; skipped where it isn't installed."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from perfpred.corpus import Corpus
from perfpred.engine import partition_from_engine
from perfpred.errors import BuildError, RuntimeUnavailableError, UsageError
from perfpred.fusion import groups
from perfpred.runtimes.rtx_build import bind_inputs, capability_of, engine_in_child, rtx_engine, rtx_layers

INSTALLED = importlib.util.find_spec("tensorrt_rtx") is not None
needs_rtx = pytest.mark.skipif(
    not INSTALLED, reason="tensorrt_rtx isn't installed: pip install 'perfpred[tensorrt-rtx]'"
)
#: Twelve small networks of the corpus and the F1 over pairs of nodes that the rules must reach.
SAMPLE = {
    "torchvision.resnet18": 0.95,
    "torchvision.mobilenet_v2": 0.95,
    "torchvision.mobilenet_v3_small": 0.95,
    "torchvision.squeezenet1_1": 0.9,
    "torchvision.shufflenet_v2_x0_5": 0.9,
    "torchvision.googlenet": 0.9,
    "torchvision.mnasnet0_5": 0.95,
    "torchvision.efficientnet_b0": 0.9,
    "torchvision.densenet121": 0.9,
    "timm.regnetx_002": 0.85,
    "timm.vit_tiny_patch16_224": 0.9,
    "timm.dla46_c": 0.9,
}


def small_model(path: Path, *, weights: bool = True) -> Path:
    rng = np.random.default_rng(0)
    weight = numpy_helper.from_array(rng.normal(0, 0.1, (16, 8, 3, 3)).astype(np.float32), "w")
    if not weights:
        weight.ClearField("raw_data")
        weight.data_location = TensorProto.EXTERNAL
        weight.external_data.add(key="location", value="weights.bin")
    graph = helper.make_graph(
        [
            helper.make_node("Conv", ["x", "w"], ["a"], pads=[1, 1, 1, 1]),
            helper.make_node("Sigmoid", ["a"], ["b"]),
            helper.make_node("Mul", ["a", "b"], ["y"]),
        ],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 8, 16, 16])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 16, 16, 16])],
        [weight],
    )
    path.write_bytes(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8).SerializeToString()
    )
    return path


@needs_rtx
@pytest.mark.parametrize("weights", [True, False], ids=["weights", "weight-free"])
def test_layers_of_unnamed_nodes_with_or_without_weights(tmp_path: Path, weights: bool) -> None:
    layers = rtx_layers(small_model(tmp_path / "net.onnx", weights=weights), device="rtx-4090", batch_size=2)
    (conv,) = (layer for layer in layers if layer.kind == "conv")
    assert [op for layer in layers for op in layer.op_types] == ["Conv", "Sigmoid", "Mul"]
    assert conv.dtype == "float16"
    assert conv.inputs[0].shape == (2, 8, 16, 16)
    assert any(layer.kind == "reformat" for layer in layers)


@needs_rtx
def test_precision_is_that_of_the_graph(tmp_path: Path) -> None:
    network, engine = rtx_engine(small_model(tmp_path / "net.onnx"), precision="fp32")
    assert network.precision == "fp32"
    assert {t.dtype for layer in engine for t in layer.outputs} == {"float32"}


@needs_rtx
@pytest.mark.slow
@pytest.mark.parametrize("name", SAMPLE)
def test_rules_agree_with_the_real_builder(name: str) -> None:
    corpus = Corpus.load()
    if name not in corpus:
        pytest.skip(f"{name} is not in the corpus")
    network, engine = rtx_engine(corpus.folder / "graphs" / f"{corpus[name].name}.onnx.zst", batch_size=1)
    theirs = {n.name: i for i, (_, nodes) in enumerate(partition_from_engine(engine, network)) for n in nodes}
    ours = {n.name: g for g, group in enumerate(groups(network, "tensorrt-rtx")) for n in group.nodes}
    assert len(theirs) > 0.6 * len(network.nodes)
    assert pair_f1(ours, theirs) >= SAMPLE[name]


def pair_f1(ours: dict[str, int], theirs: dict[str, int]) -> float:
    names = list(theirs)
    same = [(ours[a] == ours[b], theirs[a] == theirs[b]) for i, a in enumerate(names) for b in names[i + 1 : i + 200]]
    both, either = sum(o and t for o, t in same), sum(o + t for o, t in same)
    return 2 * both / either if either else 1.0


@needs_rtx
def test_a_network_the_builder_refuses_is_a_build_error(tmp_path: Path) -> None:
    graph = helper.make_graph(
        [helper.make_node("StringNormalizer", ["x"], ["y"])],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.STRING, [2])],
        [helper.make_tensor_value_info("y", TensorProto.STRING, [2])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    with pytest.raises(BuildError, match="TensorRT-RTX can't parse the network"):
        engine_in_child(model)


@needs_rtx
def test_a_build_that_takes_too_long_is_ended(tmp_path: Path) -> None:
    with pytest.raises(BuildError, match="took longer than 0 s"):
        engine_in_child(onnx.load(small_model(tmp_path / "net.onnx")), timeout_s=0.01)


@pytest.mark.skipif(INSTALLED, reason="tensorrt_rtx is installed")
def test_without_tensorrt_rtx_the_extra_is_named(tmp_path: Path) -> None:
    with pytest.raises(RuntimeUnavailableError, match=r"perfpred\[tensorrt-rtx\]"):
        rtx_layers(small_model(tmp_path / "net.onnx"))


def test_devices_it_does_not_support_are_refused() -> None:
    assert capability_of("rtx-4090") == "SM89"
    with pytest.raises(UsageError, match=r"doesn't support jetson-xavier-nx \(compute capability 7.2\)"):
        capability_of("jetson-xavier-nx")


def test_other_precisions_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="not in bf16"):
        rtx_engine(small_model(tmp_path / "net.onnx"), precision="bf16")
    with pytest.raises(UsageError, match="no Q/DQ nodes"):
        rtx_engine(small_model(tmp_path / "net.onnx"), precision="int8")


def test_inputs_get_the_bound_shapes(tmp_path: Path) -> None:
    from perfpred.network import load_network

    model = onnx.load(small_model(tmp_path / "net.onnx"))
    bind_inputs(model, load_network(model, batch_size=3))
    assert [d.dim_value for d in model.graph.input[0].type.tensor_type.shape.dim] == [3, 8, 16, 16]
    assert not any(d.dim_param for d in model.graph.output[0].type.tensor_type.shape.dim)

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from perfpred.errors import NetworkError
from perfpred.weights import bind_batch, fill_weights, is_external, strip_weights, to_fp16

CHANNELS, SIDE, CLASSES = 64, 8, 10


def _tensor(name: str, *dims: int, value: float = 1.0) -> TensorProto:
    return numpy_helper.from_array(np.full(dims, value, np.float32), name)


def _float_info(name: str, *dims: int | str) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, dims)


def network(opset: int = 17) -> onnx.ModelProto:
    """Conv, batch normalisation, ReLU, doubling of the resolution, mean, Gemm."""
    weights = [
        _tensor("kernel", CHANNELS, 16, 3, 3),
        *(_tensor(name, CHANNELS) for name in ("gamma", "beta", "mean", "variance")),
        numpy_helper.from_array(np.array([1, 1, 2, 2], np.float32), "scales"),
        _tensor("dense", CLASSES, CHANNELS),
        numpy_helper.from_array(np.array([0, -1], np.int64), "flat"),
    ]
    nodes = [
        helper.make_node("Conv", ["input", "kernel"], ["a"], pads=[1, 1, 1, 1]),
        helper.make_node("BatchNormalization", ["a", "gamma", "beta", "mean", "variance"], ["b"]),
        helper.make_node("Relu", ["b"], ["c"]),
        helper.make_node("Resize", ["c", "", "scales"], ["d"], mode="nearest"),
        helper.make_node("GlobalAveragePool", ["d"], ["e"]),
        helper.make_node("Reshape", ["e", "flat"], ["f"]),
        helper.make_node("Gemm", ["f", "dense"], ["g"], transB=1),
        helper.make_node("Constant", [], ["low"], value=_tensor("low", value=1e-12)),
        helper.make_node("Add", ["g", "low"], ["h"]),
        helper.make_node("Cast", ["h"], ["output"], to=TensorProto.FLOAT),
    ]
    graph = helper.make_graph(
        nodes,
        "small",
        [_float_info("input", "batch", 16, SIDE, SIDE)],
        [_float_info("output", "batch", CLASSES)],
        weights,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


def _initializers(model: onnx.ModelProto) -> dict[str, TensorProto]:
    return {tensor.name: tensor for tensor in model.graph.initializer}


def _run(model: onnx.ModelProto, dtype: type, batch_size: int) -> np.ndarray:
    ort = pytest.importorskip("onnxruntime")
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    rng = np.random.default_rng(0)
    values = rng.standard_normal((batch_size, 16, SIDE, SIDE)).astype(dtype)
    (output,) = session.run(None, {"input": values})
    return output


def test_strip_keeps_shapes_and_what_decides_them() -> None:
    stripped = _initializers(strip_weights(network()))
    assert is_external(stripped["kernel"])
    assert tuple(stripped["kernel"].dims) == (CHANNELS, 16, 3, 3)
    assert stripped["kernel"].data_type == TensorProto.FLOAT
    assert {e.key: e.value for e in stripped["kernel"].external_data} == {"location": "weights.bin"}
    assert not is_external(stripped["gamma"])  # 256 bytes
    assert not is_external(stripped["scales"])
    assert not is_external(stripped["flat"])


def test_strip_leaves_the_original_alone_and_is_idempotent() -> None:
    original = network()
    before = original.SerializeToString()
    once = strip_weights(original)
    assert original.SerializeToString() == before
    assert strip_weights(once) == once


def test_constants_that_define_shapes_or_scales_stay_inline() -> None:
    scale = np.full(600, 0.5, np.float32)
    nodes = [
        helper.make_node("QuantizeLinear", ["input", "scale", "zero"], ["q"], axis=1),
        helper.make_node("DequantizeLinear", ["q", "scale", "zero"], ["output"], axis=1),
    ]
    graph = helper.make_graph(
        nodes,
        "quantised",
        [_float_info("input", "batch", 600)],
        [_float_info("output", "batch", 600)],
        [numpy_helper.from_array(scale, "scale"), numpy_helper.from_array(np.zeros(600, np.int8), "zero")],
    )
    stripped = strip_weights(helper.make_model(graph))
    assert not any(is_external(tensor) for tensor in stripped.graph.initializer)


def test_large_constant_nodes_become_stripped_weights() -> None:
    nodes = [
        helper.make_node("Constant", [], ["w"], value=_tensor("value", 32, 32)),
        helper.make_node("MatMul", ["input", "w"], ["output"]),
    ]
    graph = helper.make_graph(nodes, "g", [_float_info("input", "batch", 32)], [_float_info("output", "batch", 32)])
    stripped = strip_weights(helper.make_model(graph))
    assert [node.op_type for node in stripped.graph.node] == ["MatMul"]
    assert is_external(_initializers(stripped)["w"])


def test_filling_is_seeded_and_scaled_by_fan_in() -> None:
    stripped = strip_weights(network())
    first, again, other = (_initializers(fill_weights(stripped, seed)) for seed in (0, 0, 1))
    kernel = numpy_helper.to_array(first["kernel"])
    assert np.array_equal(kernel, numpy_helper.to_array(again["kernel"]))
    assert not np.array_equal(kernel, numpy_helper.to_array(other["kernel"]))
    assert kernel.std() == pytest.approx(0.8 * (16 * 9) ** -0.5, rel=0.05)
    dense = numpy_helper.to_array(first["dense"])
    assert dense.std() == pytest.approx(0.8 * CHANNELS**-0.5, rel=0.1)


@pytest.mark.parametrize("hidden", [False, True])
def test_variances_are_filled_positive(hidden: bool) -> None:
    """As an input of the normalisation, or where an exporter spelled the normalisation out."""
    size = 1000
    nodes = (
        [
            helper.make_node("Add", ["variance", "epsilon"], ["sum"]),
            helper.make_node("Sqrt", ["sum"], ["deviation"]),
            helper.make_node("Div", ["input", "deviation"], ["output"]),
        ]
        if hidden
        else [helper.make_node("BatchNormalization", ["input", "gamma", "beta", "mean", "variance"], ["output"])]
    )
    weights = [_tensor("epsilon", 1, value=1e-5), *(_tensor(n, size) for n in ("gamma", "beta", "mean", "variance"))]
    shape = ("batch", size)
    graph = helper.make_graph(nodes, "g", [_float_info("input", *shape)], [_float_info("output", *shape)], weights)
    stripped = strip_weights(helper.make_model(graph))
    entries = {e.key: e.value for e in _initializers(stripped)["variance"].external_data}
    assert entries["role"] == "variance"
    filled = {name: numpy_helper.to_array(t) for name, t in _initializers(fill_weights(stripped)).items()}
    assert filled["variance"].min() >= 0.5
    assert filled["variance"].std() > 0.1
    if not hidden:
        assert filled["gamma"].mean() == pytest.approx(1, abs=0.05)
        assert abs(filled["mean"]).max() < 1


def test_fill_refuses_integer_weights_without_values() -> None:
    model = network()
    tensor = _initializers(model)["flat"]
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    with pytest.raises(NetworkError, match="'flat'"):
        fill_weights(model)


def test_bind_batch_sets_every_symbolic_batch_axis() -> None:
    bound = bind_batch(network(), 4)
    assert [d.dim_value for d in bound.graph.input[0].type.tensor_type.shape.dim] == [4, 16, SIDE, SIDE]
    assert bound.graph.output[0].type.tensor_type.shape.dim[0].dim_value == 4
    assert bind_batch(bound, 4) == bound
    with pytest.raises(NetworkError, match="fixed to batch size 4"):
        bind_batch(bound, 2)


@pytest.mark.parametrize("batch_size", [1, 4])
def test_filled_network_runs_in_both_precisions(batch_size: int) -> None:
    stripped = strip_weights(network())
    single = _run(fill_weights(stripped), np.float32, batch_size)
    half = _run(fill_weights(to_fp16(stripped)), np.float16, batch_size)
    assert single.shape == half.shape == (batch_size, CLASSES)
    assert half.dtype == np.float16
    assert single.std() > 0.01
    np.testing.assert_allclose(half, single, atol=0.02)


def test_fp16_graph_is_native() -> None:
    half = to_fp16(strip_weights(network()))
    onnx.checker.check_model(fill_weights(half), full_check=True)
    initializers = _initializers(half)
    assert initializers["kernel"].data_type == TensorProto.FLOAT16
    assert is_external(initializers["kernel"])
    assert initializers["gamma"].data_type == TensorProto.FLOAT16
    assert initializers["scales"].data_type == TensorProto.FLOAT
    types = [value.type.tensor_type.elem_type for value in (*half.graph.input, *half.graph.output)]
    assert types == [TensorProto.FLOAT16, TensorProto.FLOAT16]
    epsilon = next(node for node in half.graph.node if node.op_type == "Constant")
    assert numpy_helper.to_array(epsilon.attribute[0].t) > 0


def test_operators_without_fp16_run_between_casts() -> None:
    nodes = [helper.make_node("CumSum", ["input", "axis"], ["sum"]), helper.make_node("Relu", ["sum"], ["output"])]
    axis = numpy_helper.from_array(np.array(1, np.int64), "axis")
    shape = ("batch", 4)
    graph = helper.make_graph(nodes, "g", [_float_info("input", *shape)], [_float_info("output", *shape)], [axis])
    half = to_fp16(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8))
    assert [node.op_type for node in half.graph.node] == ["Cast", "CumSum", "Cast", "Relu"]
    onnx.checker.check_model(half, full_check=True)

from collections import Counter

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from perfpred.weights import fill_weights, strip_weights
from perfpred.zoo.simplify import simplify

TOKENS, WIDTH, HEADS = 6, 8, 2


def _constant(name: str, *values: int) -> TensorProto:
    return numpy_helper.from_array(np.array(values, np.int64), name)


def _model(nodes: list[onnx.NodeProto], weights: list[TensorProto], output: tuple[int | str, ...]) -> onnx.ModelProto:
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, ("batch", TOKENS, WIDTH))],
        [helper.make_tensor_value_info("output", TensorProto.FLOAT, output)],
        weights,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def _operators(model: onnx.ModelProto) -> Counter[str]:
    return Counter(node.op_type for node in model.graph.node)


def _run(model: onnx.ModelProto, batch_size: int) -> np.ndarray:
    ort = pytest.importorskip("onnxruntime")
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    values = np.random.default_rng(0).standard_normal((batch_size, TOKENS, WIDTH), dtype=np.float32)
    (output,) = session.run(None, {"input": values})
    return output


def heads() -> onnx.ModelProto:
    """Splits the width into heads the way a traced `view(batch, tokens, heads, -1)` does."""
    nodes = [
        helper.make_node("Shape", ["input"], ["shape"]),
        helper.make_node("Gather", ["shape", "zero"], ["batch"], axis=0),
        helper.make_node("Gather", ["shape", "one"], ["tokens"], axis=0),
        helper.make_node("Identity", ["heads"], ["same_heads"]),
        helper.make_node("Concat", ["batch", "tokens", "same_heads", "rest"], ["target"], axis=0),
        helper.make_node("Reshape", ["input", "target"], ["output"]),
    ]
    weights = [_constant("zero", 0), _constant("one", 1), _constant("heads", HEADS), _constant("rest", -1)]
    return _model(nodes, weights, ("batch", TOKENS, HEADS, WIDTH // HEADS))


def test_reshape_keeps_only_the_batch_open() -> None:
    simple = simplify(heads())
    assert _operators(simple) == {"Reshape": 1}
    (target,) = simple.graph.initializer
    assert numpy_helper.to_array(target).tolist() == [-1, TOKENS, HEADS, WIDTH // HEADS]


@pytest.mark.parametrize("batch_size", [1, 5])
def test_result_is_unchanged(batch_size: int) -> None:
    np.testing.assert_array_equal(_run(simplify(heads()), batch_size), _run(heads(), batch_size))


def class_token() -> onnx.ModelProto:
    nodes = [
        helper.make_node("Shape", ["input"], ["shape"]),
        helper.make_node("Gather", ["shape", "zero"], ["batch"], axis=0),
        helper.make_node("Concat", ["batch", "minus", "minus"], ["wanted"], axis=0),
        helper.make_node("ConstantOfShape", ["three"], ["ones"], value=_constant("", 1)),
        helper.make_node("Mul", ["ones", "minus"], ["minuses"]),
        helper.make_node("Equal", ["wanted", "minuses"], ["kept"]),
        helper.make_node("Where", ["kept", "ones", "wanted"], ["target"]),
        helper.make_node("Expand", ["token", "target"], ["tokens"]),
        helper.make_node("Concat", ["tokens", "input"], ["output"], axis=1),
    ]
    token = numpy_helper.from_array(np.ones((1, 1, WIDTH), np.float32), "token")
    weights = [_constant("zero", 0), _constant("minus", -1), _constant("three", 3), token]
    return _model(nodes, weights, ("batch", TOKENS + 1, WIDTH))


def test_batch_size_is_read_from_the_input_where_needed() -> None:
    simple = simplify(class_token())
    assert _operators(simple) == {"Shape": 1, "Gather": 1, "Concat": 2, "Expand": 1}
    assert simple.graph.node[0].input[0] == "input"
    np.testing.assert_array_equal(_run(simple, 3), _run(class_token(), 3))


def standardised() -> onnx.ModelProto:
    """A dense layer whose weight is standardised in the graph."""
    weight = numpy_helper.from_array(np.ones((WIDTH, 100), np.float32), "weight")
    nodes = [
        helper.make_node("ReduceMean", ["weight"], ["mean"], axes=[0]),
        helper.make_node("Sub", ["weight", "mean"], ["centred"]),
        helper.make_node("MatMul", ["input", "centred"], ["output"]),
    ]
    return _model(nodes, [weight], ("batch", TOKENS, 100))


def test_computation_on_weights_alone_becomes_a_weight() -> None:
    simple = strip_weights(simplify(strip_weights(standardised())))
    assert _operators(simple) == {"MatMul": 1}
    (weight,) = simple.graph.initializer
    assert tuple(weight.dims) == (WIDTH, 100)
    filled = numpy_helper.to_array(fill_weights(simple).graph.initializer[0])
    assert filled.std() == pytest.approx(0.8 * WIDTH**-0.5, rel=0.1)


def test_batch_normalisation_that_standardises_a_weight_becomes_a_weight() -> None:
    weights = [
        numpy_helper.from_array(np.ones((1, WIDTH, 100), np.float32), "weight"),
        *(numpy_helper.from_array(np.full(WIDTH, v, np.float32), n) for n, v in zip("gbmv", (1, 0, 0, 1), strict=True)),
    ]
    norm = helper.make_node("BatchNormalization", ["weight", *"gbmv"], ["centred", "mean", "variance"], training_mode=1)
    product = helper.make_node("MatMul", ["input", "centred"], ["output"])
    simple = simplify(strip_weights(_model([norm, product], weights, ("batch", TOKENS, 100))))
    assert _operators(simple) == {"MatMul": 1}
    assert [tuple(weight.dims) for weight in simple.graph.initializer] == [(1, WIDTH, 100)]

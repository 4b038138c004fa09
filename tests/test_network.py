"""From file to static shapes: what binds, what folds away, and what is refused in one line."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from made import chain
from onnx import TensorProto, helper, numpy_helper

from perfpred.errors import NetworkError, PerfpredError, UnboundDimensionError, UnsupportedOperatorError, UsageError
from perfpred.network import load_network

FLOAT, INT64 = TensorProto.FLOAT, TensorProto.INT64
Shape = list[int | str | None]


def model(
    nodes: list[onnx.NodeProto],
    shape: Shape | None = None,
    weights: list[onnx.TensorProto] | None = None,
    *,
    opset: int = 17,
    output: str = "y",
) -> onnx.ModelProto:
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", FLOAT, shape if shape is not None else [1, 4])],
        [helper.make_tensor_value_info(output, FLOAT, None)],
        weights or [],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=9)


def node(op: str, inputs: list[str], outputs: list[str], **attributes: object) -> onnx.NodeProto:
    return helper.make_node(op, inputs, outputs, name=f"{op.lower()}_{outputs[0]}", **attributes)


def constant(name: str, values: object, dtype: type = np.int64) -> onnx.TensorProto:
    return numpy_helper.from_array(np.array(values, dtype), name)


def test_shapes_of_a_plain_chain() -> None:
    made = load_network(chain([8, 16], 20), batch_size=3)
    assert [n.op_type for n in made.nodes] == ["Conv", "Relu", "Conv", "Relu"]
    assert made.nodes[-1].outputs[0].shape == (3, 16, 20, 20)
    assert (made.batch_size, made.opset, made.precision) == (3, 17, "fp32")
    assert made.parameters == 8 * 3 * 9 + 16 * 8 * 9


def test_batch_defaults_to_one_and_full_shapes_win() -> None:
    assert load_network(chain([8], 20)).batch_size == 1
    made = load_network(chain([8], 20), batch_size=2, inputs={"x": [5, 3, 32, 24]})
    assert made.outputs[0].shape == (5, 8, 32, 24)


def test_a_fixed_batch_is_kept_or_changed() -> None:
    fixed = model([node("Relu", ["x"], ["y"])], [1, 3, 8, 8])
    assert load_network(fixed).outputs[0].shape == (1, 3, 8, 8)
    assert load_network(fixed, batch_size=4).outputs[0].shape == (4, 3, 8, 8)


def test_files_with_absent_weights_load(tmp_path: Path) -> None:
    onnx.save(chain([8, 8], 16), tmp_path / "net.onnx")
    made = load_network(tmp_path / "net.onnx")
    assert made.name == "net.onnx"
    assert len(made.nodes) == 4


def test_shape_arithmetic_folds_away() -> None:
    """Flatten as exporters write it: Shape, Gather, Unsqueeze, Concat, Reshape."""
    nodes = [
        node("Shape", ["x"], ["s"]),
        node("Gather", ["s", "zero"], ["n"], axis=0),
        node("Unsqueeze", ["n", "axes"], ["n1"]),
        node("Concat", ["n1", "rest"], ["to"], axis=0),
        node("Reshape", ["x", "to"], ["y"]),
    ]
    weights = [constant("zero", 0), constant("axes", [0]), constant("rest", [-1])]
    made = load_network(model(nodes, ["n", 3, 4, 5], weights), batch_size=2)
    assert [n.op_type for n in made.nodes] == ["Reshape"]
    assert made.outputs[0].shape == (2, 60)


@pytest.mark.parametrize("opset", [9, 11, 13, 18, 21])
def test_opsets(opset: int) -> None:
    nodes = [node("Relu", ["x"], ["r"]), node("Softmax", ["r"], ["y"], axis=1)]
    assert load_network(model(nodes, [2, 7], opset=opset)).outputs[0].shape == (2, 7)


def test_nodes_without_names_get_unique_ones() -> None:
    nodes = [helper.make_node("Relu", ["x"], ["a"]), helper.make_node("Relu", ["a"], ["y"])]
    names = [n.name for n in load_network(model(nodes)).nodes]
    assert len(set(names)) == 2
    assert all(names)


def test_quantised_graphs_parse() -> None:
    weights = [constant("scale", 0.1, np.float32), constant("zero", 0, np.int8)]
    nodes = [
        node("QuantizeLinear", ["x", "scale", "zero"], ["q"]),
        node("DequantizeLinear", ["q", "scale", "zero"], ["d"]),
        node("Relu", ["d"], ["y"]),
    ]
    made = load_network(model(nodes, [1, 3, 8, 8], weights))
    assert made.quantized
    assert made.nodes[0].outputs[0].dtype == "int8"


def test_another_precision_changes_types_not_shapes() -> None:
    made = load_network(chain([8], 16))
    half = made.with_precision("fp16")
    assert half.outputs[0].dtype == "float16"
    assert half.outputs[0].shape == made.outputs[0].shape
    assert made.outputs[0].dtype == "float32"


def test_constant_branches_fold_and_others_are_refused() -> None:
    then, other = (
        helper.make_graph([node(op, ["x"], [name])], name, [], [helper.make_tensor_value_info(name, FLOAT, None)])
        for op, name in (("Relu", "t"), ("Sigmoid", "e"))
    )
    fixed = model(
        [node("If", ["yes"], ["y"], then_branch=then, else_branch=other)], weights=[constant("yes", True, np.bool_)]
    )
    assert [n.op_type for n in load_network(fixed).nodes] == ["Relu"]
    nodes = [
        node("ReduceSum", ["x"], ["sum"], keepdims=0),
        node("Cast", ["sum"], ["b"], to=TensorProto.BOOL),
        node("If", ["b"], ["y"], then_branch=then, else_branch=other),
    ]
    with pytest.raises(UnsupportedOperatorError, match="If"):
        load_network(model(nodes))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "the file is empty"),
        (
            b"# a text file, not a network\n" * 20,
            "not an ONNX file, or a truncated one|holds no ONNX graph|not a valid",
        ),
        (
            chain([8, 8], 16).SerializeToString()[:150],
            "not an ONNX file, or a truncated one|holds no ONNX graph|not a valid",
        ),
    ],
)
def test_broken_files(tmp_path: Path, content: bytes, message: str) -> None:
    file = tmp_path / "net.onnx"
    file.write_bytes(content)
    with pytest.raises(NetworkError, match=message) as refused:
        load_network(file)
    assert "\n" not in str(refused.value)


def test_missing_files_and_folders(tmp_path: Path) -> None:
    with pytest.raises(NetworkError, match="can't be read"):
        load_network(tmp_path / "none.onnx")
    with pytest.raises(NetworkError, match="is a folder"):
        load_network(tmp_path)


@pytest.mark.parametrize(
    ("made", "how", "error", "message"),
    [
        (model([node("Relu", ["x"], ["y"])], ["n", 3, "height", 8]), {}, UnboundDimensionError, "height.*--input"),
        (model([node("Relu", ["x"], ["y"])], [1, None]), {}, UnboundDimensionError, "--input"),
        (model([node("Relu", ["x"], ["y"])], [1, 0, 4]), {}, NetworkError, "0"),
        (model([node("Relu", ["x"], ["y"])]), {"batch_size": -2}, UsageError, "--batch-size 1 or more"),
        (model([node("Relu", ["x"], ["y"])]), {"inputs": {"z": [1, 4]}}, UsageError, "'?z'?"),
        (model([node("Relu", ["x"], ["y"])]), {"inputs": {"x": [1, 4, 4]}}, UsageError, "x"),
        (model([node("Frobnicate", ["x"], ["y"])]), {}, UnsupportedOperatorError, "Frobnicate"),
        (model([node("MatMul", ["x", "w"], ["y"])], [1, 4], [constant("w", np.ones((5, 2)), np.float32)]), {}, NetworkError, "matmul_y"),
        (model([node("Add", ["x", "b"], ["a"]), node("Relu", ["a"], ["b"])], output="b"), {}, NetworkError, "cycle"),
    ],
    ids=["symbol", "unnamed", "zero", "negative", "unknown-input", "rank", "operator", "mismatch", "cycle"],
)  # fmt: skip
def test_refusals_name_the_fix(
    made: onnx.ModelProto, how: dict[str, object], error: type[PerfpredError], message: str
) -> None:
    with pytest.raises(error, match=message) as refused:
        load_network(made, **how)  # type: ignore[arg-type]
    assert "\n" not in str(refused.value)


def test_tensors_link_nodes() -> None:
    made = load_network(chain([8, 8], 16))
    assert made.producer("c1") is not None
    assert [n.name for n in made.consumers("r0")] == ["conv1"]
    assert made.producer("x") is None
    assert made.output_names == {"r1"}

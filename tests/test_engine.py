"""Parsers of engine recordings, on small recordings of our own in the documented schemas."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from perfpred.engine import (
    EngineLayer,
    dtype_from_words,
    join_times,
    layers_from_build_log,
    layers_from_engine,
    layers_from_inspector,
    partition_from_engine,
    read_engine,
)
from perfpred.errors import EngineFormatError
from perfpred.layer import Node, TensorSpec
from perfpred.layer_names import is_reformat, nodes_from_metadata, nodes_from_name, note_from_metadata
from perfpred.network import Network

US, RS = "\x1f", "\x1e"


def classic(name: str, layer_type: str, **more: Any) -> dict[str, Any]:
    tensor = {"Name": "t", "Location": "Device", "Dimensions": [1, 8, 4, 4], "Format/Datatype": "Row major linear FP16"}
    return {"Name": name, "LayerType": layer_type, "Inputs": [tensor], "Outputs": [tensor], "TacticName": "k", **more}


def log(name: str, layer_type: str, metadata: str, *, inputs: str = "x", event: str = "") -> str:
    def tensor(t: str) -> str:
        return (
            f"{{ Name: {t}, Dimensions: [1,8,4,4], Strides: [128,1,32,8], StrideOrder: [3,0,2,1], Datatype: Half, "
            "Format: (NHWC) Channel major format }"
        )

    reads = ", ".join(tensor(t) for t in inputs.split())
    return (
        f"Name: {name}, LayerType: {layer_type}, Inputs: [ {reads}], Constants: [ {tensor('w')}], "
        f"Outputs: [ {tensor('y')}], TacticName: , StreamId: 0{event}, Metadata: {metadata}"
    )


def build_log(*lines: str) -> str:
    return "Layers:\n" + "\n".join(lines) + "\n\nI/O Tensors:\n Name: x\n\nEngine Metadata:\n Multi-Device: Disabled"


def small_network() -> Network:
    def spec(name: str, constant: bool = False) -> TensorSpec:
        return TensorSpec(name=name, shape=(1, 8, 4, 4), dtype="float16", constant=constant)

    w = TensorSpec(name="w", shape=(8, 8, 1, 1), dtype="float16", constant=True)
    nodes = (
        Node(name="Conv_0", op_type="Conv", inputs=(spec("x"), w), outputs=(spec("a"),)),
        Node(name="Relu_1", op_type="Relu", inputs=(spec("a"),), outputs=(spec("b"),)),
        Node(name="Sigmoid_2", op_type="Sigmoid", inputs=(spec("b"),), outputs=(spec("c"),)),
        Node(name="Mul_3", op_type="Mul", inputs=(spec("b"), spec("c")), outputs=(spec("y"),)),
    )
    return Network(name="small", nodes=nodes, inputs=(spec("x"),), outputs=(spec("y"),), opset=17, batch_size=1)


@pytest.mark.parametrize(
    ("name", "nodes"),
    [
        ("Conv_0 + Relu_1", ("Conv_0", "Relu_1")),
        ("/m/cv1/Conv || /m/cv2/Conv", ("/m/cv1/Conv", "/m/cv2/Conv")),
        ("PWN(PWN(/m/act/Sigmoid), /m/act/Mul)", ("/m/act/Sigmoid", "/m/act/Mul")),
        ("PWN(PWN(Sigmoid_2), Mul_3) + Add_4", ("Sigmoid_2", "Mul_3", "Add_4")),
        ("w.weight + QuantizeLinear_8_quantize_scale_node + Conv_12", ("w.weight", "QuantizeLinear_8", "Conv_12")),
        ("Gemm_1 + (Unnamed Layer* 25) [ElementWise] + Relu_2", ("Gemm_1", "Relu_2")),
        ("Flatten_0 + reshape_before_Gemm_1", ("Flatten_0", "Gemm_1")),
        ("{ForeignNode[/a/MatMul...(Unnamed Layer* 7) [Shuffle]]}", ("/a/MatMul", "(Unnamed Layer* 7)")),
        ("Reformatting CopyNode for Input Tensor 0 to Conv_0 + Relu_1", ()),
        ("A(1) + PWN(B(2))", ("A(1)", "B(2)")),
    ],
)
def test_nodes_are_read_from_the_parts_of_a_name(name: str, nodes: tuple[str, ...]) -> None:
    assert nodes_from_name(name) == nodes


def test_metadata_accepts_both_separators_and_keeps_what_follows_as_a_note() -> None:
    text = f"[ONNX Layer: a]{RS}[ONNX Layer: b]{US}[ONNX Layer: a]__gemm_from_conv1x1"
    assert nodes_from_metadata(text) == ("a", "b")
    assert note_from_metadata(text) == "__gemm_from_conv1x1"
    assert nodes_from_metadata("[ONNX Layer: [CONVOLUTION]-[aten]-[/f/0]]") == ("[CONVOLUTION]-[aten]-[/f/0]",)
    assert nodes_from_metadata("") == ()


@pytest.mark.parametrize(
    ("words", "dtype"),
    [
        ("Channel major FP16 format where channel % 8 == 0", "float16"),
        ("Thirty-two wide channel vectorized row major Int8 format", "int8"),
        ("Row major linear BF16", "bfloat16"),
        ("Float", "float32"),
        ("UInt8", "uint8"),
        ("N/A due to dynamic shapes", "unknown"),
    ],
)
def test_dtype_is_found_in_the_builders_words(words: str, dtype: str) -> None:
    assert dtype_from_words(words) == dtype


def test_classic_schema_with_and_without_metadata() -> None:
    text = json.dumps(
        {
            "Layers": [
                classic("Reformatting CopyNode for Input Tensor 0 to Conv_0 + Relu_1", "Reformat", Origin="REFORMAT"),
                classic("Conv_0 + Relu_1", "CaskConvolution", Kernel=[1, 1]),
                classic("mul", "kgen", Metadata=f"[ONNX Layer: Sigmoid_2]{RS}[ONNX Layer: Mul_3]", StreamId=1),
                classic("NoOp_1", "NoOp"),
            ],
            "Bindings": ["x", "y"],
        }
    )
    copy, conv, mul, noop = layers_from_inspector(text)
    assert (copy.role, copy.onnx_nodes) == ("reformat", ())
    assert conv.onnx_nodes == ("Conv_0", "Relu_1")
    assert conv.attributes == {"Kernel": [1, 1]}
    assert conv.inputs[0].dtype == "float16"
    assert (mul.onnx_nodes, mul.stream, noop.role) == (("Sigmoid_2", "Mul_3"), 1, "noop")


def test_newer_schema_with_tensor_objects_and_control_characters() -> None:
    tensor = {"Name": "x", "Dimensions": [-1, 8], "Strides": [8, 1], "Datatype": "Half", "Format": "Row major"}
    record = {
        "Name": "c",
        "LayerType": "correlation",
        "Inputs": [tensor],
        "Constants": [],
        "Outputs": [tensor],
        "TacticName": "t",
        "StreamId": 0,
        "Metadata": "[ONNX Layer: a]SEP[ONNX Layer: b]",
    }
    text = json.dumps({"Layers": [record], "I/O Tensors": [], "Engine Metadata": {}}).replace("SEP", US)
    (layer,) = layers_from_inspector(text)
    assert layer.onnx_nodes == ("a", "b")
    assert layer.inputs[0].shape == (-1, 8)
    assert layer.inputs[0].spec.shape == (1, 8)


def test_quantisers_of_their_own_are_work_not_copies() -> None:
    (layer,) = layers_from_inspector(json.dumps({"Layers": [classic("QuantizeLinear_2", "Reformat", Origin="QDQ")]}))
    assert layer.role == "compute"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"Layers": [', "net.json: line 1, column 13: expected JSON"),
        ("[]", "expected an object with a list `Layers`"),
        ('{"Layers": []}', "`Layers` is empty"),
        ('{"Layers": ["Conv_0", "Relu_1"]}', "kept layer names only; build it again with detailed profiling verbosity"),
        ('{"Layers": [{"Name": "a"}]}', "net.json: layer 0: expected `LayerType` of type str, found nothing"),
        (
            '{"Layers": [{"Name": "a", "LayerType": "t", "Inputs": 3}]}',
            r"layer 0 \('a'\): expected `Inputs` of type list",
        ),
        (
            '{"Layers": [{"Name": "a", "LayerType": "t", "Inputs": [{"Name": "x"}], "Outputs": []}]}',
            r"layer 0 \('a'\) Inputs 'x': expected `Dimensions` of type list, found nothing",
        ),
    ],
)
def test_malformed_inspector_files_name_file_record_and_expectation(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "net.json"
    path.write_text(text)
    with pytest.raises(EngineFormatError, match=message):
        read_engine(path)


def test_missing_file_is_an_engine_error(tmp_path: Path) -> None:
    with pytest.raises(EngineFormatError, match="can't be read"):
        read_engine(tmp_path / "none.json")


def test_build_log_keeps_every_tensor_and_the_events() -> None:
    conv, wait = layers_from_build_log(
        "[V] noise\n"
        + build_log(
            log("conv_myl0_1", "correlation", f"[ONNX Layer: a]{US}[ONNX Layer: b]", inputs="x r"),
            "Name: w_myl0_2, LayerType: wait, Inputs: [], Constants: [], Outputs: [], TacticName: , StreamId: 1, "
            "EventId: 1, Metadata: ",
        )
    )
    assert [t.name for t in conv.inputs] == ["x", "r"]
    assert conv.outputs[0].shape == (1, 8, 4, 4)
    assert conv.onnx_nodes == ("a", "b")
    assert (wait.role, wait.stream, wait.onnx_nodes) == ("sync", 1, ())


def test_build_log_of_a_loop_keeps_its_jumps() -> None:
    jump = log("jump", "cjmp", "").replace("StreamId: 0,", "StreamId: 0, JumpTargetThen: a_0, JumpTargetElse: b_1,")
    (layer,) = layers_from_build_log(build_log(jump))
    assert layer.role == "sync"
    assert layer.attributes["JumpTargetElse"] == "b_1"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("nothing here", "expected a `Layers:` section"),
        ("Layers:\nName: a, LayerType: kgen, Inputs: [ { Name: x, Dim", "layer 0: expected `Name: "),
        ("Layers:\n" + log("a", "kgen", ""), "layer 1: expected an empty line and `I/O Tensors:`"),
        (
            build_log(log("a", "kgen", "").replace("Strides: [128,1,32,8]", "Swizzle: [1]")),
            "expected 3 tensors, read 0",
        ),
    ],
)
def test_malformed_build_logs_say_what_is_missing(text: str, message: str) -> None:
    with pytest.raises(EngineFormatError, match=message):
        layers_from_build_log(text)


def layer(name: str, layer_type: str = "kgen") -> EngineLayer:
    return EngineLayer(name=name, layer_type=layer_type)


def test_times_are_joined_by_name_and_repeats_by_occurrence() -> None:
    layers = (layer("b"), layer("a"), layer("b"), layer("s", "signal"))
    joined = join_times(layers, [("a", 1.0), ("b", 2.0), ("b", 3.0)])
    assert [one.time_s for one in joined] == [2.0, 1.0, 3.0, 0.0]


@pytest.mark.parametrize(
    ("times", "message"),
    [
        ([("a", 1.0)], "expected 1 rows named 'b', found 0"),
        ([("a", 1.0), ("a", 1.0), ("b", 1.0)], "expected 1 rows named 'a', found 2"),
        ([("a", 1.0), ("b", 1.0), ("c", 1.0)], "row 'c' names no layer"),
    ],
)
def test_times_of_another_engine_are_refused(times: list[tuple[str, float]], message: str) -> None:
    with pytest.raises(EngineFormatError, match=message):
        join_times((layer("a"), layer("b")), times)


def test_engine_layers_become_records_with_work_from_the_nodes() -> None:
    engine = layers_from_build_log(
        build_log(
            log("__myl_Tran_myl0_0", "kgen", "[ONNX Layer: Conv_0]"),
            log("conv", "correlation", f"[ONNX Layer: Conv_0]{US}[ONNX Layer: Relu_1]"),
            log("silu", "kgen", f"[ONNX Layer: Sigmoid_2]{US}[ONNX Layer: Mul_3]{US}[ONNX Layer: gone]"),
        )
    )
    copy, conv, silu = layers_from_engine(engine, small_network())
    assert (copy.kind, copy.onnx_nodes) == ("reformat", ())
    assert copy.dram_bytes == 2 * 128 * 2
    assert (conv.kind, conv.onnx_nodes, conv.rule) == ("conv", ("Conv_0", "Relu_1"), "correlation")
    assert [t.name for t in conv.outputs] == ["b"]
    assert silu.onnx_nodes == ("Sigmoid_2", "Mul_3")


def test_a_region_named_by_its_ends_owns_what_no_other_layer_names() -> None:
    engine = layers_from_inspector(
        json.dumps(
            {"Layers": [classic("Conv_0", "CaskConvolution"), classic("{ForeignNode[Relu_1...Mul_3]}", "Myelin")]}
        )
    )
    (_, conv), (_, region) = partition_from_engine(engine, small_network())
    assert [n.name for n in conv] == ["Conv_0"]
    assert [n.name for n in region] == ["Relu_1", "Sigmoid_2", "Mul_3"]


def test_a_layer_that_reads_nothing_does_not_stand_for_a_node() -> None:
    constant = log("fill", "kgen", "[ONNX Layer: Relu_1]", inputs="")
    engine = layers_from_build_log(build_log(constant, log("relu", "kgen", "[ONNX Layer: Relu_1]")))
    (_, fill), (_, relu) = partition_from_engine(engine, small_network())
    assert (fill, [n.name for n in relu]) == ((), ["Relu_1"])


def test_reformat_names() -> None:
    assert is_reformat("Reformatting CopyNode for Output Tensor 0 to Gemm_48")
    assert not is_reformat("Conv_0")

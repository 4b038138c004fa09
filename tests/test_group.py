"""Groups of nodes become layers with the anchor's kind, dtype and sizes."""

from __future__ import annotations

from typing import Any

import pytest

from perfpred.group import conv_layer, layer_from_nodes, node_geometry
from perfpred.layer import Node, TensorSpec


def spec(name: str, *shape: int, dtype: str = "float16", constant: bool = False) -> TensorSpec:
    return TensorSpec(name=name, shape=shape, dtype=dtype, constant=constant)


def node(name: str, op_type: str, inputs: tuple[TensorSpec, ...], output: TensorSpec, **attributes: Any) -> Node:
    return Node(name=name, op_type=op_type, inputs=inputs, outputs=(output,), attributes=attributes)


def test_conv_add_relu_is_one_convolution() -> None:
    x, w, y = spec("x", 2, 8, 16, 20), spec("w", 12, 4, 3, 3, constant=True), spec("y", 2, 12, 8, 10)
    shortcut, total, out = (spec(n, 2, 12, 8, 10) for n in ("r", "t", "o"))
    nodes = [
        node("conv", "Conv", (x, w), y, group=2, strides=(2, 2), dilations=(1, 1)),
        node("add", "Add", (y, shortcut), total),
        node("relu", "Relu", (total,), out),
    ]
    layer = layer_from_nodes(nodes, outputs={"o"}, rule="conv_add_act")
    assert (layer.kind, layer.dtype, layer.rule) == ("conv", "float16", "conv_add_act")
    assert layer.onnx_nodes == ("conv", "add", "relu")
    assert layer.name == "conv + add + relu"
    assert [t.name for t in layer.inputs] == ["x", "r"]
    assert [t.name for t in layer.outputs] == ["o"]
    assert layer.geometry == {
        **{"m": 2 * 8 * 10, "n": 6, "k": 4 * 9, "groups": 2, "batch": 2, "c": 8, "h": 16, "w": 20},
        **{"k_out": 12, "p": 8, "q": 10, "r": 3, "s": 3, "stride": 2, "dilation": 1},
    }
    g = layer.geometry
    assert layer.flops == 2 * g["m"] * g["n"] * g["k"] * g["groups"] + 2 * out.elements
    assert layer.dram_bytes == 2 * (x.elements + w.elements + 2 * out.elements)


def test_one_and_three_dimensional_convolutions() -> None:
    one = node("c1", "Conv", (spec("x", 1, 4, 100), spec("w", 8, 4, 5, constant=True)), spec("y", 1, 8, 96))
    g = node_geometry(one)
    assert (g["h"], g["w"], g["r"], g["s"], g["p"], g["q"]) == (1, 100, 1, 5, 1, 96)
    x, w = spec("x", 1, 3, 8, 16, 16), spec("w", 8, 3, 3, 5, 5, constant=True)
    g = node_geometry(node("c3", "Conv", (x, w), spec("y", 1, 8, 6, 12, 12)))
    assert (g["d"], g["o"], g["t"], g["r"], g["m"], g["k"]) == (8, 6, 3, 5, 6 * 12 * 12, 3 * 3 * 25)


def test_deconvolution_is_a_product_over_input_pixels() -> None:
    x, w, y = spec("x", 2, 16, 8, 8), spec("w", 16, 4, 2, 2, constant=True), spec("y", 2, 4, 16, 16)
    layer = layer_from_nodes([node("up", "ConvTranspose", (x, w), y, strides=(2, 2))], outputs={"y"})
    g = layer.geometry
    assert layer.kind == "deconv"
    assert layer.flops == 2 * g["m"] * g["n"] * g["k"]


def test_softmax_between_products_of_activations_is_attention() -> None:
    batch, heads, length, size = 2, 4, 50, 16
    q, k, v = (spec(n, batch, heads, length, size) for n in "qkv")
    kt = spec("kt", batch, heads, size, length)
    scores, weights = (spec(n, batch, heads, length, length) for n in ("s", "p"))
    nodes = [
        node("t", "Transpose", (k,), kt, perm=(0, 1, 3, 2)),
        node("qk", "MatMul", (q, kt), scores),
        node("sm", "Softmax", (scores,), weights),
        node("pv", "MatMul", (weights, v), spec("y", batch, heads, length, size)),
    ]
    layer = layer_from_nodes(nodes, outputs={"y"})
    assert layer.kind == "attention"
    assert layer.geometry == {"m": 50, "n": 50, "k": 16, "groups": 8, "batch": 2, "heads": 4}
    assert layer.dram_bytes == 4 * q.nbytes


def test_int8_is_seen_through_quantisation_nodes() -> None:
    scale = spec("s", dtype="float32", constant=True)
    x8, x = spec("x8", 1, 8, 4, 4, dtype="int8"), spec("x", 1, 8, 4, 4)
    w8, w = spec("w8", 8, 8, 1, 1, dtype="int8", constant=True), spec("w", 8, 8, 1, 1)
    y = spec("y", 1, 8, 4, 4)
    weight_nodes = [node("dw", "DequantizeLinear", (w8, scale), w)]
    conv = node("conv", "Conv", (x, w), y)
    full = layer_from_nodes([node("dx", "DequantizeLinear", (x8, scale), x), *weight_nodes, conv], outputs={"y"})
    weight_only = layer_from_nodes([*weight_nodes, conv], outputs={"y"})
    assert (full.dtype, weight_only.dtype) == ("int8", "float16")
    assert full.weight_bytes == weight_only.weight_bytes == 8 * 8 + 4


@pytest.mark.parametrize(
    ("op_type", "shape", "out", "attributes", "expected"),
    [
        ("Softmax", (2, 5, 7), (2, 5, 7), {"axis": -1}, {"m": 10, "n": 7}),
        ("LayerNormalization", (2, 5, 7), (2, 5, 7), {"axis": 1}, {"m": 2, "n": 35}),
        ("ReduceMean", (2, 5, 7, 3), (2, 5, 1, 1), {}, {"m": 10, "n": 21, "batch": 2, "c": 5}),
        ("MaxPool", (2, 5, 8, 8), (2, 5, 4, 4), {"kernel_shape": (3, 3), "strides": (2, 2)}, {"p": 4, "r": 3}),
        ("GlobalAveragePool", (2, 5, 8, 8), (2, 5, 1, 1), {}, {"r": 8, "s": 8, "p": 1}),
        ("Relu", (2, 5, 8, 9), (2, 5, 8, 9), {}, {"batch": 2, "c": 5, "h": 8, "w": 9}),
        ("Relu", (5,), (5,), {}, {}),
    ],
)
def test_sizes_of_other_kinds(
    op_type: str, shape: tuple[int, ...], out: tuple[int, ...], attributes: Any, expected: dict[str, int]
) -> None:
    geometry = node_geometry(node("n", op_type, (spec("x", *shape),), spec("y", *out), **attributes))
    assert expected.items() <= geometry.items()
    assert bool(expected) == bool(geometry)


def test_recurrent_geometry() -> None:
    x, w, r = spec("x", 11, 2, 5), spec("w", 1, 32, 5, constant=True), spec("r", 1, 32, 8, constant=True)
    layer = layer_from_nodes([node("l", "LSTM", (x, w, r), spec("y", 11, 1, 2, 8), hidden_size=8)], outputs={"y"})
    assert layer.geometry == {"m": 2, "n": 32, "k": 13, "groups": 1, "batch": 2, "steps": 11}


def test_a_pool_outranks_the_quantisation_around_it() -> None:
    scale = spec("s", dtype="float32", constant=True)
    x8, x = spec("x8", 1, 8, 4, 4, dtype="int8"), spec("x", 1, 8, 4, 4)
    nodes = [
        node("dq", "DequantizeLinear", (x8, scale), x),
        node("pool", "MaxPool", (x,), spec("y", 1, 8, 2, 2), kernel_shape=(2, 2)),
    ]
    layer = layer_from_nodes(nodes, outputs={"y"}, kind="pool", name="p")
    assert (layer.kind, layer.dtype, layer.name) == ("pool", "int8", "p")
    assert layer_from_nodes(nodes, outputs={"y"}).kind == "pool"


def test_table_convolution_equals_the_closed_form() -> None:
    layer = conv_layer(batch=4, c=32, h=56, w=57, k_out=64, r=3, stride=2, groups=1, residual_add=True)
    p, q = 28, 29
    assert layer.flops == 2 * 4 * 64 * p * q * 32 * 9 + 4 * 64 * p * q
    assert layer.dram_bytes == 2 * (4 * 32 * 56 * 57 + 2 * 4 * 64 * p * q + 64 * 32 * 9 + 64)
    assert conv_layer(c=32, h=8, w=8, k_out=32, r=3, groups=32).kind == "depthwise_conv"
    assert conv_layer(c=8, h=4, w=4, k_out=8, r=1, dtype="int8").dtype == "int8"

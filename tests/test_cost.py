"""Closed forms with named dimensions for every family of operators."""

from __future__ import annotations

from typing import Any

import pytest

from perfpred.cost import Cost, group_cost, is_known, network_cost, node_cost, node_flops, node_kind
from perfpred.layer import KINDS, Node, TensorSpec
from perfpred.operators import register

N, C, H, W, K, P, Q, R, S = 2, 6, 10, 12, 9, 8, 9, 3, 4


def spec(name: str, *shape: int, dtype: str = "float32", constant: bool = False) -> TensorSpec:
    return TensorSpec(name=name, shape=shape, dtype=dtype, constant=constant)


def weight(name: str, *shape: int, dtype: str = "float32") -> TensorSpec:
    return spec(name, *shape, dtype=dtype, constant=True)


def node(op_type: str, inputs: tuple[TensorSpec | None, ...], *outputs: TensorSpec, **attributes: Any) -> Node:
    domain = attributes.pop("domain", "")
    return Node(
        name=op_type.lower(), op_type=op_type, domain=domain, inputs=inputs, outputs=outputs, attributes=attributes
    )


X, Y = spec("x", N, C, H, W), spec("y", N, K, P, Q)


def test_convolution_counts_two_flops_a_mac_and_every_byte_once() -> None:
    conv = node("Conv", (X, weight("w", K, C, R, S), weight("b", K)), Y)
    cost = node_cost(conv)
    assert cost.flops == 2 * N * K * P * Q * C * R * S
    assert cost.weight_bytes == 4 * (K * C * R * S + K)
    assert cost.dram_bytes == 4 * (N * C * H * W + N * K * P * Q) + cost.weight_bytes
    assert cost.estimated == ()
    assert node_kind(conv) == "conv"


@pytest.mark.parametrize(
    ("shape_in", "kernel", "shape_out"),
    [((50,), (5,), (46,)), ((H, W), (R, S), (P, Q)), ((8, H, W), (3, R, S), (6, P, Q))],
)
def test_convolutions_of_every_rank_and_group(
    shape_in: tuple[int, ...], kernel: tuple[int, ...], shape_out: tuple[int, ...]
) -> None:
    for groups, kind in ((1, "conv"), (2, "conv"), (C, "depthwise_conv")):
        x, w, y = spec("x", N, C, *shape_in), weight("w", 2 * C, C // groups, *kernel), spec("y", N, 2 * C, *shape_out)
        conv = node("Conv", (x, w), y, group=groups)
        assert node_flops(conv) == 2 * y.elements * w.elements // (2 * C)
        assert node_kind(conv) == kind


def test_one_channel_is_no_depthwise_convolution() -> None:
    conv = node("Conv", (spec("x", N, 1, H, W), weight("w", K, 1, R, S)), Y, group=1)
    assert node_kind(conv) == "conv"


def test_transposed_convolution_works_once_per_input_element() -> None:
    groups = 3
    deconv = node("ConvTranspose", (X, weight("w", C, K // groups, R, S)), Y, group=groups)
    assert node_flops(deconv) == 2 * N * C * H * W * (K // groups) * R * S
    assert node_kind(deconv) == "deconv"


def test_quantised_convolution_finds_its_weights() -> None:
    x, w = spec("x", N, C, H, W, dtype="uint8"), weight("w", K, C, R, S, dtype="int8")
    scale, zero = weight("s"), weight("z", dtype="uint8")
    y = spec("y", N, K, P, Q, dtype="uint8")
    cost = node_cost(node("QLinearConv", (x, scale, zero, w, scale, zero, scale, zero), y))
    assert cost.flops == 2 * N * K * P * Q * C * R * S
    assert cost.dram_bytes == N * C * H * W + K * C * R * S + N * K * P * Q + 4 + 1
    integer = node("ConvInteger", (x, w), spec("y", N, K, P, Q, dtype="int32"))
    assert node_flops(integer) == cost.flops


M, D, B, HEADS = 7, 16, 5, 4


@pytest.mark.parametrize(
    ("op_type", "a", "b", "attributes", "macs"),
    [
        ("MatMul", (M, D), (D, K), {}, M * D * K),
        ("MatMul", (B, M, D), (D, K), {}, B * M * D * K),
        ("MatMul", (B, HEADS, M, D), (B, HEADS, D, K), {}, B * HEADS * M * D * K),
        ("MatMul", (M, D), (B, D, K), {}, B * M * D * K),
        ("MatMul", (B, M, D), (D,), {}, B * M * D),
        ("Gemm", (M, D), (K, D), {"transB": 1}, M * D * K),
        ("Gemm", (D, M), (D, K), {"transA": 1}, M * D * K),
        ("FusedMatMul", (B, M, D), (B, K, D), {"transB": 1, "domain": "com.microsoft"}, B * M * D * K),
    ],
)
def test_matrix_products(op_type: str, a: Any, b: Any, attributes: dict[str, Any], macs: int) -> None:
    batch = a[:-2] if len(a) > len(b) or len(a) == len(b) else b[:-2]
    out = (*batch, M) if len(b) == 1 else (*batch, M, K)
    product = node(op_type, (spec("a", *a), spec("b", *b)), spec("y", *out), **attributes)
    assert node_flops(product) == 2 * macs
    assert node_kind(product) == "gemm"


@pytest.mark.parametrize(
    ("equation", "shapes", "out", "flops", "kind"),
    [
        ("bhmd,bhnd->bhmn", ((B, HEADS, M, D), (B, HEADS, K, D)), (B, HEADS, M, K), 2 * B * HEADS * M * D * K, "gemm"),
        ("...md,dn->...mn", ((B, HEADS, M, D), (D, K)), (B, HEADS, M, K), 2 * B * HEADS * M * D * K, "gemm"),
        ("ij,jk", ((M, D), (D, K)), (M, K), 2 * M * D * K, "gemm"),
        ("bi,bj->bij", ((B, M), (B, K)), (B, M, K), B * M * K, "pointwise"),
        ("ij->ji", ((M, D),), (D, M), 0, "data_movement"),
        ("ij->i", ((M, D),), (M,), M * D, "reduce"),
    ],
)
def test_einsum(equation: str, shapes: Any, out: tuple[int, ...], flops: int, kind: str) -> None:
    einsum = node("Einsum", tuple(spec(str(i), *s) for i, s in enumerate(shapes)), spec("y", *out), equation=equation)
    assert (node_flops(einsum), node_kind(einsum)) == (flops, kind)


def test_attention_is_two_products_and_a_softmax() -> None:
    hidden = HEADS * D
    q, k = spec("q", B, M, hidden), spec("k", B, K, hidden)
    inner = B * HEADS * M * K * (4 * D + 5)
    attributes = {"num_heads": HEADS, "domain": "com.microsoft"}
    out = spec("y", B, M, hidden)
    assert node_flops(node("MultiHeadAttention", (q, k, k), out, **attributes)) == inner
    standard = node("Attention", (q, k, k), out, q_num_heads=HEADS, kv_num_heads=HEADS)
    assert node_flops(standard) == inner
    projecting = node("Attention", (q, weight("w", hidden, 3 * hidden), weight("b", 3 * hidden)), out, **attributes)
    assert node_flops(projecting) == 2 * B * M * hidden * 3 * hidden + B * HEADS * M * M * (4 * D + 5)
    assert node_kind(projecting) == "attention"


@pytest.mark.parametrize(("op_type", "gates"), [("LSTM", 4), ("GRU", 3), ("RNN", 1)])
def test_recurrence_multiplies_its_matrices_each_step(op_type: str, gates: int) -> None:
    steps, size, hidden, directions = 11, 5, 8, 2
    w, r = weight("w", directions, gates * hidden, size), weight("r", directions, gates * hidden, hidden)
    recurrent = node(op_type, (spec("x", steps, B, size), w, r), spec("y", steps, directions, B, hidden))
    matrices = 2 * steps * B * directions * gates * hidden * (size + hidden)
    assert node_flops(recurrent) == matrices + 8 * steps * B * directions * gates * hidden
    assert node_kind(recurrent) == "recurrent"


@pytest.mark.parametrize(
    ("op_type", "attributes", "flops", "kind"),
    [
        ("MaxPool", {"kernel_shape": (R, S)}, N * C * P * Q * R * S, "pool"),
        ("GlobalAveragePool", {}, N * C * H * W, "pool"),
        ("ReduceMean", {}, N * C * H * W, "reduce"),
        ("Relu", {}, N * C * P * Q, "pointwise"),
        ("Sigmoid", {}, 6 * N * C * P * Q, "pointwise"),
        ("Softmax", {}, 5 * N * C * H * W, "softmax"),
        ("BatchNormalization", {}, 2 * N * C * H * W, "norm"),
        ("LayerNormalization", {}, 7 * N * C * H * W, "norm"),
        ("Resize", {"mode": "linear"}, 8 * N * C * P * Q, "resize"),
        ("Resize", {"mode": "nearest"}, 0, "resize"),
        ("QuantizeLinear", {}, 2 * N * C * P * Q, "quantize"),
        ("TopK", {}, N * C * H * W * 4, "reduce"),
    ],
)
def test_windows_reductions_and_elementwise(op_type: str, attributes: Any, flops: int, kind: str) -> None:
    one = node(op_type, (X,), spec("y", N, C, P, Q), **attributes)  # TopK keeps Q = 9: 4 levels of its heap
    assert (node_flops(one), node_kind(one)) == (flops, kind)


def test_sampling_operators_count_interpolation() -> None:
    grid = spec("g", N, P, Q, 2)
    sampled = node("GridSample", (X, grid), spec("y", N, C, P, Q), mode="bilinear")
    assert node_flops(sampled) == 2 * 4 * N * C * P * Q + 16 * N * P * Q
    deform = node("DeformConv", (X, weight("w", K, C, R, S), spec("o", N, 2 * R * S, P, Q)), Y)
    assert node_flops(deform) == 2 * N * K * P * Q * C * R * S + 8 * N * P * Q * C * R * S


def test_picking_operators_read_only_what_they_write() -> None:
    table, rows = weight("t", 30000, D), spec("i", B, M, dtype="int64")
    gather = node("Gather", (table, rows), spec("y", B, M, D))
    assert node_kind(gather) == "embedding"
    assert node_cost(gather) == Cost(dram_bytes=8 * B * M + 2 * 4 * B * M * D, weight_bytes=4 * B * M * D)
    piece = node("Slice", (X,), spec("y", N, 1, H, W))
    assert node_cost(piece).dram_bytes == 2 * 4 * N * H * W
    assert node_kind(node("Gather", (X, rows), spec("y", B))) == "data_movement"


@pytest.mark.parametrize(
    ("op_type", "shape", "attributes", "free"),
    [
        ("Reshape", (N, C * H * W), {}, True),
        ("Identity", (N, C, H, W), {}, True),
        ("Transpose", (N, H, W, C), {"perm": (0, 2, 3, 1)}, False),
        ("Slice", (N, C, H, W), {}, True),
        ("Pad", (N, C, H + 2, W), {}, False),
    ],
)
def test_views_move_nothing(op_type: str, shape: tuple[int, ...], attributes: Any, free: bool) -> None:
    cost = node_cost(node(op_type, (X,), spec("y", *shape), **attributes))
    assert (cost.dram_bytes == 0) is free
    assert cost.flops == 0


def test_transpose_of_a_unit_dimension_is_a_view() -> None:
    x = spec("x", N, 1, W)
    assert node_cost(node("Transpose", (x,), spec("y", N, W, 1), perm=(0, 2, 1))).dram_bytes == 0


def test_fused_group_keeps_inner_tensors_on_chip() -> None:
    hidden, total = spec("h", N, K, P, Q), spec("s", N, K, P, Q)
    group = (
        node("Conv", (X, weight("w", K, C, R, S)), hidden),
        node("Add", (hidden, spec("shortcut", N, K, P, Q)), total),
        node("Relu", (total,), Y),
    )
    fused, apart = group_cost(group, {"y"}), network_cost(group)
    assert fused.flops == apart.flops
    assert fused.dram_bytes == 4 * (N * C * H * W + K * C * R * S + 2 * N * K * P * Q)
    assert apart.dram_bytes - fused.dram_bytes == 4 * 4 * N * K * P * Q
    assert group_cost(group, {"y", "s"}).dram_bytes - fused.dram_bytes == 4 * N * K * P * Q


def test_an_input_read_twice_counts_once_and_views_lead_to_their_source() -> None:
    flat = spec("flat", N, C * H * W)
    shown = spec("shown", N, C, H, W)
    group = (
        node("Reshape", (X,), flat),
        node("Reshape", (flat,), shown),
        node("Add", (shown, X), spec("y", N, C, H, W)),
        node("Reshape", (spec("y", N, C, H, W),), spec("z", N * C, H * W)),
    )
    assert group_cost(group, {"z"}).dram_bytes == 4 * 2 * N * C * H * W


def test_dequantised_weights_count_their_integers() -> None:
    scale, zero = weight("s"), weight("z", dtype="int8")
    stored, wide = weight("q", K, C, R, S, dtype="int8"), spec("w", K, C, R, S)
    x, read = spec("x8", N, C, H, W, dtype="int8"), spec("x", N, C, H, W)
    group = (
        node("DequantizeLinear", (x, scale, zero), read),
        node("DequantizeLinear", (stored, scale, zero), wide),
        node("Conv", (read, wide), Y),
        node("QuantizeLinear", (Y, scale, zero), spec("y8", N, K, P, Q, dtype="int8")),
    )
    cost = group_cost(group, {"y8"})
    assert cost.weight_bytes == K * C * R * S + 4 + 1
    assert cost.dram_bytes == cost.weight_bytes + N * C * H * W + N * K * P * Q


def test_weights_quantised_by_the_graph_are_folded_to_integers() -> None:
    scale, zero = weight("s"), weight("z", dtype="int8")
    stored, quantized, wide = weight("f", K, C, R, S), spec("q", K, C, R, S, dtype="int8"), spec("w", K, C, R, S)
    group = (
        node("QuantizeLinear", (stored, scale, zero), quantized),
        node("DequantizeLinear", (quantized, scale, zero), wide),
        node("Conv", (X, wide), Y),
    )
    assert group_cost(group, {"y"}).weight_bytes == K * C * R * S + 4 + 1


def test_unknown_operators_are_named_never_free() -> None:
    odd = node("Fancy", (X,), Y, domain="acme")
    cost = node_cost(odd)
    assert cost.estimated == ("acme::Fancy",)
    assert cost.flops == 0
    assert cost.dram_bytes == X.nbytes + Y.nbytes
    assert node_kind(odd) == "other"
    assert not is_known("Fancy")
    assert not is_known("Conv", "acme")
    assert is_known("Conv")
    assert (cost + cost).estimated == ("acme::Fancy",)


def test_duplicate_and_wrong_rules_are_refused() -> None:
    with pytest.raises(ValueError, match="Conv has a rule already"):
        register("Conv", kind="conv")(lambda node: 0)
    with pytest.raises(ValueError, match="kind 'convolution' is not one of"):
        register("NeverSeen", kind="convolution")
    assert not is_known("NeverSeen")
    assert "conv" in KINDS

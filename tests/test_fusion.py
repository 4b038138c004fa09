"""Each fusion rule on the smallest graph that shows it, and what all rule sets must keep."""

from __future__ import annotations

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from perfpred.errors import UsageError
from perfpred.fusion import fuse, groups, rule_set_named, rule_sets
from perfpred.layer import Node, TensorSpec
from perfpred.network import Network

MAP = "1,32,16,16"
ROWS = "1,16,64"


def network(text: str, *, dtype: str = "float32", outputs: str = "") -> Network:
    """A network from lines such as `y Conv x %32,32,3,3 -> 1,32,16,16 group=32`.

    The first word names the node and its output, `%` starts the shape of a constant, and `in` lines give inputs.
    """
    specs: dict[str, TensorSpec] = {}
    nodes: list[Node] = []
    inputs: list[TensorSpec] = []
    for line in text.strip().splitlines():
        words, _, result = line.strip().partition(" -> ")
        name, op_type, *operands = words.split()
        if op_type == "in":
            specs[name] = TensorSpec(name=name, shape=shape_of(operands[0]), dtype=dtype)
            inputs.append(specs[name])
            continue
        shape, *options = result.split()
        attributes = {
            k: tuple(map(int, v.split(","))) if "," in v else int(v) for k, v in (o.split("=") for o in options)
        }
        reads = tuple(
            TensorSpec(name=f"{name}.{i}", shape=shape_of(o[1:]), dtype=dtype, constant=True)
            if o[0] == "%"
            else specs[o]
            for i, o in enumerate(operands)
        )
        specs[name] = TensorSpec(name=name, shape=shape_of(shape), dtype=dtype)
        nodes.append(Node(name=name, op_type=op_type, inputs=reads, outputs=(specs[name],), attributes=attributes))
    returned = outputs.split() or [nodes[-1].name]
    return Network(
        name="test",
        nodes=tuple(nodes),
        inputs=tuple(inputs),
        outputs=tuple(specs[o] for o in returned),
        opset=17,
        batch_size=1,
    )


def shape_of(text: str) -> tuple[int, ...]:
    return tuple(int(d) for d in text.split(",") if d)


def fused(net: Network, rules: str) -> dict[str, str]:
    """Rule by group, the group written as its node names."""
    return {" ".join(n.name for n in g.nodes): g.rule for g in groups(net, rules)}


CONV = f"x in {MAP}\nconv Conv x %32,32,3,3 -> {MAP}\n"
FC = f"x in {ROWS}\nfc MatMul x %64,64 -> {ROWS}\n"
SCORES = """
q in 1,4,16,8
k in 1,4,8,16
v in 1,4,16,8
scores MatMul q k -> 1,4,16,16
scaled Mul scores % -> 1,4,16,16
weights Softmax scaled -> 1,4,16,16
context MatMul weights v -> 1,4,16,8
"""

# Rule set, rule, graph, the group it must make.
CASES = [
    ("tensorrt", "pad-conv", f"x in {MAP}\npad Pad x -> 1,32,18,18\nconv Conv pad %32,32,3,3 -> {MAP}", "pad conv"),
    (
        "tensorrt",
        "conv-residual",
        CONV + f"two Conv x %32,32,1,1 -> {MAP}\nadd Add conv two -> {MAP}\nrelu Relu add -> {MAP}",
        "two add relu",
    ),
    ("tensorrt", "conv-activation", CONV + f"bn BatchNormalization conv %32 -> {MAP}\nr Clip bn -> {MAP}", "conv bn r"),
    (
        "tensorrt",
        "deconv-activation",
        f"x in {MAP}\nup ConvTranspose x %32,32,2,2 -> 1,32,32,32\nr Relu up -> 1,32,32,32",
        "up r",
    ),
    ("tensorrt", "attention", SCORES, "scores scaled weights context"),
    ("tensorrt", "fc-epilogue", FC + f"b Add fc %64 -> {ROWS}\nr Relu b -> {ROWS}", "fc b r"),
    (
        "tensorrt",
        "scale-activation",
        f"x in {MAP}\nbn BatchNormalization x %32 -> {MAP}\nr Relu bn -> {MAP}",
        "bn r",
    ),
    ("tensorrt", "softmax-topk", f"x in {ROWS}\ns Softmax x -> {ROWS}\ntop TopK s -> 1,16,5", "s top"),
    (
        "tensorrt",
        "pointwise",
        CONV + f"s Sigmoid conv -> {MAP}\nm Mul conv s -> {MAP}\na Add m x -> {MAP}",
        "s m a",
    ),
    ("tensorrt-rtx", "attention", SCORES, "scores scaled weights context"),
    ("tensorrt-rtx", "conv-epilogue", CONV + f"s Sigmoid conv -> {MAP}\nm Mul conv s -> {MAP}", "conv s m"),
    (
        "tensorrt-rtx",
        "gemm-epilogue",
        FC
        + f"b Add fc %64 -> {ROWS}\nd Div b % -> {ROWS}\ne Erf d -> {ROWS}\na Add e % -> {ROWS}\nm Mul b a -> {ROWS}",
        "fc b d e a m",
    ),
    ("tensorrt-rtx", "gemm-activation", FC + f"r Relu fc -> {ROWS}", "fc r"),
    (
        "tensorrt-rtx",
        "sibling-gemms",
        FC + f"fc2 MatMul x %64,64 -> {ROWS}\nsum Add fc fc2 -> {ROWS}\nn LayerNormalization sum %64 -> {ROWS}",
        "fc fc2",
    ),
    (
        "tensorrt-rtx",
        "transpose-conv",
        f"x in 1,16,16,32\nt Transpose x -> {MAP} perm=0,3,1,2\nconv Conv t %32,32,3,3 -> {MAP}",
        "t conv",
    ),
    (
        "tensorrt-rtx",
        "transposed-gemm",
        "x in 1,64,16\nt Transpose x -> 1,16,64 perm=0,2,1\nfc MatMul t %64,64 -> 1,16,64",
        "t fc",
    ),
    (
        "tensorrt-rtx",
        "generated-kernel",
        f"x in {MAP}\ny in {MAP}\nc Concat x y -> 1,64,16,16\nbn BatchNormalization c %64 -> 1,64,16,16",
        "c bn",
    ),
    (
        "onnxruntime",
        "conv-activation",
        CONV + f"two Conv x %32,32,1,1 -> {MAP}\nadd Add conv two -> {MAP}\ns Sigmoid add -> {MAP}",
        "conv add s",
    ),
    (
        "onnxruntime",
        "bn-as-conv",
        CONV + "p MaxPool conv -> 1,32,8,8\nbn BatchNormalization p %32 -> 1,32,8,8\nr Relu bn -> 1,32,8,8",
        "bn r",
    ),
    ("onnxruntime", "fc-bias-activation", "x in 4,64\nfc Gemm x %64,64 -> 4,64\nr Tanh fc -> 4,64", "fc r"),
    ("onnxruntime", "fc-bias", FC + f"b Add fc %64 -> {ROWS}\nr Tanh b -> {ROWS}", "fc b"),
    (
        "onnxruntime",
        "transposed-matmul",
        "q in 1,4,16,8\nk in 1,4,16,8\nt Transpose k -> 1,4,8,16 perm=0,1,3,2\ns MatMul q t -> 1,4,16,16",
        "t s",
    ),
    (
        "tensorrt-rtx",
        "group-norm",
        f"x in {MAP}\na Reshape x -> 1,8,1024\nn InstanceNormalization a %8 %8 -> 1,8,1024\nb Reshape n -> {MAP}\n"
        f"s Mul b %32,1,1 -> {MAP}\nt Add s %32,1,1 -> {MAP}\nr Relu t -> {MAP}",
        "a n b s t r",
    ),
    ("onnxruntime", "reshapes", f"x in {ROWS}\na Reshape x -> 16,64\nb Reshape a -> 4,4,64", "a b"),
    ("onnxruntime", "quick-gelu", CONV + f"p MaxPool conv -> {MAP}\ns Sigmoid p -> {MAP}\nm Mul p s -> {MAP}", "s m"),
    (
        "onnxruntime",
        "gelu",
        f"x in {ROWS}\nd Div x % -> {ROWS}\ne Erf d -> {ROWS}\na Add e % -> {ROWS}\nm Mul x a -> {ROWS}\n"
        f"h Mul m % -> {ROWS}",
        "d e a m h",
    ),
    (
        "onnxruntime",
        "fast-gelu",
        f"x in {ROWS}\nh Mul x % -> {ROWS}\np Pow x % -> {ROWS}\nc Mul p % -> {ROWS}\na Add x c -> {ROWS}\n"
        f"s Mul a % -> {ROWS}\nt Tanh s -> {ROWS}\no Add t % -> {ROWS}\ny Mul h o -> {ROWS}",
        "h p c a s t o y",
    ),
    (
        "onnxruntime",
        "rms-norm",
        f"x in {ROWS}\np Pow x % -> {ROWS}\nm ReduceMean p -> 1,16,1\ne Add m % -> 1,16,1\nr Sqrt e -> 1,16,1\n"
        f"i Div % r -> 1,16,1\nn Mul x i -> {ROWS}\ny Mul n %64 -> {ROWS}",
        "p m e r i n y",
    ),
    (
        "onnxruntime",
        "layer-norm",
        f"x in {ROWS}\nm ReduceMean x -> 1,16,1\nd Sub x m -> {ROWS}\np Pow d % -> {ROWS}\nv ReduceMean p -> 1,16,1\n"
        f"e Add v % -> 1,16,1\nr Sqrt e -> 1,16,1\nn Div d r -> {ROWS}\ns Mul n %64 -> {ROWS}\ny Add s %64 -> {ROWS}",
        "m d p v e r n s y",
    ),
    ("onnxruntime", "scaled-matmul", SCORES, "scores scaled"),
    (
        "onnxruntime",
        "skip-layer-norm",
        f"x in {ROWS}\ny in {ROWS}\na Add x y -> {ROWS}\nn LayerNormalization a %64 -> {ROWS}",
        "a n",
    ),
    (
        "onnxruntime",
        "slices-to-split",
        f"x in {ROWS}\na Slice x -> 1,8,64\nb Slice x -> 1,8,64\nc Concat a b -> {ROWS}",
        "a b",
    ),
    ("onnxruntime-cuda", "conv-bn", CONV + f"bn BatchNormalization conv %32 -> {MAP}", "conv bn"),
    ("onnxruntime-cuda", "fc-bias", FC + f"b Add fc %64 -> {ROWS}", "fc b"),
    (
        "onnxruntime-cuda",
        "bias-softmax",
        f"x in {ROWS}\ny in {ROWS}\na Add x y -> {ROWS}\ns Softmax a -> {ROWS}",
        "a s",
    ),
    ("trivial", "conv-bn-activation", CONV + f"r Relu conv -> {MAP}", "conv r"),
]
ON_BOTH_PROVIDERS = (
    *("quick-gelu", "gelu", "fast-gelu", "rms-norm", "layer-norm", "skip-layer-norm"),
    *("scaled-matmul", "transposed-matmul", "slices-to-split"),
)
CASES += [
    ("onnxruntime-cuda", *case) for rules, *case in CASES if rules == "onnxruntime" and case[0] in ON_BOTH_PROVIDERS
]


@pytest.mark.parametrize(("rules", "rule", "graph", "group"), CASES, ids=[f"{c[0]}-{c[1]}" for c in CASES])
def test_rule(rules: str, rule: str, graph: str, group: str) -> None:
    assert fused(network(graph), rules).get(group) == rule


def test_slices_that_overlap_stay_apart() -> None:
    """Ranges that are no split of the axis are copied one by one."""
    net = network(f"x in {ROWS}\na Slice x -> 1,16,64\nb Slice x -> 1,8,64\nc Concat a b -> 1,24,64")
    for rules in ("onnxruntime", "onnxruntime-cuda"):
        assert "a b" not in fused(net, rules)


def test_every_rule_has_a_case() -> None:
    shown = {rule for _, rule, _, _ in CASES} | {"dequantise"}
    assert {rule.name for name in rule_sets() for rule in rule_set_named(name).rules} <= shown
    assert all(rule.source for name in rule_sets() for rule in rule_set_named(name).rules)


def test_quantised_conv_absorbs_its_quantisers() -> None:
    net = network(
        f"x in {MAP}\nq0 QuantizeLinear x % -> {MAP}\ndq DequantizeLinear q0 % -> {MAP}\n"
        f"conv Conv dq %32,32,3,3 -> {MAP}\nr Relu conv -> {MAP}\nq1 QuantizeLinear r % -> {MAP}\n"
        f"dq2 DequantizeLinear q1 % -> {MAP}\nconv2 Conv dq2 %32,32,3,3 -> {MAP}"
    )
    assert list(fused(net, "tensorrt")) == ["q0", "dq conv r q1", "dq2 conv2"]


def test_classic_and_rtx_disagree_on_silu_by_design() -> None:
    net = network(CONV + f"s Sigmoid conv -> {MAP}\nm Mul conv s -> {MAP}")
    assert list(fused(net, "tensorrt")) == ["conv", "s m"]
    assert list(fused(net, "tensorrt-rtx")) == ["conv s m"]
    assert list(fused(net, "none")) == ["conv", "s", "m"]


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_onnxruntime_cuda_runs_activations_behind_convolutions_apart(dtype: str) -> None:
    net = network(CONV + f"r Relu conv -> {MAP}", dtype=dtype)
    assert list(fused(net, "onnxruntime-cuda")) == ["conv", "r"]


@pytest.mark.parametrize("rules", ["onnxruntime", "onnxruntime-cuda"])
def test_a_scaled_tanh_is_no_gelu(rules: str) -> None:
    net = network(f"x in {ROWS}\nh Mul x % -> {ROWS}\nt Tanh h -> {ROWS}")
    assert list(fused(net, rules)) == ["h", "t"]


@pytest.mark.parametrize("rules", ["tensorrt", "tensorrt-rtx", "onnxruntime"])
def test_a_result_read_elsewhere_or_returned_is_not_swallowed(rules: str) -> None:
    read_twice = network(CONV + f"r Relu conv -> {MAP}\np MaxPool conv -> {MAP}\nc Concat r p -> 1,64,16,16")
    returned = network(CONV + f"r Relu conv -> {MAP}", outputs="conv r")
    for net in (read_twice, returned):
        assert not any({"conv", "r"} <= set(group.split()) for group in fused(net, rules))


def test_sum_of_two_products_joins_the_one_the_runtime_takes() -> None:
    text = CONV + f"two Conv x %32,32,1,1 -> {MAP}\nadd Add conv two -> {MAP}"
    assert "two add" in fused(network(text), "tensorrt")
    assert "conv add" in fused(network(text), "onnxruntime")


def test_rtx_computes_an_activation_where_its_mean_is_taken() -> None:
    silu = CONV + f"s Sigmoid conv -> {MAP}\nm Mul conv s -> {MAP}\n"
    pooled = network(silu + "g GlobalAveragePool m -> 1,32,1,1", outputs="m g")
    assert list(fused(pooled, "tensorrt-rtx")) == ["conv", "s m g"]
    assert list(fused(network(silu), "tensorrt-rtx")) == ["conv s m"]


def test_rtx_leaves_the_bias_of_a_split_product_to_its_parts() -> None:
    text = f"x in {ROWS}\nfc MatMul x %64,96 -> 1,16,96\nb Add fc %96 -> 1,16,96\n"
    split = network(
        text + "r Reshape b -> 1,16,3,32\nt Transpose r -> 3,1,16,32 perm=2,0,1,3\np Split t -> 1,1,16,32\n"
        "m Mul p % -> 1,1,16,32"
    )
    assert list(fused(split, "tensorrt-rtx"))[:2] == ["fc", "b r t p"]
    assert "fc b" in fused(network(text), "tensorrt-rtx")


def test_copies_between_formats_are_layers() -> None:
    net = network(CONV + f"r Relu conv -> {MAP}\ng GlobalAveragePool r -> 1,32,1,1\nout Mul r g -> {MAP}")
    assert [layer.rule for layer in fuse(net, "tensorrt-rtx")].count("border") == 3


def test_views_belong_to_what_computes_them() -> None:
    net = network(CONV + "flat Flatten conv -> 1,8192\nfc Gemm flat %8192,10 -> 1,10")
    assert list(fused(net, "tensorrt")) == ["conv flat", "fc"]


def test_patterns_look_through_nodes_that_do_nothing() -> None:
    net = network(CONV + f"i Identity conv -> {MAP}\nr Relu i -> {MAP}\nj Identity r -> {MAP}")
    assert fused(net, "tensorrt") == {"conv i r j": "conv-activation"}
    (conv,) = (layer for layer in fuse(net, "tensorrt") if layer.rule != "border")
    assert len(conv.outputs) == 1


def test_borders_are_layers_of_their_own() -> None:
    layers = fuse(network(CONV), "tensorrt")
    assert [layer.rule for layer in layers] == ["border", "single", "border"]
    assert layers[0].kind == "reformat"
    assert layers[0].dram_bytes == 2 * 32 * 16 * 16 * 4


def test_layer_traffic_leaves_out_what_stays_inside() -> None:
    text = CONV + f"s Sigmoid conv -> {MAP}\nm Mul conv s -> {MAP}"
    conv, swish = (layer for layer in fuse(network(text), "tensorrt") if layer.rule != "border")
    assert [t.name for t in conv.outputs] == ["conv"]
    assert [t.name for t in swish.inputs] == ["conv"]
    (all_in_one,) = (layer for layer in fuse(network(text), "tensorrt-rtx") if layer.rule != "border")
    assert all_in_one.dram_bytes == conv.dram_bytes


def test_unknown_rule_set_is_named_with_the_known_ones() -> None:
    with pytest.raises(UsageError, match=re.escape("no fusion rules are named 'tvm'; known: tensorrt")):
        fuse(network(CONV), "tvm")


OPERATORS = [
    "Conv",
    "Relu",
    "Sigmoid",
    "Mul",
    "Add",
    "MaxPool",
    "BatchNormalization",
    "Concat",
    "Transpose",
    "Identity",
]


@st.composite
def graphs(draw: st.DrawFn) -> Network:
    """Random graphs of one map size; a sum or product may read any two earlier results."""
    lines, names = [f"x in {MAP}"], ["x"]
    for i in range(draw(st.integers(1, 24))):
        op_type = draw(st.sampled_from(OPERATORS))
        first = draw(st.sampled_from(names))
        operands = {"Conv": "%32,32,1,1", "BatchNormalization": "%32"}.get(op_type, "")
        if op_type in ("Mul", "Add", "Concat"):
            operands = draw(st.sampled_from(names))
        perm = " perm=0,1,3,2" if op_type == "Transpose" else ""
        lines.append(f"n{i} {op_type} {first} {operands} -> {MAP}{perm}")
        names.append(f"n{i}")
    return network("\n".join(lines))


@settings(max_examples=150, deadline=None)
@given(graphs(), st.sampled_from(rule_sets()))
def test_groups_partition_the_nodes_and_can_run_in_order(net: Network, rules: str) -> None:
    made = groups(net, rules)
    assert sorted(n.name for g in made for n in g.nodes) == sorted(n.name for n in net.nodes)
    done = {t.name for t in net.inputs}
    for group in made:
        inside = {t.name for n in group.nodes for t in n.outputs}
        assert all(t.name in done | inside for n in group.nodes for t in n.activations)
        done |= inside


@settings(max_examples=60, deadline=None)
@given(graphs(), st.sampled_from(rule_sets()))
def test_fusing_keeps_products_and_never_adds_traffic(net: Network, rules: str) -> None:
    kinds = ("conv", "depthwise_conv")
    convs = sum(n.op_type == "Conv" for n in net.nodes)
    layers = [layer for layer in fuse(net, rules) if layer.rule != "border"]
    assert sum(layer.op_types.count("Conv") for layer in layers) == convs
    assert sum(layer.kind in kinds for layer in layers) <= convs
    alone = sum(layer.dram_bytes for layer in fuse(net, "none"))
    assert sum(layer.dram_bytes for layer in layers) <= alone

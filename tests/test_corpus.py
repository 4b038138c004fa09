from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from perfpred.corpus import (
    COLUMNS,
    GRAPH_SUFFIX,
    GRAPHS,
    TABLE,
    Corpus,
    CorpusNetwork,
    datasets_folder,
    described,
    name_of,
    read_graph,
    read_table,
    split_of,
    write_table,
)
from perfpred.errors import FormatError, UsageError
from perfpred.structure import structure_id
from perfpred.weights import is_external, strip_weights
from perfpred.zoo.lineages import FAMILIES, FAMILY_LINEAGE, LINEAGES

zstandard = pytest.importorskip("zstandard")


def perceptron(
    width: int = 32, suffix: str = "", activation: str = "Relu", shape: tuple[int, ...] = (-1, 16)
) -> onnx.ModelProto:
    """Reshape and two dense layers; `suffix` goes into every name."""
    rng = np.random.default_rng(len(suffix))
    weights = [
        numpy_helper.from_array(np.array(shape, np.int64), f"shape{suffix}"),
        numpy_helper.from_array(rng.random((16, width), np.float32), f"w1{suffix}"),
        numpy_helper.from_array(rng.random((width, 8), np.float32), f"w2{suffix}"),
    ]
    nodes = [
        helper.make_node("Reshape", [f"in{suffix}", f"shape{suffix}"], [f"a{suffix}"], name=f"reshape{suffix}"),
        helper.make_node("MatMul", [f"a{suffix}", f"w1{suffix}"], [f"b{suffix}"]),
        helper.make_node(activation, [f"b{suffix}"], [f"c{suffix}"]),
        helper.make_node("MatMul", [f"c{suffix}", f"w2{suffix}"], [f"out{suffix}"]),
    ]
    graph = helper.make_graph(
        nodes,
        f"graph{suffix}",
        [helper.make_tensor_value_info(f"in{suffix}", TensorProto.FLOAT, ("batch", 4, 4))],
        [helper.make_tensor_value_info(f"out{suffix}", TensorProto.FLOAT, ("batch", 8))],
        weights,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def _network(name: str, family: str, lineage: str, aliases: tuple[str, ...] = ()) -> CorpusNetwork:
    return CorpusNetwork(
        id=name,
        name=name,
        family=family,
        lineage=lineage,
        source="test",
        licence="none",
        opset=17,
        inputs="4x4",
        nodes=1,
        gflops=None,
        params=0,
        split=split_of(lineage),
        aliases=aliases,
    )


@pytest.fixture
def corpus(tmp_path: Path) -> Corpus:
    (tmp_path / GRAPHS).mkdir()
    rows = []
    names = [
        ("a.small", "f1", "vgg", ("b.same",)),
        ("a.wide", "f1", "vgg", ()),
        ("b.other", "f2", "resnet", ()),
        ("b.third@8", "f3", "mlp", ()),
    ]
    for width, (name, family, lineage, aliases) in enumerate(names, start=20):
        model = strip_weights(perceptron(width))
        compressed = zstandard.ZstdCompressor().compress(model.SerializeToString())
        (tmp_path / GRAPHS / f"{name}{GRAPH_SUFFIX}").write_bytes(compressed)
        rows.append(described(model, _network(name, family, lineage, aliases)))
    write_table(rows, tmp_path / TABLE)
    return Corpus.load(tmp_path)


def _names(corpus: Corpus, selection: str) -> list[str]:
    return [network.name for network in corpus.select(selection)]


@pytest.mark.parametrize(
    ("selection", "expected"),
    [
        ("all", ["a.small", "a.wide", "b.other", "b.third@8"]),
        ("a.*", ["a.small", "a.wide"]),
        ("b.same", ["a.small"]),
        ("family=f1", ["a.small", "a.wide"]),
        ("lineage=res*, b.third@8", ["b.other", "b.third@8"]),
        ("collection=b", ["b.other", "b.third@8"]),
    ],
)
def test_selection(corpus: Corpus, selection: str, expected: list[str]) -> None:
    assert _names(corpus, selection) == expected


def test_globs_reach_aliases(corpus: Corpus) -> None:
    assert "a.small" in _names(corpus, "b.sa*")


def test_sample_spreads_over_lineages_and_grows_steadily(corpus: Corpus) -> None:
    three = _names(corpus, "sample:3")
    assert len({corpus[name].lineage for name in three}) == 3
    assert set(_names(corpus, "sample:2")) < set(three)


@pytest.mark.parametrize("selection", ["nothing", "family=none", "sample:many"])
def test_empty_selection_is_refused(corpus: Corpus, selection: str) -> None:
    with pytest.raises(UsageError):
        corpus.select(selection)


def test_model_and_export_are_weight_free(corpus: Corpus, tmp_path: Path) -> None:
    paths = corpus.export("a.*", tmp_path / "out")
    assert [path.name for path in paths] == ["a.small.onnx", "a.wide.onnx"]
    exported = onnx.load(paths[0], load_external_data=False)
    assert exported == corpus.model("b.same")
    assert {t.name: is_external(t) for t in exported.graph.initializer} == {"shape": False, "w1": True, "w2": False}


def test_find_needs_the_right_size(tmp_path: Path) -> None:
    plain = replace(_network("timm.net", "f", "vgg"), inputs="3x224x224")
    larger = replace(_network("timm.net@320", "f", "vgg"), inputs="3x320x320")
    corpus = Corpus([plain, larger], tmp_path)
    assert corpus.find("timm/net", 224, 224) == plain
    assert corpus.find("timm/net", 320, 320) == larger
    assert corpus.find("timm/net", 299, 299) is None
    assert name_of("torchvision/mobilenet_v2?width_mult=2.0") == "torchvision.mobilenet_v2-width_mult-2.0"


def test_table_round_trip_and_version(tmp_path: Path) -> None:
    row = replace(_network("a.b", "f", "vgg", ("x.y", "x.z")), gflops=1.5)
    write_table([row], tmp_path / TABLE)
    assert read_table(tmp_path / TABLE) == [row]
    (tmp_path / TABLE).write_text(",".join(COLUMNS[:-1]) + "\n")
    with pytest.raises(FormatError, match="rebuild the table"):
        read_table(tmp_path / TABLE)


def test_missing_and_damaged_files_name_the_fix(
    corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / GRAPHS / f"a.wide{GRAPH_SUFFIX}").write_bytes(b"no graph")
    with pytest.raises(FormatError, match=r"perfpred\.zoo build"):
        corpus.model("a.wide")
    monkeypatch.setenv("PERFPRED_DATASETS", str(tmp_path / "elsewhere"))
    with pytest.raises(UsageError, match="PERFPRED_DATASETS"):
        datasets_folder()


def test_structure_id_ignores_names_and_values_alone() -> None:
    base = structure_id(strip_weights(perceptron()))
    assert structure_id(perceptron()) == base
    assert structure_id(perceptron(suffix="_renamed")) == base
    assert len({base, structure_id(perceptron(width=33)), structure_id(perceptron(activation="Sigmoid"))}) == 3
    assert structure_id(perceptron(shape=(0, 16))) != base


def test_structure_id_tells_shared_from_repeated_branches() -> None:
    def branches(shared: bool) -> onnx.ModelProto:
        nodes = [helper.make_node("Relu", ["in"], ["a"])]
        if not shared:
            nodes.append(helper.make_node("Relu", ["in"], ["b"]))
        nodes.append(helper.make_node("Add", ["a", "a" if shared else "b"], ["out"]))
        info = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ("batch", 4)) for name in ("in", "out")]
        return helper.make_model(helper.make_graph(nodes, "g", info[:1], info[1:]))

    assert structure_id(branches(True)) != structure_id(branches(False))


def test_a_fifth_of_lineages_is_set_aside() -> None:
    test = {lineage for lineage in LINEAGES if split_of(lineage) == "test"}
    assert test == {"vit", "hybrid-vit", "cascade", "text-encoder", "recurrent", "video"}


def test_committed_corpus_is_consistent() -> None:
    corpus = Corpus.load()
    names = [name for network in corpus for name in (network.name, *network.aliases)]
    assert len(names) == len(set(names))
    assert len({network.id for network in corpus}) == len(corpus)
    files = {path.name.removesuffix(GRAPH_SUFFIX) for path in (corpus.folder / GRAPHS).iterdir()}
    assert files == {network.name for network in corpus}
    assert sum(path.stat().st_size for path in (corpus.folder / GRAPHS).iterdir()) < 40e6
    for network in corpus:
        assert network.lineage == FAMILY_LINEAGE[network.family]
        assert network.split == split_of(network.lineage)


def test_no_committed_graph_normalises_as_in_training() -> None:
    def trains(node: onnx.NodeProto) -> bool:
        return sum(map(bool, node.output)) > 1 or any(a.name == "training_mode" and a.i for a in node.attribute)

    for path in sorted((datasets_folder() / GRAPHS).iterdir()):
        norms = [node for node in read_graph(path).graph.node if node.op_type == "BatchNormalization"]
        assert not [node.name for node in norms if trains(node)], path.name


def test_every_family_has_one_lineage() -> None:
    assert list(FAMILIES) == list(LINEAGES)
    assert 25 <= len(LINEAGES) <= 35
    assert sum(len(families.split()) for families in FAMILIES.values()) == len(FAMILY_LINEAGE)


@pytest.mark.parametrize("name", ["torchvision.resnet18", "timm.mobilenetv1_100"])
def test_committed_graph_matches_its_row(name: str) -> None:
    corpus = Corpus.load()
    model = corpus.model(name)
    assert structure_id(model) == corpus[name].id
    assert described(model, corpus[name]) == corpus[name]
    assert model.graph.input[0].type.tensor_type.shape.dim[0].dim_param == "batch"
    large = [t for t in model.graph.initializer if t.data_type == TensorProto.FLOAT and np.prod(t.dims) > 256]
    assert large
    assert all(is_external(tensor) for tensor in large)

"""Probe networks: distinct layers within their budget, outputs that follow the batch, kept out of every test."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

from perfpred import zoo  # noqa: E402
from perfpred.corpus import Corpus, split_of  # noqa: E402
from perfpred.zoo import probes  # noqa: E402
from perfpred.zoo.draw import Draw  # noqa: E402
from perfpred.zoo.probe_draws import shape_of, size  # noqa: E402

SUBJECTS = sorted(probes.SUBJECTS)


def drawn(subject: str, index: int) -> list[probes.Layer]:
    with torch.device("meta"):
        return [probes.SUBJECTS[subject][0](Draw(seed)) for seed in probes.layer_seeds(subject, index)]


def test_every_subject_is_a_family_of_the_lineage_that_is_never_tested() -> None:
    registered = [spec for spec in zoo.specs() if spec.lineage == "probe"]
    assert {spec.family for spec in registered} == {f"probe-{subject}" for subject in SUBJECTS}
    assert len(registered) == sum(count for _, count, _ in probes.SUBJECTS.values()) >= 200
    assert split_of("probe") == "dev"


@pytest.mark.parametrize("subject", SUBJECTS)
def test_layers_are_distinct_and_within_budget(subject: str) -> None:
    layers = drawn(subject, 1)
    fewest, most = probes.SUBJECTS[subject][2]
    assert fewest <= len(layers) <= most
    assert len({layer.key for layer in layers}) == len(layers)
    costs = [probes.work(layer) for layer in layers]
    assert sum(flops for flops, _ in costs) <= probes.MOST_NETWORK_FLOPS
    assert max(moved for _, moved in costs) <= probes.MOST_BYTES
    assert sum(map(probes.parameters, layers)) <= probes.MOST_PARAMETERS
    assert [layer.key for layer in drawn(subject, 1)] == [layer.key for layer in layers]


def test_indices_differ() -> None:
    assert not {layer.key for layer in drawn("conv2d", 0)} & {layer.key for layer in drawn("conv2d", 1)}


@pytest.mark.parametrize("subject", ["attention", "movement", "norm", "pointwise", "reduction"])
def test_outputs_are_finite_and_follow_the_batch(subject: str) -> None:
    network, (example,) = probes.probe(subject, 2)
    for batch_size in (1, 3):
        with torch.no_grad():
            outputs = network(example[:1].repeat(batch_size, 1))
        assert len(outputs) >= probes.SUBJECTS[subject][2][0]
        assert all(output.shape[0] % batch_size == 0 for output in outputs)
        assert all(torch.isfinite(output).all() for output in outputs)


def test_sizes_are_multiples_or_odd() -> None:
    source = Draw("sizes")
    widths = [size(source, 16, 1024) for _ in range(400)]
    assert 16 <= min(widths) <= max(widths) <= 1024 + 32
    assert sum(width % 8 == 0 for width in widths) > 200
    assert any(width % 2 for width in widths)
    assert all(min(shape_of(source, rank)) >= 1 for rank in (1, 2, 3, 4) for _ in range(50))


def test_committed_probes_are_all_there_and_no_sample_holds_them() -> None:
    corpus = Corpus.load()
    names = {network.name for network in corpus.select("lineage=probe")}
    assert names == {spec.name for spec in zoo.specs() if spec.lineage == "probe"}
    assert not names & {network.name for network in corpus.sample(len(corpus))}

"""Our own builders of corpus networks: sizes as published, outputs finite with the batch axis first."""

from __future__ import annotations

import math

import pytest

torch = pytest.importorskip("torch")

from perfpred import zoo  # noqa: E402
from perfpred.zoo import draw, synthetic  # noqa: E402

SPECS = {spec.name: spec for spec in zoo.specs() if spec.licence == "own builder, Apache-2.0"}
# parameters as published for each architecture (batch normalisation's running statistics are no parameters)
PUBLISHED_PARAMETERS = {
    "classic.mobilenet-v1-1.0": 4_231_976,
    "classic.yolov3": 61_949_149,
    "classic.tiny-yolov3": 8_852_366,
    "face.mtcnn-pnet@12": 6_632,
    "face.mtcnn-rnet": 100_178,
    "face.mtcnn-onet": 389_040,
    "face.facenet": 23_482_624,
    "detector.yolov8-n": 3_157_200,
    "detector.yolov8-s": 11_166_560,
    "detector.yolo11-n": 2_624_080,
    "segmentation.unet-64@256": 31_043_586,
    "super-resolution.srcnn": 57_281,
}
CHEAP = (
    "classic.mobilenet-v1-0.25",
    "face.mtcnn-onet",
    "face.blazeface",
    "detector.fomo-0.35",
    "detector.nanodet-plus",
    "detector.yolov8-n@320",
    "detector.yolov9-t@320",
    "detector.yolov10-n@320",
    "detector.detr-r18",
    "dense.light-0.5",
    "segmentation.portrait-mobilenetv2-0.5",
    "super-resolution.espcn-x3",
    "restoration.dcgan-64",
    "conv1d.tc-resnet8",
    "conv1d.hifi-gan-v2",
    "audio.keywords-1",
    "recurrent.lstm-sentiment",
    "recurrent.rnnoise",
    "video.stgcn-32",
    "synthetic.plain-000",
    "synthetic.mixed-000",
    "synthetic.dense-000",
)


def meta(name: str) -> torch.nn.Module:
    """Build a network without allocating its weights."""
    with torch.device("meta"):
        return SPECS[name].build()[0]


def test_enough_networks() -> None:
    named = [name for name in SPECS if not name.startswith("synthetic.")]
    assert len(named) >= 200
    assert len(SPECS) - len(named) >= 250
    assert len({spec.lineage for spec in SPECS.values()}) >= 15


def test_every_synthetic_space_has_one_lineage() -> None:
    for space, (_, lineage, count) in synthetic.SPACES.items():
        drawn = [spec for spec in SPECS.values() if spec.family == f"synthetic-{space}"]
        assert len(drawn) == count
        assert {spec.lineage for spec in drawn} == {lineage}


@pytest.mark.parametrize("name", sorted(PUBLISHED_PARAMETERS))
def test_parameters_as_published(name: str) -> None:
    parameters = sum(parameter.numel() for parameter in meta(name).parameters())
    assert parameters == pytest.approx(PUBLISHED_PARAMETERS[name], rel=0.02)


@pytest.mark.parametrize("name", CHEAP)
def test_outputs_are_finite_and_follow_the_batch(name: str) -> None:
    torch.manual_seed(0)
    network, examples = SPECS[name].build()
    assert not network.training
    for batch_size in (1, 3):
        inputs = [example[:1].expand(batch_size, *example.shape[1:]) for example in examples]
        with torch.no_grad():
            outputs = network(*inputs)
        for output in [outputs] if isinstance(outputs, torch.Tensor) else outputs:
            assert output.shape[0] == batch_size
            assert torch.isfinite(output).all()


def test_draws_repeat() -> None:
    first, second = (synthetic.synthetic("mbconv", 3) for _ in range(2))
    assert [p.shape for p in first[0].parameters()] == [p.shape for p in second[0].parameters()]
    assert first[1][0].shape == second[1][0].shape


def test_draws_differ_by_index() -> None:
    first, second = (synthetic.synthetic("residual", index) for index in (0, 1))
    assert [p.shape for p in first[0].parameters()] != [p.shape for p in second[0].parameters()]


def test_budget_holds() -> None:
    network, (example,) = synthetic.synthetic("plain", 5)
    with torch.utils.flop_counter.FlopCounterMode(display=False) as counter, torch.no_grad():
        network(example[:1])
    assert synthetic.LEAST_FLOPS <= counter.get_total_flops() <= synthetic.MOST_FLOPS


def test_drawn_widths_and_kernels_cover_the_odd_ones() -> None:
    source = draw.Draw("coverage")
    widths = [source.width(4, 512) for _ in range(400)]
    assert any(width % 2 for width in widths)
    assert any(width % 8 and width % 2 == 0 for width in widths)
    assert sum(width % 8 == 0 for width in widths) > 80
    assert all(width % 6 == 0 for width in (source.width(4, 512, 6) for _ in range(50)))
    assert {source.kernel() for _ in range(200)} == {1, 3, 5, 7, 9, 11}


def test_drawn_groups_divide() -> None:
    source = draw.Draw("groups")
    for channels in (7, 12, 30, 64):
        groups = source.groups(channels)
        assert groups > 1
        assert channels % groups == 0
    assert source.groups(1) == 1


def test_grid_centres_are_half_cells() -> None:
    from perfpred.zoo.yolo_heads import Grid

    grid = Grid((64, 96), (32,))
    box = grid.from_sides(torch.full((1, 4, 6), 0.5))
    assert box[0, :, 0].tolist() == [16.0, 16.0, 32.0, 32.0]
    assert box[0, :2, -1].tolist() == [80.0, 48.0]
    assert math.isclose(float(box[0, 2].mean()), 32.0)

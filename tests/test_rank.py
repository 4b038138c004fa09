"""Ranking: constraints are read as written, order follows latency, one bad file does not stop the rest."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import onnx
import pytest
from made import chain, dataset

from perfpred.errors import UsageError
from perfpred.predictor import LatencyPredictor
from perfpred.rank import QUANTITIES, Constraint, networks_in, ranked

DEVICE = "jetson-orin-nano"
SIZES = {"small": [8, 8, 8], "middle": [32, 48, 48, 48], "large": [96] * 6}


@lru_cache(maxsize=1)
def trained() -> LatencyPredictor:
    return LatencyPredictor(folds=0).fit(dataset())


@pytest.fixture
def predictor(tmp_path: Path) -> Path:
    trained().save(tmp_path / "predictor")
    return tmp_path / "predictor"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "networks"
    made.mkdir()
    for name, widths in SIZES.items():
        onnx.save(chain(widths, 48), made / f"{name}.onnx")
    return made


@pytest.mark.parametrize(
    ("text", "quantity", "compare", "bound"),
    [
        ("latency_s<=0.005", "latency_s", "<=", 0.005),
        (" latency_s < 5ms ", "latency_s", "<", 0.005),
        ("flops<=2G", "flops", "<=", 2e9),
        ("inferences_per_s>=3e1", "inferences_per_s", ">=", 30.0),
        ("n_layers>3", "n_layers", ">", 3.0),
        ("interval_high_s<=250us", "interval_high_s", "<=", 250e-6),
    ],
)
def test_constraints_are_read(text: str, quantity: str, compare: str, bound: float) -> None:
    made = Constraint.parse(text)
    assert (made.quantity, made.compare) == (quantity, compare)
    assert made.bound == pytest.approx(bound)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("fast", 'write it as "latency_s<=0.005"'),
        ("latency_s==3", "can't be read"),
        ("latency_s<=__import__('os')", "can't be read"),
        ("speed<=3", "'speed' is unknown; use one of latency_s"),
        ("latency_s<=3h", "unit 'h'"),
        ("latency_s<=1.2.3", "is no number"),
    ],
)
def test_bad_constraints_name_the_fix(text: str, message: str) -> None:
    with pytest.raises(UsageError, match=message.replace("(", r"\(")):
        Constraint.parse(text)


def test_order_and_constraints(folder: Path, predictor: Path) -> None:
    rows, errors = ranked(folder, device=DEVICE, predictor=predictor)
    assert [row.network for row in rows] == ["small.onnx", "middle.onnx", "large.onnx"]
    assert not errors
    bound = rows[1].latency_s
    rows, _ = ranked(folder, device=DEVICE, predictor=predictor, constraints=[f"latency_s<={bound!r}", "flops>0"])
    assert [row.network for row in rows] == ["small.onnx", "middle.onnx"]
    assert all(QUANTITIES["flops"](row) > 0 for row in rows)
    assert ranked(folder, device=DEVICE, predictor=predictor, constraints=["latency_s>1"]) == ([], [])


def test_one_bad_file_is_told_and_passed_by(folder: Path, predictor: Path) -> None:
    (folder / "broken.onnx").write_bytes(b"no network")
    rows, errors = ranked(folder, device=DEVICE, predictor=predictor)
    assert len(rows) == 3
    assert len(errors) == 1
    assert errors[0].startswith("broken.onnx: ")


def test_a_python_file_makes_networks(tmp_path: Path, predictor: Path) -> None:
    file = tmp_path / "space.py"
    file.write_text(
        f"import sys\nsys.path.insert(0, {str(Path(__file__).parent)!r})\nfrom made import chain\n"
        "def networks():\n    for width in (64, 8):\n        yield f'w{width}', chain([width] * 4, 40)\n"
    )
    rows, errors = ranked(file, device=DEVICE, predictor=predictor)
    assert [row.network for row in rows] == ["w8", "w64"]
    assert not errors


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("x = 1", r"networks\(\) failed: AttributeError"),
        ("def networks():\n    return [3]", r"pairs \(name, onnx.ModelProto\)"),
        ("def networks():\n    raise ValueError('sum')", "ValueError: sum"),
        ("def networks(:", "SyntaxError"),
    ],
)
def test_bad_python_files_name_the_fix(tmp_path: Path, code: str, message: str) -> None:
    file = tmp_path / "space.py"
    file.write_text(code)
    with pytest.raises(UsageError, match=message):
        list(networks_in(file))


def test_what_is_neither_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"holds no .onnx file"):
        list(networks_in(tmp_path))
    with pytest.raises(UsageError, match="neither a folder"):
        list(networks_in(tmp_path / "net.txt"))

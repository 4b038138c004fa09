"""What the documents say of the code."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from test_fusion import MAP, network

from perfpred.fusion import groups

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "perfpred"


def text(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def test_the_architecture_lists_every_module_once() -> None:
    listed = re.findall(r"^\| `([\w/]+\.py)` \|", text("ARCHITECTURE.md"), re.MULTILINE)
    modules = {str(path.relative_to(PACKAGE)) for path in PACKAGE.rglob("*.py")}
    assert sorted(listed) == sorted(m for m in modules if not m.startswith("zoo/") and not m.endswith("__init__.py"))


def test_imports_go_one_way() -> None:
    listed = re.findall(r"^\| `([\w/]+)\.py` \|", text("ARCHITECTURE.md"), re.MULTILINE)
    place = {f"perfpred.{module.replace('/', '.')}": number for number, module in enumerate(listed)}
    backwards = []
    for module, number in place.items():
        source = (ROOT / f"{module.replace('.', '/')}.py").read_text(encoding="utf-8")
        for found in re.findall(r"^from (perfpred\.[\w.]+) import", source, re.MULTILINE):
            if place.get(found, -1) > number:
                backwards.append(f"{module} imports {found}")
    assert not backwards


@pytest.mark.parametrize(
    ("rules", "expected"),
    [
        ("tensorrt", [{"conv"}, {"sigmoid", "mul"}]),
        ("tensorrt-rtx", [{"conv", "sigmoid", "mul"}]),
        ("onnxruntime-cuda", [{"conv"}, {"sigmoid", "mul"}]),
    ],
)
def test_the_rule_sets_disagree_on_silu_as_the_architecture_says(rules: str, expected: list[set[str]]) -> None:
    silu = network(
        f"""
        x in {MAP}
        conv Conv x %32,32,3,3 -> {MAP}
        sigmoid Sigmoid conv -> {MAP}
        mul Mul conv sigmoid -> {MAP}
        """
    )
    assert [{node.name for node in group.nodes} for group in groups(silu, rules)] == expected


def test_links_between_documents_lead_somewhere() -> None:
    for document in ROOT.rglob("*.md"):
        if {".venv", ".demo", ".pytest_cache"} & set(document.parts):
            continue
        for target in re.findall(r"\]\(([^)#]+)\)", document.read_text(encoding="utf-8")):
            assert "://" in target or (document.parent / target).exists(), f"{document.name}: {target}"

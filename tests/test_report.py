"""The report page: self-contained, escaped, and alive in a real browser where one is installed."""

from __future__ import annotations

import re
import shutil
import subprocess
from functools import lru_cache
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path

import numpy as np
import onnx
import pandas as pd
import pytest
from made import dataset, network

from perfpred import charts
from perfpred.dataset import Dataset, time_frame
from perfpred.errors import FormatError, UsageError
from perfpred.evaluate import evaluate
from perfpred.markdown import parts
from perfpred.page import Section, page
from perfpred.predictor import LatencyPredictor
from perfpred.report import dataset_sections, evaluation_section, write_report
from perfpred.splits import subset

pytest.importorskip("jinja2", reason="the report extra is not installed")

VOID = {"meta", "link", "input", "br", "hr", "img"}
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


class Tags(HTMLParser):
    """Checks that tags nest, and keeps what the page would load and what can be linked to."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.loads: list[str] = []
        self.ids: list[str] = []
        self.links: list[str] = []
        self.counts: dict[str, int] = {}

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        self.counts[tag] = self.counts.get(tag, 0) + 1
        if tag not in VOID:
            self.open.append(tag)
        self.ids += [given["id"] or ""] if "id" in given else []
        if tag == "a":
            self.links.append(given.get("href") or "")
        else:
            self.loads += [v for k in ("src", "href") if (v := given.get(k))]

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.counts[tag] = self.counts.get(tag, 0) + 1

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def parsed(text: str) -> Tags:
    made = Tags()
    made.feed(text)
    assert not made.open
    return made


@lru_cache(maxsize=1)
def trained() -> LatencyPredictor:
    return LatencyPredictor(name="made", folds=3).fit(dataset())


def timed() -> Dataset:
    """The made-up engines, each layer of them timed."""
    base = dataset()
    fused = base.layers_at("fused")
    times = [
        {
            "engine_id": engine["engine_id"], "name": layer["name"], "onnx_nodes": list(layer["onnx_nodes"]),
            "time_s": engine["latency_s"] / (fused["structure"] == engine["structure"]).sum(),
        }
        for engine in base.engines.head(4).to_dict("records")
        for layer in fused[fused["structure"] == engine["structure"]].to_dict("records")
        if layer["onnx_nodes"]
    ]  # fmt: skip
    return Dataset(engines=base.engines, layers=base.layers, times=time_frame(times))


def results(folder: Path) -> None:
    """An experiment's page, as `experiments/written.py` writes it, and its figure."""
    folder.mkdir()
    (folder / "ablation.md").write_text(
        "# What is known\n\n`python experiments/ablation.py`\n\n* The first step removes <b>1.5 %</b>.\n* The next none.\n\n"
        "![Errors](ablation.png)\n\n**By step** (first 2 of 9)\n\n| step | mape |\n|---|---|\n| shape | 0.9 |\n| cost | 12.5 % |\n\n"
        "## Further\n\nNothing.\n"
    )
    (folder / "ablation.png").write_bytes(b"\x89PNG")


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("report")
    timed().write(folder / "data")
    trained().save(folder / "made")
    evaluate([trained()], dataset(), protocol="lineage", folds=3, baselines=["bsp"]).save(folder / "lineage.json")
    onnx.save(network(2), folder / "net.onnx")
    results(folder / "results")
    paths = [folder / name for name in ("data", "made", "lineage.json", "net.onnx", "results")]
    write_report(paths, folder / "report.html", devices=["jetson-orin-nano", "jetson-agx-orin-32gb"])
    return folder / "report.html"


def test_page_needs_nothing_from_outside(report: Path) -> None:
    text = report.read_text()
    tags = parsed(text)
    assert all(load.startswith("data:") for load in tags.loads)
    assert not re.findall(r"url\(|@import|https?://(?!www\.w3\.org)", text)
    assert len(text) < 2_000_000


def test_every_section_can_be_reached(report: Path) -> None:
    tags = parsed(report.read_text())
    targets = [link.removeprefix("#") for link in tags.links]
    assert len(targets) == len(set(targets)) >= 5
    assert set(targets) <= set(tags.ids)
    assert len(tags.ids) == len(set(tags.ids))
    assert tags.counts["svg"] >= 6
    assert tags.counts["table"] >= 6


def test_page_holds_what_was_given(report: Path) -> None:
    text = report.read_text()
    for words in ("Dataset data", "Predictor made", "Protocol lineage", "Network net.onnx", dataset().digest()):
        assert words in text
    assert "net3 on jetson-orin-nano" in text


def test_results_are_shown_with_their_figures(report: Path) -> None:
    text = report.read_text()
    for words in (
        'id="what-is-known"', "<code>python experiments/ablation.py</code>", "<li>The next none.</li>",
        "&lt;b&gt;1.5 %&lt;/b&gt;", "<h3>By step (first 2 of 9)</h3>", 'data-value="12.5"', "<h3>Further</h3>",
        "data:image/png;base64,iVBORw==",
    ):  # fmt: skip
        assert words in text


def test_figures_that_are_missing_are_named(tmp_path: Path) -> None:
    results(tmp_path / "results")
    (tmp_path / "results" / "ablation.png").unlink()
    with pytest.raises(FormatError, match=r"its figure ablation\.png can't be read"):
        write_report([tmp_path / "results"], tmp_path / "r.html")


def test_markdown_is_taken_apart() -> None:
    text = "# a\n\ntwo\nlines\n- x\n* y\n\n| k | v |\n|---|---|\n| 1 | |\n\n![f](f.png)\n"
    assert list(parts(text)) == [
        ("heading", "a"), ("text", "two lines"), ("points", ["x", "y"]), ("table", [{"k": "1", "v": ""}]),
        ("figure", [("f", "f.png")]),
    ]  # fmt: skip


def test_places_are_compared_where_both_measured() -> None:
    slower = dataset().engines["device"].eq("jetson-orin-nano")
    engines = dataset().engines
    engines = engines.assign(latency_s=np.where(slower, 3.0, 1.0))
    _, devices = dataset_sections("made", Dataset(engines=engines, layers=dataset().layers))
    table = devices.blocks[-1]
    assert [row["cells"][2]["number"] for row in table["rows"]] in ([3.0], [pytest.approx(1 / 3)])
    alone = subset(dataset(), np.flatnonzero(slower))
    assert len(dataset_sections("made", alone)) == 1


def test_measured_layers_of_one_engine_add_up() -> None:
    layers = dataset_sections("made", timed())[-1]
    latency_s = timed().engines.set_index(["network", "device"])["latency_s"]
    device = layers.blocks[0]["text"].removeprefix("Measured on ").partition(",")[0]
    engine_s = latency_s.loc[layers.title.split(" ")[2], device]
    assert f"the engine takes {charts.seconds(engine_s)}" in layers.blocks[0]["text"]
    assert layers.blocks[1]["svg"].count("<rect") > 3


def test_names_are_escaped() -> None:
    bad = "<script>alert('x')</script>"
    points = pd.DataFrame({"measured_s": [1e-3], "predicted_s": [2e-3], "label": [bad]})
    section = Section(bad).say(bad).table(bad, [{bad: bad}]).chart(charts.scatter(points), bad)
    section.chart(charts.bars([bad], [1.0], name=bad), bad)
    text = page(bad, [section])
    assert text.count("<script>") == 1
    parsed(text)


def test_tables_show_units_and_keep_numbers_for_sorting() -> None:
    rows = [{"network": "a", "predicted_s": 0.00123, "mape": 0.0456, "n": 12345, "width": None, "x": float("nan")}]
    text = page("t", [Section("s").table("rows", rows)])
    for words in (">1.23 ms<", ">4.6%<", ">12,345<", 'data-value="0.00123"', ">predicted<"):
        assert words in text
    assert text.count(">–<") == 2


def test_times_and_shares_as_people_read_them() -> None:
    assert [charts.seconds(v) for v in (2.5, 0.0123, 4.56e-5)] == ["2.5 s", "12.3 ms", "45.6 µs"]
    assert [charts.percent(v) for v in (0.5, 0.0123)] == ["50%", "1.2%"]


def test_scatter_places_equal_values_on_the_diagonal() -> None:
    points = pd.DataFrame({"measured_s": [1e-3, 1e-2], "predicted_s": [1e-3, 1e-2], "label": ["a", "b"]})
    svg = charts.scatter(points)
    dots = [tuple(map(float, d)) for d in re.findall(r'cx="([\d.]+)" cy="([\d.]+)"', svg)]
    assert len(dots) == 2
    assert all(x - 100 == pytest.approx(492 - y, abs=0.2) for x, y in dots)
    assert "nothing to show" in charts.scatter(points.assign(predicted_s=np.nan))


def test_waterfall_begins_each_layer_where_the_last_ended() -> None:
    layers = pd.DataFrame(
        {"name": [f"l{i}" for i in range(60)], "kind": "conv", "time_s": [1e-3] * 3 + [1e-6] * 57, "bound": "memory"}
    )
    svg = charts.waterfall(layers, most=3, name="w")
    spans = [tuple(map(float, s)) for s in re.findall(r'x="([\d.]+)" y="[\d.]+" width="([\d.]+)" height="14"', svg)]
    assert len(spans) == 4
    for (begin, width), (following, _) in pairwise(spans):
        assert begin + width == pytest.approx(following, abs=0.2)
    assert "57 shorter layers" in svg


def test_shots_have_a_section() -> None:
    found = evaluate([trained()], dataset(), protocol="kshot", shots=(0, 2), draws=2)
    section = evaluation_section(found.to_dict())
    assert section.blocks[-1]["columns"] == ["predictor", "device", "k", "mape", "scaled roofline", "nearest"]


def test_what_can_not_be_reported_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text('{"format": "other"}')
    with pytest.raises(FormatError, match=r"is no perfpred.evaluation"):
        write_report([tmp_path / "x.json"], tmp_path / "r.html")
    with pytest.raises(UsageError, match="no dataset, predictor"):
        write_report([tmp_path / "nothing"], tmp_path / "r.html")
    onnx.save(network(2), tmp_path / "net.onnx")
    with pytest.raises(UsageError, match="give --device D"):
        write_report([tmp_path / "net.onnx"], tmp_path / "r.html")
    with pytest.raises(UsageError, match="name a dataset"):
        write_report([], tmp_path / "r.html")
    assert not (tmp_path / "r.html").exists()


PROBE = """
<script>
const told = [];
addEventListener("load", () => {
  const tell = (name, value) => told.push(name + "=" + value);
  const figure = document.querySelector("circle[data-name]").closest("figure");
  const input = figure.querySelector("input[data-filter]"), dots = figure.querySelectorAll("circle[data-name]");
  input.value = "net3 "; input.dispatchEvent(new Event("input"));
  tell("dots", dots.length);
  tell("dimmed", [...dots].filter((d) => d.classList.contains("off")).length);
  tell("drawn", [...document.querySelectorAll("svg")].every((s) => s.getBoundingClientRect().height > 20));
  const table = [...document.querySelectorAll("table")].find((t) => t.tBodies[0].rows.length > 3);
  const numbers = () => [...table.tBodies[0].rows].map((r) => Number(r.querySelector("[data-value]").dataset.value));
  const column = [...table.tBodies[0].rows[0].children].findIndex((c) => c.dataset.value !== undefined);
  const button = table.querySelectorAll("th button")[column];
  button.focus(); tell("focused", document.activeElement === button);
  const sorted = (v, sign) => v.every((x, i) => i === 0 || sign * (x - v[i - 1]) >= 0);
  button.click(); tell("ascending", sorted(numbers(), 1));
  button.click(); tell("descending", sorted(numbers(), -1));
  tell("sort", button.parentElement.getAttribute("aria-sort"));
  tell("sections", [...document.querySelectorAll("nav a")].filter((a) => document.querySelector(a.hash)).length);
  tell("overflow", document.documentElement.scrollWidth - innerWidth);
  tell("paper", getComputedStyle(document.body).backgroundColor);
  document.title = told.join(";");
  parent.postMessage(document.title, "*");
});
</script>
"""


#: A window can't be as narrow as a telephone, a frame can.
FRAME = """<!DOCTYPE html><title>-</title><script>addEventListener("message", (e) => document.title = e.data)</script>
<iframe src="probed.html" width="375" height="700" style="border: 0"></iframe>"""


def browse(file: Path, folder: Path, *options: str, narrow: bool = False) -> dict[str, str]:
    """What the page tells of itself in a headless browser, and the console's errors."""
    assert CHROMIUM is not None
    probed = folder / "probed.html"
    probed.write_text(file.read_text().replace("</body>", PROBE + "</body>"))
    if narrow:
        probed = folder / "frame.html"
        probed.write_text(FRAME)
    command = [
        CHROMIUM, "--headless=new", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr", "--v=0", "--dump-dom", "--virtual-time-budget=3000",
        f"--user-data-dir={folder / 'profile'}", *options, probed.as_uri(),
    ]  # fmt: skip
    made = subprocess.run(command, capture_output=True, text=True, timeout=180, check=True)
    title = re.search(r"<title>(.*?)</title>", made.stdout)
    assert title is not None
    console = [line for line in made.stderr.splitlines() if "CONSOLE" in line]
    return dict(part.split("=", 1) for part in title[1].split(";")) | {"console": "\n".join(console)}


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="no chromium here; apt-get install chromium")
def test_in_a_browser(report: Path, tmp_path: Path) -> None:
    told = browse(report, tmp_path, "--window-size=1000,800")
    assert told["console"] == ""
    assert int(told["dots"]) >= 48
    assert 0 < int(told["dimmed"]) < int(told["dots"])
    assert (told["drawn"], told["focused"], told["ascending"], told["descending"]) == ("true",) * 4
    assert told["sort"] == "descending"
    assert int(told["sections"]) >= 7
    assert int(told["overflow"]) <= 0
    assert told["paper"] == "rgb(255, 255, 255)"


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="no chromium here; apt-get install chromium")
def test_in_a_browser_narrow_and_dark(report: Path, tmp_path: Path) -> None:
    told = browse(report, tmp_path, "--blink-settings=preferredColorScheme=0", narrow=True)
    assert told["console"] == ""
    assert int(told["overflow"]) <= 0
    assert told["paper"] == "rgb(17, 22, 28)"

"""Commands that make and show data: collect, import, corpus, dataset, report."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as ProgressBar

from perfpred.arguments import parse_numbers
from perfpred.consoles import show_on
from perfpred.errors import UsageError

if TYPE_CHECKING:
    from perfpred.campaign import Progress

out = show_on(sys.stdout)
err = show_on(sys.stderr)
corpus_app = typer.Typer(no_args_is_help=True, help="The corpus of weight-free networks.")
dataset_app = typer.Typer(no_args_is_help=True, help="Datasets of measurements.")

Out = Annotated[Path, typer.Option("--out", help="Folder to write.")]


class Source(str, Enum):
    """What `perfpred import` reads."""

    trtexec = "trtexec"
    published = "published"
    conv_table = "conv-table"


def register(app: typer.Typer) -> None:
    """Adds these commands to the command line."""
    if any(command.name == "collect" for command in app.registered_commands):
        return
    app.command("collect")(collect)
    app.command("import")(import_)
    app.command("report")(report)
    app.add_typer(corpus_app, name="corpus")
    app.add_typer(dataset_app, name="dataset")


def collect(
    folder: Out,
    networks: Annotated[list[Path] | None, typer.Argument(help="ONNX files or folders.")] = None,
    corpus: Annotated[str | None, typer.Option(help="Selection of corpus networks instead, such as sample:24.")] = None,
    runtime: Annotated[str, typer.Option(help="onnxruntime, tensorrt or tensorrt-rtx.")] = "onnxruntime",
    device: Annotated[str, typer.Option(help="gpu or cpu.")] = "gpu",
    precision: Annotated[str, typer.Option(help="One or several, comma-separated.")] = "",
    batch_size: Annotated[str, typer.Option("--batch-size", help="One or several, comma-separated.")] = "1",
    sm_count: Annotated[str, typer.Option("--sm-count", help="Partitions, comma-separated, or all.")] = "all",
    optimisation: Annotated[str, typer.Option(help="all, off, or both as all,off.")] = "all",
    rebuilds: Annotated[int, typer.Option(min=0, help="Fresh builds beyond the first.")] = 0,
    check_outputs: Annotated[bool, typer.Option("--check-outputs", help="Compare outputs with fp32.")] = False,
    layers: Annotated[bool, typer.Option("--layers/--no-layers", help="Also per-layer times.")] = True,
    detail: Annotated[bool, typer.Option("--detail", help="Also isolated and back-to-back times.")] = False,
    plan: Annotated[Path | None, typer.Option(help="Measure a plan instead of a grid.")] = None,
    gpus: Annotated[str, typer.Option(help="all, or numbers such as 0,2-3.")] = "0",
    cuda: Annotated[str, typer.Option(help="CUDA binding: auto, pycuda, cuda-bindings or ctypes.")] = "auto",
    cores: Annotated[str, typer.Option(help="Cores CPU workers are pinned to, such as 0-3.")] = "",
    host: Annotated[str, typer.Option(help="Device name of this CPU in the dataset, to tell it from others.")] = "cpu",
    deadline: Annotated[float | None, typer.Option(help="Start no engine later than this many seconds.")] = None,
    retry_failed: Annotated[bool, typer.Option("--retry-failed", help="Measure recorded failures again.")] = False,
    cluster: Annotated[str | None, typer.Option(help="Address of a dask.distributed scheduler.")] = None,
) -> None:
    """Measures networks and writes a dataset; a second run resumes."""
    from perfpred.collect import run_plan
    from perfpred.corpus import Corpus
    from perfpred.gather import finish, graph_folder, grid_plan

    if bool(networks) == bool(corpus):
        raise UsageError("name ONNX files, or a selection with --corpus, and not both")
    sources: Sequence[Path] = networks or []
    known = None
    if corpus:
        known = Corpus.load()
        sources = [graph_folder(known, corpus, folder)]
    asked = grid_plan(
        sources,
        plan=plan,
        runtime=runtime,
        target=device,
        precisions=[p for p in precision.split(",") if p],
        batch_sizes=parse_numbers(batch_size, "--batch-size"),
        sm_counts=[None] if sm_count == "all" else parse_numbers(sm_count, "--sm-count"),
        optimisations=optimisation.split(","),
        rebuilds=rebuilds,
        check_outputs=check_outputs,
        layers=layers,
        detail=detail,
    )
    columns = (
        TextColumn("measuring"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[note]}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    begin = time.monotonic()
    with ProgressBar(*columns, console=err) as bar:
        task = bar.add_task("rows", total=len(asked.units), note="")

        def shown(progress: Progress) -> None:
            rate = 60 * progress.done / max(time.monotonic() - begin, 1e-6)
            note = f"{sum(progress.failed.values())} failed, {rate:.0f}/min"
            bar.update(task, completed=progress.skipped + progress.done, note=note)

        run_plan(
            asked,
            sources,
            folder,
            gpus=gpus,
            cuda=cuda,
            cores=cores,
            host=host,
            deadline_s=deadline,
            retry_failed=retry_failed,
            cluster=cluster,
            report=shown,
        )
    made = finish(folder, sources, known)
    good = len(made.good)
    out.print(f"{folder}: {good} engines measured, {len(made.engines) - good} failed; `perfpred dataset show {folder}`")
    for message in made.engines["error"].dropna().unique()[:5]:
        err.print(f"[yellow]failed:[/yellow] {escape(str(message))}")
    if not good:
        raise typer.Exit(1)


def import_(
    source: Annotated[Source, typer.Argument(help="trtexec, published or conv-table.")],
    files: Annotated[list[Path], typer.Argument(help="Files to read.")],
    folder: Out,
    network: Annotated[Path | None, typer.Option(help="trtexec: the ONNX file that was built.")] = None,
    device: Annotated[str | None, typer.Option(help="trtexec: the device it ran on.")] = None,
    precision: Annotated[str | None, typer.Option(help="trtexec: precision of the build.")] = None,
    batch_size: Annotated[int, typer.Option("--batch-size", min=1, help="trtexec: batch size.")] = 1,
) -> None:
    """Brings measurements made elsewhere into a dataset."""
    from perfpred import imports
    from perfpred.dataset import concat

    if source is Source.trtexec:
        if network is None or device is None:
            raise UsageError("import trtexec needs --network NET.onnx and --device D beside the recordings")
        made = imports.dataset_from_trtexec(
            files, network=network, device=device, precision=precision, batch_size=batch_size
        )
    elif source is Source.published:
        made = concat([imports.dataset_from_published(file) for file in files])
    else:
        made = concat([imports.dataset_from_conv_table(file) for file in files])
    made.write(folder)
    out.print(f"{folder}: {len(made.good)} engines of {made.good['network'].nunique()} networks")


def report(
    paths: Annotated[
        list[Path], typer.Argument(help="Datasets, predictors, evaluations, folders of results or ONNX files.")
    ],
    file: Annotated[Path, typer.Option("--out", help="HTML file to write.")] = Path("report.html"),
    device: Annotated[list[str] | None, typer.Option("--device", help="Devices for ONNX files.")] = None,
) -> None:
    """Writes a self-contained HTML page."""
    from perfpred.report import write_report

    write_report(paths, file, devices=device or [])
    out.print(f"{file}")


@corpus_app.command("list")
def corpus_list(selection: Annotated[str, typer.Argument(help="Such as family=resnet or split=dev.")] = "all") -> None:
    """Networks of the corpus."""
    from perfpred import show
    from perfpred.corpus import Corpus

    rows = [
        {
            "name": n.name,
            "family": n.family,
            "lineage": n.lineage,
            "nodes": n.nodes,
            "GFLOPs": n.gflops or "",
            "split": n.split,
        }
        for n in Corpus.load().select(selection)
    ]
    show.table(out, f"{len(rows)} networks", rows)


@corpus_app.command("show")
def corpus_show(name: Annotated[str, typer.Argument(help="Name of a corpus network.")]) -> None:
    """What is known of one network."""
    from dataclasses import asdict

    from perfpred.corpus import Corpus

    for key, value in asdict(Corpus.load()[name]).items():
        out.print(f"{key}: {escape(str(value))}")


@corpus_app.command("export")
def corpus_export(
    folder: Out,
    selection: Annotated[str | None, typer.Argument(help="Such as sample:24.")] = None,
    select: Annotated[
        str | None, typer.Option("--select", help="The same; `calibration` are the first to measure.")
    ] = None,
    count: Annotated[int, typer.Option(min=1, help="How many for `calibration`.")] = 20,
    trtexec_script: Annotated[bool, typer.Option("--trtexec-script", help="Also a script that measures them.")] = False,
) -> None:
    """Writes graphs as plain ONNX files, weight-free."""
    from perfpred.corpus import Corpus
    from perfpred.gather import calibration_selection, write_trtexec_script

    wanted = select or selection
    if wanted is None:
        raise UsageError("name a selection, such as all, family=resnet or sample:24")
    corpus = Corpus.load()
    paths = corpus.export(calibration_selection(corpus, count) if wanted == "calibration" else wanted, folder)
    if trtexec_script:
        write_trtexec_script(paths, folder)
    out.print(f"{folder}: {len(paths)} networks")


@dataset_app.command("show")
def dataset_show(folder: Annotated[Path, typer.Argument(help="Dataset folder.")]) -> None:
    """Counts, coverage, noise and flags of a dataset."""
    from perfpred import show
    from perfpred.dataset import Dataset
    from perfpred.overview import overview

    for title, rows in overview(Dataset.read(folder)).items():
        show.table(out, title, rows)


@dataset_app.command("check")
def dataset_check(folder: Annotated[Path, typer.Argument(help="Dataset folder.")]) -> None:
    """Reads and validates a dataset."""
    from perfpred.dataset import Dataset

    made = Dataset.read(folder)
    out.print(
        f"{folder}: consistent; {len(made.good)} engines, {len(made.layers)} layers, {len(made.times)} layer times"
    )

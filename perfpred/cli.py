"""The command line: each command parses, calls the package, prints."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape

from perfpred import __version__
from perfpred.arguments import parse_budget, parse_inputs
from perfpred.consoles import show_on
from perfpred.errors import PerfpredError, UsageError
from perfpred.prediction import error_dict

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)
out = show_on(sys.stdout)
err = show_on(sys.stderr)

Networks = Annotated[list[Path], typer.Argument(help="ONNX files; weights are not needed.")]
DeviceOption = Annotated[str, typer.Option("--device", help="Device; `perfpred devices` lists them.")]
Precision = Annotated[str | None, typer.Option(help="fp32, tf32, fp16, bf16, int8 or fp8.")]
Runtime = Annotated[str | None, typer.Option(help="tensorrt, tensorrt-rtx or onnxruntime.")]
Batch = Annotated[int | None, typer.Option("--batch-size", help="Binds the first dimension of the inputs.")]
Inputs = Annotated[list[str] | None, typer.Option("--input", help="Full shape of an input, NAME:1x3x224x224.")]
AsJson = Annotated[bool, typer.Option("--json", help="One JSON object a line.")]
Out = Annotated[Path, typer.Option("--out", help="Folder to write.")]


def _print_json(record: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(record) + "\n")
    sys.stdout.flush()


@app.command()
def predict(
    networks: Networks,
    device: Annotated[list[str], typer.Option("--device", help="Device, may be repeated.")],
    mode: Annotated[str | None, typer.Option(help="Power mode of the device.")] = None,
    sm_count: Annotated[int | None, typer.Option("--sm-count", help="Partition of a data-centre GPU.")] = None,
    runtime: Runtime = None,
    precision: Precision = None,
    batch_size: Batch = None,
    inputs: Inputs = None,
    latency_kind: Annotated[str | None, typer.Option(help="What the latency contains; gpu_compute.")] = None,
    budget: Annotated[str | None, typer.Option(help="Time to meet, such as 33ms.")] = None,
    predictor: Annotated[Path | None, typer.Option(help="Folder of a trained predictor.")] = None,
    level: Annotated[float, typer.Option(help="Of the interval.")] = 0.9,
    layers: Annotated[bool, typer.Option("--layers", help="Also the fused layers.")] = False,
    as_json: AsJson = False,
) -> None:
    """Latency of networks on devices, after the runtime has optimised them."""
    from perfpred import show
    from perfpred.requests import Request

    request = Request.checked(
        devices=device,
        mode=mode,
        sm_count=sm_count,
        runtime=runtime,
        precision=precision,
        batch_size=batch_size,
        inputs=parse_inputs(inputs or []),
        latency_kind=latency_kind,
        budget_s=parse_budget(budget) if budget else None,
        predictor=predictor,
        level=level,
    )
    failed = False
    for network in networks:
        for slug, answer in request.answers(network):
            if isinstance(answer, PerfpredError):
                failed = True
                if as_json:
                    _print_json(error_dict(str(network), slug, answer))
                else:
                    err.print(f"[red]error[/red] {escape(str(answer))}")
            elif as_json:
                _print_json(answer.to_dict(layers=layers))
            else:
                show.prediction(out, answer, layers=layers)
    if failed:
        raise typer.Exit(1)


@app.command()
def layers(
    networks: Networks,
    runtime: Annotated[str, typer.Option(help="Rule set, or the real builder for tensorrt-rtx.")] = "tensorrt",
    precision: Precision = None,
    device: Annotated[str | None, typer.Option(help="Device the engine is for.")] = None,
    batch_size: Batch = None,
    inputs: Inputs = None,
    as_json: AsJson = False,
) -> None:
    """Fused layers of a network, and the rule that made each."""
    from perfpred import show
    from perfpred.requests import fused_layers

    shapes = parse_inputs(inputs or [])
    failed = False
    for network in networks:
        try:
            answer = fused_layers(
                network, runtime=runtime, precision=precision, device=device, batch_size=batch_size, inputs=shapes
            )
        except UsageError:
            raise
        except PerfpredError as error:
            failed = True
            if as_json:
                _print_json({"format": "perfpred.layers", "version": 1, "network": str(network), "error": str(error)})
            else:
                err.print(f"[red]error[/red] {escape(str(error))}")
            continue
        if as_json:
            _print_json(answer.to_dict())
        else:
            show.layers(out, answer)
    if failed:
        raise typer.Exit(1)


@app.command()
def devices(device: Annotated[str | None, typer.Argument(help="Slug, or nothing for all.")] = None) -> None:
    """Devices, and which data backs each."""
    from perfpred import show
    from perfpred.defaults import data_behind
    from perfpred.device import device_slugs, load_device

    if device is None:
        show.devices(out, [load_device(slug) for slug in device_slugs()], data_behind())
    else:
        show.device(out, load_device(device), data_behind().get(device, "specification only"))


@app.command()
def train(
    datasets: Annotated[list[Path], typer.Argument(help="Dataset folders, all of one runtime.")],
    folder: Out,
    seed: Annotated[int, typer.Option(help="Of every random choice.")] = 0,
    folds: Annotated[int, typer.Option(help="Held-out groups behind the intervals.")] = 5,
) -> None:
    """Trains a predictor on datasets."""
    from perfpred.dataset import Dataset, concat
    from perfpred.predictor import LatencyPredictor

    dataset = concat([Dataset.read(path) for path in datasets])
    with err.status("training"):
        made = LatencyPredictor(name=folder.name, seed=seed, folds=folds).fit(dataset)
    made.save(folder)
    facts = made.facts_
    out.print(f"{folder}: {facts['runtime']}, {facts['n_engines']} engines of {facts['n_networks']} networks")


@app.command()
def calibrate(
    predictor: Annotated[Path, typer.Argument(help="Folder of a trained predictor.")],
    measurements: Annotated[Path, typer.Argument(help="Dataset with 1 to 50 engines of the device.")],
    device: DeviceOption,
    folder: Out,
) -> None:
    """Fits a predictor to your own device with a few measurements."""
    from perfpred.dataset import Dataset
    from perfpred.predictor import LatencyPredictor
    from perfpred.transfer import calibrated

    made = calibrated(LatencyPredictor.load(predictor), Dataset.read(measurements), device)
    made.save(folder)
    out.print(f"{folder}: calibrated to {device}")


@app.command()
def evaluate(
    paths: Annotated[list[Path], typer.Argument(help="Predictor folders, then one dataset folder.")],
    protocol: Annotated[
        str | None, typer.Option(help="random, family, lineage, device, batch, precision or kshot; trains anew.")
    ] = None,
    folds: Annotated[int, typer.Option(help="Folds of grouped protocols.")] = 5,
    seed: Annotated[int, typer.Option(help="Of splits.")] = 0,
    as_json: AsJson = False,
) -> None:
    """Accuracy on networks, families, devices never seen, beside the baselines."""
    from perfpred.dataset import Dataset
    from perfpred.evaluate import evaluate as run
    from perfpred.predictor import LatencyPredictor

    if len(paths) < 2:
        raise UsageError("give at least one predictor folder and, last, a dataset folder")
    found = run(
        [LatencyPredictor.load(p) for p in paths[:-1]],
        Dataset.read(paths[-1]),
        protocol=protocol,
        folds=folds,
        seed=seed,
    )
    if as_json:
        _print_json(found.to_dict())
    else:
        found.show(out)


@app.command()
def rank(
    source: Annotated[Path, typer.Argument(help="Folder of ONNX files, or a Python file with networks().")],
    device: DeviceOption,
    constraint: Annotated[list[str] | None, typer.Option(help="Such as latency_s<=0.005.")] = None,
    runtime: Runtime = None,
    precision: Precision = None,
    batch_size: Batch = None,
    predictor: Annotated[Path | None, typer.Option(help="Folder of a trained predictor.")] = None,
    as_json: AsJson = False,
) -> None:
    """Ranks networks by predicted latency."""
    from perfpred import show
    from perfpred.rank import ranked

    rows, errors = ranked(
        source,
        device=device,
        constraints=constraint or [],
        runtime=runtime,
        precision=precision,
        batch_size=batch_size,
        predictor=predictor,
    )
    for row in rows if as_json else []:
        _print_json(row.to_dict())
    if not as_json:
        show.ranking(out, rows)
    for message in errors:
        err.print(f"[red]error[/red] {escape(message)}")
    if errors:
        raise typer.Exit(1)


@app.command()
def doctor() -> None:
    """What this installation can do here: runtimes, devices, predictors, data."""
    from perfpred import show
    from perfpred.doctor import findings

    show.table(out, "perfpred here", findings())


def _version(shown: bool) -> None:
    if shown:
        out.print(f"perfpred {__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Print it.")] = False,
) -> None:
    """Latency of neural networks after an inference engine has optimised them, predicted before deployment."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs a command; any error raised on purpose is one line and an exit status of 2 for bad usage, else 1."""
    logging.getLogger("onnx_ir").setLevel(logging.CRITICAL)
    from perfpred.data_commands import register

    register(app)
    try:
        app(args=list(arguments) if arguments is not None else None)
    except UsageError as error:
        err.print(f"[red]error[/red] {escape(str(error))}", soft_wrap=True)
        raise SystemExit(2) from error
    except PerfpredError as error:
        err.print(f"[red]error[/red] {escape(str(error))}", soft_wrap=True)
        raise SystemExit(1) from error


if __name__ == "__main__":
    main()

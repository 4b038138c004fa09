"""Around a campaign: which graphs and engines it takes, and the dataset that comes of it."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from perfpred.assemble import Origin, dataset_from_records
from perfpred.corpus import Corpus
from perfpred.dataset import Dataset
from perfpred.errors import UsageError
from perfpred.prepare import find_networks, load_filled
from perfpred.raw import records
from perfpred.unit import Plan, grid
from perfpred.weights import bind_batch

#: Flags that mean the same for trtexec 8 to 11, whatever its defaults.
_TRTEXEC: Final = (
    "--warmUp=500 --duration=5 --iterations=100 --noDataTransfers --useSpinWait --useCudaGraph --separateProfileRun"
)


def graph_folder(corpus: Corpus, selection: str, dataset: Path) -> Path:
    """Exports the selected corpus graphs beside the raw records, once, and returns their folder."""
    folder = dataset / "graphs"
    corpus.export(selection, folder)
    return folder


def grid_plan(
    sources: Sequence[Path], *, plan: Path | None, target: str, precisions: Sequence[str], **grid_of: Any
) -> Plan:
    """A plan read from a file, or the grid of what was asked for.

    Raises:
        UsageError: The target is unknown, or no network was found.
    """
    if plan is not None:
        return Plan.load(plan)
    if target not in ("gpu", "cpu"):
        raise UsageError(f"--device {target} is neither gpu nor cpu")
    names = find_networks(list(sources))
    if not names:
        raise UsageError(f"no ONNX file in {', '.join(map(str, sources))}")
    chosen = precisions or (["fp32"] if target == "cpu" else ["fp16"])
    return grid(names, target=target, precisions=chosen, **grid_of)


def finish(folder: Path, sources: Sequence[Path], corpus: Corpus | None = None, *, jobs: int = 1) -> Dataset:
    """Turns the raw records of a folder into its tables."""
    origins = {
        network.name: Origin(network_id=network.id, family=network.family, lineage=network.lineage)
        for network in corpus or ()
    }
    made = dataset_from_records(records(folder), find_networks(list(sources)), origins=origins, jobs=jobs)
    made.write(folder)
    return made


def calibration_selection(corpus: Corpus, count: int) -> str:
    """Names of the networks most worth measuring first on a new device, comma-separated."""
    from perfpred.transfer import choose_calibration

    return ",".join(choose_calibration(corpus, count))


def write_trtexec_script(paths: Sequence[Path], folder: Path) -> Path:
    """Fills exported graphs with random weights at batch 1 and writes `measure.sh`, which measures them with trtexec.

    The script needs a POSIX shell and nothing else. A network that fails costs itself only; what the others leave is
    packed into `results.tar`, which `perfpred import trtexec` reads.
    """
    lines = ["#!/bin/sh", "# Needs trtexec on the PATH.", 'cd "$(dirname "$0")" || exit 1']
    for path in paths:
        path.write_bytes(bind_batch(load_filled(path), 1).SerializeToString())
        stem = shlex.quote(path.stem)
        lines.append(
            f"trtexec --onnx={shlex.quote(path.name)} --fp16 --saveEngine={stem}.engine "
            f"--profilingVerbosity=detailed {_TRTEXEC} --exportTimes={stem}.times.json "
            f"--exportProfile={stem}.profile.json --exportLayerInfo={stem}.layers.json || echo {stem} failed"
        )
    lines.append("tar cf results.tar *.times.json *.profile.json *.layers.json")
    script = folder / "measure.sh"
    script.write_text("\n".join(lines) + "\n")
    script.chmod(0o755)
    return script

"""The corpus: weight-free networks and the table that describes them.

`datasets/corpus.csv` has a row per network; its graph is `datasets/graphs/<name>.onnx.zst`. The folder is found
beside the package in a checkout, or named by the environment variable `PERFPRED_DATASETS`.
"""

from __future__ import annotations

import csv
import hashlib
import os
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, fields, replace
from fnmatch import fnmatchcase
from functools import cached_property
from math import prod
from pathlib import Path

import onnx
from onnx import ModelProto

from perfpred.errors import FormatError, RuntimeUnavailableError, UsageError
from perfpred.structure import structure_id
from perfpred.weights import FLOAT_TYPES

DATASETS_VARIABLE = "PERFPRED_DATASETS"
TABLE = "corpus.csv"
GRAPHS = "graphs"
GRAPH_SUFFIX = ".onnx.zst"
TEST_SHARE = 0.2
# The first number from 0 that sets aside 6 or 7 of the 33 lineages of real networks; chosen before any was measured.
_SPLIT_SALT = 5
#: Lineage of single layers at drawn sizes: predictors learn from them, but they are no networks to be judged on.
PROBE = "probe"
_FILTERS = ("family", "lineage", "split", "collection", "source")


def split_of(lineage: str) -> str:
    """Return `test` for the fifth of lineages set aside by the hash of their name, `dev` for the others.

    Test lineages are scored once per release and never used for selection. Probes are always `dev`.
    """
    if lineage == PROBE:
        return "dev"
    digest = hashlib.sha256(f"{_SPLIT_SALT}: {lineage}".encode()).digest()
    return "test" if int.from_bytes(digest[:8], "big") < TEST_SHARE * 2**64 else "dev"


@dataclass(frozen=True, kw_only=True)
class CorpusNetwork:
    """One row of the corpus table.

    Attributes:
        id: hash of the structure, see `structure_id`.
        name: `collection.network`, with `@H` or `@HxW` where the input size is not the default one.
        family: networks of one design.
        lineage: coarse group of families.
        source: package or paper that defines the architecture.
        licence: licence note of the builder.
        opset: version of the default operator domain.
        inputs: dimensions of each input without the batch axis, for example `3x224x224`; several joined by `|`.
        nodes: operators, constants not counted.
        gflops: 1e9 floating-point operations of one inference at batch 1, 2 for each multiply-add; None if unknown.
        params: number of values in float initializers.
        split: `dev` or `test`, from `split_of(lineage)`.
        aliases: other builders that give the same structure.
    """

    id: str
    name: str
    family: str
    lineage: str
    source: str
    licence: str
    opset: int
    inputs: str
    nodes: int
    gflops: float | None
    params: int
    split: str
    aliases: tuple[str, ...] = ()

    @property
    def collection(self) -> str:
        """The part of the name before the first dot, for example `timm`."""
        return self.name.partition(".")[0]


COLUMNS = tuple(field.name for field in fields(CorpusNetwork))


def datasets_folder() -> Path:
    """Return the folder that holds the corpus.

    Raises:
        UsageError: neither the environment variable nor the checkout has it.
    """
    named = os.environ.get(DATASETS_VARIABLE)
    folder = Path(named) if named else Path(__file__).resolve().parent.parent / "datasets"
    if not (folder / TABLE).is_file():
        raise UsageError(
            f"no {TABLE} in {folder}; set {DATASETS_VARIABLE} to the folder `datasets` of a checkout of perfpred"
        )
    return folder


def _decompress(data: bytes) -> bytes:
    try:
        import zstandard
    except ImportError as error:
        raise RuntimeUnavailableError("reading corpus graphs needs `zstandard`; pip install zstandard") from error
    return bytes(zstandard.ZstdDecompressor().decompress(data))


class Corpus:
    """The networks of the corpus, in the order of the table."""

    def __init__(self, networks: Iterable[CorpusNetwork], folder: Path) -> None:
        self.networks = tuple(networks)
        self.folder = folder

    @classmethod
    def load(cls, root: str | Path | None = None) -> Corpus:
        """Read the table of the corpus in `root`, or in `datasets_folder()`.

        Raises:
            UsageError: there is no corpus there.
            FormatError: the table has other columns than this version knows.
        """
        folder = datasets_folder() if root is None else Path(root)
        try:
            return cls(read_table(folder / TABLE), folder)
        except FileNotFoundError as error:
            raise UsageError(f"no {TABLE} in {folder}; name the folder `datasets` of a checkout") from error

    def __len__(self) -> int:
        return len(self.networks)

    def __iter__(self) -> Iterator[CorpusNetwork]:
        return iter(self.networks)

    @cached_property
    def _by_name(self) -> dict[str, CorpusNetwork]:
        names = {alias: network for network in self.networks for alias in network.aliases}
        return names | {network.name: network for network in self.networks}

    def __contains__(self, name: str) -> bool:
        return name in self._by_name

    def __getitem__(self, name: str) -> CorpusNetwork:
        """Return the network of that name or alias.

        Raises:
            UsageError: there is none.
        """
        try:
            return self._by_name[name]
        except KeyError as error:
            raise UsageError(f"no corpus network {name!r}; `perfpred corpus list` names them") from error

    def select(self, selection: str) -> tuple[CorpusNetwork, ...]:
        """Return the networks of a selection, each once, in the order of the table.

        A selection is a comma-separated union of `all`, names or aliases, glob patterns, `family=`, `lineage=`,
        `split=`, `collection=` or `source=` with a value or pattern, and `sample:N`, which stands for N networks
        spread over the lineages, the same ones every time.

        Raises:
            UsageError: a part selects nothing.
        """
        chosen: set[str] = set()
        for part in filter(None, (part.strip() for part in selection.split(","))):
            names = self._select_part(part)
            if not names:
                raise UsageError(f"{part!r} selects no corpus network; `perfpred corpus list` names them")
            chosen.update(names)
        return tuple(network for network in self.networks if network.name in chosen)

    def _select_part(self, part: str) -> list[str]:
        if part == "all":
            return [network.name for network in self.networks]
        if part.startswith("sample:"):
            count = part.removeprefix("sample:")
            if not count.isdigit():
                raise UsageError(f"{part!r} is not sample:N with a whole number N")
            return [network.name for network in self.sample(int(count))]
        key, separator, pattern = part.partition("=")
        if separator and key in _FILTERS:
            return [network.name for network in self.networks if fnmatchcase(str(getattr(network, key)), pattern)]
        if part in self._by_name:
            return [self._by_name[part].name]
        return [network.name for name, network in self._by_name.items() if fnmatchcase(name, part)]

    def sample(self, count: int) -> tuple[CorpusNetwork, ...]:
        """Return `count` networks, taking lineages in turn and within each the next one by hash; probes left out."""
        groups: dict[str, list[CorpusNetwork]] = {}
        networks = (network for network in self.networks if network.lineage != PROBE)
        for network in sorted(networks, key=lambda n: hashlib.sha256(n.name.encode()).hexdigest()):
            groups.setdefault(network.lineage, []).append(network)
        rounds = [(turn, lineage, network) for lineage, group in groups.items() for turn, network in enumerate(group)]
        ordered = sorted(rounds, key=lambda item: item[:2])
        return tuple(network for _, _, network in ordered[:count])

    def find(self, zoo: str, height: int, width: int) -> CorpusNetwork | None:
        """Return the network that a builder `library/name[?argument=value]` gives at an image size, if it is here."""
        name = name_of(zoo)
        sized = (f"{name}@{height}x{width}", f"{name}@{height}") if height == width else (f"{name}@{height}x{width}",)
        for candidate in (*sized, name):
            network = self._by_name.get(candidate)
            if network is not None and network.inputs.endswith(f"x{height}x{width}"):
                return network
        return None

    def model(self, name: str) -> ModelProto:
        """Return the weight-free graph of a network.

        Raises:
            UsageError: unknown name.
            FormatError: the graph file is missing or damaged.
        """
        return read_graph(self.folder / GRAPHS / f"{self[name].name}{GRAPH_SUFFIX}")

    def export(self, selection: str, folder: str | Path) -> list[Path]:
        """Write the selected graphs as plain `.onnx` files, weight-free, and return their paths."""
        target = Path(folder)
        target.mkdir(parents=True, exist_ok=True)
        paths = []
        for network in self.select(selection):
            path = target / f"{network.name}.onnx"
            path.write_bytes(self.model(network.name).SerializeToString())
            paths.append(path)
        return paths


def name_of(zoo: str) -> str:
    """Return the corpus name of a builder `library/name[?argument=value]`, at its default input size."""
    library, _, rest = zoo.partition("/")
    return f"{library}.{rest.replace('?', '-').replace('=', '-')}"


def read_graph(path: Path) -> ModelProto:
    """Return the graph in a `.onnx.zst` file.

    Raises:
        FormatError: the file is missing or damaged.
    """
    try:
        return onnx.load_from_string(_decompress(path.read_bytes()))
    except RuntimeUnavailableError:
        raise
    except Exception as error:  # zstandard and protobuf each raise their own kind
        raise FormatError(f"{path} can't be read ({error}); rebuild it with `python -m perfpred.zoo build`") from error


def read_table(path: Path) -> list[CorpusNetwork]:
    """Return the rows of a corpus table.

    Raises:
        FormatError: the columns are not those of this version.
    """
    with path.open(newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file)
        if tuple(reader.fieldnames or ()) != COLUMNS:
            raise FormatError(f"{path} has columns {reader.fieldnames}, expected {list(COLUMNS)}; rebuild the table")
        return [_network_from_row(row) for row in reader]


def _network_from_row(row: dict[str, str]) -> CorpusNetwork:
    return CorpusNetwork(
        id=row["id"],
        name=row["name"],
        family=row["family"],
        lineage=row["lineage"],
        source=row["source"],
        licence=row["licence"],
        opset=int(row["opset"]),
        inputs=row["inputs"],
        nodes=int(row["nodes"]),
        gflops=float(row["gflops"]) if row["gflops"] else None,
        params=int(row["params"]),
        split=split_of(row["lineage"]),
        aliases=tuple(filter(None, row["aliases"].split(" "))),
    )


def write_table(networks: Iterable[CorpusNetwork], path: Path) -> None:
    """Write the table, sorted by name, replacing the file only when it is complete."""
    partial = path.with_suffix(".partial")
    with partial.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        for network in sorted(networks, key=lambda n: n.name):
            row = asdict(network)
            gflops = "" if network.gflops is None else f"{network.gflops:.4g}"
            writer.writerow(row | {"gflops": gflops, "aliases": " ".join(sorted(network.aliases))})
    partial.replace(path)


def input_shapes(model: ModelProto) -> tuple[tuple[int, ...], ...]:
    """Return the dimensions of every input without the batch axis; 0 for a dimension that is not fixed."""
    weights = {tensor.name for tensor in model.graph.initializer}
    return tuple(
        tuple(dim.dim_value for dim in value.type.tensor_type.shape.dim[1:])
        for value in model.graph.input
        if value.name not in weights
    )


def described(model: ModelProto, network: CorpusNetwork) -> CorpusNetwork:
    """Return the row with the columns that follow from the graph filled in, `gflops` excepted."""
    return replace(
        network,
        id=structure_id(model),
        opset=next(o.version for o in model.opset_import if o.domain in ("", "ai.onnx")),
        inputs="|".join("x".join(map(str, shape)) for shape in input_shapes(model)),
        nodes=sum(node.op_type != "Constant" for node in model.graph.node),
        params=sum(prod(t.dims) for t in model.graph.initializer if t.data_type in FLOAT_TYPES),
        split=split_of(network.lineage),
    )

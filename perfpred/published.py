"""Published TensorRT latencies, brought into the dataset schema and mapped to graphs.

The table's schema is that of `tensorrt_published.csv` (see `COLUMNS`); anyone can bring a table of their own. A
network is named by its builder (`zoo`: `timm/resnet50d`, `torchvision/vgg16`, `...?argument=value`), by a graph file
(`graph`, relative to the table), or by upstream's own name where `REBUILT` lists a corpus network for it.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Final

import onnx
import pandas as pd

from perfpred.corpus import Corpus, name_of
from perfpred.dataset import LATENCY_KINDS, Dataset, engine_frame
from perfpred.device import device_slugs
from perfpred.errors import DatasetError, NetworkError
from perfpred.layer import PRECISIONS
from perfpred.lowering import rules_for, structure_frame, structure_key
from perfpred.network import Network, load_network
from perfpred.structure import structure_id
from perfpred.table import read_csv, refuse_unknown

#: Columns of the table with their types; others are ignored.
COLUMNS: Final[Mapping[str, type]] = {
    **dict.fromkeys(("source", "device", "precision", "network", "latency_kind", "input_shape"), str),
    "batch_size": int,
    "latency_ms": float,
    **dict.fromkeys(
        (
            "zoo", "graph", "zoo_match", "family", "source_path", "commit", "licence", "runtime", "runtime_version",
            "jetpack", "power_mode", "trust", "note",
        ),
        str,
    ),
}  # fmt: skip
#: What a row may leave empty; without `zoo` and `graph` a row counts only where `REBUILT` knows its network.
OPTIONAL: Final = frozenset(COLUMNS) - {
    "source", "device", "precision", "network", "latency_kind", "batch_size", "latency_ms",
}  # fmt: skip
_COPY: Final = re.compile(r"\bcopy_of=")

#: (source, upstream's network) -> corpus network rebuilt here from the published description. Counted as approximate:
#: the tables state neither parameters nor multiply-adds of these to check against.
REBUILT: Final[Mapping[tuple[str, str], str]] = {
    **{
        ("PaddleClas", f"ResNeXt{depth}{deep}_{cardinality}x4d"): f"published.resnext{depth}{deep}_{cardinality}x4d"
        for depth, deep, cardinality in (
            (50, "", 64), (50, "_vd", 64), (101, "_vd", 32), (101, "_vd", 64), (152, "", 32), (152, "", 64),
            (152, "_vd", 32), (152, "_vd", 64),
        )
    },
    **{
        ("PaddleClas", f"MobileNetV{version}_{infix}x{scale // 100}_{str(scale % 100).rstrip('0')}"): (
            f"published.mobilenet_v{version}_{infix}x{scale}"
        )
        for version, infixes, scales in (
            (1, ("",), (25, 50, 75)), (2, ("",), (25, 50, 75, 150)), (3, ("large_", "small_"), (35, 50, 75, 125)),
        )
        for infix in infixes
        for scale in scales
    },
    **{
        ("PaddleClas", network): f"published.{name}"
        for network, name in {
            "ResNet200_vd": "resnet200_vd",
            "SE_ResNet18_vd": "se_resnet18_vd",
            "SE_ResNet34_vd": "se_resnet34_vd",
            "SE_ResNet50_vd": "se_resnet50_vd",
            "SE_ResNeXt50_vd_32x4d": "se_resnext50_vd_32x4d",
            "SENet154_vd": "senet154_vd",
            "Res2Net200_vd_26w_4s": "res2net200_vd_26w_4s",
            "ResNeSt50_fast_1s1x64d": "resnest50_fast_1s1x64d",
            "DenseNet264": "densenet264",
            "EfficientNetB0_small": "efficientnet_b0_small",
            "ViT_small_patch16_224": "vit_small_patch16_d768",
            "ShuffleNetV2_x0_25": "shufflenet_v2_x0_25",
            "ShuffleNetV2_x0_33": "shufflenet_v2_x0_33",
            "ShuffleNetV2_swish": "shufflenet_v2_swish",
        }.items()
    },
    **{
        ("tf_trt_models", f"resnet_v{version}_{depth}"): f"published.slim_resnet_v{version}_{depth}"
        for version in (1, 2)
        for depth in (50, 101, 152)
    },
    ("tf_trt_models", "mobilenet_v1_0p25_128"): "classic.mobilenet-v1-0.25",
    ("tf_trt_models", "mobilenet_v1_0p5_160"): "classic.mobilenet-v1-0.5",
    **{
        (f"inference_results_v{version}", f"mlperf-{network}"): f"published.{name}"
        for version in ("0.7", "1.1", "2.0")
        for network, name in { "ssd-resnet34": "ssd_resnet34", "ssd-mobilenet": "ssd_mobilenet_v1",
        }.items()
    },
    ("mmdeploy", "mmseg:FCN"): "published.fcn_resnet50_d8",
    ("mmdeploy", "mmseg:PSPNet"): "published.pspnet_resnet50_d8",
    ("mmdeploy", "mmseg:DeepLabV3"): "published.deeplabv3_resnet50_d8",
    ("mmdeploy", "mmagic:ESRGAN"): "published.esrgan_x4",
    **{
        ("super-gradients", network): name
        for network, name in {
            "yolox_n": "graphs/yoloxn_640.onnx",
            "yolox_t": "graphs/yoloxt_640.onnx",
            "yolox_s": "graphs/yoloxs_640.onnx",
            "yolox_m": "graphs/yoloxm_640.onnx",
            "ppyoloe_s": "detector.ppyoloe-s",
            "ppyoloe_m": "detector.ppyoloe-m",
            "yolo_nas_s": "detector.yolonas-s",
            "yolo_nas_m": "detector.yolonas-m",
            "ddrnet_23": "published.ddrnet_23",
            "ddrnet_23_slim": "published.ddrnet_23_slim",
            "stdc1_seg50": "segmentation.stdc1",
            "stdc1_seg75": "published.stdc1",
            "stdc2_seg50": "published.stdc2",
            "stdc2_seg75": "published.stdc2",
            "pp_lite_t_seg50": "segmentation.liteseg-stdc1",
            "pp_lite_t_seg75": "published.pp_liteseg_t",
            "pp_lite_b_seg50": "published.pp_liteseg_b",
            "pp_lite_b_seg75": "published.pp_liteseg_b",
        }.items()
    },
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Mapped:
    """What a published row's network was mapped to.

    Attributes:
        name: Corpus network, or the graph file's name.
        mapping: `exact` or `approx`.
        model: The weight-free graph.
        family: Family where the corpus knows one.
        lineage: Lineage, likewise.
    """

    name: str
    mapping: str
    model: onnx.ModelProto
    family: str = ""
    lineage: str = ""

    @cached_property
    def network_id(self) -> str:
        """Key of the graph, whatever its weights."""
        return structure_id(self.model)


class Graphs:
    """Finds the graph of a published network: corpus first, then `.onnx` files of the same names in a folder."""

    def __init__(self, corpus: Corpus | None, folder: Path | None, beside: Path) -> None:
        self._corpus, self._folder, self._beside = corpus, folder, beside
        self._found: dict[tuple[str, ...], Mapped | None] = {}

    def find(self, row: Mapping[str, Any]) -> Mapped | None:
        """The graph of a row of the table, or `None` where there is no faithful one."""
        lab = lab_of(row["source"])
        key = (
            lab,
            *(row[c] for c in ("network", "zoo", "zoo_match", "graph")),
            "x".join(row["input_shape"].split("x")[1:]),
        )
        if key not in self._found:
            self._found[key] = self._look_up(lab, row)
        return self._found[key]

    def _look_up(self, lab: str, row: Mapping[str, Any]) -> Mapped | None:
        if row["graph"]:
            return self._file(self._beside / row["graph"], "exact", required=True)
        rebuilt = REBUILT.get((lab, row["network"]), "")
        mapping = "approx" if rebuilt and not row["zoo"] else row["zoo_match"] or "exact"
        if not row["zoo"] and rebuilt.endswith(".onnx"):
            return self._file(self._beside / rebuilt, mapping)
        name = name_of(row["zoo"]) if row["zoo"] else rebuilt
        dims = tuple(row["input_shape"].split("x")[1:])
        if not name or not dims:
            return None
        sizes = [f"@{'x'.join(dims[1:])}"] if dims[1:] else []
        sizes += [f"@{dims[-1]}"] if len(set(dims[1:])) <= 1 else []
        for candidate in (*(name + size for size in sizes), name):
            if self._corpus is not None and candidate in self._corpus:
                known = self._corpus[candidate]
                if known.inputs.split("|")[0] == "x".join(dims):
                    return Mapped(
                        name=known.name, mapping=mapping, model=self._corpus.model(known.name),
                        family=known.family, lineage=known.lineage,
                    )  # fmt: skip
            if self._folder is not None and (candidate != name or not dims[1:]):
                found = self._file(self._folder / f"{candidate}.onnx", mapping)
                if found is not None:
                    return found
        return None

    def _file(self, path: Path, mapping: str, *, required: bool = False) -> Mapped | None:
        if not path.is_file():
            if required:
                raise DatasetError(f"{path}: the graph that the table names is missing; put it beside the table")
            return None
        return Mapped(name=path.stem, mapping=mapping, model=onnx.load(path, load_external_data=False))


def lab_of(source: str) -> str:
    """Short name of who measured: the last part of the source's address."""
    return source.rstrip("/").rsplit("/", 1)[-1]


def read_published(path: str | Path) -> pd.DataFrame:
    """Reads and checks a table of published latencies; rows marked `copy_of=` in their note are left out.

    Raises:
        DatasetError: A column is missing or a value is bad; names file, line and fix.
    """
    table = read_csv(path, COLUMNS, OPTIONAL)
    refuse_unknown(path, table, "device", device_slugs())
    refuse_unknown(path, table, "precision", PRECISIONS)
    refuse_unknown(path, table, "latency_kind", LATENCY_KINDS)
    return table[~table["note"].str.contains(_COPY)]


def dataset_from_published(
    csv_path: str | Path, graphs_root: str | Path | None = None, corpus: Corpus | None = None
) -> Dataset:
    """Brings a table of published TensorRT latencies into a dataset, layers and all.

    Args:
        csv_path: Table with the columns of `COLUMNS`.
        graphs_root: Folder of further `.onnx` graphs named like corpus networks, size included.
        corpus: Where `zoo` names are looked up; by default the checkout's corpus.

    Returns:
        One engine per row that has a graph; rows without one are left out (`coverage` counts them).

    Raises:
        DatasetError: The table or a graph it names is at fault.
    """
    table = read_published(csv_path)
    beside = Path(csv_path).resolve().parent
    graphs = Graphs(corpus or Corpus.load(), Path(graphs_root) if graphs_root else None, beside)
    engines: list[dict[str, Any]] = []
    layers: dict[str, pd.DataFrame] = {}
    networks: dict[tuple[str, int, str], Network] = {}
    rows: list[dict[str, Any]] = [dict(zip(COLUMNS, values, strict=True)) for values in table.itertuples(index=False)]
    for line, row in zip(table.index, rows, strict=True):
        mapped = graphs.find(row)
        if mapped is None:
            continue
        batch, rules = int(row["batch_size"]), rules_for("tensorrt", on_cpu=False)
        key = (mapped.network_id, batch, mapped.name)
        if key not in networks:
            try:
                networks[key] = load_network(mapped.model, batch_size=batch, name=mapped.name)
            except NetworkError as error:
                raise DatasetError(f"{csv_path}: line {line}: {error}") from error
        structure = structure_key(mapped.network_id, networks[key], row["precision"], rules)
        if structure not in layers:
            layers[structure] = structure_frame(
                networks[key], precision=row["precision"], rules=rules, structure=structure
            )
        engines.append(_engine(row, mapped, structure))
    return Dataset(
        engines=engine_frame(engines),
        layers=pd.concat(layers.values(), ignore_index=True) if layers else Dataset().layers,
    )


def _engine(row: Mapping[str, Any], mapped: Mapped, structure: str) -> dict[str, Any]:
    provenance = {c: row[c] for c in ("source", "source_path", "commit", "licence", "network", "note") if row[c]}
    environment = {c: row[c] for c in ("runtime", "jetpack", "power_mode") if row[c]}
    where = ("device", "precision", "batch_size", "input_shape", "runtime", "runtime_version", "jetpack", "power_mode")
    identity = json.dumps([provenance, {c: str(row[c]) for c in where}], sort_keys=True)
    power_mode = row["power_mode"].split(" ")[0]
    return {
        "engine_id": hashlib.sha256(identity.encode()).hexdigest()[:16],
        "structure": structure,
        "network": mapped.name,
        "network_id": mapped.network_id,
        "family": row["family"] or mapped.family or mapped.name,
        "lineage": mapped.lineage or row["family"] or mapped.name,
        "runtime": "tensorrt",
        "runtime_version": row["runtime_version"] or None,
        "device": row["device"],
        "precision": row["precision"],
        "batch_size": int(row["batch_size"]),
        "input_shape": row["input_shape"] or None,
        "status": "good",
        "latency_kind": row["latency_kind"],
        "latency_s": row["latency_ms"] / 1e3,
        # A low-power submission is another condition than the same laboratory's full-speed one.
        "lab": lab_of(row["source"]) + (f" {power_mode}" if power_mode not in ("", "MAXN") else ""),
        "trust": row["trust"] or None,
        "mapping": mapped.mapping,
        "provenance_json": json.dumps(provenance, sort_keys=True),
        "environment_json": json.dumps(environment, sort_keys=True),
        "flags": ["suspect"] if "suspect:" in row["note"] else [],
    }

"""Which headline figures of the published TensorRT measurements does the repository keep, each with its source?

Command: python experiments/published_headlines.py DATASET [--out datasets/published-tensorrt]
Output: the dataset datasets/published-tensorrt

DATASET is the folder that `perfpred import published tensorrt_published.csv tensorrt_published_detectors.csv` wrote.
Well-known networks at batch 1 with an exact graph and no doubt noted; at most `MOST` rows. The dataset it writes is
for tests and examples; predictors are trained on the whole one.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import pandas as pd

from perfpred.dataset import Dataset

MOST = 150
NETWORKS = (
    "torchvision.resnet18", "torchvision.resnet50", "torchvision.mobilenet_v2", "torchvision.vgg16",
    "torchvision.densenet121", "torchvision.squeezenet1_1", "torchvision.alexnet", "torchvision.shufflenet_v2_x1_0",
    "torchvision.mnasnet1_0", "torchvision.mobilenet_v3_large", "timm.efficientnet_b0", "timm.efficientvit_b1",
    "timm.regnety_008", "timm.swin_tiny_patch4_window7_224", "timm.vit_base_patch16_224", "timm.hrnet_w18",
    "timm.resnext50d_32x4d", "yoloxn_320", "yoloxn_640", "yoloxt_640", "yoloxs_640", "yoloxm_640",
)  # fmt: skip


def headlines(dataset: Dataset) -> Dataset:
    """The chosen engines with the layers of their structures."""
    rows = dataset.good
    doubted = rows["flags"].map(len) > 0
    low_power = rows["lab"].str.contains("MaxQ")
    kept = rows["network"].isin(NETWORKS) & (rows["batch_size"] == 1) & (rows["mapping"] == "exact")
    chosen = rows[kept & ~doubted & ~low_power].copy()
    rank = pd.Series(range(len(NETWORKS)), index=pd.Index(NETWORKS))
    chosen["rank"] = chosen["network"].map(rank)
    chosen = chosen.sort_values(["rank", "device", "lab", "latency_kind", "precision"], kind="stable").head(MOST)
    engines = chosen.drop(columns="rank").reset_index(drop=True)
    layers = dataset.layers[dataset.layers["structure"].isin(set(engines["structure"]))]
    return Dataset(engines=engines, layers=layers.reset_index(drop=True))


def main() -> None:
    """Writes the dataset and prints what it holds."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("dataset", type=Path)
    parser.add_argument("--out", type=Path, default=Path("datasets/published-tensorrt"))
    asked = parser.parse_args()
    made = headlines(Dataset.read(asked.dataset))
    made.write(asked.out)
    counts = made.engines.groupby(["lab", "device", "latency_kind", "precision"]).size()
    sys.stdout.write(f"{counts.to_string()}\n{len(made.engines)} figures, {len(made.layers)} layers\n")


if __name__ == "__main__":
    main()

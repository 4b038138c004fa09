"""Where and why do micro-architecture-only predictors fail, layer by layer?

Command: python experiments/micro_architecture.py
Output: experiments/results/micro_architecture.csv, .json, .md and .png

Profiled engines of the GPU datasets: measured time of each fused layer beside the roofline and the bulk-synchronous
model (BSP). They are calibrated on the very layer times they are judged by, per device, precision and partition size
(roofline: one scale; affine roofline: a scale and a launch time; BSP: a factor by layer kind), then scaled to a median
ratio of 1: the most favourable fit there is, so what error remains is the form of the predictor. Cells are layer kind, arithmetic intensity over the device's ridge, SM count and batch. Whole engines
are compared with the uncalibrated roofline of unfused nodes and of fused layers. Waterfalls of six well-known
networks are drawn; the CSV holds their layers.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd
from written import RESULTS, fused_times, gpu_datasets, percent, write

from perfpred.baselines import AffineRoofline, Bsp, Roofline
from perfpred.dataset import Dataset
from perfpred.features import bound_s, peak_of
from perfpred.instances import layer_instances
from perfpred.plots import COLOURS, figure

#: Six of these are drawn, the first that were profiled on a whole GPU.
KNOWN = (
    "torchvision.resnet50", "torchvision.vgg16", "torchvision.convnext_tiny", "detector.yolov5-s",
    "transformers.bert_base_384", "torchvision.densenet121", "torchvision.googlenet", "torchvision.inception_v3",
)  # fmt: skip
INTENSITY = (0, 0.03, 0.1, 0.3, 1, np.inf)
INTENSITY_NAMES = ("below 0.03", "0.03 to 0.1", "0.1 to 0.3", "0.3 to 1", "above the ridge")
#: Output tiles over SMs: below 1, some SMs have nothing to do.
WAVES = (0, 0.25, 1, 4, np.inf)
WAVES_NAMES = ("below 0.25", "0.25 to 1", "1 to 4", "above 4")
TILE = 64
#: Below this a layer is little more than its launch.
SHORT_S = 5e-6
#: A layer that changes by less than this factor hardly changes; cells of fewer pairs are not shown.
HARDLY = 1.1
FEWEST_PAIRS = 20
CELL = ["device", "precision", "sm_count"]
_READ = ["structure", "layer_index", "kind", "dtype", "flops", "dram_bytes"]
CURVES = ("roofline_s", "affine_s", "bsp_s")
CURVE_NAMES = {"roofline_s": "roofline", "affine_s": "roofline + launch", "bsp_s": "BSP"}


def profiled_layers(datasets: Mapping[str, Dataset]) -> pd.DataFrame:
    """Layers with a measured time, joined with the numbers of the device they ran on."""
    parts = []
    for dataset in datasets.values():
        times = fused_times(dataset)
        engines = dataset.good[dataset.good["engine_id"].isin(set(times["engine_id"]))].drop_duplicates("engine_id")
        if engines.empty:
            continue
        made = layer_instances(engines, dataset.layers_at("fused"))
        names = ["engine_id", "network", "device"]
        made = made.join(engines[names].reset_index(drop=True), on="row")
        parts.append(made.merge(times[["engine_id", "layer_index", "time_s"]], on=["engine_id", "layer_index"]))
    layers = pd.concat(parts, ignore_index=True)
    layers = layers[layers["time_s"] > 0].reset_index(drop=True)
    return layers.assign(row=np.arange(len(layers)), sm_count=layers["sm_count"].astype(int))


def compared(layers: pd.DataFrame) -> pd.DataFrame:
    """Adds the pure bound, the calibrated baselines and the intensity of each layer."""
    made = layers.assign(pure_s=bound_s(layers)["roofline_s"], **dict.fromkeys(CURVES, np.nan))
    for _, rows in layers.groupby(CELL):
        part, measured = rows.assign(row=np.arange(len(rows))), rows["time_s"].to_numpy()
        for curve, baseline in zip(CURVES, (Roofline(tied=True), AffineRoofline(), Bsp()), strict=True):
            predicted = baseline.fit(part, measured).predict(part)
            made.loc[rows.index, curve] = predicted * np.median(measured / predicted)
    intensity = layers["flops"].astype(float) / layers["dram_bytes"].astype(float).clip(lower=1)
    over = intensity / (peak_of(layers) / layers["dram_bytes_per_s"].astype(float))
    made["intensity"] = pd.cut(over, INTENSITY, labels=INTENSITY_NAMES, include_lowest=True).astype(str)
    m, n, groups = (layers[size].to_numpy(float, na_value=np.nan) for size in ("m", "n", "groups"))
    waves = np.ceil(m / TILE) * np.ceil(n / TILE) * groups / layers["sm_count"].to_numpy(float)
    cut = pd.Series(pd.cut(waves, WAVES, labels=WAVES_NAMES), index=layers.index)
    made["waves"] = cut.astype(object).fillna("nothing multiplied")
    made["length"] = np.where(made["time_s"] < SHORT_S, "below 5 µs", "5 µs or more")
    return made


def errors(layers: pd.DataFrame, by: str) -> pd.DataFrame:
    """Errors of the baselines in each cell; ratios are measured over predicted time."""
    rows = []
    for cell, part in layers.groupby(by):
        row = {
            by: cell, "layers": len(part), "time_share": part["time_s"].sum() / layers["time_s"].sum(),
            "times the bound": float((part["time_s"] / part["pure_s"].clip(lower=1e-9)).median()),
        }  # fmt: skip
        for name in CURVES:
            ratio = part["time_s"] / part[name]
            label = name.removesuffix("_s")
            ape = (1 / ratio - 1).abs()
            row |= {f"{label} mape": float(ape.mean()), f"{label} median": float(ape.median())}
            row[f"{label} ratio"] = float(ratio.median())
        rows.append(row)
    return pd.DataFrame(rows).sort_values("time_share", ascending=False, ignore_index=True)


def contrasted(layers: pd.DataFrame) -> pd.DataFrame:
    """The same layer on more SMs, and at a larger batch: how many times faster or longer, by the bound and measured."""
    layer = ["network", "device", "precision", "layer_index", "name", "kind"]
    made = []
    for what, other in (("sm_count", "batch_size"), ("batch_size", "sm_count")):
        columns = [*layer, other, what, "time_s", "pure_s"]
        pairs = layers[columns].merge(layers[columns], on=[*layer, other], suffixes=("_a", "_b"))
        pairs = pairs[(pairs[f"{what}_a"] < pairs[f"{what}_b"]) & (pairs["pure_s_b"] > 0)]
        bound, measured = (pairs[f"{time}_a"] / pairs[f"{time}_b"] for time in ("pure_s", "time_s"))
        up = what == "batch_size"  # A larger batch takes longer, more SMs less long.
        about = {"more of": what, "kind": pairs["kind"], "from": pairs[f"{what}_a"], "to": pairs[f"{what}_b"]}
        made.append(
            pd.DataFrame({**about, "bound": 1 / bound if up else bound, "measured": 1 / measured if up else measured})
        )
    every = pd.concat(made, ignore_index=True)
    every = pd.concat([every.assign(kind="all"), every], ignore_index=True)
    grouped = every.assign(hardly=every["measured"] < HARDLY).groupby(["more of", "from", "to", "kind"])
    table = grouped.agg(
        pairs=("bound", "size"),
        the_bound=("bound", "median"),
        measured=("measured", "median"),
        hardly=("hardly", "mean"),
    ).reset_index()
    table = table[table["pairs"] >= FEWEST_PAIRS].sort_values(
        ["more of", "from", "to", "pairs"], ascending=[True, True, True, False]
    )
    return table.rename(columns={"the_bound": "the bound says, times", "measured": "measured, times"}).reset_index(
        drop=True
    )


def engine_ratios(datasets: Mapping[str, Dataset]) -> pd.DataFrame:
    """Measured latency over the pure roofline of nodes and of layers, by device, precision, SM count and batch."""
    parts = []
    for dataset in datasets.values():
        good = dataset.good
        engines = good[(good["optimisation"] == "all") & (good["rebuild"] == 0)].reset_index(drop=True)
        found = engines[["device", "precision", "sm_count", "batch_size", "latency_s"]].copy()
        for level in ("node", "fused"):
            instances = layer_instances(engines, dataset.layers_at(level)[_READ])
            bound = bound_s(instances)["roofline_s"].groupby(instances["row"]).sum()
            found[level] = found["latency_s"] / bound.reindex(found.index)
            found[f"{level}s"] = instances.groupby("row").size().reindex(found.index)
        parts.append(found)
    table = pd.concat(parts, ignore_index=True)
    grouped = table.groupby(["device", "precision", "sm_count", "batch_size"])
    return grouped.agg(
        engines=("latency_s", "size"), over_node_roofline=("node", "median"), over_fused_roofline=("fused", "median"),
        least=("fused", lambda r: r.quantile(0.05)), most=("fused", lambda r: r.quantile(0.95)),
    ).reset_index()  # fmt: skip


def waterfalls(layers: pd.DataFrame) -> pd.DataFrame:
    """Layers of six networks profiled on a whole GPU, those of `KNOWN` first, in graph order."""
    whole = layers[layers["sm_count"] == layers["sm_count"].max()]
    there = list(dict.fromkeys(whole["network"]))
    chosen = [*(name for name in KNOWN if name in there), *(name for name in there if name not in KNOWN)][:6]
    parts = []
    for name in chosen:
        part = whole[whole["network"] == name]
        parts.append(part[part["engine_id"] == part["engine_id"].iloc[0]].sort_values("layer_index"))
    columns = [
        "network", "device", "precision", "batch_size", "sm_count", "layer_index", "name", "kind", "intensity",
        "time_s", "pure_s", *CURVES,
    ]  # fmt: skip
    return pd.concat(parts, ignore_index=True)[columns]


def draw(layers: pd.DataFrame) -> None:
    """A waterfall a network: bars begin where the layer before ended; lines are what the baselines say by then."""
    names = list(dict.fromkeys(layers["network"]))
    kinds = list(layers.groupby("kind")["time_s"].sum().nlargest(5).index)
    with figure(RESULTS / "micro_architecture.png", width=11, height=7) as axes:
        canvas = axes.figure
        axes.remove()
        for place, name in enumerate(names):
            panel = canvas.add_subplot(2, 3, place + 1)
            part = layers[layers["network"] == name].reset_index(drop=True)
            ends = 1e3 * part["time_s"].cumsum()
            colours = [COLOURS[kinds.index(kind)] if kind in kinds else COLOURS[5] for kind in part["kind"]]
            panel.hlines(part.index, ends - 1e3 * part["time_s"], ends, colors=colours, lw=3)
            for curve, style in zip(CURVES, ("-", ":", "--"), strict=True):
                panel.plot(
                    1e3 * part[curve].cumsum(), part.index, color="black", ls=style, lw=1, label=CURVE_NAMES[curve]
                )
            panel.invert_yaxis()
            first = part.iloc[0]
            place_of = f"{first['device']}, {first['precision']}, batch {first['batch_size']}"
            panel.set_title(f"{name}\n{place_of}", fontsize=8)
            panel.set_xlabel("ms since the first layer", fontsize=8)
            panel.set_ylabel("layer", fontsize=8)
            panel.tick_params(labelsize=7)
            if place == 0:
                for colour, kind in zip((*COLOURS[: len(kinds)], COLOURS[5]), [*kinds, "other kinds"], strict=True):
                    panel.plot([], [], color=colour, lw=3, label=kind)
                panel.legend(fontsize=6, frameon=False)


def said_of_contrasts(contrasts: pd.DataFrame) -> list[str]:
    """Sentences on the same layer on more SMs and at larger batches: the widest step of each."""
    said = []
    words = {"sm_count": ("SMs", "is faster"), "batch_size": ("images", "takes longer")}
    for what, part in contrasts.groupby("more of"):
        noun, verb = words[str(what)]
        widest = (
            part[part["kind"] == "all"].assign(step=part["to"] / part["from"]).sort_values(["step", "pairs"]).iloc[-1]
        )
        kinds = part[(part["from"] == widest["from"]) & (part["to"] == widest["to"]) & (part["kind"] != "all")]
        each = ", ".join(
            f"{r['kind']} {r['measured, times']:.2f} ({r['the bound says, times']:.2f})"
            for r in kinds.to_dict("records")
        )
        said.append(
            f"The same layer at {widest['to']} {noun} instead of {widest['from']} ({widest['pairs']} pairs) {verb} by a median "
            f"{widest['measured, times']:.2f} times where the bound says {widest['the bound says, times']:.2f}; "
            f"{percent(widest['hardly'])} change by less than {HARDLY - 1:.0%}. By kind, measured (bound): {each}."
        )
    return said


def findings(layers: pd.DataFrame, kinds: pd.DataFrame, engines: pd.DataFrame, known: pd.DataFrame) -> list[str]:
    """Sentences with the numbers of the tables."""
    ape = {name: (layers[name] / layers["time_s"] - 1).abs() for name in CURVES}
    short = layers["time_s"] < SHORT_S
    said = [
        f"{len(layers)} layer times of {layers['engine_id'].nunique()} engines, {layers['network'].nunique()} networks: calibrated on "
        f"the same layers, the roofline errs by {percent(ape['roofline_s'].mean())} (median {percent(ape['roofline_s'].median())}), with a "
        f"launch time {percent(ape['affine_s'].mean())} (median {percent(ape['affine_s'].median())}), BSP "
        f"{percent(ape['bsp_s'].mean())} (median {percent(ape['bsp_s'].median())}).",
        f"{percent(short.mean())} of layers take less than 5 µs and hold {percent(layers.loc[short, 'time_s'].sum() / layers['time_s'].sum())} of the "
        f"time: there the bound says a median {1e6 * layers.loc[short, 'pure_s'].median():.2f} µs where "
        f"{1e6 * layers.loc[short, 'time_s'].median():.2f} µs are measured.",
    ]
    large = kinds[kinds["time_share"] > 0.01]
    for name in ("roofline", "affine", "bsp"):
        worst, best = large.loc[large[f"{name} median"].idxmax()], large.loc[large[f"{name} median"].idxmin()]
        said.append(
            f"By kind (1 % of the time or more), {name} fails most on {worst['kind']} (median error {percent(worst[f'{name} median'])}, measured a "
            f"median {worst[f'{name} ratio']:.2f} times the prediction), least on {best['kind']} ({percent(best[f'{name} median'])})."
        )
    batch_1 = engines[(engines["batch_size"] == 1) & (engines["precision"] == "fp16")]
    for device, part in batch_1.groupby("device"):
        least, most = part.loc[part["sm_count"].idxmin()], part.loc[part["sm_count"].idxmax()]
        said.append(
            f"{device}, fp16, batch 1: engines take a median {least['over_fused_roofline']:.1f} times the bound of their fused layers on "
            f"{least['sm_count']} SMs and {most['over_fused_roofline']:.1f} times on {most['sm_count']}; the 5th to 95th percentile on the "
            f"latter is {most['least']:.1f} to {most['most']:.1f}, so no single scale is right."
        )
    whole = engines[(engines["precision"] == "fp16") & (engines["sm_count"] == engines["sm_count"].max())]
    for device, part in whole.groupby("device"):
        text = ", ".join(f"{r['over_fused_roofline']:.1f} at batch {r['batch_size']}" for r in part.to_dict("records"))
        said.append(f"{device}, whole GPU, fp16: times the bound, {text}.")
    totals = known.groupby("network", sort=False)[["time_s", *CURVES]].sum()
    for network, row in totals.iterrows():
        said.append(
            f"{network}: layers add up to {1e3 * row['time_s']:.3f} ms; calibrated roofline {row['roofline_s'] / row['time_s'] - 1:+.0%}, "
            f"with a launch time {row['affine_s'] / row['time_s'] - 1:+.0%}, BSP {row['bsp_s'] / row['time_s'] - 1:+.0%}."
        )
    return said


def main() -> None:
    """Compare, draw, write and print."""
    datasets = gpu_datasets()
    if not datasets:
        return
    layers = compared(profiled_layers(datasets))
    known, engines, contrasts = waterfalls(layers), engine_ratios(datasets), contrasted(layers)
    tables = {
        "layers of known networks": known,
        "By layer kind": errors(layers, "kind"),
        "By arithmetic intensity over the ridge": errors(layers, "intensity"),
        "By waves": errors(layers, "waves"),
        "By SM count": errors(layers, "sm_count"),
        "By batch size": errors(layers, "batch_size"),
        "By length": errors(layers, "length"),
        "The same layer on more SMs and at larger batches": contrasts,
        "Engines: measured latency over the uncalibrated roofline": engines,
    }
    draw(known)
    said = findings(layers, tables["By layer kind"], engines, known)
    said += said_of_contrasts(contrasts)
    title = "Where micro-architecture-only predictors fail"
    write("micro_architecture", title, tables=tables, findings=said, figures=["micro_architecture.png"], most=30)
    print("\n".join(said))


if __name__ == "__main__":
    main()

"""Draw the figures of the concept pages: a minute on two cores, no data but the demo's.

python docs/figures/make.py [layers heavy_tails ...]
"""

from __future__ import annotations

import importlib
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import matplotlib as mpl
import torch
from matplotlib.figure import Figure
from torch._subclasses import FakeTensorMode
from torch.distributions import Pareto
from transformers import BertConfig, BertForSequenceClassification

from activation_compression import ActivationCompressor
from glue_harness import parse_mapping, run
from glue_harness.cost.footprint import predict
from sensitivity_lr.analysis import SensitivityTracker

HERE = Path(__file__).parent
BENCHMARKS = HERE.parent.parent / "benchmarks"
DEMO = {
    **{"task": "demo-entailment", "model": "demo", "max_steps": 60, "log_every": 1, "batch_size": 8},
    **{"accumulate": 4, "max_grad_norm": 0, "weight_decay": 0, "optimizer": {"name": "adamw", "lr": 1e-3}},
}
HOME_ACTIVATIONS = {
    "lossless": "lossless",
    "4 bits (L1)": "L1",
    "2 bits (L1.2)": "L1.2",
    "checkpointing": "checkpoint",
}
HOME_ADAPTATIONS = {
    **{"LoRA": "LoRA, rank 8, q and v", "adapters": "adapters in all layers", "head only": "head only"}
}
AGNI = {"name": "agni", "eta": 1.0}


def logged(**settings: Any) -> list[dict[str, Any]]:
    """Run the demo and return its lines of metrics."""
    with tempfile.TemporaryDirectory() as folder:
        run(parse_mapping({**DEMO, **settings, "output_dir": folder}))
        return [json.loads(line) for line in (Path(folder) / "metrics.jsonl").read_text().splitlines()]


def gradient_noise() -> Figure:
    """Noise-to-gradient ratio and step length, with and without AGNI."""
    figure = Figure(figsize=(8, 3.2), layout="constrained")
    ratio, length = figure.subplots(1, 2)
    ways = {"AdamW": []} | {
        source: [AGNI | {"variance": source}] for source in ("microbatch", "running", "ema")
    }
    for name, gradient in ways.items():
        lines = logged(gradient=gradient, monitor=[{"name": "gradient-noise"}])
        for axes, key in ((ratio, "noise_to_gradient"), (length, "effective_step_size")):
            points = [(line["step"], line[key]) for line in lines if line.get(key)]
            if points:
                axes.plot(*zip(*points, strict=True), label=name, color=f"C{list(ways).index(name)}")
    ratio.set(xlabel="step", ylabel="noise / gradient", yscale="log", ylim=(0.03, 3))
    length.set(xlabel="step", ylabel="effective step size ‖Δθ‖", yscale="log")
    length.legend(frameon=False)
    return figure


def sensitivity() -> Figure:
    """The distribution of sensitivity at the end of a short run, with two optimizers."""
    figure = Figure(figsize=(6, 3.2), layout="constrained")
    axes = figure.subplots()
    for name in ("adamw", "sage-adamw"):
        monitor = [{"name": "sensitivity", "every": 59}]
        records = [
            line["sensitivity"]
            for line in logged(optimizer={"name": name, "lr": 1e-3}, monitor=monitor)
            if "sensitivity" in line
        ]
        counts = records[-1]["counts"]
        shares = [count / sum(counts) for count in counts]
        axes.stairs(shares, SensitivityTracker.edges(), label=f"{name}, step {records[-1]['step']}")
    axes.set(xlabel="log10 of the sensitivity |θ g|", ylabel="share of parameters", xlim=(-12, -3))
    axes.legend(frameon=False)
    return figure


def heavy_tails() -> Figure:
    """A light and a heavy sample, looked at in three ways."""
    torch.manual_seed(0)
    return looked_at({"normal": 5 + torch.randn(1000), "Pareto, α = 1.5": Pareto(1.0, 1.5).sample((1000,))})


def from_benchmarks(work: str, name: str) -> Any:
    """Return a module of a work's folder in the benchmarks."""
    sys.path.insert(0, str(BENCHMARKS / work))
    return importlib.import_module(name)


def looked_at(samples: dict[str, Any]) -> Figure:
    """Histogram, QQ plot and Hill plot of each sample of norms, a row each."""
    drawn = {name: {"norms": norms} for name, norms in samples.items()}
    figure = from_benchmarks("clipped", "tails").figure_of(drawn)
    for axes in figure.axes:
        for artist in (*axes.patches, *axes.lines):
            artist.set_rasterized(True)
    return figure


def text_against_images() -> Figure:
    """The committed samples of gradient noise, text and images."""
    text, images = (
        json.loads((BENCHMARKS / "clipped/results" / name / "result.json").read_text())
        for name in ("text-tails", "images")
    )
    at = {"0": "at the start", "4": "after training"}
    samples = {f"text, {name.split(', ')[1]}": sample for name, sample in text.items()}
    samples |= {f"images, {at[epoch]}": one for epoch, one in images["runs"]["adam"]["0"]["tails"].items()}
    return looked_at({name: sample["norms"] for name, sample in samples.items()})


def layers(name: str = "layers-sst2") -> Figure:
    """The committed curves of methods in one layer at a time."""
    kept = (BENCHMARKS / f"peft/results/{name}.json").read_text()
    return from_benchmarks("peft", "figure").draw(json.loads(kept))


def base_layers() -> Figure:
    """The same in an encoder of base size."""
    return layers("base-layers")


def parameter_efficiency() -> Figure:
    """Trainable share and step time of each method, from the committed measurement."""
    ways = json.loads((BENCHMARKS / "speed/results/adaptations.json").read_text())["ways"]
    total = ways["full"]["trainable"]
    figure = Figure(figsize=(8, 3.6), layout="constrained")
    share, time = figure.subplots(1, 2, sharey=True)
    names = list(ways)[::-1]
    share.barh(names, [100 * ways[name]["trainable"] / total for name in names], color="C0")
    share.set(xlabel="parameters that train, %", xscale="log")
    full = ways["full"]["median_seconds"]
    time.barh(names, [ways[name]["median_seconds"] / full for name in names], color="C1")
    time.set(xlabel="step time, full fine-tuning = 1")
    return figure


def activation_memory() -> Figure:
    """Saved bytes of a two-layer BERT for each way of keeping activations."""
    ways: dict[str, Any] = {
        "plain": "none",
        "8 bits (L1.1)": {"name": "compress", "level": "L1.1"},
        "4 bits (L1)": {"name": "compress", "level": "L1"},
        "2 bits (L1.2)": {"name": "compress", "level": "L1.2"},
        "checkpoint": "checkpoint",
        "4 bits + checkpoint": {"name": "compress+checkpoint", "level": "L1"},
    }
    shape = {"task": "sst2", "model": "bert-base-uncased", "model_config": {"num_hidden_layers": 2}}
    bytes_of = {
        name: predict(
            parse_mapping(
                {**shape, "output_dir": "-", "batch_size": 16, "max_length": 128, "activation": way}
            )
        ).activations
        for name, way in ways.items()
    }
    figure = Figure(figsize=(6, 2.8), layout="constrained")
    axes = figure.subplots()
    names = list(bytes_of)[::-1]
    bars = axes.barh(names, [bytes_of[name] / 2**20 for name in names], color="C0")
    axes.bar_label(bars, fmt="%.0f", padding=3)
    axes.set(xlabel="saved activations, MiB (batch 16, 128 tokens)")
    axes.margins(x=0.12)
    return figure


def what_a_layer_saves() -> Figure:
    """Bytes of two BERT layers by what becomes of them: as autograd saves them, lossless, and at 4 bits."""
    config = BertConfig(num_hidden_layers=2)
    kinds = ("computed again", "rounded", "one bit", "as it is")
    bars: dict[str, dict[str, int]] = {}
    with FakeTensorMode():
        model = BertForSequenceClassification(config).train()
        batch = {
            "input_ids": torch.zeros(16, 128, dtype=torch.long),
            "attention_mask": torch.ones(16, 1, 128, 128),
            "labels": torch.zeros(16, dtype=torch.long),
        }
        for level in ("L1", "lossless"):
            with ActivationCompressor(model, level) as compressor:
                model(**batch)
            before, after = dict.fromkeys(kinds, 0), dict.fromkeys(kinds, 0)
            for row in compressor.stats.rows:
                small = {1: "one bit", 2: "rounded", 4: "rounded", 8: "rounded"}.get(row.bits, "as it is")
                kind = "computed again" if row.derived_from else small
                before[kind] += row.original_bytes
                after[kind] += row.stored_bytes
            bars.setdefault("as autograd saves it", before)
            bars[level] = after
    figure = Figure(figsize=(6, 2.4), layout="constrained")
    axes, names = figure.subplots(), list(bars)[::-1]
    left = [0.0] * len(names)
    for number, kind in enumerate(kinds):
        widths = [bars[name][kind] / 2**20 for name in names]
        axes.barh(names, widths, left=left, color=f"C{number}", label=kind)
        left = [a + b for a, b in zip(left, widths, strict=True)]
    axes.set(xlabel="saved activations of two BERT layers, MiB (batch 16, 128 tokens)")
    axes.legend(frameon=False, fontsize=8)
    return figure


def ways_to_save_memory() -> Figure:
    """Bytes against time of each way to save activation memory, and the fronts, from committed figures."""
    found = {
        path.stem.partition("-")[2]: json.loads(path.read_text(encoding="utf-8"))["ways"]
        for path in sorted((BENCHMARKS / "speed" / "results").glob("compiled_activations-*.json"))
    }
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    panels = figure.subplots(1, len(found), sharey=True, squeeze=False)[0]
    for axes, (model, ways) in zip(panels, found.items(), strict=True):
        plain = ways["eager"]
        points = {
            name: tuple(100 * row[key] / plain[key] for key in ("saved_bytes", "seconds"))
            for name, row in ways.items()
            if "derived" not in name  # for comparison only: nobody would choose it
        }
        front = sorted(points[name] for name in from_benchmarks("speed", "compiled_table").pareto(points))
        axes.step(*zip(*front, strict=True), where="post", color="0.7", zorder=0)
        for name, (size, time) in points.items():
            kind, _, rest = name.partition(" ")
            axes.plot(size, time, "oC0" if kind == "eager" else "sC1")
            place = (
                {"xytext": (4, 3)} if kind == "eager" else {"xytext": (-4, -3), "ha": "right", "va": "top"}
            )
            axes.annotate(rest or "plain", (size, time), textcoords="offset points", fontsize=7, **place)
        axes.set(
            title={"bert": "BERT", "llama": "Llama"}[model],
            xlabel="bytes kept for backward, % of eager",
            xscale="log",
        )
        axes.set(xticks=[10, 100], xticklabels=["10", "100"], xmargin=0.35, ymargin=0.12)
    panels[0].set(ylabel="time of a step, % of eager")
    marks = [*panels[-1].plot([], [], "oC0"), *panels[-1].plot([], [], "sC1")]
    panels[-1].legend(marks, ["eager", "compiled"], frameon=False)
    return figure


def home() -> Figure:
    """What methods need against plain fine-tuning, from the committed measurements of speed."""
    steps, ways = (
        json.loads((BENCHMARKS / f"speed/results/{name}.json").read_text())[key]
        for name, key in (("activations", "steps"), ("adaptations", "ways"))
    )
    kept, trained, time = {"plain": 1.0}, {"all": 1.0}, {"plain": 1.0}
    for shown, name in HOME_ACTIVATIONS.items():
        kept[shown] = steps[name]["stored_bytes"] / steps["L1"]["original_bytes"]
        time[shown] = steps[name]["ratio"]
    for shown, name in HOME_ADAPTATIONS.items():
        trained[shown] = ways[name]["trainable"] / ways["full"]["trainable"]
        time[shown] = ways[name]["median_seconds"] / ways["full"]["median_seconds"]
    figure = Figure(figsize=(10, 2.2), layout="constrained")
    panels = {"bytes kept for backward": kept, "parameters that train": trained, "time of a step": time}
    rows = max(map(len, panels.values()))
    for axes, (title, values) in zip(figure.subplots(1, 3), panels.items(), strict=True):
        percent = [100 * value for value in values.values()]
        bars = axes.barh(list(values), percent, color=["0.75"] + ["C0"] * (len(values) - 1))
        axes.bar_label(bars, [f"{value:.{int(value < 10)}f} %" for value in percent], padding=3)
        axes.set(title=title, xlim=(0, 1.3 * max(percent)), ylim=(rows - 0.5, -0.5), xticks=[])
        axes.spines[["bottom", "left"]].set_visible(False)
        axes.tick_params(left=False)
    return figure


def main() -> None:
    chosen = sys.argv[1:]
    mpl.rcParams |= {"svg.hashsalt": "figures", "svg.fonttype": "none", "font.size": 9}
    mpl.rcParams |= {f"axes.spines.{side}": False for side in ("top", "right")}
    for draw in (
        gradient_noise,
        sensitivity,
        heavy_tails,
        text_against_images,
        layers,
        base_layers,
        parameter_efficiency,
        activation_memory,
        what_a_layer_saves,
        ways_to_save_memory,
        home,
    ):
        if not chosen or draw.__name__ in chosen:
            name = f"{draw.__name__.replace('_', '-')}.svg"
            draw().savefig(HERE / name, metadata={"Date": None})
            print(name)


if __name__ == "__main__":
    main()

"""The per-layer curves of kept results, as `docs/figures/make.py` draws them."""

from __future__ import annotations

from itertools import cycle
from statistics import mean
from typing import Any

from matplotlib.figure import Figure

MARKERS = "osD^v<>"
HEAD_ALONE = "head alone, on all layers"
SIDESTEP = 0.05


def curve_of(adaptation: dict[str, Any]) -> tuple[str, int]:
    """Return a run's curve and its place on it: the adapted layer, or the last one that is used."""
    name = adaptation["name"]
    if name == "head-only":
        used = adaptation["encoder_layers"]
        return ("head on the first layers", used - 1) if used else (HEAD_ALONE, 0)
    if name == "bottleneck-adapter":
        name = f"{adaptation['position']} adapter"
    [layer] = adaptation["layers"]
    return {"ffn-only": "feed-forward block", "lora": "LoRA"}.get(name, name), layer


def curves(results: list[dict[str, Any]]) -> dict[str, dict[int, list[float]]]:
    """Return curve → layer → the primary metric of each seed."""
    values: dict[str, dict[int, list[float]]] = {}
    for result in results:
        curve, layer = curve_of(result["slots"]["adaptation"])
        value = result["metrics"]["last"][result["primary"]]
        values.setdefault(curve, {}).setdefault(layer, []).append(value)
    return values


def draw(results: list[dict[str, Any]]) -> Figure:
    """Return the figure: a curve's mean over seeds, with bars from the lowest seed to the highest."""
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.subplots()
    drawn = curves(results)
    seeds = len({result["seed"] for result in results})
    for scores in drawn.pop(HEAD_ALONE, {}).values():
        axes.axhline(mean(scores), color="grey", linestyle="--", label=HEAD_ALONE)
    for place, (marker, (curve, layers)) in enumerate(zip(cycle(MARKERS), drawn.items(), strict=False)):
        # so that bars do not hide each other
        aside = SIDESTEP * (place - (len(drawn) - 1) / 2) if seeds > 1 else 0
        ordered = sorted(layers.items())
        means = [mean(scores) for _, scores in ordered]
        axes.errorbar(
            [layer + aside for layer, _ in ordered],
            means,
            yerr=[
                [middle - min(scores) for middle, (_, scores) in zip(means, ordered, strict=True)],
                [max(scores) - middle for middle, (_, scores) in zip(means, ordered, strict=True)],
            ],
            marker=marker,
            linewidth=1,
            elinewidth=0.6,
            label=curve,
        )
    first = results[0]
    axes.set_xlabel("layer")
    axes.set_ylabel(f"{first['primary']}, {first['task']}")
    bars = f", mean and range of {seeds} seeds" if seeds > 1 else ""
    axes.set_title(f"{first['model']}: one layer at a time{bars}")
    axes.xaxis.get_major_locator().set_params(integer=True)
    figure.legend(loc="outside lower center", fontsize="small", ncols=4)
    return figure

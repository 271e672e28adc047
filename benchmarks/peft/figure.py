"""The per-layer curves of kept results, as `docs/figures/make.py` draws them."""

from __future__ import annotations

from typing import Any

from matplotlib.figure import Figure

MARKERS = "osD^v<>"
HEAD_ALONE = "head alone, on all layers"


def curve_of(adaptation: dict[str, Any]) -> tuple[str, int | None]:
    """Return a run's curve and its place on it: the adapted layer, the last one that is used, or none."""
    name = adaptation["name"]
    if name == "head-only":
        used = adaptation["encoder_layers"]
        return ("head on the first layers", used - 1) if used else (HEAD_ALONE, None)
    if name == "bottleneck-adapter":
        name = f"{adaptation['position']} adapter"
    [layer] = adaptation["layers"]
    return {"ffn-only": "feed-forward block", "lora": "LoRA"}.get(name, name), layer


def curves(results: list[dict[str, Any]]) -> dict[str, dict[int | None, float]]:
    """Return curve → layer → mean of the primary metric over seeds."""
    values: dict[str, dict[int | None, list[float]]] = {}
    for result in results:
        curve, layer = curve_of(result["slots"]["adaptation"])
        value = result["metrics"]["last"][result["primary"]]
        values.setdefault(curve, {}).setdefault(layer, []).append(value)
    return {
        curve: {layer: sum(scores) / len(scores) for layer, scores in sorted(layers.items())}
        for curve, layers in values.items()
    }


def draw(results: list[dict[str, Any]]) -> Figure:
    """Return the figure."""
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.subplots()
    drawn = curves(results)
    for score in drawn.pop(HEAD_ALONE, {}).values():
        axes.axhline(score, color="grey", linestyle="--", label=HEAD_ALONE)
    for marker, (curve, layers) in zip(MARKERS, drawn.items(), strict=False):
        axes.plot(list(layers), list(layers.values()), marker=marker, label=curve)
    first = results[0]
    axes.set_xlabel("layer")
    axes.set_ylabel(f"{first['primary']}, {first['task']}")
    axes.set_title(f"{first['model']}: one layer at a time")
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.legend(fontsize="small", ncols=2)
    return figure

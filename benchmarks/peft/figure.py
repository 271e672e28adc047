"""The per-layer curves of kept results, as `docs/figures/make.py` draws them."""

from __future__ import annotations

from typing import Any

from matplotlib.figure import Figure

MARKERS = "osD^v<>"


def curve_of(adaptation: dict[str, Any]) -> tuple[str, int]:
    """Return a run's curve and its place on it: the adapted layer, or the last one that is used."""
    name = adaptation["name"]
    if name == "head-only":
        return "head on the first layers", adaptation["encoder_layers"] - 1
    if name == "bottleneck-adapter":
        name = f"{adaptation['position']} adapter"
    [layer] = adaptation["layers"]
    return {"ffn-only": "feed-forward block", "lora": "LoRA"}.get(name, name), layer


def curves(results: list[dict[str, Any]]) -> dict[str, dict[int, float]]:
    """Return curve → layer → mean of the primary metric over seeds."""
    values: dict[str, dict[int, list[float]]] = {}
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
    for marker, (curve, layers) in zip(MARKERS, curves(results).items(), strict=False):
        axes.plot(list(layers), list(layers.values()), marker=marker, label=curve)
    first = results[0]
    axes.set_xlabel("layer")
    axes.set_ylabel(f"{first['primary']}, {first['task']}")
    axes.set_title(f"{first['model']}: one layer at a time")
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.legend(fontsize="small", ncols=2)
    return figure

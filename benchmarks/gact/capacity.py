"""The largest batch, depth and width in a memory budget, and sequences a second, by how activations are kept.

    python benchmarks/gact/capacity.py --output-dir runs/capacity         # benchmarks/gact/capacity.yaml
    python benchmarks/gact/capacity.py --spec SPEC.yaml --output-dir DIR

The searches are those of `glue-harness capacity`. Where steps are measured, a way's sequences a second are
the median of forward and backward passes, at the largest value found and at the batches asked for. Each
finished search is kept in `result.json`; started again, the script does what is missing. `table.md` is made
from it, and `throughput.png` where several batches were measured.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator, Mapping
from functools import partial
from itertools import product
from pathlib import Path
from statistics import median
from typing import Any

import rows
import torch
import yaml
from matplotlib.figure import Figure

from glue_harness.config.fields import RunConfig
from glue_harness.cost.capacity import capacity, read_bytes, resized
from glue_harness.cost.steps import Steps

HERE = Path(__file__).parent


def sequences_per_second(config: RunConfig, device: str, attention: str | None, rounds: int) -> float | None:
    """Return the speed of forward and backward passes; None where memory runs out."""
    try:
        steps = Steps(config, device, attention)
        seconds = []
        for _ in range(rounds + 2):  # the first two compile and allocate
            steps.model.zero_grad()
            began = time.perf_counter()
            steps.forward_backward()
            if device == "cuda":
                torch.cuda.synchronize()
            seconds.append(time.perf_counter() - began)
    except torch.OutOfMemoryError:
        return None
    return config.batch_size / median(seconds[2:])


def wanted(spec: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield what is to be measured: models and ways with each search, and then with each batch."""
    for what in ("searches", "throughput_at"):
        for model, name, one in product(spec["models"], spec["activations"], spec[what]):
            yield {"model": model, "activations": name, what: one}


def measured(spec: Mapping[str, Any], one: Mapping[str, Any]) -> dict[str, Any]:
    """Return the numbers of a search, or of a batch; a way may have an attention of its own."""
    choice = dict(spec["activations"][one["activations"]])
    attention = choice.pop("attention", spec["attention"])
    search, batch = one.get("searches"), one.get("throughput_at")
    config = RunConfig(
        task="sst2",
        model=one["model"],
        output_dir="none",
        batch_size=batch or (1 if search == "batch-size" else spec["rows"]),
        max_length=spec["max_length"],
        activation=choice,
        optimizer={"name": "adamw", "lr": 1e-5},
    )
    limits: dict[str, Any] = {}
    if search:
        budget, how = read_bytes(spec["budget"]), {"by": spec["by"], "device": spec["device"]}
        report = capacity(config, search, budget, {"it": choice}, attention=attention, **how)
        limits = {key: report["results"]["it"][key] for key in ("largest", "peak_bytes")}
        if not limits["largest"] or spec["by"] != "measurement":
            return {**limits, "sequences_per_second": None}
        config = resized(config, search, limits["largest"])
    rate = sequences_per_second(config, spec["timed_on"], attention, spec["rounds"])
    return {**limits, "sequences_per_second": rate}


def table(result: Mapping[str, Any]) -> str:
    """Return the markdown table of a result."""
    spec = result["spec"]
    lines = [
        "| model | activations | what | largest | peak, GB | sequences/s |",
        "| --- | --- | --- | ---: | ---: | ---: |",
    ]
    for row in result["rows"]:
        batch = row.get("throughput_at")
        what = row["searches"] if batch is None else f"batch of {batch}"
        rate = row["sequences_per_second"]
        peak = row.get("peak_bytes")
        largest = f"{row['largest']:,}" if "largest" in row else ""
        numbers = (largest, f"{peak / 1e9:.2f}" if peak else "", f"{rate:.2f}" if rate else "")
        lines.append(f"| {row['model']} | {row['activations']} | {what} | {' | '.join(numbers)} |")
    others = {name: way["attention"] for name, way in spec["activations"].items() if "attention" in way}
    apart = "".join(f", of {name} {kind}" for name, kind in others.items())
    return "\n".join(lines) + (
        f"\n\n{spec['max_length']} tokens, {spec['rows']} rows where depth or width grows, attention "
        f"{spec['attention']}{apart}, budget {spec['budget']}; by {spec['by']} for {spec['device']}.\n"
    )


def curves(result: Mapping[str, Any]) -> dict[str, dict[str, list[tuple[int, float]]]]:
    """Return model → way of keeping activations → (batch, sequences a second) of what fitted, by batch.

    A search for the largest batch is a measurement at that batch.

    Examples:
        >>> row = {"model": "m", "activations": "L1"}
        >>> rows = [{**row, "throughput_at": 8, "sequences_per_second": 5.0}]
        >>> rows += [{**row, "searches": "batch-size", "largest": 64, "sequences_per_second": 9.0}]
        >>> rows += [{**row, "throughput_at": 128, "sequences_per_second": None}]
        >>> curves({"rows": rows})
        {'m': {'L1': [(8, 5.0), (64, 9.0)]}}
    """
    by_model: dict[str, dict[str, list[tuple[int, float]]]] = {}
    for row in result["rows"]:
        batch = row.get("throughput_at") or (row["searches"] == "batch-size" and row["largest"])
        if batch and row["sequences_per_second"]:
            ways = by_model.setdefault(row["model"], {})
            ways.setdefault(row["activations"], []).append((batch, row["sequences_per_second"]))
    return {model: {way: sorted(at) for way, at in ways.items()} for model, ways in by_model.items()}


def draw(by_model: Mapping[str, Mapping[str, list[tuple[int, float]]]], path: Path) -> None:
    """Write a panel a model: sequences a second over the batch, up to the largest that fits."""
    figure = Figure(figsize=(6 * len(by_model), 4), layout="constrained")
    panels = figure.subplots(1, len(by_model), squeeze=False)[0]
    for ax, (model, ways) in zip(panels, by_model.items(), strict=True):
        for way, at in ways.items():
            ax.plot(*zip(*at, strict=True), marker="o", label=way)
        ax.set(xscale="log", xlabel="batch", ylabel="sequences a second", title=model)
        ax.legend(fontsize="small")
    figure.savefig(path, dpi=110)


def main() -> None:
    as_written = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=as_written)
    parser.add_argument("--spec", type=Path, default=HERE / "capacity.yaml")
    parser.add_argument("--output-dir", type=Path, required=True)
    options = parser.parse_args()
    spec = yaml.safe_load(options.spec.read_text(encoding="utf-8"))
    report = rows.measured(
        options.output_dir, {"spec": spec}, wanted(spec), partial(measured, spec), table, spec["timed_on"]
    )
    if len(spec["throughput_at"]) > 1 and (by_model := curves(report)):
        draw(by_model, options.output_dir / "throughput.png")


if __name__ == "__main__":
    main()

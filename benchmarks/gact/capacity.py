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
import json
import time
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

import torch
import yaml
from matplotlib.figure import Figure

from glue_harness.config.fields import RunConfig
from glue_harness.cost.capacity import SEARCHES, capacity, read_bytes
from glue_harness.cost.steps import Steps
from glue_harness.hardware import hardware, versions
from glue_harness.run.records import write_whole

HERE = Path(__file__).parent

SAME = ("max_length", "rows", "budget", "by", "device", "rounds", "activations")
"""What all rows of a result have in common; models, searches and batches may be added."""


def at(config: RunConfig, search: str, value: int) -> RunConfig:
    """Return the configuration of the largest value found."""
    if search == "batch-size":
        return replace(config, batch_size=value)
    fields = {SEARCHES[search][0]: value}
    if search == "hidden":
        fields["num_attention_heads"] = value // SEARCHES[search][1]
    return replace(config, model_config={**config.model_config, **fields})


def sequences_per_second(config: RunConfig, device: str, rounds: int) -> float | None:
    """Return the speed of forward and backward passes; None where memory runs out."""
    try:
        steps = Steps(config, device)
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


def searched(spec: Mapping[str, Any], model: str, search: str, name: str) -> dict[str, Any]:
    """Return the row of a search."""
    choice = spec["activations"][name]
    config = RunConfig(
        task="sst2",
        model=model,
        output_dir="none",
        batch_size=1 if search == "batch-size" else spec["rows"],
        max_length=spec["max_length"],
        activation=choice,
        optimizer={"name": "adamw", "lr": 1e-5},
    )
    found = capacity(
        config, search, read_bytes(spec["budget"]), {name: choice}, by=spec["by"], device=spec["device"]
    )
    row = found["results"][name]
    largest, rate = row["largest"], None
    if largest and spec["by"] == "measurement":
        rate = sequences_per_second(at(config, search, largest), spec["device"], spec["rounds"])
    return {"largest": largest, "peak_bytes": row["peak_bytes"], "sequences_per_second": rate}


def timed(spec: Mapping[str, Any], model: str, batch: int, name: str) -> dict[str, Any]:
    """Return the row of a batch."""
    config = RunConfig(
        task="sst2",
        model=model,
        output_dir="none",
        batch_size=batch,
        max_length=spec["max_length"],
        activation=spec["activations"][name],
        optimizer={"name": "adamw", "lr": 1e-5},
    )
    return {"sequences_per_second": sequences_per_second(config, spec["device"], spec["rounds"])}


def wanted(spec: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield what is to be measured: model, search or batch, way of keeping activations."""
    for model in spec["models"]:
        for name in spec["activations"]:
            for search in spec["searches"]:
                yield {"model": model, "activations": name, "searches": search}
            for batch in spec["throughput_at"]:
                yield {"model": model, "activations": name, "throughput_at": batch}


def measured(spec: Mapping[str, Any], one: Mapping[str, Any]) -> dict[str, Any]:
    """Return a row with its numbers."""
    if "searches" in one:
        return {**one, **searched(spec, one["model"], one["searches"], one["activations"])}
    return {**one, **timed(spec, one["model"], one["throughput_at"], one["activations"])}


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
    return (
        "\n".join(lines)
        + f"\n\n{spec['max_length']} tokens, {spec['rows']} rows where depth or width grows, "
        f"budget {spec['budget']}; by {spec['by']} for {spec['device']}.\n"
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
    found: dict[str, dict[str, list[tuple[int, float]]]] = {}
    for row in result["rows"]:
        batch = row.get("throughput_at") or (row["searches"] == "batch-size" and row["largest"])
        if batch and row["sequences_per_second"]:
            ways = found.setdefault(row["model"], {})
            ways.setdefault(row["activations"], []).append((batch, row["sequences_per_second"]))
    return {model: {way: sorted(at) for way, at in ways.items()} for model, ways in found.items()}


def draw(found: Mapping[str, Mapping[str, list[tuple[int, float]]]], path: Path) -> None:
    """Write a panel a model: sequences a second over the batch, up to the largest that fits."""
    figure = Figure(figsize=(6 * len(found), 4), layout="constrained")
    panels = figure.subplots(1, len(found), squeeze=False)[0]
    for ax, (model, ways) in zip(panels, found.items(), strict=True):
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
    options.output_dir.mkdir(parents=True, exist_ok=True)
    file = options.output_dir / "result.json"
    kept = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {"spec": spec, "rows": []}
    if differs := [key for key in SAME if kept["spec"].get(key) != spec.get(key)]:
        parser.error(f"{file} has another {differs[0]}: remove it or give another --output-dir")
    rows = kept["rows"]
    result = {"spec": spec, "versions": versions(), "hardware": hardware(torch.device(spec["device"]))}
    for one in wanted(spec):
        if not any(one.items() <= row.items() for row in rows):
            rows.append(measured(spec, one))
            write_whole(file, json.dumps({**result, "rows": rows}, indent=1) + "\n")
    write_whole(options.output_dir / "table.md", table({**result, "rows": rows}))
    print(table({**result, "rows": rows}))
    if len(spec["throughput_at"]) > 1 and (found := curves({"rows": rows})):
        draw(found, options.output_dir / "throughput.png")


if __name__ == "__main__":
    main()

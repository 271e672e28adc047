"""The largest batch, depth or width that fits a memory budget, for each way of keeping activations."""

from __future__ import annotations

import dataclasses
import json
import re
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from transformers import PretrainedConfig

from finetune_common.aliases import JsonObject
from finetune_common.errors import ConfigurationError
from glue_harness.config.fields import RunConfig
from glue_harness.cost.cuda import GPUS, check_device, usable_bytes
from glue_harness.cost.footprint import measured_peak, predict, warm_up
from glue_harness.cost.steps import Steps
from glue_harness.hardware import versions
from glue_harness.run.architectures import changed, find_config
from glue_harness.run.models import build_model
from glue_harness.run.records import write_whole

__all__ = ["SEARCHES", "capacity", "largest", "read_bytes", "resized", "table"]

UNITS = {"": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}

SEARCHES = {
    "batch-size": ("rows", 1),
    "layers": ("num_hidden_layers", 1),
    "hidden": ("hidden_size", 64),
    "intermediate": ("intermediate_size", 64),
}
"""Searched quantity → the field it changes, and its step; attention heads are 64 wide if `hidden` changes."""

TOO_MANY = 2**20


def read_bytes(text: str) -> int:
    """Read an amount of memory, or a GPU's memory that tensors may take.

    Raises:
        ConfigurationError: No number with a unit, and no GPU of `glue_harness.cost.cuda.GPUS`.

    Examples:
        >>> read_bytes("16GiB"), read_bytes("1.5 GB"), read_bytes("1024"), read_bytes("T4")
        (17179869184, 1500000000, 1024, 15247133900)
        >>> read_bytes("16 gigs")
        Traceback (most recent call last):
        finetune_common.errors.ConfigurationError: --budget '16 gigs': give a number with MB, GB, MiB or \
GiB, or a GPU: T4, L4, A10, A100-40, H100, H200
    """
    if text.strip().upper() in GPUS:
        return usable_bytes(text.strip())
    amount = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]*)\s*", text)
    if not amount or amount[2].upper() not in UNITS:
        raise ConfigurationError(
            f"--budget {text!r}: give a number with MB, GB, MiB or GiB, or a GPU: {', '.join(GPUS)}"
        )
    return int(float(amount[1]) * UNITS[amount[2].upper()])


def largest(cost: Callable[[int], float], budget: float, first: int = 1) -> int:
    """Return the largest n ≥ 1 with cost(n) ≤ budget, or 0; the cost never falls with n.

    The next n comes from the line through the two nearest known costs, so that a nearly linear cost needs a
    handful of evaluations.

    Args:
        cost: Cost of n; ∞ if impossible.
        budget: The limit.
        first: Where to begin.

    Examples:
        >>> largest(lambda n: 10 + 3 * n, budget=100)
        30
    """
    low, low_cost, n = 0, 0.0, first
    while (needed := cost(n)) <= budget:
        if n >= TOO_MANY:
            return n
        rate = (needed - low_cost) / (n - low)
        ahead = n + int((budget - needed) / rate) + 1 if low and rate > 0 else 2 * n
        low, low_cost, n = n, needed, min(max(n + 1, ahead), TOO_MANY)
    high, high_cost = n, needed
    while high - low > 1:
        straight = low + int((budget - low_cost) / (high_cost - low_cost) * (high - low)) if low else 0
        n = min(max(straight, low + 1), high - 1)
        if (needed := cost(n)) <= budget:
            low, low_cost = n, needed
        else:
            high, high_cost = n, needed
    return low


def resized(config: RunConfig, what: str, value: int) -> RunConfig:
    """Return a configuration with another value of the searched quantity (`SEARCHES`).

    An encoder and a decoder that are equally deep stay so. Where `hidden` changes, all kinds of heads follow;
    those of keys and values, where they are fewer, divide the others and become no more than they were.
    """
    if what == "batch-size":
        return dataclasses.replace(config, batch_size=value)
    field, step = SEARCHES[what]
    shape = changed(find_config(config.model), config.model_config).get_text_config()
    fields = {field: value}
    if what == "intermediate" and not hasattr(shape, field):
        fields = dict.fromkeys(_feed_forward(config), value)
    if what == "layers":
        depth = getattr(shape, field, None)
        fields |= {name: value for name, number in _counts(shape, "layers") if number == depth}
    if what == "hidden":
        heads, before = value // step, getattr(shape, "num_attention_heads", 0)
        fields |= {name: _divisor(heads, number, before) for name, number in _counts(shape, "heads")}
        fields |= {"num_attention_heads": heads} | ({"head_dim": step} if hasattr(shape, "head_dim") else {})
    return dataclasses.replace(config, model_config={**config.model_config, **fields})


def _feed_forward(config: RunConfig) -> list[str]:
    """Return the fields of the width between two matrices, one from the hidden width and one back to it."""
    with torch.device("meta"):
        model = build_model(config.model, config.model_config, max_length=1)
    shape, sides = model.config.get_text_config(), {tuple(p.shape) for p in model.parameters() if p.ndim == 2}
    widths = {n for n, hidden in sides if n != hidden == shape.hidden_size and (hidden, n) in sides}
    fields = [name for name, number in _counts(shape, "") if number in widths]
    if not fields:
        raise ConfigurationError(
            f"--search intermediate: {shape.model_type} has no field for the width of its feed-forward "
            "blocks: search batch-size, layers or hidden"
        )
    return fields


def _counts(shape: PretrainedConfig, of: str) -> list[tuple[str, int]]:
    """Return the whole numbers in a model's configuration whose names end with what they count."""
    return [(name, n) for name, n in shape.to_dict().items() if name.endswith(of) and type(n) is int]


def _divisor(heads: int, number: int, before: int) -> int:
    """Return how many of the heads are of a kind: all if they were, else at most `number`, a divisor."""
    return heads if number >= before else next(n for n in range(number, 0, -1) if heads % n == 0)


def _predicted(config: RunConfig, device: str, attention: str | None) -> float:
    return predict(config, device, attention).peak


def _measured(config: RunConfig, device: str, attention: str | None) -> float:
    """Return the peak of a real step, ∞ if memory runs out."""
    try:
        steps = Steps(config, device, attention)
        kept = warm_up(steps)
        return steps.state_bytes()["parameters"] + kept + measured_peak(steps.forward_backward, device)
    except torch.OutOfMemoryError:
        return float("inf")


METHODS = {"prediction": _predicted, "measurement": _measured}


def capacity(
    config: RunConfig,
    what: str,
    budget: int,
    choices: Mapping[str, JsonObject],
    *,
    by: str = "prediction",
    device: str = "cpu",
    attention: str | None = None,
    output_dir: Path | None = None,
) -> JsonObject:
    """Search the largest value for each choice of the activation slot.

    A choice that cannot run (no GPU) is recorded with the reason and does not stop the others.

    Args:
        config: Model, slots, batch size and length of a step; `what` is changed in it.
        what: One of `SEARCHES`.
        budget: Bytes for parameters, gradients, the methods' state, activations and temporary tensors.
        choices: Name → choice of the activation slot.
        by: "prediction", from fake tensors, or "measurement", by real steps.
        device: "cpu" or "cuda"; a prediction needs no GPU.
        attention: One of `glue_harness.cost.cuda.ATTENTION`; by default the model's own.
        output_dir: Receives `max_<what>_results.json`.

    Returns:
        What that file holds: for each choice the largest value (0: none fits), the peak there, and the
        seconds that the search took; or the reason why it cannot run.

    Raises:
        ConfigurationError: No choice can run, for instance as there is no model of this shape.
    """
    check_device(device, by, attention)
    changed(find_config(config.model), config.model_config)  # wrong fields are refused before any search
    step = SEARCHES[what][1]
    rows: JsonObject = {}
    refused: list[ConfigurationError] = []
    for name, choice in choices.items():
        known: dict[int, float] = {}

        def cost(n: int, choice: JsonObject = choice, known: dict[int, float] = known) -> float:
            resized_config = dataclasses.replace(resized(config, what, n * step), activation=choice)
            known[n] = METHODS[by](resized_config, device, attention)
            return known[n]

        began = time.perf_counter()
        try:
            best = largest(cost, budget)
        except ConfigurationError as error:
            rows[name] = {"activation": choice, "error": " ".join(str(error).split())}
            refused.append(error)
            continue
        rows[name] = {
            "activation": choice,
            "largest": best * step,
            "peak_bytes": known.get(best),
            "seconds": round(time.perf_counter() - began, 2),
            "evaluations": len(known),
        }
        print(f"{name:24}{best * step:>10,}", flush=True)
    if len(refused) == len(rows):
        raise refused[0]
    report = {
        "model": config.model,
        "model_config": config.model_config,
        "search": what,
        "budget_bytes": budget,
        "by": by,
        "device": device,
        "attention": attention,
        "batch_size": None if what == "batch-size" else config.batch_size,
        "max_length": config.max_length,
        "optimizer": config.optimizer,
        "adaptation": config.adaptation,
        "results": rows,
        "versions": versions(),
    }
    if output_dir is not None:
        output_dir.mkdir(parents=True, exist_ok=True)
        name = f"max_{what.replace('-', '_')}_results.json"
        write_whole(output_dir / name, json.dumps(report, indent=1) + "\n")
    return report


def table(report: JsonObject) -> str:
    """Return a report as a markdown table."""
    rows = report["results"]
    against = next(iter(rows.values())).get("largest")
    lines = [
        f"| activations | largest {report['search']} | times the first | peak, GB |",
        "| --- | ---: | ---: | ---: |",
    ]
    for name, row in rows.items():
        if "error" in row:
            lines.append(f"| {name} | {row['error']} | | |")
            continue
        times = f"{row['largest'] / against:.2f}" if against else ""
        peak = f"{row['peak_bytes'] / 1e9:.2f}" if row["peak_bytes"] else "does not fit"
        lines.append(f"| {name} | {row['largest']:,} | {times} | {peak} |")
    rows_of = "" if report["batch_size"] is None else f"{report['batch_size']} rows of "
    lines += [
        "",
        f"{report['model']}, {rows_of}{report['max_length']} tokens, {report['optimizer']['name']}, budget "
        f"{report['budget_bytes'] / 1e9:.2f} GB; by {report['by']} for {report['device']}. The budget is for "
        "tensors: leave room for the process itself.",
    ]
    return "\n".join(lines) + "\n"

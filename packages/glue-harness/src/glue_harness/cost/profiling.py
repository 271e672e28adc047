"""Memory and speed of training steps on made-up rows, side by side."""

from __future__ import annotations

import dataclasses
import gc
import json
from collections.abc import Mapping
from pathlib import Path
from statistics import median

import torch

from finetune_common.aliases import JsonObject
from finetune_common.errors import ConfigurationError
from glue_harness.config.fields import RunConfig
from glue_harness.cost.cuda import check_device
from glue_harness.cost.footprint import measured_peak, predict, warm_up
from glue_harness.cost.steps import Steps
from glue_harness.files import atomic
from glue_harness.hardware import hardware, versions
from glue_harness.run.records import write_whole

__all__ = ["profile_step", "profile_steps", "table", "throughput_figure"]


def profile_step(
    config: RunConfig, device: str, repeats: int = 5, attention: str | None = None
) -> JsonObject:
    """Return memory and seconds of one kind of step; two warm-up steps are not counted.

    Args:
        config: Model, slots, batch size, length, precision.
        device: "cpu" or "cuda".
        repeats: Steps that are timed.
        attention: "eager" or "sdpa"; by default the model's own.

    Returns:
        Bytes of parameters, gradients, optimizer state, what gradient methods and monitors keep, saved
        activations and the peak (tensors, by the allocator's events); median seconds with and without the
        optimizer's step; rows a second.
    """
    steps = Steps(config, device, attention)
    kept = warm_up(steps)
    timings = [steps.timed(number) for number in range(3, repeats + 3)]
    passes, steps_taken = map(list, zip(*timings, strict=True))
    loss, stored = steps.metered_forward()
    del loss
    gc.collect()
    peak = measured_peak(steps.forward_backward, device)
    sizes = steps.state_bytes()
    methods = max(0, kept - sizes["optimizer"])
    peak += sizes["parameters"] + sizes["optimizer"] + methods
    return {
        "bytes": {**sizes, "methods": methods, "activations": stored, "peak": peak},
        "seconds": {"step": median(steps_taken), "without_optimizer": median(passes), "all": steps_taken},
        "rows_per_second": config.batch_size * config.accumulate / median(steps_taken),
    }


def profile_steps(
    config: RunConfig,
    choices: Mapping[str, JsonObject],
    batch_sizes: list[int],
    device: str,
    output_dir: Path | None = None,
    repeats: int = 5,
    *,
    by: str = "measurement",
    attention: str | None = None,
) -> JsonObject:
    """Profile each choice of the activation slot at each batch size.

    A choice that cannot run (no memory, no GPU) is recorded with the reason and does not stop the others.

    Args:
        config: The common settings.
        choices: Name → choice of the activation slot.
        batch_sizes: Rows of a batch.
        device: "cpu" or "cuda".
        output_dir: Receives `speed_results.json`, and `throughput.png` for several batch sizes.
        repeats: Steps that are timed.
        by: "measurement", or "prediction" from fake tensors: bytes alone, on any machine.
        attention: One of `glue_harness.cost.cuda.ATTENTION`; by default the model's own.

    Returns:
        The content of `speed_results.json`.

    Raises:
        ConfigurationError: No choice can run, with the reason of the first.
    """
    check_device(device, by, attention)
    rows = []
    refused: list[ConfigurationError] = []
    for name, choice in choices.items():
        for size in batch_sizes:
            step_config = dataclasses.replace(config, activation=choice, batch_size=size)
            row: JsonObject = {"activation": name, "batch_size": size}
            try:
                if by == "prediction":
                    row["bytes"] = dataclasses.asdict(predict(step_config, device, attention))
                else:
                    row |= profile_step(step_config, device, repeats, attention)
            except (ConfigurationError, torch.OutOfMemoryError) as error:
                row["error"] = " ".join(str(error).split())
                if isinstance(error, ConfigurationError):
                    refused.append(error)
            gc.collect()
            rows.append(row)
    if len(refused) == len(rows):
        raise refused[0]
    report = {
        "model": config.model,
        "model_config": config.model_config,
        "max_length": config.max_length,
        "accumulate": config.accumulate,
        "by": by,
        "device": device,
        "attention": attention,
        "precision": config.precision,
        "slots": {
            "adaptation": config.adaptation,
            "gradient": config.gradient,
            "optimizer": config.optimizer,
        },
        "rows": rows,
        "versions": versions(),
        "hardware": hardware(torch.device(device if by == "measurement" else "cpu")),
    }
    if output_dir is not None:
        write_whole(output_dir / "speed_results.json", json.dumps(report, indent=1) + "\n")
        if len(batch_sizes) > 1 and by == "measurement":
            throughput_figure(report, output_dir / "throughput.png")
    return report


def table(report: JsonObject) -> str:
    """Return a report as a markdown table; memory in MB, times against the first row."""
    head = ("parameters", "gradients", "optimizer", "methods", "activations", "peak")
    titles = [f"{name}, MB" for name in head]
    if report["by"] == "measurement":
        titles += ["ms a step", "without optimizer", "rows/s"]
    lines = [
        f"| activations | batch | {' | '.join(titles)} |",
        "| --- | ---: |" + " ---: |" * len(titles),
    ]
    for row in report["rows"]:
        start = f"| {row['activation']} | {row['batch_size']} | "
        if "error" in row:
            lines.append(f"{start}{row['error']} |" + " |" * (len(titles) - 1))
            continue
        cells = [f"{row['bytes'][name] / 1e6:,.1f}" for name in head]
        if report["by"] == "measurement":
            step, passes = (1000 * row["seconds"][part] for part in ("step", "without_optimizer"))
            cells += [f"{step:,.0f}", f"{passes:,.0f}", f"{row['rows_per_second']:.1f}"]
        lines.append(f"{start}{' | '.join(cells)} |")
    if report["by"] == "prediction":
        lines += ["", f"Predicted for {report['device']}; the peak counts all tensors of a step."]
    return "\n".join(lines) + "\n"


def throughput_figure(report: JsonObject, path: Path) -> None:
    """Draw rows per second against the batch size, a line for each activation method."""
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    figure, ax = plt.subplots(figsize=(7, 4.5), layout="constrained")
    for number, name in enumerate(dict.fromkeys(row["activation"] for row in report["rows"])):
        rows = [row for row in report["rows"] if row["activation"] == name and "error" not in row]
        marker = "osD^v<>Xp*"[number % 10]
        ax.plot(
            [row["batch_size"] for row in rows],
            [row["rows_per_second"] for row in rows],
            marker=marker,
            label=name,
        )
    ax.set(xlabel="batch size", ylabel="rows a second", title=f"{report['model']}: training throughput")
    ax.legend()
    with atomic(path) as beside:
        figure.savefig(beside, dpi=120)
    plt.close(figure)

"""How many GB the published batches need: forward and backward in float32, by prediction for CUDA.

    python benchmarks/gact/published_memory.py --output-dir runs/published-memory

The largest batches that were published without compression are of three models on one GPU that is not
recorded. If the prediction is right, all three need about the same memory: what that GPU had to give.
Gradients count throughout: `zero_grad` wrote zeros then, and freed nothing. The published batches of
compressed steps describe another code, which stored more, and are left out.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import nn

from glue_harness.cost.footprint import imposed
from glue_harness.hardware import versions
from glue_harness.run.architectures import find_config
from glue_harness.run.records import write_whole

STATE = 8
"""Bytes a parameter that AdamW keeps: two float32 numbers."""
IMAGE, TOKENS = 224, 128

Built = tuple[nn.Module, Callable[[int], dict[str, torch.Tensor]]]


def bert(name: str) -> Built:
    """Return a text classifier with attention written out, and how to make a batch."""
    config = find_config(name)
    model = transformers.AutoModelForSequenceClassification.from_config(config, attn_implementation="eager")
    return model, lambda rows: {
        "input_ids": torch.zeros(rows, TOKENS, dtype=torch.long),
        "labels": torch.zeros(rows, dtype=torch.long),
    }


def swin(name: str) -> Built:
    """Return Swin-Tiny, which is transformers' default, and how to make a batch of images."""
    config = transformers.SwinConfig(num_labels=1000, problem_type="single_label_classification")
    config._attn_implementation = "eager"
    model = transformers.SwinForImageClassification(config)
    return model, lambda rows: {
        "pixel_values": torch.zeros(rows, 3, IMAGE, IMAGE),
        "labels": torch.zeros(rows, dtype=torch.long),
    }


ROWS: dict[str, tuple[Callable[[str], Built], int]] = {
    "bert-large-cased": (bert, 24),
    "bert-base-cased": (bert, 104),
    "swin_tiny": (swin, 112),
}
"""Model → how to build it, and its largest published batch without compression (`targets.csv`)."""


def needed(name: str) -> dict[str, Any]:
    """Return what the published batch of a model needs, in bytes, and how long the prediction took."""
    build, batch = ROWS[name]
    began = time.perf_counter()
    with torch.device("meta"):
        model, make = build(name)
    with imposed("cuda", "eager") as live:
        _materialise(model.train())
        parameters = sum(parameter.nbytes for parameter in model.parameters())
        model(**make(batch)).loss.backward()
    state = STATE * sum(parameter.numel() for parameter in model.parameters())
    return {
        "model": name,
        "batch": batch,
        "parameters": parameters,
        "peak": max(live.peak, parameters) + parameters + state,
        "seconds": round(time.perf_counter() - began, 1),
    }


def _materialise(model: nn.Module) -> None:
    """Give a model of the meta device tensors of the present kind."""
    for module in model.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                module._parameters[name] = nn.Parameter(torch.empty(parameter.shape, dtype=parameter.dtype))
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = torch.empty(buffer.shape, dtype=buffer.dtype)


def table(rows: list[dict[str, Any]]) -> str:
    """Return the rows as a markdown table."""
    lines = ["| model | published batch | GB needed | seconds to predict |", "| --- | ---: | ---: | ---: |"]
    for row in rows:
        lines.append(f"| {row['model']} | {row['batch']} | {row['peak'] / 1e9:.2f} | {row['seconds']} |")
    peaks = [row["peak"] for row in rows]
    apart = max(abs(peak / statistics.mean(peaks) - 1) for peak in peaks)
    lines += [
        "",
        f"From their mean, {statistics.mean(peaks) / 1e9:.2f} GB, they differ by {apart:.1%} at most.",
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    as_written = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=as_written)
    parser.add_argument("--output-dir", type=Path, required=True)
    options = parser.parse_args()
    rows = [needed(name) for name in ROWS]
    write_whole(
        options.output_dir / "result.json",
        json.dumps({"rows": rows, "versions": versions()}, indent=1) + "\n",
    )
    write_whole(options.output_dir / "table.md", table(rows))
    print(table(rows))


if __name__ == "__main__":
    main()

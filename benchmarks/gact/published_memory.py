"""How many GB the published batches need: forward and backward in float32, by prediction for CUDA.

    python benchmarks/gact/published_memory.py --output-dir runs/published-memory

The largest batches that were published without compression are of three models on one GPU that is not
recorded. The released search went up in steps of four rows: so the GPU had what the published batch needs,
and not what four rows more need. If the prediction is right, one number lies within these bounds for all.
Gradients count throughout: `zero_grad` wrote zeros then, and freed nothing. The published batches of
compressed steps describe another code, which stored more, and are left out.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import nn

from glue_harness.cost.footprint import imposed
from glue_harness.hardware import versions
from glue_harness.run.architectures import find_config
from glue_harness.run.records import write_whole

SEARCHED = 4
"""Rows by which the released search for the largest batch went up."""
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
    """Return the bytes that a model's published batch needs, and one step more; the seconds it took."""
    batch, began = ROWS[name][1], time.perf_counter()
    parameters, peak = _peak(name, batch)
    _, beyond = _peak(name, batch + SEARCHED)
    seconds = round(time.perf_counter() - began, 1)
    return {
        "model": name,
        "batch": batch,
        "parameters": parameters,
        "peak": peak,
        "beyond": beyond,
        "seconds": seconds,
    }


def _peak(name: str, batch: int) -> tuple[int, int]:
    """Return the bytes of a model's parameters, and those that a step with a batch needs."""
    with torch.device("meta"):
        model, make = ROWS[name][0](name)
    with imposed("cuda", "eager") as live:
        _materialise(model.train())
        parameters = sum(parameter.nbytes for parameter in model.parameters())
        model(**make(batch)).loss.backward()
    state = STATE * sum(parameter.numel() for parameter in model.parameters())
    return parameters, max(live.peak, parameters) + parameters + state


def _materialise(model: nn.Module) -> None:
    """Give a model of the meta device tensors of the present kind."""
    for module in model.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                module._parameters[name] = nn.Parameter(torch.empty(parameter.shape, dtype=parameter.dtype))
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = torch.empty(buffer.shape, dtype=buffer.dtype)


def table(result: Mapping[str, Any]) -> str:
    """Return the markdown table of a result."""
    rows = result["rows"]
    lines = [
        f"| model | published batch | GB needed | GB needed by {SEARCHED} rows more | seconds to predict |",
        "| --- | ---: | ---: | ---: | ---: |",
    ]
    for row in rows:
        bounds = f"{row['peak'] / 1e9:.2f} | {row['beyond'] / 1e9:.2f}"
        lines.append(f"| {row['model']} | {row['batch']} | {bounds} | {row['seconds']} |")
    peaks = [row["peak"] for row in rows]
    apart = max(abs(peak / statistics.mean(peaks) - 1) for peak in peaks)
    least, most = max(peaks) / 1e9, min(row["beyond"] for row in rows) / 1e9
    lines += [
        "",
        f"From their mean, {statistics.mean(peaks) / 1e9:.2f} GB, they differ by {apart:.1%} at most. "
        + (
            f"A GPU with {least:.2f} to {most:.2f} GB for tensors explains all of them."
            if least < most
            else "No one GPU explains all of them."
        ),
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    as_written = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=as_written)
    parser.add_argument("--models", nargs="+", choices=ROWS, default=list(ROWS))
    parser.add_argument("--output-dir", type=Path, required=True)
    options = parser.parse_args()
    result = {"rows": [needed(name) for name in options.models], "versions": versions()}
    options.output_dir.mkdir(parents=True, exist_ok=True)
    write_whole(options.output_dir / "result.json", json.dumps(result, indent=1) + "\n")
    write_whole(options.output_dir / "table.md", table(result))
    print(table(result))


if __name__ == "__main__":
    main()

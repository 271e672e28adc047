"""A training step of a BERT and of a Llama-like model, by how activations are kept: time and memory.

Plain, L1, lossless, checkpointed, offloaded, compiled, compiled with L1, and compiled with half of torch's
own memory budget for activations. Each way has the machine for itself: a model of its own, two steps that
warm up and compile, then the timed ones. Forward and backward passes in bf16 under autocast, or float32. What
cannot run is a row with the reason.

    python benchmarks/speed/training_step.py --device cuda --output runs/training_step.json
    python benchmarks/speed/training_step.py --quick
"""

from __future__ import annotations

import argparse
import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from statistics import median
from typing import Any

import torch
from measuring import add_device, begin, timed, write
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForSequenceClassification

from finetune_common.measure import SavedTensorMeter
from finetune_common.slots import find
from glue_harness.cost.footprint import measured_peak
from glue_harness.hardware import hardware, versions

PLAIN = "plain"
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "bert": (
        "bert",
        {"hidden_size": 1024, "num_attention_heads": 16, "intermediate_size": 4096, "num_hidden_layers": 24},
    ),
    "llama": (
        "llama",
        {
            "hidden_size": 2048,
            "num_attention_heads": 16,
            "num_key_value_heads": 4,
            "intermediate_size": 5632,
            "num_hidden_layers": 12,
            "pad_token_id": 0,
        },
    ),
}
"""Model → transformers' name of its kind, and its shape."""
QUICK = {
    "hidden_size": 64,
    "num_attention_heads": 4,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "vocab_size": 500,
}

Step = Callable[[], Tensor]


def by_slot(method: str, **options: Any) -> Callable[[nn.Module, dict[str, Any]], Step]:
    """Return a forward pass within a method of the activation slot."""

    def build(model: nn.Module, batch: dict[str, Any]) -> Step:
        kind = find("activation", method)
        chosen = kind(kind.Options(**options))

        def forward() -> Tensor:
            with chosen.around_forward(model):
                return model(**batch).loss

        return forward

    return build


def compiled(level: str | None = None, budget: float | None = None) -> Any:
    """Return a compiled forward pass: plain, compressed at a level, or with a budget of torch's own."""

    def build(model: nn.Module, batch: dict[str, Any]) -> Step:
        settings: dict[str, Any] = {}
        if level is not None:
            from activation_compression import compile_options

            settings["options"] = compile_options(level)
        made = torch.compile(model, **settings)

        def forward() -> Tensor:
            with torch._functorch.config.patch(activation_memory_budget=budget or 1.0):
                return made(**batch).loss

        return forward

    return build


WAYS = {
    PLAIN: by_slot("none"),
    "L1": by_slot("compress", level="L1"),
    "lossless": by_slot("compress", level="lossless"),
    "checkpoint": by_slot("checkpoint"),
    "offload": by_slot("offload"),
    "offload, 4 bits": by_slot("offload", level="L4bit-swap"),
    "compiled": compiled(),
    "compiled, L1": compiled("L1"),
    "compiled, budget 0.5": compiled(budget=0.5),
}


def make(name: str, options: argparse.Namespace) -> tuple[nn.Module, dict[str, Any]]:
    """Return a model in training and a batch."""
    kind, shape = MODELS[name]
    torch.manual_seed(0)
    config = AutoConfig.for_model(kind, **{**shape, **(QUICK if options.quick else {})})
    model = AutoModelForSequenceClassification.from_config(config).train()
    rows = (options.batch_size, options.length)
    return model, {
        "input_ids": torch.randint(5, config.vocab_size, rows),
        "labels": torch.zeros(rows[0]).long(),
    }


@contextmanager
def tidy() -> Iterator[None]:
    """Give back what a way took, compiled code too."""
    yield
    torch._dynamo.reset()
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def measure(name: str, way: str, options: argparse.Namespace) -> dict[str, Any]:
    """Return a way's seconds and bytes of a step, or why there are none."""
    with tidy():
        try:
            return _measured(name, way, options)
        except Exception as error:  # the others go on
            return {
                "way": way,
                "model": name,
                "error": " ".join(f"{type(error).__name__}: {error}".split())[:200],
            }


def _measured(name: str, way: str, options: argparse.Namespace) -> dict[str, Any]:
    model, batch = make(name, options)
    half = torch.autocast(options.device, torch.bfloat16) if options.precision == "bf16" else nullcontext()
    forward = WAYS[way](model, batch)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, fused=True)

    def passes() -> None:
        with half:
            loss = forward()
        loss.backward()

    def step() -> None:
        passes()
        optimizer.step()
        optimizer.zero_grad()

    first = timed(step)
    step()
    seconds = [timed(step) for _ in range(options.rounds)]
    with SavedTensorMeter(model) as meter, half:
        loss = forward()
    del loss
    row = {"way": way, "model": name, "median_seconds": median(seconds), "first_seconds": first}
    row |= {"saved_bytes": meter.bytes, "peak_bytes": measured_peak(passes, options.device)}
    if options.device == "cuda":
        told = torch.cuda.memory_stats()
        row |= {f"{kind}_bytes": told[f"{kind}_bytes.all.peak"] for kind in ("active", "reserved")}
    return row


def table(report: dict[str, Any]) -> str:
    """Return the markdown table of a report."""
    lines = [
        "| model | activations | ms a step | against plain | first step, s | peak of the passes, MB |",
        "| --- | --- | ---: | ---: | ---: | ---: |",
    ]
    plain = {row["model"]: row for row in report["rows"] if row["way"] == PLAIN and "error" not in row}
    for row in report["rows"]:
        start = f"| {row['model']} | {row['way']} |"
        if "error" in row:
            lines.append(f"{start} {row['error']} | | | |")
            continue
        against = f"{row['median_seconds'] / plain[row['model']]['median_seconds']:.2f}x" if plain else ""
        lines.append(
            f"{start} {1000 * row['median_seconds']:.1f} | {against} | {row['first_seconds']:.1f} "
            f"| {row['peak_bytes'] / 1e6:,.0f} |"
        )
    how = report["settings"]
    lines += [
        "",
        f"{how['batch_size']} rows of {how['length']} tokens, {how['precision']}, AdamW fused; medians of "
        f"{how['rounds']} steps; {report['hardware'].get('gpu', report['hardware']['processor'])}, "
        f"torch {report['versions']['torch']}. The peak is above what there is between steps.",
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measure, print, write."""
    as_written = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=as_written)
    add_device(parser)
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS))
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--length", type=int, default=128)
    parser.add_argument(
        "--precision", choices=("fp32", "bf16"), default=None, help="bf16 on a GPU, else fp32"
    )
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--quick", action="store_true", help="tiny models and two rounds: whether all runs")
    parser.add_argument("--output", type=Path, help="JSON file to write, with the table (.md) beside it")
    options = parser.parse_args()
    begin(options.device)
    options.precision = options.precision or ("bf16" if options.device == "cuda" else "fp32")
    if options.quick:
        options.batch_size, options.length, options.rounds = 2, 16, 2
    report = {
        "rows": [measure(name, way, options) for name in options.models for way in options.ways],
        "settings": {n: v for n, v in vars(options).items() if n != "output"},
        "versions": versions(),
        "hardware": hardware(torch.device(options.device)),
    }
    write(report, table(report), options.output)


if __name__ == "__main__":
    main()

"""Step time and memory of every method against plain fine-tuning, at BERT-base's shape and a Llama-like one.

Random weights, made-up rows of full length, AdamW where the method is no optimizer. Each method
takes turns with plain in one process, so that a slow minute of the machine hits both. What is measured is
written at once and kept with `--resume`, so that a machine can be had for a few minutes at a time.

    python benchmarks/speed/methods.py --output benchmarks/speed/results/methods.json --shapes bert
"""

from __future__ import annotations

import argparse
import gc
import json
from pathlib import Path
from statistics import median
from typing import Any

import torch
from measuring import write

from glue_harness.config.fields import RunConfig
from glue_harness.config.parsing import parse_mapping
from glue_harness.cost.footprint import measured_peak, warm_up
from glue_harness.cost.steps import Steps
from glue_harness.hardware import hardware, versions
from glue_harness.run.records import write_whole

PLAIN = "plain"
WARM_UP = 2

SHAPES: dict[str, dict[str, Any]] = {
    "bert": {"model": "bert-base-uncased"},
    "llama": {
        "model": "meta-llama/Meta-Llama-3-8B",
        "model_config": {
            **{"hidden_size": 1024, "num_attention_heads": 16, "num_key_value_heads": 4},
            **{"intermediate_size": 2816, "num_hidden_layers": 6, "vocab_size": 32000, "pad_token_id": 0},
        },
    },
}
TITLES = {"bert": "BERT-base", "llama": "Llama-like"}

METHODS: dict[str, dict[str, Any]] = {
    PLAIN: {},
    "SAGE-AdamW": {"optimizer": {"name": "sage-adamw", "lr": 1e-5}},
    "SAGE-Adamax": {"optimizer": {"name": "sage-adamax", "lr": 1e-5}},
    "Clip-Adam, each tensor": {"optimizer": {"name": "clipped-adam", "lr": 1e-5, "clip": "local"}},
    "Clip-Adam, elementwise": {"optimizer": {"name": "clipped-adam", "lr": 1e-5, "clip": "elementwise"}},
    "AGNI, micro-batches": {"gradient": [{"name": "agni"}]},
    "AGNI, ema": {"gradient": [{"name": "agni", "variance": "ema"}]},
    "annealed noise": {"gradient": [{"name": "annealed-noise"}]},
    "compress L1 (4 bits)": {"activation": {"name": "compress", "level": "L1"}},
    "compress lossless": {"activation": {"name": "compress", "level": "lossless"}},
    "checkpoint": {"activation": {"name": "checkpoint"}},
    "LoRA, rank 8": {"adaptation": {"name": "lora", "rank": 8}},
    "adapters, 16 units": {"adaptation": {"name": "bottleneck-adapter", "bottleneck": 16}},
    "biases": {"adaptation": {"name": "bitfit"}},
    "head alone": {"adaptation": {"name": "head-only"}},
    "LoRA + SAGE + L1": {
        "adaptation": {"name": "lora", "rank": 8},
        "optimizer": {"name": "sage-adamw", "lr": 1e-5, "pattern": "lora"},
        "activation": {"name": "compress", "level": "L1"},
    },
}


def configuration(shape: str, method: dict[str, Any], quick: bool) -> RunConfig:
    """Return a step of four rows of 64 tokens, in two micro-batches, which AGNI needs."""
    small = {"model": "demo", "model_config": {}} if quick else SHAPES[shape]
    base = {"task": "demo-acceptability", "output_dir": "-", "batch_size": 2, "accumulate": 2}
    plain = {"optimizer": {"name": "adamw", "lr": 1e-5}, "max_length": 64, "max_grad_norm": 0}
    return parse_mapping({**base, **plain, **small, **method})


def measure(shape: str, name: str, repeats: int, quick: bool) -> dict[str, Any]:
    """Return what a step of a method takes beside one of plain, in turns, and the bytes that it holds."""
    plain, method = (Steps(configuration(shape, METHODS[way], quick)) for way in (PLAIN, name))
    kept = [warm_up(steps) for steps in (plain, method)][1]
    taken: list[list[float]] = []
    for number in range(1, repeats + WARM_UP + 1):
        turn = (plain, method) if number % 2 else (method, plain)  # none always comes second
        seconds = {steps: steps.timed(number)[1] for steps in turn}
        taken.append([seconds[plain], seconds[method]])
    of_plain, of_method = map(median, zip(*taken[WARM_UP:], strict=True))
    # By turns: the machine's pace drifts.
    ratio = median(of_method / of_plain for of_plain, of_method in taken[WARM_UP:])
    loss, saved = method.metered_forward()
    del loss, plain
    gc.collect()
    held = method.state_bytes()
    peak = held["parameters"] + kept + measured_peak(method.forward_backward)
    print(f"{shape}, {name}: {of_method:.2f} s, plain {of_plain:.2f} s", flush=True)
    sizes = {"optimizer": held["optimizer"], "saved": saved, "peak": peak}
    return {"median_seconds": of_method, "ratio": ratio, "bytes": sizes}


def table(report: dict[str, Any]) -> str:
    """Return the markdown table of a report."""
    shapes = list(report["shapes"])
    head = [f"{TITLES[shape]}: {what}" for shape in shapes for what in ("step", "saved, MB", "peak, MB")]
    lines = [f"| method | {' | '.join(head)} |", "| --- |" + " ---: |" * len(head)]
    for name in METHODS:
        cells = []
        for shape in shapes:
            row = report["shapes"][shape].get(name)
            sizes = [f"{row['bytes'][key] / 1e6:,.0f}" for key in ("saved", "peak")] if row else ["", ""]
            cells += [f"{row['ratio']:.2f}x" if row else "", *sizes]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    machine, torch_version = report["hardware"], report["versions"]["torch"]
    lines += [
        "",
        "Step: seconds against plain AdamW's, median of turns; four rows of 64 tokens in two micro-batches, "
        f"{report['repeats']} turns. Saved: what a micro-batch keeps for backward. Peak: parameters, "
        "what methods keep, and what passes hold. BERT-base: 12 layers, 768 wide; Llama-like: 6, 1,024 wide. "
        f"float32; {machine['processor']}, {machine['threads']} threads, torch {torch_version}.",
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    as_written = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=as_written)
    parser.add_argument(
        "--shapes", nargs="+", choices=tuple(SHAPES), default=list(SHAPES), help="which (all)"
    )
    parser.add_argument("--repeats", type=int, default=5, help="steps that are timed, after two (5)")
    parser.add_argument("--quick", action="store_true", help="a tiny model instead: whether it runs")
    parser.add_argument("--resume", action="store_true", help="keep what the output has")
    parser.add_argument("--output", type=Path, help="JSON file to write, with the table (.md) beside it")
    options = parser.parse_args()
    torch.set_flush_denormal(True)
    report: dict[str, Any] = {"shapes": {}}
    if options.resume and options.output and options.output.exists():
        report = json.loads(options.output.read_text(encoding="utf-8"))
    report |= {"repeats": options.repeats, "versions": versions(), "hardware": hardware(torch.device("cpu"))}
    for shape in options.shapes:
        measured = report["shapes"].setdefault(shape, {})
        for name in [name for name in METHODS if name not in measured]:
            measured[name] = measure(shape, name, options.repeats, options.quick)
            if options.output:
                write_whole(options.output, json.dumps(report, indent=1) + "\n")
    write(report, table(report), options.output)


if __name__ == "__main__":
    main()

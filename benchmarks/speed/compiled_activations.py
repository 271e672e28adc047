"""Compiled models with compressed activations, against what else saves memory: bytes, seconds, peak.

Each way trains the same small model in a process of its own, compiled or eager: what the forward pass keeps
for backward (each storage once), the median step after the first ones, the largest resident set above that of
a process between two steps, and the seconds of the first step, with torch's caches empty.

    python benchmarks/speed/compiled_activations.py --output compiled_activations.json
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from statistics import median
from typing import Any

import torch
from measuring import timed, write
from torch import nn
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    LlamaConfig,
    LlamaForSequenceClassification,
)

from activation_compression import ActivationCompressor, checkpoint_blocks, compile_options
from finetune_common.measure import SavedTensorMeter, peak_memory_bytes, reset_peak_memory
from glue_harness.hardware import hardware, versions

WAYS = (
    "eager",
    "eager L1",
    "eager lossless",
    "eager checkpoint",
    "compiled",
    "compiled L1",
    "compiled L1, nothing derived",
    "compiled lossless",
    "compiled, budget 0.5",
)
TARGETS = {"bert": 7.5, "llama": 6.8}
"""How many times fewer bytes than compiled plain."""


def model_of(options: argparse.Namespace) -> nn.Module:
    """Return the model in training."""
    torch.manual_seed(0)
    sizes: dict[str, Any] = {
        "vocab_size": 1000,
        "hidden_size": options.hidden,
        "num_hidden_layers": options.layers,
        "num_attention_heads": 4,
    }
    if options.model == "bert":
        config = BertConfig(**sizes, intermediate_size=4 * options.hidden)
        return BertForSequenceClassification(config).train()
    wide = {"intermediate_size": 688 * options.hidden // 256, "num_key_value_heads": 4}
    return LlamaForSequenceClassification(
        LlamaConfig(**sizes, **wide, use_cache=False, pad_token_id=0)
    ).train()


def forward_of(way: str, model: nn.Module) -> Callable[..., Any]:
    """Return what runs a forward pass in one of the ways."""
    kind, _, rest = way.partition(" ")
    if kind == "eager":
        if rest == "checkpoint":
            around: Any = checkpoint_blocks(model)
            around.__enter__()
            return model
        around = ActivationCompressor(model, rest) if rest else nullcontext()

        def forward(**batch: Any) -> Any:
            with around:
                return model(**batch)

        return forward
    if "budget" in rest:
        torch._functorch.config.activation_memory_budget = 0.5
    options = None
    if "L1" in rest or "lossless" in rest:
        level = "L1" if "L1" in rest else "lossless"
        options = compile_options(level, derive="nothing" not in rest)
    return torch.compile(model, options=options)


def measured(options: argparse.Namespace) -> dict[str, Any]:
    """Measure one way in this process."""
    model = model_of(options)
    shape = (options.batch_size, options.length)
    batch = {"input_ids": torch.randint(1, 1000, shape), "labels": torch.randint(2, shape[:1])}
    forward = forward_of(options.way, model)

    def step() -> None:
        torch.manual_seed(1)
        forward(**batch).loss.backward()
        model.zero_grad(set_to_none=False)

    first = timed(step)
    with SavedTensorMeter(model) as meter:
        loss = forward(**batch).loss
    loss.backward()
    del loss
    model.zero_grad(set_to_none=False)
    seconds = [timed(step) for _ in range(options.rounds)]
    before = peak_memory_bytes_now()
    reset_peak_memory()
    step()
    return {
        "saved_bytes": meter.bytes,
        "seconds": median(seconds),
        "all_seconds": seconds,
        "first_seconds": first,
        "peak_bytes": peak_memory_bytes() - before,
    }


def peak_memory_bytes_now() -> int:
    """Return the resident set of this process."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def in_a_process(way: str, options: argparse.Namespace) -> dict[str, Any]:
    """Measure one way in a process of its own, with caches of its own.

    glibc keeps freed blocks of up to 32 MB for itself; with a fixed threshold they leave the process.
    """
    words = [f"--{n.replace('_', '-')}={v}" for n, v in vars(options).items() if n in SETTINGS]
    with tempfile.TemporaryDirectory() as cache:
        done = subprocess.run(
            [sys.executable, __file__, *words, "--way", way],
            capture_output=True,
            text=True,
            check=True,
            env={**os.environ, "MALLOC_MMAP_THRESHOLD_": "100000", "TORCHINDUCTOR_CACHE_DIR": cache},
        )
    return json.loads(done.stdout.splitlines()[-1])


SETTINGS = ("model", "layers", "hidden", "batch_size", "length", "rounds")


def table(report: dict[str, Any]) -> str:
    """Return the markdown table of a report."""
    rows, target = report["ways"], TARGETS[report["settings"]["model"]]
    plain = rows["compiled"]
    front = pareto({name: (row["saved_bytes"], row["seconds"]) for name, row in rows.items()})
    lines = [
        "| way | MB saved | fewer bytes | ms a step | against compiled | peak, MB | first step, s |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for name, row in rows.items():
        label = f"**{name}**" if name in front else name
        lines.append(
            f"| {label} | {row['saved_bytes'] / 1e6:.1f} | {plain['saved_bytes'] / row['saved_bytes']:.1f}x "
            f"| {1000 * row['seconds']:.0f} | {row['seconds'] / plain['seconds']:.2f}x "
            f"| {row['peak_bytes'] / 1e6:.0f} | {row['first_seconds']:.0f} |"
        )
    settings, machine = report["settings"], report["hardware"]
    lines += [
        "",
        f"{settings['model']} shape, {settings['layers']} layers, hidden {settings['hidden']}, batch "
        f"{settings['batch_size']} x {settings['length']}; target of compiled L1: {target}x fewer bytes than "
        f"compiled plain. Bold: no other way has both fewer bytes and less time. {machine['processor']}, "
        f"{machine['threads']} threads, torch {report['versions']['torch']}.",
    ]
    return "\n".join(lines) + "\n"


def pareto(points: dict[str, tuple[float, float]]) -> list[str]:
    """Return the names of points that no other one beats in both numbers."""
    return [
        name
        for name, own in points.items()
        if not any(a <= own[0] and b <= own[1] and (a, b) != own for a, b in points.values())
    ]


def main() -> None:
    """Measure, print, write."""
    as_written = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=as_written)
    parser.add_argument("--model", choices=TARGETS, default="bert")
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--hidden", type=int, default=256)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--length", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS))
    parser.add_argument("--way", choices=WAYS, help=argparse.SUPPRESS)
    parser.add_argument("--output", type=Path, help="JSON file to write, with the table (.md) beside it")
    options = parser.parse_args()
    torch.set_flush_denormal(True)
    if options.way:
        print(json.dumps(measured(options)))
        return
    ways = list(dict.fromkeys(["compiled", *options.ways]))
    report = {
        "ways": {way: in_a_process(way, options) for way in WAYS if way in ways},
        "settings": {name: getattr(options, name) for name in SETTINGS},
        "versions": versions(),
        "hardware": hardware(torch.device("cpu")),
    }
    write(report, table(report), options.output)


if __name__ == "__main__":
    main()

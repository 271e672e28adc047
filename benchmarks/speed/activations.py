"""What compressing activations costs: kernels in GB/s, training steps against the plain step, peak memory.

Steps take turns in one process, in another order each round, so that a slow minute of the machine hits all;
compared are medians; the first round, in which kernels are compiled, is not counted. Peak memory is the
largest resident set of a process of its own for each way.

    python benchmarks/speed/activations.py --output benchmarks/speed/results/activations.json
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch
from measuring import add_device, begin, in_turns, timed, write
from transformers import BertConfig, BertForSequenceClassification

from activation_compression import flag_kernels, kernels
from activation_compression.keys import keys_of
from activation_compression.quantizer import Codes, pack_flags
from activation_compression.slots import (
    CheckpointMethod,
    CompressCheckpointMethod,
    CompressMethod,
    CompressOptions,
    NoOptions,
)
from finetune_common.measure import peak_memory_bytes
from glue_harness.baselines import PlainActivations
from glue_harness.hardware import hardware, versions

PLAIN = "none"
WAYS: dict[str, Callable[[], Any]] = {
    PLAIN: lambda: PlainActivations(NoOptions()),  # type: ignore[arg-type]
    "lossless": lambda: CompressMethod(CompressOptions("lossless")),
    "L1": lambda: CompressMethod(CompressOptions("L1")),
    "L1.2": lambda: CompressMethod(CompressOptions("L1.2")),
    "L2": lambda: CompressMethod(CompressOptions("L2")),
    "checkpoint": lambda: CheckpointMethod(NoOptions()),
    "L1 + checkpoint": lambda: CompressCheckpointMethod(CompressOptions("L1")),
}
TARGETS = {"lossless": 1.04, "L1": 1.10}


class Job:
    """A model in training."""

    def __init__(self, options: argparse.Namespace) -> None:
        torch.manual_seed(0)
        self.model = BertForSequenceClassification(BertConfig(num_hidden_layers=options.layers)).train()
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-5, fused=True)
        shape = (options.batch_size, options.length)
        self.batch = {"input_ids": torch.randint(30522, shape), "labels": torch.randint(2, shape[:1])}

    def step(self, method: Any) -> None:
        """Make one optimizer step."""
        with method.around_forward(self.model):
            loss = self.model(**self.batch).loss
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()


def steps(options: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """Time whole steps, each way in turn, and the measurement of automatic precision by itself."""
    job, methods = Job(options), {name: WAYS[name]() for name in options.ways}
    adapting = {}
    if "L2" in methods:
        job.step(methods["L2"])
        adapting["L2"] = timed(lambda: methods["L2"].after_backward(1, lambda: job.model(**job.batch).loss))
    seconds = in_turns(
        {name: partial(timed, partial(job.step, method)) for name, method in methods.items()}, options.rounds
    )
    plain = median(seconds[PLAIN])
    return {
        name: {
            "seconds": median(times),
            "all_seconds": times,
            "ratio": median(times) / plain,
            "target": TARGETS.get(name),
            "adapt_seconds": adapting.get(name),
            "stored_bytes": methods[name].stats().get("stored_bytes"),
            "original_bytes": methods[name].stats().get("original_bytes"),
        }
        for name, times in seconds.items()
    }


def kernel_speeds(options: argparse.Namespace) -> dict[str, float]:
    """Return GB of float32 a second of every kernel, on one tensor."""
    x = torch.randn(options.elements)
    keys, out = keys_of(0, 0, 1, x.device)[0], torch.empty_like(x)
    calls: dict[str, Callable[[], Any]] = {"copy": lambda: out.copy_(x)}
    for bits in options.bits:
        codes = Codes.pack(x, bits, 256, keys)
        calls[f"quantise {bits} bits"] = lambda codes=codes, bits=bits: kernels.quantize_into(
            x, *codes.tensors, bits, 256, keys
        )
        calls[f"dequantise {bits} bits"] = lambda codes=codes, bits=bits: kernels.dequantize_into(
            out, *codes.tensors, bits, 256
        )
    mask = (torch.rand(options.elements) < 0.9).float() / 0.9
    flags = pack_flags(mask)
    assert flags is not None
    calls["pack mask"] = lambda: flag_kernels.flags_into(mask, *flags.tensors)
    calls["unpack mask"] = lambda: flag_kernels.unflag_into(out, *flags.tensors)
    seconds = in_turns({name: partial(timed, call) for name, call in calls.items()}, 9)
    return {name: x.nbytes / 1e9 / median(times) for name, times in seconds.items()}


def peak(name: str, options: argparse.Namespace) -> int:
    """Return the peak resident set of two steps in a new process; on a GPU the allocator's, of a third step.

    glibc keeps freed blocks of up to 32 MB for itself; with a fixed threshold they leave the process.
    """
    if options.device == "cuda":
        job, method = Job(options), WAYS[name]()
        for _ in range(2):
            job.step(method)
            torch.cuda.reset_peak_memory_stats()
        job.step(method)
        return peak_memory_bytes("cuda")
    words = ["--peak-of", name, "--layers", str(options.layers), "--batch-size", str(options.batch_size)]
    done = subprocess.run(
        [sys.executable, __file__, *words, "--length", str(options.length)],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "MALLOC_MMAP_THRESHOLD_": "1000000"},
    )
    return int(done.stdout.split()[-1])


def _megabytes(size: int | None) -> str:
    return f"{size / 1e6:.0f}" if size else ""


def table(report: dict[str, Any]) -> str:
    """Return the markdown tables of a report."""
    lines = ["| kernel | GB/s of float32 |", "| --- | ---: |"]
    lines += [f"| {name} | {speed:.1f} |" for name, speed in report["kernels"].items()]
    lines += [
        "",
        "| activations | ms a step | against none | target | MB saved | MB stored | peak RSS, MB |",
        "| --- | ---: | ---: | --- | ---: | ---: | ---: |",
    ]
    for name, row in report["steps"].items():
        target = f"≤ {row['target']}x" if row["target"] else ""
        sizes = [_megabytes(size) for size in (row["original_bytes"], row["stored_bytes"])]
        lines.append(
            f"| {name} | {1000 * row['seconds']:.0f} | {row['ratio']:.2f}x | {target} | {' | '.join(sizes)} "
            f"| {_megabytes(report['peaks'].get(name))} |"
        )
    settings, machine = report["settings"], report["hardware"]
    lines += [
        "",
        f"BERT-base shape, {settings['layers']} layers, batch {settings['batch_size']}, length "
        f"{settings['length']}, AdamW included; medians of {settings['rounds']} rounds; "
        f"{machine['processor']}, {machine['threads']} threads, torch {report['versions']['torch']}.",
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measure, print, write."""
    as_written = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=as_written)
    add_device(parser)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--length", type=int, default=128)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--elements", type=int, default=2**24, help="size of the tensor for the kernels")
    parser.add_argument("--bits", type=int, nargs="*", default=[1, 2, 4, 8], help="widths of the kernels")
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS))
    parser.add_argument("--no-peaks", action="store_true", help="leave peak memory out")
    parser.add_argument("--peak-of", choices=WAYS, help=argparse.SUPPRESS)
    parser.add_argument("--output", type=Path, help="JSON file to write, with the table (.md) beside it")
    options = parser.parse_args()
    begin(options.device)
    if options.peak_of:
        job, method = Job(options), WAYS[options.peak_of]()
        for _ in range(2):
            job.step(method)
        print(peak_memory_bytes())
        return
    if PLAIN not in options.ways:
        options.ways.insert(0, PLAIN)
    report = {
        "kernels": kernel_speeds(options),
        "steps": steps(options),
        "peaks": {} if options.no_peaks else {name: peak(name, options) for name in options.ways},
        "settings": {n: v for n, v in vars(options).items() if n not in ("output", "peak_of", "device")},
        "versions": versions(),
        "hardware": hardware(torch.device(options.device)),
    }
    write(report, table(report), options.output)


if __name__ == "__main__":
    main()

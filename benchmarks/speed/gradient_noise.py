"""What gradient noise adds to a training step at BERT-base size (110 million parameters).

A step is `--accumulate` forward and backward passes of `--batch-size` rows of `--length` tokens, and AdamW
(fused). What a noise adds does not depend on rows and tokens, only on the parameters and the number of
micro-batches; it is therefore timed on steps of one row and eight tokens, where it is no small part of the
step, and set against the plain step at full size: ratio = 1 + added / plain. (`--direct` times whole
full-size steps of every way instead; an hour on two cores.) Every way has a model, an optimizer and a noise
of its own; they take turns in one process, in another order each round; compared are the medians. First
rounds, in which kernels are compiled and buffers allocated, are not counted. The second table has the
kernels alone, and what they replace: `torch.randn` into a small buffer, and eager operations over whole
tensors. Needs 16 GB of memory.

    python benchmarks/speed/gradient_noise.py --output benchmarks/speed/results/gradient_noise.json
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch
from measuring import add_device, begin, in_turns, timed, write
from torch import Tensor
from transformers import BertConfig, BertForSequenceClassification

from glue_harness.hardware import hardware, versions
from noise_injection import AdaptiveGradientNoise, AnnealedGradientNoise, kernels
from noise_injection.released import ReleasedNoise

TARGET = 1.05
PLAIN = "no noise"
WAYS: dict[str, Callable[[torch.optim.Optimizer], Any]] = {
    PLAIN: lambda optimizer: None,
    "agni microbatch": lambda optimizer: AdaptiveGradientNoise(optimizer, variance="microbatch"),
    "agni running": lambda optimizer: AdaptiveGradientNoise(optimizer, variance="running"),
    "agni ema": lambda optimizer: AdaptiveGradientNoise(optimizer, variance="ema"),
    "annealed": lambda optimizer: AnnealedGradientNoise(optimizer),
    "draws of the released code": lambda optimizer: ReleasedNoise(optimizer),
}


@dataclass
class Job:
    """A model in training, with or without noise."""

    name: str
    options: argparse.Namespace

    def __post_init__(self) -> None:
        torch.manual_seed(0)
        config = BertConfig(num_hidden_layers=self.options.layers)
        self.model = BertForSequenceClassification(config).train()
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-5, fused=True)
        self.noise = WAYS[self.name](self.optimizer)

    def step(self, rows: int, length: int) -> float:
        """Make one optimizer step; returns its seconds."""
        batch = {"input_ids": torch.randint(30522, (rows, length)), "labels": torch.randint(2, (rows,))}

        def take() -> None:
            for _ in range(self.options.accumulate):
                (self.model(**batch).loss / self.options.accumulate).backward()
            self.optimizer.step()
            self.optimizer.zero_grad()

        return timed(take)

    def own_bytes(self) -> int:
        """Return the bytes of the parameter-sized state that the noise keeps between steps."""
        moments = self.noise.state_dict().get("moments", {}) if hasattr(self.noise, "state_dict") else {}
        return sum(t.nbytes for by_name in moments.values() for t in by_name.values())


def steps(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Time steps, each way in turn."""
    jobs = [Job(name, options) for name in options.ways]
    full = {job.name: partial(job.step, options.batch_size, options.length) for job in jobs}
    if options.direct:
        seconds = in_turns(full, options.rounds)
        plain = median(seconds[PLAIN])
    else:
        seconds = in_turns({job.name: partial(job.step, 1, 8) for job in jobs}, options.short_rounds)
        plain = median(in_turns({PLAIN: full[PLAIN]}, options.rounds)[PLAIN])
    added = {name: median(times) - median(seconds[PLAIN]) for name, times in seconds.items()}
    return [
        {
            "way": job.name,
            "seconds": plain + added[job.name],
            "added_seconds": added[job.name],
            "ratio": 1 + added[job.name] / plain,
            "target": TARGET,
            "own_state_bytes": job.own_bytes(),
            "all_seconds": seconds[job.name],
        }
        for job in jobs
    ]


def kernel_times(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Time the kernels, and what they replace, on one tensor."""
    size = options.elements
    a, b, c = (torch.rand(size) for _ in range(3))
    scale, count, keys = torch.tensor([1e-6]), torch.tensor([3.0]), torch.tensor([1, 2, 3], dtype=torch.int32)
    generator, buffer = torch.Generator(a.device).manual_seed(0), torch.empty(kernels.BLOCK)

    def randn_in_blocks() -> None:
        for gradient, deviations in zip(a.split(kernels.BLOCK), b.split(kernels.BLOCK), strict=True):
            noise = buffer[: len(gradient)].normal_(generator=generator)
            gradient.addcmul_(noise, deviations.sqrt(), value=1e-6)

    def welford_over_whole_tensors() -> None:
        delta = c - a
        a.add_(delta / 3)
        b.add_(delta * (c - a))

    ways: dict[str, Callable[[], Tensor | None]] = {
        "copy": lambda: a.copy_(c),
        "observe (Welford)": lambda: kernels.run(kernels.observe, [a, b, c], count, None),
        "Welford, eager": welford_over_whole_tensors,
        "norm and projection": lambda: kernels.sums(a, b, torch.float32),
        "add noise": lambda: kernels.run(kernels.add_microbatch, [a, b], scale, keys),
        "torch.randn in blocks": randn_in_blocks,
        "torch.randn over the whole tensor": lambda: a.add_(torch.randn_like(a) * b.sqrt() * 1e-6),
    }
    seconds = in_turns({name: partial(timed, way) for name, way in ways.items()}, options.short_rounds)
    return [{"way": name, "ns_per_element": median(s) / size * 1e9} for name, s in seconds.items()]


def table(report: dict[str, Any]) -> str:
    """Return both tables as markdown."""
    lines = ["| way | s a step | added s | ratio | own state, MB |", "| --- | ---: | ---: | ---: | ---: |"]
    lines += [
        f"| {row['way']} | {row['seconds']:.2f} | {row['added_seconds']:.2f} | {row['ratio']:.3f} | "
        f"{row['own_state_bytes'] / 1e6:.0f} |"
        for row in report["steps"]
    ]
    lines += ["", "| kernel | ns an element |", "| --- | ---: |"]
    lines += [f"| {row['way']} | {row['ns_per_element']:.2f} |" for row in report["kernels"]]
    how, machine = report["settings"], report["hardware"]
    full = (
        "1 step of full size" if how["rounds"] == 1 else f"the median of {how['rounds']} steps of full size"
    )
    others = "all ways" if how["direct"] else "no noise; the other ways are that plus what they add"
    return "\n".join(lines) + (
        f"\n\n{how['accumulate']} micro-batches of {how['batch_size']} rows and {how['length']} tokens, "
        f"{how['layers']} layers. s a step: {full}, {others}, medians of {how['short_rounds']} rounds. "
        f"{machine['processor']}, {machine['threads']} threads, torch {report['versions']['torch']}.\n"
    )


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_device(parser)
    parser.add_argument("--batch-size", type=int, default=32, help="rows of a micro-batch")
    parser.add_argument("--length", type=int, default=128)
    parser.add_argument("--accumulate", type=int, default=4)
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--rounds", type=int, default=3, help="full-size steps")
    parser.add_argument("--short-rounds", type=int, default=9, help="short steps")
    parser.add_argument("--direct", action="store_true", help="time full-size steps of every way")
    parser.add_argument("--elements", type=int, default=20_000_000, help="size of the tensor for the kernels")
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS))
    parser.add_argument("--output", type=Path, help="JSON file")
    options = parser.parse_args()
    if PLAIN not in options.ways:
        options.ways.insert(0, PLAIN)
    begin(options.device)
    report = {
        "kernels": kernel_times(options),
        "steps": steps(options),
        "settings": {key: value for key, value in vars(options).items() if key not in ("output", "device")},
        "versions": versions(),
        "hardware": hardware(torch.device(options.device)),
    }
    write(report, table(report), options.output)


if __name__ == "__main__":
    main()

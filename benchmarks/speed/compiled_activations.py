"""Ways to save activation memory, compiled and eager: bytes, seconds, peak, and the gradient's error.

Each way trains the same small model in a process of its own, with compiler caches of its own. By the
allocator's events: what a forward pass leaves for backward, and the most that a step takes above parameters
and gradients. In seconds of the processor, on one thread, so that a busy machine matters little: the median
step, and the first one, with compiling.

What is measured is written after each way; what is there already is not measured again. So the work can be
cut into pieces:

    python benchmarks/speed/compiled_activations.py --output bert.json --ways "compiled" "compiled L1"
    python benchmarks/speed/compiled_activations.py --output bert.json
    python benchmarks/speed/compiled_activations.py --output bert.json --checks error shapes
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any
from unittest.mock import patch

import torch
from compiled_table import TARGETS, table
from measuring import write
from torch import Tensor, nn
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    LlamaConfig,
    LlamaForSequenceClassification,
)

from activation_compression import ActivationCompressor, checkpoint_blocks, compile_options
from activation_compression.checkpointing import find_blocks
from activation_compression.compiled.partitioner import Partitioner
from glue_harness.cost.footprint import running_bytes
from glue_harness.hardware import hardware, versions

WAYS = (
    *("eager", "eager L1", "eager lossless", "eager checkpoint", "eager selective checkpoint"),
    *("compiled", "compiled L1", "compiled L1, nothing derived", "compiled lossless"),
    *("compiled, budget 0.7", "compiled, budget 0.5", "compiled, budget 0.3"),
)
ALONE = {"OMP_NUM_THREADS": "1", "TORCHINDUCTOR_COMPILE_THREADS": "1"}
"""One thread, and compilers that the process waits for."""
SETTINGS = ("model", "layers", "hidden", "batch_size", "length", "rounds")


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


def keep_products(_: Any, operation: Any, *args: Any, **kwargs: Any) -> CheckpointPolicy:
    """Selective checkpointing as it is usually done: matrix products are kept, the rest runs again."""
    products = (torch.ops.aten.mm.default, torch.ops.aten.addmm.default, torch.ops.aten.bmm.default)
    return CheckpointPolicy.MUST_SAVE if operation in products else CheckpointPolicy.PREFER_RECOMPUTE


def forward_of(way: str, model: nn.Module) -> Callable[..., Any]:
    """Return what runs a forward pass in one of the ways."""
    kind, _, rest = way.partition(" ")
    if rest == "checkpoint":

        def checkpointed(**batch: Any) -> Any:
            with checkpoint_blocks(model):
                return model(**batch)

        return checkpointed
    if rest == "selective checkpoint":
        contexts = partial(create_selective_checkpoint_contexts, keep_products)
        for block in find_blocks(model):
            block.forward = partial(checkpoint, block.forward, use_reentrant=False, context_fn=contexts)
        return model
    if kind == "eager":
        around: Any = ActivationCompressor(model, rest) if rest else nullcontext()

        def forward(**batch: Any) -> Any:
            with around:
                return model(**batch)

        return forward
    if "budget" in rest:
        torch._functorch.config.activation_memory_budget = float(rest.split()[-1])
    options = None
    if "L1" in rest or "lossless" in rest:
        level = "L1" if "L1" in rest else "lossless"
        options = compile_options(level, derive="nothing" not in rest)
    return torch.compile(model, options=options)


class Job:
    """A model in training, and its batch."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.model, self._options = model_of(options), options
        self.batch = self.batch_of(options.batch_size, options.length)

    def batch_of(self, rows: int, length: int) -> dict[str, Tensor]:
        """Return a batch of random tokens."""
        drawn = torch.Generator().manual_seed(rows)
        return {
            "input_ids": torch.randint(1, 1000, (rows, length), generator=drawn),
            "labels": torch.randint(2, (rows,), generator=drawn),
        }

    def step(self, forward: Callable[..., Any], seed: int = 1, batch: dict[str, Tensor] | None = None):
        """Return the loss; gradients are where they always are."""
        torch.manual_seed(seed)
        self.model.zero_grad(set_to_none=False)
        loss = forward(**(batch or self.batch)).loss
        loss.backward()
        return loss.item()

    def gradient(self, forward: Callable[..., Any]) -> Tensor:
        """Return the gradient of all parameters, of the same dropout masks each time."""
        self.step(forward)
        return torch.cat([p.grad.flatten() for p in self.model.parameters() if p.grad is not None])


def spent(call: Callable[[], Any]) -> float:
    """Return the seconds of the processor for a call, in this process and those that it waited for."""

    def now() -> float:
        both = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
        return sum(used.ru_utime + used.ru_stime for used in both)

    began = now()
    call()
    return now() - began


def measured(options: argparse.Namespace) -> dict[str, Any]:
    """Measure one way in this process."""
    job = Job(options)
    forward = forward_of(options.way, job.model)
    first = spent(lambda: job.step(forward))
    job.step(forward)
    seconds = [spent(lambda: job.step(forward)) for _ in range(options.rounds)]
    kept: list[Any] = []
    after_forward = running_bytes(lambda: kept.append(forward(**job.batch).loss))[-1]
    kept.pop().backward()
    return {
        "saved_bytes": after_forward,
        "seconds": median(seconds),
        "all_seconds": seconds,
        "first_seconds": first,
        "peak_bytes": max(running_bytes(lambda: job.step(forward))),
    }


def error(options: argparse.Namespace) -> dict[str, Any]:
    """Return the error of compiled L1's gradient against compiled plain's: of one, of the mean of many."""
    job = Job(options)
    plain, packed = (forward_of(way, job.model) for way in ("compiled", "compiled L1"))
    exact, count = job.gradient(plain), 30
    total, squares = torch.zeros_like(exact), 0.0
    for _ in range(count):
        drawn = job.gradient(packed) - exact
        total, squares = total + drawn, squares + float(drawn.square().sum())
    mean = total / count
    noise = ((squares - count * float(mean.square().sum())) / (count - 1)) ** 0.5
    return {
        "error": (squares / count) ** 0.5 / float(exact.norm()),
        "mean_error": float(mean.norm() / exact.norm()),
        "mean_against_noise": float(mean.norm()) / (noise / count**0.5),
        "draws": count,
        "losses_equal": all(job.step(plain, seed) == job.step(packed, seed) for seed in range(5)),
    }


def shapes(options: argparse.Namespace) -> dict[str, Any]:
    """Return how often compiled L1 is partitioned for ten shapes, and how many graphs kernels take."""
    job = Job(options)
    forward = forward_of("compiled L1", job.model)
    graphs: list[int] = []
    with patch.object(Partitioner, "__call__", autospec=True, side_effect=Partitioner.__call__) as called:
        for number in range(10):
            batch = job.batch_of(options.batch_size - number, options.length - 5 * number)
            job.step(forward, batch=batch)
            graphs.append(called.call_count)
    every = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    return {
        "shapes": len(graphs),
        "graphs": graphs[-1],
        "graphs_after_two": graphs[-1] - graphs[1],
        "kernels": every - graphs[-1],
    }


CHECKS = {"error": error, "shapes": shapes}


def in_a_process(words: list[str], options: argparse.Namespace) -> dict[str, Any]:
    """Measure in a new process, with caches of its own."""
    settings = [f"--{n.replace('_', '-')}={getattr(options, n)}" for n in SETTINGS]
    with tempfile.TemporaryDirectory() as cache:
        done = subprocess.run(
            [sys.executable, __file__, *settings, *words],
            stdout=subprocess.PIPE,
            text=True,
            check=True,
            env={**os.environ, **ALONE, "TORCHINDUCTOR_CACHE_DIR": cache},
        )
    return json.loads(done.stdout.splitlines()[-1])


def begun(options: argparse.Namespace) -> dict[str, Any]:
    """Return the report so far; a new one where settings or versions differ."""
    report: dict[str, Any] = {
        "settings": {name: getattr(options, name) for name in SETTINGS},
        "versions": versions(),
        "hardware": hardware(torch.device("cpu")),
    }
    if options.output and options.output.exists():
        earlier = json.loads(options.output.read_text(encoding="utf-8"))
        if all(earlier[name] == report[name] for name in ("settings", "versions")):
            return earlier
    return {"ways": {}, "checks": {}, **report}


def main() -> None:
    """Measure, print, write."""
    as_written = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=as_written)
    parser.add_argument("--model", choices=TARGETS, default="bert")
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--hidden", type=int, default=256)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--length", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--ways", nargs="*", choices=WAYS, help="all, unless checks are named")
    parser.add_argument("--checks", nargs="*", choices=CHECKS, default=[], help="of compiled L1")
    parser.add_argument("--way", choices=WAYS, help=argparse.SUPPRESS)
    parser.add_argument("--check", choices=CHECKS, help=argparse.SUPPRESS)
    parser.add_argument("--output", type=Path, help="JSON file, with the table (.md) beside it; is continued")
    options = parser.parse_args()
    torch.set_flush_denormal(True)
    if options.way or options.check:
        print(json.dumps(measured(options) if options.way else CHECKS[options.check](options)))
        return
    report = begun(options)
    ways = options.ways if options.ways is not None or options.checks else WAYS
    parts = [("ways", way) for way in ways or ()] + [("checks", check) for check in options.checks]
    for kind, name in parts:
        if name not in report[kind]:
            report[kind][name] = in_a_process([f"--{kind[:-1]}", name], options)
            ordered = {way: report["ways"][way] for way in WAYS if way in report["ways"]}
            write({**report, "ways": ordered}, table({**report, "ways": ordered}), options.output)


if __name__ == "__main__":
    main()

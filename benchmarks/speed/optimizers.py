"""Time of an optimizer's step against torch.optim's, on the parameter shapes of BERT-base (110 million).

All optimizers step the same parameters in one process, taking turns in another order each round, so that a
slow minute of the machine hits all; a ratio is that of two medians. Where memory lies differs between
processes and moves ratios by a tenth: all is measured in three, and the middle ratio is told with the others.
Compile times are those of a process's first step beyond its later ones, in new processes: with an empty cache
of torch's compiler (cold) and with a full one (warm). Needs 14 GB of memory.

    python benchmarks/speed/optimizers.py --output benchmarks/speed/results/optimizers.json
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from itertools import cycle
from pathlib import Path
from statistics import median
from typing import Any

import torch
from measuring import add_device, begin, in_turns, processor, timed, write
from torch import Tensor, nn

from finetune_common.errors import did_you_mean
from finetune_common.optim.norms import whole_norms

LR = 1e-5
HIDDEN, INNER, LAYERS, WORDS, POSITIONS, TYPES, LABELS = 768, 3072, 12, 30522, 512, 2, 2
COMPILED = "SageAdamW fused"
READING, NORMS = "sums of gradients", "norms of gradients"


@dataclass(frozen=True)
class Way:
    """An optimizer, how it runs, what its time is compared with, and how many tensors a step has to move.

    A step reads the gradient, and reads and writes the parameter and each state; clipping by a norm reads the
    gradient once more. No step is faster than its traffic: the limit of a ratio is that of the two traffics.
    """

    name: str
    cls: str
    settings: dict[str, Any] = field(default_factory=dict)
    moves: int = 7
    against: str = ""
    target: float | None = None
    on: tuple[str, ...] = ("cpu", "cuda")

    def build(self, params: list[nn.Parameter]) -> torch.optim.Optimizer:
        """Return the optimizer."""
        module, _, name = self.cls.partition(":")
        settings = {**self.settings}
        groups = [{"params": params, "sage": settings.pop("sage")}] if "sage" in settings else params
        return getattr(import_module(module), name)(groups, lr=LR, **settings)


ADAMW, FOREACH, ADAMAX, SGD = "torch AdamW fused", "torch AdamW foreach", "torch Adamax", "torch SGD fused"
SAGE, CLIPPED = "sensitivity_lr:Sage", "clipped_adaptive:Clipped"
FUSED = {"fused": True}
WAYS = [
    Way(ADAMW, "torch.optim:AdamW", FUSED),
    Way(FOREACH, "torch.optim:AdamW", {"foreach": True}),
    Way("torch AdamW loop", "torch.optim:AdamW", {"foreach": False}),
    Way(ADAMAX, "torch.optim:Adamax", {"foreach": False}),
    Way(SGD, "torch.optim:SGD", FUSED | {"momentum": 0.9}, 5),
    Way(COMPILED, f"{SAGE}AdamW", FUSED, 9, ADAMW, 1.42),
    Way("SageAdamW fused, SAGE off", f"{SAGE}AdamW", FUSED | {"sage": False}, 7, ADAMW, 1.12),
    Way("SageAdamW foreach", f"{SAGE}AdamW", {"foreach": True}, 9, FOREACH, 2.0),
    Way("SageAdamW reference", f"{SAGE}AdamW", {"fused": False}, 9, ADAMW),
    Way("SageAdamax fused", f"{SAGE}Adamax", FUSED, 9, ADAMW, 1.42),
    Way("SageSGD fused", f"{SAGE}SGD", FUSED | {"momentum": 0.9}, 7, SGD),
    Way("ClippedAdam local fused", f"{CLIPPED}Adam", FUSED | {"clip": "local"}, 8, ADAMW, 1.27),
    Way("ClippedAdam global fused", f"{CLIPPED}Adam", FUSED | {"clip": "global"}, 8, ADAMW, 1.27),
    Way("ClippedAdam elementwise fused", f"{CLIPPED}Adam", FUSED | {"clip": "elementwise"}, 7, ADAMW, 1.12),
    Way("torchao AdamW8bit", "torchao.optim:AdamW8bit", {}, 4, ADAMW, on=("cuda",)),
    Way("bitsandbytes AdamW8bit", "bitsandbytes.optim:AdamW8bit", {}, 4, ADAMW, on=("cuda",)),
]


def shapes() -> list[tuple[int, ...]]:
    """Return the shapes of BERT-base with a classification head, in order."""
    linear = lambda inputs, outputs: [(outputs, inputs), (outputs,)]  # noqa: E731
    norm = [(HIDDEN,), (HIDDEN,)]
    attention = 4 * linear(HIDDEN, HIDDEN) + norm
    layer = attention + linear(HIDDEN, INNER) + linear(INNER, HIDDEN) + norm
    embeddings = [(WORDS, HIDDEN), (POSITIONS, HIDDEN), (TYPES, HIDDEN), *norm]
    return embeddings + LAYERS * layer + linear(HIDDEN, HIDDEN) + linear(HIDDEN, LABELS)


def parameters() -> list[nn.Parameter]:
    torch.manual_seed(0)
    return [nn.Parameter(torch.randn(shape) * 0.02) for shape in shapes()]


def gradients(params: list[nn.Parameter]) -> list[Tensor]:
    return [torch.randn_like(param) * 1e-3 for param in params]


def set_gradients(params: list[nn.Parameter], grads: list[Tensor]) -> None:
    for param, grad in zip(params, grads, strict=True):
        param.grad = grad


def measure(ways: list[Way], repeats: int) -> tuple[dict[str, list[float]], dict[str, float]]:
    """Time the steps in turns, and what clipping by norms adds: to read all gradients once more.

    Returns:
        Name → seconds of each round; name → state tensors a parameter.
    """
    params = parameters()
    elements = sum(param.numel() for param in params)
    sets = gradients(params), gradients(params)
    optimizers = {way.name: way.build(params) for way in ways}
    for grads in sets:
        set_gradients(params, grads)
        for optimizer in optimizers.values():
            optimizer.step()
    state = {
        name: sum(x.numel() for s in optimizer.state.values() for x in s.values() if isinstance(x, Tensor))
        / elements
        for name, optimizer in optimizers.items()
    }

    def step(optimizer: torch.optim.Optimizer, gradient_sets: Iterator[list[Tensor]]) -> float:
        set_gradients(params, next(gradient_sets))
        return timed(optimizer.step)

    turns = {name: partial(step, optimizer, cycle(sets)) for name, optimizer in optimizers.items()}
    turns[READING] = lambda: timed(lambda: [grad.sum() for grad in sets[0]])
    turns[NORMS] = lambda: timed(lambda: whole_norms(sets[0]))
    return in_turns(turns, repeats), state


def first_step() -> dict[str, float]:
    """Return what a new process pays: seconds of compiling, and bytes held beside the state during a step."""
    [way] = [way for way in WAYS if way.name == COMPILED]
    params = parameters()
    set_gradients(params, gradients(params))
    optimizer = way.build(params)
    first = timed(optimizer.step)
    later = median(timed(optimizer.step) for _ in range(3))
    result = {"seconds": first - later}
    status = Path("/proc/self/status")
    if status.exists():
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # start the peak anew
        before = _kibibytes(status, "VmRSS")
        optimizer.step()
        result["temporary_tensors_a_parameter"] = (
            (_kibibytes(status, "VmHWM") - before) * 1024 / sum(param.nbytes for param in params)
        )
    return result


def _kibibytes(status: Path, name: str) -> int:
    [line] = [line for line in status.read_text(encoding="ascii").splitlines() if line.startswith(f"{name}:")]
    return int(line.split()[1])


def in_a_process(arguments: list[str], environment: dict[str, str] | None = None) -> dict[str, Any]:
    """Return what this script prints in a new process."""
    command = [sys.executable, __file__, *arguments]
    printed = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE, text=True).stdout
    return json.loads(printed)


def compile_times() -> dict[str, dict[str, float]]:
    with tempfile.TemporaryDirectory() as cache:
        environment = {**os.environ, "TORCHINDUCTOR_CACHE_DIR": cache}
        return {name: in_a_process(["--first-step"], environment) for name in ("cold", "warm")}


def table(report: dict[str, Any]) -> str:
    """Return the markdown table of a report."""
    lines = [
        "| optimizer | ms a step | state tensors a parameter | ratio | limit by traffic | target |",
        "| --- | ---: | ---: | --- | ---: | --- |",
    ]
    for name, row in report["optimizers"].items():
        ratio = ""
        if row["against"]:
            low, *_, high = sorted(row["ratios"])
            ratio = f"{row['ratio']:.2f}x ({low:.2f} to {high:.2f}) {row['against']}"
        target = f"≤ {row['target']}x" if row["target"] else ""
        limit = f"{row['limit']:.2f}x" if row["limit"] else ""
        milliseconds = 1000 * row["median_seconds"]
        lines.append(f"| {name} | {milliseconds:.0f} | {row['state']:.0f} | {ratio} | {limit} | {target} |")
    machine, compiled = report["hardware"], report["compiling"]
    lines += [
        "",
        f"{report['elements'] / 1e6:.0f} million parameters in {report['tensors']} tensors; medians of "
        f"{report['repeats']} rounds in each of {report['processes']} processes; {machine['processor']}, "
        f"{machine['threads']} threads, torch {report['versions']['torch']}.",
    ]
    if ADAMW in report["optimizers"]:
        adamw = report["optimizers"][ADAMW]["median_seconds"]
        reading, norms = report["gradients"].values()
        lines.append(
            f"A mere sum of each gradient takes {1000 * reading:.0f} ms here, its norm {1000 * norms:.0f} "
            "ms: a step that has to read gradients before its updates cannot be faster than "
            f"{1 + reading / adamw:.2f}x AdamW's."
        )
    if compiled:
        lines.append(
            f"Compiling {COMPILED} takes {compiled['cold']['seconds']:.0f} s with an empty cache and "
            f"{compiled['warm']['seconds']:.1f} s in the next process."
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_device(parser)
    parser.add_argument("--repeats", type=int, default=15, help="rounds (15)")
    parser.add_argument("--processes", type=int, default=3, help="processes that measure, in turn (3)")
    parser.add_argument("--only", nargs="*", metavar="NAME", help="names of the table's rows; all by default")
    parser.add_argument("--no-compiling", action="store_true", help="leave the compile times out")
    parser.add_argument("--output", type=Path, help="JSON file to write, with the table (.md) beside it")
    parser.add_argument("--first-step", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--once", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    for name in options.only or ():
        if name not in [way.name for way in WAYS]:
            parser.error(f"--only {name!r} is unknown: {did_you_mean(name, [way.name for way in WAYS])}")
    if options.processes < 1 or options.repeats < 1:
        parser.error("--processes and --repeats: give at least 1")
    begin(options.device)
    if options.first_step:
        print(json.dumps(first_step()))
        return

    here = [way for way in WAYS if options.device in way.on]
    installed = [way for way in here if find_spec(way.cls.partition(":")[0].partition(".")[0])]
    wanted = [way for way in installed if options.only is None or way.name in options.only]
    needed = {way.against for way in wanted} | {way.name for way in wanted}
    ways = [way for way in installed if way.name in needed]
    compiling = {} if options.once or options.no_compiling or options.device == "cuda" else compile_times()
    if options.once:
        print(json.dumps(measure(ways, options.repeats)))
        return
    names = [way.name for way in ways]
    arguments = ["--once", "--device", options.device, "--repeats", str(options.repeats), "--only", *names]
    runs = [in_a_process(arguments) for _ in range(options.processes)]
    medians = [{name: median(values) for name, values in seconds.items()} for seconds, _ in runs]
    middle = {name: median(run[name] for run in medians) for name in medians[0]}
    moves = {way.name: way.moves for way in ways}
    ratios = {way.name: [run[way.name] / run[way.against] for run in medians if way.against] for way in ways}
    sizes = [torch.Size(shape).numel() for shape in shapes()]
    report = {
        "optimizers": {
            way.name: {
                "settings": way.settings,
                "median_seconds": middle[way.name],
                "seconds": [seconds[way.name] for seconds, _ in runs],
                "state": runs[0][1][way.name],
                "against": way.against,
                "ratios": ratios[way.name],
                "ratio": median(ratios[way.name]) if way.against else None,
                "limit": way.moves / moves[way.against] if way.against else None,
                "target": way.target,
            }
            for way in ways
        },
        "gradients": {name: middle[name] for name in (READING, NORMS)},
        "compiling": compiling,
        "repeats": options.repeats,
        "processes": options.processes,
        "elements": sum(sizes),
        "tensors": len(sizes),
        "versions": {"python": sys.version.split()[0], "torch": torch.__version__},
        "hardware": {
            "processor": torch.cuda.get_device_name() if options.device == "cuda" else processor(),
            "cores": os.cpu_count(),
            "threads": torch.get_num_threads(),
        },
    }
    write(report, table(report), options.output)


if __name__ == "__main__":
    main()

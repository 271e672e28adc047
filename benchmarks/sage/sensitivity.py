"""After training: how sensitivity is distributed, and what pruning the least sensitive parameters costs.

    glue-harness sweep benchmarks/sage/sensitivity.yaml --output-dir runs/sensitivity
    python benchmarks/sage/sensitivity.py runs/sensitivity --output-dir report

For every finished run: the sensitivity I = mean |θ g| over training batches, its histogram over the
parameters of the layers' linear maps, and the dev score with the least sensitive share of them set to zero.
Written are `result.json`, `table.md` and `sensitivity.png`.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from torch import Tensor, nn

from finetune_common.errors import ConfigurationError
from glue_harness import open_run
from glue_harness.hardware import hardware, versions
from glue_harness.run.evaluation import evaluate
from glue_harness.run.plan import Data
from glue_harness.run.processes import join
from glue_harness.run.records import write_report
from sensitivity_lr import sage_names, sensitivity, sparsity_curve

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
BATCHES, ROWS = 32, 16
SPARSITIES = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
LOWEST, HIGHEST, BINS = -14.0, 0.0, 56
"""Edges of the histogram in log10 I, and how many bins."""


def histogram(sensitivities: Mapping[str, Tensor]) -> dict[str, Any]:
    """Return the distribution of log10 I: counts, the share of zeros, quantiles of the others."""
    values = torch.cat([value.reshape(-1) for value in sensitivities.values()])
    logs = values[values > 0].log10()
    counts = torch.histc(logs.clamp(LOWEST, HIGHEST), BINS, LOWEST, HIGHEST)
    ordered = logs.sort().values
    places = {q: min(int(q * len(ordered)), len(ordered) - 1) for q in (0.05, 0.25, 0.5, 0.75, 0.95)}
    return {
        "counts": counts.long().tolist(),
        "zeros": 1 - len(logs) / len(values),
        "quantiles": {str(q): round(ordered[place].item(), 3) for q, place in places.items()},
    }


def looked_at(folder: Path) -> dict[str, Any]:
    """Return what is found of a finished run."""
    run = open_run(folder)
    config, data = run.config, Data.load(run.config, run.tokenizer)
    task, model = data.task, run.model.to(DEVICE)
    rows = torch.randperm(len(data.datasets["train"]), generator=torch.Generator().manual_seed(0))
    parts = [part.tolist() for part in rows[: BATCHES * ROWS].split(ROWS)]
    loader = data.loader("train", parts)
    batches = ({key: value.to(DEVICE) for key, value in batch.items()} for batch in loader)
    chosen = set(sage_names(model))
    sensitivities = {name: value for name, value in sensitivity(model, batches).items() if name in chosen}
    processes = join(config)

    def score(pruned: nn.Module) -> float:
        return evaluate(pruned, data, 32, processes).metrics[task.primary]

    return {
        "task": config.task,
        "optimizer": config.optimizer["name"],
        "lr": config.optimizer["lr"],
        "seed": config.seed,
        "metric": task.primary,
        "histogram": histogram(sensitivities),
        "pruned": sparsity_curve(model, sensitivities, score, SPARSITIES),
    }


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return the markdown table: a line a task and optimizer, means over seeds."""
    groups: dict[tuple[str, str, float], list[Mapping[str, Any]]] = {}
    for row in rows:
        groups.setdefault((row["task"], row["optimizer"], row["lr"]), []).append(row)
    shares = [share for share, _ in rows[0]["pruned"]]
    lines = [
        "| task | optimizer | runs | median log10 I | 5 % to 95 % | "
        + " | ".join(f"{share:.0%} pruned" for share in shares)
        + " |",
        "| --- | --- | ---: | ---: | ---: |" + " ---: |" * len(shares),
    ]
    for (task, optimizer, lr), runs in groups.items():
        middle, low, high = (
            fmean(row["histogram"]["quantiles"][q] for row in runs) for q in ("0.5", "0.05", "0.95")
        )
        scores = (fmean(row["pruned"][place][1] for row in runs) for place in range(len(shares)))
        lines.append(
            f"| {task} | {optimizer}, lr {lr:g} | {len(runs)} | {middle:.2f} | {low:.2f} to {high:.2f} | "
            + " | ".join(f"{score:.4f}" for score in scores)
            + " |"
        )
    return "\n".join(lines) + "\n"


def draw(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Draw each run's distribution, and its score against the pruned share."""
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(12, 4.5), layout="constrained")
    colors = {name: f"C{i}" for i, name in enumerate(dict.fromkeys(row["optimizer"] for row in rows))}
    width = (HIGHEST - LOWEST) / BINS
    middles = [LOWEST + (i + 0.5) * width for i in range(BINS)]
    seen: set[str] = set()
    for row in rows:
        name = row["optimizer"]
        label = None if name in seen else name
        seen.add(name)
        counts = row["histogram"]["counts"]
        left.plot(middles, [count / sum(counts) for count in counts], color=colors[name], label=label)
        right.plot(*zip(*row["pruned"], strict=True), color=colors[name], marker=".")
    left.set(xlabel="log10 of sensitivity |θ g|", ylabel="share of parameters")
    right.set(xlabel="share of parameters pruned", ylabel="dev score")
    left.legend()
    figure.savefig(path, dpi=110)
    plt.close(figure)


def main() -> None:
    as_written = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=as_written)
    parser.add_argument("runs", type=Path, help="folder of a finished sweep")
    parser.add_argument("--output-dir", type=Path, required=True)
    options = parser.parse_args()
    try:
        rows = [looked_at(file.parent) for file in sorted(options.runs.rglob("result.json"))]
    except ConfigurationError as error:
        parser.error(str(error))
    if not rows:
        parser.error(f"{options.runs}: no finished run below it: give the folder of a sweep")
    report = {"rows": rows, "versions": versions(), "hardware": hardware(DEVICE)}
    write_report(options.output_dir, report, table(rows))
    draw(rows, options.output_dir / "sensitivity.png")


if __name__ == "__main__":
    main()

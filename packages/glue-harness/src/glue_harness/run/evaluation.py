"""Scores over whole evaluation sets, and the predictions behind them."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace

import numpy as np
import scipy.stats  # noqa: F401  # metrics need both: imported here, not in the first evaluation's time
import sklearn.metrics  # noqa: F401
import torch

from finetune_common.aliases import JsonObject
from finetune_common.data import evaluation_batches
from finetune_common.metrics import class_report, compute_metrics
from finetune_common.tasks import Task
from glue_harness.run.mixture import Mixture, mean_of
from glue_harness.run.plan import Data
from glue_harness.run.processes import Processes

__all__ = ["Evaluation", "Evaluations", "History", "by_task", "evaluate", "evaluate_beside", "evaluate_test"]


@dataclass(frozen=True)
class Evaluation:
    """A model's outputs and scores on the evaluation sets of a task.

    Attributes:
        metrics: Metric → value over all rows of its set.
        scores: Split → logits of shape (rows, labels), in row order.
    """

    metrics: dict[str, float]
    scores: dict[str, np.ndarray]

    def rows(self, data: Data) -> Iterator[tuple[str, ...]]:
        """Yield index, label, prediction, scores and texts for `predictions.tsv`."""
        task = data.task
        for split, scores in self.scores.items():
            prefix = f"{split.removeprefix('validation_')}-" if len(self.scores) > 1 else ""
            rows = data.datasets[split]
            texts = zip(*(data.texts[split][name] for name in task.columns), strict=True)
            for index, label, row, text in zip(rows["idx"], rows["labels"], scores, texts, strict=True):
                if task.several:
                    answer, truth = (_named(task, chosen) for chosen in (row > 0, label))
                elif task.regression:
                    answer, truth = f"{row[0]:.9g}", f"{label:.6g}"
                else:
                    answer, truth = task.labels[int(row.argmax())], task.labels[int(label)]
                yield f"{prefix}{index}", truth, answer, " ".join(f"{value:.9g}" for value in row), *text

    def of_classes(self, data: Data) -> JsonObject:
        """Return the report of each class (`finetune_common.metrics.class_report`), set by set."""
        if data.task.regression:
            return {}
        return {
            split: class_report(data.task, scores, np.asarray(data.datasets[split]["labels"]))
            for split, scores in self.scores.items()
        }


@dataclass(frozen=True)
class Evaluations:
    """A model's outputs and scores on the evaluation sets of several tasks.

    Attributes:
        metrics: `mean` of the tasks' primary metrics, and `task.metric` of each.
        parts: Task → its evaluation.
    """

    metrics: dict[str, float]
    parts: dict[str, Evaluation]


def by_task(
    evaluation: Evaluation | Evaluations, data: Data | Mixture
) -> Iterator[tuple[str, Evaluation, Data]]:
    """Yield each task's name, evaluation and rows; in a run of one task the name is empty."""
    if isinstance(evaluation, Evaluation):
        assert isinstance(data, Data)
        yield "", evaluation, data
    else:
        assert isinstance(data, Mixture)
        for name, part in evaluation.parts.items():
            yield name, part, data.parts[name]


def _named(task: Task, applies: Iterable[object]) -> str:
    return "|".join(name for name, yes in zip(task.labels, applies, strict=True) if yes)


@dataclass
class History:
    """The evaluations of a run: the last one and the best one by the task's primary metric."""

    primary: str
    entries: list[JsonObject] = field(default_factory=list)

    def add(self, step: int, epoch: float, metrics: Mapping[str, float]) -> None:
        """Note an evaluation."""
        self.entries.append({"step": step, "epoch": epoch, "metrics": dict(metrics)})

    @property
    def last(self) -> JsonObject:
        """The newest evaluation."""
        return self.entries[-1]

    def has(self, step: int) -> bool:
        """Say whether the last evaluation was at this step."""
        return bool(self.entries) and self.last["step"] == step

    def stale(self, delta: float) -> int:
        """Return how many evaluations ago the primary metric last exceeded its best by more than `delta`.

        Examples:
            >>> history = History("accuracy")
            >>> for step, value in enumerate([0.5, 0.7, 0.71, 0.6], start=1):
            ...     history.add(step, step, {"accuracy": value})
            >>> history.stale(0.0), history.stale(0.05)
            (1, 2)
        """
        best, since = -math.inf, 0
        for entry in self.entries:
            value = entry["metrics"][self.primary]
            best, since = (value, 0) if value > best + delta else (best, since + 1)
        return since

    @property
    def best(self) -> JsonObject:
        """The first evaluation with the highest primary metric."""
        return max(self.entries, key=lambda entry: entry["metrics"][self.primary])


def _scores(
    model: torch.nn.Module,
    data: Data,
    split: str,
    batch_size: int,
    processes: Processes,
    between: Callable[[], None],
) -> np.ndarray:
    batches = evaluation_batches(data.lengths[split], batch_size)
    batches_here = batches[processes.rank :: processes.world]
    rounds = math.ceil(len(batches) / processes.world)
    # A sharded model needs all processes at every pass.
    passes = batches_here + batches[:1] * (rounds - len(batches_here))
    scores: list[torch.Tensor] = []
    for batch in data.loader(split, passes):
        between()
        batch.pop("labels", None)
        scores.append(model(**processes.on_device(batch)).logits.float())
    rows = [row for indices in batches_here for row in indices]
    parts = processes.gather((rows, torch.cat(scores)[: len(rows)].cpu().numpy()))
    everything = np.concatenate([part for _, part in parts])
    ordered = np.empty_like(everything)
    ordered[[row for part, _ in parts for row in part]] = everything
    return ordered


def _of_batches(
    task: Task, scores: np.ndarray, labels: np.ndarray, split: str, rows: int
) -> dict[str, float]:
    """Return the mean of each metric over batches of rows; an undefined metric counts as 0."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # metrics of a few rows are often undefined
        parts = [
            compute_metrics(task, scores[first : first + rows], labels[first : first + rows], split)
            for first in range(0, len(labels), rows)
        ]
    return {f"{name}_of_batches": float(np.mean([part[name] for part in parts])) for name in parts[0]}


@torch.no_grad()
def evaluate(
    model: torch.nn.Module,
    data: Data | Mixture,
    batch_size: int,
    processes: Processes,
    between: Callable[[], None] = lambda: None,
    metric_batch: int | None = None,
) -> Evaluation | Evaluations:
    """Score a model on every evaluation set of a task, each row once for any number of processes.

    Args:
        model: Its mode is restored.
        data: The tokenised splits of the task, or of several.
        batch_size: Rows at a time.
        processes: The run's processes; each scores its share.
        between: Called before each batch, equally often on every process.
        metric_batch: Also report each metric's mean over batches of this many rows, in order, the last one
            shorter: `<metric>_of_batches`. It differs if a metric is not a mean over rows, or if the last
            batch is short.
    """
    if isinstance(data, Mixture):
        parts = {
            name: _of_one(model, part, batch_size, processes, between, metric_batch)
            for name, part in data.parts.items()
        }
        return Evaluations(mean_of(data.tasks, {name: part.metrics for name, part in parts.items()}), parts)
    return _of_one(model, data, batch_size, processes, between, metric_batch)


def _of_one(
    model: torch.nn.Module,
    data: Data,
    batch_size: int,
    processes: Processes,
    between: Callable[[], None] = lambda: None,
    metric_batch: int | None = None,
) -> Evaluation:
    training = model.training
    model.eval()
    metrics: dict[str, float] = {}
    scores: dict[str, np.ndarray] = {}
    for split in data.task.evaluation:
        scores[split] = _scores(model, data, split, batch_size, processes, between)
        labels = np.asarray(data.datasets[split]["labels"])
        metrics |= compute_metrics(data.task, scores[split], labels, split)
        if metric_batch:
            metrics |= _of_batches(data.task, scores[split], labels, split, metric_batch)
    model.train(training)
    return Evaluation(metrics, scores)


@torch.no_grad()
def evaluate_test(
    model: torch.nn.Module, data: Data | Mixture, batch_size: int, processes: Processes
) -> dict[str, float] | None:
    """Score a model on the run's test rows, if there are any; see `evaluate`."""
    if isinstance(data, Mixture):
        each = {name: evaluate_test(model, part, batch_size, processes) for name, part in data.parts.items()}
        metrics = {
            f"{name}.{metric}": value
            for name, of_task in each.items()
            for metric, value in (of_task or {}).items()
        }
        return metrics or None
    return _of_split(model, data, "test", batch_size, processes) if "test" in data.datasets else None


@torch.no_grad()
def evaluate_beside(
    model: torch.nn.Module, data: Data | Mixture, batch_size: int, processes: Processes
) -> dict[str, dict[str, float]]:
    """Score a model on the additional evaluation sets; see `evaluate`.

    Returns:
        Set → metrics; with several tasks the set is `task.set`.
    """
    if isinstance(data, Mixture):
        return {
            f"{name}.{split}": metrics
            for name, part in data.parts.items()
            for split, metrics in evaluate_beside(model, part, batch_size, processes).items()
        }
    return {split: _of_split(model, data, split, batch_size, processes) for split in data.beside}


def _of_split(
    model: torch.nn.Module, data: Data, split: str, batch_size: int, processes: Processes
) -> dict[str, float]:
    task = replace(data.task, evaluation=(split,))
    return _of_one(model, replace(data, task=task), batch_size, processes).metrics

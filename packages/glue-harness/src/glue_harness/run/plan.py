"""A run's rows: tokenised, and assigned to its optimizer steps."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
import transformers

from finetune_common.data import (
    Collator,
    Schema,
    batch_counts,
    epoch_batches,
    fingerprint,
    known_schema,
    load_task,
    make_loader,
    mixed_batches,
    token_facts,
    token_lengths,
    tokenize,
)
from finetune_common.tasks import Task
from glue_harness.config.fields import RunConfig
from glue_harness.config.own_rows import own_rows
from glue_harness.run.holding import hold_out
from glue_harness.run.label_noise import with_false_labels
from glue_harness.run.processes import Processes
from glue_harness.run.tasks import task_of

if TYPE_CHECKING:
    from glue_harness.run.mixture import Mixture

__all__ = ["Data", "MicroBatch", "Plan", "load_rows"]


def load_rows(config: RunConfig) -> tuple[Task, Any]:
    """Return a run's task and its splits, from the run's files or from the task's source."""
    task = task_of(config)
    if config.has_own_rows:
        return task, own_rows(config.as_dict()).datasets()
    return task, load_task(task, data_dir=config.data_dir)


@dataclass
class Data:
    """The tokenised splits of a task.

    Attributes:
        task: The task.
        datasets: Split → tokens and labels.
        lengths: Split → tokens of each row.
        collator: Makes batches.
        texts: Split → text columns, for scored splits.
        content: The identity of the rows (`finetune_common.data.fingerprint`).
        schema: How the rows were read.
        has_own_rows: Whether they are the user's rows.
        beside: Additional splits, scored once at the end.
        marks: Added to each batch: its task, if a run has several.
    """

    task: Task
    datasets: Any
    lengths: dict[str, np.ndarray]
    collator: Collator
    texts: dict[str, Any] = field(default_factory=dict)
    content: dict[str, Any] = field(default_factory=dict)
    schema: Schema | None = None
    has_own_rows: bool = False
    beside: tuple[str, ...] = ()
    marks: dict[str, str] = field(default_factory=dict)

    @classmethod
    def load(cls, config: RunConfig, tokenizer: Any) -> Data:
        """Load and tokenise; take the first rows of a seeded shuffle if a run wants fewer.

        Rows to train on are drawn by the run's seed; those to evaluate on are the same for every seed.
        """
        task, raw = load_rows(config)
        content = fingerprint(task, raw)
        schema = (
            own_rows(config.as_dict()).with_scores_of_no_model()
            if config.has_own_rows
            else known_schema(task, raw, config.data_dir)
        )
        schema = schema.with_tokens(token_facts(raw["train"], tokenizer, task, config.max_length))
        datasets = tokenize(raw, tokenizer, task, config.max_length, content=content)
        task, beside = hold_out(config, task, raw, datasets)
        texts = {}
        for split in datasets:
            count = config.max_train_samples if split == "train" else config.max_eval_samples
            if count is not None and (split == "train" or count < len(datasets[split])):
                seed = config.seed if split == "train" else 0
                datasets[split] = _some(datasets[split], seed, count)
                raw[split] = _some(raw[split], seed, count)
            if split != "train":
                texts[str(split)] = raw[split].select_columns(list(task.columns))
        if config.label_noise is not None:
            datasets["train"] = with_false_labels(datasets["train"], task, config.label_noise, config.seed)
        lengths = {str(split): token_lengths(rows) for split, rows in datasets.items()}
        pad_to = 8 if torch.cuda.is_available() else None
        collator = Collator(tokenizer, task, pad_to_multiple_of=pad_to)
        return cls(task, datasets, lengths, collator, texts, content, schema, config.has_own_rows, beside)

    @property
    def record(self) -> dict[str, Any]:
        """A run's description of its rows, as plain data."""
        schema = self.schema.as_dict() if self.schema else None
        return {"content": self.content, "schema": schema, "own": self.has_own_rows}

    @property
    def schemas(self) -> list[Schema]:
        """How the rows were read."""
        return [self.schema] if self.schema else []

    @property
    def training_rows(self) -> int:
        """The number of training rows."""
        return len(self.lengths["train"])

    @property
    def training_lengths(self) -> Any:
        """Tokens of each training row."""
        return self.lengths["train"]

    def loader(self, split: str, batches: list[list[int]], num_workers: int = 0) -> Iterable[dict[str, Any]]:
        """Return a loader of these batches of rows, in pinned memory for a GPU."""
        pinned = torch.cuda.is_available()
        rows = make_loader(self.datasets[split], batches, self.collator, num_workers, pin_memory=pinned)
        return ({**batch, **self.marks} for batch in rows) if self.marks else rows


def _warmup_linear(warmup: int, total: int, step: int) -> float:
    """The schedule of pytorch-pretrained-bert: step/warmup, then at once 1 - step/total."""
    return step / warmup if step < warmup else max(0.0, 1 - step / total)


def _some(rows: Any, seed: int, count: int) -> Any:
    return rows.shuffle(seed=seed).select(range(min(count, len(rows))))


class MicroBatch(NamedTuple):
    """One process's part of a micro-batch: `rows`, and their number `of` over all processes."""

    rows: int
    of: int
    tensors: Any


@dataclass
class Plan:
    """The rows of each optimizer step: step → epoch → window → micro-batches.

    Args:
        config: Gives the rows of a process's micro-batch, and the micro-batches of a step.
        lengths: Tokens of each training row; with several tasks, task → the same.
        processes: How many processes the run began with. A run that continues with another number keeps the
            rows of its steps, and so its remaining steps and its schedule.
    """

    config: RunConfig
    lengths: np.ndarray | Mapping[str, np.ndarray]
    processes: int
    total: int = field(init=False)
    per_epoch: int = field(init=False)

    def __post_init__(self) -> None:
        batches = sum(self._counts())
        self.per_epoch = math.ceil(batches / self.config.accumulate)
        self.total = self.config.max_steps or math.ceil(self.config.epochs * self.per_epoch)

    def _counts(self) -> list[int]:
        """Return an epoch's number of batches over all processes, for each task."""
        size = self.config.batch_size * self.processes
        if isinstance(self.lengths, Mapping):
            sizes = [len(rows) for rows in self.lengths.values()]
            return batch_counts(sizes, size, self.config.task_sampling or "size")
        return batch_counts([len(self.lengths)], size)

    def _drawn(self, epoch: int) -> list[list[int]]:
        """Return the rows of an epoch's batches over all processes."""
        config = self.config
        size = config.batch_size * self.processes
        common: Any = {"seed": config.seed, "epoch": epoch, "group_by_length": config.group_by_length}
        if isinstance(self.lengths, Mapping):
            return mixed_batches(self.lengths, size, sampling=config.task_sampling or "size", **common)
        return epoch_batches(self.lengths, size, **common)

    def schedule(self, optimizer: torch.optim.Optimizer) -> torch.optim.lr_scheduler.LRScheduler:
        """Return the learning-rate schedule: warm-up, then the run's `schedule`."""
        warmup, total = self.config.warmup, self.config.schedule_steps or self.total
        warmup = math.ceil(warmup * total) if warmup < 1 else int(warmup)
        if self.config.schedule == "warmup-linear":
            return torch.optim.lr_scheduler.LambdaLR(optimizer, partial(_warmup_linear, warmup, total))
        name = "constant_with_warmup" if self.config.schedule == "constant" else self.config.schedule
        return transformers.get_scheduler(name, optimizer, warmup, total)

    def windows(self, step: int) -> list[list[list[int]]]:
        """Return the remaining windows of a step's epoch, over all processes."""
        accumulate, batches = self.config.accumulate, self._drawn(step // self.per_epoch)
        windows = [batches[i : i + accumulate] for i in range(0, len(batches), accumulate)]
        return windows[step % self.per_epoch : step % self.per_epoch + self.total - step]

    def batches(
        self, step: int, data: Data | Mixture, processes: Processes, num_workers: int
    ) -> Iterator[tuple[int, list[MicroBatch]]]:
        """Yield the batches of each remaining step of an epoch.

        Returns:
            These are the rows of the window over all processes, and this process's micro-batches on its
            device; a process without rows uses one row with weight 0.
        """
        rank, world = processes.rank, processes.world
        windows = [(window, self.micro_batches(window, world)) for window in self.windows(step)]
        filled = [shares[rank] or window[0][:1] for window, parts in windows for shares in parts]
        loader = iter(data.loader("train", filled, num_workers))
        for window, parts in windows:
            batches = [
                MicroBatch(len(shares[rank]), sum(map(len, shares)), processes.on_device(next(loader)))
                for shares in parts
            ]
            yield sum(map(len, window)), batches

    def ends_epoch(self, step: int) -> bool:
        """Say whether `step` ends an epoch or the run."""
        return step % self.per_epoch == 0 or step == self.total

    def parts_per_process(self, processes_now: int) -> int:
        """Return into how many micro-batches each process now divides its part of a batch."""
        return math.ceil(self.processes / processes_now)

    def micro_batches(self, window: list[list[int]], processes_now: int) -> list[tuple[list[int], ...]]:
        """Return the micro-batches of a window; each lists the rows of every process."""
        ranks = range(processes_now)
        by_process = [
            [self.rows_of_process(batch, rank, processes_now) for rank in ranks] for batch in window
        ]
        return [shares for batch in by_process for shares in zip(*batch, strict=True)]

    def rows_of_process(self, batch: list[int], rank: int, processes_now: int) -> list[list[int]]:
        """Return the micro-batches of one process: its rows of a batch over all processes; some may be empty.

        Examples:
            >>> from types import SimpleNamespace
            >>> plan = Plan(SimpleNamespace(batch_size=2, accumulate=1, max_steps=1), np.ones(4), processes=2)
            >>> plan.rows_of_process([5, 6, 7, 8], rank=1, processes_now=2)
            [[6, 8]]
            >>> plan.rows_of_process([5, 6, 7, 8], rank=0, processes_now=1)
            [[5, 7], [6, 8]]
        """
        parts = processes_now * self.parts_per_process(processes_now)
        return [batch[part::parts] for part in range(rank, parts, processes_now)]

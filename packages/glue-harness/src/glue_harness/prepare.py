"""Fetch a task and a model ahead of time, for machines without a network."""

from __future__ import annotations

from finetune_common.data import load_task, read_dataset, tokenize
from finetune_common.tasks import get_task
from glue_harness.config.fields import RunConfig
from glue_harness.run.assembly import create

__all__ = ["prepare", "prepare_dataset"]


def prepare(task: str, model: str, data_dir: str | None, max_length: int) -> str:
    """Load everything that a run of these tasks would load; downloads stay cached.

    Returns:
        One line that says what is ready.
    """
    config = RunConfig(task, model, output_dir="-")
    run = create(config)
    ready = []
    for name in config.tasks:
        described = get_task(name)
        datasets = tokenize(load_task(described, data_dir=data_dir), run.tokenizer, described, max_length)
        rows = ", ".join(f"{len(rows):,} {split}" for split, rows in datasets.items())
        ready.append(f"{name} ({rows} rows, at most {max_length} tokens)")
    parameters = sum(p.numel() for p in run.model.parameters())
    return f"ready: {', '.join(ready)} and {model} ({parameters:,} parameters)"


def prepare_dataset(dataset: str, config: str | None, model: str) -> str:
    """Fetch a dataset of the hub and a model; only the run decides how to read the rows.

    Returns:
        One line that says what is ready.
    """
    tables = read_dataset(dataset, config)
    create(RunConfig("demo-entailment", model, output_dir="-"))  # any task fetches the model
    rows = ", ".join(f"{len(table):,} {split}" for split, table in tables.items())
    return f"ready: {dataset} ({rows} rows) and {model}"

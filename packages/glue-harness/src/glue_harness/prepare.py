"""Fetch a task and a model ahead of time, for machines without a network."""

from __future__ import annotations

from finetune_common.data import load_task, tokenize
from finetune_common.tasks import get_task
from glue_harness.config.fields import RunConfig
from glue_harness.run.assembly import create

__all__ = ["prepare"]


def prepare(task: str, model: str, data_dir: str | None, max_length: int) -> str:
    """Load everything that a run would load; what came from a hub stays in the local caches.

    Returns:
        One line that says what is ready.
    """
    described = get_task(task)
    run = create(RunConfig(task, model, output_dir="-"))
    datasets = tokenize(load_task(described, data_dir=data_dir), run.tokenizer, described, max_length)
    parameters = sum(p.numel() for p in run.model.parameters())
    rows = ", ".join(f"{len(rows):,} {split}" for split, rows in datasets.items())
    return f"ready: {task} ({rows} rows, at most {max_length} tokens) and {model} ({parameters:,} parameters)"

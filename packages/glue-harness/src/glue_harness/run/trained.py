"""What a run leaves for others: the model as transformers reads it, and what its adaptation trained."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from glue_harness.files import whole_folder
from glue_harness.run import checkpoint
from glue_harness.run.assembly import Run, open_run
from glue_harness.run.card import card_of
from glue_harness.run.evaluation import by_task
from glue_harness.run.heads import Heads
from glue_harness.run.parts import result_of_task
from glue_harness.run.records import ADAPTER, MODEL

if TYPE_CHECKING:
    from glue_harness.run.loop import Training

__all__ = ["leave", "leave_model", "plain", "write_model"]


def plain(run: Run) -> Any:
    """Return a run's model as any of its kind, its adaptation folded in; None where no such weights hold it.

    The model itself may be changed, and is not used afterwards.
    """
    merge = getattr(run.methods.adaptation, "merged", None) if run.attached else None
    model: Any = merge(run.model) if merge else run.model
    return model if model is not None and _is_of_its_kind(model) else None


def _is_of_its_kind(model: Any) -> bool:
    """Say whether a model has the weights of a fresh one of its kind, by names and shapes."""
    with torch.device("meta"):
        fresh = type(model)(copy.deepcopy(model.config))
    shapes = (
        {name: value.shape for name, value in network.state_dict().items()} for network in (fresh, model)
    )
    return next(shapes) == next(shapes)


def write_model(run: Run, model: Any, folder: Path, card: str) -> None:
    """Write a model's folder: weights where there is a plain model, configuration, tokenizer and card."""
    described: Any = run.model.config
    (described if model is None else model).save_pretrained(folder)
    run.tokenizer.save_pretrained(folder)
    (folder / "README.md").write_text(card, encoding="utf-8")


def leave(training: Training) -> dict[str, Any]:
    """Write what a run leaves, and return its result, which is written last.

    That is `predictions.tsv`, `model/`, where the adaptation can be kept by itself `adapter/`, and
    `result.json`.

    Args:
        training: Has ended; its model is not used afterwards.
    """
    result = training.result()
    if training.folder.leads and training.evaluation is not None:
        for name, evaluation, rows in by_task(training.evaluation, training.data):
            training.folder.write_predictions(evaluation.rows(rows), rows.task.columns, name)
        # with shards the leader has a part of the weights, and the checkpoint has them whole
        run = open_run(training.folder.path) if training.processes.sharded else training.run
        leave_model(run, training.folder.path, result)
        checkpoint.tidy(training.folder.checkpoints, training.step)
        training.folder.write_result(result)
    return result


def leave_model(run: Run, folder: Path, result: Mapping[str, Any]) -> None:
    """Write `model/` and `adapter/`.

    Args:
        run: Is trained; its model is not used afterwards.
        folder: The run's; of several tasks each has a folder of its name in them.
        result: What `result.json` holds.
    """
    tasks = list(run.model.tasks) if isinstance(run.model, Heads) else [""]
    if save := getattr(run.methods.adaptation, "save", None):
        with whole_folder(folder / ADAPTER) as unfinished:
            for name in tasks:
                (unfinished / name).mkdir(exist_ok=True)
                save((run.of(name) if name else run).model, unfinished / name)
    classifier = run.of(tasks[0]) if tasks[0] else run
    model = plain(classifier)  # its adaptation is folded in once, for all heads
    with whole_folder(folder / MODEL) as unfinished:
        for name in tasks:
            part = run.of(name) if name else run
            assert part.task is not None
            part_result = result_of_task(result, name) if name else result
            card = card_of(part_result, part.task, "apart" if model is None else "whole")
            (unfinished / name).mkdir(exist_ok=True)
            write_model(part, model, unfinished / name, card)

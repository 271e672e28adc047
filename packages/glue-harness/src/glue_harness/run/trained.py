"""A run's output: the model for transformers, and its adaptation's trained part."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from finetune_common.aliases import JsonObject
from glue_harness.files import atomic_folder
from glue_harness.run import checkpoint
from glue_harness.run.assembly import Run, open_run
from glue_harness.run.card import card_of
from glue_harness.run.digests import write_digests
from glue_harness.run.evaluation import by_task
from glue_harness.run.heads import Heads
from glue_harness.run.parts import result_of_task
from glue_harness.run.records import ADAPTER, MODEL

if TYPE_CHECKING:
    from glue_harness.run.loop import Training

__all__ = ["merged_model", "write_model", "write_models", "write_output"]


def merged_model(run: Run) -> Any:
    """Return a run's model with its adaptation merged; None if plain weights cannot hold it.

    The given model may be changed, and must not be used afterwards.
    """
    merge = getattr(run.methods.adaptation, "merged", None) if run.attached else None
    model: Any = merge(run.model) if merge else run.model
    return model if model is not None and _is_plain(model) else None


def _is_plain(model: Any) -> bool:
    """Say whether a model's weights have the names and shapes of a new model of its class."""
    with torch.device("meta"):
        fresh = type(model)(copy.deepcopy(model.config))
    shapes = (
        {name: value.shape for name, value in network.state_dict().items()} for network in (fresh, model)
    )
    return next(shapes) == next(shapes)


def write_model(run: Run, model: Any, folder: Path, card: str) -> None:
    """Write a model's folder: weights if there is a plain model, configuration, tokenizer and card."""
    described: Any = run.model.config
    (described if model is None else model).save_pretrained(folder)
    run.tokenizer.save_pretrained(folder)
    write_digests(folder)  # not of the card, which people complete
    (folder / "README.md").write_text(card, encoding="utf-8")


def write_output(training: Training) -> JsonObject:
    """Write a run's output, and return its result, which is written last.

    The output is `predictions.tsv`, `model/`, `adapter/` if the adaptation can be saved separately, and
    `result.json`.

    Args:
        training: An ended training; its model must not be used afterwards.
    """
    result = training.result()
    if training.folder.leads and training.evaluation is not None:
        for name, evaluation, rows in by_task(training.evaluation, training.data):
            training.folder.write_predictions(evaluation.rows(rows), rows.task.columns, name)
        # with shards the leader has only a part of the weights, so that all are read from the checkpoint
        run = open_run(training.folder.path) if training.processes.sharded else training.run
        write_models(run, training.folder.path, result)
        checkpoint.tidy(training.folder.checkpoints, training.step)
        training.folder.write_result(result)
    return result


def write_models(run: Run, folder: Path, result: JsonObject) -> None:
    """Write `model/` and `adapter/`.

    Args:
        run: A trained run; its model must not be used afterwards.
        folder: The run's folder; each of several tasks has a subfolder.
        result: The content of `result.json`.
    """
    tasks = list(run.model.tasks) if isinstance(run.model, Heads) else [""]
    if save := getattr(run.methods.adaptation, "save", None):
        with atomic_folder(folder / ADAPTER) as unfinished:
            for name in tasks:
                (unfinished / name).mkdir(exist_ok=True)
                save((run.for_task(name) if name else run).model, unfinished / name)
                write_digests(unfinished / name)
    classifier = run.for_task(tasks[0]) if tasks[0] else run
    model = merged_model(classifier)  # merged once, for all heads
    with atomic_folder(folder / MODEL) as unfinished:
        for name in tasks:
            part = run.for_task(name) if name else run
            assert part.task is not None
            part_result = result_of_task(result, name) if name else result
            card = card_of(part_result, part.task, "apart" if model is None else "whole")
            (unfinished / name).mkdir(exist_ok=True)
            write_model(part, model, unfinished / name, card)

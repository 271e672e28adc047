"""The state of a training as a checkpoint: saving it, and continuing from it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, cast

import torch

from finetune_common.aliases import StateDict
from finetune_common.errors import ConfigurationError
from glue_harness.run import checkpoint
from glue_harness.run.sharding import gathered, state_here

if TYPE_CHECKING:
    from torch.distributed.checkpoint.stateful import Stateful

    from glue_harness.run.loop import Training
    from glue_harness.run.processes import Processes
    from glue_harness.run.records import RunFolder

__all__ = ["continue_from", "find", "keep_best", "restore", "return_to_best", "save"]


def _stateful(training: Training) -> dict[str, Stateful]:
    """All objects with state except the model, by their name in a checkpoint."""
    scaler = training.processes.accelerator.scaler
    parts: dict[str, object] = {"scheduler": training.scheduler, "scaler": scaler}
    parts |= training.run.parts | {"optimizer": training.scaled}
    return {name: cast("Stateful", part) for name, part in parts.items() if hasattr(part, "state_dict")}


def _weights(training: Training) -> checkpoint.Weights:
    """Return the weights for `model.safetensors`; if sharded, all processes must call it."""
    return checkpoint.whole_weights(training.model) if training.processes.sharded else training.model


def save(training: Training) -> None:
    """Write a checkpoint of this step; every process must call it."""
    processes = training.processes
    gathers = processes.leads or processes.sharded
    state = {name: part.state_dict() for name, part in (_stateful(training) if gathers else {}).items()}
    if processes.sharded:
        state = gathered(state)
    weights = _weights(training)
    random = processes.gather(checkpoint.random_states())
    if processes.leads:
        progress = {
            "step": training.step,
            "epoch": training.step / training.plan.per_epoch,
            "examples": training.examples,
            "saved_bytes": training.saved_bytes,
            "history": training.history.entries,
            "seconds": training.watch.seconds(),
            "processes": training.plan.processes,
            "random": random[0],
            "random_elsewhere": random[1:],
        }
    with processes.fail_together():
        if processes.leads:
            checkpoint.save(training.folder.checkpoints, training.step, weights, state | progress)
    training.saved = training.step


def find(processes: Processes, folder: RunFolder) -> Path | None:
    """Return the newest undamaged checkpoint of the run's folder, and delete damaged ones."""
    newest = None
    with processes.fail_together():
        if folder.leads and (newest := checkpoint.sound(folder.checkpoints)):
            checkpoint.tidy(folder.checkpoints, checkpoint.step_of(newest), keep=2)
    newest = processes.from_leader(newest)
    with processes.fail_together():
        if newest is not None and not newest.exists():
            raise ConfigurationError(
                f"--output-dir {folder.path}: processes see different checkpoints there: give a folder that "
                "all machines share"
            )
    return newest


def restore(training: Training) -> None:
    """Continue from the checkpoint that `find` found, if there is one."""
    with training.processes.fail_together():
        if training.newest is not None:
            _load(training, training.newest)
            training.saved = training.step
        if training.folder.leads:
            training.folder.keep_metrics(training.step)


def _load(training: Training, newest: Path) -> StateDict:
    """Load weights and all state of a checkpoint, and return the state."""
    processes, stateful = training.processes, _stateful(training)
    state = checkpoint.load(newest, training.model, processes.device, expected=stateful)
    if processes.sharded:
        groups = training.optimizer.param_groups
        parameters = [parameter for group in groups for parameter in group["params"]]
        state["optimizer"] = state_here(state["optimizer"], parameters)
    for name, part in stateful.items():
        part.load_state_dict(state[name])
    training.step, training.examples = state["step"], state["examples"]
    training.saved_bytes = state["saved_bytes"]
    training.history.entries = state["history"]
    training.watch.add(state["seconds"])
    random = [state["random"], *state.get("random_elsewhere", [])]
    if processes.rank < len(random):
        checkpoint.restore_random_states(random[processes.rank])
    return state


def continue_from(training: Training, other: Path) -> None:
    """Continue from another run's newest checkpoint, with the settings of this run.

    Weights, the optimizer's state and random states come from the other run; learning rate, weight decay and
    the optimizer's other options from this run. The position is kept in epochs: with another batch size the
    steps are counted anew, and this run's schedule continues there. With `load_best` earlier evaluations are
    dropped, since their weights belong to the other run.
    """
    newest = checkpoint.sound(other / "checkpoint")
    if newest is None:
        raise ConfigurationError(f"{other}: no checkpoint to continue from: give the folder of a run")
    optimizer, scheduler, plan = training.optimizer, training.scheduler, training.plan
    names = (*optimizer.defaults, "initial_lr")
    settings_before = [
        {name: group[name] for name in names if name in group} for group in optimizer.param_groups
    ]
    rates = list(scheduler.base_lrs)
    state = _load(training, newest)
    training.step = round(state["epoch"] * plan.per_epoch)
    if training.config.load_best and training.step < plan.total:
        training.history.entries = []
    for group, settings in zip(optimizer.param_groups, settings_before, strict=True):
        group.update(settings)
    scheduler.base_lrs = rates
    scheduler.last_epoch = training.step - 1
    scheduler.step()


def keep_best(training: Training) -> None:
    """Keep the weights of this step, the best so far."""
    weights = _weights(training)
    with training.processes.fail_together():
        if training.processes.leads:
            checkpoint.save_best(training.folder.checkpoints, training.step, weights)


def return_to_best(training: Training) -> bool:
    """Return to the weights of the best evaluation, also in the newest checkpoint.

    Returns:
        Whether the weights changed.
    """
    processes, step = training.processes, training.history.best["step"]
    best = None
    with processes.fail_together():
        if processes.leads:
            best = checkpoint.best_weights(training.folder.checkpoints, step)
    best = processes.from_leader(best)
    if best is None:  # done before, by a run that was stopped before it wrote its result
        return False
    changes = step != training.step
    if changes:
        checkpoint.load_weights(best, training.model, torch.device(processes.device))
    processes.wait()
    with processes.fail_together():
        if processes.leads:
            checkpoint.adopt(best)
    return changes

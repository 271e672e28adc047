"""A search in the terms of Ray Tune: its distributions, schedulers and samplers."""

from __future__ import annotations

import logging
import os
import random
import shutil
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from ray import tune
from ray.tune.experiment import Trial
from ray.tune.schedulers import ASHAScheduler, PopulationBasedTraining, TrialScheduler
from ray.tune.search import BasicVariantGenerator, SearchAlgorithm, Searcher

from finetune_common.aliases import JsonObject, Settings
from glue_harness.cluster import Share
from glue_harness.search.records import EVALUATIONS, TRIALS
from glue_harness.search.spec import Range, SearchSpec
from glue_harness.search.table import text_of
from glue_harness.search.trial import do_trial

__all__ = ["tuner"]

NAME = "tune"
"""Folder of Tune's own files."""

CHECKPOINTS = 4
"""Checkpoints kept for each trial: its best ones, and the newest."""

ATTEMPTS = 2
"""How often a trial is restarted after its process died."""

LONG = 10**6
"""More evaluations than any trial has, so that ASHA never ends a trial by this limit."""


def _domain(allowed: Range) -> Any:
    """Return the distribution from which a trial's first value is drawn."""
    drawn = {
        "uniform": tune.uniform,
        "loguniform": tune.loguniform,
        "randint": tune.randint,
        "choice": lambda *values: tune.choice(list(values)),
    }
    return drawn[allowed.kind](*allowed.values)


def _mutation(allowed: Range) -> Any:
    """Return how a value changes: to a neighbour in a list, else by a factor, or drawn anew."""
    return list(allowed.values) if allowed.kind == "choice" else _domain(allowed)


def _kept_in_range(mutations: Mapping[str, Range], point: Settings) -> JsonObject:
    return {
        option: mutations[option].nearest(value) if option in mutations else value
        for option, value in point.items()
    }


def _scheduler(name: str, spec: SearchSpec, seed: int) -> TrialScheduler | None:
    if name == "asha":
        return ASHAScheduler(time_attr="training_iteration", max_t=LONG, grace_period=1, reduction_factor=3)
    if name == "none":
        return None
    random.seed(seed)  # population based training draws from this generator
    np.random.seed(seed)
    return PopulationBasedTraining(
        time_attr="training_iteration",
        perturbation_interval=1,
        hyperparam_mutations={option: _mutation(allowed) for option, allowed in spec.mutations.items()},
        custom_explore_fn=partial(_kept_in_range, spec.mutations),
        log_config=False,
    )


def _sampler(name: str, seed: int) -> Searcher | SearchAlgorithm:
    if name == "random":
        return BasicVariantGenerator(random_state=seed)
    import optuna
    from ray.tune.search.optuna import OptunaSearch

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return OptunaSearch(sampler=optuna.samplers.TPESampler(seed=seed))


def _name(trial: Trial) -> str:
    return trial.trial_id


class _Lines(tune.Callback):
    """Prints one line for each event.

    Args:
        metric: The metric to print.
    """

    def __init__(self, metric: str) -> None:
        self._metric = metric

    def on_trial_result(
        self, iteration: int, trials: list[Trial], trial: Trial, result: JsonObject, **_: object
    ) -> None:
        """Print the score, and the trial that gave the weights if it is another."""
        numbers = {trial.trial_id: number for number, trial in enumerate(trials, start=1)}
        taken = "" if result["origin"] == trial.trial_id else f", from trial {numbers.get(result['origin'])}"
        values = "  ".join(f"{option} {text_of(value)}" for option, value in result["configuration"].items())
        print(
            f"trial {numbers[trial.trial_id]}{taken}: epoch {result['epoch']:g}, "
            f"{self._metric} {result[self._metric]:.4f}  ({values})",
            flush=True,
        )

    def on_trial_error(self, iteration: int, trials: list[Trial], trial: Trial, **_: object) -> None:
        """Print that a trial failed."""
        print(f"trial {trials.index(trial) + 1}: failed", flush=True)


def tuner(
    spec: SearchSpec,
    folder: Path,
    share: Share,
    *,
    scheduler: str,
    sampler: str,
    trials: int,
    retry_failed: bool,
) -> tune.Tuner:
    """Return the Tuner that begins a search, or continues the one in its folder.

    Args:
        spec: The search.
        folder: Its folder.
        share: Each trial's share of the machine.
        scheduler: `pbt`, `asha` or `none`.
        sampler: `random` or `tpe`.
        trials: How many trials.
        retry_failed: Try failed trials again.
    """
    os.environ |= {
        "RAY_AIR_NEW_OUTPUT": "0",
        "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
        "TUNE_DISABLE_SIGINT_HANDLER": "1",
        "TUNE_GLOBAL_CHECKPOINT_S": "1",
        "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",
    }
    logging.getLogger("ray").setLevel(logging.CRITICAL)

    def trial(point: Settings) -> None:
        do_trial(spec, folder, share, point)

    trainable = tune.with_resources(trial, {"cpu": share.cpus, "gpu": share.gpus})
    place = folder / NAME
    if any(place.glob("experiment_state-*.json")) and tune.Tuner.can_restore(str(place)):
        return tune.Tuner.restore(str(place), trainable, resume_errored=retry_failed)
    for stale in (NAME, TRIALS, EVALUATIONS):
        shutil.rmtree(folder / stale, ignore_errors=True)
    seed = spec.seed
    return tune.Tuner(
        trainable,
        param_space={option: _domain(allowed) for option, allowed in spec.space.items()},
        tune_config=tune.TuneConfig(
            metric=spec.metric,
            mode="max",
            num_samples=trials,
            scheduler=_scheduler(scheduler, spec, seed),
            search_alg=_sampler(sampler, seed),
            reuse_actors=True,
            trial_dirname_creator=_name,
        ),
        run_config=tune.RunConfig(
            name=NAME,
            storage_path=str(folder),
            verbose=0,
            failure_config=tune.FailureConfig(max_failures=ATTEMPTS),
            checkpoint_config=tune.CheckpointConfig(
                num_to_keep=CHECKPOINTS, checkpoint_score_attribute=spec.metric
            ),
            callbacks=[_Lines(spec.metric)],
        ),
    )

"""The best of many configurations: population based training, early stopping, and samplers, by Ray Tune."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import yaml
from filelock import FileLock, Timeout

from finetune_common.aliases import JsonObject, Settings
from finetune_common.errors import ConfigurationError, check_choice, check_number
from glue_harness.cluster import connected
from glue_harness.config.difference import difference
from glue_harness.extras import need
from glue_harness.files import writing
from glue_harness.run.records import write_whole
from glue_harness.search.records import (
    EVALUATION,
    TRIALS,
    ancestors,
    keep_best,
    read_evaluation,
    read_evaluations,
)
from glue_harness.search.spec import SearchSpec, read_search
from glue_harness.stopping import Stopped, stop_on_signals
from glue_harness.sweep.state import ERROR

if TYPE_CHECKING:
    from ray.tune import Result

__all__ = ["SAMPLERS", "SCHEDULERS", "search"]

SCHEDULERS = ("pbt", "asha", "none")
SAMPLERS = ("random", "tpe")


def search(
    spec: Path,
    output_dir: Path,
    scheduler: str = "pbt",
    sampler: str = "random",
    trials: int = 8,
    jobs: int = 1,
    retry_failed: bool = False,
) -> JsonObject:
    """Search for the best configuration, or continue an interrupted search.

    Args:
        spec: The specification's file.
        output_dir: Receives `best/` (weights and configuration), `search.json`, the lineage's chart, and
            the files of each trial.
        scheduler: `pbt` (after each evaluation, a trial in the worst quarter continues from one in the best
            quarter, with changed options), `asha` (the best third of the trials that reach 1, 3, 9, …
            evaluations continues) or `none`.
        sampler: `random`, or `tpe` (Optuna), which learns from finished trials.
        trials: How many configurations.
        jobs: Trials that run at once, each with its share of the cores or GPUs.
        retry_failed: Try failed trials again.

    Returns:
        What `search.json` holds.

    Raises:
        ConfigurationError: A fault in the specification, another search in the folder, or every trial failed.
    """
    check_choice("scheduler", scheduler, SCHEDULERS)
    check_choice("sampler", sampler, SAMPLERS)
    check_number("trials", trials, at_least=1)
    check_number("jobs", jobs, at_least=1)
    if scheduler == "pbt" and sampler == "tpe":
        raise ConfigurationError(
            "--sampler tpe does not work with --scheduler pbt, which changes options itself: "
            "use --sampler random, or --scheduler asha"
        )
    search_spec = read_search(spec)
    if scheduler == "pbt" and not search_spec.mutations:
        raise ConfigurationError(
            f"{spec}: no option in space can change during training, as pbt needs: use --scheduler asha"
        )
    need("search", "ray", "optuna")
    folder = output_dir.resolve()
    options = {"scheduler": scheduler, "sampler": sampler, "trials": trials}
    with writing(f"--output-dir {output_dir}"):
        folder.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(folder / ".lock", timeout=0):
            _claim(folder, search_spec.as_dict() | options, output_dir)
            file = folder / "search.json"
            if not file.exists() or (retry_failed and (folder / "tune").exists()):
                _run_trials(search_spec, folder, jobs, options, retry_failed)
            report = json.loads(file.read_text(encoding="utf-8"))
    except Timeout:
        raise ConfigurationError(
            f"--output-dir {output_dir}: another search is running in this folder: wait for it, or choose "
            "another folder"
        ) from None
    return report


def _claim(folder: Path, settings: Settings, output_dir: Path) -> None:
    """Refuse a folder that holds another search; note the settings in a new one."""
    file = folder / "search.yaml"
    if not file.exists():
        write_whole(file, yaml.safe_dump(settings, sort_keys=False))
    elif differs := difference(settings, yaml.safe_load(file.read_text(encoding="utf-8"))):
        raise ConfigurationError(
            f"--output-dir {output_dir} holds a different search: {differs}: choose another folder"
        )


def _run_trials(spec: SearchSpec, folder: Path, jobs: int, options: Settings, retry_failed: bool) -> None:
    """Run the trials with Tune, keep the best one, and write `search.json`."""
    from glue_harness.search.lineage import draw_lineage
    from glue_harness.search.trial import STOP, stop_trials
    from glue_harness.search.tuning import tuner

    (folder / STOP).unlink(missing_ok=True)
    if retry_failed:
        for error in folder.glob(f"{TRIALS}/*/{ERROR}"):
            error.unlink()
    with connected(jobs) as share, stop_on_signals() as request:
        search_run = tuner(spec, folder, share, **options, retry_failed=retry_failed)
        try:
            grid = search_run.fit()
        except BaseException as error:
            if not request.number and not isinstance(error, KeyboardInterrupt):
                raise
            stop_trials(folder)
            if request.number:  # Ray may have changed the type of the error
                raise Stopped(request.number) from None
            raise
        results = [grid[number] for number in range(len(grid))]
        best = _best(results, spec.metric)
        if best is None:
            errors = sorted(folder.glob(f"{TRIALS}/*/{ERROR}"))
            reason = errors[0].read_text(encoding="utf-8").strip() if errors else "their processes died"
            raise ConfigurationError(f"all trials failed ({reason}): --retry-failed tries them again")
        report = _report(spec, folder, results, keep_best(best, folder))
        report |= {"scheduler": options["scheduler"], "sampler": options["sampler"]}
    draw_lineage(report, folder)
    write_whole(folder / "search.json", json.dumps(report, indent=1) + "\n")
    if not any(trial["error"] for trial in report["trials"]):
        shutil.rmtree(folder / "tune")


def _best(results: Sequence[Result], metric: str) -> Path | None:
    """Return the folder of the checkpoint with the highest score."""
    checkpoints = [pair for result in results for pair in result.best_checkpoints or [] if metric in pair[1]]
    return Path(max(checkpoints, key=lambda pair: pair[1][metric])[0].path) if checkpoints else None


def _report(spec: SearchSpec, folder: Path, results: Sequence[Result], best: Path) -> JsonObject:
    numbers = {Path(result.path).name: number for number, result in enumerate(results, start=1)}
    evaluations = {
        name: evaluation
        for name, evaluation in read_evaluations(folder).items()
        if evaluation.trial in numbers
    }
    entries = []
    for result, (name, number) in zip(results, numbers.items(), strict=True):
        of_trial = [evaluation for evaluation in evaluations.values() if evaluation.trial == name]
        top = max(of_trial, key=lambda evaluation: evaluation.metrics[spec.metric], default=None)
        error = folder / TRIALS / name / ERROR
        reason = error.read_text(encoding="utf-8").strip() if error.exists() else str(result.error)
        entries.append(
            {
                "number": number,
                "trial": name,
                "evaluations": len(of_trial),
                "epoch": max((evaluation.epoch for evaluation in of_trial), default=0.0),
                "score": top.metrics[spec.metric] if top else None,
                "configuration": top.configuration if top else result.config,
                "error": reason if result.error else None,
            }
        )
    chosen = read_evaluation(best / EVALUATION)
    return {
        "schema": 1,
        "task": spec.base["task"],
        "metric": spec.metric,
        "best": {
            "trial": numbers[chosen.trial],
            "evaluation": chosen.id,
            "score": chosen.metrics[spec.metric],
            "lineage": [evaluation.id for evaluation in ancestors(evaluations, chosen.id)],
        },
        "trials": entries,
        "evaluations": [
            {
                "id": evaluation.id,
                "parent": evaluation.parent,
                "trial": numbers[evaluation.trial],
                "epoch": evaluation.epoch,
                "step": evaluation.step,
                "metrics": evaluation.metrics,
                "configuration": evaluation.configuration,
            }
            for evaluation in evaluations.values()
        ],
    }

"""One trial of a search: a run that reports each evaluation to Ray Tune, with a checkpoint."""

from __future__ import annotations

import json
from contextlib import nullcontext, suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from filelock import FileLock, Timeout
from ray import tune

from finetune_common.aliases import Settings
from finetune_common.errors import ConfigurationError
from glue_harness.cluster import Share, use_cores
from glue_harness.run import checkpoint
from glue_harness.run.evaluation import by_task
from glue_harness.run.records import RunInUse, write_whole
from glue_harness.search.records import RESULT_SO_FAR, TRIALS, Evaluation, read_last_evaluation
from glue_harness.search.spec import SearchSpec
from glue_harness.stopping import StopFile, Stopped
from glue_harness.sweep.claiming import PAUSE
from glue_harness.sweep.state import ERROR

if TYPE_CHECKING:
    from glue_harness.run.loop import Training

__all__ = ["STOP", "do_trial", "stop_trials"]

STOP = ".stop"
"""File in the search's folder that asks all trials to stop."""

STOPPED, WAITS = "stopped.json", ".waits"
"""Files in a trial's folder: the evaluation after which it was stopped; a mark while it waits for Tune."""


def do_trial(spec: SearchSpec, search: Path, share: Share, drawn: Settings) -> None:
    """Train with a drawn configuration, from Tune's checkpoint if there is one.

    The checkpoint is a run's folder: the trial's, if it was interrupted or had to wait, or a better trial's.
    An unusable configuration is noted in the trial's folder and not tried again.

    Args:
        spec: The search.
        search: Its folder.
        share: This trial's share of the machine.
        drawn: Option → value.
    """
    from glue_harness.run.entry import run

    trial = tune.get_context().get_trial_id()
    folder = search / TRIALS / str(trial)
    if (folder / ERROR).exists():
        raise ConfigurationError((folder / ERROR).read_text(encoding="utf-8").strip())
    use_cores(share)
    point = {option: getattr(value, "item", lambda value=value: value)() for option, value in drawn.items()}
    tune_checkpoint = tune.get_checkpoint()
    with tune_checkpoint.as_directory() if tune_checkpoint else nullcontext() as start:
        reporter = _Reporter(search, str(trial), point, Path(start) if start else None)
        try:
            config = replace(spec.configure(point, folder), overwrite=not reporter.continues(folder))
            run(config, reporter, reporter.start, stop=StopFile(search / STOP), quiet=True)
        except Stopped:
            write_whole(folder / STOPPED, reporter.position)
            raise
        except RunInUse:  # an earlier attempt still runs, and will end soon
            raise
        except ConfigurationError as error:
            write_whole(folder / ERROR, f"{error}\n")
            raise


def stop_trials(search: Path) -> None:
    """Have trials whose search has ended save their state, and wait until they have."""
    (search / STOP).touch()
    for trial in (search / TRIALS).glob("*/"):
        while not (trial / WAITS).exists():
            with suppress(Timeout), FileLock(trial / ".lock", timeout=PAUSE):
                break


class _Reporter:
    """Writes down each evaluation of a trial and passes it on, with the run's folder as its checkpoint.

    Args:
        search: The search's folder.
        trial: The trial's name.
        point: Its configuration.
        start: Folder of the run it continues.
    """

    def __init__(self, search: Path, trial: str, point: Settings, start: Path | None) -> None:
        self.start = start
        self._search, self._trial, self._point = search, trial, point
        self._parent = read_last_evaluation(start) if start else None

    @property
    def position(self) -> str:
        """The trial's last evaluation and its configuration."""
        return json.dumps([self._parent.id if self._parent else None, self._point])

    def continues(self, folder: Path) -> bool:
        """Say whether the trial was stopped at this evaluation, so that its own checkpoint is newer."""
        file = folder / STOPPED
        stopped_at = file.read_text(encoding="utf-8") if file.exists() else ""
        for stale in (file, folder / WAITS):
            stale.unlink(missing_ok=True)
        return stopped_at == self.position

    def __call__(self, training: Training) -> None:
        entry, folder = training.history.last, training.folder.path
        noted = Evaluation.make(self._parent, self._trial, entry, self._point)
        noted.write(self._search, folder)
        if training.evaluation is not None:
            for name, evaluation, rows in by_task(training.evaluation, training.data):
                training.folder.write_predictions(evaluation.rows(rows), rows.task.columns, name)
        write_whole(folder / RESULT_SO_FAR, json.dumps(training.result(), indent=2) + "\n")
        origin = self._parent.trial if self._parent else self._trial
        self._parent = noted
        checkpoint.tidy(training.folder.checkpoints, training.step)  # Tune copies what is there
        (folder / WAITS).touch()
        tune.report(
            {
                **entry["metrics"],
                "epoch": entry["epoch"],
                "origin": origin,
                "configuration": self._point,
            },
            checkpoint=tune.Checkpoint.from_directory(str(folder)),
        )
        (folder / WAITS).unlink()

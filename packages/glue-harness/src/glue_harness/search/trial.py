"""One trial of a search: a run that reports each evaluation to Ray Tune, with a checkpoint."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ray import tune

from finetune_common.errors import ConfigurationError
from glue_harness.cluster import Share, use_cores
from glue_harness.run.records import RunInUse, write_whole
from glue_harness.search.records import RESULT_SO_FAR, TRIALS, Evaluation, read_reached
from glue_harness.search.spec import SearchSpec
from glue_harness.sweep.state import ERROR

if TYPE_CHECKING:
    from glue_harness.run.loop import Training

__all__ = ["do_trial"]


def do_trial(spec: SearchSpec, search: Path, share: Share, drawn: Mapping[str, Any]) -> None:
    """Train with a drawn configuration, from the checkpoint that Tune gives if it gives one.

    The checkpoint is a run's folder: the trial's own, where it was interrupted or had to wait, or that of
    a better trial. What cannot be used is written to the trial's folder, and is not tried again.

    Args:
        spec: The search.
        search: Its folder.
        share: What this trial has of the machine.
        drawn: Option → value.
    """
    from glue_harness.run.loop import run

    trial = tune.get_context().get_trial_id()
    folder = search / TRIALS / str(trial)
    if (folder / ERROR).exists():
        raise ConfigurationError((folder / ERROR).read_text(encoding="utf-8").strip())
    use_cores(share)
    point = {option: getattr(value, "item", lambda value=value: value)() for option, value in drawn.items()}
    given = tune.get_checkpoint()
    with given.as_directory() if given else nullcontext() as start:
        reporter = _Reporter(search, str(trial), point, Path(start) if start else None)
        try:
            run(spec.configure(point, folder), reporter, reporter.start)
        except RunInUse:  # an earlier attempt is about to end
            raise
        except ConfigurationError as error:
            folder.mkdir(parents=True, exist_ok=True)
            write_whole(folder / ERROR, f"{error}\n")
            raise


class _Reporter:
    """Writes down each evaluation of a trial and passes it on, with the run's folder as its checkpoint.

    Args:
        search: The search's folder.
        trial: The trial's name.
        point: Its configuration.
        start: Folder of the run from which it goes on.
    """

    def __init__(self, search: Path, trial: str, point: dict[str, Any], start: Path | None) -> None:
        self.start = start
        self._search, self._trial, self._point = search, trial, point
        self._parent = read_reached(start) if start else None

    def __call__(self, training: Training) -> None:
        entry, folder = training.history.last, training.folder.path
        made = Evaluation.make(self._parent, self._trial, entry, self._point)
        made.write(self._search, folder)
        if training.evaluation is not None:
            training.folder.write_predictions(training.evaluation.rows(training.data), training.task.columns)
        write_whole(folder / RESULT_SO_FAR, json.dumps(training.result(), indent=2) + "\n")
        origin = self._parent.trial if self._parent else self._trial
        self._parent = made
        tune.report(
            {
                **entry["metrics"],
                "epoch": entry["epoch"],
                "origin": origin,
                "configuration": self._point,
            },
            checkpoint=tune.Checkpoint.from_directory(str(folder)),
        )

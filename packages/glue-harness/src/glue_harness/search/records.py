"""The records of a search: a file for each evaluation, and the tree that evaluations form.

An evaluation's name is made from its parent evaluation, the trial, the configuration and the step. Repeated
after an interruption, it has the same name and the same scores.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import yaml

from finetune_common.aliases import JsonObject, Settings
from glue_harness.files import atomic
from glue_harness.run import checkpoint
from glue_harness.run.assembly import reopen
from glue_harness.run.records import ADAPTER, MODEL, write_whole
from glue_harness.run.trained import write_models

__all__ = [
    "EVALUATION",
    "EVALUATIONS",
    "RESULT_SO_FAR",
    "TRIALS",
    "Evaluation",
    "ancestors",
    "keep_best",
    "read_evaluation",
    "read_evaluations",
    "read_last_evaluation",
]

EVALUATION, RESULT_SO_FAR = "evaluation.json", "so-far.json"
EVALUATIONS, TRIALS = "evaluations", "trials"


@dataclass(frozen=True)
class Evaluation:
    """Scores of one trial at one moment.

    Attributes:
        id: Twelve hexadecimal digits.
        parent: The evaluation whose weights training continued from; None for the first.
        trial: Name of the trial.
        epoch: Passes over the training rows.
        step: Optimizer steps.
        metrics: Metric → value.
        configuration: The searched options that led here from the parent.
    """

    id: str
    parent: str | None
    trial: str
    epoch: float
    step: int
    metrics: dict[str, float]
    configuration: JsonObject

    @classmethod
    def make(
        cls,
        parent: Evaluation | None,
        trial: str,
        entry: JsonObject,
        configuration: Settings,
    ) -> Evaluation:
        """Name an entry of a run's history."""
        origin = parent.id if parent else None
        key = json.dumps([origin, trial, entry["step"], configuration], sort_keys=True)
        name = hashlib.sha256(key.encode()).hexdigest()[:12]
        return cls(name, origin, trial, entry["epoch"], entry["step"], entry["metrics"], dict(configuration))

    def write(self, search: Path, run: Path) -> None:
        """Write it into the search's folder and beside its weights."""
        folder = search / EVALUATIONS
        folder.mkdir(exist_ok=True)
        text = json.dumps(asdict(self), indent=1) + "\n"
        write_whole(folder / f"{self.id}.json", text)
        write_whole(run / EVALUATION, text)


def read_evaluation(file: Path) -> Evaluation:
    """Return what `Evaluation.write` wrote."""
    return Evaluation(**json.loads(file.read_text(encoding="utf-8")))


def read_last_evaluation(run: Path) -> Evaluation:
    """Return the evaluation that a run's folder has reached, and delete all other checkpoints there.

    Tune numbers its folders for copied runs, and may copy into an abandoned one that still has files.
    """
    reached = read_evaluation(run / EVALUATION)
    checkpoint.tidy(run / "checkpoint", reached.step)
    return reached


def read_evaluations(search: Path) -> dict[str, Evaluation]:
    """Return all evaluations of a search by name, early epochs first."""
    evaluations = [read_evaluation(file) for file in sorted((search / EVALUATIONS).glob("*.json"))]
    return {
        evaluation.id: evaluation
        for evaluation in sorted(evaluations, key=lambda e: (e.epoch, e.trial, e.id))
    }


def ancestors(evaluations: Mapping[str, Evaluation], last: str) -> Sequence[Evaluation]:
    """Return an evaluation and its ancestors, oldest first."""
    line, name = [], last
    while name in evaluations:
        line.append(evaluations[name])
        name = line[-1].parent or ""
    return line[::-1]


def keep_best(run: Path, search: Path) -> Path:
    """Copy a run and its weights into the folder `best`, as an ordinary finished run."""
    best = search / "best"
    read_last_evaluation(run)
    with atomic(best) as unfinished:
        ignored = shutil.ignore_patterns(".*", "result.json", MODEL, ADAPTER)
        shutil.copytree(run, unfinished, ignore=ignored)
        (unfinished / RESULT_SO_FAR).rename(unfinished / "result.json")
        settings = yaml.safe_load((unfinished / "config.yaml").read_text(encoding="utf-8"))
        settings |= {"output_dir": str(best), "overwrite": False}
        write_whole(unfinished / "config.yaml", yaml.safe_dump(settings, sort_keys=False))
        result = json.loads((unfinished / "result.json").read_text(encoding="utf-8"))
        write_models(reopen(unfinished), unfinished, result)
    return best

"""The GLUE leaderboard's zip: trained runs predict the official test files.

A run keeps only the predictions of its dev set, so its model is loaded again.
"""

from __future__ import annotations

import io
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypedDict

import numpy as np

from finetune_common.data import load_task
from finetune_common.errors import ConfigurationError, shown
from finetune_common.tasks import GLUE_TASKS, TASKS, Task
from glue_harness.files import atomic, writing
from glue_harness.run.assembly import Run, open_run
from glue_harness.run.parts import judge_of, result_of_task
from glue_harness.run.records import read_results, write_whole

__all__ = ["FILES", "check_submission", "submit"]


@dataclass(frozen=True)
class File:
    """One file of a submission.

    Attributes:
        task: The task whose runs predict it.
        split: The rows that are predicted.
        rows: How many the leaderboard expects.
        named: Whether labels are written by name; otherwise by number.
    """

    task: str
    split: str
    rows: int
    named: bool = False

    def labels(self) -> tuple[str, ...]:
        """Return the values allowed in the column `prediction`; none for a score."""
        names = TASKS[self.task].labels
        return names if self.named else tuple(str(number) for number in range(len(names)))


def _file(task: str, split: str = "test", *, named: bool = False) -> File:
    return File(task, split, TASKS[task].rows[split], named)


FILES = {
    "CoLA.tsv": _file("cola"),
    "MNLI-m.tsv": _file("mnli", "test_matched", named=True),
    "MNLI-mm.tsv": _file("mnli", "test_mismatched", named=True),
    "MRPC.tsv": _file("mrpc"),
    "QNLI.tsv": _file("qnli", named=True),
    "QQP.tsv": _file("qqp"),
    "RTE.tsv": _file("rte", named=True),
    "SST-2.tsv": _file("sst2"),
    "STS-B.tsv": _file("stsb"),
    "WNLI.tsv": _file("wnli"),
    "AX.tsv": File("mnli", "test_ax", 1104, named=True),
}
"""Name in the zip → its file."""


class Submission(TypedDict):
    """What `submit` made.

    Attributes:
        archive: The zip.
        runs: Task → the run's folder, and the score at its end.
        missing: Files that the leaderboard also expects.
    """

    archive: Path
    runs: dict[str, tuple[Path, float]]
    missing: list[str]


HEADER = "index\tprediction"
ARCHIVE = "submission.zip"


def _diagnostic(path: Path) -> Task:
    """Describe the diagnostic set: pairs like MNLI's, in a separate file."""
    place = {
        "folder": str(path.resolve().parent),
        "files": {"test_ax": path.name},
        "rows": {"test_ax": FILES["AX.tsv"].rows},
    }
    return replace(TASKS["mnli"], name="ax", evaluation=("test_ax",), **place)


def _scores(run: Run, task: Task, split: str, data_dir: str | None) -> np.ndarray:
    """Return a run's logits for new rows, of shape (rows, labels), in row order."""
    rows = load_task(task, data_dir=data_dir, splits=[split])[split]
    return run.predictor.logits(*(rows[name][:] for name in task.columns), batch_size=run.config.batch_size)


def _best_runs(folders: Sequence[Path]) -> dict[str, tuple[Path, float]]:
    """Return, task by task, the run with the highest primary metric at its end, and that metric.

    Raises:
        ConfigurationError: No run of a GLUE task, or runs whose scores cannot be compared.
    """
    best: dict[str, tuple[Path, float]] = {}
    judges: dict[str, str] = {}
    for folder in folders:
        for whole_run in read_results(folder):
            for result in [result_of_task(whole_run, task) for task in whole_run.get("tasks", ())] or [
                whole_run
            ]:
                task, score = result["task"], result["metrics"]["last"][result["primary"]]
                if task not in GLUE_TASKS:
                    continue
                if judge_of(result) != judges.setdefault(task, judge_of(result)):
                    raise ConfigurationError(
                        f"{folder}: runs of {task} are scored by different metrics or on different rows, so "
                        "that none is the best: give runs of one kind"
                    )
                if task not in best or score > best[task][1]:
                    best[task] = folder / result["folder"], score
    if not best:
        raise ConfigurationError(
            f"{', '.join(map(str, folders))}: no run of a GLUE task: give runs of {', '.join(GLUE_TASKS)}"
        )
    return best


def _lines(file: File, scores: np.ndarray) -> Iterator[str]:
    yield HEADER
    low, high = TASKS[file.task].label_range
    labels = file.labels()
    for index, row in enumerate(scores):
        answer = labels[int(row.argmax())] if labels else f"{min(max(float(row[0]), low), high):.3f}"
        yield f"{index}\t{answer}"


def _check_file(name: str, text: str) -> None:
    """Refuse a file that the leaderboard would reject or score wrongly."""
    file = FILES[name]
    header, *lines = text.splitlines() or [""]
    if header != HEADER:
        raise ConfigurationError(f"{name}: the first line is {shown(header)}, expected {HEADER!r}")
    if len(lines) != file.rows:
        raise ConfigurationError(
            f"{name}: {len(lines):,} predictions, the leaderboard expects {file.rows:,}: "
            "predict the official test file"
        )
    labels, (low, high) = file.labels(), TASKS[file.task].label_range
    for number, line in enumerate(lines):
        index, _, answer = line.partition("\t")
        if index != str(number):
            raise ConfigurationError(f"{name}, line {number + 2}: index {shown(index)}, expected {number}")
        if labels and answer not in labels:
            raise ConfigurationError(
                f"{name}, line {number + 2}: {shown(answer)} is no label: choose from {', '.join(labels)}"
            )
        if not labels and not _within(answer, low, high):
            raise ConfigurationError(
                f"{name}, line {number + 2}: {shown(answer)} is no score between {low:g} and {high:g}"
            )


def _within(text: str, low: float, high: float) -> bool:
    try:
        return low <= float(text) <= high
    except ValueError:
        return False


def check_submission(archive: Path) -> list[str]:
    """Check a zip as the leaderboard reads it: names, headers, row counts, indices, labels.

    Args:
        archive: The zip.

    Returns:
        Names of files that the leaderboard expects and the zip lacks; AX is optional.

    Raises:
        ConfigurationError: No zip, or its first fault: file, line, and what was expected.
    """
    try:
        with zipfile.ZipFile(archive) as opened:
            texts = {name: opened.read(name).decode("utf-8") for name in opened.namelist()}
    except (OSError, zipfile.BadZipFile, UnicodeDecodeError) as error:
        raise ConfigurationError(f"{archive}: {error}: give a zip of tsv files") from None
    if unknown := [name for name in texts if name not in FILES]:
        raise ConfigurationError(
            f"{archive}: {unknown[0]!r} is no file of the leaderboard: choose from {', '.join(FILES)}"
        )
    for name, text in texts.items():
        _check_file(name, text)
    return [name for name in FILES if name not in texts and name != "AX.tsv"]


def _zipped(texts: Mapping[str, str]) -> bytes:
    """Return the bytes of a zip, which depend only on the texts."""
    held = io.BytesIO()
    with zipfile.ZipFile(held, "w") as archive:
        for name, text in texts.items():
            archive.writestr(zipfile.ZipInfo(name), text, zipfile.ZIP_DEFLATED)
    return held.getvalue()


def submit(
    folders: Sequence[Path], output_dir: Path, data_dir: str | None = None, ax: Path | None = None
) -> Submission:
    """Predict the official test files and write the leaderboard's zip.

    Of several runs of a task, the one with the highest primary metric after its last step is used: a choice
    made on the rows that they were evaluated on, the dev set or a part that was held out. Runs that were
    evaluated on different rows are refused. Predictions are made in float32.

    Args:
        folders: Hold runs, at any depth; runs of other tasks are skipped.
        output_dir: Receives the tsv files and `submission.zip`, which is checked before it gets that name.
        data_dir: Folder in the official GLUE layout; by default each run's training data.
        ax: The diagnostic file (`AX.tsv`), which the MNLI run predicts.

    Returns:
        What was made.

    Raises:
        ConfigurationError: No run of a GLUE task, a run without a model, a test file that is missing or has a
            wrong number of rows, or `ax` without a run of MNLI.
    """
    runs = _best_runs(folders)
    if ax is not None and "mnli" not in runs:
        raise ConfigurationError(f"--ax {ax} is predicted by an MNLI run: give one, or leave --ax out")
    texts: dict[str, str] = {}
    for task, (folder, _) in runs.items():
        opened = open_run(folder, task)
        source = data_dir if data_dir is not None else opened.config.data_dir
        for name, file in FILES.items():
            if file.task == task and (file.split != "test_ax" or ax is not None):
                described = TASKS[task] if ax is None or file.split != "test_ax" else _diagnostic(ax)
                scores = _scores(opened, described, file.split, "." if file.split == "test_ax" else source)
                texts[name] = "\n".join(_lines(file, scores)) + "\n"
    for name, text in texts.items():
        _check_file(name, text)
    with writing(f"--output-dir {output_dir}"):
        output_dir.mkdir(parents=True, exist_ok=True)
    for name, text in texts.items():
        write_whole(output_dir / name, text)
    archive = output_dir / ARCHIVE
    with atomic(archive) as unchecked:
        unchecked.write_bytes(_zipped(texts))
        missing = check_submission(unchecked)
    return {"archive": archive, "runs": runs, "missing": missing}

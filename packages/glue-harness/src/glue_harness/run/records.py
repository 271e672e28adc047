"""The files of a run: written whole or not at all, and read back."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import yaml
from filelock import FileLock, Timeout

from finetune_common.aliases import JsonObject
from finetune_common.data.content import changed_rows
from finetune_common.errors import ConfigurationError
from glue_harness.config.difference import difference
from glue_harness.config.fields import RunConfig, identity_of
from glue_harness.config.own_rows import DATASET, by_content
from glue_harness.files import atomic, writing
from glue_harness.run.parts import result_of_task
from glue_harness.run.reading import read_file, read_settings, result_in

if TYPE_CHECKING:
    from glue_harness.run.mixture import Mixture
    from glue_harness.run.plan import Data

__all__ = [
    "ADAPTER",
    "MODEL",
    "TRACKER",
    "RunFolder",
    "RunInUse",
    "model_files",
    "predictions_of",
    "read_result",
    "read_results",
    "write_report",
    "write_whole",
]

TRACKER = "tracker.txt"
"""File with the tracker's name of the run."""

MODEL, ADAPTER = "model", "adapter"
"""Folders in a run's folder: the trained model for transformers, and an adaptation's trained part."""


def write_whole(path: Path, text: str) -> None:
    """Write a text file so that readers see the old or the new content, never a part."""
    with atomic(path) as beside:
        beside.write_text(text, encoding="utf-8", newline="\n")


def predictions_of(task: str) -> str:
    """Return the name of the file of predictions, of one of several tasks if named."""
    return f"predictions-{task}.tsv" if task else "predictions.tsv"


def model_files(model: str, task: str = "") -> str:
    """Return the place of a model's files: a run's folder `model/`, else the given place.

    A run of several tasks has a folder `model/<task>` for each.

    Args:
        model: Hub name, model folder, or the folder of a finished run.
        task: The task whose head is wanted, in a run of several; its first task if it did not learn this one.

    Raises:
        ConfigurationError: An unfinished run, or one that kept no model.
    """
    run = Path(model)
    if not (run / "config.yaml").is_file() or (run / "config.json").exists():
        return model
    if not (run / "result.json").exists():
        raise ConfigurationError(f"--model {model}: this run is not finished: continue it first")
    if not (run / MODEL).is_dir():
        raise ConfigurationError(
            f"--model {model}: this run kept no model (in a sweep, 'keep' decides which runs keep theirs): "
            "run it again with --overwrite, or give another model"
        )
    if (run / MODEL / "config.json").exists():
        return str(run / MODEL)
    learned = str(read_settings(run).get("task")).split(",")
    return str(run / MODEL / (task if task in learned else learned[0]))


def write_report(folder: Path, numbers: JsonObject, table: str) -> None:
    """Write and print a script's measurements, for programs (`result.json`) and people (`table.md`).

    Args:
        folder: Made if missing.
        numbers: Data for JSON; the table is made only from them.
        table: Markdown.
    """
    write_whole(folder / "result.json", json.dumps(numbers, indent=1) + "\n")
    write_whole(folder / "table.md", table)
    print(table)


class RunInUse(ConfigurationError):
    """Another process works on the run."""


class RunFolder:
    """The folder of one run: `config.yaml`, `metrics.jsonl`, `result.json`, `checkpoint/`, `model/`, …

    Entering it takes a lock, so that two runs never share a folder, and checks that its files belong to the
    same configuration. In a distributed run one process leads; the others only read.

    Args:
        config: The run.
        leads: Whether this process takes the lock.

    Raises:
        ConfigurationError: Not writable, in use, or holding a different run.
    """

    def __init__(self, config: RunConfig, leads: bool = True) -> None:
        self.path, self.leads = Path(config.output_dir), leads
        self.checkpoints = self.path / "checkpoint"
        self._config = config
        self._lock = FileLock(self.path / ".lock")

    def __enter__(self) -> RunFolder:
        if not self.leads:
            return self
        try:
            with writing(f"--output-dir {self.path}"):
                self.path.mkdir(parents=True, exist_ok=True)
                self._lock.acquire(timeout=0)
        except Timeout:
            raise RunInUse(
                f"--output-dir {self.path}: another process works on this run: wait for it, "
                "or choose another folder"
            ) from None
        try:
            self._claim()
        except BaseException:
            self._lock.release()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._lock.release()

    def _claim(self) -> None:
        file = self.path / "config.yaml"
        if self._config.overwrite:
            for folder in (self.checkpoints, self.path / MODEL, self.path / ADAPTER):
                shutil.rmtree(folder, ignore_errors=True)
            written = ("result.json", "config.yaml", "data.json", "metrics.jsonl", TRACKER)
            names = (*written, predictions_of(""), *(f.name for f in self.path.glob(predictions_of("*"))))
            for name in names:
                (self.path / name).unlink(missing_ok=True)
        if file.exists() and ((self.path / "result.json").exists() or self.checkpoints.exists()):
            old = read_settings(self.path)
            new = self._config.as_dict()
            moved = {key: new[key] for key in DATASET if by_content(new)}  # only the rows' content counts
            if differs := difference(identity_of(new), identity_of(old | moved)):
                raise ConfigurationError(
                    f"--output-dir {self.path} holds a different run: {differs}: "
                    "choose another folder or --overwrite"
                )
        else:  # nothing here to continue from
            write_whole(file, yaml.safe_dump(self._config.as_dict(), sort_keys=False))

    def describe_rows(self, data: Data | Mixture, quiet: bool = False) -> None:
        """Describe the run's rows in `data.json`, and print how they were read unless `quiet`.

        Raises:
            ConfigurationError: The run began with other rows; names the change.
        """
        if not self.leads:
            return
        file = self.path / "data.json"
        if self.checkpoints.exists() and file.exists():
            self._check_rows(data.content)
        else:
            write_whole(file, json.dumps(data.record, indent=1) + "\n")
            for schema in [] if quiet else data.schemas:
                print(schema, flush=True)

    def _check_rows(self, content: JsonObject) -> None:
        before = read_file(self.path / "data.json", json.loads)
        if differs := changed_rows(before["content"], content):
            sources = before["schema"]["sources"] if before["schema"] and before.get("own", True) else {}
            split, _, rest = differs.partition(" ")
            named = f"{sources[split]['file']} {rest}" if split in sources else differs
            raise ConfigurationError(
                f"--output-dir {self.path}: the rows have changed since the run began: {named}; "
                "choose another folder or --overwrite"
            )

    def result(self, content_of: Callable[[RunConfig], JsonObject | None]) -> JsonObject | None:
        """Return the result of a finished run, else None.

        Args:
            content_of: Returns the identity of the rows as they are now; None if nobody can edit them.

        Raises:
            ConfigurationError: The rows have changed since.
        """
        file = self.path / "result.json"
        if not file.exists():
            return None
        if (self.path / "data.json").exists() and (now := content_of(self._config)) is not None:
            self._check_rows(now)
        return read_file(file, result_in)

    def write_result(self, result: JsonObject) -> None:
        """Write `result.json`, which marks the run as finished."""
        write_whole(self.path / "result.json", json.dumps(result, indent=2) + "\n")

    def write_predictions(
        self, rows: Iterable[tuple[str, ...]], texts: Sequence[str], task: str = ""
    ) -> None:
        """Write `predictions.tsv`: index, label, prediction, scores, and a column for each text.

        Args:
            rows: From `Evaluation.rows`.
            texts: Names of the columns of text.
            task: Which of several tasks; each has its own file.
        """
        header = ("index", "label", "prediction", "scores", *texts)
        # a tab or a line break in a text, a class or a column's name would begin another cell or line
        lines = ("\t".join(re.sub(r"[^\S ]", " ", cell) for cell in row) + "\n" for row in (header, *rows))
        write_whole(self.path / predictions_of(task), "".join(lines))

    def keep_metrics(self, last_step: int) -> None:
        """Drop the lines of `metrics.jsonl` after a step: the run continues from there."""
        file = self.path / "metrics.jsonl"

        def earlier_lines(text: str) -> str:
            complete = [line for line in text.splitlines(keepends=True) if line.endswith("\n")]
            return "".join(line for line in complete if json.loads(line)["step"] <= last_step)

        write_whole(file, read_file(file, earlier_lines) if file.exists() else "")

    def log(self, entry: JsonObject) -> None:
        """Append a line to `metrics.jsonl`."""
        file = self.path / "metrics.jsonl"
        with writing(file), file.open("ab", buffering=0) as end:
            size, line = end.tell(), json.dumps(entry).encode() + b"\n"
            try:
                while line:  # on a full disk a write may be partial
                    line = line[end.write(line) :]
            except OSError:
                end.truncate(size)
                raise


def read_result(folder: Path, task: str = "") -> JsonObject:
    """Return the content of a finished run's `result.json`, of one of several tasks if named."""
    result = read_file(folder / "result.json", result_in)
    return result_of_task(result, task) if task else result


def read_results(folder: Path) -> list[JsonObject]:
    """Return every `result.json` below a folder, each with its `folder`, ordered by path.

    Raises:
        ConfigurationError: None there, or one that cannot be read.
    """
    files = sorted(folder.rglob("result.json"))
    if not files:
        raise ConfigurationError(f"{folder}: no result.json in or below it: give a folder of finished runs")
    return [read_file(file, result_in) | {"folder": str(file.parent.relative_to(folder))} for file in files]

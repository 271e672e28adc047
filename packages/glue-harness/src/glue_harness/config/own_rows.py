"""Rows from the user's files: read once per process, identified by their content."""

from __future__ import annotations

from functools import lru_cache
from hashlib import sha256
from json import dumps
from pathlib import Path
from typing import TYPE_CHECKING

from finetune_common.aliases import Settings
from finetune_common.data.choices import Choices
from finetune_common.errors import ConfigurationError

if TYPE_CHECKING:
    from finetune_common.data.own_files import OwnRows

__all__ = [
    "CHOICES",
    "DATASET",
    "FILES",
    "by_content",
    "check_sources",
    "choices_of",
    "digest_of",
    "own_rows",
]

FILES = ("train_file", "validation_file", "test_file")
"""Options that name files of rows."""

CHOICES = (
    *("text_columns", "label_column", "kind", "delimiter", "encoding", "label_spelling"),
    *("drop_unlabelled", "validation_share"),
)
"""Options that say how such rows are read."""

DATASET = ("dataset", "dataset_config")
"""Options that name rows of the hub."""


def choices_of(settings: Settings) -> Choices:
    """Return how a run's settings say to read the user's rows."""
    options = {name: settings[name] for name in (*CHOICES, "metric") if settings.get(name)}
    return Choices(**options)


def check_sources(settings: Settings, several: bool = False) -> None:
    """Refuse contradicting options about rows, before anything is read.

    Args:
        settings: A run's settings.
        several: Whether it has several tasks; then one may have the user's rows beside a data_dir.

    Raises:
        ConfigurationError: Two sources of rows, or options that need another option.
    """
    sources = ("train_file", "dataset") if several else ("data_dir", "train_file", "dataset")
    named = [name for name in sources if settings[name] is not None]
    if len(named) > 1:
        first, second = (f"--{name.replace('_', '-')}" for name in named[:2])
        raise ConfigurationError(f"{first} and {second} are two sources of rows: give only one of them")
    choices = choices_of(settings)
    if settings["dataset_config"] is not None and settings["dataset"] is None:
        raise ConfigurationError("--dataset-config without --dataset: give both")
    if settings["train_file"] is None:
        for name in FILES[1:]:
            if settings[name] is not None:
                raise ConfigurationError(f"--{name.replace('_', '-')} without --train-file: give both")
    elif (settings["validation_file"] is None) == (choices.validation_share is None):
        raise ConfigurationError(
            "--train-file without --validation-file: give both, or --validation-share 0.1 to evaluate on a "
            "tenth of the training rows"
            if choices.validation_share is None
            else "--validation-file and --validation-share are two sources of rows: give only one of them"
        )
    if settings["train_file"] is None and settings["dataset"] is None:
        for name in CHOICES:
            if settings[name]:
                option = f"--{name.replace('_', '-')}"
                raise ConfigurationError(
                    f"{option} only applies to your own rows: give --train-file or --dataset too"
                )


def by_content(settings: Settings) -> bool:
    """Say whether rows are identified by their content: those of files and of a dataset's folder.

    A dataset of the hub is identified by its name.
    """
    dataset = settings.get("dataset")
    return bool(settings.get("train_file")) or (dataset is not None and Path(dataset).is_dir())


def own_rows(settings: Settings) -> OwnRows:
    """Read the user's rows that a run's settings name; ambiguous files are refused.

    A process reads unchanged files only once.

    Raises:
        ConfigurationError: Something cannot be read, or the user must choose how to read it.
    """
    files = tuple(settings[name] for name in FILES)
    dataset = Path(settings["dataset"] or "")
    inside = sorted(map(str, dataset.rglob("*"))) if settings["dataset"] and dataset.is_dir() else ()
    states = tuple(_state(file) for file in (*files, *inside))
    return _read(
        settings["task"], files, states, settings["dataset"], settings["dataset_config"], choices_of(settings)
    )


def _state(file: str | None) -> tuple[int, int] | None:
    try:
        status = Path(file).stat() if file is not None else None
    except (OSError, ValueError):
        return None
    return (status.st_mtime_ns, status.st_size) if status is not None else None


@lru_cache(maxsize=2)
def _read(
    task: str,
    files: tuple[str | None, ...],
    states: tuple[tuple[int, int] | None, ...],
    dataset: str | None,
    config: str | None,
    choices: Choices,
) -> OwnRows:
    from finetune_common.data import read_dataset, read_own_files, read_own_tables

    if dataset is None:
        train, validation, test = files
        assert train is not None
        return read_own_files(task, train, validation, test, choices, strict=True)
    tables = read_dataset(dataset, config)
    if "validation" not in tables and choices.validation_share is None:
        raise ConfigurationError(
            f"--dataset {dataset} has no validation split, only {' and '.join((*tables, *tables.unused))}: "
            "call one validation, or give --validation-share 0.1 to evaluate on a tenth of train"
        )
    if "validation" in tables and choices.validation_share is not None:
        raise ConfigurationError(f"--dataset {dataset} has a validation split: leave --validation-share out")
    return read_own_tables(task, tables, choices, strict=True, unused=tables.unused)


@lru_cache(maxsize=8)
def _digest(rows: OwnRows) -> str:
    return sha256(dumps(rows.content(), sort_keys=True).encode()).hexdigest()[:12]


def digest_of(settings: Settings) -> str:
    """Return twelve hexadecimal digits of a hash of the rows that a run's settings name."""
    return _digest(own_rows(settings))

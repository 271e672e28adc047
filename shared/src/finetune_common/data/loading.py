"""Load a task from the hub, from a folder in the official GLUE layout, or from the embedded demo."""

import warnings
from collections.abc import Sequence
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING

from finetune_common.aliases import Rows
from finetune_common.data.official import read_official
from finetune_common.demo import demo_rows
from finetune_common.errors import ConfigurationError, check_choice
from finetune_common.tasks import Task, get_task

if TYPE_CHECKING:
    from datasets import Dataset, DatasetDict, Feature, Features

__all__ = ["as_dataset", "load_task"]

HUB = "nyu-mll/glue"


def load_task(
    task: str | Task,
    data_dir: str | PathLike[str] | None = None,
    *,
    splits: Sequence[str] | None = None,
) -> "DatasetDict":
    """Return a task's rows with the hub's column names, whatever the source.

    The columns are the task's text columns, `label` (a class index, or a float32 for regression; -1 where
    the test labels are not public) and `idx`. A demo task is generated, a GLUE task is read from
    `data_dir`, or from the hub when that is `None` (`HF_DATASETS_OFFLINE=1` restricts it to what an earlier
    call has fetched). One warning names row counts that differ from the official ones.

    Args:
        task: A task or its name.
        data_dir: A folder in the official GLUE layout (`RTE/train.tsv`, `SST-2/dev.tsv`, …).
        splits: Which to load; by default `train` and those the task is evaluated on.

    Raises:
        ConfigurationError: Unknown task or split, nothing to read, or a broken file.

    Examples:
        >>> data = load_task("demo-entailment", splits=["validation"])
        >>> data["validation"].column_names
        ['sentence1', 'sentence2', 'label', 'idx']
        >>> len(data["validation"])
        500
    """
    from datasets import DatasetDict

    task = get_task(task)
    chosen = list(splits) if splits is not None else ["train", *task.evaluation]
    for split in chosen:
        check_choice(f"{task.name} split", split, task.rows)
    if task.demo:
        data = {split: as_dataset(task, demo_rows(task, split)) for split in chosen}
    elif data_dir is not None:
        data = _from_folder(task, Path(data_dir), chosen)
    else:
        data = _from_hub(task, chosen)
    _check_rows(task, data)
    return DatasetDict(data)


def _features(task: Task) -> "Features":
    from datasets import ClassLabel, Features, List, Value

    columns: dict[str, Feature] = {name: Value("string") for name in task.columns}
    label = Value("float32") if task.regression else ClassLabel(names=list(task.labels))
    columns["label"] = List(label) if task.several else label
    columns["idx"] = Value("int32")
    return Features(columns)


def as_dataset(task: Task, columns: Rows) -> "Dataset":
    """Return columns as rows with the task's types."""
    import pyarrow as pa
    from datasets import Dataset

    return Dataset(pa.Table.from_pydict(columns, schema=_features(task).arrow_schema))


def _from_folder(task: Task, root: Path, splits: list[str]) -> "dict[str, Dataset]":
    folder = root / task.folder
    if not folder.is_dir():
        above = f"; give the folder above {root}" if (root / "train.tsv").is_file() else ""
        raise ConfigurationError(f"{folder}: no such folder; --data-dir holds {task.folder}/train.tsv{above}")
    return {
        split: as_dataset(
            task, read_official(task, folder / task.files[split], labelled=not split.startswith("test"))
        )
        for split in splits
    }


def _from_hub(task: Task, splits: list[str]) -> "dict[str, Dataset]":
    from datasets import load_dataset

    try:
        data = load_dataset(HUB, task.name)
    except Exception as error:  # offline cache or network: the remedy is the same
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ConfigurationError(
            f"task {task.name!r} could not be fetched from {HUB} ({reason}): give --data-dir with the "
            f"official files, or run 'glue-harness prepare' where there is a network"
        ) from error
    columns = list(_features(task))
    return {split: data[split].select_columns(columns) for split in splits}


def _check_rows(task: Task, data: "dict[str, Dataset]") -> None:
    differences = [
        f"{split} has {len(rows)} rows, the official one {task.rows[split]}"
        for split, rows in data.items()
        if len(rows) != task.rows[split]
    ]
    if differences:
        warnings.warn(f"{task.name}: {'; '.join(differences)}", stacklevel=3)

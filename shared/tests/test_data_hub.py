"""Datasets by name: a folder with configurations, what an earlier call left in the cache, no network."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from datasets import ClassLabel, Dataset, DatasetInfo, Features, SplitDict, SplitInfo, Value
from datasets.arrow_writer import ArrowWriter

from finetune_common.data import Choices, OwnRows, read_dataset, read_own_tables
from finetune_common.errors import ConfigurationError

FEATURES = Features({"text": Value("string"), "label": ClassLabel(names=["neg", "pos"])})
CARD = """---
configs:
- config_name: plain
  data_files:
  - split: train
    path: plain/train-*
  - split: test
    path: plain/test-*
- config_name: other
  data_files:
  - split: train
    path: other/train-*
---
# Reviews
"""


def dataset(rows: int, first: int = 0) -> Dataset:
    return Dataset.from_dict(
        {"text": [f"review {first + i}" for i in range(rows)], "label": [i % 2 for i in range(rows)]},
        features=FEATURES,
    )


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A dataset as hubs have them: a card that names two configurations, parquet files in parts."""
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    place = tmp_path / "reviews"
    for name, rows, first in (
        ("plain/train-00000-of-00002", 6, 0),
        ("plain/train-00001-of-00002", 4, 6),
        ("plain/test-00000-of-00001", 4, 100),
        ("other/train-00000-of-00001", 2, 200),
    ):
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        dataset(rows, first).to_parquet(place / f"{name}.parquet")
    (place / "README.md").write_text(CARD)
    return place


def test_a_folder_with_a_card_is_read_by_its_configuration(folder: Path) -> None:
    tables = read_dataset(str(folder), "plain")
    assert list(tables) == ["train", "test"]
    assert tables["train"].columns["text"] == [f"review {i}" for i in range(10)]
    found = read_own_tables("reviews", {**tables, "validation": tables["test"]}, strict=True)
    assert found.task.labels == ("neg", "pos")
    assert found.splits["test"]["label"] == [0, 1, 0, 1]
    assert found.schema.kind == "classes"


@pytest.mark.parametrize(
    ("config", "said"),
    [(None, "plain.*other|other.*plain"), ("plane", "--dataset-config")],
)
def test_which_configuration_has_to_be_said(folder: Path, config: str | None, said: str) -> None:
    with pytest.raises(ConfigurationError, match=said) as refused:
        read_dataset(str(folder), config)
    assert "\n" not in str(refused.value)
    assert len(str(refused.value)) <= 400


def folder_of(place: Path, **splits: dict[str, list[object]]) -> Path:
    """Write a dataset whose card names these splits."""
    card = "---\nconfigs:\n- config_name: default\n  data_files:\n"
    place.mkdir()
    for split, columns in splits.items():
        Dataset.from_dict(columns).to_parquet(place / f"{split}-rows.parquet")
        card += f"  - split: {split}\n    path: {split}-rows.parquet\n"
    (place / "README.md").write_text(card + "---\n")
    return place


def labelled(*labels: object) -> dict[str, list[object]]:
    return {"text": [f"word {i}" for i in range(len(labels))], "label": [*labels]}


def test_splits_of_other_names_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    rows = labelled(*"abab")
    place = folder_of(tmp_path / "reviews", train=rows, validation=rows, dev=rows, test_hard=rows)
    tables = read_dataset(str(place))
    assert list(tables) == ["train", "validation"]
    assert list(tables.unused) == ["dev", "test_hard"]
    schema = read_own_tables("mine", tables, strict=True, unused=tables.unused).schema
    assert "not used    dev (only train, validation and test are read), test_hard (" in str(schema)
    assert type(schema).from_dict(schema.as_dict()) == schema


@pytest.mark.parametrize("task", ["mine", "cola"])
@pytest.mark.parametrize("labels", [[-1, -1], [None, None], ["", ""], None], ids=str)
def test_a_test_split_without_any_label_is_not_scored(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, task: str, labels: list[object] | None
) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    one = labelled("0", "1") if labels and isinstance(labels[0], str) else labelled(0, 1)
    card = folder_of(tmp_path / "cola", train=one, validation=one, test=labelled(*labels or (0, 1)))
    own = Choices(text_columns=("text",))

    def read(**options: Any) -> OwnRows:
        tables = read_dataset(str(card))
        if labels is None:
            del tables["test"].columns["label"]
        return read_own_tables(task, tables, own, strict=True, **options)

    found = read(unused={"extra": "it is not read"})
    assert list(found.splits) == ["train", "validation"]
    why = "no row has a label" if labels else "no column 'label'"
    assert found.schema.unused == {"extra": "it is not read", "test": why}
    with pytest.raises(ConfigurationError, match=r"labels missing in 2 rows|no column 'label'"):
        read()  # as from files, where such rows were asked for


def test_a_test_split_with_some_labels_is_scored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    place = folder_of(
        tmp_path / "reviews", train=labelled(0, 1), validation=labelled(0, 1), test=labelled(1, -1)
    )
    tables = read_dataset(str(place))
    with pytest.raises(ConfigurationError, match="labels missing in 1 row: row 2"):
        read_own_tables("mine", tables, unused=tables.unused)
    found = read_own_tables("mine", tables, Choices(drop_unlabelled=True), unused=tables.unused)
    assert found.splits["test"]["label"] == [1]


CODE = """
import sys
from finetune_common.data import read_dataset
from finetune_common.errors import ConfigurationError
try:
    tables = read_dataset(*sys.argv[1:])
    print({split: (len(table), table.columns["text"][0], table.classes) for split, table in tables.items()})
except ConfigurationError as error:
    print(error)
"""


def offline(home: Path, *names: str) -> str:
    """Read a dataset in a process of its own, whose caches are below a folder and which has no network."""
    clean = {key: value for key, value in os.environ.items() if not key.startswith("HF_")}
    done = subprocess.run(
        [sys.executable, "-c", CODE, *names],
        capture_output=True,
        text=True,
        env={**clean, "HF_HOME": str(home), "HF_DATASETS_OFFLINE": "1", "HF_HUB_OFFLINE": "1"},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_what_prepare_fetched_is_found_without_a_network(tmp_path: Path) -> None:
    """The cache that fetching leaves: an arrow file a split, and the description of the dataset."""
    place = tmp_path / "datasets/someone___reviews/plain/0.0.0" / ("0" * 40)
    place.mkdir(parents=True)
    splits = SplitDict(dataset_name="reviews")
    for name, rows in (("train", dataset(6)), ("validation", dataset(4, 50))):
        writer = ArrowWriter(path=str(place / f"reviews-{name}.arrow"), features=FEATURES)
        writer.write_table(rows.data.table)
        examples, size = writer.finalize()
        splits.add(SplitInfo(name, num_bytes=size, num_examples=examples, dataset_name="reviews"))
    told = {"builder_name": "parquet", "dataset_name": "reviews", "config_name": "plain", "version": "0.0.0"}
    DatasetInfo(features=FEATURES, splits=splits, **told).write_to_directory(str(place))
    classes = {"label": ("neg", "pos")}
    expected = {"train": (6, "review 0", classes), "validation": (4, "review 50", classes)}
    assert offline(tmp_path, "someone/reviews", "plain") == str(expected)
    assert offline(tmp_path, "someone/reviews") == str(expected)  # the only one that is there


def test_what_was_not_fetched_is_one_line_with_the_remedy(tmp_path: Path) -> None:
    said = offline(tmp_path, "imdb")
    assert len(said.splitlines()) == 1
    assert len(said) <= 400
    for part in ("--dataset imdb: cannot be loaded", "glue-harness prepare", "network"):
        assert part in said

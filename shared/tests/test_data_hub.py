"""Datasets by name: a folder with configurations, what an earlier call left in the cache, no network."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from datasets import ClassLabel, Dataset, DatasetInfo, Features, SplitDict, SplitInfo, Value
from datasets.arrow_writer import ArrowWriter

from finetune_common.data import read_dataset, read_own_tables
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

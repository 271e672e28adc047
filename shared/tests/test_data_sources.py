"""The hub without a network, and the real official files."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from datasets import DatasetInfo, SplitDict, SplitInfo
from datasets.arrow_writer import ArrowWriter

from finetune_common.data import load_task

GLUE = os.environ.get("GLUE_DATA_DIR")


def run(code, tmp_path, **environment):
    clean = {key: value for key, value in os.environ.items() if not key.startswith("HF_")}
    return subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env={**clean, "HF_HOME": str(tmp_path), "HF_DATASETS_OFFLINE": "1", **environment},
    )


def test_the_hub_out_of_reach_gives_one_line_with_the_remedy(tmp_path):
    code = """
from finetune_common.data import load_task
from finetune_common.errors import ConfigurationError
try:
    load_task("rte")
except ConfigurationError as error:
    print(error)
"""
    done = run(code, tmp_path)
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == 1
    for part in ("'rte'", "nyu-mll/glue", "--data-dir", "glue-harness prepare"):
        assert part in done.stdout


def test_what_was_fetched_before_is_found_offline(tmp_path):
    """The cache that an earlier call leaves: one arrow file a split and the description of the data set."""
    folder = tmp_path / "datasets" / "nyu-mll___glue" / "rte" / "0.0.0" / ("0" * 40)
    folder.mkdir(parents=True)
    demo = load_task("demo-entailment")
    splits = SplitDict(dataset_name="glue")
    for name, rows in demo.items():
        writer = ArrowWriter(path=str(folder / f"glue-{name}.arrow"), features=rows.features)
        writer.write_table(rows.data.table)
        examples, size = writer.finalize()
        splits.add(SplitInfo(str(name), num_bytes=size, num_examples=examples, dataset_name="glue"))
    DatasetInfo(
        features=demo["train"].features,
        builder_name="parquet",
        dataset_name="glue",
        config_name="rte",
        version="0.0.0",
        splits=splits,
    ).write_to_directory(str(folder))
    code = """
from finetune_common.data import load_task
data = load_task("rte")
print({name: (len(rows), rows.column_names, rows[0]["sentence1"]) for name, rows in data.items()})
"""
    done = run(code, tmp_path)
    assert done.returncode == 0, done.stderr
    columns = ["sentence1", "sentence2", "label", "idx"]
    expected = {name: (len(rows), columns, rows[0]["sentence1"]) for name, rows in demo.items()}
    assert done.stdout.strip() == str(expected)
    assert "train has 2000 rows, the official one 2490" in done.stderr


@pytest.mark.real
@pytest.mark.skipif(GLUE is None, reason="GLUE_DATA_DIR names no folder of official GLUE files")
@pytest.mark.parametrize(
    ("name", "first"),
    [
        ("cola", {"sentence": "The sailors rode the breeze clear of the rocks.", "label": 1}),
        ("wnli", {"sentence1": "The drain is clogged with hair. It has to be cleaned.", "label": 0}),
        ("stsb", {"sentence1": "A man with a hard hat is dancing.", "label": 5.0}),
        ("sst2", {"sentence": "it 's a charming and often affecting journey . ", "label": 1}),
        ("rte", {"sentence2": "Christopher Reeve had an accident.", "label": 1}),
        ("mrpc", {"label": 1}),
    ],
)
def test_real_files_have_the_official_counts_and_first_rows(name, first):
    data = load_task(name, Path(GLUE or ""))  # a warning about counts would be an error
    row = data["validation"][0]
    assert {key: row[key] for key in first} == first
    assert data["train"]["idx"][-1] == len(data["train"]) - 1


@pytest.mark.real
@pytest.mark.skipif(GLUE is None, reason="GLUE_DATA_DIR names no folder of official GLUE files")
def test_real_class_counts_are_those_of_the_release():
    labels = load_task("cola", GLUE)["train"]["label"][:]
    assert (labels.count(1), labels.count(0)) == (6023, 2528)
    labels = load_task("sst2", GLUE)["train"]["label"][:]
    assert (labels.count(1), labels.count(0)) == (37569, 29780)
    labels = load_task("mrpc", GLUE)["validation"]["label"][:]
    assert (labels.count(1), labels.count(0)) == (279, 129)

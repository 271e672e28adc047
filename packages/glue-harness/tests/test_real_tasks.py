"""A pretrained encoder on the official files: MiniLM on GLUE, a few steps each."""

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytestmark = [pytest.mark.real, pytest.mark.slow]


@pytest.fixture
def learn(
    train: Callable[..., dict[str, Any]], glue_dir: Path, minilm_dir: Path
) -> Callable[..., dict[str, Any]]:
    """Run MiniLM on a task of the official files."""
    small = {"max_train_samples": None, "batch_size": 16, "max_length": 64, "log_every": 1}
    common = {"data_dir": str(glue_dir), "model": str(minilm_dir), "optimizer": {"name": "adamw", "lr": 5e-5}}
    return lambda task, **settings: train(task, task=task, **(small | common | settings))


def test_mrpc_end_to_end_over_its_dev_set(learn: Callable[..., dict[str, Any]], tmp_path: Path) -> None:
    """Ten steps on 3,668 pairs with quotes that are text; 408 are scored."""
    result = learn("mrpc", max_steps=10)
    assert result["steps"] == 10
    assert set(result["metrics"]["last"]) == {"accuracy", "f1"}
    with (tmp_path / "mrpc/predictions.tsv").open(newline="") as file:
        rows = list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))
    assert len(rows) == 408
    equivalent = sum(row["label"] == "equivalent" for row in rows)
    assert equivalent == 279
    right = sum(row["label"] == row["prediction"] for row in rows)
    assert result["metrics"]["last"]["accuracy"] == pytest.approx(right / 408)


def test_stsb_loss_falls_to_the_spread_of_the_scores(
    learn: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    """From about 2.7 squared, a new head's error, towards 2.2, the variance: steps of a warm start."""
    result = learn("stsb", max_steps=20, max_length=48, optimizer={"name": "adamw", "lr": 3e-4})
    losses = [json.loads(line)["loss"] for line in (tmp_path / "stsb/metrics.jsonl").read_text().splitlines()]
    assert sum(losses[-5:]) < 0.7 * sum(losses[:5])
    assert set(result["metrics"]["last"]) == {"pearson", "spearmanr"}


@pytest.mark.parametrize(("task", "rows"), [("cola", 1043), ("rte", 277), ("sst2", 872), ("wnli", 71)])
def test_official_files_of_every_task_run(
    learn: Callable[..., dict[str, Any]], tmp_path: Path, task: str, rows: int
) -> None:
    result = learn(task, max_steps=2, max_train_samples=32, batch_size=32)
    assert result["steps"] == 2
    assert len((tmp_path / task / "predictions.tsv").read_text().splitlines()) == rows + 1

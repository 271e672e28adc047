"""Rows of known tasks: described as one's own are, and noticed where files have been edited."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from finetune_common.data import Schema
from finetune_common.errors import ConfigurationError
from glue_harness import parse_mapping, run
from glue_harness.run.loop import Training

pytestmark = pytest.mark.filterwarnings("ignore:rte. train has")


@pytest.fixture
def glue(tmp_path: Path) -> Path:
    """A folder in the official layout with a small RTE."""
    folder = tmp_path / "glue/RTE"
    folder.mkdir(parents=True)
    for name, rows in (("train", 24), ("dev", 8)):
        lines = [
            f"{i}\tThe {i}th dog runs.\tA dog runs.\t{'not_' * (i % 3 == 0)}entailment" for i in range(rows)
        ]
        (folder / f"{name}.tsv").write_text("\n".join(["index\tsentence1\tsentence2\tlabel", *lines]) + "\n")
    return folder.parent


def settings(glue: Path, out: Path, **more: Any) -> dict[str, Any]:
    plain = {"task": "rte", "model": "demo", "data_dir": str(glue), "output_dir": str(out), "batch_size": 8}
    return plain | {"epochs": 2} | more


def edit(file: Path, old: str, new: str) -> None:
    text = file.read_text()
    assert old in text
    file.write_text(text.replace(old, new))


def test_what_the_rows_are_is_printed_and_kept(
    glue: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    result = run(parse_mapping(settings(glue, tmp_path / "run")))
    said = capsys.readouterr().out
    assert "rte: classes, rte is known" in said
    assert "24 rows of train.tsv" in said
    assert "not_entailment  8 / 3" in said
    assert "always entailment: accuracy 0.6250" in said
    kept = Schema.from_dict(result["data"]["schema"])
    assert str(kept) in said
    assert kept.sources["train"].labels == {"entailment": 16, "not_entailment": 8}
    assert str(kept) in (tmp_path / "run/model/README.md").read_text()
    assert json.loads((tmp_path / "run/data.json").read_text())["schema"] == result["data"]["schema"]


def test_a_demo_task_is_described_too(train: Callable[..., Any], capsys: pytest.CaptureFixture[str]) -> None:
    result = train(task="demo-similarity", max_steps=1)
    assert "always the mean" in capsys.readouterr().out
    schema = result["data"]["schema"]
    assert schema["sources"]["train"]["rows"] == 2000
    assert schema["text_columns"] == ["sentence1", "sentence2"]


@pytest.mark.parametrize("tasks", ["rte", "rte,demo-entailment"])
def test_a_finished_run_whose_rows_were_edited_is_refused(glue: Path, tmp_path: Path, tasks: str) -> None:
    some = settings(glue, tmp_path / "run", task=tasks, max_steps=1, max_train_samples=24, max_eval_samples=8)
    result = run(parse_mapping(some))
    assert run(parse_mapping(some)) == result
    moved = tmp_path / "elsewhere"
    shutil.move(glue, moved)
    assert run(parse_mapping(some | {"data_dir": str(moved)})) == result
    edit(moved / "RTE/dev.tsv", "The 5th dog", "The 5th cat")
    with pytest.raises(ConfigurationError, match="validation has 8 rows as before, but others"):
        run(parse_mapping(some | {"data_dir": str(moved)}))
    edit(moved / "RTE/dev.tsv", "The 5th cat", "The 5th dog")
    assert run(parse_mapping(some | {"data_dir": str(moved)})) == result
    with (moved / "RTE/train.tsv").open("a") as file:
        file.write("24\tOne more.\tMore.\tentailment\n")
    with pytest.raises(ConfigurationError, match=r"train.*had 24 rows, now 25"):
        run(parse_mapping(some | {"data_dir": str(moved)}))


def test_an_interrupted_run_whose_rows_were_edited_is_refused(glue: Path, tmp_path: Path) -> None:
    class Stop(Exception):
        """Ends a run in the middle."""

    def stop(training: Training) -> None:
        raise Stop

    config = parse_mapping(settings(glue, tmp_path / "run"))
    with pytest.raises(Stop):
        run(config, on_evaluation=stop)
    edit(
        glue / "RTE/train.tsv",
        "The 3th dog runs.\tA dog runs.\tnot_entailment",
        "The 3th dog runs.\tA dog runs.\tentailment",
    )
    with pytest.raises(ConfigurationError, match=r"the rows have changed since the run began: train.*others"):
        run(config)
    edit(
        glue / "RTE/train.tsv",
        "The 3th dog runs.\tA dog runs.\tentailment",
        "The 3th dog runs.\tA dog runs.\tnot_entailment",
    )
    assert run(config)["steps"] == 6

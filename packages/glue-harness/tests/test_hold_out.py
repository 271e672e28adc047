"""Training rows that are held out to judge a run, and training labels that are false on purpose."""

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from finetune_common.errors import ConfigurationError
from finetune_common.tasks import get_task
from glue_harness import open_run, parse_mapping
from glue_harness.cost.sweeps import operations
from glue_harness.report.aggregate import summarise
from glue_harness.report.contents import gather
from glue_harness.report.tables import markdown
from glue_harness.run.holding import _judged_by
from glue_harness.run.models import load_tokenizer
from glue_harness.run.plan import Data
from glue_harness.run.records import read_results

Train = Callable[..., dict[str, Any]]
PARTS = "choose=50,score=120"
PLAIN = {"task": "demo-entailment", "max_train_samples": None, "max_eval_samples": None, "max_steps": 2}


def data_of(tmp_path: Path, **more: Any) -> Data:
    config = parse_mapping(
        {"task": "demo-acceptability", "model": "demo", "output_dir": str(tmp_path), **more}
    )
    return Data.load(config, load_tokenizer("demo"))


def test_a_run_is_judged_on_a_part_and_told_on_the_official_set_beside(train: Train, tmp_path: Path) -> None:
    """Rows of training and weights are the same whatever is evaluated, so that the numbers must be too."""
    official = train("official", **PLAIN, hold_out=PARTS)
    judged = train("judged", **PLAIN, hold_out=PARTS, evaluate_on="score,validation")
    assert official["rows"] == {"train": 1830, "validation": 500}
    assert judged["rows"] == {"train": 1830, "validation": 500, "score": 120}
    assert judged["beside"] == {"validation": official["metrics"]["last"]}
    assert "beside" not in official
    with (tmp_path / "judged/predictions.tsv").open(newline="") as file:
        rows = list(csv.DictReader(file, delimiter="\t"))
    right = sum(row["label"] == row["prediction"] for row in rows)
    assert len(rows) == 120
    assert judged["metrics"]["last"]["accuracy"] == pytest.approx(right / 120)
    said = open_run(tmp_path / "judged").predict([(row["sentence1"], row["sentence2"]) for row in rows])
    assert [one["label"] for one in said] == [row["prediction"] for row in rows]


def test_parts_share_no_row_with_training_whatever_the_seed(tmp_path: Path) -> None:
    found = [data_of(tmp_path, hold_out=PARTS, evaluate_on="score,choose", seed=seed) for seed in (1, 2)]
    rows = [{split: set(data.datasets[split]["idx"]) for split in data.datasets} for data in found]
    assert rows[0] == rows[1]
    one = rows[0]
    assert set(one) == {"train", "score", "choose"}
    assert len(one["score"] | one["choose"] | one["train"]) == 2000
    assert sum(map(len, one.values())) == 2000


def test_parts_without_a_judge_are_left_out_alone(tmp_path: Path) -> None:
    data = data_of(tmp_path, hold_out={"choose": 5, "score": 7}, evaluate_on=["choose"], max_train_samples=40)
    assert {split: len(rows) for split, rows in data.datasets.items()} == {"train": 40, "choose": 5}


def test_a_task_of_two_official_sets_has_one_score_on_a_part() -> None:
    judged = _judged_by(get_task("mnli"), "score")
    assert (judged.evaluation, judged.metrics, judged.primary) == (("score",), ("accuracy",), "accuracy")
    assert _judged_by(get_task("mrpc"), "score").metrics == get_task("mrpc").metrics


def test_of_several_tasks_each_holds_out_its_own(train: Train) -> None:
    some = PLAIN | {"task": "demo-acceptability,demo-entailment"}
    result = train("both", **some, hold_out="score=100", evaluate_on="score,validation")
    assert result["tasks"]["demo-entailment"]["rows"]["score"] == 100
    assert set(result["beside"]) == {"demo-acceptability.validation", "demo-entailment.validation"}


def test_reports_and_forecasts_know_of_parts(train: Train, tmp_path: Path) -> None:
    for seed in (1, 2):
        train(f"runs/{seed}", **PLAIN, hold_out=PARTS, evaluate_on="score", seed=seed)
    (row,) = gather(read_results(tmp_path / "runs")).rows
    assert row.beside == {}
    assert (row.seeds, row.options["hold_out.score"]) == ((1, 2), 120)
    base = {"task": "sst2", "model": "demo", "output_dir": "x", "max_train_samples": 1, "max_length": 64}
    config = parse_mapping(base | {"hold_out": "score=10000", "evaluate_on": "score,validation"})
    evaluated = operations(config, 1) - 6 * 0.5 * 64 * 3
    assert evaluated == pytest.approx(2 * 0.5 * 64 * (10_000 + 872) * 3)


def test_a_report_tells_the_official_set_with_an_interval_of_its_own(
    made_up: Callable[..., Path], tmp_path: Path
) -> None:
    """Three seeds: mean 0.8, sd 0.1; Student's interval at 95 % is 0.8 ± 4.303 x 0.1/√3."""
    for seed in (1, 2, 3):
        folder = made_up("sst2", "adamw", seed, [0.85])
    for file, dev in zip(sorted(folder.rglob("result.json")), (0.7, 0.8, 0.9), strict=True):
        result = json.loads(file.read_text())
        file.write_text(json.dumps(result | {"beside": {"validation": {"accuracy": dev}}}))
    (row,) = rows = summarise(read_results(folder))
    mean, spread, interval = row.beside["validation accuracy"]
    assert (mean, spread) == pytest.approx((0.8, 0.1))
    assert interval == pytest.approx((0.8 - 0.2484, 0.8 + 0.2484), abs=1e-4)
    assert "validation accuracy 0.8000 ± 0.1000 (0.5516 to 1.0484)" in markdown(rows, ("setting", "last"))


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"evaluate_on": "score"}, "nothing is held out"),
        ({"hold_out": "choose"}, "is not NAME=ROWS, or its name"),
        ({"hold_out": "a=1,a=2"}, "is not NAME=ROWS, or its name"),
        ({"hold_out": "train=5"}, "cannot name a part"),
        ({"hold_out": {"choose": 0}}, "hold_out.choose=0"),
        ({"hold_out": "choose=5", "evaluate_on": "score"}, "'score' is not held out"),
        ({"hold_out": "choose=5", "evaluate_on": "choose,choose"}, "is named twice"),
    ],
)
def test_what_cannot_be_held_out_is_refused(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigurationError, match=said):
        parse_mapping({"task": "sst2", "model": "demo", "output_dir": "x", **settings})


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"hold_out": "choose=2000"}, "leave none of 2,000 rows"),
        ({"hold_out": "choose=5", "evaluate_on": "choose,validation_matched"}, "has no 'validation_matched'"),
    ],
)
def test_what_a_task_does_not_have_is_refused(settings: dict[str, Any], said: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=said):
        data_of(tmp_path, **settings)


def test_a_share_of_the_training_labels_is_false_and_nothing_else(tmp_path: Path) -> None:
    plain = data_of(tmp_path, max_train_samples=100)
    noisy = data_of(tmp_path, max_train_samples=100, label_noise=0.2)
    true, told = (data.datasets["train"]["labels"] for data in (plain, noisy))
    assert sum(one != other for one, other in zip(true, told, strict=True)) == 20
    assert set(told) == {0, 1}
    assert plain.datasets["train"]["input_ids"] == noisy.datasets["train"]["input_ids"]
    assert plain.datasets["validation"]["labels"] == noisy.datasets["validation"]["labels"]
    other = data_of(tmp_path, max_train_samples=100, label_noise=0.2, seed=2)
    assert other.datasets["train"]["labels"] != told


def test_a_share_of_less_than_a_row_is_no_noise(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"of 100 rows that is none: give 0\.01 or more"):
        data_of(tmp_path, max_train_samples=100, label_noise=0.004)


def test_every_process_and_a_smaller_evaluation_have_the_same_held_out_rows(tmp_path: Path) -> None:
    """A part is drawn from the texts alone; `max_eval_samples` takes of each set, the same for every seed."""
    some = {"hold_out": PARTS, "evaluate_on": "score,validation", "max_eval_samples": 30}
    found = [data_of(tmp_path, **some, seed=seed).datasets for seed in (1, 2)]
    whole = data_of(tmp_path, hold_out=PARTS, evaluate_on="score").datasets["score"]
    assert found[0]["score"]["idx"] == found[1]["score"]["idx"]
    assert set(found[0]["score"]["idx"]) < set(whole["idx"])
    assert {name: len(rows) for name, rows in found[0].items()} == {
        "train": 1830,
        "validation": 30,
        "score": 30,
    }


def test_scores_have_no_false_labels(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="no single class per row"):
        data_of(tmp_path, task="demo-similarity", label_noise=0.2)

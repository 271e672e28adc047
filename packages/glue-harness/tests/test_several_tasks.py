"""One body with a head a task: what is trained, what is left, and what goes on from it."""

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from finetune_common.errors import ConfigurationError
from glue_harness import open_run, parse_mapping, run
from glue_harness.export import export
from glue_harness.run.assembly import create
from glue_harness.run.heads import Heads
from glue_harness.run.loop import Training
from glue_harness.run.plan import Plan

ENTAILMENT, SIMILARITY, ACCEPTABILITY = TASKS = "demo-entailment", "demo-similarity", "demo-acceptability"
SETTINGS: dict[str, Any] = {
    "task": ",".join(TASKS),
    "model": "demo",
    "max_train_samples": 44,
    "max_eval_samples": 30,
    "batch_size": 8,
    "epochs": 1,
    "optimizer": {"name": "adamw", "lr": 1e-3},
}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of three tasks, of which one is a regression."""
    folder = tmp_path_factory.mktemp("several") / "run"
    run(parse_mapping(SETTINGS | {"output_dir": str(folder)}))
    return folder


def predictions(folder: Path, task: str) -> list[dict[str, str]]:
    with (folder / f"predictions-{task}.tsv").open(newline="") as file:
        return list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))


def scores(rows: list[dict[str, str]]) -> np.ndarray:
    return np.array([[float(value) for value in row["scores"].split()] for row in rows])


def texts(rows: list[dict[str, str]]) -> list[list[str]]:
    names = [name for name in rows[0] if name.startswith("sentence")]
    return [[row[name] for row in rows] for name in names]


def test_it_is_the_training_that_a_plain_loop_over_two_models_with_one_body_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two classifiers that share their encoder, torch's SGD, the batches one after the other."""
    settings = SETTINGS | {
        "task": f"{ENTAILMENT},{SIMILARITY}",
        "model_config": {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0},
        "schedule": "constant",
        "max_grad_norm": 0.0,
        "weight_decay": 0.0,
        "max_steps": 6,
        "optimizer": {"name": "sgd", "lr": 0.05, "momentum": 0.9},
    }
    alone = {
        task: create(parse_mapping(settings | {"task": task, "output_dir": "-"})).model
        for task in settings["task"].split(",")
    }
    first, second = alone.values()
    second.bert = first.bert
    shared = list({id(p): p for model in alone.values() for p in model.parameters()}.values())
    optimizer = torch.optim.SGD(shared, lr=0.05, momentum=0.9)
    seen: list[Any] = []
    batches = Plan.batches

    def watched(self: Plan, *arguments: Any) -> Any:
        for rows, [batch] in batches(self, *arguments):
            seen.append(batch.tensors)
            yield rows, [batch]

    monkeypatch.setattr(Plan, "batches", watched)
    trainings: list[Training] = []
    run(parse_mapping(settings | {"output_dir": str(tmp_path / "run")}), on_evaluation=trainings.append)
    for batch in seen[:6]:
        optimizer.zero_grad()
        batch = dict(batch)
        alone[batch.pop("task")](**batch).loss.backward()
        optimizer.step()
    assert {batch["task"] for batch in seen[:6]} == {ENTAILMENT, SIMILARITY}
    for task, model in alone.items():
        left = open_run(tmp_path / "run", task).model.state_dict()
        assert left.keys() == model.state_dict().keys()
        for name, value in model.state_dict().items():
            torch.testing.assert_close(left[name], value, rtol=1e-4, atol=1e-6, msg=name)


def test_a_batch_trains_the_body_and_the_head_of_its_task(tmp_path: Path) -> None:
    config = parse_mapping(SETTINGS | {"output_dir": str(tmp_path)})
    heads = create(config).model
    assert isinstance(heads, Heads)
    batch = {"input_ids": torch.tensor([[2, 9, 3]]), "attention_mask": torch.ones(1, 3, dtype=torch.int64)}
    for task, labels in zip(TASKS, (torch.tensor([1]), torch.tensor([2.5]), torch.tensor([0])), strict=True):
        heads.zero_grad()
        heads(task=task, labels=labels, **batch).loss.backward()
        for other in TASKS:
            assert {p.grad is not None for p in heads.head(other).values()} == {other == task}
        assert any(p.grad is not None for p in heads.base_model.parameters())
    assert heads.config.num_labels == 2  # as the first task has


def test_each_head_begins_as_in_a_run_of_that_task_alone(tmp_path: Path) -> None:
    together = create(parse_mapping(SETTINGS | {"output_dir": str(tmp_path)})).model
    for task in TASKS:
        alone = create(parse_mapping(SETTINGS | {"task": task, "output_dir": str(tmp_path)})).model
        for name, parameter in together.head(task).items():
            assert torch.equal(parameter, alone.get_parameter(name))


def test_the_result_has_every_task_and_their_mean(finished: Path) -> None:
    result = json.loads((finished / "result.json").read_text())
    last = result["metrics"]["last"]
    own = [
        last[f"{ENTAILMENT}.accuracy"],
        last[f"{SIMILARITY}.pearson"],
        last[f"{ACCEPTABILITY}.matthews_correlation"],
    ]
    assert result["primary"] == "mean"
    assert last["mean"] == pytest.approx(sum(own) / 3)
    assert result["rows"][f"{SIMILARITY}.train"] == 44
    assert list(result["tasks"]) == list(TASKS)
    for task in TASKS:
        part = result["tasks"][task]
        assert part["metrics"]["last"][part["primary"]] == last[f"{task}.{part['primary']}"]
        assert len(predictions(finished, task)) == 30
    rows = predictions(finished, ENTAILMENT)
    right = sum(row["label"] == row["prediction"] for row in rows)
    assert last[f"{ENTAILMENT}.accuracy"] == pytest.approx(right / len(rows))


@pytest.mark.parametrize("task", TASKS)
def test_a_task_is_opened_and_says_what_its_evaluation_said(finished: Path, task: str) -> None:
    rows = predictions(finished, task)
    opened = open_run(finished, task)
    assert opened.task is not None
    assert opened.task.name == opened.config.task == task
    np.testing.assert_allclose(opened.predictor.logits(*texts(rows)), scores(rows), rtol=1e-5, atol=1e-6)


@pytest.mark.needs("parameter_efficient")
@pytest.mark.parametrize("adaptation", ["lora", "prefix", "head-only"])
def test_an_adaptation_acts_for_every_task(
    train: Callable[..., Any], tmp_path: Path, adaptation: str
) -> None:
    train(**SETTINGS | {"task": f"{ENTAILMENT},{SIMILARITY}", "adaptation": {"name": adaptation}})
    for task in (ENTAILMENT, SIMILARITY):
        rows = predictions(tmp_path / "run", task)
        said = open_run(tmp_path / "run", task).predictor.logits(*texts(rows))
        np.testing.assert_allclose(said, scores(rows), rtol=1e-5, atol=1e-6)
        export(tmp_path / "run", tmp_path / task, task=task)
        assert (tmp_path / task / "adapter").is_dir()
        kind = json.loads((tmp_path / task / "config.json").read_text())["problem_type"]
        assert kind == ("regression" if task == SIMILARITY else "single_label_classification")


def test_which_task_is_meant_has_to_be_said(
    finished: Path, harness: Callable[..., Any], tmp_path: Path
) -> None:
    with pytest.raises(ConfigurationError, match="it learned several tasks: choose from demo-entailment"):
        open_run(finished)
    with pytest.raises(ConfigurationError, match="it did not learn 'rte': choose from"):
        open_run(finished, "rte")
    said = harness("export", finished, tmp_path / "out")
    assert said.status == 2
    assert "e.g. --task demo-entailment" in said.err
    assert not (tmp_path / "out").exists()


def test_one_task_is_exported_and_predicts_rows_of_a_file(
    finished: Path, harness: Callable[..., Any], tmp_path: Path
) -> None:
    from transformers import pipeline

    assert harness("export", finished, tmp_path / "out", "--task", ACCEPTABILITY).status == 0
    rows = predictions(finished, ACCEPTABILITY)
    (tmp_path / "rows.jsonl").write_text(
        "".join(json.dumps({"sentence": row["sentence"]}) + "\n" for row in rows)
    )
    said = harness("predict", finished, tmp_path / "rows.jsonl", "--task", ACCEPTABILITY)
    assert said.status == 0
    labels = [json.loads(line)["label"] for line in said.out.splitlines()]
    assert labels == [row["prediction"] for row in rows]
    classify = pipeline("text-classification", str(tmp_path / "out"), device="cpu")
    assert [one["label"] for one in classify([row["sentence"] for row in rows])] == labels


@pytest.mark.parametrize(("task", "kept"), [(SIMILARITY, True), ("wnli", False)])
def test_a_run_goes_on_with_the_body_and_the_head_of_the_same_task(
    finished: Path, tmp_path: Path, task: str, kept: bool, recwarn: pytest.WarningsRecorder
) -> None:
    before = open_run(finished, SIMILARITY).model
    config = parse_mapping({"task": task, "model": str(finished), "output_dir": str(tmp_path / "next")})
    after = create(config).model
    for name, value in before.bert.state_dict().items():
        assert torch.equal(value, after.bert.state_dict()[name])
    same = after.classifier.weight.shape == before.classifier.weight.shape and torch.equal(
        after.classifier.weight, before.classifier.weight
    )
    assert same == kept
    assert any("is drawn anew" in str(one.message) for one in recwarn) != kept


class Stop(Exception):
    """Ends a run in the middle."""


@pytest.mark.parametrize("sampling", ["size", "sqrt"])
def test_an_interrupted_run_ends_with_the_same_numbers(
    train: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, sampling: str
) -> None:
    settings = SETTINGS | {
        "task_sampling": sampling,
        "accumulate": 2,
        "epochs": 2,
        "save_every": 2,
        "log_every": 1,
    }
    whole = train("whole", **settings)
    with monkeypatch.context() as patch:
        after = Training._after_step

        def stop(self: Training, *rest: Any) -> None:
            if self.step == whole["steps"] - 3:
                raise Stop
            after(self, *rest)

        patch.setattr(Training, "_after_step", stop)
        with pytest.raises(Stop):
            train("stopped", **settings)
    assert train("stopped", **settings)["history"] == whole["history"]
    for task in TASKS:
        assert predictions(tmp_path / "stopped", task) == predictions(tmp_path / "whole", task)
    logged = [(tmp_path / run_ / "metrics.jsonl").read_text() for run_ in ("whole", "stopped")]
    assert logged[0] == logged[1]


def test_an_unfinished_run_is_opened_from_its_checkpoint(
    train: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def stop(training: Training) -> None:
        raise Stop

    with pytest.raises(Stop):
        run(parse_mapping(SETTINGS | {"output_dir": str(tmp_path / "run"), "epochs": 2}), on_evaluation=stop)
    said = open_run(tmp_path / "run", SIMILARITY).predict([("A dog.", "A cat.")])
    assert list(said[0]) == ["score"]


def test_rows_of_ones_own_are_trained_on_beside_a_known_task(
    train: Callable[..., Any], tmp_path: Path, harness: Callable[..., Any]
) -> None:
    file = tmp_path / "items.csv"
    file.write_text("text,label\n" + "".join(f"the {i}th is late,{'abc'[i % 3]}\n" for i in range(40)))
    settings = SETTINGS | {"task": f"{ENTAILMENT},items", "train_file": str(file), "validation_share": 0.2}
    result = train(**settings)
    assert sum(rows for name, rows in result["rows"].items() if name.startswith("items.")) == 40
    assert "items.f1_macro" in result["metrics"]["last"]
    assert open_run(tmp_path / "run", "items").predict(["it is late"])[0]["label"] in "abc"
    moved = tmp_path / "elsewhere.csv"
    file.rename(moved)
    here = {"output_dir": str(tmp_path / "run")}
    assert parse_mapping(settings | here | {"train_file": str(moved)}).hash == result["hash"]
    moved.write_text(moved.read_text() + "one more,a\n")
    assert parse_mapping(settings | here | {"train_file": str(moved)}).hash != result["hash"]


def test_report_and_sweep_take_it_as_any_run(harness: Callable[..., Any], tmp_path: Path) -> None:
    spec = tmp_path / "spec.yaml"
    base = SETTINGS | {"max_steps": 2, "task": f"{ENTAILMENT},{SIMILARITY}"}
    spec.write_text(json.dumps({"base": base, "grid": {"task_sampling": ["size", "sqrt"]}}))
    assert harness("sweep", spec, "--output-dir", tmp_path / "runs").status == 0
    said = harness("report", tmp_path / "runs", "--output-dir", tmp_path / "report")
    assert said.status == 0
    table = (
        (tmp_path / "report/table.md").read_text() if (tmp_path / "report/table.md").exists() else said.out
    )
    assert "demo-entailment,demo-similarity" in table
    assert "sqrt" in table


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"task": "demo-entailment,demo-entailment"}, "demo-entailment is named twice"),
        ({"task": "demo-entailment,"}, "'' cannot name one of several tasks"),
        ({"task": "demo-entailment,rtee"}, "did you mean 'rte'"),
        ({"metric": "f1"}, "the mean is the primary one"),
        ({"task": ENTAILMENT, "task_sampling": "sqrt"}, "--task-sampling is for several tasks"),
        ({"train_file": "x.csv", "validation_share": 0.1}, "all are known tasks: add a new name"),
        ({"task": "a,b", "train_file": "x.csv", "validation_share": 0.1}, "a, b are unknown"),
    ],
)
def test_what_cannot_be_had_is_one_line(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message) as refused:
        parse_mapping(SETTINGS | {"output_dir": "-"} | settings)
    assert len(str(refused.value)) < 400


def test_in_yaml_the_tasks_may_be_a_list_and_a_switch_is_true_or_false() -> None:
    plain = {"model": "demo", "output_dir": "-"}
    config = parse_mapping(plain | {"task": [ENTAILMENT, SIMILARITY]})
    assert config.tasks == (ENTAILMENT, SIMILARITY)
    assert config.hash == parse_mapping(plain | {"task": f"{ENTAILMENT}, {SIMILARITY}"}).hash
    with pytest.raises(ConfigurationError, match="'drop_unlabelled' is 'no': give true or false"):
        parse_mapping(plain | {"task": ENTAILMENT, "drop_unlabelled": "no"})

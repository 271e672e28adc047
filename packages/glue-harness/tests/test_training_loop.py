"""The loop's arithmetic against a slow reference: one row at a time, every formula written out."""

import json
import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file
from scipy.stats import pearsonr, spearmanr
from sklearn.metrics import accuracy_score, matthews_corrcoef

from finetune_common.data import epoch_batches, load_task
from finetune_common.demo import demo_tokenizer
from glue_harness.config.fields import RunConfig
from glue_harness.run.methods import build_methods, holder

TASK = "demo-entailment"
ROWS = 110
SEED = 5

Train = Callable[..., dict[str, Any]]


@pytest.fixture(scope="module")
def without_dropout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved classifier without randomness, head included."""
    folder = tmp_path_factory.mktemp("without-dropout")
    tokenizer = demo_tokenizer()
    config = transformers.BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    transformers.set_seed(0)
    transformers.BertForSequenceClassification(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def weights(folder: Path) -> dict[str, torch.Tensor]:
    (checkpoint,) = (folder / "checkpoint").iterdir()
    return load_file(checkpoint / "model.safetensors")


def logged(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def training_rows(count: int, seed: int) -> list[int]:
    """Which rows of the task a run with so many training rows sees."""
    from glue_harness import parse_mapping
    from glue_harness.run.plan import Data

    settings = {
        "task": TASK,
        "model": "demo",
        "output_dir": "unused",
        "max_train_samples": count,
        "seed": seed,
    }
    return Data.load(parse_mapping(settings), demo_tokenizer()).datasets["train"]["idx"][:]


def windows(steps: int, rows: int) -> Iterator[list[int]]:
    """The rows of every optimizer step, whatever the micro-batches: the seed's permutation, cut in pieces."""
    seen = training_rows(ROWS, SEED)
    for window in epoch_batches(np.zeros(ROWS), rows, seed=SEED, epoch=0)[:steps]:
        yield [seen[row] for row in window]


class Reference:
    """Gradient of the mean loss over a window, row by row; global norm clipping; SGD and AdamW by hand."""

    def __init__(self, folder: Path) -> None:
        self.model = transformers.AutoModelForSequenceClassification.from_pretrained(folder).double()
        self.tokenizer, self.data = demo_tokenizer(), load_task(TASK)["train"]
        self.state: dict[str, torch.Tensor] = {}
        self.losses: list[float] = []

    def gradients(self, window: list[int], max_norm: float) -> dict[str, torch.Tensor]:
        self.model.zero_grad()
        total = 0.0
        for row in window:
            example = self.data[row]
            tokens = self.tokenizer(example["sentence1"], example["sentence2"], return_tensors="pt")
            logits = self.model(**tokens).logits[0]
            loss = torch.logsumexp(logits, 0) - logits[example["label"]]
            (loss / len(window)).backward()
            total += loss.item() / len(window)
        self.losses.append(total)
        found = {name: p.grad.clone() for name, p in self.model.named_parameters()}
        norm = math.sqrt(sum(float((g * g).sum()) for g in found.values()))
        factor = min(1.0, max_norm / norm) if max_norm else 1.0
        return {name: g * factor for name, g in found.items()}

    @torch.no_grad()
    def sgd(self, gradients: dict[str, torch.Tensor], lr: float, momentum: float, decay: float) -> None:
        for name, p in self.model.named_parameters():
            g = gradients[name] + (decay * p if p.ndim > 1 else 0)
            velocity = momentum * self.state[name] + g if name in self.state else g
            self.state[name] = velocity
            p -= lr * velocity

    @torch.no_grad()
    def adamw(
        self,
        gradients: dict[str, torch.Tensor],
        step: int,
        lr: float,
        head_lr: float,
        eps: float,
        decay: float,
    ) -> None:
        for name, p in self.model.named_parameters():
            rate = head_lr if name.startswith(("classifier.", "bert.pooler.")) else lr
            m = 0.9 * self.state.get(f"{name} m", 0.0) + 0.1 * gradients[name]
            v = 0.999 * self.state.get(f"{name} v", 0.0) + 0.001 * gradients[name] ** 2
            self.state |= {f"{name} m": m, f"{name} v": v}
            if p.ndim > 1:
                p -= rate * decay * p
            p -= rate * (m / (1 - 0.9**step)) / ((v / (1 - 0.999**step)).sqrt() + eps)

    def assert_equals(self, found: dict[str, torch.Tensor], tolerance: float) -> None:
        for name, p in self.model.named_parameters():
            torch.testing.assert_close(found[name].double(), p.detach(), atol=tolerance, rtol=0)


SGD = {"name": "sgd", "lr": 0.1, "momentum": 0.9}
SHORT = {"max_train_samples": ROWS, "epochs": 1, "schedule": "constant", "log_every": 1, "seed": SEED}


def test_accumulation_with_a_short_window_is_the_mean_over_the_whole_window(
    train: Train, without_dropout: Path, tmp_path: Path
) -> None:
    """110 rows in windows of 48 = 6 x 8; the last has 14 rows, in micro-batches of 8 and 6."""
    same = SHORT | {
        "model": str(without_dropout),
        "optimizer": SGD,
        "weight_decay": 0.1,
        "max_grad_norm": 0.5,
    }
    train("accumulated", batch_size=8, accumulate=6, **same)
    train("whole", batch_size=48, **same)
    accumulated, whole = weights(tmp_path / "accumulated"), weights(tmp_path / "whole")
    for name in whole:
        torch.testing.assert_close(accumulated[name], whole[name], atol=1e-6, rtol=0)

    reference = Reference(without_dropout)
    for window in windows(3, 48):
        reference.sgd(reference.gradients(window, max_norm=0.5), lr=0.1, momentum=0.9, decay=0.1)
    assert len(window) == 14
    reference.assert_equals(accumulated, tolerance=2e-6)
    losses = [entry["loss"] for entry in logged(tmp_path / "accumulated")]
    assert losses == pytest.approx(reference.losses, abs=1e-5)


@pytest.mark.parametrize("max_norm", [0.0, 0.05, 100.0])
def test_gradients_are_clipped_by_their_global_norm(
    train: Train, without_dropout: Path, tmp_path: Path, max_norm: float
) -> None:
    train(
        model=str(without_dropout),
        batch_size=4,
        accumulate=2,
        max_steps=4,
        max_grad_norm=max_norm,
        weight_decay=0,
        optimizer=SGD,
        **SHORT,
    )
    reference = Reference(without_dropout)
    for window in windows(4, 8):
        reference.sgd(reference.gradients(window, max_norm), lr=0.1, momentum=0.9, decay=0)
    reference.assert_equals(weights(tmp_path / "run"), tolerance=1e-6)


def test_an_optimizer_that_is_left_nothing_to_clip_is_told_of(recwarn: pytest.WarningsRecorder) -> None:
    def told(level: float | None, max_grad_norm: float, noise: bool = False) -> list[str]:
        methods = build_methods(RunConfig("rte", "demo", "none"))
        optimizer, gradient = SimpleNamespace(name="mine", clips_at=level), [methods.adaptation] * noise
        replace(methods, optimizer=optimizer, gradient=gradient).warn_of_idle_clipping(max_grad_norm)
        return [str(recwarn.pop().message) for _ in list(recwarn)]

    said = "--max-grad-norm 0.5 acts first, so mine's clipping at 1 has no effect: give --max-grad-norm 0"
    assert told(1.0, 0.5) == [f"{said}, or a lower level"]
    assert told(1.0, 1.0)
    assert not told(1.0, 0.0)
    assert not told(0.5, 1.0)
    assert not told(None, 1.0)
    assert not told(1.0, 1.0, noise=True)  # noise comes between the two


def test_head_rate_and_decay_of_matrices_only(train: Train, without_dropout: Path, tmp_path: Path) -> None:
    settings = SHORT | {"schedule": "linear", "warmup": 2}
    train(
        model=str(without_dropout),
        batch_size=8,
        max_steps=5,
        max_grad_norm=0,
        weight_decay=0.3,
        head_lr=0.05,
        optimizer={"name": "adamw", "lr": 0.01, "eps": 1e-3},
        **settings,
    )
    reference = Reference(without_dropout)
    for step, window in enumerate(windows(5, 8), start=1):
        scale = [0, 1 / 2, 1, 2 / 3, 1 / 3][step - 1]
        reference.adamw(reference.gradients(window, 0), step, 0.01 * scale, 0.05 * scale, 1e-3, 0.3)
    reference.assert_equals(weights(tmp_path / "run"), tolerance=2e-6)
    assert [entry["learning_rate"] for entry in logged(tmp_path / "run")] == pytest.approx(
        [0, 0.005, 0.01, 0.02 / 3, 0.01 / 3]
    )


def expected_rate(schedule: str, step: int, warm: int, total: int) -> float:
    """The closed formulas; `step` counts from 0."""
    if step < warm:
        return step / warm
    if schedule == "linear":
        return (total - step) / (total - warm)
    if schedule == "cosine":
        return (1 + math.cos(math.pi * (step - warm) / (total - warm))) / 2
    return 1.0


@pytest.mark.parametrize("schedule", ["linear", "cosine", "constant"])
@pytest.mark.parametrize(("warmup", "warm"), [(0, 0), (0.3, 4), (3, 3)])
def test_schedule_follows_its_formula(
    train: Train, tmp_path: Path, schedule: str, warmup: float, warm: int
) -> None:
    """Twelve steps: a share of 0.3 is four of them, rounded up; from 1 on it is a number of steps."""
    train(
        max_steps=12,
        batch_size=32,
        schedule=schedule,
        warmup=warmup,
        log_every=1,
        optimizer={"name": "sgd", "lr": 0.5},
    )
    found = [entry["learning_rate"] for entry in logged(tmp_path / "run")]
    assert found == pytest.approx([0.5 * expected_rate(schedule, k, warm, 12) for k in range(12)], abs=1e-12)


def test_evaluates_and_saves_every_so_many_steps_and_at_the_end(
    train: Train, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from glue_harness.run import checkpoint

    saved, save = [], checkpoint.save
    monkeypatch.setattr(
        checkpoint, "save", lambda folder, step, *rest: (saved.append(step), save(folder, step, *rest))
    )
    result = train(max_steps=8, eval_every=3, save_every=5)
    assert [entry["step"] for entry in result["history"]] == [3, 6, 8]
    assert saved == [5, 8]
    assert [path.name for path in (tmp_path / "run/checkpoint").iterdir()] == ["step-8"]


@pytest.mark.parametrize(
    ("epochs", "steps", "evaluated_at"), [(1.5, 12, [1.0, 1.5]), (2, 16, [1.0, 2.0]), (0.3, 3, [0.375])]
)
def test_epochs_may_be_fractions(
    train: Train, monkeypatch: pytest.MonkeyPatch, epochs: float, steps: int, evaluated_at: list[float]
) -> None:
    """64 rows in batches of 8 are 8 steps an epoch; evaluated and saved at the end of each and of all."""
    from glue_harness.run import checkpoint

    saved = []
    monkeypatch.setattr(checkpoint, "save", lambda folder, step, *rest: saved.append(step))
    result = train(epochs=epochs)
    assert result["steps"] == steps
    assert [entry["epoch"] for entry in result["history"]] == evaluated_at
    assert saved == [8 * epoch for epoch in evaluated_at]


def test_best_is_the_first_highest_and_last_is_the_last(train: Train) -> None:
    from glue_harness.run.evaluation import History

    history = History("accuracy")
    for step, (accuracy, f1) in enumerate([(0.5, 0.9), (0.7, 0.1), (0.7, 0.8), (0.6, 1.0)], start=1):
        history.add(step, step / 4, {"accuracy": accuracy, "f1": f1})
    assert (history.best["step"], history.last["step"]) == (2, 4)

    result = train(task="demo-similarity", max_steps=8, eval_every=2, optimizer={"name": "adamw", "lr": 1e-2})
    scores = [entry["metrics"]["pearson"] for entry in result["history"]]
    assert result["primary"] == "pearson"
    assert result["metrics"]["best"]["pearson"] == max(scores)
    assert result["metrics"]["last"] == result["history"][-1]["metrics"]


def test_fewer_rows_are_a_part_of_more_rows_and_depend_on_the_seed() -> None:
    assert len(set(training_rows(50, seed=1))) == 50
    assert set(training_rows(50, seed=1)) < set(training_rows(90, seed=1))
    assert set(training_rows(50, seed=1)) != set(training_rows(50, seed=2))
    assert len(training_rows(10**6, seed=1)) == 2000


def test_same_seed_same_run_with_any_number_of_workers(train: Train, tmp_path: Path) -> None:
    results = {
        "first": train("first", epochs=2),
        "again": train("again", epochs=2),
        "workers": train("workers", epochs=2, num_workers=2),
        "other": train("other", epochs=2, seed=7),
    }
    first = weights(tmp_path / "first")
    for name in ("again", "workers"):
        assert all(torch.equal(weight, first[key]) for key, weight in weights(tmp_path / name).items())
        assert results[name]["history"] == results["first"]["history"]
    assert not torch.equal(weights(tmp_path / "other")["classifier.weight"], first["classifier.weight"])


def test_grouping_by_length_pads_less_and_trains_on_the_same_rows(train: Train) -> None:
    from glue_harness import parse_mapping
    from glue_harness.run.plan import Plan

    settings = {"task": TASK, "model": "demo", "output_dir": "unused", "batch_size": 4}
    lengths = np.random.default_rng(0).integers(3, 60, size=400)

    def batches(grouped: bool) -> list[list[int]]:
        plan = Plan(parse_mapping(settings | {"group_by_length": grouped}), lengths, 1)
        return [batch for window in plan.windows(0) for batch in window]

    def padded(of: list[list[int]]) -> int:
        return sum(int(lengths[batch].max()) * len(batch) for batch in of)

    def rows(of: list[list[int]]) -> list[int]:
        return [row for batch in of for row in batch]

    assert padded(batches(True)) < 0.8 * padded(batches(False))
    assert sorted(rows(batches(True))) == sorted(rows(batches(False))) == list(range(400))
    assert train(group_by_length=True)["steps"] == 8


def test_predictions_score_what_the_result_says(train: Train, tmp_path: Path) -> None:
    scores = {
        "demo-acceptability": {"matthews_correlation": matthews_corrcoef},
        "demo-entailment": {"accuracy": accuracy_score},
        "demo-similarity": {
            "pearson": lambda a, b: pearsonr(a, b).statistic,
            "spearmanr": lambda a, b: spearmanr(a, b).statistic,
        },
    }
    for task, metrics in scores.items():
        result = train(task, task=task, optimizer={"name": "adamw", "lr": 3e-3}, epochs=3)
        lines = (tmp_path / task / "predictions.tsv").read_text().splitlines()
        official = load_task(task)["validation"]
        texts = [name for name in official.column_names if name not in ("label", "idx")]
        assert lines[0].split("\t") == ["index", "label", "prediction", "scores", *texts]
        rows = [line.split("\t") for line in lines[1:]]
        assert [int(row[0]) for row in rows] == list(range(500))
        assert [row[4:] for row in rows] == [[row[name] for name in texts] for row in official]
        if task == "demo-similarity":
            labels, predictions = ([float(np.float32(row[i])) for row in rows] for i in (1, 2))
            assert labels == pytest.approx(official["label"][:], abs=1e-5)
            assert predictions == [float(np.float32(row[3])) for row in rows]
        else:
            names = official.features["label"].names
            labels, predictions = ([names.index(row[i]) for row in rows] for i in (1, 2))
            assert labels == official["label"][:]
            logits = np.array([[float(value) for value in row[3].split()] for row in rows])
            assert predictions == logits.argmax(axis=1).tolist()
        assert result["metrics"]["last"] == pytest.approx(
            {name: score(labels, predictions) for name, score in metrics.items()}, abs=1e-6
        )


def test_result_has_every_key(train: Train, tmp_path: Path) -> None:
    result = train(optimizer={"name": "sgd", "lr": 0.01})
    assert json.loads((tmp_path / "run/result.json").read_text()) == result
    assert {"schema", "task", "model", "seed", "slots", "metrics", "steps", "examples_per_second"} <= set(
        result
    )
    assert {
        "seconds",
        "peak_memory_bytes",
        "saved_activation_bytes",
        "parameters",
        "versions",
        "hardware",
    } <= set(result)
    assert result["slots"] == {
        "adaptation": {"name": "full"},
        "activation": {"name": "none"},
        "gradient": [],
        "optimizer": {"name": "sgd", "lr": 0.01, "momentum": 0.9, "nesterov": False},
    }
    parts = ("data", "forward", "backward", "gradient", "optimizer", "evaluation")
    assert set(result["seconds"]) == set(parts)
    assert all(result["seconds"][part] > 0 for part in parts)
    assert result["parameters"]["trainable"] == result["parameters"]["total"] > 10_000
    assert result["saved_activation_bytes"] > 1000
    assert result["peak_memory_bytes"] > 2**20
    assert result["examples_per_second"] > 0
    assert {"python", "torch", "transformers", "glue-harness", "finetune-common"} <= set(result["versions"])


def test_the_package_of_a_method_named_by_its_path_is_known() -> None:
    package = holder("optimizer", "safetensors.torch.anything")
    assert package is not None
    assert package.version == version("safetensors")
    assert holder("optimizer", "no_such_package.Adam") is None


def test_saved_bytes_grow_with_the_batch_and_do_not_count_parameters(train: Train) -> None:
    """Twice the rows of one length hold twice the bytes; parameters would add a constant."""
    small = train("small", batch_size=8, max_steps=1, max_length=8)["saved_activation_bytes"]
    large = train("large", batch_size=16, max_steps=1, max_length=8)["saved_activation_bytes"]
    assert large == pytest.approx(2 * small, rel=0.01)


def test_bfloat16_after_float32_in_one_process(train: Train) -> None:
    """Each run has the precision it asks for: inputs of matrix products are saved in half the bytes."""
    full, half = train("full", max_steps=4), train("half", max_steps=4, precision="bf16")
    assert half["saved_activation_bytes"] < 0.95 * full["saved_activation_bytes"]


def test_own_files_make_a_task(harness, tmp_path):
    rows = [f"The old {'dog runs' if n % 2 else 'cat swims'}.,{'yes' if n % 2 else 'no'}" for n in range(64)]
    for name in ("train", "dev"):
        (tmp_path / f"{name}.csv").write_text("\n".join(["text,label", *rows]))
    own = ("--train-file", tmp_path / "train.csv", "--validation-file", tmp_path / "dev.csv")
    line = ("run", "--task", "reviews", "--model", "demo", "--batch-size", 8, "--epochs", 2)
    said = harness(*line, *own, "--optimizer.lr", "5e-3", "--output-dir", tmp_path / "own")
    assert said.status == 0, said.err
    result = json.loads((tmp_path / "own/result.json").read_text())
    assert result["task"] == "reviews"
    assert result["metrics"]["last"]["accuracy"] == 1.0
    first = (tmp_path / "own/predictions.tsv").read_text().splitlines()[1].split("\t")
    assert first[1] == "no"
    said = harness("report", tmp_path / "own", "--output-dir", tmp_path / "report")
    assert said.status == 0, said.err
    assert "reviews" in (tmp_path / "report/summary.md").read_text()


def test_own_files_come_in_pairs_and_alone(harness, tmp_path):
    line = ("run", "--task", "reviews", "--model", "demo", "--output-dir", tmp_path / "run")
    assert "give both" in harness(*line, "--train-file", "train.csv").err
    both = ("--train-file", "train.csv", "--validation-file", "dev.csv")
    assert "give only one of them" in harness(*line, *both, "--data-dir", "glue").err
    assert "'reviews' is unknown" in harness(*line).err
    assert "train.csv: No such file" in harness(*line, *both).err


def test_the_content_of_rows_decides_and_not_their_place(tmp_path):
    from glue_harness import parse_mapping

    settings = {"task": "rte", "model": "demo", "output_dir": "x"}
    plain = parse_mapping(settings)
    assert not {"train_file", "validation_file", "model_config"} & plain.identity().keys()
    assert parse_mapping(settings | {"data_dir": "/scratch/glue"}).hash == plain.hash

    def own(folder, ending="csv", sign=",", last="yes"):
        file = tmp_path / folder / f"rows.{ending}"
        file.parent.mkdir(exist_ok=True)
        file.write_text(f"text{sign}label\na{sign}no\nb{sign}{last}\n")
        options = {"task": "mine", "train_file": str(file), "validation_file": str(file), "kind": "classes"}
        return parse_mapping(settings | options)

    first = own("here")
    assert not {"train_file", "validation_file", "kind"} & first.identity().keys()
    assert first.hash != plain.hash
    assert own("there").hash == own("elsewhere", "tsv", "\t").hash == first.hash
    assert own("edited", last="maybe").hash != first.hash


@pytest.mark.parametrize("everything", [False, True])
def test_what_decays_and_what_has_the_head_s_rate(everything):
    from glue_harness.run.parameters import parameter_groups

    sizes = {"hidden_size": 8, "intermediate_size": 8, "num_attention_heads": 1, "num_hidden_layers": 1}
    model = transformers.BertForSequenceClassification(transformers.BertConfig(vocab_size=9, **sizes))
    found = {
        name: (group["weight_decay"], group.get("lr"))
        for group in parameter_groups(model, 0.1, head_lr=0.5, decay_all=everything)
        for name, _ in group["params"]
    }
    assert found == {
        name: (
            0.1 if everything or parameter.ndim > 1 else 0.0,
            0.5 if "pooler" in name or "classifier" in name else None,
        )
        for name, parameter in model.named_parameters()
    }


@pytest.mark.slow
def test_a_compiled_model_learns_the_same_from_a_handful_of_graphs(train: Train) -> None:
    """Texts of all lengths and a short last batch share a graph; evaluation has one of its own."""
    from torch._dynamo.utils import counters

    shape = {"num_hidden_layers": 1, "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    settings = {"max_train_samples": 60, "max_eval_samples": 40, "epochs": 1, "model_config": shape}
    plain = train("plain", **settings)
    torch._dynamo.reset()  # what other tests compiled counts towards torch's limit
    counters.clear()
    compiled = train("compiled", compile=True, **settings)
    assert 1 <= counters["stats"]["unique_graphs"] <= 4
    assert compiled["metrics"]["last"] == pytest.approx(plain["metrics"]["last"], abs=1e-3)
    assert compiled["hash"] != plain["hash"]


@pytest.mark.slow
def test_a_compiled_model_stores_its_activations_compressed(train: Train) -> None:
    """A fraction of the bytes, and the same numbers told."""
    shape = {"num_hidden_layers": 1}
    settings = {"max_train_samples": 40, "max_eval_samples": 40, "epochs": 1, "model_config": shape}
    plain = train("plain", **settings)
    packed = train("packed", compile=True, activation={"name": "compress", "level": "L1"}, **settings)
    assert packed["saved_activation_bytes"] < plain["saved_activation_bytes"] / 3
    assert packed["metrics"]["last"].keys() == plain["metrics"]["last"].keys()
    assert packed["slots"]["activation"]["level"] == "L1"

"""What leaves a run: a model that transformers loads and gives the run's scores with, an adapter, a card."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import transformers
import yaml
from transformers import AutoModelForSequenceClassification, pipeline

from finetune_common.demo import demo_tokenizer
from finetune_common.errors import ConfigurationError
from glue_harness import open_run
from glue_harness.export import export

Train = Callable[..., dict[str, Any]]
Harness = Callable[..., Any]

NARROW = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "max_position_embeddings": 64,
}
KINDS: dict[str, tuple[type, dict[str, Any]]] = {
    "bert": (transformers.BertConfig, NARROW),
    "distilbert": (
        transformers.DistilBertConfig,
        {"dim": 16, "n_layers": 2, "n_heads": 2, "hidden_dim": 32, "max_position_embeddings": 64},
    ),
    "deberta-v2": (
        transformers.DebertaV2Config,
        NARROW | {"relative_attention": True, "pos_att_type": ["p2c", "c2p"], "position_biased_input": False},
    ),
    "gpt2": (transformers.GPT2Config, {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 64}),
    "t5": (
        transformers.T5Config,
        {"d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 2, "num_heads": 2, "decoder_start_token_id": 0},
    ),
}
ADAPTATIONS = [
    "full",
    *(
        pytest.param(name, marks=pytest.mark.needs("parameter_efficient"))
        for name in ("lora", "bitfit", "bottleneck-adapter")
    ),
]
RATE = {"optimizer": {"name": "adamw", "lr": 2e-2}}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder a kind of model: random and tiny, with the demo's tokenizer."""
    root = tmp_path_factory.mktemp("models")
    for name, (kind, sizes) in KINDS.items():
        tokenizer = demo_tokenizer()
        tokenizer.eos_token = "[SEP]"
        if name in ("distilbert", "t5", "gpt2"):
            tokenizer.model_input_names = ["input_ids", "attention_mask"]
        tokenizer.save_pretrained(root / name)
        ids = {"bos_token_id": 2, "eos_token_id": 3, "pad_token_id": 0}
        config = kind(vocab_size=len(tokenizer), **sizes, **ids)
        transformers.set_seed(0)
        AutoModelForSequenceClassification.from_config(config).save_pretrained(root / name)
    return root


def written(run: Path) -> np.ndarray:
    """The scores of `predictions.tsv`."""
    lines = (run / "predictions.tsv").read_text().splitlines()[1:]
    return np.array([[float(value) for value in line.split("\t")[3].split()] for line in lines])


def evaluated(task: str = "demo-acceptability") -> Any:
    from finetune_common.data import load_task

    return load_task(task)["validation"]


def by_pipeline(folder: Path, texts: list[Any], names: list[str], **options: Any) -> np.ndarray:
    """The logits that transformers' pipeline gives, a column a label."""
    classify: Any = pipeline("text-classification", str(folder), **options)
    rows = classify(texts, top_k=None, function_to_apply="none", truncation=True, max_length=128)
    return np.array([[next(o["score"] for o in row if o["label"] == n) for n in names] for row in rows])


@pytest.mark.parametrize("adaptation", ADAPTATIONS)
@pytest.mark.parametrize("kind", KINDS)
def test_a_pipeline_on_the_exported_folder_gives_the_scores_of_the_run(
    train: Train, models: Path, tmp_path: Path, kind: str, adaptation: str
) -> None:
    """Whatever the kind and the adaptation; one that cannot be merged is refused until it is trusted."""
    model = str(models / kind)
    train(task="demo-acceptability", model=model, max_steps=2, adaptation=adaptation, **RATE)
    code = export(tmp_path / "run", tmp_path / "out")
    if code:
        with pytest.raises(ValueError, match="trust_remote_code"):
            pipeline("text-classification", str(tmp_path / "out"), trust_remote_code=False)
        with pytest.raises(ConfigurationError, match="without --merge"):
            export(tmp_path / "run", tmp_path / "merged", merge=True)
    else:
        assert export(tmp_path / "run", tmp_path / "merged", merge=True) is None
        assert not (tmp_path / "merged/adapter").exists()
    assert (code is not None) == (
        adaptation == "bottleneck-adapter" or (kind, adaptation) == ("t5", "bitfit")
    )
    said = by_pipeline(
        tmp_path / "out",
        evaluated()["sentence"][:40],
        ["unacceptable", "acceptable"],
        **({"trust_remote_code": True} if code else {}),
    )
    assert np.abs(said - written(tmp_path / "run")[:40]).max() < 1e-6
    assert np.abs(written(tmp_path / "run")).max() > 1e-3


@pytest.mark.parametrize("adaptation", ADAPTATIONS)
def test_a_run_is_opened_from_what_it_left_wherever_it_is(
    train: Train, tmp_path: Path, adaptation: str
) -> None:
    train(max_steps=2, adaptation=adaptation, **RATE)
    (tmp_path / "run").rename(tmp_path / "moved")
    shutil.rmtree(tmp_path / "moved/checkpoint")
    run = open_run(tmp_path / "moved")
    assert run.task is not None
    assert run.task.name == "demo-entailment"
    assert not run.model.training
    rows = evaluated("demo-entailment")
    pairs = list(zip(rows["sentence1"][:], rows["sentence2"][:], strict=True))
    said = run.predict(pairs)
    logits = written(tmp_path / "moved")
    odds = np.exp(logits - logits.max(axis=1, keepdims=True))
    expected = odds / odds.sum(axis=1, keepdims=True)
    got = [[row["scores"][name] for name in ("entailment", "not_entailment")] for row in said]
    assert np.abs(np.array(got) - expected).max() < 1e-6
    assert [row["label"] for row in said] == [run.task.labels[at] for at in expected.argmax(axis=1)]
    with pytest.raises(ConfigurationError, match="give pairs of texts"):
        run.predict(["one text"])


def test_a_run_that_has_not_ended_is_opened_from_its_checkpoint(train: Train, tmp_path: Path) -> None:
    train(max_steps=2, **RATE)
    (tmp_path / "run/result.json").unlink()
    left = open_run(tmp_path / "run").model.state_dict()
    whole = AutoModelForSequenceClassification.from_pretrained(tmp_path / "run/model").state_dict()
    assert left.keys() == whole.keys()
    assert all(np.array_equal(left[name], whole[name]) for name in left)
    shutil.rmtree(tmp_path / "run/checkpoint")
    with pytest.raises(ConfigurationError, match="neither a model nor a checkpoint"):
        open_run(tmp_path / "run")


def test_rows_of_ones_own_need_not_be_there_any_more(train: Train, tmp_path: Path) -> None:
    """Labels come from the model, columns and metrics from the result."""
    texts = {"bad": "the old dog", "fair": "a cat near", "good": "the dog runs"}
    lines = [f"{text} {number},{label}" for number in range(4) for label, text in texts.items()]
    for name in ("train", "dev"):
        (tmp_path / f"{name}.csv").write_text("\n".join(["review,label", *lines]) + "\n")
    files = {
        f"{split}_file": str(tmp_path / name)
        for split, name in (("train", "train.csv"), ("validation", "dev.csv"))
    }
    result = train(task="reviews", max_steps=1, **files)
    (tmp_path / "train.csv").unlink()
    (tmp_path / "dev.csv").unlink()
    run = open_run(tmp_path / "run")
    assert run.task is not None
    assert (run.task.columns, run.task.labels) == (("review",), ("bad", "fair", "good"))
    assert (run.task.metrics, run.task.primary) == (tuple(result["metrics"]["last"]), result["primary"])
    assert sorted(run.predict(["the dog"])[0]["scores"]) == ["bad", "fair", "good"]


@pytest.mark.needs("parameter_efficient")
def test_the_model_says_its_labels_and_the_card_how_it_was_made(train: Train, tmp_path: Path) -> None:
    result = train(max_steps=2)
    described = json.loads((tmp_path / "run/model/config.json").read_text())
    assert described["id2label"] == {"0": "entailment", "1": "not_entailment"}
    assert described["label2id"] == {"entailment": 0, "not_entailment": 1}
    assert described["problem_type"] == "single_label_classification"
    card = (tmp_path / "run/model/README.md").read_text()
    front = yaml.safe_load(card.split("---\n")[1])
    assert front["library_name"] == "transformers"
    assert front["metrics"] == ["accuracy"]
    for said in ("entailment, not_entailment", "64 train, 500 validation", "| steps | 2 |", "adamw lr=5e-05"):
        assert said in card
    assert f"| accuracy | {result['metrics']['last']['accuracy']:.4f} |" in card
    assert str(tmp_path) not in card
    train("number", task="demo-similarity", max_steps=1, adaptation="bottleneck-adapter")
    described = json.loads((tmp_path / "number/model/config.json").read_text())
    assert described["problem_type"] == "regression"
    assert not list((tmp_path / "number/model").glob("*.safetensors"))
    card = (tmp_path / "number/model/README.md").read_text()
    assert "base model `demo`" in card
    assert "folder `adapter` beside this one" in card


def test_a_run_begins_with_the_model_of_another_and_says_that_the_head_is_new(
    train: Train, tmp_path: Path
) -> None:
    train("first", max_steps=2, **RATE)
    first = AutoModelForSequenceClassification.from_pretrained(tmp_path / "first/model").state_dict()
    still = {"optimizer": {"name": "sgd", "lr": 0.0}, "model": str(tmp_path / "first"), "max_steps": 1}
    train("same", **still)
    same = open_run(tmp_path / "same").model.state_dict()
    assert all(np.array_equal(first[name], same[name]) for name in first)
    with pytest.warns(
        UserWarning, match="head is for entailment, not_entailment: one for unacceptable, accept"
    ):
        train("other", task="demo-acceptability", **still)
    other = open_run(tmp_path / "other").model.state_dict()
    differ = {name for name in first if not np.array_equal(first[name], other[name])}
    assert "classifier.weight" in differ
    assert all(name.startswith("classifier.") for name in differ)


@pytest.mark.needs("parameter_efficient")
def test_a_model_that_is_not_whole_is_no_start(train: Train, harness: Harness, tmp_path: Path) -> None:
    train("adapted", max_steps=1, adaptation="bottleneck-adapter")
    line = ("--task", "demo-entailment", "--output-dir", tmp_path / "next", "--max-steps", "1")
    said = harness("run", "--model", tmp_path / "adapted", *line)
    assert (said.status, said.err.count("\n")) == (2, 1)
    assert "give the model that it began with" in said.err
    (tmp_path / "adapted/result.json").unlink()
    said = harness("run", "--model", tmp_path / "adapted", *line)
    assert said.status == 2
    assert "not finished" in said.err


@pytest.mark.needs("parameter_efficient")
def test_starting_anew_takes_what_was_left_away(train: Train, tmp_path: Path) -> None:
    train(max_steps=1, adaptation="lora")
    train(max_steps=1, overwrite=True)
    assert not (tmp_path / "run/adapter").exists()
    assert (tmp_path / "run/model/model.safetensors").exists()


def misfit(folder: Path, kind: str, sizes: dict[str, Any], names: list[str]) -> Path:
    config = KINDS[kind][0](**(KINDS[kind][1] | sizes))
    AutoModelForSequenceClassification.from_config(config).save_pretrained(folder)
    tokenizer = demo_tokenizer()
    tokenizer.model_input_names = names
    tokenizer.save_pretrained(folder)
    return folder


@pytest.mark.parametrize(
    ("kind", "sizes", "told"),
    [
        ("bert", {"vocab_size": 20}, "embeddings for 20"),
        ("bert", {"vocab_size": 512, "type_vocab_size": 1}, "1 token type"),
        ("t5", {"vocab_size": 512, "eos_token_id": 99}, "eos_token_id 99"),
    ],
)
def test_a_tokenizer_that_does_not_fit_the_model_is_refused_in_one_line(
    harness: Harness, tmp_path: Path, kind: str, sizes: dict[str, Any], told: str
) -> None:
    model = misfit(tmp_path / "model", kind, sizes, ["input_ids", "attention_mask", "token_type_ids"])
    said = harness("run", "--task", "demo-entailment", "--model", model, "--output-dir", tmp_path / "run")
    assert (said.status, said.err.count("\n")) == (2, 1)
    assert told in said.err

"""Every architecture that transformers classifies sequences with trains and evaluates through the harness.

The models are random and tiny; the tokenizer is the demo's, with the padding token, the end-of-text token and
the inputs that each architecture wants.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import transformers
from transformers import AutoModelForSequenceClassification

from finetune_common.demo import demo_tokenizer

NARROW = {
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "max_position_embeddings": 64,
}

CONFIGURATIONS: dict[str, tuple[type, dict[str, Any]]] = {
    "bert": (transformers.BertConfig, NARROW),
    "roberta": (transformers.RobertaConfig, NARROW),
    "albert": (transformers.AlbertConfig, NARROW | {"embedding_size": 8}),
    "distilbert": (
        transformers.DistilBertConfig,
        {"dim": 16, "n_layers": 1, "n_heads": 2, "hidden_dim": 32, "max_position_embeddings": 64},
    ),
    "squeezebert": (
        transformers.SqueezeBertConfig,
        NARROW
        | {f"{part}_groups": 2 for part in ("q", "k", "v", "post_attention", "intermediate", "output")}
        | {"embedding_size": 16},
    ),
    "electra": (transformers.ElectraConfig, NARROW | {"embedding_size": 8}),
    "deberta-v2": (
        transformers.DebertaV2Config,
        NARROW | {"relative_attention": True, "pos_att_type": ["p2c", "c2p"], "position_biased_input": False},
    ),
    "t5": (
        transformers.T5Config,
        {"d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 1, "num_heads": 2, "decoder_start_token_id": 0},
    ),
    "bart": (
        transformers.BartConfig,
        {
            "d_model": 16,
            "encoder_layers": 1,
            "decoder_layers": 1,
            "encoder_attention_heads": 2,
            "decoder_attention_heads": 2,
            "encoder_ffn_dim": 32,
            "decoder_ffn_dim": 32,
            "max_position_embeddings": 64,
            "num_labels": 2,
        },
    ),
    "gpt2": (transformers.GPT2Config, {"n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 64}),
}

WITHOUT_TOKEN_TYPES = ("roberta", "distilbert", "t5", "bart", "gpt2")
"""Their embeddings have one token type or none."""


@pytest.fixture(scope="module", params=CONFIGURATIONS)
def model_folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved random model without a head for the task, with its tokenizer."""
    name = request.param
    folder = tmp_path_factory.mktemp(name)
    tokenizer = demo_tokenizer()
    tokenizer.eos_token = "[SEP]"
    if name in WITHOUT_TOKEN_TYPES:
        tokenizer.model_input_names = ["input_ids", "attention_mask"]
    if name == "gpt2":
        tokenizer.pad_token = None
    tokenizer.save_pretrained(folder)
    kind, sizes = CONFIGURATIONS[name]
    ends = {"bos_token_id": 2, "eos_token_id": 3}
    padding = {} if name == "gpt2" else {"pad_token_id": 0}
    config = kind(vocab_size=len(tokenizer), **sizes, **ends, **padding)
    transformers.set_seed(0)
    AutoModelForSequenceClassification.from_config(config).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("task", ["demo-acceptability", "demo-similarity"])
def test_architecture_trains_and_evaluates(
    train: Callable[..., dict[str, Any]], model_folder: Path, tmp_path: Path, task: str
) -> None:
    """One text and two classes; two texts and a number: eight rows are learnt."""
    result = train(
        task=task,
        model=str(model_folder),
        batch_size=64,
        max_train_samples=8,
        max_steps=20,
        log_every=1,
        schedule="constant",
        optimizer={"name": "adamw", "lr": 2e-2},
    )
    logged = [json.loads(line)["loss"] for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert len(logged) == result["steps"] == 20
    assert min(logged[-5:]) < 0.95 * logged[0]
    assert set(result["metrics"]["last"]) == (
        {"matthews_correlation"} if task == "demo-acceptability" else {"pearson", "spearmanr"}
    )
    rows = (tmp_path / "run/predictions.tsv").read_text().splitlines()
    assert len(rows) == 501
    assert result["saved_activation_bytes"] > 0


@pytest.mark.parametrize("model_folder", ["gpt2"], indirect=True)
def test_gpt2_pads_with_its_end_of_text_token(model_folder: Path) -> None:
    """The released GPT-2 has no padding token; its classifier reads the last token that is not padding."""
    from finetune_common.tasks import get_task
    from glue_harness.run.models import load_model, load_tokenizer

    saved = json.loads((model_folder / "tokenizer_config.json").read_text())
    assert saved.get("pad_token") is None
    tokenizer = load_tokenizer(str(model_folder))
    assert tokenizer.pad_token == tokenizer.eos_token == "[SEP]"
    model = load_model(str(model_folder), get_task("demo-entailment"), tokenizer)
    assert model.config.pad_token_id == tokenizer.eos_token_id


@pytest.mark.parametrize("model_folder", ["bert"], indirect=True)
def test_head_of_another_task_is_drawn_anew_and_the_encoder_kept(model_folder: Path) -> None:
    import torch

    from finetune_common.tasks import get_task
    from glue_harness.run.models import load_model, load_tokenizer

    tokenizer = load_tokenizer(str(model_folder))
    saved = AutoModelForSequenceClassification.from_pretrained(model_folder)
    two = load_model(str(model_folder), get_task("demo-entailment"), tokenizer)
    one = load_model(str(model_folder), get_task("demo-similarity"), tokenizer)
    assert torch.equal(two.classifier.weight, saved.classifier.weight)
    assert one.classifier.weight.shape == (1, 16)
    for name, weight in saved.bert.state_dict().items():
        assert torch.equal(one.bert.state_dict()[name], weight)

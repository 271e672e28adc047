"""Model configurations that need no network: published shapes by name, and changes to their fields."""

from __future__ import annotations

from pathlib import Path

import transformers

from finetune_common.aliases import Settings
from finetune_common.errors import ConfigurationError, did_you_mean
from glue_harness.run.records import model_files

__all__ = ["PRESETS", "changed", "demo_config", "find_config"]

LARGE = {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "intermediate_size": 4096}
ROBERTA = {
    "vocab_size": 50265,
    "max_position_embeddings": 514,
    "type_vocab_size": 1,
    "layer_norm_eps": 1e-5,
    "pad_token_id": 1,
}
BASE = {"hidden_size": 768, "num_attention_heads": 12, "intermediate_size": 3072}

PRESETS: dict[str, tuple[str, Settings]] = {
    "bert-base-uncased": ("bert", {}),
    "bert-base-cased": ("bert", {"vocab_size": 28996}),
    "bert-large-uncased": ("bert", LARGE),
    "bert-large-cased": ("bert", {**LARGE, "vocab_size": 28996}),
    "roberta-base": ("roberta", ROBERTA),
    "roberta-large": ("roberta", {**ROBERTA, **LARGE}),
    "albert-base-v1": ("albert", BASE),
    "albert-base-v2": ("albert", BASE),
    "t5-base": (
        "t5",
        {"d_model": 768, "d_ff": 3072, "num_layers": 12, "num_heads": 12, "decoder_start_token_id": 0},
    ),
    "bart-base": (
        "bart",
        {
            "vocab_size": 50265,
            "d_model": 768,
            **{"encoder_layers": 6, "decoder_layers": 6, "encoder_ffn_dim": 3072, "decoder_ffn_dim": 3072},
            **{"encoder_attention_heads": 12, "decoder_attention_heads": 12},
        },
    ),
    "squeezebert-uncased": ("squeezebert", {}),
    "distilbert-base-uncased": ("distilbert", {}),
    "electra-base-discriminator": ("electra", {**BASE, "embedding_size": 768}),
    "deberta-v3-base": (
        "deberta-v2",
        {
            **BASE,
            "num_hidden_layers": 12,
            "vocab_size": 128100,
            "type_vocab_size": 0,
            "relative_attention": True,
            "position_buckets": 256,
            "norm_rel_ebd": "layer_norm",
            "share_att_key": True,
            "pos_att_type": ["p2c", "c2p"],
            "max_relative_positions": -1,
            "position_biased_input": False,
        },
    ),
    "Meta-Llama-3-8B": (
        "llama",
        {
            "vocab_size": 128256,
            "hidden_size": 4096,
            "intermediate_size": 14336,
            "num_hidden_layers": 32,
            "num_attention_heads": 32,
            "num_key_value_heads": 8,
            "max_position_embeddings": 8192,
            "pad_token_id": 128001,
        },
    ),
}
"""Name → model type, and differences from transformers' defaults for it."""


def demo_config(words: int = 512) -> transformers.PretrainedConfig:
    """Return the configuration of the model `demo`, a tiny BERT.

    Args:
        words: Size of the tokenizer's vocabulary.
    """
    return transformers.BertConfig(
        vocab_size=words,
        hidden_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=128,
        max_position_embeddings=128,
        pad_token_id=0,
    )


def find_config(model: str) -> transformers.PretrainedConfig:
    """Return a model's configuration without its weights.

    Args:
        model: A preset (`bert-large-cased`), `demo`, a model's or a run's folder, or a hub name.

    Raises:
        ConfigurationError: No model has this name.

    Examples:
        >>> find_config("bert-large-cased").hidden_size
        1024
    """
    if model == "demo":
        return demo_config()
    preset = PRESETS.get(model.rpartition("/")[2] if not Path(model).exists() else "")
    if preset:
        kind, fields = preset
        return transformers.AutoConfig.for_model(kind, **fields)
    files = model_files(model)
    try:
        return transformers.AutoConfig.from_pretrained(files)
    except (OSError, ValueError, KeyError):
        raise ConfigurationError(
            f"--model {model} is no preset, no model folder, and not found on the hub: "
            f"{did_you_mean(model, ['demo', *PRESETS])}"
        ) from None


def changed(config: transformers.PretrainedConfig, fields: Settings) -> transformers.PretrainedConfig:
    """Set fields of a configuration.

    Raises:
        ConfigurationError: The configuration has no such field.

    Examples:
        >>> changed(demo_config(), {"num_hidden_layers": 3}).num_hidden_layers
        3
        >>> changed(demo_config(), {"num_hidden_layer": 3})
        Traceback (most recent call last):
        finetune_common.errors.ConfigurationError: --model.num_hidden_layer: bert has no such field: \
did you mean 'num_hidden_layers'?
    """
    for name, value in fields.items():
        if not hasattr(config, name):
            known = [key for key in config.to_dict() if not key.startswith("_")]
            raise ConfigurationError(
                f"--model.{name}: {config.model_type} has no such field: {did_you_mean(name, known)}"
            )
        setattr(config, name, value)
    return config

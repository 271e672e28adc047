"""Model configurations that need no network: published shapes by name, and changes to their fields."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import transformers
from huggingface_hub.errors import StrictDataclassError

from finetune_common.aliases import JsonObject, Settings
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
    """Set fields of a configuration; those that it has not itself are fields of its text part.

    What it lists layer by layer follows a new depth.

    Raises:
        ConfigurationError: The configuration has no such field, or there is no such model.

    Examples:
        >>> changed(demo_config(), {"num_hidden_layers": 3}).num_hidden_layers
        3
        >>> changed(demo_config(), {"num_hidden_layer": 3})
        Traceback (most recent call last):
        finetune_common.errors.ConfigurationError: --model.num_hidden_layer: bert has no such field: \
did you mean 'num_hidden_layers'?
    """
    named = config.attribute_map
    own = {named.get(name, name): value for name, value in fields.items() if hasattr(config, name)}
    inner = {name: value for name, value in fields.items() if not hasattr(config, name)}
    parts = {name: getattr(config, name, None) for name in config.sub_configs}
    for name, part in parts.items():
        if not isinstance(part, transformers.PretrainedConfig):
            continue
        given = own.pop(name) if isinstance(own.get(name), Mapping) else {}
        if inner and part is config.get_text_config():
            given, inner = {**given, **inner}, {}
        if given:
            setattr(config, name, changed(part, given))
    for name in inner:
        known = [key for key in config.to_dict() if not key.startswith("_")]
        raise ConfigurationError(
            f"--model.{name}: {config.model_type} has no such field: {did_you_mean(name, known)}"
        )
    try:
        if lists := _layer_lists(config, own):
            config = type(config).from_dict({**config.to_dict(), **own, **lists})
        for name, value in own.items():
            setattr(config, name, value)
    except (StrictDataclassError, LookupError, TypeError, ValueError) as error:
        reason = " ".join(str(error.__cause__ or error).split())
        raise ConfigurationError(f"--model: no {config.model_type} of this shape: {reason}") from None
    return config


def _layer_lists(config: transformers.PretrainedConfig, fields: Settings) -> JsonObject:
    """Return what a configuration lists layer by layer, for the depth among the fields.

    Such a list is as long as a number that changes, and its class, left to itself, makes it longer or shorter
    with that number. Where it was not the class's own, it goes on as it began.
    """
    shape = config.to_dict()
    numbers = [shape.get(name) for name in fields]
    lists = {
        name: value
        for name, value in shape.items()
        if isinstance(value, list) and len(value) in numbers and name not in fields
    }
    if not lists:
        return {}
    rest = {name: value for name, value in shape.items() if name not in lists}
    before, after = (type(config).from_dict({**rest, **more}).to_dict() for more in ({}, fields))
    return {
        name: after[name] if before[name] == value else _continued(value, len(after[name]))
        for name, value in lists.items()
        if len(value) == len(before.get(name) or ()) != len(after.get(name) or ())
    }


def _continued(values: list[object], length: int) -> list[object]:
    """Return a list cut to a length, or repeated by its period."""
    period = next(n for n in range(1, len(values) + 1) if values[n:] == values[:-n])
    return [values[place % period] for place in range(length)]

"""Checks that a model, its tokenizer and the rows fit, before the first step."""

from __future__ import annotations

import re
from typing import Any

import torch

from finetune_common.errors import ConfigurationError

__all__ = ["check_positions", "check_tokens"]


def check_positions(model: torch.nn.Module, longest: int) -> None:
    """Refuse rows longer than the model's table of positions; relative positions have no limit.

    Args:
        model: Its position embeddings are found by their usual names.
        longest: Tokens of the longest row.
    """
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Embedding) and re.search(
            r"\b(position_embeddings|embed_positions|wpe)$", name
        ):
            reserved = getattr(module, "offset", 0) if module.padding_idx is None else module.padding_idx + 1
            positions = module.num_embeddings - reserved
            if longest > positions:
                raise ConfigurationError(
                    f"rows have up to {longest} tokens and this model has {positions} positions: "
                    f"use --max-length {positions}"
                )


def check_tokens(model: str, loaded: Any, tokenizer: Any, pair: bool) -> None:
    """Refuse a tokenizer whose output the model cannot take.

    Args:
        model: Its name.
        loaded: The model itself.
        tokenizer: The model's tokenizer.
        pair: Whether rows are pairs of texts.
    """
    embeddings = loaded.get_input_embeddings()
    if len(tokenizer) > embeddings.num_embeddings:
        raise ConfigurationError(
            f"--model {model}: its tokenizer has {len(tokenizer):,} tokens, and the model has embeddings for "
            f"{embeddings.num_embeddings:,}: give a folder whose tokenizer belongs to the model, or resize "
            "the embeddings first (resize_token_embeddings)"
        )
    encoded = tokenizer("a", "a") if pair else tokenizer("a")
    end = loaded.config.eos_token_id
    if loaded.config.is_encoder_decoder and end not in encoded["input_ids"]:
        raise ConfigurationError(
            f"--model {model}: a {type(loaded).__name__} needs eos_token_id {end} at the end of a text, and "
            "its tokenizer does not add it: give a folder whose tokenizer belongs to the model"
        )
    kinds = getattr(loaded.config, "type_vocab_size", 0)
    if 0 < kinds <= max(encoded.get("token_type_ids", [0])):
        raise ConfigurationError(
            f"--model {model}: its tokenizer numbers the texts of a pair, and the model has only {kinds} "
            "token type: remove token_type_ids from model_input_names in tokenizer_config.json"
        )

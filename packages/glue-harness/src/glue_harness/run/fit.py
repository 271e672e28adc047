"""Checks that a model, its tokenizer and the rows fit, before the first step."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import torch

from finetune_common.aliases import JsonObject, Settings
from finetune_common.errors import ConfigurationError, reason

if TYPE_CHECKING:
    import transformers

    from glue_harness.run.plan import Data

__all__ = ["check_fields", "check_loaded", "check_longest", "check_positions", "check_tokens"]


LABEL_FIELDS = ("num_labels", "problem_type", "id2label", "label2id")
"""Fields of a model's configuration that the task sets."""


def check_fields(fields: Settings) -> None:
    """Refuse changes of fields that the task sets.

    Args:
        fields: Of the model's configuration.
    """
    for name in LABEL_FIELDS:
        if name in fields:
            raise ConfigurationError(
                f"--model.{name}: the task decides on labels: leave it out, or choose another task or --kind"
            )


def check_loaded(model: str, loaded: transformers.PreTrainedModel, report: JsonObject) -> None:
    """Refuse weights with other shapes or names than the architecture's: only a head may be new."""
    encoder = f"{loaded.base_model_prefix}."
    expected_names = {name for name, _ in loaded.named_parameters() if name.startswith(encoder)}
    for name, shape, expected in sorted(report["mismatched_keys"]):
        if name in expected_names:
            raise ConfigurationError(
                f"--model {model}: its weights do not fit its config.json: {name} has shape {tuple(shape)}, "
                f"expected {tuple(expected)}"
            )
    if expected_names and expected_names <= set(report["missing_keys"]):
        raise ConfigurationError(
            f"--model {model}: its weights have other names than those of a {type(loaded).__name__}: give a "
            "folder whose config.json belongs to its weights"
        )


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


@torch.no_grad()
def check_longest(name: str, model: torch.nn.Module, parts: Iterable[Data]) -> None:
    """Refuse a model that cannot take the longest row, by a forward pass of it where the model is.

    Quantised weights may have no forward pass before they are on their device; they are not tried.

    Args:
        name: The model's name.
        model: The model; it is left in evaluation mode.
        parts: The rows of each task.
    """
    if not all(parameter.is_floating_point() for parameter in model.parameters()):
        return
    model.eval()
    for part in parts:
        split = max(part.lengths, key=lambda split: part.lengths[split].max())
        row = {**part.datasets[split][int(part.lengths[split].argmax())]}
        row.pop("labels", None)
        with torch.random.fork_rng(range(torch.cuda.device_count())):
            try:
                model(**part.collator([row]), **part.marks)
            except Exception as error:
                longest = part.lengths[split].max()
                raise ConfigurationError(
                    f"--model {name}: it cannot take a row of {longest} tokens ({reason(error)}): give a "
                    "lower --max-length, or check its config.json and the fields given as --model.FIELD"
                ) from None


def check_tokens(model: str, loaded: Any, tokenizer: Any, pair: bool) -> None:
    """Refuse a tokenizer whose output the model cannot take.

    Args:
        model: Its name.
        loaded: The model itself.
        tokenizer: The model's tokenizer.
        pair: Whether rows are pairs of texts.
    """
    embeddings, largest = loaded.get_input_embeddings(), max(tokenizer.get_vocab().values())
    if largest >= embeddings.num_embeddings:
        raise ConfigurationError(
            f"--model {model}: its tokenizer numbers tokens up to {largest:,}, and it has embeddings for "
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

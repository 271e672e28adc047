"""Models and tokenizers: from the hub, from a folder, or the demo made on the spot."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors import SafetensorError

from finetune_common.errors import ConfigurationError
from finetune_common.tasks import Task
from glue_harness.run.architectures import changed, demo_config, find_config

__all__ = ["build_model", "check_positions", "load_model", "load_tokenizer", "parameter_groups"]

WEIGHT_FILES = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)

transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()


def _check_folder(model: str) -> None:
    """Refuse a local path that does not hold a model, in one line."""
    folder = Path(model)
    if not folder.is_dir():
        if folder.is_absolute() or model.startswith((".", "~")):
            raise ConfigurationError(
                f"--model {model}: no such folder; give a hub name, a model folder, or 'demo'"
            )
        return
    if not (folder / "config.json").is_file():
        raise ConfigurationError(f"--model {model}: no config.json in this folder; is it a model folder?")
    if not any((folder / name).is_file() for name in WEIGHT_FILES):
        raise ConfigurationError(
            f"--model {model}: no weights in this folder: expected one of {', '.join(WEIGHT_FILES)}"
        )


def _unloadable(model: str, error: Exception) -> ConfigurationError:
    reason = " ".join(str(error).split()).split(". ")[0][:160]
    return ConfigurationError(
        f"--model {model}: cannot be loaded ({reason}): check the name, or run 'glue-harness prepare' "
        "where there is a network, or give a model folder"
    )


def load_tokenizer(model: str, pad_token_id: int | None = None) -> transformers.PreTrainedTokenizerBase:
    """Return the model's fast tokenizer, with a padding token: its own, or the one that ends a text.

    Args:
        model: Hub name, folder, or `demo`.
        pad_token_id: The token to pad with, where the tokenizer has neither.

    Raises:
        ConfigurationError: Nothing that can be loaded, or no token to pad with.
    """
    if model == "demo":
        from finetune_common.demo import demo_tokenizer

        return demo_tokenizer()
    _check_folder(model)
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(model)
    except (OSError, ValueError, KeyError) as error:
        raise _unloadable(model, error) from None
    files = sorted({"tokenizer.json", *tokenizer.vocab_files_names.values()})
    if Path(model).is_dir() and not any((Path(model) / name).is_file() for name in files):
        raise ConfigurationError(
            f"--model {model}: no tokenizer in this folder: expected one of {', '.join(files)}"
        )
    if tokenizer.pad_token is None:
        named = None if pad_token_id is None else tokenizer.convert_ids_to_tokens(pad_token_id)
        tokenizer.pad_token = named or tokenizer.eos_token
    if tokenizer.pad_token is None:
        raise ConfigurationError(
            f"--model {model}: its tokenizer has neither a padding token nor one that ends a text: "
            "--model.pad_token_id 0 pads with token 0, for instance"
        )
    return tokenizer


def _check_loaded(model: str, loaded: transformers.PreTrainedModel, report: Mapping[str, Any]) -> None:
    """Refuse weights of other shapes or names than the architecture's: only a head may be new."""
    encoder = f"{loaded.base_model_prefix}."
    own = {name for name, _ in loaded.named_parameters() if name.startswith(encoder)}
    for name, found, expected in sorted(report["mismatched_keys"]):
        if name in own:
            raise ConfigurationError(
                f"--model {model}: its weights do not fit its config.json: {name} has shape {tuple(found)}, "
                f"expected is {tuple(expected)}"
            )
    if own and own <= set(report["missing_keys"]):
        raise ConfigurationError(
            f"--model {model}: its weights have other names than a {type(loaded).__name__}'s, none fits"
        )


def load_model(
    model: str,
    task: Task,
    tokenizer: transformers.PreTrainedTokenizerBase,
    load_kwargs: Mapping[str, Any] | None = None,
    model_config: Mapping[str, Any] | None = None,
) -> transformers.PreTrainedModel:
    """Return a sequence classifier for a task; a new head is drawn from torch's generator.

    Args:
        model: Hub name, folder, or `demo`.
        task: Decides the number of labels and regression or classification.
        tokenizer: Its padding token is the model's.
        load_kwargs: Further arguments of `from_pretrained`, from the adaptation.
        model_config: Fields of the model's configuration to change.

    Raises:
        ConfigurationError: Nothing that can be loaded, or no such field.
    """
    if model == "demo":
        own = {**labels_of(task), "pad_token_id": tokenizer.pad_token_id, **(model_config or {})}
        config = changed(demo_config(len(tokenizer)), own)
        return transformers.BertForSequenceClassification(config)
    _check_folder(model)
    try:
        config = transformers.AutoConfig.from_pretrained(model, **labels_of(task))
        loaded, report = transformers.AutoModelForSequenceClassification.from_pretrained(
            model,
            config=changed(config, model_config or {}),
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # the head of another task is drawn anew
            **{"dtype": torch.float32, **(load_kwargs or {})},
        )
    except ConfigurationError:
        raise
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        raise _unloadable(model, error) from None
    _check_loaded(model, loaded, report)
    loaded.config.pad_token_id = tokenizer.pad_token_id
    return loaded


def build_model(
    model: str, model_config: Mapping[str, Any] | None, max_length: int
) -> transformers.PreTrainedModel:
    """Return a classifier of two labels with random weights; a preset of `architectures` needs no network.

    Args:
        model: Preset, hub name, folder, or `demo`.
        model_config: Fields of the model's configuration to change.
        max_length: Tokens that a row may have.

    Raises:
        ConfigurationError: No such field, or no model of this shape.
    """
    labels = {"num_labels": 2, "problem_type": "single_label_classification"}
    shape = changed(find_config(model), {**labels, **(model_config or {})})
    try:
        built = transformers.AutoModelForSequenceClassification.from_config(shape)
    except (ValueError, TypeError, RuntimeError, ZeroDivisionError) as error:
        reason = " ".join(str(error).split())[:160]
        raise ConfigurationError(f"--model {model}: no model of this shape: {reason}") from None
    check_positions(built, max_length)
    return built


def labels_of(task: Task) -> dict[str, Any]:
    """Return the fields of a model's configuration that a task decides."""
    if task.regression:
        return {"num_labels": 1, "problem_type": "regression"}
    return {
        "problem_type": "multi_label_classification" if task.several else "single_label_classification",
        "id2label": dict(enumerate(task.labels)),
        "label2id": {name: number for number, name in enumerate(task.labels)},
    }


def check_positions(model: torch.nn.Module, longest: int) -> None:
    """Refuse rows that are longer than the model's table of positions; relative positions have no end.

    Args:
        model: Its embeddings of positions are found by their usual names.
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


def parameter_groups(
    model: torch.nn.Module, weight_decay: float, head_lr: float | None = None, decay_all: bool = False
) -> list[dict[str, Any]]:
    """Split what trains: matrices decay, biases and norms on request; the head may have its own rate.

    The head is all that lies outside of the base model, and the base model's pooler.

    Returns:
        Groups as `finetune_common.slots.Optimizer.build` takes them, none empty.
    """
    base: Any = model.base_model
    body = set() if base is model else {id(parameter) for parameter in base.parameters()}
    if isinstance(pooler := getattr(base, "pooler", None), torch.nn.Module):
        body -= {id(parameter) for parameter in pooler.parameters()}
    if head_lr is not None and not body:
        raise ConfigurationError(
            f"head_lr={head_lr}: no head can be told from the rest of this model; leave it out"
        )
    groups: dict[tuple[bool, bool], list[tuple[str, torch.nn.Parameter]]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            own_rate = head_lr is not None and id(parameter) not in body
            groups.setdefault((own_rate, decay_all or parameter.ndim >= 2), []).append((name, parameter))
    if not groups:
        raise ConfigurationError("nothing trains: the adaptation froze every parameter")
    return [
        {"params": params, "weight_decay": weight_decay if decays else 0.0}
        | ({"lr": head_lr} if own_rate else {})
        for (own_rate, decays), params in groups.items()
    ]

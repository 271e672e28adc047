"""Adapt a model, fold the adaptation into its weights, or take it back."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import nn

from finetune_common.errors import ConfigurationError
from parameter_efficient.accounting import trainable_parameters
from parameter_efficient.adapters import attach_adapter
from parameter_efficient.architecture import Architecture, Layer, find_architecture, is_projection
from parameter_efficient.attachment import Attachment, InPlace
from parameter_efficient.configs import (
    BitFit,
    BottleneckAdapter,
    Config,
    FFNTuning,
    Fusion,
    HeadOnly,
    LoRA,
    PrefixTuning,
    QLoRA,
)
from parameter_efficient.heads import FrozenInput, MeanPooling, Truncation, head_parameters
from parameter_efficient.low_rank import LowRank
from parameter_efficient.prefixes import attach_prefix

__all__ = ["Record", "adapt", "merge", "record_of", "remove", "unmerge"]

Model = TypeVar("Model", bound=nn.Module)
RECORD = "_parameter_efficient"


@dataclass
class Record:
    """What is known about an adapted model.

    Args:
        config: How it was adapted.
        attachments: What was changed, in order.
        flags: Every parameter that the model had, and whether it trained.
        merged: Whether the changes are in the weights now.
    """

    config: Config
    attachments: list[Attachment]
    flags: list[tuple[nn.Parameter, bool]]
    merged: bool = False


def record_of(model: nn.Module) -> Record:
    """Return an adapted model's record.

    Raises:
        ConfigurationError: The model is not adapted.
    """
    record = vars(model).get(RECORD)
    if record is None:
        raise ConfigurationError(
            f"this {type(model).__name__} is not adapted: call adapt(model, config) first"
        )
    return record


def _biases(layer: Layer, config: BitFit) -> list[tuple[nn.Module, str]]:
    if config.biases == "all":
        modules = {
            id(m): m for m in layer.module.modules() if isinstance(getattr(m, "bias", None), nn.Parameter)
        }
    else:
        modules = {id(m): m for role in config.biases for m in layer.roles[role].values()}
        modules = {key: m for key, m in modules.items() if is_projection(m) or hasattr(m, "bias")}
    return [(module, "bias") for module in modules.values()]


def _feed_forward(layer: Layer, config: FFNTuning) -> list[tuple[nn.Module, str]]:
    roles = ["ffn_in", "ffn_out"]
    if config.include_attention_output:
        roles += ["o", "attention_norm", "ffn_norm"]
    modules = [module for role in roles for module in layer.roles[role].values()]
    return [(module, name) for module in modules for name, _ in module.named_parameters(recurse=False)]


def _attach(
    model: Any, config: Config, architecture: Architecture, generator: torch.Generator
) -> Iterator[Attachment]:
    """Change a model in one way; yields each change once it is made."""
    if isinstance(config, HeadOnly):
        if config.encoder_layers is not None:
            yield Truncation(model, architecture, config.encoder_layers)
        return
    layers = architecture.select(config.layers)  # type: ignore[attr-defined]
    if isinstance(config, BottleneckAdapter):
        chunked = bool(getattr(model.config, "chunk_size_feed_forward", 0))
        yield from (attach_adapter(layer, config, generator, chunked) for layer in layers)
    elif isinstance(config, PrefixTuning):
        yield from (attach_prefix(layer, config, generator, model) for layer in layers)
    elif isinstance(config, LoRA):
        if isinstance(config, QLoRA):
            _check_quantised(model)
        yield LowRank(model, layers, config, generator)
    elif isinstance(config, BitFit):
        yield InPlace(place for layer in layers for place in _biases(layer, config))
    elif isinstance(config, FFNTuning):
        yield InPlace(place for layer in layers for place in _feed_forward(layer, config))
    else:
        raise ConfigurationError(f"{type(config).__name__} is no method: see parameter_efficient.configs")


def _check_quantised(model: nn.Module) -> None:
    if not getattr(model, "is_loaded_in_4bit", False):
        raise ConfigurationError(
            "qlora needs a model that was loaded in 4 bits: pass from_pretrained what QLoRAMethod(config)"
            ".load_kwargs() returns, or use lora"
        )


def adapt(model: Model, config: Config, *, dry_run: bool = False) -> Model:
    """Change a model so that only what `config` names, and the head, trains.

    The model itself is changed and returned. Its other parameters are frozen, so that the backward pass ends
    at the lowest layer that trains. What trains in place (the head, biases, feed-forward blocks) is copied
    first, for `remove`. New parameters have the device and dtype of their layer and are drawn from a
    generator of their own; the global random stream does not move.

    Args:
        model: A transformer of a kind that `find_architecture` knows, with or without a head.
        config: One of the dataclasses of this package.
        dry_run: Print what would train, and leave the model as it is.

    Returns:
        The same model.

    Raises:
        ConfigurationError: A layer or an architecture that is not there, or the model or a part of it is
            adapted already. The model is left as it was.

    Examples:
        >>> from transformers import BertConfig, BertForSequenceClassification
        >>> from parameter_efficient import BitFit
        >>> sizes = {"hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 32}
        >>> model = BertForSequenceClassification(BertConfig(num_hidden_layers=2, **sizes))
        >>> model = adapt(model, BitFit(layers=[-1]))
        >>> [name for name, p in model.named_parameters() if p.requires_grad]
        ['bert.encoder.layer.1.attention.self.query.bias', 'bert.encoder.layer.1.intermediate.dense.bias',
         'bert.pooler.dense.weight', 'bert.pooler.dense.bias', 'classifier.weight', 'classifier.bias']
    """
    for module in model.modules():
        if RECORD in vars(module):
            raise ConfigurationError(
                f"this {type(module).__name__} is adapted already: remove(model) first, or use Fusion for "
                "several methods"
            )
    architecture = find_architecture(model)
    generator = torch.Generator().manual_seed(
        torch.initial_seed() % 2**63 if config.seed is None else config.seed
    )
    record = Record(config, [], [(p, p.requires_grad) for p in model.parameters()])
    setattr(model, RECORD, record)
    try:
        for part in config.parts if isinstance(config, Fusion) else (config,):
            for attachment in _attach(model, part, architecture, generator):
                record.attachments.append(attachment)
        if config.pooling == "mean":
            record.attachments.append(MeanPooling(model, architecture))
        record.attachments.append(FrozenInput(architecture))
        record.attachments.append(InPlace(head_parameters(model)))
        model.requires_grad_(False)
        for attachment in record.attachments:
            for parameter in attachment.parameters():
                parameter.requires_grad_(True)
    except BaseException:
        remove(model)
        raise
    if dry_run:
        print(trainable_parameters(model))
        remove(model)
    return model


def remove(model: Model) -> Model:
    """Take an adaptation back: weights, structure and `requires_grad` are what they were, bit for bit.

    Raises:
        ConfigurationError: The model is not adapted.

    Examples:
        >>> from transformers import BertConfig, BertModel
        >>> from parameter_efficient import PrefixTuning
        >>> sizes = {"hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 32}
        >>> model = adapt(BertModel(BertConfig(num_hidden_layers=1, **sizes)), PrefixTuning())
        >>> any("prefix" in name for name, _ in remove(model).named_parameters())
        False
    """
    record = record_of(model)
    if record.merged:
        unmerge(model)
    for attachment in reversed(record.attachments):
        attachment.detach()
    for parameter, flag in record.flags:
        parameter.requires_grad_(flag)
    delattr(model, RECORD)
    return model


def merge(model: Model) -> Model:
    """Fold an adaptation into the model's own weights: same output, no extra module, no extra time.

    LoRA becomes W' = W + (α/r) B A; biases, feed-forward blocks and the head are in the weights anyway. A
    copy of the changed matrices is kept for `unmerge`.

    Raises:
        ConfigurationError: An adapter, a prefix or mean pooling, which no weights can hold.
    """
    record = record_of(model)
    if record.merged:
        raise ConfigurationError("this adaptation is merged already: unmerge(model) takes it back")
    for attachment in record.attachments:
        if type(attachment).merge is not LowRank.merge:
            attachment.merge()
    for attachment in record.attachments:
        if isinstance(attachment, LowRank):
            attachment.merge()
    record.merged = True
    return model


def unmerge(model: Model) -> Model:
    """Undo `merge`, bit for bit.

    Raises:
        ConfigurationError: Nothing is merged.
    """
    record = record_of(model)
    if not record.merged:
        raise ConfigurationError("nothing is merged: merge(model) comes first")
    for attachment in record.attachments:
        attachment.unmerge()
    record.merged = False
    return model

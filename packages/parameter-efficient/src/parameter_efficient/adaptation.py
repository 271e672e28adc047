"""Adapt a model, fold the adaptation into its weights, or take it back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, TypeVar

import torch
from torch import nn

from finetune_common.errors import ConfigurationError
from parameter_efficient.accounting import trainable_parameters
from parameter_efficient.attachment import Attachment, InPlace, Resident
from parameter_efficient.configs import Config, PrefixTuning
from parameter_efficient.forward import valueless
from parameter_efficient.found import Found
from parameter_efficient.heads import FrozenInput, head_parameters
from parameter_efficient.low_rank import LowRank
from parameter_efficient.methods import also_trained, attach
from parameter_efficient.new_tokens import NewTokens
from parameter_efficient.pooling import MeanPooling
from parameter_efficient.prefixes import implementation_of
from parameter_efficient.probe import check_that_all_acts

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


def _prepared(found: Found, config: Config, record: Record) -> None:
    """Make all changes; each is in the record once it is made."""
    model = found.model
    if any(isinstance(part, PrefixTuning) for part in config.parts):
        implementation_of(getattr(model, "config", None))
    generator = torch.Generator().manual_seed(
        torch.initial_seed() % 2**63 if config.seed is None else config.seed
    )
    common = {f.name: getattr(config, f.name) for f in fields(Config)}
    head = head_parameters(model, found.stacks, found.inputs, config.head)
    for part in config.parts:
        for attachment in attach(found, replace(part, **common), generator):
            record.attachments.append(attachment)
    if config.pooling == "mean":
        record.attachments.append(MeanPooling(model, found.encoder(), found.inputs))
    if config.new_tokens:
        ids = found.inputs["input_ids"].clone()
        ids[..., 0] = found.model.get_input_embeddings().num_embeddings - 1  # type: ignore[operator]
        found.inputs["input_ids"] = ids
        record.attachments.append(NewTokens(model, config.new_tokens, config.dtype))
    inside = {id(p) for stack in found.stacks for m in stack.blocks.values() for p in m.parameters()}
    before = [p for p in model.parameters() if id(p) not in inside | {id(getattr(*place)) for place in head}]
    for first in found.first_layers():
        record.attachments.append(FrozenInput(first, before))
    record.attachments.append(InPlace(head))
    record.attachments.append(InPlace(also_trained(model, config.also_train)))
    trained = [parameter for attachment in record.attachments for parameter in attachment.parameters()]
    if not trained:
        raise ConfigurationError(
            f"nothing of {type(model).__name__} would train: a language model's head is its "
            "vocabulary, which stays "
            "frozen unless head='train'; or use another method"
        )
    model.requires_grad_(False)
    for parameter in trained:
        parameter.requires_grad_(True)


def adapt(
    model: Model,
    config: Config,
    *,
    dry_run: bool = False,
    example: Mapping[str, Any] | None = None,
    probe: bool = True,
) -> Model:
    """Change a model so that only what `config` names, and the head, trains.

    The model itself is changed and returned. Its other parameters are frozen, so that the backward pass ends
    at the lowest layer that trains. What trains in place (the head, biases, feed-forward blocks) is copied
    first, for `remove`. New parameters are in float32 at least, on the device of their layer, and are drawn
    from a generator of their own; the global random stream does not move.

    Which matrix plays which role is found by structure (`find_architecture`), on a forward pass of a few
    tokens. Then a probe proves that everything that trains gets a gradient.

    Args:
        model: A transformer, with or without a head.
        config: One of the dataclasses of this package.
        dry_run: Print what was found and what would train, and leave the model as it is.
        example: Keyword arguments of the model's forward pass (a row is enough); made up from its
            configuration where left out.
        probe: Whether to prove that all acts: one more forward and backward pass of the same row.

    Returns:
        The same model.

    Raises:
        ConfigurationError: A layer or a role that is not there or not sure; something that would train and
            change nothing; or the model or a part of it is adapted already. The model is left as it was.

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
        if RECORD in vars(module) or isinstance(module, Resident) or hasattr(module, "lora_A"):
            raise ConfigurationError(
                f"this {type(module).__name__} is adapted already: remove(model) first, or use Fusion for "
                "several methods"
            )
    found = Found(model, config.stack, example)
    record = Record(config, [], [(p, p.requires_grad) for p in model.parameters()])
    setattr(model, RECORD, record)
    try:
        _prepared(found, config, record)
        if probe and not valueless(model):
            check_that_all_acts(model, found.inputs)
    except BaseException:
        remove(model)
        raise
    if dry_run:
        print(found)
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


def merge(model: Model, *, safe: bool = True) -> Model:
    """Fold an adaptation into the model's own weights: same output, no extra module, no extra time.

    LoRA becomes W' = W + (α/r) B A; biases, feed-forward blocks and the head are in the weights anyway, and a
    depth that was cut is written into the configuration. A copy of the changed matrices is kept for
    `unmerge`.

    Args:
        model: An adapted model.
        safe: Refuse where a merged matrix would hold a number that is not finite.

    Raises:
        ConfigurationError: An adapter, a prefix, mean pooling or made biases, which the model's own format
            cannot hold; or numbers that are not finite. The model is as it was.
    """
    record = record_of(model)
    if record.merged:
        raise ConfigurationError("this adaptation is merged already: unmerge(model) takes it back")
    done: list[Attachment] = []
    try:
        # LoRA last: what cannot be merged refuses before a matrix is changed.
        for attachment in sorted(record.attachments, key=lambda one: isinstance(one, LowRank)):
            attachment.merge(safe) if isinstance(attachment, LowRank) else attachment.merge()
            done.append(attachment)
    except BaseException:
        for attachment in reversed(done):
            attachment.unmerge()
        raise
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

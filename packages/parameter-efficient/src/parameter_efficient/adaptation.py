"""Adapt a model, or take an adaptation back."""

from __future__ import annotations

import warnings
from dataclasses import fields, replace
from typing import TypeVar

import torch
from torch import nn

from finetune_common.arguments import explain_arguments
from finetune_common.errors import ConfigurationError, shown
from parameter_efficient.accounting import trainable_parameters
from parameter_efficient.anatomy import Anatomy
from parameter_efficient.attachment import InPlace, Resident
from parameter_efficient.configs import Config, PrefixTuning
from parameter_efficient.forward import Inputs, logits_of, undisturbed, valueless
from parameter_efficient.heads import FrozenInput, head_parameters, is_last_matrix
from parameter_efficient.injected import Injected, described_by
from parameter_efficient.methods import also_trained, attach
from parameter_efficient.new_tokens import NewTokens
from parameter_efficient.pooling import MeanPooling
from parameter_efficient.prefixes import implementation_of
from parameter_efficient.probe import check_that_all_acts
from parameter_efficient.records import RECORD, Record, Records, is_adapted, records_of, refuse_compiled
from parameter_efficient.statistics import Statistics
from parameter_efficient.switching import activate

__all__ = ["adapt", "remove"]

Model = TypeVar("Model", bound=nn.Module)


def _change(anatomy: Anatomy, config: Config, record: Record) -> InPlace:
    """Make all changes, and add each to the record as soon as it is made; return that of the head."""
    model = anatomy.model
    record.attachments.append(Statistics(model))
    if any(isinstance(part, PrefixTuning) for part in config.parts):
        implementation_of(getattr(model, "config", None))
    generator = torch.Generator().manual_seed(
        torch.initial_seed() % 2**63 if config.seed is None else config.seed
    )
    common = {f.name: getattr(config, f.name) for f in fields(Config)}
    head = head_parameters(model, anatomy.stacks, anatomy.vocabulary, anatomy.inputs, config.head)
    first_layers = anatomy.first_layers()
    for part in config.parts:
        for attachment in attach(anatomy, replace(part, **common), generator):
            record.attachments.append(attachment)
    if config.pooling == "mean":
        record.attachments.append(MeanPooling(model, anatomy.encoder(), anatomy.inputs))
    if config.new_tokens:
        record.attachments.append(NewTokens(model, config.new_tokens, config.dtype))
    inside = {id(p) for stack in anatomy.stacks for m in stack.blocks.values() for p in m.parameters()}
    before = [p for p in model.parameters() if id(p) not in inside | {id(getattr(*place)) for place in head}]
    for first in first_layers:
        record.attachments.append(FrozenInput(first, before))
    adapted: set[nn.Module] = set()
    if is_last_matrix(
        model, anatomy.stacks
    ):  # what is adapted by its name is not what the head was taken for
        injected = [one for one in record.attachments if isinstance(one, Injected)]
        adapted = {m for one in injected for layer in one.layers.values() for m in layer.modules()}
    record.attachments.append(trained_head := InPlace(place for place in head if place[0] not in adapted))
    record.attachments.append(InPlace(also_trained(model, config.also_train)))
    trained = [parameter for attachment in record.attachments for parameter in attachment.parameters()]
    if not trained:
        reason = (
            "a language model's head is its vocabulary, which stays frozen unless head='train'"
            if anatomy.vocabulary and config.head is None
            else "it has no head, or none that can be told apart from its body"
        )
        raise ConfigurationError(
            f"nothing in {type(model).__name__} would train: {reason}; name modules in also_train, or use "
            "another method"
        )
    if not head and not config.also_train and _wants_a_head(anatomy, config):
        warnings.warn(
            f"no head of {type(model).__name__} was found, so none trains: name its modules in also_train, "
            "or pass head='none'",
            stacklevel=5,
        )
    model.requires_grad_(False)
    for parameter in trained:
        parameter.requires_grad_(True)
    return trained_head


def _wants_a_head(anatomy: Anatomy, config: Config) -> bool:
    """Return whether a head should train: one is asked for, or the model outputs logits, and not of words."""
    if config.head is None and not anatomy.vocabulary and not valueless(anatomy.model):
        with undisturbed(anatomy.model):
            return bool(logits_of(anatomy.model, anatomy.inputs))
    return config.head == "train"


@explain_arguments
def adapt(
    model: Model,
    config: object,
    *,
    name: str = "default",
    dry_run: bool = False,
    example: Inputs | None = None,
    probe: bool = True,
) -> Model:
    """Change a model so that only its head and the parameters that `config` names train.

    The model itself is changed and returned. Its other parameters are frozen, so the backward pass ends at
    the lowest layer that trains. Parameters of the model that train (the head, biases, feed-forward blocks)
    are copied first, for `remove`. New parameters are in float32 at least, on the device of their layer. They
    have their own random generator; the global random stream does not advance.

    Which matrix plays which role is found by structure (`find_architecture`), on a forward pass of a few
    tokens. Then a probe proves that every trainable parameter gets a gradient.

    Args:
        model: A transformer, with or without a head.
        config: One of the dataclasses of this package, or a configuration of peft whose method acts inside
            a model.
        name: Name of this adaptation. A model can have several; the new one acts, the others wait
            (`activate`, `disabled`).
        dry_run: Print the structure and the parameters that would train, and do not change the model.
        example: Keyword arguments of the model's forward pass (a row is enough); by default made up from its
            configuration.
        probe: Whether to prove that everything acts: one more forward and backward pass of the same row.

    Returns:
        The same model.

    Raises:
        ConfigurationError: A layer or role is missing or not certain; a trainable parameter would change
            nothing; the model has an adaptation of this name; or a part of it is adapted. The model is not
            changed then.

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
    if not isinstance(config, Config):
        config = described_by(config)
    refuse_compiled(model)
    records: Records = vars(model).get(RECORD, Records())
    if name in records.by_name:
        raise ConfigurationError(
            f"this {type(model).__name__} is adapted already as {shown(name)}: remove(model) first, give "
            "another name=, or use Fusion for several methods at once"
        )
    before = records.active
    if records.by_name:
        activate(model, None)
    try:
        anatomy = _adapt(model, config, name, records, example, probe)
    except BaseException:
        if before is not None:
            activate(model, before)
        raise
    if dry_run:
        print(anatomy)
        print(trainable_parameters(model))
        remove(model, name)
        if before is not None:
            activate(model, before)
    return model


def _adapt(
    model: nn.Module,
    config: Config,
    name: str,
    records: Records,
    example: Inputs | None,
    probe: bool,
) -> Anatomy:
    """Adapt a model on which no other adaptation acts."""
    for module in model.modules():
        if (module is not model and is_adapted(module)) or isinstance(module, Resident):
            raise ConfigurationError(
                f"a {type(module).__name__} in this {type(model).__name__} is adapted already: remove that "
                "first"
            )
    anatomy = Anatomy(model, config.stack, example)
    record = Record(config, [], [(p, p.requires_grad) for p in model.parameters()])
    setattr(model, RECORD, records)
    records.by_name[name], records.active = record, name
    try:
        head = {id(parameter) for parameter in _change(anatomy, config, record).parameters()}
        if probe and not valueless(model):
            tokens = [named for attachment in record.attachments for named in attachment.tokens()]
            blocks = [name for stack in anatomy.stacks for name in stack.blocks]
            check_that_all_acts(model, anatomy.inputs, tokens, blocks, head)
    except BaseException:
        remove(model, name)
        raise
    return anatomy


@explain_arguments
def remove(model: Model, name: str | None = None) -> Model:
    """Remove adaptations: weights, structure and `requires_grad` are restored bit for bit.

    Args:
        model: An adapted model.
        name: Which adaptation; null for all of them.

    Raises:
        ConfigurationError: The model is not adapted, or has no adaptation of this name.

    Examples:
        >>> from transformers import BertConfig, BertModel
        >>> from parameter_efficient import PrefixTuning
        >>> sizes = {"hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 32}
        >>> model = adapt(BertModel(BertConfig(num_hidden_layers=1, **sizes)), PrefixTuning())
        >>> any("prefix" in name for name, _ in remove(model).named_parameters())
        False
    """
    records = records_of(model)
    if name is None or name == records.active:
        activate(model, None)
    if name is not None:
        records.named(name)
        del records.by_name[name]
    if name is None or not records.by_name:
        delattr(model, RECORD)
    return model

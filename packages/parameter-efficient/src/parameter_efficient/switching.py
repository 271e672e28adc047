"""Choose which of a model's adaptations acts."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from typing import TypeVar

from torch import nn

from finetune_common.arguments import explain_arguments
from parameter_efficient.merging import unmerge
from parameter_efficient.records import records_of

__all__ = ["activate", "disabled"]

Model = TypeVar("Model", bound=nn.Module)


@explain_arguments
def activate(model: Model, name: str | None) -> Model:
    """Let another adaptation act; the former one leaves the model and keeps its trained values.

    An optimizer holds the parameters of one adaptation: make one for each. A head that trains in place is the
    same parameter for all adaptations, with a value for each. A merged adaptation is unmerged.

    Args:
        model: An adapted model.
        name: Which adaptation; null for none: the model is then the base model, bit for bit.

    Raises:
        ConfigurationError: The model is not adapted, or has no adaptation of this name.

    Examples:
        >>> from transformers import BertConfig, BertForSequenceClassification
        >>> from parameter_efficient import LoRA, PrefixTuning, adapt
        >>> sizes = {"hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 32}
        >>> model = BertForSequenceClassification(BertConfig(num_hidden_layers=1, **sizes))
        >>> model = adapt(adapt(model, LoRA(), name="news"), PrefixTuning(), name="mails")
        >>> any("lora" in name for name, _ in model.named_parameters())
        False
        >>> any("lora" in name for name, _ in activate(model, "news").named_parameters())
        True
    """
    records = records_of(model)
    if name is not None:
        records.named(name)
    if name == records.active:
        return model
    if records.active is not None:
        record = records.named(None)
        if record.merged:
            unmerge(model)
        record.detach(model)
        records.active = None
    if name is not None:
        records.named(name).reattach()
        records.active = name
    return model


@explain_arguments
@contextmanager
def disabled(model: Model) -> Generator[Model, None, None]:
    """Use the base model in a `with` block; afterwards the adaptation acts again, bit for bit.

    Args:
        model: An adapted model.

    Examples:
        >>> import torch
        >>> from transformers import BertConfig, BertModel
        >>> from parameter_efficient import LoRA, adapt
        >>> sizes = {"hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 32}
        >>> model = adapt(BertModel(BertConfig(num_hidden_layers=1, **sizes)), LoRA(init="random"))
        >>> with disabled(model):
        ...     any("lora" in name for name, _ in model.named_parameters())
        False
    """
    name = records_of(model).active
    activate(model, None)
    try:
        yield model
    finally:
        activate(model, name)

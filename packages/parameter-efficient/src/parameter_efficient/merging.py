"""Fold an adaptation into the model's own weights, and undo it."""

from __future__ import annotations

from typing import TypeVar

from torch import nn

from finetune_common.arguments import explain_arguments
from finetune_common.errors import ConfigurationError
from parameter_efficient.attachment import Attachment
from parameter_efficient.injected import Injected
from parameter_efficient.records import record_of

__all__ = ["merge", "unmerge"]

Model = TypeVar("Model", bound=nn.Module)


@explain_arguments
def merge(model: Model, *, safe: bool = True) -> Model:
    """Fold an adaptation into the model's own weights: same output, no extra module, no extra time.

    LoRA becomes W' = W + (α/r) B A, (IA)³ a product. Biases, feed-forward blocks and the head are part of the
    weights already, and a reduced depth is written into the configuration. A copy of the changed matrices is
    kept for `unmerge`.

    Args:
        model: An adapted model.
        safe: Refuse if a merged matrix would hold a number that is not finite.

    Raises:
        ConfigurationError: An adapter, a prefix, mean pooling or new biases, which the model's own format
            cannot hold; or numbers that are not finite. The model is not changed then.

    Examples:
        >>> import torch
        >>> from transformers import BertConfig, BertForSequenceClassification
        >>> from parameter_efficient import LoRA, adapt
        >>> sizes = {"hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 32}
        >>> model = BertForSequenceClassification(BertConfig(num_hidden_layers=1, **sizes))
        >>> type(merge(adapt(model, LoRA(rank=2))).bert.encoder.layer[0].attention.self.query).__name__
        'Linear'
    """
    record = record_of(model)
    if record.merged:
        raise ConfigurationError("this adaptation is merged already: unmerge(model) undoes it")
    merged: list[Attachment] = []
    try:
        # Injected layers last, so that others can refuse before any matrix is changed.
        for attachment in sorted(record.attachments, key=lambda attachment: isinstance(attachment, Injected)):
            attachment.merge(safe) if isinstance(attachment, Injected) else attachment.merge()
            merged.append(attachment)
    except BaseException:
        for attachment in reversed(merged):
            attachment.unmerge()
        raise
    record.merged = True
    return model


@explain_arguments
def unmerge(model: Model) -> Model:
    """Undo `merge`, bit for bit.

    Raises:
        ConfigurationError: Nothing is merged.

    Examples:
        >>> import torch
        >>> from transformers import BertConfig, BertForSequenceClassification
        >>> from parameter_efficient import LoRA, adapt
        >>> sizes = {"hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 32}
        >>> model = BertForSequenceClassification(BertConfig(num_hidden_layers=1, **sizes))
        >>> model = adapt(model, LoRA(rank=2)).eval()
        >>> x = {"input_ids": torch.tensor([[1, 2, 3]])}
        >>> before = model(**x).logits
        >>> torch.equal(unmerge(merge(model))(**x).logits, before)
        True
    """
    record = record_of(model)
    if not record.merged:
        raise ConfigurationError("nothing is merged: call merge(model) first")
    for attachment in record.attachments:
        attachment.unmerge()
    record.merged = False
    return model

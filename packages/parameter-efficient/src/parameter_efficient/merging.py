"""An adaptation folded into the model's own weights, and taken out of them again."""

from __future__ import annotations

from typing import TypeVar

from torch import nn

from finetune_common.errors import ConfigurationError
from parameter_efficient.attachment import Attachment
from parameter_efficient.injected import Injected
from parameter_efficient.records import record_of

__all__ = ["merge", "unmerge"]

Model = TypeVar("Model", bound=nn.Module)


def merge(model: Model, *, safe: bool = True) -> Model:
    """Fold an adaptation into the model's own weights: same output, no extra module, no extra time.

    LoRA becomes W' = W + (α/r) B A, (IA)³ a product; biases, feed-forward blocks and the head are in the
    weights anyway, and a depth that was cut is written into the configuration. A copy of the changed matrices
    is kept for `unmerge`.

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
        # These last: what cannot be merged refuses before a matrix is changed.
        for attachment in sorted(record.attachments, key=lambda one: isinstance(one, Injected)):
            attachment.merge(safe) if isinstance(attachment, Injected) else attachment.merge()
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

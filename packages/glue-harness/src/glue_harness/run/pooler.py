"""The head of a classifier: a pooler that does not come from the checkpoint."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import nn

__all__ = ["renew_pooler"]


@torch.no_grad()
def renew_pooler(model: nn.Module) -> None:
    """Draw the pooler of a base model anew, as a part of the head, with dropout before its linear map.

        h → dropout → W h + b → tanh → dropout → classifier

    The map is drawn from torch's generator as the architecture draws its linear maps. The dropout is that of
    the encoder (`hidden_dropout_prob`). A model whose pooler is part of its head, or which has none, has a
    new head as it is: nothing happens.

    Args:
        model: A sequence classifier of transformers.

    Examples:
        >>> from transformers import BertConfig, BertForSequenceClassification
        >>> shape = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
        >>> model = BertForSequenceClassification(BertConfig(**shape, intermediate_size=8))
        >>> before = model.bert.pooler.dense.weight.clone()
        >>> renew_pooler(model)
        >>> torch.equal(before, model.bert.pooler.dense.weight)
        False
    """
    pooler: Any = getattr(model.base_model, "pooler", None)
    if not isinstance(pooler, nn.Module):
        return
    config: Any = model.config
    for linear in [module for module in pooler.modules() if isinstance(module, nn.Linear)]:
        linear.weight.normal_(0.0, getattr(config, "initializer_range", 0.02))
        if linear.bias is not None:
            linear.bias.zero_()
        # a hook and no module: no name of the saved model changes
        linear.register_forward_pre_hook(partial(_dropped, getattr(config, "hidden_dropout_prob", 0.0)))


def _dropped(p: float, module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
    return (nn.functional.dropout(args[0], p, module.training), *args[1:])

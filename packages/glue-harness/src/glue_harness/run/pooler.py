"""The head of a classifier: a pooler that is not from the checkpoint."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn

__all__ = ["renew_pooler"]


@torch.no_grad()
def renew_pooler(model: nn.Module) -> None:
    """Draw the pooler of a base model anew, as a part of the head, with dropout before its linear map.

        h → dropout → W h + b → tanh → dropout → classifier

    The map is drawn from torch's generator, like the architecture's linear maps. The dropout is the encoder's
    (`hidden_dropout_prob`). If a model's pooler is part of its head, or it has none, its head is new anyway:
    nothing changes.

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
    pooler = getattr(model.base_model, "pooler", None)
    if not isinstance(pooler, nn.Module):
        return
    config = model.config
    for linear in [module for module in pooler.modules() if isinstance(module, nn.Linear)]:
        linear.weight.normal_(0.0, getattr(config, "initializer_range", 0.02))
        if linear.bias is not None:
            linear.bias.zero_()
        # a hook, because a module would change the names of the saved weights
        linear.register_forward_pre_hook(partial(_dropped, getattr(config, "hidden_dropout_prob", 0.0)))


def _dropped(p: float, module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return (nn.functional.dropout(args[0], p, module.training), *args[1:])

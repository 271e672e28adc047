"""Trainable embeddings of new tokens alone, at the end of a vocabulary."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn

from finetune_common.errors import ConfigurationError
from parameter_efficient.attachment import Resident, place_of_new

__all__ = ["NewTokens"]


class NewTokens(Resident):
    """The last n rows of a vocabulary as a separate parameter, of shape (n, d).

    If the vocabulary is the head's matrix as well, its last n logits are computed from them too.

    Args:
        model: The model; the other rows of its embeddings stay frozen.
        count: n.
        dtype: float32 or model.
    """

    def __init__(self, model: nn.Module, count: int, dtype: str) -> None:
        super().__init__()
        words = cast(nn.Embedding, getattr(model, "get_input_embeddings", lambda: None)())
        if count >= words.num_embeddings:
            raise ConfigurationError(
                f"new_tokens={count}: the vocabulary has only {words.num_embeddings} tokens; give how many "
                "of them are new"
            )
        self.first = words.num_embeddings - count
        self.rows = nn.Parameter(words.weight.detach()[self.first :].to(**place_of_new(dtype, words)).clone())
        self._words = [words]  # in a list, since an attribute would make it a child
        self.settle(words, "new_tokens")
        self.act_through(words.register_forward_hook, self._exchange)
        head = getattr(model, "get_output_embeddings", lambda: None)()
        if head is not None and head.weight is words.weight:
            self.act_through(head.register_forward_hook, self._logits)

    def _exchange(self, module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
        ids = args[0]
        rows = nn.functional.embedding((ids - self.first).clamp(min=0), self.rows).to(output.dtype)
        if (scale := getattr(module, "embed_scale", None)) is not None:
            rows = rows * scale
        return torch.where((ids >= self.first)[..., None], rows, output)

    def _logits(self, module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
        new = args[0].to(self.rows.dtype) @ self.rows.T
        return torch.cat([output[..., : self.first], new.to(output.dtype)], dim=-1)

    def merge(self) -> None:
        """Write the rows into the vocabulary."""
        [words] = self._words
        self._before = words.weight.detach()[self.first :].clone()
        with torch.no_grad():
            words.weight[self.first :] = self.rows.to(words.weight.dtype)

    def unmerge(self) -> None:
        """Restore the vocabulary."""
        with torch.no_grad():
            self._words[0].weight[self.first :] = self._before

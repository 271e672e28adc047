"""Trainable embeddings of new tokens alone, at the end of a vocabulary."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from finetune_common.errors import ConfigurationError
from parameter_efficient.attachment import Resident, Tokens, place_of_new

__all__ = ["NewTokens"]


class NewTokens(Resident):
    """The last n rows of a vocabulary as a separate parameter, of shape (n, d).

    Every module that holds the vocabulary (embeddings, and a head that shares it) runs with these rows in
    place, so that it scales, normalises or adds a bias as it does without them.

    Args:
        model: The model; the other rows of its embeddings stay frozen.
        count: n.
        dtype: float32 or model.
    """

    def __init__(self, model: nn.Module, count: int, dtype: str) -> None:
        super().__init__()
        words: nn.Module | None = getattr(model, "get_input_embeddings", lambda: None)()
        vocabulary = getattr(words, "weight", None)
        if words is None or not isinstance(vocabulary, nn.Parameter) or vocabulary.ndim != 2:
            raise ConfigurationError(
                f"new_tokens={count}: {type(model).__name__} has no vocabulary: leave new_tokens out"
            )
        if count >= len(vocabulary):
            raise ConfigurationError(
                f"new_tokens={count}: the vocabulary has only {len(vocabulary)} tokens; give how many "
                "of them are new"
            )
        self._first = len(vocabulary) - count
        self.rows = nn.Parameter(vocabulary.detach()[self._first :].to(**place_of_new(dtype, words)).clone())
        self._holders: dict[nn.Module, str] = {
            module: name
            for module in model.modules()
            for name, parameter in module.named_parameters(recurse=False)
            if parameter is vocabulary
        }
        self.settle(words, "new_tokens")
        for module in self._holders:
            self.act_through(module.register_forward_pre_hook, self._enter)
            self.act_through(module.register_forward_hook, self._leave, always_call=True)

    def _vocabulary(self) -> nn.Parameter:
        module, name = next(iter(self._holders.items()))
        return dict(module.named_parameters(recurse=False))[name]

    def _enter(self, module: nn.Module, args: object) -> None:
        frozen = self._vocabulary()
        whole = torch.cat([frozen[: self._first], self.rows.to(frozen.dtype)])
        # An attribute of this name hides the parameter, which stays where it is.
        object.__setattr__(module, self._holders[module], whole)

    def _leave(self, module: nn.Module, args: object, output: object) -> None:
        vars(module).pop(self._holders[module], None)

    def detach(self) -> None:
        """Leave the model."""
        super().detach()
        for module in self._holders:
            self._leave(module, (), None)  # an interrupted pass may have left it behind

    def tokens(self) -> Iterator[Tokens]:
        """Return the modules that look up new tokens."""
        for module in self._holders:
            yield module, range(self._first, self._first + len(self.rows))

    def merge(self) -> None:
        """Write the rows into the vocabulary."""
        self._before = self._vocabulary().detach()[self._first :].clone()
        self.detach()
        self._write(self.rows)

    def unmerge(self) -> None:
        """Restore the vocabulary."""
        self._write(self._before)
        self.reattach()

    def _write(self, rows: Tensor) -> None:
        with torch.no_grad():
            self._vocabulary()[self._first :] = rows

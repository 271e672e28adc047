"""Trainable embeddings of new tokens alone, at the end of a vocabulary."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from itertools import chain

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map_only

from finetune_common.errors import ConfigurationError
from parameter_efficient.attachment import Resident, Tokens, place_of_new

__all__ = ["NewTokens"]


class NewTokens(Resident):
    """The last n rows of a vocabulary as a separate parameter, of shape (n, d).

    Every module that holds the vocabulary (embeddings, and a head that shares it) runs once more, with these
    rows alone, so that it scales, normalises or adds a bias as it does without them.

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
        self._doubles = {module: _double(module) for module in self._holders}
        for module in self._holders:
            self.act_through(module.register_forward_hook, self._exchange, with_kwargs=True)

    def _vocabulary(self) -> nn.Parameter:
        module, name = next(iter(self._holders.items()))
        return dict(module.named_parameters(recurse=False))[name]

    def _exchange(
        self, module: nn.Module, args: tuple[object, ...], kwargs: dict[str, object], output: Tensor
    ) -> Tensor:
        """Compute a module's output with the new rows, from them alone where it treats each token alone."""
        vocabulary, first = self._vocabulary(), self._first
        rows = self.rows.to(vocabulary.dtype)
        given = [value for value in tree_leaves((args, kwargs)) if isinstance(value, Tensor)]
        if len(given) == 1 and _looks_up(given[0], output):
            args, kwargs = tree_map_only(Tensor, self._numbered, (args, kwargs))
            new = self._run(module, rows, first, args, kwargs)
            return torch.where((given[0] >= first)[..., None], new, output)
        if output.shape[-1] == len(vocabulary) != rows.shape[1]:  # a number for each token
            new = self._run(module, rows, first, args, kwargs)
            return torch.cat([output[..., :first], new], dim=-1)
        whole = torch.cat([vocabulary[:first], rows])
        return self._run(module, whole, 0, args, kwargs)

    def _numbered(self, ids: Tensor) -> Tensor:
        """Return the numbers of new tokens among the new ones; others get one of these."""
        return (ids - self._first).clamp(min=0)

    def _run(
        self, module: nn.Module, rows: Tensor, first: int, args: tuple[object, ...], kwargs: dict[str, object]
    ) -> Tensor:
        """Run a module's double with other rows, which stand for the tokens from `first` on."""
        double, length, held = self._doubles[module], len(self._vocabulary()), dict(_held(module))
        for name, tensor in held.items():
            part = tensor[first:] if tensor.ndim and len(tensor) == length else tensor
            object.__setattr__(double, name, rows if name == self._holders[module] else part)
        padding: int | None = vars(module).get("padding_idx")
        if padding is not None:
            double.__dict__["padding_idx"] = padding - first if padding >= first else None
        double.training = module.training
        try:
            output: Tensor = double.forward(*args, **kwargs)
            return output
        finally:
            for name in held:  # it keeps no graph: a model that holds one cannot be copied
                object.__setattr__(double, name, None)

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


def _looks_up(given: Tensor, output: Tensor) -> bool:
    """Return whether a module may give each token of its input a vector."""
    return not given.is_floating_point() and given.shape == output.shape[:-1]


def _held(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    return chain(module.named_parameters(recurse=False), module.named_buffers(recurse=False))


def _double(module: nn.Module) -> nn.Module:
    """Return a module that computes as another does, once its tensors are set, as plain attributes."""
    double, kinds = copy.copy(module), ("_parameters", "_buffers")
    for held in [vars(double)[kind] for kind in kinds]:
        vars(double).update(dict.fromkeys(held))
    vars(double).update({kind: {} for kind in kinds})
    return double

"""Samples of gradient noise at a fixed point."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence, Sized
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.func import functional_call

from finetune_common.arguments import explain_arguments
from finetune_common.errors import ConfigurationError, check_choice, check_number

__all__ = ["LossFunction", "sample_gradient_noise"]

LossFunction = Callable[[nn.Module, Any], Tensor]
"""(model, batch) → mean loss; the batches may be of any type."""

BLOCK = 2**18


@explain_arguments
def sample_gradient_noise(
    model: nn.Module,
    loss_fn: LossFunction,
    batches: Iterable[object],
    n: int,
    *,
    dropout: str = "off",
    seed: int = 0,
) -> Tensor:
    """Sample ‖∇f_B(θ) - ∇f(θ)‖, the distance of a mini-batch's gradient from the full one, at one point θ.

    The full gradient is the mean over all rows of one pass through `batches`: each batch's gradient is
    weighted by its rows. Further passes give the norms, until there are n. Only two gradients are in memory
    at once, for any n. A batch shorter than the first (the last of an epoch) counts in the full gradient but
    gives no norm. The model is used as it is, with its head. Parameters, buffers, `.grad`, mode and the
    process's random state stay as they were, and hooks on parameters do not fire.

    Args:
        model: The model; the parameters with `requires_grad` make up the gradient. On one device.
        loss_fn: (model, batch) → mean loss over the batch's rows, a scalar.
        batches: Yields the data each time it is iterated. A loader that shuffles gives new mini-batches at
            every pass; a list gives at most one norm per batch.
        n: Number of norms, at least 1.
        dropout: "off" for evaluation mode, "fixed" for training mode with the same random numbers for every
            batch.
        seed: Seed of those random numbers.

    Returns:
        n norms on the model's device, in the parameters' dtype (at least float32).

    Raises:
        ConfigurationError: No trainable parameter, no batch, too few batches, or `batches` that can be
            iterated only once.

    Examples:
        >>> model = nn.Linear(1, 1, bias=False)
        >>> rows = [torch.tensor([[1.0]]), torch.tensor([[2.0]]), torch.tensor([[6.0]])]
        >>> sample_gradient_noise(model, lambda model, x: model(x).mean(), rows, n=3)  # gradients 1, 2, 6
        tensor([2., 1., 3.])
    """
    check_choice("dropout", dropout, ("off", "fixed"))
    check_number("n", n, at_least=1)
    if iter(batches) is batches:
        raise ConfigurationError(
            "batches can be iterated only once: pass a list or a loader, not a generator"
        )
    gradient = _Gradient(model, loss_fn, dropout, seed)
    with gradient.running():
        full, first_rows = _full_gradient(gradient, batches)
        norms = full[0].new_empty(n, dtype=_dtype(full))
        for i, batch in enumerate(_drawn(batches, first_rows, n)):
            norms[i] = _distance(gradient(batch), full)
    return norms


class _Gradient:
    """The gradient of a batch with respect to stand-ins that share the parameters' memory."""

    def __init__(self, model: nn.Module, loss_fn: LossFunction, dropout: str, seed: int):
        self.loss, self.dropout, self.seed = _Loss(model, loss_fn), dropout, seed
        self.stand_ins = {
            name: param.detach().requires_grad_()
            for name, param in self.loss.named_parameters()
            if param.requires_grad
        }
        if not self.stand_ins:
            raise ConfigurationError("no parameter has requires_grad: there is no gradient to sample")

    def __call__(self, batch: object) -> tuple[Tensor, ...]:
        buffers = {name: buffer.clone() for name, buffer in self.loss.named_buffers()}
        with self._random_numbers(), torch.enable_grad():
            loss = functional_call(self.loss, {**self.stand_ins, **buffers}, (batch,))
        return torch.autograd.grad(loss, list(self.stand_ins.values()), materialize_grads=True)

    def _random_numbers(self) -> AbstractContextManager[None]:
        return self._fixed_random_numbers() if self.dropout == "fixed" else nullcontext()

    @contextmanager
    def _fixed_random_numbers(self) -> Generator[None, None, None]:
        device = next(iter(self.stand_ins.values())).device
        devices = [device] if device.type == "cuda" else []
        with torch.random.fork_rng(devices):  # pyright: ignore[reportUnknownMemberType]  # torch: no types
            torch.manual_seed(self.seed)  # pyright: ignore[reportUnknownMemberType]
            yield

    @contextmanager
    def running(self) -> Generator[None, None, None]:
        """Set the modules to the measurement's mode, and restore it afterwards."""
        modes = {module: module.training for module in self.loss.modules()}
        self.loss.train(self.dropout == "fixed")
        try:
            yield
        finally:
            for module, mode in modes.items():
                module.training = mode


class _Loss(nn.Module):
    def __init__(self, model: nn.Module, loss_fn: LossFunction):
        super().__init__()
        self.model, self.loss_fn = model, loss_fn

    def forward(self, batch: object) -> Tensor:
        return self.loss_fn(self.model, batch)


def _full_gradient(gradient: _Gradient, batches: Iterable[object]) -> tuple[list[Tensor], int]:
    """Return the mean over all rows, and the number of rows in the first batch."""
    total: list[Tensor] = []
    total_rows = first_rows = 0
    for batch in batches:
        rows = _rows(batch)
        parts = [part * rows for part in gradient(batch)]  # a product, as parameters may share one gradient
        if total:
            for tensor, part in zip(total, parts, strict=True):
                tensor += part
        else:
            total, first_rows = parts, rows
        total_rows += rows
    if not total:
        raise ConfigurationError("batches is empty: give at least one batch")
    return [tensor.div_(total_rows) for tensor in total], first_rows


def _drawn(batches: Iterable[object], rows: int, n: int) -> Iterator[object]:
    """Yield n batches with at least so many rows, in as many passes as it takes."""
    drawn = 0
    while drawn < n:
        before = drawn
        for batch in batches:
            if _rows(batch) >= rows:
                yield batch
                drawn += 1
                if drawn == n:
                    return
        if isinstance(batches, Sequence) or drawn == before:
            raise ConfigurationError(
                f"n={n}, but batches gives only {drawn} mini-batches of {rows} rows: lower n, or pass a "
                "loader that shuffles"
            )


def _rows(batch: object) -> int:
    """Return the number of rows: the length of the batch's first tensor."""
    if isinstance(batch, Tensor):
        return len(batch)
    for value in _entries(batch):
        if isinstance(value, Tensor) or _is_nested(value):
            return _rows(value)
    raise ConfigurationError(
        f"a batch of type {type(batch).__name__} holds no tensor, so its rows cannot be counted: put the "
        "batch's tensors into a tuple, a list or a mapping"
    )


def _entries(batch: object) -> Iterable[object]:
    if isinstance(batch, Mapping):
        return cast("Mapping[object, object]", batch).values()
    return cast("Iterable[object]", batch)


def _is_nested(value: object) -> bool:
    return isinstance(value, (Mapping, tuple, list)) and len(cast("Sized", value)) > 0


def _dtype(parts: Sequence[Tensor]) -> torch.dtype:
    return torch.float64 if parts[0].dtype == torch.float64 else torch.float32


def _distance(left: Sequence[Tensor], right: Sequence[Tensor]) -> Tensor:
    """Return the norm of the difference over all tensors; on a CPU in blocks that stay in the cache."""
    block = BLOCK if right[0].device.type == "cpu" else max(part.numel() for part in right)
    dtype = _dtype(right)
    squares: list[Tensor] = []
    for left_part, right_part in zip(left, right, strict=True):
        left_blocks = torch.split(left_part.reshape(-1), block)
        for x, y in zip(left_blocks, torch.split(right_part.reshape(-1), block), strict=True):
            difference = (x - y).to(dtype)
            squares.append(torch.dot(difference, difference))
    return torch.stack(squares).sum().sqrt()

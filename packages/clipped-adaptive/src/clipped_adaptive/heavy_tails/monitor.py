"""The tails of gradient noise during training."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import cast

from torch import Tensor, nn

from clipped_adaptive.heavy_tails.noise import LossFunction, sample_gradient_noise
from clipped_adaptive.heavy_tails.statistics import hill, outlier_ratios
from finetune_common.aliases import StateDict
from finetune_common.arguments import explain_arguments
from finetune_common.errors import check_number

__all__ = ["TailMonitor"]

SMALLEST_SAMPLE = 8

Arguments = tuple[tuple[object, ...], dict[str, object]]
"""Positional and keyword arguments of a model's forward pass: a batch."""


@explain_arguments
class TailMonitor:
    """Measure, every N steps, the tails of the gradient noise at the current point.

    It remembers the model's last training batches, and measures the distance of each batch's gradient from
    the mean of all (`sample_gradient_noise`, evaluation mode). That costs two passes per batch, draws no
    random numbers and does not change the model or its gradients.

    Args:
        model: The model in training; attach it before the first step.
        every: Steps between two measurements.
        batches: How many of the last (micro-)batches to remember, at least 8. With few, the ratios are
            coarse: one outlier among 32 is ρ_mild = 9.
        loss_fn: (model, (args, kwargs) of the model's forward) → mean loss; None takes `.loss` of the output,
            which transformers models have if `labels` are given.

    Raises:
        ConfigurationError: A number out of range.

    Examples:
        >>> import torch
        >>> class Model(nn.Linear):
        ...     def forward(self, x):
        ...         return super().forward(x).mean()
        >>> model = Model(2, 1)
        >>> monitor = TailMonitor(model, every=10, batches=8, loss_fn=lambda model, seen: model(*seen[0]))
        >>> for step in range(1, 11):
        ...     loss = model(torch.randn(4, 2))
        ...     measured = monitor.on_step(step)
        >>> sorted(measured)
        ['tails.hill', 'tails.noise_max', 'tails.noise_median', 'tails.rho_extreme', 'tails.rho_mild']
        >>> monitor.remove()
    """

    def __init__(
        self, model: nn.Module, *, every: int = 200, batches: int = 32, loss_fn: LossFunction | None = None
    ):
        check_number("every", every, at_least=1)
        check_number("batches", batches, at_least=SMALLEST_SAMPLE)
        self.model, self.every, self.loss_fn = model, every, loss_fn or _loss_of_output
        self._batches: deque[Arguments] = deque(maxlen=batches)
        self._hook = model.register_forward_pre_hook(self._remember, with_kwargs=True)

    def _remember(self, model: nn.Module, args: tuple[object, ...], kwargs: dict[str, object]) -> None:
        if model.training:
            self._batches.append(_with_tensors((args, kwargs), Tensor.detach))

    def on_step(self, step: int) -> dict[str, float]:
        """Measure, if the step is a multiple of `every` and enough batches are remembered.

        Args:
            step: The number of optimizer steps taken.

        Returns:
            Empty, or `tails.rho_mild` and `tails.rho_extreme` (`outlier_ratios`), `tails.hill` over the
            largest quarter of the norms, and the norms' median and maximum. Batches shorter than the longest
            (the last of an epoch) are left out.
        """
        if step % self.every or len(self._batches) < (self._batches.maxlen or 0):
            return {}
        rows = [_rows_of(batch) for batch in self._batches]
        full = [batch for batch, count in zip(self._batches, rows, strict=True) if count == max(rows)]
        if len(full) < SMALLEST_SAMPLE:
            return {}
        norms = sample_gradient_noise(self.model, self.loss_fn, full, len(full)).cpu()
        mild, extreme = outlier_ratios(norms)
        return {
            "tails.rho_mild": mild,
            "tails.rho_extreme": extreme,
            "tails.hill": hill(norms, max(1, len(norms) // 4)),
            "tails.noise_median": norms.median().item(),
            "tails.noise_max": norms.max().item(),
        }

    def remove(self) -> None:
        """Detach from the model and forget the batches."""
        self._hook.remove()
        self._batches.clear()

    def state_dict(self) -> StateDict:
        """Return the remembered batches, so that a resumed run measures like an uninterrupted one."""
        return {"seen": [list(batch) for batch in self._batches]}

    def load_state_dict(self, state_dict: StateDict) -> None:
        """Load the remembered batches."""
        device = next(self.model.parameters()).device
        self._batches.clear()
        for batch in state_dict["seen"]:
            self._batches.append(_with_tensors(batch, lambda tensor: tensor.to(device)))


def _loss_of_output(model: nn.Module, batch: Arguments) -> Tensor:
    args, kwargs = batch
    return model(*args, **kwargs).loss


def _with_tensors(batch: Arguments, change: Callable[[Tensor], Tensor]) -> Arguments:
    """Return a batch with a function applied to every tensor."""
    args, kwargs = batch
    return (
        tuple(_changed(value, change) for value in args),
        {name: _changed(value, change) for name, value in kwargs.items()},
    )


def _changed(value: object, change: Callable[[Tensor], Tensor]) -> object:
    if isinstance(value, Tensor):
        return change(value)
    if isinstance(value, dict):
        entries = cast("dict[object, object]", value)
        return {key: _changed(entry, change) for key, entry in entries.items()}
    if isinstance(value, (tuple, list)):
        return tuple(_changed(entry, change) for entry in cast("Sequence[object]", value))
    return value


def _rows_of(batch: Arguments) -> int:
    args, kwargs = batch
    return next(
        len(value) for value in (*args, *kwargs.values()) if isinstance(value, Tensor) and value.dim()
    )

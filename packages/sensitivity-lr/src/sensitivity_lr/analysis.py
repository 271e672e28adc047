"""The sensitivity of a model's parameters, and the score after pruning by sensitivity."""

from __future__ import annotations

import re
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, TypedDict, TypeVar, cast

import torch
from torch import Tensor, nn

from finetune_common.aliases import StateDict
from finetune_common.arguments import explain_arguments
from finetune_common.errors import ConfigurationError, check_number

__all__ = ["SensitivityTracker", "pruned", "sensitivity", "sparsity_curve"]

LOWEST, HIGHEST, BINS_A_DECADE = -18, 2, 4
"""Decades that a histogram covers; its end bins also count values beyond."""
QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)

Batch = TypeVar("Batch")


class Distribution(TypedDict):
    """How |θ g| is spread over parameters; see `SensitivityTracker`."""

    zeros: float
    quantiles: dict[str, float | None]
    counts: list[int]


class SensitivityRecord(Distribution):
    """The distribution at a step."""

    step: int


def _loss_of_transformers(model: nn.Module, batch: Any) -> Tensor:
    return model(**batch).loss


def _named(model: nn.Module, pattern: str | None) -> dict[str, nn.Parameter]:
    named = {name: p for name, p in model.named_parameters() if p.requires_grad}
    chosen = {name: p for name, p in named.items() if pattern is None or re.search(pattern, name)}
    if not chosen:
        first = ", ".join([*named][:3])
        raise ConfigurationError(
            f"no trainable parameter matches the pattern {pattern!r}: the first names are {first}"
        )
    return chosen


@explain_arguments
def sensitivity(
    model: nn.Module,
    batches: Iterable[Batch],
    loss_fn: Callable[[nn.Module, Batch], Tensor] = _loss_of_transformers,
    pattern: str | None = None,
) -> dict[str, Tensor]:
    """Return each parameter's sensitivity, the mean of |θ g| over batches.

        I_j = 1/B Σ_b |θ_j · ∂L_b/∂θ_j|  ≈  |L(θ) - L(θ with θ_j = 0)|

    Args:
        model: The model. Its mode and `.grad` stay as they are.
        batches: Batches for `loss_fn`, at least one.
        loss_fn: (model, batch) → the batch's mean loss; by default `model(**batch).loss`.
        pattern: Regular expression of the parameters' names; None for all that train.

    Returns:
        Name → float32 tensor of the parameter's shape, ≥ 0; zero if the loss does not use the parameter.

    Raises:
        ConfigurationError: No batch, or no parameter matches.

    Examples:
        >>> model = nn.Linear(2, 1, bias=False)
        >>> _ = model.weight.data.copy_(torch.tensor([[2.0, -1.0]]))
        >>> sensitivity(model, [torch.tensor([[1.0, 3.0]])], lambda model, x: model(x).sum())
        {'weight': tensor([[2., 3.]])}

    Source: Liang et al., "No Parameters Left Behind" (ICLR 2022, arXiv 2202.02664), the definition of I.
    """
    named = _named(model, pattern)
    total = {name: torch.zeros_like(p, dtype=torch.float32) for name, p in named.items()}
    count = 0
    for batch in batches:
        with torch.enable_grad():
            gradients = torch.autograd.grad(loss_fn(model, batch), list(named.values()), allow_unused=True)
        used_or_none = cast("tuple[Tensor | None, ...]", gradients)  # torch's types forget allow_unused
        for (name, parameter), gradient in zip(named.items(), used_or_none, strict=True):
            if gradient is not None:
                total[name] += (parameter.detach() * gradient).abs()
        count += 1
    if not count:
        raise ConfigurationError("batches is empty: give at least one batch")
    return {name: value / count for name, value in total.items()}


@explain_arguments
class SensitivityTracker:
    """Record the distribution of |θ g| while a model trains.

    It reads θ and g when the optimizer's step begins: after clipping, and after gradient methods that were
    attached earlier.

    Args:
        model: The model whose parameters are read.
        optimizer: The optimizer whose steps are counted.
        every: Record the first step and every so many steps after it.
        pattern: Regular expression of the parameters' names; None for all that train.

    Attributes:
        records: A mapping for each record: `step`, `zeros` (share of parameters with |θ g| = 0), `quantiles`
            of log10 |θ g| over the others (read from the histogram), and `counts` by bin of log10 |θ g|, with
            the edges `SensitivityTracker.edges()`.

    Examples:
        >>> model = nn.Linear(3, 1)
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        >>> tracker = SensitivityTracker(model, optimizer, every=1)
        >>> model(torch.ones(2, 3)).sum().backward()
        >>> optimizer.step()
        >>> tracker.records[0]["step"], sum(tracker.records[0]["counts"])
        (1, 4)
        >>> tracker.remove()
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        every: int = 100,
        pattern: str | None = None,
    ) -> None:
        check_number("every", every, at_least=1)
        self.records: list[SensitivityRecord] = []
        self._named = _named(model, pattern)
        self._every = every
        self._steps = 0
        self._hook = optimizer.register_step_pre_hook(self._before_step)

    @staticmethod
    def edges() -> list[float]:
        """Return the edges of the histogram's bins, in log10 |θ g|."""
        bins = (HIGHEST - LOWEST) * BINS_A_DECADE
        return [LOWEST + i / BINS_A_DECADE for i in range(bins + 1)]

    def _before_step(self, *_: object) -> None:
        self._steps += 1
        if (self._steps - 1) % self._every == 0:
            self.records.append({"step": self._steps, **self._distribution()})

    @torch.no_grad()
    def _distribution(self) -> Distribution:
        edges = self.edges()
        counts = torch.zeros(len(edges) - 1, dtype=torch.float64)
        zeros = total = 0
        for parameter in self._named.values():
            if parameter.grad is not None:
                values = (parameter * parameter.grad).abs().float()
                positive = values[values > 0].log10().clamp(LOWEST, HIGHEST)
                zeros += values.numel() - positive.numel()
                total += values.numel()
                counts += torch.histc(positive, len(edges) - 1, LOWEST, HIGHEST).double().cpu()
        return {
            "zeros": zeros / max(total, 1),
            "quantiles": _quantiles(counts, edges),
            "counts": [int(count) for count in counts.unbind()],
        }

    def remove(self) -> None:
        """Stop recording; the records stay."""
        self._hook.remove()

    def state_dict(self) -> StateDict:
        """Return the number of steps so far and the records."""
        return {"steps": self._steps, "records": list(self.records)}

    def load_state_dict(self, state: StateDict) -> None:
        """Continue from an earlier `state_dict()`."""
        self._steps, self.records = state["steps"], list(state["records"])


def _quantiles(counts: Tensor, edges: Sequence[float]) -> dict[str, float | None]:
    """Read quantiles from a histogram, linearly within a bin; None if it is empty."""
    cumulative = torch.cat([torch.zeros(1, dtype=torch.float64), counts.cumsum(0)])
    quantiles: dict[str, float | None] = dict.fromkeys(map(str, QUANTILES), None)
    if not cumulative[-1]:
        return quantiles
    for q in QUANTILES:
        target = q * cumulative[-1]
        right = min(int(torch.searchsorted(cumulative, target)), len(counts))
        left = max(right - 1, 0)
        share_of_bin = float((target - cumulative[left]) / (cumulative[right] - cumulative[left]))
        quantiles[str(q)] = edges[left] + share_of_bin * (edges[right] - edges[left])
    return quantiles


@explain_arguments
@contextmanager
def pruned(
    model: nn.Module, sensitivities: Mapping[str, Tensor], sparsity: float
) -> Generator[nn.Module, None, None]:
    """Set the least sensitive share of parameters to zero inside a `with` block; restore them afterwards.

    Args:
        model: Changed in place within the block.
        sensitivities: Name → sensitivity, as from `sensitivity`; other parameters are not pruned.
        sparsity: Share of the named parameters to set to zero, in [0, 1]; their number is rounded down.

    Yields:
        The model.

    Raises:
        ConfigurationError: `sparsity` out of range.

    Examples:
        >>> model = nn.Linear(2, 2, bias=False)
        >>> scores = {"weight": torch.tensor([[4.0, 1.0], [3.0, 2.0]])}
        >>> with pruned(model, scores, 0.5):
        ...     (model.weight == 0).tolist()
        [[False, True], [False, True]]
    """
    check_number("sparsity", sparsity, at_least=0, at_most=1)
    parameters = dict(model.named_parameters())
    flat = torch.cat([value.reshape(-1) for value in sensitivities.values()])
    count = int(sparsity * flat.numel())
    threshold = flat.kthvalue(count).values if count else flat.new_tensor(-1.0)
    ties = count - int((flat < threshold).sum())
    originals = {name: parameters[name].detach().clone() for name in sensitivities}
    try:
        with torch.no_grad():
            for name, value in sensitivities.items():
                tied = (value == threshold).reshape(-1)
                chosen = tied & (tied.cumsum(0) <= ties)
                ties -= int(chosen.sum())
                parameters[name].masked_fill_((value < threshold) | chosen.view_as(value), 0)
        yield model
    finally:
        with torch.no_grad():
            for name, original in originals.items():
                parameters[name].copy_(original)


@explain_arguments
def sparsity_curve(
    model: nn.Module,
    sensitivities: Mapping[str, Tensor],
    evaluate: Callable[[nn.Module], float],
    sparsities: Sequence[float] = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9),
) -> list[tuple[float, float]]:
    """Return a model's scores with its least sensitive parameters pruned.

    Args:
        model: The model; unchanged afterwards.
        sensitivities: As for `pruned`.
        evaluate: Model → score, e.g. accuracy on a dev set.
        sparsities: Shares to prune, each in [0, 1].

    Returns:
        (sparsity, score) pairs.

    Examples:
        >>> model = nn.Linear(4, 1, bias=False)
        >>> scores = {"weight": torch.arange(4.0).view(1, 4)}
        >>> sparsity_curve(model, scores, lambda m: float((m.weight == 0).sum()), (0.0, 0.5))
        [(0.0, 0.0), (0.5, 2.0)]

    Source: Liang et al., "No Parameters Left Behind" (ICLR 2022, arXiv 2202.02664), the pruning experiment.
    """
    curve: list[tuple[float, float]] = []
    for share in sparsities:
        with pruned(model, sensitivities, share):
            curve.append((share, evaluate(model)))
    return curve

"""How sensitive a trained or training model's parameters are, and what pruning by sensitivity costs."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from finetune_common.arguments import explain_arguments
from finetune_common.errors import ConfigurationError, check_number

__all__ = ["SensitivityTracker", "pruned", "sensitivity", "sparsity_curve"]

LOWEST, HIGHEST, BINS_A_DECADE = -18, 2, 4
"""Decades that a histogram covers; what lies outside is counted in its end bins."""
QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)


def _loss_of_transformers(model: nn.Module, batch: Mapping[str, Any]) -> Tensor:
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
    batches: Iterable[Any],
    loss_fn: Callable[[nn.Module, Any], Tensor] = _loss_of_transformers,
    pattern: str | None = None,
) -> dict[str, Tensor]:
    """Return each parameter's sensitivity, the mean over batches of |θ g|.

        I_j = 1/B Σ_b |θ_j · ∂L_b/∂θ_j|  ≈  |L(θ) - L(θ with θ_j = 0)|

    Args:
        model: Stays in the mode it is in; `.grad` is neither read nor written.
        batches: What `loss_fn` takes, at least one.
        loss_fn: (model, batch) → the batch's mean loss; by default `model(**batch).loss`.
        pattern: Regular expression of the parameters' names; None for all that train.

    Returns:
        Name → float32 tensor of the parameter's shape, ≥ 0; zero where a parameter plays no part.

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
        for (name, parameter), gradient in zip(named.items(), gradients, strict=True):
            if gradient is not None:
                total[name] += (parameter.detach() * gradient).abs()
        count += 1
    if not count:
        raise ConfigurationError("batches is empty: give at least one batch")
    return {name: value / count for name, value in total.items()}


@explain_arguments
class SensitivityTracker:
    """Record the distribution of |θ g| while a model trains.

    It looks at the step's own θ and g, just before the optimizer uses them (after clipping, after gradient
    methods attached earlier).

    Args:
        model: Whose parameters are looked at.
        optimizer: Whose steps are counted.
        every: Record each so many steps, from the first on.
        pattern: Regular expression of the parameters' names; None for all that train.

    Attributes:
        records: One mapping a record: `step`, `zeros` (share of parameters with |θ g| = 0), `quantiles` of
            log10 |θ g| over the others (read off the histogram), and `counts` by bin of log10 |θ g|, whose
            edges are `SensitivityTracker.edges()`.

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
        self.records: list[dict[str, Any]] = []
        self._named = _named(model, pattern)
        self._every = every
        self._steps = 0
        self._hook = optimizer.register_step_pre_hook(self._before_step)

    @staticmethod
    def edges() -> list[float]:
        """Return the edges of the histogram's bins, in log10 |θ g|."""
        bins = (HIGHEST - LOWEST) * BINS_A_DECADE
        return [LOWEST + i / BINS_A_DECADE for i in range(bins + 1)]

    def _before_step(self, *_: Any) -> None:
        self._steps += 1
        if (self._steps - 1) % self._every == 0:
            self.records.append({"step": self._steps, **self._distribution()})

    @torch.no_grad()
    def _distribution(self) -> dict[str, Any]:
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
            "counts": counts.long().tolist(),
        }

    def remove(self) -> None:
        """Stop recording; the records stay."""
        self._hook.remove()

    def state_dict(self) -> dict[str, Any]:
        """Return the number of steps seen and the records."""
        return {"steps": self._steps, "records": list(self.records)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from `state_dict()` of an earlier moment."""
        self._steps, self.records = state["steps"], list(state["records"])


def _quantiles(counts: Tensor, edges: Sequence[float]) -> dict[str, float | None]:
    """Read quantiles off a histogram, linearly within a bin; None where nothing was counted."""
    reached = torch.cat([torch.zeros(1, dtype=torch.float64), counts.cumsum(0)])
    if not reached[-1]:
        return dict.fromkeys(map(str, QUANTILES), None)
    quantiles = {}
    for q in QUANTILES:
        target = q * reached[-1]
        right = min(int(torch.searchsorted(reached, target)), len(counts))
        left = max(right - 1, 0)
        inside = float((target - reached[left]) / (reached[right] - reached[left]))
        quantiles[str(q)] = edges[left] + inside * (edges[right] - edges[left])
    return quantiles


@explain_arguments
@contextmanager
def pruned(model: nn.Module, sensitivities: Mapping[str, Tensor], sparsity: float) -> Iterator[nn.Module]:
    """Set the least sensitive share of parameters to zero inside a `with` block; restore them after it.

    Args:
        model: Changed in place, and back.
        sensitivities: Name → sensitivity, as from `sensitivity`; other parameters are left alone.
        sparsity: Share of all the parameters named, in [0, 1]; the number set to zero is rounded down.

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
    left = int(sparsity * flat.numel())
    threshold = flat.kthvalue(left).values if left else flat.new_tensor(-1.0)
    ties = left - int((flat < threshold).sum())
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
    """Return what a model scores when its least sensitive parameters are pruned.

    Args:
        model: As it was afterwards.
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
    curve = []
    for share in sparsities:
        with pruned(model, sensitivities, share):
            curve.append((share, evaluate(model)))
    return curve

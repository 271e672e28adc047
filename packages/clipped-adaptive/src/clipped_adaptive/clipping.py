"""Clipping: which tensors share a norm, at which level, and what was clipped."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor, nn

from clipped_adaptive.clips import CLIPS
from finetune_common.arguments import explain_arguments
from finetune_common.errors import ConfigurationError, check_choice, check_number, shown
from finetune_common.optim.norms import euclidean_norm
from finetune_common.optim.settings import check_whole

__all__ = [
    "ClipReport",
    "Level",
    "RunningQuantile",
    "check_clipping",
    "coefficients",
    "level_at",
    "norms_by_unit",
]


@explain_arguments
@dataclass(frozen=True)
class RunningQuantile:
    """A clip level that follows the gradient: a quantile of the norms of past steps.

        L_t = quantile_q(‖g_{t-1}‖, …, ‖g_{t-window}‖),    no clipping at the first step

    Each layer (`clip="layer"`) or tensor (`"local"`) has its own quantile, and "global" has one. Norms that
    are zero or not finite are left out. The norms stay on the device, in each parameter's state
    (`past_norms`).

    Args:
        q: The quantile, in (0, 1]; 0.1 clips about nine steps in ten.
        window: How many past steps count, at least 1.

    Raises:
        ConfigurationError: A number out of range.

    Examples:
        >>> RunningQuantile(0.5, window=10)
        RunningQuantile(q=0.5, window=10)

    Source: the idea is AutoClip's (Seetharaman et al., 2020, arXiv 2007.14469), which also counts the current
    norm, and all past ones.
    """

    q: float
    window: int = 100

    def __post_init__(self) -> None:
        check_number("q", self.q, above=0, at_most=1)
        check_whole("window", self.window, at_least=1)

    def levels(self, past: Tensor, norms: Tensor) -> tuple[Tensor, Tensor]:
        """Return this step's level of each unit, and the norms to remember.

        Args:
            past: Past norms, (units, window), the newest last; NaN if missing.
            norms: This step's norm of each unit.

        Returns:
            One level per unit (NaN, which clips nothing, without past norms), and the new `past`.

        Examples:
            >>> past = torch.tensor([[torch.nan, 4.0]])
            >>> RunningQuantile(0.5, window=2).levels(past, torch.tensor([2.0]))
            (tensor([4.]), tensor([[4., 2.]]))
        """
        levels = torch.nanquantile(past, self.q, dim=1)
        norms = norms.to(past.dtype).unsqueeze(1)
        moved = torch.cat([past[:, 1:], norms], dim=1)
        return levels, torch.where(norms.isfinite() & (norms > 0), moved, past)


Level = float | Callable[[int], float] | RunningQuantile
"""A number, a function of the step, or a quantile of past norms."""


@dataclass(frozen=True)
class ClipReport:
    """The effect of clipping at a step.

    Args:
        share: Share of the tensors that were scaled down (`clip="elementwise"`: of the elements).
        norm_before: Euclidean norm of the whole gradient before clipping.
        norm_after: The same after clipping.
    """

    share: float
    norm_before: float
    norm_after: float


def check_clipping(clip: str, max_norm: Level) -> None:
    """Refuse a clip mode or level that cannot be used.

    Raises:
        ConfigurationError: Names the value, what is allowed and the remedy.

    Examples:
        >>> check_clipping("loca", 1.0)
        Traceback (most recent call last):
        finetune_common.errors.ConfigurationError: clip='loca' is unknown: did you mean 'local'?
    """
    check_choice("clip", clip, CLIPS)
    if isinstance(max_norm, RunningQuantile):
        if clip == "elementwise":
            raise ConfigurationError(
                "max_norm=RunningQuantile(…) needs norms, and clip='elementwise' has none: give a number, or "
                "clip='global', 'layer' or 'local'"
            )
    elif callable(max_norm):
        _check_schedule(max_norm)
    else:
        check_number("max_norm", max_norm, above=0)


def _check_schedule(max_norm: Callable[[int], float]) -> None:
    """Refuse what can be called but is no function of the step: a model, a class, a wrong signature."""
    if isinstance(max_norm, nn.Module):
        fault = "a model"
    elif isinstance(max_norm, type):
        fault = "a class, not an object of it"
    elif not _takes_a_step(max_norm):
        fault = "a function that cannot be called with the step alone"
    else:
        return
    raise ConfigurationError(
        f"max_norm={shown(max_norm)} is {fault}: give a number above 0, a function of the step such as "
        "lambda step: 1 / step**0.5, or RunningQuantile(0.5)"
    )


def _takes_a_step(function: Callable[[int], float]) -> bool:
    try:
        inspect.signature(function).bind(1)
    except TypeError:
        return False
    except ValueError:  # some built-in functions have no signature
        return True
    return True


def level_at(max_norm: float | Callable[[int], float], step: int) -> float:
    """Return the level at a step: the number itself, or the function's value.

    Raises:
        ConfigurationError: The function returns no number above 0.

    Examples:
        >>> level_at(lambda step: 1 / step, 4)
        0.25
    """
    if not callable(max_norm):
        return float(max_norm)
    value = max_norm(step)
    try:
        level = float(value)
    except (TypeError, ValueError, RuntimeError):  # torch raises the last one for several elements
        raise ConfigurationError(
            f"max_norm at step {step} is {shown(value)}: the function has to return a number above 0"
        ) from None
    check_number(f"max_norm at step {step}", level, above=0)
    return level


def norms_by_unit(norms: Tensor, labels: Sequence[Hashable]) -> Tensor:
    """Return the Euclidean norm of each unit, in order of first appearance.

    Args:
        norms: One norm per tensor.
        labels: The unit of each tensor.

    Examples:
        >>> norms_by_unit(torch.tensor([3.0, 5.0, 4.0]), ["a", "b", "a"])
        tensor([5., 5.])
    """
    units: dict[Hashable, list[int]] = {}
    for position, label in enumerate(labels):
        units.setdefault(label, []).append(position)
    if len(units) == len(labels):
        return norms
    longest = max(map(len, units.values()))
    padding = len(labels)  # index of a zero norm, to fill up shorter units
    members = tuple(i for unit in units.values() for i in [*unit, *[padding] * (longest - len(unit))])
    filled = torch.cat([norms, norms.new_zeros(1)]).index_select(0, _index(members, norms.device))
    return euclidean_norm(filled.view(len(units), longest), dim=1)


def coefficients(norms: Tensor, labels: Sequence[Hashable], level: float | Tensor) -> Tensor:
    """Return each tensor's factor, min(1, level/‖unit‖); a level of ∞ or NaN clips nothing.

    Args:
        norms: One norm per unit, as from `norms_by_unit`.
        labels: The unit of each tensor.
        level: One for all units, or one for each unit.

    Examples:
        >>> coefficients(torch.tensor([5.0, 0.5]), ["a", "b", "a"], 1.0)
        tensor([0.2000, 1.0000, 0.2000])
    """
    factors = torch.where(norms > level, level / norms, 1.0)
    units = {unit: position for position, unit in enumerate(dict.fromkeys(labels))}
    return _chosen(factors, [units[label] for label in labels])


def _chosen(values: Tensor, positions: Sequence[int]) -> Tensor:
    """Index without making the host wait for the device."""
    if list(positions) == list(range(len(values))):
        return values
    if len(values) == 1:
        return values.expand(len(positions))
    return values.index_select(0, _index(tuple(positions), values.device))


@lru_cache(maxsize=64)
def _index(positions: tuple[int, ...], device: torch.device) -> Tensor:
    return torch.tensor(positions, device=device)

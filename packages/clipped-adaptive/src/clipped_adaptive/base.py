"""The base classes of the clipped optimizers: clipping, set for the whole optimizer, and its report."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from clipped_adaptive.clipping import (
    ClipReport,
    Level,
    RunningQuantile,
    check_clipping,
    coefficients,
    level_at,
    norms_by_unit,
)
from clipped_adaptive.late import LateCoefficients
from clipped_adaptive.replicated import first_of, refuse_a_part, replicate
from finetune_common.aliases import ParamGroup, Settings, StateDict, is_sharded
from finetune_common.errors import ConfigurationError, check_number, shown
from finetune_common.optim import Batch, ElementwiseOptimizer, arithmetic_dtype, whole_norms
from finetune_common.optim.norms import euclidean_norm
from finetune_common.optim.ops import Value
from finetune_common.optim.parts import refuse_parts
from finetune_common.optim.run import Late
from finetune_common.optim.settings import check_switch

__all__ = ["ClippedAdaptive", "ClippedOptimizer", "Update"]

Update = Callable[..., tuple[Value, ...]]
"""An update rule: parameter, gradient and state → new parameter and new state."""

RowNumbers = list[dict[str, Sequence[Tensor | Late]]]
"""For each batch, the rule's arguments that differ from row to row."""


class ClippedOptimizer(ElementwiseOptimizer):
    """The base of all three optimizers: clipping, set for the whole optimizer, and its report."""

    set_once: ClassVar[tuple[str, ...]] = ("clip", "max_norm", "norm")
    """Settings of the whole optimizer, not of a group."""
    counters = frozenset({"skipped", "steps"})
    norm = False
    _level: float = torch.inf
    _steps: int = 0
    _has_all_parameters: bool = False
    _clipped: tuple[Tensor, Tensor] | LateCoefficients | None = None

    def __init__(
        self,
        params: ParamsT,
        defaults: ParamGroup,
        *,
        clip: str,
        max_norm: Level,
        norm: bool = False,
        **running: Any,
    ):
        check_clipping(clip, max_norm)
        check_switch("norm", norm)
        self.clip, self.max_norm, self.norm = clip, max_norm, norm
        super().__init__(params, {**defaults, "steps": 0}, **running)

    def check_group(self, group: Settings) -> None:
        """Refuse settings that cannot be used."""
        check_number("weight_decay", group["weight_decay"], at_least=0)
        for name in self.set_once:
            if name in group:
                raise ConfigurationError(
                    f"{name}={shown(group[name])} is in a parameter group, but the whole optimizer has one "
                    f"{name}: pass it to the constructor"
                )
        try:
            hash(group.get("layer"))
        except TypeError:
            raise ConfigurationError(
                f"layer={shown(group['layer'])} cannot name a layer: give a text or a number"
            ) from None

    def state_names(self, group: Settings) -> set[str]:
        """Return the names of all state of a group's parameters, with what they repeat."""
        common = {"second_moment": self.norm, "past_norms": isinstance(self.max_norm, RunningQuantile)}
        return super().state_names(group) | {name for name, kept in common.items() if kept}

    def prepare(self, batches: list[Batch]) -> RowNumbers:
        """Compute the clipping coefficients and, with one scalar second moment, the denominator."""
        check_clipping(self.clip, self.max_norm)
        self._clipped = None
        by_norm = self.clip not in ("none", "elementwise")
        if batches:
            self._steps = 1 + (max(g["steps"] for g in self.param_groups) or max(b.step for b in batches) - 1)
            for group in self.param_groups:
                group["steps"] = self._steps
            if self.clip == "elementwise":
                self._level = self._level_now()
        if not batches or not (by_norm or self.norm):
            return [{} for _ in batches]
        setting = f"clip={self.clip!r}, norm={self.norm}"
        refuse_parts((param for batch in batches for param in batch.params), setting)
        if (self.norm or self.clip in ("global", "layer")) and not self._has_all_parameters:
            refuse_a_part(self, setting)
            self._has_all_parameters = True
        if self._needs_single_norms() and LateCoefficients.possible(batches):
            count = sum(len(batch.grads) for batch in batches)
            self._clipped = late = LateCoefficients(self._level_now(), count)
            return _by_batch({"coefficient": late.coefficients(batches)}, batches)
        norms = whole_norms([grad for batch in batches for grad in batch.grads])
        numbers: dict[str, Tensor | Sequence[Tensor | Late]] = {}
        factors = self._coefficients(norms, batches) if by_norm else None
        if factors is not None:
            numbers["coefficient"] = factors
            self._clipped = norms, factors
        if self.norm:
            norms_after = self._norms_after(norms, factors, batches)
            denominator = self._denominator(norms_after.square().sum())
            numbers["denominator"] = denominator.expand(len(norms))
        return _by_batch(numbers, batches)

    def _norms_after(self, norms: Tensor, factors: Tensor | None, batches: Sequence[Batch]) -> Tensor:
        """Return the norms of the clipped gradients."""
        if factors is not None:
            return norms * factors
        if self.clip == "none":
            return norms
        return _norms_at(self._level, [grad for batch in batches for grad in batch.grads])

    def _needs_single_norms(self) -> bool:
        """Whether each tensor's coefficient needs only that tensor's norm, and nothing else needs norms."""
        return self.clip == "local" and not self.norm and not isinstance(self.max_norm, RunningQuantile)

    def _coefficients(self, norms: Tensor, batches: Sequence[Batch]) -> Tensor:
        labels = [label for batch in batches for label in self._labels(batch)]
        units = norms_by_unit(norms, labels)
        if not isinstance(self.max_norm, RunningQuantile):
            return coefficients(units, labels, self._level_now())
        members = self._members(dict.fromkeys(labels))
        window = self.max_norm.window
        past = torch.stack([self._past_norms(params, window, norms.device) for params in members])
        levels, past = self.max_norm.levels(past, units)
        replicate(self.state, "past_norms", zip(members, past.unbind(), strict=True))
        return coefficients(units, labels, levels.double())

    def _members(self, labels: Iterable[Hashable]) -> list[list[Tensor]]:
        """Return all parameters of each unit; those without a gradient keep its past norms too."""
        members: dict[Hashable, list[Tensor]] = {label: [] for label in labels}
        first = 0
        for group in self.param_groups:
            params = group["params"]
            for label, param in zip(self._labels_of(group, first), params, strict=True):
                if label in members and self.state.get(param):
                    members[label].append(param)
            first += len(params)
        return list(members.values())

    def _past_norms(self, params: Sequence[Tensor], window: int, device: torch.device) -> Tensor:
        past = first_of(self.state, params, "past_norms")
        if past is None or past.shape != (window,):
            return torch.full((window,), torch.nan, device=device)
        return past.to(device, torch.float32)

    def _labels(self, batch: Batch) -> Sequence[Hashable]:
        if self.clip == "local":
            return batch.indices
        return self._labels_of(batch.group, 0)[:1] * len(batch.params)

    def _labels_of(self, group: Settings, first: int) -> list[Hashable]:
        """Return the unit of each parameter of a group; its first parameter has number `first`."""
        count = len(group["params"])
        if self.clip == "local":
            return list(range(first, first + count))
        if self.clip == "global":
            return ["global"] * count
        position = next(i for i, other in enumerate(self.param_groups) if other is group)
        return [group.get("layer", position)] * count

    def _level_now(self) -> float:
        assert not isinstance(self.max_norm, RunningQuantile)  # which has a level for each unit
        return level_at(self.max_norm, self._steps)

    def _denominator(self, squared_norm: Tensor) -> Tensor:
        raise NotImplementedError

    def clip_report(self) -> ClipReport:
        """Report the clipping of the last step; this call waits for the device, `step` does not.

        With `clip="none"` and `"elementwise"` a step needs no norms. They are computed from the current
        gradients, so call this before `zero_grad`.

        Raises:
            ConfigurationError: No step was taken, or the gradients are gone.

        Examples:
            >>> w = torch.nn.Parameter(torch.zeros(2))
            >>> w.grad = torch.tensor([3.0, 4.0])
            >>> from clipped_adaptive import ClippedSGD
            >>> optimizer = ClippedSGD([w], lr=0.1, clip="global", max_norm=1.0)
            >>> optimizer.step()
            >>> optimizer.clip_report()
            ClipReport(share=1.0, norm_before=5.0, norm_after=1.0)
        """
        if self._clipped is not None:
            norms, factors = self._norms_and_factors(self._clipped)
            share, before, after = (factors < 1).to(norms.dtype).mean(), norms, norms * factors
        else:
            grads = [p.grad for group in self.param_groups for p in group["params"] if p.grad is not None]
            if not grads or not self.state:
                raise ConfigurationError(
                    "there is no clipped gradient to report: call clip_report() after step() and before "
                    "zero_grad()"
                )
            cut = sum((grad.abs() > self._level).sum().item() for grad in grads)
            share = torch.tensor(cut / sum(grad.numel() for grad in grads))
            before = torch.cat([whole_norms([grad]).cpu() for grad in grads])
            after = _norms_at(self._level, grads).cpu()
        return ClipReport(share.item(), euclidean_norm(before).item(), euclidean_norm(after).item())

    def _norms_and_factors(self, clipped: tuple[Tensor, Tensor] | LateCoefficients) -> tuple[Tensor, Tensor]:
        if isinstance(clipped, LateCoefficients):
            return torch.tensor(clipped.norms), torch.tensor(clipped.factors)
        return clipped

    def _element_level(self) -> dict[str, float]:
        return {"level": self._level} if self.clip == "elementwise" else {}

    def __getstate__(self) -> StateDict:
        return {**super().__getstate__(), **{name: getattr(self, name) for name in self.set_once}}


def _norms_at(level: float, grads: Sequence[Tensor]) -> Tensor:
    """Return the norms of gradients with elements cut to [-level, level]."""
    if any(is_sharded(grad) for grad in grads):
        return whole_norms([grad.clamp(-level, level) for grad in grads])
    # The only calls of torch that cut a list of tensors at once.
    above = torch._foreach_clamp_min([*grads], -level)  # pyright: ignore[reportPrivateUsage]
    return whole_norms(torch._foreach_clamp_max(above, level))  # pyright: ignore[reportPrivateUsage]


def _by_batch(
    numbers: Mapping[str, Tensor | Sequence[Tensor | Late]], batches: Sequence[Batch]
) -> RowNumbers:
    """Distribute numbers to batches, as tensors in each batch's dtype and on its device, made once."""
    parts: RowNumbers = [{} for _ in batches]
    for name, values in numbers.items():
        converted: dict[tuple[torch.device, torch.dtype], Sequence[Tensor | Late]] = {}
        first = 0
        for part, batch in zip(parts, batches, strict=True):
            kind = batch.rows[0][0].device, arithmetic_dtype(batch.params[0].dtype)
            if kind not in converted:
                converted[kind] = values.to(*kind).unbind() if isinstance(values, Tensor) else values
            part[name] = converted[kind][first : first + len(batch.params)]
            first += len(batch.params)
    return parts


class ClippedAdaptive(ClippedOptimizer):
    """The base of the two with a second moment: delay, reweighting, the scalar form."""

    initial: ClassVar[str]
    """Name of the setting that holds the second moment's initial value."""
    agreeing: ClassVar[tuple[str, ...]]
    """Settings that have to be equal in all groups if the second moment is one number."""

    def check_group(self, group: Settings) -> None:
        """Refuse settings that cannot be used."""
        super().check_group(group)
        check_number("eps", group["eps"], at_least=0)
        check_number("eta", group["eta"], above=0)
        check_number(self.initial, group[self.initial], at_least=0)
        if group["delay"] and group[self.initial] == 0:
            raise ConfigurationError(
                f"delay=True with {self.initial}=0 divides the first step by nothing: give "
                f"{self.initial}=1e-5"
            )
        if self.norm and self.param_groups:
            first = self.param_groups[0]
            for name in self.agreeing:
                if group[name] != first[name]:
                    raise ConfigurationError(
                        f"{name}={group[name]!r} in one group and {first[name]!r} in another: with norm=True "
                        "all groups share one second moment, so give them the same value"
                    )

    def _second_moment(self, like: Tensor) -> Tensor:
        """Return the single second moment, in the dtype and on the device of another number."""
        old = first_of(self.state, self.state, "second_moment")
        initial = self.param_groups[0][self.initial]
        return (
            like.new_full((), initial)
            if old is None
            else old.to(like.device, like.dtype, copy=True).reshape(())
        )

    def _keep_second_moment(self, value: Tensor) -> None:
        dtype = arithmetic_dtype(self.param_groups[0]["params"][0].dtype)
        # One-dimensional: torch's checkpoint tools read the device from tensors with a dimension.
        replicate(self.state, "second_moment", [(self.state, value.to(dtype).reshape(1))])

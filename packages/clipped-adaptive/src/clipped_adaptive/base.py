"""The base of the clipped optimizers: clipping, set for the whole optimizer, and its report."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from clipped_adaptive.clipping import (
    ClipReport,
    Level,
    RunningQuantile,
    check_clipping,
    coefficients,
    norms_by_unit,
)
from clipped_adaptive.late import LateCoefficients
from clipped_adaptive.replicated import first_of, refuse_a_part, replicate
from finetune_common.errors import ConfigurationError, check_choice, check_number
from finetune_common.optim import Batch, ElementwiseOptimizer, arithmetic_dtype, whole_norms
from finetune_common.optim.run import Late

__all__ = ["ClippedAdaptive", "ClippedOptimizer"]


class ClippedOptimizer(ElementwiseOptimizer):
    """The base of all three: clipping, set for the whole optimizer, and its report."""

    whole: ClassVar[tuple[str, ...]] = ("clip", "max_norm", "norm")
    norm = False
    _level: float = torch.inf
    _steps: int = 0
    _whole: bool = False
    _clipped: tuple[Tensor, Tensor] | LateCoefficients | None = None

    def __init__(
        self,
        params: Any,
        defaults: dict[str, Any],
        *,
        clip: str,
        max_norm: Level,
        norm: bool = False,
        **running: Any,
    ):
        check_clipping(clip, max_norm)
        check_choice("norm", norm, (True, False))
        self.clip, self.max_norm, self.norm = clip, max_norm, norm
        super().__init__(params, {**defaults, "steps": 0}, **running)

    def check_group(self, group: Mapping[str, Any]) -> None:
        """Refuse settings that cannot be used."""
        check_number("weight_decay", group["weight_decay"], at_least=0)
        for name in self.whole:
            if name in group:
                raise ConfigurationError(
                    f"{name}={group[name]!r} in a parameter group: it is one for the whole optimizer, pass "
                    "it to the constructor"
                )

    def prepare(self, batches: list[Batch]) -> list[dict[str, Sequence[Tensor | Late]]]:
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
        if self.norm or self.clip in ("global", "layer"):
            self._whole = self._whole or refuse_a_part(self, f"clip={self.clip!r}, norm={self.norm}")
        if self._each_alone() and LateCoefficients.possible(batches):
            self._clipped = late = LateCoefficients(batches, self._level_now())
            return _by_batch({"coefficient": late.coefficients}, batches)
        norms = whole_norms([grad for batch in batches for grad in batch.grads])
        numbers: dict[str, Any] = {}
        if by_norm:
            numbers["coefficient"] = self._coefficients(norms, batches)
            self._clipped = norms, numbers["coefficient"]
        if self.norm:
            after = norms * numbers["coefficient"] if by_norm else self._norms_at_level(norms, batches)
            denominator = self._denominator(after.square().sum())
            numbers["denominator"] = denominator.expand(len(norms))
        return _by_batch(numbers, batches)

    def _each_alone(self) -> bool:
        """Whether each tensor's coefficient needs only its own norm, and nothing else needs norms."""
        return self.clip == "local" and not self.norm and not isinstance(self.max_norm, RunningQuantile)

    def _coefficients(self, norms: Tensor, batches: Sequence[Batch]) -> Tensor:
        labels = [label for batch in batches for label in self._labels(batch)]
        units = norms_by_unit(norms, labels)
        if not isinstance(self.max_norm, RunningQuantile):
            return coefficients(units, labels, self._level_now())
        members = self._members(dict.fromkeys(labels))
        past = torch.stack([self._past_norms(params, norms.device) for params in members])
        levels, past = self.max_norm.levels(past, units)
        replicate(self.state, "past_norms", zip(members, past.unbind(), strict=True))
        return coefficients(units, labels, levels.double())

    def _members(self, labels: Iterable[Hashable]) -> list[list[Tensor]]:
        """Return all parameters of each unit, also those without a gradient: they keep its past norms."""
        members: dict[Hashable, list[Tensor]] = {label: [] for label in labels}
        first = 0
        for group in self.param_groups:
            params = group["params"]
            for label, param in zip(self._labels_of(group, first), params, strict=True):
                if label in members and self.state.get(param):
                    members[label].append(param)
            first += len(params)
        return list(members.values())

    def _past_norms(self, params: Sequence[Tensor], device: torch.device) -> Tensor:
        window = self.max_norm.window  # type: ignore[union-attr]
        past = first_of(self.state, params, "past_norms")
        if past is None or past.shape != (window,):
            return torch.full((window,), torch.nan, device=device)
        return past.to(device, torch.float32)

    def _norms_at_level(self, norms: Tensor, batches: Sequence[Batch]) -> Tensor:
        if self.clip == "none":
            return norms
        return _norms_at(self._level, [grad for batch in batches for grad in batch.grads])

    def _labels(self, batch: Batch) -> Sequence[Hashable]:
        if self.clip == "local":
            return batch.indices
        return self._labels_of(batch.group, 0)[:1] * len(batch.params)

    def _labels_of(self, group: Mapping[str, Any], first: int) -> list[Hashable]:
        """Return the unit of each parameter of a group; its first parameter has number `first`."""
        count = len(group["params"])
        if self.clip == "local":
            return list(range(first, first + count))
        if self.clip == "global":
            return ["whole"] * count
        position = next(i for i, other in enumerate(self.param_groups) if other is group)
        return [group.get("layer", position)] * count

    def _level_now(self) -> float:
        if not callable(self.max_norm):
            return float(self.max_norm)  # type: ignore[arg-type]
        level = float(self.max_norm(self._steps))
        check_number(f"max_norm at step {self._steps}", level, above=0)
        return level

    def _denominator(self, squared_norm: Tensor) -> Tensor:
        raise NotImplementedError

    def clip_report(self) -> ClipReport:
        """Report the clipping of the last step; this call waits for the device, `step` does not.

        With `clip="none"` and `"elementwise"` a step needs no norms, so they are computed from the current
        gradients: call it before `zero_grad`.

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
        total = torch.linalg.vector_norm
        return ClipReport(share.item(), total(before).item(), total(after).item())

    def _norms_and_factors(self, clipped: tuple[Tensor, Tensor] | LateCoefficients) -> tuple[Tensor, Tensor]:
        if isinstance(clipped, LateCoefficients):
            return torch.tensor(clipped.norms), torch.tensor(clipped.factors)
        return clipped

    def _element_level(self) -> dict[str, float]:
        return {"level": self._level} if self.clip == "elementwise" else {}

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), **{name: getattr(self, name) for name in self.whole}}


def _norms_at(level: float, grads: Sequence[Tensor]) -> Tensor:
    """Return the norms of gradients with elements cut to [-level, level]."""
    if any(hasattr(grad, "placements") for grad in grads):
        return whole_norms([grad.clamp(-level, level) for grad in grads])
    return whole_norms(torch._foreach_clamp_max(torch._foreach_clamp_min([*grads], -level), level))


def _by_batch(numbers: Mapping[str, Any], batches: Sequence[Batch]) -> list[dict[str, Any]]:
    """Distribute numbers to batches, as tensors in each batch's dtype and on its device, made once."""
    parts: list[dict[str, Any]] = [{} for _ in batches]
    for name, values in numbers.items():
        made: dict[tuple[Any, ...], Any] = {}
        first = 0
        for part, batch in zip(parts, batches, strict=True):
            kind = batch.rows[0][0].device, arithmetic_dtype(batch.params[0].dtype)
            if kind not in made:
                made[kind] = values.to(*kind).unbind() if isinstance(values, Tensor) else values
            part[name] = made[kind][first : first + len(batch.params)]
            first += len(batch.params)
    return parts


class ClippedAdaptive(ClippedOptimizer):
    """The base of the two with a second moment: delay, reweighting, the scalar form."""

    initial: ClassVar[str]
    agreeing: ClassVar[tuple[str, ...]]

    def check_group(self, group: Mapping[str, Any]) -> None:
        """Refuse settings that cannot be used."""
        super().check_group(group)
        check_number("eps", group["eps"], at_least=0)
        check_number("eta", group["eta"], above=0)
        check_number(self.initial, group[self.initial], at_least=0)
        check_choice("delay", group["delay"], (True, False))
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
                        "all groups share one second moment, give them the same"
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
        # one-dimensional: torch's tools read the device from tensors with a dimension
        replicate(self.state, "second_moment", [(self.state, value.to(dtype).reshape(1))])

"""What the clipped optimizers share: clipping, one setting for the whole optimizer, and its report."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
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
from finetune_common.errors import ConfigurationError, check_choice, check_number
from finetune_common.optim import Batch, ElementwiseOptimizer, arithmetic_dtype, whole_norms

__all__ = ["ClippedAdaptive", "ClippedOptimizer"]


class ClippedOptimizer(ElementwiseOptimizer):
    """What the three share: clipping, which is one setting for the whole optimizer, and its report."""

    whole: ClassVar[tuple[str, ...]] = ("clip", "max_norm", "norm")
    norm = False
    _level: float = torch.inf
    _clipped: tuple[Tensor, Tensor] | None = None

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
        super().__init__(params, defaults, **running)

    def check_group(self, group: Mapping[str, Any]) -> None:
        """Refuse settings that cannot be used."""
        check_number("weight_decay", group["weight_decay"], at_least=0)
        for name in self.whole:
            if name in group:
                raise ConfigurationError(
                    f"{name}={group[name]!r} in a parameter group: it is one for the whole optimizer, pass "
                    "it to the constructor"
                )

    def prepare(self, batches: list[Batch]) -> list[dict[str, Tensor]]:
        """Compute the clipping coefficients and, with one scalar second moment, the denominator."""
        self._clipped = None
        if batches and (self.norm or callable(self.max_norm)):
            self.shared["steps"] = self._steps_before(batches) + 1
        by_norm = self.clip not in ("none", "elementwise")
        if batches and self.clip == "elementwise":
            self._level = self._level_now()
        if not batches or not (by_norm or self.norm):
            return [{} for _ in batches]
        device = batches[0].rows[0][0].device
        norms = torch.cat([whole_norms(batch.grads).to(device) for batch in batches])
        numbers: dict[str, Tensor] = {}
        if by_norm:
            numbers["coefficient"] = self._coefficients(norms, batches)
            self._clipped = norms, numbers["coefficient"]
        if self.norm:
            after = norms * numbers["coefficient"] if by_norm else self._norms_at_level(norms, batches)
            denominator = self._denominator(after.square().sum())
            numbers["denominator"] = denominator.expand(len(norms))
        return _by_batch(numbers, batches)

    def _steps_before(self, batches: Sequence[Batch]) -> int:
        """Return the optimizer's steps; a parameter's own are fewer where it has no gradient at times."""
        return self.shared.get("steps", max(batch.step for batch in batches) - 1)

    def _coefficients(self, norms: Tensor, batches: Sequence[Batch]) -> Tensor:
        labels = [label for batch in batches for label in self._labels(batch)]
        units = norms_by_unit(norms, labels)
        if not isinstance(self.max_norm, RunningQuantile):
            return coefficients(units, labels, self._level_now())
        positions = {label: position for position, label in enumerate(self._all_labels())}
        own = [positions[label] for label in dict.fromkeys(labels)]
        return coefficients(units, labels, self.max_norm.level(units, own, len(positions), self.shared))

    def _norms_at_level(self, norms: Tensor, batches: Sequence[Batch]) -> Tensor:
        if self.clip == "none":
            return norms
        grads = (grad for batch in batches for grad in batch.grads)
        return torch.cat([_norm_at(self._level, grad).to(norms.device) for grad in grads])

    def _labels(self, batch: Batch) -> Sequence[Hashable]:
        if self.clip == "local":
            return batch.indices
        label = "whole" if self.clip == "global" else self._layer(batch.group)
        return [label] * len(batch.params)

    def _layer(self, group: Mapping[str, Any]) -> Hashable:
        position = next(i for i, other in enumerate(self.param_groups) if other is group)
        return group.get("layer", position)

    def _all_labels(self) -> list[Hashable]:
        if self.clip == "global":
            return ["whole"]
        if self.clip == "layer":
            return list(dict.fromkeys(self._layer(group) for group in self.param_groups))
        return list(range(sum(len(group["params"]) for group in self.param_groups)))

    def _level_now(self) -> float:
        if not callable(self.max_norm):
            return float(self.max_norm)  # type: ignore[arg-type]
        step = self.shared["steps"]
        level = float(self.max_norm(step))
        check_number(f"max_norm at step {step}", level, above=0)
        return level

    def _denominator(self, squared_norm: Tensor) -> Tensor:
        raise NotImplementedError

    def clip_report(self) -> ClipReport:
        """Return what clipping did at the last step; this call waits for the device, `step` does not.

        For `clip="none"` and `"elementwise"`, where a step needs no norms, they are taken from the gradients
        as they are now: call it before `zero_grad`.

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
            norms, factors = self._clipped
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
            after = torch.cat([_norm_at(self._level, grad).cpu() for grad in grads])
        total = torch.linalg.vector_norm
        return ClipReport(share.item(), total(before).item(), total(after).item())

    def _element_level(self) -> dict[str, float]:
        return {"level": self._level} if self.clip == "elementwise" else {}

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), **{name: getattr(self, name) for name in self.whole}}


def _norm_at(level: float, grad: Tensor) -> Tensor:
    return whole_norms([grad.clamp(-level, level)])


def _by_batch(numbers: Mapping[str, Tensor], batches: Sequence[Batch]) -> list[dict[str, Tensor]]:
    sizes = [len(batch.params) for batch in batches]
    parts = {name: values.split(sizes) for name, values in numbers.items()}
    return [
        {
            name: part[i].to(batch.rows[0][0].device, arithmetic_dtype(batch.params[0].dtype))
            for name, part in parts.items()
        }
        for i, batch in enumerate(batches)
    ]


class ClippedAdaptive(ClippedOptimizer):
    """What the two with a second moment share: delay, reweighting, the scalar form."""

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
        group = self.param_groups[0]
        old = self.shared.get("second_moment")
        return like.new_full((), group[self.initial]) if old is None else old.to(like.device, like.dtype)

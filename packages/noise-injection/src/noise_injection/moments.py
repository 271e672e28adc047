"""The variance of the gradient between steps: over all of them, or an exponential moving one."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Any, ClassVar

import torch
from torch import Tensor

from noise_injection import kernels
from noise_injection.attachment import Plan, Row
from noise_injection.shards import local, part_of, spread

__all__ = ["EmaVariance", "RunningVariance"]

State = dict[int, dict[str, Tensor]]


class RunningVariance:
    """Unbiased variance of all gradients so far, the present one included; none at the first step."""

    names: ClassVar[tuple[str, str]] = ("mean", "deviations")
    kernel = staticmethod(kernels.add_running)

    def __init__(self) -> None:
        self._state: State = {}
        self._loaded: State = {}
        self._parameters: dict[int, Tensor] = {}

    def plans(self, rows: list[Row]) -> list[Plan]:
        """Every row keeps its own statistics."""
        return [Plan(row, self.kernel, [self._own(row)[name] for name in self.names]) for row in rows]

    def _own(self, row: Row) -> dict[str, Tensor]:
        """Return the statistics of a row, on its device."""
        self._parameters[row.index] = row.parameter
        if (loaded := self._loaded.pop(row.index, None)) is not None:
            parts = {name: part_of(loaded[name], row.parameter).clone() for name in self.names}
            self._state[row.index] = {**parts, "count": loaded["count"].clone()}
        fresh = row.index not in self._state
        moments = self._state.setdefault(row.index, {})
        if fresh:
            moments |= {name: torch.zeros_like(row.gradient, dtype=row.dtype) for name in self.names}
            moments["count"] = row.gradient.new_zeros((), dtype=row.dtype)
        elif moments["count"].device != row.gradient.device:
            moments |= {name: tensor.to(row.gradient.device) for name, tensor in moments.items()}
        return moments

    def _count(self, plans: list[Plan], sums: Tensor) -> tuple[Tensor, Tensor]:
        """Count this step for every row whose gradient is finite; return which are, and the new counts."""
        finite = (sums[:, 0] < torch.inf).to(sums)
        counts = torch.stack([self._state[plan.row.index]["count"] for plan in plans]) + finite
        for plan, count in zip(plans, counts.unbind(), strict=True):
            self._state[plan.row.index]["count"] = count
        return finite, counts

    def numbers(self, plans: list[Plan], sums: Tensor, reach: Tensor, unit: Tensor) -> Tensor:
        """Return the kernel's numbers."""
        finite, counts = self._count(plans, sums)
        return torch.stack([reach * unit, (1 / unit).expand_as(reach), finite, counts], dim=1)

    def after_injection(self) -> None:
        """Nothing ends with a step."""

    def remove(self) -> None:
        """Forget the statistics."""
        self._state.clear()
        self._loaded.clear()

    def state_dict(self) -> dict[str, Any]:
        """Return the statistics by the parameters' numbers, in their own dtype; of DTensors, as DTensors."""
        moments = {**self._loaded}
        for i, of_parameter in self._state.items():
            whole = {name: spread(of_parameter[name].clone(), self._parameters[i]) for name in self.names}
            moments[i] = {**whole, "count": of_parameter["count"].clone()}
        return {"moments": moments}

    def load_state_dict(self, state: Mapping[str, Any], steps: int) -> None:
        """Take the statistics of a state."""
        self._state, self._loaded = {}, {int(i): dict(moments) for i, moments in state["moments"].items()}


class EmaVariance(RunningVariance):
    """max(0, v̂ - m̂²) of moving averages of the gradient and its square, from before the step.

    Where the optimizer keeps `exp_avg` and `exp_avg_sq` these are used as they are, with its betas: no memory
    of its own, and the averages contain the noise of earlier steps. Other optimizers, and those whose second
    moment is something else (an initial value, squares with a weight), receive averages of the gradient
    before noise, with 0.9 and 0.999. Either way there is none at the first step.
    """

    names = ("first", "second")
    kernel = staticmethod(kernels.add_ema)

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        super().__init__()
        self._optimizer = optimizer
        self.settled = False

    def plans(self, rows: list[Row]) -> list[Plan]:
        """Rows with the optimizer's averages use them; before its first step nobody knows if it has any."""
        adam = {row.index: pair for row in rows if (pair := self._adam(row))}
        if adam:
            return [Plan(row, kernels.add_adam, adam[row.index]) for row in rows if row.index in adam]
        return super().plans(rows) if self.settled else []

    @staticmethod
    def owns(plan: Plan) -> bool:
        """Whether a plan uses averages of our own."""
        return plan.kernel is kernels.add_ema

    def _adam(self, row: Row) -> list[Tensor] | None:
        state = self._optimizer.state.get(row.parameter, {})
        pair = [state.get("exp_avg"), state.get("exp_avg_sq")]
        if any(not torch.is_tensor(t) or t.shape != row.parameter.shape for t in pair) or "step" not in state:
            return None
        if any(g.get("initial_second_moment") or g.get("eta", 1) != 1 for g in self._optimizer.param_groups):
            return None
        return [local(t).reshape(-1) for t in pair]

    def numbers(self, plans: list[Plan], sums: Tensor, reach: Tensor, unit: Tensor) -> Tensor:
        """Return the kernel's numbers."""
        if not self.owns(plans[0]):
            groups = {p: group for group in self._optimizer.param_groups for p in group["params"]}
            betas = [tuple(groups[plan.row.parameter]["betas"]) for plan in plans]
            steps = [self._optimizer.state[plan.row.parameter]["step"] for plan in plans]
            counts = torch.stack([torch.as_tensor(step).to(torch.float32).reshape(()) for step in steps]).to(
                sums
            )
            return torch.stack([reach * unit, *_debias(betas, counts)], dim=1)
        earlier = torch.stack([self._state[plan.row.index]["count"] for plan in plans])
        finite, _ = self._count(plans, sums)
        debias = _debias([(0.9, 0.999)] * len(plans), earlier)
        return torch.stack([reach * unit, (1 / unit).expand_as(reach), finite, *debias], dim=1)

    def load_state_dict(self, state: Mapping[str, Any], steps: int) -> None:
        """Take the statistics of a state, `steps` steps old."""
        super().load_state_dict(state, steps)
        self.settled = steps > 0


def _debias(betas: list[tuple[float, float]], counts: Tensor) -> tuple[Tensor, ...]:
    """Return 1/(1-β^n) for each of the two averages; infinite before the first step: no noise then."""
    alike = betas[:1] if len(set(betas)) == 1 else betas
    powers = counts * _logarithms(tuple(alike), counts.dtype, counts.device)
    return (-1 / torch.expm1(powers)).unbind()


@lru_cache(maxsize=16)
def _logarithms(betas: tuple[tuple[float, float], ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """ln β of both averages, (2, parameters), or (2, 1) where parameters agree."""
    return torch.tensor(betas, dtype=torch.float64).log().t().to(dtype).to(device)

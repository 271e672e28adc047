"""The variance of the gradient between steps: over all steps, or of exponential moving averages."""

from __future__ import annotations

from functools import lru_cache
from typing import ClassVar

import torch
from torch import Tensor

from finetune_common.aliases import ParamGroup, StateDict
from finetune_common.errors import ConfigurationError
from noise_injection import kernels
from noise_injection.attachment import Plan, Row
from noise_injection.shards import flat, part_of, spread

__all__ = ["EmaVariance", "RunningVariance"]

Moments = dict[Tensor, dict[str, Tensor]]
"""A parameter → its statistics by name."""


class RunningVariance:
    """Unbiased variance of all gradients so far, including this step's; none at the first step.

    Args:
        optimizer: The optimizer whose parameters have the statistics.
    """

    names: ClassVar[tuple[str, str]] = ("mean", "deviations")
    kernel = staticmethod(kernels.add_running)

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self._optimizer = optimizer
        self._state: Moments = {}
        self._loaded: Moments = {}

    def plans(self, rows: list[Row]) -> list[Plan]:
        """Return a plan for each row, with the row's statistics."""
        return [Plan(row, self.kernel, [self._moments(row)[name] for name in self.names]) for row in rows]

    def _moments(self, row: Row) -> dict[str, Tensor]:
        """Return the statistics of a row, on its device."""
        if (loaded := self._loaded.pop(row.parameter, None)) is not None:
            parts = {name: part_of(loaded[name], row.parameter).clone() for name in self.names}
            self._state[row.parameter] = {**parts, "count": loaded["count"].clone()}
        fresh = row.parameter not in self._state
        moments = self._state.setdefault(row.parameter, {})
        if fresh:
            moments |= {name: torch.zeros_like(row.gradient, dtype=row.dtype) for name in self.names}
            moments["count"] = row.gradient.new_zeros((), dtype=row.dtype)
        elif moments["count"].device != row.gradient.device:
            moments |= {name: tensor.to(row.gradient.device) for name, tensor in moments.items()}
        return moments

    def _count(self, plans: list[Plan], sums: Tensor) -> tuple[Tensor, Tensor]:
        """Count this step for rows with a finite gradient; return which these are, and the new counts."""
        finite = (sums[:, 0] < torch.inf).to(sums)
        counts = torch.stack([self._state[plan.row.parameter]["count"] for plan in plans]) + finite
        for plan, count in zip(plans, counts.unbind(), strict=True):
            self._state[plan.row.parameter]["count"] = count
        return finite, counts

    def numbers(self, plans: list[Plan], sums: Tensor, reach: Tensor, unit: Tensor) -> Tensor:
        """Return the kernel's numbers."""
        finite, counts = self._count(plans, sums)
        return torch.stack([reach * unit, (1 / unit).expand_as(reach), finite, counts], dim=1)

    def after_injection(self) -> None:
        """Do nothing: the statistics go on."""

    def remove(self) -> None:
        """Forget the statistics."""
        self._state.clear()
        self._loaded.clear()

    def state_dict(self) -> StateDict:
        """Return the statistics by the parameters' numbers, in their own dtype; of DTensors, as DTensors."""
        numbers = {param: number for number, param in enumerate(self._groups())}
        moments = {numbers[param]: loaded for param, loaded in self._loaded.items() if param in numbers}
        for param, local_moments in self._state.items():
            if param in numbers:
                tensors = {name: spread(local_moments[name].clone(), param) for name in self.names}
                moments[numbers[param]] = {**tensors, "count": local_moments["count"].clone()}
        return {"moments": moments}

    def load_state_dict(self, state: StateDict, steps: int) -> None:
        """Continue from the statistics of a state.

        Raises:
            ConfigurationError: The state has statistics of more parameters.
        """
        params = [*self._groups()]
        moments = {int(number): dict(of_one) for number, of_one in state["moments"].items()}
        if max(moments, default=0) >= max(len(params), 1):
            raise ConfigurationError(
                f"the state has statistics of parameter {max(moments)}, but the optimizer has {len(params)} "
                "parameters: load it when the optimizer has the groups that it was saved with"
            )
        self._state, self._loaded = {}, {params[number]: of_one for number, of_one in moments.items()}

    def _groups(self) -> dict[Tensor, ParamGroup]:
        """Return the optimizer's parameters in their order, each with its group."""
        return {param: group for group in self._optimizer.param_groups for param in group["params"]}


class EmaVariance(RunningVariance):
    """max(0, v̂ - m̂²) of moving averages of the gradient and its square, from before the step.

    If the optimizer keeps `exp_avg` and `exp_avg_sq` of a parameter, these are used as they are, with its
    betas: this takes no memory, and the averages contain the noise of earlier steps. For a parameter without
    them, and where the second moment is not a plain average of squares of its elements (an initial value,
    weighted squares, one number for the tensor, not two betas), we keep averages of the gradient before
    noise, with decay 0.9 and 0.999. Either way a parameter has no noise at its first step.
    """

    names = ("first", "second")
    kernel = staticmethod(kernels.add_ema)

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        super().__init__(optimizer)
        self.waiting: set[Tensor] = set()

    def plans(self, rows: list[Row]) -> list[Plan]:
        """Use the optimizer's averages of a row, else ours; rows without either wait for their first step."""
        adam = self._adam(rows)
        ours = [row for row in rows if row.parameter not in adam and self._has(row)]
        self.waiting = {row.parameter for row in rows} - adam.keys() - {row.parameter for row in ours}
        of_adam = [Plan(row, kernels.add_adam, adam[row.parameter]) for row in rows if row.parameter in adam]
        return [*of_adam, *super().plans(ours)]

    def first_plans(self, rows: list[Row]) -> list[Plan]:
        """Return plans that begin our averages for rows whose first step left none in the optimizer."""
        adam = self._adam(rows)
        begun = [row for row in rows if row.parameter in self.waiting and row.parameter not in adam]
        self.waiting = set()
        return super().plans(begun)

    def _has(self, row: Row) -> bool:
        return row.parameter in self._state or row.parameter in self._loaded

    def _adam(self, rows: list[Row]) -> dict[Tensor, list[Tensor]]:
        """Return the optimizer's averages of those rows for which it keeps such."""
        groups, found = self._groups(), dict[Tensor, list[Tensor]]()
        for row in rows:
            state, group = self._optimizer.state.get(row.parameter, {}), groups[row.parameter]
            pair = [state.get("exp_avg"), state.get("exp_avg_sq")]
            plain = not group.get("initial_second_moment") and group.get("eta", 1) == 1
            if plain and len(group.get("betas", ())) == 2 and "step" in state:
                tensors = [flat(t) for t in pair if _is_average(t, row.parameter)]
                if len(tensors) == 2:
                    found[row.parameter] = tensors
        return found

    def numbers(self, plans: list[Plan], sums: Tensor, reach: Tensor, unit: Tensor) -> Tensor:
        """Return the kernel's numbers."""
        if plans[0].kernel is kernels.add_adam:
            groups = self._groups()
            betas = [tuple(groups[plan.row.parameter]["betas"]) for plan in plans]
            steps = [self._optimizer.state[plan.row.parameter]["step"] for plan in plans]
            scalars = [torch.as_tensor(step).to(torch.float32).reshape(()) for step in steps]
            counts = torch.stack(scalars).to(sums)
            return torch.stack([reach * unit, *_debias(betas, counts)], dim=1)
        earlier = torch.stack([self._state[plan.row.parameter]["count"] for plan in plans])
        finite, _ = self._count(plans, sums)
        debias = _debias([(0.9, 0.999)] * len(plans), earlier)
        return torch.stack([reach * unit, (1 / unit).expand_as(reach), finite, *debias], dim=1)


def _is_average(tensor: object, param: Tensor) -> bool:
    """Whether a tensor can be an average of a parameter's gradients or of their squares, by element."""
    if not isinstance(tensor, Tensor) or tensor.shape != param.shape:
        return False
    return tensor.is_floating_point() or tensor.is_complex()


def _debias(betas: list[tuple[float, float]], counts: Tensor) -> tuple[Tensor, ...]:
    """Return 1/(1-β^n) for each of the two averages; infinite, hence no noise, before the first step."""
    alike = betas[:1] if len(set(betas)) == 1 else betas
    powers = counts * _logarithms(tuple(alike), counts.dtype, counts.device)
    return (-1 / torch.expm1(powers)).unbind()


@lru_cache(maxsize=16)
def _logarithms(betas: tuple[tuple[float, float], ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return ln β of both averages, of shape (2, parameters), or (2, 1) if parameters agree."""
    return torch.tensor(betas, dtype=torch.float64).log().t().to(dtype).to(device)

"""The base class of all noises: the optimizer's hook, the random keys, the state, the size of the noise."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from weakref import WeakKeyDictionary, WeakSet

import torch
from torch import Tensor

from finetune_common.aliases import StateDict
from finetune_common.errors import ConfigurationError, shown
from finetune_common.optim.parts import refuse_parts
from finetune_common.optim.settings import check_whole
from noise_injection.kernels import Kernel
from noise_injection.lists import index, run_all, small_first, sums_of_all, unit_scale
from noise_injection.shards import flat, local, shaped, shard_groups, shard_index, sum_over_shards

__all__ = ["GradientNoise", "Plan", "Row", "attached"]

_attached: WeakKeyDictionary[torch.optim.Optimizer, WeakSet[GradientNoise]] = WeakKeyDictionary()


def attached(optimizer: torch.optim.Optimizer) -> list[GradientNoise]:
    """Return the noises attached to an optimizer, in the order in which they act."""
    return sorted(_attached.get(_innermost(optimizer), ()), key=lambda noise: noise.order)


def _innermost(optimizer: object) -> torch.optim.Optimizer:
    """Return the optimizer that steps: a wrapper such as Accelerate's has no hooks, but holds that one."""
    found = optimizer
    while not (isinstance(found, torch.optim.Optimizer) and hasattr(found, "_optimizer_step_pre_hooks")):
        values = getattr(found, "__dict__", {}).values()
        inside = {id(value): value for value in values if isinstance(value, torch.optim.Optimizer)}
        if len(inside) != 1:
            kind = "has no hooks of torch.optim.Optimizer" if inside else "is not a torch.optim.Optimizer"
            raise ConfigurationError(
                f"optimizer={shown(optimizer)} {kind}, nor one such optimizer inside: pass the one that steps"
            )
        [found] = inside.values()
    return found


@dataclass
class Row:
    """A parameter with a gradient in this step.

    Args:
        index: Its number in the optimizer, counted over all groups.
        parameter: The parameter.
        gradient: This process's part of its gradient, one-dimensional; a complex number is two real ones.
        shared: Whether `gradient` shares memory with `parameter.grad`; if not, it is a copy to write back.
    """

    index: int
    parameter: Tensor
    gradient: Tensor
    shared: bool

    def write_back(self) -> None:
        """Write a copy back into `parameter.grad`."""
        if not self.shared and self.parameter.grad is not None:
            target = local(self.parameter.grad)
            target.copy_(shaped(self.gradient, target))

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of statistics and arithmetic."""
        return torch.float64 if self.gradient.dtype == torch.float64 else torch.float32


@dataclass
class Plan:
    """What a noise does to one row.

    Args:
        row: The parameter and its gradient.
        kernel: The kernel to run.
        tensors: Its tensors after the gradient, one-dimensional.
        compared: What the gradient is compared with (the mean contribution), if anything.
    """

    row: Row
    kernel: Kernel
    tensors: list[Tensor]
    compared: Tensor | None = None

    @property
    def batch(self) -> tuple[torch.device, torch.dtype, Kernel]:
        """Plans with the same batch share one table of numbers."""
        return self.row.gradient.device, self.row.dtype, self.kernel


class GradientNoise:
    """Noise that is added to the gradients of an optimizer at each of its steps.

    It acts when `optimizer.step` starts, after clipping and unscaling; with a closure, after each of its
    evaluations. The random numbers are a function of three keys per parameter and step. This object's own
    generator draws the keys, so that no other random stream advances. Processes with the same seed draw the
    same noise; the parts of a sharded tensor draw different noise.

    Args:
        optimizer: Any torch optimizer.
        seed: Seed of the generator. A second noise on the same optimizer draws other numbers from it.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, seed: int) -> None:
        check_whole("seed", seed, at_least=0, below=2**63)
        self.optimizer = _innermost(optimizer)
        others = attached(self.optimizer)
        self.order = others[-1].order + 1 if others else 0
        self.steps = 0
        self.measured = False
        self._norms: list[tuple[Tensor, Tensor]] = []
        self._generator = torch.Generator().manual_seed((int(seed) + self.order * 0x9E3779B97F4A7C15) % 2**63)
        self._handles = [self.optimizer.register_step_pre_hook(self._before_step)]
        _attached.setdefault(self.optimizer, WeakSet()).add(self)

    def remove(self) -> None:
        """Detach: the optimizer behaves as before. Removing twice does no harm."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        _attached.get(self.optimizer, WeakSet()).discard(self)

    def state_dict(self) -> StateDict:
        """Return what a resumed run needs to draw the same noise: numbers and tensors only."""
        return {"steps": self.steps, "generator": self._generator.get_state()}

    def load_state_dict(self, state: StateDict) -> None:
        """Continue from a state; the statistics keep their dtype."""
        self.steps = state["steps"]
        self._generator.set_state(state["generator"].cpu())

    def noise_to_gradient(self) -> float | None:
        """Return ‖noise‖/‖G‖ of the last step, over all parameters; None unless `measured` was set."""
        if not self._norms:
            return None
        noise, gradient = (sum(float(norm) for norm in norms) for norms in zip(*self._norms, strict=True))
        return (noise / gradient) ** 0.5 if gradient else 0.0

    def parameters(self) -> Iterable[Tensor]:
        """Return the optimizer's parameters over all groups."""
        return (param for group in self.optimizer.param_groups for param in group["params"])

    def plans(self, rows: list[Row]) -> list[Plan]:
        """Return a plan for each row that gets noise; other rows keep their gradient."""
        raise NotImplementedError

    def numbers(self, plans: list[Plan], sums: Tensor, unit: Tensor) -> Tensor:
        """Return the kernel's numbers for each plan.

        Args:
            plans: Of one batch.
            sums: Of shape (P, 1) or (P, 3): the result of `kernels.sums`, over whole tensors.
            unit: The factor by which gradients are too large (a loss scale that the optimizer divides by).
        """
        raise NotImplementedError

    def after_injection(self) -> None:
        """Clean up after a step."""

    def _before_step(
        self, optimizer: object, args: tuple[object, ...], kwargs: dict[str, object]
    ) -> tuple[tuple[object, ...], dict[str, object]] | None:
        closure = kwargs.get("closure", args[1] if len(args) > 1 else None)
        if not callable(closure):
            self._inject()
            return None

        def noisy_closure() -> object:
            loss = closure()
            self._inject()
            return loss

        return args[:1], {**kwargs, "closure": noisy_closure}

    @torch.no_grad()
    def _inject(self) -> None:
        self._norms = []
        self._run(self.plans(self._rows()), self._keys(), getattr(self.optimizer, "grad_scale", None))
        self.steps += 1
        self.after_injection()

    def _run(self, plans: list[Plan], keys: Tensor, unit: Tensor | None) -> None:
        batches: dict[tuple[torch.device, torch.dtype, Kernel], list[Plan]] = {}
        for plan in plans:
            batches.setdefault(plan.batch, []).append(plan)
        for (device, _, _), batch in batches.items():
            batch = small_first(batch, lambda plan: plan.row.gradient.numel())
            batch_keys = keys.index_select(0, index(tuple(plan.row.index for plan in batch), keys.device))
            self._run_batch(batch, batch_keys.to(device), unit)

    def _run_batch(self, plans: list[Plan], keys: Tensor, unit: Tensor | None) -> None:
        dtype = plans[0].row.dtype
        groups = [shard_groups(plan.row.parameter) for plan in plans]
        local_sums = sums_of_all([(plan.row.gradient, plan.compared) for plan in plans], dtype)
        sums = sum_over_shards(local_sums, groups)
        unit = unit_scale(sums.dtype, sums.device) if unit is None else unit.to(sums)
        numbers = self.numbers(plans, sums, unit)
        gradients = [plan.row.gradient for plan in plans]
        before = [gradient.clone() for gradient in gradients] if self.measured else []
        run_all(plans[0].kernel, [[plan.row.gradient, *plan.tensors] for plan in plans], numbers, keys)
        for plan in plans:
            plan.row.write_back()
        if before:
            noises = [(new - old, None) for new, old in zip(gradients, before, strict=True)]
            squares = sum_over_shards(sums_of_all(noises, dtype), groups)
            self._norms.append((squares.sum(), sums[:, 0].sum()))

    def _rows(self) -> list[Row]:
        refuse_parts(self.parameters(), type(self).__name__)
        rows: list[Row] = []
        for number, param in enumerate(self.parameters()):
            if param.grad is None:
                continue
            if param.grad.is_sparse:
                raise ConfigurationError(
                    f"parameter {number} of shape {tuple(param.shape)} has a sparse gradient, and "
                    "noise would make it dense: build its layer with sparse=False"
                )
            part = local(param.grad)
            rows.append(Row(number, param, flat(part), part.is_contiguous() and not part.is_conj()))
        return rows

    def _keys(self) -> Tensor:
        parts = [shard_index(param) for param in self.parameters()]
        drawn = torch.randint(-(2**31), 2**31, (len(parts), 3), generator=self._generator)
        if any(parts):
            drawn ^= torch.tensor(parts).unsqueeze(1)
        return drawn.to(torch.int32)


def reach(sums: Tensor, unit: Tensor, scale_by_norm: bool) -> Tensor:
    """Return the factor of each row's noise: ‖G‖, or 1; NaN where the gradient is not finite."""
    norm = sums[:, 0].sqrt() / unit
    return norm if scale_by_norm else torch.where(norm < torch.inf, 1.0, torch.nan).to(norm)

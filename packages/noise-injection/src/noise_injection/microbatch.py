"""The variance of a step's gradient between its micro-batches."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache
from itertools import count
from weakref import ref

import torch
from torch import Tensor
from torch.autograd.graph import get_gradient_edge
from torch.distributed import ProcessGroup
from torch.utils.hooks import RemovableHandle
from torch.utils.weak import TensorWeakRef

from finetune_common.aliases import StateDict, is_sharded
from finetune_common.errors import ConfigurationError
from finetune_common.optim.parts import processes
from noise_injection import kernels
from noise_injection.attachment import Plan, Row
from noise_injection.shards import add_over_processes, flat, local

__all__ = ["MicroBatchVariance"]

UNLIKE = 1e-3
"""Largest squared sine of the angle between G and the micro-batches' sum for which G is a rescaled sum."""


@cache
def _number(value: float, dtype: torch.dtype, device: torch.device) -> Tensor:
    return torch.tensor([value], dtype=dtype, device=device)


class _Watch:
    """Mean and squared deviations of what backward passes add to one parameter's gradient.

    The hook sits on the node that accumulates into `.grad`: it sees exactly what is added there, after every
    hook on the tensor, and `torch.autograd.grad` does not call it. A contribution that arrives while the
    parameter requires no gradient is added nowhere, and is not counted.

    A window begins anew if the gradient is gone, or has changed and is zero everywhere: `zero_grad` in either
    form ends a window that no step has used.
    """

    def __init__(self, parameter: Tensor, clock: Callable[[], int]) -> None:
        self.parameter = parameter
        self.clock = clock
        self.count = self.last = self.began = 0
        self.seen: tuple[TensorWeakRef, int] | None = None  # weak: `zero_grad` frees the gradient
        self.mean = self.deviations = parameter.new_empty(0)
        self.node = get_gradient_edge(parameter).node
        self.handle = self.node.register_prehook(self._observe)
        weak_self = ref(self)  # the garbage collector does not look inside such a hook

        def record_version(parameter: Tensor) -> None:
            watch = weak_self()
            if watch is not None and parameter.grad is not None:
                watch.seen = TensorWeakRef(parameter.grad), parameter.grad._version

        # torch gives this method no types.
        register = parameter.register_post_accumulate_grad_hook  # pyright: ignore
        self.after: RemovableHandle = register(record_version)

    @property
    def current(self) -> bool:
        """Whether the hook is still called. Moving a parameter gives it another node."""
        return get_gradient_edge(self.parameter).node is self.node

    @torch.no_grad()
    def _observe(self, contributions: tuple[Tensor | None, ...]) -> None:
        [contribution] = contributions
        if contribution is None or contribution.is_sparse or not self.parameter.requires_grad:
            return
        now = self.clock()
        if self.count and self.discarded():
            self.count, self.began = 0, now
        self.last = now
        self.seen = None
        value = flat(contribution, self.parameter)
        self.count += 1
        if self.count == 1:
            self._start(value)
        else:
            count = _number(self.count, self.mean.dtype, value.device)
            kernels.run(kernels.observe, [self.mean, self.deviations, value], count, None)

    def discarded(self) -> bool:
        """Whether the gradient that the counted contributions made is gone."""
        gradient = self.parameter.grad
        if gradient is None:
            return True
        if self.seen is not None and self.seen[0]() is gradient and self.seen[1] == gradient._version:
            return False
        return not bool(local(gradient).any())

    def remove(self) -> None:
        """Stop watching."""
        self.handle.remove()
        self.after.remove()

    def _start(self, value: Tensor) -> None:
        if self.mean.shape != value.shape or self.mean.device != value.device:
            dtype = torch.float64 if value.dtype == torch.float64 else torch.float32
            self.mean, self.deviations = (torch.empty_like(value, dtype=dtype) for _ in range(2))
        self.mean.copy_(value)
        self.deviations.zero_()

    def complete(self, gradient: Tensor, total: int, group: ProcessGroup | None) -> None:
        """Count micro-batches without a contribution as zeros, and include those of other processes."""
        if self.count == 0:
            self._start(torch.zeros_like(gradient))
        elif self.count < total:
            self.deviations.addcmul_(self.mean, self.mean, value=self.count * (total - self.count) / total)
            self.mean.mul_(self.count / total)
        if processes(group) > 1 and not is_sharded(self.parameter):
            local_mean = self.mean.clone()
            add_over_processes(self.mean, group)
            self.mean.div_(processes(group))
            difference = local_mean.sub_(self.mean)
            self.deviations.addcmul_(difference, difference, value=total)
            add_over_processes(self.deviations, group)


@dataclass
class MicroBatchVariance:
    """Unbiased variance of u_i = N·c_i, where micro-batch i of N adds c_i to the gradient.

    Between backward and step a gradient may be rescaled (averaged, unscaled, clipped by a norm). The factor
    is found by projecting G on the sum of the c_i, tensor by tensor; its square multiplies the variance.

    Args:
        parameters: Returns the parameters to watch.
        group: The processes over which gradients are averaged; None for all.
        checks: Whether to check, in every hundredth step, that G is a rescaled sum at all.
    """

    parameters: Callable[[], Iterable[Tensor]]
    group: ProcessGroup | None
    checks: bool
    steps: int = 0
    skipped: int = 0

    def __post_init__(self) -> None:
        self._watches: dict[Tensor, _Watch] = {}
        self._window = 0
        self._clock = count(1)
        self._watch()

    def _watch(self) -> None:
        """Watch parameters that are not watched yet: new ones, unfrozen ones, and those that were moved."""
        for param in self.parameters():
            known = self._watches.get(param)
            if param.requires_grad and (known is None or not known.current):
                if known is not None:
                    known.remove()
                self._watches[param] = _Watch(param, self._clock.__next__)

    def remove(self) -> None:
        """Stop watching."""
        for watch in self._watches.values():
            watch.remove()
        self._watches.clear()

    def plans(self, rows: list[Row]) -> list[Plan]:
        """Complete the window, and return a plan for each row that has a variance: two micro-batches."""
        began = max((watch.began for watch in self._watches.values()), default=0)
        for watch in self._watches.values():
            if watch.count and watch.last < began and watch.discarded():
                watch.count = 0
        self._window = max((watch.count for watch in self._watches.values()), default=0)
        rows = [row for row in rows if row.parameter in self._watches and self._total(row) > 1]
        if not rows:
            self._refuse_at_first()
            self.skipped += 1
        plans: list[Plan] = []
        for row in rows:
            watch = self._watches[row.parameter]
            watch.complete(row.gradient, self._window, self.group)
            plans.append(Plan(row, kernels.add_microbatch, [watch.deviations], watch.mean))
        return plans

    def _total(self, row: Row) -> int:
        return self._window * (1 if is_sharded(row.parameter) else processes(self.group))

    def _refuse_at_first(self) -> None:
        if self.steps:
            return
        if self._window:
            raise ConfigurationError(
                "variance='microbatch' needs two or more micro-batches a step, and this step had 1 (the "
                "variance of one is exactly zero): accumulate gradients (--accumulate 2), or use "
                "variance='running' or 'ema'"
            )
        raise ConfigurationError(
            "variance='microbatch' saw no backward() add to a gradient: attach after model.to(device), "
            "compute gradients with backward(), or (under FSDP) use variance='running' or 'ema'"
        )

    def numbers(self, plans: list[Plan], sums: Tensor, reach: Tensor, unit: Tensor) -> Tensor:
        """Return the factor of sqrt(M): sqrt(1/(N-1)), times the factor that rescaled G, times `reach`."""
        squared, product, mean_squared = sums.unbind(1)
        if self.checks and self.steps % 100 == 0 and not sums.is_meta:  # such numbers have no values
            self._warn_unlike(1 - product.square() / (squared * mean_squared))
        totals = [self._total(plan.row) for plan in plans]
        size = reach * (product / mean_squared).abs()
        if len(set(totals)) == 1:  # different numbers have to be copied from the host
            return (size / (totals[0] - 1) ** 0.5).unsqueeze(1)
        return (size / (sums.new_tensor(totals) - 1).sqrt()).unsqueeze(1)

    def _warn_unlike(self, sines: Tensor) -> None:
        if bool((sines > UNLIKE).any()):
            self.checks = False
            warnings.warn(
                "gradients are not a rescaled sum of their micro-batches: something changed them element by "
                "element between backward and step (such as clip_grad_value_), or they were not averaged "
                "over the process group; their variance is scaled by the closest single factor",
                RuntimeWarning,
                stacklevel=2,
            )

    def after_injection(self) -> None:
        """Begin a new window."""
        self.steps += 1
        for watch in self._watches.values():
            watch.count = 0
        self._watch()

    def state_dict(self) -> StateDict:
        """Return the counter; a window's statistics end with its step."""
        return {"skipped": self.skipped}

    def load_state_dict(self, state: StateDict, steps: int) -> None:
        """Continue after `steps` steps."""
        self.skipped, self.steps = state["skipped"], steps

"""The base class of the element-wise optimizers."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor

from finetune_common.errors import ConfigurationError, check_number, did_you_mean
from finetune_common.optim.rows import shard_index, write_back
from finetune_common.optim.run import Row, Rule, run
from finetune_common.optim.state import StatefulOptimizer

__all__ = ["Batch", "ElementwiseOptimizer"]

FUSED_PAYS_FROM = 2**23
"""Parameters from which compiling pays within some hundred steps."""


@dataclass(frozen=True)
class Batch:
    """Parameters of one group that take the same step together.

    Args:
        group: Their parameter group.
        step: The number of this step for them, from 1.
        params: The parameters.
        grads: Their gradients as they are in `.grad`; a DTensor stands for the whole tensor.
        rows: `[param, grad, *state]` of each, flat, this process's part of a DTensor.
        indices: Their positions among all parameters of the optimizer.
    """

    group: dict[str, Any]
    step: int
    params: list[Tensor]
    grads: list[Tensor]
    rows: list[Row]
    indices: list[int]


class ElementwiseOptimizer(StatefulOptimizer):
    """An optimizer that states its update once, as a pure function, and runs it in three ways.

    A subclass says what its rule is (`rule`), which state it keeps (`initial_state`), which numbers the
    rule needs at a step (`scalars`), which settings are legal (`check_group`), and, where whole tensors
    matter (norms), what is computed before the rule (`prepare`).

    State is float32 (float64 for float64 parameters) and stays so through `load_state_dict`; `step` is a
    float32 number on the CPU. All of it belongs to parameters, as torch's checkpoint tools expect: what an
    optimizer keeps for all of them is repeated in the state of each, or is a setting of its groups.

    Args:
        params: Parameters, (name, parameter) pairs, or groups of them.
        defaults: Settings of a group that does not give its own, `lr` among them: a number or a tensor with
            one element (a tensor on a GPU costs one synchronisation a group and step).
        foreach: Run over lists; default for GPU tensors.
        fused: Compile into one pass over memory; default from 8 million parameters on. Without a compiler it
            warns once and runs uncompiled.
        maximize: Step along the gradient. A setting of a group.
        stochastic_rounding: Round bfloat16 parameters up or down at random so that small steps are not lost
            on average. The random bits depend on step, parameter and element only. A setting of a group.

    Raises:
        ConfigurationError: A setting out of range, both `foreach` and `fused`, a complex parameter; at a
            step a sparse or complex gradient.
        TypeError: An argument that the class does not have.

    Examples:
        >>> class SignDescent(ElementwiseOptimizer):
        ...     def rule(self, group):
        ...         return sign_descent, {}
        ...     def scalars(self, group, step):
        ...         return {"lr": float(group["lr"])}
        >>> def sign_descent(param, grad, *, lr):
        ...     return (param - lr * torch.sign(grad),)
        >>> w = torch.nn.Parameter(torch.tensor([1.0, -1.0]))
        >>> optimizer = SignDescent([w], {"lr": 0.5})
        >>> w.square().sum().backward()
        >>> optimizer.step()
        >>> w.tolist()
        [0.5, -0.5]
    """

    def __new__(cls, *args: Any, **kwargs: Any) -> Self:
        """Refuse an argument that the class does not have, by the name that the user knows."""
        known = inspect.signature(cls.__init__).parameters
        for name in kwargs:
            if name not in known and not any(p.kind is p.VAR_KEYWORD for p in known.values()):
                raise TypeError(f"{cls.__name__} has no argument {name}: {did_you_mean(name, [*known][1:])}")
        return super().__new__(cls)

    def __init__(
        self,
        params: Any,
        defaults: dict[str, Any],
        *,
        foreach: bool | None = None,
        fused: bool | None = None,
        maximize: bool = False,
        stochastic_rounding: bool = False,
    ):
        if foreach and fused:
            raise ConfigurationError("foreach=True and fused=True exclude each other: leave one of them out")
        self.foreach, self.fused = foreach, fused
        super().__init__(
            params, {**defaults, "maximize": maximize, "stochastic_rounding": stochastic_rounding}
        )

    def rule(self, group: Mapping[str, Any]) -> tuple[Callable[..., tuple[Any, ...]], Mapping[str, Any]]:
        """Return the update function of a group and its static settings, which must be hashable."""
        raise NotImplementedError

    def scalars(self, group: Mapping[str, Any], step: int) -> Mapping[str, float]:
        """Return the numbers that the rule of a group needs at a step (from 1)."""
        raise NotImplementedError

    def check_group(self, group: Mapping[str, Any]) -> None:
        """Raise `ConfigurationError` for settings that cannot be used."""

    def prepare(self, batches: list[Batch]) -> list[dict[str, Tensor]]:
        """Compute, once a step, numbers that differ from tensor to tensor.

        Returns:
            For each batch, argument name of the rule → one-dimensional tensor with one number a parameter.
        """
        return [{} for _ in batches]

    def inputs(self, group: Mapping[str, Any], param: Tensor) -> tuple[Tensor, ...] | None:
        """Return what else the rule reads after the state, or None to leave the parameter alone."""
        return ()

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group; see `torch.optim.Optimizer.add_param_group`.

        Raises:
            ConfigurationError: A setting out of range or a complex parameter.
        """
        self._check({**self.defaults, **param_group})
        super().add_param_group(param_group)
        if any(param.is_complex() for param in self.param_groups[-1]["params"]):
            self.param_groups.pop()
            raise ConfigurationError(
                "complex parameters are not supported: pass torch.view_as_real(parameter) as the parameter"
            )

    def _check(self, group: Mapping[str, Any]) -> None:
        lr = group["lr"]
        if isinstance(lr, Tensor) and lr.numel() != 1:
            raise ConfigurationError(
                f"lr has shape {tuple(lr.shape)}: give a number or a tensor with one element"
            )
        check_number("lr", float(lr) if isinstance(lr, Tensor) else lr, at_least=0)
        self.check_group(group)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # type: ignore[override]
        """Take one step; parameters without a gradient stay as they are.

        Args:
            closure: Re-evaluates the model and returns the loss.

        Returns:
            The closure's loss, if any.

        Raises:
            ConfigurationError: A setting that was changed to something illegal; a sparse or complex gradient.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            self._check(group)
        batches = [batch for group in self._groups() for batch in self._batches(*group)]
        for batch, row_scalars in zip(batches, self.prepare(batches), strict=True):
            update, static = self.rule(batch.group)
            stochastic = batch.group["stochastic_rounding"] and batch.params[0].dtype == torch.bfloat16
            rule = Rule(update, tuple(static.items()), batch.group["maximize"], stochastic)
            if stochastic:
                row_scalars = {**row_scalars, "salt": _salts(batch)}
            scalars = {name: float(value) for name, value in self.scalars(batch.group, batch.step).items()}
            run(self._path(batch.rows[0][0].device), rule, batch.rows, scalars, row_scalars)
            for param, row in zip(batch.params, batch.rows, strict=True):
                write_back(param, row)
        return loss

    def _path(self, device: torch.device) -> str:
        if self.fused or (self.fused is None and self.foreach is None and self._fused_pays(device)):
            return "fused"
        if self.foreach or (self.foreach is None and device.type == "cuda"):
            return "foreach"
        return "reference"

    def _fused_pays(self, device: torch.device) -> bool:
        elements = sum(param.numel() for group in self.param_groups for param in group["params"])
        return device.type in ("cpu", "cuda") and elements >= FUSED_PAYS_FROM

    def _groups(self) -> Iterator[tuple[dict[str, Any], list[_Found]]]:
        """Yield each group with those of its parameters that take this step, their state complete."""
        first = 0
        for group in self.param_groups:
            initial = self.initial_state(group)
            found = []
            for index, param in enumerate(group["params"], first):
                grad = param.grad
                inputs = None if grad is None else self.inputs(group, param)
                if grad is not None and inputs is not None:
                    state = self.state_of(param, initial)
                    found.append(
                        (index, param, _placed(grad, param), [*(state[n] for n in initial), *inputs])
                    )
            first += len(group["params"])
            yield group, found

    def _batches(self, group: dict[str, Any], found: list[_Found]) -> Iterable[Batch]:
        batches: dict[tuple[Any, ...], Batch] = {}
        steps = self.count([param for _, param, *_ in found])
        for step, (index, param, grad, state) in zip(steps, found, strict=True):
            row = self._rows.row(param, grad, state)
            key = (step, row[0].dtype, row[1].dtype, row[0].device)
            if key not in batches:
                batches[key] = Batch(group, step, [], [], [], [])
            batch = batches[key]
            batch.params.append(param)
            batch.grads.append(grad)
            batch.rows.append(row)
            batch.indices.append(index)
        return batches.values()

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "foreach": self.foreach, "fused": self.fused}


_Found = tuple[int, Tensor, Tensor, list[Tensor]]
"""Position, parameter, gradient and the rest of its row."""


def _placed(grad: Any, param: Any) -> Tensor:
    """Return a gradient, spread over processes as its parameter is."""
    if hasattr(param, "placements") and grad.placements != param.placements:
        return grad.redistribute(param.device_mesh, param.placements)
    return grad


def _salts(batch: Batch) -> Tensor:
    salts = [
        hash((batch.step, index, shard_index(param))) % 2**31
        for index, param in zip(batch.indices, batch.params, strict=True)
    ]
    return torch.tensor(salts, dtype=torch.int32, device=batch.rows[0][0].device)

"""The base class of the element-wise optimizers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from finetune_common.errors import ConfigurationError, check_number
from finetune_common.optim.rows import flat_row, shard_index
from finetune_common.optim.run import Row, Rule, arithmetic_dtype, run

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


class ElementwiseOptimizer(torch.optim.Optimizer):
    """An optimizer that states its update once, as a pure function, and runs it in three ways.

    A subclass says what its rule is (`rule`), which state it keeps (`initial_state`), which numbers the
    rule needs at a step (`scalars`), which settings are legal (`check_group`), and, where whole tensors
    matter (norms), what is computed before the rule (`prepare`).

    State is float32 (float64 for float64 parameters) and stays so through `load_state_dict`; `step` is a
    float32 number. State of the whole optimizer, if any, lives in `shared`.

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

    def initial_state(self, group: Mapping[str, Any]) -> Mapping[str, float]:
        """Return state tensor → initial value, in the order of the rule's arguments."""
        return {}

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

    @property
    def shared(self) -> dict[str, Any]:
        """State of the whole optimizer, saved with it: numbers and tensors by name."""
        return self.state["shared"]  # type: ignore[index]

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group; see `torch.optim.Optimizer.add_param_group`.

        Raises:
            ConfigurationError: A setting out of range or a complex parameter.
        """
        settings = {**self.defaults, **param_group}
        lr = settings["lr"]
        if isinstance(lr, Tensor) and lr.numel() != 1:
            raise ConfigurationError(
                f"lr has shape {tuple(lr.shape)}: give a number or a tensor with one element"
            )
        check_number("lr", float(lr), at_least=0)
        self.check_group(settings)
        super().add_param_group(param_group)
        if any(param.is_complex() for param in self.param_groups[-1]["params"]):
            self.param_groups.pop()
            raise ConfigurationError(
                "complex parameters are not supported: pass torch.view_as_real(parameter) as the parameter"
            )

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # type: ignore[override]
        """Take one step; parameters without a gradient stay as they are.

        Args:
            closure: Re-evaluates the model and returns the loss.

        Returns:
            The closure's loss, if any.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        batches = list(self._batches())
        for batch, row_scalars in zip(batches, self.prepare(batches), strict=True):
            update, static = self.rule(batch.group)
            stochastic = batch.group["stochastic_rounding"] and batch.params[0].dtype == torch.bfloat16
            rule = Rule(update, tuple(static.items()), batch.group["maximize"], stochastic)
            if stochastic:
                row_scalars = {**row_scalars, "salt": _salts(batch)}
            scalars = {name: float(value) for name, value in self.scalars(batch.group, batch.step).items()}
            run(self._path(batch.rows[0][0].device), rule, batch.rows, scalars, row_scalars)
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

    def _batches(self) -> Iterator[Batch]:
        first = 0
        for group in self.param_groups:
            initial = self.initial_state(group)
            found = list(self._with_gradient(group, initial, first))
            first += len(group["params"])
            if not found:
                continue
            torch._foreach_add_([state["step"] for *_, state in found], 1)
            batches: dict[tuple[Any, ...], Batch] = {}
            for index, param, grad, inputs, state in found:
                step = int(state["step"].item())
                row = flat_row(param, grad, *[state[name] for name in initial], *inputs)
                key = (step, row[0].dtype, row[1].dtype, row[0].device)
                if key not in batches:
                    batches[key] = Batch(group, step, [], [], [], [])
                batch = batches[key]
                batch.params.append(param)
                batch.grads.append(grad)
                batch.rows.append(row)
                batch.indices.append(index)
            yield from batches.values()

    def _with_gradient(
        self, group: dict[str, Any], initial: Mapping[str, float], first: int
    ) -> Iterator[tuple[int, Tensor, Tensor, tuple[Tensor, ...], dict[str, Any]]]:
        """Yield position, parameter, gradient, further inputs and state of each that takes this step."""
        for index, param in enumerate(group["params"], first):
            grad = param.grad
            inputs = None if grad is None else self.inputs(group, param)
            if grad is None or inputs is None:
                continue
            state = self.state[param]
            if not state:
                state["step"] = torch.zeros((), dtype=torch.float32)
                for name, value in initial.items():
                    state[name] = torch.full_like(param, value, dtype=arithmetic_dtype(param.dtype))
            yield index, param, grad, inputs, state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load a state; every tensor keeps its own dtype and shares no memory with what was loaded."""
        super().load_state_dict(state_dict)
        saved = [index for group in state_dict["param_groups"] for index in group["params"]]
        params = [param for group in self.param_groups for param in group["params"]]
        for index, param in zip(saved, params, strict=True):
            for name, value in state_dict["state"].get(index, {}).items():
                self.state[param][name] = _restored(param, name, value)
        if "shared" in state_dict["state"]:
            self.state["shared"] = deepcopy(state_dict["state"]["shared"])  # type: ignore[index]

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "foreach": self.foreach, "fused": self.fused}


def _salts(batch: Batch) -> Tensor:
    shard = shard_index(batch.params[0])
    salts = [hash((batch.step, index, shard)) % 2**31 for index in batch.indices]
    return torch.tensor(salts, dtype=torch.int32, device=batch.rows[0][0].device)


def _restored(param: Tensor, name: str, value: Any) -> Any:
    if name == "step" or not isinstance(value, Tensor):
        return deepcopy(value)
    if value.shape != param.shape:
        raise ConfigurationError(
            f"the saved state has shape {tuple(value.shape)}, the parameter {tuple(param.shape)}: load "
            "the state of the same model"
        )
    return torch.empty_like(param, dtype=arithmetic_dtype(param.dtype)).copy_(value)

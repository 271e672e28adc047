"""The base class of the element-wise optimizers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, NamedTuple, cast

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from finetune_common.aliases import ParamGroup, Settings, StateDict, is_sharded
from finetune_common.arguments import check_parameters, explain_arguments
from finetune_common.errors import ConfigurationError, check_choice
from finetune_common.optim.batch import Batch, Turn, batches_of, salts
from finetune_common.optim.norms import whole_norms
from finetune_common.optim.ops import Divisor
from finetune_common.optim.parts import refuse_parts
from finetune_common.optim.run import Late, Row, Rule, Update, run
from finetune_common.optim.settings import check_kinds, check_switch, constructor_defaults
from finetune_common.optim.state import StatefulOptimizer

__all__ = ["ElementwiseOptimizer"]

FUSED_PAYS_FROM = 2**23
"""From this many parameters on, compiling pays within a few hundred steps."""


class _Call(NamedTuple):
    """What rows must have in common to run in one call."""

    rule: Rule
    scalars: tuple[tuple[str, float], ...]
    kind: tuple[torch.dtype, torch.dtype, torch.device]


class ElementwiseOptimizer(StatefulOptimizer):
    """An optimizer that states its update once, as a pure function, and runs it in three ways.

    Inside `torch.compile` a step is not traced: the graph ends before it, and the step runs as usual.

    A subclass defines its rule (`rule`), its state (`initial_state`), the numbers that the rule needs at a
    step (`scalars`), the legal settings (`check_group`), and, if it needs whole tensors (norms), what to
    compute before the rule (`prepare`).

    State is float32 (float64 for float64 parameters), also after `load_state_dict`; `step` is a float32
    number on the CPU. All state belongs to parameters, as torch's checkpoint tools expect: common state is
    repeated for each parameter, or is a setting of its groups.

    Args:
        params: Parameters, (name, parameter) pairs, or groups of them.
        defaults: Default settings of groups, including `lr`: a number or a tensor with one element (a tensor
            on a GPU costs one synchronisation per group and step). A setting is of the kind of its default in
            the constructor: a truth value, or a number.
        foreach: Run over lists; default for GPU tensors.
        fused: Compile into one pass over memory; default from 8 million parameters on. Without a compiler it
            warns once and runs uncompiled.
        maximize: Step along the gradient. A setting of a group.
        stochastic_rounding: Round bfloat16 parameters up or down at random so that small steps are not lost
            on average. The random bits depend on step, parameter and element only. A setting of a group.
        skip_nonfinite: If a gradient is not finite, skip its "group" or the whole "step", and count it in the
            group's `skipped`; the host then waits for the gradients. None: use it as it is. A
            setting of a group.

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

    counters: ClassVar[frozenset[str]] = frozenset({"skipped"})

    def __init_subclass__(cls) -> None:
        """Report wrong arguments with the public name of the class."""
        super().__init_subclass__()
        explain_arguments(cls)

    def __init__(
        self,
        params: ParamsT,
        defaults: Settings,
        *,
        foreach: bool | None = None,
        fused: bool | None = None,
        maximize: bool = False,
        stochastic_rounding: bool = False,
        skip_nonfinite: str | None = None,
    ):
        for name, value in (("foreach", foreach), ("fused", fused)):
            if value is not None:
                check_switch(name, value)
        if foreach and fused:
            raise ConfigurationError("foreach=True and fused=True exclude each other: leave one of them out")
        check_parameters(params)
        self.foreach, self.fused = foreach, fused
        super().__init__(
            params,
            {
                **defaults,
                "maximize": maximize,
                "stochastic_rounding": stochastic_rounding,
                "skip_nonfinite": skip_nonfinite,
                "skipped": 0,
            },
        )

    def rule(self, group: Settings) -> tuple[Update, Settings]:
        """Return the update function of a group and its static settings, which must be hashable."""
        raise NotImplementedError

    def scalars(self, group: Settings, step: int) -> Mapping[str, float]:
        """Return the numbers that the rule needs at a step (from 1); a `Divisor` for `ops.divide`."""
        raise NotImplementedError

    def own_defaults(self) -> Settings:
        """Return the settings that this class defines, with the constructor's defaults where it has some."""
        given = constructor_defaults(type(self))
        return {name: given.get(name, default) for name, default in self.defaults.items()}

    def check_group(self, group: Settings) -> None:
        """Raise `ConfigurationError` for settings that cannot be used."""

    def prepare(self, batches: list[Batch]) -> list[dict[str, Sequence[Tensor | Late]]]:
        """Compute, once a step, numbers that differ from tensor to tensor.

        Returns:
            For each batch, argument name of the rule → for each parameter a number, a 0-dimensional tensor,
            or a function that returns it when it is needed (see `finetune_common.optim.run.run`).
        """
        return [{} for _ in batches]

    def inputs(self, group: Settings, param: Tensor) -> tuple[Tensor, ...] | None:
        """Return further arguments of the rule after the state, or None to skip the parameter."""
        return ()

    def add_param_group(self, param_group: ParamGroup) -> None:
        """Add a group; see `torch.optim.Optimizer.add_param_group`.

        Raises:
            ConfigurationError: A setting out of range or a complex parameter.
        """
        check_parameters(param_group.get("params"))
        self._check({**self.defaults, **param_group}, self.own_defaults())
        super().add_param_group(param_group)
        if any(param.is_complex() for param in self.param_groups[-1]["params"]):
            self.param_groups.pop()
            raise ConfigurationError(
                "complex parameters are not supported: pass torch.view_as_real(parameter) as the parameter"
            )

    def _check(self, group: Settings, own: Settings) -> None:
        check_kinds(group, own)
        check_choice("skip_nonfinite", group["skip_nonfinite"], (None, "group", "step"))
        self.check_group(group)

    # A compiled training step ends its graph here: the step has its own compiled code. The decorator's public
    # name, torch.compiler.disable, would load the compiler.
    @torch._disable_dynamo  # pyright: ignore[reportPrivateUsage, reportPrivateImportUsage]
    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Take one step; parameters without a gradient stay as they are.

        Args:
            closure: Re-evaluates the model and returns the loss.

        Returns:
            The closure's loss, if any.

        Raises:
            ConfigurationError: A setting changed to an illegal value; a sparse or complex gradient.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        own = self.own_defaults()
        for group in self.param_groups:
            self._check(group, own)
        batches = self._batches()
        calls: dict[_Call, tuple[list[Row], dict[str, list[Tensor | Late]]]] = {}
        for batch, row_scalars in zip(batches, self.prepare(batches), strict=True):
            rule, scalars = self._rule_of(batch), self.scalars(batch.group, batch.step)
            if rule.stochastic:
                row_scalars = {**row_scalars, "salt": salts(batch).unbind()}
            numbers = tuple((name, _number(value)) for name, value in scalars.items())
            call = _Call(rule, numbers, batch.kind)
            rows, of_rows = calls.setdefault(call, ([], {name: [] for name in row_scalars}))
            rows += batch.rows
            for name, values in row_scalars.items():
                of_rows[name] += values
        for call, (rows, of_rows) in calls.items():
            run(self._path(rows[0][0].device), call.rule, rows, dict(call.scalars), of_rows)
        self._rows.write_back()
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

    def _rule_of(self, batch: Batch) -> Rule:
        update, static = self.rule(batch.group)
        stochastic = batch.group["stochastic_rounding"] and batch.params[0].dtype == torch.bfloat16
        return Rule(update, tuple(static.items()), batch.group["maximize"], stochastic)

    def _batches(self) -> list[Batch]:
        """Return the parameters that take this step, with complete state and the step counted."""
        turns: list[Turn] = []
        first = 0
        self._rows.copies.clear()  # left from a step that failed
        for position, group in enumerate(self.param_groups):
            initial = self.initial_state(group)
            for index, param in enumerate(group["params"], first):
                grad = param.grad
                inputs = None if grad is None else self.inputs(group, param)
                if grad is not None and inputs is not None:
                    state = self.state_of(param, initial)
                    tensors = [*[state[name] for name in initial], *inputs]
                    turns.append(Turn(position, index, param, _placed(grad, param), state, tensors))
            first += len(group["params"])
        skipped = self._skipped(turns)
        turns = [turn for turn in turns if turn.group not in skipped]
        steps = self.count([turn.state for turn in turns])
        rows = [self._rows.row(turn.param, turn.grad, turn.tensors) for turn in turns]
        return batches_of(turns, steps, rows, self.param_groups)

    def _skipped(self, turns: Sequence[Turn]) -> set[int]:
        """Return the groups that skip this step because a gradient is not finite, and count the skips."""
        options = [group["skip_nonfinite"] for group in self.param_groups]
        if not turns or not any(options):
            return set()
        refuse_parts((turn.param for turn in turns), "skip_nonfinite")
        norms = whole_norms([turn.grad for turn in turns])
        finite = cast("list[bool]", norms.isfinite().tolist())  # pyright: ignore[reportUnknownMemberType]  # untyped
        groups = {turn.group for turn, good in zip(turns, finite, strict=True) if not good}
        skipped = {position for position in groups if options[position]}
        if any(options[position] == "step" for position in skipped):
            skipped = {turn.group for turn in turns}
        for position in skipped:
            self.param_groups[position]["skipped"] += 1
        return skipped

    def __getstate__(self) -> StateDict:
        return {**super().__getstate__(), "foreach": self.foreach, "fused": self.fused}


def _placed(grad: Tensor, param: Tensor) -> Tensor:
    """Return a gradient, spread over processes like its parameter."""
    if is_sharded(param) and is_sharded(grad) and grad.placements != param.placements:
        return grad.redistribute(param.device_mesh, param.placements)
    return grad


def _number(value: float) -> float:
    return value if isinstance(value, Divisor) else float(value)

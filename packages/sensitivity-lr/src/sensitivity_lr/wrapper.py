"""SAGE around any optimizer."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

# Torch has no public way to silence the hooks of all optimizers.
from torch.optim.optimizer import (
    _global_optimizer_post_hooks,  # pyright: ignore[reportPrivateUsage]
    _global_optimizer_pre_hooks,  # pyright: ignore[reportPrivateUsage]
)

from finetune_common.aliases import ParamGroup, Settings, StateDict
from finetune_common.optim import ElementwiseOptimizer, arithmetic_dtype
from finetune_common.optim.loading import checked_state, restored
from sensitivity_lr import rules
from sensitivity_lr.base import Update, branches, check_sage, sage_scalars

__all__ = ["Sage"]

EPS = 1e-6


class Sage(ElementwiseOptimizer):
    """Scale the update of any optimizer, coordinate by coordinate, by the SAGE factor.

        I = |θ g|,   Î = β₃ Î + (1-β₃) I
        paper:  f = (|I-Î|+s) / (Î+s)        released:  f = |I-Î| / (Î+s), and 1 where I = Î = 0
        θ = θ_old + f · (θ_new - θ_old)

    θ_new is the other optimizer's result, with weight decay. Both optimizers share their parameter groups, so
    a scheduler works with either of them. A group with `sage=False` is left to the other optimizer. The other
    optimizer must not change `.grad`; torch's do not. During a step the wrapper holds a copy of the
    parameters; `SageAdamW`, `SageAdamax` and `SageSGD` hold none and are faster.

    Args:
        optimizer: The optimizer whose update is scaled; call the wrapper's `step` in its place.
        beta3: β₃ in [0, 1), decay of the average sensitivity; useful values are 0.6-0.9.
        form: "paper" or "released".
        sensitivity_eps: s; None means 1e-12.
        foreach: Run the scaling over lists of tensors.
        fused: Compile the scaling into one pass over memory; None does so if it pays.

    Raises:
        ConfigurationError: A setting out of range.

    Examples:
        >>> w = torch.nn.Parameter(torch.tensor([1.0]))
        >>> optimizer = Sage(torch.optim.RMSprop([w], lr=0.01), beta3=0.75)
        >>> w.square().sum().backward()
        >>> optimizer.step()  # RMSprop's first step is 0.1, the first factor 3
        >>> round(w.item(), 4)
        0.7

    Source: Liang et al., "No Parameters Left Behind" (ICLR 2022, arXiv 2202.02664), Algorithm 1.
    """

    counts_steps = False

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        beta3: float = 0.75,
        *,
        form: str = "paper",
        sensitivity_eps: float | None = None,
        foreach: bool | None = None,
        fused: bool | None = None,
    ):
        self.base = optimizer
        self._previous: dict[Tensor, Tensor] = {}
        settings = {"beta3": beta3, "form": form, "sensitivity_eps": sensitivity_eps, "sage": True}
        for group in optimizer.param_groups:
            check_sage({**settings, **group}, EPS)
        state, groups = optimizer.state, optimizer.param_groups
        super().__init__(groups, settings, foreach=foreach, fused=fused)
        optimizer.state, optimizer.param_groups = state, groups
        self.defaults = {**self.defaults, **optimizer.defaults}

    # Torch declares these two as attributes. They are properties here since both optimizers share them.

    @property
    def state(self) -> defaultdict[Tensor, StateDict]:
        """The state of both optimizers: that of the other one, with `sensitivity`."""
        return self.base.state

    @state.setter
    def state(  # pyright: ignore[reportIncompatibleVariableOverride]
        self, state: defaultdict[Tensor, StateDict]
    ) -> None:
        self.base.state = state

    @property
    def param_groups(self) -> list[ParamGroup]:
        """The groups of both optimizers."""
        return self.base.param_groups

    @param_groups.setter
    def param_groups(  # pyright: ignore[reportIncompatibleVariableOverride]
        self, groups: list[ParamGroup]
    ) -> None:
        self.base.param_groups = groups

    def add_param_group(self, param_group: ParamGroup) -> None:
        """Add a group to both optimizers."""
        check_sage({**self.defaults, **param_group}, EPS)
        self.base.add_param_group(param_group)
        self.complete_groups()

    def own_defaults(self) -> Settings:
        """Return SAGE's settings and their defaults: those of the other optimizer are its own affair."""
        defaults = super().own_defaults()
        return {name: value for name, value in defaults.items() if name not in self.base.defaults}

    def check_group(self, group: Settings) -> None:
        """Refuse settings that cannot be used."""
        check_sage(group, EPS)

    def owns(self, name: str) -> bool:
        """Whether a part of the state is SAGE's: `sensitivity`, not the other optimizer's."""
        return name == "sensitivity"

    def rule(self, group: Settings) -> tuple[Update, Settings]:
        """Return `rules.rescale` and its branches."""
        return rules.rescale, branches(group)

    def initial_state(self, group: Settings) -> Mapping[str, float]:
        """Return Î."""
        return {"sensitivity": 0.0}

    def scalars(self, group: Settings, step: int) -> Mapping[str, float]:
        """Return the numbers of `rules.sage_factor`."""
        return sage_scalars(group, EPS)

    def inputs(self, group: Settings, param: Tensor) -> tuple[Tensor, ...] | None:
        """Return θ_old."""
        return (self._previous[param],) if group["sage"] else None

    # A compiled training step ends its graph here; the public torch.compiler.disable imports the compiler.
    @torch._disable_dynamo  # pyright: ignore[reportPrivateUsage]
    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Take one step of the other optimizer and scale it.

        Args:
            closure: Passed on to the other optimizer. The step uses the gradients that it leaves.
        """
        self.complete_groups()  # the other optimizer may have got a group, or loaded a state, by itself
        scaled = [
            param
            for group in self.param_groups
            if group["sage"]
            for param in group["params"]
            if closure is not None or param.grad is not None
        ]
        copies = [torch.empty_like(param, dtype=arithmetic_dtype(param.dtype)) for param in scaled]
        if scaled:
            # The only call of torch that copies a list of tensors at once.
            torch._foreach_copy_(copies, scaled)  # pyright: ignore[reportPrivateUsage]
        self._previous = dict(zip(scaled, copies, strict=True))
        with _without_hooks_of_all_optimizers():
            loss = self.base.step(closure) if closure is not None else self.base.step()
        super().step()
        self._previous = {}
        return loss

    def state_dict(self) -> StateDict:
        """Return the other optimizer's own state, which has SAGE's in its groups and entries."""
        for hook in self._optimizer_state_dict_pre_hooks.values():
            hook(self)
        saved = self.base.state_dict()
        for hook in self._optimizer_state_dict_post_hooks.values():
            changed = hook(self, saved)
            saved = saved if changed is None else changed
        return saved

    def load_state_dict(self, state_dict: StateDict) -> None:
        """Load the state of both optimizers, also from a file that keeps the two apart.

        The other optimizer loads its part in its own way; `sensitivity` is loaded exactly.

        Raises:
            ConfigurationError: The state of another model, or with settings that neither optimizer knows.
        """
        saved = _joined(state_dict)
        for hook in self._optimizer_load_state_dict_pre_hooks.values():
            changed = hook(self, saved)
            saved = saved if changed is None else changed
        saved = checked_state(saved, self)
        own, state = self.own_defaults(), saved["state"]
        others = {
            index: {name: value for name, value in entries.items() if not self.owns(name)}
            for index, entries in state.items()
        }
        self.base.load_state_dict({**saved, "state": others})
        for group, loaded in zip(self.param_groups, saved["param_groups"], strict=True):
            group.update({name: loaded[name] for name in own if name in loaded})
            for index, param in zip(loaded["params"], group["params"], strict=True):
                for name, value in state.get(index, {}).items():
                    if self.owns(name):
                        self.state[param][name] = restored(param, name, value, per_element=True)
                    elif self.state[param].get(name) is value and isinstance(value, Tensor):
                        # torch's loading shares memory if nothing is cast
                        self.state[param][name] = value.clone()
        self.complete_groups()
        self._forget()
        for hook in self._optimizer_load_state_dict_post_hooks.values():
            hook(self)

    def __getstate__(self) -> StateDict:
        own = {name: value for name, value in super().__getstate__().items() if name not in _SHARED}
        return {**own, "base": self.base, "_previous": {}}

    def __setstate__(self, state: StateDict) -> None:
        self.base = state["base"]
        super().__setstate__({name: value for name, value in state.items() if name not in _SHARED})


_SHARED = frozenset({"state", "param_groups"})
"""What the other optimizer keeps for both."""


def _joined(saved: StateDict) -> StateDict:
    """Return the state in one piece; earlier versions kept the other optimizer's under `base`."""
    if "base" not in saved:
        return {**saved}
    base, sage = saved["base"], {name: value for name, value in saved.items() if name != "base"}
    groups = zip(sage["param_groups"], base["param_groups"], strict=True)
    indices = {*base["state"], *sage["state"]}
    return {
        **base,
        **sage,
        "param_groups": [{**sage_group, **base_group} for sage_group, base_group in groups],
        "state": {i: {**base["state"].get(i, {}), **sage["state"].get(i, {})} for i in indices},
    }


@contextmanager
def _without_hooks_of_all_optimizers() -> Generator[None, None, None]:
    """Silence torch's global hooks for the other optimizer's step: the wrapper's step calls them."""
    before, after = dict(_global_optimizer_pre_hooks), dict(_global_optimizer_post_hooks)
    _global_optimizer_pre_hooks.clear()
    _global_optimizer_post_hooks.clear()
    try:
        yield
    finally:
        _global_optimizer_pre_hooks.update(before)
        _global_optimizer_post_hooks.update(after)

"""SAGE around any optimizer."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import _global_optimizer_post_hooks, _global_optimizer_pre_hooks

from finetune_common.optim import ElementwiseOptimizer, arithmetic_dtype
from sensitivity_lr import rules
from sensitivity_lr.base import branches, check_sage, sage_scalars

__all__ = ["Sage"]

EPS = 1e-6


class Sage(ElementwiseOptimizer):
    """Scale the update of any optimizer, coordinate by coordinate, by the SAGE factor.

        I = |θ g|,   Î = β₃ Î + (1-β₃) I
        paper:  f = (|I-Î|+s) / (Î+s)        released:  f = |I-Î| / (Î+s), and 1 where I = Î = 0
        θ = θ_old + f · (θ_new - θ_old)

    θ_new is what the other optimizer makes of θ_old, weight decay included. It shares its parameter groups,
    so that a scheduler may be given either of the two; a group with `sage=False` is left to the other
    optimizer. The other optimizer must leave `.grad` as it is, which those of torch do. During a step the
    wrapper holds a copy of the parameters; `SageAdamW`, `SageAdamax` and `SageSGD` do not and are faster.

    Args:
        optimizer: The optimizer whose update is scaled; step the wrapper in its place.
        beta3: β₃ in [0, 1), decay of the average sensitivity; useful values are 0.6-0.9.
        form: "paper" or "released".
        sensitivity_eps: s; None means 1e-12.
        foreach: Run the scaling over lists of tensors.
        fused: Compile the scaling into one pass over memory; None does so where it pays.

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
        super().__init__(groups, {**optimizer.defaults, **settings}, foreach=foreach, fused=fused)
        optimizer.state, optimizer.param_groups = state, groups
        self.defaults = {**self.defaults, **optimizer.defaults}

    @property
    def state(self) -> Any:  # type: ignore[override]
        """The state of both optimizers: that of the other one, with `sensitivity`."""
        return self.base.state

    @state.setter
    def state(self, state: Any) -> None:
        self.base.state = state

    @property
    def param_groups(self) -> list[dict[str, Any]]:  # type: ignore[override]
        """The groups of both optimizers."""
        return self.base.param_groups

    @param_groups.setter
    def param_groups(self, groups: list[dict[str, Any]]) -> None:
        self.base.param_groups = groups

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group to both optimizers."""
        check_sage({**self.defaults, **param_group}, EPS)
        self.base.add_param_group(param_group)
        for name, value in self.defaults.items():
            self.param_groups[-1].setdefault(name, value)

    def check_group(self, group: Mapping[str, Any]) -> None:
        """Refuse settings that cannot be used."""
        check_sage(group, EPS)

    def owns(self, name: str) -> bool:
        """Only `sensitivity` is ours; the other optimizer restores the rest."""
        return name == "sensitivity"

    def rule(self, group: Mapping[str, Any]) -> tuple[Any, Mapping[str, Any]]:
        """`rules.rescale`."""
        return rules.rescale, branches(group)

    def initial_state(self, group: Mapping[str, Any]) -> Mapping[str, float]:
        """Î."""
        return {"sensitivity": 0.0}

    def scalars(self, group: Mapping[str, Any], step: int) -> Mapping[str, float]:
        """The numbers of `rules.sage_factor`."""
        return sage_scalars(group, EPS)

    def inputs(self, group: Mapping[str, Any], param: Tensor) -> tuple[Tensor, ...] | None:
        """θ_old."""
        return (self._previous[param],) if group["sage"] else None

    @torch._disable_dynamo
    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # type: ignore[override]
        """Take one step of the other optimizer and scale it.

        Args:
            closure: Passed on to the other optimizer; the gradients that it leaves are those of the step.
        """
        held = [
            param
            for group in self.param_groups
            if group["sage"]
            for param in group["params"]
            if closure is not None or param.grad is not None
        ]
        copies = [torch.empty_like(param, dtype=arithmetic_dtype(param.dtype)) for param in held]
        if held:
            torch._foreach_copy_(copies, held)
        self._previous = dict(zip(held, copies, strict=True))
        with _hooks_of_all_optimizers_silenced():
            loss = self.base.step(closure) if closure is not None else self.base.step()
        super().step()
        self._previous = {}
        return loss

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load the state of both optimizers, also from a file that keeps the two apart."""
        super().load_state_dict(_together(state_dict))

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "base": self.base, "_previous": {}}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Restore a copy's attributes, or a loaded state, which the other optimizer completes."""
        if "base" in state:
            self.base = state["base"]
        loaded = {name: state[name] for name in ("state", "param_groups") if name in state}
        self.base.__setstate__(loaded)
        super().__setstate__({name: value for name, value in state.items() if name not in loaded})


def _together(saved: Mapping[str, Any]) -> dict[str, Any]:
    """Return the state in one piece; earlier versions kept the other optimizer's under `base`."""
    ours = {name: value for name, value in saved.items() if name != "base"}
    if "base" not in saved:
        return ours
    base = saved["base"]
    groups = zip(ours["param_groups"], base["param_groups"], strict=True)
    indices = {*base["state"], *ours["state"]}
    return ours | {
        "param_groups": [{**mine, **theirs} for mine, theirs in groups],
        "state": {i: {**base["state"].get(i, {}), **ours["state"].get(i, {})} for i in indices},
    }


@contextmanager
def _hooks_of_all_optimizers_silenced() -> Iterator[None]:
    """Step the other optimizer without torch's global hooks: they were called for the wrapper's step."""
    registries: list[Any] = [_global_optimizer_pre_hooks, _global_optimizer_post_hooks]
    kept = [dict(registry) for registry in registries]
    for registry in registries:
        registry.clear()
    try:
        yield
    finally:
        for registry, hooks in zip(registries, kept, strict=True):
            registry.update(hooks)

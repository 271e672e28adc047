"""The state of an optimizer: made on demand, counted without reading, loaded without loss."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from finetune_common.aliases import Settings, StateDict
from finetune_common.optim.loading import Elsewhere, checked_state, restored
from finetune_common.optim.ops import TensorList
from finetune_common.optim.rows import Rows
from finetune_common.optim.run import arithmetic_dtype

__all__ = ["StatefulOptimizer"]


class StatefulOptimizer(torch.optim.Optimizer):
    """A torch optimizer whose state is complete when a step needs it, and survives files, copies and hooks.

    All state belongs to parameters, as torch's checkpoint tools expect.
    """

    counts_steps: ClassVar[bool] = True
    """Whether each parameter has a `step`; otherwise `scalars` gets 0."""
    counters: ClassVar[frozenset[str]] = frozenset()
    """Settings of groups that the optimizer writes: a loaded state without them begins them anew."""
    elsewhere: ClassVar[Elsewhere] = Elsewhere()
    """torch's optimizer of this kind, whose state is taken too."""

    def __init__(self, params: ParamsT, defaults: Settings) -> None:
        self._forget()
        super().__init__(params, dict(defaults))

    def initial_state(self, group: Settings) -> Mapping[str, float]:
        """Return state tensor → initial value, in the order of the rule's arguments."""
        return {}

    def per_element(self) -> set[str]:
        """Return the names of state that has its parameter's shape."""
        return {name for group in self.param_groups for name in self.initial_state(group)}

    def state_names(self, group: Settings) -> set[str]:
        """Return the names of all state of a group's parameters."""
        return {*self.initial_state(group), *(["step"] if self.counts_steps else [])}

    def owns(self, name: str) -> bool:
        """Whether state of this name is this optimizer's, not that of one inside."""
        return True

    def complete_groups(self) -> None:
        """Give every group the default of each setting that it lacks."""
        for group in self.param_groups:
            for name, value in self.defaults.items():
                group.setdefault(name, value)

    def state_of(self, param: Tensor, initial: Mapping[str, float]) -> StateDict:
        """Return the state of a parameter; missing state is made now."""
        state = self.state[param]
        if self.counts_steps and "step" not in state:
            state["step"] = torch.zeros((), dtype=torch.float32)
        for name, value in initial.items():
            if name not in state:
                state[name] = torch.full_like(param, value, dtype=arithmetic_dtype(param.dtype))
        return state

    def count(self, states: list[StateDict]) -> list[int]:
        """Add one to the step of each state and return it; an unchanged step is not read."""
        if not self.counts_steps or not states:
            return [0] * len(states)
        steps: list[Tensor] = [state["step"] for state in states]
        known = [self._known_steps.get(id(step), _NOTHING_KNOWN) for step in steps]
        before = [
            value if version == step._version else int(step)
            for step, (_, version, value) in zip(steps, known, strict=True)
        ]
        counters = TensorList(steps)
        counters += 1
        after = [value + 1 for value in before]
        for step, value in zip(steps, after, strict=True):
            self._known_steps[id(step)] = step, step._version, value  # keep it alive: ids are reused
        return after

    def load_state_dict(self, state_dict: StateDict) -> None:
        """Load a state; every tensor keeps its dtype and shares no memory with the loaded one.

        State of torch's optimizer of this kind, or of an older version without some settings or state, is
        accepted too: these settings stay as the groups have them, and missing state is made on first use.

        Raises:
            ConfigurationError: The state of another model or of another algorithm: it has a setting or state
                that this optimizer lacks and that changes the numbers. Nothing is written then.
        """
        handle = self.register_load_state_dict_pre_hook(self._receive)
        try:
            super().load_state_dict(state_dict)
        finally:
            handle.remove()
            self._received.clear()

    def __setstate__(self, state: StateDict) -> None:
        super().__setstate__(state)
        self.defaults.pop("differentiable", None)  # torch adds it, as if all optimizers had it
        self.complete_groups()
        per_element = self.per_element()
        for param, received in self.__dict__.get("_received", {}).items():
            state_of_param: StateDict = self.state[param]
            for name, value in received.items():
                state_of_param[name] = restored(param, name, value, name in per_element)
        self._forget()

    def _forget(self) -> None:
        self._received: dict[Tensor, StateDict] = {}
        self._known_steps: dict[int, tuple[Tensor | None, int, int]] = {}
        self._rows = Rows()

    @staticmethod
    def _receive(optimizer: torch.optim.Optimizer, saved: StateDict) -> StateDict:
        """Check a state after all other hooks and keep it as it is: torch casts it for the parameters."""
        assert isinstance(optimizer, StatefulOptimizer)
        params = [param for group in optimizer.param_groups for param in group["params"]]
        saved = checked_state(saved, optimizer)
        ids = [index for group in saved["param_groups"] for index in group["params"]]
        optimizer._received = {
            param: saved["state"].get(index, {}) for index, param in zip(ids, params, strict=False)
        }
        return saved


_NOTHING_KNOWN = (None, -1, 0)

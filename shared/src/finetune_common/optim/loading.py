"""Saved state for an optimizer: checked before anything is written, then loaded exactly."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from inspect import Parameter, signature
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from finetune_common.aliases import ParamGroup, Settings, StateDict, is_sharded
from finetune_common.errors import ConfigurationError, shown
from finetune_common.optim.run import arithmetic_dtype

if TYPE_CHECKING:
    from finetune_common.optim.state import StatefulOptimizer

__all__ = ["Elsewhere", "checked_state", "restored"]

NO_MATTER = frozenset({"foreach", "fused", "capturable", "differentiable", "initial_accumulator_value"})
"""Settings of torch with which a saved state goes on alike: how it runs, and the start of a sum it holds."""


@dataclass(frozen=True)
class Elsewhere:
    """torch's optimizer of the same kind, whose state is taken too.

    Args:
        optimizer: Its class.
        names: Its name of state → the name here, if it differs.
        same_if: Setting → value. If one of them holds, its weight decay does what it does here.
    """

    optimizer: type[torch.optim.Optimizer] | None = None
    names: Mapping[str, str] = field(default_factory=dict[str, str])
    same_if: Settings = field(default_factory=dict[str, object])

    @cached_property
    def settings(self) -> Settings:
        """Its settings and their defaults, which switch off what is not here."""
        parameters = signature(self.optimizer).parameters if self.optimizer else dict[str, Parameter]()
        return {name: parameter.default for name, parameter in parameters.items() if name != "params"}


def checked_state(saved: StateDict, optimizer: StatefulOptimizer) -> StateDict:
    """Return a saved state in an optimizer's names; settings that it does not mention stay as they are.

    Args:
        saved: From `state_dict()` of this optimizer, an older version of it, or torch's of the same kind.
        optimizer: The optimizer that will load it.

    Raises:
        ConfigurationError: A state of another model, of another algorithm, or of the whole optimizer.
    """
    if len(saved["param_groups"]) != len(optimizer.param_groups):
        return saved  # which torch refuses
    names, state = optimizer.elsewhere.names, dict[int, StateDict]()
    for index, entries in saved["state"].items():
        state[index] = {names.get(name, name): v for name, v in entries.items() if not _is_nothing(v)}
    groups: list[ParamGroup] = []
    for group, now in zip(saved["param_groups"], optimizer.param_groups, strict=True):
        torchs = _is_torchs(group, optimizer)
        kept = now.keys() - group.keys() - optimizer.counters - {"param_names"}
        groups.append({**group, **{name: now[name] for name in kept}})
        for index, param in zip(group["params"], now["params"], strict=False):
            _check_entries(state.get(index, {}), param, groups[-1], optimizer, torchs)
    strangers = state.keys() - {index for group in groups for index in group["params"]}
    if strangers:
        raise ConfigurationError(
            f"the saved state has an entry {shown(strangers.pop())} that belongs to no parameter: load the "
            "state of an optimizer of torch or of this version"
        )
    return {**saved, "state": state, "param_groups": groups}


def _is_torchs(group: ParamGroup, optimizer: StatefulOptimizer) -> bool:
    """Return whether torch's optimizer of the same kind wrote a group, not this class; refuse any other's."""
    own, elsewhere = optimizer.defaults.keys() - NO_MATTER, optimizer.elsewhere
    if own <= group.keys():
        return False  # what it has beside is the user's
    known = {name for now in optimizer.param_groups for name in now} | own | NO_MATTER | {"param_names"}
    for name, value in group.items():
        # A scheduler names its bounds after what it moves.
        if name not in known and name not in elsewhere.settings and not name.endswith(("_lr", "_momentum")):
            raise ConfigurationError(
                f"the saved state has {name}={shown(value)}, which this optimizer does not know: continue "
                f"with the optimizer that wrote it, or delete {name} from its groups if it changes no number"
            )
    if group.keys() & own - elsewhere.settings.keys():
        return False  # an older version's
    for name, default in elsewhere.settings.items():
        if name not in own | NO_MATTER | elsewhere.same_if.keys():
            _refuse_unless(group, {name: default})
    if elsewhere.same_if:
        _refuse_unless(group, elsewhere.same_if)
    return True


def _refuse_unless(group: ParamGroup, allowed: Settings) -> None:
    """Refuse a group in which none of some settings has its value."""
    if not any(name in group and group[name] == value for name, value in allowed.items()):
        name, value = [*allowed.items()][-1]
        found = f"{name}={shown(group[name])}" if name in group else f"no {name}"
        raise ConfigurationError(
            f"the saved state has {found}, so another algorithm than this one wrote it: continue with that "
            f"one, or set {name}={value!r} in its groups to go on with this one"
        )


def _check_entries(
    entries: StateDict, param: Tensor, group: ParamGroup, optimizer: StatefulOptimizer, torchs: bool
) -> None:
    """Refuse state of a parameter that is of another shape or algorithm."""
    names, per_element = optimizer.state_names(group), optimizer.initial_state(group)
    for name, value in entries.items():
        if name in per_element and isinstance(value, Tensor) and value.shape != param.shape:
            raise ConfigurationError(
                f"the saved state has shape {tuple(value.shape)}, the parameter {tuple(param.shape)}: "
                "load the state of the same model"
            )
        if optimizer.owns(name) and name not in names and (torchs or not names <= entries.keys()):
            raise ConfigurationError(
                f"the saved state has {name}, which this optimizer does not know: continue with the "
                f"optimizer that wrote it, or delete {name} from the state if it changes no number"
            )


def _is_nothing(value: object) -> bool:
    """torch's checkpoint tools put an empty dictionary where nothing was saved; old SGD states hold None."""
    return value is None or (isinstance(value, dict) and not value)


def restored(param: Tensor, name: str, value: object, per_element: bool) -> object:
    """Return a saved value in this optimizer's form: exact, in new memory.

    Args:
        param: The parameter.
        name: `step` becomes a float32 number on the CPU.
        value: The value.
        per_element: Whether it has the parameter's shape: it comes back in the arithmetic dtype, laid out
            like the parameter; any other tensor as it is, on the parameter's device.
    """
    if name == "step":
        return torch.as_tensor(value, dtype=torch.float32).detach().to("cpu", copy=True).reshape(())
    if not isinstance(value, Tensor):
        return value
    if per_element:
        return torch.empty_like(param, dtype=arithmetic_dtype(param.dtype)).copy_(value)
    unsharded = value.full_tensor() if is_sharded(value) else value
    return unsharded.detach().to(param.device, copy=True)

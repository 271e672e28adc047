"""Saved state for an optimizer: checked before anything is written, then loaded exactly."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from finetune_common.aliases import StateDict, is_sharded
from finetune_common.errors import ConfigurationError, shown
from finetune_common.optim.run import arithmetic_dtype

__all__ = ["checked_state", "restored"]

WITHOUT = {"amsgrad": False, "dampening": 0, "lr_decay": 0}
"""Settings of torch's optimizers that change the numbers and are unknown here → their harmless value."""


def checked_state(
    saved: StateDict, params: Iterable[Tensor], per_element: Iterable[str], names: Mapping[str, str]
) -> StateDict:
    """Return a saved state in this optimizer's names.

    Args:
        saved: From `state_dict()` of this optimizer, an older version of it, or torch's.
        params: Its parameters.
        per_element: Names of state that has the parameter's shape.
        names: Name of state in torch's optimizer → its name here, if it differs.

    Raises:
        ConfigurationError: A state of another model or of the whole optimizer, or a setting that this
            optimizer does not have and that changes the numbers.
    """
    for group in saved["param_groups"]:
        for setting, harmless in WITHOUT.items():
            if group.get(setting, harmless) != harmless:
                raise ConfigurationError(
                    f"the saved state has {setting}={shown(group[setting])}, which this optimizer does not "
                    "know: continue with the optimizer that wrote it, or set "
                    f"{setting}={harmless!r} in its groups"
                )
    ids = [index for group in saved["param_groups"] for index in group["params"]]
    state: dict[int, StateDict] = {}
    for index, entries in saved["state"].items():
        if index not in ids:
            raise ConfigurationError(
                f"the saved state has an entry {shown(index)} that belongs to no parameter: load the state "
                "of an optimizer of torch or of this version"
            )
        state[index] = {names.get(name, name): v for name, v in entries.items() if not _is_nothing(v)}
    expected = set(per_element)
    for index, param in zip(ids, params, strict=False):
        for name, value in state.get(index, {}).items():
            if name in expected and isinstance(value, Tensor) and value.shape != param.shape:
                raise ConfigurationError(
                    f"the saved state has shape {tuple(value.shape)}, the parameter {tuple(param.shape)}: "
                    "load the state of the same model"
                )
    return {**saved, "state": state}


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

"""Settings of optimizers: each is of its default's kind, and a text is no truth value."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from inspect import Parameter, signature
from numbers import Integral, Real
from typing import Any, cast

from torch import Tensor

from finetune_common.aliases import Settings
from finetune_common.errors import ConfigurationError, check_number, shown

__all__ = ["as_pair", "check_betas", "check_kinds", "check_switch", "check_whole", "constructor_defaults"]


@cache
def constructor_defaults(cls: type) -> Settings:
    """Return the arguments of a class's and its bases' constructors that have a default, and the defaults."""
    parameters = [p for base in reversed(cls.__mro__) for p in signature(base.__init__).parameters.values()]
    return {p.name: p.default for p in parameters if p.default is not Parameter.empty}


def check_kinds(group: Settings, defaults: Settings) -> None:
    """Refuse settings of another kind than their default: truth values and numbers; `lr` may be a tensor.

    Args:
        group: The settings; those of `defaults` must be there.
        defaults: Setting → default.

    Raises:
        ConfigurationError: Names the value.

    Examples:
        >>> check_kinds({"eps": 1, "maximize": True}, {"eps": 1e-6, "maximize": False})
        >>> check_kinds({"maximize": "False"}, {"maximize": False})
        Traceback (most recent call last):
        finetune_common.errors.ConfigurationError: maximize='False' is no truth value: give True or False
    """
    for name, default in defaults.items():
        if name == "lr":
            _check_rate(group[name])
        elif isinstance(default, bool):
            check_switch(name, group[name])
        elif isinstance(default, Real) and type(group[name]) is not type(default):
            check_number(name, group[name])


def _check_rate(lr: object) -> None:
    if isinstance(lr, Tensor) and lr.numel() != 1:
        raise ConfigurationError(
            f"lr has shape {tuple(lr.shape)}: give a number or a tensor with one element"
        )
    check_number("lr", float(lr) if isinstance(lr, Tensor) else cast("float", lr), at_least=0)


def check_switch(name: str, value: object) -> None:
    """Refuse what is not True or False: any text counts as true, also "False".

    Raises:
        ConfigurationError: Names the value.
    """
    if value is not True and value is not False and value not in (0, 1):
        raise ConfigurationError(f"{name}={shown(value)} is no truth value: give True or False")


def check_whole(name: str, value: float, *, at_least: int, below: float = float("inf")) -> None:
    """Refuse what is not a whole number of an interval.

    Raises:
        ConfigurationError: Names the value and what is allowed.

    Examples:
        >>> check_whole("window", 10.5, at_least=1)
        Traceback (most recent call last):
        finetune_common.errors.ConfigurationError: window=10.5 is not a whole number: give 10
    """
    check_number(name, value, at_least=at_least, below=below)
    if not isinstance(value, Integral):
        raise ConfigurationError(f"{name}={shown(value)} is not a whole number: give {int(value)}")


def as_pair(betas: Any) -> Any:
    """Return a list as a tuple, as torch and schedulers have it; what is no list as it is."""
    return tuple(betas) if hasattr(betas, "__iter__") and not isinstance(betas, str) else betas


def check_betas(betas: Sequence[float]) -> None:
    """Refuse what is not two decays in [0, 1).

    Raises:
        ConfigurationError: Names the value.
    """
    if isinstance(betas, str) or not hasattr(betas, "__len__") or len(betas) != 2:
        raise ConfigurationError(
            f"betas={shown(betas)} is not a pair: give two numbers in [0, 1), such as (0.9, 0.999)"
        )
    for name, beta in zip(("beta1", "beta2"), betas, strict=True):
        check_number(name, beta, at_least=0, below=1)

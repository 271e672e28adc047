"""Errors that tell the reader what to change."""

from collections.abc import Iterable
from difflib import get_close_matches
from math import isnan
from numbers import Real
from reprlib import Repr

__all__ = ["ConfigurationError", "check_choice", "check_number", "did_you_mean", "reason", "shown"]

LONGEST_SHOWN = 60
"""Characters of a value in a message."""

LONGEST_REASON = 160
"""Characters of another error's text in a message."""


class ConfigurationError(ValueError):
    """A setting or an input that cannot be used.

    The message is one line: the value, what is allowed, the remedy. Command lines print it and leave with
    status 2.
    """


class _Short(Repr):
    """Values on one short line: long lists cut, a tensor by its shape, a model by its class."""

    def __init__(self) -> None:
        super().__init__()
        self.maxstring = self.maxother = LONGEST_SHOWN
        self.maxlist = self.maxtuple = self.maxset = self.maxdict = 4
        self.maxlevel = 2

    def repr_instance(self, x: object, level: int) -> str:
        name = type(x).__name__
        if isinstance(x, type):
            return f"the class {x.__name__}"
        shape = getattr(x, "shape", None)
        if shape is not None and len(shape) > 0:
            return f"{name} of shape {tuple(shape)}"
        if callable(getattr(x, "named_parameters", None)):
            return f"{name}(...)"
        text = repr(x)
        return text if len(text) <= self.maxother and "\n" not in text else f"{name}(...)"

    def repr_type(self, x: type, level: int) -> str:
        return self.repr_instance(x, level)


def shown(value: object) -> str:
    """Return a value's text for a message: one line, never a whole model, tensor or long list.

    Examples:
        >>> shown("adamw"), shown([1, 2])
        ("'adamw'", '[1, 2]')
        >>> import torch
        >>> shown(torch.zeros(500)), shown(torch.nn.Linear(2, 2)), shown(list(range(99)))
        ('Tensor of shape (500,)', 'Linear(...)', '[0, 1, 2, 3, ...]')
    """
    return _Short().repr(value)


def reason(error: BaseException) -> str:
    """Return an error's text for a message: one line, with the error's kind if it is a single word.

    Examples:
        >>> reason(ValueError("not a\\nnumber")), reason(KeyError("lr"))
        ('not a number', "KeyError: 'lr'")
    """
    text = " ".join(str(error).split())[:LONGEST_REASON]
    return text if " " in text else f"{type(error).__name__}: {text}"


def did_you_mean(value: str, allowed: Iterable[str]) -> str:
    """Name the closest allowed values, or all of them when none is close.

    Args:
        value: What was given.
        allowed: The accepted values.

    Returns:
        The end of an error message.

    Examples:
        >>> did_you_mean("adamm", ["adamw", "sgd"])
        "did you mean 'adamw'?"
        >>> did_you_mean("xyz", ["adamw", "sgd"])
        'choose from adamw, sgd'
    """
    allowed = list(allowed)
    close = get_close_matches(str(value), allowed, n=2, cutoff=0.7)
    if close:
        return f"did you mean {' or '.join(map(repr, close))}?"
    return f"choose from {', '.join(allowed)}"


def check_choice(name: str, value: object, allowed: Iterable[object]) -> None:
    """Refuse a value that is not among the allowed ones.

    Raises:
        ConfigurationError: Names the value and the alternatives.

    Examples:
        >>> check_choice("clip", "local", ["none", "local"])
    """
    allowed = list(allowed)
    if value not in allowed:
        given = value if isinstance(value, str) else shown(value)
        raise ConfigurationError(
            f"{name}={shown(value)} is unknown: {did_you_mean(given, map(str, allowed))}"
        )


def check_number(
    name: str,
    value: float,
    *,
    above: float | None = None,
    at_least: float | None = None,
    below: float | None = None,
    at_most: float | None = None,
) -> None:
    """Refuse a value that is not a number or lies outside its interval; NaN is always outside.

    Raises:
        ConfigurationError: Names the value and the legal interval.

    Examples:
        >>> check_number("beta3", 0.75, at_least=0, below=1)
        >>> check_number("lr", "2e-4", above=0)
        Traceback (most recent call last):
        finetune_common.errors.ConfigurationError: lr='2e-4' is not a number: in YAML, write 2.0e-4 for 2e-4
        >>> check_number("lr", -1.0, above=0)
        Traceback (most recent call last):
        finetune_common.errors.ConfigurationError: lr=-1.0 is out of range: allowed is (0, inf)
    """
    if isinstance(value, bool) or not isinstance(value, Real):
        raise ConfigurationError(f"{name}={shown(value)} is not a number: in YAML, write 2.0e-4 for 2e-4")
    legal = not isnan(value)
    legal &= above is None or value > above
    legal &= at_least is None or value >= at_least
    legal &= below is None or value < below
    legal &= at_most is None or value <= at_most
    if not legal:
        low = f"[{at_least:g}" if at_least is not None else f"({above:g}" if above is not None else "(-inf"
        high = f"{at_most:g}]" if at_most is not None else f"{below:g})" if below is not None else "inf)"
        raise ConfigurationError(f"{name}={shown(value)} is out of range: allowed is {low}, {high}")

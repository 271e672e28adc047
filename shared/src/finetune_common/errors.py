"""Errors that tell the reader what to change."""

from collections.abc import Iterable
from difflib import get_close_matches
from math import isnan
from numbers import Real

__all__ = ["ConfigurationError", "check_choice", "check_number", "did_you_mean"]


class ConfigurationError(ValueError):
    """A setting or an input that cannot be used.

    The message is one line: the value, what is allowed, the remedy. Command lines print it and leave with
    status 2.
    """


def did_you_mean(value: str, allowed: Iterable[str]) -> str:
    """Name the closest allowed values, or all of them when none is close.

    Args:
        value: What was given.
        allowed: What would have been accepted.

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
        raise ConfigurationError(
            f"{name}={value!r} is unknown: {did_you_mean(str(value), map(str, allowed))}"
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
    """Refuse what is no number, and a number outside its interval; NaN is always outside.

    Raises:
        ConfigurationError: Names the value and the legal interval.

    Examples:
        >>> check_number("beta3", 0.75, at_least=0, below=1)
        >>> check_number("lr", "2e-4", above=0)
        Traceback (most recent call last):
        finetune_common.errors.ConfigurationError: lr='2e-4' is no number: give one (in YAML 2.0e-4, not 2e-4)
        >>> check_number("lr", -1.0, above=0)
        Traceback (most recent call last):
        finetune_common.errors.ConfigurationError: lr=-1.0 is out of range: allowed is (0, inf)
    """
    if not isinstance(value, Real) or isinstance(value, bool):
        raise ConfigurationError(f"{name}={value!r} is no number: give one (in YAML 2.0e-4, not 2e-4)")
    legal = not isnan(value)
    legal &= above is None or value > above
    legal &= at_least is None or value >= at_least
    legal &= below is None or value < below
    legal &= at_most is None or value <= at_most
    if not legal:
        low = f"[{at_least:g}" if at_least is not None else f"({above:g}" if above is not None else "(-inf"
        high = f"{at_most:g}]" if at_most is not None else f"{below:g})" if below is not None else "inf)"
        raise ConfigurationError(f"{name}={value!r} is out of range: allowed is {low}, {high}")

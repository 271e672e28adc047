"""Libraries that only some commands need."""

from __future__ import annotations

from importlib.util import find_spec

from finetune_common.errors import ConfigurationError

__all__ = ["need"]


def need(extra: str, *modules: str) -> None:
    """Raise an error if a library of one of this package's extras is missing.

    Examples:
        >>> need("search", "json")
        >>> need("search", "no_such_module")
        Traceback (most recent call last):
        finetune_common.errors.ConfigurationError: no_such_module is not installed: from the checkout, pip
        install './packages/glue-harness[search]'
    """
    for module in modules:
        if find_spec(module) is None:
            raise ConfigurationError(
                f"{module} is not installed: from the checkout, "
                f"pip install './packages/glue-harness[{extra}]'"
            )

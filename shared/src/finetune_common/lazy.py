"""Public names of a package that are imported when they are first used."""

from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any

__all__ = ["lazy_exports"]


def lazy_exports(package: str, exports: Mapping[str, str]) -> Callable[[str], Any]:
    """Return a module `__getattr__` that imports each public name from its module on first use.

    A package whose `__init__` uses it can be asked for its options (for a command line's help) without
    importing torch.

    Args:
        package: The package's `__name__`.
        exports: Public name → module, relative to the package (`".optimizers"`).

    Examples:
        >>> __getattr__ = lazy_exports("json", {"JSONDecoder": ".decoder"})
        >>> __getattr__("JSONDecoder").__name__
        'JSONDecoder'
    """

    def __getattr__(name: str) -> Any:
        if name not in exports:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        return getattr(import_module(exports[name], package), name)

    return __getattr__

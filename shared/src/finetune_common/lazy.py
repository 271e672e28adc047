"""Public names of a package that are imported when they are first used."""

from collections.abc import Callable, Mapping
from importlib import import_module

__all__ = ["lazy_exports"]


def lazy_exports(package: str, exports: Mapping[str, str]) -> Callable[[str], object]:
    """Return a module `__getattr__` that imports each public name from its module on first use.

    A package whose `__init__` uses it can be asked for its options (for a command line's help) without
    importing torch.

    Args:
        package: The package's `__name__`.
        exports: Public name → module, relative to the package (`".optimizers"`).

    Examples:
        >>> __getattr__ = lazy_exports("json", {"JSONDecoder": ".decoder"})
        >>> __getattr__("JSONDecoder")
        <class 'json.decoder.JSONDecoder'>
    """

    def __getattr__(name: str) -> object:
        if name not in exports:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        return getattr(import_module(exports[name], package), name)

    return __getattr__

"""One clear line for a call whose arguments do not fit: a misspelt name, a missing one, the wrong order."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from difflib import get_close_matches
from functools import wraps
from typing import Any, TypeVar, get_type_hints

from finetune_common.errors import ConfigurationError, shown

__all__ = ["ArgumentError", "check_parameters", "explain_arguments"]

Target = TypeVar("Target", bound=Callable[..., Any])


class ArgumentError(ConfigurationError, TypeError):
    """A call whose arguments do not fit the signature."""


def explain_arguments(target: Target) -> Target:
    """Decorate a public class or function: a call that does not fit is answered in one line.

    A misspelt argument gets the nearest name, a missing one its name. Where the call fails and an argument is
    not of the class that the signature asks for, the message says so, and notices two arguments in the wrong
    order. A call that works is not checked.

    Args:
        target: A class, whose `__init__` is replaced, or a function.

    Returns:
        The same class, or the function with the answers.

    Examples:
        >>> @explain_arguments
        ... def scale(path: Path, *, rank: int = 8): ...
        >>> scale("x", r=4)
        Traceback (most recent call last):
        finetune_common.arguments.ArgumentError: scale has no argument r: did you mean 'rank'?
        >>> scale()
        Traceback (most recent call last):
        finetune_common.arguments.ArgumentError: scale: missing a required argument: 'path'
    """
    is_class = isinstance(target, type)
    function: Callable[..., Any] = target.__init__ if is_class else target

    @wraps(function)
    def explained(*args: Any, **kwargs: Any) -> Any:
        try:
            return function(*args, **kwargs)
        except ArgumentError:
            raise
        except (TypeError, AttributeError, ConfigurationError) as error:
            name = type(args[0]).__name__ if is_class else function.__name__
            misfit = _misfit_of_names(name, function, args, kwargs)
            if misfit:
                raise ArgumentError(misfit) from None
            misfit = _misfit_of_kinds(name, function, args, kwargs)
            if misfit:
                raise ArgumentError(misfit) from error
            raise

    if is_class:
        target.__init__ = explained  # type: ignore[misc]
    return target if is_class else explained  # type: ignore[return-value]


def _misfit_of_names(
    name: str, function: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> str | None:
    signature = inspect.signature(function)
    parameters = signature.parameters
    if not any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        for given in kwargs:
            if given not in parameters:
                known = [known for known in parameters if known != "self"]
                return f"{name} has no argument {given}: {_nearest(given, known)}"
    try:
        signature.bind(*args, **kwargs)
    except TypeError as error:
        return f"{name}: {error}"
    return None


def _nearest(given: str, known: list[str]) -> str:
    """Name the closest argument: by its letters, or because both begin a word alike (`r`, `lora_alpha`)."""
    close = get_close_matches(given, known, n=1, cutoff=0.7)
    alike = close or sorted((name for name in known if _share_a_word(given, name)), key=len)
    return f"did you mean {alike[0]!r}?" if alike else f"it takes {', '.join(known) or 'none'}"


def _share_a_word(given: str, known: str) -> bool:
    words = given.split("_")
    if len(words) > 1:
        words = [word for word in words if len(word) > 2]  # "to" and "of" tell nothing
    return any(
        part.startswith(word) or word.startswith(part)
        for word in words
        for part in known.split("_")
        if len(part) > 2
    )


def _misfit_of_kinds(
    name: str, function: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> str | None:
    signature = inspect.signature(function)
    given = signature.bind(*args, **kwargs).arguments
    order = ", ".join(
        argument for argument in signature.parameters if argument in given and argument != "self"
    )
    for argument, kind in _classes(function).items():
        if argument not in given or isinstance(given[argument], kind):
            continue
        value = shown(given[argument])
        for other in given:
            if other != argument and isinstance(given[other], kind):
                return (
                    f"{argument}={value} and {other}={shown(given[other])} are in the wrong order: call "
                    f"{name}({order})"
                )
        return f"{name}: {argument}={value} is no {kind.__name__}"
    return None


def _classes(function: Callable[..., Any]) -> dict[str, type]:
    """Return the arguments that have to be of one class, such as a Module, as far as annotations tell."""
    try:
        hints = get_type_hints(function)
    except (NameError, TypeError, AttributeError):  # names that exist for a type checker only
        return {}
    hints.pop("return", None)
    bounds = {name: getattr(hint, "__bound__", None) or hint for name, hint in hints.items()}
    return {name: hint for name, hint in bounds.items() if inspect.isclass(hint) and not _is_plain(hint)}


def _is_plain(kind: type) -> bool:
    """Numbers and texts, on which the settings' own checks say more; and what `isinstance` cannot ask for."""
    return kind.__module__ in ("builtins", "typing") or getattr(kind, "_is_protocol", False)


def check_parameters(params: object) -> None:
    """Refuse a model, or its method, where an optimizer takes parameters.

    Raises:
        ConfigurationError: Says what to pass.

    Examples:
        >>> import torch
        >>> check_parameters(torch.nn.Linear(2, 2))
        Traceback (most recent call last):
        finetune_common.errors.ConfigurationError: params=Linear(...) is a model: pass model.parameters()
    """
    if callable(getattr(params, "named_parameters", None)):
        raise ConfigurationError(f"params={shown(params)} is a model: pass model.parameters()")
    if callable(params) and not isinstance(params, Iterable):
        raise ConfigurationError(f"params={shown(params)} is a function: call it, as in model.parameters()")

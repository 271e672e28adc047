"""One clear line for a call with wrong arguments: a misspelt name, a missing one, the wrong order."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from difflib import get_close_matches
from functools import wraps
from typing import TypeVar, get_type_hints

from finetune_common.errors import ConfigurationError, shown

__all__ = ["ArgumentError", "check_parameters", "explain_arguments"]

Target = TypeVar("Target", bound=Callable[..., object])


class ArgumentError(ConfigurationError, TypeError):
    """A call whose arguments do not fit the signature."""


def explain_arguments(target: Target) -> Target:
    """Decorate a public class or function: wrong arguments give a one-line error.

    The error names the nearest spelling of a misspelt argument, or a missing argument. If the call fails and
    an argument has another class than the signature asks for, or two are in the wrong order, it says so. A
    call that works is not checked.

    Args:
        target: A class, whose `__init__` is replaced, or a function.

    Returns:
        The same class, or the wrapped function.

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
    function: Callable[..., object] = target.__init__ if is_class else target

    @wraps(function)
    def explained(*args: object, **kwargs: object) -> object:
        try:
            return function(*args, **kwargs)
        except ArgumentError:
            raise
        except (TypeError, AttributeError, ConfigurationError) as error:
            name = type(args[0]).__name__ if is_class else function.__name__
            misfit = _misfit_of_names(name, function, args, kwargs)
            if misfit:
                raise ArgumentError(misfit) from None
            misfit, swapped = _misfit_of_kinds(name, function, args, kwargs)
            if misfit and (swapped or not isinstance(error, ConfigurationError)):
                raise ArgumentError(misfit) from error
            raise

    if is_class:
        target.__init__ = explained  # type: ignore[misc]  # replaced on purpose
    return target if is_class else explained  # type: ignore[return-value]  # of the same signature


def _misfit_of_names(
    name: str, function: Callable[..., object], args: tuple[object, ...], kwargs: Mapping[str, object]
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
    """Name the closest argument: by similar letters, or by the beginning of a word (`r`, `lora_alpha`)."""
    close = get_close_matches(given, known, n=1, cutoff=0.7)
    alike = close or sorted((name for name in known if _share_a_word(given, name)), key=len)
    return f"did you mean {alike[0]!r}?" if alike else f"it takes {', '.join(known) or 'none'}"


def _share_a_word(given: str, known: str) -> bool:
    words = given.split("_")
    if len(words) > 1:
        words = [word for word in words if len(word) > 2]  # "to" and "of" say nothing
    return any(
        part.startswith(word) or word.startswith(part)
        for word in words
        for part in known.split("_")
        if len(part) > 2
    )


def _misfit_of_kinds(
    name: str, function: Callable[..., object], args: tuple[object, ...], kwargs: Mapping[str, object]
) -> tuple[str, bool]:
    """Return the fault in the classes of arguments, if any, and whether two are swapped."""
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
                wrong = f"{argument}={value} and {other}={shown(given[other])} are in the wrong order"
                return f"{wrong}: call {name}({order})", True
        return f"{name}: {argument}={value} is not of class {kind.__name__}", False
    return "", False


def _classes(function: Callable[..., object]) -> dict[str, type]:
    """Return the arguments whose annotations ask for one class, such as a Module."""
    try:
        hints = get_type_hints(function)
    except (NameError, TypeError, AttributeError):  # names that exist for a type checker only
        return {}
    hints.pop("return", None)
    bounds = {name: getattr(hint, "__bound__", None) or hint for name, hint in hints.items()}
    return {name: hint for name, hint in bounds.items() if inspect.isclass(hint) and not _is_plain(hint)}


def _is_plain(kind: type) -> bool:
    """Numbers and texts, since checks of settings say more; and classes that `isinstance` cannot check."""
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

"""Methods named by the path of their class, as in `torch.optim.Adafactor`: nobody has to offer them."""

from __future__ import annotations

import inspect
import random
import warnings
from collections.abc import Generator
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import asdict, field, make_dataclass
from functools import cache
from importlib import import_module
from types import MethodType, NoneType, UnionType
from typing import TYPE_CHECKING, Any, Literal, Union, cast, get_args, get_origin, get_type_hints

from finetune_common.errors import ConfigurationError, did_you_mean, reason, shown

if TYPE_CHECKING:
    import torch

    from finetune_common.aliases import ParamGroup

__all__ = ["imported", "unnamed"]

WORDS = (bool, int, float, str, NoneType)
"""What can be written on a command line."""


@cache
def imported(slot: str, path: str, kind: type) -> type[Any]:
    """Return a method by its class's path; an optimizer of torch's kind becomes a method.

    Args:
        slot: The slot that it is to fill.
        path: `package.module.Class`, of something that can be imported.
        kind: The protocol of the slot's methods.

    Raises:
        ConfigurationError: It cannot be imported, or it is no method.

    Examples:
        >>> from finetune_common.slots import Optimizer
        >>> options = imported("optimizer", "torch.optim.Adafactor", Optimizer).Options(lr=0.02)
        >>> options.lr, options.beta2_decay
        (0.02, -0.8)
    """
    module, _, name = path.rpartition(".")
    try:
        holder = import_module(module)
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigurationError(
            f"{slot} {path!r} cannot be imported ({error}): give package.module.Class"
        ) from error
    try:
        found: Any = getattr(holder, name)
    except (ImportError, AttributeError) as error:
        offered = [known for known, value in vars(holder).items() if _is_method(slot, value)]
        remedy = did_you_mean(name, offered) if offered else "give package.module.Class"
        raise ConfigurationError(f"{slot} {path!r} cannot be imported ({error}): {remedy}") from error
    if not _is_method(slot, found):
        kinds = " or of torch.optim.Optimizer" if slot == "optimizer" else ""
        raise ConfigurationError(
            f"{slot} {path!r} is {shown(found)}: give a class of finetune_common.slots.Method's kind{kinds}"
        )
    if not hasattr(found, "Options"):
        return _optimizer_method(found, path)
    if lacking := [member for member in vars(kind) if member[0] != "_" and not hasattr(found, member)]:
        raise ConfigurationError(
            f"{slot} {path!r} has no {lacking[0]}(): see finetune_common.slots.{kind.__name__}"
        )
    return found


def _is_method(slot: str, found: Any) -> bool:
    """Say whether something is a method's class; for optimizers, torch's own kind is one too."""
    if not isinstance(found, type):
        return False
    if hasattr(found, "Options"):
        return True
    if slot != "optimizer":
        return False
    from torch.optim import Optimizer

    return issubclass(found, Optimizer) and found is not Optimizer


def unnamed(param_groups: list[ParamGroup]) -> list[ParamGroup]:
    """Return groups with parameters in place of `(name, parameter)`, for classes that know no names."""
    return [{**group, "params": [param for _, param in group["params"]]} for group in param_groups]


def _written(hint: Any) -> Any:
    """Reduce a type to what can be written on a command line; None if nothing is left."""
    parts: tuple[Any, ...] = get_args(hint)
    if get_origin(hint) in (Union, UnionType):
        kinds = tuple(kind for kind in map(_written, parts) if kind)
        return cast("Any", Union)[kinds] if kinds else None
    if get_origin(hint) is tuple:
        kinds = tuple(part if part is Ellipsis else _written(part) for part in parts)
        return cast("Any", tuple)[kinds] if all(kinds) else None
    return hint if hint in WORDS or get_origin(hint) is Literal else None


def _of_default(value: Any) -> Any:
    """Return the type of an argument without an annotation; None if it cannot be written."""
    if isinstance(value, tuple):
        return _written(cast("Any", tuple)[tuple(map(_of_default, cast("tuple[Any, ...]", value)))])
    if isinstance(value, bool | str):
        return type(value)
    if isinstance(value, int | float):
        return int | float
    return int | float | bool | str | None if value is None else None


def _arguments(kind: type[torch.optim.Optimizer]) -> dict[str, inspect.Parameter]:
    """Return the named arguments of an optimizer after its parameters; weight decay is of the groups."""
    named = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    found = list(inspect.signature(kind).parameters.values())[1:]
    return {a.name: a for a in found if a.kind in named and a.name not in ("weight_decay", "name")}


def _options(kind: type[torch.optim.Optimizer], path: str) -> type:
    """Return a dataclass of the arguments that can be written; it checks itself in a step on a matrix."""
    try:
        hints = get_type_hints(kind.__init__)
    except (NameError, TypeError):
        hints = {}
    members: list[tuple[str, Any, Any]] = []
    for name, argument in _arguments(kind).items():
        default: Any = None if argument.default is argument.empty else argument.default
        default = tuple(cast("list[Any]", default)) if isinstance(default, list) else default
        if hint := _written(hints[name]) if name in hints else _of_default(default):
            members.append((name, hint | None if default is None else hint, field(default=default)))

    def check(options: Any) -> None:
        group = _tried(kind, path, options, (4, 3)).param_groups[0]
        if not isinstance(group.get("lr"), int | float):
            raise ConfigurationError(f"optimizer {path!r} has no learning rate of its own: give one as lr")

    check.__name__ = "__post_init__"
    texts = "".join(f"\n    {name}: As {path} says." for name, _, _ in members)
    namespace = {"__post_init__": check, "__doc__": f"Arguments of {path}.\n\nArgs:{texts}"}
    return make_dataclass(f"{kind.__name__}Options", members, namespace=namespace, frozen=True)


def _construct(
    kind: type[torch.optim.Optimizer], path: str, groups: list[ParamGroup], options: Any
) -> torch.optim.Optimizer:
    """Call the class; a None that only stands for "not given" is left out."""
    required = {name for name, a in _arguments(kind).items() if a.default is a.empty}
    given = {name: v for name, v in asdict(options).items() if v is not None or name not in required}
    try:
        return cast("Any", kind)(groups, **given)
    except Exception as error:
        raise _refusal(path, error) from error


def _refusal(path: str, error: Exception) -> ConfigurationError:
    return ConfigurationError(f"optimizer {path!r} refuses: {reason(error)}")


@contextmanager
def _undisturbed(kind: type) -> Generator[None]:
    """Within this context nothing draws from the random streams, and a class keeps its own data."""
    import numpy as np
    import torch
    from torch.utils._python_dispatch import _disable_current_modes  # pyright: ignore[reportPrivateUsage]

    plain, torch_states = (*WORDS, list, dict, set), cast("Any", torch.random)
    own: dict[str, Any] = {name: value for name, value in vars(kind).items() if type(value) in plain}
    data = deepcopy(own)
    states = random.getstate(), np.random.get_state()
    try:
        with torch_states.fork_rng(), _disable_current_modes():  # fake tensors would have no values
            yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        for name, value in data.items():
            if not name.startswith("__"):
                setattr(kind, name, value)


def _tried(
    kind: type[torch.optim.Optimizer], path: str, options: Any, *shapes: tuple[int, ...]
) -> torch.optim.Optimizer:
    """Return an optimizer after a step on small parameters: on the CPU or, if that fails, on a GPU."""
    import torch

    failed: ConfigurationError | None = None
    for device in ("cpu", "cuda") if torch.cuda.is_available() else ("cpu",):
        with _undisturbed(kind):
            parameters = [torch.nn.Parameter(torch.ones(shape, device=device)) for shape in shapes]
            for parameter in parameters:
                parameter.grad = torch.full_like(parameter, 0.5)
            try:
                optimizer = _construct(kind, path, [{"params": parameters}], options)
                optimizer.step()
                return optimizer
            except ConfigurationError as error:
                failed = failed or error
            except Exception as error:
                failed = failed or _refusal(path, error)
    assert failed is not None
    raise failed


def _unfit(kind: type[torch.optim.Optimizer], arguments: tuple[None, ...]) -> str:
    """Return why an optimizer's step does not take these arguments, or ""."""
    try:
        inspect.signature(kind.step).bind(None, *arguments)
    except TypeError as error:
        return str(error)
    return ""


def _optimizer_method(kind: type[torch.optim.Optimizer], path: str) -> type[Any]:
    lacks, takes_closure = _unfit(kind, ()), not _unfit(kind, (None,))
    if lacks:
        raise ConfigurationError(
            f"optimizer {path!r} needs more than gradients in its step ({lacks}), and a run has nothing else "
            "then: choose another"
        )
    if hasattr(kind, "eval"):
        raise ConfigurationError(
            f"optimizer {path!r} must be told when evaluation begins, "
            "and a run does not tell it: choose another"
        )
    decays = "weight_decay" in inspect.signature(kind).parameters

    class Method:
        name = path
        Options = _options(kind, path)

        def __init__(self, options: Any) -> None:
            self.options = options
            self.only_matrices = ""
            try:
                _tried(kind, path, options, (4, 3), (3,))
            except ConfigurationError as error:  # said before rows are read, since few models have no vectors
                self.only_matrices = f"{error}: it takes matrices only: train no others, or choose another"
                warnings.warn(self.only_matrices, stacklevel=2)

        def build(self, model: torch.nn.Module, param_groups: list[ParamGroup]) -> torch.optim.Optimizer:
            if not decays and any(group["weight_decay"] for group in param_groups):
                raise ConfigurationError(f"optimizer {path!r} has no weight decay: give --weight-decay 0")
            groups = unnamed(param_groups)
            if self.only_matrices and any(p.ndim < 2 for group in groups for p in group["params"]):
                raise ConfigurationError(self.only_matrices)
            optimizer = _construct(kind, path, groups, self.options)
            if not takes_closure:
                optimizer.step = MethodType(step, optimizer)
            return optimizer

    def step(optimizer: torch.optim.Optimizer, closure: None = None) -> None:
        kind.step(optimizer)

    Method.__doc__ = inspect.getdoc(kind)
    Method.__name__ = Method.__qualname__ = kind.__name__
    return Method

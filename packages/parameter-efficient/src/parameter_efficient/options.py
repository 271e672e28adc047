"""The options that every method has. Nothing here imports torch."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, fields
from typing import Literal, cast

from finetune_common.errors import ConfigurationError, check_choice, check_number, shown

__all__ = ["Config", "Layers", "check_patterns"]

Layers = tuple[int, ...] | Literal["all"]


@dataclass(frozen=True)
class Config:
    """The options that every method has.

    Args:
        pooling: What the head reads: cls (the token that it reads anyway) or mean (instead, the mean of all
            tokens but padding).
        seed: Seed of the new parameters, at least 0; null for torch's initial seed, which a run sets. The
            global random stream does not advance.
        head: Whether the head trains: train or none; null for train, and for none in a language model, whose
            head is the vocabulary.
        also_train: Other modules of the model that train as well: ends of their names, as in peft's
            modules_to_save, or regular expressions for whole names; norms for all norms.
        new_tokens: How many tokens at the end of the vocabulary are new: of the embeddings, only theirs
            train.
        stack: Which part to adapt in a model with an encoder and a decoder: encoder, decoder or both.
        dtype: dtype of new parameters: float32 (at least, even in a half-precision model) or model (that of
            their layer).
    """

    pooling: Literal["cls", "mean"] = "cls"
    seed: int | None = None
    head: Literal["train", "none"] | None = None
    also_train: tuple[str, ...] = ()
    new_tokens: int = 0
    stack: Literal["encoder", "decoder", "both"] = "encoder"
    dtype: Literal["float32", "model"] = "float32"

    def __init_subclass__(cls) -> None:
        """Add the options of the base class to the class's docstring."""
        inherited = (cls.__bases__[0].__doc__ or "").partition("Args:\n")[2].partition("\n\n")[0].rstrip()
        before, args, after = (cls.__doc__ or "").partition("Args:\n")
        if args and inherited:
            cls.__doc__ = f"{before}{args}{inherited}\n{after}"

    def __post_init__(self) -> None:
        check_choice("pooling", self.pooling, ("cls", "mean"))
        check_choice("head", self.head, ("train", "none", None))
        check_choice("stack", self.stack, ("encoder", "decoder", "both"))
        check_choice("dtype", self.dtype, ("float32", "model"))
        check_number("new_tokens", self.new_tokens, at_least=0)
        if self.seed is not None:
            check_number("seed", self.seed, at_least=0, below=2**63)
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, list):
                object.__setattr__(self, field.name, tuple(cast("list[object]", value)))
        _check_layers(getattr(self, "layers", "all"))
        for name in ("also_train", "targets"):
            check_patterns(name, getattr(self, name, ()))

    @property
    def parts(self) -> tuple[Config, ...]:
        """Return the methods of which this one consists."""
        return (self,)


def _check_layers(layers: object) -> None:
    if layers == "all":
        return
    numbers = cast("tuple[object, ...]", layers) if isinstance(layers, tuple) else ()
    if not numbers or any(type(number) is not int for number in numbers):
        raise ConfigurationError(
            f"layers={shown(cast(object, layers))} cannot be used: give a list of layer numbers (from 0, or "
            "from the end: -1), or 'all'"
        )


def check_patterns(field: str, patterns: str | Iterable[object]) -> None:
    """Refuse anything but a sequence of names and regular expressions."""
    names = [] if isinstance(patterns, str) else [*patterns]
    if isinstance(patterns, str) or not all(names):
        raise ConfigurationError(f"{field}={shown(patterns)} cannot be used: give a list of names of modules")
    for name in names:
        if not isinstance(name, str):
            raise ConfigurationError(f"{field}={shown(patterns)} cannot be used: {shown(name)} is not a name")
        try:
            re.compile(name)
        except re.error as error:
            raise ConfigurationError(f"{field}={name!r} is not a regular expression ({error})") from None

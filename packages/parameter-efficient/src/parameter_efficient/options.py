"""The options that every method has. Nothing here imports torch."""

from __future__ import annotations

import re
from dataclasses import dataclass, fields
from typing import Literal

from finetune_common.errors import ConfigurationError, check_choice, check_number, shown

__all__ = ["Config", "Layers", "check_patterns"]

Layers = tuple[int, ...] | Literal["all"]


@dataclass(frozen=True)
class Config:
    """The options that every method has.

    Args:
        pooling: What the head reads: cls (the token it reads by itself) or mean (of all tokens that are no
            padding, in its place).
        seed: Seed of the new parameters, at least 0; null for torch's initial seed, which a run sets. Global
            random numbers are not drawn.
        head: Whether the head trains: train or none; null for train, and none for a language model, whose
            head is the vocabulary.
        also_train: Other parameters of the model that train as well: the ends of names of modules or
            parameters, as in peft's modules_to_save, or regular expressions for whole names; norms for all
            norms.
        new_tokens: How many tokens at the end of the vocabulary are new: their embeddings train, alone.
        stack: Of a model with an encoder and a decoder, which is adapted: encoder, decoder or both.
        dtype: Of new parameters: float32 (at least, also where the model is in half precision) or model (as
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
        """Add the options of the class above to the description of one."""
        above = (cls.__bases__[0].__doc__ or "").partition("Args:\n")[2].partition("\n\n")[0].rstrip()
        before, args, after = (cls.__doc__ or "").partition("Args:\n")
        if args and above:
            cls.__doc__ = f"{before}{args}{above}\n{after}"

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
                object.__setattr__(self, field.name, tuple(value))
        if hasattr(self, "layers"):
            _check_layers(self.layers)  # type: ignore[attr-defined]
        for name in ("also_train", "targets"):
            check_patterns(name, getattr(self, name, ()))

    @property
    def parts(self) -> tuple[Config, ...]:
        """Return the methods of which this one is made."""
        return (self,)


def _check_layers(layers: object) -> None:
    numbers = isinstance(layers, tuple) and all(type(number) is int for number in layers)
    if layers != "all" and not (numbers and layers):
        raise ConfigurationError(
            f"layers={shown(layers)} cannot be used: give a list of layer numbers (from 0, or from the "
            "end: -1), or 'all'"
        )


def check_patterns(field: str, patterns: object) -> None:
    """Refuse anything but a sequence of names and regular expressions."""
    if isinstance(patterns, str) or not all(isinstance(pattern, str) and pattern for pattern in patterns):  # type: ignore[attr-defined]
        raise ConfigurationError(f"{field}={shown(patterns)} cannot be used: give a list of names of modules")
    for pattern in patterns:  # type: ignore[attr-defined]
        try:
            re.compile(pattern)
        except re.error as error:
            raise ConfigurationError(f"{field}={pattern!r} is no regular expression ({error})") from None

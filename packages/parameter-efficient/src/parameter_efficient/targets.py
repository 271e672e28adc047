"""Modules and parameters of a model, by the ends of their names or by regular expressions, as peft has it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence

from torch import nn

from finetune_common.errors import ConfigurationError
from parameter_efficient.architecture import Layer
from parameter_efficient.blocks import each_once
from parameter_efficient.typed import named_modules

__all__ = ["ROLES", "matching", "named_targets"]

ROLES = (
    *("q", "k", "v", "o", "ffn_in", "ffn_gate", "ffn_out", "attention_norm", "ffn_norm"),
    *("cross_q", "cross_k", "cross_v", "cross_o"),
)


def _fits(pattern: str, name: str) -> bool:
    return name == pattern or name.endswith(f".{pattern}") or re.fullmatch(pattern, name) is not None


def matching(
    model: nn.Module, patterns: Sequence[str], option: str, within: Iterable[str] = ("",)
) -> dict[str, nn.Module]:
    """Return the modules that patterns name, in the model's order.

    Args:
        model: The model.
        patterns: Ends of names, or regular expressions for whole names.
        option: Name of the setting, for the message.
        within: Names of modules; only modules inside of them count.

    Raises:
        ConfigurationError: A pattern names nothing.
    """
    inside = tuple(f"{name}." if name else "" for name in within)
    names = {name: m for name, m in named_modules(model) if name and name.startswith(inside)}
    for pattern in patterns:
        if not any(_fits(pattern, name) for name in names):
            raise ConfigurationError(
                f"{option}={pattern!r} is not a role ({', '.join(ROLES[:7])}) and names no module of "
                f"{type(model).__name__}: print the model, or call adapt(…, dry_run=True), to see its names"
            )
    return {name: m for name, m in names.items() if any(_fits(pattern, name) for pattern in patterns)}


def named_targets(
    model: nn.Module, targets: Sequence[str], layers: Sequence[Layer], option: str = "targets"
) -> Mapping[str, nn.Module]:
    """Return modules by role or by pattern, in chosen layers; what layers share has its first name."""
    patterns = [target for target in targets if target not in ROLES]
    modules: dict[str, nn.Module] = {}
    for layer in layers:
        for role in targets:
            if role in ROLES:
                modules.update(layer.play(role))
    if patterns:
        modules.update(matching(model, patterns, option, [layer.name for layer in layers] or ("",)))
    return each_once(modules.items())

"""What `glue-harness run --help` shows: texts from docstrings, placeholders from types."""

from __future__ import annotations

import argparse
import re
from types import NoneType, UnionType
from typing import Literal, Union, get_args, get_origin

from docstring_parser import parse as parse_docstring
from jsonargparse import DefaultHelpFormatter

__all__ = ["HelpFormatter", "described_arguments", "placeholder"]

WORDS: dict[object, str] = {int: "N", float: "X", bool: "{true,false}"}


def described_arguments(documented: type) -> dict[str, str]:
    """Return argument → its text in the `Args:` of a class's docstring."""
    parameters = parse_docstring(documented.__doc__ or "").params
    return {p.arg_name: " ".join((p.description or "").split()) for p in parameters}


def placeholder(hint: object) -> str | None:
    """Return what stands for an option's value: N, X, or the words to choose from; None for its name.

    Examples:
        >>> placeholder(int | None), placeholder(Literal["none", "fsdp"]), placeholder(str)
        ('N', '{none,fsdp}', None)
    """
    for kind in get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,):
        if get_origin(kind) is Literal:
            return f"{{{','.join(map(str, get_args(kind)))}}}"
        if kind is not NoneType:
            return WORDS.get(kind)
    return None


class HelpFormatter(DefaultHelpFormatter):
    """Help without types; a default is shown if there is one."""

    def _get_help_string(self, action: argparse.Action) -> str:
        text = action.help or ""
        shows = (
            action.default is not None and action.default is not False and action.default != argparse.SUPPRESS
        )
        return f"{text} (default: %(default)s)" if shows and action.option_strings else text

    def _format_action_invocation(self, action: argparse.Action) -> str:
        """Leave out jsonargparse's second form of options that take lists: `--text-columns+`."""
        return re.sub(r", --[\w.-]+\+ \S+", "", super()._format_action_invocation(action))

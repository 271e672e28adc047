"""How a script of the benchmarks ends: what it refuses is told in one line."""

from __future__ import annotations

import sys
from collections.abc import Callable

from finetune_common.errors import ConfigurationError

__all__ = ["status_of"]


def status_of(program: str, act: Callable[[], bool]) -> int:
    """Do what a command line says; returns 1 where something failed, 2 where the line cannot be done.

    Args:
        program: Its name, for the error.
        act: Returns whether nothing failed.
    """
    try:
        return 0 if act() else 1
    except ConfigurationError as error:
        print(f"{program}: error: {error}", file=sys.stderr)
        return 2

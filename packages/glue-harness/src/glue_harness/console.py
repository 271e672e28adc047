"""Printing: consoles for tables, and a one-line error if standard output cannot be written."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from typing import TYPE_CHECKING, ParamSpec, TextIO, TypeVar, cast

from finetune_common.errors import ConfigurationError
from glue_harness.files import writing

__all__ = ["console_for_reading", "standard_output"]

if TYPE_CHECKING:
    from rich.console import Console

P = ParamSpec("P")
T = TypeVar("T")

WIDTH_IN_FILES = 132


def console_for_reading() -> Console:
    """Return a console as wide as the terminal; without one, wide enough for tables."""
    from rich.console import Console

    return Console(width=None if sys.stdout.isatty() else WIDTH_IN_FILES, highlight=False)


class _Output:
    """A stream whose errors become one line."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> object:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        return self._safely(self._stream.write, text)

    def flush(self) -> None:
        self._safely(self._stream.flush)

    def _safely(self, act: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        try:
            with writing("standard output"):
                return act(*args, **kwargs)
        except ConfigurationError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), self._stream.fileno())  # Python flushes it on exit
            raise


@contextmanager
def standard_output() -> Iterator[TextIO]:
    """Within this context, output that cannot be written raises a one-line error.

    Raises:
        ConfigurationError: Standard output is closed, or full.
    """
    if sys.stdout is None:
        raise ConfigurationError("standard output is closed: give it a file, or /dev/null")
    with redirect_stdout(cast("TextIO", _Output(sys.stdout))) as out:  # it passes on all that it lacks
        yield out

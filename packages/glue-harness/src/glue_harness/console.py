"""Printing: consoles for tables, and a one-line error if standard output cannot be written."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from typing import Any

from finetune_common.errors import ConfigurationError
from glue_harness.files import writing

__all__ = ["console_for_reading", "standard_output"]

WIDTH_IN_FILES = 132


def console_for_reading() -> Any:
    """Return a console as wide as the terminal; without one, wide enough for tables."""
    from rich.console import Console

    return Console(width=None if sys.stdout.isatty() else WIDTH_IN_FILES, highlight=False)


class _Output:
    """A stream whose errors become one line."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        return self._safely(self._stream.write, text)

    def flush(self) -> None:
        self._safely(self._stream.flush)

    def _safely(self, act: Any, *arguments: str) -> Any:
        try:
            with writing("standard output"):
                return act(*arguments)
        except ConfigurationError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), self._stream.fileno())  # Python flushes it on exit
            raise


@contextmanager
def standard_output() -> Iterator[Any]:
    """Within this context, output that cannot be written raises a one-line error.

    Raises:
        ConfigurationError: Standard output is closed, or full.
    """
    if sys.stdout is None:
        raise ConfigurationError("standard output is closed: give it a file, or /dev/null")
    with redirect_stdout(_Output(sys.stdout)) as out:  # type: ignore[type-var]
        yield out

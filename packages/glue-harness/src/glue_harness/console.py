"""Where tables are printed."""

import sys

from rich.console import Console

__all__ = ["console_for_reading"]

WIDTH_IN_FILES = 132


def console_for_reading() -> Console:
    """Return a console as wide as the terminal, and wide enough for tables where there is none."""
    return Console(
        width=None if sys.stdout is not None and sys.stdout.isatty() else WIDTH_IN_FILES, highlight=False
    )

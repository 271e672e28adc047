"""Commands of this Python, each in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

__all__ = ["CommandError", "command"]


class CommandError(Exception):
    """A command failed, and has told why."""


def command(*words: str | Path, **variables: str) -> None:
    """Run a command with environment variables.

    Raises:
        CommandError: It failed.
    """
    found = subprocess.run([sys.executable, *map(str, words)], env={**os.environ, **variables}, check=False)
    if found.returncode:
        raise CommandError(f"failed with exit status {found.returncode}, see above")

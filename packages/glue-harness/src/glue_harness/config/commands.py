"""What the parsers of all commands have in common."""

from __future__ import annotations

import argparse

from finetune_common.errors import ConfigurationError

__all__ = ["CommandParser", "parser_of"]


class CommandParser(argparse.ArgumentParser):
    """A parser whose errors are one line that names the help command."""

    def error(self, message: str) -> None:  # type: ignore[override]
        """Raise instead of leaving the process."""
        raise ConfigurationError(f"{message}; see '{self.prog} --help'")


def parser_of(command: str, description: str) -> CommandParser:
    """Return the parser of `glue-harness COMMAND`."""
    return CommandParser(prog=f"glue-harness {command}", description=description, allow_abbrev=False)

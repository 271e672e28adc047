"""Asking a run to stop: Ctrl-C, SIGTERM, SIGUSR1 (what SLURM sends ahead of a time limit), SIGHUP and others.

The current step is finished and a checkpoint is written; then the run ends with `Stopped`. Work with nothing
to save ends at once, and a second Ctrl-C ends everything at once.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

__all__ = ["SIGNALS", "StopFile", "StopRequest", "Stopped", "stop_on_signals"]

HARMLESS = ("CHLD", "CLD", "CONT", "TSTP", "TTIN", "TTOU", "URG", "WINCH", "INFO")
FAULTS = ("SEGV", "BUS", "FPE", "ILL", "ABRT", "IOT", "TRAP", "SYS", "EMT", "STKFLT")
TIMERS = ("ALRM", "VTALRM", "PROF")
OTHERS = ("KILL", "STOP", "QUIT", "PIPE")
"""Cannot be caught; ends a process at once on purpose; is an error of writing."""

KEPT = {f"SIG{name}" for name in (*HARMLESS, *FAULTS, *TIMERS, *OTHERS)}
SIGNALS = sorted(number for number in signal.Signals if number.name not in KEPT)
"""All other signals: each asks a process to end."""


class Stopped(BaseException):
    """Something has stopped on request; a run's progress is saved.

    Not an `Exception`, so that code which handles failed runs lets it pass.

    Args:
        number: The signal's number.
        step: Optimizer steps of the run that are done and saved.

    Attributes:
        number: The signal's number.
        status: Exit status of a process stopped by such a signal: by custom 128 plus its number.

    Examples:
        >>> str(Stopped(signal.SIGTERM, 120)), Stopped(signal.SIGTERM, 120).status
        ('stopped by SIGTERM after step 120, saved: the same command continues', 143)
    """

    def __init__(self, number: int, step: int = 0) -> None:
        name = "Ctrl-C" if number == signal.SIGINT else signal.Signals(number).name
        done = f" after step {step}, saved" if step else ""
        super().__init__(f"stopped by {name}{done}: the same command continues")
        self.number, self.status = number, 128 + number


class StopRequest:
    """Whether a run was asked to stop by a signal.

    Attributes:
        number: The first signal received, 0 before any.
        waits: Whether a run checks this object and stops; otherwise a signal ends everything at once.
    """

    def __init__(self) -> None:
        self.number, self.waits = 0, False

    def note(self, number: int, _: object = None) -> None:
        """Handle a signal.

        Raises:
            Stopped: No run checks this object yet.
            KeyboardInterrupt: A second Ctrl-C.
        """
        first, self.number = not self.number, self.number or number
        if number == signal.SIGINT and not first:
            raise KeyboardInterrupt
        if first and not self.waits:
            raise Stopped(number)


@dataclass
class StopFile:
    """Whether a run was asked to stop by a file: for runs in threads, which cannot have handlers.

    Args:
        path: The run stops as soon as this file exists.
    """

    path: Path
    waits: bool = True

    @property
    def number(self) -> int:
        """The signal it stands for, 0 before."""
        return signal.SIGTERM if self.path.exists() else 0


@contextmanager
def stop_on_signals() -> Iterator[StopRequest]:
    """Record signals instead of ending the process; the earlier handlers are restored at the end.

    Ignored signals stay ignored (`nohup`). Outside the main thread Python allows no handlers, so nothing is
    noted.
    """
    request = StopRequest()
    signals = SIGNALS if threading.current_thread() is threading.main_thread() else []
    before = {number: signal.getsignal(number) for number in signals}
    handled = {number: handler for number, handler in before.items() if handler not in (signal.SIG_IGN, None)}
    try:
        for number in handled:
            signal.signal(number, request.note)
        yield request
    finally:
        for number, handler in handled.items():
            signal.signal(number, handler)

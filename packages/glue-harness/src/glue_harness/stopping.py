"""Asking a run to stop: SIGTERM, SIGUSR1 (what SLURM sends ahead of a time limit) and Ctrl-C.

The step in hand is finished and a checkpoint is written; then the run ends with `Stopped`. What has nothing
to save ends at once, and a second Ctrl-C ends everything at once.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

__all__ = ["SIGNALS", "StopFile", "StopRequest", "Stopped", "stop_on_signals"]

NAMES = ("SIGTERM", "SIGUSR1", "SIGUSR2", "SIGINT")  # SIGUSR2 is what submitit has SLURM send
SIGNALS = [getattr(signal, name) for name in NAMES if hasattr(signal, name)]


class Stopped(BaseException):
    """Something has stopped because it was asked to; what a run did is saved.

    No `Exception`: what looks after failed runs lets it through.

    Args:
        number: Of the signal.
        step: Optimizer steps of the run that are done and saved.

    Attributes:
        number: Of the signal.
        status: With which a process ends that such a signal stopped, by custom: 128 and its number.

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
        number: Of the signal that asked first, 0 before.
        waits: Whether somebody looks here and stops when it is time; without, a signal ends all at once.
    """

    def __init__(self) -> None:
        self.number, self.waits = 0, False

    def note(self, number: int, _: Any = None) -> None:
        """Be the handler of a signal.

        Raises:
            Stopped: Nobody looks here yet.
            KeyboardInterrupt: Ctrl-C, and it is not the first that asks.
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
        path: Asks to stop as soon as it exists.
    """

    path: Path
    waits: bool = True

    @property
    def number(self) -> int:
        """The signal whose place it takes, 0 before."""
        return signal.SIGTERM if self.path.exists() else 0


@contextmanager
def stop_on_signals() -> Iterator[StopRequest]:
    """Note signals instead of dying of them; handlers of before come back at the end.

    Signals that are ignored stay so (`nohup`). Outside of the main thread, where Python allows no handlers,
    nothing is noted.
    """
    request, before = StopRequest(), dict[int, Any]()
    if threading.current_thread() is threading.main_thread():
        before = {number: signal.getsignal(number) for number in SIGNALS}
    handled = {number: handler for number, handler in before.items() if handler not in (signal.SIG_IGN, None)}
    try:
        for number in handled:
            signal.signal(number, request.note)
        yield request
    finally:
        for number, handler in handled.items():
            signal.signal(number, handler)

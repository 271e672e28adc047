"""Asking a run to stop: SIGTERM, SIGUSR1 (what SLURM sends ahead of a time limit) and Ctrl-C.

The step in hand is finished and a checkpoint is written; then the run ends with `Stopped`. A second Ctrl-C
ends it at once.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

__all__ = ["StopRequest", "Stopped", "stop_on_signals"]

SIGNALS = [getattr(signal, name) for name in ("SIGTERM", "SIGUSR1", "SIGINT") if hasattr(signal, name)]


class Stopped(BaseException):
    """A run has stopped because it was asked to, and what it did is saved.

    No `Exception`: what looks after failed runs lets it through.

    Args:
        number: Of the signal.
        step: Optimizer steps that are done and saved.

    Attributes:
        status: With which a process ends that such a signal stopped, by custom: 128 and its number.

    Examples:
        >>> str(Stopped(signal.SIGTERM, 120)), Stopped(signal.SIGTERM, 120).status
        ('stopped by SIGTERM after step 120, saved: the same command continues', 143)
    """

    def __init__(self, number: int, step: int) -> None:
        name = "Ctrl-C" if number == signal.SIGINT else signal.Signals(number).name
        done = f"after step {step}, saved" if step else "before the first step"
        super().__init__(f"stopped by {name} {done}: the same command continues")
        self.status = 128 + number


class StopRequest:
    """Whether a run was asked to stop.

    Attributes:
        number: Of the signal that asked first, 0 before.
    """

    def __init__(self) -> None:
        self.number = 0

    def note(self, number: int, _: Any = None) -> None:
        """Be the handler of a signal."""
        if number == signal.SIGINT and self.number:
            raise KeyboardInterrupt
        self.number = self.number or number


@contextmanager
def stop_on_signals() -> Iterator[StopRequest]:
    """Note signals instead of dying of them; handlers of before come back at the end.

    Outside of the main thread, where Python allows no handlers, nothing is noted.
    """
    request, before = StopRequest(), {}
    if threading.current_thread() is threading.main_thread():
        for number in SIGNALS:
            before[number] = signal.signal(number, request.note)
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)

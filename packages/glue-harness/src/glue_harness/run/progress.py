"""How far a run is: a bar in a terminal, nothing elsewhere."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

from glue_harness.config.fields import RunConfig

__all__ = ["Progress"]


class Progress:
    """Loss, learning rate, examples per second and time left of one run.

    Args:
        config: Names the run.
        shown: Whether this is the process that speaks for the run.
    """

    def __init__(self, config: RunConfig, shown: bool = True) -> None:
        console = Console(stderr=True)
        self._bar = Bar(
            TextColumn("[bold]{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[said]}"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=console,
            disable=not (shown and console.is_terminal),
        )
        self._name = f"{config.task} {config.optimizer['name']}"
        self._loss = self._rate = float("nan")
        self._score = ""
        self._first_examples = 0

    def __enter__(self) -> Progress:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def start(self, step: int, total: int, examples: int) -> None:
        """Begin at a step, with the examples that an earlier part of the run has seen."""
        self._first_examples = examples
        self._task = self._bar.add_task(self._name, total=total, completed=step, said="")

    def logged(self, loss: float, rate: float) -> None:
        """Note the newest loss and learning rate."""
        self._loss, self._rate = loss, rate

    def evaluated(self, entry: Mapping[str, Any]) -> None:
        """Note the newest scores."""
        self._score = "  ".join(f"{name} {value:.3f}" for name, value in entry["metrics"].items())

    def advance(self, step: int, examples: int) -> None:
        """Show that a step is done."""
        seconds = self._bar.tasks[0].elapsed or float("inf")
        speed = (examples - self._first_examples) / seconds
        said = f"loss {self._loss:.4f}  lr {self._rate:.2e}  {speed:.0f} ex/s"
        self._bar.update(self._task, completed=step, said=f"{said}  {self._score}")

"""Progress of a run: a bar in a terminal, otherwise occasional lines."""

from __future__ import annotations

import sys
import time
from datetime import timedelta
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

from finetune_common.aliases import JsonObject
from glue_harness.config.fields import RunConfig

if TYPE_CHECKING:
    from glue_harness.run.loop import Training

__all__ = ["Progress"]

FIRST, PAUSE = 2.0, 30.0
"""Seconds to the first line about steps, and between lines."""


class Progress:
    """Loss, learning rate, examples per second and time left of one run.

    Args:
        config: Names the run.
        shown: Whether this process prints for the run.
    """

    def __init__(self, config: RunConfig, shown: bool = True) -> None:
        console = Console(stderr=True)
        self._bar = Bar(
            TextColumn("[bold]{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[state]}"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=console,
            disable=not (shown and console.is_terminal),
        )
        self._lines = shown and sys.stderr is not None and not console.is_terminal
        self._config = config
        self._logged = ""
        self._score = ""

    def __enter__(self) -> Progress:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def start(self, training: Training) -> None:
        """Print what begins, or where the run continues."""
        config, step, total = self._config, training.step, training.plan.total
        self._total, self._began = total, time.monotonic()
        self._since: tuple[float, int, int] | None = None
        """Time of the first step's end, its number, and the examples until then."""
        self._next_line = self._began + FIRST
        name = f"{config.task} {config.optimizer['name']}"
        self._task = self._bar.add_task(name, total=total, completed=step, state="")
        methods = [config.adaptation, config.activation, *config.gradient, config.optimizer, *config.monitor]
        self._say(
            f"{config.task}: {training.data.training_rows:,} rows, model {config.model}, "
            f"{' + '.join(method['name'] for method in methods)} (lr {training.scheduler.base_lrs[0]:g}), "
            + (f"continues after step {step:,} of {total:,}" if step else f"{total:,} steps")
        )

    def _say(self, text: str) -> None:
        if self._lines:
            try:
                print(text, file=sys.stderr, flush=True)
            except OSError:  # nobody reads the progress: the run continues
                self._lines = False

    def logged(self, loss: float, rate: float) -> None:
        """Note the newest loss and learning rate."""
        self._logged = f"loss {loss:.4f}  lr {rate:.2e}  "

    def evaluated(self, entry: JsonObject) -> None:
        """Note the newest scores."""
        self._score = "  ".join(f"{name} {value:.3f}" for name, value in entry["metrics"].items())
        self._say(f"step {entry['step']:,}/{self._total:,}, evaluation: {self._score}")

    def advance(self, step: int, examples: int) -> None:
        """Show that a step is done. The first step may compile, so it does not predict the others."""
        now = time.monotonic()
        if self._since is None:
            self._since, pause = (now, step, examples), FIRST
            line = f"{self._logged}the first step took {now - self._began:.0f} s"
            left = ""
        else:
            since, first, had = self._since
            seconds, pause = now - since, PAUSE
            line = f"{self._logged}{(examples - had) / seconds:.0f} ex/s"
            left = f"  {timedelta(seconds=round((self._total - step) * seconds / (step - first)))} left"
        self._bar.update(self._task, completed=step, state=f"{line}  {self._score}")
        if now >= self._next_line:
            self._next_line = now + pause
            self._say(f"step {step:,}/{self._total:,}: {line}{left}")

"""Worker processes on this machine, started from a process that has imported everything."""

from __future__ import annotations

import os
import signal
import threading
from collections import Counter
from collections.abc import Sequence
from multiprocessing import forkserver, get_context, parent_process
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from typing import Any

from finetune_common.errors import ConfigurationError
from glue_harness.config.fields import RunConfig
from glue_harness.stopping import SIGNALS, Stopped, stop_on_signals
from glue_harness.sweep.claiming import do_runs, done, write_error

__all__ = ["Workers", "warm_up"]

IMPORTED = [
    "glue_harness.run.entry",
    "datasets",
    "peft",
    "scipy.stats",
    "sklearn.metrics",
    "transformers.models.auto.modeling_auto",
    "transformers.models.bert.modeling_bert",
]
"""Modules that the workers' parent process imports once, so that no worker has to."""


def warm_up() -> None:
    """Start the workers' parent process: it imports while the specification is read."""
    forkserver.set_forkserver_preload(IMPORTED)
    forkserver.ensure_running()


DEATHS = 4
"""How many processes a run may end before it has failed."""
NO_RUN = -1
ASKED = [128 + number for number in SIGNALS]
"""Exit codes of workers that were asked to stop."""


class Workers:
    """Processes that work through runs. A run whose processes die repeatedly has failed.

    Args:
        configs: The runs, in order.
        jobs: How many processes.
        keep: Which runs keep their models.

    Raises:
        ConfigurationError: Workers die before they start a run.
    """

    poll = 0.2

    def __init__(self, configs: Sequence[RunConfig], jobs: int, keep: str = "best") -> None:
        self._configs, self._jobs, self._keep = list(configs), jobs, keep
        self._context = get_context("forkserver")
        self._processes: list[BaseProcess] = []
        self._current_runs = [self._context.Value("i", NO_RUN) for _ in range(jobs)]
        self._deaths: Counter[int] = Counter()

    def __enter__(self) -> Workers:
        self._processes = [self._started(number) for number in range(self._jobs)]
        return self

    def __exit__(self, *_: object) -> None:
        for process in self._processes:
            process.terminate()
        try:
            for process in self._processes:
                process.join()
        except KeyboardInterrupt:
            for process in self._processes:
                process.kill()
            raise

    def look_after(self) -> None:
        """Replace dead workers; a worker that was asked to stop has saved its run."""
        for number, process in enumerate(self._processes):
            if process.exitcode not in (None, 0):
                if process.exitcode not in ASKED:
                    self._count_death(self._current_runs[number].value, process.exitcode)
                self._processes[number] = self._started(number)

    def _count_death(self, run: int, code: int | None) -> None:
        self._deaths[run] += 1
        if self._deaths[run] < DEATHS:
            return
        reason = f"{DEATHS} processes died, the last one with exit code {code} (-9 often means out of memory)"
        if run == NO_RUN:
            raise ConfigurationError(
                f"{reason} before they began a run: use fewer --jobs; the same command continues"
            )
        if not done(self._configs[run]):
            write_error(self._configs[run], f"{reason}: use fewer --jobs or smaller batches")

    def _started(self, number: int) -> BaseProcess:
        current_run = self._current_runs[number]
        current_run.value = NO_RUN
        process = self._context.Process(
            target=_work, args=(self._configs, number, self._jobs, current_run, self._keep)
        )
        process.start()
        return process


def _work(configs: list[RunConfig], number: int, jobs: int, current_run: Any, keep: str) -> None:
    """Work as one of this machine's workers, and write the current run's number into `current_run`."""
    _end_with_the_launcher()
    _share_the_machine(number, jobs)

    def begin(run: int) -> None:
        current_run.value = run

    try:
        with stop_on_signals():
            do_runs(configs, begin, keep)
    except Stopped as stopped:
        raise SystemExit(stopped.status) from None
    except KeyboardInterrupt:
        raise SystemExit(128 + signal.SIGINT) from None


def _share_the_machine(number: int, jobs: int) -> None:
    import torch

    torch.set_num_threads(max(1, torch.get_num_threads() // jobs))
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if gpus:
        torch.cuda.set_device(number % gpus)


def _end_with_the_launcher() -> None:
    """Leave at once when the process that started the sweep is gone, however it ended."""
    launcher = parent_process()

    def watch() -> None:
        if launcher is not None:
            wait([launcher.sentinel])
            os._exit(1)

    threading.Thread(target=watch, daemon=True).start()

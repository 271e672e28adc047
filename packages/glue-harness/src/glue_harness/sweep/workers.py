"""Worker processes on this machine, started from one that has imported everything."""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence
from multiprocessing import forkserver, get_context, parent_process
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess

from finetune_common.errors import ConfigurationError
from glue_harness.config import RunConfig
from glue_harness.sweep.claiming import do_runs

__all__ = ["Workers", "warm_up"]

IMPORTED = [
    "glue_harness.training",
    "datasets",
    "peft",
    "scipy.stats",
    "sklearn.metrics",
    "transformers.models.auto.modeling_auto",
    "transformers.models.bert.modeling_bert",
]
"""What the process that all workers come from imports once: a run would, and each worker anew."""


def warm_up() -> None:
    """Start the process that all workers come from: it imports while the specification is read."""
    forkserver.set_forkserver_preload(IMPORTED)
    forkserver.ensure_running()


class Workers:
    """Processes that work through runs.

    Args:
        configs: The runs, in order.
        jobs: How many processes.

    Raises:
        ConfigurationError: Workers die again and again.
    """

    poll = 0.2

    def __init__(self, configs: Sequence[RunConfig], jobs: int) -> None:
        self._configs, self._jobs = list(configs), jobs
        self._context = get_context("forkserver")
        self._processes: list[BaseProcess] = []
        self._deaths_left = len(self._configs) + jobs

    def __enter__(self) -> Workers:
        self._processes = [self._started(number) for number in range(self._jobs)]
        return self

    def __exit__(self, *_: object) -> None:
        for process in self._processes:
            process.terminate()
        for process in self._processes:
            process.join()

    def look_after(self) -> None:
        """Replace workers that died."""
        for number, process in enumerate(self._processes):
            if process.exitcode not in (None, 0):
                if not self._deaths_left:
                    raise ConfigurationError(
                        f"workers die again and again, the last one with exit code {process.exitcode} (-9 "
                        "often is a lack of memory): use fewer --jobs or smaller batches; the same command "
                        "continues"
                    )
                self._deaths_left -= 1
                self._processes[number] = self._started(number)

    def _started(self, number: int) -> BaseProcess:
        process = self._context.Process(target=_work, args=(self._configs, number, self._jobs), daemon=False)
        process.start()
        return process


def _work(configs: list[RunConfig], number: int, jobs: int) -> None:
    """Be one of the workers on this machine."""
    _end_with_the_launcher()
    _share_the_machine(number, jobs)
    do_runs(configs)


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

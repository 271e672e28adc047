"""Worker processes that do runs: each takes what is neither finished nor being worked on."""

from __future__ import annotations

import os
import threading
import time
import traceback
from collections.abc import Sequence
from multiprocessing import get_context, parent_process
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from pathlib import Path

from finetune_common.errors import ConfigurationError
from glue_harness.config import RunConfig
from glue_harness.records import RunInUse, write_whole
from glue_harness.sweep.state import ERROR

__all__ = ["Workers"]

PAUSE = 0.5
"""Seconds before a worker looks again for a run that another process has left."""


class Workers:
    """Processes that work through runs, started from one that has imported everything.

    Args:
        configs: The runs, in order.
        jobs: How many processes.

    Raises:
        ConfigurationError: Workers die again and again.
    """

    def __init__(self, configs: Sequence[RunConfig], jobs: int) -> None:
        self._configs, self._jobs = list(configs), jobs
        self._context = get_context("forkserver")
        self._context.set_forkserver_preload(["glue_harness.training"])
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
    """Do runs until each is finished or has failed, here or elsewhere."""
    _end_with_the_launcher()
    _share_the_machine(number, jobs)
    open_runs = list(configs)
    while open_runs:
        for config in list(open_runs):
            if _done(config) or _attempted(config):
                open_runs.remove(config)
        if open_runs:
            time.sleep(PAUSE)


def _done(config: RunConfig) -> bool:
    folder = Path(config.output_dir)
    return (folder / "result.json").exists() or (folder / ERROR).exists()


def _attempted(config: RunConfig) -> bool:
    """Do a run, unless another process is at it; a failure is written into its folder."""
    from glue_harness.training import run

    try:
        run(config)
    except RunInUse:
        return False
    except Exception as error:
        said = " ".join(str(error).split()) or type(error).__name__
        folder = Path(config.output_dir)
        folder.mkdir(parents=True, exist_ok=True)
        write_whole(folder / ERROR, f"{said}\n\n{traceback.format_exc()}")
    return True


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

"""Workers as the elements of a SLURM job array, through submitit."""

from __future__ import annotations

import os
import signal
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import yaml

from finetune_common.aliases import JsonObject, Settings
from finetune_common.errors import ConfigurationError
from glue_harness.cluster import Share, available_cores, fair_share, use_cores
from glue_harness.config.fields import RunConfig
from glue_harness.stopping import Stopped
from glue_harness.sweep.claiming import do_runs

if TYPE_CHECKING:
    from submitit import Job
    from submitit.helpers import DelayedSubmission

__all__ = ["SlurmArray", "read_options"]

SHARED = ("cluster", "timeout_min", "mem_gb", "cpus_per_task", "gpus_per_node")
"""Options that submitit has for every cluster; all others are SLURM's."""

LOGS = ".slurm"


def read_options(text: str) -> JsonObject:
    """Read what a job requests, in submitit's names.

    Examples:
        >>> read_options("partition=gpu,timeout_min=240,gpus_per_node=1")
        {'slurm_partition': 'gpu', 'timeout_min': 240, 'gpus_per_node': 1}
    """
    options: JsonObject = {}
    for part in filter(None, (part.strip() for part in text.split(","))):
        name, equals, value = part.partition("=")
        if not equals:
            raise ConfigurationError(
                f"--slurm {part!r}: give NAME=VALUE,..., for example partition=gpu,timeout_min=240"
            )
        options[name if name in SHARED else f"slurm_{name}"] = yaml.safe_load(value)
    return options


@dataclass(frozen=True)
class Worker:
    """The work of an array element. Shortly before the time limit SLURM sends a signal, as submitit requests:
    the current run is saved, and the element is queued again.

    Attributes:
        configs: The runs, in order.
        cores: Threads, if SLURM does not say how many.
        keep: Which runs keep their models.
    """

    configs: tuple[RunConfig, ...]
    cores: int
    keep: str = "best"

    def __call__(self) -> None:
        """Do runs until each is finished or has failed, here or elsewhere."""
        use_cores(Share(int(os.environ.get("SLURM_CPUS_PER_TASK", self.cores)), 0))
        try:
            do_runs(self.configs, keep=self.keep)
        except Stopped as stopped:
            signal.raise_signal(stopped.number)  # the run is saved: submitit's handler queues this again
            raise SystemExit(stopped.status) from None

    def checkpoint(self, *_: object) -> DelayedSubmission:
        """Return the job that replaces this one: runs continue from their checkpoints."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)


class SlurmArray:
    """An array of workers, each of which does one run after another.

    Args:
        configs: The runs, in order.
        jobs: How many workers.
        folder: The sweep's folder, visible to all machines; submitit's files go to `.slurm` in it.
        options: What each worker requests, from `read_options`; `cluster` is `slurm` unless another of
            submitit's executors is named.
        keep: Which runs keep their models.

    Raises:
        ConfigurationError: No SLURM here, an option that it does not have, or workers that die repeatedly.
    """

    poll = 2.0

    def __init__(
        self,
        configs: Sequence[RunConfig],
        jobs: int,
        folder: Path,
        options: Settings,
        keep: str = "best",
    ) -> None:
        import submitit

        resources = {"cluster": "slurm", **options}
        try:
            self._executor = submitit.AutoExecutor(folder / LOGS, cluster=resources.pop("cluster"))
            self._executor.update_parameters(name="glue-harness", slurm_array_parallelism=jobs, **resources)
        except (RuntimeError, ValueError, TypeError, NameError, AssertionError) as error:
            reason = " ".join(str(error).split()).partition(" Known executors")[0]
            raise ConfigurationError(
                f"--launcher slurm: {reason} (run this on a machine of the cluster, with options it supports)"
            ) from None
        self._worker = Worker(tuple(configs), fair_share([available_cores()], [], jobs).cpus, keep)
        self._jobs, self._logs = jobs, folder / LOGS
        self._deaths_left = len(configs) + jobs
        self._submitted: list[Job[None]] = []

    def __enter__(self) -> SlurmArray:
        with self._executor.batch():
            self._submitted = [self._executor.submit(self._worker) for _ in range(self._jobs)]
        return self

    def __exit__(self, interrupted: object, *_: object) -> None:
        for job in self._submitted:
            if interrupted and not job.done():
                job.cancel(check=False)

    def look_after(self) -> None:
        """Submit dead workers again."""
        for number, job in enumerate(self._submitted):
            if job.done() and (error := job.exception()) is not None:
                if not self._deaths_left:
                    reason = " ".join(str(error).split())[:300]
                    raise ConfigurationError(
                        f"workers keep dying, the last one with: {reason}; see their output in {self._logs}; "
                        "the same command continues"
                    )
                self._deaths_left -= 1
                self._submitted[number] = self._executor.submit(self._worker)

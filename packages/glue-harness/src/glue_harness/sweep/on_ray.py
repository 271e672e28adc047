"""Runs as tasks of a Ray cluster."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

from glue_harness.cluster import Share, connected, use_cores
from glue_harness.config.fields import RunConfig
from glue_harness.stopping import Stopped
from glue_harness.sweep.claiming import PAUSE, attempted, done, write_error

__all__ = ["RayTasks"]

ATTEMPTS = 3
"""How often a task is restarted after its process died."""


class RayTasks:
    """One task for each run, on the running cluster, or on this machine if there is none.

    Ray reuses its processes, so that each imports only once. A run that another sweep works on is checked
    again later; a run whose process dies repeatedly has failed.

    Args:
        configs: The runs, in order.
        jobs: How many at once, each with its share of the cluster.
        keep: Which runs keep their models.
    """

    poll = PAUSE

    def __init__(self, configs: Sequence[RunConfig], jobs: int, keep: str = "best") -> None:
        self._waiting, self._jobs = deque((0.0, config) for config in configs), jobs
        self._keep = keep
        self._running: dict[Any, RunConfig] = {}
        self._session = ExitStack()

    def __enter__(self) -> RayTasks:
        import ray

        self._share = self._session.enter_context(connected(self._jobs))
        self._task = ray.remote(num_cpus=self._share.cpus, num_gpus=self._share.gpus, max_retries=ATTEMPTS)(
            _attempt
        )
        self.look_after()
        return self

    def __exit__(self, *_: object) -> None:
        import ray

        running = list(self._running)
        for task in running:
            ray.cancel(task, force=False)  # like Ctrl-C in its process: the run is saved
        if running:
            ray.wait(running, num_returns=len(running))
        self._session.close()

    def look_after(self) -> None:
        """Collect ended tasks, and start new ones where there is room."""
        import ray
        from ray.exceptions import RayError

        running = list(self._running)
        ended = ray.wait(running, num_returns=len(running), timeout=0)[0] if running else []
        for task in ended:
            config = self._running.pop(task)
            try:
                if not ray.get(task):
                    self._waiting.append((time.monotonic() + PAUSE, config))
            except RayError as error:
                reason = str(error).strip().splitlines()[-1]
                write_error(config, f"Ray gave up on this run: {reason}", str(error))
        for _ in range(len(self._waiting)):
            since, config = self._waiting.popleft()
            if done(config):
                continue
            if len(self._running) < self._jobs and since <= time.monotonic():
                self._running[self._task.remote(config, self._share, self._keep)] = config
            else:
                self._waiting.append((since, config))


def _attempt(config: RunConfig, share: Share, keep: str) -> bool:
    use_cores(share)
    try:
        return attempted(config, keep)
    except Stopped:
        return False

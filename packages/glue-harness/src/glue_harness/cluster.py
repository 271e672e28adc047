"""A Ray cluster for many runs: an existing one, or this machine."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from finetune_common.errors import ConfigurationError
from glue_harness.stopping import stop_on_signals

__all__ = ["Share", "available_cores", "connected", "fair_share", "use_cores"]

OBJECT_STORE = 2**27
"""Bytes of shared memory; runs pass configurations and scores only."""


@dataclass(frozen=True)
class Share:
    """The share of the machine for each of several runs at once.

    Attributes:
        cpus: Cores, and as many threads.
        gpus: Devices; below 1, runs share one.
    """

    cpus: int
    gpus: float


def fair_share(cpus: Sequence[float], gpus: Sequence[float], jobs: int) -> Share:
    """Divide machines among runs; each run stays on one machine.

    Args:
        cpus: Cores of each machine.
        gpus: Devices of each machine.
        jobs: Runs at a time.

    Examples:
        >>> fair_share([16, 16], [0, 0], 3)
        Share(cpus=8, gpus=0.0)
        >>> fair_share([8], [2], 4)
        Share(cpus=2, gpus=0.5)
        >>> fair_share([64], [4], 2)
        Share(cpus=32, gpus=1.0)
        >>> fair_share([2], [0], 4)
        Share(cpus=1, gpus=0.0)
    """
    most = int(max(cpus, default=1))
    fits = [size for size in range(1, most + 1) if sum(machine // size for machine in cpus) >= jobs]
    devices = int(sum(gpus))
    return Share(max(fits, default=1), 1 / -(-jobs // devices) if devices else 0.0)


def available_cores() -> int:
    """Return the cores that this process may use."""
    limit = os.environ.get("OMP_NUM_THREADS", "")
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(allowed, int(limit)) if limit.isdigit() and int(limit) else allowed


def _open(cpus: int) -> None:
    """Join the cluster of RAY_ADDRESS or of `ray start` on this machine, else start a session."""
    import ray

    quiet = {"log_to_driver": False, "logging_level": "error"}
    try:
        ray.init(num_cpus=cpus, object_store_memory=OBJECT_STORE, include_dashboard=False, **quiet)
    except ValueError:  # an existing cluster has its own size
        ray.init(**quiet)
    except Exception as error:
        if "timed out during startup" not in str(error):
            raise
        raise ConfigurationError(
            "Ray did not start within half a minute: this machine is too busy: give the same command again"
        ) from None


@contextmanager
def connected(jobs: int) -> Iterator[Share]:
    """Use an open session, else a running cluster, else start one on this machine and stop it afterwards.

    Args:
        jobs: Runs at a time.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    import ray

    starts_ray = not ray.is_initialized()
    if starts_ray:
        _open(fair_share([available_cores()], [], jobs).cpus * jobs)
    try:
        machines = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        cpus, gpus = ([machine.get(kind, 0.0) for machine in machines] for kind in ("CPU", "GPU"))
        with stop_on_signals():  # Ray has replaced the handler of SIGTERM
            yield fair_share(cpus, gpus, jobs)
    finally:
        if starts_ray:
            ray.shutdown()


def use_cores(share: Share) -> None:
    """Give this process as many threads as it has cores."""
    import torch

    torch.set_num_threads(share.cpus)

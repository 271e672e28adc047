"""The processes of one run as one object: the leader, values gathered from all, a common end.

A launcher (torchrun, accelerate launch, Ray) starts the processes and tells each its number through the
environment; accelerate joins them. Without sharding the model is replicated (DDP). With it each process keeps
a part of every parameter (`glue_harness.run.sharding`), since accelerate alone runs DDP if asked for FSDP on
a CPU.
"""

from __future__ import annotations

import gc
import os
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, TypeVar

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import (
    DistributedDataParallelKwargs,
    ProjectConfiguration,
    broadcast_object_list,
    gather_object,
    parse_flag_from_env,
    patch_environment,
    send_to_device,
)
from torch import Tensor, nn

from finetune_common.errors import ConfigurationError
from glue_harness.config.fields import RunConfig

__all__ = ["Processes", "join", "leave"]

T = TypeVar("T")

UNSUPPORTED = {
    "ACCELERATE_USE_DEEPSPEED": "DeepSpeed",
    "ACCELERATE_USE_MEGATRON_LM": "Megatron-LM",
    "ACCELERATE_USE_PARALLELISM_CONFIG": "tensor, context or sequence parallelism",
}
"""Environment variable of accelerate's launcher → its feature, which runs do not support."""


class Processes:
    """All processes of a run, seen from one of them; without a launcher there is one.

    Args:
        accelerator: The accelerator that joined them.
        sharded: Whether parameters are spread over them.

    Attributes:
        rank: The number of this process, from 0.
        world: The number of processes.
        leads: Whether this process writes and prints for all.
        device: This process's device.
        sharded: Whether parameters are spread over them.
    """

    def __init__(self, accelerator: Accelerator, sharded: bool = False) -> None:
        self.accelerator, self.sharded = accelerator, sharded
        self.rank, self.world = accelerator.process_index, accelerator.num_processes
        self.leads, self.device = accelerator.is_main_process, accelerator.device
        self._hosts = torch.distributed.new_group(backend="gloo") if self.world > 1 else None

    # Exchange of values

    def gather(self, value: T) -> list[T]:
        """Return the values of all processes, in order; every process must call it."""
        return gather_object([value]) if self.world > 1 else [value]

    def from_leader(self, value: T) -> T:
        """Return the leader's value on every process."""
        if self.world > 1:
            [value] = broadcast_object_list([value])
        return value

    def highest(self, value: int) -> int:
        """Return the largest number of all processes, without waiting for a GPU."""
        if self.world == 1:
            return value
        largest = torch.tensor(value)
        torch.distributed.all_reduce(largest, torch.distributed.ReduceOp.MAX, group=self._hosts)
        return int(largest)

    def mean(self, value: Tensor) -> float:
        """Return the mean of a number over all processes."""
        return float(self.accelerator.reduce(value, reduction="mean"))  # type: ignore[arg-type]

    def wait(self) -> None:
        """Wait until every process is here."""
        self.accelerator.wait_for_everyone()

    def seed(self, seed: int) -> int:
        """Return the seed of this process's random streams: the leader uses the run's seed."""
        if self.rank == 0:
            return seed
        return int(np.random.SeedSequence([seed, self.rank]).generate_state(1)[0])

    def leaders_first(self, make: Callable[[], T]) -> T:
        """Make something on the first process of each machine, then on the others, which find its cache."""
        made: list[T] = []
        for first in (True, False):
            with self.together():
                if self.accelerator.is_local_main_process == first:
                    made.append(make())
        return made[0]

    # A common end

    @contextmanager
    def together(self) -> Iterator[None]:
        """End a run on all processes if one of them meets an error.

        Every process enters it; the leader raises the first error, the others exit silently.

        Raises:
            ConfigurationError: A process raised one inside.
        """
        error: ConfigurationError | None = None
        try:
            yield
        except ConfigurationError as met:
            error = met
        messages = self.gather(None if error is None else str(error))
        first = next((process for process, text in enumerate(messages) if text is not None), None)
        if first is None:
            return
        if not self.leads:
            raise SystemExit(2)
        raise error or ConfigurationError(f"process {first}: {messages[first]}")

    @contextmanager
    def or_lost(self) -> Iterator[None]:
        """Say in one line that another process is gone if communication fails."""
        try:
            yield
        except RuntimeError as error:
            text = " ".join(str(error).split())
            if self.world == 1 or not (
                isinstance(error, torch.distributed.DistError) or "gloo" in text or "by peer" in text
            ):
                raise
            raise ConfigurationError(
                f"another process of this run has died or does not answer ({text[:120]}): see its output; "
                "the same command continues from the last checkpoint"
            ) from None

    # A training step

    def replicate(self, model: nn.Module, some_unused: bool) -> nn.Module:
        """Return the model for forward passes; a sharded one is returned unchanged.

        Args:
            model: Lives on `device`.
            some_unused: Whether a trained parameter may get no gradient; DDP then searches for it after each
                forward pass.
        """
        accelerator: Any = self.accelerator
        accelerator.ddp_handler = DistributedDataParallelKwargs(find_unused_parameters=some_unused)
        return self.accelerator.prepare_model(model, evaluation_mode=self.sharded)

    def scaled(self, optimizer: torch.optim.Optimizer) -> Any:
        """Return the optimizer with fp16's loss scaling around its step."""
        return self.accelerator.prepare_optimizer(optimizer)

    def alone(self, model: nn.Module, last: bool) -> AbstractContextManager[Any]:
        """Return the context of a micro-batch: gradients are exchanged after the last one of a step."""
        return nullcontext() if last else self.accelerator.no_sync(model)

    def on_device(self, batch: Any) -> Any:
        """Return a batch on the model's device; from pinned memory the copy runs in parallel."""
        return send_to_device(batch, self.device, non_blocking=True)

    def clip(self, parameters: Iterable[Tensor], max_norm: float) -> None:
        """Scale the gradients so that their norm over all processes is at most `max_norm`."""
        self.accelerator.clip_grad_norm_(list(parameters), max_norm)


def join(config: RunConfig) -> Processes:
    """Join the processes that a launcher started; without one, the process is alone.

    Args:
        config: The run.

    Raises:
        ConfigurationError: The launcher asks for an unsupported feature, or processes do not meet.
    """
    _check(config)
    AcceleratorState._reset_state()  # otherwise an earlier run's precision would remain
    launched = "LOCAL_RANK" in os.environ
    with patch_environment(ACCELERATE_USE_FSDP="false", ACCELERATE_GRADIENT_ACCUMULATION_STEPS="1"):
        accelerator = Accelerator(
            mixed_precision={"fp32": "no"}.get(config.precision, config.precision),
            cpu=config.device == "cpu" or (launched and not torch.accelerator.is_available()),
            log_with=config.tracker,
            project_config=ProjectConfiguration(logging_dir=config.output_dir),
        )
    warnings.filterwarnings("ignore", message=".*find_unused_parameters=True")  # it depends on the batch
    started = int(os.environ.get("WORLD_SIZE", 1))
    if accelerator.num_processes != started:
        raise ConfigurationError(
            f"WORLD_SIZE is {started} and this process sees {accelerator.num_processes}: start all with "
            "torchrun or accelerate launch, which also set RANK, LOCAL_RANK and MASTER_ADDR"
        )
    sharded = _is_sharded(config)
    if sharded and accelerator.num_processes == 1:
        raise ConfigurationError(
            "--sharding fsdp needs two processes or more: start the run with torchrun or accelerate launch"
        )
    return Processes(accelerator, sharded)


def _is_sharded(config: RunConfig) -> bool:
    """Return whether a run, or accelerate's launcher, asks for FSDP."""
    return config.sharding == "fsdp" or parse_flag_from_env("ACCELERATE_USE_FSDP")


def _check(config: RunConfig) -> None:
    """Refuse impossible settings before any process waits for another."""
    has_gpu = torch.cuda.is_available() and config.device != "cpu"
    if config.device == "cuda" and not has_gpu:
        raise ConfigurationError("--device cuda: torch finds no CUDA device here: leave it out, or give cpu")
    if config.precision == "fp16" and not has_gpu:
        raise ConfigurationError("--precision fp16 needs a GPU, and this run is on the CPU: use fp32 or bf16")
    for variable, what in UNSUPPORTED.items():
        if parse_flag_from_env(variable):
            raise ConfigurationError(f"accelerate launch asks for {what}: only DDP and FSDP2 are supported")
    asked = os.environ.get("ACCELERATE_MIXED_PRECISION", "no")
    if asked not in ("no", config.precision):
        raise ConfigurationError(
            f"accelerate launch asks for mixed precision {asked!r} and the run for {config.precision!r}: "
            f"give the same to --precision"
        )
    if not _is_sharded(config):
        return
    if parse_flag_from_env("ACCELERATE_USE_FSDP") and os.environ.get("FSDP_VERSION") != "2":
        raise ConfigurationError("accelerate launch asks for FSDP 1, not supported: give --fsdp_version 2")
    if parse_flag_from_env("FSDP_OFFLOAD_PARAMS"):
        raise ConfigurationError("--fsdp_offload_params: shards must stay on the device: leave it out")
    if parse_flag_from_env("FSDP_ACTIVATION_CHECKPOINTING"):
        raise ConfigurationError("--fsdp_activation_checkpointing: use --activation checkpoint instead")
    if config.precision == "fp16":
        raise ConfigurationError("--precision fp16: shards cannot share its loss scale: use bf16")


def leave() -> None:
    """Leave the process group, if there is one, at the very end of a run.

    The interpreter must still be alive: a gloo thread that drops its last tensor later aborts the process.
    """
    if torch.distributed.is_initialized():
        gc.collect()
        torch.distributed.destroy_process_group()

"""A run of several processes: joining them, ending together, and parameters spread over them (FSDP2).

A launcher (torchrun, accelerate launch, Ray) starts the processes and tells each its number through the
environment; accelerate joins them. Without sharding the model is replicated (DDP). With it each process keeps
a part of every parameter as a DTensor, through `torch.distributed.fsdp.fully_shard` on every device type:
accelerate by itself runs DDP where it is asked for FSDP on a CPU.
"""

from __future__ import annotations

import gc
import os
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
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
)
from torch import Tensor

from finetune_common.errors import ConfigurationError
from glue_harness.config import RunConfig

__all__ = [
    "by_turns",
    "from_main",
    "is_sharded",
    "join",
    "leave",
    "lost_processes",
    "own_part",
    "own_state",
    "seed_of_process",
    "shard",
    "together",
    "whole",
]

T = TypeVar("T")

NOT_HERE = {
    "ACCELERATE_USE_DEEPSPEED": "DeepSpeed",
    "ACCELERATE_USE_MEGATRON_LM": "Megatron-LM",
    "ACCELERATE_USE_PARALLELISM_CONFIG": "tensor, context or sequence parallelism",
}
"""Environment variable of accelerate's launcher → what it asks for, which a run does not have."""


def is_sharded(config: RunConfig) -> bool:
    """Return whether a run, or accelerate's launcher, asks for FSDP."""
    return config.sharding == "fsdp" or parse_flag_from_env("ACCELERATE_USE_FSDP")


def join(config: RunConfig) -> Accelerator:
    """Join the processes that a launcher started; a process that nobody launched is alone.

    Args:
        config: The run.

    Raises:
        ConfigurationError: The launcher asks for what a run does not have, or processes do not meet.
    """
    _check(config)
    AcceleratorState._reset_state()  # the precision of an earlier run in this process would stay
    launched = "LOCAL_RANK" in os.environ
    with patch_environment(ACCELERATE_USE_FSDP="false", ACCELERATE_GRADIENT_ACCUMULATION_STEPS="1"):
        accelerator = Accelerator(
            mixed_precision={"fp32": "no"}.get(config.precision, config.precision),
            cpu=launched and not torch.accelerator.is_available(),
            log_with=config.tracker,
            project_config=ProjectConfiguration(logging_dir=config.output_dir),
            kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=True)],
        )
    warnings.filterwarnings("ignore", message=".*find_unused_parameters=True")  # most models have none
    started = int(os.environ.get("WORLD_SIZE", 1))
    if accelerator.num_processes != started:
        raise ConfigurationError(
            f"WORLD_SIZE is {started} and this process sees {accelerator.num_processes}: start all with "
            "torchrun or accelerate launch, which also set RANK, LOCAL_RANK and MASTER_ADDR"
        )
    if is_sharded(config) and accelerator.num_processes == 1:
        raise ConfigurationError(
            "--sharding fsdp needs two processes or more: start the run with torchrun or accelerate launch"
        )
    return accelerator


def _check(config: RunConfig) -> None:
    """Refuse what cannot work, before any process waits for another one."""
    if config.precision == "fp16" and not torch.cuda.is_available():
        raise ConfigurationError("--precision fp16 needs a GPU, and this run is on the CPU: use fp32 or bf16")
    for variable, what in NOT_HERE.items():
        if parse_flag_from_env(variable):
            raise ConfigurationError(f"accelerate launch asks for {what}: a run has DDP and FSDP2 only")
    asked = os.environ.get("ACCELERATE_MIXED_PRECISION", "no")
    if asked not in ("no", config.precision):
        raise ConfigurationError(
            f"accelerate launch asks for mixed precision {asked!r} and the run for {config.precision!r}: "
            f"give the same to --precision"
        )
    if not is_sharded(config):
        return
    if parse_flag_from_env("ACCELERATE_USE_FSDP") and os.environ.get("FSDP_VERSION") != "2":
        raise ConfigurationError("accelerate launch asks for FSDP 1, a run shards by FSDP2: --fsdp_version 2")
    if parse_flag_from_env("FSDP_OFFLOAD_PARAMS"):
        raise ConfigurationError("--fsdp_offload_params: a run keeps its shards on the device; leave it out")
    if parse_flag_from_env("FSDP_ACTIVATION_CHECKPOINTING"):
        raise ConfigurationError("--fsdp_activation_checkpointing: use the run's own --activation checkpoint")
    if config.precision == "fp16":
        raise ConfigurationError("--precision fp16 has a loss scale, which shards do not share: use bf16")


def leave() -> None:
    """Part from the other processes, if there are any, as the last thing that a process does with a run.

    The interpreter is still whole then: a thread of gloo that drops its last tensor later aborts the process.
    """
    if torch.distributed.is_initialized():
        gc.collect()
        torch.distributed.destroy_process_group()


@contextmanager
def together(accelerator: Accelerator) -> Iterator[None]:
    """End a run on all processes where one of them meets what cannot be used.

    Every process passes through; the main one raises the first error, the others leave without a word.

    Raises:
        ConfigurationError: Some process raised one within.
    """
    error: ConfigurationError | None = None
    try:
        yield
    except ConfigurationError as met:
        error = met
    if accelerator.num_processes > 1:
        said = gather_object([None if error is None else str(error)])
        first = next((process for process, text in enumerate(said) if text is not None), None)
        if first is None:
            return
        if not accelerator.is_main_process:
            raise SystemExit(2)
        error = error or ConfigurationError(f"process {first}: {said[first]}")
    if error is not None:
        raise error


@contextmanager
def lost_processes(accelerator: Accelerator) -> Iterator[None]:
    """Say in one line that another process is gone, where communication with it fails."""
    try:
        yield
    except RuntimeError as error:
        text = " ".join(str(error).split())
        if accelerator.num_processes == 1 or not (
            isinstance(error, torch.distributed.DistError) or "gloo" in text or "by peer" in text
        ):
            raise
        raise ConfigurationError(
            f"another process of this run is gone or does not answer ({text[:120]}): see what it said; the "
            "same command continues from the last checkpoint"
        ) from None


def from_main(accelerator: Accelerator, value: T) -> T:
    """Return the main process's value on every process."""
    if accelerator.num_processes > 1:
        [value] = broadcast_object_list([value])
    return value


def by_turns(accelerator: Accelerator, make: Callable[[], T]) -> T:
    """Make something on the first process of each machine, then on the others, which find what it cached."""
    made: list[T] = []
    for first in (True, False):
        with together(accelerator):
            if accelerator.is_local_main_process == first:
                made.append(make())
    return made[0]


def seed_of_process(seed: int, process: int) -> int:
    """Return the seed of a process's own random streams: the run's for the main one."""
    return seed if process == 0 else int(np.random.SeedSequence([seed, process]).generate_state(1)[0])


def shard(model: torch.nn.Module, accelerator: Accelerator) -> None:
    """Spread the parameters of a model over all processes, block by block (FSDP2).

    Blocks are the classes that the model names in `_no_split_modules`, or the launcher in
    `--fsdp_transformer_layer_cls_to_wrap`.

    Args:
        model: The adapted model, the same on every process; its parameters become DTensors.
        accelerator: Its processes.

    Raises:
        ConfigurationError: A parameter that cannot be split.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    if scalars := [name for name, parameter in model.named_parameters() if parameter.ndim == 0]:
        raise ConfigurationError(
            f"--sharding fsdp: parameter {scalars[0]} has no dimension to split: give it the shape (1,), or "
            "use --sharding none"
        )
    mesh = init_device_mesh(accelerator.device.type, (accelerator.num_processes,))
    keeps = os.environ.get("FSDP_RESHARD_AFTER_FORWARD", "true").lower() in ("false", "shard_grad_op")
    named = os.environ.get("FSDP_TRANSFORMER_CLS_TO_WRAP", "")
    blocks = set(named.split(",") if named else getattr(model, "_no_split_modules", None) or ())
    for module in [module for module in model.modules() if type(module).__name__ in blocks]:
        fully_shard(module, mesh=mesh, reshard_after_forward=not keeps)
    fully_shard(model, mesh=mesh, reshard_after_forward=not keeps)


def whole(tree: Any) -> Any:
    """Return nested state with whole tensors, on the CPU, for spread ones; every process has to call it."""
    if hasattr(tree, "full_tensor"):
        return tree.full_tensor().cpu()
    if isinstance(tree, Mapping):
        return {key: whole(value) for key, value in tree.items()}
    if isinstance(tree, (list, tuple)):
        return type(tree)(map(whole, tree))
    return tree


def own_part(tensor: Tensor, like: Tensor) -> Tensor:
    """Return a whole tensor spread like a parameter; as it is where the parameter is not spread."""
    if not hasattr(like, "placements"):
        return tensor
    from torch.distributed.tensor import distribute_tensor

    spread: Any = like
    return distribute_tensor(
        tensor.to(like.device), spread.device_mesh, spread.placements, src_data_rank=None
    )


def own_state(state: Mapping[str, Any], parameters: Iterable[Tensor]) -> dict[str, Any]:
    """Return an optimizer's whole state with this process's part of what belongs to spread parameters.

    Args:
        state: What `whole(optimizer.state_dict())` gave.
        parameters: The optimizer's, over all groups.
    """
    own = dict(state["state"])
    for index, parameter in enumerate(parameters):
        own[index] = {
            name: own_part(value, parameter) if _shaped_like(value, parameter) else value
            for name, value in own.get(index, {}).items()
        }
    return {**state, "state": {key: value for key, value in own.items() if value}}


def _shaped_like(value: Any, parameter: Tensor) -> bool:
    return isinstance(value, Tensor) and value.shape == parameter.shape and value.ndim > 0

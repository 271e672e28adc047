"""Checkpoints from which a run continues to the same numbers.

A checkpoint is a folder `step-<N>`, renamed into place once all its files are on disk, so that it is always
whole. Its `digests.json` has the files' digests, to detect errors of a disk. During a run, the newest two
checkpoints are kept.
"""

from __future__ import annotations

import pickle
import random
import re
import shutil
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file, save_model
from torch import Tensor

from finetune_common.aliases import StateDict, is_sharded
from finetune_common.errors import ConfigurationError
from glue_harness.files import atomic
from glue_harness.run.digests import damage, digest_of, write_digests
from glue_harness.run.sharding import gathered, part_here
from glue_harness.run.state import read_state, write_state

__all__ = [
    "adopt",
    "best_weights",
    "drop_state",
    "latest",
    "load",
    "load_weights",
    "name_of",
    "processes_of",
    "random_states",
    "restore_random_states",
    "save",
    "save_best",
    "sound",
    "step_of",
    "tidy",
    "whole_weights",
]

WEIGHTS, STATE = "model.safetensors", "state.pt"


def random_states() -> StateDict:
    """Return the states of Python's, NumPy's and torch's generators as plain data and tensors."""
    kind, keys, *rest = np.random.get_state()
    return {
        "python": random.getstate(),
        "numpy": [kind, torch.from_numpy(np.asarray(keys).astype(np.int64)), *rest],
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }


def restore_random_states(states: StateDict) -> None:
    """Set all generators to an earlier `random_states()`."""
    random.setstate(states["python"])
    kind, keys, *rest = states["numpy"]
    np.random.set_state((kind, keys.numpy().astype(np.uint32), *rest))
    torch.set_rng_state(states["torch"])
    if states["cuda"]:
        torch.cuda.set_rng_state_all(states["cuda"])


def _steps(folder: Path, kind: str = "step") -> dict[int, Path]:
    matches = {path: re.fullmatch(rf"{kind}-(\d+)", path.name) for path in folder.glob(f"{kind}-*")}
    return {int(match[1]): path for path, match in matches.items() if match}


def name_of(step: int) -> str:
    """Return the name of a step's checkpoint."""
    return f"step-{step}"


def step_of(checkpoint: Path) -> int:
    """Return the number of a checkpoint's optimizer steps."""
    return int(checkpoint.name.rpartition("-")[2])


def latest(folder: Path) -> Path | None:
    """Return the newest whole checkpoint in a folder, or None."""
    steps = _steps(folder)
    return steps[max(steps)] if steps else None


def sound(folder: Path, *names: str) -> Path | None:
    """Return the newest undamaged checkpoint in a folder, or None.

    Args:
        folder: The run's `checkpoint/`.
        names: The files to check; by default all.

    Raises:
        ConfigurationError: All checkpoints are damaged; names a file of the newest one.

    Warns:
        UserWarning: A newer one is damaged.
    """
    damaged: list[str] = []
    for _, candidate in sorted(_steps(folder).items(), reverse=True):
        if not (reason := damage(candidate, names or (WEIGHTS, STATE))):
            if damaged:
                warnings.warn(f"{damaged[0]}; the one before it, {candidate.name}, is used", stacklevel=2)
            return candidate
        damaged.append(str(_damaged(candidate, reason)))
    if damaged:
        raise ConfigurationError(damaged[0])
    return None


def tidy(folder: Path, step: int, keep: int = 1) -> None:
    """Remove all but the newest checkpoints up to a step and the best weights of each of them.

    Args:
        folder: The run's `checkpoint/`.
        step: The newest one.
        keep: How many stay.
    """
    steps = sorted(number for number in _steps(folder) if number <= step)[-keep:]
    bests = [[best for best in _steps(folder, "best") if best <= number] for number in steps]
    names = {name_of(number) for number in steps} | {f"best-{max(known)}" for known in bests if known}
    for old in list(folder.glob("*")):
        if old.name not in names:
            shutil.rmtree(old, ignore_errors=True)


def drop_state(folder: Path) -> None:
    """Remove what is only needed to continue: optimizer, schedule, random states. The weights stay."""
    for checkpoint in _steps(folder).values():
        (checkpoint / STATE).unlink(missing_ok=True)


def _named(model: torch.nn.Module) -> dict[str, Tensor]:
    """Return the parameters and buffers to keep, by name; tied ones by their first name in order."""
    names: dict[int, str] = {}
    tensors = model.state_dict(keep_vars=True)
    for name in sorted(tensors):
        names.setdefault(id(tensors[name]), name)
    return {name: tensors[name] for name in names.values()}


def whole_weights(model: torch.nn.Module) -> dict[str, Tensor]:
    """Return the whole weights of a model with sharded parameters; all processes must call it."""
    return {name: gathered(tensor.detach()) for name, tensor in _named(model).items()}


Weights = torch.nn.Module | Mapping[str, Tensor]
"""A model, or its weights by name."""


def _write(folder: Path, weights: Weights, state: StateDict | None = None) -> None:
    """Write a folder that appears whole or not at all."""
    with atomic(folder) as unfinished:
        unfinished.mkdir()
        if isinstance(weights, torch.nn.Module):
            save_model(weights, str(unfinished / WEIGHTS))
        else:
            save_file(dict(weights), unfinished / WEIGHTS, metadata={"format": "pt"})
        if state is not None:
            write_state(state, unfinished / STATE)
        write_digests(unfinished)


def save(folder: Path, step: int, weights: Weights, state: StateDict) -> None:
    """Save a checkpoint and remove all but it and the one before.

    Args:
        folder: The run's `checkpoint/`.
        step: Optimizer steps done.
        weights: To `model.safetensors`.
        state: Everything else: tensors and plain data, to `state.pt`.

    Raises:
        ConfigurationError: The state of a part could not be loaded again.
    """
    _write(folder / name_of(step), weights, state)
    tidy(folder, step, keep=2)


def _best(folder: Path, step: int) -> Path:
    return folder / f"best-{step}"


def save_best(folder: Path, step: int, weights: Weights) -> None:
    """Keep the weights of the best step so far, until `save` drops them for better ones."""
    _write(_best(folder, step), weights)


def best_weights(folder: Path, step: int) -> Path | None:
    """Return the folder of the weights from `save_best`, or None."""
    best = _best(folder, step)
    if not (best / WEIGHTS).exists():
        return None
    if reason := damage(best, [WEIGHTS]):
        raise _damaged(best, reason)
    return best


def adopt(best: Path) -> None:
    """Replace the newest checkpoint's weights by the best ones."""
    if (newest := latest(best.parent)) is not None:
        write_digests(newest, {WEIGHTS: digest_of(best / WEIGHTS)})  # valid before and after the next line
        (best / WEIGHTS).replace(newest / WEIGHTS)
        for old in _steps(best.parent, "best").values():
            shutil.rmtree(old)


def _damaged(checkpoint: Path, reason: str) -> ConfigurationError:
    return ConfigurationError(
        f"{checkpoint}: this checkpoint is damaged ({reason}): remove it or start anew with --overwrite"
    )


@contextmanager
def _readable(checkpoint: Path) -> Iterator[None]:
    try:
        yield
    except (SafetensorError, RuntimeError, OSError, EOFError, ValueError, KeyError) as error:
        raise _damaged(checkpoint, " ".join(str(error).split())[:200]) from None
    except pickle.PickleError:
        raise _damaged(checkpoint, f"{STATE} is not a file of tensors and plain data") from None


def load(
    checkpoint: Path, model: torch.nn.Module, device: torch.device, expected: Iterable[str] = ()
) -> StateDict:
    """Load the weights into a model and return the rest of a checkpoint.

    Args:
        checkpoint: The folder, from `latest`.
        model: Receives the weights; if sharded, this process's parts.
        device: Its device.
        expected: Keys that the rest must have.

    Raises:
        ConfigurationError: A file is damaged or does not fit the model.
    """
    load_weights(checkpoint, model, device)
    with _readable(checkpoint):
        state = read_state(checkpoint / STATE)
    if missing := {"step", "random", *expected} - state.keys():
        raise _damaged(checkpoint, f"{STATE} has no {', '.join(sorted(missing))}")
    return state


def load_weights(checkpoint: Path, model: torch.nn.Module, device: torch.device) -> None:
    """Load the weights of a checkpoint, or the best ones, into a model.

    Raises:
        ConfigurationError: The file is damaged or does not fit the model.
    """
    file = checkpoint / WEIGHTS
    with _readable(checkpoint):
        if any(map(is_sharded, model.parameters())):
            _load_parts(file, model)
        else:
            _load_whole(file, model, "cpu" if device.type == "cpu" else str(device))


def processes_of(checkpoint: Path) -> int:
    """Return the number of processes with which a checkpoint's run began.

    Raises:
        ConfigurationError: The file is damaged.
    """
    with _readable(checkpoint):
        return read_state(checkpoint / STATE, mmap=True).get("processes", 1)


def _load_whole(file: Path, model: torch.nn.Module, device: str) -> None:
    tensors, current = load_file(file, device=device), model.state_dict(keep_vars=True)
    used = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    used |= {name for name, _ in model.named_buffers(remove_duplicate=False)}
    # Quantised layers write the scales of their frozen weights, but read them only with the base model.
    unused = current.keys() - used
    beside = {n for n in unused if n in tensors and torch.equal(tensors[n], current[n].to(device))}
    weights = {name: tensor for name, tensor in tensors.items() if name not in beside}
    missing, unexpected = model.load_state_dict(weights, strict=False)
    loaded = {id(current[name]) for name in weights if name in current}
    if wrong := unexpected + [name for name in missing if id(current[name]) not in loaded]:
        raise KeyError(f"{wrong[0]} is on one side only")


@torch.no_grad()
def _load_parts(file: Path, model: torch.nn.Module) -> None:
    weights, current = load_file(file), _named(model)
    if differs := sorted(weights.keys() ^ current.keys()):
        raise KeyError(f"{differs[0]} is on one side only")
    for name, tensor in current.items():
        tensor.copy_(part_here(weights[name], tensor))

"""Checkpoints from which a run continues to the same numbers.

A checkpoint is a folder `step-<N>` that is renamed into place once all its files are on disk: what carries
that name is whole. The newest one is used, older ones are removed.
"""

from __future__ import annotations

import os
import random
import re
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_model, save_model

from finetune_common.errors import ConfigurationError

__all__ = ["latest", "load", "random_states", "restore_random_states", "save"]


def random_states() -> dict[str, Any]:
    """Return the states of Python's, NumPy's and torch's generators as plain data and tensors."""
    kind, keys, *rest = np.random.get_state()
    return {
        "python": random.getstate(),
        "numpy": [kind, torch.from_numpy(np.asarray(keys).astype(np.int64)), *rest],
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }


def restore_random_states(states: Mapping[str, Any]) -> None:
    """Set all generators to `random_states()` of an earlier moment."""
    random.setstate(states["python"])
    kind, keys, *rest = states["numpy"]
    np.random.set_state((kind, keys.numpy().astype(np.uint32), *rest))
    torch.set_rng_state(states["torch"])
    if states["cuda"]:
        torch.cuda.set_rng_state_all(states["cuda"])


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _steps(folder: Path) -> dict[int, Path]:
    found = {path: re.fullmatch(r"step-(\d+)", path.name) for path in folder.glob("step-*")}
    return {int(match[1]): path for path, match in found.items() if match}


def latest(folder: Path) -> Path | None:
    """Return the newest whole checkpoint in a folder, or None."""
    steps = _steps(folder)
    return steps[max(steps)] if steps else None


def save(folder: Path, step: int, model: torch.nn.Module, state: Mapping[str, Any]) -> None:
    """Save a checkpoint and remove what it replaces.

    Args:
        folder: The run's `checkpoint/`.
        step: Optimizer steps done.
        model: Its weights go to `model.safetensors`.
        state: Everything else: tensors and plain data, to `state.pt`.
    """
    target, unfinished = folder / f"step-{step}", folder / f".step-{step}"
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    save_model(model, str(unfinished / "model.safetensors"))
    torch.save(dict(state), unfinished / "state.pt")
    for file in (*unfinished.iterdir(), unfinished):
        _sync(file)
    if not target.exists():
        unfinished.rename(target)
        _sync(folder)
    for old in folder.iterdir():
        if old != target:
            shutil.rmtree(old)


def _damaged(checkpoint: Path, reason: str) -> ConfigurationError:
    return ConfigurationError(
        f"{checkpoint}: this checkpoint is damaged ({reason}): remove it or start anew with --overwrite"
    )


def load(
    checkpoint: Path, model: torch.nn.Module, device: torch.device, expected: Iterable[str] = ()
) -> dict[str, Any]:
    """Load the weights into a model and return the rest of a checkpoint.

    Args:
        checkpoint: The folder, from `latest`.
        model: Receives the weights.
        device: Where it lives.
        expected: Keys that the rest must have.

    Raises:
        ConfigurationError: A file is damaged or does not fit the model.
    """
    try:
        load_model(model, checkpoint / "model.safetensors", device=str(device))
        state = torch.load(checkpoint / "state.pt", map_location="cpu", weights_only=True)
    except (SafetensorError, RuntimeError, OSError, EOFError, ValueError, KeyError) as error:
        raise _damaged(checkpoint, " ".join(str(error).split())[:200]) from None
    except Exception as error:  # the unpickler's own error types are not public
        if "pickle" not in type(error).__module__.lower():
            raise
        raise _damaged(checkpoint, "state.pt") from None
    if missing := {"step", "random", *expected} - state.keys():
        raise _damaged(checkpoint, f"state.pt has no {', '.join(sorted(missing))}")
    return state

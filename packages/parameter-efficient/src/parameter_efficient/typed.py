"""Functions that torch and its companions leave without types, with their types."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn

__all__ = ["children_of", "forked_random_numbers", "load_tensors", "named_modules", "save_tensors"]


def named_modules(module: nn.Module, *, every_name: bool = False) -> Iterator[tuple[str, nn.Module]]:
    """Yield the names of a module and of all modules in it, and the modules; its own name is empty.

    Args:
        module: The module.
        every_name: Whether a module that is in several places comes with each of its names, or once.
    """
    yield from module.named_modules(remove_duplicate=not every_name)  # pyright: ignore


def children_of(module: nn.Module) -> dict[str, nn.Module | None]:
    """Return the dictionary in which a module keeps its children, also those that are None."""
    return module._modules  # pyright: ignore[reportPrivateUsage]


@contextmanager
def forked_random_numbers(devices: Iterable[torch.device] = ()) -> Generator[None, None, None]:
    """Restore the random state of the CPU, and of some devices, after the block."""
    with torch.random.fork_rng(list(devices)):  # pyright: ignore[reportUnknownMemberType]
        yield


def save_tensors(tensors: dict[str, Tensor], path: Path) -> None:
    """Write tensors into a file of safetensors."""
    from safetensors.torch import save_file  # pyright: ignore[reportUnknownVariableType]

    save_file({name: tensor.detach().contiguous() for name, tensor in tensors.items()}, path)


def load_tensors(path: Path) -> dict[str, Tensor]:
    """Read tensors from a file of safetensors."""
    from safetensors.torch import load_file  # pyright: ignore[reportUnknownVariableType]

    return load_file(path)

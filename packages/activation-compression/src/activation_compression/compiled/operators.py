"""The operations with which a compiled graph packs and unpacks, opaque to the compiler.

So the quantiser is compiled once for all graphs, and draws new random numbers in every call. A graph names
its state by a text, so that a graph from torch's cache finds the state of its process.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from fnmatch import fnmatchcase

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef

from activation_compression.draws import Draws
from activation_compression.flags import FLAG_GROUP
from activation_compression.grouping import Columns, Grouping, Neighbours
from activation_compression.quantizer import Codes, Flags, pack_flags
from activation_compression.rules import WORDS
from activation_compression.statistics import SavedTensor
from finetune_common.errors import ConfigurationError, did_you_mean

__all__ = ["OPERATIONS", "STATES", "State"]


class State:
    """The common state of the graphs of one `compile_options`.

    Args:
        seed: Seed of the rounding.
        named: "exclude" → patterns of "module:operation"; "widths" → "module:operation:number".

    Attributes:
        draws: The keys of the rounding.
    """

    def __init__(self, seed: int, named: Mapping[str, Iterable[str]]) -> None:
        self.draws = Draws(seed)
        self._kept: list[tuple[StorageWeakRef, SavedTensor]] = []  # what waits for backward, and its row
        self._unseen = {(setting, name) for setting, names in named.items() for name in names}
        self._names: set[str] = set()

    def note(
        self,
        name: str,
        tensor: Tensor,
        kept: Tensor,
        dtype: str,
        bits: int,
        before: int,
        after: int,
        source: str,
    ) -> None:
        """Write the row of a tensor.

        Args:
            name: "module:operation:number".
            tensor: The tensor.
            kept: What waits for backward in its place. A row whose own is gone is of a pass that has ended;
                of one graph that several layers share, all rows count.
            dtype: Its dtype.
            bits: Bits of an element that is kept.
            before: Bytes of the tensor.
            after: Bytes of what is kept.
            source: How it is computed again, if it is.
        """
        if any(_is_gone(ref) for ref, _ in (*self._kept[:1], *self._kept[-1:])):
            self.check_names()
            self._kept = [(ref, row) for ref, row in self._kept if not _is_gone(ref)]
        if self._unseen:
            self._names.add(name)
        module, operation, _ = name.rsplit(":", 2)
        row = SavedTensor(module, operation, tuple(tensor.shape), dtype, bits, before, after, source)
        self._kept.append((StorageWeakRef(kept.untyped_storage()), row))

    @property
    def rows(self) -> list[SavedTensor]:
        """The rows of the newest forward pass, and of earlier ones that still wait for backward."""
        return [row for _, row in self._kept]

    def check_names(self) -> None:
        """Refuse names of settings that a whole forward pass did not have.

        Raises:
            ConfigurationError: Names the first, and the closest names of tensors.
        """
        if not self._kept:
            return
        for setting, name in sorted(self._unseen):
            places = (
                self._names if setting == "widths" else {known.rpartition(":")[0] for known in self._names}
            )
            if not any(fnmatchcase(place, name) for place in places):
                close = did_you_mean(name, sorted(places))
                raise ConfigurationError(f"{setting}: {name!r} matches no tensor that crosses: {close}")
        self._unseen.clear()


def _is_gone(kept: StorageWeakRef) -> bool:
    return kept.expired()  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType]  # torch has no type


STATES: dict[str, State] = {}
"""Name → state. Compiled code outlives the object that asked for it, so entries stay."""


def _grouping(groups: str, size: int, columns: int) -> Grouping:
    return Columns(size, columns) if groups == "columns" else Neighbours(size, rotated=groups == "rotated")


def _words(groups: str, bits: int) -> torch.dtype:
    """Return the integers in which codes cross: the columns' words, which a graph can read."""
    return WORDS[bits] if groups == "columns" else torch.uint8


def _run(x: Tensor, order: Sequence[int]) -> Tensor:
    """Return a tensor's elements in the order of memory."""
    return x.permute(list(order)).reshape(-1)


def _type(x: Tensor) -> str:
    return str(x.dtype).removeprefix("torch.")


def _encode(
    x: Tensor,
    order: Sequence[int],
    bits: int,
    groups: str,
    size: int,
    columns: int,
    state: str,
    name: str,
) -> tuple[Tensor, Tensor, Tensor]:
    shared = STATES[state]
    keys = shared.draws.next(x, name)
    codes = Codes.pack(_run(x, order), bits, _grouping(groups, size, columns), keys)
    shared.note(name, x, codes.codes, _type(x), bits, x.nbytes, codes.nbytes, "")
    return codes.codes.view(_words(groups, bits)), codes.low, codes.step


def _encode_fake(
    x: Tensor,
    order: Sequence[int],
    bits: int,
    groups: str,
    size: int,
    columns: int,
    state: str,
    name: str,
) -> tuple[Tensor, Tensor, Tensor]:
    taken, number = _grouping(groups, size, columns).lengths(x.numel(), bits)
    words = _words(groups, bits)
    codes = x.new_empty(taken // words.itemsize, dtype=words)
    return codes, x.new_empty(number, dtype=torch.bfloat16), x.new_empty(number, dtype=torch.bfloat16)


def _decode(
    codes: Tensor,
    low: Tensor,
    step: Tensor,
    bits: int,
    groups: str,
    size: int,
    columns: int,
    sizes: Sequence[int],
    dtype: torch.dtype,
) -> Tensor:
    packed, grouping = (codes.view(torch.uint8), low, step), _grouping(groups, size, columns)
    return Codes(*packed, bits, grouping, math.prod(sizes), dtype).unpack().view(list(sizes))


def _decode_fake(
    codes: Tensor,
    low: Tensor,
    step: Tensor,
    bits: int,
    groups: str,
    size: int,
    columns: int,
    sizes: Sequence[int],
    dtype: torch.dtype,
) -> Tensor:
    return codes.new_empty(list(sizes), dtype=dtype)


def _flags(x: Tensor, order: Sequence[int], state: str, name: str) -> Tensor:
    flags = pack_flags(_run(x, order))
    assert flags is not None
    STATES[state].note(name, x, flags.codes, "bool", 1, x.nbytes, flags.codes.nbytes, "")
    return flags.codes


def _flags_fake(x: Tensor, order: Sequence[int], state: str, name: str) -> Tensor:
    groups = (x.numel() + FLAG_GROUP - 1) // FLAG_GROUP
    return x.new_empty(groups * (FLAG_GROUP // 8), dtype=torch.uint8)


def _unflags(codes: Tensor, sizes: Sequence[int]) -> Tensor:
    low, high = codes.new_zeros((), dtype=torch.bool), codes.new_ones((), dtype=torch.bool)
    return Flags(codes, low, high, math.prod(sizes)).unpack().view(list(sizes))


def _unflags_fake(codes: Tensor, sizes: Sequence[int]) -> Tensor:
    return codes.new_empty(list(sizes), dtype=torch.bool)


def _account(others: Sequence[Tensor], state: str, facts: str) -> Tensor:
    """Write the rows of unpacked tensors; returns an empty tensor, which crosses."""
    empty = others[0].new_empty(0, dtype=torch.uint8)
    for tensor, (name, dtype, source, elements) in zip(others, json.loads(facts), strict=True):
        before = (elements or tensor.numel()) * getattr(torch, dtype).itemsize
        after = 0 if source else tensor.nbytes
        bits = 0 if source else 8 * tensor.element_size()
        STATES[state].note(name, tensor, empty, dtype, bits, before, after, source)
    return empty


def _account_fake(others: Sequence[Tensor], state: str, facts: str) -> Tensor:
    return others[0].new_empty(0, dtype=torch.uint8)


_LIBRARY = torch.library.Library("activation_compression", "DEF")
_TAGS = [tag for tag in (getattr(torch.Tag, "cudagraph_unsafe", None),) if tag is not None]
"""A replayed CUDA graph would round with the same numbers every time."""
_DEFINED: dict[str, tuple[str, Callable[..., object], Callable[..., object]]] = {
    "encode": (
        "(Tensor x, int[] order, int bits, str groups, int size, SymInt columns, str state, str name)"
        " -> (Tensor, Tensor, Tensor)",
        _encode,
        _encode_fake,
    ),
    "decode": (
        "(Tensor codes, Tensor low, Tensor step, int bits, str groups, int size, SymInt columns,"
        " SymInt[] sizes, ScalarType dtype) -> Tensor",
        _decode,
        _decode_fake,
    ),
    "flags": ("(Tensor x, int[] order, str state, str name) -> Tensor", _flags, _flags_fake),
    "unflags": ("(Tensor codes, SymInt[] sizes) -> Tensor", _unflags, _unflags_fake),
    "account": ("(Tensor[] others, str state, str facts) -> Tensor", _account, _account_fake),
}
for _name, (_schema, _real, _fake) in _DEFINED.items():
    # torch declares few types of these
    _LIBRARY.define(_name + _schema, tags=_TAGS)  # pyright: ignore[reportUnknownMemberType]
    _LIBRARY.impl(_name, _real, "CompositeExplicitAutograd")  # pyright: ignore[reportUnknownMemberType]
    torch.library.register_fake(  # pyright: ignore[reportUnknownMemberType]
        f"activation_compression::{_name}", _fake, lib=_LIBRARY
    )

OPERATIONS = torch.ops.activation_compression
"""`encode`, `decode`, `flags`, `unflags`, `account`."""

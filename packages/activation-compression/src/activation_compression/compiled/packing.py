"""Pack the tensors that cross from a forward graph to its backward graph."""

from __future__ import annotations

import json
import operator
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, fx

from activation_compression.compiled.attention import attend_again
from activation_compression.compiled.calls import packet
from activation_compression.compiled.crossing import Crossing, Size, just_in_time, make, returned_by
from activation_compression.compiled.following import Following
from activation_compression.compiled.groups import grouping_of
from activation_compression.compiled.made_again import make_again
from activation_compression.compiled.naming import place_of
from activation_compression.compiled.operators import OPERATIONS
from activation_compression.compiled.picked import keep_picked
from activation_compression.compiled.readings import Reader, Verdict, strictest
from activation_compression.compiled.settings import Settings
from activation_compression.compiled.tensors import (
    copied,
    dtype_of,
    erase,
    hint_of,
    is_further_result,
    is_of_parameter,
    memory_of,
    order_of,
    root_of,
    trained,
)
from activation_compression.compiled.written_out import decoding, write_out
from activation_compression.grouping import Columns
from activation_compression.quantizer import FLOATING

__all__ = ["pack"]


def pack(forward: fx.GraphModule, backward: fx.GraphModule, outputs: int, settings: Settings) -> None:
    """Change two graphs in place, so that few bits cross.

    Args:
        forward: From the partitioner.
        backward: From the partitioner.
        outputs: How many of the forward graph's outputs are the user's.
        settings: What to do.
    """
    Packing(Crossing(forward, backward, outputs), settings).run()
    for module in (forward, backward):
        module.graph.lint()
        module.recompile()


Account = tuple[fx.Node, tuple[str, str, str, int]]
"""A tensor; its name, its dtype, its source if it is recomputed, its elements if not all of them cross."""


@dataclass
class Member:
    """A tensor that crosses: backward's input, forward's output, and how it may be stored."""

    given: fx.Node
    made: fx.Node
    verdict: Verdict


class Packing:
    """One pair of graphs."""

    def __init__(self, crossing: Crossing, settings: Settings) -> None:
        self._crossing, self._settings = crossing, settings
        self._numbers: Counter[str] = Counter()
        self._accounts: list[Account] = []
        self._trained = trained(crossing)
        self._picked: dict[fx.Node, fx.Node] = {}
        visible = returned_by(crossing.forward)[: crossing.outputs]
        self._visible = {memory_of(node) for node in visible if isinstance(node, fx.Node)}

    def run(self) -> None:
        """Pack all tensors that cross."""
        crossing, settings = self._crossing, self._settings
        make_again(crossing, settings.min_elements, settings.derive)
        if settings.level.rounds:
            for made, again in attend_again(crossing).items():
                entry = self._name(made), dtype_of(made), packet(again.target).strip("_"), 0
                self._tell([(made, entry)], after=made)
        gradients = Reader(crossing.backward).gradients
        self._picked = keep_picked(crossing, gradients, self._is_there)
        reader = Reader(crossing.backward)
        self._following = Following(crossing, self._trained)
        groups: dict[fx.Node, list[Member]] = {}
        for given, made in crossing.tensors():
            if made.target is OPERATIONS.account.default:
                continue
            verdict = self._verdict(reader, given, made)
            groups.setdefault(root_of(made), []).append(Member(given, made, verdict))
        for members in groups.values():
            if all(member.verdict.kind != "exact" for member in members):
                self._compare_ahead(members)  # all comparisons first, while their operands are exact
        for members in groups.values():
            if members:
                self._pack(members)
        self._close()
        crossing.finish()
        just_in_time(crossing.backward, Reader(crossing.backward).gradients)

    def _is_there(self, made: fx.Node) -> bool:
        """Return whether a tensor is in memory anyway: an input, of a parameter, or given to the user."""
        memory = memory_of(made)
        return memory.op == "placeholder" or memory in self._visible or is_of_parameter(made)

    def _verdict(self, reader: Reader, given: fx.Node, made: fx.Node) -> Verdict:
        value, exact = made.meta["val"], Verdict("exact")
        few = hint_of(value.numel()) < self._settings.min_elements or made in self._picked
        if few or self._is_there(made):
            return exact
        if value.dtype == torch.bool:
            return Verdict("flags")
        if made not in self._trained or value.dtype not in FLOATING or not self._settings.level.rounds:
            return exact
        if is_further_result(made):
            return exact  # a statistic: log-sum-exp, mean
        if value.ndim and isinstance(value.shape[-1], int) and value.shape[-1] == 1:
            return exact
        return reader.verdict(given, self._following.may_be_singular)

    def _pack(self, members: list[Member]) -> None:
        """Pack a tensor with all views of it that cross."""
        made, kinds = members[0].made, {member.verdict.kind for member in members}
        name = self._name(self._picked.get(made, made))
        if "exact" in kinds or self._settings.excludes(name):
            self._account(made, name)
            return
        if kinds == {"flags"}:
            self._flags(members, name)
            return
        bits = 16 if "half" in kinds else self._settings.width(name, any(m.verdict.finer for m in members))
        if bits > 16 or (bits == 16 and made.meta["val"].element_size() == 2):
            self._account(made, name)
            return
        if bits == 16:
            self._cast(members, name, torch.float16 if "half" in kinds else torch.bfloat16)
        else:
            self._encode(members, name, bits)

    def _encode(self, members: list[Member], name: str, bits: int) -> None:
        crossing, settings = self._crossing, self._settings
        made, beside = members[0].made, members[0].given
        root, order = root_of(made), order_of(made.meta["val"])
        groups = strictest({member.verdict.groups for member in members})
        kind, size = grouping_of(root, groups, settings.group_size)
        columns, columns_back = 1, 1  # the forward graph's number of columns, and the backward graph's
        if kind == "columns":
            columns, columns_back = crossing.row(root, made, order_of(root.meta["val"])[-1])
        with crossing.forward.inserting_after(made if isinstance(columns, int) else columns):
            arguments = (made, order, bits, kind, size, columns, settings.state, name)
            packed = make(crossing.forward, OPERATIONS.encode.default, *arguments)
        parts: list[fx.Node] = []
        after = packed
        for number in range(3):
            with crossing.forward.inserting_after(after):
                part = crossing.forward.call_function(operator.getitem, (packed, number))
            part.meta["val"] = packed.meta["val"][number]
            after = part
            parts.append(crossing.cross(part, beside))
        dtype = made.meta["val"].dtype

        def decoded(sizes: list[Size]) -> fx.Node:
            if kind == "columns" and isinstance(columns_back, int):
                grouping = Columns(size, columns_back)
                written = decoding(parts[0].meta["val"], bits, grouping, sizes, dtype)
                if written is not None:
                    return write_out(crossing.backward, written, *parts)
            arguments = (bits, kind, size, columns_back, sizes, dtype)
            return make(crossing.backward, OPERATIONS.decode.default, *parts, *arguments)

        self._unpack(members, decoded)

    def _flags(self, members: list[Member], name: str) -> None:
        crossing = self._crossing
        made, beside = members[0].made, members[0].given
        order = order_of(made.meta["val"])
        with crossing.forward.inserting_after(made):
            packed = make(crossing.forward, OPERATIONS.flags.default, made, order, self._settings.state, name)
        given = crossing.cross(packed, beside)
        self._unpack(members, lambda sizes: make(crossing.backward, OPERATIONS.unflags.default, given, sizes))

    def _unpack(self, members: list[Member], decoded: Callable[[list[Size]], fx.Node]) -> None:
        """Decode once for all members, in the first one's memory order."""
        crossing = self._crossing
        block: fx.Node | None = None
        last: fx.Node | None = None
        for member in members:
            value, order = member.made.meta["val"], order_of(member.made.meta["val"])
            sizes = [crossing.size(member.made, dim) for dim in order]
            with crossing.backward.inserting_after(self._last_given() if last is None else last):
                if block is None:
                    node = block = decoded(sizes)
                else:
                    node = make(crossing.backward, torch.ops.aten.view.default, block, sizes)
            if order != list(range(value.ndim)):
                inverse = [order.index(dim) for dim in range(value.ndim)]
                with crossing.backward.inserting_after(node):
                    node = make(crossing.backward, torch.ops.aten.permute.default, node, inverse)
            last = node
            member.given.replace_all_uses_with(node)
            crossing.drop(member.given)

    def _cast(self, members: list[Member], name: str, dtype: torch.dtype) -> None:
        crossing = self._crossing
        cast = torch.ops.prims.convert_element_type.default
        for number, member in enumerate(members):
            with crossing.forward.inserting_after(member.made):
                narrow = make(crossing.forward, cast, member.made, dtype)
            given = crossing.cross(narrow, member.given)
            with crossing.backward.inserting_after(self._last_given()):
                wide = make(crossing.backward, cast, given, member.made.meta["val"].dtype)
            if number == 0:
                self._account(narrow, name, dtype=dtype_of(member.made))
            member.given.replace_all_uses_with(wide)
            crossing.drop(member.given)

    def _compare_ahead(self, members: list[Member]) -> None:
        """Compare a tensor in the forward pass; drop it if backward only compared it."""
        for member in members:
            for gate in member.verdict.gates:
                self._cross_gate(gate, member.given)
        for member in [m for m in members if not m.given.users]:
            self._crossing.drop(member.given)
            members.remove(member)

    def _cross_gate(self, gate: fx.Node, beside: fx.Node) -> None:
        """Let a comparison cross, one bit per element."""
        crossing = self._crossing
        if not gate.users:
            return
        with crossing.forward.inserting_before(crossing.forward.output_node()):
            made = copied(crossing.forward, gate, crossing.known())
        given = crossing.cross(made, beside)
        gate.replace_all_uses_with(given)
        erase(gate)
        self._pack([Member(given, made, Verdict("flags"))])

    def _last_given(self) -> fx.Node:
        return next(n for n in reversed(self._crossing.backward.nodes) if n.op == "placeholder")

    def _name(self, made: fx.Node) -> str:
        place = place_of(root_of(made))
        self._numbers[place] += 1
        return f"{place}:{self._numbers[place] - 1}"

    def _account(self, made: fx.Node, name: str, dtype: str = "") -> None:
        """Note a tensor that is not packed; parameters do not count as activations."""
        if isinstance(made.meta["val"], Tensor) and not is_of_parameter(made):
            whole = self._picked[made].meta["val"].numel() if made in self._picked else 0
            self._accounts.append((made, (name, dtype or dtype_of(made), "", whole)))

    def _close(self) -> None:
        """Write the rows of unpacked tensors, once per forward pass."""
        if self._accounts:
            before = self._crossing.forward.output_node().prev
            self._tell(self._accounts, after=before)

    def _tell(self, accounts: list[Account], after: fx.Node) -> None:
        """Make the forward pass write rows; its empty result crosses so that the call is not dropped."""
        crossing = self._crossing
        facts = json.dumps([entry for _, entry in accounts])
        with crossing.forward.inserting_after(after):
            empty = make(
                crossing.forward,
                OPERATIONS.account.default,
                [made for made, _ in accounts],
                self._settings.state,
                facts,
            )
        crossing.cross(empty, next(iter(crossing.saved)))

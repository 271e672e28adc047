"""Which module feeds which in a block: a copy runs on random numbers, with one output changed at a time.

The copy holds no matrices. Each *node* (a projection, stacked experts, on request another module) outputs
random numbers, the same in each run, whatever its input. So a change of one node's output reaches exactly the
nodes that it feeds *directly*, and weights, their dtype, device and quantisation do not matter.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import unset_fake_temporarily
from torch.utils._pytree import tree_map, tree_map_only

from parameter_efficient.blocks import is_experts, matrices_of, width_out
from parameter_efficient.forward import first_tensor
from parameter_efficient.typed import forked_random_numbers

__all__ = ["OUT", "Call", "Change", "Flow", "X"]

X, OUT = "<input>", "<output>"
"""Names of a block's input and output, beside those of its nodes."""

Change = Callable[[Tensor], Tensor]
"""A change of a node's output."""


@dataclass(frozen=True)
class Call:
    """A call of a block in the model's own forward pass.

    Args:
        args: Positional arguments.
        kwargs: Keyword arguments.
        tuples: Modules in it that returned a tuple, not a tensor → that tuple.
    """

    args: tuple[object, ...]
    kwargs: Mapping[str, object]
    tuples: dict[str, tuple[object, ...]] = field(default_factory=dict[str, tuple[object, ...]])


def _real(value: object) -> object:
    """Return a tensor on the CPU, in float32 if floating-point, with values if it had none; drop caches."""
    if not isinstance(value, Tensor):
        return None if type(value).__name__.endswith("Cache") else value
    if value.is_meta or type(value).__name__ == "FakeTensor":
        shape, kind = tuple(value.shape), value.dtype
        if kind.is_floating_point:
            return torch.randn(shape)
        return torch.ones(shape, dtype=kind) if kind == torch.bool else torch.zeros(shape, dtype=kind)
    value = value.detach().cpu()
    return value.float() if value.is_floating_point() else value.clone()


def _copied(block: nn.Module, nodes: Mapping[str, nn.Module]) -> nn.Module:
    """Return a copy without the nodes' weights; other vectors are ones, and other matrices random."""
    large = {id(p) for m in nodes.values() for p in m.parameters(recurse=False)}
    memo: dict[int, object] = {}
    for parameter in block.parameters():
        shape = tuple(parameter.shape)
        if id(parameter) in large:
            made = torch.empty(shape, device="meta")
        else:
            made = torch.ones(shape) if parameter.ndim == 1 else torch.randn(shape)
        memo[id(parameter)] = nn.Parameter(made, requires_grad=False)
    for buffer in block.buffers():
        memo[id(buffer)] = _real(buffer)
    return copy.deepcopy(block, memo).eval()


class Flow:
    """A block that can be run again and again.

    Args:
        block: The block; it is not changed.
        call: One of its calls.
    """

    def __init__(self, block: nn.Module, call: Call) -> None:
        with unset_fake_temporarily(), torch.no_grad(), forked_random_numbers():
            torch.default_generator.manual_seed(0)  # torch.manual_seed prepares all devices, which takes long
            self.block = block
            self.nodes: dict[str, nn.Module] = {}
            self._tuples = call.tuples
            self._calls: Counter[str] = Counter()
            self._values: dict[tuple[str, int], Tensor] = {}
            self._changes: Mapping[str, Change] = {}
            self._seen: dict[str, list[Tensor]] = {}
            self._live: dict[str, set[int]] = {}
            self._plain: dict[str, list[Tensor]] | None = None
            nodes = {n: m for n, m in matrices_of(block).items() if n not in call.tuples}
            self._copy = _copied(block, nodes)
            made: dict[int, object] = {}  # a tensor that is passed twice stays one (funnel's query and key)

            def real_once(value: object) -> object:
                return made.setdefault(id(value), _real(value))

            self._args, self._kwargs = tree_map(real_once, (call.args, dict(call.kwargs)))
            self._named = "hidden_states" in self._kwargs and first_tensor(self._args) is None
            hidden = self._hidden()
            self.tokens, self.width = max(hidden.shape[:-1]), hidden.shape[-1]
            self.add(nodes)
            self._set_hidden(torch.randn(hidden.shape))
            self._beside = self._tensors_beside()
            self._live = self._calls_that_read_the_input()

    def _hidden(self) -> Tensor:
        hidden = self._kwargs["hidden_states"] if self._named else first_tensor((self._args, self._kwargs))
        if hidden is None:
            raise ValueError("no tensor enters the block")
        return hidden

    def _set_hidden(self, value: Tensor) -> None:
        old = self._hidden()
        both = tree_map_only(Tensor, lambda t: value if t is old else t, (self._args, self._kwargs))
        self._args, self._kwargs = both

    def _tensors_beside(self) -> list[Tensor]:
        hidden = self._hidden()
        tensors: list[Tensor] = []
        tree_map_only(Tensor, tensors.append, (self._args, self._kwargs))
        return [t for t in tensors if t is not hidden and t.is_floating_point() and t.ndim == hidden.ndim]

    def add(self, modules: Mapping[str, nn.Module]) -> None:
        """Make modules nodes: from now on they output random numbers."""
        self._plain = None
        for name, module in modules.items():
            self.nodes[name] = module
            vars(self.module(name))["forward"] = partial(self._call, name)

    def module(self, name: str) -> nn.Module:
        """Return a module of the copy."""
        return self._copy.get_submodule(name)

    def _call(self, name: str, /, *args: object, **kwargs: object) -> object:
        key = name, self._calls[name]
        self._calls[name] += 1
        node, taken = self.nodes[name], first_tensor((args, kwargs))
        assert taken is not None
        self._seen.setdefault(name, []).append(taken.clone())
        if key not in self._values:
            matrix = name in matrices_of(self.block) and not is_experts(node)
            width = width_out(node) if matrix else taken.shape[-1]
            self._values[key] = torch.randn(*taken.shape[:-1], width)
        value = self._values[key].clone()
        if name in self._changes and (name not in self._live or key[1] in self._live[name]):
            value = self._changes[name](value)
        return (value, *tree_map(_real, self._tuples[name][1:])) if name in self._tuples else value

    def run(self, changes: Mapping[str, Change] | None = None) -> dict[str, list[Tensor]]:
        """Return each node's input at each of its calls, and under `OUT` the block's output.

        Args:
            changes: Node, or `X`, → a change of its output.
        """
        self._changes, self._seen = changes or {}, {}
        self._calls.clear()
        before = self._hidden()
        with unset_fake_temporarily(), torch.no_grad(), forked_random_numbers():
            torch.default_generator.manual_seed(1)
            if X in self._changes:
                self._set_hidden(self._changes[X](before.clone()))
            try:
                output = first_tensor(self._copy(*self._args, **self._kwargs))
            finally:
                self._set_hidden(before)
        assert output is not None
        return self._seen | {OUT: [output]}

    def plain(self) -> dict[str, list[Tensor]]:
        """Return the result of `run` without a change."""
        if self._plain is None:
            self._plain = self.run()
        return self._plain

    def _calls_that_read_the_input(self) -> dict[str, set[int]]:
        """Return at which of its several calls a node reads the block's input, not positions."""
        plain, changed = self.run(), self.run({X: torch.randn_like})
        live = {
            node: {
                n
                for n, pair in enumerate(zip(outputs, changed[node], strict=False))
                if not torch.equal(*pair)
            }
            for node, outputs in plain.items()
            if len(outputs) > 1 and node != OUT
        }
        return {node: calls for node, calls in live.items() if calls}

    def rows(self, tensor: Tensor) -> Tensor:
        """Return a tensor's tokens as rows, also if it is split into windows or flattened."""
        axis = next((d for d, n in enumerate(tensor.shape[:-1]) if n == self.tokens), None)
        return tensor.reshape(-1, tensor.shape[-1]) if axis is None else tensor.movedim(axis, 0).flatten(1)

    def one_token(self, tensor: Tensor) -> Tensor:
        """Return a tensor with another row for the middle token."""
        made = torch.randn(tensor.shape, generator=torch.Generator().manual_seed(2))
        rows = self.rows(torch.arange(tensor.numel()).view(tensor.shape))
        tensor = tensor.contiguous()
        here = rows[len(rows) // 2].flatten()
        tensor.view(-1)[here] = made.view(-1)[here]
        return tensor

    def reach(self, name: str) -> dict[str, int]:
        """Return node → how many of its tokens change if one token of the given node's output does."""
        plain, changed = self.plain(), self.run({name: self.one_token})
        counts: dict[str, int] = {}
        for node, tensors in plain.items():
            for before, after in zip(tensors, changed.get(node, []), strict=False):
                if before.shape == after.shape:
                    differs = (before != after) & ~(before.isnan() & after.isnan())
                    count = int(self.rows(differs).any(1).sum())
                    counts[node] = max(count, counts.get(node, 0))
        return {node: count for node, count in counts.items() if count}

    def fed_by_another_sequence(self) -> set[str]:
        """Return the nodes that read another tensor than the block's input, as cross-attention does."""
        readers: set[str] = set()
        plain = self.plain()
        for tensor in self._beside:
            original = tensor.clone()
            tensor.copy_(torch.randn(tensor.shape, generator=torch.Generator().manual_seed(3)))
            changed = self.run()
            tensor.copy_(original)
            for node, tensors in plain.items():
                if any(not torch.equal(a, b) for a, b in zip(tensors, changed.get(node, []), strict=False)):
                    readers.add(node)
        return readers - {OUT}

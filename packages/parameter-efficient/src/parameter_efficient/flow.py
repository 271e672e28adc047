"""Which module feeds which in a block: a copy runs on random numbers, with one output changed at a time.

The copy holds no matrices. Each *node* (a projection, a stack of experts, on request another module) gives
random numbers, the same in each run, whatever it takes. So a change of one node's output reaches exactly
those nodes that it feeds *directly*, and weights, their dtype, device and quantisation do not matter.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import unset_fake_temporarily
from torch.utils._pytree import tree_map, tree_map_only

from parameter_efficient.blocks import is_experts, matrices_of, width_out
from parameter_efficient.forward import first_tensor

__all__ = ["OUT", "Call", "Flow", "X"]

X, OUT = "<input>", "<output>"
Change = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Call:
    """A call of a block in the model's own forward pass.

    Args:
        args: Positional arguments.
        kwargs: The others.
        tuples: Modules in it that gave no tensor but several things → what they gave.
    """

    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    tuples: Mapping[str, Any] = field(default_factory=dict)


def _real(value: Any) -> Any:
    """Return a tensor on the CPU, floating-point ones in float32; one without values gets some; no cache."""
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
    """Return a copy without the nodes' weights, with ones for other vectors and random matrices."""
    large = {id(p) for m in nodes.values() for p in m.parameters(recurse=False)}
    memo: dict[int, Any] = {}
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
        block: It stays as it is.
        call: One of its calls.
    """

    def __init__(self, block: nn.Module, call: Call) -> None:
        with unset_fake_temporarily(), torch.no_grad(), torch.random.fork_rng([]):
            torch.default_generator.manual_seed(0)  # torch.manual_seed prepares all devices, which takes long
            self.block, self.nodes = block, {}
            self._tuples, self._calls = call.tuples, Counter()
            self._values: dict[tuple[str, int], Tensor] = {}
            self._changes: Mapping[str, Change] = {}
            self._seen: dict[str, list[Tensor]] = {}
            self._live: dict[str, set[int]] = {}
            self._plain: dict[str, list[Tensor]] | None = None
            nodes = {n: m for n, m in matrices_of(block).items() if n not in call.tuples}
            self._copy = _copied(block, nodes)
            made: dict[int, Any] = {}  # what is given twice stays one (funnel: query, key and value)
            self._args, self._kwargs = tree_map(
                lambda value: made.setdefault(id(value), _real(value)), (call.args, dict(call.kwargs))
            )
            self._named = "hidden_states" in self._kwargs and first_tensor(self._args) is None
            hidden = self._hidden()
            self.tokens, self.width = max(hidden.shape[:-1]), hidden.shape[-1]
            self.add(nodes)
            self._set_hidden(torch.randn(hidden.shape))
            self._beside = self._tensors_beside()
            self._live = self._calls_that_read_the_input()

    def _hidden(self) -> Tensor:
        found = self._kwargs["hidden_states"] if self._named else first_tensor((self._args, self._kwargs))
        if found is None:
            raise ValueError("no tensor enters the block")
        return found

    def _set_hidden(self, value: Tensor) -> None:
        old = self._hidden()
        both = tree_map_only(Tensor, lambda t: value if t is old else t, (self._args, self._kwargs))
        self._args, self._kwargs = both

    def _tensors_beside(self) -> list[Tensor]:
        hidden, tensors = self._hidden(), []
        tree_map_only(Tensor, tensors.append, (self._args, self._kwargs))
        return [t for t in tensors if t is not hidden and t.is_floating_point() and t.ndim == hidden.ndim]

    def add(self, modules: Mapping[str, nn.Module]) -> None:
        """Let modules be nodes: from now on they give random numbers."""
        self._plain = None
        for name, module in modules.items():
            self.nodes[name] = module
            copied = self.module(name)
            vars(copied)["forward"] = lambda *args, _name=name, **kwargs: self._call(_name, args, kwargs)

    def module(self, name: str) -> nn.Module:
        """Return a module of the copy."""
        return self._copy.get_submodule(name)

    def _call(self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
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
        """Return what each node takes at each of its calls, and at `OUT` what the block gives.

        Args:
            changes: Node, or `X`, → what is done to its output.
        """
        self._changes, self._seen = changes or {}, {}
        self._calls.clear()
        before = self._hidden()
        with unset_fake_temporarily(), torch.no_grad(), torch.random.fork_rng([]):
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
        """Return what `run` gives without a change."""
        if self._plain is None:
            self._plain = self.run()
        return self._plain

    def _calls_that_read_the_input(self) -> dict[str, set[int]]:
        """Return at which of several calls a node reads the block's input, and not positions."""
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
        """Return a tensor's tokens as rows; windows and flattened ones too."""
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
        """Return node → how many of its tokens change when one token of the given node's output does."""
        plain, changed = self.plain(), self.run({name: self.one_token})
        found: dict[str, int] = {}
        for node, tensors in plain.items():
            for before, after in zip(tensors, changed.get(node, []), strict=False):
                if before.shape == after.shape:
                    differs = (before != after) & ~(before.isnan() & after.isnan())
                    count = int(self.rows(differs).any(1).sum())
                    found[node] = max(count, found.get(node, 0))
        return {node: count for node, count in found.items() if count}

    def fed_by_another_sequence(self) -> set[str]:
        """Return the nodes that read another tensor than the block's input, as cross-attention does."""
        found: set[str] = set()
        plain = self.plain()
        for tensor in self._beside:
            kept = tensor.clone()
            tensor.copy_(torch.randn(tensor.shape, generator=torch.Generator().manual_seed(3)))
            changed = self.run()
            tensor.copy_(kept)
            for node, tensors in plain.items():
                if any(not torch.equal(a, b) for a, b in zip(tensors, changed.get(node, []), strict=False)):
                    found.add(node)
        return found - {OUT}

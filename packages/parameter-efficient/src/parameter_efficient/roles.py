"""Which matrix plays which role in a block: read from the flow of numbers, not from names.

Attention. v feeds o from other tokens, and o's input is zero once v's output is. The other matrices that feed
o are q, which acts on its own token only, and k, which acts on others. If k or q is missing, v holds it too.
A test proves that this is attention: if v is 1 everywhere, o's input is an average of ones. Linear attention,
scans, convolutions and gates on every element fail it, and are refused.

Feed-forward. ffn_out outputs the block's width and is fed by ffn_in alone, which reads the block's input. If
two matrices feed it, the gate is the one in which it is not linear.

Names decide if two matrices could be q (query, query_global). If a name contradicts, the block is refused.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import unset_fake_temporarily

from parameter_efficient.blocks import is_experts, matrices_of, twins, width_out
from parameter_efficient.flow import OUT, Change, Flow, X
from parameter_efficient.sublayers import Edges, SubLayer, end_of, norms_of, site_of

__all__ = ["Roles", "UnsureError", "find_roles"]

HINTS = {
    "q": r"(q|query)(_?(proj|lin|layer|head))?",
    "k": r"(k|key)(_?(proj|lin|layer|head))?",
    "v": r"(v|value)(_?(proj|lin|layer|head))?",
}
"""Role → the last part of names that suggest it."""


class UnsureError(Exception):
    """Roles cannot be found with certainty; the message says which and why."""


@dataclass
class Roles:
    """The roles in a block, and its sub-layers.

    Args:
        modules: Role → names of modules in the block. Roles are q, k, v, o, ffn_in (with ffn_gate), ffn_out,
            attention_norm, ffn_norm, and cross_q, cross_k, cross_v, cross_o; missing ones are left out.
        sublayers: "attention" and "ffn", if their ends were found.
        width: Features of a token between blocks.
    """

    modules: dict[str, list[str]] = field(default_factory=dict[str, list[str]])
    sublayers: dict[str, SubLayer] = field(default_factory=dict[str, SubLayer])
    width: int = 0


def _single(names: Iterable[str], role: str) -> str:
    """Return the only name, or the one with which all others begin (query of query_global)."""
    ordered = sorted(names, key=len)
    hinted = [n for n in ordered if re.fullmatch(HINTS[role], n.rpartition(".")[2])]
    if len(ordered) > 1 and len(hinted) == 1:
        ordered = hinted
    if not all(name.startswith(ordered[0]) for name in ordered):
        raise UnsureError(f"{' and '.join(ordered)} could all be {role}")
    return ordered[0]


def _contradicted(role: str, name: str) -> bool:
    last = name.rpartition(".")[2]
    return any(re.fullmatch(hint, last) for other, hint in HINTS.items() if other != role)


def _random(seed: int) -> Change:
    def drawn(output: Tensor) -> Tensor:
        return torch.randn(output.shape, generator=torch.Generator().manual_seed(seed))

    return drawn


def _opened(output: Tensor) -> Tensor:
    """Open a gate."""
    return torch.full_like(output, 1e4)


def _doubled(output: Tensor) -> Tensor:
    return 2 * output


def _silent(flow: Flow, name: str, o: str) -> bool:
    """Return whether the middle token at o depends on nothing if a node's output is zero."""
    silenced: dict[str, Change] = {name: torch.zeros_like}
    others = {node: _random(5) for node in flow.nodes if node != name}
    plain, changed = flow.run(silenced)[o][0], flow.run(silenced | others)[o][0]
    plain, changed = flow.rows(plain), flow.rows(changed)
    return torch.allclose(plain[len(plain) // 2], changed[len(plain) // 2], atol=1e-5)


def _averages(flow: Flow, v: str, o: str, gates: Iterable[str]) -> bool:
    """Return whether o's input is an average of ones if v is 1: at most 1, the same within a head.

    Nodes that act on their own token are large meanwhile, which opens the gates of gated attention.
    """
    open_gates = dict.fromkeys(gates, _opened)
    for seed in range(3):
        others = {node: _random(seed) for node in flow.nodes if node != v} | open_gates
        ones = flow.run({**others, v: torch.ones_like})[o][0]
        zeros = flow.run({**others, v: torch.zeros_like})[o][0]
        rows = flow.rows(ones) - flow.rows(zeros)
        rows = rows[len(rows) // 2 :]
        values = max(_count_distinct(row.round(decimals=3)) for row in rows)
        if not ((rows > -1e-3).all() and (rows < 1 + 1e-3).all() and values <= max(rows.shape[1] // 4, 1)):
            return False
    return True


def _count_distinct(values: Tensor) -> int:
    return len(values.unique())  # pyright: ignore  # torch gives this method no types


def _as_many(flow: Flow, name: str, other: str) -> bool:
    """Return whether two nodes read equally many tokens (keys and values of pvt are of fewer)."""
    return flow.plain()[name][0].shape[:-1] == flow.plain()[other][0].shape[:-1]


def _convolved(flow: Flow, v: str, o: str) -> bool:
    """Return whether one token of v reaches some tokens at o on both sides, as a convolution does."""
    plain = flow.rows(flow.run()[o][0])
    changed = flow.rows(flow.run({v: flow.one_token})[o][0])
    if plain.shape[0] != flow.tokens or plain.shape != changed.shape:
        return False
    reached = (plain != changed).any(1).nonzero().flatten()
    middle = flow.tokens // 2
    return len(reached) < flow.tokens and bool((reached < middle).any() and (reached > middle).any())


def _attention(flow: Flow, edges: Edges, o: str) -> dict[str, str] | None:
    """Return q, k, v and o of the attention that ends in o; None if there is none."""
    feeding = {name: reach[o] for name, reach in edges.items() if o in reach and name != X}
    mixing = [name for name, count in feeding.items() if count > 1]
    silent = [name for name in mixing if _silent(flow, name, o)]
    if not silent:
        return None
    v = _single(silent, "v")
    gates = [name for name in feeding if name not in mixing]
    if not _averages(flow, v, o, gates):
        if set(feeding) == {v} and _convolved(flow, v, o):
            return None  # a feed-forward block with a convolution in it
        raise UnsureError(f"the input of {o} is not an average of the outputs of {v}, so it is not attention")
    plain = flow.run({v: torch.ones_like})[o][0]
    constant: dict[str, bool] = {}
    for name in gates:
        changed = flow.run({v: torch.ones_like, name: _random(6)})[o][0]
        constant[name] = torch.allclose(changed, plain, atol=1e-4)
    keys = [name for name in mixing if name not in silent]
    queries = [name for name in gates if constant[name]] or (gates if keys else [])
    if not keys and len(queries) < len(gates):
        raise UnsureError(f"{v} holds keys and values in one, and {gates[0]} is a gate beside it")
    k = _single(keys, "k") if keys else v
    q = _single(queries, "q") if queries else k
    if keys and not queries and width_out(flow.nodes[k]) < 2 * width_out(flow.nodes[v]):
        raise UnsureError(f"no matrix beside {k} and {v} is q")
    roles = {"q": q, "k": k, "v": v}
    wrong = [role for role, name in roles.items() if _contradicted(role, name)]
    if wrong:
        raise UnsureError(f"{roles[wrong[0]]} acts as {wrong[0]}, but its name says otherwise")
    return roles | {"o": o}


def _before(edges: Edges, name: str, readers: set[str]) -> set[str]:
    """Return a node and all that feed it, up to the matrices that read the block's input."""
    feeding = {name}
    for other, reach in edges.items():
        if name not in readers and name in reach and other not in (X, *feeding):
            feeding |= _before(edges, other, readers)
    return feeding


def _is_linear_in(flow: Flow, name: str, reader: str) -> bool:
    """Return whether a reader's input doubles with a node's output."""
    plain, changed = flow.plain()[reader], flow.run({name: _doubled})[reader]
    return all(torch.allclose(2 * a, b, rtol=1e-4, atol=1e-5) for a, b in zip(plain, changed, strict=True))


def _feed_forward(flow: Flow, edges: Edges, attention: set[str], readers: set[str]) -> dict[str, list[str]]:
    roles: dict[str, list[str]] = {"ffn_in": [], "ffn_out": [], "ffn_gate": []}
    for name, node in flow.nodes.items():
        if name in attention or "adapter" in name:
            continue
        feeding = [other for other, reach in edges.items() if name in reach and other != X]
        if is_experts(node) and name in readers:
            roles["ffn_in"].append(name)
            roles["ffn_out"].append(name)
        elif name not in readers and feeding and width_out(node) == flow.width:
            if attention & set(feeding) or not readers.issuperset(feeding):
                continue
            if OUT not in edges[name]:
                continue
            roles["ffn_in"] += [n for n in feeding if n not in roles["ffn_in"]]
            roles["ffn_out"].append(name)
            if len(feeding) == 2:
                gates = [other for other in feeding if not _is_linear_in(flow, other, name)]
                if len(gates) == 1:
                    roles["ffn_gate"] += gates
    return {role: names for role, names in roles.items() if names}


@unset_fake_temporarily()  # a block runs with values, even if its model has none
def find_roles(flow: Flow) -> Roles:
    """Find the roles of a block's matrices.

    Raises:
        UnsureError: It has no attention, or several candidates for it, or roles cannot be told apart; or it
            sees one token only, which has no other to attend to.
    """
    if flow.tokens == 1:
        raise UnsureError("it sees a single token: pass example= with two or more")
    edges: dict[str, Mapping[str, int]] = {name: flow.reach(name) for name in [X, *flow.nodes]}
    fed = {target for name, reach in edges.items() if name != X for target in reach}
    memory = {name for name in flow.fed_by_another_sequence() if name not in fed and name not in edges[X]}
    readers = (set(edges[X]) | memory) - {OUT}
    single = [name for name, node in flow.nodes.items() if not is_experts(node)]
    attentions = [roles for name in single if (roles := _attention(flow, edges, name)) is not None]
    groups = [_union(_before(edges, name, readers) for name in roles.values()) for roles in attentions]
    crossing = [bool(group & memory) for group in groups]
    if crossing.count(False) != 1 or crossing.count(True) > 1:
        raise UnsureError(f"{crossing.count(False)} self-attentions and {crossing.count(True)} others found")
    roles = Roles(width=flow.width)
    for role_names, crosses in zip(attentions, crossing, strict=True):
        roles.modules |= {f"cross_{role}" if crosses else role: [name] for role, name in role_names.items()}
    attention = _union(groups)
    feed_forward = _feed_forward(flow, edges, attention, readers)
    roles.modules |= {role: _with_siblings(flow, names) for role, names in feed_forward.items()}
    norms = norms_of(flow)
    self_attention, o = groups[crossing.index(False)], roles.modules["o"][0]

    def priority(name: str) -> tuple[bool, int]:
        return not _as_many(flow, name, o), len(flow.plain()[name])

    entries = sorted(self_attention & readers, key=priority)
    ends = {"attention": (o, entries, self_attention)}
    if "ffn_out" in feed_forward:
        rest = {n for n in flow.nodes if n not in attention and edges[n]}
        end = end_of(flow, feed_forward["ffn_out"], rest, attention | set(norms))
        ends["ffn"] = (end, feed_forward["ffn_in"], rest)
    flow.add({name: flow.module(name) for name in norms})
    flow.add({end: flow.module(end) for end, *_ in ends.values() if end and end not in flow.nodes})
    sites = {name: flow.reach(name) for name in [X, *flow.nodes]}
    for position, (end, entries, inside) in ends.items():
        if end and entries:
            sublayer, its_norms = site_of(sites, list(norms), entries, end, inside)
            roles.sublayers |= {} if sublayer is None else {position: sublayer}
            roles.modules |= {f"{position}_norm": its_norms} if its_norms else {}
    return roles


def _union(groups: Iterable[set[str]]) -> set[str]:
    return {name for group in groups for name in group}


def _with_siblings(flow: Flow, names: list[str]) -> list[str]:
    """Return names, and those of the same matrices in other experts."""
    every = matrices_of(flow.block)
    found = {
        twin: None
        for name in names
        for twin in twins(flow.block, name)
        if twin in every and _shapes(every[twin]) == _shapes(every[name])
    }
    return [*names, *(name for name in found if name not in names)]


def _shapes(module: nn.Module) -> list[tuple[int, ...]]:
    return [tuple(parameter.shape) for parameter in module.parameters()]

"""Which matrix plays which role in a block: from what flows where, not from names.

Attention. v feeds o from other tokens, and o takes nothing once v gives nothing. The other matrices that feed
o are q, which acts on its own token only, and k, which acts on others. Where k or q are missing, v holds them
too. That it is attention is proved: where v is 1 everywhere, o takes an average of ones. Linear attention,
scans, convolutions and gates on every element fail there, and are refused.

Feed-forward. ffn_out gives the block's width and is fed by ffn_in alone, which reads the block's input; of
two of those, the gate is the one whose double is not the double.

Names decide where two matrices could be q (query, query_global), and where they contradict, it is refused.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import unset_fake_temporarily

from parameter_efficient.blocks import is_experts, matrices_of, width_out
from parameter_efficient.flow import OUT, Flow, X
from parameter_efficient.sublayers import Edges, SubLayer, end_of, norms_of, site_of

__all__ = ["Roles", "UnsureError", "find_roles"]

HINTS = {
    "q": r"(q|query)(_?(proj|lin|layer|head))?",
    "k": r"(k|key)(_?(proj|lin|layer|head))?",
    "v": r"(v|value)(_?(proj|lin|layer|head))?",
}
"""What the last part of a matrix's name says, where it says something."""


class UnsureError(Exception):
    """Roles cannot be told; the message says which and why."""


@dataclass
class Roles:
    """Role → names of modules in the block; sub-layers that an adapter can stand at.

    Args:
        modules: q, k, v, o, ffn_in (ffn_gate among them), ffn_out, attention_norm, ffn_norm, and cross_q,
            cross_k, cross_v, cross_o, as far as they are there.
        sublayers: "attention" and "ffn", as far as they are told.
        width: Features of a token between blocks.
    """

    modules: dict[str, list[str]] = field(default_factory=dict)
    sublayers: dict[str, SubLayer] = field(default_factory=dict)
    width: int = 0


def _one(names: Iterable[str], role: str) -> str:
    """Return the one name, or the one that all others begin with (query of query_global)."""
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


def _other(seed: int) -> Callable[[Tensor], Tensor]:
    return lambda t: torch.randn(t.shape, generator=torch.Generator().manual_seed(seed))


def _silent(flow: Flow, name: str, o: str) -> bool:
    """Return whether the middle token at o depends on nothing any more when a node gives nothing."""
    others = {node: _other(5) for node in flow.nodes if node != name}
    plain, changed = (flow.run({name: torch.zeros_like, **more})[o][0] for more in ({}, others))
    plain, changed = flow.rows(plain), flow.rows(changed)
    return torch.allclose(plain[len(plain) // 2], changed[len(plain) // 2], atol=1e-5)


def _averages(flow: Flow, v: str, o: str, gates: Iterable[str]) -> bool:
    """Return whether o takes an average of ones where v is 1: at most 1, the same within a head.

    What acts on its own token is large meanwhile, which opens the gates of gated attention.
    """
    open_gates = {name: lambda t: torch.full_like(t, 1e4) for name in gates}
    for seed in range(3):
        others = {node: _other(seed) for node in flow.nodes if node != v} | open_gates
        ones, zeros = (
            flow.run({**others, v: change})[o][0] for change in (torch.ones_like, torch.zeros_like)
        )
        rows = flow.rows(ones) - flow.rows(zeros)
        rows = rows[len(rows) // 2 :]
        values = max(len(row.round(decimals=3).unique()) for row in rows)
        if not ((rows > -1e-3).all() and (rows < 1 + 1e-3).all() and values <= max(rows.shape[1] // 4, 1)):
            return False
    return True


def _as_many(flow: Flow, name: str, other: str) -> bool:
    """Return whether two nodes take as many tokens (keys and values of pvt are of fewer)."""
    one, two = (flow.plain()[node][0].shape[:-1] for node in (name, other))
    return one == two


def _convolved(flow: Flow, v: str, o: str) -> bool:
    """Return whether one token of v reaches some tokens at o on both sides, as a convolution does."""
    plain, changed = (flow.rows(flow.run(change)[o][0]) for change in ({}, {v: flow.one_token}))
    if plain.shape[0] != flow.tokens or plain.shape != changed.shape:
        return False
    reached = (plain != changed).any(1).nonzero().flatten()
    middle = flow.tokens // 2
    return len(reached) < flow.tokens and bool((reached < middle).any() and (reached > middle).any())


def _attention(flow: Flow, edges: Edges, o: str) -> dict[str, str] | None:
    """Return q, k, v and o of the attention that ends in o, or nothing where none does."""
    feeding = {name: reach[o] for name, reach in edges.items() if o in reach and name != X}
    mixing = [name for name, count in feeding.items() if count > 1]
    silent = [name for name in mixing if _silent(flow, name, o)]
    if not silent:
        return None
    v = _one(silent, "v")
    gates = [name for name in feeding if name not in mixing]
    if not _averages(flow, v, o, gates):
        if set(feeding) == {v} and _convolved(flow, v, o):
            return None  # a feed-forward block with a convolution in it
        raise UnsureError(f"what {o} takes is no average of what {v} gives, as attention is")
    plain, constant = flow.run({v: torch.ones_like})[o][0], {}
    for name in gates:
        constant[name] = torch.allclose(
            flow.run({v: torch.ones_like, name: _other(6)})[o][0], plain, atol=1e-4
        )
    keys = [name for name in mixing if name not in silent]
    queries = [name for name in gates if constant[name]] or (gates if keys else [])
    if not keys and len(queries) < len(gates):
        raise UnsureError(f"{v} holds keys and values in one, and {gates[0]} is a gate beside it")
    k = _one(keys, "k") if keys else v
    q = _one(queries, "q") if queries else k
    if keys and not queries and width_out(flow.nodes[k]) < 2 * width_out(flow.nodes[v]):
        raise UnsureError(f"no matrix is q alone beside {k} and {v}")
    found = {"q": q, "k": k, "v": v}
    wrong = [role for role, name in found.items() if _contradicted(role, name)]
    if wrong:
        raise UnsureError(f"{found[wrong[0]]} acts as {wrong[0]} and is named otherwise")
    return found | {"o": o}


def _before(edges: Edges, name: str, readers: set[str]) -> set[str]:
    """Return what feeds a node, up to the matrices that read the block's input, itself included."""
    found = {name}
    for other, reach in edges.items():
        if name not in readers and name in reach and other not in (X, *found):
            found |= _before(edges, other, readers)
    return found


def _double(flow: Flow, name: str, reader: str) -> bool:
    plain, changed = flow.plain()[reader], flow.run({name: lambda t: 2 * t})[reader]
    return all(torch.allclose(2 * a, b, rtol=1e-4, atol=1e-5) for a, b in zip(plain, changed, strict=True))


def _feed_forward(flow: Flow, edges: Edges, attention: set[str], readers: set[str]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for name, node in flow.nodes.items():
        if name in attention or "adapter" in name:
            continue
        feeding = [other for other, reach in edges.items() if name in reach and other != X]
        if is_experts(node) and name in readers:
            found.setdefault("ffn_in", []).append(name)
            found.setdefault("ffn_out", []).append(name)
        elif name not in readers and feeding and width_out(node) == flow.width:
            if attention & set(feeding) or not readers.issuperset(feeding):
                continue
            if OUT not in edges[name]:
                continue
            found.setdefault("ffn_in", []).extend(n for n in feeding if n not in found["ffn_in"])
            found.setdefault("ffn_out", []).append(name)
            if len(feeding) == 2:
                gates = [other for other in feeding if not _double(flow, other, name)]
                if len(gates) == 1:
                    found.setdefault("ffn_gate", []).extend(gates)
    return found


@unset_fake_temporarily()  # a block runs with values, also where its model has none
def find_roles(flow: Flow) -> Roles:
    """Find the roles of a block's matrices.

    Raises:
        UnsureError: It has no attention, or several that could be it, or it cannot be told what is what.
    """
    edges: dict[str, Mapping[str, int]] = {name: flow.reach(name) for name in [X, *flow.nodes]}
    fed = {target for name, reach in edges.items() if name != X for target in reach}
    memory = {name for name in flow.fed_by_another_sequence() if name not in fed and name not in edges[X]}
    readers = (set(edges[X]) | memory) - {OUT}
    single = [name for name, node in flow.nodes.items() if not is_experts(node)]
    found = [roles for name in single if (roles := _attention(flow, edges, name)) is not None]
    groups = [set().union(*(_before(edges, name, readers) for name in roles.values())) for roles in found]
    crossing = [bool(group & memory) for group in groups]
    if crossing.count(False) != 1 or crossing.count(True) > 1:
        raise UnsureError(f"{crossing.count(False)} attentions to the block's own tokens were found, not one")
    roles = Roles(width=flow.width)
    for role_names, crosses in zip(found, crossing, strict=True):
        roles.modules |= {f"cross_{role}" if crosses else role: [name] for role, name in role_names.items()}
    attention = set().union(*groups)
    feed_forward = _feed_forward(flow, edges, attention, readers)
    roles.modules |= {role: _with_siblings(flow, names) for role, names in feed_forward.items()}
    norms = norms_of(flow)
    own_group, own_o = groups[crossing.index(False)], roles.modules["o"][0]
    ends = {
        "attention": (
            own_o,
            sorted(own_group & readers, key=lambda n: (not _as_many(flow, n, own_o), len(flow.plain()[n]))),
            own_group,
        )
    }
    if "ffn_out" in feed_forward:
        rest = {n for n in flow.nodes if n not in attention and edges[n]}
        end = end_of(flow, feed_forward["ffn_out"], rest, attention | set(norms))
        ends["ffn"] = (end, feed_forward["ffn_in"], rest)
    flow.add({name: flow.module(name) for name in norms})
    flow.add({end: flow.module(end) for end, *_ in ends.values() if end and end not in flow.nodes})
    sites = {name: flow.reach(name) for name in [X, *flow.nodes]}
    for position, (end, entries, inside) in ends.items():
        if end and entries:
            sublayer, own_norms = site_of(sites, list(norms), entries, end, inside)
            roles.sublayers |= {} if sublayer is None else {position: sublayer}
            roles.modules |= {f"{position}_norm": own_norms} if own_norms else {}
    return roles


def _with_siblings(flow: Flow, names: list[str]) -> list[str]:
    """Return names and those that differ from them by the number of an expert only."""
    patterns = [re.sub(r"\\\.\d+(?=\\\.)", r"\\.\\d+", re.escape(name)) for name in names]
    every = [n for n in matrices_of(flow.block) if any(re.fullmatch(p, n) for p in patterns)]
    return [*names, *(n for n in every if n not in names)]

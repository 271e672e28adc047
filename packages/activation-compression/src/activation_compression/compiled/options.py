"""Options for `torch.compile` under which activations wait for backward in few bits."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path
from typing import Any

import torch._functorch.config
from torch import fx
from torch._inductor.custom_graph_pass import CustomPartitionerFn, get_hash_for_files

from activation_compression.compiled.operators import STATES, State
from activation_compression.compiled.packing import Settings, pack
from activation_compression.compiled.readings import forces_saving
from activation_compression.compiled.tensors import OWN
from activation_compression.levels import WIDTHS, find_level
from activation_compression.statistics import Statistics
from finetune_common.errors import ConfigurationError, check_choice, check_number

__all__ = ["CompileOptions", "compile_options"]

SOURCES = tuple(sorted(str(path) for path in Path(__file__).parents[1].rglob("*.py")))
"""What the partitioner does, for torch's cache of compiled code."""
_made: dict[str, count[int]] = {}


@dataclass
class Partitioner(CustomPartitionerFn):
    """torch's min-cut partition, whose crossing tensors are then packed.

    Attributes:
        settings: What to do.
    """

    settings: Settings

    def __call__(
        self, gm: fx.GraphModule, joint_inputs: Sequence[object], **kwargs: Any
    ) -> tuple[fx.GraphModule, fx.GraphModule]:
        """Return the forward and the backward graph of a joint graph."""
        from torch._functorch.partitioners import min_cut_rematerialization_partition as min_cut
        from torch.utils.checkpoint import CheckpointPolicy

        own = kwargs.get("static_lifetime_input_indices") or []
        inputs = [n for n in gm.graph.find_nodes(op="placeholder") if n.name.startswith("primals")]
        for number in own:
            inputs[number].meta[OWN] = True
        settings = self.settings
        if settings.level.rounds:
            for node in gm.graph.nodes:
                if node.op == "call_function" and forces_saving(node):
                    node.meta.setdefault("recompute", CheckpointPolicy.MUST_SAVE)
        kept = torch._functorch.config.ban_recompute_materialized_backward
        lifted = {"ban_recompute_materialized_backward": kept and not settings.derive}
        with torch._functorch.config.patch(lifted):
            forward, backward = min_cut(gm, joint_inputs, **kwargs)
        pack(forward, backward, kwargs["num_fwd_outputs"], settings)
        return forward, backward

    def uuid(self) -> Any:
        """Return what compiled code depends on."""
        return get_hash_for_files(SOURCES), repr(self.settings)


class CompileOptions(dict[str, Any]):
    """Options for `torch.compile(model, options=...)`, and what the compiled model saved.

    Args:
        settings: Of the partition.
        seed: Of the rounding.
    """

    def __init__(self, settings: Settings, seed: int) -> None:
        super().__init__(custom_partitioner_fn=Partitioner(settings))
        self._state = STATES[settings.state] = State(seed)

    @property
    def stats(self) -> Statistics:
        """What crossed to backward in the last forward pass: a row a tensor, totals, ratio."""
        return Statistics(list(self._state.rows.values()))

    def state_dict(self) -> dict[str, Any]:
        """Return how many tensors were rounded."""
        return {"drawn": self._state.draws.drawn}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from `state_dict()` of another run."""
        self._state.draws.drawn = state["drawn"]


def compile_options(
    level: str = "L1",
    *,
    widths: Mapping[str, int] | None = None,
    group_size: int = 256,
    seed: int = 0,
    min_elements: int = 1024,
    exclude: Iterable[str] = (),
    derive: bool = True,
) -> CompileOptions:
    """Return options under which `torch.compile` keeps activations in few bits between forward and backward.

        h that crosses to the backward graph → Q_b(h),   E[Q_b(h)] = h

    torch decides what crosses (its min-cut partition), and what is cheap is computed again. Of the rest, the
    table (`activation_compression.formulas`) says by operation what may be rounded; masks take one bit. What
    a backward pass compares is compared in the forward pass, one bit an element. Each step rounds anew.

    Args:
        level: lossless: no rounding; L1, L1.1, L1.2 fixed 4, 8, 2 bits; L2, L2.1, L2.2 with `widths`.
        widths: "module:operation:number", as rows of `stats` count them → 1, 2, 4, 8, 16 or 32 bits; others
            have the level's.
        group_size: Elements that share a minimum and a step, at least 1.
        seed: Of the rounding, whose random numbers draw from no random stream.
        min_elements: Tensors with fewer elements are kept unchanged.
        exclude: Patterns (`*`, `?`) of "module:operation" whose tensors are kept unchanged.
        derive: Whether values that are needed whole in backward may be computed again there; torch's own
            partition stores them.

    Returns:
        A dictionary for `options=`, whose `stats` tells what the last forward pass saved.

    Raises:
        ConfigurationError: A setting that does not exist; L0; a level that uses host memory; automatic
            precision without `widths`.

    Source: Liu et al. 2022 (arXiv 2206.11357) for the rounding; the released code works on eager models only.

    Examples:
        >>> options = compile_options("L1")  # torch.compile(model, options=options)
        >>> list(options), options.stats.ratio
        (['custom_partitioner_fn'], 1.0)
    """
    found = find_level(level)
    if found.offload or not found.packs:
        raise ConfigurationError(
            f"level {level!r} is not for compiled models: use lossless, L1, L1.1 or L1.2, or L2 with widths="
        )
    if found.automatic and not widths:
        raise ConfigurationError(
            f"level {level!r} measures its widths on eager models only: use L1, or give widths="
        )
    for name, bits in (widths or {}).items():
        check_choice(f"widths[{name!r}]", bits, (*WIDTHS, 16, 32))
    check_number("group_size", group_size, at_least=1)
    check_number("seed", seed, at_least=0, below=2**63)
    check_number("min_elements", min_elements, at_least=0)
    own = dict(sorted((widths or {}).items()))
    settings = Settings(found, group_size, min_elements, derive, own, tuple(exclude), "")
    text = f"{settings} {seed}"
    number = next(_made.setdefault(text, count()))
    return CompileOptions(replace(settings, state=f"{text} {number}"), seed)

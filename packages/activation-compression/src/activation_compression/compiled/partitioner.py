"""torch's partition of a graph into forward and backward, and packing after it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch._functorch.config
from torch import fx
from torch._functorch.partitioners import min_cut_rematerialization_partition
from torch._inductor.custom_graph_pass import CustomPartitionerFn, get_hash_for_files
from torch.utils.checkpoint import CheckpointPolicy

from activation_compression.compiled.packing import pack
from activation_compression.compiled.readings import forces_saving
from activation_compression.compiled.settings import Settings
from activation_compression.compiled.tensors import OWN

__all__ = ["Partitioner"]

SOURCES = tuple(sorted(str(path) for path in Path(__file__).parents[1].rglob("*.py")))
"""Sources of the partitioner, on which torch's cache of compiled code depends."""


@dataclass
class Partitioner(CustomPartitionerFn):
    """torch's min-cut partition, followed by packing of the tensors that cross.

    Attributes:
        settings: What to do.
    """

    settings: Settings

    def __call__(
        self, gm: fx.GraphModule, joint_inputs: Sequence[object], **kwargs: Any
    ) -> tuple[fx.GraphModule, fx.GraphModule]:
        """Return the forward and the backward graph of a joint graph."""
        parameters: list[int] = kwargs.get("static_lifetime_input_indices") or []
        inputs = [n for n in gm.graph.find_nodes(op="placeholder") if n.name.startswith("primals")]
        for number in parameters:
            inputs[number].meta[OWN] = True
        settings = self.settings
        if settings.level.rounds:
            for node in gm.graph.nodes:
                if node.op == "call_function" and forces_saving(node):
                    node.meta.setdefault("recompute", CheckpointPolicy.MUST_SAVE)
        kept = torch._functorch.config.ban_recompute_materialized_backward
        lifted = {"ban_recompute_materialized_backward": kept and not settings.derive}
        with torch._functorch.config.patch(lifted):  # pyright: ignore[reportUnknownMemberType]  # torch has none
            forward, backward = min_cut_rematerialization_partition(gm, joint_inputs, **kwargs)
        if joint_inputs:  # a nested region has none: what it saves crosses in the graph around it, whole
            pack(forward, backward, kwargs["num_fwd_outputs"], settings)
        return forward, backward

    def uuid(self) -> object:
        """Return the values on which compiled code depends."""
        return get_hash_for_files(SOURCES), repr(self.settings)

"""How much of a model trains."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from math import prod

from torch import nn

from finetune_common.aliases import JsonObject
from finetune_common.arguments import explain_arguments

__all__ = ["TrainableModule", "TrainableParameters", "trainable_parameters"]


@dataclass(frozen=True)
class TrainableModule:
    """The parameters of one module that train.

    Args:
        module: Its name in the model.
        parameters: How many numbers.
        bytes: Their memory, without gradients and optimizer state.
    """

    module: str
    parameters: int
    bytes: int


@dataclass(frozen=True)
class TrainableParameters:
    """What trains in a model.

    Args:
        modules: One row for each module that holds trainable parameters itself.
        trainable: Numbers that train.
        total: All numbers; packed weights count as the numbers that they stand for.
        trainable_bytes: Memory of the numbers that train.
        total_bytes: Memory of all numbers.
    """

    modules: tuple[TrainableModule, ...]
    trainable: int
    total: int
    trainable_bytes: int
    total_bytes: int

    @property
    def percent(self) -> float:
        """Return 100 · trainable / total."""
        return 100 * self.trainable / self.total

    def as_dict(self) -> JsonObject:
        """Return plain data."""
        return {**asdict(self), "modules": [asdict(row) for row in self.modules], "percent": self.percent}

    def to_json(self) -> str:
        """Return JSON."""
        return json.dumps(self.as_dict(), indent=1)

    def __str__(self) -> str:
        width = max([len(row.module) for row in self.modules], default=0)
        lines = [
            f"{row.module:<{width}}  {row.parameters:>12,}  {row.bytes:>14,} bytes" for row in self.modules
        ]
        lines.append(f"{self.trainable:,} of {self.total:,} parameters train ({self.percent:.4f} %)")
        return "\n".join(lines)


def _elements(parameter: nn.Parameter) -> int:
    """Count numbers; a 4-bit weight holds two in a byte and knows its shape."""
    state = getattr(parameter, "quant_state", None)
    return parameter.numel() if state is None else prod(state.shape)


@explain_arguments
def trainable_parameters(model: nn.Module) -> TrainableParameters:
    """Count trainable parameters, module by module; shared ones count once.

    Examples:
        >>> model = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2))
        >>> _ = model[0].requires_grad_(False)
        >>> print(trainable_parameters(model))
        1             8              32 bytes
        8 of 23 parameters train (34.7826 %)
    """
    rows: dict[str, list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            rows.setdefault(name.rpartition(".")[0], []).append(parameter)
    modules = tuple(
        TrainableModule(name, sum(map(_elements, parameters)), sum(p.nbytes for p in parameters))
        for name, parameters in rows.items()
    )
    all_parameters = list(model.parameters())
    return TrainableParameters(
        modules,
        sum(row.parameters for row in modules),
        sum(map(_elements, all_parameters)),
        sum(row.bytes for row in modules),
        sum(parameter.nbytes for parameter in all_parameters),
    )

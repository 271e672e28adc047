"""The paper's algorithms by their names."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch.optim.optimizer import ParamsT

from clipped_adaptive.adagrad import ClippedAdaGrad
from clipped_adaptive.adam import ClippedAdam
from finetune_common.aliases import Settings
from finetune_common.arguments import explain_arguments
from finetune_common.errors import check_choice

__all__ = ["ALGORITHMS", "from_paper"]

Algorithm = type[ClippedAdam] | type[ClippedAdaGrad]

_ADAM = {"bias_correction": False}
_ADAM_D = {**_ADAM, "delay": True, "initial_second_moment": 1e-5}
_ADAGRAD_D = {"delay": True, "initial_accumulator": 1e-5}
_NORM = {"norm": True, "clip": "none"}
_CLIP_NORM = {"norm": True, "clip": "global"}
_CLIP = {"clip": "local"}

ALGORITHMS: Mapping[str, tuple[Algorithm, Settings]] = {
    "AdaGrad-Norm": (ClippedAdaGrad, _NORM),
    "AdaGradD-Norm": (ClippedAdaGrad, _NORM | _ADAGRAD_D),
    "Clip-AdaGrad-Norm": (ClippedAdaGrad, _CLIP_NORM),
    "Clip-AdaGradD-Norm": (ClippedAdaGrad, _CLIP_NORM | _ADAGRAD_D),
    "Clip-RAdaGradD-Norm": (ClippedAdaGrad, _CLIP_NORM | _ADAGRAD_D),
    "Clip-AdaGrad": (ClippedAdaGrad, _CLIP),
    "Clip-AdaGradD": (ClippedAdaGrad, _CLIP | _ADAGRAD_D),
    "Clip-RAdaGradD": (ClippedAdaGrad, _CLIP | _ADAGRAD_D),
    "Adam-Norm": (ClippedAdam, _NORM | _ADAM),
    "AdamD-Norm": (ClippedAdam, _NORM | _ADAM_D),
    "Clip-Adam-Norm": (ClippedAdam, _CLIP_NORM | _ADAM),
    "Clip-AdamD-Norm": (ClippedAdam, _CLIP_NORM | _ADAM_D),
    "Clip-Adam": (ClippedAdam, _CLIP | _ADAM),
    "Clip-AdamD": (ClippedAdam, _CLIP | _ADAM_D),
}
"""Name in the paper → class and settings. `D` is delayed, `R` reweighted (η = lr²), `Norm` has one second
moment for all parameters and clips their common norm; the others are coordinate-wise and clip each tensor, as
the released code does."""


@explain_arguments
def from_paper(name: str, params: ParamsT, lr: float, **settings: Any) -> ClippedAdam | ClippedAdaGrad:
    """Return an algorithm of the paper by its name.

    Args:
        name: One of `ALGORITHMS`.
        params: Parameters, (name, parameter) pairs, or groups of them.
        lr: Learning rate; reweighted algorithms set η to its square, as in the paper's experiments.
        **settings: Further settings of the class, such as `max_norm`, which override the algorithm's.

    Raises:
        ConfigurationError: An unknown name or a setting out of range.

    Examples:
        >>> import torch
        >>> weights = [torch.nn.Parameter(torch.ones(2))]
        >>> optimizer = from_paper("Clip-AdaGradD-Norm", weights, lr=0.1, max_norm=0.5)
        >>> optimizer.clip, optimizer.norm, optimizer.defaults["delay"]
        ('global', True, True)
    """
    check_choice("algorithm", name, ALGORITHMS)
    algorithm, defaults = ALGORITHMS[name]
    reweighted = {"eta": lr**2} if name.startswith("Clip-R") else {}
    merged: Settings = {**defaults, **reweighted, **settings}
    return algorithm(params, lr, **merged)

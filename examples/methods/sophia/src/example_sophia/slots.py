"""Sophia as an optimizer of a run: its options, and how it is built."""

from dataclasses import asdict, dataclass
from typing import Any

from finetune_common.errors import check_number


@dataclass(frozen=True)
class SophiaOptions:
    """Clipped steps over curvature.

    Args:
        lr: Largest step of a coordinate, at least 0.
        betas: Decay of the momentum and of the curvature, each in [0, 1).
        gamma: Fraction of the curvature to divide by, above 0; the larger, the fewer steps are clipped.
        every: Steps between two estimates of the curvature (k in the paper), at least 1.
        seed: Of the optimizer's own random numbers.
    """

    lr: float = 5e-5
    betas: tuple[float, float] = (0.96, 0.99)
    gamma: float = 0.01
    every: int = 10
    seed: int = 0

    def __post_init__(self) -> None:
        check_number("lr", self.lr, at_least=0)
        for beta in self.betas:
            check_number("betas", beta, at_least=0, below=1)
        check_number("gamma", self.gamma, above=0)
        check_number("every", self.every, at_least=1)


class SophiaMethod:
    """Momentum over an estimate of the curvature, clipped (weight decay is decoupled)."""

    name = "sophia"
    Options = SophiaOptions
    not_sharded = "differentiates the loss twice, which FSDP does not allow: use --optimizer adamw"

    def __init__(self, options: SophiaOptions) -> None:
        self.options = options

    def build(self, model: Any, param_groups: list[dict[str, Any]]) -> Any:
        """Return the optimizer over the groups."""
        from example_sophia.optimizer import Sophia

        return Sophia(param_groups, **asdict(self.options))

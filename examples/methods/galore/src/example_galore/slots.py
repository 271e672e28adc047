"""GaLore as an optimizer of a run: its options, and how it is built."""

from dataclasses import asdict, dataclass
from typing import Any

from finetune_common.errors import check_number


@dataclass(frozen=True)
class GaLoreOptions:
    """AdamW in a subspace of the gradients.

    Args:
        lr: Learning rate, at least 0.
        rank: Dimensions of the subspace (r in the paper), at least 1; smaller matrices are not projected.
        every: Steps between two choices of the subspace (T), at least 1.
        scale: Factor of the projected update (α), at least 0.
        betas: Decay of the first and the second moment, each in [0, 1).
        eps: Added to the denominator, above 0.
    """

    lr: float = 5e-5
    rank: int = 4
    every: int = 200
    scale: float = 0.25
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8

    def __post_init__(self) -> None:
        check_number("lr", self.lr, at_least=0)
        check_number("rank", self.rank, at_least=1)
        check_number("every", self.every, at_least=1)
        check_number("scale", self.scale, at_least=0)
        for beta in self.betas:
            check_number("betas", beta, at_least=0, below=1)
        check_number("eps", self.eps, above=0)


class GaLoreMethod:
    """AdamW on gradients that are projected to a few dimensions (weight decay is decoupled)."""

    name = "galore"
    Options = GaLoreOptions
    not_sharded = "needs whole gradients for their singular vectors: use --optimizer adamw"

    def __init__(self, options: GaLoreOptions) -> None:
        self.options = options

    def build(self, model: Any, param_groups: list[dict[str, Any]]) -> Any:
        """Return the optimizer over the groups."""
        from example_galore.optimizer import GaLore

        return GaLore(param_groups, **asdict(self.options))

"""Configurations of small networks between a model's own modules. Nothing here imports torch.

Widths below: d is the model's hidden size, L the number of adapted layers.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import inf
from typing import Literal, cast

from finetune_common.arguments import explain_arguments
from finetune_common.errors import ConfigurationError, check_choice, check_number, shown
from parameter_efficient.options import Config, Layers

__all__ = ["BottleneckAdapter", "Compacter", "LoReFT"]

ACTIVATIONS = ("tanh", "relu", "gelu", "silu")


@explain_arguments
@dataclass(frozen=True)
class BottleneckAdapter(Config):
    """A small network behind (or beside) a sub-layer: L (2 d r + d + r [+ 2 d]) parameters.

    a(h) = LN(h + s · dropout(U φ(D h + b_D) + b_U)), D: d → r, U: r → d; no LN if `layer_norm` is off. The
    2 d are LN's factors and offsets.

    Sequential: h is the sub-layer's output, and a(h) replaces it. Parallel: h is the sub-layer's input, and
    a(h) is the residual to which its output is added. In models that normalise before a sub-layer (gpt2, t5),
    h is the sub-layer's output before the sum (sequential), or h is its normalised input, and a(h) - h is
    added to its output (parallel). U and both biases begin at 0, D ~ N(0, init_std²).

    Args:
        layers: Layers to adapt, from 0, or from the end (-1); or all.
        bottleneck: Width r, at least 1.
        position: Sub-layer: ffn or attention.
        targets: Modules that get an adapter behind them, instead of a position: ends of their names, or
            regular expressions.
        parallel: Beside the sub-layer instead of behind it.
        activation: φ: tanh, relu, gelu or silu.
        layer_norm: Whether to use LN. With it, the initial output differs from the base model's; without, it
            is exactly the same.
        elementwise_affine: Whether LN has a factor and an offset for each feature, 2 d parameters, or none.
        scaling: s, above 0.
        dropout: Share of the update's elements that training drops, in [0, 1).
        init_std: Standard deviation of D at the start, at least 0.

    Examples:
        >>> BottleneckAdapter(layers=[5], bottleneck=1).layers
        (5,)
        >>> BottleneckAdapter(position="attn")
        Traceback (most recent call last):
        finetune_common.errors.ConfigurationError: position='attn' is unknown: choose from ffn, attention
    """

    layers: Layers = "all"
    bottleneck: int = 16
    position: Literal["ffn", "attention"] = "ffn"
    targets: tuple[str, ...] = ()
    parallel: bool = False
    activation: Literal["tanh", "relu", "gelu", "silu"] = "tanh"
    layer_norm: bool = True
    elementwise_affine: bool = True
    scaling: float = 1.0
    dropout: float = 0.1
    init_std: float = 0.02

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number("bottleneck", self.bottleneck, at_least=1)
        check_choice("position", self.position, ("ffn", "attention"))
        check_choice("activation", self.activation, ACTIVATIONS)
        check_number("scaling", self.scaling, above=0, below=inf)
        check_number("dropout", self.dropout, at_least=0, below=1)
        check_number("init_std", self.init_std, at_least=0, below=inf)
        if self.targets and self.parallel:
            raise ConfigurationError("parallel=true needs a position, not targets: leave out one of them")


@explain_arguments
@dataclass(frozen=True)
class Compacter(BottleneckAdapter):
    """An adapter whose matrices are sums of Kronecker products: n³ + L (2 (d + r) + d + r) parameters.

    a(h) as in `BottleneckAdapter`, with D = Σ_i A_i ⊗ (s_i t_iᵀ) and U likewise, i = 1 … n. The A_i, n x n,
    are the same in D and U and in all layers; each matrix has its own vectors s_i and t_i (Karimi Mahabadi et
    al. 2021, arXiv 2106.04647, eq. 6 to 8). The t_i of U begin at 0.

    Args:
        divisions: n, at least 1; divides the bottleneck and the width of the model.

    Examples:
        >>> Compacter(bottleneck=24, divisions=4).layer_norm
        False
    """

    layer_norm: bool = False
    divisions: int = 4

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number("divisions", self.divisions, at_least=1)
        if self.bottleneck % self.divisions:
            raise ConfigurationError(
                f"divisions={self.divisions} does not divide bottleneck={self.bottleneck}: give a divisor"
            )


@explain_arguments
@dataclass(frozen=True)
class LoReFT(Config):
    """A change of hidden states in a small subspace, at all tokens or some: L (2 r d + r) parameters.

    h' = h + Rᵀ (W h + b - R h) behind a layer, R: d → r with orthonormal rows (Wu et al. 2024, arXiv
    2404.03592, eq. 2). W begins at R and b at 0, so that h' = h; in the paper W is random.

    Args:
        layers: Layers behind which states change, from 0, or from the end (-1); or all.
        rank: r, from 1 to d.
        positions: [p, s]: the first p and the last s tokens of each row, without padding, as in the paper
            (p + s at least 1; one map for both; a short row changes at all its tokens); or all. In a text
            that is generated step by step only the prompt's tokens change.

    Examples:
        >>> LoReFT(rank=4, positions=[7, 7]).positions
        (7, 7)
        >>> LoReFT(positions=[0, 0])
        Traceback (most recent call last):
        finetune_common.errors.ConfigurationError: positions=(0, 0) cannot be used: give how many first and
        how many last tokens, as [7, 7] or [0, 1], or 'all'
    """

    layers: Layers = "all"
    rank: int = 4
    positions: tuple[int, int] | Literal["all"] = "all"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number("rank", self.rank, at_least=1)
        if self.positions != "all":
            valid = _counts(self.positions)
            if len(valid) != 2 or not sum(valid):
                raise ConfigurationError(
                    f"positions={shown(self.positions)} cannot be used: give how many first and how many "
                    "last tokens, as [7, 7] or [0, 1], or 'all'"
                )


def _counts(positions: object) -> list[int]:
    """Return the entries of a tuple, if all of them count tokens."""
    entries = cast("tuple[object, ...]", positions) if isinstance(positions, tuple) else ()
    counts = [entry for entry in entries if type(entry) is int and entry >= 0]
    return counts if len(counts) == len(entries) else []

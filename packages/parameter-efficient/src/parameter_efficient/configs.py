"""What is adapted, and how: one frozen, self-validating dataclass a method. Nothing here imports torch.

Widths below: d is the model's hidden size, f its feed-forward size, L the number of adapted layers.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from math import inf
from typing import Literal

from finetune_common.errors import ConfigurationError, check_choice, check_number
from parameter_efficient.configs_through_peft import IA3, LoRA, QLoRA, ThroughPeft
from parameter_efficient.options import Config, Layers, check_patterns

__all__ = [
    "IA3",
    "METHODS",
    "BitFit",
    "BottleneckAdapter",
    "Compacter",
    "Config",
    "FFNTuning",
    "Fusion",
    "HeadOnly",
    "LoRA",
    "LoReFT",
    "PrefixTuning",
    "QLoRA",
    "ThroughPeft",
]

ACTIVATIONS = ("tanh", "relu", "gelu", "silu")


@dataclass(frozen=True)
class HeadOnly(Config):
    """Only the classification head trains, on frozen features.

    Args:
        encoder_layers: Use only the first so many layers and drop the rest; null for all.

    Examples:
        >>> HeadOnly(encoder_layers=6).pooling
        'cls'
    """

    encoder_layers: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.encoder_layers is not None:
            check_number("encoder_layers", self.encoder_layers, at_least=1)


@dataclass(frozen=True)
class BottleneckAdapter(Config):
    """A small network of its own behind (or beside) a sub-layer: L (2 d r + d + r [+ 2 d]) parameters.

    a(h) = LN(h + s · dropout(U φ(D h + b_D) + b_U)), D: d → r, U: r → d; no LN where `layer_norm` is off. The
    2 d are LN's factors and offsets.

    Sequential: h is the sub-layer's output and a(h) takes its place. Parallel: a(h) is the residual that
    the sub-layer's output is added to, h being the sub-layer's input. In models that normalise before a
    sub-layer (gpt2, t5), h is the sub-layer's output before it is added (sequential), and a(h) - h is added
    to it, h being its normalised input (parallel). U and both biases begin at 0, D ~ N(0, init_std²).

    Args:
        layers: Layers to adapt, from 0, or from the end (-1); or all.
        bottleneck: Width r, at least 1.
        position: Sub-layer: ffn or attention.
        targets: Instead of a position: modules behind each of which an adapter stands, by the ends of their
            names or regular expressions.
        parallel: Beside the sub-layer instead of behind it.
        activation: φ: tanh, relu, gelu or silu.
        layer_norm: Whether LN is there. With it, output differs from the base model's from the start; without
            it, it is the same, exactly.
        elementwise_affine: Whether LN has a factor and an offset for each feature, 2 d parameters, or none.
        scaling: s, above 0.
        dropout: Share of the update's elements that are dropped in training, in [0, 1).
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
            raise ConfigurationError("parallel=true needs a position, not targets: leave one of them out")


@dataclass(frozen=True)
class Compacter(BottleneckAdapter):
    """An adapter whose matrices are sums of Kronecker products: n³ + L (2 (d + r) + d + r) parameters.

    a(h) as `BottleneckAdapter`, with D = Σ_i A_i ⊗ (s_i t_iᵀ) and U likewise, i = 1 … n: the A_i, n x n, are
    the same in D and U and in all layers, s_i and t_i are vectors of each matrix's own (Karimi Mahabadi et
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


@dataclass(frozen=True)
class LoReFT(Config):
    """A change of hidden states in a small subspace, at all tokens or some: L (2 r d + r) parameters.

    h' = h + Rᵀ (W h + b - R h) behind a layer, R: d → r with orthonormal rows (Wu et al. 2024, arXiv
    2404.03592, eq. 2). W begins at R and b at 0, so that h' = h; the work draws W.

    Args:
        layers: Layers behind which states change, from 0, or from the end (-1); or all.
        rank: r, from 1 to d.
        positions: [p, s], the first p and the last s tokens of each row that are no padding, as in the work
            (p + s at least 1; one map for both, and for a short row all its tokens); or all. A text that
            is generated step by step changes at its prompt's tokens only.

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
            counts = self.positions if isinstance(self.positions, tuple) else ()
            whole = all(type(count) is int and count >= 0 for count in counts)
            if len(counts) != 2 or not whole or not sum(counts):
                raise ConfigurationError(
                    f"positions={self.positions!r} cannot be used: give how many first and how many last "
                    "tokens, as [7, 7] or [0, 1], or 'all'"
                )


@dataclass(frozen=True)
class PrefixTuning(Config):
    """Learned keys and values before those of the tokens: 2 L n d parameters.

    softmax(q [P_k; K]ᵀ / √d_head) [P_v; V]: they are prepended after the projections, in each layer its own
    (Li & Liang 2021, arXiv 2101.00190, without the reparametrisation).

    Args:
        layers: Layers to adapt, from 0, or from the end (-1); or all.
        length: n, keys and values to prepend, at least 1.
        init_std: Standard deviation of both at the start, at least 0.
    """

    layers: Layers = "all"
    length: int = 2
    init_std: float = 0.02

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number("length", self.length, at_least=1)
        check_number("init_std", self.init_std, at_least=0, below=inf)


@dataclass(frozen=True)
class BitFit(Config):
    """Only biases train (Ben Zaken et al. 2022, arXiv 2106.10199): none of them decays.

    Args:
        layers: Layers to adapt, from 0, or from the end (-1); or all.
        biases: Roles (q, k, v, o, ffn_in, ffn_out, attention_norm, ffn_norm), ends of names or regular
            expressions of modules; or all (every bias that a layer has). Where a projection has none (t5,
            llama), it gets one that begins at 0.
    """

    layers: Layers = "all"
    biases: tuple[str, ...] | Literal["all"] = ("q", "ffn_in")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.biases != "all":
            check_patterns("biases", self.biases)
            if not self.biases:
                raise ConfigurationError(
                    "biases is empty: give roles (q, k, v, o, ffn_in, …), names, or 'all'"
                )


@dataclass(frozen=True)
class FFNTuning(Config):
    """The feed-forward matrices of chosen layers train: L (2 d f + f + d) parameters.

    Args:
        layers: Layers to adapt, from 0, or from the end (-1); or all.
        include_attention_output: Train the attention's output projection and both norms as well: what the
            released code did under this name.
        targets: Instead of the feed-forward block: modules that train, by the ends of their names or regular
            expressions.
    """

    layers: Layers = "all"
    include_attention_output: bool = False
    targets: tuple[str, ...] = ()


@dataclass(frozen=True)
class Fusion(Config):
    """Several methods at once; each has its own layers.

    Args:
        adapter: A bottleneck adapter, or null.
        lora: LoRA, or null.
        prefix: A prefix, or null.
        bitfit: Biases, or null.
        ffn: Feed-forward blocks, or null.

    Examples:
        >>> both = Fusion(adapter=BottleneckAdapter(layers=[5]), lora=LoRA(layers=[10]))
        >>> [type(part).__name__ for part in both.parts]
        ['BottleneckAdapter', 'LoRA']
    """

    adapter: BottleneckAdapter | None = None
    lora: LoRA | None = None
    prefix: PrefixTuning | None = None
    bitfit: BitFit | None = None
    ffn: FFNTuning | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, kind in PARTS.items():
            part = getattr(self, name)
            if isinstance(part, Mapping):
                part = kind(**part)
                object.__setattr__(self, name, part)
            if part is not None and type(part) is not kind:
                raise ConfigurationError(
                    f"{name}={part!r} is no {kind.__name__}: leave it out, or use it alone"
                )
            own = [f.name for f in fields(Config) if part is not None and getattr(part, f.name) != f.default]
            if own:
                raise ConfigurationError(f"{name} has a {own[0]} of its own: give it to the whole fusion")
        if not self.parts:
            raise ConfigurationError(f"a fusion of nothing: give at least one of {', '.join(PARTS)}")

    @property
    def parts(self) -> tuple[Config, ...]:
        """Return the methods that are there."""
        return tuple(part for name in PARTS if (part := getattr(self, name)) is not None)


PARTS: dict[str, type[Config]] = {
    "adapter": BottleneckAdapter,
    "lora": LoRA,
    "prefix": PrefixTuning,
    "bitfit": BitFit,
    "ffn": FFNTuning,
}

METHODS: dict[str, type[Config]] = {
    "head-only": HeadOnly,
    "bottleneck-adapter": BottleneckAdapter,
    "lora": LoRA,
    "qlora": QLoRA,
    "prefix": PrefixTuning,
    "bitfit": BitFit,
    "ffn-only": FFNTuning,
    "fusion": Fusion,
    "ia3": IA3,
    "compacter": Compacter,
    "loreft": LoReFT,
    "peft": ThroughPeft,
}
"""Name in the adaptation slot and in saved files → configuration."""

"""The configurations: one frozen, self-validating dataclass for each method. Nothing here imports torch.

Widths below: d is the model's hidden size, f its feed-forward size, L the number of adapted layers.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from math import inf
from typing import Any, Literal, cast

from finetune_common.arguments import explain_arguments
from finetune_common.errors import ConfigurationError, check_number, shown
from parameter_efficient.configs_of_adapters import BottleneckAdapter, Compacter, LoReFT
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


@explain_arguments
@dataclass(frozen=True)
class HeadOnly(Config):
    """Only the classification head trains, on frozen features.

    Args:
        encoder_layers: How many layers to use, from the first on; null for all.

    Examples:
        >>> HeadOnly(encoder_layers=6).pooling
        'cls'
    """

    encoder_layers: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.encoder_layers is not None:
            check_number("encoder_layers", self.encoder_layers, at_least=1)


@explain_arguments
@dataclass(frozen=True)
class PrefixTuning(Config):
    """Learned keys and values before those of the tokens: 2 L n d parameters.

    softmax(q [P_k; K]ᵀ / √d_head) [P_v; V]: each layer prepends its own behind its projections (Li & Liang
    2021, arXiv 2101.00190, without the reparametrisation).

    Args:
        layers: Layers to adapt, from 0, or from the end (-1); or all.
        length: n, keys and values to prepend, at least 1.
        init_std: Standard deviation of both at the start, at least 0.

    Examples:
        >>> PrefixTuning(length=4, layers=[0, 1])  # four keys and values in the first two layers
        PrefixTuning(..., layers=(0, 1), length=4, init_std=0.02)
    """

    layers: Layers = "all"
    length: int = 2
    init_std: float = 0.02

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number("length", self.length, at_least=1)
        check_number("init_std", self.init_std, at_least=0, below=inf)


@explain_arguments
@dataclass(frozen=True)
class BitFit(Config):
    """Only biases train (Ben Zaken et al. 2022, arXiv 2106.10199), without weight decay.

    Args:
        layers: Layers to adapt, from 0, or from the end (-1); or all.
        biases: Roles (q, k, v, o, ffn_in, ffn_out, attention_norm, ffn_norm), ends of names or regular
            expressions of modules; or all (every bias that a layer has). A projection without a bias (t5,
            llama) gets one that begins at 0.

    Examples:
        >>> BitFit(biases="all", layers=[-1])  # every bias of the last layer
        BitFit(..., layers=(-1,), biases='all')
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


@explain_arguments
@dataclass(frozen=True)
class FFNTuning(Config):
    """The feed-forward matrices of chosen layers train: L (2 d f + f + d) parameters.

    Args:
        layers: Layers to adapt, from 0, or from the end (-1); or all.
        include_attention_output: Train the attention's output projection and both norms as well, as the
            released code did under this name.
        targets: Modules to train instead of the feed-forward block: ends of their names, or regular
            expressions.

    Examples:
        >>> FFNTuning(layers=[10, 11])  # the feed-forward blocks of two layers
        FFNTuning(..., layers=(10, 11), include_attention_output=False, targets=())
    """

    layers: Layers = "all"
    include_attention_output: bool = False
    targets: tuple[str, ...] = ()


@explain_arguments
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
            part: object = getattr(self, name)
            if isinstance(part, Mapping):
                part = kind(**cast("Mapping[str, Any]", part))
                object.__setattr__(self, name, part)
            if part is not None and type(part) is not kind:
                raise ConfigurationError(
                    f"{name}={shown(part)} is not a {kind.__name__}: leave it out, or use it alone"
                )
            options = [
                f.name for f in fields(Config) if part is not None and getattr(part, f.name) != f.default
            ]
            if options:
                raise ConfigurationError(f"{name} sets {options[0]}: set it for the whole fusion instead")
        if not self.parts:
            raise ConfigurationError(f"a fusion of nothing: give at least one of {', '.join(PARTS)}")

    @property
    def parts(self) -> tuple[Config, ...]:
        """Return the methods that are given."""
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

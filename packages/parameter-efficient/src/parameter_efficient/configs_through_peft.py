"""Configurations of methods that use peft: LoRA, its relatives and others. Nothing here imports torch."""

from __future__ import annotations

from dataclasses import dataclass, field
from math import inf
from typing import Literal

from finetune_common.aliases import JsonObject
from finetune_common.arguments import explain_arguments
from finetune_common.errors import ConfigurationError, check_choice, check_number, shown
from parameter_efficient.options import Config, Layers, check_patterns

__all__ = ["IA3", "LoRA", "QLoRA", "ThroughPeft"]

INITIALISATIONS = ("kaiming", "normal", "random", "orthogonal", "pissa", "olora")


@explain_arguments
@dataclass(frozen=True)
class LoRA(Config):
    """A low-rank update of weight matrices, through peft: r (inputs + outputs) parameters for each matrix.

    W' = W + (α/r) B A, A: inputs → r, B: r → outputs (Hu et al. 2021, arXiv 2106.09685, eq. 3).

    Args:
        layers: Layers to adapt, from 0, or from the end (-1); or all.
        rank: r, at least 1.
        targets: Matrices: roles (q, k, v, o, ffn_in, ffn_gate, ffn_out, cross_q, cross_k, cross_v, cross_o),
            ends of names (q_proj), or regular expressions for whole names. If a model keeps q, k and v in one
            matrix (gpt2), any of them means all three; ffn_in includes a gate.
        alpha: α, above 0; null for α = r (no scaling).
        dropout: Share of the inputs of A that training drops, in [0, 1).
        init: kaiming (A uniform as in peft, B = 0); normal (A ~ N(0, 1), B = 0); random (A and B uniform, so
            that the initial output differs from the base model's); orthogonal (A and B at right angles, so
            that B A = 0 up to rounding); pissa (the largest r singular values of W, Meng et al. 2024, arXiv
            2404.02948) and olora (the first r columns of its QR, Büyükakyüz 2024, arXiv 2406.01775), which
            subtract their initial update from W; `remove` adds it again.
        rank_pattern: Ranks of single matrices: role, end of a name, or regular expression for a whole name →
            rank; later entries win.
        alpha_pattern: Alphas of single matrices, likewise.
        rslora: Scale by α/√r (Kalajdzievski 2023, arXiv 2312.03732).
        dora: Train the norms of W's rows beside their directions (Liu et al. 2024, arXiv 2402.09353).

    Examples:
        >>> LoRA(layers=[10], rank=1, targets=["q", "k"], init="normal").targets
        ('q', 'k')
    """

    layers: Layers = "all"
    rank: int = 8
    targets: tuple[str, ...] = ("q", "v")
    alpha: float | None = None
    dropout: float = 0.0
    init: Literal["kaiming", "normal", "random", "orthogonal", "pissa", "olora"] = "kaiming"
    rank_pattern: dict[str, int] = field(default_factory=dict[str, int])
    alpha_pattern: dict[str, float] = field(default_factory=dict[str, float])
    rslora: bool = False
    dora: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number("rank", self.rank, at_least=1)
        if not self.targets:
            raise ConfigurationError(
                "targets is empty: give roles (q, k, v, o, ffn_in, ffn_out) or names of modules"
            )
        if self.alpha is not None:
            check_number("alpha", self.alpha, above=0, below=inf)
        check_number("dropout", self.dropout, at_least=0, below=1)
        check_choice("init", self.init, INITIALISATIONS)
        check_patterns("rank_pattern", tuple(self.rank_pattern))
        check_patterns("alpha_pattern", tuple(self.alpha_pattern))
        for name, rank in self.rank_pattern.items():
            check_number(f"rank_pattern[{name!r}]", rank, at_least=1)
        for name, alpha in self.alpha_pattern.items():
            check_number(f"alpha_pattern[{name!r}]", alpha, above=0, below=inf)
        if self.init == "orthogonal" and any(rank % 2 for rank in (self.rank, *self.rank_pattern.values())):
            raise ConfigurationError(f"init='orthogonal' needs even ranks, not {self.rank}: give 2, 4, …")


@explain_arguments
@dataclass(frozen=True)
class QLoRA(LoRA):
    """LoRA on a base model whose weights were loaded in 4 bits (Dettmers et al. 2023, arXiv 2305.14314).

    It needs bitsandbytes, on a GPU or (0.49 and newer) a CPU, and a model that was loaded with the arguments
    that the slot's `load_kwargs()` returns.

    Args:
        quant_type: Format of the base weights: nf4 or fp4 (4 bits), or int8 (LLM.int8, Dettmers et al. 2022,
            arXiv 2208.07339).
        double_quant: Quantise the scales of 4-bit weights as well.

    Examples:
        >>> QLoRA(rank=16, quant_type="nf4").double_quant
        True
    """

    quant_type: Literal["nf4", "fp4", "int8"] = "nf4"
    double_quant: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("quant_type", self.quant_type, ("nf4", "fp4", "int8"))


@explain_arguments
@dataclass(frozen=True)
class IA3(Config):
    """Learned factors of keys, values and inner features, through peft: L (d_k + d_v + f) parameters.

    softmax(q (l_k ⊙ k)ᵀ) (l_v ⊙ v), and l_f ⊙ φ(W h) before the feed-forward output; all begin at 1 (Liu et
    al. 2022, arXiv 2205.05638, section 3.3). If one matrix holds q, k and v (gpt2), all three have factors.

    Args:
        layers: Layers to adapt, from 0, or from the end (-1); or all.
        targets: Matrices whose outputs have factors: roles, ends of names, or regular expressions.
        feed_forward: Matrices whose inputs have factors, likewise.

    Examples:
        >>> IA3().targets
        ('k', 'v')
    """

    layers: Layers = "all"
    targets: tuple[str, ...] = ("k", "v")
    feed_forward: tuple[str, ...] = ("ffn_out",)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_patterns("feed_forward", self.feed_forward)
        if not self.targets + self.feed_forward:
            raise ConfigurationError(
                "targets and feed_forward are empty: give roles (k, v, ffn_out) or names"
            )


@explain_arguments
@dataclass(frozen=True)
class ThroughPeft(Config):
    """Any method of peft that acts inside a model (VeRA, LoHa, OFT, …), with this package's head and files.

    `adapt(model, peft.VeraConfig(...))` makes one.

    Args:
        settings: Settings of a PeftConfig, with its `peft_type`.

    Examples:
        >>> ThroughPeft(settings={"peft_type": "VERA", "r": 16}).settings["r"]
        16
    """

    settings: JsonObject = field(default_factory=lambda: {"peft_type": "VERA"})

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.settings.get("peft_type"), str):
            raise ConfigurationError(
                f"settings={shown(self.settings)} has no peft_type: give one, such as VERA or LOHA, with its "
                "settings"
            )

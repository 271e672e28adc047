"""The table: what each backward formula does with each saved value.

Whether a value may be rounded is a property of the formula that reads it. torch publishes the formulas as
`derivatives.yaml`. Keys of the table are the name of a node in the graph and that of a value that it saved.
**Values that are not in the table are kept exactly.** So a new operation costs memory, never correctness.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from types import SimpleNamespace

from activation_compression.nodes import Node, setting
from finetune_common.errors import check_choice

__all__ = [
    "DECLARABLE",
    "EXACT",
    "FORMULAS",
    "OUTLIERS",
    "SQUARED",
    "Formula",
    "Formulas",
    "effect",
    "is_vocabulary",
]

VOCABULARY = 8
"""Fewest outputs per input with which a linear map counts as that of a vocabulary."""

Settings = Node | SimpleNamespace
"""A node, or its settings under the same names."""


@dataclass(frozen=True)
class Formula:
    """How backward reads a saved value.

    Attributes:
        kind: linear: rounding is unbiased noise in the gradient. smooth: the bias is of second order. exact:
            backward divides by it, compares it, or takes its logarithm, root or exponential. logarithm: a
            logarithm of probabilities, for which 16 bits suffice. gate: backward only asks whether it is
            strictly between two numbers. index: integers below a bound. shape: its values are never read.
            coupled: valid only together with other saved values.
        gate: For a gate: node → the two numbers.
        bound: For an index: node → the bound.
        groups: Which elements of a rounded value share a minimum and a step (`group_choice`): columns,
            rotated or neighbours.
        finer: Whether a rounded value gets twice the bits: q and k of fused attention, whose scores are
            exponentiated; the inputs from which a vocabulary's logits are computed again.
        wary: Whether the value must be exact if what follows may be singular: in p (1 - p) times 1 / p, for
            example, rounding only one p makes the product explode.
        mixes: Whether a result sums products over an axis, or is normalised over one: a singular point of
            what follows is then none of a single value.
    """

    kind: str
    gate: Callable[[Node], tuple[float, float]] | None = None
    bound: Callable[[Node], int] | None = None
    groups: str = "columns"
    finer: bool = False
    wary: bool = False
    mixes: bool = False


LINEAR, SMOOTH, EXACT = Formula("linear", mixes=True), Formula("smooth"), Formula("exact")
LOGARITHM, SHAPE, COUPLED = Formula("logarithm", mixes=True), Formula("shape"), Formula("coupled")
FINER = Formula("linear", finer=True, mixes=True)
OUTLIERS = Formula("smooth", groups="rotated", mixes=True)
SQUARED = Formula("linear", groups="rotated", wary=True)
IMAGE = Formula("linear", groups="neighbours", mixes=True)
IMAGES = Formula("smooth", groups="neighbours", mixes=True)
FACTOR, RESULT = Formula("linear", wary=True), Formula("smooth", wary=True)
PROBABILITIES = Formula("smooth", wary=True, mixes=True)

DECLARABLE = {"linear": LINEAR, "smooth": SMOOTH, "exact": EXACT, "shape": SHAPE}
"""What callers may declare of the values that their own autograd functions save."""


def _gate(low: float | str, high: float | str) -> Formula:
    """Return a gate between two numbers; a text is the name of a setting of the node."""

    def ends(node: Node) -> tuple[float, float]:
        first, second = (setting(node, end) if isinstance(end, str) else end for end in (low, high))
        return float(first), float(second)

    return Formula("gate", gate=ends)


def _power(node: Settings) -> Formula:
    """x², x³, … are smooth in x; roots and negative powers are not."""
    exponent = setting(node, "exponent")
    if exponent == 2:  # usually of a normalisation by the root of the mean square
        return SQUARED
    return RESULT if exponent in (3, 4) else EXACT


def is_vocabulary(node: Settings) -> bool:
    """Return whether a linear map has so many outputs that storing its input costs little beside them."""
    sizes: tuple[int, ...] = setting(node, "mat2_sym_sizes") or ()
    return bool(sizes) and sizes[1] >= VOCABULARY * sizes[0]


def _input(node: Settings) -> Formula:
    """The input from which a vocabulary's logits are computed again gets more bits."""
    return FINER if is_vocabulary(node) else LINEAR


def _elu(node: Settings) -> Formula:
    """The slope of ELU is continuous at 0 if its two halves meet with slope 1."""
    return SMOOTH if setting(node, "alpha") * setting(node, "input_scale") == 1 else EXACT


def _image_size(node: Node) -> int:
    return math.prod(node._raw_saved_self.data.shape[-3:])


def _axis_length(node: Node) -> int:
    shape: tuple[int, ...] = node._raw_saved_self.data.shape
    dim: int = setting(node, "dim")
    return shape[dim] if shape else 1


Entry = Formula | Callable[[Settings], Formula]


def _rows(*groups: tuple[Iterable[str], Mapping[str, Entry]]) -> dict[tuple[str, str], Entry]:
    return {
        (node if node[-1].isdigit() else f"{node}Backward0", value): entry
        for nodes, values in groups
        for node in nodes
        for value, entry in values.items()
    }


_FUSED_ATTENTION = {"query": FINER, "key": FINER, "value": LINEAR, "output": COUPLED}
_NORMS = (
    *("NativeGroupNorm", "NativeBatchNorm", "CudnnBatchNorm", "MiopenBatchNorm"),
    *("NativeBatchNormLegit", "NativeBatchNormLegitBackward1", "BatchNormWithUpdate"),
)

FORMULAS = _rows(
    # products: each factor's gradient is linear in the other factor
    (("Mul",), {"self": FACTOR, "other": FACTOR}),
    (("Mm",), {"self": _input, "mat2": LINEAR}),
    (("Bmm",), {"self": LINEAR, "mat2": LINEAR}),
    (("Matmul",), {"self": LINEAR, "other": LINEAR}),
    (("Addmm",), {"mat1": _input, "mat2": LINEAR}),
    (("Baddbmm", "Addbmm"), {"batch1": LINEAR, "batch2": LINEAR}),
    (("Addmv",), {"mat": LINEAR, "vec": LINEAR}),
    (("Addr",), {"vec1": LINEAR, "vec2": LINEAR}),
    (("Mv",), {"self": LINEAR, "vec": LINEAR}),
    (("Dot",), {"self": LINEAR, "tensor": LINEAR}),
    (("Addcmul",), {"tensor1": FACTOR, "tensor2": FACTOR}),
    (("GroupedMm",), {"self": LINEAR, "mat2": LINEAR}),
    (("LerpBackward1",), {"self": FACTOR, "end": FACTOR, "weight": FACTOR}),
    (("Linear",), {"input": LINEAR, "weight": LINEAR}),
    (("Convolution", "ConvolutionBackward1"), {"input": IMAGE, "weight": IMAGE}),
    (
        ("CudnnConvolution", "CudnnConvolutionTranspose", "MkldnnConvolution", "MpsConvolution"),
        {"self": IMAGE, "weight": IMAGE},
    ),
    (("ConvDepthwise2D", "ConvDepthwise3D"), {"self": IMAGE, "weight": IMAGE}),
    (("MkldnnLinear",), {"self": LINEAR, "weight": LINEAR}),
    # losses and moments whose slope is linear
    (("MseLoss",), {"self": FACTOR, "target": FACTOR}),
    (("Var", "VarMean"), {"self": LINEAR}),
    (("Pow",), {"self": _power}),
    (("Exp",), {"result": FACTOR}),
    # bounded slopes without jumps
    (("Gelu", "Silu", "Mish", "Softplus", "Glu", "Erf"), {"self": SMOOTH}),
    (("Tanh", "Sigmoid"), {"result": RESULT}),
    (("Softmax", "SafeSoftmax"), {"result": PROBABILITIES}),
    (("Elu",), {"self": _elu}),
    (("LogSigmoid",), {"self": SMOOTH}),
    (("BinaryCrossEntropyWithLogits",), {"self": SMOOTH}),
    (_NORMS, {"input": IMAGES}),
    (("NativeLayerNorm", "FusedRmsNorm"), {"input": OUTLIERS}),
    # one bit: whether the gradient passes
    (("Relu",), {"result": _gate(0.0, math.inf)}),
    (("LeakyRelu",), {"self": _gate(0.0, math.inf)}),
    (("LeakyReluBackward1",), {"result": _gate(0.0, math.inf)}),
    (("Threshold", "ThresholdBackward1"), {"self": _gate("threshold", math.inf)}),
    (("Hardtanh",), {"self": _gate("min_val", "max_val")}),
    (("Hardsigmoid",), {"self": _gate(-3.0, 3.0)}),
    # log-probabilities: backward takes their exponential
    (("LogSoftmax",), {"result": LOGARITHM}),
    # fused attention: log-sum-exp must fit the q and k that backward reads
    (
        (
            "ScaledDotProductFlashAttentionForCpu",
            "ScaledDotProductFlashAttention",
            "ScaledDotProductCudnnAttention",
        ),
        {**_FUSED_ATTENTION, "logsumexp": COUPLED},
    ),
    (("ScaledDotProductEfficientAttention",), {**_FUSED_ATTENTION, "log_sumexp": COUPLED}),
    # integers below a known bound
    (("Embedding",), {"indices": Formula("index", bound=lambda node: setting(node, "weight_sym_argsize_0"))}),
    (("Gather",), {"index": Formula("index", bound=_axis_length)}),
    (
        ("MaxPool2DWithIndices", "MaxPool3DWithIndices", "AdaptiveMaxPool2D", "AdaptiveMaxPool3D"),
        {"result1": Formula("index", bound=_image_size)},
    ),
    # only the shape is read
    (
        ("MaxPool2DWithIndices", "MaxPool3DWithIndices", "AdaptiveMaxPool2D", "AdaptiveMaxPool3D"),
        {"self": SHAPE},
    ),
    (("AvgPool2D", "AvgPool3D", "AdaptiveAvgPool2D", "AdaptiveAvgPool3D"), {"self": SHAPE}),
    (("NllLoss", "NllLoss2D", "Gather"), {"self": SHAPE}),
    ((f"{kind}Pad{d}D" for kind in ("Reflection", "Replication") for d in (1, 2, 3)), {"self": SHAPE}),
)
"""(node, saved value) → its formula, or a function of the node if a setting of the node decides."""


def effect(formulas: Iterable[Formula]) -> str:
    """Return what an operation does to the slopes that arrive at it, for the values that it reads.

    Args:
        formulas: How its backward formula reads each value; none if it is linear in its inputs.

    Returns:
        "singular": they may grow without bound, "mixed": they no longer fit to single values, or "passed on".
    """
    known = list(formulas)
    if EXACT in known:
        return "singular"
    return "mixed" if any(formula.mixes for formula in known) else "passed on"


class Formulas:
    """The table, and what a caller declares of their own autograd functions.

    Args:
        declared: Name of an `autograd.Function` → one of `DECLARABLE` for each tensor of its
            `save_for_backward`, in that order.

    Raises:
        ConfigurationError: A kind that may not be declared.

    Examples:
        >>> Formulas({"Rotate": ["linear"]}).find("RotateBackward", 0, None).kind
        'linear'
        >>> Formulas().find("RotateBackward", 0, None).kind
        'exact'
    """

    def __init__(self, declared: Mapping[str, Iterable[str]] | None = None) -> None:
        self._declared: dict[tuple[str, int], Formula] = {}
        for name, kinds in (declared or {}).items():
            for number, kind in enumerate(kinds):
                check_choice(f"formulas[{name!r}]", kind, DECLARABLE)
                self._declared[f"{name}Backward", number] = DECLARABLE[kind]
        self._values: dict[str, list[str | int]] = {}
        for name, value in (*FORMULAS, *self._declared):
            self._values.setdefault(name, []).append(value)

    @property
    def declares(self) -> bool:
        """Whether anything was declared."""
        return bool(self._declared)

    def of(self, node: Node) -> list[Formula]:
        """Return the formulas of a node's values in the table; none if it does not know the node."""
        name = node.name()
        return [self.find(name, value, node) for value in self._values.get(name, ())]

    def find(self, name: str, value: str | int, node: Node | None) -> Formula:
        """Return how a node reads a value that it saved.

        Args:
            name: Name of the node.
            value: Name of the value; its number if a caller's own autograd function saved it.
            node: The node; if it is None, values that depend on its settings are exact.
        """
        if isinstance(value, int):
            return self._declared.get((name, value), EXACT)
        entry = FORMULAS.get((name, value), EXACT)
        if isinstance(entry, Formula):
            return entry
        return entry(node) if node is not None else EXACT

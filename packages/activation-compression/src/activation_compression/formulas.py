"""The table: what each backward formula does with each value that it saved.

Whether a value may be rounded is a property of the formula that reads it. The formulas are public: torch
ships them as `derivatives.yaml`. A name here is that of the node in the graph and of the value that it saved.
**What the table does not know is kept exactly.** So a new operation costs memory and never correctness.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from finetune_common.errors import check_choice

__all__ = [
    "DECLARABLE",
    "EXACT",
    "FORMULAS",
    "OUTLIERS",
    "Formula",
    "Formulas",
    "Node",
    "is_vocabulary",
    "what_follows",
]

VOCABULARY = 8
"""Outputs for each input from which a linear map counts as that of a vocabulary."""

Node = Any
"""A node of the graph that backward walks: `tensor.grad_fn`."""


@dataclass(frozen=True)
class Formula:
    """How backward reads a saved value.

    Attributes:
        kind: linear: rounding is unbiased noise in the gradient. smooth: the bias is of second order. exact:
            a denominator, a logarithm, a root, a comparison or an exponential is taken of it. logarithm: the
            logarithm of probabilities, which 16 bits hold. gate: only whether it lies strictly between two
            numbers is asked. index: integers below a bound. shape: its values are never read. coupled: valid
            only together with other saved values.
        gate: Of a gate: node → the two numbers.
        bound: Of an index: node → the bound.
        groups: Which elements of a rounded value share a minimum and a step (`group_choice`): columns,
            rotated or neighbours.
        finer: Whether a rounded value gets twice the bits: q and k of fused attention, whose scores are
            exponentiated; what the logits of a vocabulary are computed from again.
        wary: Whether a rounded value is wrong after all where what comes next is singular: p (1 - p) times
            1 / p, of which one p is rounded and the other is not.
    """

    kind: str
    gate: Callable[[Node], tuple[float, float]] | None = None
    bound: Callable[[Node], int] | None = None
    groups: str = "columns"
    finer: bool = False
    wary: bool = False


LINEAR, SMOOTH, EXACT = Formula("linear"), Formula("smooth"), Formula("exact")
LOGARITHM, SHAPE, COUPLED = Formula("logarithm"), Formula("shape"), Formula("coupled")
FINER = Formula("linear", finer=True)
OUTLIERS = Formula("smooth", groups="rotated")
SQUARED = Formula("linear", groups="rotated", wary=True)
IMAGE, IMAGES = Formula("linear", groups="neighbours"), Formula("smooth", groups="neighbours")
FACTOR, RESULT = Formula("linear", wary=True), Formula("smooth", wary=True)

DECLARABLE = {"linear": LINEAR, "smooth": SMOOTH, "exact": EXACT, "shape": SHAPE}
"""What a caller may say of the values that an autograd function of their own saves."""


def _gate(low: float | str, high: float | str) -> Formula:
    """Return a gate between two numbers, or the node's own settings of these names."""

    def ends(node: Node) -> tuple[float, float]:
        ends = (getattr(node, f"_saved_{end}") if isinstance(end, str) else end for end in (low, high))
        first, second = map(float, ends)
        return first, second

    return Formula("gate", gate=ends)


def _power(node: Node) -> Formula:
    """x², x³, … are smooth in x; a root is not, nor is a negative power."""
    exponent = node._saved_exponent
    if exponent == 2:  # of a normalisation by the root of the mean square, as a rule
        return SQUARED
    return RESULT if exponent in (3, 4) else EXACT


def is_vocabulary(node: Node) -> bool:
    """Return whether a linear map has so many outputs that one input costs nothing beside them."""
    sizes = getattr(node, "_saved_mat2_sym_sizes", None)
    return bool(sizes) and sizes[1] >= VOCABULARY * sizes[0]


def _input(node: Node) -> Formula:
    """What the logits of a vocabulary are computed from again gets more bits."""
    return FINER if is_vocabulary(node) else LINEAR


def _elu(node: Node) -> Formula:
    """The slope of ELU is continuous at 0 where its two halves meet with slope 1."""
    return SMOOTH if node._saved_alpha * node._saved_input_scale == 1 else EXACT


def _whole_image(node: Node) -> int:
    return math.prod(node._raw_saved_self.data.shape[-3:])


def _along_the_axis(node: Node) -> int:
    shape = node._raw_saved_self.data.shape
    return shape[node._saved_dim] if shape else 1


Entry = Formula | Callable[[Node], Formula]


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
    # products: the gradient of each factor is linear in the other one
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
    (("Addcmul",), {"tensor1": LINEAR, "tensor2": LINEAR}),
    (("GroupedMm",), {"self": LINEAR, "mat2": LINEAR}),
    (("LerpBackward1",), {"self": LINEAR, "end": LINEAR, "weight": LINEAR}),
    (("Linear",), {"input": LINEAR, "weight": LINEAR}),
    (("Convolution", "ConvolutionBackward1"), {"input": IMAGE, "weight": IMAGE}),
    (
        ("CudnnConvolution", "CudnnConvolutionTranspose", "MkldnnConvolution", "MpsConvolution"),
        {"self": IMAGE, "weight": IMAGE},
    ),
    (("ConvDepthwise2D", "ConvDepthwise3D"), {"self": IMAGE, "weight": IMAGE}),
    (("MkldnnLinear",), {"self": LINEAR, "weight": LINEAR}),
    # losses and moments whose slope is linear
    (("MseLoss",), {"self": LINEAR, "target": LINEAR}),
    (("Var", "VarMean"), {"self": LINEAR}),
    (("Pow",), {"self": _power}),
    (("Exp",), {"result": FACTOR}),
    # bounded slopes without a jump
    (("Gelu", "Silu", "Mish", "Softplus", "Glu", "Erf"), {"self": SMOOTH}),
    (("Tanh", "Sigmoid", "Softmax", "SafeSoftmax"), {"result": RESULT}),
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
    # fused attention: log-sum-exp belongs to the very q and k that are read beside it
    (
        (
            "ScaledDotProductFlashAttentionForCpu",
            "ScaledDotProductFlashAttention",
            "ScaledDotProductCudnnAttention",
        ),
        {**_FUSED_ATTENTION, "logsumexp": COUPLED},
    ),
    (("ScaledDotProductEfficientAttention",), {**_FUSED_ATTENTION, "log_sumexp": COUPLED}),
    # integers below a bound that is known
    (("Embedding",), {"indices": Formula("index", bound=lambda node: node._saved_weight_sym_argsize_0)}),
    (("Gather",), {"index": Formula("index", bound=_along_the_axis)}),
    (
        ("MaxPool2DWithIndices", "MaxPool3DWithIndices", "AdaptiveMaxPool2D", "AdaptiveMaxPool3D"),
        {"result1": Formula("index", bound=_whole_image)},
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
"""(node, saved value) → formula, or node → formula where a setting of the node decides."""

_SINGULAR = {
    f"{name}Backward0": 0
    for name in (
        *("Log", "Log2", "Log10", "Log1P", "Logit", "BinaryCrossEntropy", "Xlogy", "CtcLoss"),
        *("Reciprocal", "Sqrt", "Rsqrt", "Cdist", "LinalgVectorNorm", "Pow"),
        *("Acos", "Asin", "Acosh", "Atanh", "Erfinv", "Digamma", "Lgamma"),
    )
} | {"DivBackward0": 1}
"""Node → the number of its input near whose singular points the gradient grows without bound."""

_LOGARITHMS = ("LogBackward0", "LogSoftmaxBackward0", "Log2Backward0", "Log1PBackward0")
_PASSED_ON = frozenset(
    f"{name}Backward{number}"
    for name in (
        *("Add", "Sub", "Rsub", "Neg", "Clamp", "ClampMin", "ClampMax"),
        *("View", "UnsafeView", "Unsqueeze", "Squeeze", "Expand", "Clone"),
    )
    for number in (0, 1)
)
"""Nodes whose output is as near to a singular point as their input."""


def what_follows(node: Node, number: int) -> str:
    """Return what a node does with an input of wary values.

    Args:
        node: The node that comes next.
        number: Of its input.

    Returns:
        "singular": they must be exact. "passed on": see what comes after. "harmless" otherwise.
    """
    name = node.name()
    if name in _PASSED_ON:
        return "passed on"
    if name == "MulBackward0" and (other := node.next_functions[1 - number][0]) is not None:
        return "singular" if other.name() in _LOGARITHMS else "harmless"  # p log p
    if _SINGULAR.get(name) != number or (name == "PowBackward0" and _power(node) is not EXACT):
        return "harmless"
    return "singular"


class Formulas:
    """The table, with what a caller declares of autograd functions of their own.

    Args:
        declared: Name of an `autograd.Function` → one of `DECLARABLE` for each tensor of its
            `save_for_backward`, in that order.

    Raises:
        ConfigurationError: Something else is declared.

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

    @property
    def declares(self) -> bool:
        """Whether a caller declared anything."""
        return bool(self._declared)

    def find(self, name: str, value: str | int, node: Node) -> Formula:
        """Return how a node reads a value that it saved.

        Args:
            name: Of the node.
            value: Of the value; its number where an autograd function of a caller saved it.
            node: The node itself.
        """
        if isinstance(value, int):
            return self._declared.get((name, value), EXACT)
        entry = FORMULAS.get((name, value), EXACT)
        return entry if isinstance(entry, Formula) else entry(node)

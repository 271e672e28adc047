"""Values that need not be stored: computed again from what is stored anyway.

The graph is its own recipe. A node knows which operation made a tensor, what it saved of its inputs, and
which nodes made them; so the forward operation can be run again. That is done where it is cheap: element
by element, or along one axis. Linear maps are never run again, but for one: the logits of a vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from activation_compression.formulas import Node, is_vocabulary
from activation_compression.recipe import Recipe, noted
from activation_compression.stored import Held, Kept, Saved

__all__ = ["Inputs", "Missing", "logarithms", "made_again"]

DEEPEST = 4
"""Computations, one upon another, until a value is stored after all: no layer is run again."""


def made_again(
    node: Node | None, output: int = 0, deepest: int = DEEPEST, logits: bool = False
) -> Held | None:
    """Return what yields an output of a node again; None where that is not known or not cheap.

    Args:
        node: A node of the graph.
        output: Number of the output.
        deepest: Computations, one upon another, that are allowed.
        logits: Whether the linear map of a vocabulary may be run again.
    """
    if node is None:
        return None
    name = node.name()
    if name == "torch::autograd::AccumulateGrad":
        return Kept(node.variable) if isinstance(node.variable, nn.Parameter) else None
    if deepest < 0 or output > 0:
        return None
    if result := RESULTS.get(name):
        return _saved(node, result)
    if name in MAPS and not (logits and is_vocabulary(node)):
        return None
    make = RECIPES.get(name)
    recipe = make(Inputs(node, deepest - (name not in COPIES), logits)) if make else None
    return recipe if recipe is not None and recipe.depth <= deepest else None


class Missing(Exception):
    """An input is not known."""


class Inputs:
    """What is known of a node's inputs."""

    def __init__(self, node: Node, deepest: int, logits: bool = False) -> None:
        self.node, self.logits, self._deepest = node, logits, deepest

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the first output."""
        return tuple(self.node._input_metadata[0].shape)

    @property
    def dtype(self) -> torch.dtype:
        """Of the first output."""
        return self.node._input_metadata[0].dtype

    def saved(self, name: str) -> Held:
        """Return what the node saved."""
        held = _saved(self.node, name)
        if held is None or held.depth > self._deepest:
            raise Missing
        return held

    def edge(self, number: int) -> Held:
        """Return an input by the node that made it."""
        before, output = self.node.next_functions[number]
        held = made_again(before, output, self._deepest, self.logits)
        if held is None:
            raise Missing
        return held

    def either(self, name: str, number: int) -> Held:
        """Return an input that the node may have saved."""
        held = _saved(self.node, name)
        return self.edge(number) if held is None or held.depth > self._deepest else held


def _saved(node: Node, name: str) -> Held | None:
    raw = getattr(node, f"_raw_saved_{name}")
    value = raw.data
    if isinstance(value, Saved):
        held = value.held
        return held if held is not None and held.is_value else None
    return Kept(value) if isinstance(value, Tensor) and value.ndim == 0 else None  # a number, as in 2 * x


RESULTS = {
    f"{name}Backward0": "result" for name in ("Tanh", "Sigmoid", "Softmax", "SafeSoftmax", "Exp", "Rsqrt")
}
RESULTS |= {
    f"ScaledDotProduct{kind}Backward0": "output"
    for kind in ("FlashAttentionForCpu", "FlashAttention", "EfficientAttention", "CudnnAttention")
}
"""Node → the name under which it saves its own first output."""

Make = Callable[[Inputs], Recipe]


def _of_self(function: Callable[..., Tensor], *settings: str, curved: bool = True) -> Make:
    """Return the recipe of a function of what is saved as `self`."""

    def make(inputs: Inputs) -> Recipe:
        given = {name: getattr(inputs.node, f"_saved_{name}") for name in settings}
        source = inputs.saved("self")
        return Recipe(function.__name__, lambda x: function(x, **given), (source,), curved=curved)

    return make


def _viewed(view: Callable[[_View, Tensor], Tensor]) -> Make:
    def make(inputs: Inputs) -> Recipe:
        frozen = _View(inputs)
        return Recipe("copy", lambda x: view(frozen, x), (inputs.edge(0),))

    return make


class _View:
    """The settings of a view, without the node."""

    def __init__(self, inputs: Inputs) -> None:
        node = inputs.node
        self.shape, self.dtype = inputs.shape, inputs.dtype
        self.dims: tuple[int, ...] = tuple(map(_signed, getattr(node, "_saved_dims", ())))
        self.pair = [_signed(getattr(node, f"_saved_dim{number}", 0)) for number in (0, 1)]


def _signed(value: int) -> int:
    """Nodes tell negative axes as unsigned numbers."""
    return value - 2**64 if value >= 2**63 else value


def _product(inputs: Inputs) -> Recipe:
    return Recipe("mul", torch.mul, (inputs.either("self", 0), inputs.either("other", 1)))


def _dropped(inputs: Inputs) -> Recipe:
    scale = 1 / (1 - inputs.node._saved_p) if inputs.node._saved_p < 1 else 0.0
    sources = inputs.edge(0), inputs.saved("result1")
    return Recipe("dropout", lambda x, mask: x * mask * scale, sources, repeats=False)


def _layer_norm(inputs: Inputs) -> Recipe:
    """The output from the input and the statistics that are kept; from the input alone where all is exact."""
    node, shape = inputs.node, tuple(inputs.node._saved_normalized_shape)
    names = [n for n in ("weight", "bias") if getattr(node, f"_raw_saved_{n}").data is not None]
    scales = tuple(inputs.saved(name) for name in names)
    epsilon = noted(node, "epsilon")
    x = inputs.saved("input")
    if epsilon is not None and x.is_exact:
        return Recipe(
            "layer_norm",
            lambda x, *terms: F.layer_norm(x, shape, **dict(zip(names, terms, strict=True)), eps=epsilon),
            (x, *scales),
        )

    def compute(x: Tensor, mean: Tensor, inverse: Tensor, *terms: Tensor) -> Tensor:
        y = (x - mean) * inverse
        for name, value in zip(names, terms, strict=True):
            y = y * value if name == "weight" else y + value
        return y.to(x.dtype)

    sources = (x, inputs.saved("result1"), inputs.saved("result2"), *scales)
    return Recipe("layer_norm", compute, sources, repeats=False)


def _rms_norm(inputs: Inputs) -> Recipe:
    sources = [inputs.saved("input"), inputs.saved("result1")]
    if inputs.node._raw_saved_weight.data is not None:
        sources.append(inputs.saved("weight"))

    def compute(x: Tensor, inverse: Tensor, *weight: Tensor) -> Tensor:
        y = x * inverse
        return (y * weight[0] if weight else y).to(x.dtype)

    return Recipe("rms_norm", compute, tuple(sources), repeats=False)


def _batch_norm(inputs: Inputs) -> Recipe:
    """In training; the bias is no saved value, but the node's third input."""
    node = inputs.node
    if not node._saved_training:
        raise Missing
    sources = [inputs.saved("input"), inputs.saved("result1"), inputs.saved("result2")]
    affine = node._raw_saved_weight.data is not None
    if affine:
        sources += [inputs.saved("weight"), inputs.edge(2)]

    def compute(x: Tensor, mean: Tensor, inverse: Tensor, *terms: Tensor) -> Tensor:
        shape = (1, -1) + (1,) * (x.ndim - 2)
        y = (x - mean.view(shape)) * inverse.view(shape)
        return (y * terms[0].view(shape) + terms[1].view(shape) if terms else y).to(x.dtype)

    return Recipe("batch_norm", compute, tuple(sources), repeats=False)


def _cast(inputs: Inputs) -> Recipe:
    dtype = inputs.dtype
    return Recipe("copy", lambda x: x.to(dtype), (inputs.edge(0),))


def _logits(inputs: Inputs) -> Recipe:
    """The linear map of a vocabulary, of what it saved; a bias is the first input of the node."""
    node = inputs.node
    biased = hasattr(node, "_raw_saved_mat1")
    sources = inputs.saved("mat1" if biased else "self"), inputs.saved("mat2")
    if biased:
        return Recipe(
            "logits", lambda x, w, b: torch.addmm(b, x, w), (*sources, inputs.edge(0)), repeats=False
        )
    return Recipe("logits", torch.mm, sources, repeats=False)


def logarithms(node: Node) -> Recipe | None:
    """Return log-probabilities of a vocabulary, from what its linear map saved; None where there is none."""
    logits = made_again(*node.next_functions[0], logits=True)
    dim = _signed(node._saved_dim)
    if not isinstance(logits, Recipe):
        return None
    return Recipe("log_softmax", lambda x: F.log_softmax(x, dim), (logits,), repeats=False)


def _slice(inputs: Inputs) -> Recipe:
    node = inputs.node
    dim, step = node._saved_dim, node._saved_step
    part = slice(node._saved_start, min(node._saved_end, 2**62), step)
    return Recipe("copy", lambda x: x[(slice(None),) * dim + (part,)], (inputs.edge(0),))


def _whole(make: Make) -> Make:
    """Return a recipe maker that returns None where an input is not known."""

    def checked(inputs: Inputs) -> Any:
        try:
            return make(inputs)
        except Missing:
            return None

    return checked


RECIPES: dict[str, Make] = {
    f"{name}Backward0": _whole(make)
    for name, make in {
        "Gelu": _of_self(F.gelu, "approximate"),
        "Silu": _of_self(F.silu),
        "Mish": _of_self(F.mish),
        "Softplus": _of_self(F.softplus, "beta", "threshold"),
        "Glu": _of_self(F.glu, "dim", curved=False),
        "Mul": _product,
        "NativeDropout": _dropped,
        "NativeLayerNorm": _layer_norm,
        "FusedRmsNorm": _rms_norm,
        "NativeBatchNorm": _batch_norm,
        "Relu": lambda inputs: Recipe("relu", torch.relu, (inputs.edge(0),)),
        "Mm": _logits,
        "Addmm": _logits,
        "Slice": _slice,
        "ToCopy": _cast,
        "Clone": _viewed(lambda node, x: x),
        **dict.fromkeys(
            ("View", "UnsafeView", "ReshapeAlias", "Unsqueeze", "Squeeze"),
            _viewed(lambda node, x: x.reshape(node.shape)),
        ),
        "Expand": _viewed(lambda node, x: x.expand(node.shape)),
        "T": _viewed(lambda node, x: x.t()),
        "Permute": _viewed(lambda node, x: x.permute(node.dims)),
        "Transpose": _viewed(lambda node, x: x.transpose(*node.pair)),
    }.items()
}
"""Node → how its first output is made."""
MAPS = frozenset(("MmBackward0", "AddmmBackward0"))
"""Linear maps, which are not run again unless they make the logits of a vocabulary."""
COPIES = frozenset(
    f"{name}Backward0"
    for name in (
        *("Slice", "ToCopy", "Clone", "View", "UnsafeView", "ReshapeAlias"),
        *("Unsqueeze", "Squeeze", "Expand", "T", "Permute", "Transpose"),
    )
)
"""Nodes that compute nothing."""

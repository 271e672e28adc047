"""Values that need not be stored, since they can be computed again from stored ones.

A node of the graph knows which operation made a tensor, what the operation saved of its inputs, and which
nodes made them; so the forward operation can run again. It does where it is cheap: element by element, or
along one axis. Linear maps never run again, with one exception: the logits of a vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._C import _DisableTorchDispatch as DisableTorchDispatch  # pyright: ignore[reportPrivateUsage]

from activation_compression.formulas import is_vocabulary
from activation_compression.nodes import Node, setting
from activation_compression.recipe import Recipe, note_of
from activation_compression.stored import Held, Kept, Saved

__all__ = ["Inputs", "Missing", "logarithms", "made_again"]

DEEPEST = 4
"""Longest chain of computations behind a value; with a longer one it is stored. So no layer runs again."""


def made_again(
    node: Node | None, output: int = 0, deepest: int = DEEPEST, logits: bool = False
) -> Held | None:
    """Return how to get an output of a node again; None if that is unknown or not cheap.

    Args:
        node: A node of the graph.
        output: Number of the output.
        deepest: Longest chain of computations allowed.
        logits: Whether the linear map of a vocabulary may run again.
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
    """An input of a node is unknown."""


class Inputs:
    """The inputs of a node, as far as they are known; arguments as for `made_again`."""

    def __init__(self, node: Node, deepest: int, logits: bool = False) -> None:
        self.node, self.logits, self._deepest = node, logits, deepest

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the first output."""
        return tuple(self.node._input_metadata[0].shape)

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the first output."""
        return self.node._input_metadata[0].dtype

    def saved(self, name: str) -> Held:
        """Return an input that the node saved."""
        held = _saved(self.node, name)
        if held is None or held.depth > self._deepest:
            raise Missing
        return held

    def edge(self, number: int) -> Held:
        """Return an input from the node that made it."""
        before, output = self.node.next_functions[number]
        held = made_again(before, output, self._deepest, self.logits)
        if held is None:
            raise Missing
        return held

    def either(self, name: str, number: int) -> Held:
        """Return an input that the node saved; otherwise from the node that made it."""
        held = _saved(self.node, name)
        return self.edge(number) if held is None or held.depth > self._deepest else held


def _saved(node: Node, name: str) -> Held | None:
    value: object = getattr(node, f"_raw_saved_{name}").data
    if isinstance(value, Saved):
        held = value.held
        return held if held is not None and held.is_value else None
    if not isinstance(value, Tensor) or value.ndim:
        return None
    with DisableTorchDispatch():  # a number, as in 2 * x, which dispatch modes do not take for a tensor
        return Kept(value)


RESULTS = {
    f"{name}Backward0": "result" for name in ("Tanh", "Sigmoid", "Softmax", "SafeSoftmax", "Exp", "Rsqrt")
} | {
    f"ScaledDotProduct{kind}Backward0": "output"
    for kind in ("FlashAttentionForCpu", "FlashAttention", "EfficientAttention", "CudnnAttention")
}
"""Node → the name under which it saves its own first output."""

Make = Callable[[Inputs], Recipe]


def _of_self(function: Callable[..., Tensor], *settings: str, curved: bool = True) -> Make:
    """Return the recipe maker for a function of the input that is saved as `self`."""

    def make(inputs: Inputs) -> Recipe:
        values = {name: setting(inputs.node, name) for name in settings}
        source = inputs.saved("self")
        return Recipe(function.__name__, partial(function, **values), (source,), curved=curved)

    return make


def _viewed(view: Callable[[_View, Tensor], Tensor]) -> Make:
    def make(inputs: Inputs) -> Recipe:
        return Recipe("copy", partial(view, _View(inputs)), (inputs.edge(0),))

    return make


class _View:
    """The settings of a view, without the node."""

    def __init__(self, inputs: Inputs) -> None:
        node = inputs.node
        self.shape, self.dtype = inputs.shape, inputs.dtype
        self.dims: tuple[int, ...] = setting(node, "dims")
        self.pair: list[int] = [setting(node, name) for name in ("dim0", "dim1")]


def _product(inputs: Inputs) -> Recipe:
    return Recipe("mul", torch.mul, (inputs.either("self", 0), inputs.either("other", 1)))


def _relu(inputs: Inputs) -> Recipe:
    return Recipe("relu", torch.relu, (inputs.edge(0),))


def _dropped(inputs: Inputs) -> Recipe:
    p: float = setting(inputs.node, "p")
    scale = 1 / (1 - p) if p < 1 else 0.0

    def compute(x: Tensor, mask: Tensor) -> Tensor:
        return x * mask * scale

    return Recipe("dropout", compute, (inputs.edge(0), inputs.saved("result1")), repeats=False)


def _layer_norm(inputs: Inputs) -> Recipe:
    """Use the input and the saved statistics; if the input is exact, run the forward operation again."""
    node, shape = inputs.node, setting(inputs.node, "normalized_shape")
    names = [n for n in ("weight", "bias") if getattr(node, f"_raw_saved_{n}").data is not None]
    scales = tuple(inputs.saved(name) for name in names)
    epsilon = note_of(node).epsilon
    x = inputs.saved("input")
    if epsilon is not None and x.is_exact:

        def repeat(x: Tensor, *terms: Tensor) -> Tensor:
            return F.layer_norm(x, shape, **dict(zip(names, terms, strict=True)), eps=epsilon)

        return Recipe("layer_norm", repeat, (x, *scales))

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
    """In training only. The node does not save the bias, which is its third input."""
    node = inputs.node
    if not setting(node, "training"):
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


def _logits(inputs: Inputs) -> Recipe:
    """Run the linear map of a vocabulary on the inputs that it saved; a bias is the node's first input."""
    biased = hasattr(inputs.node, "_raw_saved_mat1")
    sources = inputs.saved("mat1" if biased else "self"), inputs.saved("mat2")
    if biased:
        return Recipe("logits", torch.addmm, (inputs.edge(0), *sources), repeats=False)
    return Recipe("logits", torch.mm, sources, repeats=False)


def logarithms(node: Node) -> Recipe | None:
    """Return how to compute log-probabilities from the inputs of a vocabulary's linear map, if known."""
    logits = made_again(*node.next_functions[0], logits=True)
    if not isinstance(logits, Recipe):
        return None
    compute = partial(F.log_softmax, dim=setting(node, "dim"))
    return Recipe("log_softmax", compute, (logits,), repeats=False)


def _slice(inputs: Inputs) -> Recipe:
    part = {name: setting(inputs.node, name) for name in ("dim", "start", "end", "step")}
    return Recipe("copy", partial(torch.ops.aten.slice, **part), (inputs.edge(0),))


def _optional(make: Make) -> Callable[[Inputs], Recipe | None]:
    """Return a recipe maker that returns None if an input is unknown."""

    def checked(inputs: Inputs) -> Recipe | None:
        try:
            return make(inputs)
        except Missing:
            return None

    return checked


RECIPES = {
    f"{name}Backward0": _optional(make)
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
        "Relu": _relu,
        "Mm": _logits,
        "Addmm": _logits,
        "Slice": _slice,
        "ToCopy": _viewed(lambda node, x: x.to(node.dtype)),
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
"""Linear maps, which run again only if they make the logits of a vocabulary."""
COPIES = frozenset(
    f"{name}Backward0"
    for name in (
        *("Slice", "ToCopy", "Clone", "View", "UnsafeView", "ReshapeAlias"),
        *("Unsqueeze", "Squeeze", "Expand", "T", "Permute", "Transpose"),
    )
)
"""Nodes that compute nothing."""

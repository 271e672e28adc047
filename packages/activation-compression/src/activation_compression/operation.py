"""Which operation is saving a tensor, and which module called it."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

__all__ = ["CurrentOperation", "calling_module"]

DROPOUT = frozenset(
    [
        "dropout",
        "dropout_",
        "dropout1d",
        "dropout2d",
        "dropout3d",
        "alpha_dropout",
        "feature_dropout",
        "feature_alpha_dropout",
        "native_dropout",
        "multi_head_attention_forward",
    ]
)
ATTENTION = "scaled_dot_product_attention"
GATES = {
    "relu": (0.0, math.inf),
    "relu_": (0.0, math.inf),
    "leaky_relu": (0.0, math.inf),
    "leaky_relu_": (0.0, math.inf),
    "relu6": (0.0, 6.0),
    "hardtanh": (-1.0, 1.0),
    "hardtanh_": (-1.0, 1.0),
}
"""Operations whose backward pass asks for nothing but whether an element is strictly between two numbers."""

EXACT = frozenset(
    [
        *("amax", "amin", "aminmax", "max", "min", "maximum", "minimum", "fmax", "fmin"),
        *("norm", "linalg_norm", "linalg_vector_norm", "vector_norm", "linalg_matrix_norm", "cdist", "dist"),
        *("abs", "absolute", "clamp", "clip", "clamp_min", "clamp_max", "threshold", "prelu", "rrelu"),
        *("hardshrink", "softshrink", "hardsigmoid", "hardswish"),
        *("l1_loss", "smooth_l1_loss", "huber_loss", "hinge_embedding_loss", "margin_ranking_loss"),
        *("cross_entropy", "log_softmax", "logsumexp", "nll_loss"),
    ]
)
"""Operations whose backward pass compares what they saved, or takes exponentials of it where masked scores of
-∞ are usual: what is rounded would be wrong there, not noisy."""

LINEAR = frozenset(
    [
        "linear",
        "addmm",
        "conv1d",
        "conv2d",
        "conv3d",
        "conv_transpose1d",
        "conv_transpose2d",
        "conv_transpose3d",
    ]
)
"""Operations whose saved input enters the gradient of their weight alone, and that linearly."""


class CurrentOperation(TorchFunctionMode):
    """Remember the torch function that is running: within it a tensor is saved."""

    def __init__(self) -> None:
        super().__init__()
        self.function: Callable[..., Any] | None = None
        self.arguments: Sequence[Any] = ()
        self.settings: Mapping[str, Any] = {}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run a torch function, known while it runs."""
        kwargs = kwargs or {}
        self.function, self.arguments, self.settings = func, args, kwargs
        try:
            return func(*args, **kwargs)
        finally:
            self.function, self.arguments, self.settings = None, (), {}

    @property
    def name(self) -> str | None:
        """The function's name, or None outside of one (a custom autograd function)."""
        return getattr(self.function, "__name__", None)

    @property
    def needs_exact(self) -> bool:
        """Whether it is one of `EXACT`, in place or not."""
        return (self.name or "").strip("_") in EXACT

    @property
    def gate(self) -> tuple[float, float] | None:
        """The two numbers of an operation in `GATES`."""
        found = GATES.get(self.name or "")
        if found is None or not str(self.name).startswith("hardtanh"):
            return found
        given = dict(zip(("min_val", "max_val"), self.arguments[1:], strict=False)) | dict(self.settings)
        return float(given.get("min_val", found[0])), float(given.get("max_val", found[1]))

    def tensors(self) -> list[Tensor]:
        """Return the tensors it was called with."""
        found = [*self.arguments, *self.settings.values()]
        return [value for value in found if isinstance(value, Tensor)]

    def made_mask(self, tensor: Tensor) -> bool:
        """Return whether a tensor without gradient history is the mask of a dropout.

        It is one if a dropout, or an attention with dropout, made it: it is none of the operation's arguments
        and has the shape of what is dropped.
        """
        if self.name in DROPOUT:
            return not self._is_argument(tensor)
        if self.name != ATTENTION:
            return False
        query, key, *rest = [
            *self.arguments,
            *(self.settings[n] for n in ("query", "key") if n in self.settings),
        ]
        rate = rest[2] if len(rest) > 2 else self.settings.get("dropout_p", 0.0)
        drops = isinstance(rate, (int, float)) and rate > 0
        if not drops or tensor.ndim != query.ndim or self._is_argument(tensor):
            return False
        return tensor.shape[-2:] == (query.shape[-2], key.shape[-2])

    def fitting_dtype(self, tensor: Tensor) -> torch.dtype | None:
        """Return a narrower dtype that holds the indices which the operation saves; reads none of them.

        Rows of an embedding's table, and places in the image of a max-pooling.
        """
        name = self.name or ""
        given = self.tensors()
        if name == "embedding" and tensor.dtype == torch.int64:
            ends = [t.shape[0] for t in given if t.is_floating_point()]
        elif name.startswith("max_pool") and tensor.dtype == torch.int64:
            ends = [t.shape[-3:].numel() for t in given]
        else:
            return None
        fitting = (
            dtype for dtype in (torch.uint8, torch.int16, torch.int32) if ends[0] <= torch.iinfo(dtype).max
        )
        return next(fitting, None)

    def _is_argument(self, tensor: Tensor) -> bool:
        storage = tensor.untyped_storage()._cdata
        return any(given.untyped_storage()._cdata == storage for given in self.tensors())


def calling_module(names: Mapping[int, str]) -> str:
    """Return the name of the innermost module whose `forward` is running, found on the call stack.

    Args:
        names: id of a module → its name.
    """
    frame = sys._getframe(1)
    while frame is not None:
        code = frame.f_code
        if code.co_name == "forward" and code.co_varnames[:1] == ("self",):
            name = names.get(id(frame.f_locals["self"]))
            if name is not None:
                return name
        frame = frame.f_back
    return ""


def producer(tensor: Tensor) -> str:
    """Return the name of the operation that made a tensor."""
    node = tensor.grad_fn
    return "input" if node is None else node.name().rstrip("0123456789").removesuffix("Backward")


VIEWS_AND_COPIES = frozenset(
    f"{name}Backward0"
    for name in [
        "T",
        "Transpose",
        "Permute",
        "View",
        "ReshapeAlias",
        "UnsafeView",
        "Expand",
        "ToCopy",
        "Clone",
    ]
)


def made_of_parameter(tensor: Tensor) -> bool:
    """Return whether a tensor is a leaf that trains, or its view, or its copy in another dtype."""
    if tensor.is_leaf:
        return tensor.requires_grad
    node: Any = tensor.grad_fn
    while node is not None and node.name() in VIEWS_AND_COPIES:
        node = node.next_functions[0][0]
    return node is not None and node.name() == "torch::autograd::AccumulateGrad"


def is_side_result(tensor: Tensor) -> bool:
    """Return whether an operation made a tensor beside its main result: statistics of a normalisation."""
    return tensor.output_nr > 0 and not tensor._is_view()

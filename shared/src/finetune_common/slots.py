"""The four slots of a fine-tuning run, the monitors, and how installed methods are found.

Every method fills exactly one slot, and methods in different slots compose freely:

    data ─▶ model ──forward──▶ loss ──backward──▶ gradients ──▶ optimizer step ─▶ metrics
             ▲          ▲                            ▲               ▲
        adaptation   activation                  gradient        optimizer

A package offers a method as an entry point in the group of its slot; the entry point's name is the name
used on the command line, and its object is a class with the attributes of `Method`. Nothing here imports
torch, so that a command line can list methods and their options at once.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from finetune_common.errors import ConfigurationError, did_you_mean
from finetune_common.imported import imported

if TYPE_CHECKING:
    import torch

    from finetune_common.aliases import ParamGroup, Settings, StateDict

__all__ = [
    "GROUPS",
    "HOLDERS",
    "Activation",
    "Adaptation",
    "Gradient",
    "Method",
    "Monitor",
    "Optimizer",
    "Part",
    "Portable",
    "available",
    "find",
]

HOLDERS = {
    "adaptation": {
        "parameter-efficient": "head-only bottleneck-adapter lora qlora prefix bitfit ffn-only fusion ia3 "
        "compacter loreft peft",
        "glue-harness": "full",
    },
    "activation": {
        "activation-compression": "compress checkpoint offload compress+checkpoint",
        "glue-harness": "none",
    },
    "gradient": {"noise-injection": "agni agni-as-released annealed-noise"},
    "optimizer": {
        "sensitivity-lr": "sage-adamw sage-adamax sage-sgd",
        "clipped-adaptive": "clipped-adam clipped-adagrad clipped-sgd",
        "glue-harness": "adamw adam adamax sgd asgd adagrad adadelta rmsprop radam nadam adamw-8bit "
        "lion-8bit",
    },
    "monitor": {
        "sensitivity-lr": "sensitivity",
        "clipped-adaptive": "tails",
        "noise-injection": "gradient-noise",
    },
}
"""Slot → package of this project → its methods, for the message that a method is not installed."""


class Method(Protocol):
    """Attributes of every entry point's class, in any slot.

    `Options` is a frozen dataclass that validates itself in `__post_init__` (raising `ConfigurationError`)
    and whose module imports no torch; each field has a default and is described under `Args:` in the
    dataclass docstring, which is what `--help` prints. The first line of the method's own docstring is its
    description in lists. A method that cannot work with sharded parameters (FSDP) says why, and what to use,
    in an attribute `not_sharded`: such a run is refused before anything is loaded.
    """

    name: ClassVar[str]
    Options: ClassVar[type]

    def __init__(self, options: Any) -> None: ...


class Part(Protocol):
    """The lifecycle of an object that a slot or a monitor returns; each method is optional.

    A run's parts are its adaptation and activation method, its optimizer, and the objects that gradient
    methods and monitors return from `attach`. Every optimizer step calls, in this order:

        `before_forward` → forward and backward passes → `after_backward` → gradient methods and the
        optimizer's step → `on_step`

    and every checkpoint holds the state of all parts.
    """

    def before_forward(self, step: int) -> None:
        """Prepare the model for a step, e.g. choose which parameters train.

        Args:
            step: Number of the optimizer step that begins, from 1.
        """
        ...

    def after_backward(self, step: int, loss_fn: Callable[[], torch.Tensor]) -> None:
        """Act between the backward pass and the step.

        Args:
            step: Number of this optimizer step, from 1.
            loss_fn: Runs the forward pass of the last micro-batch again and returns its loss, with a graph.
                Each process has a part of the micro-batch: the mean of their losses is that of its rows.
                Random numbers drawn meanwhile, also by dropout, do not change those drawn later.
        """
        ...

    def on_step(self, step: int) -> Mapping[str, object]:
        """Look at gradients and new weights after the step; return numbers and text for `metrics.jsonl`."""
        ...

    def state_dict(self) -> StateDict:
        """Return all state as tensors and plain data: a run refuses to save other objects."""
        ...

    def load_state_dict(self, state: StateDict) -> None:
        """Load the state of a checkpoint."""
        ...

    def remove(self) -> None:
        """Restore the model and the optimizer."""
        ...


class Adaptation(Method, Protocol):
    """Which parameters train."""

    def load_kwargs(self) -> Settings:
        """Return arguments for `from_pretrained`, empty unless the method acts when weights are loaded."""
        ...

    def apply(self, model: torch.nn.Module) -> torch.nn.Module:
        """Change the model and set `requires_grad`; called once, before the optimizer is built.

        The optimizer gets the parameters that require a gradient now; later ones must be among them.
        """
        ...


class Portable(Protocol):
    """Optional methods of an adaptation, so that a run leaves a model that others can load.

    Without `merged`, a model is complete if its parameters have the usual names and shapes of its kind.
    Without `save` and `load`, the trained part stays in the run's checkpoint.
    """

    def merged(self, model: torch.nn.Module) -> torch.nn.Module | None:
        """Fold the adaptation into the model's weights.

        Args:
            model: What `apply` or `load` returned; it may be changed and is not used afterwards.

        Returns:
            A model of the original kind, with the same output up to rounding; None if such weights cannot
            hold the adaptation, and `model` is unchanged then.
        """
        ...

    def save(self, model: torch.nn.Module, folder: Path) -> None:
        """Write the trained part for `load`, without the base model, into an existing folder.

        Args:
            model: What `apply` or `load` returned, not merged.
            folder: Receives files.
        """
        ...

    def load(self, model: torch.nn.Module, folder: Path) -> torch.nn.Module:
        """Adapt a base model like `apply`, with the saved trained part.

        Args:
            model: The base model, not adapted.
            folder: Written by `save`.
        """
        ...


class Activation(Method, Protocol):
    """How saved tensors are kept until backward.

    A method that acts on compiled models has `compile_options()`, which returns options for `torch.compile`.
    A run that compiles calls it before the first forward pass; a method that cannot raises there.
    """

    def around_forward(self, model: torch.nn.Module) -> AbstractContextManager[object]:
        """Return the context in which each training forward pass runs."""
        ...

    def stats(self) -> Mapping[str, object]:
        """Return at least `stored_bytes` of the last forward pass, or an empty mapping."""
        ...


class Gradient(Method, Protocol):
    """Changes gradients between backward (after clipping and unscaling) and the step."""

    def attach(self, optimizer: torch.optim.Optimizer, accumulate: int) -> object:
        """Attach to an optimizer whose step sees `accumulate` micro-batches; return a part."""
        ...


class Optimizer(Method, Protocol):
    """How the update is computed. Weight decay is a key of the groups, never an option.

    An optimizer that clips gradients may give its level in an attribute `clips_at` (None if not fixed), for a
    warning if `--max-grad-norm` leaves nothing to clip.
    """

    def build(self, model: torch.nn.Module, param_groups: list[ParamGroup]) -> torch.optim.Optimizer:
        """Return the optimizer.

        Args:
            model: The adapted model.
            param_groups: `{"params": [(name, parameter), …], "weight_decay": float}`, with `"lr"` if it
                differs from the option `lr`.
        """
        ...


class Monitor(Method, Protocol):
    """Something recorded during training."""

    def attach(self, model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> object:
        """Attach after the gradient slot, before the first step; return a part."""
        ...


KINDS = {kind.__name__.lower(): kind for kind in (Adaptation, Activation, Gradient, Optimizer, Monitor)}
"""Slot → what its methods have."""

GROUPS = {slot: f"finetune_common.{slot}s" for slot in KINDS}
"""Slot → entry-point group."""


@cache
def available(slot: str) -> Mapping[str, EntryPoint]:
    """Return the installed methods of a slot by name, without importing them.

    Args:
        slot: One of `GROUPS`.

    Raises:
        ConfigurationError: Two packages offer the same name.
    """
    points: dict[str, EntryPoint] = {}
    for point in sorted(entry_points(group=GROUPS[slot]), key=lambda point: point.name):
        other = points.setdefault(point.name, point)
        if other.value != point.value:
            raise ConfigurationError(
                f"{slot} {point.name!r} is offered by {other.value} and by {point.value}: "
                "uninstall one of them"
            )
    return points


def find(slot: str, name: str) -> type[Any]:
    """Return the class of an installed method.

    Args:
        slot: One of `GROUPS`.
        name: The method's name, as on the command line, or the path of its class,
            `package.module.Class`; in the optimizer's slot that may be any `torch.optim.Optimizer`.

    Raises:
        ConfigurationError: Not installed (names its package), unknown (lists the known ones), or its package
            is broken.
    """
    if "." in name:
        return imported(slot, name, KINDS[slot])
    methods = available(slot)
    if name in methods:
        try:
            return methods[name].load()
        except (ImportError, AttributeError) as error:
            raise ConfigurationError(
                f"{slot} {name!r} cannot be imported from {methods[name].value} ({error}): "
                "reinstall its package"
            ) from error
    for package, names in HOLDERS[slot].items():
        if name in names.split():
            raise ConfigurationError(
                f"{slot} {name!r} is not installed: it is in packages/{package}; from the checkout run "
                f"'pip install ./shared ./packages/{package}'"
            )
    known = did_you_mean(name, methods) if methods else "no method is installed"
    path = "" if known.endswith("?") else ", or give the path of a class, package.module.Class"
    raise ConfigurationError(f"{slot} {name!r} is unknown: {known}{path}")

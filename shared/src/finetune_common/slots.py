"""The four slots of a fine-tuning run, the monitors beside them, and how installed methods are found.

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

if TYPE_CHECKING:
    import torch

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

GROUPS = {
    "adaptation": "finetune_common.adaptations",
    "activation": "finetune_common.activations",
    "gradient": "finetune_common.gradients",
    "optimizer": "finetune_common.optimizers",
    "monitor": "finetune_common.monitors",
}
"""Slot → entry-point group."""

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
"""Slot → package of this project → the names it holds, for the message about a method not installed."""


class Method(Protocol):
    """What every entry point's class has, whatever its slot.

    `Options` is a frozen dataclass that validates itself in `__post_init__` (raising `ConfigurationError`)
    and whose module imports no torch; each field has a default and is described under `Args:` in the
    dataclass docstring, which is what `--help` prints. The first line of the method's own docstring is its
    description in lists. A method that cannot work on parameters that are split over processes (FSDP) says
    why, and what to use, in an attribute `not_sharded`: it is refused there before anything is loaded.
    """

    name: ClassVar[str]
    Options: ClassVar[type]

    def __init__(self, options: Any) -> None: ...


class Part(Protocol):
    """The lifecycle of whatever a slot or a monitor hands back; each method is optional.

    A run's parts are its adaptation and activation method, its optimizer, and what gradient methods and
    monitors give when they are attached. In every optimizer step a run tells them, in this order:

        `before_forward` → forward and backward passes → `after_backward` → gradient methods and the
        optimizer's step → `on_step`

    and every checkpoint holds the state of all of them.
    """

    def before_forward(self, step: int) -> None:
        """Get the model ready for a step: say, choose what trains.

        Args:
            step: Number of the optimizer step that begins, from 1.
        """
        ...

    def after_backward(self, step: int, loss_fn: Callable[[], torch.Tensor]) -> None:
        """Act between the backward pass and the step.

        Args:
            step: Number of this optimizer step, from 1.
            loss_fn: Runs the forward pass of the last micro-batch again and returns its loss, with a graph.
                Several processes have a part of the micro-batch each: the mean of their losses is the mean
                loss of its rows. What is drawn at random meanwhile, dropout included, does not change
                what the run draws later.
        """
        ...

    def on_step(self, step: int) -> Mapping[str, Any]:
        """Look at gradients and new weights after the step; what is returned goes into `metrics.jsonl`."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """Return all state as tensors and plain data."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over the state of a checkpoint."""
        ...

    def remove(self) -> None:
        """Leave the model and the optimizer as they were."""
        ...


class Adaptation(Method, Protocol):
    """Which parameters train."""

    def load_kwargs(self) -> dict[str, Any]:
        """Return arguments for `from_pretrained`, empty unless the method acts when weights are loaded."""
        ...

    def apply(self, model: torch.nn.Module) -> torch.nn.Module:
        """Change the model and set `requires_grad`; called once, before the optimizer is built.

        The optimizer gets what requires a gradient now; what is to train later is among it.
        """
        ...


class Portable(Protocol):
    """What an adaptation may have besides, so that a run leaves a model that others load; each is optional.

    Without `merged`, a model whose parameters have the names and shapes of any model of its kind is whole as
    it is. Without `save` and `load`, what was trained stays in the run's checkpoint.
    """

    def merged(self, model: torch.nn.Module) -> torch.nn.Module | None:
        """Fold the adaptation into the model's own weights.

        Args:
            model: What `apply` or `load` returned; it may be changed and is not used afterwards.

        Returns:
            A model of the kind that was adapted, with the same output but for rounding; None where no weights
            of that kind can hold the adaptation, and `model` then is as it was.
        """
        ...

    def save(self, model: torch.nn.Module, folder: Path) -> None:
        """Write what `load` needs into a folder that is there: what was trained, without the base model.

        Args:
            model: What `apply` or `load` returned, not merged.
            folder: Receives files.
        """
        ...

    def load(self, model: torch.nn.Module, folder: Path) -> torch.nn.Module:
        """Adapt a base model as `apply` does, with what was trained.

        Args:
            model: The base model, not adapted.
            folder: What `save` wrote.
        """
        ...


class Activation(Method, Protocol):
    """How saved tensors are kept until backward.

    A method that acts on compiled models returns options for `torch.compile` from a `compile_options()`,
    which is called before the first forward pass of a run that compiles; one that cannot raises there.
    """

    def around_forward(self, model: torch.nn.Module) -> AbstractContextManager[Any]:
        """Return the context in which each training forward pass runs."""
        ...

    def stats(self) -> Mapping[str, Any]:
        """Return at least `stored_bytes` of the last forward pass, or an empty mapping."""
        ...


class Gradient(Method, Protocol):
    """What is done to gradients between backward (after clipping and unscaling) and the step."""

    def attach(self, optimizer: torch.optim.Optimizer, accumulate: int) -> Any:
        """Attach to an optimizer whose step sees `accumulate` micro-batches; return a part."""
        ...


class Optimizer(Method, Protocol):
    """How the update is computed. Weight decay is a key of the groups, never an option.

    One that clips gradients itself may tell its level in an attribute `clips_at` (None for no fixed one), for
    a warning where `--max-grad-norm` leaves nothing to clip.
    """

    def build(self, model: torch.nn.Module, param_groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
        """Return the optimizer.

        Args:
            model: The adapted model.
            param_groups: `{"params": [(name, parameter), …], "weight_decay": float}`, with `"lr"` where it
                differs from the option `lr`.
        """
        ...


class Monitor(Method, Protocol):
    """Something recorded during training."""

    def attach(self, model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> Any:
        """Attach after the gradient slot, before the first step; return a part."""
        ...


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
        name: The method's name, as on the command line.

    Raises:
        ConfigurationError: Not installed (says which package holds it), unknown (says what is there), or
            its package is broken.
    """
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
    raise ConfigurationError(f"{slot} {name!r} is unknown: {known}")

"""One body with a head for each task: a classifier with the head and labels of the batch's task.

The classifier contains the first task's head. A forward pass for another task runs the same modules with that
task's parameters in the head, so that an adaptation of the classifier acts for every task. This is the shared
encoder of MT-DNN (Liu et al., 2019, section 3) for any classifier.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from finetune_common.errors import ConfigurationError
from finetune_common.slots import Adaptation
from finetune_common.tasks import Task
from glue_harness.run.models import labels_of

__all__ = ["Heads", "head_of", "with_heads"]


def head_of(model: Any) -> dict[str, nn.Parameter]:
    """Return the parameters of a classifier that lie outside of its base model, by name.

    Raises:
        ConfigurationError: There are none: the model is only a base.
    """
    base = model.base_model
    body = {id(parameter) for parameter in base.parameters()}
    head = {name: parameter for name, parameter in model.named_parameters() if id(parameter) not in body}
    if base is model or not head:
        raise ConfigurationError(
            f"--task: several tasks need a separate head each, and a {type(model).__name__} has no head: "
            "train one task, or use another model"
        )
    return head


class Heads(nn.Module):
    """A classifier with a head for each of several tasks.

    Args:
        model: The classifier, adapted, with the first task's head.
        tasks: By name, the first one first.
        heads: Task → parameters of its head by their names in the classifier, of all but the first.

    Raises:
        ConfigurationError: The adaptation replaced the head.
    """

    def __init__(
        self, model: Any, tasks: Mapping[str, Task], heads: Mapping[str, Mapping[str, nn.Parameter]]
    ) -> None:
        super().__init__()
        self.model, self.tasks = model, dict(tasks)
        places = dict(model.named_parameters())
        names = list(next(iter(heads.values())))
        if gone := [name for name in names if name not in places]:
            raise ConfigurationError(
                f"--task: the adaptation replaced {gone[0]}, of which each of several tasks needs its own: "
                "use an adaptation that keeps the head"
            )
        self._first = {name: places[name] for name in names}  # a dict: the classifier registers them already
        for head in heads.values():
            for name, parameter in head.items():
                parameter.requires_grad_(places[name].requires_grad)
        self.heads = nn.ModuleDict(
            {_key(task): nn.ParameterList(head.values()) for task, head in heads.items()}
        )

    @property
    def base_model(self) -> Any:
        """The common body."""
        return self.model.base_model

    @property
    def config(self) -> Any:
        """The classifier's configuration."""
        return self.model.config

    def compile(self, *args: Any, **kwargs: Any) -> None:
        """Compile the classifier; its head is chosen outside the compiled code."""
        self.model.compile(*args, **kwargs)

    def forward(self, task: str, **batch: Any) -> Any:
        """Return the classifier's loss and logits for a batch of one task."""
        self._speak_of(task)
        try:
            if _key(task) not in self.heads:
                return self.model(**batch)
            return torch.func.functional_call(self.model, self.head(task), kwargs=batch, tie_weights=False)
        finally:
            self._speak_of(next(iter(self.tasks)))

    def head(self, task: str) -> dict[str, Any]:
        """Return the parameters of a task's head by their names in the classifier."""
        key = _key(task)
        modules: Any = self.heads[key] if key in self.heads else self._first.values()
        return dict(zip(self._first, modules, strict=True))

    def _speak_of(self, task: str) -> None:
        number = self.tasks[task].num_labels
        self.model.config.num_labels = number
        for field, value in labels_of(self.tasks[task]).items():
            setattr(self.model.config, field, value)
        if hasattr(self.model, "num_labels"):
            self.model.num_labels = number

    def become(self, task: str) -> Any:
        """Put a task's head into the classifier permanently, and return the classifier."""
        self._speak_of(task)
        for name, parameter in self.head(task).items():
            place, _, leaf = name.rpartition(".")
            setattr(self.model.get_submodule(place), leaf, parameter)
        return self.model


def _key(task: str) -> str:
    """Return a name for a task's head that cannot clash with a module's attributes."""
    return f"of-{task}"


def with_heads(
    bases: Mapping[str, Callable[[], Any]], tasks: Mapping[str, Task], adaptation: Adaptation
) -> Heads:
    """Return an adapted classifier with a head for each task, initialised as in a run of only that task.

    Args:
        bases: Task → function that makes the initial classifier of the task's run.
        tasks: By name, the first one first.
        adaptation: Applied to the first task's classifier.
    """
    first, *others = tasks
    heads = {name: head_of(bases[name]()) for name in others}
    base = bases[first]()
    head_of(base)
    return Heads(adaptation.apply(base), tasks, heads)

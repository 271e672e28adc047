"""A run assembled from its configuration, or opened from its folder.

The training loop, every command and the benchmark scripts load their models here, and only here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from accelerate.utils import set_seed

from finetune_common.aliases import JsonObject
from finetune_common.arguments import explain_arguments
from finetune_common.errors import ConfigurationError
from finetune_common.tasks import Task
from glue_harness.config.fields import RunConfig
from glue_harness.config.own_rows import choices_of
from glue_harness.config.parsing import parse_mapping
from glue_harness.run import checkpoint
from glue_harness.run.architectures import find_config
from glue_harness.run.digests import check_undamaged
from glue_harness.run.fit import check_tokens
from glue_harness.run.heads import Heads, with_heads
from glue_harness.run.methods import Methods, build_methods
from glue_harness.run.mixture import task_of_several
from glue_harness.run.models import (
    build_model,
    has_weights,
    load_classifier,
    load_model,
    load_tokenizer,
    quiet_about_heads,
)
from glue_harness.run.parameters import parameter_groups
from glue_harness.run.pooler import renew_pooler
from glue_harness.run.predictor import Predictor
from glue_harness.run.reading import read_settings
from glue_harness.run.records import ADAPTER, MODEL, read_result
from glue_harness.run.tasks import task_of, task_of_finished_run, task_of_model

__all__ = [
    "Run",
    "base_model",
    "create",
    "create_untrained",
    "open_model",
    "open_run",
    "read_config",
    "reopen",
    "tell",
]


@dataclass
class Run:
    """A model with the methods of its slots.

    Attributes:
        attached: Whether the adaptation's modules are in the model; False if merged.
        config: Its configuration.
        methods: The methods of its slots.
        model: The adapted model.
        task: Its task; None with random rows. With several tasks, the combined one, and the model is a
            `glue_harness.run.heads.Heads`.
        tokenizer: The model's tokenizer; None with random rows.
        optimizer: Set by `prepare`.
        handles: Objects that gradient methods and monitors returned from `attach`, by their names in a
            checkpoint: `gradient.0`, `monitor.0`, …
    """

    config: RunConfig
    methods: Methods
    model: torch.nn.Module
    task: Task | None = None
    tokenizer: Any = None
    attached: bool = True
    optimizer: torch.optim.Optimizer | None = None
    handles: dict[str, object] = field(default_factory=dict)

    def prepare(self, accumulate: int, begin: Callable[[str], None] = lambda part: None) -> None:
        """Build the optimizer and attach the gradient methods and the monitors.

        Args:
            accumulate: Micro-batches in each optimizer step.
            begin: Called within a step when a part begins: "gradient", then "optimizer".
        """
        config, methods = self.config, self.methods
        groups = parameter_groups(self.model, config.weight_decay, config.head_lr, config.decay_all)
        self.optimizer = optimizer = methods.optimizer.build(self.model, groups)
        optimizer.register_step_pre_hook(lambda *_: begin("gradient"))
        for number, gradient in enumerate(methods.gradient):
            self.handles[f"gradient.{number}"] = gradient.attach(optimizer, accumulate)
        optimizer.register_step_pre_hook(lambda *_: begin("optimizer"))
        for number, monitor in enumerate(methods.monitor):
            self.handles[f"monitor.{number}"] = monitor.attach(self.model, optimizer)

    def for_task(self, task: str) -> Run:
        """Return a run of several tasks as a run of this task, with the task's head in its classifier."""
        heads, config = self.model, self.config.for_task(task)
        assert isinstance(heads, Heads)
        return replace(self, config=config, model=heads.install_head(task), task=heads.tasks[task])

    @property
    def predictor(self) -> Predictor:
        """The predictor of the model."""
        assert self.task is not None
        choices = choices_of(self.config.as_dict())
        return Predictor(self.model, self.tokenizer, self.task, self.config.max_length, choices)

    def predict(self, texts: Sequence[str | Sequence[str]], batch_size: int = 32) -> list[JsonObject]:
        """Return each text's label and scores; see `glue_harness.run.predictor.Predictor`."""
        return self.predictor.predict(texts, batch_size)

    def detach(self) -> None:
        """Remove gradient methods and monitors; the adaptation stays."""
        tell(self.handles.values(), "remove")
        self.handles = {}

    @property
    def parts(self) -> dict[str, object]:
        """The parts of a run's lifecycle (`finetune_common.slots.Part`), by name."""
        first = {"adaptation": self.methods.adaptation, "activation": self.methods.activation}
        return {**first, "optimizer": self.optimizer, **self.handles}


def tell(parts: Iterable[object], what: str, *args: object) -> list[Any]:
    """Call a lifecycle method on every part that has it, in order; return the results."""
    return [getattr(part, what)(*args) for part in parts if hasattr(part, what)]


def create(
    config: RunConfig,
    *,
    methods: Methods | None = None,
    task: Task | None = None,
    tasks: Mapping[str, Task] | None = None,
    tokenizer: Any = None,
    adapter: Path | None = None,
) -> Run:
    """Assemble a run: its methods, its model from pretrained weights, and the adaptation.

    Args:
        config: The run.
        methods: Its methods, if built already.
        task: Its task, if known already; else it is read from its rows.
        tasks: The same for a run of several tasks, by name.
        tokenizer: The model's tokenizer, if loaded already.
        adapter: Folder with its adaptation's trained part.

    Returns:
        The run, its model on the CPU; new weights are drawn from the run's seed.

    Raises:
        ConfigurationError: Something cannot be loaded, with the remedy.
    """
    methods = methods or build_methods(config)
    tokenizer = tokenizer or load_tokenizer(config.model, config.model_config.get("pad_token_id"))
    if config.several:
        tasks = tasks or {name: task_of(config.for_task(name)) for name in config.tasks}
        run = Run(config, methods, torch.nn.Module(), task_of_several(tasks), tokenizer)
        bases = {name: partial(base_model, replace(run, task=task)) for name, task in tasks.items()}
        run.model = with_heads(bases, tasks, methods.adaptation)
        return run
    run = Run(config, methods, torch.nn.Module(), task or task_of(config), tokenizer)
    base, adaptation = base_model(run), cast("Any", methods.adaptation)
    run.model = adaptation.apply(base) if adapter is None else adaptation.load(base, adapter)
    return run


def base_model(run: Run) -> torch.nn.Module:
    """Return a run's model before adaptation; new weights are drawn from the seed."""
    config, kwargs = run.config, run.methods.adaptation.load_kwargs()
    set_seed(config.seed if config.head_seed is None else config.head_seed)
    assert run.task is not None
    model = load_model(config.model, run.task, run.tokenizer, kwargs, config.model_config)
    if config.head == "new":
        renew_pooler(model)
    if config.head_seed is not None:
        set_seed(config.seed)
    return model


def create_untrained(config: RunConfig, device: str = "cpu", attention: str | None = None) -> Run:
    """Assemble a run with random weights and no rows, to measure or predict its steps.

    Args:
        config: The run.
        device: The device of its model.
        attention: "eager" uses plain operations, others torch's kernels; by default the model's own.

    Raises:
        ConfigurationError: There is no model of this shape, or not with this attention.
    """
    torch.manual_seed(config.seed)
    methods = build_methods(config)
    with torch.device(device):
        model = build_model(config.model, config.model_config, config.max_length, attention)
        return Run(config, methods, methods.adaptation.apply(model))


@explain_arguments
def open_run(folder: Path | str, task: str | None = None) -> Run:
    """Open a trained run: its methods, and its model with the final weights.

    The model is the one in `model/`; if the adaptation could not be merged, the base model with `adapter/`;
    for an unfinished run, that of its newest checkpoint. The folder may have moved.

    Args:
        folder: The run's folder.
        task: Which of its tasks, where it learned several.

    Returns:
        The run, of that task: `model` (in evaluation mode, on the CPU), `tokenizer`, `task`,
        `predict(texts)`, `config`.

    Raises:
        ConfigurationError: No run, or a run without weights, or one that did not learn the task.

    Examples:
        >>> import tempfile
        >>> from glue_harness import parse_mapping, run
        >>> folder = tempfile.mkdtemp()
        >>> settings = {"task": "demo-acceptability", "model": "demo", "max_steps": 1, "output_dir": folder}
        >>> _ = run(parse_mapping(settings))
        demo-acceptability: classes, demo-acceptability is known
        ...
        >>> [answer] = open_run(folder).predict(["The old dog sleeps."])
        >>> sorted(answer["scores"])
        ['acceptable', 'unacceptable']
    """
    folder = Path(folder)
    config_of_run = read_config(folder)
    name = config_of_run.chosen_task(task, folder)
    config = config_of_run.for_task(name) if name else config_of_run
    finished = (folder / "result.json").exists() and (folder / MODEL).is_dir()
    result = read_result(folder, name) if finished else {}
    place = str(folder / MODEL / name if name else folder)
    if finished and has_weights(folder / MODEL / name):
        model = load_classifier(place)
        learned = task_of_finished_run(config, result, model.config)
        tokenizer = load_tokenizer(str(folder), task=name)
        return Run(config, build_methods(config), model, learned, tokenizer, attached=False)
    if finished and (folder / ADAPTER / name).is_dir():
        for part in (MODEL, ADAPTER):
            check_undamaged(folder / part / name, str(folder))
        learned = task_of_finished_run(config, result, find_config(place))
        with quiet_about_heads():
            tokenizer = load_tokenizer(str(folder), task=name)
            opened = create(config, task=learned, tokenizer=tokenizer, adapter=folder / ADAPTER / name)
    else:
        opened = reopen(folder)
        opened = opened.for_task(name) if name else opened
    opened.model.eval()
    return opened


def reopen(folder: Path) -> Run:
    """Assemble a run from its newest checkpoint, with all its tasks; refused without a checkpoint."""
    newest = checkpoint.sound(folder / "checkpoint", checkpoint.WEIGHTS)
    if newest is None:
        raise ConfigurationError(
            f"{folder}: this run has neither a model nor a checkpoint (in a sweep, 'keep' decides which runs "
            "keep their models): run it again with --overwrite, or give another run"
        )
    with quiet_about_heads():
        opened = create(read_config(folder))
    checkpoint.load_weights(newest, opened.model, torch.device("cpu"))
    return opened


def open_model(model: str, task: str | None = None) -> Predictor:
    """Open a predictor: a finished run, or any trained classifier.

    Args:
        model: Folder of a run or of a model, or a hub name. A run truncates texts as in its training, a model
            as its tokenizer does; a model has no names of columns.
        task: Which of its tasks, where a run learned several.

    Raises:
        ConfigurationError: The model cannot be loaded, or has no trained head.
    """
    if (Path(model) / "config.yaml").is_file() and not (Path(model) / "config.json").exists():
        return open_run(model, task).predictor
    if task is not None:
        raise ConfigurationError(f"--task {task}: {model} is no run of several tasks: leave it out")
    loaded, tokenizer = load_classifier(model), load_tokenizer(model)
    check_tokens(model, loaded, tokenizer, pair=False)
    return Predictor(loaded, tokenizer, task_of_model(model, loaded.config), tokenizer.model_max_length)


def read_config(folder: Path) -> RunConfig:
    """Return the configuration in a run's folder, wherever the folder is now."""
    return parse_mapping({**read_settings(folder), "output_dir": str(folder)})

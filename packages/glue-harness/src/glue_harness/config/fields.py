"""The configuration of one run: its fields, their legal values, and when two runs are the same."""

from __future__ import annotations

import hashlib
import json
from dataclasses import MISSING, asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Literal

from finetune_common.aliases import JsonObject, Settings
from finetune_common.arguments import explain_arguments
from finetune_common.errors import ConfigurationError, check_choice, check_number
from finetune_common.tasks import TASKS
from glue_harness.config.hold_out import read_hold_out
from glue_harness.config.identity import OPTIONAL, WITHOUT_EFFECT
from glue_harness.config.own_rows import CHOICES, DATASET, FILES, by_content, check_sources, digest_of
from glue_harness.config.tasks import check_tasks, task_of_own_rows

__all__ = ["LIST_SLOTS", "SLOTS", "RunConfig"]

SLOTS = {"adaptation": "full", "activation": "none", "gradient": None, "optimizer": "adamw", "monitor": None}
"""Slot → its default method."""

LIST_SLOTS = ("gradient", "monitor")
"""Slots that hold any number of methods, in order."""

SCHEDULES = ("linear", "warmup-linear", "cosine", "constant")


@explain_arguments
@dataclass(frozen=True)
class RunConfig:
    """All settings of a run.

    Args:
        task: GLUE or demo task (`glue-harness list tasks`), or a name for your own rows. Several, separated
            by commas, train one body with a head for each.
        model: Hub name, local folder, or `demo` (a tiny BERT that needs no download).
        output_dir: Folder for this run; an interrupted run continues there.
        model_config: Fields of the model's configuration to change (`--model.classifier_dropout 0.2`).
        data_dir: Folder in the official GLUE layout; without it, data come from the hub.
        train_file: Your own training rows (csv, tsv, json, jsonl, parquet, arrow, also gzipped).
        validation_file: Your own rows to evaluate on.
        test_file: Your own rows to score once, at the end.
        dataset: Dataset to train on: its name on the hub, or a folder.
        dataset_config: Configuration of the dataset.
        text_columns: Column of texts, or two separated by a comma.
        label_column: Column of labels.
        kind: Meaning of labels: classes, labels (any number per row) or regression (scores); by default
            inferred from them.
        task_sampling: How often each of several tasks is drawn: in proportion to its rows (size, the default)
            or to their square root (sqrt).
        metric: Primary metric, any scikit-learn scorer; by default the task's first metric.
        delimiter: Separator of cells in csv and tsv files: one character, or tab.
        encoding: Encoding of text files; by default UTF-8.
        label_spelling: Keep labels apart that differ only by case or blanks (exact), or unite them (fold).
        drop_unlabelled: Leave out rows without a label.
        validation_share: Share of the training rows to evaluate on, instead of a validation file.
        metric_batch: Also report each metric's mean over batches of this many rows (`<metric>_of_batches`).
        seed: Seed of weights, data order and dropout.
        head: Keep the pretrained weights of the pooler (the default), or draw it anew with dropout before it
            (new).
        head_seed: Seed of the head's new weights; by default the run's seed.
        epochs: Passes over the training rows; may be a fraction.
        max_steps: Number of optimizer steps; overrides epochs.
        max_train_samples: Train on this many rows, drawn by the seed.
        label_noise: Share of the training rows that get a wrong class, drawn by the seed.
        hold_out: Rows to take out of training, by name (choose=5000,score=10000); the same for every seed.
        evaluate_on: Part of hold_out to evaluate on, instead of the task's own set. Further sets after a
            comma (score,validation) are scored once, at the end.
        max_eval_samples: Evaluate on this many rows; the same for every seed.
        batch_size: Rows of a micro-batch on one device.
        accumulate: Micro-batches per optimizer step.
        max_length: Truncate texts to this many tokens.
        group_by_length: Batch texts of similar length together (less padding).
        schedule: Learning-rate schedule after warm-up; warmup-linear decays as if there had been no warm-up.
        schedule_steps: Length of the schedule in steps; by default the run's.
        warmup: Warm-up: a share of all steps if below 1, else a number of steps.
        max_grad_norm: Clip the global gradient norm to this value; 0 turns clipping off.
        weight_decay: Weight decay of matrices (biases and norms have none).
        decay_all: Decay biases and norms too, as some released code does.
        head_lr: Learning rate of the classification head and its pooler; by default the optimizer's.
        eval_every: Steps between evaluations; by default one evaluation per epoch.
        save_every: Steps between checkpoints; by default one checkpoint per epoch.
        early_stopping: Stop after this many evaluations in a row without improvement of the primary metric.
        early_stopping_delta: Rise that an improvement must exceed.
        load_best: End with the weights of the best evaluation instead of the last.
        log_every: Steps between lines of metrics.jsonl.
        precision: Number format of the forward and backward passes.
        matmul_precision: Precision of float32 matrix products on a GPU (high: TF32); by default torch's.
        compile: Compile the model: slow start, faster steps, last digits differ. Of the activation methods
            that save memory, only `compress` at fixed levels supports it.
        device: Device to train on; by default a GPU if there is one.
        num_workers: Processes that prepare batches; results do not depend on it.
        offline: Use no network, only what `prepare` downloaded.
        overwrite: Start anew if the folder holds a run.
        sharding: With several processes, copy the model to each (none: DDP) or split its parameters (fsdp:
            FSDP2).
        tracker: Also send logged steps and evaluations to this tracker.
        adaptation: Which parameters train.
        activation: How saved tensors are identity until the backward pass.
        gradient: What is done to gradients before the optimizer's step.
        optimizer: How the update is computed.
        monitor: What else is recorded during training.

    Examples:
        >>> RunConfig(task="rte", model="bert-base-uncased", output_dir="runs/rte", seed=41).epochs
        3.0
    """

    task: str
    model: str
    output_dir: str
    model_config: JsonObject = field(default_factory=dict)
    data_dir: str | None = None
    train_file: str | None = None
    validation_file: str | None = None
    test_file: str | None = None
    dataset: str | None = None
    dataset_config: str | None = None
    text_columns: list[str] | str | None = None
    label_column: str | None = None
    kind: Literal["classes", "labels", "regression"] | None = None
    task_sampling: Literal["size", "sqrt"] | None = None
    metric: str | None = None
    delimiter: str | None = None
    encoding: str | None = None
    label_spelling: Literal["exact", "fold"] | None = None
    drop_unlabelled: bool = False
    validation_share: float | None = None
    metric_batch: int | None = None
    seed: int = 42
    head: Literal["pretrained", "new"] | None = None
    head_seed: int | None = None
    epochs: float = 3.0
    max_steps: int | None = None
    max_train_samples: int | None = None
    label_noise: float | None = None
    hold_out: dict[str, int] | str | None = None
    evaluate_on: list[str] | str | None = None
    max_eval_samples: int | None = None
    batch_size: int = 32
    accumulate: int = 1
    max_length: int = 128
    group_by_length: bool = False
    schedule: Literal["linear", "warmup-linear", "cosine", "constant"] = "linear"
    schedule_steps: int | None = None
    warmup: float = 0.0
    max_grad_norm: float = 1.0
    weight_decay: float = 0.01
    decay_all: bool = False
    head_lr: float | None = None
    eval_every: int | None = None
    save_every: int | None = None
    early_stopping: int | None = None
    early_stopping_delta: float = 0.0
    load_best: bool = False
    log_every: int = 10
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    matmul_precision: Literal["highest", "high", "medium"] | None = None
    compile: bool = False
    device: Literal["cpu", "cuda"] | None = None
    num_workers: int = 0
    offline: bool = False
    overwrite: bool = False
    sharding: Literal["none", "fsdp"] = "none"
    tracker: Literal["tensorboard", "wandb", "mlflow", "trackio"] | None = None
    adaptation: JsonObject = field(default_factory=lambda: {"name": SLOTS["adaptation"]})
    activation: JsonObject = field(default_factory=lambda: {"name": SLOTS["activation"]})
    gradient: list[JsonObject] = field(default_factory=list)
    optimizer: JsonObject = field(default_factory=lambda: {"name": SLOTS["optimizer"]})
    monitor: list[JsonObject] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._check_data()
        check_choice("schedule", self.schedule, SCHEDULES)
        check_choice("precision", self.precision, ("fp32", "bf16", "fp16"))
        check_choice("sharding", self.sharding, ("none", "fsdp"))
        check_number("epochs", self.epochs, above=0)
        for name in ("batch_size", "accumulate", "log_every"):
            check_number(name, getattr(self, name), at_least=1)
        check_number("max_length", self.max_length, at_least=4)
        counts = ("max_steps", "max_train_samples", "max_eval_samples", "eval_every", "save_every")
        for name in (*counts, "early_stopping", "schedule_steps", "metric_batch"):
            if getattr(self, name) is not None:
                check_number(name, getattr(self, name), at_least=1)
        for name in ("warmup", "max_grad_norm", "weight_decay", "num_workers", "early_stopping_delta"):
            check_number(name, getattr(self, name), at_least=0)
        check_number("seed", self.seed, at_least=0, below=2**32)
        if self.head_seed is not None:
            check_number("head_seed", self.head_seed, at_least=0, below=2**32)
        if self.head is not None:
            check_choice("head", self.head, ("pretrained", "new"))
            object.__setattr__(self, "head", None if self.head == "pretrained" else self.head)
        if self.label_noise is not None:
            check_number("label_noise", self.label_noise, above=0, at_most=1)
        if self.head_lr is not None:
            check_number("head_lr", self.head_lr, at_least=0)
        if self.early_stopping_delta and self.early_stopping is None:
            raise ConfigurationError("early_stopping_delta has no effect without early_stopping: give both")
        if self.matmul_precision is not None:
            check_choice("matmul_precision", self.matmul_precision, ("highest", "high", "medium"))
        if self.device is not None:
            check_choice("device", self.device, ("cpu", "cuda"))
        if self.tracker is not None:
            check_choice("tracker", self.tracker, ("tensorboard", "wandb", "mlflow", "trackio"))
        if not self.output_dir or "\0" in self.output_dir:
            raise ConfigurationError(f"output_dir={self.output_dir!r} is no folder: give one, e.g. runs/rte")

    def _check_data(self) -> None:
        if isinstance(self.text_columns, str):
            names = [name.strip() for name in self.text_columns.split(",")]
            object.__setattr__(self, "text_columns", names)
        check_tasks(self)
        check_sources(vars(self), several=self.several)
        hold_out, evaluate_on = read_hold_out(self.hold_out, self.evaluate_on)
        object.__setattr__(self, "hold_out", hold_out)
        object.__setattr__(self, "evaluate_on", evaluate_on)

    @property
    def tasks(self) -> tuple[str, ...]:
        """The names of the tasks; several share a body."""
        return tuple(self.task.split(","))

    @property
    def several(self) -> bool:
        """Whether it is a run of several tasks."""
        return len(self.tasks) > 1

    def for_task(self, task: str) -> RunConfig:
        """Return the configuration of a run of only this task: its rows, and all other settings."""
        from_files = self.has_own_rows and task not in TASKS
        left_out = ("data_dir",) if from_files else (*FILES, *DATASET, *CHOICES)
        plain = {f.name: f.default for f in fields(self) if f.name in left_out}
        return replace(self, task=task, task_sampling=None, **plain)

    def chosen_task(self, task: str | None, folder: Path) -> str:
        """Return the task to use, of several; empty if the run in this folder learned only one.

        Raises:
            ConfigurationError: The run did not learn the task, or learned several and none was named.
        """
        if task not in self.tasks and (self.several or task is not None):
            complaint = f"it did not learn {task!r}" if task else "it learned several tasks"
            raise ConfigurationError(
                f"{folder}: {complaint}: choose from {', '.join(self.tasks)}, e.g. --task {self.tasks[0]}"
            )
        return task or "" if self.several else ""

    @property
    def for_own_rows(self) -> RunConfig:
        """The configuration of a run of only the task with the user's rows."""
        return self.for_task(task_of_own_rows(self)) if self.several else self

    @property
    def has_own_rows(self) -> bool:
        """Whether the rows come from the user's files or a dataset, not from a known task."""
        return self.train_file is not None or self.dataset is not None

    def as_dict(self) -> JsonObject:
        """Return plain data: the content of `config.yaml`."""
        return json.loads(json.dumps(asdict(self)))

    def identity(self) -> JsonObject:
        """Return the settings that affect the numbers; two runs with equal identity are the same run.

        For the user's files and a dataset's folder it includes a hash of the rows, which are read for it.
        """
        settings = self.as_dict()
        rows = {"rows": digest_of(self.for_own_rows.as_dict())} if by_content(settings) else {}
        return identity_of(settings) | rows

    @property
    def hash(self) -> str:
        """Twelve hexadecimal digits of the identity's SHA-256."""
        text = json.dumps(self.identity(), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:12]


DEFAULTS = {f.name: None if f.default is MISSING else f.default for f in fields(RunConfig)}
"""Field → its default; None if it is required or a collection."""


def identity_of(settings: Settings) -> JsonObject:
    """Return the settings that affect the numbers, without optional ones that are unused.

    Where rows are and how the user's files are read is left out: only the rows count.
    """
    unused = [key for key in OPTIONAL if settings.get(key) in (DEFAULTS[key], {}, [], "")]
    left_out = [*WITHOUT_EFFECT, *unused, *FILES]
    if by_content(settings):
        left_out += [*CHOICES, *DATASET]
    identity = {key: value for key, value in settings.items() if key not in left_out}
    return identity | dict.fromkeys(identity.keys() & {"data_dir"})


OPTION_FIELDS = [f for f in fields(RunConfig) if f.name not in (*SLOTS, "model_config")]
"""The fields that have their own option on the command line."""

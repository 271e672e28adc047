"""The configuration of one run: its fields, what is legal, and what makes two runs the same."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Literal

from finetune_common.errors import ConfigurationError, check_choice, check_number
from finetune_common.tasks import get_task

__all__ = ["LIST_SLOTS", "SLOTS", "RunConfig"]

SLOTS = {"adaptation": "full", "activation": "none", "gradient": None, "optimizer": "adamw", "monitor": None}
"""Slot → the method that is used when none is named."""

LIST_SLOTS = ("gradient", "monitor")
"""Slots that hold any number of methods, in order."""

ELSEWHERE = ("output_dir", "device", "num_workers", "offline", "overwrite", "sharding", "tracker")
"""Fields that say where and how a run happens, and leave its numbers alone."""

OPTIONAL = (
    "model_config",
    "train_file",
    "validation_file",
    "decay_all",
    "early_stopping",
    "early_stopping_delta",
    "load_best",
    "matmul_precision",
    "compile",
)
"""Fields that change nothing where they are empty: a run without them is the run it was before them."""


@dataclass(frozen=True)
class RunConfig:
    """Everything that decides a run.

    Args:
        task: GLUE task, or a demo task (`glue-harness list tasks`).
        model: Hub name, local folder, or `demo` (a tiny BERT made on the spot).
        output_dir: Folder of this run; a run started again there continues.
        model_config: Fields of the model's configuration to change (`--model.classifier_dropout 0.2`).
        data_dir: Folder in the official GLUE layout; without it, data come from the hub.
        train_file: Rows of one's own (csv, tsv, json, jsonl, parquet); the task may then have any name.
        validation_file: Rows to evaluate on, with a train_file.
        seed: Seed of weights, data order and dropout.
        epochs: Passes over the training rows, fractions allowed.
        max_steps: Optimizer steps in all; overrides epochs.
        max_train_samples: Train on the first rows of the seeded shuffle only.
        batch_size: Rows of a micro-batch on one device.
        accumulate: Micro-batches in an optimizer step.
        max_length: Tokens to which a text is truncated.
        group_by_length: Batch texts of like length together (less padding).
        schedule: Learning-rate schedule after warm-up.
        warmup: Warm-up: below 1 a share of all steps, from 1 on a number of steps.
        max_grad_norm: Clip the global gradient norm to this, 0 for never.
        weight_decay: Weight decay of matrices (biases and norms have none).
        decay_all: Decay biases and norms too, as some released code does.
        head_lr: Learning rate of the classification head, a pooler included, if it has its own.
        eval_every: Evaluate every so many steps, instead of every epoch.
        save_every: Save a checkpoint every so many steps, instead of every epoch.
        early_stopping: Stop when so many evaluations in a row have not improved the primary metric.
        early_stopping_delta: What counts as an improvement is more than this.
        load_best: End with the weights of the best evaluation, instead of the last.
        log_every: Write a line of metrics.jsonl every so many steps.
        precision: Arithmetic of the forward and backward passes.
        matmul_precision: What float32 matrix products may round to on a GPU (high: TF32); torch's default
            if left out.
        compile: Compile the model: slow to begin, quicker steps, numbers that differ in the last digits.
        device: Where to train: cpu or cuda; a GPU if there is one, if left out.
        num_workers: Processes that prepare batches; the order does not depend on it.
        offline: Touch no network: use what `prepare` fetched.
        overwrite: Start anew where a run exists.
        sharding: With several processes: none replicates the model (DDP), fsdp splits parameters (FSDP2).
        tracker: Also send logged steps and evaluations there; without it, metrics.jsonl alone.
        adaptation: Which parameters train.
        activation: How saved tensors are kept until backward.
        gradient: What is done to gradients before the step.
        optimizer: How the update is computed.
        monitor: What else is recorded.
    """

    task: str
    model: str
    output_dir: str
    model_config: dict[str, Any] = field(default_factory=dict)
    data_dir: str | None = None
    train_file: str | None = None
    validation_file: str | None = None
    seed: int = 42
    epochs: float = 3.0
    max_steps: int | None = None
    max_train_samples: int | None = None
    batch_size: int = 32
    accumulate: int = 1
    max_length: int = 128
    group_by_length: bool = False
    schedule: Literal["linear", "cosine", "constant"] = "linear"
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
    adaptation: dict[str, Any] = field(default_factory=lambda: {"name": SLOTS["adaptation"]})
    activation: dict[str, Any] = field(default_factory=lambda: {"name": SLOTS["activation"]})
    gradient: list[dict[str, Any]] = field(default_factory=list)
    optimizer: dict[str, Any] = field(default_factory=lambda: {"name": SLOTS["optimizer"]})
    monitor: list[dict[str, Any]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._check_data()
        check_choice("schedule", self.schedule, ("linear", "cosine", "constant"))
        check_choice("precision", self.precision, ("fp32", "bf16", "fp16"))
        check_choice("sharding", self.sharding, ("none", "fsdp"))
        check_number("epochs", self.epochs, above=0)
        for name in ("batch_size", "accumulate", "log_every"):
            check_number(name, getattr(self, name), at_least=1)
        check_number("max_length", self.max_length, at_least=4)
        for name in ("max_steps", "max_train_samples", "eval_every", "save_every", "early_stopping"):
            if getattr(self, name) is not None:
                check_number(name, getattr(self, name), at_least=1)
        for name in ("warmup", "max_grad_norm", "weight_decay", "num_workers", "early_stopping_delta"):
            check_number(name, getattr(self, name), at_least=0)
        check_number("seed", self.seed, at_least=0, below=2**32)
        if self.head_lr is not None:
            check_number("head_lr", self.head_lr, at_least=0)
        if self.early_stopping_delta and self.early_stopping is None:
            raise ConfigurationError("early_stopping_delta without early_stopping does nothing: give both")
        if self.matmul_precision is not None:
            check_choice("matmul_precision", self.matmul_precision, ("highest", "high", "medium"))
        if self.device is not None:
            check_choice("device", self.device, ("cpu", "cuda"))
        if self.tracker is not None:
            check_choice("tracker", self.tracker, ("tensorboard", "wandb", "mlflow", "trackio"))
        if not self.output_dir:
            raise ConfigurationError("output_dir is empty: give --output-dir a folder, e.g. runs/rte")

    def _check_data(self) -> None:
        if (self.train_file is None) != (self.validation_file is None):
            given, missing = ("train", "validation") if self.train_file else ("validation", "train")
            raise ConfigurationError(f"--{given}-file without --{missing}-file: give both")
        if self.train_file is None:
            get_task(self.task)
        elif self.data_dir is not None:
            raise ConfigurationError("--data-dir and --train-file are two sources of rows: give one of them")

    def as_dict(self) -> dict[str, Any]:
        """Return plain data: what `config.yaml` holds."""
        return json.loads(json.dumps(asdict(self)))

    def identity(self) -> dict[str, Any]:
        """Return the part that decides the numbers; two runs with equal identity are the same run."""
        return identity_of(self.as_dict())

    @property
    def hash(self) -> str:
        """Twelve hexadecimal digits of the identity's SHA-256."""
        text = json.dumps(self.identity(), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:12]


def identity_of(settings: dict[str, Any]) -> dict[str, Any]:
    """Return the part of plain settings that decides the numbers; what is optional and unused is left out."""
    unused = [key for key in OPTIONAL if not settings.get(key)]
    return {key: value for key, value in settings.items() if key not in (*ELSEWHERE, *unused)}


def difference(ours: dict[str, Any], theirs: dict[str, Any], prefix: str = "") -> str | None:
    """Name the first setting in which two identities differ: `optimizer.lr: 0.1 here, 0.2 there`."""
    for key in sorted({*ours, *theirs}):
        here, there = ours.get(key), theirs.get(key)
        if (
            isinstance(here, dict)
            and isinstance(there, dict)
            and (deeper := difference(here, there, f"{prefix}{key}."))
        ):
            return deeper
        if here != there:
            return f"{prefix}{key} is {here!r} here and {there!r} there"
    return None


DESCRIBED = [f for f in fields(RunConfig) if f.name not in (*SLOTS, "model_config")]
"""The fields that are options of their own on the command line."""

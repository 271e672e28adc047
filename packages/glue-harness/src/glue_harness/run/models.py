"""Models and tokenizers: from the hub, from a folder, or the built-in demo."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import cast

import torch
import transformers

from finetune_common.aliases import JsonObject, Settings
from finetune_common.errors import ConfigurationError, reason
from finetune_common.tasks import Task
from glue_harness.run.architectures import changed, demo_config, find_config
from glue_harness.run.digests import check_undamaged
from glue_harness.run.fit import check_fields, check_loaded, check_positions, check_tokens
from glue_harness.run.records import model_files

__all__ = [
    "build_model",
    "has_weights",
    "labels_of",
    "load_classifier",
    "load_model",
    "load_tokenizer",
    "quiet_about_heads",
]

WEIGHT_FILES = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)

transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()


def has_weights(folder: Path) -> bool:
    """Say whether a folder holds a model's weights."""
    return any((folder / name).is_file() for name in WEIGHT_FILES)


def _check_folder(model: str, task: str = "") -> None:
    """Refuse a local path that does not hold a model, in one line."""
    files = model_files(model, task)
    folder = Path(files)
    if not folder.is_dir():
        if folder.is_absolute() or model.startswith((".", "~")):
            raise ConfigurationError(
                f"--model {model}: no such folder; give a hub name, a model folder, or 'demo'"
            )
        return
    if not (folder / "config.json").is_file():
        raise ConfigurationError(f"--model {model}: no config.json in this folder; is it a model folder?")
    if not has_weights(folder) and files != model:
        raise ConfigurationError(
            f"--model {model}: this run's adaptation cannot be merged, so it has no full weights: give the "
            "model that it began with"
        )
    if not has_weights(folder):
        raise ConfigurationError(
            f"--model {model}: no weights in this folder: expected one of {', '.join(WEIGHT_FILES)}"
        )


def _unloadable(model: str, files: str, error: Exception) -> ConfigurationError:
    check_undamaged(Path(files), f"--model {model}")  # names the damaged file, where it is known
    return ConfigurationError(
        f"--model {model}: cannot be loaded ({reason(error).split('. ')[0]}): check the name, or run "
        "'glue-harness prepare' where there is a network, or give a model folder"
    )


def load_tokenizer(
    model: str, pad_token_id: int | None = None, task: str = ""
) -> transformers.PreTrainedTokenizerBase:
    """Return the model's fast tokenizer, with its padding token, or else its end-of-text token.

    Args:
        model: Hub name, folder of a model or of a run, or `demo`.
        pad_token_id: The token to pad with, if the tokenizer has neither.
        task: Its task, if a run learned several.

    Raises:
        ConfigurationError: Nothing that can be loaded, or no token to pad with.
    """
    if model == "demo":
        from finetune_common.demo import demo_tokenizer

        return demo_tokenizer()
    files = model_files(model, task)
    if files == model:  # not for a run's folder, which may have a tokenizer without weights
        _check_folder(model)
    folder = Path(files)
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(files)
    except Exception as error:
        raise _unloadable(model, files, error) from None
    names = sorted({"tokenizer.json", *tokenizer.vocab_files_names.values()})
    if folder.is_dir() and not any((folder / name).is_file() for name in names):
        raise ConfigurationError(
            f"--model {model}: no tokenizer in this folder: expected one of {', '.join(names)}"
        )
    if tokenizer.pad_token is None:
        named = None if pad_token_id is None else tokenizer.convert_ids_to_tokens(pad_token_id)
        tokenizer.pad_token = named or tokenizer.eos_token
    if tokenizer.pad_token is None:
        raise ConfigurationError(
            f"--model {model}: its tokenizer has neither a padding nor an end-of-text token: choose one, "
            "e.g. --model.pad_token_id 0"
        )
    return tokenizer


def load_model(
    model: str,
    task: Task,
    tokenizer: transformers.PreTrainedTokenizerBase,
    load_kwargs: Settings | None = None,
    model_config: Settings | None = None,
) -> transformers.PreTrainedModel:
    """Return a sequence classifier for a task; a new head is drawn from torch's generator.

    If a model has other labels than the task, its head is drawn anew with a warning.

    Args:
        model: Hub name, folder of a model or of a run, or `demo`.
        task: Decides the number of labels and regression or classification.
        tokenizer: Its padding token is the model's.
        load_kwargs: Further arguments of `from_pretrained`, from the adaptation.
        model_config: Fields of the model's configuration to change.

    Raises:
        ConfigurationError: Nothing that can be loaded, or no such field.
    """
    check_fields(model_config or {})
    if model == "demo":
        fields = {**labels_of(task), "pad_token_id": tokenizer.pad_token_id, **(model_config or {})}
        built = _built(model, changed(demo_config(len(tokenizer)), fields))
        check_tokens(model, built, tokenizer, pair=len(task.columns) == 2)
        return built
    config, before = _config_of(model, task.name, **labels_of(task)), _config_of(model, task.name)
    loaded, report = _loaded(model, changed(config, model_config or {}), load_kwargs, task.name)
    if _has_other_labels(before, task) and _draw_head_anew(loaded, report):
        named = () if before.problem_type == "regression" else (before.id2label or {}).values()
        was, now = (", ".join(names) or "numbers" for names in (named, task.labels))
        warnings.warn(f"--model {model}: its head is for {was}: one for {now} is drawn anew", stacklevel=2)
    check_tokens(model, loaded, tokenizer, pair=len(task.columns) == 2)
    loaded.config.pad_token_id = tokenizer.pad_token_id
    return loaded


def load_classifier(model: str) -> transformers.PreTrainedModel:
    """Return a trained sequence classifier with its head.

    Args:
        model: Hub name, or folder of a model or of a run.

    Raises:
        ConfigurationError: Nothing that can be loaded, or a model without a trained head.
    """
    loaded, report = _loaded(model, _config_of(model))
    if absent := sorted(report["missing_keys"]):
        raise ConfigurationError(
            f"--model {model}: it has no trained head ({absent[0]} is missing): fine-tune it first, with "
            "glue-harness run"
        )
    return loaded.eval()


def _config_of(model: str, task: str = "", **fields: object) -> transformers.PretrainedConfig:
    _check_folder(model, task)
    files = model_files(model, task)
    try:
        return transformers.AutoConfig.from_pretrained(files, **fields)
    except Exception as error:
        raise _unloadable(model, files, error) from None


def _loaded(
    model: str,
    config: transformers.PretrainedConfig,
    load_kwargs: Settings | None = None,
    task: str = "",
) -> tuple[transformers.PreTrainedModel, JsonObject]:
    """Return a classifier and transformers' report of its loading."""
    files = model_files(model, task)
    check_undamaged(Path(files), f"--model {model}")
    try:
        loaded, report = transformers.AutoModelForSequenceClassification.from_pretrained(
            files,
            config=config,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # the head of a task with another number of labels is drawn anew
            **{"dtype": torch.float32, **(load_kwargs or {})},
        )
    except Exception as error:
        raise _unloadable(model, files, error) from None
    check_loaded(model, loaded, report)
    return loaded, report


def _has_other_labels(config: transformers.PretrainedConfig, task: Task) -> bool:
    """Say whether a model was trained for other labels (ignoring case), or for numbers instead of labels."""
    names = [str(name).casefold() for _, name in sorted((config.id2label or {}).items())]
    if all(re.fullmatch(r"label_\d+", name) for name in names):
        return config.problem_type is not None and (config.problem_type == "regression") != task.regression
    return names != [name.casefold() for name in task.labels]


@torch.no_grad()
def _draw_head_anew(model: transformers.PreTrainedModel, report: JsonObject) -> bool:
    """Initialise the parameters outside the base model; say whether this replaced trained ones."""
    base = cast("torch.nn.Module", model.base_model)
    body = {id(parameter) for parameter in base.parameters()}
    head = {name: p for name, p in model.named_parameters() if id(p) not in body} if base is not model else {}
    trained = head.keys() - report["missing_keys"]
    loaded = trained - {name for name, *_ in report["mismatched_keys"]}
    if loaded:
        fresh = type(model)(model.config)
        for name in loaded:
            head[name].copy_(fresh.get_parameter(name))
    return bool(trained)


def _built(model: str, shape: transformers.PretrainedConfig) -> transformers.PreTrainedModel:
    """Return a classifier with random weights."""
    try:
        return transformers.AutoModelForSequenceClassification.from_config(shape)
    except Exception as error:  # each architecture refuses a shape in its own way
        raise ConfigurationError(
            f"--model {model}: no model of this shape: {reason(error)}: check what --model.FIELD changes"
        ) from None


def build_model(
    model: str, model_config: Settings | None, max_length: int, attention: str | None = None
) -> transformers.PreTrainedModel:
    """Return a classifier of two labels with random weights; a preset of `architectures` needs no network.

    Args:
        model: Preset, hub name, folder, or `demo`.
        model_config: Fields of the model's configuration to change.
        max_length: Most tokens of a row.
        attention: "eager" uses plain operations, others torch's kernels; by default the model's own.

    Raises:
        ConfigurationError: No such field, no model of this shape, or an attention that it does not have.
    """
    labels = {"num_labels": 2, "problem_type": "single_label_classification"}
    shape = changed(find_config(model), {**labels, **(model_config or {})})
    built = _built(model, shape)
    check_positions(built, max_length)
    if attention is not None:
        kind = "eager" if attention == "eager" else "sdpa"
        with suppress(ValueError):  # transformers raises, or leaves the model as it is
            built.set_attn_implementation(kind)
        if (actual := built.config._attn_implementation) != kind:
            raise ConfigurationError(
                f"--attention {attention}: {type(built).__name__} has only {actual!r} attention: leave it out"
            )
    return built


def labels_of(task: Task) -> Settings:
    """Return the fields of a model's configuration that the task sets."""
    if task.regression:
        return {"num_labels": 1, "problem_type": "regression"}
    return {
        "problem_type": "multi_label_classification" if task.several else "single_label_classification",
        "id2label": dict(enumerate(task.labels)),
        "label2id": {name: number for number, name in enumerate(task.labels)},
    }


@contextmanager
def quiet_about_heads() -> Iterator[None]:
    """Suppress the warning about a new head, for heads that receive trained weights afterwards."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".* is drawn anew")
        yield

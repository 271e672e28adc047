"""Keep an adaptation: what changed, and how, in two small files.

`adaptation.json` holds the configuration, `adaptation.safetensors` the parameters that train, head included.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from finetune_common.errors import ConfigurationError
from parameter_efficient.adaptation import adapt, record_of, remove
from parameter_efficient.configs import METHODS, Config
from parameter_efficient.peft_checkpoints import PEFT_CONFIG, read_peft

__all__ = ["load_adaptation", "save_adaptation"]

CONFIG, WEIGHTS, SCHEMA = "adaptation.json", "adaptation.safetensors", 1
Model = TypeVar("Model", bound=nn.Module)


def _trained(model: nn.Module) -> dict[str, nn.Parameter]:
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def save_adaptation(model: nn.Module, folder: str | Path) -> None:
    """Save what an adaptation added and trained, and nothing else.

    Args:
        model: An adapted model.
        folder: Is made; receives `adaptation.json` and `adaptation.safetensors`.

    Raises:
        ConfigurationError: The model is not adapted, or the adaptation is merged, or frozen.
    """
    from safetensors.torch import save_file

    record = record_of(model)
    if record.merged:
        raise ConfigurationError("a merged adaptation cannot be saved by itself: unmerge(model) first")
    own = [parameter for attachment in record.attachments for parameter in attachment.parameters()]
    frozen = sum(not parameter.requires_grad for parameter in own)
    if frozen:
        raise ConfigurationError(
            f"{frozen} of the {len(own)} tensors of this adaptation have requires_grad=False and would be "
            "missing from the file: save before they are frozen, or let them require gradients again"
        )
    [method] = [name for name, kind in METHODS.items() if kind is type(record.config)]
    described = {
        "schema": SCHEMA,
        "model": type(model).__name__,
        "method": method,
        "config": asdict(record.config),
    }
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {name: parameter.detach().contiguous() for name, parameter in _trained(model).items()}
    save_file(tensors, folder / WEIGHTS)
    (folder / CONFIG).write_text(json.dumps(described, indent=1) + "\n", encoding="utf-8")


def load_adaptation(model: Model, folder: str | Path) -> Model:
    """Adapt a fresh base model as a saved one was, and load what it had learned: same output, bit for bit.

    A folder that peft's `save_pretrained` wrote works too, if it holds LoRA on matrices that `LoRA` knows.

    Args:
        model: The base model, not adapted.
        folder: What `save_adaptation` wrote.

    Returns:
        The same model, adapted.

    Raises:
        ConfigurationError: No adaptation there, a damaged one, or one of another model.
    """
    folder = Path(folder)
    if not (folder / CONFIG).exists() and (folder / PEFT_CONFIG).exists():
        config, tensors = read_peft(model, folder)
        return _filled(adapt(model, config), tensors, folder, only_some=True)
    config, tensors = _read(folder)
    return _filled(adapt(model, config), tensors, folder)


def _read(folder: Path) -> tuple[Config, dict[str, Tensor]]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        described: Any = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        tensors = load_file(folder / WEIGHTS)
        return METHODS[described["method"]](**described["config"]), tensors
    except FileNotFoundError as error:
        raise ConfigurationError(
            f"{folder}: no {Path(error.filename or WEIGHTS).name} in it; give a folder that save_adaptation "
            "wrote"
        ) from None
    except (json.JSONDecodeError, SafetensorError, KeyError, TypeError) as error:
        reason = " ".join(str(error).split())
        raise ConfigurationError(f"{folder}: this adaptation is damaged ({reason}): save it again") from None


def _filled(model: Model, tensors: dict[str, Tensor], folder: Path, only_some: bool = False) -> Model:
    """Copy tensors into the parameters that train; names and shapes have to fit."""
    trained = _trained(model)
    missing = [] if only_some else sorted(trained.keys() - tensors.keys())
    wrong = missing + sorted(tensors.keys() - trained.keys())
    wrong += [
        name for name in sorted(tensors.keys() & trained.keys()) if tensors[name].shape != trained[name].shape
    ]
    if wrong:
        remove(model)
        raise ConfigurationError(
            f"{folder}: it does not fit this {type(model).__name__}: {len(wrong)} tensors are missing, left "
            f"over or of another shape, {wrong[0]!r} first; load it onto the kind of model that "
            "it was made with"
        )
    with torch.no_grad():
        for name, tensor in tensors.items():
            trained[name].copy_(tensor)
    return model

"""Save an adaptation in two small files, and load it.

`adaptation.json` holds the configuration and a fingerprint of the base model, `adaptation.safetensors` the
parameters that train, including the head and those that were unfrozen by hand, and the buffers that moved.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Literal, TypeVar

import torch
from torch import Tensor, nn

from finetune_common.aliases import JsonObject
from finetune_common.arguments import explain_arguments
from finetune_common.errors import ConfigurationError, check_choice
from parameter_efficient.adaptation import adapt, remove
from parameter_efficient.attachment import InPlace
from parameter_efficient.configs import METHODS, Config
from parameter_efficient.fingerprint import Fingerprint, difference, fingerprint
from parameter_efficient.forward import Inputs
from parameter_efficient.peft_checkpoints import PEFT_CONFIG, named_here, read_peft, write_peft
from parameter_efficient.records import Record, is_adapted, record_of, records_of
from parameter_efficient.statistics import Statistics
from parameter_efficient.switching import activate
from parameter_efficient.typed import load_tensors, named_modules, save_tensors

__all__ = ["load_adaptation", "save_adaptation"]

CONFIG, WEIGHTS, SCHEMA = "adaptation.json", "adaptation.safetensors", 3
Model = TypeVar("Model", bound=nn.Module)


def _trained(model: nn.Module) -> dict[str, nn.Parameter]:
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def _moved(model: nn.Module, record: Record) -> dict[str, Tensor]:
    """Return the buffers that training moved."""
    names = {module: name for name, module in named_modules(model)}
    [statistics] = [one for one in record.attachments if isinstance(one, Statistics)]
    places = {place: value for place, value in statistics.moved().items() if place[0] in names}
    return {f"{names[module]}.{name}".lstrip("."): value for (module, name), value in places.items()}


@explain_arguments
def save_adaptation(
    model: nn.Module, folder: str | Path, *, name: str | None = None, format: Literal["own", "peft"] = "own"
) -> None:
    """Save the parameters that an adaptation added or trained, the buffers that moved, and nothing else.

    Args:
        model: An adapted model.
        folder: Created if missing; receives `adaptation.json` and `adaptation.safetensors`.
        name: Which adaptation; null for the active one.
        format: own; or peft, for LoRA, (IA)³ and other methods of peft: `adapter_config.json` and
            `adapter_model.safetensors`, with which `PeftModel.from_pretrained(base, folder)` gives the same
            logits.

    Raises:
        ConfigurationError: The model is not adapted; the adaptation is merged or frozen; or peft's format
            cannot hold it.

    Examples:
        >>> from transformers import BertConfig, BertForSequenceClassification
        >>> from parameter_efficient import LoRA, adapt
        >>> sizes = {"hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 32}
        >>> model = BertForSequenceClassification(BertConfig(num_hidden_layers=1, **sizes))
        >>> save_adaptation(adapt(model, LoRA(rank=2)), "adapter")
        >>> sorted(path.name for path in Path("adapter").iterdir())
        ['adaptation.json', 'adaptation.safetensors']
    """
    check_choice("format", format, ("own", "peft"))
    before = records_of(model).active
    record = record_of(model, name)
    activate(model, before if name is None else name)
    try:
        _save(model, record, Path(folder), format)
    finally:
        activate(model, before)


def _save(model: nn.Module, record: Record, folder: Path, format: str) -> None:
    if record.merged:
        raise ConfigurationError("a merged adaptation cannot be saved by itself: call unmerge(model) first")
    added = [parameter for attachment in record.attachments for parameter in attachment.parameters()]
    frozen = sum(not parameter.requires_grad for parameter in added)
    if frozen:
        raise ConfigurationError(
            f"{frozen} of the {len(added)} tensors of this adaptation have requires_grad=False and would be "
            "missing from the file: save before you freeze them, or let them require gradients again"
        )
    if format == "peft":
        write_peft(model, record, folder)
        return
    trained = _trained(model)
    known = {id(parameter) for parameter in added}
    [method] = [name for name, kind in METHODS.items() if kind is type(record.config)]
    described = {
        "schema": SCHEMA,
        "model": type(model).__name__,
        "method": method,
        "config": asdict(record.config),
        "also": [name for name, parameter in trained.items() if id(parameter) not in known],
        "base": fingerprint(model, trained),
    }
    folder.mkdir(parents=True, exist_ok=True)
    save_tensors({**trained, **_moved(model, record)}, folder / WEIGHTS)
    (folder / CONFIG).write_text(json.dumps(described, indent=1) + "\n", encoding="utf-8")


@explain_arguments
def load_adaptation(
    model: Model,
    folder: str | Path,
    *,
    name: str = "default",
    strict: bool = True,
    example: Inputs | None = None,
) -> Model:
    """Adapt a base model like a saved one, and load the trained values: same output, bit for bit.

    A folder that peft's `save_pretrained` wrote works too.

    Args:
        model: The base model, or one with other adaptations.
        folder: Written by `save_adaptation`.
        name: Name of the adaptation, which becomes the active one.
        strict: Whether to refuse another base model than the one that was adapted; false warns.
        example: Keyword arguments of the model's forward pass, as for `adapt`.

    Returns:
        The same model, adapted.

    Raises:
        ConfigurationError: No adaptation in the folder, a damaged one, or one of another model.

    Examples:
        >>> from copy import deepcopy
        >>> from transformers import BertConfig, BertForSequenceClassification
        >>> from parameter_efficient import LoRA, adapt
        >>> sizes = {"hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 32}
        >>> model = BertForSequenceClassification(BertConfig(num_hidden_layers=1, **sizes))
        >>> base = deepcopy(model)  # in practice, the same folder loaded again
        >>> save_adaptation(adapt(model, LoRA(rank=2)), "adapter")
        >>> restored = load_adaptation(base, "adapter")
        >>> torch.equal(restored.classifier.weight, model.classifier.weight)
        True
    """
    folder = Path(folder)
    described: JsonObject = {}
    if not (folder / CONFIG).exists() and (folder / PEFT_CONFIG).exists():
        config, tensors = read_peft(folder)
        also = None
    else:
        described, config, tensors = _read(folder)
        also = described.get("also", [])
    before = records_of(model).active if is_adapted(model) else None
    adapt(model, config, name=name, example=example)
    try:
        if also is None:
            tensors = named_here(model, tensors)
        if described.get("schema", SCHEMA) < SCHEMA:
            _leave_out_later_heads(model, tensors)
        _unfreeze(model, tensors.keys() if also is None else also)
        if "base" in described:
            _check_base(model, described["base"], folder, strict)
        _fill(model, tensors, folder, only_some=also is None)
    except BaseException:
        remove(model, name)
        if before is not None:
            activate(model, before)
        raise
    return model


def _read(folder: Path) -> tuple[JsonObject, Config, dict[str, Tensor]]:
    from safetensors import SafetensorError

    try:
        described: JsonObject = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        tensors = load_tensors(folder / WEIGHTS)
        return described, METHODS[described["method"]](**described["config"]), tensors
    except FileNotFoundError as error:
        raise ConfigurationError(
            f"{folder} has no {Path(error.filename or WEIGHTS).name}: give a folder that save_adaptation "
            "wrote"
        ) from None
    except (json.JSONDecodeError, SafetensorError, KeyError, TypeError) as error:
        reason = " ".join(str(error).split())
        raise ConfigurationError(f"{folder}: this adaptation is damaged ({reason}): save it again") from None


def _leave_out_later_heads(model: nn.Module, tensors: dict[str, Tensor]) -> None:
    """Freeze the heads of which a file has nothing: the version that wrote it did not find them."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    for attachment in record_of(model).attachments:
        if isinstance(attachment, InPlace):
            places = attachment.places()
            saved = {module for module, name in places if names[id(getattr(module, name))] in tensors}
            attachment.leave_out(module for module, _ in places if module not in saved)


def _unfreeze(model: nn.Module, names: Iterable[str]) -> None:
    """Let parameters train that were unfrozen by hand before saving; `remove` restores them."""
    parameters = dict(model.named_parameters())
    frozen = [name for name in names if name in parameters and not parameters[name].requires_grad]
    places = [(model.get_submodule(name.rpartition(".")[0]), name.rpartition(".")[2]) for name in frozen]
    record_of(model).attachments.append(InPlace(places))
    for name in frozen:
        parameters[name].requires_grad_(True)


def _check_base(model: nn.Module, saved: Fingerprint, folder: Path, strict: bool) -> None:
    deviation = difference(saved, fingerprint(model, _trained(model)))
    if not deviation:
        return
    message = f"{folder}: this {type(model).__name__} has {deviation}"
    if strict:
        raise ConfigurationError(f"{message}; load that base, or pass strict=False")
    warnings.warn(f"{message}; outputs will differ", stacklevel=3)


def _fill(model: nn.Module, tensors: dict[str, Tensor], folder: Path, only_some: bool) -> None:
    """Copy tensors into the parameters that train, and into buffers; names and shapes must match."""
    trained = _trained(model)
    buffers = {name: buffer for name, buffer in model.named_buffers() if name in tensors}
    places: dict[str, Tensor] = {**trained, **buffers}
    missing = [] if only_some else sorted(trained.keys() - tensors.keys())
    wrong = missing + sorted(tensors.keys() - places.keys())
    wrong += [name for name in sorted(tensors.keys() & places) if tensors[name].shape != places[name].shape]
    if wrong:
        raise ConfigurationError(
            f"{folder} does not fit this {type(model).__name__}: {len(wrong)} tensors are missing, left over "
            f"or of another shape, {wrong[0]!r} first; load it into the kind of model that was adapted"
        )
    with torch.no_grad():
        for name, tensor in tensors.items():
            places[name].copy_(tensor)

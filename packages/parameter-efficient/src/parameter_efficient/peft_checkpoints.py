"""peft's format, which `save_pretrained` of a PeftModel writes and `PeftModel.from_pretrained` reads."""

from __future__ import annotations

import json
import re
from dataclasses import fields
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from finetune_common.aliases import JsonObject
from finetune_common.errors import ConfigurationError
from parameter_efficient.attachment import InPlace
from parameter_efficient.configs import Config, LoRA, ThroughPeft
from parameter_efficient.heads import FrozenInput
from parameter_efficient.injected import ADAPTER, Injected, described_by
from parameter_efficient.ownership import not_its_own
from parameter_efficient.quantised import Differentiable
from parameter_efficient.records import Record
from parameter_efficient.statistics import Statistics
from parameter_efficient.typed import load_tensors, named_modules, save_tensors

__all__ = ["PEFT_CONFIG", "named_here", "read_peft", "write_peft"]

PEFT_CONFIG, PEFT_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
PREFIX = "base_model.model."
INITIALISATIONS = {
    **dict.fromkeys((True, False, "gaussian", "eva", "orthogonal"), "kaiming"),
    "pissa": "pissa",
    "olora": "olora",
}
"""peft's name → ours. Those that do not change the base weights make no difference to a loaded adapter."""
KNOWN = {
    *("r", "lora_alpha", "lora_dropout", "use_rslora", "use_dora", "init_lora_weights", "target_modules"),
    *("rank_pattern", "alpha_pattern", "layers_to_transform", "layers_pattern", "exclude_modules", "bias"),
    *("fan_in_fan_out", "peft_type"),
}
"""Settings of peft's LoRA that `LoRA` has as well, or that only choose the matrices."""


def _refused(folder: Path, reason: str) -> ConfigurationError:
    return ConfigurationError(
        f"{folder}: this peft checkpoint cannot be loaded ({reason}): load it with peft"
    )


def _modules_to_save(model: nn.Module, record: Record) -> dict[str, nn.Module]:
    """Return the base's modules with parameters that train in place, or with buffers that moved.

    None of them is inside another.

    Raises:
        ConfigurationError: The adaptation has a part that peft's format cannot hold.
    """
    modules: dict[str, nn.Module] = {}
    names = {id(module): name for name, module in named_modules(model)}
    for attachment in record.attachments:
        if isinstance(attachment, InPlace | Statistics):
            places = attachment.places() if isinstance(attachment, InPlace) else attachment.moved()
            for module, _ in places:
                modules[names[id(module)]] = module
        elif not isinstance(attachment, Injected | FrozenInput | Differentiable):
            raise ConfigurationError(
                f"peft's format cannot hold a {type(attachment).__name__}: save without format='peft'"
            )
    if "" in modules:
        raise ConfigurationError(
            f"peft's format cannot hold a trained parameter of {type(model).__name__} that is in none of its "
            "modules: save without format='peft'"
        )
    inside = [n for n in modules if any(n.startswith(f"{other}.") for other in modules)]
    modules = {name: module for name, module in modules.items() if name not in inside}
    if reason := _not_chosen_alone(model, modules):
        raise ConfigurationError(f"peft's format cannot hold this: {reason}; save without format='peft'")
    return modules


def _not_chosen_alone(model: nn.Module, modules: dict[str, nn.Module]) -> str:
    """Return why peft would not choose exactly these modules, by the ends of names; "" if it would.

    It also copies them, so that a weight which another module shares would have two values.
    """
    for name, module in named_modules(model, every_name=True):
        ends = [end for end in modules if name.endswith(end)]
        if ends and module not in modules.values():
            return f"it would choose {name} for {ends[0]!r}, with which that name ends"
        if not ends and module in modules.values():
            return f"it would not choose {name}, which is the same module"
    if shared := not_its_own(model, modules, dict.fromkeys(modules, "saved")):
        return f"{shared[0]} would be copied, and {shared[1]}"
    return ""


def write_peft(model: nn.Module, record: Record, folder: Path) -> None:
    """Write an adaptation in peft's format.

    Raises:
        ConfigurationError: It is not a method of peft, such as LoRA or (IA)³, or peft's format cannot hold
            it.
    """
    from peft import get_peft_model_state_dict  # pyright: ignore[reportUnknownVariableType]
    from peft.mapping import PEFT_TYPE_TO_TUNER_MAPPING

    saved = _modules_to_save(model, record)
    injected = [attachment for attachment in record.attachments if isinstance(attachment, Injected)]
    if len(injected) != 1:
        raise ConfigurationError(
            f"{type(record.config).__name__} is not a method of peft: save without format='peft'"
        )
    settings: Any = injected[0].settings
    if PEFT_TYPE_TO_TUNER_MAPPING[settings.peft_type].uses_shared_state:
        raise ConfigurationError(
            f"{settings.peft_type.value} shares parameters between layers, which peft writes only from its "
            "own model: save without format='peft'"
        )
    adapter_state: dict[str, Tensor] = get_peft_model_state_dict(model, save_embedding_layers=False)
    tensors = {PREFIX + name: tensor.clone() for name, tensor in adapter_state.items()}  # some are shared
    for name, module in saved.items():
        tensors |= {f"{PREFIX}{name}.{key}": value for key, value in module.state_dict().items()}
    folder.mkdir(parents=True, exist_ok=True)
    save_tensors(tensors, folder / PEFT_WEIGHTS)
    written = type(settings)(**{f.name: getattr(settings, f.name) for f in fields(settings) if f.init})
    written.modules_to_save = list(saved) or None
    written.base_model_name_or_path = getattr(model, "name_or_path", "") or None
    written.inference_mode = True
    written.save_pretrained(str(folder))


def read_peft(folder: Path) -> tuple[Config, dict[str, Tensor]]:
    """Read a checkpoint of peft.

    Returns:
        The configuration, and the tensors by their names in the file, without peft's prefix.

    Raises:
        ConfigurationError: It is damaged, or its initialisation changed the base weights in a way that cannot
            be repeated.
    """
    described: JsonObject = json.loads((folder / PEFT_CONFIG).read_text(encoding="utf-8"))
    if not (folder / PEFT_WEIGHTS).exists():
        raise _refused(folder, f"it has no {PEFT_WEIGHTS}")
    tensors = {key.removeprefix(PREFIX): t for key, t in load_tensors(folder / PEFT_WEIGHTS).items()}
    if described.get("bias", "none") not in ("none", False):
        raise _refused(folder, "it trains biases of the base")
    initialisation = described.get("init_lora_weights", True)
    if initialisation not in INITIALISATIONS:
        raise _refused(folder, f"init_lora_weights={initialisation!r} may have changed the base weights")
    settings = _settings(described, folder)
    if described.get("peft_type") != "LORA" or not settings.keys() <= KNOWN:
        return ThroughPeft(settings=settings), tensors
    ranks = {
        n.removesuffix(".lora_A.weight"): len(t) for n, t in tensors.items() if n.endswith("lora_A.weight")
    }
    alphas: dict[str, float] = described.get("alpha_pattern") or {}
    config = LoRA(
        rank=described["r"],
        targets=tuple(sorted(map(re.escape, ranks))),
        alpha=described["lora_alpha"],
        dropout=described["lora_dropout"],
        init=INITIALISATIONS[initialisation],  # type: ignore[arg-type]
        rank_pattern={re.escape(name): rank for name, rank in ranks.items() if rank != described["r"]},
        alpha_pattern={re.escape(n): float(a) for n in ranks if (a := _alpha(n, alphas)) is not None},
        rslora=described.get("use_rslora", False),
        dora=described.get("use_dora", False),
    )
    return config, tensors


def _alpha(name: str, alphas: dict[str, float]) -> float | None:
    """Return the alpha of a matrix, by peft's own rule."""
    return next((a for key, a in alphas.items() if re.match(rf"(.*\.)?({key})$", name)), None)


def _settings(described: JsonObject, folder: Path) -> JsonObject:
    """Return the settings of a configuration that this peft knows and that differ from its defaults.

    Raises:
        ConfigurationError: peft has no method of this type, or refuses its settings.
    """
    from peft import PEFT_TYPE_TO_CONFIG_MAPPING

    kind: Any = PEFT_TYPE_TO_CONFIG_MAPPING.get(described.get("peft_type"))  # type: ignore[call-overload]
    if kind is None:
        raise _refused(folder, f"peft_type {described.get('peft_type')!r} is unknown to this peft")
    names = {f.name for f in fields(kind) if f.init}
    try:
        made = kind(**{key: value for key, value in described.items() if key in names and value is not None})
    except (TypeError, ValueError) as error:
        raise _refused(folder, str(error)) from None
    return described_by(made).settings


def named_here(model: nn.Module, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return a checkpoint's tensors by their names in the adapted model."""
    from peft.mapping import PEFT_TYPE_TO_TUNER_MAPPING

    settings = vars(model)["peft_config"][ADAPTER]
    tuner: Any = PEFT_TYPE_TO_TUNER_MAPPING[settings.peft_type]
    remapped: dict[str, Tensor] = tuner._remap_adapter_state_dict_for_load(
        model=model, config=settings, adapter_name=ADAPTER, state_dict=tensors
    )
    first = {id(parameter): name for name, parameter in model.named_parameters()}
    every = [(name, first[id(p)]) for name, p in model.named_parameters(remove_duplicate=False)]
    # peft's own way passes over what its wrappers hold, and parameters that are shared have several names.
    names = {tuner._remove_adapter_name_from_key(name, ADAPTER): own for name, own in every} | dict(every)
    return {names.get(name, name): tensor for name, tensor in remapped.items()}

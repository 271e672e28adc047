"""Layers that peft inserts into a model, in a form that can be undone."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import MISSING, fields
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from finetune_common.errors import ConfigurationError, shown
from parameter_efficient.attachment import Attachment, Outside, Tokens, place_of_new
from parameter_efficient.configs import ThroughPeft
from parameter_efficient.forward import DOES_NOT_RUN
from parameter_efficient.ownership import not_its_own
from parameter_efficient.typed import children_of, forked_random_numbers, named_modules

if TYPE_CHECKING:
    from peft import PeftConfig

__all__ = ["ADAPTER", "Injected", "described_by", "peft_settings"]

ADAPTER = "default"
"""Name of the inserted layers' parameters in peft."""

WHOLE_MODEL = {
    *("peft_type", "task_type", "base_model_name_or_path", "revision", "auto_mapping", "inference_mode"),
    *("modules_to_save", "peft_version"),
}
"""Fields of peft's configurations that concern the whole model, not the method."""


def _plain(value: object) -> object:
    """Return plain data: sets as sorted lists, enumerations as their values."""
    if isinstance(value, set | frozenset):
        return sorted(cast("Iterable[str]", value))
    if isinstance(value, Mapping):
        return _plain_entries(cast("Mapping[object, object]", value))
    if isinstance(value, tuple | list):
        return [_plain(item) for item in cast("Iterable[object]", value)]
    return getattr(value, "value", value)


def _plain_entries(entries: Mapping[object, object]) -> dict[str, object]:
    return {str(key): _plain(value) for key, value in entries.items()}


def described_by(config: object) -> ThroughPeft:
    """Return the configuration that describes one of peft's; `modules_to_save` becomes `also_train`.

    Raises:
        ConfigurationError: It is not a configuration of peft.
    """
    from peft import PeftConfig

    if not isinstance(config, PeftConfig):
        raise ConfigurationError(
            f"{shown(config)} is not a configuration: pass one of parameter_efficient, such as LoRA(), "
            "or a PeftConfig"
        )
    plain = _plain_entries(cast("dict[object, object]", config.to_dict()))  # pyright: ignore
    defaults = {f.name: None if f.default is MISSING else _plain(f.default) for f in fields(config)}
    # An empty value means the default in fields whose default peft computes.
    computed = {f.name for f in fields(config) if f.default is MISSING}
    settings = {
        key: value
        for key, value in plain.items()
        if key not in WHOLE_MODEL and value != defaults.get(key) and (value or key not in computed)
    }
    also = tuple(getattr(config, "modules_to_save", None) or ())
    return ThroughPeft(settings={"peft_type": plain["peft_type"], **settings}, also_train=also)


def peft_settings(config: ThroughPeft) -> PeftConfig:
    """Return peft's configuration.

    Raises:
        ConfigurationError: peft has none of this type or refuses it, or the method wraps a whole model.
    """
    from peft import PEFT_TYPE_TO_CONFIG_MAPPING
    from peft.mapping import PEFT_TYPE_TO_TUNER_MAPPING

    settings = dict(config.settings)
    kind = str(settings.pop("peft_type"))
    if kind not in PEFT_TYPE_TO_CONFIG_MAPPING:
        names = ", ".join(sorted(kind_of_peft.value for kind_of_peft in PEFT_TYPE_TO_TUNER_MAPPING))
        raise ConfigurationError(f"peft_type={kind!r} is unknown to this peft: choose from {names}")
    try:
        made: Any = PEFT_TYPE_TO_CONFIG_MAPPING[kind](**settings)  # type: ignore[index]
    except (TypeError, ValueError) as error:
        raise ConfigurationError(f"peft refuses these settings of {kind}: {error}") from None
    tuner: Any = PEFT_TYPE_TO_TUNER_MAPPING.get(kind)  # type: ignore[call-overload]
    if tuner is None or made.is_prompt_learning or made.is_adaption_prompt:
        raise ConfigurationError(
            f"{kind} wraps a whole model: use get_peft_model, or PrefixTuning for learned keys and values"
        )
    if hasattr(tuner, "update_and_allocate"):
        raise ConfigurationError(f"{kind} needs a call at every step, which is not made here: use LoRA")
    changes = getattr(made, "init_lora_weights", True)
    if getattr(made, "bias", "none") not in ("none", False):
        raise ConfigurationError(f"bias={made.bias!r} trains the base's own biases: use Fusion with BitFit")
    if getattr(made, "layer_replication", None):
        raise ConfigurationError("layer_replication makes another model: use get_peft_model")
    if kind == "OSF" or changes not in (True, False, "gaussian", "orthogonal", "eva"):
        raise ConfigurationError(
            f"{kind} with init_lora_weights={changes!r} changes the base weights and could not restore "
            "them: use LoRA(init='pissa') or LoRA(init='olora')"
        )
    return made


def _children(model: nn.Module) -> dict[tuple[nn.Module, str], nn.Module | None]:
    return {
        (parent, name): child for parent in model.modules() for name, child in children_of(parent).items()
    }


def _tuner(layer: nn.Module) -> nn.Module:
    """Return an inserted layer, or the one that it wraps, which alone can merge."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    return next(module for module in layer.modules() if isinstance(module, BaseTunerLayer))


class Injected(Attachment):
    """Layers of peft that replace a model's layers and contain them.

    Args:
        model: The model.
        settings: A configuration of peft.
        dtype: dtype of new parameters: float32 (at least) or model.
        generator: Its seed is that of peft's random numbers; the global stream does not advance.
    """

    def __init__(
        self, model: nn.Module, settings: PeftConfig, dtype: str, generator: torch.Generator
    ) -> None:
        from peft.mapping import PEFT_TYPE_TO_TUNER_MAPPING
        from peft.tuners.tuners_utils import (
            check_target_module_exists,  # pyright: ignore[reportUnknownVariableType]
        )

        kind: Any = settings.peft_type
        targets = getattr(settings, "target_modules", None)
        for name, module in named_modules(model):
            if (
                targets
                and isinstance(module, nn.MultiheadAttention)
                and check_target_module_exists(settings, name)
            ):
                raise ConfigurationError(
                    f"{name}: peft makes the weights of nn.MultiheadAttention anew in every pass, so they "
                    "could not be restored: name matrices as targets"
                )
        self._model, self.settings = model, settings
        base_ids, before = {id(p) for p in model.parameters()}, _children(model)
        tuner = PEFT_TYPE_TO_TUNER_MAPPING[kind]
        devices = {p.device for p in model.parameters() if p.device.type == "cuda"}
        try:
            with forked_random_numbers(devices):
                torch.default_generator.manual_seed(generator.initial_seed())
                tuner(model, settings, ADAPTER)
            self._take_over(before, base_ids, dtype)
        except BaseException as error:
            self._restore(before)
            if isinstance(error, ConfigurationError) or not isinstance(error, DOES_NOT_RUN):
                raise
            reason = " ".join(str(error).split())[:200]
            raise ConfigurationError(f"peft cannot adapt {type(model).__name__}: {reason}") from error

    def _take_over(
        self, before: Mapping[tuple[nn.Module, str], nn.Module | None], base_ids: set[int], dtype: str
    ) -> None:
        """Note what peft inserted, and give its parameters their device, dtype and first values."""
        self._exchanged = {
            place: (old, new)
            for place, old in before.items()
            if (new := children_of(place[0])[place[1]]) is not old and old is not None and new is not None
        }
        model, kind = self._model, cast(Any, self.settings.peft_type)
        if not self._exchanged:
            raise ConfigurationError(
                f"peft's {kind.value} found nothing to adapt in {type(model).__name__}: give target_modules"
            )
        inserted = {new for _, new in self._exchanged.values()}
        self.layers: dict[str, Any] = {n: m for n, m in named_modules(model) if m in inserted}
        self._tuners: dict[str, Any] = {name: _tuner(layer) for name, layer in self.layers.items()}
        self._before: dict[str, list[Tensor]] = {}
        self._places = [
            (module, name)
            for layer in self.layers.values()
            for module in layer.modules()
            for name, parameter in module.named_parameters(recurse=False, remove_duplicate=False)
            if id(parameter) not in base_ids and parameter.requires_grad
        ]
        for layer in self.layers.values():
            layer.train(model.training)
        for parameter in self.parameters():
            parameter.data = parameter.data.to(**place_of_new(dtype, *self.layers.values()))
        self._initialise()

    def _initialise(self) -> None:
        """Leave the first values as peft drew them."""

    def parameters(self) -> Iterator[nn.Parameter]:
        """Return what trains."""
        parameters = [getattr(module, name) for module, name in self._places]
        yield from {id(parameter): parameter for parameter in parameters}.values()

    def tokens(self) -> Iterator[Tokens]:
        """Return the layers in which single rows of a vocabulary train."""
        for tuner in self._tuners.values():
            if hasattr(tuner, "token_indices"):
                yield tuner, tuner.token_indices[ADAPTER]

    def _restore(self, before: Mapping[tuple[nn.Module, str], nn.Module | None]) -> None:
        for (parent, name), child in before.items():
            children_of(parent)[name] = child
        vars(self._model).pop("peft_config", None)

    def _bases(self) -> dict[str, nn.Module]:
        """Return what is inside of the layers; merging puts another norm there."""
        return {name: tuner.get_base_layer() for name, tuner in self._tuners.items()}

    def _trained_in(self, layer: nn.Module) -> frozenset[int]:
        """Return the ids of what trains in a layer; peft's layers of tied tokens hold the same."""
        inside = set(layer.modules())
        return frozenset(id(getattr(*place)) for place in self._places if place[0] in inside)

    def _leave(self) -> None:
        bases = self._bases()
        self._outside = [Outside(layer, bases[name]) for name, layer in self.layers.items()]
        inside = {layer: bases[name] for name, layer in self.layers.items()}
        self._restore({place: inside[new] for place, (_, new) in self._exchanged.items()})

    def _return(self) -> None:
        for layer in self._outside:
            layer.catch_up()
        self._restore({place: new for place, (_, new) in self._exchanged.items()})
        vars(self._model)["peft_config"] = {ADAPTER: self.settings}

    def detach(self) -> None:
        """Take peft's layers out."""
        self._leave()

    def reattach(self) -> None:
        """Put them back."""
        self._return()

    def merge(self, safe: bool = True) -> None:
        """Fold the change into the base weights.

        Args:
            safe: Refuse if that gives a number that is not finite; no weight is changed then.
        """
        bases = self._bases()
        for name, base in bases.items():
            if not all(p.is_floating_point() for p in base.parameters()):
                raise ConfigurationError(
                    f"{type(self.layers[name]).__name__} on {name} cannot be merged: quantised weights would "
                    "be rounded again, or the layer acts between weights; keep it attached"
                )
        trained = {name: self._trained_in(tuner) for name, tuner in self._tuners.items()}
        if refused := not_its_own(self._model, bases, trained):
            name, reason = refused
            raise ConfigurationError(f"{name} cannot be merged: {reason}; keep the adaptation attached")
        # All of them first, since several layers may share a weight.
        self._before = {n: [p.detach().clone() for p in m.parameters()] for n, m in bases.items()}
        for name, tuner in self._tuners.items():
            try:
                tuner.merge(safe_merge=safe)
            except (ValueError, NotImplementedError) as error:
                self._unfold()
                raise ConfigurationError(
                    f"merging {name} gives numbers that are not finite, or is not possible ({error}): use "
                    "an earlier checkpoint, or call remove(model)"
                ) from error
        self._leave()

    def _unfold(self) -> None:
        """Restore the base weights exactly."""
        for tuner in self._tuners.values():
            if tuner.merged_adapters:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")  # peft warns of rounding: the exact values follow
                    tuner.unmerge()
        for name, base in self._bases().items():
            for parameter, value in zip(base.parameters(), self._before[name], strict=True):
                parameter.data.copy_(value)
        self._before.clear()

    def unmerge(self) -> None:
        """Restore the base weights exactly, and peft's layers around them."""
        self._return()
        self._unfold()

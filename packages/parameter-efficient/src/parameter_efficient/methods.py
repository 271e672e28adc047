"""How each configuration changes a model."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import TypeVar

from torch import Generator, nn

from finetune_common.errors import ConfigurationError
from parameter_efficient.adapters import Adapter, attach_adapter, attach_behind
from parameter_efficient.anatomy import Anatomy
from parameter_efficient.architecture import Layer
from parameter_efficient.attachment import Attachment, InPlace, Place
from parameter_efficient.blocks import is_experts, is_transposed
from parameter_efficient.compacter import compact
from parameter_efficient.configs import (
    IA3,
    BitFit,
    BottleneckAdapter,
    Compacter,
    Config,
    FFNTuning,
    HeadOnly,
    LoRA,
    LoReFT,
    PrefixTuning,
    QLoRA,
    ThroughPeft,
)
from parameter_efficient.injected import Injected, peft_settings
from parameter_efficient.low_rank import LowRank
from parameter_efficient.pooling import Truncation
from parameter_efficient.prefixes import attach_prefixes
from parameter_efficient.quantised import Differentiable, check_quantised
from parameter_efficient.subspace import attach_subspaces
from parameter_efficient.targets import matching, named_targets

__all__ = ["also_trained", "attach"]

Number = TypeVar("Number", int, float)


def _biases(model: nn.Module, layers: list[Layer], config: BitFit) -> list[Place]:
    if config.biases == "all":
        modules = {id(m): m for layer in layers for m in layer.module.modules()}
        biased = [m for m in modules.values() if isinstance(getattr(m, "bias", None), nn.Parameter)]
    else:
        named = named_targets(model, config.biases, layers, "biases")
        biased = [module for module in named.values() if hasattr(module, "bias")]
    if not biased:
        raise ConfigurationError(
            f"biases={config.biases!r}: none of these modules of {type(model).__name__} has a bias"
        )
    return [(module, "bias") for module in biased]


def _parameters_of(modules: Iterable[nn.Module]) -> list[Place]:
    """Return the parameters that modules hold themselves, and those from which torch computes theirs."""
    places: dict[Place, None] = {}
    for module in modules:
        computed = getattr(module, "parametrizations", nn.ModuleDict())
        for holder in (module, *computed.modules()):
            places |= {(holder, name): None for name, _ in holder.named_parameters(recurse=False)}
    return list(places)


def _feed_forward(model: nn.Module, layers: list[Layer], config: FFNTuning) -> list[Place]:
    roles = ["ffn_in", "ffn_out"]
    if config.include_attention_output:
        roles += ["o", "attention_norm", "ffn_norm"]
    modules = named_targets(model, config.targets or roles, layers)
    places = _parameters_of(modules.values())
    frozen = [module for module, name in places if not getattr(module, name).is_floating_point()]
    if frozen:
        raise ConfigurationError(
            f"{type(frozen[0]).__name__} is quantised, so its weights cannot train: use qlora"
        )
    return places


def also_trained(model: nn.Module, patterns: tuple[str, ...]) -> list[Place]:
    """Return the parameters that `also_train` names: of norms, or of modules and all modules in them."""
    inner: list[nn.Module] = []
    for pattern in patterns:
        if pattern == "norms":
            inner += [m for m in model.modules() if "norm" in type(m).__name__.lower()]
        else:
            inner += [
                m for module in matching(model, [pattern], "also_train").values() for m in module.modules()
            ]
    return _parameters_of(inner)


def _adapters(
    model: nn.Module, layers: list[Layer], config: BottleneckAdapter, generator: Generator
) -> Iterator[Adapter]:
    if config.targets:
        named = matching(model, config.targets, "targets", [layer.name for layer in layers] or [""])
        yield from (attach_behind(model, name, module, config, generator) for name, module in named.items())
    else:
        sites = [
            layer.module.get_submodule(sub.entry if config.parallel else sub.norm or sub.exit)
            for layer in layers
            if (sub := layer.sublayers.get(config.position)) is not None
        ]
        if len(set(sites)) < len(sites):
            raise ConfigurationError(
                f"position={config.position!r}: layers of {type(model).__name__} share this sub-layer, so it "
                "has no place for the adapter of each: use another position, or lora"
            )
        chunked = bool(getattr(getattr(model, "config", None), "chunk_size_feed_forward", 0))
        yield from (attach_adapter(layer, config, generator, chunked) for layer in layers)


def _without_experts(targets: Mapping[str, nn.Module]) -> Mapping[str, nn.Module]:
    """Refuse experts whose matrices are stacked."""
    for name, module in targets.items():
        if is_experts(module):
            raise ConfigurationError(
                f"{name} ({type(module).__name__}) holds the matrices of its experts in one tensor, which "
                "peft's layers do not adapt here: choose q, k, v, o, or ffn-only for the experts"
            )
    return targets


def _by_name(
    model: nn.Module, targets: Iterable[str], patterns: Mapping[str, Number], layers: list[Layer], option: str
) -> dict[str, Number]:
    """Return target → the value of the pattern that names it."""
    values: dict[str, Number] = {}
    for pattern, value in patterns.items():
        matches = named_targets(model, [pattern], layers, option).keys() & set(targets)
        if not matches:
            raise ConfigurationError(f"{option}={pattern!r} names none of the targets: leave it out")
        values |= dict.fromkeys(matches, value)
    return values


def _factors(model: nn.Module, layers: list[Layer], config: IA3, generator: Generator) -> Injected:
    from peft import IA3Config

    outputs, inputs = (
        list(_without_experts(named_targets(model, names, layers))) if names else []
        for names in (config.targets, config.feed_forward)
    )
    matrices = [model.get_submodule(name) for name in outputs + inputs]
    settings = IA3Config(
        target_modules=outputs + inputs,
        feedforward_modules=inputs,
        fan_in_fan_out=any(map(is_transposed, matrices)),
    )
    return Injected(model, settings, config.dtype, generator)


def attach(anatomy: Anatomy, config: Config, generator: Generator) -> Iterator[Attachment]:
    """Change a model by one method; each change is yielded once it is made."""
    model = anatomy.model
    if isinstance(config, HeadOnly):
        if config.encoder_layers is not None:
            yield Truncation(model, anatomy.encoder(), config.encoder_layers, anatomy.shared())
        return
    if isinstance(config, ThroughPeft):
        yield Injected(model, peft_settings(config), config.dtype, generator)
        return
    layers = anatomy.layers(config)
    if isinstance(config, BottleneckAdapter):
        made = _adapters(model, layers, config, generator)
        yield from compact(made, config, generator) if isinstance(config, Compacter) else made
    elif isinstance(config, PrefixTuning):
        yield from attach_prefixes(layers, config, generator, model, anatomy.inputs)
    elif isinstance(config, LoRA):
        if isinstance(config, QLoRA):
            check_quantised(model, config)
            yield Differentiable(model)
        targets = _without_experts(named_targets(model, config.targets, layers))
        ranks = _by_name(model, targets, config.rank_pattern, layers, "rank_pattern")
        alphas = _by_name(model, targets, config.alpha_pattern, layers, "alpha_pattern")
        yield LowRank(model, targets, config, generator, ranks, alphas)
    elif isinstance(config, IA3):
        yield _factors(model, layers, config, generator)
    elif isinstance(config, LoReFT):
        yield from attach_subspaces(model, layers, config, generator)
    elif isinstance(config, BitFit):
        yield InPlace(_biases(model, layers, config))
    elif isinstance(config, FFNTuning):
        yield InPlace(_feed_forward(model, layers, config))
    else:
        raise ConfigurationError(f"{type(config).__name__} is not a method: see parameter_efficient.configs")

"""Where a transformer keeps its layers, and which matrix plays which role: found by structure.

The longest list of equal blocks is the body (`blocks`). Roles in a block follow from how numbers flow through
it (`flow`, `roles`). Names decide only between candidates that the flow cannot tell apart.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from functools import partial

from torch import nn

from finetune_common.errors import ConfigurationError
from parameter_efficient.blocks import Stack, matrices_of, width_out
from parameter_efficient.flow import Call, Flow
from parameter_efficient.forward import DOES_NOT_RUN, Inputs, outputs_of, undisturbed
from parameter_efficient.roles import Roles, UnsureError, find_roles
from parameter_efficient.sublayers import SubLayer
from parameter_efficient.typed import named_modules

__all__ = ["Architecture", "Layer", "call_counts", "find_architecture"]


@dataclass
class Layer:
    """One layer of a model.

    Args:
        name: Its name in the model.
        module: The layer itself.
        roles: Role → the modules that play it, by their names in the model.
        sublayers: "attention" and "ffn" → where to put an adapter, by names in the layer.
        width: Features of a token between layers.
    """

    name: str
    module: nn.Module
    roles: dict[str, dict[str, nn.Module]]
    sublayers: dict[str, SubLayer]
    width: int

    def play(self, role: str) -> dict[str, nn.Module]:
        """Return the modules of a role.

        Raises:
            ConfigurationError: No module has it.
        """
        if role not in self.roles:
            raise ConfigurationError(
                f"{role}: no module of {self.name} ({type(self.module).__name__}) plays this role; it has "
                f"{', '.join(self.roles)}: choose one of these, or give names of modules as targets"
            )
        return self.roles[role]

    def first(self, role: str) -> nn.Module:
        """Return the first module of a role."""
        return next(iter(self.play(role).values()))


@dataclass
class Architecture:
    """The layers of a model that can be adapted.

    Args:
        kind: Class name of the model, for messages.
        stack: The list of blocks.
        layers: The layers, in order.
        shared: Whether some of them are used several times (albert).
        refusal: Why their roles are unknown; "" if they are known.
    """

    kind: str
    stack: Stack
    layers: list[Layer]
    shared: bool
    refusal: str = ""

    def select(self, layers: tuple[int, ...] | str, *, roles: bool = True) -> list[Layer]:
        """Return chosen layers in the model's order, each once.

        Args:
            layers: Numbers from 0, or from the end (-1); or "all".
            roles: Whether their roles have to be known.

        Raises:
            ConfigurationError: No such layer, a choice among layers that share their weights, or unknown
                roles.
        """
        if roles and self.refusal:
            raise ConfigurationError(self.refusal)
        if layers == "all":
            return self.layers
        if self.shared:
            raise ConfigurationError(
                f"layers={list(layers)}: {self.kind} uses the same weights in every layer, so single layers "
                "cannot be adapted: use layers='all'"
            )
        depth = len(self.layers)
        for number in layers:
            if not -depth <= int(number) < depth:
                raise ConfigurationError(
                    f"layers={list(layers)}: {self.kind} has {depth} layers, and no layer {number}: use 0 "
                    f"to {depth - 1}, or -{depth} to -1"
                )
        return [self.layers[number] for number in sorted({int(number) % depth for number in layers})]


def _shape_of(block: nn.Module) -> Hashable:
    """Return what blocks of one kind have in common: classes, names and shapes."""
    matrices = tuple((n, tuple(p.shape)) for n, p in block.named_parameters())
    return type(block), tuple((n, type(m)) for n, m in named_modules(block)), matrices


def _first_calls(model: nn.Module, stack: Stack, inputs: Inputs) -> tuple[dict[str, Call], int]:
    """Return the first call of each block, and how often the most used one is called."""
    calls: dict[str, Call] = {}
    counts: Counter[int] = Counter()

    def record_call(name: str) -> Callable[[nn.Module, tuple[object, ...], dict[str, object]], None]:
        def hook(module: nn.Module, args: tuple[object, ...], kwargs: dict[str, object]) -> None:
            counts[id(module)] += 1
            calls.setdefault(name, Call(args, kwargs, {}))

        return hook

    def record_tuple(block: str, name: str) -> Callable[[nn.Module, object, object], None]:
        def hook(module: nn.Module, args: object, output: object) -> None:
            if isinstance(output, tuple) and block in calls:
                calls[block].tuples[name] = output

        return hook

    with undisturbed(model):
        for name, block in stack.blocks.items():
            block.register_forward_pre_hook(record_call(name), with_kwargs=True)
            for inner, module in named_modules(block):
                module.register_forward_hook(record_tuple(name, inner))
        outputs_of(model, inputs)
    return calls, max(counts.values(), default=0)


_KNOWN: dict[Hashable, Roles] = {}
"""Roles by kind of block, configuration and shapes of the inputs: they do not depend on weights."""


def _analysed(model: nn.Module, stack: Stack, inputs: Inputs) -> tuple[list[Roles], bool]:
    """Return the roles in each block of a stack, and whether blocks are used several times."""
    calls, most = _first_calls(model, stack, inputs)
    if not calls:
        raise UnsureError("its layers take no part in a forward pass")
    config = str(getattr(model, "config", ""))
    shapes = [(name, getattr(value, "shape", value)) for name, value in inputs.items()]
    kinds = {name: (type(model), config, str(shapes), _shape_of(m)) for name, m in stack.blocks.items()}
    for name, block in stack.blocks.items():
        if name in calls and kinds[name] not in _KNOWN:
            try:
                _KNOWN[kinds[name]] = find_roles(Flow(block, calls[name]))
            except UnsureError as error:
                raise UnsureError(f"{type(block).__name__}: {error}") from None
            except DOES_NOT_RUN as error:
                reason = " ".join(f"{type(error).__name__}: {error}".split())[:160]
                raise UnsureError(f"{type(block).__name__} does not run by itself ({reason})") from error
    return [_KNOWN[kind] for kind in kinds.values()], most > 1


def call_counts(model: nn.Module, stacks: list[Stack], inputs: Inputs) -> dict[str, int]:
    """Return how often each block is called in a forward pass, in the order of the first calls."""
    counts: Counter[str] = Counter()

    def count(name: str, *_: object) -> None:
        counts[name] += 1

    with undisturbed(model):
        for stack in stacks:
            for name, block in stack.blocks.items():
                block.register_forward_pre_hook(partial(count, name))
        outputs_of(model, inputs)
    return dict(counts)


def _feed_forward_beside(model: nn.Module, stack: Stack) -> list[dict[str, dict[str, nn.Module]]]:
    """Return roles in a list beside the blocks with as many pairs of matrices D → F → D (xlm), if any."""
    for name, modules in model.get_submodule(stack.container).named_children():
        if (
            not isinstance(modules, nn.ModuleList)
            or name == stack.attribute
            or len(modules) != len(stack.blocks)
        ):
            continue
        pairs: list[dict[str, dict[str, nn.Module]]] = []
        for number, module in enumerate(modules):
            pair = sorted(matrices_of(module).items(), key=lambda item: width_out(item[1]), reverse=True)
            shapes = [(getattr(m, "in_features", 0), width_out(m)) for _, m in pair]
            if len(pair) == 2 and shapes[0] == shapes[1][::-1]:
                place = ".".join(part for part in (stack.container, name, str(number)) if part)
                named = [{f"{place}.{inner}": m} for inner, m in pair]
                pairs.append(dict(zip(("ffn_in", "ffn_out"), named, strict=True)))
        if len(pairs) == len(modules):
            return pairs
    return []


def _layers(model: nn.Module, stack: Stack, roles: list[Roles]) -> list[Layer]:
    layers: list[Layer] = []
    beside = (
        []
        if any("ffn_out" in block_roles.modules for block_roles in roles)
        else _feed_forward_beside(model, stack)
    )
    for (name, block), block_roles in zip(stack.blocks.items(), roles, strict=True):
        named = {
            role: {f"{name}.{module}": block.get_submodule(module) for module in modules}
            for role, modules in block_roles.modules.items()
        }
        named |= beside[len(layers)] if beside else {}
        layers.append(Layer(name, block, named, block_roles.sublayers, block_roles.width))
    return layers


def find_architecture(
    model: nn.Module, stacks: list[Stack], inputs: Inputs, *, stack: str = "encoder"
) -> list[Architecture]:
    """Find the roles in a model's layers.

    Args:
        model: The model. It is run, and not changed.
        stacks: Its lists of equal blocks, from `find_stacks`.
        inputs: Inputs of a forward pass, from `working_inputs`.
        stack: encoder, decoder or both, for a model that has both.

    Returns:
        One architecture, or two. If roles are unknown, `refusal` says why, in one line.

    Raises:
        ConfigurationError: The model has no list of equal blocks.

    Examples:
        >>> from transformers import BertConfig, BertModel
        >>> from parameter_efficient.blocks import find_stacks
        >>> from parameter_efficient.forward import working_inputs
        >>> sizes = {"hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 32}
        >>> model = BertModel(BertConfig(num_hidden_layers=3, **sizes))
        >>> [architecture] = find_architecture(model, find_stacks(model), working_inputs(model))
        >>> [layer.name for layer in architecture.select((-1, 0))]
        ['encoder.layer.0', 'encoder.layer.2']
        >>> list(architecture.layers[0].roles["o"])
        ['encoder.layer.0.attention.output.dense']
    """
    kind = type(model).__name__
    if not stacks:
        raise ConfigurationError(
            f"{kind} is not supported: it has no list of equal blocks with at least four matrices each; give "
            "names of modules as targets, or train the head alone"
        )
    architectures = [_architecture(model, stack, inputs) for stack in stacks]
    sure = [architecture for architecture in architectures if not architecture.refusal] or architectures
    if not getattr(getattr(model, "config", None), "is_encoder_decoder", False) or len(sure) == 1:
        return sure[:1]
    decoders = [
        architecture
        for architecture in sure
        if any("cross_v" in layer.roles for layer in architecture.layers)
    ]
    encoders = [architecture for architecture in sure if architecture not in decoders]
    return {"encoder": encoders[:1], "decoder": decoders[:1], "both": [*encoders[:1], *decoders[:1]]}[stack]


def _architecture(model: nn.Module, stack: Stack, inputs: Inputs) -> Architecture:
    kind = type(model).__name__
    try:
        roles, shared = _analysed(model, stack, inputs)
    except UnsureError as error:
        refusal = (
            f"{kind} is not supported: the roles of its matrices are not certain ({error}); give names of "
            "modules as targets, or train the head alone"
        )
        plain = [Layer(name, block, {}, {}, 0) for name, block in stack.blocks.items()]
        return Architecture(kind, stack, plain, False, refusal)
    return Architecture(kind, stack, _layers(model, stack, roles), shared)

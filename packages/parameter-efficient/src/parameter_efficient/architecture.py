"""Where a transformer keeps its layers, and what is what in them: rules over names and types of modules.

A rule is a pattern for a module's name within its layer. One table serves every architecture that names its
modules in one of the known ways, and a model that none fits is refused with what was looked for.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from torch import nn

from finetune_common.errors import ConfigurationError

__all__ = ["Architecture", "Layer", "find_architecture", "is_projection"]

# bert, roberta, electra | deberta-v2 | albert | distilbert | bart | t5 | gpt2
PROJECTIONS = {
    "q": r"attention\.self\.query(_proj)?|attention\.query|attention\.q_lin|self_attn\.q_proj"
    r"|layer\.0\.SelfAttention\.q|attn\.c_attn",
    "k": r"attention\.self\.key(_proj)?|attention\.key|attention\.k_lin|self_attn\.k_proj"
    r"|layer\.0\.SelfAttention\.k|attn\.c_attn",
    "v": r"attention\.self\.value(_proj)?|attention\.value|attention\.v_lin|self_attn\.v_proj"
    r"|layer\.0\.SelfAttention\.v|attn\.c_attn",
    "o": r"attention\.output\.dense|attention\.dense|attention\.out_lin|self_attn\.out_proj"
    r"|layer\.0\.SelfAttention\.o|attn\.c_proj",
    "ffn_in": r"intermediate\.dense|ffn|ffn\.lin1|fc1|layer\.1\.DenseReluDense\.wi(_[01])?|mlp\.c_fc",
    "ffn_out": r"output\.dense|ffn_output|ffn\.lin2|fc2|layer\.1\.DenseReluDense\.wo|mlp\.c_proj",
}
NORMS = {
    "attention_norm": r"attention\.output\.LayerNorm|attention\.LayerNorm|sa_layer_norm|self_attn_layer_norm"
    r"|layer\.0\.layer_norm|ln_1",
    "ffn_norm": r"output\.LayerNorm|full_layer_layer_norm|output_layer_norm|final_layer_norm"
    r"|layer\.1\.layer_norm|ln_2",
}
BLOCKS = {
    "attention": r"attention|self_attn|layer\.0\.SelfAttention|attn",
    "ffn": r"layer\.1\.DenseReluDense|mlp",
}
FINAL_NORM = r"(final_)?layer_norm|ln_f"
WITHIN_GROUP = r"(?:albert_layers\.0\.)?"
REQUIRED = ("q", "k", "v", "o", "ffn_in", "ffn_out", "ffn_norm", "attention")


def is_projection(module: nn.Module) -> bool:
    """Return whether a module multiplies by a matrix: `nn.Linear` and its 4-bit forms, or `Conv1D`."""
    return isinstance(module, nn.Linear) or type(module).__name__ == "Conv1D"


@dataclass
class Layer:
    """One layer of a model.

    Args:
        name: Its name in the model.
        module: Itself.
        norm_first: Whether norms come before the sub-layers (gpt2, t5).
        roles: Role → the modules that play it, by their names in the model.
    """

    name: str
    module: nn.Module
    norm_first: bool
    roles: dict[str, dict[str, nn.Module]]

    def one(self, role: str) -> Any:
        """Return the first module of a role."""
        return next(iter(self.roles[role].values()))


@dataclass
class Architecture:
    """The layers of a model that can be adapted.

    Args:
        kind: Class name of the model, for messages.
        container: Name of the module that holds the list of layers.
        attribute: Name of that list in it.
        layers: The layers, in order.
        shared: Whether some of them are used several times (albert).
    """

    kind: str
    container: str
    attribute: str
    layers: list[Layer]
    shared: bool

    def select(self, layers: tuple[int, ...] | str) -> list[Layer]:
        """Return chosen layers in the model's order, each once.

        Args:
            layers: Numbers from 0, or from the end (-1); or "all".

        Raises:
            ConfigurationError: No such layer, or a choice among layers that are one.
        """
        if layers == "all":
            return self.layers
        if self.shared:
            raise ConfigurationError(
                f"layers={list(layers)}: {self.kind} uses the same weights in every layer, so that one of "
                "them cannot be adapted alone: use layers='all'"
            )
        depth = len(self.layers)
        for number in layers:
            if not -depth <= int(number) < depth:
                raise ConfigurationError(
                    f"layers={list(layers)}: {self.kind} has {depth} layers, {number} is none of them: use 0 "
                    f"to {depth - 1}, or -{depth} to -1"
                )
        return [self.layers[number] for number in sorted({int(number) % depth for number in layers})]


def _roles(layer: nn.Module, name: str) -> dict[str, dict[str, nn.Module]]:
    """Find what plays which role in a layer."""
    found: dict[str, dict[str, nn.Module]] = {}
    for relative, module in layer.named_modules():
        patterns = PROJECTIONS if is_projection(module) else NORMS | BLOCKS
        for role, pattern in patterns.items():
            if re.fullmatch(f"{WITHIN_GROUP}(?:{pattern})", relative):
                found.setdefault(role, {})[f"{name}.{relative}"] = module
    return found


def _norm_first(layer: nn.Module, container: nn.Module) -> bool:
    """Return whether norms come first: such a model has one more behind its last layer, or says so (opt)."""
    behind_the_last = any(re.fullmatch(FINAL_NORM, name) for name, _ in container.named_children())
    return getattr(layer, "do_layer_norm_before", behind_the_last)


def _stacks(model: nn.Module) -> Iterator[tuple[str, list[Layer]]]:
    """Yield every list of modules that are all layers by the rules, outermost first."""
    for name, modules in model.named_modules():
        if not isinstance(modules, nn.ModuleList) or not len(modules):
            continue
        container = model.get_submodule(name.rpartition(".")[0])
        layers = []
        for number, module in enumerate(modules):
            roles = _roles(module, f"{name}.{number}")
            if set(REQUIRED) <= set(roles):
                layers.append(Layer(f"{name}.{number}", module, _norm_first(module, container), roles))
        if len(layers) == len(modules):
            yield name, layers


def find_architecture(model: nn.Module) -> Architecture:
    """Find the layers of a model: of its encoder, where it has a decoder too.

    Raises:
        ConfigurationError: No list of layers that the rules know.

    Examples:
        >>> from transformers import BertConfig, BertModel
        >>> sizes = {"hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 32}
        >>> found = find_architecture(BertModel(BertConfig(num_hidden_layers=3, **sizes)))
        >>> [layer.name for layer in found.select((-1, 0))]
        ['encoder.layer.0', 'encoder.layer.2']
    """
    kind, config = type(model).__name__, getattr(model, "config", None)
    for name, layers in _stacks(model):
        container, _, attribute = name.rpartition(".")
        depth = getattr(config, "num_hidden_layers", len(layers))
        shared = getattr(config, "num_hidden_groups", depth) < depth
        return Architecture(kind, container, attribute, layers, shared)
    looked_for = "; ".join(f"{role}: {PROJECTIONS[role]}" for role in ("q", "ffn_in"))
    raise ConfigurationError(
        f"{kind} is not supported: no list of layers was found in it whose modules are named like those of "
        f"bert, roberta, albert, distilbert, electra, deberta-v2, t5, bart or gpt2 (looked for {looked_for})"
    )

"""Prefixed attention against its definition, from the outside of every architecture's attention module.

With one zero key of value zero, a query's context c becomes c₁ = c Z / (Z + 1), Z being the sum of the
exponentials of its scores: Z = c₁ / (c - c₁). With a key k of value v it has to become
(Z c + e^s v) / (Z + e^s), s = scale · q·k. Float64, padded rows, all kinds of masks and position scores.
"""

import math
from typing import Any

import pytest
import torch
from small_transformers import CONFIGURATIONS, batch, classifier
from torch import Tensor, nn

from finetune_common.errors import ConfigurationError
from parameter_efficient import PrefixTuning, adapt
from parameter_efficient.architecture import find_architecture

SCALES = {"t5": 1.0, "deberta-v2": 1 / math.sqrt(8 * 3)}


def observed(model: nn.Module, number: int) -> tuple[Tensor, Tensor]:
    """Query and context of a layer, (batch, tokens, heads, width of a head) each."""
    layer = find_architecture(model).layers[number]
    seen: dict[str, Tensor] = {}

    def query(module: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
        seen.setdefault("q", output[..., :16])

    def context(module: nn.Module, args: tuple[Any, ...]) -> None:
        seen["c"] = args[0]

    handles = [
        layer.one("q").register_forward_hook(query),
        layer.one("o").register_forward_pre_hook(context),
    ]
    with torch.no_grad():
        model(**batch())
    for handle in handles:
        handle.remove()
    return seen["q"].unflatten(-1, (2, 8)), seen["c"].unflatten(-1, (2, 8))


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
@pytest.mark.parametrize("architecture", CONFIGURATIONS)
def test_context_of_a_prefixed_layer_is_the_softmax_over_prefix_and_tokens(
    architecture: str, implementation: str
) -> None:
    if architecture == "deberta-v2" and implementation == "sdpa":
        implementation = "eager"  # the only one that it has
    last = 0 if architecture == "albert" else 1
    settings: dict[str, Any] = {"attn_implementation": implementation, "num_hidden_layers": last + 1}
    if architecture == "bart":
        settings["encoder_layers"] = settings.pop("num_hidden_layers")
    plain = classifier(architecture, **settings).double()
    query, context = observed(plain, last)

    def prefix(keys: Tensor, values: Tensor) -> Tensor:
        model = classifier(architecture, **settings).double()
        adapt(model, PrefixTuning(layers=[-1], length=len(keys)))
        for name, parameter in model.named_parameters():
            if name.endswith("prefix.keys"):
                parameter.data.copy_(keys)
            if name.endswith("prefix.values"):
                parameter.data.copy_(values)
        return observed(model, last)[1]

    zero = torch.zeros(1, 16, dtype=torch.float64)
    diluted = prefix(zero, zero)
    share = (diluted * context).sum(-1, keepdim=True) / (context * context).sum(-1, keepdim=True)
    torch.testing.assert_close(diluted, share * context)
    partition = share / (1 - share)

    generator = torch.Generator().manual_seed(3)
    keys = torch.randn(2, 16, generator=generator, dtype=torch.float64)
    values = torch.randn(2, 16, generator=generator, dtype=torch.float64)
    scale = SCALES.get(architecture, 1 / math.sqrt(8))
    scores = scale * torch.einsum("bthw,nhw->bthn", query, keys.unflatten(-1, (2, 8)))
    weights = scores.exp()
    total = partition + weights.sum(-1, keepdim=True)
    added = torch.einsum("bthn,nhw->bthw", weights, values.unflatten(-1, (2, 8)))
    expected = (partition * context + added) / total
    torch.testing.assert_close(prefix(keys, values), expected)


def test_a_model_switched_to_another_attention_afterwards_still_has_its_prefix() -> None:
    model = adapt(classifier("bert"), PrefixTuning(init_std=1.0))
    with torch.no_grad():
        before = model(**batch()).logits
        model.set_attn_implementation("eager")
        torch.testing.assert_close(model(**batch()).logits, before)


def test_attention_without_longer_keys_is_refused() -> None:
    model = classifier("bert")
    model.config._attn_implementation = "flex_attention"
    with pytest.raises(ConfigurationError, match="attn_implementation='sdpa'"):
        adapt(model, PrefixTuning())

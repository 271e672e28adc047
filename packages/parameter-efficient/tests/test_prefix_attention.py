"""Prefixed attention against its definition, from the outside of every architecture's attention module.

With one zero key of value zero, a query's context c becomes c₁ = c Z / (Z + 1), Z being the sum of the
exponentials of its scores: Z = c₁ / (c - c₁). With a key k of value v it has to become
(Z c + e^s v) / (Z + e^s), s = scale · q·k. Float64, padded rows, all kinds of masks and position scores.
"""

import math
from typing import Any

import pytest
import torch
from small_transformers import BY_THEMSELVES, CONFIGURATIONS, batch, classifier
from torch import Tensor, nn

from finetune_common.errors import ConfigurationError
from parameter_efficient import Fusion, LoRA, PrefixTuning, adapt, remove
from parameter_efficient.anatomy import Anatomy

SCALES = {"t5": 1.0, "deberta-v2": 1 / math.sqrt(8 * 3)}


def layers(kind: type, config: Any) -> list[dict[str, str]]:
    """Names of q and o in every layer, from a model that is not adapted."""
    [found] = Anatomy(kind(config), "encoder", None).architectures
    return [{role: next(iter(layer.roles[role])) for role in "qo"} for layer in found.layers]


def observed(model: nn.Module, number: int) -> tuple[Tensor, Tensor]:
    """Query and context of a layer, (batch, tokens, heads, width of a head) each."""
    layer = layers(type(model), model.config)[number]
    seen: dict[str, Tensor] = {}

    def query(module: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
        seen.setdefault("q", output[..., :16])

    def context(module: nn.Module, args: tuple[Any, ...]) -> None:
        seen["c"] = args[0]

    handles = [
        model.get_submodule(layer["q"]).register_forward_hook(query),
        model.get_submodule(layer["o"]).register_forward_pre_hook(context),
    ]
    with torch.no_grad():
        model(**batch())
    for handle in handles:
        handle.remove()
    return seen["q"].unflatten(-1, (2, 8)), seen["c"].unflatten(-1, (2, 8))


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
@pytest.mark.parametrize("architecture", [*CONFIGURATIONS, *BY_THEMSELVES])
def test_context_of_a_prefixed_layer_is_the_softmax_over_prefix_and_tokens(
    architecture: str, implementation: str
) -> None:
    if architecture in ("deberta-v2", *BY_THEMSELVES) and implementation == "sdpa":
        pytest.skip("it has no other than eager")
    last = 0 if architecture == "albert" else 1
    settings: dict[str, Any] = {"attn_implementation": implementation, "num_hidden_layers": last + 1}
    if architecture in ("bart", "mvp"):
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


@pytest.mark.parametrize(("loaded", "switched"), [("sdpa", "eager"), ("eager", "sdpa")])
@pytest.mark.parametrize("architecture", [a for a in CONFIGURATIONS if a != "deberta-v2"])
def test_a_model_switched_to_another_attention_keeps_its_prefix_and_its_mask(
    architecture: str, loaded: str, switched: str
) -> None:
    """With padding, and without: then sdpa has no mask, and gpt2 is causal all the same."""
    model = adapt(classifier(architecture, attn_implementation=loaded), PrefixTuning(init_std=1.0))
    full = {name: value[1:] for name, value in batch().items()}
    with torch.no_grad():
        before = [model(**inputs).logits for inputs in (batch(), full)]
        model.set_attn_implementation(switched)
        after = [model(**inputs).logits for inputs in (batch(), full)]
    torch.testing.assert_close(after, before)


def test_a_switch_to_attention_without_longer_keys_is_refused() -> None:
    model = adapt(classifier("bert"), PrefixTuning())
    model.config._attn_implementation = "of_ones_own"
    with pytest.raises(ConfigurationError, match="attn_implementation='sdpa'"):
        model(**batch())


@pytest.mark.parametrize("architecture", CONFIGURATIONS)
def test_a_prefix_beside_low_rank_updates_of_zero_is_the_prefix(architecture: str) -> None:
    prefix, lora = PrefixTuning(init_std=1.0), LoRA(targets=("q", "k", "v"))
    alone = adapt(classifier(architecture), Fusion(prefix=prefix, seed=1))
    both = adapt(classifier(architecture), Fusion(lora=lora, prefix=prefix, seed=1))
    learned = {name: p for name, p in alone.named_parameters() if ".prefix." in name}
    with torch.no_grad():
        for name, parameter in both.named_parameters():
            if name in learned:
                parameter.copy_(learned[name])
        torch.testing.assert_close(both(**batch()).logits, alone(**batch()).logits)
    remove(both)
    with torch.no_grad():
        assert torch.equal(both(**batch()).logits, classifier(architecture)(**batch()).logits)


def test_attention_without_longer_keys_is_refused() -> None:
    model = classifier("bert")
    model.config._attn_implementation = "flex_attention"
    with pytest.raises(ConfigurationError, match="attn_implementation='sdpa'"):
        adapt(model, PrefixTuning())

"""What every method promises, on architectures that people fine-tune today, at tiny sizes.

Widths: D = 32 features, F = 48 inner features, 4 heads of 8; where keys are shared there are 2. Counts
are of one layer; each model has two.
"""

import copy
from dataclasses import replace
from typing import Any

import pytest
import torch
import zoo
from small_transformers import disturb, past_of, recompute_activations
from torch import Tensor, nn
from zoo import D, F

from finetune_common.errors import ConfigurationError
from parameter_efficient import (
    IA3,
    BitFit,
    BottleneckAdapter,
    FFNTuning,
    LoRA,
    LoReFT,
    PrefixTuning,
    adapt,
    load_adaptation,
    merge,
    remove,
    save_adaptation,
    trainable_parameters,
    unmerge,
)
from parameter_efficient.configs import Config

KV, R, N = 16, 2, 3
TASKS = {"vit": "image", "whisper": "audio"}
SPEAKING = {"t5": "seq2seq", "whisper": "speech"}
METHODS: dict[str, Config] = {
    "lora": LoRA(rank=R),
    "adapter": BottleneckAdapter(bottleneck=R, layer_norm=False),
    "bitfit": BitFit(),
    "ffn": FFNTuning(),
    "prefix": PrefixTuning(length=N),
    "ia3": IA3(),
    "loreft": LoReFT(rank=R),
}
EVERYWHERE = {"adapter": 2 * R * D + R + D, "loreft": 2 * R * D + R}
LLAMA = {
    "lora": R * (D + D + D + KV),
    "bitfit": D + 2 * F,
    "ffn": 3 * D * F,
    "prefix": 2 * N * KV,
    "ia3": 2 * KV + F,
}
BERT = {
    "lora": R * 4 * D,
    "bitfit": D + F,
    "ffn": 2 * D * F + F + D,
    "prefix": 2 * N * D,
    "ia3": 2 * D + F,
}
COUNTS: dict[str, dict[str, int | None]] = {
    "llama": LLAMA,
    "qwen3": LLAMA,
    "gemma3_text": LLAMA,
    "mistral": LLAMA,
    "phi3": LLAMA | {"lora": R * (D + 64), "bitfit": 64 + 2 * F, "ia3": 64 + F},
    "mixtral": LLAMA | {"bitfit": D, "ffn": 4 * 3 * D * F, "ia3": None},
    "modernbert": LLAMA | {"lora": R * (D + 96), "bitfit": 96 + 2 * F, "prefix": 2 * N * D, "ia3": 96 + F},
    "mpnet": BERT | {"prefix": None},
    "vit": BERT,
    "whisper": BERT,
    "t5": BERT | {"ffn": 2 * D * F},
}
"""Parameters a layer; None where a method is refused: no longer keys are taken, or experts are stacked."""
EVERY = pytest.mark.parametrize(("kind", "method"), [(kind, method) for kind in COUNTS for method in METHODS])


def make(kind: str, task: str = "") -> nn.Module:
    task = task or TASKS.get(kind, "sequence")
    return next(zoo.build(kind, cls) for found, cls in zoo.classes(task) if found == kind)


def inputs(kind: str) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)
    if kind == "vit":
        return {"pixel_values": torch.randn(2, 3, 32, 32, generator=generator)}
    if kind == "whisper":
        return {"input_features": torch.randn(2, 8, 32, generator=generator)}
    ids = torch.randint(5, 90, (2, 9), generator=generator)
    ids[:, -1] = 2
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def logits(model: nn.Module, kind: str) -> Tensor:
    given = inputs(kind)
    place = next(model.parameters()).dtype
    with torch.no_grad():
        return model(**{k: v.to(place) if v.is_floating_point() else v for k, v in given.items()}).logits


def chosen(kind: str, method: str) -> Config:
    return replace(METHODS[method], stack="decoder") if kind == "t5" else METHODS[method]


def loss(model: nn.Module, kind: str) -> Tensor:
    return model(**inputs(kind), labels=torch.tensor([0, 1])).loss


@EVERY
def test_starts_trains_loads_merges_and_goes(kind: str, method: str, tmp_path: Any) -> None:
    model, config = make(kind), chosen(kind, method)
    base, weights = logits(model, kind), copy.deepcopy(model.state_dict())
    expected = (COUNTS[kind] | EVERYWHERE)[method]
    if expected is None:
        with pytest.raises(ConfigurationError):
            adapt(model, config)
        assert torch.equal(logits(model, kind), base)
        return
    counted = trainable_parameters(adapt(model, replace(config, head="none")))
    assert counted.trainable == 2 * expected
    adapt(remove(model), config)
    assert torch.equal(logits(model, kind), base) == (method != "prefix")
    disturb(model).train()
    loss(model, kind).backward()
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    assert {name for name, p in model.named_parameters() if p.grad is not None} == trained
    adapted = logits(model.eval(), kind)
    assert not torch.equal(adapted, base)
    save_adaptation(model, tmp_path)
    assert torch.equal(logits(load_adaptation(make(kind), tmp_path), kind), adapted)
    made = any(name not in weights for name in model.state_dict() if name.endswith("bias"))
    if method in ("lora", "ffn", "ia3") or (method == "bitfit" and not made):
        torch.testing.assert_close(logits(merge(model), kind), adapted, atol=1e-4, rtol=1e-4)
        assert torch.equal(logits(unmerge(model), kind), adapted)
    else:
        with pytest.raises(ConfigurationError, match="cannot be merged"):
            merge(model)
    remove(model)
    assert all(torch.equal(weights[name], value) for name, value in model.state_dict().items())
    assert torch.equal(logits(model, kind), base)


@pytest.mark.parametrize("kind", COUNTS)
@pytest.mark.parametrize("method", ["lora", "prefix"])
def test_checkpointing_and_kept_activations_change_no_gradient(kind: str, method: str) -> None:
    """Recomputed layers, and saved tensors without rounding: the same gradients as plain ones."""
    compression = pytest.importorskip("activation_compression")
    if COUNTS[kind].get(method, 0) is None:
        pytest.skip("this method is refused here")

    def gradients(how: str) -> dict[str, Any]:
        model = disturb(adapt(make(kind), chosen(kind, method))).train()
        for module in model.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0
            for name in ("dropout", "attention_dropout", "activation_dropout", "layerdrop", "dropout_prob"):
                if isinstance(getattr(module, name, None), float):
                    setattr(module, name, 0.0)
        if how == "checkpointing":
            recompute_activations(model)
        if how == "lossless":
            with compression.compress_activations(model, level="lossless"):
                found = loss(model, kind)
        else:
            found = loss(model, kind)
        found.backward()
        return {name: p.grad for name, p in model.named_parameters() if p.requires_grad}

    plain = gradients("plain")
    ways = (
        ("lossless",) if kind == "mpnet" else ("checkpointing", "lossless")
    )  # transformers has none for mpnet
    for how in ways:
        for name, gradient in gradients(how).items():
            torch.testing.assert_close(gradient, plain[name], msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.parametrize("kind", COUNTS)
@pytest.mark.parametrize("method", ["lora", "adapter", "prefix", "ia3", "loreft"])
def test_what_is_added_to_a_bfloat16_model_is_float32(kind: str, method: str) -> None:
    if COUNTS[kind].get(method, 0) is None:
        pytest.skip("this method is refused here")
    model = make(kind).bfloat16()
    own = {id(p) for p in model.parameters()}
    adapt(model, chosen(kind, method))
    added = [p for p in model.parameters() if id(p) not in own]
    assert added
    assert {p.dtype for p in added} == {torch.float32}
    assert {p.dtype for p in model.parameters() if id(p) in own} == {torch.bfloat16}
    assert logits(disturb(model), kind).isfinite().all()


CAUSAL = ["llama", "qwen3", "gemma3_text", "mistral", "phi3", "mixtral"]


@pytest.mark.parametrize("kind", CAUSAL)
@pytest.mark.parametrize("method", ["lora", "prefix"])
def test_generation_with_a_cache_is_that_without(kind: str, method: str) -> None:
    model = disturb(adapt(make(kind, "causal"), METHODS[method]))
    ids = torch.randint(5, 90, (2, 6), generator=torch.Generator().manual_seed(1))
    settings = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
    cached, plain = (
        model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=use, **settings)
        for use in (True, False)
    )
    assert torch.equal(cached, plain)
    with torch.no_grad():
        alone = model(input_ids=cached[:, :-1]).logits.argmax(-1)[:, 5:]
    assert torch.equal(alone, cached[:, 6:])


@pytest.mark.parametrize("kind", ["t5", "whisper"])
@pytest.mark.parametrize("method", METHODS)
def test_a_decoder_says_step_by_step_with_a_cache_what_it_says_at_once(kind: str, method: str) -> None:
    model = disturb(adapt(make(kind, SPEAKING[kind]), replace(METHODS[method], stack="decoder")))
    ids = torch.randint(5, 90, (2, 6), generator=torch.Generator().manual_seed(2))
    past, said = {}, []
    with torch.no_grad():
        for token in ids.split(1, dim=1):
            step = model(**inputs(kind), **past, decoder_input_ids=token, use_cache=True, return_dict=True)
            past = past_of(step)
            said.append(step.logits)
        at_once = model(**inputs(kind), decoder_input_ids=ids, use_cache=False).logits
    torch.testing.assert_close(torch.cat(said, dim=1), at_once, atol=1e-4, rtol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("kind", COUNTS)
def test_compiled_models_compute_the_same(kind: str) -> None:
    model = disturb(adapt(make(kind), chosen(kind, "lora")))
    compiled = torch.compile(model, backend="aot_eager")
    torch.testing.assert_close(logits(compiled, kind), logits(model, kind))

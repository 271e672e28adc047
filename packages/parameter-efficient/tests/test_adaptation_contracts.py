"""Methods × architectures: what every method promises, on every architecture.

A row of METHODS says what trains (a closed formula over d = 16, f = 32, L = 2 layers; albert has one), and
whether the output is the base model's at the start.
"""

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
import transformers
from small_transformers import (
    CLS_HEADS,
    CONFIGURATIONS,
    D,
    F,
    batch,
    classifier,
    disturb,
    logits,
    recompute_activations,
)
from torch import nn

from finetune_common.errors import ConfigurationError
from parameter_efficient import (
    IA3,
    BitFit,
    BottleneckAdapter,
    Compacter,
    FFNTuning,
    Fusion,
    HeadOnly,
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

BIASED = {"t5": False}


def low_rank(rank: int, *targets: str) -> Callable[[str], int]:
    """r (inputs + outputs) a matrix; gpt2 keeps q, k and v in one."""
    shapes = {"q": (D, D), "k": (D, D), "v": (D, D), "o": (D, D), "ffn_in": (D, F), "ffn_out": (F, D)}

    def count(architecture: str) -> int:
        own = {t: shapes[t] for t in targets}
        if architecture == "gpt2":
            own = {
                "qkv" if t in "qkv" else t: (D, 3 * D) if t in "qkv" else shape for t, shape in own.items()
            }
        return rank * sum(map(sum, own.values()))

    return count


def query_and_inner_bias(architecture: str) -> int:
    return 3 * D + F if architecture == "gpt2" else D + F


def feed_forward(architecture: str) -> int:
    return 2 * D * F + (0 if architecture == "t5" else F + D)


def feed_forward_and_attention_output(architecture: str) -> int:
    biases, norm_parameters = (0, D) if architecture == "t5" else (D, 2 * D)
    return feed_forward(architecture) + D * D + biases + 2 * norm_parameters


@dataclass(frozen=True)
class Method:
    """A configuration, its parameters a layer and once a model, and what it promises."""

    config: Config
    a_layer: Callable[[str], int]
    identity: bool = True
    merges: bool = False
    once: int = 0


METHODS = {
    "head": Method(HeadOnly(), lambda _: 0, merges=True),
    "adapter": Method(BottleneckAdapter(bottleneck=3), lambda _: 2 * D * 3 + D + 3 + 2 * D, identity=False),
    "adapter-identity": Method(
        BottleneckAdapter(bottleneck=3, layer_norm=False), lambda _: 2 * D * 3 + D + 3
    ),
    "adapter-parallel": Method(
        BottleneckAdapter(bottleneck=1, layer_norm=False, parallel=True, scaling=2.0), lambda _: 2 * D + D + 1
    ),
    "adapter-attention": Method(
        BottleneckAdapter(bottleneck=1, layer_norm=False, position="attention"), lambda _: 2 * D + D + 1
    ),
    "adapter-attention-parallel": Method(
        BottleneckAdapter(
            bottleneck=1, layer_norm=False, position="attention", parallel=True, activation="gelu"
        ),
        lambda _: 2 * D + D + 1,
    ),
    "lora": Method(LoRA(rank=2, targets=("q", "v")), low_rank(2, "q", "v"), merges=True),
    "lora-everywhere": Method(
        LoRA(rank=1, targets=("q", "k", "v", "o", "ffn_in", "ffn_out"), init="normal", alpha=3.0),
        low_rank(1, "q", "k", "v", "o", "ffn_in", "ffn_out"),
        merges=True,
    ),
    "lora-random": Method(
        LoRA(rank=1, targets=("q", "k"), init="random"), low_rank(1, "q", "k"), identity=False, merges=True
    ),
    "prefix": Method(PrefixTuning(length=3), lambda _: 2 * 3 * D, identity=False),
    "bitfit": Method(BitFit(), query_and_inner_bias, merges=True),
    "ffn": Method(FFNTuning(), feed_forward, merges=True),
    "ffn-released": Method(
        FFNTuning(include_attention_output=True), feed_forward_and_attention_output, merges=True
    ),
    "ia3": Method(IA3(), lambda a: (3 * D if a == "gpt2" else 2 * D) + F, merges=True),
    "compacter": Method(Compacter(bottleneck=4, divisions=2), lambda _: 2 * (D + 4) + D + 4, once=2**3),
    "loreft": Method(LoReFT(rank=3), lambda _: 2 * 3 * D + 3),
    "fusion": Method(
        Fusion(
            adapter=BottleneckAdapter(bottleneck=1, layer_norm=False),
            lora=LoRA(rank=1, targets=("q",)),
            prefix=PrefixTuning(length=1),
            bitfit=BitFit(biases=("ffn_out",)),
        ),
        lambda architecture: (2 * D + D + 1) + low_rank(1, "q")(architecture) + 2 * D + D,
        identity=False,
    ),
}

EVERY = pytest.mark.parametrize(
    ("method", "architecture"),
    [pytest.param(METHODS[m], a, id=f"{m}-{a}") for m in METHODS for a in CONFIGURATIONS],
)


def layers_of(architecture: str) -> int:
    return 1 if architecture == "albert" else 2


def head_size(architecture: str) -> int:
    """The head's dense layer and classifier for two labels: d² + d + 2 d + 2; gpt2 has no more than 2 d."""
    return 2 * D if architecture == "gpt2" else D * D + D + 2 * D + 2


@EVERY
def test_output_and_count_at_the_start(method: Method, architecture: str) -> None:
    """The base model's output bit for bit where promised, another one where not; the formula's count."""
    model = classifier(architecture)
    base = logits(model)
    adapt(model, method.config)
    assert torch.equal(logits(model), base) == method.identity
    counted = trainable_parameters(model)
    expected = layers_of(architecture) * method.a_layer(architecture) + method.once
    assert counted.trainable - head_size(architecture) == expected
    assert counted.trainable == sum(p.numel() for p in model.parameters() if p.requires_grad)


@EVERY
def test_all_that_trains_and_nothing_else_gets_a_gradient_and_moves(
    method: Method, architecture: str
) -> None:
    model = disturb(adapt(classifier(architecture), method.config))
    before = copy.deepcopy(model.state_dict())
    model.train()
    every = model.named_parameters(remove_duplicate=False)  # compacter's shared part has many names
    trained = {name: p for name, p in every if p.requires_grad}
    optimizer = torch.optim.SGD(model.parameters(), lr=1e3)
    model(**batch(), labels=torch.tensor([0, 1, 0])).loss.backward()
    assert all(p.grad is None for name, p in model.named_parameters() if name not in trained)
    without = [name for name, p in trained.items() if p.grad is None]
    assert not without
    optimizer.step()
    moved = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert moved <= set(trained)
    # A key's bias shifts all scores of a query alike: softmax does not see it.
    assert {name for name in trained if name not in moved} <= {n for n in trained if "k" in n and "bias" in n}


@EVERY
def test_removing_restores_the_base_model_bit_for_bit(method: Method, architecture: str) -> None:
    model = classifier(architecture)
    model.get_input_embeddings().requires_grad_(False)
    base, names, weights = logits(model), list(model.state_dict()), copy.deepcopy(model.state_dict())
    flags = {name: p.requires_grad for name, p in model.named_parameters()}
    remove(disturb(adapt(model, method.config)))
    assert list(model.state_dict()) == names
    assert all(torch.equal(weights[name], value) for name, value in model.state_dict().items())
    assert {name: p.requires_grad for name, p in model.named_parameters()} == flags
    assert torch.equal(logits(model), base)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


@EVERY
def test_saved_and_loaded_onto_a_fresh_base_gives_equal_logits(
    method: Method, architecture: str, tmp_path: Any
) -> None:
    model = disturb(adapt(classifier(architecture), method.config))
    save_adaptation(model, tmp_path)
    again = load_adaptation(classifier(architecture), tmp_path)
    assert torch.equal(logits(again), logits(model))
    size = (tmp_path / "adaptation.safetensors").stat().st_size
    assert size < trainable_parameters(model).trainable_bytes + 8192


@EVERY
def test_merging_keeps_the_output_and_unmerging_the_weights(method: Method, architecture: str) -> None:
    model = disturb(adapt(classifier(architecture), method.config))
    adapted, weights = logits(model), copy.deepcopy(model.state_dict())
    makes_biases = architecture == "t5" and isinstance(method.config, BitFit)
    if not method.merges or makes_biases:
        with pytest.raises(ConfigurationError, match=r"cannot be merged"):
            merge(model)
        assert torch.equal(logits(model), adapted)
        return
    merge(model)
    torch.testing.assert_close(logits(model), adapted, atol=1e-5, rtol=1e-5)
    assert {name for name in model.state_dict() if "lora" in name} == set()
    unmerge(model)
    assert torch.equal(logits(model), adapted)
    assert all(torch.equal(weights[name], value) for name, value in model.state_dict().items())


CHEAP = ["adapter", "adapter-parallel", "lora", "prefix", "bitfit", "ffn", "fusion"]


@pytest.mark.parametrize("architecture", [a for a in CONFIGURATIONS if a != "albert"])
@pytest.mark.parametrize("method", CHEAP)
def test_gradient_checkpointing_changes_no_gradient(method: str, architecture: str) -> None:
    """Dropout is off, so that a recomputed layer is the same layer."""

    def gradients(checkpointing: bool) -> dict[str, Any]:
        model = disturb(adapt(classifier(architecture), METHODS[method].config))
        for module in model.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
            if isinstance(getattr(module, "dropout", None), float):
                module.dropout = 0.0
        model.train()
        if checkpointing:
            recompute_activations(model)
        model(**batch(), labels=torch.tensor([0, 1, 0])).loss.backward()
        return {name: p.grad for name, p in model.named_parameters() if p.requires_grad}

    plain, recomputed = gradients(False), gradients(True)
    for name, gradient in plain.items():
        torch.testing.assert_close(recomputed[name], gradient, msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.parametrize("architecture", CONFIGURATIONS)
@pytest.mark.parametrize("method", CHEAP)
@pytest.mark.parametrize("dtype", ["float32", "model"])
def test_what_is_added_to_a_bfloat16_model_is_float32_and_the_base_stays(
    method: str, architecture: str, dtype: str
) -> None:
    config = replace(METHODS[method].config, dtype=dtype)
    base = classifier(architecture).bfloat16()
    own = {id(p) for p in base.parameters()}
    model = adapt(base, config)
    added = {p.dtype for p in model.parameters() if id(p) not in own and p.requires_grad}
    made = method in ("bitfit", "fusion") and architecture == "t5"  # biases of its own matrices
    expected = torch.float32 if dtype == "float32" else torch.bfloat16
    assert added <= {expected, torch.bfloat16 if made else expected}
    assert added or method in ("bitfit", "ffn")
    assert {p.dtype for p in model.parameters() if id(p) in own} == {torch.bfloat16}
    loss = model(**batch(), labels=torch.tensor([0, 1, 0])).loss
    loss.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters() if p.requires_grad)


@pytest.mark.parametrize(
    "method", ["adapter-identity", "adapter", "adapter-parallel", "lora-everywhere", "prefix"]
)
def test_float16_t5_that_keeps_a_matrix_in_float32_works(method: str, tmp_path: Any) -> None:
    """transformers loads it so: its feed-forward blocks end in float32."""
    classifier("t5").save_pretrained(tmp_path)
    model = transformers.T5ForSequenceClassification.from_pretrained(tmp_path, dtype=torch.float16).eval()
    assert {p.dtype for p in model.parameters()} == {torch.float16, torch.float32}
    base = logits(model)
    adapt(model, METHODS[method].config)
    assert torch.equal(logits(model), base) == METHODS[method].identity
    loss = model(**batch(), labels=torch.tensor([0, 1, 0])).loss
    loss.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters() if p.requires_grad)


def states_of(model: nn.Module) -> list[tuple[Any, ...]]:
    """Training mode of every module, device and dtype of every parameter."""
    modes = [(name, module.training) for name, module in model.named_modules()]
    return modes + [(name, p.device, p.dtype) for name, p in model.named_parameters()]


CHANGES: dict[str, Callable[[nn.Module], Any]] = {
    "eval": nn.Module.eval,
    "train": nn.Module.train,
    "double": nn.Module.double,
    "bfloat16": nn.Module.bfloat16,
    "meta": lambda model: model.to("meta"),
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("starts_in_training", [True, False])
def test_layers_that_were_cut_off_come_back_as_the_others_are_by_then(
    change: str, starts_in_training: bool
) -> None:
    model = adapt(classifier("t5").train(starts_in_training), HeadOnly(encoder_layers=1))
    CHANGES[change](model)
    expected = CHANGES[change](classifier("t5").train(starts_in_training))
    assert states_of(remove(model)) == states_of(expected)


@pytest.mark.parametrize("change", ["eval", "train", "double", "bfloat16"])
@pytest.mark.parametrize("starts_in_training", [True, False])
@pytest.mark.parametrize("dora", [False, True])
def test_low_rank_updates_that_were_merged_come_back_as_the_model_is_by_then(
    change: str, starts_in_training: bool, dora: bool
) -> None:
    config = LoRA(rank=2, dropout=0.5, dora=dora)
    model, expected = (adapt(classifier("bert").train(starts_in_training), config) for _ in range(2))
    unmerge(CHANGES[change](merge(model)))
    assert states_of(model) == states_of(CHANGES[change](expected))


def test_parts_that_were_out_keep_what_is_their_own() -> None:
    """A layer in another mode than its neighbours comes back as it was."""
    model = classifier("bert")
    model.bert.encoder.layer[1].train()
    before = states_of(model)
    assert states_of(remove(adapt(model, HeadOnly(encoder_layers=1)))) == before


@pytest.mark.parametrize("method", ["adapter-parallel", "fusion"])
def test_compiled_model_computes_the_same(method: str) -> None:
    model = disturb(adapt(classifier("bert"), METHODS[method].config))
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(logits(compiled), logits(model))


@pytest.mark.parametrize("method", METHODS)
def test_a_copied_model_is_independent(method: str) -> None:
    model = adapt(classifier("bert"), METHODS[method].config)
    start = logits(model)
    copied = copy.deepcopy(model)
    assert torch.equal(logits(copied), start)
    disturb(copied)
    assert torch.equal(logits(model), start)
    remove(copied)
    assert torch.equal(logits(copied), logits(classifier("bert")))


@pytest.mark.parametrize("method", METHODS)
def test_new_parameters_follow_the_seed_and_no_global_number_is_drawn(method: str) -> None:
    def start(run_seed: int, seed: int | None) -> list[torch.Tensor]:
        config = type(METHODS[method].config)(**{**vars(METHODS[method].config), "seed": seed})
        model = classifier("bert")
        torch.manual_seed(run_seed)
        state = torch.get_rng_state()
        adapt(model, config)
        assert torch.equal(torch.get_rng_state(), state)
        return [p.detach() for p in model.parameters() if p.requires_grad]

    def same(one: list[torch.Tensor], other: list[torch.Tensor]) -> bool:
        return all(map(torch.equal, one, other))

    random = method not in ("head", "bitfit", "ffn", "ffn-released", "ia3")
    assert same(start(1, None), start(1, None))
    assert same(start(1, None), start(2, None)) != random
    assert same(start(1, 7), start(2, 7))


@pytest.mark.parametrize("architecture", CLS_HEADS)
def test_mean_pooling_gives_the_head_the_mean_of_all_tokens_but_padding(architecture: str) -> None:
    """Against the head applied by hand to the mean of the base model's last states."""
    model = classifier(architecture)
    inputs = batch()
    with torch.no_grad():
        states = model.base_model(**inputs).last_hidden_state
    mask = inputs["attention_mask"][..., None]
    mean = (states * mask).sum(1) / mask.sum(1)
    model = adapt(model, HeadOnly(pooling="mean"))
    with torch.no_grad():
        if architecture in ("bert",):
            expected = model.classifier(model.bert.pooler(mean[:, None]))
        elif architecture == "albert":
            expected = model.classifier(model.albert.pooler(mean).tanh())
        elif architecture == "deberta-v2":
            expected = model.classifier(model.pooler(mean[:, None]))
        elif architecture == "distilbert":
            expected = model.classifier(model.pre_classifier(mean).relu())
        else:
            expected = model.classifier(mean[:, None])
    torch.testing.assert_close(logits(model), expected)


@pytest.mark.parametrize("architecture", ["t5", "bart", "gpt2"])
def test_mean_pooling_is_refused_where_the_head_reads_another_token(architecture: str) -> None:
    model = classifier(architecture)
    with pytest.raises(ConfigurationError, match="whose head reads the first token"):
        adapt(model, HeadOnly(pooling="mean"))
    adapt(model, HeadOnly())


@pytest.mark.parametrize("head", ["TokenClassification", "QuestionAnswering", "MaskedLM"])
def test_mean_pooling_is_refused_where_the_head_reads_every_token(head: str) -> None:
    config = transformers.BertConfig(**CONFIGURATIONS["bert"][1])
    with pytest.raises(ConfigurationError, match="whose head reads the first token"):
        adapt(getattr(transformers, f"BertFor{head}")(config), HeadOnly(pooling="mean"))


def test_mean_pooling_takes_a_classifier_of_ones_own() -> None:
    class Mine(transformers.BertForSequenceClassification):
        pass

    model = Mine(transformers.BertConfig(**CONFIGURATIONS["bert"][1])).eval()
    base = logits(model)
    assert not torch.equal(logits(adapt(model, HeadOnly(pooling="mean"))), base)

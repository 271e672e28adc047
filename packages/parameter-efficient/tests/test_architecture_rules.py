"""Which layers are found and chosen, and what is refused, in one line each."""

import pytest
import torch
import transformers
from small_transformers import CONFIGURATIONS, classifier, logits

from finetune_common.errors import ConfigurationError
from parameter_efficient import (
    BitFit,
    BottleneckAdapter,
    FFNTuning,
    Fusion,
    HeadOnly,
    LoRA,
    PrefixTuning,
    QLoRA,
    adapt,
    merge,
    remove,
    save_adaptation,
    trainable_parameters,
    unmerge,
)
from parameter_efficient.architecture import find_architecture

ROLES = {"q", "k", "v", "o", "ffn_in", "ffn_out", "attention_norm", "ffn_norm"}


@pytest.mark.parametrize("architecture", CONFIGURATIONS)
def test_every_layer_has_every_role_once_and_is_one_of_the_encoder(architecture):
    model = classifier(architecture)
    found = find_architecture(model)
    assert len(found.layers) == (1 if architecture == "albert" else 2)
    for layer in found.layers:
        assert set(layer.roles) >= ROLES
        assert all(len(layer.roles[role]) == 1 for role in ROLES)
        assert "decoder" not in layer.name
        for role in ("q", "k", "v", "o"):
            [module] = layer.roles[role].values()
            assert 16 in module.weight.shape
        [outer] = layer.roles["ffn_in"].values()
        assert sorted(outer.weight.shape) == [16, 32]


def test_gated_feed_forward_has_two_inner_matrices():
    config = transformers.T5Config(
        d_model=16, d_kv=8, d_ff=32, num_layers=1, num_heads=2, vocab_size=50, feed_forward_proj="gated-gelu"
    )
    model = transformers.T5EncoderModel(config)
    assert len(find_architecture(model).layers[0].roles["ffn_in"]) == 2
    assert trainable_parameters(adapt(model, FFNTuning())).trainable == 3 * 16 * 32


@pytest.mark.parametrize("layers", [(0,), (-2,), (0, -2), (0, 0)])
def test_layers_count_from_both_ends_and_once(layers):
    model = adapt(classifier("bert"), FFNTuning(layers=layers))
    names = {row.module for row in trainable_parameters(model).modules if "intermediate" in row.module}
    assert names == {"bert.encoder.layer.0.intermediate.dense"}


@pytest.mark.parametrize(
    ("architecture", "config", "message"),
    [
        (
            "bert",
            BitFit(layers=[2]),
            r"layers=\[2\]: .* has 2 layers, 2 is none of them: use 0 to 1, or -2 to -1",
        ),
        ("bert", LoRA(layers=[-3]), "has 2 layers, -3 is none"),
        ("albert", LoRA(layers=[0]), "the same weights in every layer.*use layers='all'"),
        ("albert", HeadOnly(encoder_layers=1), "the same weights in every layer.*leave it out"),
        ("bert", HeadOnly(encoder_layers=3), "has 2 layers: give 1 to 2"),
        ("bert", QLoRA(), "loaded in 4 bits"),
        ("bert", BottleneckAdapter(parallel=True), "chunk_size_feed_forward=0"),
    ],
)
def test_what_does_not_fit_is_refused_and_leaves_the_model_as_it_was(architecture, config, message):
    chunks = {"chunk_size_feed_forward": 7} if isinstance(config, BottleneckAdapter) else {}
    model = classifier(architecture, **chunks)
    base, names = logits(model), list(model.state_dict())
    with pytest.raises(ConfigurationError, match=message) as refusal:
        adapt(model, config)
    assert "\n" not in str(refusal.value)
    assert list(model.state_dict()) == names
    assert torch.equal(logits(model), base)
    assert all(p.requires_grad for p in model.parameters())


def test_unsupported_architecture_says_what_was_looked_for():
    with pytest.raises(
        ConfigurationError, match=r"Sequential is not supported.*bert, roberta.*looked for q: "
    ):
        adapt(torch.nn.Sequential(torch.nn.Linear(2, 2)), BitFit())


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: BottleneckAdapter(bottleneck=0), "bottleneck"),
        (lambda: BottleneckAdapter(activation="tan"), "did you mean 'tanh'"),
        (lambda: BottleneckAdapter(dropout=1.0), "dropout"),
        (lambda: LoRA(rank=0), "rank"),
        (lambda: LoRA(targets=("query",)), "targets='query' is unknown: choose from q, k"),
        (lambda: LoRA(targets=()), "targets is empty"),
        (lambda: LoRA(init="zero"), "init"),
        (lambda: PrefixTuning(length=0), "length"),
        (lambda: BitFit(biases=["bias"]), "biases"),
        (lambda: FFNTuning(layers=[]), r"layers=\(\)"),
        (lambda: FFNTuning(layers=[1.5]), "layers"),
        (lambda: FFNTuning(layers="last"), "layers='last'"),
        (lambda: HeadOnly(pooling="max"), "pooling"),
        (lambda: HeadOnly(seed=-1), "seed"),
        (lambda: HeadOnly(encoder_layers=0), "encoder_layers"),
        (lambda: QLoRA(quant_type="nf8"), "quant_type"),
        (lambda: Fusion(), "fusion of nothing"),
        (lambda: Fusion(lora=LoRA(seed=3)), "lora has a pooling or a seed of its own"),
    ],
)
def test_configurations_validate_themselves(make, message):
    with pytest.raises(ConfigurationError, match=message):
        make()


def test_order_of_calls_is_checked(tmp_path):
    model = classifier("bert")
    for call in (remove, merge, unmerge, lambda m: save_adaptation(m, tmp_path)):
        with pytest.raises(ConfigurationError, match="is not adapted"):
            call(model)
    adapt(model, LoRA())
    with pytest.raises(ConfigurationError, match="adapted already"):
        adapt(model, BitFit())
    with pytest.raises(ConfigurationError, match="nothing is merged"):
        unmerge(model)
    merge(model)
    with pytest.raises(ConfigurationError, match="merged already"):
        merge(model)
    with pytest.raises(ConfigurationError, match="unmerge"):
        save_adaptation(model, tmp_path)


def test_a_merged_adaptation_is_removed_whole():
    model = classifier("bert")
    base = logits(model)
    assert torch.equal(logits(remove(merge(adapt(model, LoRA(init="random"))))), base)


def test_dry_run_prints_what_would_train_and_changes_nothing(capsys):
    model = classifier("bert")
    base, names = logits(model), list(model.state_dict())
    adapt(model, PrefixTuning(layers=[1]), dry_run=True)
    printed = capsys.readouterr().out
    assert "bert.encoder.layer.1.attention.self.prefix" in printed
    assert f"{2 * 2 * 16 + 16 * 16 + 16 + 2 * 16 + 2:,} of" in printed
    assert list(model.state_dict()) == names
    assert torch.equal(logits(model), base)


def test_a_bare_encoder_has_no_head():
    model = transformers.BertModel(transformers.BertConfig(**CONFIGURATIONS["bert"][1]))
    assert trainable_parameters(adapt(model, PrefixTuning(length=1))).trainable == 2 * 2 * 16


def test_bias_of_a_layer_by_name_and_all_of_them():
    every = trainable_parameters(adapt(classifier("bert"), BitFit(layers=[0], biases="all")))
    head = 16 * 16 + 16 + 2 * 16 + 2
    assert every.trainable - head == 4 * 16 + 32 + 16 + 2 * 16
    norms = trainable_parameters(adapt(classifier("bert"), BitFit(biases=["attention_norm", "ffn_norm"])))
    assert norms.trainable - head == 2 * 2 * 16


@pytest.mark.parametrize(
    "config",
    [BottleneckAdapter(), LoRA(dora=True), PrefixTuning(), BitFit(biases="all"), FFNTuning()],
    ids=lambda config: type(config).__name__,
)
def test_biases_and_norms_are_vectors_and_all_else_are_matrices(config):
    """Weight decay is decided by that: no bias, norm or offset decays."""
    model = adapt(classifier("bert"), config)
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            vector = name.endswith("bias") or "norm" in name.lower() or "magnitude" in name
            assert (parameter.ndim == 1) == vector, name

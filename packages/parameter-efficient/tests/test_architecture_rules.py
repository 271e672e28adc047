"""Which layers are found and chosen, and what is refused, in one line each."""

import copy
from dataclasses import replace

import pytest
import torch
import transformers
from small_transformers import COMMON, CONFIGURATIONS, SPECIAL, D, F, batch, classifier, disturb, logits

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
from parameter_efficient.anatomy import Anatomy
from parameter_efficient.architecture import Architecture


def find_architecture(model) -> Architecture:
    [found] = Anatomy(model, "encoder", None).architectures
    return found


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


def test_a_model_that_was_cut_has_the_layers_that_are_left():
    model = classifier("bert")
    model.bert.encoder.layer = model.bert.encoder.layer[:1]
    adapt(model, BottleneckAdapter(layers=[0]))
    model.bert.enable_input_require_grads()
    seen = []
    model.bert.encoder.layer[0].attention.register_forward_hook(lambda *call: seen.append(call[2][0]))
    model(**batch())
    assert not seen[0].requires_grad  # nothing runs backward below the adapter


def test_albert_with_a_layer_for_every_place_takes_a_choice_of_them():
    model = classifier("albert", num_hidden_groups=2)
    assert len(find_architecture(model).select([1])) == 1
    model = classifier("albert", num_hidden_layers=4, num_hidden_groups=2)
    with pytest.raises(ConfigurationError, match="the same weights in every layer"):
        adapt(model, LoRA(layers=[1]))


OPT = COMMON | SPECIAL | {"word_embed_proj_dim": D, "ffn_dim": F}
NAMED_LIKE_OTHERS = {
    "opt, norms first": (transformers.OPTModel, transformers.OPTConfig(**OPT), True),
    "opt, norms last": (
        transformers.OPTModel,
        transformers.OPTConfig(**OPT, do_layer_norm_before=False),
        False,
    ),
    "opt without the last norm": (
        transformers.OPTModel,
        transformers.OPTConfig(**OPT, _remove_final_layer_norm=True),
        True,
    ),
    "mbart": (transformers.MBartModel, transformers.MBartConfig(**CONFIGURATIONS["bart"][1]), True),
    "openai-gpt": (
        transformers.OpenAIGPTModel,
        transformers.OpenAIGPTConfig(**SPECIAL, n_embd=D, n_layer=2, n_head=2, n_positions=40),
        False,
    ),
}
KNOWN = {"bert": False, "distilbert": False, "bart": False, "t5": True, "gpt2": True}


def base_of(kind):
    """A base model with weights that are not too small, and whether its norms come first."""
    if kind in KNOWN:
        return classifier(kind).base_model, KNOWN[kind]
    make, config, norm_first = NAMED_LIKE_OTHERS[kind]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = make(config).eval()
        for parameter in model.parameters():
            parameter.data.normal_(std=0.3)
    return model, norm_first


@pytest.mark.parametrize("parallel", [False, True], ids=["sequential", "parallel"])
@pytest.mark.parametrize("position", ["ffn", "attention"])
@pytest.mark.parametrize("kind", [*KNOWN, *NAMED_LIKE_OTHERS])
def test_an_adapter_is_where_its_definition_says(kind, position, parallel):
    """By hand, from the input x of a sub-layer's norm or residual and from what its last matrix gives.

    Norms last: a(LN(x + s)), or LN(a(x) + s). Norms first, n = LN(x): x + a(s), or x + s + a(n) - n.
    """
    model, norm_first = base_of(kind)
    plain = find_architecture(model).layers[1]
    norm, inner_norm = (plain.first(f"{name}_norm") for name in (position, "ffn"))
    plain_norm, plain_inner_norm = copy.deepcopy(norm), copy.deepcopy(inner_norm)
    seen = {}

    def rows(states):
        return (states[0] if isinstance(states, tuple | list) else states).reshape(-1, 16)

    def see(module, name):
        def hook(module, args, output):
            seen[name] = rows(output)

        module.register_forward_hook(hook)

    def see_input(module, name):
        def hook(module, args, kwargs):
            seen[name] = rows(args[0] if args else kwargs["hidden_states"])

        module.register_forward_pre_hook(hook, with_kwargs=True)

    # Hooks that are there before the adapter's see what the base model would go on with.
    see(plain.first("o" if position == "attention" else "ffn_out"), "s")
    disturb(adapt(model, BottleneckAdapter(layers=[1], position=position, parallel=parallel, seed=0)))
    adapter = plain.module.get_submodule(f"{position}_adapter")
    see_input(plain.module, "layer input")
    see_input(inner_norm, "input of the second norm")
    see_input(plain.first("ffn_in"), "input of ffn")
    see(plain.module, "layer output")
    with torch.no_grad():
        (model.encoder if model.config.is_encoder_decoder else model)(**batch())
        if position == "attention":
            x = seen["layer input"]
        else:
            x = seen["input of the second norm" if norm_first else "input of ffn"]
        s, n = seen["s"], plain_norm(x)
        if norm_first:
            expected = x + s + adapter(n) - n if parallel else x + adapter(s)
        else:
            expected = plain_norm(adapter(x) + s) if parallel else adapter(plain_norm(x + s))
        if position == "attention" and norm_first:
            expected = plain_inner_norm(expected)
    got = seen["input of ffn" if position == "attention" else "layer output"]
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-5)


def test_a_prefix_in_attention_of_an_unknown_kind_is_refused():
    model, _ = base_of("openai-gpt")
    with pytest.raises(ConfigurationError, match=r"does not work with OpenAIGPTModel.*use lora"):
        adapt(model, PrefixTuning())


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
            r"layers=\[2\]: .* has 2 layers, and no layer 2: use 0 to 1, or -2 to -1",
        ),
        ("bert", LoRA(layers=[-3]), "has 2 layers, and no layer -3"),
        ("albert", LoRA(layers=[0]), "the same weights in every layer.*use layers='all'"),
        ("albert", HeadOnly(encoder_layers=1), "the same weights in every layer.*leave encoder_layers out"),
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


@pytest.mark.parametrize("inner_first", [True, False], ids=["base first", "model first"])
@pytest.mark.parametrize(
    "config",
    [
        Fusion(prefix=PrefixTuning(), adapter=BottleneckAdapter()),
        Fusion(bitfit=BitFit(), adapter=BottleneckAdapter(parallel=True)),
        LoRA(),
        PrefixTuning(),
    ],
)
def test_a_refusal_leaves_nothing_behind_in_an_adapted_model(config, inner_first):
    model = classifier("bert")
    base = logits(model)
    first, second = (model.bert, model) if inner_first else (model, model.bert)
    adapt(first, in_the_last_layer(config))
    adapted, names = logits(model), list(model.state_dict())
    flags = [p.requires_grad for p in model.parameters()]
    with pytest.raises(ConfigurationError):
        adapt(second, config)
    assert list(model.state_dict()) == names
    assert [p.requires_grad for p in model.parameters()] == flags
    assert torch.equal(logits(model), adapted)
    remove(first)
    assert torch.equal(logits(model), base)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def in_the_last_layer(config):
    if isinstance(config, Fusion):
        return replace(config, adapter=replace(config.adapter, layers=[1]))
    return replace(config, layers=[1])


def test_a_matrix_that_peft_does_not_know_leaves_no_low_rank_update_behind():
    model = classifier("gpt2")
    names = list(model.state_dict())
    with pytest.raises(ValueError, match="not supported"):
        adapt(model, LoRA(targets=["q", "ln_1"]))
    assert list(model.state_dict()) == names
    assert not hasattr(model, "peft_config")


def test_a_model_without_like_blocks_says_what_to_pass():
    model = torch.nn.Sequential(torch.nn.Linear(2, 2))
    example = {"input": torch.ones(1, 2)}
    with pytest.raises(ConfigurationError, match=r"Sequential cannot be run.*pass example="):
        adapt(model, BitFit())
    with pytest.raises(
        ConfigurationError, match=r"Sequential is not supported: it has no list of equal blocks"
    ):
        adapt(model, BitFit(), example=example)
    adapted = adapt(model, LoRA(targets=["0"], rank=1), example=example)
    assert trainable_parameters(adapted).trainable == 4


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: BottleneckAdapter(bottleneck=0), "bottleneck"),
        (lambda: BottleneckAdapter(activation="tan"), "did you mean 'tanh'"),
        (lambda: BottleneckAdapter(dropout=1.0), "dropout"),
        (lambda: LoRA(rank=0), "rank"),
        (lambda: LoRA(targets="query"), "targets='query' cannot be used: give a list"),
        (lambda: LoRA(targets=("q(",)), "is not a regular expression"),
        (lambda: LoRA(targets=()), "targets is empty"),
        (lambda: LoRA(init="zero"), "init"),
        (lambda: PrefixTuning(length=0), "length"),
        (lambda: BitFit(biases=[]), "biases is empty"),
        (lambda: HeadOnly(head="last"), "head"),
        (lambda: LoRA(also_train="norms"), "also_train='norms' cannot be used"),
        (lambda: LoRA(new_tokens=-1), "new_tokens"),
        (lambda: LoRA(stack="left"), "stack"),
        (lambda: FFNTuning(layers=[]), r"layers=\(\)"),
        (lambda: FFNTuning(layers=[1.5]), "layers"),
        (lambda: FFNTuning(layers="last"), "layers='last'"),
        (lambda: HeadOnly(pooling="max"), "pooling"),
        (lambda: HeadOnly(seed=-1), "seed"),
        (lambda: HeadOnly(encoder_layers=0), "encoder_layers"),
        (lambda: QLoRA(quant_type="nf8"), "quant_type"),
        (lambda: Fusion(), "fusion of nothing"),
        (lambda: Fusion(lora=LoRA(seed=3)), "lora sets seed: set it for the whole fusion"),
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

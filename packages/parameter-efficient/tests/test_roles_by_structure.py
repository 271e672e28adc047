"""Roles that are found against roles that were read off the models' source, for 28 architectures.

Columns: q, k, v, o; feed-forward in (a gate first) and out; norms before or behind the sub-layers.
"""

import re

import pytest
import torch
import transformers
import zoo
from torch import nn

from finetune_common.errors import ConfigurationError
from parameter_efficient import BitFit, BottleneckAdapter, FFNTuning, HeadOnly, LoRA, adapt, remove
from parameter_efficient.anatomy import Anatomy

SELF = "self_attn.{}_proj"
LLAMA = ([SELF.format(x) for x in "qkvo"], ["mlp.gate_proj", "mlp.up_proj"], "mlp.down_proj", "before")
BERT = (
    [*(f"attention.self.{x}" for x in ("query", "key", "value")), "attention.output.dense"],
    ["intermediate.dense"],
    "output.dense",
    "behind",
)
VIT = ([f"attention.{x}_proj" for x in "qkvo"], ["mlp.fc1"], "mlp.fc2", "before")
BART = ([*(SELF.format(x) for x in "qkv"), "self_attn.out_proj"], ["fc1"], "fc2", "behind")


def fused(qkv: str, o: str, ffn_in: str, ffn_out: str) -> tuple[list[str], list[str], str, str]:
    return [qkv, qkv, qkv, o], [ffn_in], ffn_out, "before"


TRUTH = {
    "bert": BERT,
    "roberta": BERT,
    "electra": BERT,
    "camembert": BERT,
    "albert": (
        [f"attention.{x}" for x in ("query", "key", "value", "dense")],
        ["ffn"],
        "ffn_output",
        "behind",
    ),
    "distilbert": (
        [f"attention.{x}_lin" for x in ("q", "k", "v", "out")],
        ["ffn.lin1"],
        "ffn.lin2",
        "behind",
    ),
    "deberta-v2": (
        [*(f"attention.self.{x}_proj" for x in ("query", "key", "value")), "attention.output.dense"],
        *BERT[1:],
    ),
    "deberta": ([*["attention.self.in_proj"] * 3, "attention.output.dense"], *BERT[1:]),
    "mpnet": ([*(f"attention.attn.{x}" for x in "qkvo")], *BERT[1:]),
    "modernbert": fused("attn.Wqkv", "attn.Wo", "mlp.Wi", "mlp.Wo"),
    "t5": (
        [f"layer.0.SelfAttention.{x}" for x in "qkvo"],
        ["layer.1.DenseReluDense.wi"],
        "layer.1.DenseReluDense.wo",
        "before",
    ),
    "bart": BART,
    "mbart": (*BART[:3], "before"),
    "gpt2": fused("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj"),
    "gpt_neo": (
        [f"attn.attention.{x}_proj" for x in ("q", "k", "v", "out")],
        ["mlp.c_fc"],
        "mlp.c_proj",
        "before",
    ),
    "gpt_neox": fused(
        "attention.query_key_value", "attention.dense", "mlp.dense_h_to_4h", "mlp.dense_4h_to_h"
    ),
    "falcon": fused(
        "self_attention.query_key_value", "self_attention.dense", "mlp.dense_h_to_4h", "mlp.dense_4h_to_h"
    ),
    "bloom": fused(
        "self_attention.query_key_value", "self_attention.dense", "mlp.dense_h_to_4h", "mlp.dense_4h_to_h"
    ),
    "opt": (*BART[:3], "before"),
    "llama": LLAMA,
    "mistral": LLAMA,
    "qwen2": LLAMA,
    "qwen3": LLAMA,
    "gemma2": LLAMA,
    "phi3": fused("self_attn.qkv_proj", "self_attn.o_proj", "mlp.gate_up_proj", "mlp.down_proj"),
    "mixtral": (LLAMA[0], ["mlp.experts"], "mlp.experts", "before"),
    "vit": VIT,
    "funnel": (
        [*(f"attention.{x}_head" for x in "qkv"), "attention.post_proj"],
        ["ffn.linear_1"],
        "ffn.linear_2",
        "behind",
    ),
}
assert len(TRUTH) == 28


def tiny(kind: str, task: str = "") -> nn.Module:
    tasks = [task] if task else ["sequence", "image", "causal"]
    return next(zoo.build(kind, cls) for name in tasks for found, cls in zoo.classes(name) if found == kind)


@pytest.mark.parametrize("kind", TRUTH)
def test_roles_are_those_of_the_source(kind: str) -> None:
    attention, ffn_in, ffn_out, norm = TRUTH[kind]
    [found] = Anatomy(tiny(kind), "encoder", None).architectures
    for layer in found.layers:
        prefix = f"{layer.name}."
        roles = {role: [n.removeprefix(prefix) for n in names] for role, names in layer.roles.items()}
        assert [roles[role] for role in "qkvo"] == [[name] for name in attention]
        assert roles["ffn_in"] == ffn_in
        assert roles["ffn_out"] == [ffn_out]
        assert roles.get("ffn_gate", ffn_in[:1]) == ffn_in[:1]
        assert bool(layer.sublayers["attention"].norm) == (norm == "behind")
        assert bool(layer.sublayers["ffn"].norm) == (norm == "behind")
        assert layer.width == zoo.D or kind == "albert"


@pytest.mark.parametrize("kind", ["xlm", "flaubert"])
def test_feed_forward_blocks_in_a_list_beside_the_attention_are_found(kind: str) -> None:
    [found] = Anatomy(tiny(kind), "encoder", None).architectures
    for number, layer in enumerate(found.layers):
        assert list(layer.roles["ffn_in"]) == [f"transformer.ffns.{number}.lin1"]
        assert list(layer.roles["ffn_out"]) == [f"transformer.ffns.{number}.lin2"]


@pytest.mark.parametrize("kind", ["segformer", "pvt_v2"])
def test_a_convolution_in_a_feed_forward_block_is_no_attention(kind: str) -> None:
    """Keys and values are of fewer tokens here, and fc2 takes what a convolution mixed."""
    [found] = Anatomy(tiny(kind, "image"), "encoder", None).architectures
    names = {
        "segformer": [*(f"attention.{x}_proj" for x in "qkvo"), "mlp.fc1", "mlp.fc2"],
        "pvt_v2": [
            *(f"attention.{x}" for x in ("query", "key", "value", "proj")),
            "mlp.dense1",
            "mlp.dense2",
        ],
    }[kind]
    assert found.layers
    for layer in found.layers:
        roles = [[n.removeprefix(f"{layer.name}.") for n in layer.roles[r]] for r in ("q", "k", "v", "o")]
        roles += [[n.removeprefix(f"{layer.name}.") for n in layer.roles[r]] for r in ("ffn_in", "ffn_out")]
        assert roles == [[name] for name in names]


def test_a_method_with_which_a_model_does_not_run_is_refused_and_leaves_the_model() -> None:
    """Attention that gives fewer tokens than it takes has no residual for an adapter beside it."""
    sizes = {"embed_dim": 16, "depths": [1, 1], "num_heads": [1, 2], "image_size": [32, 32]}
    config = transformers.HieraConfig(**sizes, num_query_pool=1, masked_unit_attention=[True, False])
    model = transformers.HieraForImageClassification(config)
    before = {name: p.requires_grad for name, p in model.named_parameters()}
    with pytest.raises(ConfigurationError, match="does not run with this method"):
        adapt(model, BottleneckAdapter(bottleneck=2, parallel=True, position="attention"))
    assert {name: p.requires_grad for name, p in model.named_parameters()} == before
    adapt(model, LoRA(rank=2))


class Block(nn.Module):
    """Norms first, causal attention, a gated feed-forward block; its names say nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c, self.d = (nn.Linear(24, 24) for _ in range(4))
        self.e, self.f, self.g = nn.Linear(24, 40), nn.Linear(24, 40), nn.Linear(40, 24)
        self.h, self.i = nn.LayerNorm(24), nn.LayerNorm(24)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        n = self.h(x)
        second, first, third = (m(n).unflatten(-1, (3, 8)).transpose(1, 2) for m in (self.a, self.b, self.c))
        mixed = nn.functional.scaled_dot_product_attention(first, second, third, is_causal=True)
        x = x + self.d(mixed.transpose(1, 2).flatten(2))
        n = self.i(x)
        return x + self.g(self.e(n) * self.f(n).sigmoid())


class Own(nn.Module):
    """A classifier of one's own, of plain torch."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.stack = nn.Embedding(50, 24), nn.ModuleList([Block(), Block()])
        self.end = nn.Linear(24, 2)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        x = self.words(ids)
        for block in self.stack:
            x = block(x)
        return self.end(x.mean(1))


def test_names_do_not_matter_and_a_model_of_ones_own_takes_an_example() -> None:
    model, example = Own(), {"ids": torch.arange(11)[None]}
    with pytest.raises(ConfigurationError, match="pass example="):
        adapt(model, LoRA())
    [found] = Anatomy(model, "encoder", example).architectures
    roles = {role: [n.rpartition(".")[2] for n in names] for role, names in found.layers[1].roles.items()}
    assert [roles[role] for role in ("q", "k", "v", "o")] == [["b"], ["a"], ["c"], ["d"]]
    assert (roles["ffn_in"], roles["ffn_gate"], roles["ffn_out"]) == (["e", "f"], ["f"], ["g"])
    assert (roles["attention_norm"], roles["ffn_norm"]) == (["h"], ["i"])
    for method in (LoRA(), BottleneckAdapter(), FFNTuning(), BitFit()):
        remove(adapt(model, method, example=example))


@pytest.mark.parametrize("kind", ["qwen3_next", "jamba", "rwkv"])
def test_linear_attention_and_hybrids_are_refused_and_names_help(kind: str) -> None:
    model = tiny(kind)
    names = list(model.state_dict())
    with pytest.raises(ConfigurationError, match=r"not certain|no list of equal blocks"):
        adapt(model, LoRA())
    assert list(model.state_dict()) == names
    last = next(n.rpartition(".")[2] for n, m in model.named_modules() if isinstance(m, nn.Linear))
    adapt(model, LoRA(targets=[last]))


def test_discovery_leaves_the_model_and_the_random_numbers_as_they_were() -> None:
    """BigBird changes its own attention for good when it sees a short text."""
    config = zoo.configuration("big_bird")
    config.attention_type = "block_sparse"
    model = transformers.BigBirdForSequenceClassification(config).train()
    kinds = [type(m) for m in model.modules()]
    modes = [m.training for m in model.modules()]
    state = torch.get_rng_state()
    assert Anatomy(model, "encoder", None).architectures[0].layers
    assert [type(m) for m in model.modules()] == kinds
    assert [m.training for m in model.modules()] == modes
    assert model.bert.attention_type == "block_sparse"
    assert torch.equal(torch.get_rng_state(), state)


def test_a_model_without_values_has_the_same_roles() -> None:
    real, empty = tiny("qwen3"), tiny("qwen3").to("meta")
    roles = [
        [
            {r: list(n) for r, n in layer.roles.items()}
            for layer in Anatomy(m, "encoder", None).architectures[0].layers
        ]
        for m in (real, empty)
    ]
    assert roles[0] == roles[1]
    adapt(empty, LoRA(targets=["q", "ffn_in"]))


def test_what_changes_nothing_is_refused_by_name_and_the_model_left_alone() -> None:
    class Deaf(transformers.BertForSequenceClassification):
        """Its output does not depend on its last layer."""

        def forward(self, input_ids, **kwargs):
            states = self.bert(input_ids, output_hidden_states=True, return_dict=True).hidden_states
            logits = self.classifier(self.bert.pooler(states[-2]))
            return transformers.modeling_outputs.SequenceClassifierOutput(logits=logits)

    model = Deaf(zoo.configuration("bert"))
    names = list(model.state_dict())
    with pytest.raises(ConfigurationError, match=r"layer\.1\..*would change nothing in Deaf") as refusal:
        adapt(model, LoRA(layers=[1]))
    assert "\n" not in str(refusal.value)
    assert list(model.state_dict()) == names
    adapt(model, LoRA(layers=[0]))


@pytest.mark.parametrize(
    ("kind", "config", "matrices"),
    [
        ("switch_transformers", LoRA(targets=["wi", "wo"], stack="both"), 2 * 2 * (1 + 4)),
        ("nllb-moe", LoRA(targets=["fc1", "fc2"]), 2 * 2 * (1 + 4)),
        ("nllb-moe", LoRA(targets=["ffn_in", "ffn_out"]), 2 * (1 + 4)),
    ],
)
def test_every_expert_is_adapted_though_few_tokens_reach_few(kind: str, config: LoRA, matrices: int) -> None:
    """One dense layer and one of four experts on each side; their names are expert_0, expert_1, …"""
    settings = zoo.configuration(kind).to_dict() | {
        "num_sparse_encoder_layers": 1,
        "num_sparse_decoder_layers": 1,
        "encoder_sparse_step": 2,
        "decoder_sparse_step": 2,
    }
    [cls] = [cls for found, cls in zoo.classes("seq2seq") if found == kind]
    model = adapt(cls(cls.config_class(**settings)), config)
    assert sum("lora_A" in name for name, _ in model.named_parameters()) == matrices


def test_what_looks_like_an_expert_outside_of_a_list_of_experts_is_refused() -> None:
    """Attention to an encoder that is not there stands beside other attention of its class and shapes."""
    with pytest.raises(ConfigurationError, match=r"encoder_attn.*would change nothing"):
        adapt(tiny("bart", "causal"), LoRA(targets=["q_proj"]))


def test_stack_chooses_encoder_decoder_or_both() -> None:
    def sides(stack: str) -> set[str]:
        model = adapt(tiny("t5"), LoRA(stack=stack))
        trained = [n for n, p in model.named_parameters() if p.requires_grad and "lora" in n]
        return {re.findall("encoder|decoder", name)[0] for name in trained}

    assert sides("encoder") == {"encoder"}
    assert sides("decoder") == {"decoder"}
    assert sides("both") == {"encoder", "decoder"}
    model = adapt(tiny("t5"), LoRA(stack="decoder", targets=["cross_q", "cross_v"]))
    assert all("EncDecAttention" in n for n, p in model.named_parameters() if p.requires_grad and "lora" in n)


@pytest.mark.parametrize(
    ("targets", "expected"),
    [
        (["q_proj", "up_proj"], {"q_proj", "up_proj"}),
        (
            [r"model\.layers\.0\..*_proj"],
            {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"},
        ),
        (["q", "down_proj"], {"q_proj", "down_proj"}),
    ],
)
def test_targets_are_roles_ends_of_names_or_expressions(targets: list[str], expected: set[str]) -> None:
    model = adapt(tiny("llama"), LoRA(targets=targets))
    found = {n.split(".lora")[0].rpartition(".")[2] for n, p in model.named_parameters() if p.requires_grad}
    assert found - {"weight", "score.weight"} == expected
    with pytest.raises(ConfigurationError, match="targets='wq' is not a role"):
        adapt(tiny("llama"), LoRA(targets=["q", "wq"]))
    with pytest.raises(ConfigurationError, match="biases='wq' is not a role"):
        adapt(tiny("llama"), BitFit(biases=["wq"]))


def test_head_only_of_a_model_without_layers_and_of_a_language_model() -> None:
    convolutional = adapt(tiny("resnet"), HeadOnly())
    assert {n for n, p in convolutional.named_parameters() if p.requires_grad} == {
        "classifier.1.weight",
        "classifier.1.bias",
    }
    without = tiny("hgnet_v2", "image")  # names no base model, and has no list of attention layers
    with pytest.raises(ConfigurationError, match=r"would train: it has no head, or none .*in also_train"):
        adapt(without, HeadOnly(head="train"))
    adapt(without, HeadOnly(also_train=["fc"]))
    assert {n for n, p in without.named_parameters() if p.requires_grad} == {"fc.weight", "fc.bias"}
    language = tiny("qwen3", "causal")
    with pytest.raises(ConfigurationError, match=r"nothing in Qwen3ForCausalLM would train.*head='train'"):
        adapt(language, HeadOnly())
    adapt(language, HeadOnly(head="train"))
    trained = {id(p) for p in language.parameters() if p.requires_grad}
    assert trained == {id(language.get_output_embeddings().weight)}


def test_a_dry_run_draws_every_layer(capsys: pytest.CaptureFixture[str]) -> None:
    adapt(tiny("llama"), LoRA(), dry_run=True)
    printed = capsys.readouterr().out
    for line in (
        "model.layers.0",
        "q              self_attn.q_proj  32x32",
        "ffn_out        mlp.down_proj  32x48",
    ):
        assert line in printed

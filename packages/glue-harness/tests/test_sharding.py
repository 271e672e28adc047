"""Sharded parameters are gathered layer by layer, whatever a model's class says of itself."""

from collections.abc import Iterator

import pytest
import torch
import torch.distributed as dist
import transformers
from torch.distributed.fsdp import FSDPModule

from finetune_common.errors import ConfigurationError
from glue_harness.run.sharding import shard

NARROW = {
    "vocab_size": 40,
    "hidden_size": 16,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
}
NAMED = {"vocab_size": 40, "max_position_embeddings": 64, "pad_token_id": 0}
MODELS = {
    "bert": (NARROW, {"BertEmbeddings": 1, "BertLayer": 3}),
    "electra": (NARROW | {"embedding_size": 16}, {"ElectraLayer": 3}),
    "deberta-v2": (NARROW, {"DebertaV2Layer": 3}),
    "mpnet": (NARROW, {"MPNetLayer": 3}),
    "albert": (NARROW | {"embedding_size": 16}, {"AlbertLayerGroup": 1}),
    "distilbert": (
        NAMED | {"dim": 16, "n_layers": 3, "n_heads": 2, "hidden_dim": 32},
        {"TransformerBlock": 3},
    ),
    "roberta-prelayernorm": (NARROW, {"RobertaPreLayerNormEmbeddings": 1, "RobertaPreLayerNormLayer": 3}),
    "funnel": (
        {"vocab_size": 40, "pad_token_id": 0, "d_model": 16, "n_head": 2, "d_head": 8, "d_inner": 32}
        | {"block_sizes": [2, 2], "num_decoder_layers": 1},
        {"FunnelLayer": 4},
    ),
    "jamba": (
        NARROW | {"num_key_value_heads": 1, "attn_layer_period": 3, "attn_layer_offset": 1, "num_experts": 1},
        {"JambaAttentionDecoderLayer": 1, "JambaMambaDecoderLayer": 2},
    ),
}
"""Model type → its sizes, and how many modules of which class are gathered one at a time."""


def model(kind: str) -> transformers.PreTrainedModel:
    torch.manual_seed(0)
    config = transformers.AutoConfig.for_model(kind, **MODELS[kind][0])
    return transformers.AutoModelForSequenceClassification.from_config(config).eval()


def gradients(net: torch.nn.Module) -> dict[str, torch.Tensor]:
    rows = torch.arange(5, 37).reshape(2, 16)
    net(input_ids=rows, labels=torch.tensor([0, 1])).loss.backward()
    found = {name: p.grad for name, p in net.named_parameters() if p.grad is not None}
    return {
        name: grad.full_tensor() if hasattr(grad, "full_tensor") else grad for name, grad in found.items()
    }


@pytest.fixture
def alone() -> Iterator[None]:
    """A group of this process only."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def units(net: torch.nn.Module) -> dict[str, int]:
    """How often each class is gathered on its own, below the whole model."""
    names = [
        type(part).__name__.removeprefix("FSDP") for part in net.modules() if isinstance(part, FSDPModule)
    ]
    return {name: names.count(name) for name in sorted(names[1:])}


@pytest.mark.parametrize("kind", MODELS)
def test_layers_are_gathered_one_at_a_time(alone, kind):
    whole, sharded = model(kind), model(kind)
    shard(sharded, "cpu", 1)
    assert units(sharded) == MODELS[kind][1]
    expected, found = gradients(whole), gradients(sharded)
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient)


@pytest.mark.parametrize("shared", ["weight", "module"])
def test_layers_that_share_a_parameter_stay_with_the_whole_model(alone, shared):
    nets = model("electra"), model("electra")
    for net in nets:
        first, second, _ = net.electra.encoder.layer
        if shared == "module":
            first.output.dense = second.output.dense
        first.output.dense.weight = second.output.dense.weight
    shard(nets[1], "cpu", 1)
    assert units(nets[1]) == {"ElectraLayer": 1}
    expected, found = map(gradients, nets)
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient)


def test_the_launcher_s_classes_are_taken_instead(alone, monkeypatch):
    monkeypatch.setenv("FSDP_TRANSFORMER_CLS_TO_WRAP", "ElectraLayer,ElectraAttention")
    net = model("electra")
    shard(net, "cpu", 1)
    assert units(net) == {"ElectraAttention": 3, "ElectraLayer": 3}
    assert gradients(net).keys() == gradients(model("electra")).keys()
    monkeypatch.setenv("FSDP_TRANSFORMER_CLS_TO_WRAP", "ElectraLayers")
    with pytest.raises(ConfigurationError, match="did you mean 'ElectraLayer'"):
        shard(model("electra"), "cpu", 1)


def test_a_model_without_blocks_is_said_to_be_gathered_whole(alone):
    with pytest.warns(UserWarning, match="whole model"):
        shard(torch.nn.Linear(3, 2), "cpu", 1)

"""SAGE on BERT: which parameters it takes, and a hundred steps against the float64 reference."""

import importlib.util
import re
from pathlib import Path

import pytest
import torch
import transformers
from transformers import (
    AlbertConfig,
    AlbertForSequenceClassification,
    BertConfig,
    BertForSequenceClassification,
    DistilBertConfig,
    DistilBertForSequenceClassification,
    RobertaConfig,
    RobertaForSequenceClassification,
)

from finetune_common.errors import ConfigurationError
from finetune_common.slots import find
from sensitivity_lr import Sage, SageAdamW, sage_names, sage_param_groups

_spec = importlib.util.spec_from_file_location(
    "numpy_reference", Path(__file__).with_name("numpy_reference.py")
)
numpy_reference = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(numpy_reference)

SMALL = {
    "vocab_size": 50,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "max_position_embeddings": 20,
}
RELEASED = ("attention.self", "attention.output.dense", "output.dense", "intermediate.dense")


def bert():
    torch.manual_seed(0)
    config = BertConfig(**SMALL, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    return BertForSequenceClassification(config)


@pytest.mark.parametrize(
    "model", [bert(), RobertaForSequenceClassification(RobertaConfig(**SMALL))], ids=["bert", "roberta"]
)
def test_the_rule_takes_what_the_released_code_takes(model):
    names = [name for name, _ in model.named_parameters()]
    assert sage_names(model) == [name for name in names if any(part in name for part in RELEASED)]


def test_other_architectures_have_the_same_split():
    distil = DistilBertForSequenceClassification(
        DistilBertConfig(vocab_size=50, dim=16, n_layers=2, n_heads=2, hidden_dim=32)
    )
    albert = AlbertForSequenceClassification(AlbertConfig(**SMALL, embedding_size=8))
    for model, matrices in ((distil, 2 * 6), (albert, 6)):
        names = sage_names(model)
        assert len(names) == 2 * matrices
        assert not any(
            part in name.lower() for name in names for part in ("norm", "embedding", "classifier", "pooler")
        )


MODERN = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "vocab_size": 50,
}
NO_MAPS = {
    "Mixtral": ("norm",),
    "GptOss": ("norm", "sinks"),
    "T5": ("norm", "relative_attention_bias"),
    "XLNet": ("norm",),
    "Swin": ("norm", "relative_position_bias_table"),
    "Mamba": ("norm", "A_log", "mixer.D", "conv1d"),
}
"""Model → what in its layers multiplies nothing by a matrix, or is a convolution."""
SIZES = {
    "Mixtral": {**MODERN, "num_local_experts": 3},
    "GptOss": {**MODERN, "num_local_experts": 3, "head_dim": 8},
    "T5": {"d_model": 16, "d_kv": 8, "d_ff": 24, "num_layers": 2, "num_heads": 2, "vocab_size": 50},
    "XLNet": {"d_model": 16, "n_head": 2, "d_inner": 24, "n_layer": 2, "vocab_size": 50},
    "Swin": {"embed_dim": 8, "depths": [1, 2], "num_heads": [1, 2], "window_size": 2, "image_size": 32},
    "Mamba": {"hidden_size": 16, "num_hidden_layers": 2, "state_size": 4, "vocab_size": 50},
}


@pytest.mark.parametrize("name", NO_MAPS)
def test_linear_maps_are_taken_whichever_module_holds_them(name):
    config = getattr(transformers, f"{name}Config")(**SIZES[name])
    model = getattr(transformers, f"{name}Model")(config)
    inside = [n for n, _ in model.named_parameters() if re.search(r"(layers?|block)\.\d+\.", n)]
    expected = [n for n in inside if not any(part in n for part in NO_MAPS[name])]
    assert expected
    assert sage_names(model) == expected


def test_torchs_own_layers_are_taken_whole_and_vectors_in_four_dimensions_are_not():
    class Scale(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.ones(1, 1, 1, 8))

    layer = torch.nn.TransformerEncoderLayer(8, 2, dim_feedforward=16)
    model = torch.nn.ModuleList([torch.nn.ModuleDict({"block": layer, "scale": Scale()})])
    names = [name for name, _ in model.named_parameters()]
    assert sage_names(model) == [name for name in names if "norm" not in name and "scale" not in name]


def test_groups_hold_every_trainable_parameter_once():
    model = bert()
    model.bert.pooler.requires_grad_(False)
    groups = sage_param_groups(model, weight_decay=0.05)
    grouped = [name for group in groups for name, _ in group["params"]]
    assert sorted(grouped) == sorted(name for name, param in model.named_parameters() if param.requires_grad)
    for group in groups:
        decays = {param.dim() >= 2 for _, param in group["params"]}
        assert decays == {group["weight_decay"] == 0.05}
        assert {name in sage_names(model) for name, _ in group["params"]} == {group["sage"]}


def test_nothing_matched_is_refused():
    model = bert()
    with pytest.raises(ConfigurationError, match="no trainable parameter matches the pattern 'lora'"):
        sage_param_groups(model, pattern="lora")
    model.bert.encoder.requires_grad_(False)
    with pytest.raises(ConfigurationError, match="linear maps in numbered layers"):
        sage_param_groups(model)


@pytest.mark.parametrize("name", ["sage-adamw", "sage-adamax", "sage-sgd"])
def test_the_slot_splits_the_groups_it_is_given(name):
    model = bert()
    named = list(model.named_parameters())
    given = [
        {"params": [pair for pair in named if pair[1].dim() >= 2], "weight_decay": 0.01},
        {"params": [pair for pair in named if pair[1].dim() < 2], "weight_decay": 0.0, "lr": 3e-4},
    ]
    method = find("optimizer", name)
    optimizer = method(method.Options(lr=1e-3)).build(model, given)
    chosen = set(sage_names(model))
    settings = {}
    for group in optimizer.param_groups:
        for param_name in group["param_names"]:
            settings[param_name] = (group["sage"], group["weight_decay"], group["lr"])
    assert settings == {
        param_name: (param_name in chosen, *((0.01, 1e-3) if param.dim() >= 2 else (0.0, 3e-4)))
        for param_name, param in named
    }


def batches():
    torch.manual_seed(1)
    for _ in range(100):
        yield {"input_ids": torch.randint(50, (4, 10)), "labels": torch.randint(2, (4,))}


PATHS = {"reference": {"fused": False}, "foreach": {"foreach": True}, "fused": {"fused": True}}


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_hundred_steps_follow_the_float64_reference_to_1e_5_on_every_path():
    models = {path: bert() for path in PATHS}
    optimizers = {
        path: SageAdamW(sage_param_groups(model), lr=1e-3, **PATHS[path]) for path, model in models.items()
    }
    lead = models["reference"]
    chosen = set(sage_names(lead))
    names = [name for name, _ in lead.named_parameters()]
    expected = {name: param.detach().double().numpy() for name, param in lead.named_parameters()}
    rules = {
        name: numpy_reference.adamw(
            1e-3, weight_decay=0.01 if expected[name].ndim >= 2 else 0.0, sage=name in chosen
        )
        for name in names
    }
    states = {name: {} for name in names}
    for t, batch in enumerate(batches(), 1):
        lead.zero_grad()
        lead(**batch).loss.backward()
        grads = {name: param.grad for name, param in lead.named_parameters()}
        for path, model in models.items():
            for name, param in model.named_parameters():
                param.grad = grads[name].clone()
            optimizers[path].step()
        for name in names:
            [expected[name]] = rules[name]([expected[name]], [grads[name].double().numpy()], states[name], t)
    together = torch.cat([torch.as_tensor(expected[name]).flatten() for name in names])
    for model in models.values():
        found = torch.cat([param.detach().double().flatten() for param in model.parameters()])
        assert (found - together).norm() / together.norm() <= 1e-5


def test_the_wrapper_takes_the_split_too():
    model = bert()
    groups = sage_param_groups(model)
    optimizer = Sage(torch.optim.AdamW(groups, lr=1e-3))
    for batch, _ in zip(batches(), range(3), strict=False):
        optimizer.zero_grad()
        model(**batch).loss.backward()
        optimizer.step()
    with_average = {
        name for name, param in model.named_parameters() if "sensitivity" in optimizer.state.get(param, {})
    }
    assert with_average == set(sage_names(model))

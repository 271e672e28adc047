"""Two layers, hidden size 16, feed-forward size 32, random weights: one classifier of every architecture."""

from copy import deepcopy
from functools import cache
from typing import Any

import torch
import transformers
from torch import Tensor, nn

D, F, L = 16, 32, 2

COMMON = {
    "vocab_size": 50,
    "hidden_size": D,
    "num_hidden_layers": L,
    "num_attention_heads": 2,
    "intermediate_size": F,
    "max_position_embeddings": 40,
    "pad_token_id": 1,
}
SPECIAL = {"vocab_size": 50, "pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2}

CONFIGURATIONS: dict[str, tuple[type, dict[str, Any]]] = {
    "bert": (transformers.BertConfig, COMMON),
    "roberta": (transformers.RobertaConfig, COMMON),
    "albert": (transformers.AlbertConfig, COMMON | {"embedding_size": 8}),
    "distilbert": (
        transformers.DistilBertConfig,
        {
            "vocab_size": 50,
            "dim": D,
            "n_layers": L,
            "n_heads": 2,
            "hidden_dim": F,
            "max_position_embeddings": 40,
        },
    ),
    "electra": (transformers.ElectraConfig, COMMON | {"embedding_size": 8}),
    "deberta-v2": (
        transformers.DebertaV2Config,
        COMMON | {"relative_attention": True, "pos_att_type": ["p2c", "c2p"], "share_att_key": True},
    ),
    "t5": (
        transformers.T5Config,
        SPECIAL
        | {"d_model": D, "d_kv": 8, "d_ff": F, "num_layers": L, "num_heads": 2, "decoder_start_token_id": 1},
    ),
    "bart": (
        transformers.BartConfig,
        SPECIAL
        | {
            "d_model": D,
            "encoder_layers": L,
            "decoder_layers": 1,
            "encoder_attention_heads": 2,
            "decoder_attention_heads": 2,
            "encoder_ffn_dim": F,
            "decoder_ffn_dim": F,
            "max_position_embeddings": 40,
            "num_labels": 2,
        },
    ),
    "gpt2": (
        transformers.GPT2Config,
        SPECIAL | {"n_embd": D, "n_layer": L, "n_head": 2, "n_inner": F, "n_positions": 40},
    ),
}

BY_THEMSELVES: dict[str, tuple[type, dict[str, Any]]] = {
    "mvp": (transformers.MvpConfig, CONFIGURATIONS["bart"][1]),
    "rembert": (transformers.RemBertConfig, COMMON | {"input_embedding_size": 8, "output_embedding_size": 8}),
    "tapas": (transformers.TapasConfig, COMMON),
}
"""Further ones, which compute attention by themselves."""

CLS_HEADS = ["bert", "roberta", "albert", "distilbert", "electra", "deberta-v2"]
"""Their heads read the first token."""


@cache
def _made(architecture: str, **changes: Any) -> tuple[type, Any, dict[str, Tensor]]:
    kind, settings = (CONFIGURATIONS | BY_THEMSELVES)[architecture]
    config = kind(**settings | changes)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = transformers.AutoModelForSequenceClassification.from_config(config)
        # Random weights as small as those at initialisation would hide what a method does to the output.
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.ndim > 1:
                    parameter.normal_(std=0.3)
    return type(model), config, model.state_dict()


def classifier(architecture: str, **changes: Any) -> nn.Module:
    """A model in evaluation mode; the same weights every time."""
    kind, config, weights = _made(architecture, **changes)
    with torch.random.fork_rng():
        model = kind(deepcopy(config))
    model.load_state_dict(weights)
    return model.eval()


def batch() -> dict[str, Tensor]:
    """Three rows of seven tokens, the first of them padded, each with one end-of-text token."""
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(5, 50, (3, 7), generator=generator)
    ids[:, -1] = 2
    ids[0, 4], ids[0, 5:] = 2, 1
    return {"input_ids": ids, "attention_mask": (ids != 1).long()}


def logits(model: nn.Module) -> Tensor:
    """Its output for `batch()`."""
    with torch.no_grad():
        return model(**batch()).logits


def past_of(output: Any) -> dict[str, Any]:
    """The cache in an output, by the name that this version of transformers has; the next call takes it."""
    return {name: value for name, value in output.items() if hasattr(value, "get_seq_length")}


def recompute_activations(model: Any) -> None:
    """Let a model keep its layers' inputs alone, by the name that this version of transformers has."""
    enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
    enable({"use_reentrant": False})


def disturb(model: nn.Module, std: float = 0.1) -> nn.Module:
    """Move everything that trains away from where it began, as training would."""
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += std * torch.randn(parameter.shape, generator=generator).to(parameter)
    return model

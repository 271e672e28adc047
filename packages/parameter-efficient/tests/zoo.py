"""Tiny models of every class that transformers maps to a task: two layers, random weights."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import transformers
from torch import nn
from transformers.models.auto import modeling_auto
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

TASKS = {
    "sequence": modeling_auto.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES,
    "causal": modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    "image": modeling_auto.MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES,
    "token": modeling_auto.MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING_NAMES,
    "question": modeling_auto.MODEL_FOR_QUESTION_ANSWERING_MAPPING_NAMES,
    "masked": modeling_auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES,
    "seq2seq": modeling_auto.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES,
    "speech": modeling_auto.MODEL_FOR_SPEECH_SEQ_2_SEQ_MAPPING_NAMES,
    "audio": modeling_auto.MODEL_FOR_AUDIO_CLASSIFICATION_MAPPING_NAMES,
}

D, F, HEADS, LAYERS = 32, 48, 4, 2

WIDTHS = dict.fromkeys(
    [
        "hidden_size",
        "d_model",
        "n_embd",
        "dim",
        "embed_dim",
        "embedding_size",
        "word_embed_proj_dim",
        "rotary_emb_base_size",
        "hidden_dim_size",
        "model_dim",
        "backbone_hidden_size",
        "decoder_hidden_size",
        "d_embed",
        "emb_dim",
    ],
    D,
)
INNER = dict.fromkeys(
    [
        "intermediate_size",
        "d_ff",
        "ffn_dim",
        "encoder_ffn_dim",
        "decoder_ffn_dim",
        "hidden_dim",
        "n_inner",
        "ffn_hidden_size",
        "moe_intermediate_size",
        "shared_expert_intermediate_size",
        "mlp_hidden_size",
        "dff",
        "intermediate_size_mlp",
        "block_ffn_dim",
        "moe_shared_expert_intermediate_size",
    ],
    F,
)
DEPTHS = {
    name: LAYERS
    for name in [
        "num_hidden_layers",
        "num_layers",
        "n_layer",
        "n_layers",
        "encoder_layers",
        "decoder_layers",
        "num_decoder_layers",
        "num_encoder_layers",
        "num_hidden_groups",
    ]
    if name != "num_hidden_groups"
}
COUNTS = dict.fromkeys(
    [
        "num_attention_heads",
        "num_heads",
        "n_head",
        "n_heads",
        "encoder_attention_heads",
        "decoder_attention_heads",
        "num_query_heads",
        "heads",
    ],
    HEADS,
)
OTHERS = {
    "vocab_size": 96,
    "num_key_value_heads": 2,
    "num_kv_heads": 2,
    "multi_query_group_num": 2,
    "head_dim": 8,
    "d_kv": 8,
    "attention_head_size": 8,
    "max_position_embeddings": 128,
    "n_positions": 128,
    "max_source_positions": 16,
    "max_target_positions": 32,
    "num_mel_bins": 8,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "decoder_start_token_id": 1,
    "classifier_proj_size": D,
    "image_size": 32,
    "patch_size": 8,
    "num_experts": 4,
    "num_local_experts": 4,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "moe_top_k": 2,
    "n_group": 1,
    "topk_group": 1,
    "n_shared_experts": 1,
    "first_k_dense_replace": 0,
    "q_lora_rank": 16,
    "kv_lora_rank": 16,
    "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 8,
    "v_head_dim": 8,
    "attention_window": 4,
    "type_vocab_size": 2,
    "num_labels": 2,
    "max_2d_position_embeddings": 64,
    "coordinate_size": 5,
    "shape_size": 6,
    "query_pre_attn_scalar": 8,
    "vocab_size_per_layer_input": 96,
    "hidden_size_per_layer_input": 8,
    "num_hash_buckets": 64,
    "trunk_channels": D,
    "sliding_window": 16,
    "position_embedding_size": 8,
}
SIZES: dict[str, Any] = WIDTHS | INNER | DEPTHS | COUNTS | OTHERS

SPECIAL: dict[str, dict[str, Any]] = {
    "xlm": {"emb_dim": D, "n_heads": HEADS, "n_layers": LAYERS},
    "funnel": {
        "block_sizes": [2],
        "d_model": D,
        "d_inner": F,
        "n_head": HEADS,
        "d_head": 8,
        "num_decoder_layers": 1,
    },
    "gpt_neo": {"attention_types": [[["global", "local"], 1]], "window_size": 8},
    "squeezebert": {"embedding_size": D},
    "mobilebert": {
        "hidden_size": D,
        "embedding_size": D,
        "intra_bottleneck_size": 16,
        "true_hidden_size": 16,
    },
    "albert": {"embedding_size": 16},
    "electra": {"embedding_size": 16},
    "lilt": {"channel_shrink_ratio": 4, "hidden_size": 48},
    "mistral4": {"head_dim": 16, "num_key_value_heads": HEADS},
    "big_bird": {"attention_type": "original_full"},
    "bigbird_pegasus": {"attention_type": "original_full"},
    "mpt": {"d_model": D, "n_heads": HEADS, "n_layers": LAYERS, "max_seq_len": 128, "expansion_ratio": 2},
    "bloom": {"hidden_size": D, "n_layer": LAYERS, "n_head": HEADS},
    "ctrl": {"n_embd": D, "dff": F, "n_layer": LAYERS, "n_head": HEADS},
    "rembert": {"input_embedding_size": 16, "output_embedding_size": 16},
    "xmod": {"default_language": "en_XX"},
    "gptj": {"rotary_dim": 4},
    "codegen": {"rotary_dim": 4, "n_ctx": 128},
    "swin": {"embed_dim": 16, "depths": [2, 2], "num_heads": [2, 4], "window_size": 2, "patch_size": 4},
    "swinv2": {"embed_dim": 16, "depths": [2, 2], "num_heads": [2, 4], "window_size": 2, "patch_size": 4},
    "pvt": {"image_size": 96, "hidden_sizes": [16, 32, 40, 64]},
    "pvt_v2": {"image_size": 160, "hidden_sizes": [16, 32, 40, 64]},
    "t5": {"decoder_start_token_id": 0},
    "mt5": {"decoder_start_token_id": 0},
    "umt5": {"decoder_start_token_id": 0},
    "xlnet": {"d_model": D, "d_inner": F, "n_layer": LAYERS, "n_head": HEADS},
    "roc_bert": {"pronunciation_vocab_size": 20, "shape_vocab_size": 20},
    "luke": {"entity_vocab_size": 50, "entity_emb_size": 16},
    "perceiver": {"d_latents": D, "num_latents": 8, "d_model": 32, "image_size": 16},
    "markuplm": {
        "max_xpath_tag_unit_embeddings": 20,
        "max_xpath_subs_unit_embeddings": 30,
        "tag_pad_id": 19,
        "subs_pad_id": 29,
    },
    "zamba": {"layer_types": None, "num_hidden_layers": 6},
    "esmc": {"num_key_value_heads": HEADS},
    "reformer": {
        "axial_pos_shape": [8, 16],
        "axial_pos_embds_dim": [16, 16],
        "attn_layers": ["local", "local"],
        "feed_forward_size": F,
        "local_attn_chunk_length": 8,
    },
}


def configuration(kind: str) -> Any:
    """Return a small configuration of a model type."""
    cls = CONFIG_MAPPING[kind]
    default = cls()

    def small(config: Any) -> dict[str, Any]:
        chosen = {
            k: v for k, v in SIZES.items() if isinstance(getattr(config, k, None), int) or k in vars(config)
        }
        for key, value in list(chosen.items()):
            if (
                isinstance(getattr(type(config), key, None), property)
                and getattr(type(config), key).fset is None
            ):
                del chosen[key]
                continue
            if isinstance(getattr(config, key, None), list | tuple | dict):
                del chosen[key]
            if getattr(config, key, 0) is None and key not in OTHERS:
                del chosen[key]
            del value
        if "qk_rope_head_dim" in chosen:
            chosen |= {"head_dim": chosen["qk_rope_head_dim"], "num_key_value_heads": HEADS}
        if hasattr(config, "mrope_section"):
            chosen["mrope_section"] = [1, 1, 2]
        return chosen

    settings = small(default)
    if kind in ("xlnet", "funnel"):
        settings = {
            key: OTHERS[key] for key in ("vocab_size", "pad_token_id", "bos_token_id", "eos_token_id")
        }
    for name in getattr(default, "sub_configs", {}):
        sub = getattr(default, name, None)
        if sub is not None:
            settings[name] = small(sub) | {"model_type": sub.model_type}
    return cls(**settings | SPECIAL.get(kind, {}))


def classes(task: str) -> Iterator[tuple[str, type[nn.Module]]]:
    """Yield model type and class."""
    for kind, name in TASKS[task].items():
        for one in name if isinstance(name, tuple | list) else (name,):
            if hasattr(transformers, one):
                yield kind, getattr(transformers, one)


def build(kind: str, cls: type[Any]) -> nn.Module:
    """Return a tiny model of one class, in evaluation mode."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = cls(configuration(kind)).eval()
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.ndim == 4:  # of a convolution: images keep their scale through many of them
                    nn.init.kaiming_normal_(parameter)
                elif parameter.ndim > 1:
                    parameter.normal_(std=0.2)
    return model

"""Nineteen architectures, 2 layers, 256 wide: bytes saved, error of the gradient, and whether it trains.

The error is that of one gradient against the plain one, ‖ĝ - g‖ / ‖g‖, and of the mean of several; the loss
is that of one batch before and after training on it, compressed and plain from the same start.

    python benchmarks/gact/architectures.py --output-dir DIR
"""

from __future__ import annotations

import argparse
import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import rows
import torch
import transformers
from torch import Tensor, nn

from activation_compression import ActivationCompressor

DRAWS, STEPS, RATE, LEVELS = 20, 15, 1e-3, ("lossless", "L1", "L1.2")
WORDS, WIDTH, LENGTH, BATCH = 512, 256, 64, 8
TEXT = {"vocab_size": WORDS, "hidden_size": WIDTH, "num_hidden_layers": 2, "num_attention_heads": 4}
INNER = {"intermediate_size": 2 * WIDTH}
DECODER = {**TEXT, **INNER, "num_key_value_heads": 2, "use_cache": False}
DECODER |= {"pad_token_id": 0, "bos_token_id": 0, "eos_token_id": 1}
EXPERTS = {"num_experts_per_tok": 2, "moe_intermediate_size": WIDTH, "head_dim": WIDTH // 4}
SEEING = {"image_size": 32, "patch_size": 4, **{k: v for k, v in TEXT.items() if k != "vocab_size"}}

Batch = dict[str, Tensor]


class GraphConvolution(nn.Module):
    """Three layers of H' = σ(Â H W) on a random graph (Kipf and Welling 2017)."""

    def __init__(self) -> None:
        super().__init__()
        nodes = 400
        edges = (torch.rand(nodes, nodes) < 0.05).float()
        adjacency = ((edges + edges.t() + torch.eye(nodes)) > 0).float()
        scale = adjacency.sum(1).rsqrt()
        self.register_buffer("adjacency", scale[:, None] * adjacency * scale)
        self.layers = nn.ModuleList([nn.Linear(a, b) for a, b in ((32, 128), (128, 128), (128, 5))])

    def forward(self, features: Tensor, labels: Tensor) -> Any:
        """Return the mean cross-entropy over nodes."""
        for layer in self.layers[:-1]:
            features = nn.functional.dropout(torch.relu(self.adjacency @ layer(features)), 0.1, self.training)
        loss = nn.functional.cross_entropy(self.adjacency @ self.layers[-1](features), labels)
        return transformers.modeling_outputs.SequenceClassifierOutput(loss=loss)


def text(decoder: bool = False) -> Batch:
    tokens = torch.randint(2, WORDS, (BATCH, LENGTH))
    return {"input_ids": tokens, "labels": tokens if decoder else torch.randint(2, (BATCH,))}


def images(size: int) -> Batch:
    return {"pixel_values": torch.randn(BATCH, 3, size, size), "labels": torch.randint(2, (BATCH,))}


def decoder(name: str, **more: Any) -> tuple[nn.Module, Batch]:
    """Return a small causal model of a family and a batch."""
    config = getattr(transformers, f"{name}Config")(**{**DECODER, **more})
    return getattr(transformers, f"{name}ForCausalLM")(config), text(decoder=True)


def classifier(name: str, batch: Batch, kind: str = "Sequence", **settings: Any) -> tuple[nn.Module, Batch]:
    """Return a small classifier of a family and a batch."""
    config = getattr(transformers, f"{name}Config")(**settings)
    return getattr(transformers, f"{name}For{kind}Classification")(config), batch


def t5() -> tuple[nn.Module, Batch]:
    config = transformers.T5Config(
        **{"vocab_size": WORDS, "d_model": WIDTH, "d_kv": WIDTH // 4, "d_ff": 2 * WIDTH, "num_layers": 2},
        **{"num_heads": 4, "decoder_start_token_id": 0, "use_cache": False},
    )
    return transformers.T5ForConditionalGeneration(config), text(decoder=True)


def whisper() -> tuple[nn.Module, Batch]:
    layers = {f"{side}_{what}": n for side in ("encoder", "decoder") for what, n in WHISPER.items()}
    config = transformers.WhisperConfig(
        **{"vocab_size": WORDS, "d_model": WIDTH, "num_mel_bins": 16, "max_source_positions": 100},
        **{"max_target_positions": LENGTH, "use_cache": False, **layers, **SPECIAL},
    )
    tokens = torch.randint(2, WORDS, (BATCH, 32))
    return transformers.WhisperForConditionalGeneration(config), {
        "input_features": torch.randn(BATCH, 16, 200),
        "labels": tokens,
    }


WHISPER = {"layers": 2, "attention_heads": 4, "ffn_dim": 2 * WIDTH}
SPECIAL = {"pad_token_id": 0, "bos_token_id": 0, "eos_token_id": 1, "decoder_start_token_id": 0}


def wav2vec() -> tuple[nn.Module, Batch]:
    config = transformers.Wav2Vec2Config(
        **{**TEXT, **INNER, "vocab_size": 32, "conv_dim": (64, 64), "conv_stride": (5, 4)},
        **{"conv_kernel": (10, 8), "num_feat_extract_layers": 2, "num_conv_pos_embeddings": 16},
        **{"num_conv_pos_embedding_groups": 4, "mask_time_prob": 0.0, "layerdrop": 0.0},
    )
    labels = torch.randint(1, 32, (BATCH, 20))
    return transformers.Wav2Vec2ForCTC(config), {"input_values": torch.randn(BATCH, 2400), "labels": labels}


MODELS: dict[str, Callable[[], tuple[nn.Module, Batch]]] = {
    "Llama": lambda: decoder("Llama"),
    "Qwen3": lambda: decoder("Qwen3", head_dim=WIDTH // 4),
    "Gemma3": lambda: gemma(),
    "Mistral": lambda: decoder("Mistral"),
    "Phi3": lambda: decoder("Phi3"),
    "Mixtral": lambda: decoder("Mixtral", num_local_experts=4, num_experts_per_tok=2),
    "Qwen3-MoE": lambda: decoder("Qwen3Moe", num_experts=4, **EXPERTS),
    "Mamba": lambda: (
        transformers.MambaForCausalLM(
            transformers.MambaConfig(
                vocab_size=WORDS, hidden_size=WIDTH, num_hidden_layers=2, use_cache=False
            )
        ),
        text(decoder=True),
    ),
    "BERT": lambda: classifier("Bert", text(), **TEXT, **INNER),
    "ModernBERT": lambda: classifier("ModernBert", text(), **TEXT, **INNER, **MODERN),
    "DeBERTa-v2": lambda: classifier("DebertaV2", text(), **TEXT, **INNER),
    "T5": t5,
    "Whisper": whisper,
    "Wav2Vec2-CTC": wav2vec,
    "ViT": lambda: classifier("ViT", images(32), "Image", **SEEING, **INNER),
    "DINOv2": lambda: classifier("Dinov2", images(32), "Image", **SEEING),
    "ConvNeXt": lambda: classifier(
        "ConvNext", images(64), "Image", hidden_sizes=[64, 128], depths=[2, 2], num_stages=2
    ),
    "ResNet": lambda: classifier(
        *("ResNet", images(64), "Image"),
        **{"embedding_size": 32, "hidden_sizes": [32, 64], "depths": [2, 2], "layer_type": "basic"},
    ),
    "graph convolution": lambda: (
        GraphConvolution(),
        {"features": torch.randn(400, 32), "labels": torch.randint(5, (400,))},
    ),
}
MODERN = {"pad_token_id": 0, "bos_token_id": 0, "eos_token_id": 1, "cls_token_id": 0, "sep_token_id": 1}


def gemma() -> tuple[nn.Module, Batch]:
    config = transformers.Gemma3TextConfig(**{**DECODER, "head_dim": WIDTH // 4})
    return transformers.Gemma3ForCausalLM(config), text(decoder=True)


def make(name: str) -> tuple[nn.Module, Batch]:
    """Return a model and a batch."""
    torch.manual_seed(0)
    return MODELS[name]()


def gradient(model: nn.Module, batch: dict[str, Tensor], compressor: ActivationCompressor) -> Tensor:
    torch.manual_seed(1)
    with compressor:
        loss = model(**batch).loss
    gradients = torch.autograd.grad(
        loss, [p for p in model.parameters() if p.requires_grad], allow_unused=True
    )
    return torch.cat([g.flatten() for g in gradients if g is not None])


def trained(model: nn.Module, batch: dict[str, Tensor], level: str, steps: int) -> tuple[float, float]:
    """Return the loss of the batch before and after training on it."""
    model = copy.deepcopy(model)
    compressor = ActivationCompressor(model, level)
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE)
    losses = []
    for number in range(steps + 1):
        torch.manual_seed(number)
        with compressor:
            loss = model(**batch).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses[0], losses[-1]


def measure(name: str, level: str, draws: int, steps: int) -> dict[str, Any]:
    """Return the numbers of an architecture at a level."""
    model, batch = make(name)
    model.train()
    exact = gradient(model, batch, ActivationCompressor(model, "L0"))
    compressor = ActivationCompressor(model, level)
    gradients = torch.stack([gradient(model, batch, compressor) for _ in range(draws)])
    first, plain = trained(model, batch, "L0", steps)
    return {
        "ratio": compressor.stats.ratio,
        "error": float((gradients - exact).norm(dim=1).mean() / exact.norm()),
        "error_of_mean": float((gradients.mean(0) - exact).norm() / exact.norm()),
        "loss_before": first,
        "loss_plain": plain,
        "loss_compressed": trained(model, batch, level, steps)[1],
    }


def table(report: dict[str, Any]) -> str:
    """Return the markdown table of a report."""
    lines = [
        "| architecture | level | fewer bytes | error of a gradient | of the mean of "
        f"{report['draws']} | loss at first | after {report['steps']} steps, plain | compressed |",
        "| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    lines += [
        f"| {row['architecture']} | {row['level']} | {row['ratio']:.1f}x | {row['error']:.3f} "
        f"| {row['error_of_mean']:.3f} | {row['loss_before']:.3f} | {row['loss_plain']:.3f} "
        f"| {row['loss_compressed']:.3f} |"
        for row in report["rows"]
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measure all, print and keep the table."""
    parser = argparse.ArgumentParser(description="Nineteen architectures with compressed activations.")
    parser.add_argument("--names", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--draws", type=int, default=DRAWS, help=f"gradients to average ({DRAWS})")
    parser.add_argument("--steps", type=int, default=STEPS, help=f"steps of training ({STEPS})")
    parser.add_argument("--output-dir", type=Path, required=True, help="a folder; what is there is kept")
    options = parser.parse_args()
    rows.measured(
        options.output_dir,
        {"draws": options.draws, "steps": options.steps},
        ({"architecture": name, "level": level} for name in options.names for level in LEVELS),
        lambda one: measure(one["architecture"], one["level"], options.draws, options.steps),
        table,
    )


if __name__ == "__main__":
    main()

"""Other architectures with tiny configurations: bytes saved, error of the gradient, and whether it trains.

The error is that of one gradient against the plain one, ‖ĝ - g‖ / ‖g‖, and of the mean of several; the loss
is that of one batch before and after training on it, compressed and plain from the same start.

    python benchmarks/gact/architectures.py
"""

from __future__ import annotations

import argparse
import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor, nn

from activation_compression import ActivationCompressor
from glue_harness.hardware import hardware, versions
from glue_harness.run.records import write_report

HERE = Path(__file__).parent
DRAWS, STEPS, RATE = 20, 15, 1e-3
TEXT = {"vocab_size": 200}
SMALL = {"hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 4, "num_hidden_layers": 2}


class GraphConvolution(nn.Module):
    """Three layers of H' = σ(Â H W) on a random graph (Kipf and Welling 2017)."""

    def __init__(self) -> None:
        super().__init__()
        nodes = 200
        edges = (torch.rand(nodes, nodes) < 0.05).float()
        adjacency = ((edges + edges.t() + torch.eye(nodes)) > 0).float()
        scale = adjacency.sum(1).rsqrt()
        self.register_buffer("adjacency", scale[:, None] * adjacency * scale)
        self.layers = nn.ModuleList([nn.Linear(a, b) for a, b in ((32, 64), (64, 64), (64, 5))])

    def forward(self, features: Tensor, labels: Tensor) -> Any:
        """Return the mean cross-entropy over nodes."""
        for layer in self.layers[:-1]:
            features = nn.functional.dropout(torch.relu(self.adjacency @ layer(features)), 0.1, self.training)
        loss = nn.functional.cross_entropy(self.adjacency @ self.layers[-1](features), labels)
        return transformers.modeling_outputs.SequenceClassifierOutput(loss=loss)


def text(decoder: bool = False) -> dict[str, Tensor]:
    tokens = torch.randint(2, 200, (8, 32))
    return {"input_ids": tokens, "labels": tokens if decoder else torch.randint(2, (8,))}


def images(size: int) -> dict[str, Tensor]:
    return {"pixel_values": torch.randn(8, 3, size, size), "labels": torch.randint(2, (8,))}


def make(name: str) -> tuple[nn.Module, dict[str, Tensor]]:
    """Return a model and a batch."""
    t = transformers
    models: dict[str, Callable[[], tuple[nn.Module, dict[str, Tensor]]]] = {
        "BERT": lambda: (t.BertForSequenceClassification(t.BertConfig(**TEXT, **SMALL)), text()),
        "DeBERTa": lambda: (t.DebertaV2ForSequenceClassification(t.DebertaV2Config(**TEXT, **SMALL)), text()),
        "GPT-2": lambda: (
            t.GPT2LMHeadModel(
                t.GPT2Config(**TEXT, n_embd=64, n_layer=2, n_head=4, bos_token_id=0, eos_token_id=1)
            ),
            text(decoder=True),
        ),
        "T5": lambda: (
            t.T5ForConditionalGeneration(
                t.T5Config(
                    **TEXT, d_model=64, d_kv=16, d_ff=128, num_layers=2, num_heads=4, decoder_start_token_id=0
                )
            ),
            text(decoder=True),
        ),
        "ViT": lambda: (
            t.ViTForImageClassification(
                t.ViTConfig(image_size=32, patch_size=4, hidden_dropout_prob=0.1, **SMALL)
            ),
            images(32),
        ),
        "Swin": lambda: (
            t.SwinForImageClassification(
                t.SwinConfig(
                    image_size=32, patch_size=2, embed_dim=32, depths=[2, 2], num_heads=[2, 4], window_size=4
                )
            ),
            images(32),
        ),
        "ResNet": lambda: (
            t.ResNetForImageClassification(
                t.ResNetConfig(embedding_size=16, hidden_sizes=[16, 32], depths=[2, 2], layer_type="basic")
            ),
            images(64),
        ),
        "graph convolution": lambda: (
            GraphConvolution(),
            {"features": torch.randn(200, 32), "labels": torch.randint(5, (200,))},
        ),
    }
    torch.manual_seed(0)
    return models[name]()


ARCHITECTURES = ("BERT", "DeBERTa", "GPT-2", "T5", "ViT", "Swin", "ResNet", "graph convolution")


def gradient(model: nn.Module, batch: dict[str, Tensor], compressor: ActivationCompressor) -> Tensor:
    torch.manual_seed(1)
    with compressor:
        loss = model(**batch).loss
    found = torch.autograd.grad(loss, [p for p in model.parameters() if p.requires_grad], allow_unused=True)
    return torch.cat([g.flatten() for g in found if g is not None])


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
    """Return the row of an architecture at a level."""
    model, batch = make(name)
    model.train()
    exact = gradient(model, batch, ActivationCompressor(model, "L0"))
    compressor = ActivationCompressor(model, level)
    found = torch.stack([gradient(model, batch, compressor) for _ in range(draws)])
    first, plain = trained(model, batch, "L0", steps)
    return {
        "architecture": name,
        "level": level,
        "ratio": compressor.stats.ratio,
        "error": float((found - exact).norm(dim=1).mean() / exact.norm()),
        "error_of_mean": float((found.mean(0) - exact).norm() / exact.norm()),
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
    parser = argparse.ArgumentParser(description="Other architectures with compressed activations.")
    parser.add_argument("--names", nargs="+", choices=ARCHITECTURES, default=ARCHITECTURES)
    parser.add_argument("--draws", type=int, default=DRAWS, help=f"gradients to average ({DRAWS})")
    parser.add_argument("--steps", type=int, default=STEPS, help=f"steps of training ({STEPS})")
    parser.add_argument("--output-dir", type=Path, default=HERE / "results" / "architectures")
    options = parser.parse_args()
    report = {
        "rows": [
            measure(name, level, options.draws, options.steps)
            for name in options.names
            for level in ("L1", "L1.2")
        ],
        "draws": options.draws,
        "steps": options.steps,
        "versions": versions(),
        "hardware": hardware(torch.device("cpu")),
    }
    write_report(options.output_dir, report, table(report))


if __name__ == "__main__":
    main()

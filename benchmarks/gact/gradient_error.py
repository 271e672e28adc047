"""Error of a BERT's gradient at each level: of one draw, and of the mean of many, against the plain gradient.

Dropout is the same in every draw, so that rounding is all that differs. What the mean of n draws keeps is the
bias, and 1/n of one draw's variance; the bias is estimated with that share taken off, never below zero:

    bias² = ‖mean - g‖² - var / n,      var = mean ‖ĝ - mean‖² · n / (n - 1)

    python benchmarks/gact/gradient_error.py --output-dir DIR
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch
from rows import measured
from torch import Tensor
from transformers import BertConfig, BertForSequenceClassification

from activation_compression import ActivationCompressor

LEVELS = ("L0", "L1.1", "L1", "L1.2", "L2", "L2.1", "L2.2")
SHAPE = {"hidden_size": 256, "intermediate_size": 1024, "num_attention_heads": 4, "num_hidden_layers": 3}
BATCH, LENGTH, VOCABULARY = 8, 64, 1000


def gradient(model: Any, batch: dict[str, Tensor], compressor: ActivationCompressor) -> Tensor:
    """Return the gradient of all parameters, end to end."""
    torch.manual_seed(1)
    model.zero_grad()
    with compressor:
        loss = model(**batch).loss
    loss.backward()
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


def measure(level: str, draws: int) -> dict[str, Any]:
    """Return errors relative to the plain gradient's norm."""
    torch.manual_seed(0)
    model = BertForSequenceClassification(BertConfig(vocab_size=VOCABULARY, **SHAPE)).train()
    tokens = torch.randint(VOCABULARY, (BATCH, LENGTH))
    batch = {"input_ids": tokens, "labels": torch.arange(BATCH) % 2}
    exact = gradient(model, batch, ActivationCompressor(model, "L0"))
    compressor = ActivationCompressor(model, level)
    gradient(model, batch, compressor)
    if compressor.level.automatic:
        compressor.adapt(lambda: model(**batch).loss)
    mean, squares = torch.zeros_like(exact), 0.0
    for number in range(1, draws + 1):
        estimate = gradient(model, batch, compressor)
        new = mean + (estimate - mean) / number
        squares += float(torch.dot(estimate - mean, estimate - new))
        mean = new
    variance = squares / (draws - 1)
    off = float((mean - exact).square().sum())
    bias = max(0.0, off - variance / draws)
    one = variance + bias
    whole = float(exact.square().sum())
    return {
        "ratio": compressor.stats.ratio,
        "error": (one / whole) ** 0.5,
        "error_of_mean": (off / whole) ** 0.5,
        "bias": bias / one if one else 0.0,
    }


def table(report: dict[str, Any]) -> str:
    """Return the rows as markdown."""
    lines = [
        "| level | bytes, times fewer | error of one gradient | of the mean of "
        f"{report['draws']} | bias² / squared error |",
        "| --- | --- | --- | --- | --- |",
    ]
    lines += [
        f"| {row['level']} | {row['ratio']:.2f} | {row['error']:.4f} | {row['error_of_mean']:.4f} | "
        f"{100 * row['bias']:.2f} % |"
        for row in report["rows"]
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--draws", type=int, default=200, help="gradients a level (200)")
    parser.add_argument("--output-dir", type=Path, required=True)
    options = parser.parse_args()
    measured(
        options.output_dir,
        {"draws": options.draws, "shape": {**SHAPE, "batch": BATCH, "length": LENGTH}},
        ({"level": level} for level in LEVELS),
        lambda one: measure(one["level"], options.draws),
        table,
    )


if __name__ == "__main__":
    main()

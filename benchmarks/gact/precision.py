"""What automatic precision rests on: sensitivities against brute force, and what their optimum is worth.

First a BERT of two layers: each tensor alone is rounded to 4 bits, the others are kept, and the squared error
of the gradient is set beside the sensitivity that one measurement gives all of them. Then a pre-trained
model on one batch of a task: the error that the first order foretells for 2 bits on average, and the one that
comes out, for the first order's optimum, the optimum without one bit where an operation is not linear, and
equal widths. The model folder and the data are those of MINILM_DIR and GLUE_DATA_DIR unless told.

    python benchmarks/gact/precision.py
"""

from __future__ import annotations

import argparse
import math
import os
from collections.abc import Mapping
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from gradient_error import BATCH, LENGTH, SHAPE, VOCABULARY, gradient
from scipy.stats import spearmanr
from torch import Tensor
from transformers import BertConfig, BertForSequenceClassification

from activation_compression import ActivationCompressor
from activation_compression.allocation import KEPT, allocate, noise
from finetune_common.errors import ConfigurationError
from glue_harness.config.fields import RunConfig
from glue_harness.hardware import hardware, versions
from glue_harness.report.aggregate import model_name
from glue_harness.run.assembly import create
from glue_harness.run.plan import Data
from glue_harness.run.records import write_report

HERE = Path(__file__).parent
PROBES, BITS = 4, 4


class Rounded:
    """A model, a batch, the plain gradient, and what rounding makes of it."""

    def __init__(self, model: Any, batch: Mapping[str, Tensor], level: str, draws: int) -> None:
        self.model, self.batch, self.draws = model.train(), dict(batch), draws
        self.exact = gradient(self.model, self.batch, ActivationCompressor(self.model, "L0"))
        self.whole = float(self.exact.square().sum())
        compressor = ActivationCompressor(self.model, level)
        compressor.adapt(lambda: self.model(**self.batch).loss, PROBES)
        self.average = compressor.level.bits
        [self.measurement] = compressor.log

    def squared_error(self, widths: Mapping[str, int]) -> float:
        """Return ‖ĝ - g‖² / ‖g‖² with these widths, the mean of a few draws."""
        compressor = ActivationCompressor(self.model, "L1")
        compressor.widths = dict(widths)
        return fmean(
            float((gradient(self.model, self.batch, compressor) - self.exact).square().sum()) / self.whole
            for _ in range(self.draws)
        )

    def foretold(self, widths: Mapping[str, int]) -> float:
        """Return what the first order says: Σ c_l S(b_l) / ‖g‖²."""
        sensitivities = self.measurement["sensitivities"]
        return sum(c * noise(widths[key]) for key, c in sensitivities.items()) / self.whole


def sensitivities(draws: int) -> dict[str, Any]:
    """Compare each tensor's foretold squared error with the one of rounding it alone."""
    torch.manual_seed(0)
    shape = {**SHAPE, "num_hidden_layers": 2}
    model = BertForSequenceClassification(BertConfig(vocab_size=VOCABULARY, **shape))
    tokens = torch.randint(VOCABULARY, (BATCH, LENGTH))
    rounded = Rounded(model, {"input_ids": tokens, "labels": torch.arange(BATCH) % 2}, "L2", draws)
    tensors = {}
    for key in rounded.measurement["sensitivities"]:
        alone = {other: BITS if other == key else KEPT for other in rounded.measurement["elements"]}
        tensors[key] = {"foretold": rounded.foretold(alone), "measured": rounded.squared_error(alone)}
    columns = [[row[name] for row in tensors.values()] for name in ("foretold", "measured")]
    return {"tensors": tensors, "rank_correlation": float(spearmanr(*columns).statistic)}


def allocations(options: argparse.Namespace) -> dict[str, Any]:
    """Compare the errors of allocations, foretold and measured, of a pre-trained model."""
    config = RunConfig(
        task=options.task,
        model=options.model,
        data_dir=options.data_dir,
        output_dir="none",
        max_length=options.max_length,
        seed=0,
    )
    run = create(config)
    data = Data.load(config, run.tokenizer)
    rows = [list(range(options.rows))]
    [batch] = data.loader("train", rows)
    rounded = Rounded(run.model, batch, "L2.2", options.draws)
    measurement, average = rounded.measurement, rounded.average
    measured = measurement["sensitivities"], measurement["elements"], average
    ways = {
        "optimum of the first order": allocate(*measured),
        "the same, 2 bits at least where not linear": allocate(*measured, measurement["least"]),
        "2 bits for all": dict.fromkeys(measurement["elements"], int(average)),
    }
    return {
        "average_bits": average,
        "ways": {
            name: {
                "foretold": math.sqrt(rounded.foretold(widths)),
                "measured": math.sqrt(rounded.squared_error(widths)),
                "chosen": widths == measurement["widths"],
            }
            for name, widths in ways.items()
        },
    }


def _ratios(tensors: Mapping[str, Mapping[str, float]], norms: bool) -> str:
    """Return the least and the largest ratio of foretold to measured, of normalisations or of all others."""
    chosen = [row for key, row in tensors.items() if (":layer_norm:" in key) == norms]
    ratios = sorted(row["foretold"] / row["measured"] for row in chosen)
    return f"{ratios[0]:.2f} to {ratios[-1]:.2f}"


def table(report: dict[str, Any]) -> str:
    """Return both comparisons as markdown."""
    comparison, ways = report["sensitivities"], report["allocations"]["ways"]
    tensors = comparison["tensors"]
    lines = ["| 2 bits on average | error foretold | error measured | |", "| --- | ---: | ---: | --- |"]
    for name, row in ways.items():
        chosen = "taken" if row["chosen"] else ""
        lines.append(f"| {name} | {row['foretold']:.2f} | {row['measured']:,.2f} | {chosen} |")
    settings = report["settings"]
    return "\n".join(lines) + (
        f"\n\nErrors relative to the gradient's norm: {settings['model']}, {settings['rows']} rows of "
        f"{settings['task']}. In a BERT of 2 layers each of {len(tensors)} tensors was rounded alone to "
        f"{BITS} bits: foretold / measured squared error is {_ratios(tensors, False)}, for inputs of "
        f"normalisations {_ratios(tensors, True)}; rank correlation {comparison['rank_correlation']:.3f} "
        f"({PROBES} probes; means of {settings['draws']} draws).\n"
    )


def main() -> None:
    as_written = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=as_written)
    parser.add_argument("--task", default="sst2")
    parser.add_argument("--model", default=os.environ.get("MINILM_DIR"), help="name or folder (MINILM_DIR)")
    parser.add_argument("--data-dir", default=os.environ.get("GLUE_DATA_DIR"))
    parser.add_argument("--max-length", type=int, default=64)
    parser.add_argument("--rows", type=int, default=32)
    parser.add_argument("--draws", type=int, default=8, help="gradients behind a measured error (8)")
    parser.add_argument("--output-dir", type=Path, default=HERE / "results" / "precision")
    options = parser.parse_args()
    if options.model is None:
        parser.error("no model: give --model NAME or MINILM_DIR=FOLDER")
    torch.set_flush_denormal(True)
    try:
        measured = allocations(options)
    except ConfigurationError as error:
        parser.error(str(error))
    report = {
        "sensitivities": sensitivities(options.draws),
        "allocations": measured,
        "settings": {
            "model": model_name(options.model),
            **{key: getattr(options, key) for key in ("task", "max_length", "rows", "draws")},
        },
        "hardware": hardware(torch.device("cpu")),
        "versions": versions(),
    }
    write_report(options.output_dir, report, table(report))


if __name__ == "__main__":
    main()

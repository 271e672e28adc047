"""Pre-trained weights: bytes and error of one gradient at each level, the yardstick of changes in rounding.

Random weights have no outliers, real ones do: some features of the residual stream are tens of times as large
as others. The batch is the first rows of MRPC, in training mode; dropout is the same in every draw. MPNet is
put together by base_encoder.py.

    python benchmarks/gact/real_weights.py --models $MINILM_DIR models/mpnet --output-dir DIR
"""

from __future__ import annotations

import argparse
import os
from functools import cache
from pathlib import Path
from typing import Any

import torch
from gradient_error import gradient
from rows import measured
from torch import Tensor, nn

from activation_compression import ActivationCompressor
from glue_harness.config.fields import RunConfig
from glue_harness.run.assembly import create
from glue_harness.run.plan import Data

WAYS: dict[str, dict[str, Any]] = {
    "L1, as published": {"level": "L1", "derive": False},
    **{level: {"level": level} for level in ("lossless", "L1.1", "L1", "L2", "L2.1", "L1.2", "L2.2")},
}


@cache
def prepared(folder: str, task: str, data_dir: str | None, max_length: int, rows: int) -> Any:
    """Return a pre-trained model, a batch of the first rows, and the plain gradient."""
    config = RunConfig(
        task=task, model=folder, data_dir=data_dir, output_dir="none", max_length=max_length, seed=0
    )
    run = create(config)
    model: nn.Module = run.model.train()
    [batch] = Data.load(config, run.tokenizer).loader("train", [list(range(rows))])
    return model, batch, gradient(model, batch, ActivationCompressor(model, "L0"))


def measure(way: str, draws: int, model: nn.Module, batch: dict[str, Any], exact: Tensor) -> dict[str, Any]:
    """Return the numbers of a way of storing."""
    compressor = ActivationCompressor(model, **WAYS[way])
    if compressor.level.automatic:
        compressor.adapt(lambda: model(**batch).loss)
    gradients = torch.stack([gradient(model, batch, compressor) for _ in range(draws)])
    errors = (gradients - exact).norm(dim=1) / exact.norm()
    return {
        "ratio": compressor.stats.ratio,
        "error": float(errors.square().mean().sqrt()),
        "error_of_mean": float((gradients.mean(0) - exact).norm() / exact.norm()),
    }


def table(report: dict[str, Any]) -> str:
    """Return the rows as markdown."""
    lines = [
        f"| model | level | fewer bytes | error of one gradient | of the mean of {report['draws']} |",
        "| --- | --- | ---: | ---: | ---: |",
    ]
    lines += [
        f"| {row['model']} | {row['way']} | {row['ratio']:.1f}x | {row['error']:.3f} "
        f"| {row['error_of_mean']:.3f} |"
        for row in report["rows"]
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--task", default="mrpc")
    parser.add_argument("--models", nargs="+", default=[os.environ.get("MINILM_DIR")], help="folders")
    parser.add_argument("--names", nargs="+", default=["MiniLM", "MPNet"], help="what the table calls them")
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS), help="rows a model")
    parser.add_argument("--data-dir", default=os.environ.get("GLUE_DATA_DIR"))
    parser.add_argument("--rows", type=int, default=8)
    parser.add_argument("--max-length", type=int, default=96)
    parser.add_argument("--draws", type=int, default=4, help="gradients a row (4)")
    parser.add_argument("--output-dir", type=Path, required=True)
    options = parser.parse_args()
    if None in options.models:
        parser.error("no model: give --models FOLDER... or MINILM_DIR=FOLDER")
    torch.set_flush_denormal(True)
    folders = dict(zip(options.names, options.models, strict=False))
    common = {key: getattr(options, key) for key in ("task", "draws", "max_length")} | {"batch": options.rows}
    row = (options.task, options.data_dir, options.max_length, options.rows)
    measured(
        options.output_dir,
        common,
        ({"model": name, "way": way} for name in folders for way in options.ways),
        lambda one: measure(one["way"], options.draws, *prepared(folders[one["model"]], *row)),
        table,
    )


if __name__ == "__main__":
    main()

"""Pre-trained weights: bytes and error of one gradient at each level, the yardstick of changes in rounding.

Random weights have no outliers, real ones do: some features of the residual stream are tens of times as large
as others. The batch is the first rows of MRPC, in training mode; dropout is the same in every draw. MPNet is
put together by base_encoder.py.

    python benchmarks/gact/real_weights.py --models $MINILM_DIR models/mpnet
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Any

import torch
from gradient_error import gradient
from torch import nn

from activation_compression import ActivationCompressor
from glue_harness.config.fields import RunConfig
from glue_harness.hardware import hardware, versions
from glue_harness.run.assembly import create
from glue_harness.run.plan import Data
from glue_harness.run.records import write_report

HERE = Path(__file__).parent
WAYS: dict[str, dict[str, Any]] = {
    "L1, as published": {"level": "L1", "derive": False},
    **{level: {"level": level} for level in ("lossless", "L1.1", "L1", "L2", "L2.1", "L1.2", "L2.2")},
}


def measure(name: str, folder: str, options: argparse.Namespace) -> list[dict[str, Any]]:
    """Return a row for each way of storing."""
    config = RunConfig(
        task=options.task,
        model=folder,
        data_dir=options.data_dir,
        output_dir="none",
        max_length=options.max_length,
        seed=0,
    )
    run = create(config)
    model: nn.Module = run.model.train()
    [batch] = Data.load(config, run.tokenizer).loader("train", [list(range(options.rows))])
    exact = gradient(model, batch, ActivationCompressor(model, "L0"))
    rows = []
    for way in options.ways:
        settings = WAYS[way]
        compressor = ActivationCompressor(model, **settings)
        if compressor.level.automatic:
            compressor.adapt(lambda: model(**batch).loss)
        found = [gradient(model, batch, compressor) for _ in range(options.draws)]
        errors = torch.stack([(g - exact).norm() / exact.norm() for g in found])
        mean = torch.stack(found).mean(0)
        rows.append(
            {
                "model": name,
                "way": way,
                "ratio": compressor.stats.ratio,
                "error": float(errors.square().mean().sqrt()),
                "error_of_mean": float((mean - exact).norm() / exact.norm()),
            }
        )
        print(f"{name}, {way}: error {rows[-1]['error']:.3f} at {rows[-1]['ratio']:.1f}x", flush=True)
    return rows


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
    parser.add_argument("--output-dir", type=Path, default=HERE / "results" / "real-weights")
    options = parser.parse_args()
    if None in options.models:
        parser.error("no model: give --models FOLDER... or MINILM_DIR=FOLDER")
    torch.set_flush_denormal(True)
    rows = [
        row
        for name, folder in zip(options.names, options.models, strict=False)
        for row in measure(name, folder, options)
    ]
    report = {
        "rows": rows,
        **{key: getattr(options, key) for key in ("task", "draws", "max_length")},
        "batch": options.rows,
        "hardware": hardware(torch.device("cpu")),
        "versions": versions(),
    }
    write_report(options.output_dir, report, table(report))


if __name__ == "__main__":
    main()

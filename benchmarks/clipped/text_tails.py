"""Text: the tails of the gradient noise of a task, at the pre-trained weights or those of a finished run.

    python benchmarks/clipped/text_tails.py --task mrpc --max-length 96
    python benchmarks/clipped/text_tails.py --task sst2 --max-length 64 --run runs/sst2/…

The model folder and the data are those of MINILM_DIR and GLUE_DATA_DIR unless told. n norms take
n + ⌈rows / batch⌉ forward and backward passes. Samples are added to `result.json`; `table.md` and `tails.png`
are drawn from it.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from pathlib import Path

import tails
import torch

from clipped_adaptive.heavy_tails import sample_gradient_noise
from finetune_common.errors import ConfigurationError
from glue_harness.config.fields import RunConfig
from glue_harness.hardware import hardware, versions
from glue_harness.report.aggregate import model_name
from glue_harness.run.assembly import create, open_run
from glue_harness.run.plan import Data
from glue_harness.run.records import write_report

HERE = Path(__file__).parent


class Shuffled:
    """A new order of full mini-batches at every pass; the short last one included."""

    def __init__(self, data: Data, size: int):
        self.data, self.size, self.passes = data, size, 0

    def __iter__(self):
        generator = torch.Generator().manual_seed(self.passes)
        self.passes += 1
        rows = torch.randperm(len(self.data.datasets["train"]), generator=generator)
        batches = [part.tolist() for part in rows.split(self.size)]
        return iter(self.data.loader("train", batches))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--task", default="mrpc")
    parser.add_argument("--model", default=os.environ.get("MINILM_DIR"), help="name or folder (MINILM_DIR)")
    parser.add_argument("--data-dir", default=os.environ.get("GLUE_DATA_DIR"))
    parser.add_argument("--max-length", type=int, default=96)
    parser.add_argument("--max-train-samples", type=int)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--n", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=41, help="of the classification head")
    parser.add_argument(
        "--run", type=Path, help="folder of a finished run: its weights instead of the model's"
    )
    parser.add_argument("--output-dir", type=Path, default=HERE / "results" / "text-tails")
    options = parser.parse_args()
    if options.model is None:
        parser.error("no model: give --model NAME or MINILM_DIR=FOLDER")
    torch.set_flush_denormal(True)
    config = RunConfig(
        task=options.task,
        model=options.model,
        data_dir=options.data_dir,
        output_dir=str(options.output_dir),
        max_length=options.max_length,
        max_train_samples=options.max_train_samples,
        seed=options.seed,
    )
    try:
        run = open_run(options.run) if options.run else create(config)
        data = Data.load(config, run.tokenizer)
    except ConfigurationError as error:
        parser.error(str(error))
    began = time.perf_counter()
    norms = sample_gradient_noise(
        run.model.eval(),
        lambda model, batch: model(**batch).loss,
        Shuffled(data, options.batch_size),
        options.n,
    )
    point = "after training" if options.run else "at the start"
    sample = tails.described(norms) | {
        "settings": {
            "model": model_name(config.model),
            **{
                key: getattr(options, key)
                for key in ("max_length", "max_train_samples", "batch_size", "seed")
            },
        },
        "seconds": time.perf_counter() - began,
        "versions": versions(),
        "hardware": hardware(torch.device("cpu")),
    }
    file = options.output_dir / "result.json"
    samples = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    samples[f"{options.task}, {point}"] = sample
    write_report(options.output_dir, samples, tails.table(samples))
    tails.draw(samples, options.output_dir / "tails.png")


if __name__ == "__main__":
    main()

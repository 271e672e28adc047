"""Throughput of the harness against transformers.Trainer on the same job, and against padding to 128.

All train the same encoder on the same batches of CoLA with torch's fused AdamW, clipping at norm 1, the same
decay groups and a linear schedule, logging every ten steps. They take turns in one process, in another order
each round, so that a slow minute of the machine hits all. What is compared is the median over the rounds;
the time is that of the steps, without loading, evaluation and checkpoints (for Trainer from the first step's
begin to the last one's end).

    python benchmarks/speed/harness.py --data-dir GLUE --model MODEL_FOLDER --output speed.json
"""

from __future__ import annotations

import argparse
import itertools
import tempfile
import time
import warnings
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

import torch
import transformers
from measuring import in_turns, write

from finetune_common.data import Collator, epoch_batches
from finetune_common.tasks import get_task
from glue_harness import RunConfig, parse_mapping
from glue_harness.hardware import hardware, versions
from glue_harness.report.aggregate import model_name
from glue_harness.run.assembly import create
from glue_harness.run.evaluation import Evaluation
from glue_harness.run.loop import Training
from glue_harness.run.models import load_tokenizer
from glue_harness.run.plan import Data
from glue_harness.run.processes import join
from glue_harness.run.progress import Progress
from glue_harness.run.records import RunFolder

TASK = get_task("cola")
LONG = 128


class StepsOnly(Training):
    """A training that neither evaluates nor saves."""

    def _after_step(self, loss: torch.Tensor, rate: float, observed: Mapping[str, Any]) -> None:
        if self.step % self.config.log_every == 0:
            self._log(loss, rate, observed)
        self.progress.advance(self.step, self.examples)

    def _evaluate(self) -> Evaluation:
        return Evaluation({TASK.primary: 0.0}, {})


class StepClock(transformers.TrainerCallback):
    """Seconds from the first step's begin to the last one's end."""

    began = ended = 0.0

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Note the first."""
        self.began = self.began or time.perf_counter()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Note the newest."""
        self.ended = time.perf_counter()


class Job:
    """Fine-tuning on CoLA for some steps, and the ways to do it.

    Args:
        options: The command line.
        folder: Receives what the ways write.
    """

    def __init__(self, options: argparse.Namespace, folder: Path) -> None:
        self.options, self.folder = options, folder
        self.tokenizer = load_tokenizer(options.model)
        self.config = parse_mapping(
            {
                "task": TASK.name,
                "model": options.model,
                "data_dir": options.data_dir,
                "output_dir": str(folder / "run"),
                "batch_size": options.batch_size,
                "max_steps": options.steps,
                "max_length": LONG,
                "overwrite": True,
            }
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the first read builds a cache
            self.data = Data.load(self.config, self.tokenizer)

    def _harness(self, data: Data, config: RunConfig) -> float:
        processes = join(config)
        with RunFolder(config) as folder, Progress(config) as progress:
            made = create(config, task=TASK, tokenizer=self.tokenizer)
            training = StepsOnly(made, data, processes, folder, progress)
            progress.start(training)
            began = time.perf_counter()
            training.train()
            return time.perf_counter() - began

    def harness(self) -> float:
        """Padded to the longest row of each batch, as the harness does."""
        return self._harness(self.data, self.config)

    def harness_compiled(self) -> float:
        """Compiled; the first round pays for it, and is not counted."""
        return self._harness(self.data, replace(self.config, compile=True))

    def harness_padded(self) -> float:
        """Every batch padded to 128."""
        collator = Collator(self.tokenizer, TASK, pad_to_multiple_of=LONG)
        return self._harness(replace(self.data, collator=collator), self.config)

    def trainer(self) -> float:
        """The Trainer with its padding collator, on the harness's batches."""
        config, rows = self.config, self.data.datasets["train"]
        order: list[int] = []
        for epoch in itertools.count():
            batches = epoch_batches(
                self.data.lengths["train"], config.batch_size, seed=config.seed, epoch=epoch
            )
            order += [row for batch in batches if len(batch) == config.batch_size for row in batch]
            if len(order) >= self.options.steps * config.batch_size:
                break
        arguments = transformers.TrainingArguments(
            output_dir=str(self.folder / "trainer"),
            per_device_train_batch_size=config.batch_size,
            max_steps=self.options.steps,
            learning_rate=config.optimizer["lr"],
            weight_decay=config.weight_decay,
            max_grad_norm=config.max_grad_norm,
            optim="adamw_torch_fused",
            lr_scheduler_type=config.schedule,
            train_sampling_strategy="sequential",
            logging_steps=config.log_every,
            save_strategy="no",
            report_to=[],
            disable_tqdm=True,
            dataloader_pin_memory=torch.cuda.is_available(),
            seed=config.seed,
        )
        clock = StepClock()
        trainer = transformers.Trainer(
            model=create(config, task=TASK, tokenizer=self.tokenizer).model,
            args=arguments,
            train_dataset=rows.select(order),
            data_collator=transformers.DataCollatorWithPadding(self.tokenizer),
            callbacks=[clock],
        )
        trainer.remove_callback(transformers.PrinterCallback)
        trainer.train()
        return clock.ended - clock.began


def table(report: dict[str, Any]) -> str:
    """Return the markdown table."""
    how, machine = report["settings"], report["hardware"]
    lines = ["| way | examples/s | ms a step | harness is faster by |", "| --- | ---: | ---: | ---: |"]
    for name, ratio in report["harness_faster_by"].items():
        speed = report["examples_per_second"][name]
        milliseconds = 1000 * how["batch_size"] / speed
        lines.append(f"| {name} | {speed:.0f} | {milliseconds:.0f} | {ratio:.2f}x |")
    return "\n".join(lines) + (
        f"\n\n{how['task']}, {how['model']}, batch {how['batch_size']}; medians of {how['repeats']} rounds "
        f"of {how['steps']} steps. {machine['processor']}, {machine['threads']} threads, "
        f"torch {report['versions']['torch']}, transformers {report['versions']['transformers']}.\n"
    )


def main() -> None:
    """Measure, print a table, and write the numbers where asked."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--data-dir", required=True, help="folder in the official GLUE layout")
    parser.add_argument("--model", required=True, help="model folder or hub name")
    parser.add_argument("--steps", type=int, default=20, help="steps of a round (20)")
    parser.add_argument("--repeats", type=int, default=3, help="rounds (3)")
    parser.add_argument("--batch-size", type=int, default=32, help="rows of a batch (32)")
    parser.add_argument("--compile", action="store_true", help="time the compiled model too (minutes more)")
    parser.add_argument("--output", type=Path, help="JSON file to write")
    options = parser.parse_args()

    with tempfile.TemporaryDirectory() as folder:
        job = Job(options, Path(folder))
        ways = {
            "harness": job.harness,
            "transformers.Trainer": job.trainer,
            "harness, padded to 128": job.harness_padded,
        }
        if options.compile:
            ways["harness, compiled"] = job.harness_compiled
            job.harness_compiled()
        seconds = in_turns(ways, options.repeats)

    rows = options.steps * options.batch_size
    medians = {name: median(values) for name, values in seconds.items()}
    described = {name: getattr(options, name) for name in ("steps", "repeats", "batch_size")}
    report = {
        "settings": {**described, "model": model_name(options.model), "task": TASK.name},
        "seconds": seconds,
        "examples_per_second": {name: rows / value for name, value in medians.items()},
        "harness_faster_by": {name: value / medians["harness"] for name, value in medians.items()},
        "versions": versions(),
        "hardware": hardware(torch.device("cuda" if torch.cuda.is_available() else "cpu")),
    }
    write(report, table(report), options.output)


if __name__ == "__main__":
    main()

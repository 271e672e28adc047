"""Predicting many short rows: the harness's predictor against transformers' pipeline with batches of 32.

Both have one model and one tokenizer in one process, get the same rows, and take turns; compared is the
median of the rounds. The rows are made up: from 3 words on, 11 on average, 40 at most.

    python benchmarks/speed/predict.py --model MODEL_FOLDER --output predict.json
"""

from __future__ import annotations

import argparse
import os
import random
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch
from measuring import in_turns, write
from transformers import pipeline

from finetune_common.demo import demo_rows
from glue_harness import parse_mapping
from glue_harness.hardware import hardware, versions
from glue_harness.report.aggregate import model_name
from glue_harness.run.assembly import create

MAX_LENGTH = 128


def made_up(count: int) -> list[str]:
    """Return texts whose lengths fall off as those of short messages do."""
    drawn = random.Random(0)
    sentences = demo_rows("demo-acceptability", "train")["sentence"]
    words = sorted({word for sentence in sentences for word in sentence.split()})
    lengths = (min(40, 3 + int(drawn.expovariate(0.12))) for _ in range(count))
    return [" ".join(drawn.choices(words, k=length)) for length in lengths]


def timed(do: Callable[[], Any]) -> float:
    """Return the seconds that something takes."""
    began = time.perf_counter()
    do()
    return time.perf_counter() - began


def table(report: dict[str, Any]) -> str:
    """Return the markdown table."""
    how, machine = report["settings"], report["hardware"]
    lines = ["| way | rows/s | glue-harness is faster by |", "| --- | ---: | ---: |"]
    for name, ratio in report["faster_by"].items():
        lines.append(f"| {name} | {report['rows_per_second'][name]:.0f} | {ratio:.2f}x |")
    return "\n".join(lines) + (
        f"\n\n{how['rows']:,} rows of 3 to 40 words, {how['model']}; medians of {how['repeats']} rounds. "
        f"Largest difference of a score: {report['largest_difference']:.1e}. {machine['processor']}, "
        f"{machine['threads']} threads, torch {report['versions']['torch']}, transformers "
        f"{report['versions']['transformers']}.\n"
    )


def main() -> None:
    """Measure, print a table, and write the numbers where asked."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--model", default=os.environ.get("MINILM_DIR"), help="name or folder (MINILM_DIR)")
    parser.add_argument("--rows", type=int, default=10_000, help="rows of a round (10,000)")
    parser.add_argument("--repeats", type=int, default=3, help="rounds (3)")
    parser.add_argument("--output", type=Path, help="JSON file to write")
    options = parser.parse_args()
    if options.model is None:
        parser.error("no model: give --model NAME or MINILM_DIR=FOLDER")

    settings = {"task": "demo-acceptability", "model": options.model, "max_length": MAX_LENGTH}
    with tempfile.TemporaryDirectory() as folder:
        run = create(parse_mapping({**settings, "output_dir": folder}))
    run.model.eval()
    device = 0 if torch.cuda.is_available() else -1
    model: Any = run.model
    classify: Any = pipeline(
        "text-classification", model=model, tokenizer=run.tokenizer, device=device, top_k=None
    )
    ask = partial(classify, batch_size=32, truncation=True, max_length=MAX_LENGTH)
    texts = made_up(options.rows)
    first = texts[:200]
    scores = [{one["label"]: one["score"] for one in row} for row in ask(first)]
    pairs = zip(run.predict(first), scores, strict=True)
    differences = [
        abs(prediction["scores"][name] - score) for prediction, row in pairs for name, score in row.items()
    ]
    ways = {
        "glue-harness": lambda: timed(lambda: run.predict(texts)),
        "pipeline": lambda: timed(lambda: ask(texts)),
    }
    seconds = in_turns(ways, options.repeats)

    medians = {name: median(values) for name, values in seconds.items()}
    report = {
        "settings": {
            "model": model_name(options.model),
            "rows": options.rows,
            "repeats": options.repeats,
        },
        "seconds": seconds,
        "rows_per_second": {name: options.rows / value for name, value in medians.items()},
        "faster_by": {name: value / medians["glue-harness"] for name, value in medians.items()},
        "largest_difference": max(differences),
        "versions": versions(),
        "hardware": hardware(torch.device("cuda" if torch.cuda.is_available() else "cpu")),
    }
    write(report, table(report), options.output)


if __name__ == "__main__":
    main()

"""Time of a training step, and bytes saved for backward, of adapted models against full fine-tuning and peft.

The model has MiniLM's shape (6 layers, hidden size 384) and random weights. All ways train on the same batch
in one process, taking turns in another order each round, so that a slow minute of the machine hits all;
compared are the medians. A step is forward, backward and torch's AdamW on what trains.

    python benchmarks/speed/adaptations.py --output benchmarks/speed/results/adaptations.json
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import peft
import torch
import transformers
from measuring import add_device, begin, in_turns, peft_circumstances, timed, write
from torch import nn

from finetune_common.measure import SavedTensorMeter
from parameter_efficient import (
    BitFit,
    BottleneckAdapter,
    FFNTuning,
    HeadOnly,
    LoRA,
    PrefixTuning,
    adapt,
    trainable_parameters,
)

LAYERS, BATCH, LENGTH = 6, 8, 128
FULL, HEAD, PEFT = "full", "head only", "peft's LoRA, rank 8, q and v"


def model() -> transformers.PreTrainedModel:
    torch.manual_seed(0)
    sizes = {"hidden_size": 384, "num_attention_heads": 12, "intermediate_size": 1536}
    return transformers.BertForSequenceClassification(
        transformers.BertConfig(num_hidden_layers=LAYERS, **sizes)
    ).train()


def peft_model() -> nn.Module:
    config = peft.LoraConfig(
        task_type="SEQ_CLS", r=8, lora_alpha=8, target_modules=["query", "value"], lora_dropout=0.0
    )
    return peft.get_peft_model(model(), config)  # type: ignore[return-value]


@dataclass(frozen=True)
class Way:
    """A way to train, and what its time is compared with."""

    name: str
    build: Callable[[], nn.Module]
    against: str = FULL
    target: str = ""


def adapted(config: Any) -> Callable[[], nn.Module]:
    return lambda: adapt(model(), config)


WAYS = [
    Way(FULL, model, ""),
    Way(HEAD, adapted(HeadOnly())),
    Way("adapter in layer 5 (the last)", adapted(BottleneckAdapter(layers=[5], bottleneck=1))),
    Way("adapter in layer 0", adapted(BottleneckAdapter(layers=[0], bottleneck=1))),
    Way("adapters in all layers", adapted(BottleneckAdapter(bottleneck=16))),
    Way("prefix in layer 5", adapted(PrefixTuning(layers=[5]))),
    Way("prefixes in all layers", adapted(PrefixTuning())),
    Way("biases of all layers", adapted(BitFit())),
    Way("feed-forward block of layer 5", adapted(FFNTuning(layers=[5]))),
    Way(PEFT, peft_model),
    Way("LoRA, rank 8, q and v", adapted(LoRA()), PEFT, "≤ 1.05x"),
]


def batch() -> dict[str, torch.Tensor]:
    generator = torch.Generator(torch.get_default_device()).manual_seed(1)
    ids = torch.randint(1000, 30000, (BATCH, LENGTH), generator=generator)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": torch.arange(BATCH) % 2}


class Trainer:
    """One model and its optimizer."""

    def __init__(self, way: Way) -> None:
        self.model = way.build()
        self.inputs = batch()
        trained = [p for p in self.model.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(trained, lr=1e-5, fused=True)

    def step(self) -> None:
        """Make one training step."""
        self.model(**self.inputs).loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()

    def saved_bytes(self) -> int:
        """Return what a forward pass keeps for backward."""
        with SavedTensorMeter(self.model) as meter:
            self.model(**self.inputs)
        return meter.bytes


def table(report: dict[str, Any]) -> str:
    """Return the markdown table of a report."""
    lines = [
        "| way | parameters that train | ms a step | saved for backward | ratio | target |",
        "| --- | ---: | ---: | ---: | --- | --- |",
    ]
    for name, row in report["ways"].items():
        ratio = f"{row['ratio']:.2f}x {row['against']}" if row["against"] else ""
        lines.append(
            f"| {name} | {row['trainable']:,} | {1000 * row['median_seconds']:.0f} | "
            f"{row['saved_bytes'] / 1e6:.1f} MB | {ratio} | {row['target']} |"
        )
    machine, versions = report["hardware"], report["versions"]
    lines += [
        "",
        f"{LAYERS} layers, hidden size 384, {BATCH} rows of {LENGTH} tokens, float32; medians of "
        f"{report['repeats']} rounds in one process; {machine['processor']}, {machine['threads']} threads, "
        f"torch {versions['torch']}, transformers {versions['transformers']}, peft {versions['peft']}.",
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    as_written = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=as_written)
    add_device(parser)
    parser.add_argument("--repeats", type=int, default=15, help="rounds (15)")
    parser.add_argument("--output", type=Path, help="JSON file to write, with the table (.md) beside it")
    options = parser.parse_args()
    begin(options.device)

    trainers = {way.name: Trainer(way) for way in WAYS}
    saved = {name: trainer.saved_bytes() for name, trainer in trainers.items()}
    seconds = in_turns(
        {name: partial(timed, trainer.step) for name, trainer in trainers.items()}, options.repeats
    )
    medians = {name: median(values) for name, values in seconds.items()}
    report = {
        "ways": {
            way.name: {
                "trainable": trainable_parameters(trainers[way.name].model).trainable,
                "saved_bytes": saved[way.name],
                "median_seconds": medians[way.name],
                "seconds": seconds[way.name],
                "against": way.against,
                "ratio": medians[way.name] / medians[way.against] if way.against else None,
                "target": way.target,
            }
            for way in WAYS
        },
        "repeats": options.repeats,
        **peft_circumstances(),
    }
    write(report, table(report), options.output)


if __name__ == "__main__":
    main()

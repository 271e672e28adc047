"""LoRA on a decoder against peft: same logits, time of a step, bytes saved; and `adapt` at the size of 7B.

Both models have the same weights, LoRA's included, train on the same batch in one process and take turns in
another order each round; compared are the medians. The model of 7B parameters has Llama 2's shape on the meta
device, so that what is timed is finding layers and roles and putting LoRA there.

    python benchmarks/speed/low_rank.py --output benchmarks/speed/results/low_rank.json
"""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import peft
import torch
import transformers
from measuring import in_turns, peft_circumstances, timed, write
from torch import nn

from finetune_common.measure import SavedTensorMeter
from parameter_efficient import LoRA, adapt, trainable_parameters

BATCH, LENGTH, RANK = 4, 128, 8
OURS, PEFT = "here", "peft"
SIZES = {"hidden_size": 512, "num_attention_heads": 8, "num_key_value_heads": 4, "intermediate_size": 1408}
SIZES_7B = {"hidden_size": 4096, "num_attention_heads": 32, "intermediate_size": 11008}


def base() -> nn.Module:
    torch.manual_seed(0)
    config = transformers.LlamaConfig(vocab_size=8000, num_hidden_layers=6, **SIZES)  # type: ignore[arg-type]
    return transformers.LlamaForCausalLM(config).train()


def peft_model() -> nn.Module:
    config = peft.LoraConfig(
        task_type="CAUSAL_LM", r=RANK, lora_alpha=RANK, target_modules=["q_proj", "v_proj"]
    )
    return peft.get_peft_model(base(), config)  # type: ignore[arg-type,return-value]


def with_the_same_values(of_peft: nn.Module) -> nn.Module:
    """Return our model with peft's A, and both with the same B, which is not 0."""
    model = adapt(base(), LoRA(rank=RANK))
    parameters = dict(model.named_parameters())
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in of_peft.named_parameters():
            if "lora_B" in name:
                parameter.copy_(0.01 * torch.randn(parameter.shape, generator=generator))
            if "lora" in name:
                parameters[name.removeprefix("base_model.model.")].copy_(parameter)
    return model


class Trainer:
    """One model and its optimizer."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        ids = torch.randint(8000, (BATCH, LENGTH), generator=torch.Generator().manual_seed(2))
        self.inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids}
        trained = [p for p in model.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(trained, lr=1e-5, fused=True)

    def step(self) -> None:
        """Make one training step."""
        self.model(**self.inputs).loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()

    def logits(self) -> torch.Tensor:
        """Return what the model says."""
        with torch.no_grad():
            return self.model(**self.inputs).logits

    def saved_bytes(self) -> int:
        """Return what a forward pass keeps for backward."""
        with SavedTensorMeter(self.model) as meter:
            self.model(**self.inputs)
        return meter.bytes


def adapt_7b() -> float:
    """Return the seconds that `adapt` takes on 7B parameters without values."""
    with torch.device("meta"):
        model = transformers.LlamaForCausalLM(transformers.LlamaConfig(num_hidden_layers=32, **SIZES_7B))  # type: ignore[arg-type]
    return timed(lambda: adapt(model, LoRA(rank=RANK)))


def table(report: dict[str, Any]) -> str:
    """Return the markdown table of a report."""
    rows, machine, versions = report["ways"], report["hardware"], report["versions"]
    lines = [
        "| LoRA | parameters that train | ms a step | saved for backward |",
        "| --- | ---: | ---: | ---: |",
    ]
    for name, row in rows.items():
        lines.append(
            f"| {name} | {row['trainable']:,} | {1000 * row['median_seconds']:.0f} | "
            f"{row['saved_bytes'] / 1e6:.1f} MB |"
        )
    return "\n".join(
        [
            *lines,
            "",
            f"Here over peft: {report['ratio']:.3f} (target ≤ 1.03). Largest difference of logits: "
            f"{report['largest_difference']:.1g}. `adapt` on Llama 2's 7B shape, on the meta device: "
            f"{report['adapt']['Llama 2 7B, meta']['seconds']:.2f} s (target ≤ 3 s).",
            "",
            f"6 layers, hidden size 512, {BATCH} rows of {LENGTH} tokens, rank {RANK} on q and v, float32; "
            f"medians of {report['repeats']} rounds in one process; {machine['processor']}, "
            f"{machine['threads']} threads, torch {versions['torch']}, transformers "
            f"{versions['transformers']}, peft {versions['peft']}.",
            "",
        ]
    )


def main() -> None:
    as_written = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=as_written)
    parser.add_argument("--repeats", type=int, default=75, help="rounds (75)")
    parser.add_argument("--output", type=Path, help="JSON file to write, with the table (.md) beside it")
    options = parser.parse_args()
    torch.set_flush_denormal(True)

    of_peft = peft_model()
    trainers = {OURS: Trainer(with_the_same_values(of_peft)), PEFT: Trainer(of_peft)}
    difference = (trainers[OURS].logits() - trainers[PEFT].logits()).abs().max().item()
    saved = {name: trainer.saved_bytes() for name, trainer in trainers.items()}
    seconds = in_turns({n: partial(timed, trainer.step) for n, trainer in trainers.items()}, options.repeats)
    medians = {name: median(values) for name, values in seconds.items()}
    report = {
        "ways": {
            name: {
                "trainable": trainable_parameters(trainer.model).trainable,
                "saved_bytes": saved[name],
                "median_seconds": medians[name],
                "seconds": seconds[name],
            }
            for name, trainer in trainers.items()
        },
        "ratio": medians[OURS] / medians[PEFT],
        "largest_difference": difference,
        "adapt": {"Llama 2 7B, meta": {"seconds": median(adapt_7b() for _ in range(3))}},
        "repeats": options.repeats,
        **peft_circumstances(),
    }
    write(report, table(report), options.output)


if __name__ == "__main__":
    main()

"""Every class of transformers that can be built tiny × every method: accepted, refused, or wrong.

What `adapt` accepts is checked from outside: one step of SGD moves all that trains and nothing else. A matrix
in a role whose own name says another one is wrong.

    python packages/parameter-efficient/tests/support_table.py [sequence causal image token question …]

Rows that `support/*.json` has already are kept: a run that was stopped goes on, and what a change concerns is
taken out of the file first.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

import torch
import transformers
import zoo
from torch import Tensor, nn

from finetune_common.errors import ConfigurationError
from parameter_efficient import (
    BitFit,
    BottleneckAdapter,
    FFNTuning,
    HeadOnly,
    LoRA,
    PrefixTuning,
    adapt,
    remove,
)
from parameter_efficient.anatomy import Anatomy
from parameter_efficient.configs import Config
from parameter_efficient.forward import outputs_of, undisturbed, working_inputs

METHODS: dict[str, Config] = {
    "head-only": HeadOnly(head="train"),
    "lora": LoRA(rank=2),
    "lora, all": LoRA(rank=2, targets=("q", "k", "v", "o")),
    "bitfit": BitFit(),
    "ffn-only": FFNTuning(),
    "adapter": BottleneckAdapter(bottleneck=2),
    "adapter, parallel, attention": BottleneckAdapter(bottleneck=2, parallel=True, position="attention"),
    "prefix": PrefixTuning(length=2),
}
NAMED = {
    "q": r"q|query|Wq|q_\w+",
    "k": r"k|key|Wk|k_\w+",
    "v": r"v|value|Wv|v_\w+",
    "o": r"o|out\w*|o_\w+|fc2|wo",
}
"""Last parts of names that say a role: a matrix in another role must not be called so."""


def contradicted(model: nn.Module) -> list[str]:
    """Names of matrices whose own name says another role than the one that was found."""
    wrong = []
    for one in Anatomy(model, "both", None).architectures:
        for layer in one.layers:
            for role in NAMED:
                for name in layer.roles.get(role, {}):
                    others = [
                        r for r in NAMED if r != role and re.fullmatch(NAMED[r], name.rpartition(".")[2])
                    ]
                    if others and not re.fullmatch(NAMED[role], name.rpartition(".")[2]):
                        wrong.append(f"{name} as {role}")
    return wrong


def _loss(model: nn.Module, inputs: dict[str, Any]) -> Tensor:
    return sum((one.float() ** 2).mean() for one in outputs_of(model, inputs))  # type: ignore[return-value]


def verdict(model: nn.Module, config: Config) -> str:
    """yes, the reason of a refusal, or what is wrong, in capitals."""
    try:
        adapt(model, config)
    except ConfigurationError as error:
        return str(error)
    except Exception as error:
        return f"WRONG: {type(error).__name__} in adapt"
    try:
        trained = {n: p for n, p in model.named_parameters() if p.requires_grad}
        with torch.no_grad():
            for parameter in trained.values():
                parameter += 0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1))
        before = {n: p.detach().clone() for n, p in model.named_parameters()}
        inputs = working_inputs(model)
        with undisturbed(model), torch.enable_grad():
            loss = _loss(model, inputs)
            loss.backward()
        torch.optim.SGD(model.parameters(), lr=1e3).step()
        moved = {n for n, p in model.named_parameters() if not torch.equal(p, before[n])}
        still = [n for n in trained if n not in moved and "expert" not in n and not n.endswith("bias")]
        if moved - trained.keys() or still:
            return f"INERT OR LOOSE: {[*(moved - trained.keys()), *still][0]}"
        return "yes"
    except Exception as error:
        return f"WRONG: {type(error).__name__} in a step"
    finally:
        model.zero_grad()
        remove(model)


def row(kind: str, cls: type[nn.Module]) -> dict[str, str] | None:
    """Verdicts of one class; nothing where it cannot be built tiny."""
    try:
        model = zoo.build(kind, cls)
    except Exception:
        return None
    verdicts = {name: verdict(model, config) for name, config in METHODS.items()}
    try:
        wrong = contradicted(model)
    except ConfigurationError:
        wrong = []
    return verdicts | ({"lora": f"WRONG: {wrong[0]}"} if wrong else {})


def markdown(task: str, rows: dict[str, dict[str, str]]) -> str:
    """The table of a task: counts, then a row a class."""
    lines = [f"## {task}: {len(rows)} classes", "", "| class | " + " | ".join(METHODS) + " |"]
    lines.append("| --- |" + " --- |" * len(METHODS))
    counts = [sum(one[name] == "yes" for one in rows.values()) for name in METHODS]
    lines.append("| **accepted** | " + " | ".join(f"**{count}**" for count in counts) + " |")
    reasons: dict[str, None] = {}
    for name, one in rows.items():
        cells = []
        for value in one.values():
            wrong = value[:5] in ("INERT", "WRONG")
            cells.append("yes" if value == "yes" else f"**{value}**" if wrong else "no")
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
        for value in one.values():
            if value != "yes":
                reasons[
                    f"- {name}: {re.sub(r'pass example=.*|give names of modules.*', '', value).strip(' ;:')}"
                ] = None
    return "\n".join([*lines, "", "Why not:", "", *reasons, ""])


TITLES = {
    "sequence": "text classification",
    "causal": "causal language models",
    "image": "image classification",
    "token": "token classification",
    "question": "question answering",
    "masked": "masked language models",
    "seq2seq": "texts from texts",
    "speech": "texts from speech",
    "audio": "audio classification",
}


def counts(tables: dict[str, dict[str, dict[str, str]]]) -> str:
    """A row a task: how many classes there are, and how many each method accepts."""
    lines = ["| classes for | all | " + " | ".join(METHODS) + " |", "| --- |" + " --- |" * (len(METHODS) + 1)]
    for task, rows in tables.items():
        accepted = [sum(one[name] == "yes" for one in rows.values()) for name in METHODS]
        lines.append(" | ".join([f"| {TITLES[task]}", str(len(rows)), *map(str, accepted)]) + " |")
    return "\n".join([*lines, ""])


def main() -> None:
    transformers.logging.set_verbosity_error()
    torch.set_num_threads(1)
    results = Path(__file__).parent / "support"
    results.mkdir(exist_ok=True)
    for task in sys.argv[1:] or list(zoo.TASKS):
        file = results / f"{task}.json"
        rows: dict[str, dict[str, str]] = json.loads(file.read_text("utf-8")) if file.exists() else {}
        for kind, cls in zoo.classes(task):
            found = rows.get(cls.__name__) or row(kind, cls)
            if found is not None:
                rows[cls.__name__] = found
                file.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
                text = f"<!-- made by {Path(__file__).name} -->\n\n" + markdown(task, rows)
                (results / f"{task}.md").write_text(text, encoding="utf-8")
    files = {task: results / f"{task}.json" for task in TITLES}
    made = {task: json.loads(file.read_text("utf-8")) for task, file in files.items() if file.exists()}
    (results / "counts.md").write_text(counts(made), encoding="utf-8")


if __name__ == "__main__":
    main()

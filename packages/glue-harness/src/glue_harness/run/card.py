"""The card of a trained model: what a person who finds it has to know, and what a hub reads."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import yaml

from finetune_common.tasks import GLUE_TASKS, Task
from glue_harness.run.records import ADAPTER

__all__ = ["card_of"]

TOLD = ("epochs", "batch_size", "accumulate", "max_length", "schedule", "warmup", "weight_decay", "precision")
"""Settings that a card shows; paths of the machine are not among them."""


def _named(model: str) -> str:
    """Return a model's name without the folders of a machine."""
    path = Path(model)
    local = path.is_absolute() or path.exists() or model.startswith((".", "~"))
    return (path.parent.name if path.name == "model" and path.parent.name else path.name) if local else model


def _front(result: Mapping[str, Any], task: Task) -> dict[str, Any]:
    """Return what a hub reads."""
    base = _named(result["model"])
    official = task.name in GLUE_TASKS and "train_file" not in result["settings"]
    scores = [{"type": name, "value": value} for name, value in result["metrics"]["last"].items()]
    data = {"type": "nyu-mll/glue", "name": "GLUE", "config": task.name, "split": task.evaluation[0]}
    kind = {"type": "text-classification"}
    tested = [{"task": kind, "dataset": data, "metrics": scores}] if official else []
    return {
        "library_name": "transformers",
        "pipeline_tag": "text-classification",
        **({"base_model": base} if base == result["model"] != "demo" else {}),
        **({"datasets": ["nyu-mll/glue"]} if official else {}),
        "metrics": list(result["metrics"]["last"]),
        **({"model-index": [{"name": f"{base}-{task.name}", "results": tested}]} if tested else {}),
    }


def _table(rows: Mapping[str, Any]) -> list[str]:
    lines = ["| | |", "| --- | --- |"]
    return lines + [f"| {name.replace('_', ' ')} | {value} |" for name, value in rows.items()]


def _slots(result: Mapping[str, Any]) -> dict[str, str]:
    """Return each slot's methods with their options, in words."""
    told = {}
    for slot, chosen in result["slots"].items():
        methods = chosen if isinstance(chosen, list) else [chosen]
        words = [
            " ".join(
                [m["name"], *(f"{key}={json.dumps(value)}" for key, value in m.items() if key != "name")]
            )
            for m in methods
        ]
        told[slot] = ", ".join(words) or "none"
    return told


def _use(result: Mapping[str, Any], task: Task, form: str) -> list[str]:
    text = "{'text': 'One.', 'text_pair': 'Another.'}" if len(task.columns) == 2 else "'A text.'"
    if form != "apart":
        trusted = ", trust_remote_code=True" if form == "code" else ""
        lines = [
            "```python",
            "from transformers import pipeline",
            "",
            f"classify = pipeline('text-classification', 'PATH OR NAME OF THIS MODEL'{trusted})",
            f"classify({text}, truncation=True, max_length={result['settings']['max_length']}, top_k=None)",
            "```",
        ]
        method = result["slots"]["adaptation"]["name"]
        needed = (
            "A file of this folder puts what was trained onto the base model: read it before you trust it. "
            f"It calls the package of the adaptation `{method}`, which has to be installed."
        )
        return [*lines, "", needed] if form == "code" else lines
    return [
        f"What was trained cannot become part of the model's own weights, so that this folder has none. It "
        f"needs the base model `{_named(result['model'])}`, and the folder `{ADAPTER}` beside this one.",
        "",
        "```python",
        "from glue_harness import open_run",
        "",
        "run = open_run('FOLDER OF THE RUN')",
        f"run.predict([{text if len(task.columns) != 2 else repr(('One.', 'Another.'))}])",
        "```",
        "",
        "`glue-harness export` makes one folder of it that transformers loads.",
    ]


def card_of(result: Mapping[str, Any], task: Task, form: Literal["whole", "apart", "code"]) -> str:
    """Return the card of what a run trained, in Markdown.

    Args:
        result: What `result.json` holds.
        task: What was learned.
        form: Whether the folder has all weights, only what goes with the base model, or all of it with a file
            that transformers has to be told to trust.
    """
    base, settings = _named(result["model"]), result["settings"]
    judged = ", ".join(task.evaluation)
    learned = "It gives a number to" if task.regression else f"It tells {', '.join(task.labels)} of"
    metrics = {name: f"{value:.4f}" for name, value in result["metrics"]["last"].items()}
    seen = ", ".join(f"{count:,} {split}" for split, count in result["rows"].items())
    lines = [
        "---",
        yaml.safe_dump(_front(result, task), sort_keys=False, allow_unicode=True).rstrip(),
        "---",
        "",
        f"# {base}, fine-tuned on {task.name}",
        "",
        f"`{base}` as a text classifier for {task.name}. {learned} "
        f"{'pairs of texts' if len(task.columns) == 2 else 'texts'} ({', '.join(task.columns)}).",
        "",
        "## Use",
        "",
        *_use(result, task, form),
        "",
        "## Results",
        "",
        *_table({"evaluated on": judged, **metrics}),
        "",
        "One run with one seed. Settings may have been chosen on the rows that it is evaluated on. On other "
        "kinds of text it can do worse; it has the biases of the base model and of the rows.",
        "",
        "## Training",
        "",
        *_table(
            {
                "rows": seen,
                "steps": result["steps"],
                "seed": result["seed"],
                **{name: settings[name] for name in TOLD if name in settings},
                **_slots(result),
                "parameters trained": f"{result['parameters']['trainable']:,} of "
                f"{result['parameters']['total']:,}",
                **result["versions"],
            }
        ),
        "",
        "The licences of the base model and of the data apply.",
    ]
    return "\n".join(lines) + "\n"

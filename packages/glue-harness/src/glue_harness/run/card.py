"""The card of a trained model, for people and for a model hub."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Literal

import yaml

from finetune_common.aliases import JsonObject
from finetune_common.data.schema import Schema
from finetune_common.tasks import GLUE_TASKS, Task
from glue_harness.run.parts import has_own_rows
from glue_harness.run.records import ADAPTER

__all__ = ["card_of"]

SHOWN_SETTINGS = (
    *("epochs", "batch_size", "accumulate", "max_length", "schedule", "warmup", "weight_decay", "precision"),
)
"""Settings that a card shows: none of them is a path of the machine."""

CARD = """---
{front}---

# {base}, fine-tuned on {task}

`{base}` as a text classifier for {task}. {learned} {texts} ({columns}).

## Use

{use}

## Results

{results}

One run with one seed. Settings may have been chosen on the evaluation rows. On other kinds of text the model
can do worse. It has the biases of the base model and of the training rows.

{data}## Training

{training}

The licences of the base model and of the data apply.
"""

PIPELINE = """```python
from transformers import pipeline

classify = pipeline('text-classification', 'PATH OR NAME OF THIS MODEL'{trusted})
classify({example}, truncation=True, max_length={max_length}, top_k=None)
```"""

CODE = """

A code file in this folder applies the adaptation to the base model: read it before you trust it. It needs the
package of the adaptation `{method}`."""

APART = """The adaptation cannot be merged into the model's weights, so this folder has none. It needs the
base model `{base}`, and the folder `{adapter}` beside this one.

```python
from glue_harness import open_run

run = open_run('FOLDER OF THE RUN')
run.predict([{example}])
```

`glue-harness export` writes one folder that transformers loads."""


def _named(model: str) -> str:
    """Return a model's name without the folders of a machine."""
    path = Path(model)
    local = path.is_absolute() or path.exists() or model.startswith((".", "~"))
    return (path.parent.name if path.name == "model" and path.parent.name else path.name) if local else model


def _split(task: Task) -> str:
    """Return the hub's split that judged a model; held-out parts belong to `train`."""
    return task.evaluation[0] if task.evaluation[0].startswith("validation") else "train"


def _front(result: JsonObject, task: Task, base: str) -> JsonObject:
    """Return the metadata for a hub."""
    scores = result["metrics"]["last"]
    front: JsonObject = {"library_name": "transformers", "pipeline_tag": "text-classification"}
    front["metrics"] = list(scores)
    if base == result["model"] != "demo":
        front["base_model"] = base
    if task.name in GLUE_TASKS and not has_own_rows(result):
        data = {"type": "nyu-mll/glue", "name": "GLUE", "config": task.name, "split": _split(task)}
        metrics = [{"type": name, "value": value} for name, value in scores.items()]
        evaluated = {"task": {"type": "text-classification"}, "dataset": data, "metrics": metrics}
        front |= {
            "datasets": ["nyu-mll/glue"],
            "model-index": [{"name": f"{base}-{task.name}", "results": [evaluated]}],
        }
    return front


def _table(rows: JsonObject) -> str:
    return "\n".join(
        ["| | |", "| --- | --- |", *(f"| {k.replace('_', ' ')} | {v} |" for k, v in rows.items())]
    )


def _methods(chosen: JsonObject | list[JsonObject]) -> str:
    """Return the methods of a slot with their options, in words."""
    words = []
    for method in chosen if isinstance(chosen, list) else [chosen]:
        options = (f" {key}={json.dumps(value)}" for key, value in method.items() if key != "name")
        words.append(method["name"] + "".join(options))
    return ", ".join(words) or "none"


def _data(result: JsonObject) -> str:
    """Return how the rows were read."""
    schema = (result.get("data") or {}).get("schema")
    return f"## Data\n\n```text\n{Schema.from_dict(schema)}\n```\n\n" if schema else ""


def card_of(result: JsonObject, task: Task, form: Literal["whole", "apart", "code"]) -> str:
    """Return the card of a trained model, in Markdown.

    Args:
        result: The content of `result.json`.
        task: The learned task.
        form: Whether the folder has all weights, only the part that the base model lacks, or all with a code
            file that transformers must trust.
    """
    base, settings, slots = _named(result["model"]), result["settings"], result["slots"]
    pair, parameters = len(task.columns) == 2, result["parameters"]
    plain = "('One.', 'Another.')" if pair else "'A text.'"
    trusted = ", trust_remote_code=True" if form == "code" else ""
    example = "{'text': 'One.', 'text_pair': 'Another.'}" if pair else plain
    use = PIPELINE.format(trusted=trusted, example=example, max_length=settings["max_length"])
    if form == "code":
        use += CODE.format(method=slots["adaptation"]["name"])
    others = [name for name in settings["task"].split(",") if name != task.name]
    training = {
        **({"trained together with": ", ".join(others)} if others else {}),
        "rows": ", ".join(f"{count:,} {split}" for split, count in result.get("rows", {}).items()),
        **{name: result[name] for name in ("steps", "seed")},
        **{name: settings[name] for name in SHOWN_SETTINGS if name in settings},
        **{slot: _methods(chosen) for slot, chosen in slots.items()},
        "parameters trained": f"{parameters['trainable']:,} of {parameters['total']:,}",
        **result["versions"],
    }
    scores = {name: f"{value:.4f}" for name, value in result["metrics"]["last"].items()}
    return CARD.format(
        front=yaml.safe_dump(_front(result, task, base), sort_keys=False, allow_unicode=True),
        base=base,
        task=task.name,
        learned="It gives a number to" if task.regression else f"It tells {', '.join(task.labels)} of",
        texts="pairs of texts" if pair else "texts",
        columns=", ".join(task.columns),
        use=use if form != "apart" else APART.format(base=base, adapter=ADAPTER, example=plain),
        results=_table({"evaluated on": ", ".join(task.evaluation), **scores}),
        data=_data(result),
        training=_table(training),
    )

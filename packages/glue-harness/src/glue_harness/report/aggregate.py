"""Runs that differ only in the seed become one row."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from math import sqrt
from pathlib import Path
from statistics import fmean

from finetune_common.aliases import JsonObject, Settings
from finetune_common.errors import ConfigurationError
from glue_harness.config.fields import SLOTS
from glue_harness.report.protocols import PROTOCOLS, Protocol
from glue_harness.report.select import flatten, known_key
from glue_harness.report.statistics import mean_interval
from glue_harness.report.unskilled import without_skill
from glue_harness.run.parts import judge_of

__all__ = ["Row", "label", "methods_in_words", "model_name", "summarise", "varying_options"]

Value = tuple[float, float | None]
"""A number, and its standard deviation over seeds if there are several."""

Estimate = tuple[float, float | None, tuple[float, float] | None]
"""A mean, its standard deviation over seeds, and an interval of it."""

PLAIN = {slot: SLOTS[slot] for slot in ("adaptation", "activation")}
"""Choices that a label omits: the plain model, and plain autograd."""

IDENTIFIES_ROW = ("task", "model", "seed")


@dataclass(frozen=True)
class Row:
    """One setting on one task.

    Attributes:
        task: The task.
        model: The model.
        setting: What distinguishes this row from the others, in words.
        options: The options that its runs share.
        seeds: The seeds of its runs.
        metrics: Metric → (the protocol's number, sd over seeds or None) at the last evaluation.
        best: Metric → the same at each run's best evaluation.
        by_seed: `last` or `best` → seed → metric → value.
        primary: The metric that counts first.
        examples_per_second: Mean over runs.
        peak_memory_bytes: Largest of the runs.
        trainable: Trainable parameters.
        runs: The folders.
        judge: What its scores are scores of: the metric and the rows; only equal ones can be compared.
        floor: The score of a model that has learned nothing; None if unknown.
        beside: `set metric` → mean, sd over seeds or None, and 95 % interval over seeds or None, for the sets
            that were scored in addition.
    """

    task: str
    model: str
    setting: str
    options: Settings
    seeds: tuple[int, ...]
    metrics: dict[str, Value]
    best: dict[str, Value]
    by_seed: dict[str, dict[int, dict[str, float]]]
    primary: str
    examples_per_second: float
    peak_memory_bytes: int
    trainable: int
    runs: tuple[str, ...]
    judge: str
    floor: float | None
    beside: dict[str, Estimate] = field(default_factory=dict)

    def score(self, evaluation: str) -> Value:
        """Return the primary metric at the `last` or the `best` evaluation."""
        return (self.metrics if evaluation == "last" else self.best)[self.primary]

    def seed_scores(self, evaluation: str) -> dict[int, float]:
        """Return seed → primary metric at the `last` or the `best` evaluation."""
        return {seed: metrics[self.primary] for seed, metrics in self.by_seed[evaluation].items()}


def model_name(model: str) -> str:
    """Return a model's name: a hub name without its owner, or a folder's (for `model`, its parent's).

    Examples:
        >>> model_name("google-bert/bert-base-uncased"), model_name("/data/mini/model")
        ('bert-base-uncased', 'mini')
    """
    path = Path(model)
    return path.parent.name if path.is_absolute() and path.name == "model" else path.name


def methods_in_words(slots: Settings) -> str:
    """Name a run's methods except the plain ones; an optimizer with how it clips.

    Examples:
        >>> slots = {"adaptation": {"name": "lora"}, "optimizer": {"name": "clipped-adam", "clip": "local"}}
        >>> methods_in_words(slots | {"gradient": [{"name": "agni"}], "activation": {"name": "none"}})
        'lora + clipped-adam, clip local + agni'
    """
    named = [
        *[slots["adaptation"]["name"]] * (slots["adaptation"]["name"] != PLAIN["adaptation"]),
        ", clip ".join(slots["optimizer"][key] for key in ("name", "clip") if key in slots["optimizer"]),
        *[method["name"] for method in slots["gradient"]],
        *[slots["activation"]["name"]] * (slots["activation"]["name"] != PLAIN["activation"]),
    ]
    return " + ".join(named)


def varying_options(settings: Sequence[Settings]) -> list[str]:
    """Return the options that distinguish settings; a method's options only if the method is shared."""

    def values(name: str) -> dict[str, set[str]]:
        slot, _, option = name.partition(".")
        by_method: dict[str, set[str]] = {}
        for flat in settings:
            if name in flat:
                method = "" if option in ("", "lr") else flat.get(slot, "")
                by_method.setdefault(method, set()).add(repr(flat[name]))
        return by_method

    names = sorted({name for flat in settings for name in flat})
    return [name for name in names if any(len(different) > 1 for different in values(name).values())]


def label(settings: Settings, varying: Sequence[str]) -> str:
    """Describe a setting in words: its optimizer, and the options that vary."""
    words = [settings["optimizer"]] if "optimizer" in settings else []
    for key in varying:
        value = settings.get(key)
        if key == "optimizer" or value in (None, "") or (words and PLAIN.get(key) == value):
            continue
        shown = f"{value:g}" if isinstance(value, float) else str(value)
        name = (key.partition(".")[2] or key).replace(".", " ").replace("_", " ")
        words.append(shown if key in SLOTS else f"{name} {shown}")
    return ", ".join(words) or "all runs"


def _shared_options(flat: Settings, protocol: Protocol, group_by: Sequence[str]) -> JsonObject:
    """Return the options that define a setting."""
    chosen = group_by or [key for key in flat if key not in IDENTIFIES_ROW]
    return {key: flat[key] for key in chosen if key in flat and key not in protocol.drops}


def _check_judges(task: str, runs: Sequence[JsonObject]) -> None:
    if len({judge_of(run) for run in runs}) > 1:
        raise ConfigurationError(
            f"--group-by: runs of {task} would be one setting that are scored by different metrics or on "
            "different rows: add metric, evaluate_on or max_eval_samples, or keep one kind with --where"
        )


def _check_groups(group_by: Sequence[str], name: str, runs: Sequence[Settings]) -> None:
    for key in group_by:
        known_key("--group-by", key, runs)
        if key in PROTOCOLS[name].drops:
            raise ConfigurationError(
                f"--group-by {key}: --protocol {name} chooses among its values: leave one of the two out"
            )


def _by_seed(runs: Sequence[JsonObject], evaluation: str, protocol: Protocol) -> dict[int, dict[str, float]]:
    seeds: dict[int, list[dict[str, float]]] = {}
    for run in runs:
        seeds.setdefault(run["seed"], []).append(run["metrics"][evaluation])
    primary = runs[0]["primary"]
    return {seed: dict(protocol.within(seeds[seed], primary)) for seed in sorted(seeds)}


def _deviation(values: Sequence[float]) -> float | None:
    """Return the sample standard deviation, None of a single value."""
    if len(values) < 2:
        return None
    mean = fmean(values)
    return sqrt(sum((value - mean) ** 2 for value in values) / (len(values) - 1))


def _values(by_seed: Mapping[int, Mapping[str, float]], primary: str, protocol: Protocol) -> dict[str, Value]:
    scores = list(by_seed.values())
    return {
        metric: (value, _deviation([s[metric] for s in scores]))
        for metric, value in protocol.over(scores, primary).items()
    }


def _beside(runs: Sequence[JsonObject]) -> dict[str, Estimate]:
    scores: dict[str, list[float]] = {}
    for run in sorted(runs, key=lambda run: run["seed"]):
        for split, metrics in run.get("beside", {}).items():
            for metric, value in metrics.items():
                scores.setdefault(f"{split} {metric}", []).append(value)
    return {
        name: (fmean(values), _deviation(values), mean_interval(values)) for name, values in scores.items()
    }


def summarise(
    results: Iterable[JsonObject],
    protocol: str = "mean",
    group_by: Sequence[str] = (),
    evaluation: str = "last",
) -> list[Row]:
    """Aggregate runs over seeds.

    Args:
        results: Contents of `result.json`, each with its `folder`.
        protocol: One of `PROTOCOLS`: how the runs of a setting become one number.
        group_by: Options that define a setting; by default all but the seed. Runs of one seed in one setting
            count as one.
        evaluation: Which evaluation orders the rows, `last` or `best`.

    Returns:
        One row for each setting, model and task: tasks in order of appearance, best settings first.

    Raises:
        ConfigurationError: An option that no run has, one whose values the protocol chooses among, or a
            setting whose runs are scored by different metrics or on different rows.
    """
    results = list(results)
    flattened = [flatten(result) for result in results]
    _check_groups(group_by, protocol, flattened)
    how = PROTOCOLS[protocol]
    groups: dict[tuple[str, str, str], list[JsonObject]] = {}
    settings: dict[str, JsonObject] = {}
    for result, flat in zip(results, flattened, strict=True):
        options = _shared_options(flat, how, group_by)
        key = json.dumps(options, sort_keys=True)
        settings[key] = options
        groups.setdefault((result["task"], result["model"], key), []).append(result)
    by_task: dict[str, list[JsonObject]] = {}
    for task, _, key in groups:
        by_task.setdefault(task, []).append(settings[key])
    varying = {task: list(group_by) or varying_options(present) for task, present in by_task.items()}
    rows = []
    for (task, model, key), runs in groups.items():
        _check_judges(task, runs)
        primary = runs[0]["primary"]
        floor = without_skill(primary, runs[0])
        by_seed = {evaluation: _by_seed(runs, evaluation, how) for evaluation in ("last", "best")}
        rows.append(
            Row(
                task=task,
                model=model,
                setting=label(settings[key], varying[task]),
                options=settings[key],
                seeds=tuple(sorted(r["seed"] for r in runs)),
                metrics=_values(by_seed["last"], primary, how),
                best=_values(by_seed["best"], primary, how),
                by_seed=by_seed,
                primary=primary,
                examples_per_second=fmean(r["examples_per_second"] for r in runs),
                peak_memory_bytes=max(r["peak_memory_bytes"] for r in runs),
                trainable=runs[0]["parameters"]["trainable"],
                runs=tuple(r["folder"] for r in runs),
                judge=judge_of(runs[0]),
                floor=None if floor is None else floor[0],
                beside=_beside(runs),
            )
        )
    order = {task: number for number, task in enumerate(by_task)}
    return sorted(rows, key=lambda row: (order[row.task], row.model, -row.score(evaluation)[0]))

"""Have the runs of the paper scale the settings of the released code? Compared are resolved settings."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from typing import Any

import torch
from transformers import AutoModelForSequenceClassification, PretrainedConfig

from finetune_common.tasks import TASKS
from glue_harness.config.matching import covers
from glue_harness.run.architectures import changed, find_config
from reproduce.catalogue import BENCHMARKS, Benchmark, catalogue
from reproduce.scales import points, read, settings

__all__ = ["differences", "facts", "hindrance", "method_table", "released", "table"]

DROPOUTS = {
    "hidden": ("hidden_dropout_prob", "dropout_rate", "dropout"),
    "attention": ("attention_probs_dropout_prob", "attention_dropout", "dropout_rate"),
    "classifier": ("classifier_dropout_prob", "classifier_dropout", "hidden_dropout_prob", "dropout_rate"),
}
"""Which dropout → the fields of a configuration that hold it, the first that is set."""


@cache
def _known(work: str) -> Mapping[str, Any]:
    path = BENCHMARKS / work / "released.yaml"
    return read(path) if path.exists() else {}


def released(benchmark: Benchmark) -> Mapping[str, Any] | None:
    """Return what is known of the released experiment; None for a benchmark of our own."""
    return _known(benchmark.work).get(benchmark.name.partition(".")[2])


def _warmup_steps(run: Mapping[str, Any]) -> int:
    rows = min(TASKS[run["task"]].rows["train"], run["max_train_samples"] or math.inf)
    steps = math.ceil(run["epochs"] * math.ceil(rows / (run["batch_size"] * run["accumulate"])))
    asked = run["warmup"]
    return math.ceil(asked * (run["schedule_steps"] or steps)) if asked < 1 else int(asked)


@cache
def _architecture(model: str, fields: tuple[tuple[str, Any], ...]) -> Mapping[str, Any]:
    config = changed(find_config(model), dict(fields))
    dropouts = {
        name: next((getattr(config, key) for key in keys if getattr(config, key, None) is not None), None)
        for name, keys in DROPOUTS.items()
    }
    return {"dropout": dropouts, "pooler": "pretrained" if _reads_a_pooler(config) else "none"}


def _reads_a_pooler(config: PretrainedConfig) -> bool:
    """Say whether the classifier reads a pooler of the base model; else its head is new as a whole."""
    with torch.device("meta"):
        model = AutoModelForSequenceClassification.from_config(config)
    return isinstance(getattr(model.base_model, "pooler", None), torch.nn.Module)


def facts(benchmark: Benchmark, run: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings of a run, and what follows from them.

    Args:
        benchmark: Gives the protocol and the evaluation that counts.
        run: All its options, as `reproduce.scales.settings` returns them.
    """
    architecture = _architecture(run["model"], tuple(sorted(run["model_config"].items())))
    pooler = "new" if run["head"] == "new" else architecture["pooler"]
    return {
        **run,
        "evaluation": benchmark.evaluation,
        "protocol": benchmark.protocol,
        "published_runs": benchmark.published_runs,
        "rows_a_step": run["batch_size"] * run["accumulate"],
        "warmup_steps": _warmup_steps(run),
        "selects_by": run["metric"] or TASKS[run["task"]].primary,
        "dropout": architecture["dropout"],
        "head": {"pooler": pooler, "shared_by_seeds": run["head_seed"] is not None},
        "padding": "longest",
        "measured_in": "evaluation mode",
    }


def _runs(benchmark: Benchmark) -> list[dict[str, Any]]:
    spec = benchmark.spec("paper")
    if benchmark.script:
        told = {"protocol": benchmark.protocol, "published_runs": benchmark.published_runs}
        return [{**spec, **told}]
    return [facts(benchmark, settings(point)) for point in points(spec)]


def _leaves(value: Mapping[str, Any], at: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Yield the settings of a mapping with the keys that lead to each; an empty mapping is a setting."""
    for key, inner in value.items():
        nested = isinstance(inner, Mapping) and inner
        yield from _leaves(inner, (*at, key)) if nested else [((*at, key), inner)]


def _at(run: Any, path: Sequence[str]) -> Any:
    """Return a setting by the keys that lead to it; None where there is none."""
    for key in path:
        run = run.get(key) if isinstance(run, Mapping) else None
    return run


@cache
def differences(benchmark: Benchmark) -> Mapping[str, tuple[str, str]]:
    """Return each setting that differs from the released one: name → what is released, and what is here.

    A setting of all runs has to be that of each run which repeats a released one; a described run has to be
    among them, and so has each value of an axis. What no option says differs as long as nobody looks.

    Args:
        benchmark: One with a paper scale; one that the releases know nothing of has no difference.
    """
    known = released(benchmark)
    if known is None:
        return {}
    every, some, axes = (known.get(part) or {} for part in ("every", "some", "axes"))
    runs = _runs(benchmark)
    differing = {
        name: ("one of the runs", "no such run")
        for name, run in some.items()
        if not any(covers(run, r) for r in runs)
    }
    repeated = [run for run in runs if not some or any(covers(pattern, run) for pattern in some.values())]
    for path, value in _leaves(every):
        if others := [_at(run, path) for run in repeated if _at(run, path) != value]:
            differing[".".join(path)] = _shown([value]), _shown(others)
    for axis, values in axes.items():
        present = [_at(run, axis.split(".")) for run in repeated]
        if missing := [value for value in values if value not in present]:
            differing[axis] = _shown(missing), "not among them"
    return differing | {name: (text, "") for name, text in (known.get("other") or {}).items()}


def _shown(values: Sequence[Any]) -> str:
    return ", ".join(dict.fromkeys("none" if value is None else str(value) for value in values))


def hindrance(benchmark: Benchmark, run: Mapping[str, Any]) -> str:
    """Return why a published number cannot be judged by ours: empty where nothing stands against it.

    Args:
        benchmark: Ours, with what it declares.
        run: The settings of the run that would produce the number.
    """
    if undeclared := sorted(differences(benchmark).keys() - benchmark.differs.keys()):
        return f"{undeclared[0]} differs, and nobody says why"
    reasons = (
        declared["matters"]
        for declared in benchmark.differs.values()
        if isinstance(declared, Mapping) and covers(declared.get("of") or {}, run)
    )
    return next(reasons, "")


def table(judged: Mapping[str, Counter[str]]) -> str:
    """Return which experiments are compared, and where they differ: a markdown table, sums and reasons below.

    Args:
        judged: Benchmark → why published numbers are not judged, and how many; empty for those that are.
    """
    lines = [
        "| benchmark | published numbers judged | not judged | differs from the release | not comparable |",
        "| --- | ---: | ---: | --- | --- |",
    ]
    repeated = [benchmark for benchmark in catalogue().values() if released(benchmark) is not None]
    for benchmark in repeated:
        counts = judged.get(benchmark.name, Counter())
        names = ", ".join(differences(benchmark)) or "nothing"
        why = "; ".join(dict.fromkeys(_forbidding(benchmark)))
        lines.append(
            f"| `{benchmark.name}` | {counts['']} | {counts.total() - counts['']} | {names} | {why} |"
        )
    reasons = sum(judged.values(), Counter())
    yes, told = reasons.pop(""), reasons.total()
    why = "; ".join(f"{reason} ({count})" for reason, count in reasons.most_common())
    declared = sum(len(benchmark.differs) for benchmark in repeated)
    forbid = sum(len(_forbidding(benchmark)) for benchmark in repeated)
    lines += [
        "",
        f"{yes + told} published numbers belong to a benchmark; {yes} are judged, the other {told} are not: "
        f"{why}. {declared} differences from the released code are declared, each with its "
        f"reason; {forbid} of them forbid a comparison.",
    ]
    return "\n".join(lines) + "\n"


def _forbidding(benchmark: Benchmark) -> list[str]:
    """Return why numbers cannot be compared, a reason a difference that matters."""
    return [declared["matters"] for declared in benchmark.differs.values() if isinstance(declared, Mapping)]


def method_table(work: str) -> str:
    """Return what differs from a work's paper and released code, in the method and the experiments."""
    rows: dict[tuple[str, str, str], list[str]] = {}
    for name, differs in _known(work).get("paper", {}).items():
        rows[name, differs["paper"], differs["here"]] = ["the paper"]
    for name, differs in _known(work)["method"].items():
        rows[name, differs["released"], differs["here"]] = ["the method"]
    for benchmark in catalogue().values():
        if benchmark.work == work and released(benchmark) is not None:
            for name, (there, here) in differences(benchmark).items():
                declared = benchmark.differs.get(name, "**not declared**")
                why = declared if isinstance(declared, str) else f"**not comparable**: {declared['matters']}"
                told = name, there, f"{here}: {why}" if here else why
                rows.setdefault(told, []).append(f"`{benchmark.name.partition('.')[2]}`")
    lines = ["| what | paper or released code | here | in |", "| --- | --- | --- | --- |"]
    for told, places in rows.items():
        lines.append(f"| {' | '.join(map(str, told))} | {', '.join(places)} |")
    return "\n".join([*lines, ""])

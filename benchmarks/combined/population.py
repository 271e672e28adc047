"""Population based training against the same configurations left alone.

    python benchmarks/combined/population.py --output-dir runs/population
    python benchmarks/combined/population.py --spec SPEC.yaml --output-dir DIR

Two searches from the same seed begin with the same configurations. In the one, after each epoch a trial among
the worst quarter goes on from the weights of one of the best quarter with changed options; in the other each
trial keeps its own. Either continues where it was interrupted. `result.json` has what both found, `table.md`
a line a configuration, `population.png` who took over from whom.
"""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import yaml

from glue_harness.hardware import hardware, versions
from glue_harness.run.records import write_report, write_whole
from glue_harness.search import search

HERE = Path(__file__).parent


def beginnings(report: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return each trial's first configuration."""
    first: dict[int, dict[str, Any]] = {}
    for one in sorted(report["evaluations"], key=lambda one: one["epoch"]):
        if one["parent"] is None:
            first.setdefault(one["trial"], one["configuration"])
    return [first[number] for number in sorted(first)]


def searched(spec: Path, output: Path, scheduler: str, trials: int, jobs: int) -> dict[str, Any]:
    """Do one of the two searches; returns what counts of its report."""
    report = search(spec, output / scheduler, scheduler, trials=trials, jobs=jobs)
    evaluations = {one["id"]: one for one in report["evaluations"]}
    taken = [
        evaluations[one["parent"]]["trial"] != one["trial"]
        for one in report["evaluations"]
        if one["parent"] is not None
    ]
    return {
        "metric": report["metric"],
        "best": report["best"]["score"],
        "best_trial": report["best"]["trial"],
        "scores": [trial["score"] for trial in report["trials"]],
        "beginnings": beginnings(report),
        "exploits": sum(taken),
        "evaluations": len(report["evaluations"]),
    }


def _shown(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def _score(report: Mapping[str, Any], number: int) -> str:
    score = report["scores"][number - 1]
    if score is None:
        return "failed"
    return f"**{score:.4f}**" if number == report["best_trial"] else f"{score:.4f}"


def table(report: Mapping[str, Any]) -> str:
    """Return the markdown: a line a configuration, and what the best of each search is."""
    alone, population = report["none"], report["pbt"]
    options: Sequence[str] = list(alone["beginnings"][0])
    metric = alone["metric"]
    lines = [
        f"| trial | {' | '.join(options)} | {metric}, left alone | {metric}, population based |",
        "| ---: |" + " ---: |" * (len(options) + 2),
    ]
    for number, first in enumerate(alone["beginnings"], start=1):
        values = " | ".join(_shown(first[option]) for option in options)
        lines.append(f"| {number} | {values} | {_score(alone, number)} | {_score(population, number)} |")
    return "\n".join(lines) + (
        f"\n\nOptions are those at the start. Best: {population['best']:.4f} population based, "
        f"{alone['best']:.4f} left alone, difference {population['best'] - alone['best']:+.4f}; "
        f"{population['exploits']} times a trial took over another one's weights; "
        f"{population['evaluations']} and {alone['evaluations']} evaluations. One seed: no interval.\n"
    )


def main() -> None:
    """Do both searches, print and keep the table."""
    parser = argparse.ArgumentParser(description="Population based training against none.")
    parser.add_argument("--spec", type=Path, default=HERE / "population.yaml", help="what to search")
    parser.add_argument("--output-dir", type=Path, required=True, help="folder of both searches and results")
    options = parser.parse_args()
    settings = yaml.safe_load(options.spec.read_text(encoding="utf-8"))
    trials, jobs = settings.pop("trials"), settings.pop("jobs")
    output = options.output_dir.resolve()
    output.mkdir(parents=True, exist_ok=True)
    spec = output / "search.yaml"
    write_whole(spec, yaml.safe_dump(settings, sort_keys=False))
    report: dict[str, Any] = {name: searched(spec, output, name, trials, jobs) for name in ("none", "pbt")}
    assert report["none"]["beginnings"] == report["pbt"]["beginnings"]
    report |= {"settings": settings, "trials": trials, "jobs": jobs}
    report |= {
        "versions": versions(),
        "hardware": hardware(torch.device("cuda" if torch.cuda.is_available() else "cpu")),
    }
    shutil.copy(output / "pbt" / "lineage.png", output / "population.png")
    write_report(output, report, table(report))


if __name__ == "__main__":
    main()

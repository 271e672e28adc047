"""Keep the results of a sweep: one JSON file without paths, and the tables made from it.

    python benchmarks/collect.py runs/sage-sst2 benchmarks/sage/results/sst2.json
    python benchmarks/collect.py --tables            # make every committed table anew from its JSON

The JSON holds every run's `result.json`. The table beside it (`.md`), the differences to a baseline
(`-paired.md`), the comparison with what was published (`-published.md`), the list of benchmarks with their
times (`list.md`), the page of all results (`results.md`) and the reports that the documentation links are
never written by hand.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from glue_harness.report.aggregate import model_name, summarise
from glue_harness.report.tables import markdown
from glue_harness.run.records import read_results, write_whole
from reproduce import conformance, costs, paired, published
from reproduce.catalogue import BENCHMARKS, Benchmark, catalogue, find
from reproduce.listing import listing
from reproduce.page import page, place
from reproduce.scales import points

COLUMNS = ("task", "setting", "runs", "last")
"""Speed and memory are left out: they count only where a run had the machine to itself."""


def sweep_results() -> list[Path]:
    """Return the committed results of sweeps; `speed/` has a form of its own."""
    return [
        path for path in sorted(BENCHMARKS.glob("*/results/*.json")) if path.parent.parent.name != "speed"
    ]


def kept_name(model: str) -> str:
    """Name a model folder by what it holds; a hub name stays whole."""
    return model_name(model) if Path(model).is_absolute() else model


def without_paths(result: dict[str, Any]) -> dict[str, Any]:
    """Return a result as it is kept: models by name, no data folder."""
    settings = {key: value for key, value in result["settings"].items() if key != "data_dir"}
    named = {"model": kept_name(result["model"])}
    return result | named | {"settings": settings | named}


def kept(runs: Path) -> list[dict[str, Any]]:
    """Return the results of a sweep's folder as they are kept."""
    return [without_paths(result) for result in read_results(runs)]


def table(results: list[dict[str, Any]]) -> str:
    """Return the markdown table of results, with what they ran on."""
    machine, versions = results[0]["hardware"], results[0]["versions"]
    ran_on = f"{machine['processor']}, {machine['cores']} cores" if "gpu" not in machine else machine["gpu"]
    seeds = sorted({result["seed"] for result in results})
    several = f"Mean ± standard deviation over seeds {', '.join(map(str, seeds))}"
    return (
        markdown(summarise(results), COLUMNS)
        + f"\n{several if len(seeds) > 1 else f'One run each, seed {seeds[0]}'}; "
        + f"{ran_on}, torch {versions['torch']}, transformers {versions['transformers']}.\n"
    )


def published_table(benchmark: Benchmark, scale: str, results: Any) -> str:
    """Return the comparison with what was published, and how its numbers are made; nothing of no lines."""
    lines = published.comparison(benchmark, scale, results)
    if not lines:
        return ""
    return f"{published.table(lines)}\n{published.footnote(lines, benchmark, scale)}\n"


def costs_table(benchmark: Benchmark, scale: str, results: Any) -> str:
    """Return what the settings of a benchmark cost, with the time of a step where it was measured."""
    timing = find(benchmark.costs).kept(scale)
    timed = json.loads(timing.read_text(encoding="utf-8"))["rows"] if timing.exists() else ()
    return costs.table(results, timed)


def pages() -> dict[Path, str]:
    """Return every report that the documentation shows, made anew."""
    return {
        place(benchmark): page(benchmark, json.loads(path.read_text(encoding="utf-8")))
        for benchmark, scale, path in _committed()
        if benchmark.report and scale == "cpu"
    }


def _committed() -> Iterator[tuple[Benchmark, str, Path]]:
    """Yield every benchmark with a scale that has committed results, and their JSON file."""
    for benchmark in catalogue().values():
        for scale in ("cpu", "paper"):
            if scale in benchmark.scales and benchmark.kept(scale).exists():
                yield benchmark, scale, benchmark.kept(scale)


def _tables_of(benchmark: Benchmark, scale: str, path: Path) -> Iterator[tuple[Path, str]]:
    """Yield what is made from committed results."""
    results = json.loads(path.read_text(encoding="utf-8"))
    if benchmark.baseline:
        yield path.with_name(f"{path.stem}-paired.md"), paired.table(results, benchmark)
    told = any(target.benchmark == benchmark.name for target in published.targets(benchmark.work))
    if told and (compared := published_table(benchmark, scale, results)):
        yield path.with_name("published.md" if benchmark.script else f"{path.stem}-published.md"), compared
    if benchmark.costs:
        yield path.with_name(f"{path.stem}-costs.md"), costs_table(benchmark, scale, results)


def _here(benchmark: Benchmark, scale: str, results: Sequence[dict[str, Any]]) -> str:
    """Say which model and tasks a sweep had, where they are not those of the paper scale."""
    if benchmark.script or "paper" not in benchmark.scales:
        return ""

    def had(key: str, runs: Iterable[dict[str, Any]]) -> list[str]:
        return list(dict.fromkeys(run[key] for run in runs))

    meant = list(points(benchmark.spec("paper")))
    if all(set(had(key, results)) == set(had(key, meant)) for key in ("model", "task")):
        return ""
    return f" (here: {', '.join(had('model', results))} on {', '.join(had('task', results))})"


def _page(made: dict[Path, str]) -> str:
    """Return all committed tables on one page, benchmark by benchmark; scripts have written their own."""
    parts: dict[Path, str] = {}
    for benchmark, scale, path in _committed():
        stem = "*" if benchmark.script else f"{path.stem}*"
        beside = {one for one in made if one.parent == path.parent and one.match(f"{stem}.md")}
        files = sorted({*path.parent.glob(f"{stem}.md"), *beside}, key=lambda one: (len(one.name), one))
        if benchmark.analysis:
            files += sorted(path.with_suffix("").glob("*.md"))
        texts = [made[one] if one in made else one.read_text(encoding="utf-8") for one in files]
        here = _here(benchmark, scale, json.loads(path.read_text(encoding="utf-8")))
        title = f"### {benchmark.name}\n\n{benchmark.title}, {scale} scale{here}.\n"
        parts.setdefault(path, "\n".join([title, *texts]))
    return "\n".join(parts.values())


def tables() -> dict[Path, str]:
    """Return every committed table, made anew."""
    made = {
        path.with_suffix(".md"): table(json.loads(path.read_text(encoding="utf-8")))
        for path in sweep_results()
    }
    for committed in _committed():
        made |= dict(_tables_of(*committed))
    told = {"list": listing(), "results": _page(made), "differences": conformance.table(published.judged())}
    return made | {BENCHMARKS / f"{name}.md": text for name, text in told.items()}


def main() -> None:
    as_written = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=as_written)
    parser.add_argument("runs", type=Path, nargs="?", help="folder of a sweep")
    parser.add_argument("json", type=Path, nargs="?", help="file to write")
    parser.add_argument("--tables", action="store_true", help="make the tables of all committed results anew")
    options = parser.parse_args()
    if not options.tables:
        if options.json is None:
            parser.error("give the folder of a sweep and the JSON file to write, or --tables")
        options.json.parent.mkdir(parents=True, exist_ok=True)
        write_whole(options.json, json.dumps(kept(options.runs), indent=1) + "\n")
    for path, text in (tables() | pages()).items():
        write_whole(path, text)


if __name__ == "__main__":
    main()

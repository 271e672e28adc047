"""Keep the results of a sweep: one JSON file without paths, and the tables made from it.

    python benchmarks/collect.py runs/sage-sst2 benchmarks/sage/results/sst2.json
    python benchmarks/collect.py --tables            # make every committed table anew from its JSON

The JSON holds every run's `result.json`. The table beside it (`.md`), the differences to a baseline
(`-paired.md`), the comparison with what was published (`-published.md`), the list of benchmarks with their
times (`list.md`), what differs from the released code (`differences.md`, for all and for each work), the
page of all results (`results.md`) and the reports that the documentation links are never written by hand.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from chosen import at_an_end, best_trials
from glue_harness.report.aggregate import model_name, summarise
from glue_harness.report.contents import gather
from glue_harness.report.page import write_page
from glue_harness.report.plots import draw_figures
from glue_harness.report.protocols import PROTOCOLS
from glue_harness.report.render import as_markdown
from glue_harness.report.tables import markdown
from glue_harness.report.tables import tables_of as drawn_tables
from glue_harness.run.records import read_results, write_whole
from reproduce import conformance, costs, published
from reproduce.catalogue import BENCHMARKS, Benchmark, catalogue, find
from reproduce.commands import status_of
from reproduce.listing import listing
from reproduce.scales import points, read

COLUMNS = ("task", "setting", "runs", "last")
"""Speed and memory are left out: they count only where a run had the machine to itself."""


def sweep_results() -> list[Path]:
    """Return the committed results of sweeps; `speed/` has a form of its own."""
    paths = sorted(BENCHMARKS.glob("*/results/*.json"))
    return [path for path in paths if path.parent.parent.name != "speed"]


def kept_name(model: str) -> str:
    """Name a model folder by what it holds; a hub name stays whole."""
    return model_name(model) if Path(model).is_absolute() else model


def kept(runs: Path) -> list[dict[str, Any]]:
    """Return the results of a sweep's folder as they are kept: models by name, no data folder."""
    kept_results = []
    for result in read_results(runs):
        named = {"model": kept_name(result["model"])}
        settings = {key: value for key, value in result["settings"].items() if key != "data_dir"}
        kept_results.append(result | named | {"settings": settings | named})
    return kept_results


def keep(runs: Path, file: Path) -> None:
    """Write the results of a sweep's folder as they are kept."""
    file.parent.mkdir(parents=True, exist_ok=True)
    write_whole(file, json.dumps(kept(runs), indent=1) + "\n")


def _read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


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


def _of_sweep(path: Path) -> str:
    """Return the table of a kept sweep; below that of trials, where their best lies at an end."""
    results, spec = _read(path), path.parent.parent / f"{path.stem}.yaml"
    if not path.stem.endswith("-trials") or not spec.exists():
        return table(results)
    trials = read(spec)
    ends = [f"The best is at an end: {end}.\n" for end in at_an_end(trials, best_trials(trials, results))]
    return "\n".join([table(results), *ends])


def paired_table(results: list[dict[str, Any]], benchmark: Benchmark) -> str:
    """Return the differences to a benchmark's baseline, with intervals and verdicts."""
    protocol = PROTOCOLS[benchmark.protocol]
    how = {"protocol": benchmark.protocol, "evaluation": benchmark.evaluation}
    contents = gather(results, baseline=benchmark.baseline, margin=benchmark.margin, **how)
    drawn = drawn_tables(contents)["comparison"]
    sentences = (*drawn.notes, *[protocol.meaning] * bool(protocol.drops))
    notes = [note[0].upper() + note[1:] for note in sentences]
    return f"{drawn.title}\n\n{as_markdown(drawn)}\n{'. '.join(notes)}.\n"


def pages() -> dict[Path, str]:
    """Return the reports that the documentation shows, made anew as `glue-harness report` does."""
    made = {}
    for benchmark, scale, path in _committed():
        if benchmark.report and scale == "cpu":
            contents = gather(_read(path), baseline=costs.PLAIN, margin=benchmark.margin)
            with TemporaryDirectory() as folder:
                figures = draw_figures(contents, Path(folder))
                page = write_page(contents, drawn_tables(contents), figures, Path(folder), benchmark.name)
                place = BENCHMARKS.parent / "docs" / "benchmarks" / f"{benchmark.name.replace('.', '-')}.html"
                made[place] = page.read_text(encoding="utf-8")
    return made


def _committed() -> Iterator[tuple[Benchmark, str, Path]]:
    """Yield every benchmark with a scale that has committed results, and their JSON file."""
    for benchmark in catalogue().values():
        for scale in ("cpu", "paper"):
            if scale in benchmark.scales and benchmark.kept(scale).exists():
                yield benchmark, scale, benchmark.kept(scale)


def tables_of(benchmark: Benchmark, scale: str, path: Path) -> dict[Path, str]:
    """Return what is made from the kept results of a scale."""
    results, made = _read(path), {}
    if not benchmark.script:
        made[path.with_suffix(".md")] = _of_sweep(path)
    if benchmark.baseline and scale != "smoke":
        made[path.with_name(f"{path.stem}-paired.md")] = paired_table(results, benchmark)
    if compared := published.table(benchmark, scale, results):
        name = "published.md" if benchmark.script else f"{path.stem}-published.md"
        made[path.with_name(name)] = compared
    if benchmark.costs:
        timing = find(benchmark.costs).kept(scale)
        timed = _read(timing)["rows"] if timing.exists() else ()
        made[path.with_name(f"{path.stem}-costs.md")] = costs.table(results, timed, benchmark.margin)
    return made


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
        here = _here(benchmark, scale, _read(path))
        title = f"### {benchmark.name}\n\n{benchmark.title}, {scale} scale{here}.\n"
        parts.setdefault(path, "\n".join([title, *texts]))
    return "\n".join(parts.values())


def tables() -> dict[Path, str]:
    """Return every committed table, made anew."""
    made = {path.with_suffix(".md"): _of_sweep(path) for path in sweep_results()}
    for committed in _committed():
        made |= tables_of(*committed)
    told = {"list": listing(), "results": _page(made), "differences": conformance.table(published.judged())}
    made |= {BENCHMARKS / f"{name}.md": text for name, text in told.items()}
    works = sorted(path.parent for path in BENCHMARKS.glob("*/released.yaml"))
    return made | {work / "differences.md": conformance.method_table(work.name) for work in works}


def main(argv: Sequence[str] | None = None) -> bool:
    """Keep a sweep, or make the tables anew, as a command line says."""
    as_written = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=as_written)
    parser.add_argument("runs", type=Path, nargs="?", help="folder of a sweep")
    parser.add_argument("json", type=Path, nargs="?", help="file to write")
    parser.add_argument("--tables", action="store_true", help="make the tables of all committed results anew")
    options = parser.parse_args(argv)
    if not options.tables:
        if options.json is None:
            parser.error("give the folder of a sweep and the JSON file to write, or --tables")
        keep(options.runs, options.json)
    for path, text in (tables() | pages()).items():
        write_whole(path, text)
    return True


if __name__ == "__main__":
    raise SystemExit(status_of("collect", main))

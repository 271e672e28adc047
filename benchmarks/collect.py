"""Keep the results of a sweep: one JSON file without paths, and the table made from it.

    python benchmarks/collect.py runs/sage-sst2 benchmarks/sage/results/sst2.json
    python benchmarks/collect.py --tables            # make every committed table anew from its JSON

The JSON holds every run's `result.json`; the table beside it (`.md`) is never written by hand.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from glue_harness.records import read_results, write_whole
from glue_harness.report.aggregate import model_name, summarise
from glue_harness.report.tables import markdown

HERE = Path(__file__).parent
COLUMNS = ("task", "setting", "runs", "last")
"""Speed and memory are left out: they count only where a run had the machine to itself."""


def sweep_results() -> list[Path]:
    """Return the committed results of sweeps; `speed/` has a form of its own."""
    return [path for path in sorted(HERE.glob("*/results/*.json")) if path.parent.parent.name != "speed"]


def kept_name(model: str) -> str:
    """Name a model folder by what it holds; a hub name stays whole."""
    return model_name(model) if Path(model).is_absolute() else model


def without_paths(result: dict[str, Any]) -> dict[str, Any]:
    """Return a result as it is kept: models by name, no data folder."""
    settings = {key: value for key, value in result["settings"].items() if key != "data_dir"}
    named = {"model": kept_name(result["model"])}
    return result | named | {"settings": settings | named}


def table(results: list[dict[str, Any]]) -> str:
    """Return the markdown table of results, with what they ran on."""
    machine, versions = results[0]["hardware"], results[0]["versions"]
    ran_on = f"{machine['processor']}, {machine['cores']} cores" if "gpu" not in machine else machine["gpu"]
    seeds = sorted({result["seed"] for result in results})
    return (
        markdown(summarise(results), COLUMNS)
        + f"\nMean ± standard deviation over seeds {', '.join(map(str, seeds))}; "
        + f"{ran_on}, torch {versions['torch']}, transformers {versions['transformers']}.\n"
    )


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
        kept = [without_paths(result) for result in read_results(options.runs)]
        options.json.parent.mkdir(parents=True, exist_ok=True)
        write_whole(options.json, json.dumps(kept, indent=1) + "\n")
    for path in sweep_results():
        write_whole(path.with_suffix(".md"), table(json.loads(path.read_text(encoding="utf-8"))))


if __name__ == "__main__":
    main()

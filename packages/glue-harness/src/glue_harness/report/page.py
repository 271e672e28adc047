"""One page with the whole report, which needs no network."""

from __future__ import annotations

import json
from base64 import b64encode
from collections.abc import Mapping, Sequence
from html import escape
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import TYPE_CHECKING

from finetune_common.aliases import JsonObject
from glue_harness.report.aggregate import Row, model_name
from glue_harness.report.compare import Comparison
from glue_harness.report.contents import Contents
from glue_harness.report.render import Table
from glue_harness.report.select import flatten
from glue_harness.run.records import write_whole

if TYPE_CHECKING:
    from glue_harness.report.plots import Figure

__all__ = ["page_data", "write_page"]

SETTING_COLUMNS = (
    *("task", "model", "setting", "runs", "last", "last_sd", "best", "best_sd", "mark", "difference", "low"),
    *("high", "p", "improvement", "verdict", "speed", "memory", "trainable"),
)
RUN_COLUMNS = (
    *("row", "task", "model", "seed", "config", "metric", "last", "best", "metrics", "epochs", "scores"),
    *("steps", "seconds", "speed", "memory", "folder", "early"),
)
DIGITS = 6


def _short(value: float | None) -> float | None:
    return None if value is None else round(value, DIGITS)


def _setting(row: Row, mark: str, comparison: Comparison | None, places: Mapping[str, int]) -> list[object]:
    (last, last_sd), (best, best_sd) = row.score("last"), row.score("best")
    low, high = comparison.interval if comparison and comparison.interval else (None, None)
    return [
        *(row.task, row.model, row.setting, [places[folder] for folder in row.runs]),
        *(_short(last), _short(last_sd), _short(best), _short(best_sd), mark),
        _short(comparison.difference) if comparison else None,
        *(_short(low), _short(high)),
        _short(comparison.corrected) if comparison and comparison.pairs else None,
        _short(comparison.improvement) if comparison else None,
        comparison.verdict if comparison else "",
        *(round(row.examples_per_second, 1), round(row.peak_memory_bytes / 2**20), row.trainable),
    ]


def _run(result: JsonObject, row: int, config: int) -> list[object]:
    metric = result["primary"]
    seconds = sum(result["seconds"].values())
    return [
        *(row, result["task"], result["model"], result["seed"], config, metric.replace("_", " ")),
        *(_short(result["metrics"][when][metric]) for when in ("last", "best")),
        {name: _short(value) for name, value in result["metrics"]["last"].items()},
        [round(entry["epoch"], 4) for entry in result["history"]],
        [_short(entry["metrics"][metric]) for entry in result["history"]],
        *(result["steps"], round(seconds, 1), round(result["examples_per_second"], 1)),
        *(round(result["peak_memory_bytes"] / 2**20), result["folder"]),
        bool(result.get("stopped_early")),
    ]


def page_data(contents: Contents) -> JsonObject:
    """Return the data of the page's script: settings, runs, and their options, each option set once.

    Args:
        contents: The report.

    Returns:
        Plain data: `settings` and `runs` are lists in the order of `setting_columns` and `run_columns`;
        `common` holds the options that all runs share, `configs` the others.
    """
    places = {result["folder"]: number for number, result in enumerate(contents.results)}
    row_of = {folder: number for number, row in enumerate(contents.rows) for folder in row.runs}
    configs: dict[str, int] = {}
    of_run, flattened = [], []
    for result in contents.results:
        flat = {key: value for key, value in flatten(result).items() if key not in ("task", "model", "seed")}
        key = json.dumps(flat, sort_keys=True)
        if key not in configs:
            configs[key] = len(configs)
            flattened.append(flat)
        of_run.append(configs[key])
    first = flattened[0]
    common = {k: v for k, v in first.items() if all(k in flat and flat[k] == v for flat in flattened)}
    comparisons = {id(comparison.row): comparison for comparison in contents.comparisons}
    return {
        "evaluation": contents.evaluation,
        "baseline": bool(contents.comparisons),
        "common": common,
        "configs": [{k: v for k, v in flat.items() if k not in common} for flat in flattened],
        "setting_columns": SETTING_COLUMNS,
        "settings": [
            _setting(row, contents.marks.get(number, ""), comparisons.get(id(row)), places)
            for number, row in enumerate(contents.rows)
        ],
        "run_columns": RUN_COLUMNS,
        "runs": [
            _run(result, row_of[result["folder"]], config)
            for result, config in zip(contents.results, of_run, strict=True)
        ],
    }


def _embedded(data: JsonObject) -> str:
    """Return JSON without `<`, so that no text in it can end the script."""
    return json.dumps(data, separators=(",", ":"), ensure_ascii=False).replace("<", "\\u003c")


def _as_html(table: Table) -> str:
    def cell(text: str, bold: bool, right: bool) -> str:
        shown = f"<strong>{escape(text)}</strong>" if bold else escape(text)
        return f"<td{' class=number' if right else ''}>{shown}</td>"

    head = "".join(f'<th scope="col">{escape(name)}</th>' for name in table.columns)
    rows = "".join(
        "<tr>"
        + "".join(cell(c.text, c.bold, r) for c, r in zip(row, table.columns.values(), strict=True))
        + "</tr>"
        for row in table.rows
    )
    return (
        f"<h2>{escape(table.title)}</h2><table class=static><thead><tr>{head}</tr></thead>"
        f"<tbody>{rows}</tbody></table>"
    )


def _picture(figure: Figure) -> str:
    source = b64encode(figure.svg.read_bytes()).decode()
    return (
        f'<figure><img loading="lazy" src="data:image/svg+xml;base64,{source}" alt="{escape(figure.text)}">'
        "</figure>"
    )


def write_page(
    contents: Contents,
    tables: Mapping[str, Table],
    figures: Sequence[Figure],
    output_dir: Path,
    title: str,
) -> Path:
    """Write `index.html`.

    Args:
        contents: The report.
        tables: From `tables_of` and `class_tables`, and published numbers: notes, averages, classes.
        figures: From `draw_figures`: embedded with their texts.
        output_dir: Exists.
        title: Heading of the page.

    Returns:
        The file.
    """
    tasks = list(dict.fromkeys(row.task for row in contents.rows))
    models = {row.model for row in contents.rows}
    model = f" with {model_name(models.pop())}" if len(models) == 1 else ""
    lead = f"{len(contents.results):,} runs, {len(contents.rows):,} settings on {', '.join(tasks)}{model}."
    shown = [tables[name] for name in ("summary", "comparison") if name in tables]
    notes = dict.fromkeys(note for table in shown for note in table.notes)
    template = files("glue_harness.report").joinpath("page.html").read_text(encoding="utf-8")
    text = Template(template).substitute(
        title=escape(title),
        lead=escape(lead),
        notes="".join(f"<li>{escape(note)}</li>" for note in notes),
        averages="".join(
            _as_html(table)
            for name, table in tables.items()
            if name.startswith(("averages", "classes-", "published"))
        ),
        figures=f"<h2>Charts</h2><div id=charts>{''.join(map(_picture, figures))}</div>" if figures else "",
        data=_embedded(page_data(contents)),
    )
    write_whole(output_dir / "index.html", text)
    return output_dir / "index.html"

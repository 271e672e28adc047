"""The tables of a report: settings, comparisons, averages; on the terminal and as files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from finetune_common.aliases import JsonObject
from glue_harness.console import console_for_reading
from glue_harness.report.aggregate import Estimate, Row, model_name
from glue_harness.report.averages import Average
from glue_harness.report.compare import BEST
from glue_harness.report.contents import Contents
from glue_harness.report.csv_files import csv_of
from glue_harness.report.equivalence import UNDECIDED
from glue_harness.report.notes import AGAINST_BEST, about_best, about_comparisons
from glue_harness.report.protocols import EVALUATIONS, PROTOCOLS
from glue_harness.report.render import Cell, Table, as_latex, as_markdown
from glue_harness.run.records import write_whole

__all__ = ["markdown", "print_run", "summary_table", "tables_of", "write_tables"]

BESIDE = "beside"
"""The column of additional sets that were scored."""

NUMBERS = ("runs", "examples/s", "peak memory", "trainable")


def _with_spread(value: tuple[float, float | None]) -> str:
    mean, spread = value
    return f"{mean:.4f}" if spread is None else f"{mean:.4f} ± {spread:.4f}"


def _with_interval(value: Estimate) -> str:
    mean, spread, interval = value
    around = "" if interval is None else f" ({interval[0]:.4f} to {interval[1]:.4f})"
    return _with_spread((mean, spread)) + around


def _cells(row: Row) -> dict[str, str]:
    beside = {BESIDE: ", ".join(f"{name} {_with_interval(mean)}" for name, mean in row.beside.items())}
    return {
        "task": row.task,
        "model": model_name(row.model),
        "setting": row.setting,
        "runs": str(len(row.seeds)),
        "last": ", ".join(
            f"{metric.replace('_', ' ')} {_with_spread(value)}" for metric, value in row.metrics.items()
        ),
        **(beside if row.beside else {}),
        "best": _with_spread(row.best[row.primary]),
        "examples/s": f"{row.examples_per_second:.0f}",
        "peak memory": f"{row.peak_memory_bytes / 2**20:.0f} MiB",
        "trainable": f"{row.trainable:,}",
    }


def _sections(rows: Sequence[Row]) -> frozenset[int]:
    return frozenset(n for n in range(len(rows) - 1) if rows[n].task != rows[n + 1].task)


def summary_table(
    rows: Sequence[Row],
    marks: Mapping[int, str] | None = None,
    *,
    columns: Sequence[str] | None = None,
    protocol: str = "mean",
    evaluation: str = "last",
    compared: bool = False,
) -> Table:
    """Return the table of all settings.

    Args:
        rows: From `summarise`.
        marks: From `against_best`: the best score of a task is bold, the others say how they compare with it.
        columns: Which columns, by default all.
        protocol: How the numbers were made, for the note.
        evaluation: The evaluation whose best score is bold.
        compared: Whether a table of comparisons follows, which says what the seeds can show.
    """
    has_beside = any(row.beside for row in rows)
    wanted = [name for name in columns or _cells(rows[0]) if name != BESIDE]
    if has_beside:
        wanted.insert(wanted.index("last") + 1 if "last" in wanted else len(wanted), BESIDE)
    several = bool(marks) and len(rows) > len({row.task for row in rows})
    if several:
        wanted.insert(wanted.index("setting") + 1 if "setting" in wanted else len(wanted), AGAINST_BEST)
    drawn = []
    for number, row in enumerate(rows):
        mark = (marks or {}).get(number, "")
        cells = _cells(row) | {AGAINST_BEST: mark}
        drawn.append([Cell(cells.get(name, ""), mark == BEST and name == evaluation) for name in wanted])
    how = PROTOCOLS[protocol]
    also = f" (as {how.used_by})" if how.used_by else ""
    notes = [
        f"numbers: {how.meaning}{also}; ±: standard deviation over seeds",
        *(f"{name}: {meaning}" for name, meaning in EVALUATIONS.items()),
        *([f"{BESIDE}: scored once, at the end; in brackets: 95 % interval of the mean"] * has_beside),
        *(about_best(rows, compared) if several else []),
    ]
    return Table("Settings", {name: name in NUMBERS for name in wanted}, drawn, notes, _sections(rows))


def markdown(rows: Sequence[Row], columns: Sequence[str] | None = None) -> str:
    """Return a markdown table of all rows, with all or the named columns."""
    return as_markdown(summary_table(rows, columns=columns))


def _comparison_table(contents: Contents) -> Table:
    """Return the table of comparisons: difference, interval, corrected p-values, probability, verdict."""
    comparisons = contents.comparisons
    columns = {
        "task": [c.row.task for c in comparisons],
        "model": [model_name(c.row.model) for c in comparisons],
        "setting": [c.row.setting for c in comparisons],
        "against": [c.baseline.setting for c in comparisons],
        "metric": [c.row.primary.replace("_", " ") for c in comparisons],
        "pairs": [str(c.pairs) for c in comparisons],
        "difference": ["" if c.difference is None else f"{c.difference:+.4f}" for c in comparisons],
        "95 % interval": [
            "" if c.interval is None else f"{c.interval[0]:+.4f} to {c.interval[1]:+.4f}" for c in comparisons
        ],
        "p (Holm)": [f"{c.corrected:.3g}" if c.pairs else "" for c in comparisons],
        "p (equal)": [f"{c.equal:.3g}" if c.pairs else "" for c in comparisons],
        "P(better)": [f"{c.improvement:.2f}" for c in comparisons],
        "verdict": [c.verdict for c in comparisons],
        "planned": ["yes" if c.primary else "no: exploratory" for c in comparisons],
    }
    if contents.margin is None:
        del columns["p (equal)"]
    if all(c.primary is None for c in comparisons):
        del columns["planned"]
    title = "Against the baseline"
    if len(set(columns["against"])) == 1:
        title = f"Against '{columns.pop('against')[0]}'"
    if len(set(columns["model"])) == 1:
        del columns["model"]
    decided = [c.verdict != UNDECIDED for c in comparisons]
    drawn = [
        [Cell(texts[n], decided[n] and name == "verdict") for name, texts in columns.items()]
        for n in range(len(comparisons))
    ]
    numbers = ("pairs", "difference", "95 % interval", "p (Holm)", "p (equal)", "P(better)")
    return Table(
        title,
        {name: name in numbers for name in columns},
        drawn,
        about_comparisons(contents),
        _sections([c.row for c in comparisons]),
    )


def _average_table(averages: Sequence[Average], evaluation: str) -> Table:
    """Return the table of averages over tasks; the best of each is bold."""
    best = {
        name: max((getattr(a, name) or 0.0 for a in averages), default=0.0) for name in ("glue", "eleven")
    }

    def cell(average: Average, name: str) -> Cell:
        value = getattr(average, name)
        return Cell("–") if value is None else Cell(f"{value:.4f}", value == best[name])

    drawn = [
        [Cell(model_name(a.model)), Cell(a.setting), cell(a, "glue"), cell(a, "eleven")] for a in averages
    ]
    columns = {"model": False, "setting": False, "GLUE average": True, "mean of eleven": True}
    notes = [
        f"{evaluation} evaluation; GLUE average: nine tasks, each the mean of its metrics",
        "mean of eleven: the numbers of AGNI's README, without WNLI and mismatched MNLI",
    ]
    return Table("Over all tasks", columns, drawn, notes)


def _page(table: Table) -> str:
    return as_markdown(table) + "".join(f"\n- {note}." for note in table.notes) + "\n"


def tables_of(contents: Contents) -> dict[str, Table]:
    """Return the tables that have content: `summary`, `comparison`, `averages`."""
    protocol, evaluation = contents.protocol, contents.evaluation
    tables = {
        "summary": summary_table(
            contents.rows,
            contents.marks,
            protocol=protocol,
            evaluation=evaluation,
            compared=bool(contents.comparisons),
        )
    }
    if contents.comparisons:
        tables["comparison"] = _comparison_table(contents)
    if contents.averaged:
        tables["averages"] = _average_table(contents.averaged, evaluation)
    return tables


def write_tables(contents: Contents, tables: Mapping[str, Table], output_dir: Path) -> list[Path]:
    """Write every table as `<name>.csv` (full precision), `<name>.md` and `<name>.tex`.

    Args:
        contents: The source of the csv files.
        tables: From `tables_of`.
        output_dir: Exists.

    Returns:
        The files.
    """
    files: dict[Path, str] = {}
    for name, table in tables.items():
        files[output_dir / f"{name}.csv"] = csv_of(name, contents)
        files[output_dir / f"{name}.md"] = _page(table)
        files[output_dir / f"{name}.tex"] = as_latex(_narrow(table))
    for path, text in files.items():
        write_whole(path, text)
    return list(files)


def _narrow(table: Table) -> Table:
    """Leave out columns for which an article has no room."""
    places = [number for number, name in enumerate(table.columns) if name not in NUMBERS or name == "runs"]
    columns = [name for number, name in enumerate(table.columns) if number in places]
    return Table(
        table.title,
        {name: table.columns[name] for name in columns},
        [[row[number] for number in places] for row in table.rows],
        table.notes,
        table.sections,
    )


def print_run(result: JsonObject, folder: Path, finished_before: bool) -> None:
    """Print a run's result and its place."""
    console = console_for_reading()
    if finished_before:
        message = f"{folder}: this run is finished, so nothing was done; --overwrite starts it anew"
        console.print(message, soft_wrap=True)
    last, best = result["metrics"]["last"], result["metrics"]["best"]
    scores = ", ".join(f"{name} [bold]{value:.4f}[/bold]" for name, value in last.items())
    seconds = sum(result["seconds"].values())
    primary = result["primary"]
    console.print(
        f"{result['task']}: {scores} after {result['steps']:,} steps (best {primary} {best[primary]:.4f}), "
        f"{seconds:.0f} s, {result['examples_per_second']:.0f} examples/s",
        soft_wrap=True,
    )
    console.print(f"result: {folder / 'result.json'}", soft_wrap=True)

"""One table, drawn for a terminal, a markdown page or a LaTeX article."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from rich.console import Console
from rich.markup import escape
from rich.table import Table as TerminalTable

__all__ = ["Cell", "Table", "as_latex", "as_markdown", "print_table"]

PRINTED_ROWS = 60
"""Most rows that a terminal shows; files hold all."""

LATEX = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "±": r"$\pm$",
    "≈": r"$\approx$",
    "−": r"$-$",
    "–": "--",
    "<": r"$<$",
    ">": r"$>$",
} | {character: f"\\{character}" for character in "&%$#_{}"}


@dataclass(frozen=True)
class Cell:
    """A cell of a table."""

    text: str
    bold: bool = False


@dataclass(frozen=True)
class Table:
    """A table.

    Attributes:
        title: What it shows.
        columns: Column → whether it holds numbers, which are aligned to the right.
        rows: Cells in the order of the columns.
        notes: Sentences below it.
        sections: Positions of rows after which a group ends.
    """

    title: str
    columns: dict[str, bool]
    rows: Sequence[Sequence[Cell]]
    notes: Sequence[str] = ()
    sections: frozenset[int] = field(default=frozenset())


def print_table(table: Table, console: Console, file: str) -> None:
    """Print a table; if it is too long, print its beginning and name the file with all rows."""
    drawn = TerminalTable(title=table.title, caption="\n".join(table.notes), caption_justify="left")
    for number, (name, right) in enumerate(table.columns.items()):
        drawn.add_column(name, justify="right" if right else "left", no_wrap=number == 0)
    for number, row in enumerate(table.rows[:PRINTED_ROWS]):
        cells = [f"[bold]{escape(cell.text)}[/bold]" if cell.bold else escape(cell.text) for cell in row]
        drawn.add_row(*cells, end_section=number in table.sections)
    console.print(drawn)
    if len(table.rows) > PRINTED_ROWS:
        console.print(f"{PRINTED_ROWS} of {len(table.rows):,} rows; all are in {file}", soft_wrap=True)


def as_markdown(table: Table) -> str:
    """Return the rows as a markdown table, without title and notes."""

    def drawn(cell: Cell) -> str:
        text = cell.text.replace("|", "\\|")
        return f"**{text}**" if cell.bold else text

    lines = ["| " + " | ".join(table.columns) + " |", "|" + " --- |" * len(table.columns)]
    lines += ["| " + " | ".join(map(drawn, row)) + " |" for row in table.rows]
    return "\n".join(lines) + "\n"


def _latex(text: str) -> str:
    return "".join(LATEX.get(character, character) for character in text)


def as_latex(table: Table) -> str:
    """Return a LaTeX table with title and notes in its caption; needs the package booktabs."""

    def drawn(cell: Cell) -> str:
        return rf"\textbf{{{_latex(cell.text)}}}" if cell.bold and cell.text else _latex(cell.text)

    lines = [
        "% needs \\usepackage{booktabs}",
        r"\begin{table}",
        r"\centering",
        rf"\caption{{{_latex(' '.join([table.title + '.', *(f'{note}.' for note in table.notes)]))}}}",
        rf"\begin{{tabular}}{{{''.join('r' if right else 'l' for right in table.columns.values())}}}",
        r"\toprule",
        " & ".join(map(_latex, table.columns)) + r" \\",
        r"\midrule",
    ]
    for number, row in enumerate(table.rows):
        lines.append(" & ".join(map(drawn, row)) + r" \\")
        if number in table.sections:
            lines.append(r"\midrule")
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}", r"\end{table}"]) + "\n"

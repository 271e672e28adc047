"""The table of a search, the best trial first."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.table import Table

from glue_harness.console import console_for_reading

__all__ = ["print_search", "shown"]


def shown(value: Any) -> str:
    """Return a setting's value in three digits, if it is a number with a fraction."""
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def print_search(report: Mapping[str, Any], folder: Path) -> None:
    """Print what `search.json` holds.

    Args:
        report: Its content.
        folder: The search's folder.
    """
    best = report["best"]
    title = f"{report['task']}: {report['scheduler']}, {report['sampler']} sampling, best {report['metric']}"
    options = list(dict.fromkeys(option for one in report["trials"] for option in one["configuration"]))
    table = Table("trial", report["metric"], "epochs", *options, "took weights from", title=title)
    ids = {one["id"]: one["trial"] for one in report["evaluations"]}
    for one in sorted(report["trials"], key=lambda one: (one["score"] is None, -(one["score"] or 0))):
        own = [other for other in report["evaluations"] if other["trial"] == one["number"]]
        donors = [ids[other["parent"]] for other in own if other["parent"]]
        taken = ", ".join(str(number) for number in donors if number != one["number"])
        table.add_row(
            str(one["number"]),
            "failed" if one["score"] is None else f"{one['score']:.4f}",
            f"{one['epoch']:g}",
            *(shown(one["configuration"].get(option)) for option in options),
            taken,
            style="bold" if one["number"] == best["trial"] else None,
        )
    console = console_for_reading()
    console.print(table)
    console.print(
        f"best: trial {best['trial']}, {report['metric']} {best['score']:.4f}; weights and configuration in "
        f"{folder / 'best'}",
        soft_wrap=True,
    )

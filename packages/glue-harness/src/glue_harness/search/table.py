"""The table of a search, the best trial first."""

from __future__ import annotations

from pathlib import Path

from rich.table import Table

from finetune_common.aliases import JsonObject
from glue_harness.console import console_for_reading

__all__ = ["print_search", "text_of"]


def text_of(value: object) -> str:
    """Return a setting's value as text; a float with three digits."""
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def print_search(report: JsonObject, folder: Path) -> None:
    """Print what `search.json` holds.

    Args:
        report: Its content.
        folder: The search's folder.
    """
    best = report["best"]
    title = f"{report['task']}: {report['scheduler']}, {report['sampler']} sampling, best {report['metric']}"
    options = list(dict.fromkeys(option for trial in report["trials"] for option in trial["configuration"]))
    table = Table("trial", report["metric"], "epochs", *options, "took weights from", title=title)
    ids = {evaluation["id"]: evaluation["trial"] for evaluation in report["evaluations"]}
    for trial in sorted(report["trials"], key=lambda trial: (trial["score"] is None, -(trial["score"] or 0))):
        of_trial = [other for other in report["evaluations"] if other["trial"] == trial["number"]]
        donors = [ids[other["parent"]] for other in of_trial if other["parent"]]
        taken = ", ".join(str(number) for number in donors if number != trial["number"])
        table.add_row(
            str(trial["number"]),
            "failed" if trial["score"] is None else f"{trial['score']:.4f}",
            f"{trial['epoch']:g}",
            *(text_of(trial["configuration"].get(option)) for option in options),
            taken,
            style="bold" if trial["number"] == best["trial"] else None,
        )
    console = console_for_reading()
    console.print(table)
    console.print(
        f"best: trial {best['trial']}, {report['metric']} {best['score']:.4f}; weights and configuration in "
        f"{folder / 'best'}",
        soft_wrap=True,
    )

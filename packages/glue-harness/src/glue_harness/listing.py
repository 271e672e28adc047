"""What can be chosen: the installed methods and the tasks."""

from __future__ import annotations

import inspect

from rich.markup import escape
from rich.table import Table

from finetune_common.errors import ConfigurationError
from finetune_common.slots import HOLDERS, available, find
from finetune_common.tasks import TASKS
from glue_harness.config.fields import SLOTS
from glue_harness.console import console_for_reading

__all__ = ["list_methods", "list_tasks"]


def list_methods() -> None:
    """Print every installed method by slot, and the names that other packages of the project hold."""
    table = Table("slot", "method", "what it does", "from", title="methods")
    for slot in SLOTS:
        installed = available(slot)
        for name, point in installed.items():
            try:
                summary = (inspect.getdoc(find(slot, name)) or "").partition("\n")[0]
            except ConfigurationError as error:
                summary = f"[red]{escape(str(error))}"
            table.add_row(
                slot, name, summary, f"{point.dist.name} {point.dist.version}" if point.dist else ""
            )
        for package, names in HOLDERS[slot].items():
            if missing := [name for name in names.split() if name not in installed]:
                table.add_row(
                    slot, "[dim]not installed", f"[dim]{', '.join(missing)}", f"[dim]packages/{package}"
                )
        table.add_section()
    console_for_reading().print(table)


def list_tasks() -> None:
    """Print every task with its texts, labels, metrics and rows."""
    table = Table("task", "texts", "labels", "metrics", "train", "evaluated on", title="tasks")
    for task in TASKS.values():
        low, high = task.label_range
        table.add_row(
            task.name,
            ", ".join(task.columns),
            f"{low:g} to {high:g}" if task.regression else ", ".join(task.labels),
            ", ".join(task.metrics),
            f"{task.rows['train']:,}",
            ", ".join(f"{split} ({task.rows[split]:,})" for split in task.evaluation),
        )
    console_for_reading().print(table)

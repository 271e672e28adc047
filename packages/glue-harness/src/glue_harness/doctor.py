"""What this machine has, and what is missing."""

from __future__ import annotations

import shutil
from importlib.metadata import PackageNotFoundError, version

import torch
from rich.table import Table

from finetune_common.slots import GROUPS, HOLDERS, available
from glue_harness.console import console_for_reading
from glue_harness.hardware import hardware, versions

__all__ = ["doctor"]

OPTIONAL = {
    "bitsandbytes": "adamw-8bit, lion-8bit and QLoRA, on CPUs as well: pip install 'bitsandbytes>=0.49'",
    "peft": "LoRA: it comes with packages/parameter-efficient",
}


def _compiler() -> str:
    for name in ("g++", "clang++"):
        if path := shutil.which(name):
            return f"{path} (torch.compile can build CPU kernels)"
    return "[yellow]none: fused optimizers fall back to slower loops; install g++"


def doctor() -> None:
    """Print devices, compiler, versions and methods; name what is missing and how to get it."""
    console = console_for_reading()
    table = Table("what", "found", title="glue-harness doctor", show_header=False)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    for key, value in hardware(device).items():
        table.add_row(key, str(value))
    if device.type == "cpu":
        table.add_row("CUDA", "none: runs happen on the CPU")
    table.add_row("compiler", _compiler())
    table.add_section()
    for name, installed in versions().items():
        table.add_row(name, installed)
    for name, remedy in OPTIONAL.items():
        try:
            table.add_row(name, version(name))
        except PackageNotFoundError:
            table.add_row(name, f"[dim]not installed; for {remedy}")
    table.add_section()
    for slot in GROUPS:
        names = list(available(slot))
        table.add_row(f"{slot} methods", ", ".join(names) or "none")
        for package, held in HOLDERS[slot].items():
            if missing := [name for name in held.split() if name not in names]:
                table.add_row(
                    "", f"[dim]not installed: {', '.join(missing)} (pip install ./packages/{package})"
                )
    console.print(table)

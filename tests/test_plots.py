"""Every plot function of the packages is called and answers in the same way."""

import importlib
import inspect
from collections.abc import Callable
from pathlib import Path

import pytest

PACKAGES = ("activation_compression", "clipped_adaptive", "noise_injection", "sensitivity_lr")
PLOTS = [
    (package, name)
    for package in PACKAGES
    for name in importlib.import_module(f"{package}.plots").__all__
    if name.startswith("plot_")
]


def test_every_package_with_plots_is_looked_at(root: Path) -> None:
    assert {path.parent.name for path in root.glob("packages/*/src/*/plots.py")} == set(PACKAGES)


@pytest.mark.parametrize(("package", "name"), PLOTS)
def test_a_plot_takes_axes_last_and_returns_them(package: str, name: str) -> None:
    plot: Callable[..., object] = getattr(importlib.import_module(f"{package}.plots"), name)
    signature = inspect.signature(plot)
    last = list(signature.parameters.values())[-1]
    assert (last.name, last.default, signature.return_annotation) == ("ax", None, "Axes")

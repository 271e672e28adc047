"""A pytest plugin: the fixture `device`, for tests that run on the CPU, and on CUDA if there is one.

    # conftest.py
    pytest_plugins = ("finetune_common.testing.device",)

`pytest --device cuda` runs such tests only on CUDA, and fails without it; `-m cuda` selects them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from _pytest.mark import ParameterSet  # what pytest.param returns

__all__ = ["devices"]


def devices(asked: str | None) -> list[str | ParameterSet]:
    """Return the values of the fixture `device`.

    Args:
        asked: "cpu", "cuda", or None for the CPU and, if present, CUDA.

    Raises:
        pytest.UsageError: CUDA is requested, and there is none.

    Examples:
        >>> devices("cpu")
        ['cpu']
    """
    import torch

    if asked == "cuda" and not torch.cuda.is_available():
        raise pytest.UsageError("--device cuda: torch finds no CUDA device: leave --device out")
    on_cuda = asked != "cpu" and torch.cuda.is_available()
    on_cpu = [] if asked == "cuda" else ["cpu"]
    return [*on_cpu, *([pytest.param("cuda", marks=pytest.mark.cuda)] if on_cuda else [])]


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the option."""
    text = "where tests with the fixture `device` run (default: the CPU, and CUDA if there is one)"
    parser.addoption("--device", choices=("cpu", "cuda"), help=text)


def pytest_configure(config: pytest.Config) -> None:
    """Add the mark."""
    config.addinivalue_line("markers", "cuda: runs on a GPU")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Give tests their devices."""
    if "device" in metafunc.fixturenames:
        metafunc.parametrize("device", devices(metafunc.config.getoption("--device")))

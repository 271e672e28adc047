"""What the tests across packages share."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
ROOT = Path(__file__).parent.parent
# Not for the tests of packages: where peft is missing, benchmarks/peft would pass for it.
sys.path.append(str(ROOT / "benchmarks"))


@pytest.fixture(scope="session")
def root() -> Path:
    """The checkout."""
    return ROOT


def pytest_configure(config: pytest.Config) -> None:
    """A model of a few steps may predict one class only, which the metrics say in a warning."""
    config.addinivalue_line("filterwarnings", "ignore:.*reported as 0.0:UserWarning")

"""What the tests across packages share."""

import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

sys.path.insert(0, str(Path(__file__).parent))
ROOT = Path(__file__).parent.parent
# Not for the tests of packages: where peft is missing, benchmarks/peft would pass for it.
sys.path.append(str(ROOT / "benchmarks"))


@pytest.fixture(scope="session")
def root() -> Path:
    """The checkout."""
    return ROOT


@pytest.fixture
def load_script(monkeypatch: pytest.MonkeyPatch) -> Callable[[Path], ModuleType]:
    """A script of the benchmarks as a module, with the scripts beside it, for the length of a test."""

    def load(file: Path) -> ModuleType:
        monkeypatch.syspath_prepend(file.parent)
        spec = importlib.util.spec_from_file_location(f"benchmark_script_{file.stem}", file)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        monkeypatch.setitem(sys.modules, spec.name, module)
        spec.loader.exec_module(module)
        return module

    return load


def pytest_configure(config: pytest.Config) -> None:
    """A model of a few steps may predict one class only, which the metrics say in a warning."""
    config.addinivalue_line("filterwarnings", "ignore:.*reported as 0.0:UserWarning")

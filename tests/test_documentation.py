"""What the documentation shows runs: the examples in docstrings, and the Python blocks of every page."""

import doctest
import importlib
import inspect
import pkgutil
import re
import textwrap
import warnings
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = {
    path.name: path
    for pattern in ("shared/src/*", "packages/*/src/*", "examples/methods/*/src/*")
    for path in sorted(ROOT.glob(pattern))
    if (path / "__init__.py").exists()
}


def modules() -> list[str]:
    """Every module of every package, by name, without importing it."""
    found = []
    for package, folder in PACKAGES.items():
        found += [package, *(info.name for info in pkgutil.walk_packages([str(folder)], f"{package}."))]
    return [name for name in found if not name.endswith("__main__")]


class Undecorated(doctest.DocTestFinder):
    """Finds the examples of decorated functions too, whose wrapper comes from another module."""

    def _from_module(self, module, object):
        return super()._from_module(module, inspect.unwrap(object) if callable(object) else object)


@pytest.mark.parametrize("name", modules())
def test_examples_in_docstrings(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every `>>>` prints what the docstring says."""
    monkeypatch.chdir(tmp_path)
    try:
        module = importlib.import_module(name)
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] in PACKAGES:
            raise
        pytest.skip(f"needs {error.name}")
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE)
    for examples in Undecorated().find(module):
        runner.run(examples)
    assert runner.summarize().failed == 0


def pages() -> list[Path]:
    """Every page that has Python blocks."""
    found = [ROOT / "README.md", *ROOT.glob("shared/README.md"), *ROOT.glob("packages/*/README.md")]
    found += ROOT.glob("docs/**/*.md")
    return sorted(page for page in found if page.exists() and blocks(page))


def included(line: re.Match[str]) -> str:
    """What a page takes from a file: all of it, or what lies between the marks of a section."""
    text, section = (ROOT / line[1]).read_text(encoding="utf-8"), line[2]
    if section is None:
        return text
    return re.split(rf"# --8<-- \[(?:start|end):{section}\]\n", text)[1]


def blocks(page: Path) -> list[tuple[int, str]]:
    """The ```python blocks of a page, each with the line it begins on."""
    text = page.read_text(encoding="utf-8")
    return [
        (
            text.count("\n", 0, match.start(1)) + 1,
            re.sub(
                r'^--8<-- "([^:"]+)(?::(\w+))?"$', included, textwrap.dedent(match[1]), flags=re.MULTILINE
            ),
        )
        for match in re.finditer(r"^ *```python *\n(.*?)^ *```", text, re.DOTALL | re.MULTILINE)
    ]


@pytest.mark.parametrize("page", pages(), ids=lambda page: str(page.relative_to(ROOT)))
def test_python_blocks_of_a_page_run_in_order(
    page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The blocks of a page share their names, as they do for its reader."""
    monkeypatch.chdir(tmp_path)
    names = {"__name__": "__main__"}
    with warnings.catch_warnings():
        warnings.simplefilter("default")
        for line, code in blocks(page):
            exec(compile("\n" * (line - 1) + code, str(page), "exec"), names)


def documented(page: Path) -> dict[str, list[str] | None]:
    """The modules that a page of the API shows, each with the members it is limited to."""
    found = re.findall(
        r"^::: (\S+)\n(?:    options: \{members: \[(.*)\]\})?", page.read_text(encoding="utf-8"), re.MULTILINE
    )
    return {module: re.findall(r"\w+", members) or None for module, members in found}


@pytest.mark.parametrize("name", sorted(path.name for path in ROOT.glob("packages/*")))
def test_every_public_name_is_in_the_api(name: str) -> None:
    """Classes and functions that a package offers, and its plots, stand on its page."""
    package = importlib.import_module(name.replace("-", "_"))
    page = ROOT / "docs" / "api" / f"{name}.md"
    shown = documented(page)
    offered = {name: getattr(package, name) for name in package.__all__}
    if (Path(package.__path__[0]) / "plots.py").exists():
        plots = importlib.import_module(f"{package.__name__}.plots")
        offered |= {name: getattr(plots, name) for name in plots.__all__}
    for public, value in offered.items():
        if isinstance(value, type) or inspect.isfunction(value):
            assert value.__module__ in shown, f"{public}: {value.__module__} is not on {page.name}"
            members = shown[value.__module__]
            assert members is None or public in members, f"{public} is not among the members on {page.name}"


@pytest.mark.parametrize("name", sorted(path.name for path in ROOT.glob("packages/*")))
def test_every_public_name_has_an_example(name: str) -> None:
    """What users call shows how; what they are handed is shown where it is made."""
    package = importlib.import_module(name.replace("-", "_"))
    handed = {"ClipReport", "CompileOptions", "Quantized"}
    for public in set(package.__all__) - handed:
        value = getattr(package, public)
        if callable(value) and not inspect.ismodule(value):
            assert ">>> " in (inspect.getdoc(value) or ""), f"{public} has no example"

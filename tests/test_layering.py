"""Who may import whom, what an import may cost, and that every public name is described.

Packages are found by looking, so a new one is held to the same rules.
"""

import ast
import importlib
import inspect
import pkgutil
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from functools import cache
from graphlib import CycleError, TopologicalSorter
from importlib.metadata import entry_points
from pathlib import Path
from types import ModuleType

import pytest

from finetune_common.slots import GROUPS, HOLDERS

ROOT = Path(__file__).parent.parent
PACKAGES = {path.name: path for path in sorted([*ROOT.glob("shared/src/*"), *ROOT.glob("packages/*/src/*")])}
EXAMPLES = {path.name: path for path in sorted(ROOT.glob("examples/methods/*/src/*_*")) if path.is_dir()}
SOURCES = PACKAGES | EXAMPLES
METHODS = [name for name in SOURCES if name not in ("finetune_common", "glue_harness")]
FINISHED = [name for name in METHODS if (SOURCES[name] / "__init__.py").exists()]

HEAVY = (
    "transformers",
    "datasets",
    "sklearn",
    "scipy",
    "pandas",
    "matplotlib",
    "accelerate",
    "peft",
    "pyarrow",
)


def imports(file: Path) -> set[str]:
    """The top-level names that a file imports, wherever in it."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found.add(node.module.partition(".")[0])
    return found


@cache
def loaded_by(statement: str) -> frozenset[str]:
    """The top-level modules that a fresh interpreter has after a statement."""
    program = f"{statement}\nimport sys\nprint(*sorted({{name.partition('.')[0] for name in sys.modules}}))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return frozenset(done.stdout.splitlines()[-1].split())


def beyond_torch(statement: str) -> frozenset[str]:
    """What a statement loads beyond torch, the standard library and what torch itself brings."""
    own = {*SOURCES, *sys.stdlib_module_names}
    return loaded_by(statement) - loaded_by("import torch, torch.optim, torch.nn.functional") - own


def test_packages_are_found() -> None:
    assert {"finetune_common", "glue_harness", "example_lisa"} <= set(SOURCES)


@pytest.mark.parametrize("module", ["finetune_common.optim", "finetune_common.slots"])
def test_shared_ground_needs_torch_and_the_standard_library_only(module: str) -> None:
    path = SOURCES["finetune_common"] / module.partition(".")[2]
    if not (path.is_dir() or path.with_suffix(".py").is_file()):
        pytest.skip(f"{module} is not there yet")
    assert beyond_torch(f"from {module} import *") == set()


@pytest.mark.parametrize("package", FINISHED)
def test_method_package_needs_torch_and_the_standard_library_only(package: str) -> None:
    """Every public name is imported; parameter-efficient may use peft, which brings its own."""
    beside = beyond_torch(f"from {package} import *")
    assert beside == set() or (package == "parameter_efficient" and "peft" in beside)


@pytest.mark.parametrize("package", FINISHED)
def test_importing_a_package_or_its_options_does_not_import_torch(package: str) -> None:
    assert "torch" not in loaded_by(f"import {package}")
    if (SOURCES[package] / "slots.py").exists():
        assert "torch" not in loaded_by(f"import {package}.slots")


def test_offered_methods_and_their_options_do_not_import_torch() -> None:
    groups = [group for group in GROUPS.values() if entry_points(group=group)]
    assert len(groups) >= 3
    statement = (
        "from importlib.metadata import entry_points\n"
        f"for group in {groups!r}:\n"
        "    for point in entry_points(group=group):\n"
        "        point.load().Options"
    )
    assert "torch" not in loaded_by(statement)


@pytest.mark.parametrize("package", SOURCES)
def test_no_package_imports_what_is_beside_or_above_it(package: str) -> None:
    """Methods know the shared layer; the shared layer knows nobody; the harness knows no method package."""
    forbidden = {name for name in SOURCES if name not in (package, "finetune_common")}
    for file in SOURCES[package].rglob("*.py"):
        assert not imports(file) & forbidden, file


@cache
def files(package: str) -> dict[str, Path]:
    """The modules of a package, by name."""
    found = {}
    for file in SOURCES[package].rglob("*.py"):
        parts = file.relative_to(SOURCES[package].parent).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = file
    return found


def statements(node: ast.AST) -> Iterator[ast.AST]:
    """A module's nodes, functions' bodies included; what only a type checker reads is left out."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and ast.unparse(child.test).endswith("TYPE_CHECKING"):
            continue
        yield child
        yield from statements(child)


@cache
def arrows(package: str) -> dict[str, set[str]]:
    """Module → the modules of its package that it imports: at its top, in a function, by a lazy name."""
    known = files(package)
    found: dict[str, set[str]] = {name: set() for name in known}
    for name, file in known.items():
        tree = ast.parse(file.read_text(encoding="utf-8"))
        for node in statements(tree):
            if isinstance(node, ast.Import):
                found[name] |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                assert not node.level, f"{file}: a relative import"
                paths = [f"{node.module}.{alias.name}" for alias in node.names]
                found[name] |= {path if path in known else str(node.module) for path in paths}
            elif isinstance(node, ast.Call) and ast.unparse(node.func) == "lazy_exports":
                words = [word.value for word in ast.walk(tree) if isinstance(word, ast.Constant)]
                found[name] |= {f"{name}{word}" for word in words if str(word).startswith(".")}
    return {name: (targets & known.keys()) - {name} for name, targets in found.items()}


def circle(graph: dict[str, set[str]]) -> list[str]:
    """A circle in a graph, or nothing."""
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return error.args[1]
    return []


@pytest.mark.parametrize("package", SOURCES)
def test_no_modules_import_each_other_in_a_circle(package: str) -> None:
    assert not circle(arrows(package))


LEVELS = {
    "glue_harness": (
        "__init__ __main__",
        "cli",
        "commands predict export submit doctor inspecting listing prepare",
        "report sweep search",
        "cost cluster",
        "run",
        "config",
        "baselines console extras hardware",
        "baseline_options files stopping",
    ),
    "finetune_common": (
        "__init__ testing",
        "data metrics optim scorers",
        "compiled demo measure slots tasks",
        "arguments imported plotting",
        "aliases blocks errors lazy",
    ),
}
"""The rooms of a package, from the top: each stands on its own level and on those below it."""


@pytest.mark.parametrize("package", LEVELS)
def test_arrows_between_rooms_point_downwards(package: str) -> None:
    levels = {room: level for level, rooms in enumerate(LEVELS[package]) for room in rooms.split()}
    rooms: dict[str, set[str]] = {}
    for module, targets in arrows(package).items():
        room = f"{module}.__init__".split(".")[1]
        assert room in levels, f"{room} has no level yet"
        for target in targets:
            other = f"{target}.__init__".split(".")[1]
            assert levels[room] <= levels[other], f"{module} imports {target}, which is above it"
            rooms.setdefault(room, set()).update({other} - {room})
    assert not circle(rooms)


@pytest.mark.parametrize("package", METHODS)
def test_nothing_stands_on_a_method_package_s_entry_points(package: str) -> None:
    """They are the package's top, as are plots and callbacks of a trainer."""
    tops = {f"{package}.{name}" for name in ("slots", "trainer")}
    assert not [module for module, targets in arrows(package).items() if targets & tops]


@pytest.mark.parametrize("folder", ["shared", "packages", "examples", "benchmarks", "docs"])
def test_no_source_file_is_longer_than_300_lines(folder: str) -> None:
    found = [file for file in (ROOT / folder).rglob("*.py") if "tests" not in file.parts]
    assert not [file for file in found if len(file.read_text(encoding="utf-8").splitlines()) > 300]


def test_harness_names_no_method_package_and_no_method_of_one() -> None:
    """Installing a package is all it takes; words in the harness's code would be a second list."""
    packages = {holder for held in HOLDERS.values() for holder in held if holder != "glue-harness"}
    methods = {
        name
        for held in HOLDERS.values()
        for holder, names in held.items()
        if holder != "glue-harness"
        for name in names.split()
        if "-" in name
    }
    names = packages | {name.replace("-", "_") for name in packages} | methods
    for file in SOURCES["glue_harness"].rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                assert node.value not in names, f"{file.name} line {node.lineno}: {node.value!r}"
            elif isinstance(node, ast.Name | ast.Attribute):
                word = node.id if isinstance(node, ast.Name) else node.attr
                assert word not in names, f"{file.name} line {node.lineno}: {word}"


def test_names_in_the_table_of_holders_are_the_ones_that_packages_offer() -> None:
    """What the message 'not installed: it is in packages/…' says is true for every package there is."""
    for project in ROOT.glob("packages/*/pyproject.toml"):
        described = tomllib.loads(project.read_text(encoding="utf-8"))["project"]
        offered = described.get("entry-points", {})
        for slot, group in GROUPS.items():
            held = set(HOLDERS[slot].get(described["name"], "").split())
            assert set(offered.get(group, {})) <= held, f"{described['name']} {slot}"


def modules(package: str) -> Iterator[ModuleType]:
    """Every module of a package but those behind an extra that is not installed."""
    root = importlib.import_module(package)
    yield root
    for found in pkgutil.walk_packages(root.__path__, f"{package}."):
        if found.name.endswith("__main__"):
            continue
        try:
            yield importlib.import_module(found.name)
        except ModuleNotFoundError as error:
            if (error.name or "").partition(".")[0] in SOURCES:
                raise


@pytest.mark.parametrize("package", SOURCES)
def test_every_public_name_is_described(package: str) -> None:
    """Names in `__all__`, and the public methods of public classes, have a docstring."""
    for module in modules(package):
        assert module.__doc__, f"{module.__name__} has no docstring"
        for name in getattr(module, "__all__", ()):
            thing = getattr(module, name)
            if inspect.isclass(thing) or inspect.isroutine(thing):
                assert inspect.getdoc(thing), f"{module.__name__}.{name} has no docstring"
            if inspect.isclass(thing) and thing.__module__ == module.__name__:
                for method, value in vars(thing).items():
                    if inspect.isfunction(value) and not method.startswith("_"):
                        assert inspect.getdoc(getattr(thing, method)), f"{module.__name__}.{name}.{method}"


@pytest.mark.parametrize("package", PACKAGES)
def test_every_package_is_complete(package: str) -> None:
    folder = SOURCES[package].parent.parent
    assert (SOURCES[package] / "py.typed").exists()
    assert (folder / "README.md").stat().st_size > 200
    described = tomllib.loads((folder / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert described["name"].replace("-", "_") == package
    assert re.fullmatch(r"\d+\.\d+\.\d+", described["version"])
    if package not in ("finetune_common", "glue_harness"):
        assert (folder / "CHANGELOG.md").exists()
        needed = [re.split(r"[\[<>=~! ]", requirement)[0] for requirement in described["dependencies"]]
        more = {"peft", "transformers"} if package == "parameter_efficient" else set()  # peft brings it
        assert set(needed) <= {"torch", "finetune-common"} | more


HELP = """
from glue_harness.cli import main
try:
    main({argv!r})
except SystemExit as end:
    assert not end.code
"""


@pytest.mark.parametrize(
    "argv",
    [
        ["--help"],
        ["run", "--help"],
        ["run", "--optimizer", "adamw", "--help"],
        ["prepare", "--help"],
        ["report", "--help"],
        ["sweep", "--help"],
        ["search", "--help"],
        ["list", "--help"],
        ["doctor", "--help"],
        ["inspect", "--help"],
    ],
    ids=" ".join,
)
def test_help_imports_nothing_heavy(argv: list[str]) -> None:
    """Help answers at once because the work's libraries are not loaded for it."""
    loaded = loaded_by(HELP.format(argv=argv))
    assert not loaded & {"torch", "numpy", *HEAVY}


def test_refusals_before_the_work_import_nothing_heavy() -> None:
    line = ["run", "--task", "rte", "--model", "demo", "--output-dir", "unused", "--batch-size", "0"]
    statement = f"from glue_harness.cli import main\nassert main({line!r}) == 2"
    assert not loaded_by(statement) & {"torch", *HEAVY}

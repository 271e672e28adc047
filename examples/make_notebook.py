"""Write quickstart.ipynb from quickstart.py, with what its cells print."""

from __future__ import annotations

import io
import json
import re
import sys
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent


def cells(script: str) -> list[tuple[str, str]]:
    """Return kind (markdown or code) and text of each cell of a script in percent format.

    Examples:
        >>> cells("# %% [markdown]\\n# # Title\\n\\n# %%\\nprint(1)\\n")
        [('markdown', '# Title'), ('code', 'print(1)')]
    """
    found = []
    for mark, text in re.findall(r"^# %%([^\n]*)\n(.*?)(?=^# %%|\Z)", script, re.DOTALL | re.MULTILINE):
        if "markdown" in mark:
            found.append(("markdown", re.sub(r"^# ?", "", text.strip(), flags=re.MULTILINE)))
        else:
            found.append(("code", text.strip()))
    return found


def notebook(script: str, names: dict[str, Any]) -> dict[str, Any]:
    """Run a script cell by cell and return it as a notebook; what goes to standard error is dropped."""
    written, count = [], 0
    for number, (kind, text) in enumerate(cells(script)):
        cell: dict[str, Any] = {"cell_type": kind, "id": f"cell-{number}", "metadata": {}}
        cell["source"] = text.splitlines(keepends=True)
        if kind == "code":
            count += 1
            with redirect_stdout(io.StringIO()) as said, redirect_stderr(io.StringIO()):
                exec(compile(text, "quickstart", "exec"), names)
            lines = said.getvalue().splitlines(keepends=True)
            printed = [{"output_type": "stream", "name": "stdout", "text": lines}] if lines else []
            cell |= {"execution_count": count, "outputs": printed}
        written.append(cell)
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    metadata = {"kernelspec": kernel, "language_info": {"name": "python"}}
    return {"cells": written, "metadata": metadata, "nbformat": 4, "nbformat_minor": 5}


def main() -> int:
    """Run the script and write the notebook."""
    made = notebook((HERE / "quickstart.py").read_text(encoding="utf-8"), {"__name__": "__main__"})
    text = json.dumps(made, indent=1, ensure_ascii=False) + "\n"
    (HERE / "quickstart.ipynb").write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())

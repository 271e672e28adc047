"""Draw what the first command prints, from the notebook's outputs, as a picture for the README.

python docs/figures/quickstart.py
"""

from __future__ import annotations

import json
import re
from html import escape
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent
PICTURE = Path(__file__).with_suffix(".svg")
LINE, LETTER, MARGIN = 19, 7.83, 14
"""Pixels: height of a line, width of a letter of 13 pixels, and around the text."""


def printed() -> list[str]:
    """Return the lines that the notebook's cells printed, the table first."""
    cells = json.loads((ROOT / "examples/quickstart.ipynb").read_text(encoding="utf-8"))["cells"]
    outputs = ["".join(out["text"]) for cell in cells for out in cell.get("outputs", ())]
    return "\n".join(outputs).splitlines()


def unbroken(line: str) -> str:
    """Return a line whose blanks a browser does not join."""
    return re.sub(r" (?= )|^ ", "\u00a0", line)


def picture(lines: list[str]) -> str:
    """Return text as an SVG on a ground of its own, legible on light and dark pages.

    Examples:
        >>> "<text" in picture(["a < b"]) and "a &lt; b" in picture(["a < b"])
        True
    """
    width = round(2 * MARGIN + LETTER * max(map(len, lines)))
    height = 2 * MARGIN + LINE * len(lines)
    rows = "\n".join(
        f'<text x="{MARGIN}" y="{MARGIN + LINE * (number + 1) - 5}">{unbroken(escape(line))}</text>'
        for number, line in enumerate(lines)
        if line
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" '
        f'height="{height}" role="img">\n<rect width="100%" height="100%" rx="8" fill="#f6f8fa"/>\n'
        '<g font-family="ui-monospace, Menlo, Consolas, monospace" font-size="13" fill="#1f2328">'
        f"\n{rows}\n</g>\n</svg>\n"
    )


if __name__ == "__main__":
    PICTURE.write_text(picture(printed()), encoding="utf-8")

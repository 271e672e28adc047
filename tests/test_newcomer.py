"""What the pages tell a newcomer to type works, in an empty folder, with nothing but the files they name.

Their Python is run by `test_documentation.py`: an optimizer in a loop, compression in a loop and in HF
Trainer. Here are the commands on a CSV of one's own, up to a prediction. The pages' model has to be fetched;
the demo model stands in for it, and few steps for whole epochs.
"""

import csv
import json
import re
import shlex
import string
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest

from glue_harness.cli import main

SENTENCES = {"billing": "the invoice shows the wrong amount", "delivery": "the parcel has not arrived"}


@pytest.fixture
def own_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder, but for the files that the pages name."""
    monkeypatch.chdir(tmp_path)
    for name, rows in (("tickets", 40), ("train", 40), ("dev", 10), ("new", 4)):
        with (tmp_path / f"{name}.csv").open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            labelled = name != "new"
            writer.writerow(["text", "label"] if labelled else ["text"])
            for number in range(rows):
                label = list(SENTENCES)[number % 2]
                text = f"{SENTENCES[label]}, case {number} of {name}"
                writer.writerow([text, label] if labelled else [text])
    return tmp_path


def commands(page: Path, containing: str) -> Iterator[list[str]]:
    """The `glue-harness` lines of the page's first shell block with this text, variables filled in."""
    text = page.read_text(encoding="utf-8")
    shells = re.findall(r"^ *```bash\n(.*?)^ *```", text, re.DOTALL | re.MULTILINE)
    block = next(shell for shell in shells if containing in shell).replace("\\\n", " ")
    variables: dict[str, str] = {}
    for line in filter(None, textwrap.dedent(block).splitlines()):
        words = shlex.split(string.Template(line).substitute(variables), comments=True)
        if assignment := re.fullmatch(r"(\w+)=(.*)", words[0]):
            variables[assignment[1]] = assignment[2]
        else:
            assert words[0] == "glue-harness", line
            yield words[1:]


def typed(words: list[str]) -> None:
    """Run one command with the demo model and few steps; it has to end well."""
    words = ["demo" if word == "bert-base-uncased" else word for word in words]
    short = ["--max-steps", "4", "--batch-size", "8"] if words[0] == "run" else []
    assert main([*words, *short]) in (0, None), words


@pytest.mark.slow
def test_the_home_page_leads_from_a_csv_to_a_prediction(
    root: Path, own_files: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for words in commands(root / "docs/index.md", "tickets.csv"):
        capsys.readouterr()
        typed(words)
    answers = list(csv.DictReader(capsys.readouterr().out.splitlines()))
    assert len(answers) == 4
    assert {answer["label"] for answer in answers} <= SENTENCES.keys()
    results = [json.loads((own_files / f"runs/{name}/result.json").read_text()) for name in ("adamw", "lora")]
    assert results[1]["parameters"]["trainable"] < results[0]["parameters"]["trainable"]
    assert list(own_files.rglob("*.html"))


def test_the_page_on_own_data_inspects_and_trains(root: Path, own_files: Path) -> None:
    for words in commands(root / "docs/harness/own-data.md", "reviews"):
        typed(words)
    result = json.loads((own_files / "runs/reviews/result.json").read_text())
    assert result["classes"]["validation"]["classes"].keys() == SENTENCES.keys()

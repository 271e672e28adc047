"""The walk-through of the support tickets runs as it stands, and prints what it says."""

import csv
import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

FOLDER = Path(__file__).parent.parent / "examples/support-tickets"


def blocks(language: str) -> list[str]:
    text = (FOLDER / "README.md").read_text(encoding="utf-8")
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.DOTALL | re.MULTILINE)


def lines(path: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(path.read_text(encoding="utf-8").splitlines()))


@pytest.mark.slow
def test_the_walk_through_of_the_support_tickets(tmp_path: Path) -> None:
    here = tmp_path / "support-tickets"
    shutil.copytree(FOLDER, here)
    done = [
        subprocess.run(
            ["bash", "-c", f"set -e\n{block}"], cwd=here, capture_output=True, text=True, check=False
        )
        for block in blocks("bash")
    ]
    assert [one.returncode for one in done] == [0, 2, 0, 0, 0, 0], [one.stderr[-300:] for one in done]
    refused, block = blocks("text")
    assert done[1].stderr == refused
    assert done[2].stdout == block
    assert done[3].stdout.count("no model    always billing") == 2
    assert (here / "tickets.csv").read_text().startswith(blocks("csv")[0])

    results = [json.loads((here / f"runs/tickets-{seed}/result.json").read_text()) for seed in (1, 2)]
    usual = results[0]["data"]["schema"]["usual"]["metrics"]
    for result in results:
        assert result["data"]["content"] == results[0]["data"]["content"]
        assert result["metrics"]["last"]["accuracy"] > usual["accuracy"] + 0.1
        assert result["metrics"]["last"]["f1_macro"] > usual["f1_macro"] + 0.1
        assert "no model    always billing" in (here / "runs/tickets-1/model/README.md").read_text()
    assert {(line["setting"], line["seeds"]) for line in lines(here / "report/summary.csv")} == {
        ("adamw", "1 2")
    }
    classes = lines(here / "report/classes-tickets.csv")
    assert [line["true"] for line in classes] == ["account", "billing", "delivery"]
    assert (
        sum(int(line[f"as {team}"]) for line in classes for team in ("account", "billing", "delivery")) == 240
    )
    found = lines(here / "sorted.csv")
    assert len(found) == 20
    assert {line["label"] for line in found} <= {"account", "billing", "delivery"}

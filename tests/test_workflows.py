"""What runs elsewhere names sessions, packages and files that are here."""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parent.parent
WORKFLOWS = sorted((ROOT / ".github/workflows").glob("*.yml"))
PACKAGES = sorted(path.parent.name for path in ROOT.glob("packages/*/pyproject.toml"))


def steps(workflow: dict[str, Any]) -> Iterator[dict[str, Any]]:
    for job in workflow["jobs"].values():
        yield from job["steps"]


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_every_session_of_a_workflow_exists(path: Path) -> None:
    sessions = set(re.findall(r"^@nox\.session.*?^def (\w+)", (ROOT / "noxfile.py").read_text(), re.M | re.S))
    called = re.findall(r"nox -s [\"']?(\w+)", path.read_text())
    assert set(called) <= sessions
    local = [shlex.split(step["run"])[0] for step in steps(yaml.safe_load(path.read_text())) if "run" in step]
    assert all((ROOT / command).is_file() for command in local if command.startswith("."))


def test_each_package_is_tested_alone() -> None:
    workflow = yaml.safe_load((ROOT / ".github/workflows/tests.yml").read_text())
    assert workflow["jobs"]["isolation"]["strategy"]["matrix"]["package"] == PACKAGES


def test_each_package_is_tried_with_its_lowest_versions() -> None:
    workflow = yaml.safe_load((ROOT / ".github/workflows/ranges.yml").read_text())
    members = ["shared", *(f"packages/{name}" for name in PACKAGES)]
    assert workflow["jobs"]["floor"]["strategy"]["matrix"]["member"] == members


def test_the_image_copies_what_there_is() -> None:
    lines = (ROOT / "docker/Dockerfile").read_text().splitlines()
    copied = [line.split()[1] for line in lines if line.startswith("COPY")]
    assert copied
    assert all((ROOT / name).exists() for name in copied)

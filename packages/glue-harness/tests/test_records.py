"""Files are there whole, or as they were."""

import json
from pathlib import Path

import pytest

from glue_harness.run.records import write_report


def test_a_report_is_numbers_and_a_table(tmp_path: Path) -> None:
    folder = tmp_path / "results" / "new"
    for seconds in (1.5, 2.5):
        write_report(folder, {"seconds": [seconds]}, f"| {seconds} |\n")
    assert json.loads((folder / "result.json").read_text(encoding="utf-8")) == {"seconds": [2.5]}
    assert (folder / "table.md").read_text(encoding="utf-8") == "| 2.5 |\n"
    assert sorted(path.name for path in folder.iterdir()) == ["result.json", "table.md"]


def test_what_json_cannot_hold_leaves_the_old_report(tmp_path: Path) -> None:
    write_report(tmp_path, {"seconds": 1.5}, "| 1.5 |\n")
    with pytest.raises(TypeError):
        write_report(tmp_path, {"seconds": object()}, "| ? |\n")
    assert json.loads((tmp_path / "result.json").read_text(encoding="utf-8")) == {"seconds": 1.5}
    assert (tmp_path / "table.md").read_text(encoding="utf-8") == "| 1.5 |\n"

"""The check for a GPU runs as a whole on a CPU, and one part's failure does not end the rest."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

import gpu_check


@pytest.mark.slow
def test_all_of_it_runs_on_a_cpu(root: Path, tmp_path: Path) -> None:
    command = [sys.executable, root / "benchmarks" / "gpu_check.py", "--device", "cpu", "--quick"]
    done = subprocess.run(
        [*command, "--output-dir", tmp_path], capture_output=True, text=True, check=False, cwd=tmp_path
    )
    assert done.returncode == 0, done.stdout + done.stderr
    report = json.loads((tmp_path / "gpu_check.json").read_text(encoding="utf-8"))
    assert {row["status"] for row in report["parts"]} == {"passed"}
    names = [row["part"] for row in report["parts"]]
    assert {"device", "tests", "speed training_step", "memory compress"} <= set(names)
    assert not any("rows_with_errors" in row for row in report["parts"])
    assert (tmp_path / "gpu_check.md").read_text(encoding="utf-8").count("| passed |") == len(names)


@pytest.mark.parametrize(
    ("command", "why"),
    [
        (["-c", "raise SystemExit(3)"], "exit status 3"),
        (["-c", "import time; time.sleep(60)"], "not done after 1 s"),
    ],
)
def test_a_failure_is_a_row(command: list[str], why: str) -> None:
    row = gpu_check.check(gpu_check.Part("broken", 1, [sys.executable, *command]))
    assert (row["status"], row["why"]) == ("failed", why)
    assert f"| broken | failed | {row['seconds']} | {why} |" in gpu_check.table([row])


def test_nothing_begins_when_no_time_is_left() -> None:
    row = gpu_check.check(gpu_check.Part("late", 60, [sys.executable, "-c", ""]), left=0.2)
    assert (row["status"], row["why"]) == ("failed", "no time was left")


def test_a_report_that_is_missing_is_a_failure(tmp_path: Path) -> None:
    part = gpu_check.Part("silent", 60, [sys.executable, "-c", ""], gpu_check._json(tmp_path, "silent"))
    assert gpu_check.check(part)["status"] == "failed"


def test_memory_that_is_not_as_foretold_is_a_failure(tmp_path: Path) -> None:
    same = {"predicted_saved_bytes": 5, "saved_bytes": 5, "predicted_peak_bytes": 100, "peak_bytes": 105}
    (tmp_path / "memory.json").write_text(json.dumps(same), encoding="utf-8")
    read = gpu_check._memory(tmp_path, "memory", "cpu")
    assert read()["report"] == same
    (tmp_path / "memory.json").write_text(json.dumps({**same, "peak_bytes": 150}), encoding="utf-8")
    with pytest.raises(ValueError, match="foretold"):
        read()

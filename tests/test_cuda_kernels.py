"""The table of CUDA kernels is complete and keeps its bounds, and its script continues what it began."""

import json
import sys

import pytest

from reproduce.catalogue import BENCHMARKS

SPEED = BENCHMARKS / "speed"


@pytest.fixture
def script(load_script):
    return load_script(SPEED / "cuda_kernels.py")


@pytest.fixture
def rows():
    return json.loads((SPEED / "results" / "cuda_kernels.json").read_text(encoding="utf-8"))["rows"]


def test_rows_are_those_of_cases_in_their_order(script, rows):
    for package in ("activation_compression", "noise_injection", "sensitivity_lr", "clipped_adaptive"):
        pytest.importorskip(package)
    found = [(row["file"], row["case"]) for row in rows]
    assert found == list(script.every_case())


def test_no_case_moves_much_more_than_it_needs(rows):
    """A gradient that is clipped by norm has to be read twice: that is part of what is needed."""
    for row in rows:
        most = 1.10 if row["file"] == "clipped" else 1.05
        assert row["bytes_moved"] <= most * row["bytes_needed"], row


def test_every_kernel_of_compression_is_one(rows):
    several = [
        row["case"] for row in rows if row["file"] in ("activations", "lengths") and row["kernels"] > 1
    ]
    assert not several


def run(script, monkeypatch, *words):
    monkeypatch.setattr(sys, "argv", ["cuda_kernels.py", *map(str, words)])
    script.main()


def test_pieces_join_one_file_in_the_order_of_the_cases(script, monkeypatch, tmp_path, capsys):
    """Rows that are there are lowered again only without --resume; those of cases that are gone go too."""
    lowered = []
    names = [("noise", "b"), ("noise", "a"), ("clipped", "c")]
    monkeypatch.setattr(script, "pretend", lambda: None)
    monkeypatch.setattr(script, "every_case", lambda: {key: (key,) for key in names})
    monkeypatch.setattr(script, "lower", lambda key: (lowered.append(key[1]), (1, 30, 20 + len(lowered)))[1])
    output = tmp_path / "kernels.json"
    run(script, monkeypatch, "--output", output, "--cases", "clipped")
    run(script, monkeypatch, "--output", output, "--only", "a")
    run(script, monkeypatch, "--output", output, "--resume")
    assert lowered == ["c", "a", "b"]
    run(script, monkeypatch, "--output", output, "--only", "c")
    found = json.loads(output.read_text(encoding="utf-8"))
    assert [(row["case"], row["bytes_needed"]) for row in found["rows"]] == [("b", 23), ("a", 22), ("c", 24)]
    assert output.with_suffix(".md").read_text(encoding="utf-8") == script.table(found)
    names.remove(("noise", "a"))
    run(script, monkeypatch, "--output", output, "--only", "c")
    assert [row["case"] for row in json.loads(output.read_text(encoding="utf-8"))["rows"]] == ["b", "c"]
    assert capsys.readouterr().out.count("| noise | b | 1 |") == 1


def test_rows_of_another_version_are_not_kept(script, monkeypatch, tmp_path):
    output = tmp_path / "kernels.json"
    row = {"file": "noise", "case": "a", "kernels": 1, "bytes_moved": 1, "bytes_needed": 1}
    output.write_text(json.dumps({"torch": "1.0", "device": "H100", "rows": [row]}), encoding="utf-8")
    assert script.begun(output) == {}
    assert script.begun(tmp_path / "none.json") == {}

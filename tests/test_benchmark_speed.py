"""Figures of a speed report are set beside the committed ones as ratios, whatever else the report holds."""

import json

import pytest

from finetune_common.errors import ConfigurationError
from reproduce.catalogue import BENCHMARKS
from reproduce.speed import figures, ratios, speed

COUNTS = ("sweep_resilience", "cuda_kernels")
"""Reports of what happened, without a figure of speed."""
COMMITTED = [
    path for path in sorted((BENCHMARKS / "speed" / "results").glob("*.json")) if path.stem not in COUNTS
]


def test_a_figure_twice_as_large_has_the_ratio_two():
    before = {"ways": {"full": {"median_seconds": 0.5, "seconds": [0.4, 0.6], "trainable": 7}}, "repeats": 3}
    now = {"ways": {"full": {"median_seconds": 1.0, "seconds": [1.0], "trainable": 7}}, "repeats": 9}
    assert ratios(now, before).splitlines()[2:] == ["| ways, full, median_seconds | 0.5 | 1 | 2.00 |"]


def test_a_figure_that_is_new_or_was_zero_has_no_ratio():
    assert ratios({"a": {"ratio": 2.0}, "b": {"ratio": 1.0}}, {"b": {"ratio": 0}}).count("\n") == 2


def test_a_script_that_fails_is_named_and_the_others_go_on(capsys, monkeypatch, tmp_path):
    def report(script, output):
        if script.stem == "optimizers":
            raise ConfigurationError("failed with exit status 3, see above")
        return json.loads((script.parent / "results" / output.name).read_text(encoding="utf-8"))

    monkeypatch.setattr("reproduce.speed._report", report)
    assert not speed(tmp_path)
    told = capsys.readouterr()
    assert told.err == "benchmark: error: speed/optimizers.py: failed with exit status 3, see above\n"
    assert "## sweep_overhead" in told.out
    assert "| kernels, add noise, ns_per_element |" in told.out


@pytest.mark.parametrize("path", COMMITTED, ids=lambda path: path.stem)
def test_every_committed_report_has_figures(path):
    found = dict(figures(json.loads(path.read_text(encoding="utf-8"))))
    assert found
    assert all(value >= 0 for value in found.values())


def test_the_peak_of_a_method_has_what_it_keeps(load_script):
    """AGNI: two float32 numbers a parameter; both steps are otherwise the same."""
    pytest.importorskip("noise_injection", reason="noise-injection is not installed")
    from glue_harness.cost.live import LiveBytes

    script = load_script(BENCHMARKS / "speed" / "methods.py")
    with LiveBytes():  # a mode, within which nothing is compiled
        plain, noisy = (script.measure("bert", name, 1, True) for name in ("plain", "AGNI, micro-batches"))
    state = plain["bytes"]["optimizer"]  # of AdamW, as much
    assert noisy["bytes"]["optimizer"] == state
    assert noisy["bytes"]["peak"] - plain["bytes"]["peak"] > 0.9 * state

"""A run that is cut off after a checkpoint and continued, beside one that was not: the same numbers."""

import json
from pathlib import Path
from typing import Any

import pytest


class CutOffError(Exception):
    """What stops a run in these tests."""


def settings(folder: Path, **changes: Any) -> Any:
    """A run of four steps with a checkpoint after the second."""
    from glue_harness import parse_mapping

    usual = {"task": "demo-entailment", "model": "demo", "output_dir": str(folder)}
    usual |= {"max_train_samples": 64, "max_steps": 4, "batch_size": 8, "save_every": 2, "log_every": 1}
    return parse_mapping(usual | changes)


def cut_off_and_continued(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, **changes: Any) -> dict[str, Any]:
    """Make both runs, `whole` and `cut`; compare them, and return what the first one says."""
    from glue_harness import run
    from glue_harness.run import loop

    whole = run(settings(tmp_path / "whole", **changes))
    step = loop.Training._train_step

    def cut_off(self: Any, *args: Any) -> Any:
        if self.step == 3:
            raise CutOffError
        return step(self, *args)

    with monkeypatch.context() as patched:
        patched.setattr(loop.Training, "_train_step", cut_off)
        with pytest.raises(CutOffError):
            run(settings(tmp_path / "cut", **changes))
    again = run(settings(tmp_path / "cut", **changes))
    assert again["metrics"] == whole["metrics"]
    assert again["parameters"] == whole["parameters"]
    assert 0 < whole["parameters"]["trainable"] < whole["parameters"]["total"]

    def losses(name: str) -> list[float]:
        lines = map(json.loads, (tmp_path / name / "metrics.jsonl").read_text().splitlines())
        return [line["loss"] for line in lines if "loss" in line]

    assert len(losses("whole")) == 4
    assert losses("cut") == losses("whole")
    written = [(tmp_path / name / "predictions.tsv").read_text() for name in ("whole", "cut")]
    assert written[0] == written[1]
    return whole

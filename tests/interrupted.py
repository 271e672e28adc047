"""A run that is cut off after a checkpoint and continued, beside one that was not: the same numbers."""

from pathlib import Path
from typing import Any

import pytest

from glue_harness import parse_mapping, run
from glue_harness.run import loop


class CutOffError(Exception):
    """What stops a run in these tests."""


def cut_off_and_continued(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, **changes: Any) -> dict[str, Any]:
    """Make both runs, `whole` and `cut`, with a checkpoint after every second step; return what they say."""

    def made(name: str) -> dict[str, Any]:
        usual = {"task": "demo-entailment", "model": "demo", "output_dir": str(tmp_path / name)}
        usual |= {"max_train_samples": 64, "max_steps": 4, "batch_size": 8, "save_every": 2, "log_every": 1}
        return run(parse_mapping(usual | changes))

    whole = made("whole")
    step = loop.Training._train_step

    def cut_off(self: loop.Training, *args: Any) -> Any:
        if self.step == 3:
            raise CutOffError
        return step(self, *args)

    with monkeypatch.context() as patched:
        patched.setattr(loop.Training, "_train_step", cut_off)
        with pytest.raises(CutOffError):
            made("cut")
    again = made("cut")
    assert again["metrics"] == whole["metrics"]
    assert again["parameters"] == whole["parameters"]
    for file in ("metrics.jsonl", "predictions.tsv"):
        logged, expected = ((tmp_path / name / file).read_text(encoding="utf-8") for name in ("cut", "whole"))
        assert logged == expected
    return whole

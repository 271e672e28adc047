"""Without a terminal a run says what it is, now and then how far it is, and each evaluation."""

import re
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from glue_harness import parse_mapping
from glue_harness.run import progress
from glue_harness.run.entry import run
from glue_harness.sweep.claiming import attempted

STEP = re.compile(r"step (\d+)/8: loss \d+\.\d{4}  lr \d\.\d\de-\d\d  \d+ ex/s .* \d+:\d\d:\d\d left")


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each look at the clock is a second after the one before."""
    seconds = iter(range(10_000))
    monkeypatch.setattr(progress.time, "monotonic", lambda: float(next(seconds)))


@pytest.mark.usefixtures("clock")
def test_lines(train: Callable[..., Any], capsys: pytest.CaptureFixture[str], monkeypatch: Any) -> None:
    monkeypatch.setattr(progress, "PAUSE", 3.0)
    settings = {"log_every": 1, "eval_every": 4, "optimizer": {"name": "sgd", "lr": 0.1}}
    train(**settings)
    first, *lines = capsys.readouterr().err.splitlines()
    assert first == "demo-entailment: 64 rows, model demo, full + none + sgd (lr 0.1), 8 steps"
    evaluations = [line for line in lines if ", evaluation: " in line]
    assert [line.split(",")[0] for line in evaluations] == ["step 4/8", "step 8/8"]
    assert "accuracy 0." in evaluations[0]
    told = [STEP.fullmatch(line) for line in lines if line not in evaluations]
    assert [int(found[1]) for found in told if found] == [2, 5, 8]
    assert len(told) == 3


def test_the_first_step_tells_nothing_about_the_next(capsys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """It compiles for 100 seconds."""
    now = [0.0]
    config = parse_mapping({"task": "demo-entailment", "model": "demo", "output_dir": "-"})
    monkeypatch.setattr(progress, "time", SimpleNamespace(monotonic=lambda: now[0]))
    plan, data = SimpleNamespace(total=1000), SimpleNamespace(training_rows=64)
    rates = SimpleNamespace(base_lrs=[0.1])
    shown = progress.Progress(config)
    shown.start(SimpleNamespace(step=0, plan=plan, examples=0, data=data, scheduler=rates))  # type: ignore[arg-type]
    for step, now[0] in ((1, 100.0), (2, 100.1), (3, 103.0)):
        shown.advance(step, 8 * step)
    _, first, third = capsys.readouterr().err.splitlines()
    assert first == "step 1/1,000: the first step took 100 s"
    assert third == "step 3/1,000: 5 ex/s  0:24:56 left"  # two steps in three seconds


def test_a_run_that_goes_on_says_from_where(
    train: Callable[..., Any], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from glue_harness.run.loop import Training

    with monkeypatch.context() as patch:
        patch.setattr(Training, "result", lambda self: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            train(max_steps=3)
    capsys.readouterr()
    train(max_steps=3)
    assert "continues after step 3 of 3" in capsys.readouterr().err


def test_the_runs_of_a_sweep_are_quiet(tmp_path: Any, capsys: pytest.CaptureFixture[str]) -> None:
    settings = {"task": "demo-entailment", "model": "demo", "max_steps": 2, "batch_size": 8}
    assert attempted(parse_mapping(settings | {"output_dir": str(tmp_path)}))
    assert capsys.readouterr() == ("", "")


def test_nobody_who_listens_is_no_reason_to_end(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    class Closed:
        encoding = "utf-8"

        def isatty(self) -> bool:
            return False

        def write(self, text: str) -> int:
            raise BrokenPipeError

        def flush(self) -> None:
            raise BrokenPipeError

    monkeypatch.setattr("sys.stderr", Closed())
    settings = {"task": "demo-entailment", "model": "demo", "max_steps": 2, "batch_size": 8}
    assert run(parse_mapping(settings | {"output_dir": str(tmp_path)}))["steps"] == 2

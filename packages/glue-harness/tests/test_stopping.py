"""What is asked to stop saves the step in hand and says so in one line; the same command goes on."""

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

from glue_harness import parse_mapping
from glue_harness.run.entry import run
from glue_harness.run.loop import Training
from glue_harness.run.plan import Data
from glue_harness.stopping import SIGNALS, StopFile, Stopped, stop_on_signals
from glue_harness.sweep.on_slurm import Worker
from glue_harness.sweep.workers import ASKED

ASKING = (
    signal.SIGTERM,
    signal.SIGUSR1,
    signal.SIGUSR2,
    signal.SIGINT,
    signal.SIGHUP,  # the terminal is closed
    signal.SIGXCPU,  # a limit of processor time is reached
)
SETTINGS: dict[str, Any] = {
    "task": "demo-similarity",
    "model": "demo",
    "max_train_samples": 48,
    "max_eval_samples": 20,
    "batch_size": 8,
    "epochs": 1,
    "eval_every": 3,
    "save_every": 4,
    "log_every": 1,
    "optimizer": {"name": "adamw", "lr": 1e-3},
}
"""Six steps, evaluated after the third and the last, on three batches."""


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """Have signals come at the n-th call of a function, before it does anything."""

    def arrange(owner: Any, name: str, call: int, *numbers: int) -> None:
        original, calls = getattr(owner, name), []

        def wrapped(*arguments: Any, **options: Any) -> Any:
            calls.append(1)
            if len(calls) == call:
                for number in numbers:
                    os.kill(os.getpid(), number)
            return original(*arguments, **options)

        monkeypatch.setattr(owner, name, wrapped)

    return arrange


@pytest.fixture(scope="module")
def handlers() -> Iterator[list[Any]]:
    """What signals do, all of them as usual: a caller such as nohup may ignore some, and runs then do too."""
    ignored = [number for number in ASKING if signal.getsignal(number) is signal.SIG_IGN]
    for number in ignored:
        signal.signal(number, signal.SIG_DFL)
    yield [signal.getsignal(number) for number in ASKING]
    for number in ignored:
        signal.signal(number, signal.SIG_IGN)


@pytest.fixture(autouse=True)
def handlers_come_back(handlers: list[Any]) -> Iterator[None]:
    yield
    assert [signal.getsignal(number) for number in ASKING] == handlers


def line(folder: Path) -> list[Any]:
    options = SETTINGS | {"output_dir": folder, "optimizer": "adamw", "optimizer.lr": 1e-3}
    return [
        "run",
        *(word for key, value in options.items() for word in (f"--{key.replace('_', '-')}", value)),
    ]


def outcome(folder: Path) -> dict[str, Any]:
    """What has to be equal, bit for bit."""
    (checkpoint,) = (folder / "checkpoint").iterdir()
    result = json.loads((folder / "result.json").read_text())
    names = ("metrics.jsonl", "predictions.tsv", f"checkpoint/{checkpoint.name}/model.safetensors")
    return {name: sha256((folder / name).read_bytes()).hexdigest() for name in names} | {
        key: result[key] for key in ("history", "metrics", "steps")
    }


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Callable[[], dict[str, Any]]:
    """Return what a run leaves that nobody stops; it is done when it is first asked for."""
    folder = tmp_path_factory.mktemp("whole")

    def left() -> dict[str, Any]:
        run(parse_mapping(SETTINGS | {"output_dir": str(folder)}))
        return outcome(folder)

    return left


def checkpoints(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / "checkpoint").glob("*"))


@pytest.mark.parametrize("number", ASKING)
def test_the_step_in_hand_is_saved(
    harness: Callable[..., Any], asked: Callable[..., Any], tmp_path: Path, number: int
) -> None:
    asked(Training, "_train_step", 2, number)
    stopped = harness(*line(tmp_path))
    assert stopped.status == 128 + number
    name = "Ctrl-C" if number == signal.SIGINT else signal.Signals(number).name
    said = stopped.err.splitlines()[-1]
    assert said == f"glue-harness: stopped by {name} after step 2, saved: the same command continues"
    assert checkpoints(tmp_path) == ["step-2"]


MOMENTS = {
    "before the first step": (Training, "train", 1, 0),
    "evaluation": (Training, "_evaluate", 1, 3),
    "within an evaluation": (Data, "loader", 2, 3),
    "within the last evaluation": (Data, "loader", 3, 6),
    "saving": (Training, "_log", 4, 4),
}


@pytest.mark.parametrize("moment", MOMENTS)
def test_a_stopped_run_ends_as_one_left_alone(
    monkeypatch: pytest.MonkeyPatch, asked: Callable[..., Any], tmp_path: Path, whole: Any, moment: str
) -> None:
    config = parse_mapping(SETTINGS | {"output_dir": str(tmp_path)})
    owner, name, call, step = MOMENTS[moment]
    original = getattr(owner, name)
    asked(owner, name, call, signal.SIGTERM)
    with pytest.raises(Stopped) as stopped:
        run(config)
    monkeypatch.setattr(owner, name, original)
    assert stopped.value.number == signal.SIGTERM
    assert checkpoints(tmp_path)[-1:] == ([f"step-{step}"] if step else [])
    run(config)
    assert outcome(tmp_path) == whole()


def test_a_last_evaluation_that_is_done_is_not_thrown_away(asked: Callable[..., Any], tmp_path: Path) -> None:
    asked(Training, "result", 1, signal.SIGTERM)
    assert run(parse_mapping(SETTINGS | {"output_dir": str(tmp_path)}))["steps"] == 6


def test_a_second_ctrl_c_ends_at_once(
    harness: Callable[..., Any], asked: Callable[..., Any], tmp_path: Path
) -> None:
    asked(Training, "_train_step", 2, signal.SIGINT, signal.SIGINT)
    ended = harness(*line(tmp_path))
    assert ended.status == 130
    assert ended.err.splitlines()[-1].startswith("glue-harness: interrupted")
    assert checkpoints(tmp_path) == []


def test_what_saves_nothing_ends_at_once(
    harness: Callable[..., Any], asked: Callable[..., Any], tmp_path: Path
) -> None:
    asked(Data, "load", 1, signal.SIGTERM)
    ended = harness(*line(tmp_path))
    assert ended.status == 143
    assert ended.err == "glue-harness: stopped by SIGTERM: the same command continues\n"
    assert not (tmp_path / "checkpoint").exists()


def test_ignored_signals_stay_ignored() -> None:
    before = signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    try:
        with stop_on_signals() as request:
            os.kill(os.getpid(), signal.SIGUSR1)
            assert request.number == 0
    finally:
        signal.signal(signal.SIGUSR1, before)


def test_a_run_in_a_thread_looks_at_a_file(tmp_path: Path) -> None:
    """As a trial of a search does; a thread can have no handlers of signals."""
    asks, met = tmp_path / "stop", []

    def evaluated(training: Training) -> None:
        asks.touch()

    def work() -> None:
        try:
            config = parse_mapping(SETTINGS | {"output_dir": str(tmp_path / "run")})
            run(config, evaluated, stop=StopFile(asks), quiet=True)
        except Stopped as stopped:
            met.append(str(stopped))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert met == ["stopped by SIGTERM after step 3, saved: the same command continues"]
    assert checkpoints(tmp_path / "run") == ["step-3"]


def test_an_element_of_a_job_array_is_queued_again_once_its_run_is_saved(
    asked: Callable[..., Any], tmp_path: Path
) -> None:
    """submitit's handler, which queues a job again and leaves, is called when there is a checkpoint."""
    found: list[list[str]] = []

    def queue_again(*_: Any) -> None:
        found.append(checkpoints(tmp_path))
        raise SystemExit(-1)

    before = signal.signal(signal.SIGUSR2, queue_again)
    try:
        asked(Training, "_train_step", 2, signal.SIGUSR2)
        with pytest.raises(SystemExit):
            Worker((parse_mapping(SETTINGS | {"output_dir": str(tmp_path)}),), 1)()
    finally:
        signal.signal(signal.SIGUSR2, before)
    assert found == [["step-2"]]
    assert not (tmp_path / "error.txt").exists()


def test_a_worker_that_was_asked_to_stop_has_not_died() -> None:
    assert {128 + number for number in ASKING} <= set(ASKED)


def _ends_a_process(number: int) -> bool:
    """Say whether a signal ends a process that does nothing about it."""
    code = f"import signal, os; signal.signal({number}, signal.SIG_DFL); os.kill(os.getpid(), {number})"
    return subprocess.run([sys.executable, "-c", code], check=False, timeout=60).returncode == -number


def test_every_signal_that_ends_a_process_asks_but_for_faults_and_timers() -> None:
    faults = "SEGV BUS FPE ILL ABRT TRAP SYS STKFLT"
    kept = {f"SIG{name}" for name in f"{faults} QUIT PIPE ALRM VTALRM PROF".split()}
    stopping = {"SIGKILL", "SIGSTOP", "SIGTSTP", "SIGTTIN", "SIGTTOU"}
    tried = [number for number in signal.Signals if number.name not in kept | stopping]
    assert [number for number in tried if _ends_a_process(number)] == SIGNALS

"""What cannot be written is one line, and leaves what was there; what a disk has changed is noticed."""

import json
import resource
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from finetune_common.errors import ConfigurationError
from glue_harness import parse_mapping
from glue_harness.files import UnwritableError, atomic, writing
from glue_harness.run import checkpoint
from glue_harness.run.entry import run
from glue_harness.run.loop import Training
from glue_harness.run.records import RunFolder, write_whole

SETTINGS: dict[str, Any] = {
    "task": "demo-similarity",
    "model": "demo",
    "max_train_samples": 48,
    "batch_size": 8,
    "max_steps": 6,
    "save_every": 2,
    "log_every": 1,
    "optimizer": {"name": "adamw", "lr": 1e-3},
}


class Stop(Exception):
    """Ends a run in the middle."""


@contextmanager
def limited(size: int) -> Iterator[None]:
    """No file of this process may become longer than this, as under a quota or `ulimit -f`."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.fixture
def config(tmp_path: Path) -> Any:
    return parse_mapping(SETTINGS | {"output_dir": str(tmp_path / "run")})


@pytest.fixture
def stopped_after(monkeypatch: pytest.MonkeyPatch, config: Any) -> Callable[[int], Path]:
    """Do the run up to a step, and return its folder."""

    def do(step: int) -> Path:
        original = Training._train_step

        def train(self: Training, *arguments: Any) -> Any:
            if self.step == step:
                raise Stop
            return original(self, *arguments)

        with monkeypatch.context() as patch:
            patch.setattr(Training, "_train_step", train)
            with pytest.raises(Stop):
                run(config)
        return Path(config.output_dir)

    return do


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("alone")
    run(parse_mapping(SETTINGS | {"output_dir": str(folder)}))
    return left(folder)


def left(folder: Path) -> dict[str, Any]:
    [only] = (folder / "checkpoint").iterdir()
    return {
        "weights": (only / "model.safetensors").read_bytes(),
        "logged": (folder / "metrics.jsonl").read_text(),
        "metrics": json.loads((folder / "result.json").read_text())["metrics"],
    }


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("size", [1_000, 500_000])
def test_a_checkpoint_that_has_no_room(
    stopped_after: Callable[[int], Path], config: Any, alone: dict[str, Any], size: int
) -> None:
    """Of the weights or of the state: the one before stays, and the run goes on from it."""
    folder = stopped_after(3)
    before = files(folder / "checkpoint")
    with limited(size), pytest.raises(UnwritableError, match=r"step-4: File too large: make room"):
        run(config)
    assert files(folder / "checkpoint") == before
    assert {path.name for path in (folder / "checkpoint").iterdir()} == {"step-2"}
    run(config)
    assert left(folder) == alone


def test_half_a_line_is_taken_back(config: Any) -> None:
    with RunFolder(config) as folder:
        folder.log({"step": 1, "loss": 0.5})
        file = folder.path / "metrics.jsonl"
        before = file.read_bytes()
        with (
            limited(len(before) + 10),
            pytest.raises(UnwritableError, match=r"metrics.jsonl: File too large"),
        ):
            folder.log({"step": 2, "loss": 0.25})
        assert file.read_bytes() == before


def test_the_command_says_it_in_one_line(harness: Callable[..., Any], tmp_path: Path) -> None:
    line = ["run", "--task", "demo-similarity", "--model", "demo", "--max-steps", 2, "--batch-size", 8]
    with limited(500_000):
        said = harness(*line, "--output-dir", tmp_path / "run")
    assert said.status == 2
    assert said.err.splitlines()[-1] == (
        f"glue-harness: {tmp_path}/run/checkpoint/step-2: File too large: make room, or give a file or "
        "folder that can be written; the same command continues"
    )
    assert "Traceback" not in said.err


def test_a_report_leaves_no_half_files(
    harness: Callable[..., Any], made_up: Callable[..., Path], tmp_path: Path
) -> None:
    for seed in (1, 2):
        folder = made_up("rte", "adamw", seed, [0.5, 0.6])
    with limited(5_000):
        said = harness("report", folder, "--output-dir", tmp_path / "report")
    assert said.status == 2
    assert "File too large" in said.err
    assert said.err.count("\n") == 1
    assert not [name for name in files(tmp_path / "report") if Path(name).name.startswith(".")]
    assert not list((tmp_path / "report").rglob("*.png"))


def test_a_file_stays_as_it_was_where_the_new_one_cannot_be_written(tmp_path: Path) -> None:
    file = tmp_path / "result.json"
    write_whole(file, "old")
    with limited(10), pytest.raises(UnwritableError):
        write_whole(file, "new" * 10)

    def fail() -> None:
        with atomic(file) as beside:
            beside.write_text("half")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert files(tmp_path) == {"result.json": b"old"}


def test_other_errors_pass(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), writing(tmp_path):
        raise ZeroDivisionError
    with pytest.raises(ConfigurationError, match=r"^mine$"), writing(tmp_path):
        raise ConfigurationError("mine")


@pytest.mark.parametrize(
    ("target", "said"),
    [
        (">/dev/full", "standard output: No space left on device"),
        (">&-", "standard output is closed"),
        ("| true; exit ${PIPESTATUS[0]}", "standard output: Broken pipe"),
    ],
)
def test_standard_output_that_cannot_be_written(target: str, said: str) -> None:
    command = f"{sys.executable} -m glue_harness list tasks {target}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False)
    assert said in done.stderr
    assert done.stderr.count("\n") == 1
    assert done.returncode == 2


def flip(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 0x40
    file.write_bytes(content)


@pytest.mark.parametrize("name", ["model.safetensors", "state.pt", "digests.json"])
def test_a_flipped_byte_is_noticed_and_the_checkpoint_before_is_used(
    stopped_after: Callable[[int], Path], config: Any, alone: dict[str, Any], name: str
) -> None:
    folder = stopped_after(5)
    assert {path.name for path in (folder / "checkpoint").iterdir()} == {"step-2", "step-4"}
    flip(folder / "checkpoint/step-4" / name)
    with pytest.warns(UserWarning, match=r"step-4.*damaged.*the one before it, step-2, is used"):
        run(config)
    assert left(folder) == alone


@pytest.mark.parametrize("name", ["model.safetensors", "state.pt"])
def test_the_only_checkpoint_is_refused_by_the_files_name(
    stopped_after: Callable[[int], Path], config: Any, name: str
) -> None:
    folder = stopped_after(3)
    flip(folder / "checkpoint/step-2" / name)
    with pytest.raises(
        ConfigurationError, match=rf"step-2.*damaged.*{name} is not as it was written"
    ) as error:
        run(config)
    assert "\n" not in str(error.value)
    (folder / "checkpoint/step-2" / name).unlink()
    with pytest.raises(ConfigurationError, match=rf"{name} is missing"):
        run(config)


def test_checkpoints_of_earlier_versions_have_no_digests(
    stopped_after: Callable[[int], Path], config: Any, alone: dict[str, Any]
) -> None:
    folder = stopped_after(5)
    for file in folder.glob("checkpoint/*/digests.json"):
        file.unlink()
    run(config)
    assert left(folder) == alone


def test_the_best_weights_of_both_checkpoints_stay(tmp_path: Path) -> None:
    for name in ("best-2", "best-5", "best-6", "best-9", "step-3", "step-4", "step-6", "step-9", ".1.step-8"):
        (tmp_path / name).mkdir()
    checkpoint.tidy(tmp_path, step=6, keep=2)
    assert {path.name for path in tmp_path.iterdir()} == {"best-2", "best-6", "step-4", "step-6"}


def test_of_the_best_weights_a_flipped_byte_is_noticed(tmp_path: Path) -> None:
    checkpoint.save_best(tmp_path, 3, torch.nn.Linear(8, 8))
    assert checkpoint.best_weights(tmp_path, 3) == tmp_path / "best-3"
    flip(tmp_path / "best-3/model.safetensors")
    with pytest.raises(ConfigurationError, match=r"model.safetensors is not as it was written"):
        checkpoint.best_weights(tmp_path, 3)


def test_best_weights_that_were_adopted_are_sound(tmp_path: Path) -> None:
    best, last = torch.nn.Linear(8, 8), torch.nn.Linear(8, 8)
    checkpoint.save_best(tmp_path, 3, best)
    checkpoint.save(tmp_path, 5, last, {"step": 5})
    kept = checkpoint.best_weights(tmp_path, 3)
    assert kept is not None
    checkpoint.adopt(kept)
    found = checkpoint.sound(tmp_path)
    assert found == tmp_path / "step-5"
    checkpoint.load_weights(found, last, torch.device("cpu"))
    assert torch.equal(last.weight, best.weight)
    assert [path.name for path in tmp_path.iterdir()] == ["step-5"]

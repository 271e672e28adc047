"""What a launcher may ask for that a run does not have is refused in one line, before anything waits."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

FSDP = {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"}


@pytest.mark.parametrize(
    ("environment", "said"),
    [
        (FSDP, "--sharding fsdp needs two processes or more"),
        (FSDP | {"FSDP_VERSION": "1"}, "--fsdp_version 2"),
        (FSDP | {"FSDP_OFFLOAD_PARAMS": "true"}, "--fsdp_offload_params"),
        (FSDP | {"FSDP_ACTIVATION_CHECKPOINTING": "true"}, "--activation checkpoint"),
        ({"ACCELERATE_USE_DEEPSPEED": "true"}, "DeepSpeed"),
        ({"ACCELERATE_USE_MEGATRON_LM": "true"}, "Megatron-LM"),
        ({"ACCELERATE_MIXED_PRECISION": "bf16"}, "give the same to --precision"),
        ({"WORLD_SIZE": "2"}, "WORLD_SIZE is 2 and this process sees 1"),
    ],
)
def test_refused_in_one_line(
    harness: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    environment: dict[str, str],
    said: str,
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    line = ("run", "--task", "demo-entailment", "--model", "demo", "--output-dir", tmp_path / "run")
    done = harness(*line)
    assert done.status == 2
    assert said in done.err
    assert done.err.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_sharding_alone_is_refused(harness: Callable[..., Any], tmp_path: Path) -> None:
    line = ("run", "--task", "demo-entailment", "--model", "demo", "--output-dir", tmp_path / "run")
    assert "two processes or more" in harness(*line, "--sharding", "fsdp").err
    assert "bf16" in harness(*line, "--sharding", "fsdp", "--precision", "fp16").err
    assert not (tmp_path / "run").exists()


def test_only_runs_are_launched(harness: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "4")
    done = harness("list", "tasks")
    assert done.status == 2
    assert "use torchrun and accelerate launch for run only" in done.err

"""What the harness's tests share: a cache of their own, and runs in this process on the demo model."""

import json
import subprocess
import sys
from collections.abc import Callable
from functools import cache
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple

import pytest


class Said(NamedTuple):
    """How a command line ended."""

    status: int
    out: str
    err: str


def pytest_configure(config: pytest.Config) -> None:
    """A model of a few steps may predict one class only, which the metrics say in a warning."""
    config.addinivalue_line("filterwarnings", "ignore:.*reported as 0.0:UserWarning")
    config.addinivalue_line(
        "filterwarnings", "ignore:subprocess .* is still running:ResourceWarning"
    )  # Ray's
    config.addinivalue_line("markers", "needs(package): skipped where the package is not installed")


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip what needs a method package that is not installed."""
    for mark in item.iter_markers("needs"):
        pytest.importorskip(mark.args[0], reason=f"{mark.args[0]} is not installed")


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Keep tokenised data and hub caches away from the user's; small models are quickest on one thread."""
    import torch

    from finetune_common.demo import rows

    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rows, "demo_rows", cache(rows.demo_rows))  # a hundred runs read the same rows
        patch.setenv("FINETUNE_CACHE", str(tmp_path_factory.mktemp("tokenised")))
        patch.setenv("HF_HOME", str(tmp_path_factory.mktemp("hub")))
        patch.setenv("OMP_NUM_THREADS", "1")
        yield


@pytest.fixture
def harness(capsys: pytest.CaptureFixture[str]) -> Callable[..., Said]:
    """Run a command line in this process."""
    from glue_harness.cli import main

    def call(*argv: object) -> Said:
        capsys.readouterr()
        status = main([str(word) for word in argv])
        return Said(status, *capsys.readouterr())

    return call


@pytest.fixture
def process() -> Callable[..., Said]:
    """Run a command line in a process of its own."""

    def call(*argv: object) -> Said:
        done = subprocess.run(
            [sys.executable, "-m", "glue_harness", *map(str, argv)],
            capture_output=True,
            text=True,
            check=False,
        )
        return Said(done.returncode, done.stdout, done.stderr)

    return call


@pytest.fixture
def train(tmp_path: Path) -> Callable[..., dict[str, Any]]:
    """Run a configuration, by default a few steps of the demo model, and return its result."""
    from glue_harness import parse_mapping, run

    def call(folder: str = "run", **settings: Any) -> dict[str, Any]:
        defaults = {
            "task": "demo-entailment",
            "model": "demo",
            "output_dir": str(tmp_path / folder),
            "max_train_samples": 64,
            "batch_size": 8,
            "epochs": 1,
        }
        return run(parse_mapping(defaults | settings))

    return call


@pytest.fixture(scope="session")
def write_run() -> Callable[..., None]:
    """Write `result.json` of a run that never was into a folder of its own below the one given."""
    from finetune_common.tasks import get_task
    from glue_harness import RunConfig

    numbers = count()

    def call(
        below: Path, task: str, optimizer: str, seed: int, scores: list[Any], lr: float = 1e-3, **more: Any
    ) -> None:
        """One score an evaluation: a number for every metric, or metric → number."""
        model, method = more.pop("model", "demo"), {"name": optimizer, "lr": lr}
        options = more.pop("settings", {})
        settings = RunConfig(task, model, "unused", seed=seed, optimizer=method, **options).identity()
        described = get_task(task)
        history = [
            {
                "step": 10 * epoch,
                "epoch": float(epoch),
                "metrics": score if isinstance(score, dict) else dict.fromkeys(described.metrics, score),
            }
            for epoch, score in enumerate(scores, start=1)
        ]
        best = max(history, key=lambda entry: entry["metrics"][described.primary])
        slots = {slot: settings.pop(slot) for slot in ("adaptation", "activation", "gradient", "optimizer")}
        parts = ("data", "forward", "backward", "gradient", "optimizer", "evaluation")
        result = {
            "schema": 1,
            "task": task,
            "model": model,
            "seed": seed,
            "slots": slots,
            "settings": settings,
            "primary": described.primary,
            "metrics": {"last": history[-1]["metrics"], "best": best["metrics"]},
            "history": history,
            "steps": 10 * len(history),
            "examples_per_second": 50.0,
            "seconds": dict.fromkeys(parts, 2.0),
            "peak_memory_bytes": 2**28,
            "saved_activation_bytes": 2**20,
            "parameters": {"trainable": 1000, "total": 2000},
        } | more
        folder = below / f"{task}-{optimizer}-{lr:g}-{seed}-{next(numbers)}"
        folder.mkdir(parents=True)
        (folder / "result.json").write_text(json.dumps(result))

    return call


@pytest.fixture
def made_up(write_run: Callable[..., None], tmp_path: Path) -> Callable[..., Path]:
    """Write a made-up run below `runs`, and return that folder."""

    def call(*arguments: Any, **options: Any) -> Path:
        write_run(tmp_path / "runs", *arguments, **options)
        return tmp_path / "runs"

    return call


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved model folder: a random BERT of one small layer with the demo's tokenizer."""
    import transformers

    from finetune_common.demo import demo_tokenizer

    tokenizer = demo_tokenizer()
    folder = tmp_path_factory.mktemp("model")
    config = transformers.BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=64,
    )
    transformers.BertModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder

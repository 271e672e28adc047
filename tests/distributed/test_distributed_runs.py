"""Two processes (gloo, CPU), DDP and FSDP2, do what one process with the doubled batch does.

Dropout is off where numbers are compared: each process draws masks of its own. Predictions are compared, not
weights: the bias of the keys has no gradient, so that Adam moves it by the sign of a rounding error.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

from finetune_common.data import load_task

BASE: dict[str, Any] = {
    "task": "demo-similarity",
    "model": "demo",
    "model_config": {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0},
    "batch_size": 4,
    "epochs": 1,
    "log_every": 1,
    "warmup": 0.2,
    "seed": 7,
    "optimizer": {"name": "adamw", "lr": 2e-3, "eps": 1e-4},
}
"""33 rows are four steps of 8 over two processes, and a fifth of one row, none of it the second one's."""

EVALUATED = 37
"""Rows of the evaluation set: no whole number of batches, and no even number of them."""

SLOTS: dict[str, dict[str, Any]] = {
    "accumulated": {"accumulate": 2},
    "adapter": {"adaptation": {"name": "bottleneck-adapter", "bottleneck": 4, "dropout": 0.0}},
    "recomputed": {"activation": "checkpoint"},
    "clipped": {"optimizer": {"name": "clipped-adam", "lr": 2e-3, "clip": "global", "max_norm": 0.01}},
    "sage": {"optimizer": {"name": "sage-adamw", "lr": 2e-3}},
}
"""What two processes do as one does, replicated or sharded."""

REPLICATED: dict[str, dict[str, Any]] = {
    "annealed": {"gradient": [{"name": "annealed-noise", "eta": 1e-4}]},
    "sampled layers": {"adaptation": {"name": "lisa", "layers": 1, "every": 2}},
    "curvature": {"accumulate": 2, "optimizer": {"name": "sophia", "lr": 2e-4, "gamma": 10.0, "every": 2}},
}
"""What two processes do as one does where each has the whole model."""

CUT = {"eval_every": 2, "save_every": 2}
AGNI = CUT | {"gradient": [{"name": "agni", "eta": 10.0}]}
RUNNING = CUT | {"gradient": [{"name": "agni", "eta": 10.0, "variance": "running"}]}
WIDTHS = {"activation": {"name": "compress", "bits": 3.0, "interval": 2}}
PACKED = {"activation": {"name": "compress", "level": "L1"}}


class CutOffError(Exception):
    """Stops a run."""


class Launched(NamedTuple):
    """What two processes left behind."""

    folder: Path
    reports: dict[str, list[dict[str, Any]]]
    status: int
    said: str


def write_rows(folder: Path) -> None:
    """Write few rows, so that evaluation takes no time."""
    for split, count in (("train", 33), ("validation", EVALUATED)):
        rows = load_task("demo-similarity", splits=[split])[split].select(range(count))
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def configured(folder: Path, name: str, **settings: Any) -> dict[str, Any]:
    files = {f"{split}_file": str(folder / f"{split}.jsonl") for split in ("train", "validation")}
    return BASE | files | settings | {"output_dir": str(folder / name)}


def alone(folder: Path, name: str, cut: int | None = None, **settings: Any) -> None:
    """Do a run in this process, which is one, with the doubled batch."""
    from glue_harness import parse_mapping, run

    def stop(training: Any) -> None:
        if training.step == cut:
            raise CutOffError

    try:
        run(parse_mapping(configured(folder, name, batch_size=8) | settings), stop)
    except CutOffError:
        assert cut is not None


def launch(*arguments: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    return subprocess.run(
        [sys.executable, "-m", *arguments], capture_output=True, text=True, check=False, env=environment
    )


@pytest.fixture(scope="module")
def launched(tmp_path_factory: pytest.TempPathFactory) -> Launched:
    """Start two processes once; they do all runs, one after the other."""
    folder = tmp_path_factory.mktemp("distributed")
    write_rows(folder)
    cases: dict[str, dict[str, Any]] = {}

    def add(name: str, cut: int | None = None, into: str = "", ends: str = "", **settings: Any) -> None:
        own = configured(folder, into or name, **settings)
        cases[name] = {"settings": own, "cut": cut, "dies": ends == "dies", "asked": ends == "asked"}

    for name, settings in SLOTS.items():
        add(f"ddp {name}", **settings)
        add(f"fsdp {name}", sharding="fsdp", **settings)
    for name, settings in REPLICATED.items():
        add(f"ddp {name}", **settings)
    add("ddp agni", **AGNI)
    add("ddp agni cut", cut=2, **AGNI)
    add("ddp widths", **WIDTHS | {"model_config": {}})
    add("ddp packed", **PACKED)
    add("fsdp packed", sharding="fsdp", **PACKED)
    add("fsdp running", sharding="fsdp", **RUNNING)
    add("fsdp running cut", cut=2, sharding="fsdp", **RUNNING)
    add("fsdp running continued", into="fsdp running cut", sharding="fsdp", **RUNNING)
    add("fsdp cut", cut=2, sharding="fsdp", **CUT | SLOTS["sage"])
    alone(folder, "grown", cut=2, **CUT | SLOTS["sage"])
    add("grown", batch_size=8, **CUT | SLOTS["sage"])
    for name, settings in {"ddp": RUNNING, "fsdp": RUNNING | {"sharding": "fsdp"}}.items():
        add(f"{name} asked", ends="asked", **settings | {"save_every": 100})
        add(f"{name} goes on", into=f"{name} asked", **settings | {"save_every": 100})
    add("ddp running", **RUNNING)
    add("fsdp microbatch", sharding="fsdp", **AGNI)
    for name in ("sampled layers", "curvature"):
        add(f"fsdp {name}", sharding="fsdp", **REPLICATED[name])
    add("fsdp widths", sharding="fsdp", **WIDTHS)
    add("ddp dies", ends="dies", **CUT | SLOTS["sage"])
    (folder / "cases.json").write_text(json.dumps(cases))
    worker = Path(__file__).with_name("two_processes_runs.py")
    options = ("--nproc-per-node=2", "--rdzv-backend=c10d", "--rdzv-endpoint=localhost:0")
    done = launch("torch.distributed.run", *options, str(worker), str(folder / "cases.json"), str(folder))
    reports: dict[str, list[dict[str, Any]]] = {}
    for process in (0, 1):
        for line in (folder / f"{process}.jsonl").read_text().splitlines():
            report = json.loads(line)
            reports.setdefault(report["name"], []).append(report)
    assert "ddp dies" not in reports or reports["ddp dies"][0]["ended"] != "finished", done.stderr
    assert "fsdp widths" in reports, done.stderr
    return Launched(folder, reports, done.returncode, done.stderr)


def scores(folder: Path) -> np.ndarray:
    lines = (folder / "predictions.tsv").read_text().splitlines()[1:]
    rows = [line.split("\t") for line in lines]
    assert [int(row[0]) for row in rows] == list(range(EVALUATED))  # each row once, in order
    return np.array([float(row[3]) for row in rows])


def result(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "result.json").read_text())


def same(one: Path, other: Path) -> None:
    """Predictions, metrics and logged losses are equal to rounding."""
    np.testing.assert_allclose(scores(one), scores(other), rtol=1e-4, atol=1e-4)
    first, second = result(one), result(other)
    assert first["steps"] == second["steps"]
    assert first["metrics"]["last"] == pytest.approx(second["metrics"]["last"], abs=1e-3)
    losses = [
        [json.loads(line)["loss"] for line in (folder / "metrics.jsonl").read_text().splitlines()]
        for folder in (one, other)
    ]
    assert losses[0] == pytest.approx(losses[1], rel=1e-3, abs=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("name", [*SLOTS, *REPLICATED])
def test_two_processes_are_one_with_the_doubled_batch(launched: Launched, name: str) -> None:
    alone(launched.folder, name, **(SLOTS | REPLICATED)[name])
    same(launched.folder / f"ddp {name}", launched.folder / name)
    if name in SLOTS:
        same(launched.folder / f"fsdp {name}", launched.folder / name)
        processes = launched.reports[f"fsdp {name}"][0]["seen"]["processes"]
        elements = [process["elements"] for process in processes]
        whole = launched.reports[f"fsdp {name}"][0]["seen"]["elements"]
        assert sum(elements) == whole  # each parameter is somewhere, and nowhere twice
        assert max(elements) < 0.6 * whole


@pytest.mark.slow
def test_all_processes_end_with_the_same_weights(launched: Launched) -> None:
    finished = [own for own in launched.reports.values() if own[0]["ended"] == "finished" and own[0]["seen"]]
    assert len(finished) >= 14
    for first, second in finished:
        assert first["seen"] == second["seen"]
        assert len({process["digest"] for process in first["seen"]["processes"]}) == 1, first["name"]


@pytest.mark.slow
def test_processes_draw_their_own_dropout(launched: Launched) -> None:
    for first, *_ in launched.reports.values():
        if first["seen"]:
            assert len({process["dropout"] for process in first["seen"]["processes"]}) == 2


@pytest.mark.slow
def test_noise_of_micro_batches_works_with_one_for_each_process(launched: Launched) -> None:
    """DDP: accumulate 1. Cut off, the run goes on in one process, whose steps keep their rows."""
    assert launched.reports["ddp agni cut"][0]["ended"] == "cut off"
    alone(launched.folder, "ddp agni cut", batch_size=4, **AGNI)
    same(launched.folder / "ddp agni cut", launched.folder / "ddp agni")
    alone(launched.folder, "no noise")
    difference = scores(launched.folder / "ddp agni") - scores(launched.folder / "no noise")
    assert np.abs(difference).max() > 1e-3


@pytest.mark.slow
def test_a_run_goes_on_with_more_processes_and_with_fewer(launched: Launched) -> None:
    alone(launched.folder, "sage", **SLOTS["sage"])
    same(launched.folder / "grown", launched.folder / "sage")
    assert launched.reports["fsdp cut"][0]["ended"] == "cut off"
    alone(launched.folder, "fsdp cut", batch_size=4, **CUT | SLOTS["sage"])
    same(launched.folder / "fsdp cut", launched.folder / "sage")


@pytest.mark.slow
def test_sharded_state_of_noise_is_kept_whole(launched: Launched) -> None:
    """Cut off and continued, sharded, to the same numbers bit for bit."""
    assert launched.reports["fsdp running cut"][0]["ended"] == "cut off"
    assert launched.reports["fsdp running continued"][0]["ended"] == "finished"
    assert np.array_equal(
        scores(launched.folder / "fsdp running"), scores(launched.folder / "fsdp running cut")
    )


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["ddp", "fsdp"])
def test_asked_to_stop_all_end_after_the_same_step(launched: Launched, kind: str) -> None:
    """One process gets the signal; both save, say the same, and go on to the same numbers."""
    told = [report["ended"] for report in launched.reports[f"{kind} asked"]]
    assert told == ["stopped by SIGTERM after step 2, saved: the same command continues"] * 2
    assert [report["ended"] for report in launched.reports[f"{kind} goes on"]] == ["finished"] * 2
    assert np.array_equal(
        scores(launched.folder / f"{kind} running"), scores(launched.folder / f"{kind} asked")
    )


@pytest.mark.slow
def test_compressed_activations(launched: Launched) -> None:
    """Processes measure on their own rows and assign the same widths; gathered weights are not compressed."""
    first, second = launched.reports["ddp widths"][0]["seen"]["processes"]
    assert first["widths"] == second["widths"]
    assert len(set(first["widths"].values())) > 1
    replicated, sharded = (
        launched.reports[name][0]["seen"]["processes"] for name in ("ddp packed", "fsdp packed")
    )
    plain = launched.reports["ddp sage"][0]["seen"]["processes"]
    for own, of_shards, whole in zip(replicated, sharded, plain, strict=True):
        # with shards nothing is computed again: the parameters that it takes are gone by then
        assert own["saved_bytes"] < of_shards["saved_bytes"] < 0.5 * whole["saved_bytes"]
    bytes_without = launched.reports["fsdp sage"][0]["seen"]["processes"]
    assert [own["saved_bytes"] for own in bytes_without] == [own["saved_bytes"] for own in plain]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["fsdp microbatch", "fsdp widths", "fsdp sampled layers", "fsdp curvature"])
def test_what_cannot_be_sharded_is_refused_by_one_process_for_all(launched: Launched, name: str) -> None:
    first, second = launched.reports[name]
    assert first["ended"].startswith("refused: --sharding fsdp: ")
    assert "or use --sharding none" in first["ended"]
    assert second["ended"] == "left"
    assert not (launched.folder / name / "checkpoint").exists()


@pytest.mark.slow
def test_a_killed_process_ends_the_run(launched: Launched) -> None:
    """The launcher says which one, and the folder holds what is needed to go on."""
    assert launched.status != 0
    assert "Signal 9 (SIGKILL)" in launched.said
    for survivor in launched.reports.get("ddp dies", []):  # unless the launcher was quicker
        assert survivor["ended"].startswith("refused: another process of this run has died")
    alone(launched.folder, "ddp dies", batch_size=4, **CUT | SLOTS["sage"])
    alone(launched.folder, "sage", **SLOTS["sage"])
    same(launched.folder / "ddp dies", launched.folder / "sage")


@pytest.mark.slow
def test_accelerate_decides(tmp_path: Path) -> None:
    """The same command under `accelerate launch`: its flags ask for FSDP2; one process speaks and writes."""
    line = [
        "run",
        "--task",
        "demo-entailment",
        "--model",
        "demo",
        "--max-steps",
        "2",
        "--max-train-samples",
        "32",
    ]
    flags = ("--num_processes=2", "--num_machines=1", "--main_process_port=0", "--mixed_precision=no")
    fsdp = ("--use_fsdp", "--fsdp_version=2", "--dynamo_backend=no")
    done = launch(
        *("accelerate.commands.launch", *flags, *fsdp, "-m", "glue_harness", *line),
        *("--output-dir", str(tmp_path / "run")),
    )
    assert done.returncode == 0, done.stderr
    described = result(tmp_path / "run")["hardware"]
    assert described["processes"] == 2
    assert described["sharded"] is True
    assert done.stdout.count("result: ") == 1

"""Searches: what a specification means, what an exploit takes over, and what kill -9 leaves."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import yaml

from finetune_common.errors import ConfigurationError
from glue_harness import run
from glue_harness.run import checkpoint
from glue_harness.search import search
from glue_harness.search.records import Evaluation, read_last_evaluation
from glue_harness.search.spec import read_search

pytestmark = pytest.mark.filterwarnings(
    "ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::ResourceWarning"
)

BASE = {
    "task": "demo-similarity",
    "model": "demo",
    "max_train_samples": 48,
    "batch_size": 8,
    "epochs": 3,
    "max_length": 16,
    "warmup": 0.1,
}
SPACE = {
    "optimizer.lr": {"loguniform": [1e-6, 1e-2]},
    "weight_decay": {"uniform": [0, 0.3]},
    "batch_size": {"choice": [8, 16]},
}
EXAMPLES = sorted(Path(__file__).parents[3].glob("examples/searches/*.yaml"))


def write(folder: Path, **spec: Any) -> Path:
    path = folder / "search.yaml"
    path.write_text(yaml.safe_dump(spec))
    return path


@pytest.fixture(scope="module")
def ray_session() -> Iterator[None]:
    """One session for the module: its start takes seconds."""
    pytest.importorskip("ray")
    from glue_harness.cluster import connected

    with connected(2):
        yield


@pytest.fixture(scope="module")
def population(ray_session, tmp_path_factory) -> Path:
    """Population based training of four trials, two at a time."""
    folder = tmp_path_factory.mktemp("population")
    search(write(folder, base=BASE, space=SPACE), folder / "found", trials=4, jobs=2)
    return folder


def report_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "found" / "search.json").read_text())


@pytest.mark.slow
def test_the_report_has_every_trial_and_the_best_of_all_evaluations(population):
    report = report_of(population)
    assert [trial["number"] for trial in report["trials"]] == [1, 2, 3, 4]
    scores = {one["id"]: one["metrics"]["pearson"] for one in report["evaluations"]}
    assert report["best"]["score"] == max(scores.values()) == scores[report["best"]["evaluation"]]
    for trial in report["trials"]:
        own = [one for one in report["evaluations"] if one["trial"] == trial["number"]]
        assert trial["score"] == max(one["metrics"]["pearson"] for one in own)
        assert trial["evaluations"] == len(own)
        assert all(1e-6 <= one["configuration"]["optimizer.lr"] <= 1e-2 for one in own)
        assert all(0 <= one["configuration"]["weight_decay"] <= 0.3 for one in own)
        assert all(one["configuration"]["batch_size"] in (8, 16) for one in own)
    for kind in ("png", "svg"):
        assert (population / "found" / f"lineage.{kind}").stat().st_size > 1000


@pytest.mark.slow
def test_the_best_weights_are_kept_as_a_finished_run(population, tmp_path):
    """The folder is what `report` and `submit` read; evaluated anew, its weights give the score."""
    best, report = population / "found" / "best", report_of(population)
    result = json.loads((best / "result.json").read_text())
    assert result["metrics"]["last"]["pearson"] == report["best"]["score"]
    reached = result["history"][-1]["epoch"]
    spec = read_search(population / "search.yaml")
    evaluation = json.loads((best / "evaluation.json").read_text())
    settings = {**evaluation["configuration"]}
    run(spec.configure(settings | {"epochs": reached}, tmp_path), start_from=best)  # nothing is left to train
    assert (tmp_path / "predictions.tsv").read_text() == (best / "predictions.tsv").read_text()
    assert not yaml.safe_load((best / "config.yaml").read_text())["overwrite"]


@pytest.mark.slow
def test_an_exploit_takes_over_weights_state_schedule_and_the_new_rate(population, tmp_path):
    """An evaluation after an exploit, made again by hand from its lineage, has the very same scores."""

    class Enough(Exception):
        pass

    def stop_at(epoch: float):
        def look(training):
            if training.history.last["epoch"] >= epoch:
                raise Enough

        return look

    report, spec = report_of(population), read_search(population / "search.yaml")
    evaluations = {one["id"]: one for one in report["evaluations"]}
    exploits = [
        one
        for one in report["evaluations"]
        if one["parent"] and evaluations[one["parent"]]["trial"] != one["trial"]
    ]
    assert exploits, "no trial took over another one's weights"
    line = [exploits[0]]
    while line[0]["parent"]:
        line.insert(0, evaluations[line[0]["parent"]])
    donor, taker = line[-2:]
    assert taker["configuration"] != donor["configuration"]
    start = None
    for number, one in enumerate(line):
        folder = tmp_path / str(number)
        with pytest.raises(Enough):
            run(spec.configure(one["configuration"], folder), stop_at(one["epoch"]), start)
        start = folder
    import torch

    state = torch.load(next(start.glob("checkpoint/step-*/state.pt")), weights_only=True)
    [*_, last] = state["history"]
    assert last["metrics"] == taker["metrics"]
    assert [entry["metrics"] for entry in state["history"]] == [one["metrics"] for one in line]


@pytest.mark.slow
def test_asha_with_tpe_writes_failures_down_and_finds_the_best_of_the_others(ray_session, tmp_path):
    space = {"optimizer.lr": {"choice": [1e-3, 1e30]}, "warmup": {"uniform": [0, 0.2]}}
    base = {**BASE, "optimizer": "sgd", "epochs": 2}
    spec, folder = write(tmp_path, base=base, space=space), tmp_path / "found"
    report = search(spec, folder, "asha", "tpe", trials=3, jobs=2)
    assert len({trial["error"] is None for trial in report["trials"]}) == 2
    for trial in report["trials"]:
        diverges = trial["configuration"]["optimizer.lr"] == 1e30
        assert (trial["error"] is not None) == diverges
        assert not diverges or "diverged" in trial["error"] or "the loss is" in trial["error"]
    assert report["best"]["score"] == max(trial["score"] or -1 for trial in report["trials"])
    assert all(
        one["parent"] is None or evaluations[one["parent"]]["trial"] == one["trial"]
        for evaluations in [{one["id"]: one for one in report["evaluations"]}]
        for one in report["evaluations"]
    )
    assert search(spec, folder, "asha", "tpe", trials=3) == report
    with pytest.raises(ConfigurationError, match="holds a different search: trials was 3 and is now 4"):
        search(spec, folder, "asha", "tpe", trials=4)
    changed = write(tmp_path, base=base | {"epochs": 1}, space=space)
    with pytest.raises(ConfigurationError, match=r"different search: base\.epochs was 2 and is now 1"):
        search(changed, folder, "asha", "tpe", trials=3)


@pytest.mark.slow
def test_a_search_killed_and_asked_to_stop_ends_with_every_trial(tmp_path):
    """The same command continues, and what was evaluated is found again; trials asked to stop are saved."""
    pytest.importorskip("ray")
    spec, folder = write(tmp_path, base=BASE, space=SPACE), tmp_path / "found"
    command = [sys.executable, "-m", "glue_harness", "search", str(spec), "--output-dir", str(folder)]
    command += ["--trials", "3", "--jobs", "2"]
    seen: dict[str, bytes] = {}
    with (tmp_path / "log").open("wb") as log:
        for number, ends_by in ((2, signal.SIGTERM), (4, signal.SIGKILL)):
            program = subprocess.Popen(command, stdout=log, stderr=log)
            end = time.monotonic() + 240
            while len(list(folder.glob("evaluations/*.json"))) < number:
                assert time.monotonic() < end
                assert program.poll() is None, (tmp_path / "log").read_text()
                time.sleep(0.1)
            program.send_signal(ends_by)
            assert program.wait(120) == (143 if ends_by == signal.SIGTERM else -9)
            if ends_by == signal.SIGTERM:
                said = (tmp_path / "log").read_text().splitlines()[-1]
                assert said == "glue-harness: stopped by SIGTERM: the same command continues"
                assert (folder / ".stop").exists()
                assert not list(folder.glob("trials/*/error.txt"))
            seen |= {path.name: path.read_bytes() for path in folder.glob("evaluations/*.json")}
        assert subprocess.call(command, stdout=log, stderr=log) == 0, (tmp_path / "log").read_text()
    report = json.loads((folder / "search.json").read_text())
    assert [trial["number"] for trial in report["trials"]] == [1, 2, 3]
    assert not any(trial["error"] for trial in report["trials"])
    assert max(trial["epoch"] for trial in report["trials"]) == 3
    for name, content in seen.items():
        assert (folder / "evaluations" / name).read_bytes() == content
    known = {one["id"] for one in report["evaluations"]}
    assert all(one["parent"] is None or one["parent"] in known for one in report["evaluations"])
    assert sorted(path.name for path in folder.iterdir() if not path.name.startswith(".")) == [
        "best",
        "evaluations",
        "lineage.png",
        "lineage.svg",
        "search.json",
        "search.yaml",
        "trials",
    ]


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ({"base": BASE}, "space is empty"),
        ({"bse": BASE, "space": SPACE}, "'bse' is unknown: did you mean 'base'"),
        ({"base": BASE, "space": {"epochs": 3}}, "space.epochs=3 is no range: give one of uniform"),
        ({"base": BASE, "space": {"epochs": {"uniformly": [1, 2]}}}, "did you mean 'uniform'"),
        ({"base": BASE, "space": {"epochs": {"uniform": [2, 1]}}}, "the first has to be below the second"),
        ({"base": BASE, "space": {"warmup": {"loguniform": [0, 1]}}}, "has to be above 0 and below"),
        ({"base": BASE, "space": {"batch_size": {"randint": [1.5, 4]}}}, "takes two whole numbers"),
        ({"base": BASE, "space": {"optimizer.lrr": {"choice": [1]}}}, "--optimizer.lrr is no option"),
        ({"base": BASE, "space": {"batch_size": {"choice": [0]}}}, "batch_size=0 is out of range"),
        ({"base": BASE, "space": {"epoch": {"choice": [1]}}}, "did you mean 'epochs'"),
        ({"base": BASE, "space": {"task": {"choice": ["rte"]}}}, "task is the same for all trials"),
        ({"base": {"model": "demo"}, "space": SPACE}, "base has no task"),
        (
            {"base": BASE, "space": SPACE, "mutations": {"seed": {"choice": [1]}}},
            "mutations.seed is not in space",
        ),
        (
            {
                "base": BASE,
                "space": {"model": {"choice": ["demo"]}},
                "mutations": {"model": {"choice": ["x"]}},
            },
            "mutations.model cannot change during training",
        ),
    ],
)
def test_a_wrong_specification_is_refused_in_one_line(tmp_path, spec, said):
    path = write(tmp_path, **spec)
    with pytest.raises(ConfigurationError) as error:
        read_search(path)
    assert said in str(error.value)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


def test_mutations_are_the_part_of_the_space_that_can_change_while_a_model_trains(tmp_path):
    space = {
        "optimizer.lr": {"uniform": [0.1, 1]},
        "batch-size": {"choice": [8]},
        "model": {"choice": ["demo"]},
        "optimizer": {"choice": ["adamw", {"name": "sgd", "lr": 0.1}]},
    }
    spec = read_search(write(tmp_path, base=BASE, space=space))
    assert set(spec.mutations) == {"optimizer.lr", "batch_size"}
    drawn = spec.configure({"optimizer": {"name": "sgd", "lr": 0.1}, "optimizer.lr": 0.5}, tmp_path)
    assert (drawn.optimizer["name"], drawn.optimizer["lr"]) == ("sgd", 0.5)


def test_the_space_of_the_published_search_can_be_written(tmp_path):
    space = {
        "optimizer.lr": {"choice": [2e-5, 3e-5, 5e-5]},
        "batch_size": {"choice": [16]},
        "epochs": {"randint": [6, 20]},
        "warmup": {"uniform": [0, 0.06]},
        "weight_decay": {"uniform": [0, 0.3]},
    }
    mutations = {
        "optimizer.lr": {"uniform": [1e-5, 5e-5]},
        "batch_size": {"choice": [16, 32, 64]},
        "weight_decay": {"uniform": [0, 0.3]},
    }
    spec = read_search(write(tmp_path, base=BASE, space=space, mutations=mutations))
    assert set(spec.mutations) == set(mutations)
    assert spec.mutations["optimizer.lr"].nearest(6e-5) == 5e-5


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_the_examples_can_be_searched(path):
    assert read_search(path).mutations


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--sampler", "tpe"], "does not work with --scheduler pbt"),
        (["--trials", "0"], "trials=0 is out of range"),
        (["--scheduler", "hyperband"], "invalid choice: 'hyperband'"),
    ],
)
def test_what_a_search_cannot_use_is_refused_in_one_line(tmp_path, harness, options, said):
    spec = write(tmp_path, base=BASE, space=SPACE)
    status, out, err = harness("search", spec, "--output-dir", tmp_path / "found", *options)
    assert status == 2
    assert said in err
    assert err.count("\n") == 1
    assert out == ""


def test_what_is_not_installed_is_named_with_the_way_to_get_it(tmp_path, harness, monkeypatch):
    monkeypatch.setattr("glue_harness.extras.find_spec", lambda name: None)
    spec = write(tmp_path, base=BASE, space=SPACE)
    status, _, err = harness("search", spec, "--output-dir", tmp_path / "found")
    assert status == 2
    assert "ray is not installed: from the checkout, pip install './packages/glue-harness[search]'" in err


def test_rows_of_ones_own_are_searched_by_their_own_metric(tmp_path):
    rows = [{"text": f"row {number}", "label": number / 4} for number in range(8)]
    files = {split: tmp_path / f"{split}.jsonl" for split in ("train", "validation")}
    for file in files.values():
        file.write_text("\n".join(map(json.dumps, rows)))
    own = {f"{split}_file": str(file) for split, file in files.items()}
    spec = read_search(write(tmp_path, base=BASE | own | {"task": "grades"}, space=SPACE))
    assert spec.metric == "pearson"
    demo = read_search(write(tmp_path, base=BASE, space=SPACE))
    assert demo.metric == "pearson"
    published = read_search(write(tmp_path, base=BASE | {"task": "rte"}, space=SPACE))
    assert published.metric == "accuracy"


def test_of_a_folder_that_two_attempts_were_copied_into_the_evaluated_one_counts(tmp_path):
    """Tune copies over what an attempt it gave up had left: a checkpoint with a higher step may be stale."""
    copied = tmp_path / "checkpoint_000001"
    for step in (6, 12):
        (copied / "checkpoint" / f"step-{step}").mkdir(parents=True)
    made = Evaluation("abc", None, "t", 2.0, 6, {"pearson": 0.5}, {"batch_size": 16})
    (copied / "evaluation.json").write_text(json.dumps(asdict(made)))
    assert read_last_evaluation(copied) == made
    assert checkpoint.latest(copied / "checkpoint") == copied / "checkpoint" / "step-6"


def test_a_variable_of_the_environment_stands_for_a_path(tmp_path, monkeypatch):
    monkeypatch.setitem(os.environ, "SEARCH_TEST_MODEL", "demo")
    spec = read_search(write(tmp_path, base={**BASE, "model": "${SEARCH_TEST_MODEL}"}, space=SPACE))
    assert spec.base["model"] == "demo"

"""The leaderboard's zip: names, headers, row counts and labels as its rules say; predictions as the run's."""

import csv
import shutil
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from finetune_common.errors import ConfigurationError
from glue_harness.submit import check_submission

Train = Callable[..., dict[str, Any]]
Harness = Callable[..., Any]

EXPECTED = {
    "CoLA.tsv": (1063, "0"),
    "MNLI-m.tsv": (9796, "neutral"),
    "MNLI-mm.tsv": (9847, "contradiction"),
    "MRPC.tsv": (1725, "1"),
    "QNLI.tsv": (5463, "not_entailment"),
    "QQP.tsv": (390965, "0"),
    "RTE.tsv": (3000, "entailment"),
    "SST-2.tsv": (1821, "1"),
    "STS-B.tsv": (1379, "3.250"),
    "WNLI.tsv": (146, "0"),
    "AX.tsv": (1104, "entailment"),
}
"""What the leaderboard's rules and its sample submission say: rows, and a value that may stand there."""


def tsv(rows: int, value: str, header: str = "index\tprediction") -> str:
    return "\n".join([header, *(f"{index}\t{value}" for index in range(rows))]) + "\n"


def archive(path: Path, texts: dict[str, str]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as opened:
        for name, text in texts.items():
            opened.writestr(name, text)
    return path


def test_a_whole_submission_is_accepted_and_a_part_says_what_is_missing(tmp_path: Path) -> None:
    whole = {name: tsv(rows, value) for name, (rows, value) in EXPECTED.items()}
    assert check_submission(archive(tmp_path / "whole.zip", whole)) == []
    del whole["AX.tsv"], whole["QQP.tsv"]
    assert check_submission(archive(tmp_path / "part.zip", whole)) == ["QQP.tsv"]


WRONG = {
    "name": ("rte.tsv", tsv(3000, "entailment"), "'rte.tsv' is no file of the leaderboard"),
    "header": ("WNLI.tsv", tsv(146, "0", "id\tlabel"), r"first line is 'id\\tlabel'"),
    "empty": ("WNLI.tsv", "", "first line is ''"),
    "too few": ("WNLI.tsv", tsv(145, "0"), "145 predictions, the leaderboard expects 146"),
    "too many": ("RTE.tsv", tsv(3001, "entailment"), "3,001 predictions, the leaderboard expects 3,000"),
    "number for a name": ("RTE.tsv", tsv(3000, "1"), "RTE.tsv, line 2: '1' is no label"),
    "name for a number": ("CoLA.tsv", tsv(1063, "acceptable"), "'acceptable' is no label: choose from 0, 1"),
    "label of another task": ("QNLI.tsv", tsv(5463, "neutral"), "'neutral' is no label"),
    "score out of range": ("STS-B.tsv", tsv(1379, "5.5"), "'5.5' is no score between 0 and 5"),
    "score that is none": ("STS-B.tsv", tsv(1379, "nan"), "'nan' is no score"),
    "index": ("WNLI.tsv", tsv(146, "0").replace("\n3\t", "\n4\t"), "line 5: index '4', expected 3"),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_what_the_leaderboard_would_refuse_is_refused(tmp_path: Path, wrong: str) -> None:
    name, text, said = WRONG[wrong]
    with pytest.raises(ConfigurationError, match=said):
        check_submission(archive(tmp_path / "wrong.zip", {name: text}))


def test_no_zip_is_refused(tmp_path: Path) -> None:
    (tmp_path / "not.zip").write_text("no zip")
    with pytest.raises(ConfigurationError, match=r"not\.zip: .*give a zip of tsv files"):
        check_submission(tmp_path / "not.zip")


WORDS = ("the", "old", "dog", "near", "a", "cat", "runs", "sleeps")


def sentence(number: int) -> str:
    return " ".join(WORDS[number // 8**place % 8] for place in range(4))


@pytest.fixture(scope="module")
def official(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Official folders with made-up rows: the texts of a dev set are the first rows of its test set."""
    root = tmp_path_factory.mktemp("glue")
    for folder, test_rows, labels in (("WNLI", 146, "01"), ("STS-B", 1379, "14")):
        (root / folder).mkdir()
        label = "score" if folder == "STS-B" else "label"
        for split, rows in (("train", 64), ("dev", 40)):
            lines = [f"index\tsentence1\tsentence2\t{label}"]
            lines += [f"{n}\t{sentence(3 * n)}\t{sentence(n)}\t{labels[n % 2]}" for n in range(rows)]
            (root / folder / f"{split}.tsv").write_text("\n".join(lines) + "\n")
        lines = ["index\tsentence1\tsentence2"]
        lines += [f"{n}\t{sentence(3 * n)}\t{sentence(n)}" for n in range(test_rows)]
        (root / folder / "test.tsv").write_text("\n".join(lines) + "\n")
    return root


@pytest.fixture
def runs(train: Train, official: Path, tmp_path: Path) -> Path:
    settings: dict[str, Any] = {"data_dir": str(official), "batch_size": 16, "max_length": 24, "epochs": 2}
    settings["optimizer"] = {"name": "adamw", "lr": 2e-3}
    for name, task, seed in (("a", "wnli", 1), ("b", "wnli", 2), ("c", "stsb", 1)):
        with pytest.warns(UserWarning, match="the official one"):
            train(f"runs/{name}", task=task, seed=seed, **settings)
    train("runs/demo", max_steps=1)
    return tmp_path / "runs"


def said_by_the_run(folder: Path) -> list[str]:
    with (folder / "predictions.tsv").open(newline="") as file:
        return [row["prediction"] for row in csv.DictReader(file, delimiter="\t")]


def test_the_zip_holds_what_the_best_runs_say_of_the_test_files(
    harness: Harness, runs: Path, tmp_path: Path
) -> None:
    """Rows that dev and test share get the label that the run gave them on the dev set."""
    said = harness("submit", runs, "--output-dir", tmp_path / "out")
    assert said.status == 0, said.err
    with zipfile.ZipFile(tmp_path / "out/submission.zip") as opened:
        assert opened.namelist() == ["WNLI.tsv", "STS-B.tsv"]
        texts = {name: opened.read(name).decode() for name in opened.namelist()}
    assert texts["WNLI.tsv"] == (tmp_path / "out/WNLI.tsv").read_text()
    chosen = runs / ("a" if f"wnli: {runs / 'a'} " in said.out else "b")
    assert f"wnli: {chosen} (" in said.out
    names = ("not_entailment", "entailment")
    lines = texts["WNLI.tsv"].splitlines()
    assert lines[0] == "index\tprediction"
    assert len(lines) == 147
    assert [names[int(line.split("\t")[1])] for line in lines[1:41]] == said_by_the_run(chosen)
    scores = [float(line.split("\t")[1]) for line in texts["STS-B.tsv"].splitlines()[1:]]
    on_dev = [min(max(float(score), 0.0), 5.0) for score in said_by_the_run(runs / "c")]
    assert len(scores) == 1379
    assert scores[:40] == pytest.approx(on_dev, abs=0.001)
    assert "missing, and expected by the leaderboard: CoLA.tsv, MNLI-m.tsv" in said.out
    assert check_submission(tmp_path / "out/submission.zip")[:2] == ["CoLA.tsv", "MNLI-m.tsv"]


def test_fields_of_the_model_that_a_run_changed_are_those_it_predicts_with(
    train: Train, harness: Harness, official: Path, tmp_path: Path
) -> None:
    settings: dict[str, Any] = {"data_dir": str(official), "batch_size": 16, "max_length": 24, "epochs": 2}
    settings |= {"optimizer": {"name": "adamw", "lr": 2e-3}, "seed": 1}
    with pytest.warns(UserWarning, match="the official one"):
        train("runs/a", task="stsb", model_config={"hidden_act": "relu", "num_hidden_layers": 1}, **settings)
    said = harness("submit", tmp_path / "runs", "--output-dir", tmp_path / "out")
    assert said.status == 0, said.err
    scores = [float(x.split("\t")[1]) for x in (tmp_path / "out/STS-B.tsv").read_text().splitlines()[1:41]]
    on_dev = [min(max(float(score), 0.0), 5.0) for score in said_by_the_run(tmp_path / "runs/a")]
    assert scores == pytest.approx(on_dev, abs=0.001)


def test_a_run_of_several_tasks_predicts_the_files_of_each(
    train: Train, harness: Harness, official: Path, tmp_path: Path
) -> None:
    settings: dict[str, Any] = {"data_dir": str(official), "batch_size": 16, "max_length": 24, "epochs": 2}
    with pytest.warns(UserWarning, match="the official one"):
        train("runs/a", task="wnli,stsb", **settings)
    said = harness("submit", tmp_path / "runs", "--output-dir", tmp_path / "out")
    assert said.status == 0, said.err
    for name, task in (("WNLI", "wnli"), ("STS-B", "stsb")):
        predicted = [x.split("\t")[1] for x in (tmp_path / f"out/{name}.tsv").read_text().splitlines()[1:41]]
        with (tmp_path / f"runs/a/predictions-{task}.tsv").open(newline="") as file:
            on_dev = [row["prediction"] for row in csv.DictReader(file, delimiter="\t")]
        if task == "wnli":
            assert [("not_entailment", "entailment")[int(one)] for one in predicted] == on_dev
        else:
            clipped = [min(max(float(score), 0.0), 5.0) for score in on_dev]
            assert [float(one) for one in predicted] == pytest.approx(clipped, abs=0.001)


def assert_refused(said: Any, *words: str) -> None:
    assert said.status == 2
    assert said.err.count("\n") == 1
    for word in words:
        assert word in said.err


def test_runs_that_cannot_predict_are_refused(
    harness: Harness, runs: Path, official: Path, tmp_path: Path
) -> None:
    out = ("--output-dir", tmp_path / "out")
    assert_refused(harness("submit", runs / "demo", *out), "no run of a GLUE task", "rte")
    assert_refused(harness("submit", runs, "--ax", "AX.tsv", *out), "--ax AX.tsv", "MNLI")
    assert_refused(harness("submit", tmp_path / "nowhere", *out), "no result.json")
    short = tmp_path / "short/WNLI"
    short.mkdir(parents=True)
    (short / "test.tsv").write_text("index\tsentence1\tsentence2\n0\tthe dog\tthe cat\n")
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        said = harness("submit", runs / "a", "--data-dir", tmp_path / "short", *out)
    assert said.status == 2
    warned, refused = said.err.splitlines()
    assert "test has 1 rows, the official one 146" in warned
    assert "WNLI.tsv: 1 predictions, the leaderboard expects 146" in refused
    (runs / "a/model/model.safetensors").write_bytes(b"")
    assert_refused(harness("submit", runs / "a", *out), "model.safetensors is not as it was written")
    shutil.rmtree(runs / "a/model")
    (next((runs / "a/checkpoint").iterdir()) / "model.safetensors").unlink()
    assert_refused(harness("submit", runs / "a", *out), "checkpoint is damaged")
    assert not (tmp_path / "out").exists()


def test_the_mnli_run_predicts_three_files(train: Train, harness: Harness, tmp_path: Path) -> None:
    """Matched, mismatched and the diagnostic set; a tiny run, all rows that the leaderboard wants."""
    root = tmp_path / "glue/MNLI"
    root.mkdir(parents=True)
    labels = ("entailment", "neutral", "contradiction")
    for split, rows in (("train", 32), ("dev_matched", 8), ("dev_mismatched", 8)):
        lines = [f"{n}\t{sentence(n)}\t{sentence(2 * n)}\t{labels[n % 3]}" for n in range(rows)]
        (root / f"{split}.tsv").write_text(
            "\n".join(["index\tsentence1\tsentence2\tgold_label", *lines]) + "\n"
        )
    for name, rows in (("test_matched", 9796), ("test_mismatched", 9847), ("AX", 1104)):
        lines = [f"{n}\tthe dog\t{WORDS[n % 8]}" for n in range(rows)]
        (root / f"{name}.tsv").write_text("\n".join(["index\tsentence1\tsentence2", *lines]) + "\n")
    settings = {"task": "mnli", "data_dir": str(root.parent), "batch_size": 256, "max_length": 12}
    with pytest.warns(UserWarning, match="the official one"):
        train("mnli", max_train_samples=None, **settings)
    said = harness("submit", tmp_path / "mnli", "--ax", root / "AX.tsv", "--output-dir", tmp_path / "out")
    assert said.status == 0, said.err
    rows = {path.name: len(path.read_text().splitlines()) - 1 for path in (tmp_path / "out").glob("*.tsv")}
    assert rows == {"MNLI-m.tsv": 9796, "MNLI-mm.tsv": 9847, "AX.tsv": 1104}
    said_of = {line.split("\t")[1] for line in (tmp_path / "out/AX.tsv").read_text().splitlines()[1:]}
    assert said_of <= set(labels)

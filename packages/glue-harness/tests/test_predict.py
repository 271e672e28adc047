"""`glue-harness predict`: files in, the same rows with a label and scores out; metrics where labels are."""

import csv
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Train = Callable[..., dict[str, Any]]
Harness = Callable[..., Any]

NAMES = ("entailment", "not_entailment")


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of pairs, `pairs`, and a regression, `number`."""
    from glue_harness import parse_mapping, run

    root = tmp_path_factory.mktemp("runs")
    settings = {"model": "demo", "max_steps": 8, "batch_size": 8, "optimizer": {"name": "adamw", "lr": 1e-2}}
    for name, task in (("pairs", "demo-entailment"), ("number", "demo-similarity")):
        run(parse_mapping({**settings, "task": task, "output_dir": str(root / name)}))
    return root


@pytest.fixture(scope="module")
def dev() -> list[dict[str, Any]]:
    """The rows that `pairs` was evaluated on."""
    from finetune_common.data import load_task

    return [dict(row) for row in load_task("demo-entailment")["validation"]]  # type: ignore[call-overload]


def of_the_run(run: Path) -> list[str]:
    with (run / "predictions.tsv").open(newline="") as file:
        return [row["prediction"] for row in csv.DictReader(file, delimiter="\t")]


def test_a_csv_gets_labels_scores_and_the_metrics_of_the_run(
    harness: Harness, runs: Path, dev: list[dict[str, Any]], tmp_path: Path
) -> None:
    with (tmp_path / "dev.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["number", "sentence1", "sentence2", "label"])
        writer.writerows(
            [n, row["sentence1"], row["sentence2"], NAMES[row["label"]]] for n, row in enumerate(dev)
        )
    said = harness("predict", runs / "pairs", tmp_path / "dev.csv", "--output", tmp_path / "out.csv")
    assert said.status == 0, said.err
    with (tmp_path / "out.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == [
        "number",
        "sentence1",
        "sentence2",
        "label",
        "predicted_label",
        *(f"score_{n}" for n in NAMES),
    ]
    assert [row["number"] for row in rows] == [str(number) for number in range(500)]
    assert [row["predicted_label"] for row in rows] == of_the_run(runs / "pairs")
    for row in rows:
        one, other = (float(row[f"score_{name}"]) for name in NAMES)
        assert one + other == pytest.approx(1, abs=1e-6)
        assert (one > other) == (row["predicted_label"] == "entailment")
    metrics = json.loads((runs / "pairs/result.json").read_text())["metrics"]["last"]
    assert "500 rows in" in said.err
    assert f"accuracy {metrics['accuracy']:.4f}" in said.err


def test_formats_give_the_same_labels(
    harness: Harness, runs: Path, dev: list[dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """jsonl, parquet, tsv, and lines on standard input; rows without labels have the column `label`."""
    import pyarrow as pa
    from pyarrow import parquet

    few = [{"sentence1": row["sentence1"], "sentence2": row["sentence2"]} for row in dev[:20]]
    expected = of_the_run(runs / "pairs")[:20]
    (tmp_path / "few.jsonl").write_text("".join(json.dumps(row) + "\n" for row in few))
    parquet.write_table(pa.Table.from_pylist(few), tmp_path / "few.parquet")
    lines = "".join(f"{row['sentence1']}\t{row['sentence2']}\n" for row in few)
    (tmp_path / "few.tsv").write_text("sentence1\tsentence2\n" + lines)
    said = harness("predict", runs / "pairs", tmp_path / "few.jsonl")
    assert [json.loads(line)["label"] for line in said.out.splitlines()] == expected
    harness("predict", runs / "pairs", tmp_path / "few.parquet", "--output", tmp_path / "out.parquet")
    table = parquet.read_table(tmp_path / "out.parquet")
    assert table["label"].to_pylist() == expected
    assert table["score_entailment"].type == pa.float64()
    said = harness("predict", runs / "pairs", tmp_path / "few.tsv")
    assert [row["label"] for row in csv.DictReader(io.StringIO(said.out), delimiter="\t")] == expected
    monkeypatch.setattr("sys.stdin", io.StringIO(lines))
    said = harness("predict", runs / "pairs")
    assert [row["label"] for row in csv.DictReader(io.StringIO(said.out), delimiter="\t")] == expected
    both = (tmp_path / "few.jsonl", tmp_path / "few.tsv")
    said = harness("predict", runs / "pairs", *both, "--output", tmp_path / "both.jsonl")
    assert said.status == 0
    assert len((tmp_path / "both.jsonl").read_text().splitlines()) == 40


def test_a_regression_gives_a_score(harness: Harness, runs: Path, tmp_path: Path) -> None:
    from finetune_common.data import load_task

    rows = [dict(row) for row in load_task("demo-similarity")["validation"]][:10]  # type: ignore[call-overload]
    lines = [{"sentence1": r["sentence1"], "sentence2": r["sentence2"], "label": r["label"]} for r in rows]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    said = harness("predict", runs / "number", tmp_path / "rows.jsonl")
    scores = [json.loads(line)["score"] for line in said.out.splitlines()]
    expected = [float(value) for value in of_the_run(runs / "number")[:10]]
    assert scores == pytest.approx(expected, abs=1e-6)
    assert "pearson" in said.err


def test_a_model_folder_predicts_too(harness: Harness, runs: Path, tmp_path: Path) -> None:
    """Its columns have no names: all that hold text are the texts."""
    (tmp_path / "pairs.csv").write_text("id,first,second\n1,the dog,a cat\n2,the old dog,the dog\n")
    said = harness("predict", runs / "pairs/model", tmp_path / "pairs.csv")
    assert said.status == 0, said.err
    assert [row["id"] for row in csv.DictReader(io.StringIO(said.out))] == ["1", "2"]


def test_the_order_of_rows_does_not_depend_on_their_length(
    runs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows go through the model by length, window by window, and come back as they were given."""
    from glue_harness import open_run
    from glue_harness.run import predictor

    pairs = [("dog " * (1 + 7 * n % 11), "cat " * (1 + 5 * n % 9)) for n in range(40)]
    run = open_run(runs / "pairs")
    one_by_one = [run.predict([pair])[0]["scores"]["entailment"] for pair in pairs]
    monkeypatch.setattr(predictor, "WINDOW", 16)
    together = [row["scores"]["entailment"] for row in run.predict(pairs, batch_size=8)]
    assert together == pytest.approx(one_by_one, abs=1e-6)


def test_several_labels_a_row(tmp_path: Path, harness: Harness) -> None:
    """Each label has a probability of its own, and those above one half are said."""
    import transformers

    from finetune_common.demo import demo_tokenizer

    tokenizer = demo_tokenizer()
    config = transformers.BertConfig(
        vocab_size=len(tokenizer), hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=32, problem_type="multi_label_classification",
        id2label={0: "red", 1: "green", 2: "blue"}, label2id={"red": 0, "green": 1, "blue": 2},
    )  # fmt: skip
    model = transformers.BertForSequenceClassification(config)
    model.classifier.weight.data.zero_()
    model.classifier.bias.data.copy_(model.classifier.bias.new_tensor([2.0, -2.0, 1.0]))
    model.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    (tmp_path / "rows.jsonl").write_text('{"text": "a dog"}\n')
    said = harness("predict", tmp_path / "model", tmp_path / "rows.jsonl")
    [row] = [json.loads(line) for line in said.out.splitlines()]
    assert row["label"] == ["red", "blue"]
    assert row["score_red"] == pytest.approx(0.8807970779778823)
    assert row["score_green"] == pytest.approx(0.11920292202211755)


@pytest.mark.parametrize(
    ("text", "options", "told"),
    [
        ("sentence1,other\na,b\n", (), "no column 'sentence1' and 'sentence2'"),
        ("sentence1,sentence2\na,b\n", ("--output", "out.txt"), "give one of .csv"),
        ("sentence1,sentence2\na,b\n", ("--output", "rows.csv/out.csv"), "that can be written"),
        ("sentence1,sentence2\na,b\n", ("--batch-size", "0"), "batch_size"),
    ],
)
def test_what_cannot_be_used_is_refused_in_one_line(
    harness: Harness,
    runs: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    text: str,
    options: Any,
    told: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "rows.csv").write_text(text)
    said = harness("predict", runs / "pairs", "rows.csv", *options)
    assert (said.status, said.err.count("\n")) == (2, 1)
    assert told in said.err


def test_labels_that_are_unknown_give_no_metrics_and_a_reason(
    harness: Harness, runs: Path, tmp_path: Path
) -> None:
    (tmp_path / "rows.csv").write_text("sentence1,sentence2,label\na,b,maybe\n")
    said = harness("predict", runs / "pairs", tmp_path / "rows.csv")
    assert said.status == 0
    assert "no metrics: label of row 1 is 'maybe', allowed is entailment, not_entailment" in said.err

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
    assert "label 'maybe' in 1 row: line 2; allowed is entailment, not_entailment" in said.err
    assert said.out.count("\n") == 2  # the predictions are written all the same


def lines(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def labelled(labels: list[Any], count: int = 24) -> list[dict[str, Any]]:
    """Rows of different texts, which do not tell the label."""
    words = ("dog", "cat", "bird", "boy", "girl")
    return [
        {"text": f"the {'old ' * (row // 5)}{words[row % 5]} sleeps", "label": labels[row % len(labels)]}
        for row in range(count)
    ]


@pytest.mark.parametrize(
    ("labels", "options"),
    [
        ([True, False, True], {}),
        (["0.0", "1.0", "2.0", "1.0"], {"kind": "classes"}),
        (["Pos", "pos ", "POS", " neg", "neg"], {"label_spelling": "fold"}),
        (["pos", "neg", " neg", "pos"], {"label_spelling": "exact"}),
        (["a;b", "b", "a", "b;c"], {"kind": "labels"}),
        (["a;B", "b", "A", "b;A "], {"kind": "labels", "label_spelling": "fold"}),
        (["x", " ", "y", None, "y"], {"drop_unlabelled": True}),
        ([0.5, 2, "1.25", "nan", None], {"drop_unlabelled": True, "kind": "regression"}),
    ],
)
def test_the_rows_of_the_evaluation_give_its_metrics(
    train: Train, tmp_path: Path, labels: list[Any], options: Any
) -> None:
    from glue_harness.predict import predict

    rows = labelled(labels)
    rows[3]["text"] = None
    file = lines(tmp_path / "own.jsonl", rows)
    own = {"train_file": str(file), "validation_file": str(file), "optimizer": {"name": "adamw", "lr": 1e-2}}
    result = train(task="own", **own, **options)
    found = predict(str(tmp_path / "run"), [file], tmp_path / "out.jsonl")
    assert found["metrics"] == pytest.approx(result["metrics"]["last"], abs=1e-4)
    used = result["data"]["schema"]["sources"]["validation"]["rows"]
    left_out = f"the metrics leave out {24 - used} rows without a label" if used < 24 else ""
    assert found["without"] == left_out
    written = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [{name: row[name] for name in ("text", "label")} for row in written] == rows


def test_the_user_s_columns_of_a_known_task_are_found_again(train: Train, tmp_path: Path) -> None:
    from glue_harness.predict import predict

    rows = [
        {"label": "none", "first": f"the dog {row}", "second": "the dog", "gold": NAMES[row % 2].upper()}
        for row in range(12)
    ]
    file = lines(tmp_path / "own.jsonl", rows)
    own = {"train_file": str(file), "validation_file": str(file), "max_steps": 2}
    columns = {"text_columns": "first,second", "label_column": "gold"}
    result = train(**own, **columns, task="rte", label_spelling="fold")
    found = predict(str(tmp_path / "run"), [file], tmp_path / "out.jsonl")
    assert found["metrics"] == pytest.approx(result["metrics"]["last"], abs=1e-6)


def test_a_file_without_the_training_s_label_is_predicted(train: Train, tmp_path: Path) -> None:
    from glue_harness.predict import predict

    rows = [f"{row},the dog {row},{'xy'[row % 2]}" for row in range(12)]
    (tmp_path / "own.csv").write_text("\n".join(["n,said,team", *rows]))
    own = {"train_file": str(tmp_path / "own.csv"), "validation_share": 0.5, "max_steps": 2}
    train(**own, task="own", text_columns="said", label_column="team")
    (tmp_path / "new.csv").write_text("said,n\nthe dog sleeps,1\n")
    found = predict(str(tmp_path / "run"), [tmp_path / "new.csv"], tmp_path / "out.csv")
    assert (found["rows"], found["metrics"], found["without"]) == (1, {}, "")


@pytest.mark.parametrize("unknown", [-1, "-1", -1.0, None])
def test_a_known_task_has_indices_and_rows_whose_label_is_not_public(
    runs: Path, dev: list[dict[str, Any]], tmp_path: Path, unknown: Any
) -> None:
    """On the hub a class is its index, and -1 in the test rows."""
    from glue_harness.predict import predict

    file = lines(tmp_path / "dev.jsonl", dev[:40])
    hidden = lines(tmp_path / "hidden.jsonl", [row | {"label": unknown} for row in dev[:7]])
    alone = predict(str(runs / "pairs"), [file], tmp_path / "out.jsonl")
    beside = predict(str(runs / "pairs"), [file, hidden], tmp_path / "out.jsonl")
    assert beside["metrics"] == alone["metrics"]
    assert beside["without"] == "the metrics leave out 7 rows without a label"


@pytest.fixture(scope="module")
def ratings(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of one text and ratings from 1 to 5."""
    from glue_harness import parse_mapping, run

    root = tmp_path_factory.mktemp("ratings")
    file = str(lines(root / "own.jsonl", labelled(["1", "2", "3", "4", "5"], 25)))
    own = {"task": "own", "train_file": file, "validation_file": file}
    run(parse_mapping({**own, "model": "demo", "max_steps": 2, "output_dir": str(root / "run")}))
    return root / "run"


@pytest.mark.parametrize("folder", ["", "model"])
def test_an_index_is_no_spelling_of_a_user_s_class(ratings: Path, tmp_path: Path, folder: str) -> None:
    """Rating 1 has index 0: rows with the label 0 are no rows with the rating 1."""
    from glue_harness.predict import predict

    wrong = lines(tmp_path / "wrong.jsonl", labelled(["0"], 10))
    found = predict(str(ratings / folder), [wrong], tmp_path / "out.jsonl")
    assert found["metrics"] == {}
    assert "label '0' in 10 rows: lines 1, 2, 3, 4, 5, 6, …; allowed is 1, 2, 3, 4, 5" in found["without"]
    floats = lines(tmp_path / "floats.jsonl", labelled([1.0, 5.0, None]))  # as pandas, if one is missing
    assert predict(str(ratings / folder), [floats], tmp_path / "out.jsonl")["metrics"]


def test_the_index_of_a_class_without_a_name_is_its_label(tiny_model: Path, tmp_path: Path) -> None:
    """Transformers calls classes that nobody named LABEL_0, LABEL_1, …"""
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    from glue_harness.predict import predict

    AutoModelForSequenceClassification.from_pretrained(tiny_model).save_pretrained(tmp_path / "plain")
    AutoTokenizer.from_pretrained(tiny_model).save_pretrained(tmp_path / "plain")
    for zero, one in (("0", "1"), ("LABEL_0", "LABEL_1")):
        rows = lines(tmp_path / "rows.jsonl", labelled([zero, one], 2))
        found = predict(str(tmp_path / "plain"), [rows], tmp_path / "out.jsonl")
        assert found["metrics"], found["without"]


def test_of_several_files_the_one_with_the_fault_is_named(ratings: Path, tmp_path: Path) -> None:
    from glue_harness.predict import predict

    good = lines(tmp_path / "good.jsonl", labelled(["1"], 2))
    bad = lines(tmp_path / "bad.jsonl", labelled(["2", "9"], 2))
    found = predict(str(ratings), [good, bad], tmp_path / "out.jsonl")
    assert "bad.jsonl: label '9' in 1 row: line 2" in found["without"]
    assert len((tmp_path / "out.jsonl").read_text().splitlines()) == 4


@pytest.mark.parametrize("column", ["ticket_id,1003", ",3", "Id,7a", "when,2024-01-03", "labels,good", "n,"])
def test_only_columns_of_words_are_a_model_folder_s_texts(ratings: Path, tmp_path: Path, column: str) -> None:
    from glue_harness.predict import predict

    def scores(header: str, row: str) -> dict[str, float]:
        (tmp_path / "new.csv").write_text(f"{header}text\n{row}the old dog sleeps\n")
        predict(str(ratings / "model"), [tmp_path / "new.csv"], tmp_path / "out.jsonl")
        [line] = (tmp_path / "out.jsonl").read_text().splitlines()
        return {name: value for name, value in json.loads(line).items() if name.startswith("score_")}

    name, value = column.split(",")
    assert scores(f"{name},", f"{value},") == scores("", "")


def test_a_model_folder_takes_the_only_column_whatever_it_holds(
    harness: Harness, ratings: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("112\n\n"))
    said = harness("predict", ratings / "model")
    assert said.status == 0, said.err
    assert [row["text"] for row in csv.DictReader(io.StringIO(said.out), delimiter="\t")] == ["112", ""]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("a,b,label\n1,2024-01-03,1\n", "no column holds words apart from the label: a (an index"),
        ("a,b,c\nthe,old,dog\n", "3 columns could be the text (a, b, c): keep only the one or two that are"),
    ],
)
def test_columns_that_a_model_folder_cannot_choose_from_are_named(
    harness: Harness, ratings: Path, tmp_path: Path, text: str, told: str
) -> None:
    (tmp_path / "new.csv").write_text(text)
    said = harness("predict", ratings / "model", tmp_path / "new.csv")
    assert (said.status, said.err.count("\n")) == (2, 1)
    assert told in said.err


def test_an_empty_text_is_read_by_a_model_without_special_tokens(train: Train, tmp_path: Path) -> None:
    """A batch may hold nothing else, in training, in its evaluation and in a prediction."""
    import transformers
    from tokenizers import processors

    from finetune_common.demo import demo_tokenizer
    from glue_harness import open_run

    tokenizer = demo_tokenizer()
    tokenizer.backend_tokenizer.post_processor = processors.Sequence([])  # type: ignore[assignment]
    assert tokenizer("")["input_ids"] == []
    config = transformers.GPT2Config(vocab_size=len(tokenizer), n_embd=16, n_layer=1, n_head=2)
    transformers.GPT2LMHeadModel(config).save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    rows = labelled(["a", "b"], 9)
    rows[4]["text"] = ""
    file = str(lines(tmp_path / "own.jsonl", rows))
    own = {"task": "own", "train_file": file, "validation_file": file}
    train(**own, model=str(tmp_path / "model"), batch_size=1)
    opened = open_run(tmp_path / "run")
    [alone], [beside, _] = opened.predict([""]), opened.predict(["", "the old dog sleeps"])
    assert beside["scores"] == pytest.approx(alone["scores"], abs=1e-6)

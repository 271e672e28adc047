"""Own files: the same rows in any format, tasks told from them, options that decide, what is asked."""

import csv
import gzip
import json
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet
import pytest

from finetune_common.data import Choices, load_own_files, load_task, read_own_files
from finetune_common.errors import ConfigurationError

ROWS: list[dict[str, Any]] = [
    {"text": 'a "quoted", comma', "label": "yes"},
    {"text": "two\nlines", "label": "no"},
    {"text": "naïve ☕", "label": "yes"},
]
ENDINGS = [".csv", ".tsv", ".json", ".jsonl", ".parquet", ".arrow"]


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    """Write rows in the format of the file's name, by other means than those that read them."""
    packed = path.suffix.lower() == ".gz"
    plain = path.with_suffix("") if packed else path
    ending = plain.suffix.lower()
    if ending == ".parquet":
        pa.parquet.write_table(pa.Table.from_pylist(rows), plain)
    elif ending == ".arrow":
        table = pa.Table.from_pylist(rows)
        with pa.OSFile(str(plain), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
            writer.write_table(table)
    elif ending == ".json":
        plain.write_text(json.dumps(rows, indent=1), encoding="utf-8")
    elif ending == ".jsonl":
        plain.write_text("\n".join(map(json.dumps, rows)) + "\n", encoding="utf-8")
    else:
        with plain.open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]), delimiter="," if ending == ".csv" else "\t")
            writer.writeheader()
            writer.writerows(rows)
    if packed:
        path.write_bytes(gzip.compress(plain.read_bytes()))
        plain.unlink()
    return path


def read(path: Path, **choices: Any) -> Any:
    return read_own_files("mine", path, path, choices=Choices(**choices))


@pytest.mark.parametrize("packed", ["", ".gz", ".GZ"])
@pytest.mark.parametrize("ending", [*ENDINGS, ".CSV", ".Parquet"])
def test_every_format_gives_the_same_rows(tmp_path, ending, packed):
    path = write(tmp_path / f"rows{ending}{packed}", ROWS)
    task, data = load_own_files("reviews", path, path)
    assert (task.name, task.columns, task.labels) == ("reviews", ("text",), ("no", "yes"))
    assert task.metrics == ("accuracy", "f1", "matthews_correlation")
    for rows in data.values():
        assert rows["text"][:] == [row["text"] for row in ROWS]
        assert rows["label"][:] == [1, 0, 1]
        assert rows["idx"][:] == [0, 1, 2]


@pytest.mark.parametrize("ending", [".csv", ".jsonl", ".parquet"])
@pytest.mark.parametrize(
    ("labels", "classes", "expected"),
    [
        ([10, 2, 3], ("2", "3", "10"), [2, 0, 1]),
        ([1, 2, 1], ("1", "2"), [0, 1, 0]),
        (["b", "a", "c"], ("a", "b", "c"), [1, 0, 2]),
        ([True, False, True], None, [1, 0, 1]),
        ([0.5, 3.0, -1.25], (), [0.5, 3.0, -1.25]),
    ],
    ids=["whole numbers in their order", "digits are names", "words", "truth", "scores"],
)
def test_what_kind_of_label_it_is_shows_in_its_values(tmp_path, ending, labels, classes, expected):
    rows = [{"id": 7, "premise": "a", "hypothesis": "b", "label": label} for label in labels]
    path = write(tmp_path / f"rows{ending}", rows)
    task, data = load_own_files("mine", path, path)
    assert task.columns == ("premise", "hypothesis")
    assert classes is None or task.labels == classes
    assert task.regression == (classes == ())
    assert data["train"]["label"][:] == expected
    assert task.primary == ("pearson" if task.regression else "accuracy")


def test_a_known_task_keeps_its_columns_labels_and_metrics(tmp_path):
    rows = [
        {"#2 String": "b", "Quality": "1", "#1 String": "a", "more": "x"},
        {"#2 String": "d", "Quality": "0", "#1 String": "c", "more": "x"},
    ]
    train = write(tmp_path / "train.tsv", rows)
    dev = write(tmp_path / "dev.jsonl", [{"#1 String": "a", "#2 String": "b", "Quality": "equivalent"}])
    task, data = load_own_files("mrpc", train, dev)
    assert task.metrics == ("accuracy", "f1")
    assert data["train"]["sentence1"][:] == ["a", "c"]
    assert data["train"]["label"][:] == [1, 0]
    assert data["validation"]["label"][:] == [1]
    assert data["train"].features == load_task("demo-entailment", splits=["train"])["train"].features | {
        "label": data["train"].features["label"]
    }
    premises = [{"premise": "a", "hypothesis": "b", "label": "neutral"}]
    path = write(tmp_path / "mnli.json", premises)
    task, data = load_own_files("mnli", path, path)
    assert (task.metrics, task.primary, list(data)) == (("accuracy",), "accuracy", ["train", "validation"])
    with pytest.raises(ConfigurationError, match="'mnli' is known and has classes"):
        read_own_files("mnli", path, path, choices=Choices(kind="regression"))
    scores = write(tmp_path / "stsb.csv", [{"sentence1": "a", "sentence2": "b", "score": 5.5}])
    with pytest.raises(
        ConfigurationError, match=r"label '5\.5' in 1 row: line 2; allowed is a number in \[0, 5\]"
    ):
        load_own_files("stsb", scores, scores)


def test_the_labels_of_a_known_task_are_read_as_pandas_writes_them_and_folded_on_request(tmp_path):
    def read_rte(*labels: object, **choices: Any) -> list[int]:
        pairs = [{"sentence1": "a", "sentence2": "b", "label": label} for label in labels]
        path = write(tmp_path / "rte.csv", pairs)
        return read_own_files("rte", path, path, choices=Choices(**choices)).splits["train"]["label"]

    assert read_rte("0.0", "1.0", "1") == [0, 1, 1]
    assert read_rte("Entailment", "NOT_entailment ", label_spelling="fold") == [0, 1]
    said = r"allowed is entailment, not_entailment, 0, 1; --label-spelling fold ignores case"
    with pytest.raises(ConfigurationError, match=said):
        read_rte("Entailment", "not_entailment")
    with pytest.raises(ConfigurationError, match=r"label 'True' in 1 row: .*not_entailment, 0, 1$"):
        read_rte("True", "0", label_spelling="fold")  # index 1 is not_entailment


def test_the_two_files_of_a_known_task_may_name_its_columns_differently(tmp_path):
    train = write(tmp_path / "train.tsv", [{"#1 String": "a", "#2 String": "b", "Quality": "1"}])
    dev = write(tmp_path / "dev.jsonl", [{"sentence1": "a", "sentence2": "b", "label": "equivalent"}])
    _, data = load_own_files("mrpc", train, dev)
    assert data["validation"]["sentence2"][:] == ["b"]
    assert data["validation"]["label"][:] == [1]


def test_options_decide(tmp_path):
    rows = [{"title": f"t{i}", "body": f"b{i}", "stars": i % 5 + 1, "label": "x"} for i in range(20)]
    path = write(tmp_path / "rows.csv", rows)
    scores = read(path, text_columns=("body", "title"), label_column="stars", kind="regression", metric="r2")
    assert scores.task.columns == ("body", "title")
    assert scores.splits["train"]["label"][:3] == [1.0, 2.0, 3.0]
    assert scores.task.metrics == ("r2", "pearson", "spearmanr")
    assert scores.task.primary == "r2"
    classes = read(path, text_columns=("body",), label_column="stars", kind="classes", metric="f1_weighted")
    assert classes.task.labels == ("1", "2", "3", "4", "5")
    assert classes.task.metrics == ("f1_weighted", "accuracy", "f1_macro")
    with pytest.raises(ConfigurationError, match=r"metric 'f1' does not fit 5 classes .*f1_macro"):
        read(path, text_columns=("body",), label_column="stars", metric="f1")
    for wrong in ({"text_columns": ("bodi",)}, {"text_columns": ("body",), "label_column": "star"}):
        with pytest.raises(ConfigurationError, match=r"did you mean '(body|stars)'"):
            read(path, **wrong)


@pytest.mark.parametrize("ending", ENDINGS)
def test_several_labels_a_row_come_as_lists(tmp_path, ending):
    rows = [
        {"text": "a", "label": ["x", "y"]},
        {"text": "b", "label": ["x"]},
        {"text": "c", "label": ["z", "x"]},
    ]
    path = write(tmp_path / f"rows{ending}", rows)
    task, data = load_own_files("mine", path, path)
    assert (task.kind, task.labels, task.num_labels) == ("labels", ("x", "y", "z"), 3)
    assert data["train"]["label"][:] == [[0, 1], [0], [0, 2]]
    assert task.metrics == ("f1_micro", "f1_macro")


@pytest.mark.parametrize("sign", ["|", ";", ","])
def test_several_labels_in_one_cell_are_parted_where_an_option_says_so(tmp_path, sign):
    cells = [f"x{sign} y", "x", f"z{sign}x"]
    path = write(tmp_path / "rows.csv", [{"text": f"t{i}", "label": cell} for i, cell in enumerate(cells)])
    found = read(path, kind="labels")
    assert found.task.labels == ("x", "y", "z")
    assert found.splits["train"]["label"] == [[0, 1], [0], [0, 2]]
    assert read(path).task.kind == "classes"


QUESTIONS: dict[str, tuple[str, str, dict[str, Any], tuple[str, ...]]] = {
    "floats of pandas": (
        "text,label\na,0.0\nb,1.0\n",
        "could be classes or scores",
        {"kind": "classes"},
        ("0", "1"),
    ),
    "floats as scores": ("text,label\na,0.0\nb,1.0\n", "--kind regression", {"kind": "regression"}, ()),
    "case": ("text,label\na,Yes\nb,yes\nc,no\n", "'Yes', 'yes'", {"label_spelling": "fold"}, ("Yes", "no")),
    "blanks": (
        "text,label\na,yes\nb,yes \nc,yes \n d,no\n",
        "fold",
        {"label_spelling": "fold"},
        ("no", "yes"),
    ),
    "case kept": ("text,label\na,Co\nb,CO\n", "'CO', 'Co'", {"label_spelling": "exact"}, ("CO", "Co")),
    "zeros": ("text,label\na,01\nb,1\nc,2\n", "'01', '1'", {"label_spelling": "exact"}, ("01", "1", "2")),
    "two texts": (
        "title,body,label\na,b,x\nc,d,y\n",
        "'title' and 'body'",
        {"text_columns": ("body",)},
        ("x", "y"),
    ),
    "many ages": (
        "text,label\n" + "".join(f"t,{18 + i}\n" for i in range(40)),
        "40 different whole numbers",
        {"kind": "regression"},
        (),
    ),
    "a label a row": (
        "text,label\n" + "".join(f"t,name{i}\n" for i in range(40)),
        "40 different values in 40 rows",
        {"kind": "classes"},
        tuple(sorted(f"name{i}" for i in range(40))),
    ),
}


@pytest.mark.parametrize(("content", "said", "choice", "labels"), QUESTIONS.values(), ids=QUESTIONS)
def test_what_is_ambiguous_is_asked_and_an_option_answers(tmp_path, content, said, choice, labels):
    path = tmp_path / "rows.csv"
    path.write_text(content)
    with pytest.warns(UserWarning, match=said):
        load_own_files("mine", path, path)
    with pytest.raises(ConfigurationError, match=said) as refused:
        read_own_files("mine", path, path, strict=True)
    assert "--" in str(refused.value)
    decided = read_own_files("mine", path, path, choices=Choices(**choice), strict=True)
    assert decided.task.labels == labels


def test_a_class_that_is_never_evaluated_is_asked_about(tmp_path):
    train = write(tmp_path / "train.csv", [{"text": "a", "label": label} for label in "xyz"])
    dev = write(tmp_path / "dev.csv", [{"text": "a", "label": label} for label in "xy"])
    with pytest.raises(ConfigurationError, match=r"dev.csv: no row with label 'z'.*--kind classes"):
        read_own_files("mine", train, dev, strict=True)
    assert (
        read_own_files("mine", train, dev, choices=Choices(kind="classes"), strict=True).task.num_labels == 3
    )
    with pytest.raises(ConfigurationError, match=r"train.csv|label 'z' in 1 row: line 4; allowed is x, y"):
        read_own_files("mine", dev, train)


def test_a_class_without_a_row_in_the_share_is_asked_about(tmp_path):
    rows = [{"text": f"t{i}", "label": "xy"[i % 2]} for i in range(30)]
    path = write(tmp_path / "train.csv", [*rows, {"text": "alone", "label": "z"}])
    choices = {"validation_share": 0.2}
    with pytest.raises(
        ConfigurationError, match=r"train.csv: no row with label 'z' to evaluate .*--kind classes"
    ):
        read_own_files("mine", path, choices=Choices(**choices), strict=True)
    assert len(read_own_files("mine", path, choices=Choices(**choices)).schema.questions) == 1
    found = read_own_files("mine", path, choices=Choices(**choices, kind="classes"), strict=True)
    assert found.schema.sources["validation"].labels == {"x": 3, "y": 3, "z": 0}


def test_minus_one_is_no_label_where_training_has_none_below_0(tmp_path):
    train = write(tmp_path / "train.csv", [{"text": f"t{i}", "label": i % 2} for i in range(4)])
    dev = write(
        tmp_path / "dev.csv", [{"text": f"d{i}", "label": label} for i, label in enumerate((0, -1, 1))]
    )
    with pytest.raises(
        ConfigurationError, match=r"dev.csv: labels missing in 1 row: line 3; --drop-unlabelled"
    ):
        read_own_files("mine", train, dev)
    found = read_own_files("mine", train, dev, choices=Choices(drop_unlabelled=True))
    assert found.splits["validation"]["text"] == ["d0", "d2"]
    signed = write(tmp_path / "signed.csv", [{"text": f"t{i}", "label": i - 1} for i in range(3)])
    assert read_own_files("mine", signed, dev).splits["validation"]["label"] == [1, 0, 2]


@pytest.mark.parametrize("kind", [pa.binary(), pa.large_binary(), pa.binary(3), pa.list_(pa.binary())])
def test_binary_columns_are_text(tmp_path, kind):
    labels = [[b"pos"], [b"neg"]] if pa.types.is_list(kind) else [b"pos", b"neg"]
    texts = pa.array(["naïve ☕".encode(), b"bad"], pa.binary())
    image = pa.array([b"\x89PNG\xff", b"\xff"], pa.binary())
    path = tmp_path / "rows.parquet"
    pa.parquet.write_table(pa.table({"text": texts, "image": image, "label": pa.array(labels, kind)}), path)
    found = read(path)
    assert found.task.labels == ("neg", "pos")
    assert found.splits["train"]["text"] == ["naïve ☕", "bad"]
    assert found.schema.aside == {"image": "bytes that are no text in UTF-8"}
    with pytest.raises(
        ConfigurationError, match=r"'image' is b.* in 2 rows: rows 1, 2; store it as text in UTF-8"
    ):
        read(path, label_column="image", text_columns=("text",))


@pytest.mark.parametrize("ending", [".csv", ".json", ".parquet"])
def test_missing_labels_are_counted_and_left_out_on_request(tmp_path, ending):
    rows = [{"text": f"t{i}", "label": None if i in (1, 5, 6) else "ab"[i % 2]} for i in range(12)]
    path = write(tmp_path / f"rows{ending}", rows)
    with pytest.raises(ConfigurationError) as refused:
        read(path)
    where = {".csv": "lines 3, 7, 8", ".json": "lines 6, 22, 26", ".parquet": "rows 2, 6, 7"}[ending]
    assert f"labels missing in 3 rows: {where}; --drop-unlabelled leaves them out" in str(refused.value)
    found = read(path, drop_unlabelled=True)
    assert found.splits["train"]["text"] == [f"t{i}" for i in range(12) if i not in (1, 5, 6)]
    assert found.schema.sources["train"].unlabelled == 3
    assert found.task.labels == ("a", "b")


def test_lines_are_counted_as_an_editor_does(tmp_path):
    path = tmp_path / "rows.csv"
    path.write_bytes(b'text,label\r\n\r\n"one\r\ntwo\r\nthree",a\r\nlast,b\r\nwide,b,c\r\n')
    with pytest.raises(ConfigurationError, match=r"1 of 3 rows do not have the header's 2 cells .*: line 7;"):
        read(path)


@pytest.mark.parametrize("kind", ["classes", "labels", "regression"])
def test_a_share_of_the_training_rows_is_taken_for_evaluation(tmp_path, kind):
    rows: list[dict[str, Any]] = [{"text": f"t{i % 190}", "label": "aaab"[i % 190 % 4]} for i in range(200)]
    for row in rows:
        letter = row["label"]
        row["label"] = {"classes": letter, "labels": [letter], "regression": 0.5 + ord(letter)}[kind]
    path = write(tmp_path / "rows.jsonl", rows)
    choices = Choices(validation_share=0.2)
    found = read_own_files("mine", path, choices=choices)
    train, dev = found.splits["train"], found.splits["validation"]
    assert len(train["text"]) + len(dev["text"]) == 200
    assert 36 <= len(dev["text"]) <= 44
    assert not set(train["text"]) & set(dev["text"])  # ten texts are there twice
    if kind == "classes":
        assert abs(dev["label"].count(1) / len(dev["label"]) - 0.25) < 0.05
    turned = write(tmp_path / "turned.jsonl", rows[::-1])
    again = read_own_files("mine", turned, choices=choices)
    assert sorted(again.splits["validation"]["text"]) == sorted(dev["text"])
    with pytest.raises(ConfigurationError, match=r"--validation-share 0\.1"):
        read_own_files("mine", path)
    with pytest.raises(ConfigurationError, match="two sources"):
        read_own_files("mine", path, path, choices=choices)


def test_names_of_classes_that_datasets_wrote_are_kept(tmp_path):
    from datasets import ClassLabel, Dataset, Features, Value

    features = Features({"text": Value("string"), "label": ClassLabel(names=["neg", "pos", "unseen"])})
    rows = Dataset.from_dict({"text": ["a", "b", "c"], "label": [1, 0, 1]}, features=features)
    rows.to_parquet(tmp_path / "rows.parquet")
    with pa.OSFile(str(tmp_path / "rows.arrow"), "wb") as sink:
        table: Any = rows.with_format("arrow")[:]
        table = table.replace_schema_metadata(pa.parquet.read_schema(tmp_path / "rows.parquet").metadata)
        with pa.ipc.new_stream(sink, table.schema) as writer:
            writer.write_table(table)
    for ending in (".parquet", ".arrow"):
        found = read(tmp_path / f"rows{ending}", kind="classes")
        assert found.task.labels == ("neg", "pos", "unseen")
        assert found.splits["train"]["label"] == [1, 0, 1]


def test_nested_fields_are_named_by_their_way(tmp_path):
    rows = [
        {"ticket": {"body": f"late {i}", "n": i}, "meta": {"kind": {"name": "ab"[i % 2]}}} for i in range(4)
    ]
    for ending in (".jsonl", ".json", ".parquet"):
        path = write(tmp_path / f"rows{ending}", rows)
        found = read(path, text_columns=("ticket.body",), label_column="meta.kind.name")
        assert found.splits["train"]["ticket.body"] == [f"late {i}" for i in range(4)]
        assert found.task.labels == ("a", "b")


def test_the_schema_is_a_block_and_plain_data(tmp_path):
    train = tmp_path / "train.csv"
    train.write_text(
        ",text,day,label\n0,good,2024-01-03,yes\n1,bad,2024-01-04,no\n"
        "2,good,2024-02-01,yes\n3, ,2024-02-02,no\n"
    )
    dev = tmp_path / "dev.csv"
    dev.write_text("text,label\ngood,yes\nfine,no\n")
    found = read_own_files("reviews", train, dev, strict=True)
    schema = found.with_scores_of_no_model()
    plain = json.loads(json.dumps(schema.as_dict()))
    assert plain["aside"] == {"Unnamed: 0": "an index: it has no name", "day": "dates"}
    assert plain["sources"]["train"] == {
        "file": "train.csv", "rows": 4, "unlabelled": 0, "empty": 1, "duplicates": 1, "in_train": 0,
        "labels": {"no": 2, "yes": 2},
    }  # fmt: skip
    assert plain["sources"]["validation"]["in_train"] == 1
    assert plain["usual"]["metrics"]["accuracy"] == 0.5
    block = str(schema)
    for said in (
        "train.csv",
        "1 with an empty text",
        "1 also in train",
        "Unnamed: 0",
        "dates",
        "yes",
        "always yes",
    ):
        assert said in block


def test_scores_of_answering_the_mean(tmp_path):
    path = write(tmp_path / "rows.csv", [{"text": "a", "label": score} for score in (0.5, 1.5, 4.0)])
    usual = read(path).with_scores_of_no_model().usual
    assert usual["answer"] == 2.0
    assert usual["spread"] == pytest.approx(((1.5**2 + 0.5**2 + 2.0**2) / 3) ** 0.5)
    assert usual["metrics"] == {"pearson": 0.0, "spearmanr": 0.0}


def test_reading_text_files_imports_nothing_heavy(tmp_path):
    path = write(tmp_path / "rows.csv", ROWS)
    heavy = (
        "{'torch', 'datasets', 'transformers', 'sklearn', 'scipy', 'pyarrow', 'pandas'} & set(sys.modules)"
    )
    line = f"read_own_files('mine', {str(path)!r}, {str(path)!r})"
    command = f"import sys; from finetune_common.data import read_own_files; {line}; print(sorted({heavy}))"
    done = subprocess.run([sys.executable, "-c", command], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"kind": "class"}, "did you mean 'classes'"),
        ({"delimiter": ";;"}, "give one character"),
        ({"delimiter": '"'}, "give one character"),
        ({"encoding": "utf-99"}, "encoding='utf-99' is unknown"),
        ({"encoding": "rot13"}, "encoding='rot13' is unknown"),
        ({"validation_share": 1.0}, r"allowed is \(0, 1\)"),
        ({"text_columns": ("a", "b", "c")}, "one, or two for pairs"),
        ({"text_columns": ("a",), "label_column": "a"}, "names? a column twice"),
        ({"label_spelling": "folded"}, "did you mean 'fold'"),
    ],
)
def test_choices_check_themselves(wrong, said):
    with pytest.raises(ConfigurationError, match=said):
        Choices(**wrong)


def test_other_delimiters_and_encodings(tmp_path):
    path = tmp_path / "rows.csv"
    path.write_text("text;label\nà côté;yes\nlà-bas;no\n", encoding="cp1252")
    with pytest.raises(ConfigurationError, match=r"line 2: byte 0xe0 is not UTF-8: give --encoding"):
        read(path)
    with pytest.raises(ConfigurationError, match="--delimiter names another one, such as ';'"):
        read(path, encoding="cp1252")
    found = read(path, encoding="cp1252", delimiter=";")
    assert found.splits["train"]["text"] == ["à côté", "là-bas"]
    wide = tmp_path / "wide.tsv"
    wide.write_text("text\tlabel\nà\tyes\nb\tno\n", encoding="utf-16")
    with pytest.raises(ConfigurationError, match="utf-16, which its first bytes look like"):
        read(wide)
    assert read(wide, encoding="utf-16").splits["train"]["text"] == ["à", "b"]


def test_no_warning_without_a_question(tmp_path):
    path = write(tmp_path / "rows.csv", ROWS)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load_own_files("mine", path, path)

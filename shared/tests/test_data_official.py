"""The official files' quirks, each on a small file."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from finetune_common.data import load_task, read_official
from finetune_common.errors import ConfigurationError
from finetune_common.tasks import GLUE_TASKS, TASKS

# ruff: noqa: E501, SIM905
MNLI_HEADER = (
    "index promptID pairID genre sentence1_binary_parse sentence2_binary_parse sentence1_parse "
    "sentence2_parse sentence1 sentence2 label1 gold_label"
).split()
STSB_HEADER = "index genre filename year old_index source1 source2 sentence1 sentence2 score".split()

OFFICIAL = {
    "cola": (None, ["gj04", "0", "*", "text one"], ("text one",), 0),
    "mnli": (
        MNLI_HEADER,
        ["0", "p", "p", "fiction", "( a )", "( b )", "(ROOT a)", "(ROOT b)", "one", "two", "neutral", "neutral"],
        ("one", "two"),
        1,
    ),
    "mrpc": (["Quality", "#1 ID", "#2 ID", "#1 String", "#2 String"], ["1", "7", "8", "one", "two"], ("one", "two"), 1),
    "qnli": (["index", "question", "sentence", "label"], ["0", "one?", "two", "not_entailment"], ("one?", "two"), 1),
    "qqp": (
        ["id", "qid1", "qid2", "question1", "question2", "is_duplicate"],
        ["133", "213", "214", "one?", "two?", "1"],
        ("one?", "two?"),
        1,
    ),
    "rte": (["index", "sentence1", "sentence2", "label"], ["0", "one", "two", "entailment"], ("one", "two"), 0),
    "sst2": (["sentence", "label"], ["one ", "1"], ("one ",), 1),
    "stsb": (STSB_HEADER, ["0", "g", "f", "2012", "1", "n", "n", "one", "two", "3.800"], ("one", "two"), 3.8),
    "wnli": (["index", "sentence1", "sentence2", "label"], ["0", "one", "two", "1"], ("one", "two"), 1),
}  # fmt: skip


def write(path, *rows, start="", end="\n"):
    path.write_bytes((start + end.join("\t".join(row) for row in rows) + end).encode())
    return path


@pytest.mark.parametrize("name", GLUE_TASKS)
def test_each_official_header_is_read_into_the_hubs_columns(tmp_path, name):
    header, row, texts, label = OFFICIAL[name]
    task = TASKS[name]
    columns = read_official(task, write(tmp_path / "train.tsv", *([header] if header else []), row, row))
    assert list(columns) == [*task.columns, "label", "idx"]
    assert [columns[column] for column in task.columns] == [[text, text] for text in texts]
    assert columns["label"] == [label, label]
    assert columns["idx"] == [0, 1]


@pytest.mark.parametrize("name", GLUE_TASKS)
@pytest.mark.parametrize("shape", ["bom", "crlf", "blank lines", "no newline at the end"])
def test_bytes_around_the_rows_mean_nothing(tmp_path, name, shape):
    header, row, texts, label = OFFICIAL[name]
    rows = [*([header] if header else []), row]
    path = write(
        tmp_path / "train.tsv",
        *rows,
        start="\ufeff" if shape == "bom" else "",
        end="\r\n" if shape == "crlf" else "\n\n" if shape == "blank lines" else "\n",
    )
    if shape == "no newline at the end":
        path.write_bytes(path.read_bytes().rstrip(b"\n"))
    columns = read_official(TASKS[name], path)
    assert columns["label"] == [label]
    assert tuple(columns[column][0] for column in TASKS[name].columns) == texts


text = st.text(st.characters(blacklist_characters="\t\n\r", blacklist_categories=["Cs"]), min_size=1).filter(
    lambda value: not value.isspace()
)


@given(st.lists(st.tuples(text, text, st.sampled_from([0, 1])), min_size=1, max_size=5))
def test_texts_come_back_as_they_were_written_quotes_included(tmp_path_factory, rows):
    path = tmp_path_factory.mktemp("rte") / "train.tsv"
    write(path, OFFICIAL["rte"][0], *([str(i), a, b, str(label)] for i, (a, b, label) in enumerate(rows)))
    columns = read_official(TASKS["rte"], path)
    assert list(zip(columns["sentence1"], columns["sentence2"], columns["label"], strict=True)) == rows


def test_an_open_quote_does_not_swallow_lines(tmp_path):
    path = write(tmp_path / "train.tsv", ["sentence", "label"], ['"one', "1"], ["two", "0"], ['three"', "1"])
    assert read_official(TASKS["sst2"], path)["sentence"] == ['"one', "two", 'three"']


@pytest.mark.parametrize(
    ("name", "header"),
    [
        ("qqp", ["question1", "question2", "is_duplicate"]),
        ("qqp", ["is_duplicate", "question2", "question1"]),
        ("qqp", ["id", "question1", "question2", "label"]),
        ("mnli", ["sentence1", "sentence2", "gold_label"]),
        ("mnli", ["gold_label", "genre", "sentence2", "sentence1"]),
        ("mnli", ["premise", "hypothesis", "label"]),
        ("mrpc", ["index", "sentence1", "sentence2", "label"]),
        ("cola", ["sentence", "label"]),
    ],
)
def test_copies_with_other_columns_are_read_by_name(tmp_path, name, header):
    task = TASKS[name]
    label_names = {task.official_label, "label"}
    path = write(tmp_path / "train.tsv", header, ["1" if n in label_names else f"<{n}>" for n in header])
    columns = read_official(task, path)
    for official, hub in zip(task.official_columns, task.columns, strict=True):
        assert columns[hub] == [f"<{official if official in header else hub}>"]
    assert columns["label"] == [1]


@pytest.mark.parametrize("name", [n for n in GLUE_TASKS if n != "stsb"])
def test_labels_may_be_words_or_digits(tmp_path, name):
    header, row, _, _ = OFFICIAL[name]
    task = TASKS[name]
    header = header or list(task.headerless)
    at = header.index(task.official_label)
    rows = [
        [*row[:at], cell, *row[at + 1 :]] for i, word in enumerate(task.labels) for cell in (word, str(i))
    ]
    path = write(tmp_path / "train.tsv", *([] if task.headerless else [header]), *rows)
    assert read_official(task, path)["label"] == [i for i in range(len(task.labels)) for _ in range(2)]


def test_scores_are_numbers_from_0_to_5_inclusive(tmp_path):
    path = write(
        tmp_path / "train.tsv", ["sentence1", "sentence2", "score"], ["a", "b", "0"], ["a", "b", "5.000"]
    )
    assert read_official(TASKS["stsb"], path)["label"] == [0.0, 5.0]


@pytest.mark.parametrize(
    ("name", "header"),
    [
        ("cola", ["index", "sentence"]),
        ("mnli", MNLI_HEADER[:-2]),
        ("mrpc", ["index", "#1 ID", "#2 ID", "#1 String", "#2 String"]),
        ("qqp", ["id", "question1", "question2"]),
        ("stsb", STSB_HEADER[:-1]),
        ("sst2", ["index", "sentence"]),
    ],
)
def test_test_files_have_no_labels_and_get_minus_one(tmp_path, name, header):
    path = write(tmp_path / "test.tsv", header, [f"<{n}>" for n in header])
    task = TASKS[name]
    columns = read_official(task, path, labelled=False)
    assert columns["label"] == [-1]
    assert [columns[hub] for hub in task.columns] == [[f"<{official}>"] for official in task.official_columns]


RTE = OFFICIAL["rte"][0]


@pytest.mark.parametrize(
    ("name", "rows", "message"),
    [
        ("rte", [RTE, ["0", "a", "b", "entails"]], r"line 2: label 'entails': allowed is entailment, not_entailment, 0, 1"),
        ("rte", [RTE, ["0", "a", "b", "1"], ["1", "a", "b", "2"]], r"line 3: label '2'"),
        ("rte", [RTE, ["0", "a", "b", ""]], r"line 2: label ''"),
        ("rte", [RTE, ["0", "a", "b"]], r"line 2: 3 tab-separated columns, expected 4 \(index, sentence1"),
        ("rte", [RTE, ["0", "a", "b", "c", "1"]], r"line 2: 5 tab-separated columns, expected 4"),
        ("rte", [["index", "sentence1", "label"], ["0", "a", "1"]], r"line 1: no column 'sentence2' in the header"),
        ("mnli", [["a", "sentence2", "gold_label"], ["0", "a", "1"]], r"no column 'sentence1' or 'premise'"),
        ("rte", [["index", "sentence1", "sentence2"], ["0", "a", "b"]], r"line 1: no column 'label'"),
        ("rte", [RTE], r"no rows after the header"),
        ("stsb", [["sentence1", "sentence2", "score"], ["a", "b", "5.1"]], r"label '5.1': allowed is a number in \[0, 5\]"),
        ("stsb", [["sentence1", "sentence2", "score"], ["a", "b", "nan"]], r"label 'nan': allowed is a number"),
        ("cola", [["gj04", "1", "text"]], r"line 1: 3 tab-separated columns, expected 4 \(source, label, star"),
    ],
)  # fmt: skip
def test_a_broken_file_is_refused_with_path_and_line(tmp_path, name, rows, message):
    path = write(tmp_path / "train.tsv", *rows)
    with pytest.raises(ConfigurationError, match=message) as caught:
        read_official(TASKS[name], path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_line_numbers_count_blank_lines(tmp_path):
    path = tmp_path / "train.tsv"
    path.write_text("sentence\tlabel\n\none\t1\n\ntwo\t9\n")
    with pytest.raises(ConfigurationError, match="line 5: label '9'"):
        read_official(TASKS["sst2"], path)


def test_missing_empty_and_undecodable_files_are_refused(tmp_path):
    path = tmp_path / "train.tsv"
    with pytest.raises(ConfigurationError, match=r"train\.tsv: no such file"):
        read_official(TASKS["rte"], path)
    path.write_bytes(b"\n  \n")
    with pytest.raises(ConfigurationError, match="the file is empty"):
        read_official(TASKS["rte"], path)
    path.write_bytes(b"sentence\tlabel\none\t1\ntw\xe9\t0\n")
    with pytest.raises(ConfigurationError, match="line 3: not UTF-8"):
        read_official(TASKS["sst2"], path)
    path.unlink()
    path.mkdir()
    with pytest.raises(ConfigurationError, match="cannot be read"):
        read_official(TASKS["rte"], path)


def test_qqp_rows_cut_in_two_are_left_out_with_one_warning(tmp_path):
    header, row, _, _ = OFFICIAL["qqp"]
    path = write(tmp_path / "train.tsv", header, row, row[:3], ["rest of it?", "0"], row)
    with pytest.warns(UserWarning, match=r"2 rows without 6 columns left out.*line 3") as caught:
        columns = read_official(TASKS["qqp"], path)
    assert len(caught) == 1
    assert columns["idx"] == [0, 1]


def test_row_counts_that_differ_are_said_in_one_warning(tmp_path):
    (tmp_path / "RTE").mkdir()
    for name in ("train.tsv", "dev.tsv"):
        write(tmp_path / "RTE" / name, RTE, OFFICIAL["rte"][1])
    with pytest.warns(UserWarning, match=r"train has 1 rows.*2490; validation has 1 rows.*277") as caught:
        data = load_task("rte", tmp_path)
    assert len(caught) == 1
    assert list(data) == ["train", "validation"]


def test_mnli_has_two_dev_sets_and_the_folders_names(tmp_path):
    header, row, _, _ = OFFICIAL["mnli"]
    (tmp_path / "MNLI").mkdir()
    for name in ("train.tsv", "dev_matched.tsv", "dev_mismatched.tsv"):
        write(tmp_path / "MNLI" / name, header, [*row[:8], name, *row[9:]])
    with pytest.warns(UserWarning, match="official one 392702"):
        data = load_task("mnli", tmp_path)
    assert list(data) == ["train", "validation_matched", "validation_mismatched"]
    assert [rows["premise"][0] for rows in data.values()] == [
        "train.tsv",
        "dev_matched.tsv",
        "dev_mismatched.tsv",
    ]
    assert data["train"].features["label"].names == ["entailment", "neutral", "contradiction"]


def test_a_folder_that_is_not_there_says_what_the_layout_is(tmp_path):
    with pytest.raises(ConfigurationError, match=r"RTE: no such folder; --data-dir holds RTE/train\.tsv$"):
        load_task("rte", tmp_path)
    write(tmp_path / "train.tsv", RTE)
    with pytest.raises(ConfigurationError, match=f"give the folder above {tmp_path}"):
        load_task("rte", tmp_path)


def test_a_split_the_task_does_not_have_is_refused(tmp_path):
    with pytest.raises(ConfigurationError, match="rte split='validation_matched' is unknown"):
        load_task("rte", tmp_path, splits=["validation_matched"])
    with pytest.raises(ConfigurationError, match="demo-entailment split='test' is unknown"):
        load_task("demo-entailment", splits=["test"])


def test_regression_labels_are_float32_and_classes_keep_their_names(tmp_path):
    for folder, name in (("STS-B", "stsb"), ("RTE", "rte")):
        (tmp_path / folder).mkdir()
        write(tmp_path / folder / "dev.tsv", *OFFICIAL[name][:2])
    with pytest.warns(UserWarning, match="official one"):
        scores = load_task("stsb", tmp_path, splits=["validation"])["validation"]
    with pytest.warns(UserWarning, match="official one"):
        classes = load_task("rte", tmp_path, splits=["validation"])["validation"]
    assert scores.features["label"].dtype == "float32"
    assert scores["label"][0] == pytest.approx(3.8)
    assert classes.features["label"].names == ["entailment", "not_entailment"]
    assert classes.features["idx"].dtype == "int32"

"""Tokenise once: what comes out, what the name on disk depends on, whole or not at all."""

import json
import re
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from datasets import Dataset
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

from finetune_common.data import Collator, load_own_files, load_task, make_loader, token_lengths, tokenize
from finetune_common.demo import demo_tokenizer
from finetune_common.errors import ConfigurationError
from finetune_common.tasks import Task, get_task


@pytest.fixture(scope="module")
def rows():
    return load_task("demo-entailment", splits=["validation"])


def folders(root):
    return sorted(path.name for path in root.iterdir())


def test_the_columns_are_the_tokenizers_own_unpadded_output(rows, tmp_path):
    tokenizer = demo_tokenizer()
    encoded = tokenize(rows, tokenizer, "demo-entailment", 32, tmp_path)["validation"]
    assert encoded.column_names == ["input_ids", "attention_mask", "token_type_ids", "labels", "idx"]
    for row, source in zip(encoded, rows["validation"], strict=True):
        expected = tokenizer(source["sentence1"], source["sentence2"])
        assert row == {**expected, "labels": source["label"], "idx": source["idx"]}


def test_truncation_keeps_max_length_tokens_longest_first(rows, tmp_path):
    encoded = tokenize(rows, demo_tokenizer(), "demo-entailment", 8, tmp_path)["validation"]
    lengths = {len(ids) for ids in encoded["input_ids"]}
    assert max(lengths) == 8
    assert all(abs(types.count(0) - types.count(1)) <= 2 for types in encoded["token_type_ids"])


def test_regression_labels_stay_float(tmp_path):
    data = load_task("demo-similarity", splits=["validation"])
    encoded = tokenize(data, demo_tokenizer(), "demo-similarity", 32, tmp_path)["validation"]
    assert encoded.features["labels"].dtype == "float32"
    assert encoded["labels"][:] == data["validation"]["label"][:]


def test_a_tokenizer_without_token_types_gives_none(rows, tmp_path):
    tokenizer = demo_tokenizer()
    tokenizer.model_input_names = ["input_ids", "attention_mask"]
    encoded = tokenize(rows, tokenizer, "demo-entailment", 32, tmp_path)["validation"]
    assert encoded.column_names == ["input_ids", "attention_mask", "labels", "idx"]


@pytest.mark.parametrize(
    ("special", "expected"),
    [
        ({"bos_token": "[CLS]", "eos_token": "[SEP]", "pad_token": "[SEP]"}, "[CLS]"),
        ({"bos_token": "[SEP]", "eos_token": "[SEP]", "pad_token": "[SEP]", "unk_token": "[UNK]"}, "[UNK]"),
        ({"bos_token": "[SEP]", "eos_token": "[SEP]", "pad_token": "[SEP]"}, "[SEP]"),
        ({}, None),
    ],
)
def test_an_empty_text_is_one_token_where_the_tokenizer_adds_none(tmp_path, special, expected):
    """A token other than the padding's, if there is one: a decoder's head looks for the last such token."""
    backend = Tokenizer(models.WordLevel({"[UNK]": 0, "[SEP]": 1, "[CLS]": 2, "dog": 3}, "[UNK]"))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, **special)
    task = Task("own", ("first", "second"), ("a", "b"), ("accuracy",), "accuracy", {})
    columns = {"first": ["", "dog", ""], "second": ["", "", "dog"], "label": [0, 1, 0], "idx": [0, 1, 2]}
    encoded = tokenize({"train": Dataset.from_dict(columns)}, tokenizer, task, 8, tmp_path)["train"]
    alone = 0 if expected is None else tokenizer.convert_tokens_to_ids(expected)
    assert encoded["input_ids"][:] == [[alone], [3], [3]]
    assert encoded["attention_mask"][:] == [[1], [1], [1]]
    assert token_lengths(encoded).tolist() == [1, 1, 1]


def test_the_same_content_is_tokenised_once(rows, tmp_path):
    tokenizer = demo_tokenizer()
    first = tokenize(rows, tokenizer, "demo-entailment", 32, tmp_path)
    (folder,) = folders(tmp_path)
    written = (tmp_path / folder / "validation.arrow").stat()
    tokenizer(
        "this call leaves truncation and padding set", truncation=True, max_length=5, padding="max_length"
    )
    again = tokenize(
        load_task("demo-entailment", splits=["validation"]), tokenizer, "demo-entailment", 32, tmp_path
    )
    assert folders(tmp_path) == [folder]
    assert (tmp_path / folder / "validation.arrow").stat() == written
    assert again["validation"][:] == first["validation"][:]


def test_each_part_of_the_content_changes_the_name(rows, tmp_path):
    def name(data=rows, tokenizer=None, task="demo-entailment", max_length=32):
        tokenize(data, tokenizer or demo_tokenizer(), task, max_length, tmp_path)
        return len(folders(tmp_path))

    one_word = {
        "validation": rows["validation"].map(
            lambda row, i: {"sentence2": "The dog sleeps."} if i == 499 else {}, with_indices=True
        )
    }
    one_label = {
        "validation": rows["validation"].map(
            lambda row, i: {"label": 1 - row["label"]} if i == 499 else {}, with_indices=True
        )
    }
    grown = demo_tokenizer()
    grown.add_tokens(["zebra"])
    left = demo_tokenizer()
    left.truncation_side = "left"
    assert name() == 1
    assert name(data=one_word) == 2
    assert name(data=one_label) == 3
    assert name(data={"validation": rows["validation"].select(range(499))}) == 4
    assert name(data={"validation": rows["validation"].select(range(499, -1, -1))}) == 5
    assert name(data={"train": rows["validation"]}) == 6
    assert name(tokenizer=grown) == 7
    assert name(tokenizer=left) == 8
    assert name(max_length=31) == 9
    assert name() == 9


def test_the_cache_folder_is_where_the_environment_says(rows, tmp_path, monkeypatch):
    monkeypatch.setenv("FINETUNE_CACHE", str(tmp_path / "cache"))
    tokenize(rows, demo_tokenizer(), "demo-entailment", 32)
    assert len(folders(tmp_path / "cache")) == 1


def test_two_processes_at_once_leave_one_whole_folder(rows, tmp_path):
    code = f"""
from pathlib import Path
from finetune_common.data import load_task, tokenize
from finetune_common.demo import demo_tokenizer
data, tokenizer = load_task("demo-entailment", splits=["validation"]), demo_tokenizer()
print("ready", flush=True)
input()
tokenize(data, tokenizer, "demo-entailment", 32, Path({str(tmp_path)!r}))
"""
    pipe = subprocess.PIPE
    processes = [
        subprocess.Popen([sys.executable, "-c", code], stdin=pipe, stdout=pipe, text=True) for _ in range(2)
    ]
    for process in processes:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    for process in processes:
        process.communicate()
    assert [process.returncode for process in processes] == [0, 0]
    (folder,) = folders(tmp_path)
    assert folders(tmp_path / folder) == ["digests.json", "validation.arrow"]
    assert len(tokenize(rows, demo_tokenizer(), "demo-entailment", 32, tmp_path)["validation"]) == 500


def test_nothing_is_left_behind_when_tokenising_fails(rows, tmp_path):
    broken = {
        "validation": rows["validation"],
        "train": rows["validation"].rename_column("sentence2", "other"),
    }
    with pytest.raises(ValueError, match="sentence2"):
        tokenize(broken, demo_tokenizer(), "demo-entailment", 32, tmp_path)
    assert folders(tmp_path) == []


def cut_short(file):
    file.write_bytes(file.read_bytes()[:-1000])


def turn_a_bit(file):
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


@pytest.mark.parametrize(
    "damage",
    [cut_short, turn_a_bit, lambda file: file.write_bytes(b"damaged"), lambda file: file.unlink()],
    ids=["cut short", "a bit turned", "other bytes", "gone"],
)
def test_a_damaged_folder_is_made_anew(rows, tmp_path, damage):
    first = tokenize(rows, demo_tokenizer(), "demo-entailment", 32, tmp_path)["validation"][:]
    (folder,) = folders(tmp_path)
    damage(tmp_path / folder / "validation.arrow")
    again = tokenize(rows, demo_tokenizer(), "demo-entailment", 32, tmp_path)
    assert again["validation"][:] == first
    assert folders(tmp_path) == [folder]


@pytest.mark.parametrize(
    "name", ["../../mine", "/mine", "team/task", "..", ".", "a\\b", "a\nb", "naïve", "x" * 400, "con:", "~"]
)
def test_the_cache_stays_in_its_folder_whatever_a_task_is_called(rows, tmp_path, name):
    root = tmp_path / "deep" / "cache"
    task = replace(get_task("demo-entailment"), name=name)
    few = {"validation": rows["validation"].select(range(4))}
    assert len(tokenize(few, demo_tokenizer(), task, 32, root)["validation"]) == 4
    (folder,) = folders(root)
    assert re.fullmatch(r"[\w-]+", folder, re.ASCII)
    assert [folders(tmp_path), folders(tmp_path / "deep")] == [["deep"], ["cache"]]


def test_several_labels_a_row_become_zeros_and_ones(tmp_path):
    file = tmp_path / "rows.jsonl"
    found = [{"text": f"The cat {i}.", "label": labels} for i, labels in enumerate([["x", "z"], [], ["y"]])]
    file.write_text("\n".join(map(json.dumps, found)))
    task, data = load_own_files("mine", file, file)
    encoded = tokenize(data, demo_tokenizer(), task, 32, tmp_path)["train"]
    assert encoded["labels"][:] == [[1, 0, 1], [0, 0, 0], [0, 1, 0]]
    (batch,) = make_loader(encoded, [[2, 0]], Collator(demo_tokenizer(), task))
    assert batch["labels"].dtype == torch.float32
    assert batch["labels"].tolist() == [[0.0, 1.0, 0.0], [1.0, 0.0, 1.0]]


def test_a_folder_that_cannot_be_written_names_the_remedy(rows, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigurationError, match="FINETUNE_CACHE"):
        tokenize(rows, demo_tokenizer(), "demo-entailment", 32, tmp_path / "file")


@pytest.mark.parametrize("max_length", [3, 129])
def test_a_max_length_the_tokenizer_cannot_serve_is_refused(rows, tmp_path, max_length):
    with pytest.raises(
        ConfigurationError, match=rf"max_length={max_length} is out of range: allowed is \(3, 128\]"
    ):
        tokenize(rows, demo_tokenizer(), "demo-entailment", max_length, tmp_path)


def test_an_empty_split_is_refused(rows, tmp_path):
    with pytest.raises(ConfigurationError, match="validation has no rows"):
        tokenize(
            {"validation": rows["validation"].select([])}, demo_tokenizer(), "demo-entailment", 32, tmp_path
        )

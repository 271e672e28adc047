"""Rows of one's own through a run: what is printed, kept and refused, and what makes two runs the same."""

import csv
import gzip
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import transformers

from finetune_common.errors import ConfigurationError
from glue_harness import open_run, parse_mapping

WORDS = ("dog runs", "cat swims", "bird sings")


def write(path: Path, rows: int, *, classes: int = 2, turned: bool = False) -> Path:
    """Write a table as pandas does: an index without a name, a number, a text, a label."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["", "ticket_id", "text", "label"])
        for row in range(rows):
            label = (row + turned) % classes
            writer.writerow([row, 1000 - 7 * row, f"The old {WORDS[row % classes]} {row}.", "xyz"[label]])
    return path


@pytest.fixture
def files(tmp_path: Path) -> dict[str, str]:
    train, dev = write(tmp_path / "train.csv", 48), write(tmp_path / "dev.csv", 16)
    return {"task": "own", "train_file": str(train), "validation_file": str(dev)}


def test_the_block_is_printed_and_kept(train, files, tmp_path, capsys):
    result = train(**files, test_file=files["validation_file"], max_train_samples=None, max_eval_samples=8)
    said = capsys.readouterr().out
    for part in (
        "48 rows of train.csv",
        "ticket_id (numbers)",
        "Unnamed: 0",
        "x",
        "accuracy (primary)",
        "tokens",
    ):
        assert part in said
    schema = result["data"]["schema"]
    assert schema["sources"]["validation"]["labels"] == {"x": 8, "y": 8}
    assert schema["usual"]["metrics"]["accuracy"] == 0.5
    assert schema["tokens"]["truncated"] == 0.0
    assert set(result["test"]) == {"accuracy", "f1", "matthews_correlation"}
    of_classes = result["classes"]["validation"]
    assert sum(map(sum, of_classes["confusion"])) == 8
    assert sum(found["rows"] for found in of_classes["classes"].values()) == 8
    lines = (tmp_path / "run/predictions.tsv").read_text().splitlines()
    assert lines[0].split("\t")[4:] == ["text"]
    assert all(line.split("\t")[4].startswith("The old") for line in lines[1:])
    assert len(lines) == 9
    assert json.loads((tmp_path / "run/data.json").read_text()) == result["data"]


def test_a_moved_folder_is_the_same_run_and_an_edited_file_another(train, files, tmp_path):
    first = train(**files)
    for name in ("train", "dev"):
        (tmp_path / "moved").mkdir(exist_ok=True)
        (tmp_path / f"moved/{name}.csv").write_bytes((tmp_path / f"{name}.csv").read_bytes())
    moved = {
        "train_file": str(tmp_path / "moved/train.csv"),
        "validation_file": str(tmp_path / "moved/dev.csv"),
    }
    assert train(**files | moved) == first
    write(tmp_path / "moved/train.csv", 90)
    with pytest.raises(ConfigurationError, match=r"train.csv had 48 rows, now 90; choose another folder or"):
        train(**files | moved)
    write(tmp_path / "moved/train.csv", 48, turned=True)
    with pytest.raises(ConfigurationError, match=r"train.csv has 48 rows as before, but others"):
        train(**files | moved)


def test_rows_of_a_known_task_that_changed_are_refused_where_a_run_goes_on(train, tmp_path, monkeypatch):
    from glue_harness.run import plan

    train(max_steps=2)
    (tmp_path / "run/result.json").unlink()
    load = plan.load_task

    def fewer(*arguments: Any, **options: Any) -> Any:
        data = load(*arguments, **options)
        data["train"] = data["train"].select(range(1900))
        return data

    monkeypatch.setattr(plan, "load_task", fewer)
    with pytest.raises(ConfigurationError, match=r"train had 2,000 rows, now 1,900"):
        train(max_steps=2)


@pytest.mark.parametrize("kind", ["classes", "labels", "regression"])
def test_every_kind_trains_and_is_scored_by_a_metric_of_ones_choice(train, tmp_path, kind):
    rows = []
    for row in range(40):
        label = {
            "classes": str(row % 3),
            "labels": ["even"] * (row % 2 == 0) + ["all"],
            "regression": row % 3,
        }[kind]
        rows.append(json.dumps({"text": f"The {WORDS[row % 3]} {row}.", "label": label}))
    file = tmp_path / "rows.jsonl"
    file.write_text("\n".join(rows))
    metric = {
        "classes": "balanced_accuracy",
        "labels": "jaccard_samples",
        "regression": "neg_mean_absolute_error",
    }
    own = {
        "task": "own",
        "train_file": str(file),
        "validation_share": 0.25,
        "kind": kind,
        "metric": metric[kind],
    }
    result = train(**own, max_train_samples=None, epochs=2)
    assert result["primary"] == metric[kind]
    assert set(result["metrics"]["last"]) > {metric[kind]}
    assert bool(result["classes"]) == (kind != "regression")
    row = (tmp_path / "run/predictions.tsv").read_text().splitlines()[1].split("\t")
    assert len(row[3].split()) == {"classes": 3, "labels": 2, "regression": 1}[kind]
    if kind == "labels":
        assert row[1] in ("all", "all|even")


def test_what_is_to_decide_is_refused_before_anything_heavy_is_imported(tmp_path):
    file = write(tmp_path / "train.csv", 8)
    line = ["run", "--task", "own", "--model", "demo", "--output-dir", str(tmp_path / "run"), "--train-file"]
    wrong = {
        "absent": [str(tmp_path / "absent.csv"), "--validation-share", "0.5"],
        "no such column": [str(file), "--validation-share", "0.5", "--text-columns", "txt"],
    }
    for arguments in wrong.values():
        program = (
            "import sys, time\nbefore = time.monotonic()\nfrom glue_harness.cli import main\n"
            f"assert main({[*line, *arguments]!r}) == 2\n"
            "print(sorted({'torch', 'transformers', 'datasets', 'sklearn', 'pandas'} & set(sys.modules)))"
        )
        done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
        assert done.stdout.strip() == "[]"
        assert len(done.stderr.splitlines()) == 1
    assert not (tmp_path / "run").exists()


def test_inspect_prints_without_training(harness, files, tmp_path):
    said = harness("inspect", files["train_file"], files["validation_file"], "--model", "demo")
    assert said.status == 0, said.err
    assert "48 rows of train.csv" in said.out
    assert "median" in said.out
    plain = harness("inspect", files["train_file"], "--validation-share", 0.25, "--json")
    assert json.loads(plain.out)["sources"]["validation"]["rows"] == 12
    odd = tmp_path / "odd.csv"
    odd.write_text("text,label\na,0.0\nb,1.0\n")
    assert "to decide" in harness("inspect", odd).out
    assert harness("inspect", tmp_path / "absent.csv").status == 2
    assert "at most three" in harness("inspect", odd, odd, odd, odd).err


def test_a_dataset_is_read_by_the_same_rules(train, tmp_path):
    write(tmp_path / "data/train.csv", 48, classes=3)
    write(tmp_path / "data/test.csv", 12, classes=3)
    own = {"task": "own", "dataset": str(tmp_path / "data"), "max_train_samples": None}
    with pytest.raises(ConfigurationError, match=r"has no validation split, only train and test"):
        train(**own)
    result = train(**own, validation_share=0.25)
    assert result["data"]["schema"]["classes"] == ["x", "y", "z"]
    assert set(result["test"]) == {"accuracy", "f1_macro"}
    moved, own["validation_share"] = tmp_path / "moved", 0.25
    (tmp_path / "data").rename(moved)
    assert train(**own | {"dataset": str(moved)}) == result  # it is the same run, and finished
    write(moved / "train.csv", 60, classes=3)
    with pytest.raises(ConfigurationError, match="the rows have changed since the run began"):
        train(**own | {"dataset": str(moved)})


def test_a_dataset_without_public_test_labels_trains_and_says_so(train, tmp_path, capsys):
    for split, rows in (("train", 48), ("validation", 12)):
        write(tmp_path / f"data/{split}.csv", rows)
    hidden = "".join(f"{row},{row},The old dog {row}.,-1\n" for row in range(9))
    (tmp_path / "data/test.csv").write_text(",ticket_id,text,label\n" + hidden)
    result = train(task="own", dataset=str(tmp_path / "data"), max_train_samples=None, max_steps=1)
    assert result["test"] is None
    assert "not used    test (no row has a label)" in capsys.readouterr().out
    assert result["data"]["schema"]["unused"] == {"test": "no row has a label"}


def test_a_dataset_s_splits_are_all_named_where_none_is_for_validation(train, tmp_path):
    for split in ("train", "eval", "hard"):
        write(tmp_path / f"data/{split}.csv", 24)
    names = "".join(f"  - split: {split}\n    path: {split}.csv\n" for split in ("train", "eval", "hard"))
    card = f"---\nconfigs:\n- config_name: default\n  data_files:\n{names}---\n"
    (tmp_path / "data/README.md").write_text(card)
    own = {"task": "own", "dataset": str(tmp_path / "data"), "max_train_samples": None, "max_steps": 1}
    with pytest.raises(
        ConfigurationError, match=r"has no validation split, only train and eval and hard: call"
    ):
        train(**own)
    result = train(**own, validation_share=0.25)
    assert set(result["data"]["schema"]["unused"]) == {"eval", "hard"}


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"train_file": "a.csv"}, "--validation-share 0.1"),
        (
            {"train_file": "a.csv", "validation_file": "b.csv", "validation_share": 0.1},
            "give only one of them",
        ),
        (
            {"train_file": "a.csv", "dataset": "imdb", "validation_file": "b"},
            "--train-file and --dataset are two",
        ),
        ({"test_file": "c.csv"}, "--test-file without --train-file"),
        ({"dataset_config": "plain"}, "without --dataset"),
        ({"kind": "classes"}, "--kind only applies to your own rows"),
        ({"max_eval_samples": 0}, "max_eval_samples=0"),
        ({"train_file": "a", "validation_file": "b", "delimiter": ";;"}, "give one character"),
    ],
)
def test_options_that_contradict_each_other_are_refused(settings, said):
    with pytest.raises(ConfigurationError, match=said):
        parse_mapping({"task": "demo-entailment", "model": "demo", "output_dir": "unused"} | settings)


def test_the_metric_of_a_known_task_may_be_another(train):
    result = train(metric="f1_macro", max_steps=2)
    assert (result["primary"], set(result["metrics"]["last"])) == ("f1_macro", {"f1_macro", "accuracy"})
    with pytest.raises(ConfigurationError, match="mnli is evaluated on 2 sets"):
        train("other", task="mnli", metric="f1_macro")


DECODERS = {
    "llama": (transformers.LlamaConfig, {"intermediate_size": 32, "num_key_value_heads": 1}),
    "qwen3": (transformers.Qwen3Config, {"intermediate_size": 32, "num_key_value_heads": 1, "head_dim": 8}),
    "gpt2": (transformers.GPT2Config, {}),
}


@pytest.mark.parametrize("name", DECODERS)
def test_a_decoder_without_a_padding_token_trains(train, files, tmp_path, name):
    from finetune_common.demo import demo_tokenizer

    tokenizer = demo_tokenizer()
    tokenizer.pad_token = None
    tokenizer.eos_token = "[SEP]"
    kind, options = DECODERS[name]
    sizes = {
        "vocab_size": len(tokenizer),
        "hidden_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
    }
    model = transformers.AutoModelForCausalLM.from_config(kind(**sizes, **options))
    model.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    result = train(**files, model=str(tmp_path / "model"), max_steps=2)
    assert result["steps"] == 2
    texts = ["The old dog runs.", "The old dog runs near the baker and the cat swims."]
    opened = open_run(tmp_path / "run")
    for alone, beside in zip(
        [opened.predict([text])[0] for text in texts], opened.predict(texts), strict=True
    ):
        assert beside["scores"] == pytest.approx(alone["scores"], abs=1e-5)  # the last real token is read


def test_a_tokenizer_with_neither_token_names_an_option(train, files, tmp_path, tiny_model):
    import shutil

    from finetune_common.demo import demo_tokenizer

    shutil.copytree(tiny_model, tmp_path / "model")
    tokenizer = demo_tokenizer()
    tokenizer.pad_token = tokenizer.eos_token = None
    tokenizer.save_pretrained(tmp_path / "model")
    own = {**files, "model": str(tmp_path / "model"), "max_steps": 1}
    with pytest.raises(ConfigurationError, match=r"--model\.pad_token_id 0"):
        train(**own)
    assert train(**own, model_config={"pad_token_id": 0})["steps"] == 1


def test_seeds_of_one_setting_are_one_row_wherever_their_files_lay(train, files, tmp_path):
    from glue_harness.report.aggregate import summarise
    from glue_harness.run.records import read_results

    for seed in (1, 2):
        own = dict(files)
        for split in ("train", "validation"):
            place = tmp_path / f"data-{seed}" / Path(files[f"{split}_file"]).name
            place.parent.mkdir(exist_ok=True)
            place.write_bytes(Path(files[f"{split}_file"]).read_bytes())
            own[f"{split}_file"] = str(place)
        train(f"runs/{seed}", **own, seed=seed, max_steps=1)
    write(tmp_path / "data-2/train.csv", 48, turned=True)
    other = {"train_file": str(tmp_path / "data-2/train.csv")}
    train("runs/other", **files | other, seed=3, max_steps=1)
    assert sorted(row.seeds for row in summarise(read_results(tmp_path / "runs"))) == [(1, 2), (3,)]


def test_new_rows_are_predicted_and_scored_by_the_run_s_label_column(harness, train, tmp_path):
    rows = [
        {"ticket": {"text": f"The {WORDS[row % 3]} {row}."}, "tags": ["even"] * (row % 2 == 0) + ["all"]}
        for row in range(40)
    ]
    file = tmp_path / "rows.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)))
    own = {"task": "tags", "train_file": str(file), "validation_share": 0.25, "label_column": "tags"}
    train(**own, text_columns="ticket.text", max_steps=2)
    file.unlink()  # a finished run does not need its rows
    new = tmp_path / "new.jsonl.gz"
    new.write_bytes(gzip.compress("\n".join(map(json.dumps, rows[:5])).encode()))
    said = harness("predict", tmp_path / "run", new, "--output", tmp_path / "out.jsonl")
    assert said.status == 0, said.err
    assert "5 rows in" in said.err
    assert "f1_micro" in said.err
    found = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    for row in found:
        assert row["label"] == [name for name in ("all", "even") if row[f"score_{name}"] > 0.5]


def test_a_tab_or_a_line_break_in_a_class_stays_in_its_cell(train, tmp_path):
    names = ["one\ttwo", "up\ndown", "left\u2028right", "pos", "pos "]
    rows = [{"the\ttext": f"The {WORDS[row % 3]}.", "label": names[row % 5]} for row in range(20)]
    file = tmp_path / "rows.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)))
    own = {"task": "own", "train_file": str(file), "validation_file": str(file), "max_steps": 1}
    train(**own, label_spelling="exact")
    lines = [line.split("\t") for line in (tmp_path / "run/predictions.tsv").read_text().splitlines()]
    assert {len(line) for line in lines} == {5}
    assert [line[1] for line in lines[1:6]] == ["one two", "up down", "left right", "pos", "pos "]


def test_a_sweep_of_own_rows_has_the_same_folders_wherever_the_rows_lie(tmp_path):
    from glue_harness.sweep.spec import read_spec

    names = []
    for place in ("here", "there"):
        file = write(tmp_path / place / "train.csv", 24)
        spec = tmp_path / f"{place}.yaml"
        base = f"{{task: own, model: demo, train_file: {file}, validation_share: 0.25, text_columns: [text]}}"
        spec.write_text(f"base: {base}\ngrid: {{metric: [accuracy, f1_macro], seed: [1, 2]}}\n")
        names.append([run.name for run in read_spec(spec, tmp_path / "sweep")])
    assert names[0] == names[1]
    assert len(set(names[0])) == 4

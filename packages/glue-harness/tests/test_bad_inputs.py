"""What cannot be used ends with status 2 and one line that names the value and the remedy."""

import json
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

DEMO = ("--task", "demo-entailment", "--model", "demo", "--max-steps", "2", "--batch-size", "4")


def assert_one_line(said: Any, *words: str) -> None:
    """The contract of every refusal."""
    assert said.status == 2, said
    *before, refusal = said.err.splitlines()
    assert refusal.startswith("glue-harness: "), said.err
    assert all(line.startswith(("demo-", "step ")) for line in before), said.err  # how far it came
    assert said.err.endswith("\n")
    assert "Traceback" not in said.err + said.out
    for word in words:
        assert word in said.err, f"{word!r} is not said: {said.err}"


BAD_LINES = {
    "no command": ((), ["command", "--help"]),
    "unknown command": (("runn",), ["'runn'", "did you mean 'run'"]),
    "option before the command": (("--offline", "run"), ["--offline", "--help"]),
    "unknown thing to list": (("list", "optimizers"), ["'optimizers'", "methods", "tasks"]),
    "unknown option of prepare": (
        ("prepare", "--task", "rte", "--model", "demo", "--x", "1"),
        ["--x", "--help"],
    ),
    "prepare without a task": (("prepare", "--model", "demo"), ["--task", "--dataset"]),
    "unknown task of prepare": (("prepare", "--task", "rtee", "--model", "demo"), ["'rtee'", "'rte'"]),
    "report of a missing folder": (("report", "nowhere"), ["nowhere", "no result.json"]),
}

BAD_RUNS = {
    "task missing": (("--model", "demo", "--output-dir", "x"), ["--task", "--config"]),
    "model missing": (("--task", "rte", "--output-dir", "x"), ["--model", "--config"]),
    "output missing": (("--task", "rte", "--model", "demo"), ["--output-dir", "--config"]),
    "output empty": ((*DEMO, "--output-dir", ""), ["output_dir=''", "runs/rte"]),
    "output too long": ((*DEMO, "--output-dir", "x" * 300), ["--output-dir xxx", "too long"]),
    "output with a NUL": ((*DEMO, "--output-dir", "a\0b"), ["output_dir='a\\x00b'", "runs/rte"]),
    "field of the labels": ((*DEMO, "--model.num_labels", "7"), ["--model.num_labels", "the task decides"]),
    "dropout above 1": ((*DEMO, "--model.hidden_dropout_prob", "2"), ["--model demo", "dropout", "2"]),
    "unknown activation": ((*DEMO, "--model.hidden_act", "nosuch"), ["--model demo", "KeyError: 'nosuch'"]),
    "too few tokens": ((*DEMO, "--model.vocab_size", "5"), ["--model demo", "embeddings for 5"]),
    "no token types": ((*DEMO, "--model.type_vocab_size", "0"), ["--model demo", "cannot take a row of"]),
    "unknown task": (
        ("--task", "demo-entailmnt", "--model", "demo", "--output-dir", "x"),
        ["'demo-entailmnt'", "did you mean 'demo-entailment'"],
    ),
    "no option is like it": ((*DEMO, "--zzz", "4"), ["--zzz is no option", "glue-harness run --help"]),
    "no such slot": (
        (*DEMO, "--model_config.hidden_size", "4"),
        ["--model_config.hidden_size is no option", "--model.FIELD", "--SLOT.OPTION", "optimizer"],
    ),
    "unknown option": ((*DEMO, "--batchsize", "4"), ["--batchsize", "did you mean '--batch-size'"]),
    "unknown word": ((*DEMO, "fast"), ["'fast'", "--help"]),
    "unknown optimizer": ((*DEMO, "--optimizer", "adamww"), ["'adamww'", "'adamw'"]),
    "optimizer far from all": ((*DEMO, "--optimizer", "zzz"), ["'zzz'", "choose from", "adamw"]),
    "unknown gradient": ((*DEMO, "--gradient", "none-such"), ["gradient 'none-such' is unknown"]),
    "option of a method not chosen": (
        (*DEMO, "--optimizer", "adamw", "--optimizer.momentum", "0.9"),
        ["--optimizer.momentum", "'adamw'", "choose from lr, betas, eps"],
    ),
    "typo in a method's option": (
        (*DEMO, "--optimizer.epss", "1"),
        ["--optimizer.epss", "did you mean 'eps'"],
    ),
    "option of a slot with no method": (
        (*DEMO, "--gradient.eta", "1"),
        ["--gradient.eta", "--gradient NAME"],
    ),
    "optimizer without its name": ((*DEMO, "--optimizer"), ["--optimizer", "value"]),
    "batch size 0": ((*DEMO, "--batch-size", "0"), ["batch_size=0", "[1, inf)"]),
    "batch size in words": ((*DEMO, "--batch-size", "many"), ["--batch-size", "many", "whole number"]),
    "batch size with a fraction": ((*DEMO, "--batch-size", "1.5"), ["--batch-size", "1.5", "whole number"]),
    "negative epochs": ((*DEMO, "--epochs", "-1"), ["epochs=-1", "(0, inf)"]),
    "epochs not a number": ((*DEMO, "--epochs", "nan"), ["--epochs", "nan", "finite number"]),
    "epochs without end": ((*DEMO, "--epochs", "inf"), ["--epochs", "inf", "finite number"]),
    "zero steps": ((*DEMO, "--max-steps", "0"), ["max_steps=0", "[1, inf)"]),
    "negative warm-up": ((*DEMO, "--warmup", "-0.1"), ["warmup=-0.1", "[0, inf)"]),
    "negative seed": ((*DEMO, "--seed", "-1"), ["seed=-1", "[0, "]),
    "negative workers": ((*DEMO, "--num-workers", "-1"), ["num_workers=-1", "[0, inf)"]),
    "length of 3": ((*DEMO, "--max-length", "3"), ["max_length=3", "[4, inf)"]),
    "length beyond the tokenizer's": ((*DEMO, "--max-length", "100000"), ["max_length=100000", "128"]),
    "unknown schedule": ((*DEMO, "--schedule", "cosin"), ["cosin", "cosine"]),
    "unknown precision": ((*DEMO, "--precision", "fp8"), ["fp8", "bf16"]),
    "negative learning rate": ((*DEMO, "--optimizer.lr", "-1"), ["lr=-1", "[0, "]),
    "steps in words": ((*DEMO[:4], "--max-steps", "many"), ["--max-steps: many", "a whole number or null"]),
    "learning rate in words": ((*DEMO, "--optimizer.lr", "high"), ["--optimizer.lr", "high"]),
    "beta of 1": ((*DEMO, "--optimizer.betas", "[0.9, 1.0]"), ["betas=1.0", "1)"]),
    "one beta": ((*DEMO, "--optimizer.betas", "[0.9]"), ["--optimizer.betas", "0.9"]),
    "loss not a number": (
        (
            *DEMO,
            "--optimizer",
            "sgd",
            "--optimizer.lr",
            "1e30",
            "--max-steps",
            "4",
            "--max-grad-norm",
            "0",
            "--log-every",
            "1",
        ),
        ["the loss is", "step", "--optimizer.lr"],
    ),
    "half precision on a CPU": ((*DEMO, "--precision", "fp16"), ["fp16", "bf16"]),
    "configuration file missing": ((*DEMO, "--config", "nowhere.yaml"), ["nowhere.yaml", "YAML"]),
    "configuration is a folder": ((*DEMO, "--config", "."), ["--config .", "YAML"]),
    "model folder missing": (("--task", "demo-entailment", "--model", "./nowhere"), ["./nowhere", "demo"]),
    "data folder missing": (
        ("--task", "rte", "--model", "demo", "--data-dir", "nowhere"),
        ["nowhere", "RTE/train.tsv"],
    ),
}


@pytest.fixture(autouse=True)
def in_tmp_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(("argv", "words"), BAD_LINES.values(), ids=BAD_LINES)
def test_line_is_refused(harness: Callable[..., Any], argv: tuple[str, ...], words: list[str]) -> None:
    assert_one_line(harness(*argv), *words)


@pytest.mark.parametrize(("argv", "words"), BAD_RUNS.values(), ids=BAD_RUNS)
def test_run_is_refused(harness: Callable[..., Any], argv: tuple[str, ...], words: list[str]) -> None:
    if "--output-dir" not in argv and _case(argv) != "output missing":
        argv = (*argv, "--output-dir", "out")
    assert_one_line(harness("run", *argv), *words)


@pytest.mark.parametrize("slot", ["adaptation", "activation", "gradient", "optimizer", "monitor"])
def test_method_not_installed_names_its_package(
    harness: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, slot: str
) -> None:
    from finetune_common.slots import HOLDERS

    monkeypatch.setitem(HOLDERS[slot], "some-methods", "absent-one absent-two")
    said = harness("run", *DEMO, "--output-dir", "out", f"--{slot}", "absent-two")
    assert_one_line(
        said, f"{slot} 'absent-two' is not installed", "pip install ./shared ./packages/some-methods"
    )


def _case(argv: tuple[str, ...]) -> str | None:
    return next((name for name, (line, _) in BAD_RUNS.items() if line == argv), None)


BAD_FILES = {
    "not YAML": ("task: [rte", ["run.yaml", "YAML"]),
    "not a mapping": ("- task\n- rte", ["run.yaml", "option: value"]),
    "empty": ("", ["run.yaml", "option: value"]),
    "unknown key": ("epoch: 3", ["'epoch'", "did you mean 'epochs'"]),
    "key that is no word": ("3: 4", ["3"]),
    "empty method option": ("optimizer: {name: sgd, lr: null}", ["optimizer.lr"]),
    "wrong type": ("epochs: many", ["epochs", "many"]),
    "list for a number": ("batch_size: [1, 2]", ["batch", "[1, 2]"]),
    "null for a number": ("batch_size: null", ["'batch_size'", "empty"]),
    "mapping without a name": ("optimizer: {lr: 0.1}", ["optimizer=", "name"]),
    "slot of a number": ("optimizer: 3", ["optimizer=3", "name"]),
    "unknown option of a method": (
        "optimizer: {name: sgd, moment: 0.1}",
        ["optimizer.moment", "did you mean 'momentum'"],
    ),
    "wrong type in a method": ("optimizer: {name: sgd, momentum: high}", ["optimizer.momentum", "high"]),
    "two optimizers": ("optimizer: [adamw, sgd]", ["optimizer=", "name"]),
    "key twice": ("seed: 1\nseed: 2", ["run.yaml", "'seed' is given twice", "line 2"]),
    "key twice in a method": ("optimizer: {name: sgd, lr: 1, lr: 2}", ["'lr' is given twice"]),
    "alias of itself": ("optimizer: &a {name: sgd, lr: *a}", ["run.yaml", "alias"]),
    "2,000 levels": ("[" * 2000 + "]" * 2000, ["run.yaml", "too many levels"]),
    "several with a wrong one": ("gradient: [no-such, other]", ["'no-such'"]),
    "several with a nameless one": ("gradient: [{eta: 1}, {eta: 2}]", ["gradient=", "name"]),
}


@pytest.mark.parametrize(("text", "words"), BAD_FILES.values(), ids=BAD_FILES)
def test_configuration_file_is_refused(harness: Callable[..., Any], text: str, words: list[str]) -> None:
    Path("run.yaml").write_text(text)
    assert_one_line(harness("run", *DEMO[:4], "--output-dir", "out", "--config", "run.yaml"), *words)


def test_configuration_file_that_is_not_text_is_refused(harness: Callable[..., Any]) -> None:
    Path("run.yaml").write_bytes(b"\xff\xfe\x00task")
    assert_one_line(harness("run", *DEMO, "--output-dir", "out", "--config", "run.yaml"), "run.yaml", "YAML")


RUN_ON = {"task": "demo-entailment", "max_steps": 2, "batch_size": 8, "max_train_samples": 16}


def run_on(harness: Callable[..., Any], model: object = "demo", *more: object) -> Any:
    settings = [word for key, value in RUN_ON.items() for word in (f"--{key.replace('_', '-')}", value)]
    return harness("run", *settings, "--model", model, "--output-dir", "out", *more)


@pytest.fixture(scope="session")
def finished_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that `run_on` leaves."""
    from glue_harness import parse_mapping, run

    folder = tmp_path_factory.mktemp("finished") / "out"
    run(parse_mapping(RUN_ON | {"model": "demo", "output_dir": str(folder)}))
    return folder


@pytest.fixture
def interrupted(finished_run: Path) -> Path:
    """`out`, where a run had come as far as its last checkpoint; returns the checkpoint."""
    shutil.copytree(finished_run, "out")
    Path("out/result.json").unlink()
    return next(Path("out/checkpoint").iterdir())


def _without_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()


def _without_config(folder: Path) -> None:
    (folder / "config.json").unlink()


def _truncated_weights(folder: Path) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:100])


def _garbage_config(folder: Path) -> None:
    (folder / "config.json").write_text("{")


def _unknown_architecture(folder: Path) -> None:
    (folder / "config.json").write_text('{"model_type": "no-such-architecture"}')


def _other_shapes(folder: Path) -> None:
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"hidden_size": 32}))


def _other_names(folder: Path) -> None:
    import safetensors.torch

    file = folder / "model.safetensors"
    weights = {f"other.{name}": weight for name, weight in safetensors.torch.load_file(file).items()}
    safetensors.torch.save_file(weights, file, {"format": "pt"})


def _without_tokenizer(folder: Path) -> None:
    for file in folder.glob("tokenizer*"):
        file.unlink()


def _text_for_a_number(folder: Path) -> None:
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"num_hidden_layers": "two"}))


def _gap_between_tokens(folder: Path) -> None:
    file = folder / "tokenizer.json"
    content = json.loads(file.read_text())
    words = content["model"]["vocab"]
    words[max(words, key=words.get)] += 5000
    file.write_text(json.dumps(content))


def _few_positions(folder: Path) -> None:
    """A CTRL, whose table of positions is no embedding."""
    import transformers

    shape: dict[str, Any] = {"n_positions": 6, "n_embd": 16, "dff": 32, "n_layer": 1, "n_head": 2}
    config = transformers.CTRLConfig(vocab_size=600, **shape)
    transformers.CTRLForSequenceClassification(config).save_pretrained(folder)


BAD_MODELS = {
    "text for a number": (_text_for_a_number, ["num_hidden_layers", "two"]),
    "gap between tokens": (_gap_between_tokens, ["numbers tokens up to 5,", "embeddings for"]),
    "few positions": (_few_positions, ["cannot take a row of", "--max-length"]),
    "without weights": (_without_weights, ["no weights", "model.safetensors"]),
    "without config": (_without_config, ["config.json"]),
    "truncated weights": (_truncated_weights, ["cannot be loaded"]),
    "garbage config": (_garbage_config, ["cannot be loaded"]),
    "unknown architecture": (_unknown_architecture, ["no-such-architecture"]),
    "weights of other shapes": (_other_shapes, ["do not fit", "(16,)", "(32,)"]),
    "weights of other names": (_other_names, ["other names", "BertForSequenceClassification"]),
    "without a tokenizer": (_without_tokenizer, ["no tokenizer", "tokenizer.json"]),
}


@pytest.mark.parametrize(("damage", "words"), BAD_MODELS.values(), ids=BAD_MODELS)
def test_model_folder_is_refused(
    harness: Callable[..., Any], tiny_model: Path, damage: Callable[[Path], None], words: list[str]
) -> None:
    shutil.copytree(tiny_model, "model")
    damage(Path("model"))
    assert_one_line(run_on(harness, "model"), "--model model", *words)


def test_length_beyond_the_models_positions_is_refused(harness: Callable[..., Any], tiny_model: Path) -> None:
    shutil.copytree(tiny_model, "model")
    file = Path("model/config.json")
    file.write_text(json.dumps(json.loads(file.read_text()) | {"max_position_embeddings": 6}))
    import safetensors.torch

    weights = safetensors.torch.load_file("model/model.safetensors")
    weights["embeddings.position_embeddings.weight"] = weights["embeddings.position_embeddings.weight"][
        :6
    ].clone()
    safetensors.torch.save_file(weights, "model/model.safetensors", {"format": "pt"})
    assert_one_line(run_on(harness, "model", "--max-length", 20), "6 positions", "use --max-length 6")


RTE_HEADER = "index\tsentence1\tsentence2\tlabel\n"

BAD_DATA = {
    "wrong column": (
        "index\tsentence1\tsentenceB\tlabel\n0\ta\tb\tentailment\n",
        ["train.tsv line 1", "'sentence2'"],
    ),
    "empty file": ("", ["train.tsv", "empty"]),
    "header only": (RTE_HEADER, ["train.tsv", "no rows"]),
    "label out of range": (
        RTE_HEADER + "0\ta\tb\tneutral\n",
        ["train.tsv line 2", "'neutral'", "not_entailment"],
    ),
    "label index out of range": (RTE_HEADER + "0\ta\tb\t2\n", ["train.tsv line 2", "'2'", "entailment"]),
    "short row": (RTE_HEADER + "0\ta\tentailment\n", ["train.tsv line 2", "3", "4"]),
}


@pytest.mark.parametrize(("text", "words"), BAD_DATA.values(), ids=BAD_DATA)
def test_data_file_is_refused(harness: Callable[..., Any], text: str, words: list[str]) -> None:
    Path("glue/RTE").mkdir(parents=True)
    Path("glue/RTE/train.tsv").write_text(text)
    said = harness("run", "--task", "rte", "--model", "demo", "--data-dir", "glue", "--output-dir", "out")
    assert_one_line(said, *words)


def test_score_out_of_range_is_refused(harness: Callable[..., Any]) -> None:
    Path("glue/STS-B").mkdir(parents=True)
    Path("glue/STS-B/train.tsv").write_text("sentence1\tsentence2\tscore\na\tb\t5.5\n")
    said = harness("run", "--task", "stsb", "--model", "demo", "--data-dir", "glue", "--output-dir", "out")
    assert_one_line(said, "train.tsv line 2", "'5.5'", "[0, 5]")


def test_eight_bits_need_bitsandbytes(harness: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "bitsandbytes.optim", None)
    said = run_on(harness, "demo", "--optimizer", "adamw-8bit")
    assert_one_line(said, "adamw-8bit", "bitsandbytes", "--optimizer adamw")


def test_output_below_a_file_is_refused(harness: Callable[..., Any]) -> None:
    Path("file").touch()
    said = harness("run", *DEMO, "--output-dir", "file/run")
    assert_one_line(said, "--output-dir file/run", "folder")


def test_output_that_is_a_file_is_refused(harness: Callable[..., Any]) -> None:
    Path("file").touch()
    assert_one_line(harness("run", *DEMO, "--output-dir", "file"), "--output-dir file", "folder")


def test_report_into_a_file_is_refused(harness: Callable[..., Any], finished_run: Path) -> None:
    Path("file").touch()
    assert_one_line(
        harness("report", finished_run, "--output-dir", "file/report"), "--output-dir file/report", "folder"
    )


def test_tokenised_data_that_cannot_be_kept_is_refused(
    harness: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("file").touch()
    monkeypatch.setenv("FINETUNE_CACHE", "file/cache")
    assert_one_line(run_on(harness), "file/cache", "FINETUNE_CACHE")


def test_refused_run_leaves_the_folder_free(harness: Callable[..., Any]) -> None:
    assert run_on(harness, "demo", "--max-length", 1000).status == 2
    assert run_on(harness).status == 0


@pytest.mark.usefixtures("interrupted")
def test_different_configuration_in_the_folder_is_named(harness: Callable[..., Any]) -> None:
    assert_one_line(
        run_on(harness, "demo", "--optimizer.lr", 0.5), "out", "optimizer.lr", "0.5", "5e-05", "--overwrite"
    )
    assert_one_line(run_on(harness, "demo", "--seed", 7), "seed", "7", "42", "--overwrite")
    assert_one_line(run_on(harness, "demo", "--optimizer", "sgd"), "optimizer", "--overwrite")


def _truncate(file: Path) -> None:
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def _garbage(file: Path) -> None:
    file.write_bytes(b"garbage")


def _empty(file: Path) -> None:
    file.write_bytes(b"")


@pytest.mark.parametrize("damage", [_truncate, _garbage, _empty, Path.unlink])
@pytest.mark.parametrize("name", ["model.safetensors", "state.pt"])
def test_damaged_checkpoint_is_refused(
    harness: Callable[..., Any], interrupted: Path, name: str, damage: Callable[[Path], None]
) -> None:
    damage(interrupted / name)
    assert_one_line(run_on(harness), str(interrupted), "damaged", "--overwrite")


def test_checkpoint_without_a_part_is_refused_until_overwritten(
    harness: Callable[..., Any], interrupted: Path
) -> None:
    import torch

    torch.save({"step": 1}, interrupted / "state.pt")
    assert_one_line(run_on(harness), str(interrupted), "damaged", "state.pt", "--overwrite")
    (interrupted / "digests.json").unlink()
    assert_one_line(run_on(harness), str(interrupted), "damaged", "no optimizer", "--overwrite")
    assert run_on(harness, "demo", "--overwrite").status == 0


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"schema": 1}', '{"schema": 99}', "\xff"])
def test_damaged_result_is_refused_by_the_report(harness: Callable[..., Any], text: str) -> None:
    Path("runs/one").mkdir(parents=True)
    Path("runs/one/result.json").write_text(text, encoding="latin-1")
    assert_one_line(harness("report", "runs"), "runs/one/result.json")


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("result.json", "{"),
        ("config.yaml", "task: ["),
        ("config.yaml", ""),
        ("config.yaml", "other"),
        ("metrics.jsonl", "{\n"),
        ("metrics.jsonl", "{}\n"),
    ],
)
@pytest.mark.usefixtures("interrupted")
def test_damaged_file_of_a_run_is_refused(harness: Callable[..., Any], name: str, text: str) -> None:
    Path("out", name).write_text(text)
    assert_one_line(run_on(harness), f"out/{name}", "--overwrite")


@pytest.mark.parametrize("text", ["", "- a", "{", "other", "task: demo-entailment"])
@pytest.mark.parametrize("command", ["predict", "export"])
def test_damaged_settings_of_a_run_are_refused(
    harness: Callable[..., Any], finished_run: Path, command: str, text: str
) -> None:
    shutil.copytree(finished_run, "out")
    Path("out/config.yaml").write_text(text)
    Path("rows.csv").write_text("sentence1,sentence2\na,b\n")
    said = harness(command, "out", "rows.csv" if command == "predict" else "exported")
    assert_one_line(said, "--model" if text.startswith("task") else "out/config.yaml is damaged")


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json", "config.json"])
def test_a_model_is_as_it_was_written(harness: Callable[..., Any], finished_run: Path, name: str) -> None:
    shutil.copytree(finished_run, "run")
    file = Path("run/model", name)
    content = bytearray(file.read_bytes())
    letter = next(place for place in range(len(content) // 2, len(content)) if chr(content[place]).isalpha())
    content[letter] ^= 1
    file.write_bytes(content)
    Path("rows.csv").write_text("sentence1,sentence2\na,b\n")
    damaged = ["run/model", name]
    assert_one_line(harness("predict", "run", "rows.csv"), *damaged)
    assert_one_line(harness("export", "run", "exported"), *damaged)
    assert_one_line(run_on(harness, "run"), *damaged)


def test_models_without_digests_open(harness: Callable[..., Any], finished_run: Path) -> None:
    shutil.copytree(finished_run, "run")
    Path("run/model/digests.json").unlink()
    assert run_on(harness, "run").status == 0


def test_memory_that_runs_out_is_said(harness: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    from glue_harness.run.loop import Training

    def fail(*_: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    monkeypatch.setattr(Training, "_forward", fail)
    assert_one_line(run_on(harness), "2.00 GiB", "--batch-size", "--accumulate", "--activation compress")


ODD_PARTS = """
import dataclasses
import numpy as np

@dataclasses.dataclass(frozen=True)
class Options: ...

class Part:
    "A monitor."
    name, Options, said, state = "part", Options, {}, {}
    def __init__(self, options): ...
    def attach(self, model, optimizer): return self
    def on_step(self, step): return self.said
    def state_dict(self): return self.state

class Loss(Part): said = {"loss": -1.0}
class Set(Part): said = {"seen": {1, 2}}
class Numbers(Part): said = {"number": np.float32(0.5), "numbers": np.arange(2)}
class Generator(Part): state = {"draws": [np.random.RandomState(0).get_state()]}
class Number(Part): state = {"count": np.float64(1.0)}
"""


@pytest.fixture
def odd_parts(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path_factory.mktemp("parts")
    (folder / "odd_parts.py").write_text(ODD_PARTS)
    monkeypatch.syspath_prepend(folder)


@pytest.mark.usefixtures("odd_parts")
@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("Loss", ["monitor.0", "'loss'"]),
        ("Set", ["monitor.0", "'seen'", "set"]),
        ("Generator", ["monitor.0.draws.0.1 (ndarray)", "could not be loaded again", "state_dict()"]),
        ("Number", ["monitor.0.count (float64)", "could not be loaded again"]),
    ],
)
def test_what_a_part_cannot_report_or_keep_is_refused(
    harness: Callable[..., Any], name: str, words: list[str]
) -> None:
    assert_one_line(run_on(harness, "demo", "--monitor", f"odd_parts.{name}"), *words)
    assert not list(Path("out").glob("checkpoint/*"))


@pytest.mark.usefixtures("odd_parts")
def test_numbers_of_numpy_are_logged_as_numbers(harness: Callable[..., Any]) -> None:
    assert run_on(harness, "demo", "--monitor", "odd_parts.Numbers").status == 0
    *_, last = map(json.loads, Path("out/metrics.jsonl").read_text().splitlines())
    assert (last["number"], last["numbers"]) == (0.5, [0, 1])


def test_report_on_an_empty_folder_is_refused(harness: Callable[..., Any]) -> None:
    Path("runs").mkdir()
    assert_one_line(harness("report", "runs"), "runs", "no result.json")


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (("run", *DEMO, "--optimizer", "adamww", "--output-dir", "out"), ["'adamww'", "'adamw'"]),
        (
            ("run", "--task", "rte", "--model", "demo", "--offline", "--output-dir", "out"),
            ["'rte'", "prepare"],
        ),
        (
            (
                "run",
                "--task",
                "demo-entailment",
                "--model",
                "nobody/nothing",
                "--offline",
                "--output-dir",
                "out",
            ),
            ["nobody/nothing", "prepare"],
        ),
        (
            (
                "run",
                *DEMO,
                "--optimizer",
                "sgd",
                "--optimizer.lr",
                "1e30",
                "--max-grad-norm",
                "0",
                "--output-dir",
                "out",
            ),
            ["--optimizer.lr"],
        ),
    ],
    ids=["optimizer", "data never fetched", "model never fetched", "diverged"],
)
def test_process_is_refused(process: Callable[..., Any], argv: tuple[str, ...], words: list[str]) -> None:
    assert_one_line(process(*argv), *words)


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write everywhere")
def test_folder_without_permission_is_refused(harness: Callable[..., Any]) -> None:
    Path("locked").mkdir(mode=0o500)
    assert_one_line(harness("run", *DEMO, "--output-dir", "locked/run"), "--output-dir locked/run", "folder")

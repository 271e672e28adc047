"""Options that published runs need: another head or schedule, metrics of batches, dependent options."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import yaml
from transformers import BertConfig, BertForSequenceClassification

from finetune_common.errors import ConfigurationError
from finetune_common.tasks import get_task
from glue_harness import run
from glue_harness.cli import main
from glue_harness.config.fields import RunConfig
from glue_harness.config.parsing import parse_mapping
from glue_harness.cost.footprint import predict
from glue_harness.cost.sweeps import run_seconds
from glue_harness.report.targets import read_targets
from glue_harness.run.evaluation import _of_batches
from glue_harness.run.plan import Plan
from glue_harness.run.pooler import renew_pooler
from glue_harness.sweep.spec import read_spec

BASE = {"task": "demo-entailment", "model": "demo", "output_dir": "none"}


def rates(steps, **settings):
    """The learning rate of each step, in shares of the highest."""
    config = parse_mapping({**BASE, "max_steps": steps, **settings})
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    schedule = Plan(config, np.ones(8, dtype=int), 1).schedule(optimizer)
    found = []
    for _ in range(steps):
        found.append(schedule.get_last_lr()[0])
        optimizer.step()
        schedule.step()
    return found


def test_warmup_linear_falls_as_if_there_had_been_no_warm_up():
    """x/w below w, then 1 - x: at the end of warm-up the rate drops from 1 to 1 - w."""
    found = rates(20, schedule="warmup-linear", warmup=0.2)
    x = np.arange(20) / 20
    np.testing.assert_allclose(found, np.where(x < 0.2, x / 0.2, 1 - x))


def test_a_schedule_for_more_steps_ends_above_zero():
    """10 % of 40 steps are 4 of warm-up; after 20 steps 20 of the 36 others are left."""
    found = rates(21, schedule_steps=40, warmup=0.1)
    assert found[4] == 1.0
    assert found[20] == pytest.approx(20 / 36)


def bert(**fields):
    shape = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    return BertForSequenceClassification(BertConfig(**shape, vocab_size=32, **fields))


def test_a_new_pooler_has_a_dropout_before_it_and_the_names_it_had():
    torch.manual_seed(0)
    model = bert(hidden_dropout_prob=0.5, attention_probs_dropout_prob=0.0)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    renew_pooler(model)
    after = model.state_dict()
    assert list(before) == list(after)
    changed = {name for name, value in after.items() if not torch.equal(value, before[name])}
    assert changed == {"bert.pooler.dense.weight"}
    seen = []
    model.bert.pooler.dense.register_forward_hook(lambda module, args, output: seen.append(args[0]))
    ids = torch.arange(8).view(2, 4)
    model.train()(ids)
    assert (seen[0] == 0).float().mean().item() == pytest.approx(0.5, abs=0.25)
    model.eval()(ids)
    assert not (seen[1] == 0).any()


def test_metrics_of_batches_are_means_over_batches():
    """Five rows in batches of two, right in 2 of 2, 1 of 2 and 0 of 1: (1 + 0.5 + 0) / 3, not 3/5."""
    labels = np.array([0, 1, 0, 1, 1])
    said = np.array([0, 1, 0, 0, 0])
    found = _of_batches(get_task("rte"), np.eye(2)[said], labels, "validation", 2)
    assert found == {"accuracy_of_batches": pytest.approx(0.5)}


def test_options_that_are_left_alone_do_not_change_what_a_run_is():
    plain = parse_mapping(BASE)
    assert parse_mapping({**BASE, "head": "pretrained", "head_seed": None}).hash == plain.hash
    others = [{"head": "new"}, {"head_seed": 0}, {"schedule_steps": 9}, {"metric_batch": 4}]
    hashes = {parse_mapping({**BASE, **other}).hash for other in others}
    assert len(hashes | {plain.hash}) == 5


BAD = [{"head": "old"}, {"head_seed": -1}, {"schedule_steps": 0}, {"metric_batch": 0}]


@pytest.mark.parametrize("bad", BAD)
def test_what_cannot_be_is_refused_by_name(bad):
    with pytest.raises(ConfigurationError, match=next(iter(bad))):
        parse_mapping({**BASE, **bad})


def test_options_of_a_sweep_may_follow_from_others(tmp_path):
    spec = {
        "base": {"model": "demo", "max_steps": 1},
        "grid": {"task": ["demo-entailment", "demo-similarity"]},
        "where": [{"if": {"task": "demo-similarity"}, "then": {"metric": "spearmanr", "epochs": 5}}],
        "exclude": [{"epochs": 5, "task": "demo-entailment"}],
    }
    file = tmp_path / "spec.yaml"
    file.write_text(yaml.safe_dump(spec), encoding="utf-8")
    configs = [run.config for run in read_spec(file, tmp_path)]
    assert [(c.task, c.metric, c.epochs) for c in configs] == [
        ("demo-entailment", None, 3.0),
        ("demo-similarity", "spearmanr", 5.0),
    ]
    file.write_text(yaml.safe_dump({**spec, "where": [{"if": {}}]}), encoding="utf-8")
    with pytest.raises(ConfigurationError, match="where"):
        read_spec(file, tmp_path)


SPEC = {
    "base": {"task": "rte", "model": "bert-base-uncased", "epochs": 3},
    "grid": {"optimizer": ["adamw", {"name": "adamw", "lr": 1e-4}, "sgd"], "seed": [1, 2]},
    "scales": {"cpu": {"base": {"epochs": 1, "max_train_samples": 100}, "grid": {"seed": [7]}}},
}


@pytest.fixture
def spec_file(tmp_path):
    file = tmp_path / "spec.yaml"
    file.write_text(yaml.safe_dump(SPEC), encoding="utf-8")
    return file


def test_a_scale_changes_some_options_of_a_specification(spec_file, tmp_path):
    def settings(scale):
        return [
            (r.config.epochs, r.config.model, r.config.seed) for r in read_spec(spec_file, tmp_path, scale)
        ]

    assert settings(None) == settings("paper") == [(3, "bert-base-uncased", seed) for seed in (1, 2)] * 3
    assert settings("cpu") == [(1, "bert-base-uncased", 7)] * 3
    assert settings("smoke") == [(1, "demo", 41)] * 2  # one of each method
    with pytest.raises(ConfigurationError, match="--scale cpus is unknown: did you mean 'cpu'"):
        settings("cpus")


def test_a_scale_needs_no_variable_of_another(tmp_path):
    spec = SPEC | {"scales": {"cpu": {"base": {"model": "${NO_SUCH_VARIABLE}"}}}}
    file = tmp_path / "spec.yaml"
    file.write_text(yaml.safe_dump(spec), encoding="utf-8")
    assert len(read_spec(file, tmp_path, "smoke")) == 2
    with pytest.raises(ConfigurationError, match="NO_SUCH_VARIABLE"):
        read_spec(file, tmp_path, "cpu")


def test_a_dry_run_tells_hours_memory_and_disk_without_a_gpu(spec_file, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=1e12))
    assert main(["sweep", str(spec_file), "--output-dir", str(tmp_path / "runs"), "--dry-run"]) == 0
    told = capsys.readouterr().out
    assert "GB of disk (keep: best)" in told
    assert "h of one GPU or" in told
    assert "GB of memory for a step of bert-base-uncased" in told


def test_a_dry_run_tells_all_where_the_disk_is_too_small(spec_file, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=1e6))
    line = ["sweep", str(spec_file), "--output-dir", str(tmp_path / "runs")]
    assert main([*line, "--dry-run"]) == 0
    told = capsys.readouterr().out
    assert "make room" in told
    assert "GB of memory for a step of bert-base-uncased" in told
    assert main(line) == 2


@pytest.mark.parametrize("model", ["t5-base", "facebook/bart-base"])
def test_memory_of_a_head_that_looks_for_the_end_of_a_text_is_known(model):
    """Parameters alone take four bytes each, their gradients too, and AdamW's state twice that."""
    shape = {"num_layers": 1, "num_decoder_layers": 1} if model == "t5-base" else {}
    config = RunConfig("mrpc", model, output_dir="-", batch_size=2, max_length=16, model_config=shape)
    found = predict(config)
    assert found.parameters == found.gradients == found.optimizer // 2
    assert found.peak > 4 * found.parameters
    assert found.activations > 0


def test_memory_suffices_for_every_layer_where_a_step_may_skip_some():
    """With LayerDrop a step skips layers by chance; what has to fit is the step that skips none."""
    shape = {"d_model": 32, "encoder_layers": 2, "decoder_layers": 2, "encoder_ffn_dim": 64}
    shape |= {"encoder_attention_heads": 2, "decoder_attention_heads": 2}
    dropping = {"encoder_layerdrop": 0.5, "decoder_layerdrop": 0.5}
    without, with_it = (
        predict(RunConfig("mrpc", "facebook/bart-base", output_dir="-", max_length=16, model_config=fields))
        for fields in (shape, shape | dropping)
    )
    assert with_it == without


def test_hours_follow_from_rows_tokens_and_parameters():
    """85.5 M parameters a token, 64 tokens a row: 6 operations in training on 3 x 2,490, 2 on 3 x 277."""
    config = parse_mapping({**BASE, "task": "rte", "model": "bert-base-uncased"})
    expected = 85.5e6 * 64 * (6 * 3 * 2490 + 2 * 3 * 277)
    assert run_seconds([config], 1e9) == pytest.approx(2 + expected / 1e9, rel=0.01)


def published(tmp_path, *rows):
    file = tmp_path / "targets.csv"
    lines = ["method,task,metric,value,run,key", *rows]
    file.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return file


def kept(tmp_path, seed, accuracy):
    """A finished run, as much of it as a report reads."""
    settings = {**BASE, "task": "rte", "max_steps": 1, "seed": seed, "output_dir": str(tmp_path / str(seed))}
    config = parse_mapping(settings)
    folder = tmp_path / "runs" / str(seed)
    folder.mkdir(parents=True)
    whole = config.identity()
    slots = {slot: whole.pop(slot) for slot in ("adaptation", "activation", "gradient", "optimizer")}
    metrics = {"accuracy": accuracy}
    result = {
        **{"schema": 1, "task": "rte", "model": "demo", "seed": seed, "hash": config.hash, "slots": slots},
        **{"settings": whole, "primary": "accuracy", "metrics": {"last": metrics, "best": metrics}},
        **{"history": [], "steps": 1, "seconds": {"forward": 1.0, "evaluation": 1.0}, "test": None},
        **{"examples_per_second": 1.0, "peak_memory_bytes": 1, "saved_activation_bytes": 1, "classes": {}},
        **{"parameters": {"trainable": 1, "total": 1}, "versions": {}, "hardware": {"device": "cpu"}},
        **{"columns": [], "rows": {}, "data": {}, "stopped_early": False},
    }
    (folder / "result.json").write_text(json.dumps(result), encoding="utf-8")


def test_a_report_sets_published_numbers_beside_ours(tmp_path, capsys):
    for seed, accuracy in enumerate((0.60, 0.62, 0.64)):
        kept(tmp_path, seed, accuracy)
    run = "{task: rte, optimizer: {name: adamw}}"
    file = published(
        tmp_path,
        f'AdamW,rte,acc,0.61,"{run}",accuracy',
        f'AdamW too high,rte,acc,0.95,"{run}",accuracy',
        'Lion,rte,acc,0.7,"{task: rte, optimizer: {name: lion}}",accuracy',
        'By name,rte,acc,0.61,"{optimizer: adamw, optimizer.lr: 5e-5}",accuracy',
    )
    file.write_text("\ufeff" + file.read_text(encoding="utf-8"), encoding="utf-8")  # as spreadsheets write it
    out = tmp_path / "report"
    line = ["report", str(tmp_path / "runs"), "--output-dir", str(out), "--targets", str(file)]
    assert main(line) == 0
    told = {row.split(" | ")[2]: row for row in (out / "published.md").read_text().splitlines()[2:]}
    assert told["AdamW"].endswith("| reproduced |")
    assert "| 0.6100 | 0.6200 | +0.0100 |" in told["AdamW"]
    assert told["AdamW too high"].endswith("| not reproduced |")
    assert told["Lion"].endswith("| not run |")
    assert told["By name"].endswith("| reproduced |")
    assert "not reproduced" in (out / "index.html").read_text()
    capsys.readouterr()


@pytest.mark.parametrize(
    ("part", "said"),
    [
        ({"cases": ["sgd"]}, "cases: 'sgd' is no mapping"),
        ({"scales": {"cpu": 3}}, "scales: 3 is no mapping"),
        ({"cases": [{"grid": {"seed": 1}}]}, "grid.seed=1 is no list"),
        ({"scales": {"smoke": {"bases": {}}}}, "scales: key 'bases' is unknown: did you mean 'base'"),
    ],
)
def test_what_a_specification_cannot_say_is_named(part, said, tmp_path):
    file = tmp_path / "spec.yaml"
    file.write_text(yaml.safe_dump({**SPEC, **part}), encoding="utf-8")
    with pytest.raises(ConfigurationError, match=said):
        read_spec(file, tmp_path, "smoke" if "smoke" in str(part) else None)


@pytest.mark.parametrize(
    "part",
    [
        {"grid": {"seed": "1" * 900}},
        {"cases": [list(range(900))]},
        {"where": [{str(n): n for n in range(99)}]},
    ],
)
def test_a_long_value_is_not_printed_whole(part, tmp_path):
    file = tmp_path / "spec.yaml"
    file.write_text(yaml.safe_dump({**SPEC, **part}), encoding="utf-8")
    with pytest.raises(ConfigurationError) as refused:
        read_spec(file, tmp_path)
    assert len(str(refused.value)) < 200 + len(str(file))
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ("AdamW,rte,acc,much,{},accuracy", "line 2: could not convert"),
        ("A,rte,acc,1,[1],accuracy", "line 2: run"),
        ("A,rte,acc,1", "line 2: it has another number of cells than the 6 columns"),
        ("A,rte,acc,1,{},accuracy,2", "line 2: it has another number of cells than the 6 columns"),
    ],
)
def test_a_bad_row_of_targets_is_named(row, said, tmp_path):
    with pytest.raises(ConfigurationError, match=said):
        read_targets(published(tmp_path, row))
    bad = tmp_path / "bad.csv"
    bad.write_text("method,task\n", encoding="utf-8")
    with pytest.raises(ConfigurationError, match="no column 'metric'"):
        read_targets(bad)


def test_whether_a_number_was_checked_is_true_or_false(tmp_path):
    file = tmp_path / "targets.csv"
    rows = [f"A,rte,acc,1,{{}},accuracy,{said}" for said in ("", "true", "False", "no")]
    file.write_text("\n".join(["method,task,metric,value,run,key,verified", *rows]), encoding="utf-8")
    assert [target.verified for target in read_targets(file)] == [True, True, False, False]
    file.write_text(file.read_text().replace(",no", ",perhaps"), encoding="utf-8")
    with pytest.raises(ConfigurationError, match="line 5: verified='perhaps': give true or false"):
        read_targets(file)


def test_a_misspelt_setting_of_a_published_number_is_named(tmp_path, capsys):
    kept(tmp_path, 1, 0.6)
    file = published(tmp_path, 'AdamW,rte,acc,0.61,"{tsk: rte}",accuracy')
    line = ["report", str(tmp_path / "runs"), "--output-dir", str(tmp_path / "out"), "--targets", str(file)]
    assert main(line) == 2
    assert "key 'tsk' is unknown: did you mean 'task'" in capsys.readouterr().err


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("finished") / "run"
    run(parse_mapping({**BASE, "max_steps": 1, "max_train_samples": 8, "output_dir": str(folder)}))
    return folder


def test_an_exported_model_is_pushed_to_the_hub(finished, tmp_path, monkeypatch, capsys):
    """What is uploaded is the folder that transformers loads, to the name that the hub gives."""
    told = {}

    class Hub:
        def create_repo(self, name, private, exist_ok):
            told.update(name=name, private=private)
            return SimpleNamespace(repo_id=f"somebody/{name}")

        def upload_folder(self, repo_id, folder_path):
            told.update(repo_id=repo_id, files={path.name for path in folder_path.iterdir()})

    monkeypatch.setattr("huggingface_hub.HfApi", Hub)
    line = ["export", str(finished), str(tmp_path / "out"), "--push-to-hub", "mine", "--private"]
    assert main(line) == 0
    assert told.pop("files") >= {"config.json", "model.safetensors", "tokenizer.json", "README.md"}
    assert told == {"name": "mine", "private": True, "repo_id": "somebody/mine"}
    assert capsys.readouterr().out.endswith("pushed: somebody/mine\n")


def test_a_hub_that_refuses_is_told_in_one_line(finished, tmp_path, monkeypatch, capsys):
    def refuse(*args, **kwargs):
        raise OSError("401 Client Error:\n Unauthorized")

    monkeypatch.setattr("huggingface_hub.HfApi.create_repo", refuse)
    out = tmp_path / "out"
    assert main(["export", str(finished), str(out), "--push-to-hub", "mine"]) == 2
    told = capsys.readouterr().err
    assert "401 Client Error: Unauthorized" in told
    assert told.count("\n") == 1
    assert (out / "config.json").exists()
    assert main(["export", str(finished), str(tmp_path / "other"), "--private"]) == 2
    assert not (tmp_path / "other").exists()


def test_an_axis_with_a_dot_is_an_option_of_a_method(tmp_path):
    """A case's own axes meet those of all; a scale's one-of-each takes the first of each."""
    spec = {
        "base": {"task": "rte", "model": "demo", "optimizer": {"name": "adamw", "eps": 1e-6}},
        "grid": {"optimizer.lr": [0.1, 0.2]},
        "cases": [
            {"activation": "none"},
            {"optimizer": "sgd", "grid": {"optimizer.momentum": [0.0, 0.5]}},
        ],
    }
    file = tmp_path / "spec.yaml"
    file.write_text(yaml.safe_dump(spec), encoding="utf-8")
    optimizers = [run.config.optimizer for run in read_spec(file, tmp_path)]
    adamw = [{"name": "adamw", "eps": 1e-6, "lr": lr} for lr in (0.1, 0.2)]
    sgd = [{"name": "sgd", "lr": lr, "momentum": m} for lr in (0.1, 0.2) for m in (0.0, 0.5)]
    told = [{key: one[key] for key in like} for one, like in zip(optimizers, adamw + sgd, strict=True)]
    assert told == adamw + sgd
    assert len(read_spec(file, tmp_path, "smoke")) == 2
    file.write_text(yaml.safe_dump({**spec, "grid": {"gradient.eta": [0.1]}}), encoding="utf-8")
    with pytest.raises(ConfigurationError, match=r"grid\.gradient\.eta: nothing chooses"):
        read_spec(file, tmp_path)

"""One benchmark of each work runs from its name to its table, and is not run twice."""

import json
from types import SimpleNamespace

import pytest

import run as benchmark
from finetune_common.errors import ConfigurationError
from reproduce import performing, preflight
from reproduce.catalogue import SCALES, catalogue, find

NAMES = ("agni.glue", "clipped.sst2", "combined.slots", "gact.accuracy", "peft.bottleneck", "sage.sst2")


def test_one_of_every_work_is_run():
    assert {name.partition(".")[0] for name in NAMES} == {b.work for b in catalogue().values()}


@pytest.mark.parametrize("name", NAMES)
def test_a_benchmark_runs_at_the_smoke_scale(name, tmp_path, capsys):
    line = [name, "--jobs", "0", "--output-dir", str(tmp_path)]
    assert benchmark.main(line) == 0
    told = capsys.readouterr().out
    assert "| task | setting | runs | last |" in told
    kept = tmp_path / name / "smoke" / "results" / "result.json"
    results = json.loads(kept.read_text(encoding="utf-8"))
    methods = {json.dumps(result["slots"], sort_keys=True) for result in results}
    assert len(methods) == len(results) >= 2
    assert all({"versions", "hardware", "seed"} <= result.keys() for result in results)
    finished = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("runs/*/result.json")}
    assert benchmark.main(line) == 0
    assert finished == {path: path.stat().st_mtime_ns for path in finished}


def test_what_is_unknown_is_told_in_one_line(capsys):
    assert benchmark.main(["peft.bottlenek"]) == 2
    told = capsys.readouterr().err
    assert told.startswith("benchmark: error: benchmark 'peft.bottlenek' is unknown: did you mean 'peft.bott")
    assert told.count("\n") == 1
    assert benchmark.main(["sage.sst2", "--scale", "paper"]) == 2
    assert "sage.sst2 has none; it has smoke, cpu" in capsys.readouterr().err
    assert benchmark.main(["sage.sst2", "MINILM_DIR=/no/such/folder"]) == 2
    assert "no such folder" in capsys.readouterr().err
    assert benchmark.main(["speed", "sage.sst2"]) == 2
    assert "speed is measured alone" in capsys.readouterr().err
    assert benchmark.main([]) == 2


def test_a_folder_that_nobody_gave_is_told_before_anything_runs(capsys, monkeypatch, tmp_path):
    for name in ("GLUE_DATA_DIR", "MINILM_DIR"):
        monkeypatch.delenv(name, raising=False)
    for line, status in (([], 1), (["--dry-run"], 2)):
        words = ["sage.sst2", "--scale", "cpu", "--output-dir", str(tmp_path), *line]
        assert benchmark.main(words) == status
        told = capsys.readouterr().err
        assert "it needs GLUE_DATA_DIR=DIR MINILM_DIR=DIR: give it on the line" in told
        assert told.count("\n") == 1
    assert not list(tmp_path.rglob("spec.yaml"))


def test_the_paper_scale_says_what_is_missing_before_it_runs(capsys, monkeypatch, tmp_path):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr("reproduce.preflight._model", lambda name, load: f"no {name}")
    monkeypatch.setattr("reproduce.preflight._data", lambda task, folder: f"no {task}")
    assert benchmark.main(["gact.two-bit", "--scale", "paper", "--output-dir", str(tmp_path)]) == 1
    told = capsys.readouterr()
    assert "h of one GPU" in told.out
    assert told.err.startswith("benchmark: error: gact.two-bit: --scale paper: ")
    assert told.err.count("\n") == 1
    for missing in ("no CUDA device", "no bert-large-cased", "no sst2", "no qnli", "no mnli"):
        assert missing in told.err
    assert not list(tmp_path.iterdir())


def test_one_that_fails_does_not_stop_the_others(capsys, monkeypatch, tmp_path):
    def perform(benchmark, scale, output, jobs):
        if benchmark.name == "gact.two-bit":
            raise ConfigurationError("failed with exit status 3, see above")
        return f"the table of {benchmark.name}"

    monkeypatch.setattr(benchmark, "perform", perform)
    assert benchmark.main(["gact.two-bit", "gact.capacity", "--output-dir", str(tmp_path)]) == 1
    told = capsys.readouterr()
    assert told.out == "the table of gact.capacity\n"
    assert told.err == (
        "benchmark: error: gact.two-bit: failed with exit status 3, see above; the same command continues\n"
    )


def test_a_card_of_16_gb_may_tell_of_a_little_less(monkeypatch):
    def found(gigabytes):
        properties = SimpleNamespace(total_memory=gigabytes * 1e9)
        monkeypatch.setattr("torch.cuda.get_device_properties", lambda device: properties)
        return preflight._gpu(16)

    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    assert not found(15.8)
    assert found(12) == "12 GB of GPU memory: 16 are needed"


def test_the_models_and_images_of_scripts_are_looked_at_too(monkeypatch, tmp_path):
    monkeypatch.setattr("reproduce.preflight._model", lambda name, load: f"no {name}")
    monkeypatch.setattr("reproduce.preflight._images", lambda name: f"no {name}")
    wanted = {
        "gact.capacity": ("bert-large-cased", "bert-base-cased"),
        "clipped.images": ("microsoft/resnet-18", "uoft-cs/cifar10"),
        "combined.time": ("bert-base-uncased",),
    }
    for name, parts in wanted.items():
        with pytest.raises(ConfigurationError) as refused:
            preflight.preflight(find(name), tmp_path / "not" / "there")
        assert all(f"no {part}" in str(refused.value) for part in parts)


def test_the_list_has_every_benchmark_with_a_time_at_each_scale(capsys):
    assert benchmark.main(["--list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    for name, one in catalogue().items():
        [row] = [line for line in lines if line.startswith(f"| `{name}` |")]
        times = [cell.strip() for cell in row.split("|")[4:7]]
        assert [time != "–" for time in times] == [scale in one.scales for scale in SCALES]


def test_a_repeated_run_is_recognised_by_its_numbers(tmp_path):
    committed = tmp_path / "kept.json"
    one = {"task": "rte", "seed": 1, "slots": {}, "settings": {"epochs": 3}, "metrics": {"accuracy": 0.5}}
    committed.write_text(json.dumps([one]), encoding="utf-8")
    later = one | {"settings": {"epochs": 3, "new_option": None}}
    other = one | {"metrics": {"accuracy": 0.6}}
    assert performing.same_numbers([one, later, other], committed).startswith("2 of 3 runs")
    assert performing.same_numbers([one | {"settings": {"epochs": 4}}], committed).startswith("0 of 1")

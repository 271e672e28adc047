"""`capacity` and `profile`: what they say is what the allocator says, and the search finds the largest."""

import dataclasses
import json

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from finetune_common.errors import ConfigurationError
from glue_harness.cli import main
from glue_harness.config.parsing import parse_line
from glue_harness.cost.capacity import capacity, largest, read_bytes, resized
from glue_harness.cost.footprint import measured_peak, predict
from glue_harness.cost.live import LiveBytes
from glue_harness.cost.steps import Steps


def config(*line):
    rest = ["--max-length", "16", "--batch-size", "3", *line]
    return parse_line(["--task", "sst2", "--output-dir", "-", "--model", "demo", *rest])[0]


@given(
    costs=st.lists(st.integers(0, 50), min_size=1, max_size=200).map(sorted),
    budget=st.integers(-1, 60),
    first=st.integers(1, 40),
)
def test_the_search_finds_what_trying_every_value_finds(costs, budget, first):
    cost = lambda n: costs[n - 1] if n <= len(costs) else float("inf")  # noqa: E731
    fitting = [n for n in range(1, len(costs) + 1) if cost(n) <= budget]
    assert largest(cost, budget, first) == (max(fitting) if fitting else 0)


def test_a_straight_cost_takes_few_evaluations():
    asked = []
    assert largest(lambda n: asked.append(n) or 7.0 + 3.0 * n, 30_000) == 9997
    assert len(asked) < 10


def test_live_bytes_count_a_storage_once_and_forget_it_when_it_dies():
    with LiveBytes() as live:
        base = torch.zeros(100)
        views = [base[:50], base.view(10, 10).t()]
        other = base + 1
        assert live.now == 800
        del other
        assert live.now == 400
        del base, views
    assert (live.now, live.peak) == (0, 800)


@pytest.mark.parametrize("rows", [1, 3, 8, 17])
def test_the_prediction_is_what_the_allocator_measures(rows):
    """Saved bytes exactly; the peak within 5%: work space of kernels is not seen by fake tensors."""
    from finetune_common.measure import SavedTensorMeter

    one = config("--batch-size", str(rows))
    predicted = predict(one)
    steps = Steps(one)
    meter = SavedTensorMeter(steps.model)
    with meter:
        loss = steps.forward()
    assert predicted.activations == meter.bytes
    loss.backward()
    assert predicted.gradients == steps.state_bytes()["gradients"]
    steps.model.zero_grad()
    del loss
    steps.forward_backward()
    steps.model.zero_grad()
    measured = measured_peak(steps.forward_backward) + steps.state_bytes()["parameters"]
    assert predicted.peak - predicted.optimizer == pytest.approx(measured, rel=0.05)


SMALL = {
    "t5-base": {"d_model": 64, "d_kv": 16, "d_ff": 128, "num_layers": 2, "num_heads": 4},
    "bart-base": {
        "d_model": 64,
        **{f"{part}_layers": 2 for part in ("encoder", "decoder")},
        **{f"{part}_attention_heads": 4 for part in ("encoder", "decoder")},
        **{f"{part}_ffn_dim": 128 for part in ("encoder", "decoder")},
    },
    "Meta-Llama-3-8B": {
        **{"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4},
        **{"num_key_value_heads": 2, "pad_token_id": 0, "use_cache": "false"},
    },
}
"""Two that classify by the end of a text, and a decoder without a cache: with full rows none makes a mask."""


@pytest.mark.parametrize("model", SMALL)
def test_models_of_other_kinds_are_predicted_as_measured(model, allocated):
    shape = {**SMALL[model], "vocab_size": 200}
    one = config(
        *("--model", model, "--batch-size", "5", "--max-length", "37"),
        *(part for name, value in shape.items() for part in (f"--model.{name}", str(value))),
    )
    steps = Steps(one)
    steps.forward_backward()
    stored, measured = allocated(steps)
    predicted = predict(one)
    assert predicted.activations == stored
    assert predicted.peak - predicted.optimizer == pytest.approx(measured, rel=0.02)


@pytest.mark.parametrize("passes", [2, 3])
def test_a_step_of_several_passes_has_gradients_while_it_saves(passes, allocated):
    """Its peak is the allocator's, and above that of one pass by the gradients that lie there already."""
    one, several = config("--batch-size", "16"), config("--batch-size", "16", "--accumulate", str(passes))
    steps = Steps(several)
    steps.forward_backward()
    _, measured = allocated(steps)
    predicted = predict(several)
    assert predicted.peak - predicted.optimizer == pytest.approx(measured, rel=0.02)
    assert predicted.peak > predict(one).peak + 0.5 * predicted.gradients


def test_the_largest_batch_fits_and_one_row_more_does_not(tmp_path):
    line = ["capacity", "--model", "demo", "--max-length", "16", "--budget", "4MB", "--compare", "none"]
    assert main([*line, "--output-dir", str(tmp_path)]) == 0
    found = json.loads((tmp_path / "max_batch_size_results.json").read_text())
    row = found["results"]["none"]
    fits, too_many = (predict(config("--batch-size", str(row["largest"] + more))).peak for more in (0, 1))
    assert fits == row["peak_bytes"] <= 4_000_000 < too_many
    assert "none" in (tmp_path / "max_batch_size_results.md").read_text()


@pytest.mark.parametrize(
    ("what", "field", "multiple"),
    [
        ("layers", "num_hidden_layers", 1),
        ("hidden", "hidden_size", 64),
        ("intermediate", "intermediate_size", 64),
    ],
)
def test_other_searches_change_the_field_of_their_name(what, field, multiple):
    found = capacity(config(), what, 4_000_000, {"none": {"name": "none"}})["results"]["none"]["largest"]
    assert found > 0
    assert found % multiple == 0
    shape = {field: found + multiple}
    if what == "hidden":
        shape["num_attention_heads"] = (found + multiple) // 64
    line = [part for name, value in shape.items() for part in (f"--model.{name}", str(value))]
    assert predict(config(*line)).peak > 4_000_000


@pytest.mark.parametrize(
    ("model", "what", "fields"),
    [
        ("t5-base", "layers", {"num_layers": 3, "num_decoder_layers": 3}),
        ("bart-base", "layers", {"encoder_layers": 3, "decoder_layers": 3}),
        ("bart-base", "hidden", {"encoder_attention_heads": 3, "decoder_attention_heads": 3}),
        ("t5-base", "intermediate", {"d_ff": 192}),
        ("bart-base", "intermediate", {"encoder_ffn_dim": 192, "decoder_ffn_dim": 192}),
        ("distilbert-base-uncased", "intermediate", {"hidden_dim": 192}),
        ("Meta-Llama-3-8B", "hidden", {"num_attention_heads": 3, "num_key_value_heads": 3}),
    ],
)
def test_a_search_leaves_a_model_whole(model, what, fields):
    """Both of its stacks have the depth; heads of 64 fill the width; its blocks have the width between."""
    value = 3 if what == "layers" else 3 * 64
    changed_to = resized(config("--model", model), what, value).model_config
    assert changed_to.items() >= fields.items()
    small = {"num_hidden_layers": 1, "vocab_size": 600, "intermediate_size": 64, "pad_token_id": 0}
    small = small if "Llama" in model else {}
    one = dataclasses.replace(config("--model", model), model_config={**changed_to, **small})
    assert predict(one).peak > 0


def test_measurement_and_prediction_find_nearly_the_same_batch():
    by = {
        how: capacity(config(), "batch-size", 5_000_000, {"none": {"name": "none"}}, by=how)["results"][
            "none"
        ]
        for how in ("prediction", "measurement")
    }
    assert by["prediction"]["largest"] == pytest.approx(by["measurement"]["largest"], rel=0.05, abs=1)


def test_nothing_fits_is_said():
    found = capacity(config(), "batch-size", 1000, {"none": {"name": "none"}})["results"]["none"]
    assert found["largest"] == 0


def test_profile_writes_memory_and_speed(tmp_path, capsys):
    line = ["profile", "--model", "demo", "--max-length", "16", "--repeats", "2", "--batch-sizes", "2,4"]
    assert main([*line, "--optimizer", "adamw", "--output-dir", str(tmp_path)]) == 0
    report = json.loads((tmp_path / "speed_results.json").read_text())
    predicted = {size: predict(config("--batch-size", str(size))) for size in (2, 4)}
    for row in report["rows"]:
        expected = predicted[row["batch_size"]]
        assert row["bytes"]["parameters"] == expected.parameters
        assert row["bytes"]["gradients"] == expected.gradients
        assert row["bytes"]["activations"] == expected.activations
        assert row["bytes"]["optimizer"] == pytest.approx(expected.optimizer, rel=0.01)
        assert len(row["seconds"]["all"]) == 2
        assert 0 < row["seconds"]["without_optimizer"] <= row["seconds"]["step"]
    assert (tmp_path / "throughput.png").stat().st_size > 5000
    assert capsys.readouterr().out.count("| none |") == 2


@pytest.mark.needs("activation_compression")
def test_profile_takes_the_activation_method_from_a_file(tmp_path, capsys):
    file = tmp_path / "run.yaml"
    file.write_text("model: demo\nmax_length: 16\nactivation: {name: checkpoint}\n")
    assert main(["profile", "--config", str(file), "--batch-sizes", "2", "--repeats", "1"]) == 0
    assert "| checkpoint |" in capsys.readouterr().out


@pytest.mark.needs("activation_compression")
@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has CUDA")
def test_a_choice_that_cannot_run_says_why_and_stops_no_other(tmp_path):
    line = ["--model", "demo", "--max-length", "16", "--budget", "4MB", "--compare", "swap,none"]
    assert main(["capacity", *line, "--output-dir", str(tmp_path)]) == 0
    found = json.loads((tmp_path / "max_batch_size_results.json").read_text())["results"]
    assert "CUDA" in found["swap"]["error"]
    assert found["none"]["largest"] > 1
    lines = (tmp_path / "max_batch_size_results.md").read_text().splitlines()
    [row] = [row for row in lines if row.startswith("| swap")]
    assert row.count("|") == 5
    assert found["swap"]["error"] in row


@pytest.mark.needs("activation_compression")
@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has CUDA")
@pytest.mark.parametrize("command", [["profile"], ["capacity", "--budget", "4MB"]], ids=" ".join)
def test_where_no_choice_can_run_the_command_fails_with_the_reason(command, capsys):
    line = ["--model", "demo", "--max-length", "16", "--batch-size", "2", "--compare", "swap"]
    assert main([*command, *line]) != 0
    told = capsys.readouterr()
    assert "CUDA" in told.err
    assert "| swap |" not in told.out


@pytest.mark.parametrize("command", [["profile", "--predict"], ["capacity", "--budget", "1GB"]], ids=" ".join)
def test_what_a_compiled_step_keeps_is_not_predicted(command, capsys):
    """The compiler decides; a prediction for the model as it is would be another number."""
    main([*command, "--model", "demo", "--compare", "none", "--compile"])
    told = capsys.readouterr()
    assert "--compile: what a compiled model keeps is measured" in told.out + told.err


def test_a_measured_step_is_compiled_where_it_is_asked_for(monkeypatch):
    given = []
    monkeypatch.setattr(torch.nn.Module, "compile", lambda model, **settings: given.append(settings))
    Steps(config("--compile"))
    Steps(config())
    assert len(given) == 1
    assert given[0]["dynamic"]


@pytest.mark.needs("activation_compression")
def test_a_compiled_measured_step_has_the_method_s_options(monkeypatch):
    given = []
    monkeypatch.setattr(torch.nn.Module, "compile", lambda model, **settings: given.append(settings))
    Steps(config("--compile", "--activation", "compress"))
    assert "custom_partitioner_fn" in given[0]["options"]
    with pytest.raises(ConfigurationError, match="--compile"):
        Steps(config("--compile", "--activation", "checkpoint"))


@pytest.mark.needs("activation_compression")  # the methods that are compared by default
@pytest.mark.parametrize(
    ("line", "said"),
    [
        (["--budget", "16 gigs"], "MB, GB, MiB or GiB"),
        (["--budget", "1GB", "--model", "bert-larg-cased"], "bert-large-cased"),
        (["--budget", "1GB", "--model.hiden_size", "64"], "hidden_size"),
        (["--budget", "1GB", "--model.hidden_size", "63"], "no model of this shape"),
        (
            ["--budget", "1GB", "--model.vocab_size", "9", "--model.pad_token_id", "9"],
            "no model of this shape",
        ),
        (["--budget", "1GB", "--compare", "none:L1"], "no levels"),
        (["--budget", "1GB", "--compare", ","], "none,checkpoint"),
        (["--budget", "1GB", "--max-length", "4000"], "positions"),
    ],
)
def test_wrong_input_gets_one_line(line, said, capsys, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    model = [] if "--model" in line else ["--model", "demo"]
    assert main(["capacity", *model, *line]) == 2
    [message] = capsys.readouterr().err.splitlines()
    assert said in message


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has CUDA")
@pytest.mark.parametrize(
    "command", [["profile"], ["capacity", "--budget", "1GB", "--by", "measurement"]], ids=" ".join
)
def test_measuring_on_cuda_is_refused_where_there_is_none(command, capsys):
    assert main([*command, "--model", "demo", "--compare", "none", "--device", "cuda"]) == 2
    assert "no CUDA device" in capsys.readouterr().err


def test_fields_of_the_model_can_be_changed_in_a_run(tmp_path):
    from finetune_common.tasks import get_task
    from glue_harness.run.models import load_model, load_tokenizer

    changed = config("--model.classifier_dropout", "0.25", "--model.num_hidden_layers=1")
    assert changed.model_config == {"classifier_dropout": 0.25, "num_hidden_layers": 1}
    assert changed.hash != config().hash
    tokenizer = load_tokenizer("demo")
    model = load_model("demo", get_task("sst2"), tokenizer, None, changed.model_config)
    assert model.dropout.p == 0.25
    assert len(model.bert.encoder.layer) == 1
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    again = load_model(str(tmp_path), get_task("sst2"), tokenizer, None, {"classifier_dropout": 0.5})
    assert again.dropout.p == 0.5
    with pytest.raises(ConfigurationError, match="did you mean 'classifier_dropout'"):
        load_model("demo", get_task("sst2"), tokenizer, None, {"clasifier_dropout": 0.5})


def test_amounts_of_memory():
    assert read_bytes("0.5KiB") == 512

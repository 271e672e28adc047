"""What methods keep from step to step is predicted by their own steps: for any method, and as measured."""

import dataclasses
from dataclasses import dataclass

import pytest
import torch

from finetune_common.errors import ConfigurationError
from finetune_common.slots import available, find
from glue_harness.cli import main
from glue_harness.config.parsing import parse_line
from glue_harness.cost.footprint import measured_peak, predict, warm_up
from glue_harness.cost.live import LiveBytes
from glue_harness.cost.steps import Steps

WIDE = ["--model.num_hidden_layers", "1", "--model.max_position_embeddings", "256"]
WIDE += [
    "--model.hidden_size",
    "256",
    "--model.intermediate_size",
    "256",
]  # AGNI joins smaller tensors by a table


def config(*line):
    rest = ["--max-length", "16", "--batch-size", "3", "--accumulate", "2", *line]
    return parse_line(["--task", "sst2", "--output-dir", "-", "--model", "demo", *rest])[0]


def trained(one):
    """How many numbers train, by another way than predicting."""
    return Steps(one).trained


@pytest.mark.parametrize(
    ("line", "tensors"),
    [
        (["adamw"], 2),
        (["sgd", "--optimizer.momentum", "0"], 0),
        (["sgd", "--optimizer.momentum", "0.9"], 1),
        (["adagrad"], 1),
        (["adamax"], 2),
    ],
)
def test_optimizer_state_is_counted_by_the_tensors_that_the_method_keeps(line, tensors):
    one = config("--optimizer", *line)
    assert predict(one).optimizer == 4 * tensors * trained(one)


@pytest.mark.needs("sensitivity_lr")
def test_what_a_pattern_leaves_out_keeps_no_more_than_without_the_method():
    """SAGE has a third number, for the parameters that it acts on."""
    one = config("--optimizer", "sage-adamw", "--optimizer.pattern", "classifier")
    chosen = sum(p.numel() for name, p in Steps(one).model.named_parameters() if "classifier" in name)
    assert predict(one).optimizer == 8 * trained(one) + 4 * chosen


AGNI = pytest.mark.needs("noise_injection")
KEPT = [
    ([], 0),
    pytest.param(["--gradient", "agni"], 2, marks=AGNI),
    pytest.param(["--gradient", "agni", "--gradient.variance", "running"], 2, marks=AGNI),
    pytest.param(["--gradient", "agni", "--gradient.variance", "ema"], 0, marks=AGNI, id="ema of Adam"),
    pytest.param(
        ["--gradient", "agni", "--gradient.variance", "ema", "--optimizer", "sgd"],
        2,
        marks=AGNI,
        id="ema of its own",
    ),
    pytest.param(["--gradient", "annealed-noise"], 0, marks=AGNI),
    pytest.param(["--gradient", "agni-as-released"], 0, marks=AGNI),
    pytest.param(
        ["--gradient", "agni", "--monitor", "gradient-noise"], 2, marks=AGNI, id="read by a monitor"
    ),
]


@pytest.mark.parametrize(("line", "tensors"), KEPT)
def test_gradient_methods_keep_what_their_definition_says(line, tensors):
    """AGNI: a mean and squared deviations in float32; its moving averages are Adam's where it has some."""
    one, plain = config(*WIDE, *line), config(*WIDE, *(line[-2:] if "--optimizer" in line else []))
    found, without = predict(one), predict(plain)
    assert found.methods == pytest.approx(4 * tensors * trained(one), rel=0.03, abs=1000)
    assert found.peak - without.peak == pytest.approx(found.methods, abs=1000)


def as_measured(one):
    """Predicted, and as a CPU's allocator has it: what stays of two steps, and the peak of a later one."""
    steps = Steps(one)
    with LiveBytes():  # a mode, within which nothing is compiled
        kept = warm_up(steps)
        peak = measured_peak(steps.forward_backward) + kept + steps.state_bytes()["parameters"]
    predicted = predict(one)
    assert predicted.optimizer + predicted.methods == pytest.approx(kept, rel=0.02, abs=2000)
    work_space = 2**20  # of AGNI's kernel, which runs as written here
    assert predicted.peak == pytest.approx(peak, rel=0.02, abs=work_space)
    return predicted


@pytest.mark.parametrize("method", sorted(available("gradient")) or [None])
def test_every_gradient_method_is_predicted_as_the_allocator_measures(method):
    as_measured(config(*WIDE, *(["--gradient", method] if method else [])))


@dataclass(frozen=True)
class NoOptions:
    """No options."""


class Feedback:
    """A user's method: what half precision loses of a gradient is added to the next one."""

    name = "feedback"
    Options = NoOptions

    def __init__(self, options):
        self.lost = {}

    def attach(self, optimizer, accumulate):
        self.handle = optimizer.register_step_pre_hook(self.act)
        return self

    def act(self, optimizer, *_):
        for param in (param for group in optimizer.param_groups for param in group["params"]):
            whole = param.grad + self.lost.get(param, 0)
            self.lost[param] = (whole - whole.bfloat16()).bfloat16()

    def remove(self):
        self.handle.remove()


class ThatReads(Feedback):
    """It looks at a number, which parameters without values do not have."""

    def act(self, optimizer, *args):
        if float(optimizer.param_groups[0]["params"][0].grad.abs().max()) > 0:
            super().act(optimizer, *args)


class InRowsAndColumns(torch.optim.SGD):
    """An optimizer whose state has a shape of its own: a number for each row and each column."""

    def step(self, closure=None):
        for param in (param for group in self.param_groups for param in group["params"]):
            self.state[param]["axes"] = [torch.zeros(n, device=param.device) for n in param.shape]
        return super().step(closure)


class InRowsAndColumnsMethod(Feedback):
    """It builds that optimizer."""

    def build(self, model, groups):
        return InRowsAndColumns(groups, lr=0.0)


def with_user_s(monkeypatch, slot, method, *line):
    there = lambda kind, name: method if name == "mine" else find(kind, name)  # noqa: E731
    monkeypatch.setattr("glue_harness.run.methods.find", there)
    chosen = {"name": "mine"}
    return dataclasses.replace(config(*line), **{slot: [chosen] if slot == "gradient" else chosen})


@pytest.mark.parametrize("method", [Feedback, ThatReads])
def test_a_user_s_method_is_predicted_as_the_allocator_measures(method, monkeypatch):
    one = with_user_s(monkeypatch, "gradient", method, *WIDE)
    assert as_measured(one).methods == pytest.approx(2 * trained(one), rel=0.001)


def test_state_of_any_shape_is_counted(monkeypatch):
    one = with_user_s(monkeypatch, "optimizer", InRowsAndColumnsMethod)
    axes = sum(sum(p.shape) for p in Steps(one).model.parameters())
    assert predict(one).optimizer == 4 * axes


def test_state_is_rounded_up_on_cuda_as_by_its_allocator(monkeypatch):
    one = with_user_s(monkeypatch, "optimizer", InRowsAndColumnsMethod)
    axes = [n for p in Steps(one).model.parameters() for n in p.shape]
    assert predict(one, "cuda").optimizer == sum(-(-4 * n // 512) * 512 for n in axes)


@pytest.mark.needs("noise_injection")
def test_nothing_of_a_prediction_stays_in_the_noise_of_a_run():
    """What it keeps for later calls is apart for each device."""
    one = config("--gradient", "agni")
    predict(one)
    steps = Steps(one)
    steps.prepare_optimizer()
    with LiveBytes():
        steps.timed(1)
    assert all(parameter.isfinite().all() for parameter in steps.model.parameters())


def test_what_building_a_model_takes_is_in_no_step_s_peak(monkeypatch):
    class Lavish(Steps):
        def __init__(self, *args, **more):
            torch.empty(10**9)
            super().__init__(*args, **more)

    one = config()
    without = predict(one)
    monkeypatch.setattr("glue_harness.cost.footprint.Steps", Lavish)
    assert predict(one) == without


@pytest.mark.needs("noise_injection")
def test_a_step_that_a_method_refuses_is_refused(capsys):
    line = ["--model", "demo", "--gradient", "agni", "--accumulate", "1"]
    assert main(["capacity", *line, "--budget", "1GB", "--compare", "none"]) == 2
    [message] = capsys.readouterr().err.splitlines()
    assert "--accumulate 2" in message
    with pytest.raises(ConfigurationError, match="--accumulate 2"):
        predict(dataclasses.replace(config("--gradient", "agni"), accumulate=1))

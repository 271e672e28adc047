"""Entry points, options, monitor and figures."""

import json

import pytest
import torch

from finetune_common.errors import ConfigurationError
from finetune_common.slots import find
from noise_injection import AdaptiveGradientNoise, AnnealedGradientNoise, GradientNoiseMonitor
from noise_injection.plots import plot_effective_step_size, plot_time_per_batch


def optimizer(lr=0.5, size=4):
    return torch.optim.SGD([torch.nn.Parameter(torch.zeros(size))], lr=lr)


def test_one_micro_batch_is_refused_before_training_with_the_reason():
    method = find("gradient", "agni")
    with pytest.raises(ConfigurationError, match="--accumulate 1 gives agni one micro-batch"):
        method(method.Options()).attach(optimizer(), accumulate=1)
    for variance in ("running", "ema"):
        method(method.Options(variance=variance)).attach(optimizer(), accumulate=1)


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("agni", {"eta": -1.0}, "eta"),
        ("agni", {"variance": "emma"}, "did you mean 'ema'"),
        ("agni", {"seed": -3}, "seed"),
        ("annealed-noise", {"gamma": -1.0}, "gamma"),
        ("annealed-noise", {"eta": float("inf")}, "eta"),
    ],
)
def test_options_validate_themselves(name, settings, message):
    with pytest.raises(ConfigurationError, match=message):
        find("gradient", name).Options(**settings)


@pytest.mark.parametrize("name", ["agni", "annealed-noise"])
def test_without_a_seed_noise_follows_the_run(name):
    method = find("gradient", name)

    def keys(run_seed, **settings):
        torch.manual_seed(run_seed)
        return method(method.Options(**settings)).attach(optimizer(), accumulate=2).state_dict()["generator"]

    assert keys(1).equal(keys(1))
    assert not keys(1).equal(keys(2))
    assert keys(1, seed=7).equal(keys(2, seed=7))


def test_released_method_attaches():
    method = find("gradient", "agni-as-released")
    method(method.Options()).attach(optimizer(), accumulate=1).remove()


def test_monitor_records_ratio_and_step():
    opt = optimizer()
    param = opt.param_groups[0]["params"][0]
    noise = AnnealedGradientNoise(opt, 1.0)
    method = find("monitor", "gradient-noise")
    monitor = method(method.Options()).attach(None, opt)
    assert monitor.on_step(0) == {}
    param.grad = torch.full((4,), 3.0)
    opt.step()
    added = param.grad - 3.0
    values = monitor.on_step(1)
    assert values["noise_to_gradient"] == pytest.approx(float(added.norm()) / 6.0, rel=1e-5)
    assert values["effective_step_size"] == pytest.approx(0.5 * float(param.grad.norm()), rel=1e-6)
    assert monitor.on_step(2) == {}
    monitor.remove()
    opt.step()
    assert monitor.on_step(3) == {}
    assert noise.measured is False


def test_monitor_with_several_noises_and_with_none():
    opt = optimizer()
    param = opt.param_groups[0]["params"][0]
    noises = [AdaptiveGradientNoise(opt, 1.0, "running"), AnnealedGradientNoise(opt, 1.0)]
    monitor = GradientNoiseMonitor(opt)
    param.grad = torch.ones(4)
    opt.step()
    assert set(monitor.on_step(1)) == {"effective_step_size", "noise_to_gradient.0", "noise_to_gradient.1"}
    for noise in noises:
        noise.remove()
    plain = GradientNoiseMonitor(opt)
    param.grad = torch.ones(4)
    opt.step()
    assert plain.on_step(2) == {"effective_step_size": pytest.approx(1.0)}


def test_figures(tmp_path):
    lines = [{"step": t, "loss": 1.0, "effective_step_size": 1e-3 / t} for t in (1, 2, 3)]
    (tmp_path / "metrics.jsonl").write_text("\n".join(map(json.dumps, lines)))
    [curve] = plot_effective_step_size({"adamw": tmp_path}).lines
    assert curve.get_ydata().tolist() == [1e-3, 5e-4, pytest.approx(1e-3 / 3)]
    (tmp_path / "metrics.jsonl").write_text(json.dumps({"step": 1, "loss": 1.0}))
    with pytest.raises(ConfigurationError, match="--monitor gradient-noise"):
        plot_effective_step_size({"adamw": tmp_path})
    seconds = {
        "data": 9.0,
        "forward": 1.0,
        "backward": 2.0,
        "gradient": 1.0,
        "optimizer": 4.0,
        "evaluation": 9.0,
    }
    result = {"seconds": seconds, "steps": 2, "settings": {"accumulate": 4}}
    ax = plot_time_per_batch({"adamw": result})
    assert [bar.get_width() for bar in ax.patches] == [1.0]
    ax.figure.savefig(tmp_path / "time.png")

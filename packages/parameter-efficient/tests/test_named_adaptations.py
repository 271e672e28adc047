"""Several adaptations of one model: each gives what it gives alone, none the base model, sums add up."""

import copy

import pytest
import torch
from small_transformers import batch, classifier, disturb, logits
from test_adaptation_contracts import METHODS

from finetune_common.errors import ConfigurationError
from parameter_efficient import (
    BottleneckAdapter,
    LoRA,
    activate,
    adapt,
    combine,
    disabled,
    load_adaptation,
    merge,
    remove,
    save_adaptation,
)

ELSEWHERE = [("bitfit", "t5"), ("fusion", "t5"), ("prefix", "t5"), ("prefix", "deberta-v2"), ("ia3", "gpt2")]


@pytest.mark.parametrize(("method", "architecture"), [*((m, "bert") for m in METHODS), *ELSEWHERE])
def test_each_gives_what_it_gives_alone(method, architecture):
    config = METHODS[method].config
    alone = logits(disturb(adapt(classifier(architecture), config)))
    model = classifier(architecture)
    base, names, weights = logits(model), list(model.state_dict()), copy.deepcopy(model.state_dict())
    disturb(adapt(model, config, name="one"))
    assert torch.equal(logits(model), alone)
    disturb(adapt(model, LoRA(rank=1, init="random"), name="two"), std=0.2)
    other = logits(model)
    assert not torch.equal(other, alone)
    for _ in range(2):
        assert torch.equal(logits(activate(model, "one")), alone)
        assert torch.equal(logits(activate(model, "two")), other)
    activate(model, "one")
    with disabled(model):
        assert torch.equal(logits(model), base)
        assert list(model.state_dict()) == names
    assert torch.equal(logits(model), alone)
    remove(model, "two")
    assert torch.equal(logits(model), alone)
    remove(model)
    assert all(torch.equal(weights[name], value) for name, value in model.state_dict().items())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_only_the_active_one_trains_and_each_is_saved_by_name(tmp_path):
    model = adapt(adapt(classifier("bert"), LoRA(), name="a"), BottleneckAdapter(), name="b")
    model(**batch(), labels=torch.tensor([0, 1, 0])).loss.backward()
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)
    assert not any("lora" in n for n, _ in model.named_parameters())
    disturb(model)
    expected = logits(model)
    save_adaptation(model, tmp_path / "a", name="a")
    save_adaptation(model, tmp_path / "b", name="b")
    assert torch.equal(logits(model), expected)
    again = load_adaptation(load_adaptation(classifier("bert"), tmp_path / "b"), tmp_path / "a", name="a")
    assert any("lora" in n for n, _ in again.named_parameters())
    assert torch.equal(logits(activate(again, "default")), expected)


@pytest.mark.parametrize("config", [LoRA(rank=2), LoRA(rank=2, alpha=3.0, rslora=True)])
def test_a_weighted_sum_is_the_sum_of_the_updates(config, tmp_path):
    """W + 0.7 ΔW_a - 0.2 ΔW_b in every matrix, and the head likewise, against merged weights."""
    merged = {}
    for name, std in (("a", 0.1), ("b", 0.2)):
        merged[name] = merge(disturb(adapt(classifier("bert"), config), std)).state_dict()
    expected = classifier("bert")
    base = classifier("bert").state_dict()
    expected.load_state_dict(
        {n: v + 0.7 * (merged["a"][n] - v) - 0.2 * (merged["b"][n] - v) for n, v in base.items()}
    )
    model = disturb(adapt(classifier("bert"), config, name="a"), 0.1)
    disturb(adapt(model, config, name="b"), 0.2)
    combine(model, {"a": 0.7, "b": -0.2}, "sum")
    torch.testing.assert_close(logits(model), logits(expected), atol=1e-5, rtol=1e-5)
    save_adaptation(model, tmp_path)
    assert torch.equal(logits(load_adaptation(classifier("bert"), tmp_path)), logits(model))
    torch.testing.assert_close(logits(merge(model)), logits(expected), atol=1e-5, rtol=1e-5)


def test_parts_that_wait_take_over_what_the_model_becomes_meanwhile():
    model = disturb(adapt(adapt(classifier("bert"), LoRA(), name="a"), BottleneckAdapter(), name="b"))
    activate(model.double().train(), "a")
    assert all(module.training for module in model.modules())
    assert {p.dtype for p in model.parameters()} == {torch.float64}


def test_refusals_leave_the_model_with_what_it_had():
    model = disturb(adapt(classifier("bert"), LoRA(), name="a"))
    before = logits(model)
    with pytest.raises(ConfigurationError, match="adapted already as 'a'"):
        adapt(model, LoRA(), name="a")
    with pytest.raises(ConfigurationError, match="has 2 layers"):
        adapt(model, LoRA(layers=[7]), name="b")
    with pytest.raises(ConfigurationError, match=r"no adaptation 'b': choose from 'a'"):
        activate(model, "b")
    with pytest.raises(ConfigurationError, match="cannot be part of a sum"):
        combine(adapt(model, BottleneckAdapter(), name="c"), {"a": 1.0, "c": 1.0}, "sum")
    remove(model, "c")
    with pytest.raises(ConfigurationError, match=r"no adaptation of this model is active.*'a'"):
        merge(model)
    assert torch.equal(logits(activate(model, "a")), before)

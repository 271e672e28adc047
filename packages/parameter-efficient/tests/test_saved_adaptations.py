"""Files of an adaptation: what is in them, and what is refused."""

import json

import pytest
import torch
from safetensors.torch import load_file
from small_transformers import classifier, disturb, logits

from finetune_common.errors import ConfigurationError
from parameter_efficient import BottleneckAdapter, Fusion, LoRA, adapt, load_adaptation, save_adaptation


@pytest.fixture
def saved(tmp_path):
    model = disturb(
        adapt(classifier("bert"), Fusion(adapter=BottleneckAdapter(layers=[1]), lora=LoRA(rank=2)))
    )
    save_adaptation(model, tmp_path / "kept")
    return tmp_path / "kept"


def test_only_what_trains_is_in_the_file_head_included(saved):
    names = set(load_file(saved / "adaptation.safetensors"))
    assert {"classifier.weight", "bert.pooler.dense.weight"} <= names
    assert all("adapter" in n or "lora" in n or n.startswith(("classifier", "bert.pooler")) for n in names)
    described = json.loads((saved / "adaptation.json").read_text())
    assert described["method"] == "fusion"
    assert described["config"]["lora"]["rank"] == 2


@pytest.mark.parametrize("part", ["", "classifier"])
def test_an_adaptation_that_is_frozen_is_refused_and_nothing_is_written(part, tmp_path):
    model = adapt(classifier("bert"), LoRA())
    model.get_submodule(part).requires_grad_(False)
    with pytest.raises(ConfigurationError, match=r"of the 12 tensors.*requires_grad=False.*save before"):
        save_adaptation(model, tmp_path / "kept")
    assert not (tmp_path / "kept").exists()


def test_loading_onto_a_base_that_moved_meanwhile_fails_in_no_silent_way(saved):
    with pytest.raises(ConfigurationError, match="adapted already"):
        load_adaptation(adapt(classifier("bert"), LoRA()), saved)


def test_an_adaptation_of_another_model_is_refused_and_the_model_left_alone(saved):
    for model in (classifier("roberta"), classifier("bert", num_hidden_layers=1)):
        base = logits(model)
        with pytest.raises(ConfigurationError, match=r"of other names or shapes|has 1 layers"):
            load_adaptation(model, saved)
        assert torch.equal(logits(model), base)


def test_a_missing_or_damaged_file_is_named(saved, tmp_path):
    with pytest.raises(ConfigurationError, match=r"has no adaptation\.json"):
        load_adaptation(classifier("bert"), tmp_path / "elsewhere")
    weights = saved / "adaptation.safetensors"
    weights.write_bytes(weights.read_bytes()[:100])
    with pytest.raises(ConfigurationError, match="damaged"):
        load_adaptation(classifier("bert"), saved)
    (saved / "adaptation.json").write_text("{")
    with pytest.raises(ConfigurationError, match="damaged"):
        load_adaptation(classifier("bert"), saved)

"""The slot: names, options from plain data, refusals."""

import dataclasses

import pytest
import torch
from small_transformers import classifier

from finetune_common.errors import ConfigurationError
from finetune_common.slots import HOLDERS, find
from parameter_efficient import LoRA, QLoRA, slots, trainable_parameters
from parameter_efficient.slots import QLoRAMethod

NAMES = HOLDERS["adaptation"]["parameter-efficient"].split()


@pytest.mark.parametrize("name", NAMES)
def test_options_survive_the_way_through_plain_data(name):
    """A run's file holds lists and mappings; the options made from them are the same."""
    options = find("adaptation", name).Options
    made = options(lora=LoRA(layers=[1])) if name == "fusion" else options()
    plain = dataclasses.asdict(made)
    as_lists = {key: list(value) if isinstance(value, tuple) else value for key, value in plain.items()}
    assert options(**as_lists) == made


@pytest.mark.parametrize("name", [name for name in NAMES if name != "qlora"])
def test_every_method_adapts_a_model(name):
    method = find("adaptation", name)
    options = method.Options(lora=LoRA()) if name == "fusion" else method.Options()
    adaptation = method(options)
    assert adaptation.load_kwargs() == {}
    counted = trainable_parameters(adaptation.apply(classifier("bert")))
    assert 0 < counted.trainable < counted.total


@pytest.mark.parametrize(
    ("installed", "message"),
    [
        (None, "needs bitsandbytes, which is not installed"),
        ("0.48.2", "needs bitsandbytes 0.49 or newer, not 0.48.2"),
    ],
)
def test_qlora_says_what_is_missing(installed, message, monkeypatch):
    monkeypatch.setattr(slots, "find_spec", lambda name: installed)
    monkeypatch.setattr(slots, "version", lambda name: installed)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ConfigurationError, match=f"{message}.*lora"):
        QLoRAMethod(QLoRA()).load_kwargs()

"""Whatever options an optimizer is given: they are refused at configuration in one line, or they train."""

import itertools
from collections.abc import Iterator
from dataclasses import fields
from typing import Any, get_args, get_type_hints

import pytest
import torch
import transformers

from finetune_common.errors import ConfigurationError
from finetune_common.slots import HOLDERS, find

OPTIMIZERS = sorted(name for held in HOLDERS["optimizer"].values() for name in held.split())

INF, NAN = float("inf"), float("nan")
NUMBERS = (-INF, -1.0, -1e-300, -0.0, 0.0, 1e-300, 0.5, 1.0, 1.0 + 1e-9, 2.0, 1e300, INF, NAN)
WORDS = ("", "[", "none", "global", "no such word")


def extremes(hint: Any, default: Any) -> list[Any]:
    """Return the values at the ends of what a field's type can hold, and beyond."""
    if isinstance(default, tuple):
        places = range(len(default))
        return [(*default[:n], number, *default[n + 1 :]) for n in places for number in NUMBERS]
    by_type = {bool: (False, True), float: NUMBERS, str: WORDS, type(None): (None,)}
    return [value for own in get_args(hint) or [hint] for value in by_type[own]]


def settings(options: type) -> Iterator[dict[str, Any]]:
    """Yield each field at each of its extremes, alone, and beside each other field at 0, 1 or switched."""
    hints = get_type_hints(options)
    ends = {field.name: extremes(hints[field.name], field.default) for field in fields(options)}
    others = [{name: end} for name, own in ends.items() for end in own if end in (0.0, 1.0)]
    for name, own in ends.items():
        for value, other in itertools.product(own, [{}, *others]):
            yield {**other, name: value}


@pytest.fixture(scope="module")
def model() -> torch.nn.Module:
    config = transformers.BertConfig(
        vocab_size=8,
        hidden_size=4,
        num_hidden_layers=1,
        num_attention_heads=1,
        intermediate_size=4,
        max_position_embeddings=8,
    )
    return transformers.BertForSequenceClassification(config)


def build(name: str, model: torch.nn.Module, options: Any) -> torch.optim.Optimizer:
    try:
        return find("optimizer", name)(options).build(model, [{"params": list(model.named_parameters())}])
    except ConfigurationError as error:
        if "is not installed" in str(error):
            pytest.skip(str(error))
        raise


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_options_are_refused_at_configuration_or_build(name: str, model: torch.nn.Module) -> None:
    options, accepted = find("optimizer", name).Options, 0
    refused: list[str] = []
    late: dict[str, Exception] = {}
    for given in settings(options):
        try:
            chosen = options(**given)
        except ConfigurationError as error:
            refused.append(str(error))
            continue
        try:
            build(name, model, chosen)
            accepted += 1
        except Exception as error:  # whatever it is, it comes too late
            if "no trainable parameter matches" not in str(error):  # which there are is the model's
                late[str(given)] = error
    assert not late
    assert accepted
    assert refused
    assert not any("\n" in said for said in refused)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_what_is_accepted_makes_a_step(name: str, model: torch.nn.Module) -> None:
    options = find("optimizer", name).Options
    for field in fields(options):
        for number in NUMBERS if isinstance(field.default, float) else ():
            try:
                chosen = options(**{field.name: number})
            except ConfigurationError:
                continue
            optimizer = build(name, model, chosen)
            model(input_ids=torch.tensor([[1, 2, 3]]), labels=torch.tensor([1])).loss.backward()
            optimizer.step()
            optimizer.zero_grad()

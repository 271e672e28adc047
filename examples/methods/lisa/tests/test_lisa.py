"""LISA against algorithm 1 of its paper, and its limit case: all layers at a time are full fine-tuning."""

import copy
import io
import math
from typing import Any

import pytest
import torch
from torch import nn

from example_lisa.layers import find_layers
from example_lisa.slots import LISAMethod, LISAOptions
from finetune_common.errors import ConfigurationError

LAYERS = 6


class Stack(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embeddings, self.head = nn.Embedding(7, 4), nn.Linear(4, 2)
        self.layers = nn.ModuleList(nn.Linear(4, 4) for _ in range(LAYERS))

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        hidden = self.embeddings(tokens)
        for layer in self.layers:
            hidden = layer(hidden).tanh()
        return self.head(hidden)


def lisa(model: nn.Module, **options: Any) -> LISAMethod:
    method = LISAMethod(LISAOptions(**options))
    assert method.apply(model) is model
    return method


def training(model: Stack) -> set[int]:
    found = [{p.requires_grad for p in layer.parameters()} for layer in model.layers]
    assert all(len(states) == 1 for states in found)
    return {number for number, states in enumerate(found) if states == {True}}


def train(model: Stack, steps: range, method: LISAMethod | None = None) -> list[dict[str, torch.Tensor]]:
    """Train with momentum and weight decay; return what each step changed."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01, weight_decay=0.1)
    changes = []
    for step in steps:
        before = copy.deepcopy(model.state_dict())
        if method is not None:
            method.before_forward(step)
        model(torch.arange(7)).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()
        changes.append({name: new - before[name] for name, new in model.state_dict().items()})
    return changes


def test_the_optimizer_is_given_every_parameter() -> None:
    model = Stack()
    lisa(model)
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_as_many_layers_as_asked_train_for_as_many_steps_as_asked() -> None:
    model = Stack()
    method = lisa(model, layers=2, every=3)
    drawn = []
    for step in range(1, 13):
        method.before_forward(step)
        drawn.append(training(model))
        outside = [*model.embeddings.parameters(), *model.head.parameters()]
        assert all(parameter.requires_grad for parameter in outside)
    assert all(len(layers) == 2 for layers in drawn)
    assert all(drawn[i] == drawn[i + 1] == drawn[i + 2] for i in range(0, 12, 3))
    assert len(set(map(tuple, drawn))) > 1


def test_each_layer_is_drawn_with_the_probability_of_the_paper() -> None:
    """γ/N = 1/3 in 3,000 draws: within 4.5 standard errors, which chance breaks once in 25,000 tries."""
    model, draws = Stack(), 3_000
    method = lisa(model, layers=2, every=1)
    counts = [0] * LAYERS
    for step in range(1, draws + 1):
        method.before_forward(step)
        for layer in training(model):
            counts[layer] += 1
    error = math.sqrt(1 / 3 * 2 / 3 / draws)
    assert all(abs(count / draws - 1 / 3) < 4.5 * error for count in counts)


def test_a_frozen_layer_is_moved_by_neither_momentum_nor_decay() -> None:
    """Over many draws of one optimizer: what it remembers of a layer waits until the layer trains again."""
    model = Stack()
    method = lisa(model, layers=1, every=1)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01, weight_decay=0.1)
    for step in range(1, 20):
        before = copy.deepcopy(model.layers.state_dict())
        method.before_forward(step)
        model(torch.arange(7)).square().sum().backward()
        optimizer.step()  # gradients are not dropped: freezing does it
        moved = {
            int(name.split(".")[0])
            for name, new in model.layers.state_dict().items()
            if (new != before[name]).any()
        }
        assert moved == training(model)


def test_all_layers_at_a_time_are_full_fine_tuning() -> None:
    ours, full = Stack(), Stack()
    changes = train(ours, range(1, 8), lisa(ours, layers=LAYERS, every=2)), train(full, range(1, 8))
    for one, other in zip(*changes, strict=True):
        assert all(torch.equal(one[name], other[name]) for name in one)


def test_draws_come_from_a_stream_of_their_own() -> None:
    before = torch.get_rng_state()
    draws = []
    for seed in (1, 1, 2):
        model = Stack()
        torch.set_rng_state(before)
        method = lisa(model, layers=3, every=1, seed=seed)
        draws.append([])
        for step in range(1, 9):
            method.before_forward(step)
            draws[-1].append(training(model))
        assert torch.equal(torch.get_rng_state(), before)
    assert draws[0] == draws[1] != draws[2]


def test_a_saved_state_goes_on_between_two_draws() -> None:
    model, other = Stack(), Stack()
    method = lisa(model, layers=2, every=3)
    for step in range(1, 6):
        method.before_forward(step)
    file = io.BytesIO()
    torch.save(method.state_dict(), file)
    file.seek(0)
    resumed = lisa(other, layers=2, every=3)
    resumed.load_state_dict(torch.load(file, weights_only=True))
    assert training(other) == training(model)
    for step in range(6, 20):
        method.before_forward(step)
        resumed.before_forward(step)
        assert training(other) == training(model)


def test_removed_every_layer_trains() -> None:
    model = Stack()
    method = lisa(model)
    method.before_forward(1)
    method.remove()
    assert training(model) == set(range(LAYERS))


def test_more_layers_than_there_are_is_refused() -> None:
    with pytest.raises(ConfigurationError, match=r"layers=7: this model has 6: give at most as many"):
        lisa(Stack(), layers=7)
    with pytest.raises(ConfigurationError, match=r"layers=0 is out of range"):
        LISAOptions(layers=0)
    with pytest.raises(ConfigurationError, match=r"every=0 is out of range"):
        LISAOptions(every=0)


@pytest.mark.parametrize(
    ("kind", "sizes", "layers"),
    [
        (
            "bert",
            {"hidden_size": 8, "num_attention_heads": 2, "intermediate_size": 8, "num_hidden_layers": 3},
            3,
        ),
        ("distilbert", {"dim": 8, "n_heads": 2, "hidden_dim": 8, "n_layers": 3}, 3),
        ("gpt2", {"n_embd": 8, "n_head": 2, "n_layer": 3}, 3),
        (
            "t5",
            {"d_model": 8, "d_kv": 4, "num_heads": 2, "d_ff": 8, "num_layers": 2, "num_decoder_layers": 3},
            5,
        ),
    ],
)
def test_layers_of_an_architecture_are_found(kind: str, sizes: dict[str, int], layers: int) -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.AutoConfig.for_model(kind, vocab_size=20, **sizes)
    model = transformers.AutoModelForSequenceClassification.from_config(config)
    assert len(find_layers(model)) == layers

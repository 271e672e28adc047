"""Which parameters `clip="layer"` clips together: the layers of the model, whatever it is wrapped in."""

import pytest
import torch
from torch import nn

from clipped_adaptive import layer_groups
from finetune_common.slots import find


class Block(nn.Module):
    """A layer with numbered modules of its own; the first has a bias by distance, as in T5."""

    def __init__(self, first=False, experts=1):
        super().__init__()
        self.attention = nn.Linear(4, 4)
        self.mlp = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 4))
        self.experts = nn.ModuleList([nn.Linear(4, 4) for _ in range(experts)])
        self.norm = nn.LayerNorm(4)
        if first:
            self.distances = nn.Embedding(3, 2)


class Encoder(nn.Module):
    def __init__(self, layers=3, **settings):
        super().__init__()
        self.embeddings = nn.Embedding(9, 4)
        self.layer = nn.ModuleList([Block(first=i == 0, **settings) for i in range(layers)])
        self.norm = nn.LayerNorm(4)


class Stages(nn.Module):
    """Stages of different depth, as in Swin and ResNet."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Linear(4, 4)
        self.stages = nn.ModuleList(
            [nn.ModuleDict({"blocks": nn.ModuleList([Block() for _ in range(n)])}) for n in (1, 2, 9)]
        )


class Named(nn.Module):
    def __init__(self, **modules):
        super().__init__()
        for name, module in modules.items():
            self.add_module(name, module)


WRAPPERS = {
    "alone": lambda model: model,
    "in a sequence": lambda model: nn.Sequential(model),
    "sentence-transformers": lambda model: nn.Sequential(
        Named(auto_model=model), Named(linear=nn.Linear(4, 2))
    ),
    "in a task": lambda model: Named(
        model=nn.Sequential(Named(auto_model=model), nn.Identity(), nn.Linear(4, 2)), loss=nn.Linear(4, 2)
    ),
    "beside a neck with a norm": lambda model: Named(net=nn.Sequential(model, Named(norm=nn.LayerNorm(4)))),
    "in a list of one": lambda model: Named(towers=nn.ModuleList([model]), head=nn.Linear(4, 2)),
}


def units(model, of):
    """The parameters of each unit, those of one part of the model only."""
    names = {id(param): name for name, param in of.named_parameters()}
    found = {}
    for group in layer_groups(model):
        for _, param in group["params"]:
            if id(param) in names:
                found.setdefault(group["layer"], set()).add(names[id(param)])
    return sorted(map(sorted, found.values()))


def numbered(model, list_name):
    """One unit for each entry of a list, and one for each module elsewhere that holds parameters."""
    found = {}
    for name, _ in model.named_parameters():
        parts = name.split(".")
        key = (list_name, parts[1]) if parts[0] == list_name else parts[0]
        found.setdefault(key, set()).add(name)
    return sorted(map(sorted, found.values()))


@pytest.mark.parametrize("wrapper", WRAPPERS)
@pytest.mark.parametrize(
    ("build", "list_name"),
    [(Encoder, "layer"), (lambda: Encoder(2, experts=5), "layer"), (Stages, "stages")],
    ids=["encoder", "experts", "stages"],
)
def test_the_units_are_the_models_layers_whatever_it_is_wrapped_in(wrapper, build, list_name):
    model = build()
    assert units(WRAPPERS[wrapper](model), model) == numbered(model, list_name)


def test_one_layer_is_one_unit_and_so_is_one_that_trains_alone():
    model = nn.ModuleDict({"layer": nn.ModuleList([nn.TransformerEncoderLayer(4, 2, 8)])})
    for wrapper in (WRAPPERS["alone"], WRAPPERS["in a task"]):
        assert len(units(wrapper(model), model)) == 1
    model = Encoder()
    wrapped = WRAPPERS["in a task"](model).requires_grad_(False)
    model.layer[1].requires_grad_(True)
    assert len(units(wrapped, model)) == 1


def test_the_slot_finds_the_layers_of_a_wrapped_model_also_if_few_parameters_train():
    model = Encoder()
    wrapped = WRAPPERS["in a task"](model).requires_grad_(False)
    model.layer[1].requires_grad_(True)
    model.embeddings.requires_grad_(True)
    trainable = [pair for pair in wrapped.named_parameters() if pair[1].requires_grad]
    method = find("optimizer", "clipped-sgd")
    optimizer = method(method.Options(lr=1.0, clip="layer")).build(wrapped, [{"params": trainable}])
    assert sorted(len(group["params"]) for group in optimizer.param_groups) == [
        1,
        len([*model.layer[1].parameters()]),
    ]
    for _, param in trainable:
        param.grad = torch.ones_like(param)
    optimizer.step()
    size = sum(param.numel() for param in model.layer[1].parameters())
    moved = model.layer[1].norm.bias.detach()
    torch.testing.assert_close(moved, torch.full((4,), -(size**-0.5)))

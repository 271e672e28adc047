"""Where SAGE finds layers and their matrices in models of any make."""

import pytest
from torch import nn
from torch.nn.utils import parametrizations

from sensitivity_lr import sage_names


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.map, self.norm = nn.Linear(4, 4), nn.LayerNorm(4)


class Maps(nn.Module):
    """A linear map whose matrix has a name of its own."""

    def __init__(self, name="kernel"):
        super().__init__()
        self.register_parameter(name, nn.Parameter(nn.Linear(4, 4).weight.detach()))
        self.offset = nn.Parameter(nn.Linear(4, 4).bias.detach())


class Attention(nn.Module):
    """Maps, and beside them a matrix that multiplies nothing."""

    def __init__(self):
        super().__init__()
        self.query = nn.Linear(4, 4)
        self.distances = nn.Parameter(nn.Linear(4, 4).weight.detach())


def repeated():
    return [Block() for _ in range(3)]


def maps_of_blocks(prefix, numbers):
    return [f"{prefix}{i}.map.{part}" for i in numbers for part in ("weight", "bias")]


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        (nn.Sequential(nn.Embedding(9, 4), nn.Sequential(*repeated()), nn.Linear(4, 2)), ("1.", range(3))),
        (nn.Sequential(nn.Embedding(9, 4), *repeated(), nn.Linear(4, 2)), ("", range(1, 4))),
        (nn.ModuleDict({"body": nn.ModuleDict({str(i): Block() for i in (4, 7)})}), ("body.", (4, 7))),
        (nn.ModuleDict({"body": nn.ModuleList([Block()]), "head": nn.Linear(4, 2)}), ("body.", range(1))),
    ],
    ids=["nested", "flat", "dict", "one in a list"],
)
def test_layers_are_numbered_blocks_in_any_container_and_the_head_is_none(model, expected):
    assert sage_names(model) == maps_of_blocks(*expected)


def test_linear_maps_in_a_row_are_no_blocks():
    layers = nn.ModuleList([Block()])
    rows = nn.Sequential(nn.Sequential(nn.Linear(4, 4), nn.ReLU()), nn.Sequential(nn.Linear(4, 4), nn.ReLU()))
    head = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 2))
    model = nn.ModuleDict({"layers": layers, "rows": rows, "head": head})
    assert sage_names(model) == maps_of_blocks("layers.", range(1))


def in_a_layer(**modules):
    return nn.ModuleList([nn.ModuleDict({"map": nn.Linear(4, 4), **modules})])


def names_beside_the_map(model):
    return [name.removeprefix("0.") for name in sage_names(model) if not name.startswith("0.map.")]


@pytest.mark.parametrize(
    ("module", "expected"),
    [
        (Maps(), ["kernel", "offset"]),
        (Maps("proj"), ["proj", "offset"]),
        (Maps("relative_position_bias_table"), []),
        (Attention(), ["query.weight", "query.bias"]),
        (nn.Embedding(9, 4), []),
        (nn.Conv1d(4, 4, 3), []),
        (nn.LSTM(3, 4), ["weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0"]),
    ],
    ids=["kernel", "proj", "bias", "beside maps", "table", "convolution", "lstm"],
)
def test_a_matrix_counts_whatever_its_name(module, expected):
    assert names_beside_the_map(in_a_layer(other=module)) == [f"other.{name}" for name in expected]


WEIGHT = "parametrizations.weight."


@pytest.mark.parametrize(
    ("module", "expected"),
    [
        (parametrizations.weight_norm(nn.Linear(4, 4)), ["bias", f"{WEIGHT}original0", f"{WEIGHT}original1"]),
        (parametrizations.orthogonal(nn.Linear(4, 4)), ["bias", f"{WEIGHT}original"]),
        (parametrizations.spectral_norm(nn.Linear(4, 4)), ["bias", f"{WEIGHT}original"]),
        (parametrizations.orthogonal(Maps(), "kernel"), ["offset", "parametrizations.kernel.original"]),
        (parametrizations.weight_norm(nn.Conv1d(4, 4, 3)), []),
        (parametrizations.spectral_norm(nn.Embedding(9, 4)), []),
    ],
    ids=["weight norm", "orthogonal", "spectral norm", "kernel", "convolution", "table"],
)
def test_what_a_parametrization_makes_a_matrix_from_counts_as_the_matrix(module, expected):
    assert names_beside_the_map(in_a_layer(other=module)) == [f"other.{name}" for name in expected]


def test_a_parametrization_outside_the_layers_is_not_taken():
    head = parametrizations.orthogonal(nn.Linear(4, 4))
    model = nn.ModuleDict({"layers": nn.ModuleList([Block()]), "head": head})
    assert sage_names(model) == maps_of_blocks("layers.", range(1))

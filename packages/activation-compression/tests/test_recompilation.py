"""Kernels of columns are compiled for all lengths at once: ten shapes make no more graphs than the first.

Torch counts the graphs that reach a backend. All but one test replace inductor by a backend that runs the
graph: guards come from tracing it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.backends import registry
from torch._dynamo.utils import counters

from activation_compression import ActivationCompressor, kernels
from activation_compression.compiled.operators import OPERATIONS, STATES, State
from activation_compression.grouping import Columns
from activation_compression.keys import keys_of
from activation_compression.quantizer import Codes

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")

SHAPES = [(40 - number, 128 - 10 * number) for number in range(10)]
"""Rows of a batch and tokens of a row; the first two have groups of different numbers of rows."""
GROUPS = 256


def graphs() -> int:
    """Return how many graphs torch has compiled."""
    return counters["stats"]["unique_graphs"]


def made() -> int:
    """Return how many kernels of columns there are: of each width, dtype and kind of small block."""
    return sum(of.cache_info().currsize for of in (kernels._encode_columns, kernels._decode_columns))


@pytest.fixture
def anew(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Kernels that are forgotten afterwards; all groups but a last one with fewer rows are compiled."""

    def forget() -> None:
        kernels._encode_columns.cache_clear()
        kernels._decode_columns.cache_clear()
        torch._dynamo.reset()

    monkeypatch.setattr(kernels, "COMPILE_FROM", 2**14)
    forget()
    yield
    forget()


@pytest.fixture
def quick(anew: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """A graph is compiled to itself."""
    original = registry.lookup_backend

    def lookup(name: object) -> Callable[..., object]:
        return (lambda graph, *_, **__: graph.forward) if name == "inductor" else original(name)

    monkeypatch.setattr(registry, "lookup_backend", lookup)


def keys() -> Tensor:
    return keys_of(0, 0, 1, torch.device("cpu"))[0]


def own(x: Tensor, bits: int, columns: int) -> Tensor:
    """A tensor of its own."""
    return Codes.pack(x.view(-1), bits, Columns(GROUPS, columns), keys()).unpack()


def part(x: Tensor, bits: int, columns: int) -> Tensor:
    """A part of a larger tensor, which begins anywhere."""
    start = x.numel() % 7 + 1
    return own(torch.cat([x.new_empty(start), x.view(-1)])[start:], bits, columns)


def fetched(x: Tensor, bits: int, columns: int) -> Tensor:
    """Codes, minima and steps in one buffer, as they come from host memory."""
    packed = Codes.pack(x.view(-1), bits, Columns(GROUPS, columns), keys())
    parts = [tensor.view(torch.uint8) for tensor in packed.tensors]
    buffer = torch.cat(parts).split([len(piece) for piece in parts])
    views = [piece.view(tensor.dtype) for piece, tensor in zip(buffer, packed.tensors, strict=True)]
    return packed.with_tensors(views).unpack()


def in_a_graph(x: Tensor, bits: int, columns: int) -> Tensor:
    """The operations of compiled models, on a tensor whose last two axes were exchanged."""
    STATES["test"] = State(0, {})
    settings = bits, "columns", GROUPS, columns
    encoded = OPERATIONS.encode(x.transpose(0, 1), [1, 0, 2], *settings, "test", "linear:linear:0")
    return OPERATIONS.decode(*encoded, *settings, list(x.shape), x.dtype)


def without_gradients(x: Tensor, bits: int, columns: int) -> Tensor:
    """Packed within a pass that records gradients, unpacked in one that does not; next time reversed."""
    packed = Codes.pack(x.view(-1), bits, Columns(GROUPS, columns), keys())
    with torch.no_grad():
        found = packed.unpack()
        own(x, bits, columns)
    packed.unpack()
    return found


def under_autocast(x: Tensor, bits: int, columns: int) -> Tensor:
    with torch.autocast("cpu", torch.bfloat16):
        return own(x, bits, columns)


WAYS = (own, part, fetched, in_a_graph, without_gradients, under_autocast)


def check(ways: Sequence[Callable[[Tensor, int, int], Tensor]], bits: int, columns: int, shapes: int) -> None:
    """Run ways on all shapes: only the first few are compiled for, and each returns nearly what it got."""
    early, late = 0, []
    for number, (rows, length) in enumerate(SHAPES):
        x = torch.rand(rows, length, columns)
        for way in ways:
            before = graphs()
            found = way(x, bits, columns)
            assert float((found.view(x.shape) - x).abs().max()) < 1.05 / (2**bits - 1) + 0.01
            if number < shapes:
                early += graphs() - before
            elif graphs() > before:
                late.append((way.__name__, rows, length))
    assert early >= 2, "one graph packs and one unpacks"
    assert not late


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize(("form", "shapes"), [("cpu", 1), ("gpu", 2)])
def test_the_first_shapes_compile_for_all_ways_and_ten_shapes(
    form: str, shapes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a CPU the first, on a GPU two: it has a constant number of rows at first."""
    monkeypatch.setattr(kernels, "on_gpu", lambda _: form == "gpu")
    check(WAYS, 4, 16, shapes)


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("bits", [1, 2, 8])
def test_the_first_shape_compiles_for_every_width(bits: int) -> None:
    check((own,), bits, 16, 1)


@pytest.mark.usefixtures("quick")
def test_last_groups_share_kernels_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """They have any number of words; one and two are kinds of their own."""
    monkeypatch.setattr(kernels, "COMPILE_FROM", 1)
    start = graphs()
    for rows, length in SHAPES:
        own(torch.rand(rows, length, 16), 4, 16)
    assert graphs() - start == made() <= 2 * 4


@pytest.mark.usefixtures("quick")
def test_layers_of_all_widths_share_kernels_of_a_dtype() -> None:
    """What a model saves in a pass, all together; torch makes a function anew eight times at most."""
    start, dtypes = graphs(), (torch.float32, torch.bfloat16, torch.float16)
    for number, (rows, length) in enumerate(SHAPES):
        for columns in (48, 16, 15 + number):
            for dtype in dtypes:
                in_a_graph(torch.rand(rows, length, columns, dtype=dtype), 4, columns)
    assert graphs() - start == 2 * len(dtypes)


@pytest.mark.usefixtures("quick")
def test_a_model_that_sees_ten_shapes_compiles_kernels_for_two() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(24, 64), nn.GELU(), nn.LayerNorm(64), nn.Linear(64, 24), nn.ReLU())
    compressor, counts = ActivationCompressor(model, "L1"), []
    for rows, length in SHAPES:
        with compressor:
            loss = model(torch.randn(rows, length, 24)).square().mean()
        loss.backward()
        counts.append(graphs())
    assert made() >= 2
    assert counts[1:] == [counts[1]] * 9


@pytest.mark.slow
@pytest.mark.usefixtures("anew")
def test_the_compiler_itself_asks_for_no_more_graphs() -> None:
    """Inductor may want sizes that tracing leaves open."""
    check((own,), 4, 40, 1)

"""Decoding that is part of a graph, against the quantiser's own."""

import pytest
import torch
from graphs import compiled
from torch import fx, nn
from torch._subclasses import FakeTensorMode

from activation_compression import compile_options
from activation_compression.compiled.written_out import decoding, write_out
from activation_compression.grouping import Columns
from activation_compression.keys import keys_of
from activation_compression.quantizer import Codes
from activation_compression.rules import WORDS


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_the_graph_gives_the_bits_that_the_quantiser_gives(bits, dtype):
    rows, columns, sizes = 512, 24, [4, 128, 24]
    grouping = Columns(256, columns)
    block = torch.randn(rows * columns).to(dtype)
    codes = Codes.pack(block, bits, grouping, keys_of(3, 0, 1, block.device)[0])
    given = codes.codes.view(WORDS[bits]), codes.low, codes.step
    decode = decoding(given[0], bits, grouping, sizes, dtype)
    graph, mode = fx.Graph(), FakeTensorMode()
    nodes = [graph.placeholder(name) for name in ("codes", "low", "step")]
    for node, tensor in zip(nodes, given, strict=True):
        node.meta["val"] = mode.from_tensor(tensor)
    graph.output(write_out(graph, decode, *nodes))
    found = fx.GraphModule(nn.Module(), graph)(*given)
    assert found.dtype == dtype
    assert found.equal(codes.unpack().view(sizes))


@pytest.mark.parametrize("rows", [300, 520, 1000])
def test_groups_that_differ_are_decoded_by_an_operation(rows):
    codes = torch.empty(0, dtype=torch.int32)
    assert decoding(codes, 4, Columns(256, 24), [rows, 24], torch.float32) is None


def operations(level, length):
    """The operations of the backward graph of a gated network, after packing, with its gradients."""
    torch.manual_seed(0)
    model = nn.ModuleList([nn.Linear(64, 96), nn.Linear(64, 96), nn.Linear(96, 64)])
    x, probe = torch.randn(2, length, 64, requires_grad=True), torch.randn(2, length, 64)

    def gated(x):
        return (model[2](nn.functional.silu(model[0](x)) * model[1](x)) * probe).sum()

    options = compile_options(level)
    partitioner, names = options["custom_partitioner_fn"], []

    def partition(*args, **kwargs):
        forward, backward = partitioner(*args, **kwargs)
        names.extend(str(node.target) for node in backward.graph.nodes if node.op == "call_function")
        return forward, backward

    options["custom_partitioner_fn"] = partition
    compiled(gated, options)(x).backward()
    return names, [p.grad for p in (x, *model.parameters())]


def test_what_only_products_and_functions_read_is_never_in_memory_decoded():
    names, _ = operations("L1", 256)
    assert not any("activation_compression.decode" in name for name in names)
    names, _ = operations("L1", 300)
    assert any("activation_compression.decode" in name for name in names)


@pytest.mark.parametrize("length", [256, 300])
def test_at_eight_bits_the_gradient_is_nearly_exact(length):
    _, exact = operations("lossless", length)
    _, near = operations("L1.1", length)
    for found, expected in zip(near, exact, strict=True):
        assert (found - expected).norm() < 0.02 * expected.norm()

"""Content in host memory: what is copied, when, in which order. On the CPU, where copies have no stream."""

from collections import deque

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from activation_compression import ActivationCompressor, offload
from activation_compression.keys import keys_of
from activation_compression.offload import AHEAD, LEAVING, HostContent, HostMemory, Plain
from activation_compression.quantizer import Codes, pack_flags


def codes(bits, group_size, count, dtype=torch.float32):
    block = torch.randn(count).to(dtype)
    return Codes.pack(block, bits, group_size, keys_of(0, bits, 1, block.device)[0])


CONTENTS = [
    codes(4, 256, 512),
    codes(2, 256, 1000, torch.bfloat16),
    codes(8, 5, 333),
    codes(1, 7, 90),
    pack_flags(torch.rand(300) < 0.5),
    Plain(torch.randn(100, dtype=torch.float64), torch.float64),
    Plain(torch.arange(100, dtype=torch.int16), torch.int64),
    Plain(torch.randn(200)[50:100], torch.float32),
]


@pytest.mark.parametrize("content", CONTENTS, ids=lambda content: type(content).__name__)
def test_content_comes_back_bit_for_bit_by_one_copy_each_way(content, monkeypatch):
    copies = []
    clone = torch.Tensor.clone
    monkeypatch.setattr(torch.Tensor, "clone", lambda self: copies.append(self.nbytes) or clone(self))
    moved = HostMemory().take(content)
    assert len(copies) == 1
    back = moved.unpack()
    assert copies == [sum(t.nbytes for t in content.tensors if t.ndim)] * 2
    assert back.equal(content.unpack())
    assert moved.nbytes == 0


def test_the_next_ones_are_fetched_ahead_and_no_more_than_the_bound():
    memory = HostMemory()
    moved = [memory.take(codes(4, 256, 512)) for _ in range(3 * AHEAD)]
    assert not any(content.is_arriving for content in moved)
    moved[-1].unpack()
    assert [content.is_arriving for content in moved] == [False] * (2 * AHEAD - 1) + [True] * AHEAD + [False]


def test_values_of_one_node_are_fetched_in_the_order_in_which_they_were_saved():
    memory, order = HostMemory(), []
    for node in range(3):
        memory.node = node
        order.append([memory.take(codes(4, 256, 512)) for _ in range(2)])
    fetched = []
    fetch = HostContent.fetch
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(HostContent, "fetch", lambda self: fetched.append(self) or fetch(self))
        order[2][0].unpack()
    assert fetched == [order[2][0], order[2][1], order[1][0], order[1][1], order[0][0]]


def test_what_a_later_node_saves_too_comes_back_when_backward_meets_that_one():
    memory = HostMemory()
    memory.node = 0
    first = memory.take(codes(4, 256, 512))
    for node in range(1, 9):
        memory.node = node
        last = memory.take(codes(4, 256, 512))
    memory.node = 9
    memory.again(first)
    memory.node = 10
    memory.take(codes(4, 256, 512)).unpack()
    assert first.is_arriving
    assert last.is_arriving


def test_what_backward_passes_by_does_not_stay():
    memory = HostMemory()
    moved = [memory.take(codes(4, 256, 512)) for _ in range(8 * AHEAD)]
    for content in moved[:: -2 * AHEAD]:
        content.unpack()
    assert sum(content.is_arriving for content in moved) <= 2 * AHEAD


def test_a_bounded_number_of_copies_is_under_way(monkeypatch):
    """A stream that records what it is told: the present one waits for the oldest copy before the next."""

    class Stream:
        waited = 0

        def record_event(self):
            return object()

        def wait_stream(self, other):
            pass

        def wait_event(self, event):
            Stream.waited += 1

        def __enter__(self):
            return self

        def __exit__(self, *error):
            pass

    monkeypatch.setattr(torch.cuda, "current_stream", Stream)
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: stream)
    monkeypatch.setattr(offload, "_to_pinned", torch.Tensor.clone)
    monkeypatch.setattr(torch.Tensor, "record_stream", lambda self, stream: None)
    memory = HostMemory()
    memory.stream = Stream()
    moved = deque(memory.take(codes(4, 256, 512)) for _ in range(LEAVING + 3))
    assert Stream.waited == 3
    moved[-1].unpack()
    assert Stream.waited == LEAVING + 3


class Block(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.q, self.k, self.v, self.o = (nn.Linear(width, width) for _ in range(4))
        self.up, self.down, self.norm = (
            nn.Linear(width, 4 * width),
            nn.Linear(4 * width, width),
            nn.LayerNorm(width),
        )

    def forward(self, x):
        p = F.dropout((self.q(x) @ self.k(x).mT).softmax(-1), 0.1)
        y = self.norm(x + self.o(p @ self.v(x)))
        return y + F.dropout(self.down(F.gelu(self.up(y))), 0.1)


@pytest.mark.parametrize("level", ["swap", "L4bit-swap"])
def test_a_model_fetches_nothing_twice_and_nearly_all_ahead(level, monkeypatch):
    """In backward as it runs: a retained graph too."""
    fetched, late = [], []
    fetch, unpack = HostContent.fetch, HostContent.unpack

    def counted(self):
        fetched.extend([] if self.is_arriving else [self])
        fetch(self)

    def opened(self):
        late.append(not self.is_arriving)
        return unpack(self)

    monkeypatch.setattr(HostContent, "fetch", counted)
    monkeypatch.setattr(HostContent, "unpack", opened)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)  # only to pass the constructor's check
    monkeypatch.setattr(HostMemory, "__init__", lambda self: setattr(self, "stream", None))
    torch.manual_seed(0)
    model, x = nn.Sequential(*(Block(64) for _ in range(4))), torch.randn(2, 32, 64)
    with ActivationCompressor(model, level, derive=False):
        loss = model(x).square().mean()
    loss.backward(retain_graph=True)
    once = len(late)
    assert len(fetched) == once > 30
    assert sum(late) <= 2
    loss.backward()
    assert len(fetched) == len(late) == 2 * once

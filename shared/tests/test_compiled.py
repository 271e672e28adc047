"""Compiled functions fall back for the reason they say; random numbers are functions of position and keys.

A function that could not be compiled is called in a process of its own: the reason holds for the process.
"""

import os
import subprocess
import sys
import textwrap

import numpy as np
import pytest
import torch
from scipy import stats
from torch.utils.flop_counter import FlopCounterMode

from finetune_common.compiled import Compiled, normal, random_bits, scramble, uniform16


def doubled(x):
    x.mul_(2)
    return x.sum()


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_inside_a_dispatch_mode_it_runs_as_written_and_compiles_again_afterwards():
    """torch never compiles a function again that was called inside such a mode."""
    double, x = Compiled(doubled, "doubling"), torch.ones(8)
    with FlopCounterMode(display=False):
        assert double(x) == 16
    before = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    assert double(x) == 32
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == before + 1


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_code_objects_are_compiled_apart():
    """torch allows eight kinds of input a code object: 20 functions of one definition take 20 kinds."""

    def adder(number):
        def add(x):
            return x + number

        return Compiled(add, "adding", dynamic=False)

    for number in range(20):
        assert adder(number)(torch.zeros(3))[0] == number


def test_small_tensors_do_not_start_the_compiler(monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("compiled")

    monkeypatch.setattr(torch, "compile", refuse)
    double = Compiled(doubled, "doubling", pays_from=100)
    assert double(torch.ones(99)) == 198
    with pytest.raises(AssertionError, match="compiled"):
        double(torch.ones(100))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_autocast_changes_nothing():
    def product(a, b):
        return a @ b

    a, b = torch.randn(8, 8), torch.randn(8, 8)
    with torch.autocast("cpu", torch.bfloat16):
        assert Compiled(product, "a product")(a, b).dtype == torch.float32


def test_what_torch_cannot_compile_runs_as_written_and_the_reason_is_told_once():
    def odd(x):
        torch._dynamo.graph_break()
        return x + 1

    function = Compiled(odd, "an odd function")
    with pytest.warns(RuntimeWarning, match="an odd function runs uncompiled") as caught:
        results = [function(torch.zeros(2)).sum().item() for _ in range(3)]
    assert results == [2, 2, 2]
    [told] = [str(warning.message) for warning in caught if warning.category is RuntimeWarning]
    assert "no working compiler" not in told
    assert "torch could not compile it (Unsupported" in told


def test_another_functions_failure_leaves_the_compiler_in_use():
    assert Compiled(doubled, "doubling").usable


def test_an_error_of_the_function_itself_is_raised():
    def wrong(x):
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"), pytest.warns(RuntimeWarning):
        Compiled(wrong, "a wrong function")(torch.zeros(1))


def test_without_a_compiler_all_functions_run_as_written_after_one_warning(tmp_path):
    program = """
        import warnings, torch
        from finetune_common.compiled import Compiled

        def double(x):
            x.mul_(2)

        x = torch.ones(3)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            for _ in range(2):
                for what in ("this", "that"):
                    Compiled(double, what)(x)
        assert x.tolist() == [16.0] * 3
        print([str(w.message) for w in caught if w.category is RuntimeWarning])
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)],
        env={**os.environ, "CXX": "/nonexistent/c++", "TORCHINDUCTOR_CACHE_DIR": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("runs uncompiled") == 1
    assert "no working compiler was found" in done.stdout


def lowbias32(x, key=0):
    """C. Wellons' hash on unsigned 32-bit integers, with a key added after the first multiplication."""
    x = (x ^ x >> 16) * 0x7FEB352D + key & 0xFFFFFFFF
    x = (x ^ x >> 15) * 0x846CA68B & 0xFFFFFFFF
    return x ^ x >> 16


def signed(x):
    return x - 2**32 if x >= 2**31 else x


@pytest.mark.parametrize("key", [0, 1, 12345, 2**31 - 1])
def test_scramble_is_lowbias32(key):
    numbers = [0, 1, 2, 77, 2**31 - 1, 2**31, 2**32 - 1]
    bits = torch.tensor([signed(n) for n in numbers], dtype=torch.int32)
    assert scramble(bits, key).tolist() == [signed(lowbias32(n, key)) for n in numbers]


def test_random_bits_are_a_keyed_hash_of_the_position():
    position = torch.arange(5, 9, dtype=torch.int32)
    expected = [lowbias32((p ^ 3) * 0x9E3779B1 & 0xFFFFFFFF, 4) for p in range(5, 9)]
    assert random_bits(position, 3, 4).tolist() == [signed(n) for n in expected]


def test_bits_are_fair_and_streams_unlike():
    n = 200_000
    position = torch.arange(n, dtype=torch.int32)
    keys = scramble(torch.arange(4, dtype=torch.int32))
    streams = [random_bits(position, keys[i], keys[j]) for i, j in ((0, 1), (2, 1), (0, 3))]
    bound = 5 / n**0.5
    signs = torch.stack([((s.unsqueeze(1) >> torch.arange(32)) & 1).double() * 2 - 1 for s in streams])
    assert signs.mean(1).abs().max() < bound
    for a, b in ((0, 1), (0, 2), (1, 2)):
        assert (signs[a] * signs[b]).mean(0).abs().max() < bound
    assert (signs[0, 1:] * signs[0, :-1]).mean(0).abs().max() < bound


def test_uniform16_is_uniform():
    halves = uniform16(random_bits(torch.arange(500_000, dtype=torch.int32), 5, 6))
    for half in halves:
        counts = np.bincount((half.numpy() * 256).astype(int), minlength=256)
        assert stats.chisquare(counts).pvalue > 1e-3
    assert abs(np.corrcoef(*(half.numpy() for half in halves))[0, 1]) < 5 / 500_000**0.5


def test_normal_continues_where_another_one_ended():
    keys = torch.tensor([7, 8, 9], dtype=torch.int32)
    whole, rest = normal(100, keys), normal(40, keys + torch.tensor([60, 0, 0], dtype=torch.int32))
    assert torch.equal(whole[60:], rest)

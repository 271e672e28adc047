"""The normal numbers: against their equation in float64, and against the normal distribution itself.

Statistics are over a million draws with fixed keys; their bounds are five standard errors.
"""

from math import comb, factorial

import numpy as np
import pytest
import torch
from scipy import stats

from finetune_common.compiled import normal, random_bits, scramble

N = 1_000_000
KEYS = [(1, 2, 3), (0, 0, 0), (-7, 2**31 - 1, 123_456_789)]


def draws(keys=(1, 2, 3), count=N):
    return normal(count, torch.tensor(keys, dtype=torch.int32)).double().numpy()


def upper_tail(s):
    """P(S > s) of the sum S of eight numbers that are uniform in [-½, ½): Irwin's and Hall's formula."""
    terms = [(-1) ** k * comb(8, k) * np.clip(4 - s - k, 0, None) ** 8 for k in range(9)]
    return sum(terms) / factorial(8)


def sums(count=N, keys=(1, 2, 3)):
    """Eight bytes of two hashes, as numbers in the middle of their steps, without what fills the gaps."""
    keys = torch.tensor(keys, dtype=torch.int32)
    first = random_bits(torch.arange(count, dtype=torch.int32) + keys[0], keys[1], keys[2])
    second = (first.numpy() ^ keys[1].numpy()).astype(np.uint32) * np.uint32(0x846CA68B)
    words = np.stack([first.numpy().view(np.uint32), second ^ (second >> 15)], axis=1)
    return ((np.ascontiguousarray(words).view(np.uint8).reshape(count, 8) + 0.5) / 256 - 0.5).sum(axis=1)


def test_each_number_is_the_normal_quantile_of_its_sum():
    s, z = sums(), draws()
    outer = np.abs(s) - 0.5 / 256, np.abs(s) + 0.5 / 256  # the third number moves a sum by half a step
    inner = [-stats.norm.ppf(np.clip(upper_tail(edge), 1e-12, 0.5)) for edge in outer]
    slack = 2e-5 / stats.norm.pdf(np.minimum(np.abs(z), 3))
    assert (np.abs(z) >= inner[0] - slack).all()
    assert (np.abs(z) <= inner[1] + slack).all()
    clear = np.abs(s) > 1 / 256
    assert (np.sign(z) == np.sign(s))[clear].all()


@pytest.mark.parametrize("keys", KEYS)
def test_distribution(keys):
    z = draws(keys)
    assert stats.kstest(z, "norm").pvalue > 1e-2
    for power, moment in ((1, 0), (2, 1), (3, 0), (4, 3), (6, 15)):
        spread = np.sqrt(stats.norm.moment(2 * power) / N)
        assert abs((z**power).mean() - moment) < 5 * spread, power


def test_tails_on_both_sides():
    z = np.concatenate([draws((5, key, -key)) for key in range(1, 9)])
    for bound in (2.0, 3.0, 3.5, 4.0, 4.5, 5.0):
        expected = len(z) * stats.norm.sf(bound)
        for side in (z, -z):
            assert abs((side > bound).sum() - expected) < 5 * np.sqrt(expected) + 0.02 * expected, bound
    assert 5 < np.abs(z).max() < 7.7


def test_no_gaps():
    """Between two sums of bytes there are numbers: a million draws are nearly a million numbers."""
    assert len(np.unique(draws())) > 0.95 * N


@pytest.mark.parametrize("lag", [1, 2, 3, 4, 8, 64, 256, 4096, 65_536])
def test_positions_are_independent(lag):
    z = draws()
    for one, other in ((z, z), (z**2 - 1, z**2 - 1), (z, z**2 - 1)):
        correlation = np.corrcoef(one[lag:], other[:-lag])[0, 1]
        assert abs(correlation) < 5 / N**0.5


def test_neighbours_fill_the_square():
    cells = np.floor(stats.norm.cdf(draws()) * 32).astype(int).clip(0, 31)
    for lag in (1, 2, 17):
        counts = np.bincount(cells[lag:] * 32 + cells[:-lag], minlength=32 * 32)
        assert stats.chisquare(counts).pvalue > 1e-3


def test_streams_of_other_keys_are_unlike():
    """Keys are random numbers, here hashes of a counter; those of two streams may share two of the three."""
    n = 200_000
    first, second, *others = scramble(torch.arange(1, 9, dtype=torch.int32)).tolist()
    base = draws((0, first, second), n)
    for other in others:
        for keys in ((0, other, second), (0, first, other), (2**20, first, second), (0, other, first)):
            values = draws(keys, n)
            for one, two in ((base, values), (base**2 - 1, values**2 - 1), (base[1:], values[:-1])):
                assert abs(np.corrcoef(one, two)[0, 1]) < 5 / n**0.5


def test_a_key_may_be_given_for_each_number():
    positions = torch.tensor([3, 9, 9], dtype=torch.int32)
    keys = torch.stack([positions, torch.tensor([1, 1, 5]), torch.tensor([2, 2, 6])]).to(torch.int32)
    expected = torch.cat([normal(1, keys[:, i].clone()) for i in range(3)])
    assert torch.equal(normal(3, keys), expected)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_compiled_code_draws_the_same_numbers():
    keys = torch.tensor([1, 2, 3], dtype=torch.int32)
    compiled = torch.compile(lambda keys: normal(10_000, keys), fullgraph=True)(keys)
    torch.testing.assert_close(compiled, normal(10_000, keys), rtol=1e-5, atol=1e-6)

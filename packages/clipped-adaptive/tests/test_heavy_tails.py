"""The statistics on samples with a known tail, and against an independent library."""

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import pytest
import tailestim
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from clipped_adaptive import heavy_tails, plots
from clipped_adaptive.heavy_tails import TailMonitor, hill, hill_path, outlier_ratios, sample_gradient_noise
from finetune_common.errors import ConfigurationError

SIZE = 200_000
SAMPLES = {
    "pareto 1.2": (1.2, 0.10, lambda random: random.pareto(1.2, SIZE) + 1),
    "pareto 3": (3.0, 0.10, lambda random: random.pareto(3.0, SIZE) + 1),
    "student t 1.5": (1.5, 0.01, lambda random: np.abs(random.standard_t(1.5, SIZE))),
    "student t 4": (4.0, 0.001, lambda random: np.abs(random.standard_t(4.0, SIZE))),
    "alpha-stable 1.3": (
        1.3,
        0.01,
        lambda random: np.abs(stats.levy_stable.rvs(1.3, 0, size=SIZE, random_state=random)),
    ),
}
"""Name → tail index, share of the values used, sample. The share is smaller where the tail sets in later."""


@pytest.mark.parametrize("name", SAMPLES)
def test_hill_finds_a_known_index(name):
    """Within 4 standard errors α/√k and 5% for the bias of a tail that is a power only in the limit."""
    index, share, draw = SAMPLES[name]
    k = int(share * SIZE)
    assert abs(hill(draw(np.random.default_rng(1)), k) - index) < 4 * index / k**0.5 + 0.05 * index


def test_a_normal_tail_has_no_index():
    """The estimate keeps growing towards the end of the tail and is far above that of a heavy one."""
    path = hill_path(np.abs(np.random.default_rng(1).standard_normal(SIZE)))
    assert path[50] > 1.3 * path[2000] > 1.3 * 1.5 * path[20_000]
    assert path[200] > 6


@pytest.mark.parametrize("name", SAMPLES)
@pytest.mark.parametrize("k", [10, 100, 1000])
def test_hill_agrees_with_tailestim(name, k):
    sample = SAMPLES[name][2](np.random.default_rng(2))[:5000]
    estimator = tailestim.HillEstimator(bootstrap=False)
    estimator.fit(sample)
    result = estimator.get_result()
    order = list(np.asarray(result.k_arr_)).index(k)
    assert hill(sample, k) == pytest.approx(1 / np.asarray(result.xi_arr_)[order], rel=1e-9)


@settings(deadline=None, max_examples=50)
@given(
    st.lists(st.integers(1, 10_000), min_size=3, max_size=30, unique=True),
    st.floats(0.1, 10.0),
)
def test_the_index_does_not_depend_on_the_unit(values, unit):
    torch.testing.assert_close(hill_path(np.array(values) * unit), hill_path(values), rtol=1e-9, atol=0)


def test_every_entry_of_the_path_is_the_estimate_by_its_definition():
    sample = np.random.default_rng(3).pareto(1.5, 60)
    ordered = np.sort(sample)[::-1]
    for k, estimate in enumerate(hill_path(sample).tolist(), start=1):
        assert estimate == pytest.approx(1 / np.mean(np.log(ordered[:k] / ordered[k])))
        assert estimate == hill(sample, k)


NORMAL_MILD = stats.norm.sf(stats.norm.ppf(0.75) * 4)
"""Q₃ + 1.5 IQR lies four times as far out as Q₃."""


def test_outlier_ratios_of_a_normal_sample_are_about_one():
    sample = np.random.default_rng(4).standard_normal(1_000_000)
    mild, extreme = outlier_ratios(sample)
    expected = NORMAL_MILD / 0.0035
    assert abs(mild - expected) < 4 * (expected / 0.0035 / 1e6) ** 0.5 + 0.02
    assert extreme <= 8 / 1.2  # 1.2 values expected; more than 8 has probability 1e-5


@pytest.mark.parametrize("index", [1.2, 2.0, 5.0])
def test_outlier_ratios_of_a_pareto_sample(index):
    """P(X > x) = x^-α: the shares beyond the whiskers are known."""
    low, high = (0.75) ** (-1 / index), 0.25 ** (-1 / index)
    sample = np.random.default_rng(5).pareto(index, SIZE) + 1
    for ratio, whisker, normal in zip(outlier_ratios(sample), (1.5, 3.0), (0.0035, 1.2e-6), strict=True):
        share = (high + whisker * (high - low)) ** -index
        assert abs(ratio * normal - share) < 5 * (share / SIZE) ** 0.5


def test_one_extreme_value_in_a_thousand_is_833():
    sample = np.concatenate([np.linspace(0, 1, 999), [100.0]])
    assert outlier_ratios(sample) == (pytest.approx(0.001 / 0.0035), pytest.approx(833.33, abs=0.01))


def test_quartiles_are_numpys():
    for size in (4, 5, 6, 7, 101):
        sample = np.random.default_rng(size).standard_cauchy(size)
        low, high = np.quantile(sample, [0.25, 0.75])
        share = (sample > high + 1.5 * (high - low)).mean()
        assert outlier_ratios(sample)[0] == pytest.approx(share / 0.0035)


def test_any_device_dtype_and_shape_is_taken():
    sample = torch.rand(8, 8, dtype=torch.bfloat16, requires_grad=True) + 1
    assert outlier_ratios(sample) == outlier_ratios(sample.detach().float().flatten().tolist())
    assert hill(sample, 5) == hill(sample.flatten().tolist(), 5)


@pytest.mark.parametrize("bad", [[1.0, 2.0], [1.0, 2.0, 3.0, float("nan")], [1.0, 2.0, 3.0, float("inf")]])
def test_samples_that_cannot_be_used_are_refused(bad):
    with pytest.raises(ConfigurationError, match="finite"):
        outlier_ratios(bad)


@pytest.mark.parametrize("k", [0, 4, -1])
def test_k_has_a_range(k):
    with pytest.raises(ConfigurationError, match=r"k=.* \[1, 3\]"):
        hill([1.0, 2.0, 3.0, 4.0], k)


def test_hill_needs_positive_values():
    with pytest.raises(ConfigurationError, match="found 1"):
        hill([-1.0, 0.0, 2.0], 1)


@pytest.mark.parametrize(
    ("call", "given", "meant"),
    [
        ("outlier_ratios", {"y": 1}, "x"),
        ("hill", {"x": [1.0, 2.0], "ks": 1}, "k"),
        ("hill_path", {"sample": [1.0]}, "x"),
        ("sample_gradient_noise", {"drop_out": "off"}, "dropout"),
        ("TailMonitor", {"evry": 10}, "every"),
        ("plot_hill", {"x": [1.0], "axes": None}, "ax"),
        ("plot_qq", {"x": [1.0], "axis": None}, "ax"),
        ("plot_histogram", {"sample": [1.0]}, "x"),
        ("tail_figure", {"norms": [1.0]}, "x"),
    ],
)
def test_a_misspelt_argument_gets_the_nearest_name(call, given, meant):
    module = heavy_tails if hasattr(heavy_tails, call) else plots
    wrong = [*given][-1]
    with pytest.raises(ConfigurationError, match=f"^{call} has no argument {wrong}: .*\\b{meant}\\b"):
        getattr(module, call)(**given)


def test_the_wrong_order_is_noticed_and_no_model_is_printed():
    model = torch.nn.Sequential(*(torch.nn.Linear(2, 2) for _ in range(20)))
    with pytest.raises(ConfigurationError, match=r"wrong order: call sample_gradient_noise\(model, loss_fn"):
        sample_gradient_noise(lambda model, x: model(x).mean(), model, [torch.ones(1, 2)] * 2, 2)
    with pytest.raises(ConfigurationError, match=r"^TailMonitor: model=3 is not of class Module$"):
        TailMonitor(3)


def test_the_plots_draw_what_they_say():
    matplotlib.use("agg")
    from clipped_adaptive.plots import plot_hill, plot_histogram, plot_qq

    sample = np.random.default_rng(6).pareto(1.5, 2000) + 1
    figure, (left, middle, right) = plt.subplots(1, 3)
    plot_hill(sample, left)
    np.testing.assert_allclose(left.lines[0].get_ydata(), hill_path(sample)[:999])
    plot_qq(sample, middle)
    np.testing.assert_allclose(middle.lines[0].get_ydata(), np.sort(sample))
    expected = stats.norm.ppf((np.arange(2000) + 0.5) / 2000, sample.mean(), sample.std(ddof=1))
    np.testing.assert_allclose(middle.lines[0].get_xdata(), expected)
    plot_histogram(sample, right)
    normal, log_normal, tail = right.lines
    x = normal.get_xdata()
    np.testing.assert_allclose(
        normal.get_ydata(), stats.norm.pdf(x, sample.mean(), sample.std(ddof=1)), atol=1e-12
    )
    logs = np.log(sample)
    expected = stats.lognorm.pdf(x, logs.std(ddof=1), scale=np.exp(logs.mean()))
    np.testing.assert_allclose(log_normal.get_ydata(), expected, rtol=1e-6, atol=1e-12)
    index, start = hill(sample, 100), np.sort(sample)[-101]
    expected = 100 / 2000 * stats.pareto.pdf(tail.get_xdata(), index, scale=start)
    np.testing.assert_allclose(tail.get_ydata(), expected)
    plt.close(figure)

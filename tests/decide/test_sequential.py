"""The anytime-valid tests: their formulas, their error under any number of looks, and their power."""

import math

import numpy as np
import pytest
from scipy import integrate, stats

from benchmarks.decide_errors import DISTRIBUTIONS, EFFECTS, false_decisions, pairs_for
from reprogpt.decide import sequential
from reprogpt.decide.sequential import (
    ALPHA,
    C_SQUARED,
    confidence_interval,
    first_decisions,
    fixed_interval,
    holm,
    p_value,
    pairs_needed,
    sign_p_value,
)

DIFFERENCES = [0.21, 0.17, 0.3, 0.02, 0.26, 0.19]


def martingale(x: list[float]) -> float:
    """M_n as it is defined: the likelihood of t-distributed data, the effect drawn from N(0, 1 / c^2), over its null.

    For an effect d, the data's scale integrated out by ds / s, the likelihood is the integral over s of
    s^-(n+1) exp(-sum (x - d s)^2 / (2 s^2)).
    """
    n, total, squares = len(x), sum(x), sum(value * value for value in x)

    def likelihood(effect: float) -> float:
        def at(u: float) -> float:  # u = 1 / s
            return u ** (n - 1) * math.exp(-(squares * u * u - 2 * effect * total * u + n * effect * effect) / 2)

        return float(integrate.quad(at, 0, 60 / math.sqrt(squares))[0])

    prior = stats.norm(scale=1 / math.sqrt(C_SQUARED)).pdf
    mixture = integrate.quad(lambda effect: prior(effect) * likelihood(effect), -30, 30, points=[0, 2], limit=200)[0]
    return float(mixture / likelihood(0))


def test_the_martingale_is_the_mixture_of_likelihoods_that_it_is_derived_from() -> None:
    x = [0.5, 0.9, -0.1, 0.7]
    assert 1 / p_value(x) == pytest.approx(martingale(x), rel=1e-4)


def test_it_starts_at_1_and_its_mean_stays_1_without_a_difference() -> None:
    assert p_value([0.3]) == p_value([-5.0]) == 1
    x = np.random.default_rng(0).standard_normal((200_000, 3))
    sums, squares = x.sum(axis=1), np.square(x).sum(axis=1)
    m = np.exp(sequential._log_martingale(sums, squares, np.full(len(x), 3)))
    assert m.mean() == pytest.approx(1, abs=4 * m.std() / math.sqrt(len(x)))


@pytest.mark.parametrize("alpha", [0.05, 0.01])
def test_the_interval_holds_the_means_that_are_not_rejected(alpha: float) -> None:
    for end in confidence_interval(DIFFERENCES, alpha):
        assert p_value([value - end for value in DIFFERENCES]) == pytest.approx(alpha)
    low, high = confidence_interval(DIFFERENCES, alpha)
    for inside in (low + 1e-6, high - 1e-6):
        assert p_value([value - inside for value in DIFFERENCES]) > alpha
    assert low < sum(DIFFERENCES) / len(DIFFERENCES) < high


def test_too_few_pairs_bound_nothing() -> None:
    for x in ([], [0.1], [0.1, 0.2]):
        assert confidence_interval(x) == (-math.inf, math.inf)
    assert fixed_interval([0.1]) == (-math.inf, math.inf)


def test_no_difference_at_all_is_no_evidence() -> None:
    assert p_value([]) == p_value([0.0] * 8) == 1
    assert confidence_interval([0.0] * 8) == (0, 0)


def test_equal_differences_decide_with_four_pairs() -> None:
    """The least that can: the bound of M_n is ((n + c^2) / c^2)^((n - 1) / 2)."""
    assert p_value([0.1] * 3) > ALPHA > p_value([0.1] * 4)
    assert 1 / p_value([0.1] * 4) == pytest.approx(((4 + C_SQUARED) / C_SQUARED) ** 1.5)


def test_student_s_interval_is_scipy_s() -> None:
    expected = stats.ttest_1samp(DIFFERENCES, 0).confidence_interval(0.95)
    assert fixed_interval(DIFFERENCES) == pytest.approx((expected.low, expected.high))


def test_the_sign_test_is_the_mixture_over_a_uniform_share() -> None:
    for better, worse in ((8, 0), (7, 2), (0, 9)):
        mixture = integrate.quad(lambda p, k=better, n=worse: p**k * (1 - p) ** n, 0, 1)[0] * 2 ** (better + worse)
        assert sign_p_value(better, worse) == pytest.approx(min(1, 1 / mixture))
    assert sign_p_value(7, 0) > ALPHA > sign_p_value(8, 0)
    assert sign_p_value(0, 0) == 1


def test_looked_at_after_each_of_20_pairs_it_errs_in_at_most_5_percent() -> None:
    ours, student = false_decisions(DISTRIBUTIONS["normal"])
    assert ours <= ALPHA
    assert student > 0.2  # what looking costs the test that allows one look


def test_the_sign_test_errs_in_at_most_5_percent_whatever_the_distribution() -> None:
    better = np.random.default_rng(3).integers(0, 2, (2000, 20)).cumsum(axis=1)
    table = np.array([[sign_p_value(k, n - k) if k <= n else 1 for k in range(21)] for n in range(1, 21)])
    p = np.take_along_axis(table[None], better[..., None], axis=2)[..., 0]
    assert (p <= ALPHA).any(axis=1).mean() <= ALPHA


@pytest.mark.parametrize(
    ("name", "most"),
    [("t, 3 degrees of freedom", 0.05), ("skewed (exponential)", 0.15), ("bimodal (-1 or 1, deviation 0.2)", 0.15)],
)
def test_what_holds_only_approximately_is_bounded(name: str, most: float) -> None:
    """Skewed and bimodal differences: more than 5 %, as the documentation says."""
    ours, student = false_decisions(DISTRIBUTIONS[name])
    assert ours <= most
    assert ours < student / 2


def test_looking_costs_pairs_but_not_many() -> None:
    for effect in EFFECTS[1:]:
        half, most, planned = pairs_for(effect)
        assert 4 <= half <= most <= 2 * planned + 2


def test_pairs_needed_is_what_decides_80_percent() -> None:
    for effect in (1.0, -2.0):
        needed = pairs_needed(effect)
        x = np.random.default_rng(5).standard_normal((4000, 60)) + effect
        assert needed is not None
        decided = first_decisions(x)
        assert (decided <= needed).mean() > 0.77
        assert (decided <= needed - 1).mean() < 0.83
    assert pairs_needed(0.1) is None
    assert (pairs_needed(1.0, 0.01) or 0) > (pairs_needed(1.0) or 0)


def test_holm_s_values_are_adjusted_and_stay_in_order() -> None:
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.5, 0.9]) == pytest.approx([1.0, 1.0])
    assert holm([]) == []

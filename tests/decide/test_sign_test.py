"""The sign test: its formula, its interval, its error under any number of looks, and the pairs that it needs."""

import math

import numpy as np
import pytest
from scipy import integrate, stats

from benchmarks.decide_errors import (
    DIFFERENCES,
    EFFECTS,
    EXCHANGEABLE_RUNS,
    Differences,
    Draw,
    errors_of_equal_values,
    ever_decided,
    pairs_for,
    wrong_verdicts,
)
from reprogpt.decide import sign_test
from reprogpt.decide.sign_test import ALPHA, confidence_interval, min_pairs, more_pairs, needed_majority, pairs_needed


def test_the_martingale_is_the_likelihood_ratio_of_a_share_drawn_from_its_prior() -> None:
    prior = stats.beta(sign_test._PRIOR, sign_test._PRIOR)
    for k, n in ((6, 6), (7, 9), (3, 6)):
        mixture = integrate.quad(lambda p, k=k, n=n: prior.pdf(p) * p**k * (1 - p) ** (n - k), 0, 1)[0]
        assert math.exp(sign_test._log_martingale(k, n)) == pytest.approx(mixture * 2**n, rel=1e-3)


def test_it_starts_at_1_and_its_mean_stays_1_without_a_difference() -> None:
    for n in (0, 1, 5, 20):
        mean = sum(stats.binom.pmf(k, n, 0.5) * math.exp(sign_test._log_martingale(k, n)) for k in range(n + 1))
        assert mean == pytest.approx(1)


def test_six_pairs_of_one_sign_decide_and_no_fewer_could() -> None:
    """Five of one sign come in 1 of 16 cases without a difference."""
    assert 2 * 0.5**5 > ALPHA > 2 * 0.5**6
    assert min_pairs() == 6
    assert [needed_majority(n) for n in (5, 6, 7, 8, 12)] == [None, 6, 7, 8, 11]


@pytest.mark.parametrize("alpha", [0.05, 0.05 / 3, 0.05 / 45])
def test_0_is_outside_the_interval_if_and_only_if_a_majority_has_one_sign(alpha: float) -> None:
    for num_pairs in range(1, 30):
        needed = needed_majority(num_pairs, alpha)
        for num_above in range(num_pairs + 1):
            low, high = confidence_interval([2.0] * num_above + [-1.0] * (num_pairs - num_above), alpha)
            assert (low > 0) == (needed is not None and num_above >= needed)
            assert (high < 0) == (needed is not None and num_pairs - num_above >= needed)
            assert low <= high


def test_the_interval_is_from_one_of_the_differences_to_another() -> None:
    differences = [0.3, 0.1, 0.2, 0.6, 0.5, 0.4]
    assert confidence_interval(differences) == (0.1, 0.6)
    assert confidence_interval([*differences, *np.array(differences) + 1]) == (0.2, 1.5)
    assert confidence_interval(differences[:5]) == (-math.inf, math.inf)
    assert confidence_interval([]) == (-math.inf, math.inf)


def test_equal_pairs_count_against_both_signs() -> None:
    assert confidence_interval([0.1] * 6) == (0.1, 0.1)
    low, high = confidence_interval([0.1] * 6 + [0.0])
    assert low == 0.0 and high == 0.1


def test_failed_runs_leave_the_interval_without_a_bound() -> None:
    assert confidence_interval([0.1, 0.2, 0.3, 0.4, 0.5, math.inf]) == (0.1, math.inf)


def test_the_intervals_of_all_looks_hold_the_median_in_95_percent() -> None:
    x = np.random.default_rng(4).exponential(size=(1000, 20))
    median = math.log(2)
    missed = 0
    for row in x:
        intervals = [confidence_interval(row[:n].tolist()) for n in range(1, 21)]
        missed += not all(low <= median <= high for low, high in intervals)
    assert 0 < missed / 1000 <= ALPHA


@pytest.mark.parametrize("kind", DIFFERENCES, ids=lambda kind: kind.name)
def test_no_kind_of_differences_gets_a_wrong_verdict_in_more_than_5_percent(kind: Differences) -> None:
    """Looked at after each of 20 seeds."""
    any_verdict, wrong = wrong_verdicts(kind)
    assert wrong <= ALPHA
    assert any_verdict > 0


@pytest.mark.parametrize("num_values", [2, 3, 6, 10])
@pytest.mark.parametrize("draw", EXCHANGEABLE_RUNS.values(), ids=EXCHANGEABLE_RUNS)
def test_equal_values_get_a_verdict_or_leave_the_plateau_in_at_most_5_percent(draw: Draw, num_values: int) -> None:
    assert errors_of_equal_values(draw, num_values) <= ALPHA


def test_the_simulation_decides_as_decide_does() -> None:
    x = np.random.default_rng(5).standard_normal((100, 12)) + 0.7
    better, worse = ever_decided(x)
    intervals = [[confidence_interval(row[:n].tolist()) for n in range(1, 13)] for row in x]
    assert better.tolist() == [any(high < 0 for _, high in of_row) for of_row in intervals]
    assert worse.tolist() == [any(low > 0 for low, _ in of_row) for of_row in intervals]
    assert 0 < worse.mean() < 1


def test_what_the_sign_test_costs_in_pairs() -> None:
    assert [pairs_for(effect)[:2] for effect in EFFECTS[2:]] == [(6, 12), (6, 6), (6, 6), (6, 6)]
    half, most, _ = pairs_for(0.5)
    assert 50 < half < 70 and most < 120


def test_pairs_needed_is_what_decides_80_percent() -> None:
    share = stats.norm.cdf(1.0)
    needed = pairs_needed(share)
    assert needed == pytest.approx(pairs_for(1.0)[1], abs=1)
    assert pairs_needed(1.0) == 6
    assert pairs_needed(0.52) is None
    assert pairs_needed(0.3) is None
    assert (pairs_needed(share, 0.01) or 0) > (needed or 0)


def test_more_pairs_go_on_in_the_present_share() -> None:
    assert more_pairs(5, 5) == 1
    assert more_pairs(5, 6) == 14
    assert more_pairs(3, 6) is None
    assert more_pairs(0, 0) is None
    assert more_pairs(51, 100) is None

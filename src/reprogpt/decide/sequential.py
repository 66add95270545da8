"""Tests of paired differences that stay valid however often, and whenever, they are looked at.

The t-test is the Gaussian mixture of Wang and Ramdas, "Anytime-valid t-tests and confidence sequences for Gaussian
means with unknown variance" (2023). For differences x_1 ... x_n with S = sum x and V = sum x^2,

    M_n = sqrt(c^2 / (n + c^2)) * ((n + c^2) V / ((n + c^2) V - S^2))^(n / 2)

is a martingale that starts at 1 if the x are independent draws from a Gaussian with mean 0 and any variance. By
Ville's inequality, M_n >= 1 / alpha ever happens with probability at most alpha.
"""

import math
from collections.abc import Sequence
from functools import cache

import numpy as np
from scipy import stats

ALPHA = 0.05
MIN_PAIRS = 3  # fewer never decide
# 1 / c is about the size of the mean difference, in standard deviations, for which the test is best. Differences that
# are paired by seed often have 1 to 5 of them. Simulated (benchmarks/decide_errors.py with other values): from
# 0.1 to 1, c^2 changes the pairs that are needed by one or two; a smaller one errs more often where the differences
# are not Gaussian but bimodal (17 % at 0.1, 11 % at 0.5). With 0.5, at least four pairs are needed.
C_SQUARED = 0.5
POWER = 0.8
MAX_NEEDED = 500  # pairs
_SIMULATIONS = 1000


def p_value(differences: Sequence[float]) -> float:
    """min(1, 1 / M_n): at most a with probability at most a, whenever one stops. 1 for no pairs or only zeros."""
    x = np.asarray(differences, dtype=float)
    if not x.any():
        return 1.0
    (log_m,) = _log_martingale(np.array([x.sum()]), np.array([np.square(x).sum()]), np.array([len(x)]))
    return float(min(1.0, math.exp(-log_m)))


def confidence_interval(differences: Sequence[float], alpha: float = ALPHA) -> tuple[float, float]:
    """The means that the martingale does not reject at 1 / alpha: with 1 - alpha, all such intervals hold the mean.

    Infinite while there are too few pairs for any bound.
    """
    x = np.asarray(differences, dtype=float)
    n = len(x)
    if n < 2:
        return -math.inf, math.inf
    # M_n(mean) < 1 / alpha is d (n - share (n + c^2)) n < share (n + c^2) SS, for d = (average - mean)^2.
    ratio = (n + C_SQUARED) / C_SQUARED
    share = 1 - (alpha / math.sqrt(ratio)) ** (2 / n) if alpha > 0 else 1.0
    free = n * (n - share * (n + C_SQUARED))
    if free <= 0:
        return -math.inf, math.inf
    average = float(x.mean())
    radius = math.sqrt(share * (n + C_SQUARED) * float(np.square(x - average).sum()) / free)
    return average - radius, average + radius


def fixed_interval(differences: Sequence[float], alpha: float = ALPHA) -> tuple[float, float]:
    """Student's interval of the paired t-test: valid only if the number of pairs was fixed beforehand."""
    x = np.asarray(differences, dtype=float)
    if len(x) < 2:
        return -math.inf, math.inf
    radius = float(stats.t.ppf(1 - alpha / 2, len(x) - 1) * x.std(ddof=1) / math.sqrt(len(x)))
    return float(x.mean()) - radius, float(x.mean()) + radius


def sign_p_value(num_better: int, num_worse: int) -> float:
    """The sign test, valid at any time: for differences without a size, as with a run that diverged.

    The martingale is the mixture over a uniform p of p^k (1 - p)^(n - k) / (1/2)^n, which is
    2^n B(k + 1, n - k + 1). Ties are left out.
    """
    n = num_better + num_worse
    log_m = n * math.log(2) + math.lgamma(num_better + 1) + math.lgamma(num_worse + 1) - math.lgamma(n + 2)
    return min(1.0, math.exp(-log_m))


@cache  # verdict and queue ask for the same
def pairs_needed(effect: float, alpha: float = ALPHA) -> int | None:
    """Pairs after which a true mean of `effect` standard deviations is decided with probability POWER.

    By simulation of Gaussian differences, always the same draws. None if it is more than MAX_NEEDED.
    """
    x = np.random.default_rng(0).standard_normal((_SIMULATIONS, MAX_NEEDED)) + abs(effect)
    decided = np.sort(first_decisions(x, alpha))
    needed = float(decided[math.ceil(POWER * _SIMULATIONS) - 1])
    return int(needed) if math.isfinite(needed) else None


def first_decisions(x: np.ndarray, alpha: float = ALPHA) -> np.ndarray:
    """For each row of differences, (rows, pairs): the number of pairs at which it is first decided, inf if never."""
    counts = np.arange(1, x.shape[1] + 1)
    log_m = _log_martingale(x.cumsum(axis=1), np.square(x).cumsum(axis=1), counts)
    decided: np.ndarray = (log_m >= -math.log(alpha)) & (counts >= MIN_PAIRS)
    return np.where(decided.any(axis=1), decided.argmax(axis=1) + 1.0, np.inf)


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's adjusted p-values: all verdicts at alpha hold together, whatever their dependence."""
    adjusted = [0.0] * len(p_values)
    highest = 0.0
    for rank, index in enumerate(sorted(range(len(p_values)), key=lambda index: p_values[index])):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = highest
    return adjusted


def _log_martingale(total: np.ndarray, squares: np.ndarray, n: np.ndarray) -> np.ndarray:
    """log M_n for S, V and n. The rest V (n + c^2) - S^2 is at least c^2 V, since S^2 <= n V."""
    spread = (n + C_SQUARED) * squares
    rest = np.maximum(spread - np.square(total), C_SQUARED * squares)
    log_m: np.ndarray = 0.5 * np.log(C_SQUARED / (n + C_SQUARED)) + n / 2 * (np.log(spread) - np.log(rest))
    return log_m

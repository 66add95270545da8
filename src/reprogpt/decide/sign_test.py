"""A sign test of paired differences that stays valid however often you check it.

It asks which way the typical seed goes: whether more than half of all seeds have a difference of one sign. For k of n
pairs of one sign,

    M_n = 2^n B(k + a, n - k + a) / B(a, a)

is a martingale that starts at 1 if a seed goes either way with probability 1/2, independent of the others: the
likelihood ratio of a share that is drawn from Beta(a, a). By Ville's inequality, M_n >= 1 / alpha ever happens with
probability at most alpha. Nothing is assumed of the sizes of the differences, not even that they have a mean.
"""

import math
from collections.abc import Iterable
from functools import cache

import numpy as np

ALPHA = 0.05
POWER = 0.8
MAX_PAIRS = 500  # more are not counted
# The prior is high near 0 and 1, as pairs of one seed mostly agree. Simulated from 0.05 to 1: with 0.2, six pairs of
# one sign decide at ALPHA, the least that any two-sided sign test allows (1 needs eight), and differences of half a
# standard deviation take a quarter more pairs than with 1.
_PRIOR = 0.2


@cache
def needed_majority(num_pairs: int, alpha: float = ALPHA) -> int | None:
    """The least number of num_pairs pairs with one sign at which that sign is decided; None if all are too few."""
    for majority in range(num_pairs // 2 + 1, num_pairs + 1):
        if _log_martingale(majority, num_pairs) >= -math.log(alpha):
            return majority
    return None


@cache
def min_pairs(alpha: float = ALPHA) -> int:
    """The least number of pairs that can decide: all of one sign."""
    return next(n for n in range(1, MAX_PAIRS) if needed_majority(n, alpha) is not None)


def confidence_interval(differences: Iterable[float], alpha: float = ALPHA) -> tuple[float, float]:
    """The medians that the test does not reject: with 1 - alpha, all such intervals hold the true one.

    differences: +-inf for a pair of which one run has no value. 0 is outside if and only if needed_majority of the
    pairs have one sign; pairs that are equal count against both. Infinite while there are too few pairs for any bound.
    """
    ordered = sorted(differences)
    majority = needed_majority(len(ordered), alpha)
    if majority is None:
        return -math.inf, math.inf
    return ordered[len(ordered) - majority], ordered[majority - 1]


def more_pairs(majority: int, num_pairs: int, alpha: float = ALPHA) -> int | None:
    """How many more pairs decide if the share of one sign stays majority / num_pairs; None for too many to say."""
    if 2 * majority <= num_pairs:
        return None
    for n in range(num_pairs + 1, MAX_PAIRS + 1):
        needed = needed_majority(n, alpha)
        if needed is not None and round(n * majority / num_pairs) >= needed:
            return n - num_pairs
    return None


@cache
def pairs_needed(share: float, alpha: float = ALPHA) -> int | None:
    """Pairs after which a sign that a share of all seeds has is decided with probability POWER; None for too many."""
    undecided = np.ones(1)  # probability of each number of pairs with the sign, while none of them has decided
    decided = 0.0
    for n in range(1, MAX_PAIRS + 1):
        undecided = np.append(undecided * (1 - share), 0.0) + np.append(0.0, undecided * share)
        majority = needed_majority(n, alpha)
        if majority is not None:
            decided += float(undecided[majority:].sum())
            undecided[majority:] = 0.0
        if decided >= POWER:
            return n
    return None


def _log_martingale(k: int, n: int) -> float:
    return n * math.log(2) + _log_beta(k + _PRIOR, n - k + _PRIOR) - _log_beta(_PRIOR, _PRIOR)


def _log_beta(a: float, b: float) -> float:
    return math.lgamma(a) + math.lgamma(b) - math.lgamma(a + b)

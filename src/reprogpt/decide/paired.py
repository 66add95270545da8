"""Compares two levels by their runs of the same seeds: differences, their interval, and whether they are decided."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from statistics import fmean, median, stdev

import numpy as np

from reprogpt.decide.groups import Observation
from reprogpt.decide.sign_test import confidence_interval
from reprogpt.decide.stored_values import Level
from reprogpt.tags import WEIGHTS_SHA256

MIN_FOR_CORRELATION = 3  # pairs
BySeed = Mapping[int, Observation]


def sample_deviation(values: Sequence[float]) -> float:
    """Standard deviation with n - 1; NaN for fewer than two values."""
    return stdev(values) if len(values) > 1 else math.nan


@dataclass(frozen=True)
class LevelSummary:
    """The runs of one level. values: by seed. num_failed: runs that diverged or died, which have none."""

    level: Level
    values: dict[int, float]
    num_failed: int

    @property
    def num_seeds(self) -> int:
        """Runs with and without a value."""
        return len(self.values) + self.num_failed


@dataclass(frozen=True)
class PairedComparison:
    """A level against another, by the seeds that both have.

    pairs: seed -> the metric of the level and of the other; None for a run that diverged or died, which counts as the
    worst. identical: all pairs have the same weights and values. alpha: the error that this comparison may have.
    """

    level: Level
    against: Level
    pairs: dict[int, tuple[float | None, float | None]]
    identical: bool
    higher_is_better: bool
    alpha: float

    @property
    def num_pairs(self) -> int:
        """Seeds that both levels have."""
        return len(self.pairs)

    @cached_property
    def values(self) -> dict[int, tuple[float, float]]:
        """Of the pairs in which neither run failed."""
        return {
            seed: (one, other) for seed, (one, other) in self.pairs.items() if one is not None and other is not None
        }

    @cached_property
    def differences(self) -> dict[int, float]:
        """By seed, of self.values: the level's minus the other's."""
        return {seed: one - other for seed, (one, other) in self.values.items()}

    @cached_property
    def _all_differences(self) -> list[float]:
        """Of all pairs: infinite where one run failed, 0 where both did."""
        worst = -math.inf if self.higher_is_better else math.inf
        differences = list(self.differences.values())
        for one, other in self.pairs.values():
            if one is None and other is None:
                differences.append(0.0)
            elif one is None:
                differences.append(worst)
            elif other is None:
                differences.append(-worst)
        return differences

    @property
    def median(self) -> float:
        """Of the differences of all pairs; NaN without any."""
        return median(self._all_differences) if self.pairs else math.nan

    @cached_property
    def interval(self) -> tuple[float, float]:
        """Of the median, anytime-valid, at self.alpha."""
        return confidence_interval(self._all_differences, self.alpha)

    @property
    def mean(self) -> float:
        """Of self.differences, NaN without any."""
        return fmean(self.differences.values()) if self.differences else math.nan

    @property
    def deviation(self) -> float:
        """Sample standard deviation of self.differences."""
        return sample_deviation(list(self.differences.values()))

    @cached_property
    def signs(self) -> tuple[int, int]:
        """Pairs in which this level is better, and worse."""
        num_above = sum(value > 0 for value in self._all_differences)
        num_below = sum(value < 0 for value in self._all_differences)
        return (num_above, num_below) if self.higher_is_better else (num_below, num_above)

    @property
    def decided(self) -> bool:
        """Whether one of the levels is better for the typical seed, by the sign test."""
        low, high = self.interval
        return low > 0 or high < 0

    @property
    def is_better(self) -> bool:
        """Whether this level is better in more pairs, decided or not."""
        num_better, num_worse = self.signs
        return num_better > num_worse

    @property
    def is_equal(self) -> bool:
        """Whether no pair has a difference, as with a coarse metric, or where all runs failed."""
        return bool(self.pairs) and self.signs == (0, 0)

    @property
    def decisive_seed(self) -> int | None:
        """The seed without which the mean difference has another sign; None if there is none."""
        if len(self.differences) < 2:
            return None
        seed = max(self.differences, key=lambda seed: self.differences[seed] * math.copysign(1, self.mean))
        return seed if self.mean_without(seed) * self.mean < 0 else None

    def mean_without(self, seed: int) -> float:
        """Mean difference of the other seeds."""
        return fmean(value for other, value in self.differences.items() if other != seed)

    @property
    def correlation(self) -> float:
        """Of the two levels over self.values; NaN for few, or if one never varies."""
        one, other = self._columns()
        if len(one) < MIN_FOR_CORRELATION or not (one.std() > 0 and other.std() > 0):
            return math.nan
        return float(np.corrcoef(one, other)[0, 1])

    @property
    def variance_ratio(self) -> float:
        """How many times more seeds unpaired runs would need for the same variance of the mean difference.

        NaN for few pairs, infinite if all differences are equal.
        """
        one, other = self._columns()
        if len(one) < MIN_FOR_CORRELATION:
            return math.nan
        paired = (one - other).var(ddof=1)
        return float((one.var(ddof=1) + other.var(ddof=1)) / paired) if paired > 0 else math.inf

    def _columns(self) -> np.ndarray:
        return np.array(list(self.values.values())).reshape(-1, 2).T


def summarize(level: Level, by_seed: BySeed) -> LevelSummary:
    """A level's runs as values."""
    values = {seed: one.value for seed, one in sorted(by_seed.items()) if one.value is not None}
    return LevelSummary(level, values, len(by_seed) - len(values))


def compare_levels(
    observations: Mapping[Level, BySeed], level: Level, against: Level, *, higher_is_better: bool, alpha: float
) -> PairedComparison:
    """The comparison of two levels, which may err with probability alpha."""
    one, other = observations[level], observations[against]
    seeds = sorted(one.keys() & other.keys())
    pairs = {seed: (one[seed].value, other[seed].value) for seed in seeds}
    same_bits = [_same_bits(one[seed], other[seed]) for seed in seeds]
    return PairedComparison(level, against, pairs, bool(seeds) and all(same_bits), higher_is_better, alpha)


def _same_bits(one: Observation, other: Observation) -> bool:
    weights = one.run.tags.get(WEIGHTS_SHA256)
    return weights is not None and weights == other.run.tags.get(WEIGHTS_SHA256) and one.value == other.value

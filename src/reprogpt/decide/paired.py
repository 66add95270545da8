"""Compares levels by their runs of the same seeds: differences, intervals, and whether they are decided."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from reprogpt.decide.groups import Level, Observation
from reprogpt.decide.sequential import (
    ALPHA,
    MAX_NEEDED,
    MIN_PAIRS,
    confidence_interval,
    fixed_interval,
    holm,
    p_value,
    pairs_needed,
    sign_p_value,
)
from reprogpt.runs.compare import WEIGHTS

BySeed = Mapping[int, Observation]


@dataclass(frozen=True)
class LevelSummary:
    """The runs of one level. mean, deviation: of those with a value; NaN for too few. num_failed: without a value."""

    level: Level
    values: dict[int, float]
    num_failed: int

    @property
    def num_seeds(self) -> int:
        """Runs with and without a value."""
        return len(self.values) + self.num_failed

    @property
    def mean(self) -> float:
        """Of the runs with a value."""
        return float(np.mean(list(self.values.values()))) if self.values else math.nan

    @property
    def deviation(self) -> float:
        """Sample standard deviation (n - 1)."""
        return float(np.std(list(self.values.values()), ddof=1)) if len(self.values) > 1 else math.nan


@dataclass(frozen=True)
class PairedComparison:
    """A level against another, by the seeds that both have.

    differences: seed -> the level's value minus the other's, where both have one. num_better_alone, num_worse_alone:
    pairs in which only the other, or only this level, diverged or failed. identical: all pairs have equal weights
    and values. p: of the anytime-valid test, Holm-adjusted for all num_compared levels.
    """

    level: Level
    against: Level
    differences: dict[int, float]
    num_better_alone: int
    num_worse_alone: int
    num_both_failed: int
    correlation: float
    variance_ratio: float
    identical: bool
    higher_is_better: bool
    num_compared: int
    p: float

    @property
    def num_pairs(self) -> int:
        """Seeds that both levels have."""
        return len(self.differences) + self.num_better_alone + self.num_worse_alone + self.num_both_failed

    @property
    def by_signs(self) -> bool:
        """Whether a run without a value leaves only the signs of the differences to be tested."""
        return bool(self.num_better_alone or self.num_worse_alone)

    @property
    def mean(self) -> float:
        """Mean difference of the pairs with values, NaN without any."""
        return float(np.mean(list(self.differences.values()))) if self.differences else math.nan

    @property
    def deviation(self) -> float:
        """Sample standard deviation of the differences."""
        return float(np.std(list(self.differences.values()), ddof=1)) if len(self.differences) > 1 else math.nan

    @property
    def interval(self) -> tuple[float, float]:
        """Anytime-valid 95 % interval of the mean difference, of this comparison alone."""
        return confidence_interval(list(self.differences.values()))

    @property
    def fixed_interval(self) -> tuple[float, float]:
        """Student's 95 % interval, for a number of pairs fixed beforehand."""
        return fixed_interval(list(self.differences.values()))

    @property
    def signs(self) -> tuple[int, int]:
        """Pairs in which this level is better, and worse."""
        sign = 1 if self.higher_is_better else -1
        num_better = sum(sign * value > 0 for value in self.differences.values()) + self.num_better_alone
        num_worse = sum(sign * value < 0 for value in self.differences.values()) + self.num_worse_alone
        return num_better, num_worse

    @property
    def decided(self) -> bool:
        """Whether the test tells the levels apart."""
        return self.num_pairs >= MIN_PAIRS and self.p <= ALPHA

    @property
    def is_better(self) -> bool:
        """Whether this level looks better, decided or not."""
        num_better, num_worse = self.signs
        if self.by_signs:
            return num_better > num_worse
        return (self.mean > 0) == self.higher_is_better

    def more_pairs(self) -> int | None:
        """About how many more pairs would decide a difference of the present size; None for too many to say."""
        if self.by_signs:
            return _more_signs(*self.signs, self.num_compared)
        if not self.deviation > 0:  # too few to know it
            return max(1, MIN_PAIRS - self.num_pairs)
        needed = pairs_needed(self.mean / self.deviation, ALPHA / self.num_compared)
        return None if needed is None else max(1, needed - len(self.differences))


def summarize(level: Level, by_seed: BySeed) -> LevelSummary:
    """The mean and deviation of a level's runs."""
    values = {seed: one.value for seed, one in sorted(by_seed.items()) if one.value is not None}
    return LevelSummary(level, values, len(by_seed) - len(values))


def compare_levels(
    observations: Mapping[Level, BySeed], levels: Sequence[Level], against: Level, *, higher_is_better: bool
) -> list[PairedComparison]:
    """Each of the levels against one other. The p-values are Holm-adjusted for the levels that have pairs with it."""
    alone = [_compare(observations[level], observations[against], level, against, higher_is_better) for level in levels]
    paired = [comparison for comparison in alone if comparison.num_pairs]
    adjusted = dict(zip(map(id, paired), holm([comparison.p for comparison in paired]), strict=True))
    return [replace(one, p=adjusted.get(id(one), 1.0), num_compared=max(1, len(paired))) for one in alone]


def _compare(one: BySeed, other: BySeed, level: Level, against: Level, higher_is_better: bool) -> PairedComparison:
    """The comparison of two levels by themselves."""
    seeds = sorted(one.keys() & other.keys())
    values = {seed: (one[seed].value, other[seed].value) for seed in seeds}
    both = {seed: (a, b) for seed, (a, b) in values.items() if a is not None and b is not None}
    correlation, variance_ratio = _gain(list(both.values()))
    weights = [(one[seed].run.tags.get(WEIGHTS), other[seed].run.tags.get(WEIGHTS)) for seed in seeds]
    comparison = PairedComparison(
        level,
        against,
        differences={seed: a - b for seed, (a, b) in both.items()},
        num_better_alone=sum(a is not None and b is None for a, b in values.values()),
        num_worse_alone=sum(a is None and b is not None for a, b in values.values()),
        num_both_failed=sum(a is None and b is None for a, b in values.values()),
        correlation=correlation,
        variance_ratio=variance_ratio,
        identical=bool(both) and all(a == b for a, b in both.values()) and all(a and a == b for a, b in weights),
        higher_is_better=higher_is_better,
        num_compared=1,
        p=p_value([a - b for a, b in both.values()]),
    )
    return replace(comparison, p=sign_p_value(*comparison.signs)) if comparison.by_signs else comparison


def _gain(pairs: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """The pairs' correlation, and the variance of an unpaired difference over that of the paired one; NaN for few."""
    if len(pairs) < MIN_PAIRS:
        return math.nan, math.nan
    a, b = np.array(pairs).T
    variances, paired = a.var(ddof=1) + b.var(ddof=1), (a - b).var(ddof=1)
    both_vary = a.std() > 0 and b.std() > 0
    correlation = float(np.corrcoef(a, b)[0, 1]) if both_vary else math.nan
    return correlation, float(variances / paired) if paired > 0 else math.inf


def _more_signs(num_better: int, num_worse: int, num_compared: int) -> int | None:
    """Pairs in the present proportion of signs until the sign test decides."""
    total = num_better + num_worse
    for n in range(total + 1, MAX_NEEDED):
        ahead = round(n * max(num_better, num_worse) / total)
        if sign_p_value(ahead, n - ahead) <= ALPHA / num_compared:
            return n - total
    return None

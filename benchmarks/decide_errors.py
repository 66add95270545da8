"""How often `reprogpt decide` is wrong, and how many pairs it needs, on simulated runs.

python -m benchmarks.decide_errors prints the tables of docs/deciding.md, always the same ones: some seconds.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from scipy import stats

from reprogpt.decide.sign_test import ALPHA, min_pairs, needed_majority

NUM_SEQUENCES = 2000  # simulated of each kind
MAX_SEEDS = 20  # of a sequence, checked after each seed
EFFECTS = (0.5, 1.0, 1.5, 2.0, 3.0, 5.0)  # mean differences in standard deviations
MAX_PAIRS = 250
T_TEST_PAIRS = {0.5: 37, 1.0: 12, 1.5: 7, 2.0: 6, 3.0: 5, 5.0: 5}  # of the sequential t-test of Wang and Ramdas (2023)

Draw = Callable[[np.random.Generator, tuple[int, ...]], np.ndarray]

# Runs of values that make no difference, by kind.
EXCHANGEABLE_RUNS: dict[str, Draw] = {
    "normal": lambda rng, shape: rng.standard_normal(shape),
    "t, 3 degrees of freedom": lambda rng, shape: rng.standard_t(3, shape),
    "Cauchy": lambda rng, shape: rng.standard_cauchy(shape),
    "lognormal": lambda rng, shape: rng.lognormal(size=shape),
    "two-valued": lambda rng, shape: rng.choice([0.0, 1.0], shape),
    "normal, 10 % fail": lambda rng, shape: np.where(rng.random(shape) < 0.1, np.inf, rng.standard_normal(shape)),
}


def _spike(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """10 in 10 % of the runs, else 0."""
    return np.where(rng.random(shape) < 0.1, 10.0, 0.0)


@dataclass(frozen=True)
class Differences:
    """Differences of pairs, below 0 where the value is better. truth: the sign of the typical seed, 0 for none."""

    name: str
    draw: Draw
    truth: int


DIFFERENCES = (
    Differences("normal, mean 0", lambda rng, shape: rng.standard_normal(shape), 0),
    Differences("skewed: exponential, median 0", lambda rng, shape: rng.exponential(size=shape) - math.log(2), 0),
    Differences("skewed: exponential, mean 0", lambda rng, shape: rng.exponential(size=shape) - 1, -1),
    Differences(
        "two clusters: -1 or 1, deviation 0.2",
        lambda rng, shape: rng.choice([-1.0, 1.0], shape) + 0.2 * rng.standard_normal(shape),
        0,
    ),
    Differences(
        "runs of both values spike in 10 % of the seeds",
        lambda rng, shape: rng.standard_normal(shape) + _spike(rng, shape) - _spike(rng, shape),
        0,
    ),
    Differences(
        "better by 1, but spikes in 10 % of the seeds: mean 0",
        lambda rng, shape: rng.standard_normal(shape) - 1 + _spike(rng, shape),
        -1,
    ),
)


def decides(num_pairs: int, alpha: float = ALPHA) -> np.ndarray:
    """For 1 to num_pairs pairs, the number with one sign that decides: (num_pairs,) float64, inf for too few pairs."""
    majorities = [needed_majority(n, alpha) for n in range(1, num_pairs + 1)]
    return np.array([math.inf if majority is None else majority for majority in majorities])


def ever_decided(differences: np.ndarray, alpha: float = ALPHA) -> tuple[np.ndarray, np.ndarray]:
    """For each row of differences, (rows, pairs): whether "better", and "worse", is ever decided."""
    needed = decides(differences.shape[1], alpha)
    better: np.ndarray = np.any((differences < 0).cumsum(axis=1) >= needed, axis=1)
    worse: np.ndarray = np.any((differences > 0).cumsum(axis=1) >= needed, axis=1)
    return better, worse


def wrong_verdicts(kind: Differences) -> tuple[float, float]:
    """Shares of sequences in which any verdict is ever given, and one that is wrong about the typical seed."""
    better, worse = ever_decided(kind.draw(np.random.default_rng(1), (NUM_SEQUENCES, MAX_SEEDS)))
    wrong = {-1: worse, 0: better | worse, 1: better}[kind.truth]
    return float((better | worse).mean()), float(wrong.mean())


def errors_of_equal_values(draw: Draw, num_values: int) -> float:
    """Share of sequences in which any of num_values equal values ever gets a verdict, or is not on the plateau."""
    runs = draw(np.random.default_rng(2), (num_values, NUM_SEQUENCES, MAX_SEEDS))
    alpha = ALPHA / math.comb(num_values, 2)
    wrong = np.zeros(NUM_SEQUENCES, bool)
    for one, other in combinations(range(num_values), 2):
        # Two failed runs are equal; inf - inf would be NaN.
        differences = np.where(
            runs[one] == runs[other], 0.0, runs[one] - np.where(np.isinf(runs[one]), 0.0, runs[other])
        )
        better, worse = ever_decided(differences, alpha)
        wrong |= better | worse
    return float(wrong.mean())


def pairs_for(effect: float) -> tuple[float, float, int]:
    """Pairs after which half and 80 % of comparisons are decided, and those of a planned t-test for 80 %."""
    x = np.random.default_rng(3).standard_normal((NUM_SEQUENCES, MAX_PAIRS)) + effect
    is_decided = (x > 0).cumsum(axis=1) >= decides(MAX_PAIRS)
    first = np.sort(np.where(is_decided.any(axis=1), is_decided.argmax(axis=1) + 1.0, np.inf))
    planned = next(n for n in range(2, MAX_PAIRS) if _student(x[:, :n]).mean() >= 0.8)
    return float(first[NUM_SEQUENCES // 2]), float(first[int(0.8 * NUM_SEQUENCES)]), planned


def _student(x: np.ndarray) -> np.ndarray:
    """Whether Student's paired t rejects at ALPHA with all pairs of each row."""
    rejected: np.ndarray = stats.ttest_1samp(x, 0, axis=1).pvalue <= ALPHA
    return rejected


def main() -> None:
    print(f"{NUM_SEQUENCES:,} sequences of each kind, checked after each of 1 to {MAX_SEEDS} seeds\n")
    print("| differences of pairs | typical seed | any verdict | wrong verdict |\n|---|---|---|---|")
    for kind in DIFFERENCES:
        any_verdict, wrong = wrong_verdicts(kind)
        truth = {-1: "better", 0: "no difference", 1: "worse"}[kind.truth]
        print(f"| {kind.name} | {truth} | {100 * any_verdict:.1f} % | {100 * wrong:.1f} % |")
    counts = (2, 3, 6, 10)
    print(f"\n| equal values: any verdict, or plateau without one | {' | '.join(map(str, counts))} values |")
    print("|---" * (1 + len(counts)) + "|")
    for name, draw in EXCHANGEABLE_RUNS.items():
        shares = [f"{100 * errors_of_equal_values(draw, count):.1f} %" for count in counts]
        print(f"| {name} | {' | '.join(shares)} |")
    print("\n| values | comparisons | pairs of one sign that decide |\n|---|---|---|")
    for count in counts:
        num_comparisons = math.comb(count, 2)
        print(f"| {count} | {num_comparisons} | {min_pairs(ALPHA / num_comparisons)} |")
    print(
        "\n| difference, in standard deviations | half are decided by | 80 % by | sequential t-test, half | planned t |"
    )
    print("|---|---|---|---|---|")
    for effect in EFFECTS:
        half, most, planned = pairs_for(effect)
        print(f"| {effect:g} | {half:g} pairs | {most:g} | {T_TEST_PAIRS[effect]} | {planned} |")


if __name__ == "__main__":
    main()

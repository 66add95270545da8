"""How often `reprogpt decide` errs, and how many pairs it needs: simulated differences of pairs.

python -m benchmarks.decide_errors prints the tables of docs/deciding.md: half a minute.
"""

from collections.abc import Callable

import numpy as np
from scipy import stats

from reprogpt.decide.sequential import ALPHA, first_decisions

NUM_COMPARISONS = 2000  # simulated of each kind
NUM_LOOKS = 20  # pairs of a comparison without a difference, looked at after each
EFFECTS = (0.5, 1.0, 1.5, 2.0, 3.0, 5.0)  # mean differences in standard deviations
MAX_PAIRS = 120

Draw = Callable[[np.random.Generator, tuple[int, int]], np.ndarray]
# Differences of pairs without an effect: mean 0.
DISTRIBUTIONS: dict[str, Draw] = {
    "normal": lambda rng, shape: rng.standard_normal(shape),
    "t, 3 degrees of freedom": lambda rng, shape: rng.standard_t(3, shape),
    "skewed (exponential)": lambda rng, shape: rng.exponential(size=shape) - 1,
    "bimodal (-1 or 1, deviation 0.2)": lambda rng, shape: (
        rng.choice([-1.0, 1.0], shape) + 0.2 * rng.standard_normal(shape)
    ),
}


def false_decisions(draw: Draw) -> tuple[float, float]:
    """Shares of comparisons without a difference that are ever decided in NUM_LOOKS looks: here, and by Student's t."""
    x = draw(np.random.default_rng(1), (NUM_COMPARISONS, NUM_LOOKS))
    return float(np.isfinite(first_decisions(x)).mean()), float(np.isfinite(_first_of_student(x)).mean())


def pairs_for(effect: float) -> tuple[float, float, int]:
    """Pairs after which half and 80 % of comparisons are decided, and what a test planned beforehand needs for 80 %."""
    x = np.random.default_rng(2).standard_normal((NUM_COMPARISONS, MAX_PAIRS)) + effect
    decided = np.sort(first_decisions(x))
    planned = next(n for n in range(2, MAX_PAIRS) if _student(x[:, :n])[:, -1].mean() >= 0.8)
    return float(decided[NUM_COMPARISONS // 2]), float(decided[int(0.8 * NUM_COMPARISONS)]), planned


def _student(x: np.ndarray) -> np.ndarray:
    """Whether Student's paired t rejects at ALPHA after each number of pairs from 2 on, (rows, pairs - 1)."""
    n = np.arange(2, x.shape[1] + 1)
    total, squares = x.cumsum(axis=1)[:, 1:], np.square(x).cumsum(axis=1)[:, 1:]
    variance = (squares - np.square(total) / n) / (n - 1)
    rejected: np.ndarray = np.abs(total / n) > stats.t.ppf(1 - ALPHA / 2, n - 1) * np.sqrt(variance / n)
    return rejected


def _first_of_student(x: np.ndarray) -> np.ndarray:
    rejected = _student(x)
    return np.where(rejected.any(axis=1), rejected.argmax(axis=1) + 2.0, np.inf)


def main() -> None:
    print(f"{NUM_COMPARISONS:,} comparisons without a difference, looked at after each of 2 to {NUM_LOOKS} pairs\n")
    print("| differences | `decide` ever errs | Student's t, looked at as often |\n|---|---|---|")
    for name, draw in DISTRIBUTIONS.items():
        ours, student = false_decisions(draw)
        print(f"| {name} | {100 * ours:.1f} % | {100 * student:.1f} % |")
    print("\n| difference, in standard deviations | half are decided by | 80 % by | a planned t-test, 80 % |")
    print("|---|---|---|---|")
    for effect in EFFECTS:
        half, most, planned = pairs_for(effect)
        print(f"| {effect:g} | {half:g} pairs | {most:g} | {planned} |")


if __name__ == "__main__":
    main()

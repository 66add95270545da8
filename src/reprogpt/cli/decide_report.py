"""What `reprogpt decide` prints of a decision."""

import math
from collections.abc import Sequence
from statistics import NormalDist, fmean

from reprogpt.decide.decision import Decision, is_numeric
from reprogpt.decide.groups import SEED, Group, differing_inputs
from reprogpt.decide.paired import LevelSummary, PairedComparison, sample_deviation
from reprogpt.decide.queue_line import MAX_SEEDS, queue_lines
from reprogpt.decide.sign_test import ALPHA, MAX_PAIRS, POWER, min_pairs, more_pairs, pairs_needed
from reprogpt.tracking.store.tracked_run import TrackedRun

MAX_LISTED = 5
COLUMNS = (
    "seeds",
    "failed",
    "pairs",
    "mean",
    "std",
    "baseline",
    "median diff.",
    "95 % interval",
    "better",
    "corr.",
    "saved",
)
LEGEND = (
    "mean, std: over a value's runs in pairs. baseline: the baseline's mean over the same seeds.",
    "corr.: correlation of the pairs. saved: how many times more seeds unpaired runs would need for the same mean.",
)


def report(decision: Decision, needs: float | None = None) -> list[str]:
    """Lines of the report: runs, table, verdicts, and commands for the missing runs.

    needs: also say how many pairs it takes to detect this difference of the metric; None: don't.
    """
    lines = [*_runs(decision), "", *_table(decision), "", *verdicts(decision)]
    if needs is not None:
        lines += [_needs(comparison, needs, decision) for comparison in decision.comparisons]
    return lines + _next_runs(decision)


def verdicts(decision: Decision) -> list[str]:
    """Each value's verdict against the baseline, the plateau if there are three values or more, and the limits."""
    lines = [line for comparison in decision.comparisons for line in _verdict(comparison, decision)]
    num_values = len(decision.summaries)
    if num_values > 2:
        lines.append(_plateau(decision))
        lines.append(
            f"{num_values} values make {math.comb(num_values, 2)} comparisons: verdicts, intervals and plateau hold "
            f"together at {100 * (1 - ALPHA):g} %"
        )
    fewest = min((one.num_pairs for one in decision.comparisons if one.pairs and not one.identical), default=0)
    if fewest > 3:  # the rule of three: after n pairs without a failure, up to 3 / n of all seeds may fail (at 95 %)
        share = f"3 of {fewest} seeds ({300 / fewest:.0f} %)"
        lines.append(f"{_pairs(fewest)} can't exclude a failure or spike in up to {share}")
    return lines


def _runs(decision: Decision) -> list[str]:
    question, group = decision.question, decision.group
    best = "higher" if question.higher_is_better else "lower"
    lines = [f"{' and '.join(question.keys)} by {question.metric} ({best} is better), runs paired by {SEED}, sign test"]
    lines.append(f"{group.num_runs} runs with otherwise equal inputs")
    if decision.differs_from_present:
        differences = ", ".join(f"{key}={a} (there {b})" for key, (a, b) in decision.differs_from_present.items())
        lines.append(f"not those of params.yaml, which has no runs of two values: {differences}")
    if decision.skipped_baseline:
        lines.append(
            f"the baseline is {', '.join(decision.baseline)}: params.yaml's {', '.join(decision.skipped_baseline)} has "
            "no seed in common with another value"
        )
    left_out = group.left_out
    lines += _left_out("not trained by this pipeline, which gives each run a run_key", decision.foreign, names=True)
    lines += _left_out("still training", left_out.running, names=True)
    lines += _left_out("stopped before the end", left_out.stopped)
    lines += _left_out(f"without {question.metric} (evaluate has not run, or failed)", left_out.without_metric)
    lines += _left_out(f"without {' or '.join((*question.keys, SEED))}", left_out.without_key)
    lines += _left_out("repeating a value and seed", left_out.repeated)
    for other in decision.others[:MAX_LISTED]:
        lines.append(f"another group: {other.num_runs} runs, {_difference(other, group)}")
    if len(decision.others) > MAX_LISTED:
        lines.append(f"and {len(decision.others) - MAX_LISTED} more groups; choose one with --where NAME=VALUE")
    return lines


def _left_out(reason: str, runs: Sequence[TrackedRun], *, names: bool = False) -> list[str]:
    if not runs:
        return []
    line = f"left out: {len(runs)} {reason}"
    if not names:
        return [line]
    listed = ", ".join(run.name for run in runs[:MAX_LISTED])
    more = ", ..." if len(runs) > MAX_LISTED else ""
    return [f"{line} ({listed}{more})"]


def _difference(other: Group, group: Group) -> str:
    differing = differing_inputs(other, group)
    inputs = [
        f"without {name}" if value is None else f"--where {name}={value}" for name, (value, _) in differing.items()
    ]
    more = f" and {len(inputs) - 3} more differences" if len(inputs) > 3 else ""
    return " ".join(inputs[:3]) + more


def _table(decision: Decision) -> list[str]:
    """Aligned columns, one row per level, then the legend. The baseline's row has no comparison."""
    by_level = {comparison.level: comparison for comparison in decision.comparisons}
    rows = [[*decision.question.keys, *COLUMNS]]
    for summary in decision.summaries:
        comparison = by_level.get(summary.level)
        cells = _baseline_cells(summary) if comparison is None else _comparison_cells(comparison)
        rows.append([*summary.level, str(summary.num_seeds), str(summary.num_failed), *cells])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    return [*lines, *LEGEND]


def _baseline_cells(summary: LevelSummary) -> list[str]:
    """The baseline's mean and deviation are of all its runs."""
    values = list(summary.values.values())
    mean = fmean(values) if values else math.nan
    return ["", number(mean), number(sample_deviation(values)), "baseline", "", "", "", "", ""]


def _comparison_cells(comparison: PairedComparison) -> list[str]:
    own = [one for one, _ in comparison.values.values()]
    baseline = [other for _, other in comparison.values.values()]
    ratio = comparison.variance_ratio
    return [
        str(comparison.num_pairs),
        number(fmean(own) if own else math.nan),
        number(sample_deviation(own)),
        number(fmean(baseline) if baseline else math.nan),
        number(comparison.median, signed=True),
        _interval(comparison),
        f"{comparison.signs[0]} of {comparison.num_pairs}",
        "-" if math.isnan(comparison.correlation) else f"{comparison.correlation:.2f}",
        f"{ratio:.1f} x" if math.isfinite(ratio) else "-",
    ]


def _interval(comparison: PairedComparison) -> str:
    """The interval in words. Too few pairs, or failed runs, leave one or both ends open."""
    low, high = comparison.interval
    if math.isinf(low) and math.isinf(high):
        return "-"
    if math.isinf(low):
        return f"up to {number(high, signed=True)}"
    if math.isinf(high):
        return f"from {number(low, signed=True)}"
    return f"{number(low, signed=True)} to {number(high, signed=True)}"


def _verdict(comparison: PairedComparison, decision: Decision) -> list[str]:
    label = decision.question.label(comparison.level)
    against = ", ".join(comparison.against)
    pairs = _pairs(comparison.num_pairs)
    if comparison.identical:
        return [f"{label} and {against} are identical to the bit in {pairs}: it makes no difference here"]
    if comparison.is_equal:
        what = f"{decision.question.metric} is equal" if comparison.differences else "both runs failed"
        return [f"{label} against {against}: undecided: {what} in {pairs}; more would not tell them apart"]
    if comparison.decided:
        word = "better" if comparison.is_better else "worse"
        share = f"in {max(comparison.signs)} of {pairs}"
        size = _size(comparison, decision)
        lines = [f"{label} is {word} than {against} for the typical seed, {share}{size}, on this text"]
    elif not comparison.num_pairs:
        lines = [f"{label} against {against}: undecided: no seed has runs of both"]
    else:
        share = f"better in {comparison.signs[0]} of {pairs}"
        lines = [f"{label} against {against}: undecided by the sign test: {share}; {_more(comparison)}"]
    return lines + _mean_against_median(comparison, decision)


def _size(comparison: PairedComparison, decision: Decision) -> str:
    """By how much the value is better or worse, as far as the interval is bounded."""
    near, far = sorted(abs(end) for end in comparison.interval)
    name = unit(decision.question.metric)
    if math.isfinite(far):
        return f", by {number(abs(comparison.median))}{name} ({number(near)} to {number(far)})"
    return f", by at least {number(near)}{name}" if math.isfinite(near) else ""


def _mean_against_median(comparison: PairedComparison, decision: Decision) -> list[str]:
    """A line if the mean points the other way than the median, or owes its sign to a single seed.

    Verdicts are about the typical seed, so the reader is told when the mean says something else.
    """
    label, mean = decision.question.label(comparison.level), number(comparison.mean, signed=True)
    seed = comparison.decisive_seed
    alone = "" if seed is None else f": without seed {seed} it is {number(comparison.mean_without(seed), signed=True)}"
    if comparison.mean * comparison.median < 0:
        return [f"{label}: the mean difference, {mean}, points the other way{alone}"]
    return [f"{label}: one pair carries the mean difference, {mean}{alone}"] if alone else []


def _pairs(count: int) -> str:
    return f"{count} pair{'' if count == 1 else 's'}"


def _more(comparison: PairedComparison) -> str:
    fewest = min_pairs(comparison.alpha)
    if comparison.num_pairs < fewest:
        return f"fewer than {fewest} never decide"
    more = more_pairs(max(comparison.signs), comparison.num_pairs, comparison.alpha)
    if more is None:
        return f"at this share it would need more than {MAX_PAIRS}"
    return f"about {more} more would settle it at this share"


def _plateau(decision: Decision) -> str:
    """The plateau: the values that no other is decided to be better than. Adjacent numbers are given as a range."""
    keys = " and ".join(decision.question.keys)
    values = [", ".join(level) for level in decision.plateau]
    if not values:
        return f"plateau: none, as each {keys} is decided to be worse than another"
    if len(values) == 1:
        return f"plateau: {keys} {values[0]}: every other value is decided to be worse than another"
    between = "; ".join(values)
    if is_numeric(decision.plateau):
        levels = decision.group.levels
        first, last = (levels.index(decision.plateau[n]) for n in (0, -1))
        if last - first + 1 == len(values):
            between = f"from {values[0]} to {values[-1]}"
    return f"plateau: {keys} {between}: none of them is decided to be worse than another value"


def _needs(comparison: PairedComparison, difference: float, decision: Decision) -> str:
    label = f"{decision.question.label(comparison.level)}: to see a difference of {difference:g}"
    deviation = comparison.deviation
    if not deviation > 0:
        return f"{label}: unknown: it takes pairs with unequal differences to estimate their deviation"
    num_failed = comparison.num_pairs - len(comparison.differences)
    share = (1 - num_failed / comparison.num_pairs) * NormalDist().cdf(difference / deviation)
    needed = pairs_needed(share, comparison.alpha)
    pairs = f"more than {MAX_PAIRS} pairs" if needed is None else f"about {needed} pairs"
    failed = f"; {num_failed} in which a run failed count against it" if num_failed else ""
    return (
        f"{label}, {pairs}, there are {comparison.num_pairs} (enough in {100 * POWER:g} % of cases if differences are "
        f"normal with standard deviation {number(deviation)}{failed})"
    )


def _next_runs(decision: Decision) -> list[str]:
    """Commands that queue the runs undecided comparisons still need, except those that are training or queued."""
    settled = [one for one in decision.comparisons if one.decided or one.identical or one.is_equal]
    wanted = {one.level: _wanted(one) for one in decision.comparisons if one not in settled}
    num_pairs = {level: count for level, count in wanted.items() if count is not None and count <= MAX_SEEDS}
    if not num_pairs:
        return []
    group, keys = decision.group, decision.question.keys
    others = {key: value for key, (value, _) in decision.differs_from_present.items()}
    levels = [decision.baseline, *num_pairs]
    seeds_of = {level: [*group.observations[level], *group.pending.get(level, ())] for level in levels}
    lines = queue_lines(keys, seeds_of, levels, max(num_pairs.values()), others)
    if not lines:
        return ["", "the runs that this takes still train or are queued: decide again when they are done"]
    return ["", *lines, "dvc queue start"]


def _wanted(comparison: PairedComparison) -> int | None:
    """Number of pairs, those present included, that may decide; None: more than MAX_PAIRS."""
    fewest = min_pairs(comparison.alpha)
    if comparison.num_pairs < fewest:
        return fewest
    more = more_pairs(max(comparison.signs), comparison.num_pairs, comparison.alpha)
    return None if more is None else comparison.num_pairs + more


def unit(metric: str) -> str:
    """' nats' for losses, else ''."""
    return " nats" if metric.endswith("loss") else ""


def number(value: float, *, signed: bool = False) -> str:
    """Four decimals, or three significant digits where four decimals would hide the value; "-" for none."""
    if not math.isfinite(value):
        return "-"
    digits = ".4f" if value == 0 or 1e-2 <= abs(value) < 1e5 else ".3g"
    return format(value, f"{'+' if signed else ''}{digits}")

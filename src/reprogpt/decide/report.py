"""A decision as lines for a terminal. Values in, text out."""

import math
from collections.abc import Sequence

from reprogpt.decide.decision import Decision, is_numeric
from reprogpt.decide.groups import SEED, Group, differing_inputs
from reprogpt.decide.paired import LevelSummary, PairedComparison
from reprogpt.decide.queue_line import MAX_SEEDS, queue_lines
from reprogpt.decide.sequential import ALPHA, MAX_NEEDED, MIN_PAIRS, POWER, pairs_needed
from reprogpt.tracking.store.tracked_run import TrackedRun

MAX_LISTED = 5
COLUMNS = ("seeds", "mean", "std", "failed", "pairs", "difference", "95 % interval", "better", "corr.", "saved")
BY_SIGNS = "by the sign test, as a run that diverged or failed has no value"


def report(decision: Decision, needs: float | None = None) -> list[str]:
    """Runs, table, verdicts and what to do next. needs: a difference whose number of pairs is asked for."""
    lines = [*_runs(decision), "", *_table(decision), ""]
    lines += [_fixed(comparison, decision) for comparison in decision.comparisons if comparison.num_pairs > 1]
    lines += ["", *verdicts(decision)]
    if needs is not None:
        lines += [_needs(comparison, needs, decision) for comparison in decision.comparisons]
    return lines + _next_runs(decision)


def verdicts(decision: Decision) -> list[str]:
    """A sentence for each value against the baseline, and one about the plateau of three values or more."""
    lines = [_verdict(comparison, decision) for comparison in decision.comparisons]
    if len(decision.comparisons) > 1:
        lines.append(
            f"{len(decision.comparisons)} values against one baseline: the verdicts hold together at "
            f"{100 * ALPHA:g} % (Holm); each interval is for itself"
        )
        lines.append(_plateau(decision))
    return lines


def unit(metric: str) -> str:
    """' nats' for losses, else ''."""
    return " nats" if metric.endswith("loss") else ""


def number(value: float, *, signed: bool = False) -> str:
    """Four decimals, or three significant digits where four decimals would hide the value."""
    if not math.isfinite(value):
        return "-" if math.isnan(value) else f"{value:+g}"
    digits = ".4f" if value == 0 or 1e-2 <= abs(value) < 1e5 else ".3g"
    return format(value, f"{'+' if signed else ''}{digits}")


def _runs(decision: Decision) -> list[str]:
    question, group = decision.question, decision.group
    best = "higher" if question.higher_is_better else "lower"
    lines = [f"{' and '.join(question.keys)} by {question.metric} ({best} is better), runs paired by {SEED}"]
    lines.append(f"{group.num_runs} runs with otherwise equal inputs")
    if decision.differs_from_present:
        differences = ", ".join(f"{key}={a} (there {b})" for key, (a, b) in decision.differs_from_present.items())
        lines.append(f"not those of params.yaml, which has no runs of two values: {differences}")
    left_out = group.left_out
    lines += _left_out("still training", left_out.running, names=True)
    lines += _left_out("stopped before the end", left_out.stopped)
    lines += _left_out(f"without {question.metric} (evaluate has not run)", left_out.without_metric)
    lines += _left_out(f"without the parameter {' or '.join(question.keys)}", left_out.without_key)
    lines += _left_out("repeating a value and seed", left_out.repeated)
    for other in decision.others[:MAX_LISTED]:
        lines.append(f"another group: {other.num_runs} runs, {_difference(other, group)}")
    if len(decision.others) > MAX_LISTED:
        lines.append(f"and {len(decision.others) - MAX_LISTED} groups more; --where NAME=VALUE chooses one")
    return lines


def _left_out(reason: str, runs: Sequence[TrackedRun], *, names: bool = False) -> list[str]:
    listed = ", ".join(run.name for run in runs[:MAX_LISTED])
    return [f"left out: {len(runs)} {reason}{f' ({listed})' if names else ''}"] if runs else []


def _difference(other: Group, group: Group) -> str:
    found = differing_inputs(other, group)
    first = [f"--where {name}={'none' if theirs is None else theirs}" for name, (theirs, _) in found.items()][:3]
    return f"{' '.join(first)}{f' and {len(found) - 3} differences more' if len(found) > 3 else ''}"


def _table(decision: Decision) -> list[str]:
    """Columns: a row for each level, the baseline's without a comparison."""
    by_level = {comparison.level: comparison for comparison in decision.comparisons}
    rows = [[*decision.question.keys, *COLUMNS]]
    for summary in decision.summaries:
        rows.append([*_summary_cells(summary), *_comparison_cells(by_level.get(summary.level))])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    return [*lines, "corr.: correlation of the pairs. saved: unpaired, as many times the seeds would be needed"]


def _summary_cells(summary: LevelSummary) -> list[str]:
    return [
        *summary.level,
        str(summary.num_seeds),
        number(summary.mean),
        number(summary.deviation),
        str(summary.num_failed),
    ]


def _comparison_cells(comparison: PairedComparison | None) -> list[str]:
    if comparison is None:
        return ["baseline", "", "", "", "", ""]
    low, high = comparison.interval
    num_better, _ = comparison.signs
    return [
        str(comparison.num_pairs),
        number(comparison.mean, signed=True),
        f"{number(low, signed=True)} to {number(high, signed=True)}" if math.isfinite(low) else "-",
        f"{num_better} of {comparison.num_pairs}",
        "-" if math.isnan(comparison.correlation) else f"{comparison.correlation:.2f}",
        f"{comparison.variance_ratio:.1f} x" if math.isfinite(comparison.variance_ratio) else "-",
    ]


def _fixed(comparison: PairedComparison, decision: Decision) -> str:
    low, high = comparison.fixed_interval
    return (
        f"{decision.question.label(comparison.level)}: {number(low, signed=True)} to {number(high, signed=True)} by "
        f"Student's paired t, valid only if {len(comparison.differences)} pairs were planned beforehand"
    )


def _verdict(comparison: PairedComparison, decision: Decision) -> str:
    question = decision.question
    label = question.label(comparison.level)
    against = ", ".join(comparison.against)
    pairs = f"{comparison.num_pairs} pair{'' if comparison.num_pairs == 1 else 's'}"
    if comparison.identical:
        return f"{label} and {against} are identical to the bit in {pairs}: it makes no difference here"
    if comparison.decided:
        word = "better" if comparison.is_better else "worse"
        if comparison.by_signs:
            num_better, num_worse = comparison.signs
            share = f"{max(num_better, num_worse)} of {pairs}"
            return f"{label} is {word} than {against} in {share}, {BY_SIGNS}, on this text"
        low, high = sorted(abs(end) for end in comparison.interval)
        size = f"{number(abs(comparison.mean))}{unit(question.metric)} ({number(low)} to {number(high)})"
        return f"{label} is {word} than {against} by {size}, on this text"
    if not comparison.num_pairs:
        return f"{label} against {against}: undecided: no seed has runs of both"
    return f"{label} against {against}: undecided: {pairs}; {_more(comparison)}"


def _more(comparison: PairedComparison) -> str:
    if comparison.num_pairs < MIN_PAIRS:
        return f"fewer than {MIN_PAIRS} never decide"
    more = comparison.more_pairs()
    if more is None:
        return f"a difference of this size would need more than {MAX_NEEDED}"
    return f"about {more} more would settle a difference of this size"


def _plateau(decision: Decision) -> str:
    """The values that can't be told from the best; of numbers, from where to where."""
    keys, values = " and ".join(decision.question.keys), [", ".join(level) for level in decision.plateau]
    best = ", ".join(decision.best)
    if len(values) == 1:
        return f"plateau: {keys} {best} is told apart from all other values"
    if is_numeric(decision.plateau):
        levels = decision.group.levels
        first, last = (levels.index(decision.plateau[n]) for n in (0, -1))
        if last - first + 1 == len(values):
            return f"plateau: {keys} from {values[0]} to {values[-1]} can't be told from the best mean, {best}"
    return f"plateau: {keys} {'; '.join(values)} can't be told from the best mean, {best}"


def _needs(comparison: PairedComparison, difference: float, decision: Decision) -> str:
    label = f"{decision.question.label(comparison.level)}: to see a difference of {difference:g}"
    if not comparison.deviation > 0:
        return f"{label}: not known; {MIN_PAIRS} pairs that differ are needed to know the deviation"
    needed = pairs_needed(difference / comparison.deviation, ALPHA / comparison.num_compared)
    pairs = f"more than {MAX_NEEDED} pairs" if needed is None else f"about {needed} pairs"
    return (
        f"{label}, {pairs}, there are {len(comparison.differences)} (differences have the standard deviation "
        f"{number(comparison.deviation)}; in {100 * POWER:g} % of cases)"
    )


def _next_runs(decision: Decision) -> list[str]:
    """The commands that queue the runs which undecided comparisons lack, but for those that train or are queued."""
    undecided = [one for one in decision.comparisons if not one.decided and not one.identical]
    wanted = {one.level: one.num_pairs + more for one in undecided if (more := _wanted(one)) is not None}
    wanted = {level: num_pairs for level, num_pairs in wanted.items() if num_pairs <= MAX_SEEDS}
    if not wanted:
        return []
    group, keys = decision.group, decision.question.keys
    others = {key: value for key, (value, _) in decision.differs_from_present.items()}
    levels = [decision.baseline, *wanted]
    seeds_of = {level: [*group.observations[level], *group.pending.get(level, ())] for level in levels}
    lines = queue_lines(keys, seeds_of, levels, max(wanted.values()), others)
    if not lines:
        return ["", "the runs that this takes still train or are queued: decide again when they are done"]
    return ["", *lines, "dvc queue start"]


def _wanted(comparison: PairedComparison) -> int | None:
    if comparison.num_pairs < MIN_PAIRS:
        return MIN_PAIRS - comparison.num_pairs
    return comparison.more_pairs()

"""`reprogpt compare A B`: print the differences between two runs, the most important first."""

from collections.abc import Sequence

import click

from reprogpt.cli.command import RUN, Command
from reprogpt.decide.decision import num_pairs
from reprogpt.errors import PipelineError
from reprogpt.messages import print_lines
from reprogpt.runs.compare import Change, Comparison, Divergence, diff_runs
from reprogpt.runs.find import format_runs, require_run, runs_named
from reprogpt.step_record import STEP_METRICS
from reprogpt.tracking.store.client import metric_histories, search_runs
from reprogpt.tracking.store.tracked_run import TrackedRun

WIDTH = 80


@click.command(cls=Command)
@click.argument("a", metavar="A", help=RUN)
@click.argument("b", metavar="B", help="the other run, named in the same ways")
def compare(a: str, b: str) -> int:
    """Print the differences between two runs.

    They are, in this order: inputs, code, environment, the first step whose recorded values differ in their bits and
    the difference of the losses from that step on, results, and weights.

    \b
    Exit codes:
      0  parameters, text, tokens, every recorded step, results and weights
         are identical to the bit; code and environment may differ
      1  they are not identical
      2  a run can't be found, or A and B are the same run

    \b
    Examples:
      reprogpt compare corrected book      by name
      reprogpt compare 3f9a1c b2774e       by the first digits of the ids
    """
    runs = search_runs()
    chosen = [require_run(what, runs) for what in (a, b)]
    (run_a, _), (run_b, _) = chosen
    if run_a.id == run_b.id:
        same_name = format_runs(runs_named(run_a.name, runs))
        raise PipelineError(f"{a} and {b} are the same run; runs of one name are told apart by id:{same_name}")
    for letter, (run, remark) in zip("AB", chosen, strict=True):
        print_lines([f"{letter}  {run.id}  {run.name}  {run.status}"])
        if remark:
            print_lines(f"   {remark}".split("\n"))
    histories = [metric_histories(run.id, STEP_METRICS) for run in (run_a, run_b)]
    comparison = diff_runs(run_a, run_b, *histories)
    print_lines([*report(comparison), *seeds_hint(run_a, run_b, runs)])
    return 0 if comparison.identical else 1


def seeds_hint(a: TrackedRun, b: TrackedRun, runs: Sequence[TrackedRun]) -> list[str]:
    """Where a and b differ in one parameter, and runs of other seeds answer which value is better: a line saying so."""
    pairs = num_pairs(a, b, runs)
    if pairs is None or pairs[1] < 2:
        return []
    return [f"one seed each; `reprogpt decide {pairs[0]}` has {pairs[1]} pairs"]


def report(comparison: Comparison) -> list[str]:
    """The comparison as lines for a terminal; the last line is the conclusion."""
    sections = dict(comparison.sections)
    results = sections.pop("results", [])
    lines = [line for title, changes in sections.items() for line in _section(title, changes)]
    num_a, num_b, num_all = comparison.num_steps
    if not num_a == num_b == num_all:
        lines += ["", f"steps recorded: {num_a} -> {num_b}; {num_a + num_b - num_all} of them in both"]
    if comparison.divergence:
        lines += _divergence(comparison.divergence)
    return [*lines, *_section("results", results), "", conclusion(comparison)]


def conclusion(comparison: Comparison) -> str:
    """One sentence that claims only what was compared."""
    num_a, num_b, num_all = comparison.num_steps
    if comparison.identical and comparison.has_weights and not comparison.sections:
        return "identical to the bit"
    if comparison.same_steps and comparison.same_weights:
        same = "the weights and every recorded step are identical to the bit"
        return same if comparison.identical else f"the runs differ; {same}"
    if comparison.identical:
        return "all that was recorded is identical to the bit; neither run has weights"
    if comparison.divergence is None and (num_common := num_a + num_b - num_all):
        return f"the runs differ; the {num_common} steps that both have are identical to the bit"
    return "the runs differ"


def _section(title: str, changes: list[Change]) -> list[str]:
    return ["", title, *(line for change in changes for line in _change(change))] if changes else []


def _change(change: Change) -> list[str]:
    """`key: a -> b`, on three lines where one is too short."""
    a, b = ("absent" if value is None else value for value in (change.a, change.b))
    line = f"  {change.key}: {a} -> {b}"
    return [line] if len(line) <= WIDTH else [f"  {change.key}:", f"    A  {a}", f"    B  {b}"]


def _divergence(divergence: Divergence) -> list[str]:
    lines = _section(f"first step that differs: {divergence.step}", divergence.changes)
    table = [
        f"{step:>8}  {difference:.3e}" if difference else f"{step:>8}  0"
        for step, difference in divergence.loss_differences
    ]
    return [*lines, "", "difference of loss from there on (nats)", "    step  |A - B|", *table]

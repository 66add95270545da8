"""`reprogpt verify [ROW]`: rerun the recorded stages, or train a row of the results again, and compare the bits."""

from collections.abc import Iterable, Mapping, Sequence
from textwrap import wrap

import click

from reprogpt.cli.command import Command
from reprogpt.messages import print_lines, print_message
from reprogpt.runs.compare import Change
from reprogpt.runs.lineage import DIFFERS, HOLDS, NOT_HERE, Link
from reprogpt.runs.results import SHOWN_DIGITS, Row, find_row, label
from reprogpt.runs.verify import STAGES, RunEnvironments, depended_on, rerun
from reprogpt.runs.verify_row import rerun_row
from reprogpt.tracking.log.environment import RARELY_RELEVANT

WIDTH = 80
OUT_WIDTH = 28  # the longest path of an out
STATUS_WORDS = {HOLDS: "same", DIFFERS: "DIFFERS", NOT_HERE: "missing"}
HEADING = "out                           md5 in dvc.lock (and found)"
ROW_HEADING = "number                        in docs/results.csv (and found)"


@click.command(cls=Command)
@click.argument(
    "row",
    required=False,
    help="a row of docs/results.csv, by the first 6 or more digits of the weights' SHA-256, as the tables show them",
)
@click.option(
    "--stage",
    metavar="NAME",
    type=click.Choice(STAGES),
    help=f"Rerun only this stage, from the recorded data of the stages before it: {', '.join(STAGES)}.",
)
def verify(row: str | None, stage: str | None) -> int:
    """Rerun what dvc.lock records in a temporary clone, and compare every out with the recorded digest.

    With ROW, a training of the documentation's tables is repeated instead, from its own commit, which git must have,
    with this Python's packages. Each number is compared, and the weights.

    The clone is removed afterwards; workspace, DVC cache and MLflow store are not changed. If an out differs, the
    command names the first stage that differs, and what explains it: differences in text, environment and versions.
    The table goes to standard output, the output of the stages to standard error.

    \b
    Exit codes:
      0  every out, or number and weights of the row, is identical to the bit
      1  one differs
      2  not rerun: code, parameters or data are not the recorded ones, there
         is no room in the temporary folder (TMPDIR), a stage fails, or
         there is no such row or commit

    \b
    Examples:
      reprogpt verify                      takes as long as `dvc repro --force`
      reprogpt verify --stage tokenize     one stage
      reprogpt verify 0a0ad06f             a training of docs/results.md
    """
    if row is not None:
        if stage is not None:
            raise click.UsageError("--stage and ROW exclude each other: --stage reruns what dvc.lock records")
        return _verify_row(find_row(row))
    done = rerun(stage)
    remarks = survived(done.outs, done.environments) if done.is_same else explanation(done.origins, done.environments)
    _print_report(table(done.outs), remarks, conclusion(done.outs))
    return 0 if done.is_same else 1


def _verify_row(row: Row) -> int:
    """Say what the row is and how long it took, train it again, and print the comparison; returns the exit code."""
    title = f"row {row['weights'][:SHOWN_DIGITS]}"
    print_message(f"{title} ({label(row)}) of commit {row['commit'][:12]}\n{_cost(row)}")
    done = rerun_row(row)
    if done.is_same:
        remarks = survived(["train", "evaluate"], done.environments)
    else:
        remarks = explanation([done.begins], done.environments)
    num_other = sum(link.status != HOLDS for link in done.links)
    same = f"the same: all {len(done.links)} values of {title} are identical to the bit"
    result = f"NOT the same: {num_other} of {len(done.links)} values of {title}" if num_other else same
    _print_report(table({title: done.links}, ROW_HEADING), remarks, result)
    return 0 if done.is_same else 1


def _print_report(lines: list[str], remarks: Sequence[str], result: str) -> None:
    """Print the table, what explains it, and the result."""
    explained = [*remarks, ""] if remarks else []
    print_lines([*lines, "", *explained, result])


def _cost(row: Row) -> str:
    """How long the training took, and on what."""
    seconds = int(row["seconds"])
    took = f"{seconds / 60:.0f} minutes" if seconds >= 120 else f"{seconds} seconds"
    machine = row["cpu_model"] if row["device"] == "cpu" else row["device"]
    environment = f"{machine}, threads {row['threads']}, matmul {row['matmul']}, torch {row['torch']}"
    return f"when it was recorded, it took {took} on: {environment}"  # where other work may have run beside it


def table(outs: Mapping[str, Sequence[Link]], heading: str = HEADING) -> list[str]:
    """A line per out under its stage, with a second line where the rerun's digest is another."""
    lines = [f"  status    {heading}"]
    for stage, links in outs.items():
        lines += ["", stage] if links else []
        for out in links:
            lines.append(f"  {STATUS_WORDS[out.status]:<8}  {out.what:<{OUT_WIDTH}}  {out.recorded}")
            if out.status != HOLDS:
                lines.append(f"            {'found':<{OUT_WIDTH}}  {out.present or 'nothing'}")
    return lines


def conclusion(outs: Mapping[str, Sequence[Link]]) -> str:
    """One line that claims only what was compared."""
    compared = [out for links in outs.values() for out in links]
    of = f"of stage {next(iter(outs))}" if len(outs) == 1 else f"of {len(outs)} stages"
    num_other = sum(out.status != HOLDS for out in compared)
    if num_other:
        verb = "is" if num_other == 1 else "are"
        return f"NOT the same: {num_other} of {len(compared)} outs {of} {verb} not as dvc.lock records"
    return f"the same: all {len(compared)} outs {of} have the digests that dvc.lock records"


def explanation(begins: Sequence[str], environments: RunEnvironments) -> list[str]:
    """What explains a difference that begins at these stages, as lines, or that nothing known does."""
    lines = [f"the difference begins at {' and '.join(begins)}"]
    if "fetch" in begins and environments.text:
        return [*lines, "another text was read (recorded -> here)", _line(environments.text)]
    changes = environments.changes(begins)
    if changes:
        is_likely = any(change.key not in RARELY_RELEVANT for change in changes)
        heading = "this explains it" if is_likely else "this may explain it, though it seldom changes bits"
        lines += [f"{heading} (recorded -> here), the likeliest first", *map(_line, changes)]
    if environments.recorded is None:
        here = [f"{key} {environments.here[key]}" for key in depended_on(begins) if key in environments.here]
        lines += [
            "no MLflow run in this store trained the recorded weights, so their environment is",
            "known only by the versions pinned in requirements.lock; the present one is",
            *wrap(", ".join(here), WIDTH, initial_indent="  ", subsequent_indent="  "),
        ]
    elif not changes:
        lines += [
            "nothing explains it: the environment is the recorded one in everything that is known",
            "to matter; so this is a bug, or faulty hardware",
        ]
    return lines


def survived(stages: Iterable[str], environments: RunEnvironments) -> list[str]:
    """Differences of the environment that changed no out, as lines; [] if none is known."""
    changes = environments.changes(stages)
    heading = "the environment differs, which changed nothing (recorded -> here)"
    return [heading, *map(_line, changes)] if changes else []


def _line(change: Change) -> str:
    a, b = ("not known" if value is None else value for value in (change.a, change.b))
    return f"  {change.key}: {a} -> {b}"

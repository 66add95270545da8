"""`reprogpt verify [--stage NAME]`: rerun the recorded stages and compare the bits."""

from collections.abc import Iterable, Mapping, Sequence
from textwrap import wrap

import click

from reprogpt.cli.command import Command
from reprogpt.messages import print_lines
from reprogpt.paths import RAW_TEXT
from reprogpt.runs.compare import Change
from reprogpt.runs.lineage import DIFFERS, HOLDS, NOT_HERE, Link
from reprogpt.runs.verify import STAGES, RunEnvironments, depended_on, rerun
from reprogpt.tracking.log.environment import RARELY_RELEVANT

WIDTH = 80
OUT_WIDTH = 28  # the longest path of an out
STATUS_WORDS = {HOLDS: "same", DIFFERS: "DIFFERS", NOT_HERE: "missing"}


@click.command(cls=Command)
@click.option(
    "--stage",
    metavar="NAME",
    type=click.Choice(STAGES),
    help=f"Rerun only this stage, from the recorded data of the stages before it: {', '.join(STAGES)}.",
)
def verify(stage: str | None) -> int:
    """Rerun what dvc.lock records in a temporary clone, and compare every out with the recorded digest.

    The clone is removed afterwards; workspace, DVC cache and MLflow store are not changed. If an out differs, the
    command names the first stage that differs, and what explains it: differences in text, environment and versions.
    The table goes to standard output, the output of the stages to standard error.

    \b
    Exit codes:
      0  every out is identical to the bit
      1  an out differs
      2  not rerun: code, parameters or data are not the recorded ones, there
         is no room in the temporary folder (TMPDIR), or a stage fails

    \b
    Examples:
      reprogpt verify                      takes as long as `dvc repro --force`
      reprogpt verify --stage tokenize     one stage
    """
    done = rerun(stage)
    remarks = survived(done.outs, done.environments) if done.is_same else explanation(done.origins, done.environments)
    lines = table(done.outs)
    lines += ["", *remarks, ""] if remarks else [""]
    if done.reuses_text:
        lines.append(f"{RAW_TEXT} was copied from the workspace, where it has corpus_sha256; it was not downloaded")
    print_lines([*lines, conclusion(done.outs)])
    return 0 if done.is_same else 1


def table(outs: Mapping[str, Sequence[Link]]) -> list[str]:
    """A line per out under its stage, with a second line where the rerun's digest is another."""
    lines = ["  status    out                           md5 in dvc.lock (and found)"]
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

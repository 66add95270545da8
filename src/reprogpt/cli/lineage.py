"""`reprogpt lineage [WHAT]`: trace where a result comes from, check every link, and print how to restore it."""

from collections import Counter
from collections.abc import Iterable

import click

from reprogpt.cli.command import RUN, Command
from reprogpt.dvc.revisions import Revision, list_experiments, resolve_commit
from reprogpt.messages import print_lines
from reprogpt.paths import EVAL_RESULTS, MODEL
from reprogpt.runs.find import MODEL_TAG, find_subject, runs_named
from reprogpt.runs.lineage import DIFFERS, HOLDS, Lineage, Link, StageLinks, restore_commands, trace
from reprogpt.tags import (
    COMMIT,
    CORPUS_PATH,
    CORPUS_SHA256,
    CORPUS_URL,
    DIRTY,
    EXPERIMENT_NAME,
    INITIAL_WEIGHTS_SHA256,
    RUN_KEY,
)
from reprogpt.tracking.store.client import search_runs
from reprogpt.tracking.store.tracked_run import TrackedRun

NAME_WIDTH = 28  # the longest path of an out


@click.command(cls=Command)
@click.argument(
    "what",
    metavar="[WHAT]",
    required=False,
    help=f"{RUN}; or a DVC experiment; or a git commit, branch or tag. Default: the workspace",
)
def lineage(what: str | None) -> int:
    """Trace where a result comes from, and check it.

    Prints the chain raw text -> train and validation text -> tokens -> weights -> results -> plots as dvc.lock records
    it, whether each link holds, the MLflow runs that it belongs to, and the commands that restore it.

    \b
    Exit codes:
      0  every link that can be checked holds
      1  a link does not hold
      2  WHAT can't be found, or nothing is recorded yet

    \b
    Examples:
      reprogpt lineage                     of the workspace's result
      reprogpt lineage corrected           of a run or a DVC experiment
      reprogpt lineage HEAD~1              of a commit
    """
    runs = search_runs()
    traced = trace(find_subject(what, runs), runs)
    subject = traced.subject
    lines = [*subject.remark.split("\n"), ""] if subject.remark else []
    if subject.run:
        lines += [*run_lines(subject.run, subject.revision), *link_lines(traced.run_links)]
        lines += [""] if subject.revision else []
    if subject.revision:
        has_name = bool(runs_named(subject.revision.experiment, runs))
        lines += revision_lines(traced, subject.revision, has_name=has_name)
    if what is not None:
        lines += ["", "to restore it", *(f"  {line}" for line in restore_commands(traced))]
    print_lines([*lines, "", conclusion(traced)])
    return 1 if traced.is_broken else 0


def run_lines(run: TrackedRun, holder: Revision | None) -> list[str]:
    """What an MLflow run records of its origin. holder: the revision that holds what it trained."""
    tags = run.tags
    lines = [
        f"MLflow run {run.id}, {run.name}, {run.status}",
        f"  corpus      {tags.get(CORPUS_PATH) or tags.get(CORPUS_URL, 'not on record')}",
        f"  sha256      {tags.get(CORPUS_SHA256, 'not on record')}",
    ]
    if start := tags.get(INITIAL_WEIGHTS_SHA256):
        lines += [f"  started from {run.params.get('init_from', 'weights not on record')}", f"  sha256      {start}"]
    lines.append(f"  run key     {tags.get(RUN_KEY, 'not on record')}")
    commit = tags.get(COMMIT, "")
    is_here = "" if resolve_commit(commit) else ", not in this repository"
    lines.append(f"  commit      {commit or 'not on record'}{is_here}")
    if tags.get(DIRTY) == "true":
        lines.append("              dirty: files were edited that this commit does not hold as they were")
    if experiment := tags.get(EXPERIMENT_NAME):
        is_kept = "" if experiment in list_experiments() else ", no longer kept here under that name"
        lines.append(f"  experiment  {experiment}{is_kept}")
    return [*lines, f"  held by     {holder.name if holder else 'nothing here: no dvc.lock found has this run key'}"]


def revision_lines(traced: Lineage, revision: Revision, *, has_name: bool) -> list[str]:
    """The stages in the revision's dvc.lock, and the MLflow runs that its weights belong to.

    has_name: whether some run has the name of the revision's DVC experiment.
    """
    lines = [f"chain recorded in dvc.lock of {revision.name}"]
    for stage in traced.stages:
        lines += ["", stage.stage, *stage_lines(stage)]
    if traced.key is None:
        return lines
    lines += ["", "run key of the weights, from what dvc.lock says they were made of", *link_lines([traced.key]), ""]
    by_digest = f"MLflow runs that made these weights, by the digest of {MODEL}"
    lines.append(by_digest if traced.makers else "no MLflow run made these weights")
    for run in traced.makers:
        has_key = run.tags.get(RUN_KEY) == traced.key.recorded
        lines.append(training_line(run, "" if has_key else "  from other inputs"))
    if traced.others:
        lines += ["", "MLflow runs with this key that did not"]
    for run in traced.others:
        lines.append(training_line(run, "  OTHER WEIGHTS" if MODEL_TAG in run.tags else "  no weights"))
    if traced.makers and revision.experiment and not has_name:
        lines.append(f"  none is named {revision.experiment}: DVC had this result already, or renamed the experiment")
    if revision.read_json(str(EVAL_RESULTS)):
        lines += ["", f"numbers in {EVAL_RESULTS}, and in MLflow those of these weights"]
        lines += link_lines(traced.results) or ["  not here  no run of these weights was evaluated"]
    return lines


def conclusion(traced: Lineage) -> str:
    """One line that claims only what was checked."""
    if traced.is_broken:
        return "NOT every link holds: see DIFFERS"
    return "every link that can be checked holds" if HOLDS in traced.statuses else "nothing here to check it against"


def stage_lines(stage: StageLinks) -> list[str]:
    """The outs with their digests; of the inputs, those that don't hold, and how many do."""
    if not stage.has_run:
        return ["  not in dvc.lock: it never ran"]
    kinds = Counter(link.what.partition(" ")[0] for link in stage.inputs if link.status == HOLDS)
    made_by = ["cmd"] if kinds.pop("cmd", 0) else []
    made_by += [f"{number} {kind}{'s' if number > 1 else ''}" for kind, number in kinds.items()]
    lines = [f"  {HOLDS:<8}  made by {', '.join(made_by)}"] if made_by else []
    return [*lines, *link_lines(link for link in stage.inputs if link.status != HOLDS), *link_lines(stage.outs)]


def training_line(run: TrackedRun, remark: str) -> str:
    corpus = run.tags.get(CORPUS_PATH) or run.tags.get(CORPUS_URL, "corpus not on record")
    return f"  {run.id}  {run.status:<8}  {run.name}  {corpus.rpartition('/')[2]}{remark}"


def link_lines(links: Iterable[Link]) -> list[str]:
    """A line per link, with a second one if the present value is another, and one for a long name."""
    lines = []
    for link in links:
        name = link.what
        if len(name) > NAME_WIDTH:
            lines.append(f"  {link.status:<8}  {name}")
            lines.append(_row("", "recorded", link.recorded))
        else:
            lines.append(_row(link.status, name, link.recorded))
        if link.status == DIFFERS:
            lines.append(_row("", "found", link.present))
    return lines


def _row(status: str, name: str, value: str | None) -> str:
    return f"  {status:<8}  {name:<{NAME_WIDTH}}  {'nothing' if value is None else value}"

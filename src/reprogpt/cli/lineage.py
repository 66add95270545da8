"""`reprogpt lineage [WHAT]`: where a result comes from, whether every link holds, and how to restore it."""

from collections.abc import Sequence
from dataclasses import dataclass

from reprogpt.dvc.revisions import (
    Commit,
    Revision,
    Workspace,
    commits_with_run_key,
    list_experiments,
    resolve_commit,
)
from reprogpt.errors import PipelineError
from reprogpt.runs.find import find_run_of_name, parent_run, unknown_name_error
from reprogpt.runs.lineage import LineageReport, add_revision, add_run, lock_key
from reprogpt.runs.restore import experiment_commands, repeat_commands
from reprogpt.tracking.store.client import search_runs
from reprogpt.tracking.store.tracked_run import TrackedRun


@dataclass(frozen=True)
class Subject:
    """What a lineage is asked for: a revision, or a run and the revision that holds its result, if any."""

    run: TrackedRun | None
    revision: Revision | None
    remark: str = ""


def lineage(what: str | None) -> int:
    """Print the lineage of a run or revision, None for the workspace: 0 if every link checked holds, else 1.

    Raises PipelineError if `what` names nothing, or nothing is recorded yet.
    """
    runs = search_runs()
    subject = find_subject(what, runs)
    report = LineageReport()
    if subject.remark:
        report.add(subject.remark, "")
    if subject.run:
        add_run(report, subject.run, subject.revision)
    if subject.revision:
        add_revision(report, subject.revision, runs)
    if what is not None:
        report.add("", "to restore it", *(f"  {line}" for line in restore_commands(subject, broken=report.broken)))
    report.add("", report.conclusion)
    print("\n".join(report.lines))
    return 1 if report.broken else 0


def find_subject(what: str | None, runs: Sequence[TrackedRun]) -> Subject:
    """Resolve `what`: the workspace for None, else a run, else a DVC experiment, else a commit.

    runs: newest first. An evaluation's child run stands for its training.
    Raises PipelineError for anything else, and for a revision without dvc.lock.
    """
    if what is None:
        return Subject(None, _with_lock(Workspace()))
    found = find_run_of_name(what, runs)
    if found:
        run, remark = found
        parent = parent_run(run, runs)
        if parent:
            return Subject(parent, _holder(parent), f"{run.id} is an evaluation of the training {parent.id}")
        return Subject(run, _holder(run), remark)
    known = list_experiments()
    revision = known.get(what) or resolve_commit(what)
    if revision is None:
        raise unknown_name_error(what, runs, list(known))
    return Subject(None, _with_lock(revision))


def restore_commands(subject: Subject, *, broken: bool) -> list[str]:
    """Commands that restore the subject's revision, or a sentence if none are needed or none would do.

    broken: whether some link does not hold.
    """
    run, revision = subject.run, subject.revision
    if isinstance(revision, Workspace) and not broken:
        return ["nothing to do: it is the workspace's state"]
    if isinstance(revision, Workspace) and run:
        revision = _revision_holding(run)
    if isinstance(revision, Commit):
        name = revision.experiment
        return experiment_commands(name) if name else [f"git checkout {revision.commit}", "dvc checkout"]
    return _repeat_commands(run) if run else []


def _repeat_commands(run: TrackedRun) -> list[str]:
    commit = run.tags.get("commit", "")
    if not resolve_commit(commit):
        return [f"impossible here: this repository lacks the run's commit {commit or '(none is on record)'}"]
    return repeat_commands(run)


def _holder(run: TrackedRun) -> Revision | None:
    """The revision that holds what the run trained: the workspace if it does, else as _revision_holding."""
    workspace, key = Workspace(), run.tags.get("run_key")
    held = key is not None and key in (workspace.summary_key, lock_key(workspace))
    return workspace if held else _revision_holding(run)


def _revision_holding(run: TrackedRun) -> Commit | None:
    """The run's own DVC experiment, else another, else the newest commit, that holds what the run trained."""
    key = run.tags.get("run_key")
    if key is None:
        return None
    known = list_experiments()
    own = known.get(run.tags.get("dvc.experiment", ""))
    kept = [*([own] if own else []), *known.values()]
    return next((revision for revision in kept if revision.summary_key == key), None) or next(
        iter(commits_with_run_key(key)), None
    )


def _with_lock(revision: Revision) -> Revision:
    if not revision.lock:
        raise PipelineError(f"{revision.name} has no dvc.lock, so no result is recorded there; `dvc repro` makes one")
    return revision

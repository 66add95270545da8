"""`reprogpt lineage [WHAT]`: where a result comes from, whether that holds, and how to have it back."""

from collections.abc import Sequence
from dataclasses import dataclass

from reprogpt.errors import PipelineError
from reprogpt.lineage.report import LineageReport, add_run, add_state, lock_key
from reprogpt.lineage.resolve_run import find_run, parent_run, unknown
from reprogpt.lineage.revisions import Revision, State, Workspace, commits_with_run_key, experiments, resolve_commit
from reprogpt.tracking.description import way_to_experiment, way_to_repeat
from reprogpt.tracking.runs import TrackedRun
from reprogpt.tracking.store import search_runs


@dataclass(frozen=True)
class Subject:
    """What a lineage is asked of: a state, or a run and the state that holds its result, if one does."""

    run: TrackedRun | None
    state: State | None
    remark: str = ""


def lineage(what: str | None) -> int:
    """Print the lineage of what is meant, None being the workspace: 0 if every link checked holds, else 1.

    Raises PipelineError where `what` means nothing here, or nothing was recorded yet.
    """
    runs = search_runs()
    subject = find_subject(what, runs)
    findings = LineageReport()
    if subject.remark:
        findings.add(subject.remark, "")
    if subject.run:
        add_run(findings, subject.run, subject.state)
    if subject.state:
        add_state(findings, subject.state, runs)
    if what is not None:
        findings.add("", "to bring it back", *(f"  {line}" for line in way_back(subject, broken=findings.broken)))
    findings.add("", findings.conclusion)
    print("\n".join(findings.lines))
    return 1 if findings.broken else 0


def find_subject(what: str | None, runs: Sequence[TrackedRun]) -> Subject:
    """What is meant: the workspace for None, else a run, else a DVC experiment, else a commit.

    runs: newest first. An evaluation's child run stands for the training it belongs to.
    Raises PipelineError for anything else, and for a state without dvc.lock.
    """
    if what is None:
        return Subject(None, _with_lock(Workspace()))
    found = find_run(what, runs)
    if found:
        run, remark = found
        parent = parent_run(run, runs)
        if parent:
            return Subject(parent, _holder(parent), f"{run.id} is an evaluation of the training {parent.id}")
        return Subject(run, _holder(run), remark)
    known = experiments()
    revision = known.get(what) or resolve_commit(what)
    if revision is None:
        raise unknown(what, runs, list(known))
    return Subject(None, _with_lock(revision))


def way_back(subject: Subject, *, broken: bool) -> list[str]:
    """Commands that bring the subject's state back, or a sentence where none are needed or none would.

    broken: whether a link of the subject's state does not hold.
    """
    run, state = subject.run, subject.state
    if isinstance(state, Workspace) and not broken:
        return ["nothing to do: it is the workspace's state"]
    if isinstance(state, Workspace) and run:
        state = _revision_holding(run)
    if isinstance(state, Revision):
        name = state.experiment
        return way_to_experiment(name) if name else [f"git checkout {state.commit}", "dvc checkout"]
    return _way_to_repeat(run) if run else []


def _way_to_repeat(run: TrackedRun) -> list[str]:
    commit = run.tags.get("commit", "")
    if not resolve_commit(commit):
        return [f"impossible here: this repository lacks the run's commit {commit or '(none is on record)'}"]
    return way_to_repeat(run)


def _holder(run: TrackedRun) -> State | None:
    """The state that holds what the run trained: the workspace if it does, else as _revision_holding."""
    workspace, key = Workspace(), run.tags.get("run_key")
    held = key is not None and key in (workspace.summary_key, lock_key(workspace))
    return workspace if held else _revision_holding(run)


def _revision_holding(run: TrackedRun) -> Revision | None:
    """The run's own DVC experiment, else another, else the newest commit, that holds what the run trained."""
    key = run.tags.get("run_key")
    if key is None:
        return None
    known = experiments()
    own = known.get(run.tags.get("dvc.experiment", ""))
    kept = [*([own] if own else []), *known.values()]
    return next((revision for revision in kept if revision.summary_key == key), None) or next(
        iter(commits_with_run_key(key)), None
    )


def _with_lock(state: State) -> State:
    if not state.lock:
        raise PipelineError(f"{state.name} has no dvc.lock, so no result is recorded there; `dvc repro` makes one")
    return state

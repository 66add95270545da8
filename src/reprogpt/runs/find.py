"""What a word on the command line names: an MLflow run, a DVC experiment or a commit.

A run keeps the name that its experiment had when it trained, and DVC can rename an experiment.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from reprogpt import tags
from reprogpt.dvc.revisions import (
    Commit,
    Revision,
    Workspace,
    commits_with_run_key,
    list_experiments,
    resolve_commit,
)
from reprogpt.errors import PipelineError
from reprogpt.messages import visible
from reprogpt.paths import MODEL
from reprogpt.tracking.store.tracked_run import TrackedRun

MODEL_TAG = tags.md5_tag(MODEL)
MAX_LISTED = 10


def require_run(what: str, runs: Sequence[TrackedRun]) -> tuple[TrackedRun, str]:
    """The run that `what` names, and a remark to print ("" usually).

    what: as in find_run_of_name; or a DVC experiment, which stands for the run that trained its result: that has
    another name if the experiment was renamed, or if DVC had the result already.
    runs: newest first. Raises PipelineError if there is none, or if several ids start with the digits.
    """
    named = find_run_of_name(what, runs)
    if named:
        return named
    experiment = list_experiments().get(what)
    trained = run_that_trained(experiment, runs) if experiment else None
    if trained is None:
        raise PipelineError(
            f"no MLflow run has the id or name {what}, nor an id that begins with it (6 digits at least), and\n"
            "no DVC experiment of that name has the result of one.\n"
            f"Known:{format_runs(runs)}"
        )
    return trained, f"the DVC experiment {what} has the result of run {trained.id}, {visible(trained.name)}"


def find_run_of_name(what: str, runs: Sequence[TrackedRun]) -> tuple[TrackedRun, str] | None:
    """The run that has the id or name, and a remark to print ("" usually); None if there is none.

    what: a run's id, its first 6 or more hex digits, or a name (the run's, or that of its DVC experiment).
    runs: newest first; of several with the same name the first is taken, and the remark says so. None, too, where all
    runs of the name are of other trainings than the DVC experiment that has the name now.
    Raises PipelineError if several ids start with the digits.
    """
    if re.fullmatch("[0-9a-fA-F]{6,32}", what):
        matching = [run for run in runs if run.id.startswith(what.lower())]
        if len(matching) > 1:
            raise PipelineError(
                f"{what} begins the ids of {len(matching)} runs; give more digits:{format_runs(matching)}"
            )
        if matching:
            return matching[0], ""
    named = runs_named(what, runs)
    if not named or _name_has_moved(what, named, runs):
        return None
    others = f"{len(named)} runs are named {what}; this is the newest:{format_runs(named)}"
    return named[0], others if len(named) > 1 else ""


def _name_has_moved(name: str, named: Sequence[TrackedRun], runs: Sequence[TrackedRun]) -> bool:
    """Whether DVC's experiment of that name has the result of another run than those named so."""
    experiment = list_experiments().get(name)
    trained = run_that_trained(experiment, runs) if experiment else None
    trainings = [parent_run(run, runs) or run for run in named]
    return trained is not None and all(
        run.tags.get(tags.RUN_KEY) != trained.tags.get(tags.RUN_KEY) and run.id != trained.id for run in trainings
    )


def run_that_trained(revision: Revision, runs: Sequence[TrackedRun]) -> TrackedRun | None:
    """The newest run with the run key of the revision's result, of those the newest with its weights; None without.

    runs: newest first.
    """
    key = revision.summary_key
    of_key = [run for run in runs if key is not None and run.tags.get(tags.RUN_KEY) == key]
    weights = revision.recorded_outs.get(str(MODEL))
    with_weights = [run for run in of_key if weights is not None and run.tags.get(MODEL_TAG) == weights]
    return next(iter([*with_weights, *of_key]), None)


@dataclass(frozen=True)
class Subject:
    """A revision, or a run and the revision that holds what it trained, if any.

    remark: what to say of the choice, "" usually.
    """

    run: TrackedRun | None
    revision: Revision | None
    remark: str = ""


def find_subject(what: str | None, runs: Sequence[TrackedRun]) -> Subject:
    """The workspace for None, else the run, DVC experiment or commit that `what` names, the first of these that exists.

    runs: newest first. An evaluation's child run stands for its training.
    Raises PipelineError for anything else, and for a revision without dvc.lock.
    """
    if what is None:
        return Subject(None, require_lock(Workspace()))
    named = find_run_of_name(what, runs)
    if named:
        run, remark = named
        parent = parent_run(run, runs)
        if parent:
            return Subject(parent, _holder(parent), f"{run.id} is an evaluation of the training {parent.id}")
        return Subject(run, _holder(run), remark)
    experiments = list_experiments()
    revision = experiments.get(what) or resolve_commit(what)
    if revision is None:
        known = ", ".join(list(experiments)[:MAX_LISTED]) or "none"
        raise PipelineError(
            f"{what} is no MLflow run (id, the first 6 or more digits of one, or name), no DVC experiment and no git\n"
            f"commit in this repository. Experiments: {known}. Runs:{format_runs(runs)}"
        )
    return Subject(None, require_lock(revision))


def require_lock(revision: Revision) -> Revision:
    """The revision. Raises PipelineError if it has no dvc.lock."""
    if not revision.lock:
        raise PipelineError(f"{revision.name} has no dvc.lock, so no result is recorded there; `dvc repro` makes one")
    return revision


def _holder(run: TrackedRun) -> Revision | None:
    """The workspace if it holds what the run trained, else as revision_holding."""
    workspace, key = Workspace(), run.tags.get(tags.RUN_KEY)
    is_here = key is not None and key in (workspace.summary_key, workspace.lock_key)
    return workspace if is_here else revision_holding(run)


def revision_holding(run: TrackedRun) -> Commit | None:
    """The run's own DVC experiment, else another, else the newest commit, that holds what the run trained."""
    key = run.tags.get(tags.RUN_KEY)
    if key is None:
        return None
    experiments = list_experiments()
    own = experiments.get(run.tags.get(tags.EXPERIMENT_NAME, ""))
    candidates = [*([own] if own else []), *experiments.values()]
    held = next((experiment for experiment in candidates if experiment.summary_key == key), None)
    return held or next(iter(commits_with_run_key(key)), None)


def runs_named(name: str, runs: Sequence[TrackedRun]) -> list[TrackedRun]:
    """The runs with that name, or of that DVC experiment, in the order given."""
    return [run for run in runs if name in (run.name, run.tags.get(tags.EXPERIMENT_NAME))]


def parent_run(run: TrackedRun, runs: Sequence[TrackedRun]) -> TrackedRun | None:
    """The training's run that this run is an evaluation of; None if it is a training's itself."""
    return next((other for other in runs if other.id == run.tags.get(tags.PARENT_RUN_ID)), None)


def format_runs(runs: Sequence[TrackedRun]) -> str:
    """A line per run, with the start of its id and its name, at most MAX_LISTED; to follow a colon."""
    if not runs:
        return " none; `dvc repro` makes one"
    words = "".join(f"\n  {run.id[:8]}  {visible(run.name)}" for run in runs[:MAX_LISTED])
    return words + (f"\n  … and {len(runs) - MAX_LISTED} older" if len(runs) > MAX_LISTED else "")

"""Finds the MLflow run that an argument on the command line names: in MLflow, or among DVC's experiments.

A run keeps the name that its experiment had when it trained, and DVC can rename an experiment.
"""

import re
from collections.abc import Sequence

from reprogpt.dvc.revisions import Revision, list_experiments
from reprogpt.errors import PipelineError
from reprogpt.paths import MODEL
from reprogpt.tracking.store.tracked_run import PARENT, TrackedRun

MODEL_TAG = f"dvc.{MODEL}.md5"
MAX_LISTED = 10


def find_run(what: str, runs: Sequence[TrackedRun]) -> tuple[TrackedRun, str] | None:
    """The run that `what` names, and a remark to print ("" usually); None if there is none.

    what: as in find_run_of_name; or a DVC experiment, which stands for the run that trained its result: that has
    another name if the experiment was renamed, or if DVC had the result already.
    runs: newest first. Raises PipelineError if several ids start with the digits.
    """
    found = find_run_of_name(what, runs)
    if found:
        return found
    experiment = list_experiments().get(what)
    trained = run_that_trained(experiment, runs) if experiment else None
    if trained is None:
        return None
    return trained, f"the DVC experiment {what} has the result of run {trained.id}, {trained.name}"


def find_run_of_name(what: str, runs: Sequence[TrackedRun]) -> tuple[TrackedRun, str] | None:
    """The run that has the id or name, and a remark to print ("" usually); None if there is none.

    what: a run's id, its first 6 or more hex digits, or a name (the run's, or that of its DVC experiment).
    runs: newest first; of several with the same name the first is taken, and the remark says so. None, too, where all
    runs of the name are of other trainings than the DVC experiment that has the name now.
    Raises PipelineError if several ids start with the digits.
    """
    if re.fullmatch("[0-9a-fA-F]{6,32}", what):
        found = [run for run in runs if run.id.startswith(what.lower())]
        if len(found) > 1:
            raise PipelineError(f"{what} begins the ids of {len(found)} runs; give more digits:{format_runs(found)}")
        if found:
            return found[0], ""
    found = runs_named(what, runs)
    if not found or _name_has_moved(what, found, runs):
        return None
    others = f"{len(found)} runs are named {what}; this is the newest:{format_runs(found)}"
    return found[0], others if len(found) > 1 else ""


def _name_has_moved(name: str, named: Sequence[TrackedRun], runs: Sequence[TrackedRun]) -> bool:
    """Whether DVC's experiment of that name has the result of another run than those named so."""
    experiment = list_experiments().get(name)
    trained = run_that_trained(experiment, runs) if experiment else None
    trainings = [parent_run(run, runs) or run for run in named]
    return trained is not None and all(
        run.tags.get("run_key") != trained.tags.get("run_key") and run.id != trained.id for run in trainings
    )


def run_that_trained(revision: Revision, runs: Sequence[TrackedRun]) -> TrackedRun | None:
    """The newest run with the run key of the revision's result, of those the newest with its weights; None without.

    runs: newest first.
    """
    key = revision.summary_key
    found = [run for run in runs if key is not None and run.tags.get("run_key") == key]
    weights = revision.recorded_outs.get(str(MODEL))
    same = [run for run in found if weights is not None and run.tags.get(MODEL_TAG) == weights]
    return next(iter([*same, *found]), None)


def require_run(what: str, runs: Sequence[TrackedRun]) -> tuple[TrackedRun, str]:
    """find_run, where finding none is a PipelineError that lists what is known."""
    found = find_run(what, runs)
    if found is None:
        raise PipelineError(
            f"no MLflow run has the id or name {what}, nor an id that begins with it (6 digits at least), and\n"
            "no DVC experiment of that name has the result of one.\n"
            f"Known:{format_runs(runs)}"
        )
    return found


def unknown_name_error(what: str, runs: Sequence[TrackedRun], experiments: Sequence[str]) -> PipelineError:
    """The error for a name that is no run, no DVC experiment and no commit."""
    known = ", ".join(experiments[:MAX_LISTED]) or "none"
    return PipelineError(
        f"{what} is no MLflow run (id, the first 6 or more digits of one, or name), no DVC experiment and no git\n"
        f"commit in this repository. Experiments: {known}. Runs:{format_runs(runs)}"
    )


def require_distinct(words: Sequence[str], chosen: Sequence[TrackedRun], runs: Sequence[TrackedRun]) -> None:
    """Raise PipelineError if two of the words name the same run. chosen: the run of each word."""
    seen: dict[str, str] = {}
    for word, run in zip(words, chosen, strict=True):
        if run.id in seen:
            same = runs_named(run.name, runs)
            advice = f"; runs of one name are told apart by id:{format_runs(same)}" if len(same) > 1 else ""
            raise PipelineError(f"{seen[run.id]} and {word} are the same run{advice}")
        seen[run.id] = word


def runs_named(name: str, runs: Sequence[TrackedRun]) -> list[TrackedRun]:
    """The runs with that name, or of that DVC experiment, in the order given."""
    return [run for run in runs if name in (run.name, run.tags.get("dvc.experiment"))]


def parent_run(run: TrackedRun, runs: Sequence[TrackedRun]) -> TrackedRun | None:
    """The training's run that this run is an evaluation of; None if it is a training's itself."""
    return next((other for other in runs if other.id == run.tags.get(PARENT)), None)


def format_runs(runs: Sequence[TrackedRun]) -> str:
    """A line per run, with the start of its id and its name, at most MAX_LISTED; to follow a colon."""
    if not runs:
        return " none; `dvc repro` makes one"
    words = "".join(f"\n  {run.id[:8]}  {run.name}" for run in runs[:MAX_LISTED])
    return words + (f"\n  … and {len(runs) - MAX_LISTED} older" if len(runs) > MAX_LISTED else "")

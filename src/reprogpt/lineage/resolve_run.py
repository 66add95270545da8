"""Finds the MLflow run that an argument on the command line names. No side effects."""

import re
from collections.abc import Sequence

from reprogpt.errors import PipelineError
from reprogpt.tracking.runs import PARENT, TrackedRun

MAX_LISTED = 10


def find_run(what: str, runs: Sequence[TrackedRun]) -> tuple[TrackedRun, str] | None:
    """The run that `what` names, and a remark to print ("" usually); None if there is none.

    what: a run's id, its first 6 or more hex digits, or a name (the run's, or that of its DVC experiment).
    runs: newest first; of several with the same name the first is taken, and the remark says so.
    Raises PipelineError if several ids start with the digits.
    """
    if re.fullmatch("[0-9a-fA-F]{6,32}", what):
        found = [run for run in runs if run.id.startswith(what.lower())]
        if len(found) > 1:
            raise PipelineError(f"{what} begins the ids of {len(found)} runs; give more digits:{format_runs(found)}")
        if found:
            return found[0], ""
    found = runs_named(what, runs)
    if not found:
        return None
    others = f"{len(found)} runs are named {what}; this is the newest:{format_runs(found)}"
    return found[0], others if len(found) > 1 else ""


def require_run(what: str, runs: Sequence[TrackedRun]) -> tuple[TrackedRun, str]:
    """find_run, where finding none is a PipelineError that lists what is known."""
    found = find_run(what, runs)
    if found is None:
        raise PipelineError(
            f"no MLflow run has the id or name {what}, nor an id that begins with it (6 digits at least).\n"
            f"Known:{format_runs(runs)}\n"
            "A DVC experiment taken from DVC's cache has no run of its own name: `reprogpt lineage NAME` names the\n"
            "one that trained it"
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

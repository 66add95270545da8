"""Which run a person means. No side effects."""

import re
from collections.abc import Sequence

from reprogpt.errors import PipelineError
from reprogpt.tracking.runs import TrackedRun

MAX_LISTED = 10
PARENT = "mlflow.parentRunId"


def find_run(what: str, runs: Sequence[TrackedRun]) -> tuple[TrackedRun, str] | None:
    """The run that `what` means, and a remark for the person ("" mostly); None if it means none.

    what: a run's id, or its first 6 or more hex digits, or a name (the run's own, or of its DVC experiment).
    runs: newest first; of several with one name the first is taken, and the remark says so.
    Raises PipelineError for digits that several ids start with.
    """
    if re.fullmatch("[0-9a-fA-F]{6,32}", what):
        found = [run for run in runs if run.id.startswith(what.lower())]
        if len(found) > 1:
            raise PipelineError(f"{what} begins the ids of {len(found)} runs; give more digits:{listing(found)}")
        if found:
            return found[0], ""
    found = named(what, runs)
    if not found:
        return None
    others = f"{len(found)} runs are named {what}; this is the newest:{listing(found)}"
    return found[0], others if len(found) > 1 else ""


def require_run(what: str, runs: Sequence[TrackedRun]) -> tuple[TrackedRun, str]:
    """find_run, where finding none is a PipelineError that lists what is known."""
    found = find_run(what, runs)
    if found is None:
        raise PipelineError(
            f"no MLflow run has the id or name {what}, nor an id that begins with it (6 digits at least).\n"
            f"Known:{listing(runs)}\n"
            "A DVC experiment taken from DVC's cache has no run of its own name: `reprogpt lineage NAME` names the\n"
            "one that trained it"
        )
    return found


def unknown(what: str, runs: Sequence[TrackedRun], experiments: Sequence[str]) -> PipelineError:
    """What to raise for a word that means neither a run, nor a DVC experiment by name, nor a commit."""
    return PipelineError(
        f"{what} is no MLflow run (id, the first 6 or more digits of one, or name), no DVC experiment and no git\n"
        f"commit in this repository. Experiments: {', '.join(experiments[:MAX_LISTED]) or 'none'}. Runs:{listing(runs)}"
    )


def require_distinct(words: Sequence[str], chosen: Sequence[TrackedRun], runs: Sequence[TrackedRun]) -> None:
    """Raise PipelineError where two of the words mean the same run; chosen: what each means, of all the runs."""
    seen: dict[str, str] = {}
    for word, run in zip(words, chosen, strict=True):
        if run.id in seen:
            same = named(run.name, runs)
            advice = f"; runs of one name are told apart by id:{listing(same)}" if len(same) > 1 else ""
            raise PipelineError(f"{seen[run.id]} and {word} are the same run{advice}")
        seen[run.id] = word


def named(name: str, runs: Sequence[TrackedRun]) -> list[TrackedRun]:
    """The runs of that name, or that DVC experiment, in the order given."""
    return [run for run in runs if name in (run.name, run.tags.get("dvc.experiment"))]


def parent_run(run: TrackedRun, runs: Sequence[TrackedRun]) -> TrackedRun | None:
    """The training that this run is an evaluation of; None if it is a training itself."""
    return next((other for other in runs if other.id == run.tags.get(PARENT)), None)


def listing(runs: Sequence[TrackedRun]) -> str:
    """Names with the start of the id, a line each, at most MAX_LISTED of them; to follow a colon."""
    if not runs:
        return " none; `dvc repro` makes one"
    words = "".join(f"\n  {run.id[:8]}  {run.name}" for run in runs[:MAX_LISTED])
    return words + (f"\n  … and {len(runs) - MAX_LISTED} older" if len(runs) > MAX_LISTED else "")

"""`reprogpt register NAME`: a trained model becomes a version in MLflow's registry, and can be served by its name."""

import sys
from collections.abc import Sequence

from reprogpt.errors import PipelineError
from reprogpt.lineage.report import MODEL, MODEL_TAG
from reprogpt.lineage.resolve_run import parent_run, require_run
from reprogpt.lineage.revisions import Workspace
from reprogpt.tracking.logged_models import register_model
from reprogpt.tracking.runs import TrackedRun
from reprogpt.tracking.store import search_runs


def register(name: str, what: str | None) -> int:
    """Register the model of the run that `what` means, None being the one that made the workspace's weights; 0.

    name: as parsing.py allows. A model that is a version of that name already stays that version.
    Raises PipelineError where there is no such run, or it has no model.
    """
    runs = search_runs()
    chosen, remark = _runs_here(runs) if what is None else _run_meant(what, runs)
    if remark:
        print(remark, file=sys.stderr)
    for run in chosen:
        made = register_model(run.id, name)
        if made:
            print(f"{made.name} version {made.version}{'' if made.new else ', as before'}: run {run.id}  {run.name}")
            print(f"  models:/{made.name}/{made.version}")
            print("to serve it:")
            print(f"  mlflow models serve -m models:/{made.name}/{made.version} --env-manager local --port 5001")
            return 0
    run = chosen[0]
    raise PipelineError(
        f"run {run.id} ({run.name}, {run.status}) has no model: a training sends it at its\n"
        "end. `reprogpt sync` delivers one that still waits; a run from before runs had models needs\n"
        "`dvc repro -f train` with its parameters, and has the same weights then"
    )


def _run_meant(what: str, runs: Sequence[TrackedRun]) -> tuple[list[TrackedRun], str]:
    found, remark = require_run(what, runs)
    return [parent_run(found, runs) or found], remark


def _runs_here(runs: Sequence[TrackedRun]) -> tuple[list[TrackedRun], str]:
    """The runs that made the weights in data/model, newest first, those of the workspace's run key before others."""
    here = Workspace()
    weights = here.digest(MODEL)
    if weights is None:
        raise PipelineError(
            f"{MODEL} is missing: `dvc repro` trains it, `dvc pull` fetches it where a remote has it,\n"
            "and --run RUN registers the model of an MLflow run"
        )
    found = [run for run in runs if run.tags.get(MODEL_TAG) == weights]
    if not found:
        raise PipelineError(
            f"no MLflow run made the weights in {MODEL} ({weights}); they were trained elsewhere, or\n"
            "their record still waits: `reprogpt sync` delivers it. --run RUN registers the model of a run"
        )
    return sorted(found, key=lambda run: run.tags.get("run_key") != here.summary_key), ""

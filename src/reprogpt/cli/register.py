"""`reprogpt register NAME`: register a trained model in MLflow's model registry, to be served by its name."""

import re
from collections.abc import Sequence

import click

from reprogpt.cli.command import RUN, Command
from reprogpt.dvc.revisions import Workspace
from reprogpt.errors import PipelineError
from reprogpt.messages import print_lines, print_message, visible
from reprogpt.paths import MODEL
from reprogpt.runs.find import MODEL_TAG, parent_run, require_run
from reprogpt.tags import RUN_KEY
from reprogpt.tracking.store.client import search_runs
from reprogpt.tracking.store.models import register_model
from reprogpt.tracking.store.tracked_run import TrackedRun


def _model_name(context: click.Context, parameter: click.Parameter, name: str) -> str:
    """The name, if a models:/ URI can hold it."""
    if not re.fullmatch(r"[\w.-]+", name):
        raise click.BadParameter(f"{name!r} must consist of letters, digits, dots, dashes and underscores")
    return name


@click.command(cls=Command)
@click.argument(
    "name",
    metavar="NAME",
    callback=_model_name,
    help="of the registered model: letters, digits, dots, dashes and underscores. Created if it does not exist",
)
@click.option("--run", metavar="RUN", help=f"Register the model of {RUN}, instead of data/model.")
def register(name: str, run: str | None) -> int:
    """Register a model as the next version of NAME in the MLflow store's model registry.

    It is the model of the run that trained data/model, unless --run names another one. The weights are not copied, and
    a model that is already a version of NAME gets no second one. The command prints how to serve the model.

    \b
    Exit codes:
      0  registered
      2  not registered: there is no such run, or it did not finish

    \b
    Examples:
      reprogpt register gpt                 the model of the workspace
      reprogpt register gpt --run corrected
    """
    runs = search_runs()
    chosen, note = _runs_of_workspace(runs) if run is None else _named_run(run, runs)
    if note:
        print_message(note)
    for training in chosen:
        made = register_model(training.id, name)
        if made:
            remark = "" if made.new else ", as before"
            uri = f"models:/{made.name}/{made.version}"
            print_lines(
                [
                    f"{made.name} version {made.version}{remark}: run {training.id}  {training.name}",
                    f"  {uri}",
                    "to serve it:",
                    f"  mlflow models serve -m {uri} --env-manager local --port 5001",
                ]
            )
            return 0
    training = chosen[0]
    raise PipelineError(
        f"run {training.id} ({visible(training.name)}, {training.status}) has no model: it is uploaded when a\n"
        "training ends. `reprogpt sync` uploads one that still waits"
    )


def _named_run(what: str, runs: Sequence[TrackedRun]) -> tuple[list[TrackedRun], str]:
    found, remark = require_run(what, runs)
    return [parent_run(found, runs) or found], remark


def _runs_of_workspace(runs: Sequence[TrackedRun]) -> tuple[list[TrackedRun], str]:
    """The runs that made the weights in data/model, newest first, those of the workspace's run key before others."""
    workspace = Workspace()
    weights = workspace.digest(str(MODEL))
    if weights is None:
        raise PipelineError(
            f"{MODEL} is missing: `dvc repro` trains it, `dvc pull` fetches it where a remote has it,\n"
            "and --run RUN registers the model of an MLflow run"
        )
    found = [run for run in runs if run.tags.get(MODEL_TAG) == weights]
    if not found:
        raise PipelineError(
            f"no MLflow run made the weights in {MODEL} ({weights}); they were trained elsewhere, or\n"
            "their records still wait: `reprogpt sync` uploads them. --run RUN registers the model of a run"
        )
    return sorted(found, key=lambda run: run.tags.get(RUN_KEY) != workspace.summary_key), ""

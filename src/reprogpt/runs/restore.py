"""Commands that restore the state from which a run was made."""

from reprogpt.tags import COMMIT, DIRTY
from reprogpt.tracking.store.tracked_run import TrackedRun


def experiment_commands(name: str) -> list[str]:
    """Commands that restore a DVC experiment in the workspace, its outs from DVC's cache."""
    return [f"dvc exp apply {name}", "dvc repro"]


def repeat_commands(run: TrackedRun) -> list[str]:
    """Commands that train a run again from its commit and parameters; [] if it has no commit."""
    commit = run.tags.get(COMMIT)
    if not commit:
        return []
    download = f"mlflow artifacts download -r {run.id} -a"
    patch = [f"{download} uncommitted.patch -d .", "git apply uncommitted.patch"]
    return [
        f"git checkout {commit}",
        *(patch if run.tags.get(DIRTY) == "true" else []),
        f"{download} params.yaml -d .",
        "dvc repro  # trains again, unless DVC's cache has the result",
    ]

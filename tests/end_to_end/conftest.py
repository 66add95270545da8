"""Clones that tests share."""

import subprocess
from pathlib import Path

import pytest
from filelock import FileLock

from reprogpt.tracking.store.artifact_locations import update_locations
from tests.end_to_end.workspace import Workspace, make_workspace


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """A fresh clone in which nothing has run, shared by a file's tests in their order."""
    return make_workspace(tmp_path_factory.mktemp("clone"), tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="session")
def finished_once(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> Path:
    """A folder with a clone after one `dvc repro` and its download cache, made once for all workers. For copying."""
    base = tmp_path_factory.getbasetemp()
    folder = (base if worker_id == "master" else base.parent) / "finished"
    with FileLock(folder.with_suffix(".lock")):
        if not (folder / "done").exists():
            make_workspace(folder / "clone", folder / "cache").succeed("dvc", "repro")
            (folder / "done").touch()
    return folder


@pytest.fixture(scope="module")
def finished(finished_once: Path, tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """A clone after one `dvc repro`, a copy for each file."""
    path = tmp_path_factory.mktemp("finished") / "clone"
    # With hard links kept: DVC's outs are links into its cache.
    subprocess.run(["cp", "-a", finished_once / "clone", path], check=True)
    copy = Workspace(path, finished_once / "cache")
    (run,) = copy.runs()
    experiment = copy.client().get_experiment(run.info.experiment_id)
    update_locations(path / "mlflow.db", str(experiment.artifact_location))
    return copy

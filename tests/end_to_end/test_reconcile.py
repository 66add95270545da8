"""`reprogpt sync` where MLflow has lost the run of a training that really ran, or points of it. In order."""

import sqlite3
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from mlflow import MlflowClient
from mlflow.entities import Run

from reprogpt.cli.main import run as run_command
from reprogpt.dvc.digest import dvc_md5
from reprogpt.step_record import EVAL_METRICS, STEP_METRICS
from reprogpt.tracking.log.local_trainings import find_training
from tests.end_to_end.workspace import Workspace, file_of

STORE = "rebuilt.db"
# Of the training itself, which no file holds; and, of a run, what MLflow makes anew.
LOST_TAGS = {"training_id", "mlflow.loggedModelVersions", "mlflow.log-model.history", "mlflow.note.content"}
Sync = Callable[..., str]


@pytest.fixture
def sync(finished: Workspace, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Sync:
    """Run `reprogpt sync` with another store, here for speed; what it prints. Its argument is the exit code."""
    monkeypatch.chdir(finished.path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{STORE}")
    monkeypatch.setattr(sys, "argv", ["reprogpt", "sync"])

    def act(exit_code: int = 0) -> str:
        assert run_command() == exit_code
        return capsys.readouterr().out

    return act


def rebuilt_runs(workspace: Workspace) -> tuple[MlflowClient, list[Run]]:
    client = MlflowClient(f"sqlite:///{workspace.path / STORE}")
    experiment = client.get_experiment_by_name("reprogpt")
    return client, list(client.search_runs([experiment.experiment_id]))


def test_a_run_that_the_store_has_lost_is_rebuilt_once(finished: Workspace, sync: Sync) -> None:
    original = finished.runs()[0]
    assert find_training(original.data.tags["weights.sha256"]) == original.data.tags["training_id"]
    assert "MLflow had no run of data/model: it is rebuilt from data/metrics/history.csv, with 18 steps" in sync()
    assert sync().splitlines()[1:] == []
    client, (run,) = rebuilt_runs(finished)
    assert find_training(run.data.tags["weights.sha256"]) == run.data.tags["training_id"]
    assert run.info.status == "FINISHED" and run.data.tags["rebuilt_from"] == "data/metrics/history.csv"
    assert run.data.params == original.data.params
    assert [item.dataset.digest for item in run.inputs.dataset_inputs] == [
        item.dataset.digest for item in original.inputs.dataset_inputs
    ]
    measured = {key for key in original.data.metrics if key == "tokens_per_second" or key.startswith("system/")}
    assert set(run.data.metrics) == set(original.data.metrics) - measured
    for key in run.data.metrics:
        then, now = (
            [(point.step, point.value) for point in of.get_metric_history(each.info.run_id, key)]
            for of, each in ((finished.client(), original), (client, run))
        )
        assert now == then, key
    same = {key for key, value in original.data.tags.items() if run.data.tags.get(key) == value}
    made = {key for key in original.data.tags if key.startswith(("dvc.", "weights."))}
    assert same >= made | {"run_key", "train_code", "commit", "total_steps"}
    assert finished.artifacts(run) == finished.artifacts(original) - {"samples/training.txt"}
    (model,) = client.search_logged_models([run.info.experiment_id])
    checkpoint = file_of(model.artifact_location) / "checkpoint"
    assert dvc_md5(checkpoint) == finished.out_digests()["data/model"]


def test_points_that_the_store_has_lost_are_uploaded(finished: Workspace, sync: Sync) -> None:
    client, (run,) = rebuilt_runs(finished)
    keys = (*STEP_METRICS, *EVAL_METRICS, "tokens_seen", "best_val_loss")
    before = {key: client.get_metric_history(run.info.run_id, key) for key in keys}
    with sqlite3.connect(finished.path / STORE) as database:
        database.execute("DELETE FROM metrics WHERE key = 'loss' AND step > 15")
        for key in keys:
            assert database.execute("DELETE FROM metrics WHERE key = ? AND step = 5", (key,)).rowcount == 1
    database.close()
    assert f"run {run.info.run_id} lacked points of 3 steps" in sync()
    for key, points in before.items():
        found = sorted(client.get_metric_history(run.info.run_id, key), key=lambda point: point.step)
        assert [(point.step, point.value) for point in found] == [(point.step, point.value) for point in points]
    assert "lacked" not in sync()


def test_a_run_that_a_person_deleted_stays_deleted(finished: Workspace, sync: Sync) -> None:
    client, (run,) = rebuilt_runs(finished)
    client.delete_run(run.info.run_id)
    assert f"mlflow runs restore --run-id {run.info.run_id}" in sync()
    assert rebuilt_runs(finished)[1] == []


def test_files_that_dvc_does_not_know_are_not_rebuilt_from(finished: Workspace, sync: Sync) -> None:
    Path(STORE).unlink()
    finished.set_params(peak_lr=0.004)
    assert "\n  param peak_lr: recorded 0.001, found 0.004\n`dvc repro` makes results that fit" in sync(exit_code=1)
    finished.succeed("dvc", "commit", "-f")  # as if they were trained so
    assert "\n  data/metrics/train.json: recorded " in sync(exit_code=1)
    assert not Path(STORE).exists()

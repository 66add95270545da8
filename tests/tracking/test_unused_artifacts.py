"""Artifacts of runs that are gone, in a real store: what is listed, what is removed, and what never is."""

import os
import shutil
import sqlite3
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from mlflow import MlflowClient
from mlflow.cli import gc
from mlflow.entities import LoggedModelInput, LoggedModelStatus

from reprogpt.errors import TrackingError
from reprogpt.tracking.logged_models import register_model
from reprogpt.tracking.unused_artifacts import UnusedArtifacts, find_unused, remove, remove_deleted_runs

BYTES = 1000  # of each artifact


@dataclass(frozen=True)
class Trained:
    """A run with an artifact, and its model with one."""

    run_id: str
    model_id: str

    @property
    def folders(self) -> set[Path]:
        return {Path.cwd() / "mlruns" / self.run_id, Path.cwd() / "mlruns/models" / self.model_id}


@pytest.fixture
def train(client: MlflowClient, tmp_path: Path) -> Callable[..., Trained]:
    """Makes a run."""
    artifact = tmp_path / "weights"
    artifact.write_bytes(bytes(BYTES))

    def make(name: str, experiment: str = "reprogpt") -> Trained:
        known = client.get_experiment_by_name(experiment)
        location = (tmp_path / "mlruns").as_uri()
        experiment_id = known.experiment_id if known else client.create_experiment(experiment, location)
        run_id = client.create_run(experiment_id, run_name=name).info.run_id
        client.log_artifact(run_id, str(artifact))
        model = client.create_logged_model(experiment_id, "gpt", run_id)
        client.log_model_artifact(model.model_id, str(artifact))
        client.finalize_logged_model(model.model_id, LoggedModelStatus.READY)
        return Trained(run_id, model.model_id)

    return make


def mlflow_gc() -> None:
    uri = f"sqlite:///{Path.cwd()}/mlflow.db"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", uri)
        gc.main(["--backend-store-uri", uri], standalone_mode=False)


def paths(found: UnusedArtifacts) -> tuple[set[Path], set[Path], set[Path]]:
    parts = (found.unused, found.restorable, found.kept)
    return tuple({folder.path for folder in part} for part in parts)  # type: ignore[return-value]


def test_artifacts_of_a_deleted_run_are_restorable_and_then_unused(
    client: MlflowClient, train: Callable[..., Trained]
) -> None:
    """Its model is what `mlflow gc` leaves, without a run that would lead to it."""
    kept, gone = train("kept"), train("gone")
    assert paths(find_unused()) == (set(), set(), set())
    client.delete_run(gone.run_id)
    found = find_unused()
    assert paths(found) == (set(), gone.folders, set())
    assert {folder.num_bytes for folder in found.restorable} == {BYTES}
    client.restore_run(gone.run_id)
    assert paths(find_unused()) == (set(), set(), set())
    client.delete_run(gone.run_id)
    mlflow_gc()
    unused = find_unused().unused
    assert {folder.path for folder in unused} == gone.folders
    assert {folder.path.name: folder.num_bytes for folder in unused}[gone.model_id] == BYTES
    remove(unused)
    assert paths(find_unused()) == (set(), set(), set())
    assert not any(path.exists() for path in gone.folders) and all(path.exists() for path in kept.folders)
    models = client.search_logged_models([client.get_experiment_by_name("reprogpt").experiment_id])
    assert [model.model_id for model in models] == [kept.model_id]


def test_models_of_a_deleted_experiment_are_found_though_no_record_is_left(
    client: MlflowClient, train: Callable[..., Trained]
) -> None:
    first, second = train("first", "other"), train("second")
    client.delete_experiment(client.get_experiment_by_name("other").experiment_id)
    assert paths(find_unused()) == (set(), first.folders, set())
    # Ours too: the store can then be opened without an experiment only.
    client.delete_experiment(client.get_experiment_by_name("reprogpt").experiment_id)
    assert paths(find_unused()) == (set(), first.folders | second.folders, set())
    remove_deleted_runs()
    with sqlite3.connect("mlflow.db") as database:
        assert database.execute("SELECT * FROM logged_models").fetchall() == []
    database.close()
    found = find_unused().unused
    assert {folder.path for folder in found} == first.folders | second.folders
    remove(found)
    assert paths(find_unused()) == (set(), set(), set())


def test_a_deleted_model_of_an_active_run_is_unused(client: MlflowClient, train: Callable[..., Trained]) -> None:
    """Nothing restores a model. The run's own artifacts stay."""
    run = train("run")
    client.delete_logged_model(run.model_id)
    (model,) = find_unused().unused
    assert model.id == run.model_id
    remove([model])
    assert (Path("mlruns") / run.run_id / "artifacts/weights").exists() and not model.path.exists()


def test_a_registered_model_is_kept(client: MlflowClient, train: Callable[..., Trained]) -> None:
    run = train("run")
    assert register_model(run.run_id, "gpt")
    client.delete_run(run.run_id)
    _, restorable, kept = paths(find_unused())
    assert {path.name for path in kept} == {run.model_id} and {path.name for path in restorable} == {run.run_id}
    remove_deleted_runs()
    unused, _, kept = paths(find_unused())
    assert {path.name for path in kept} == {run.model_id} and {path.name for path in unused} == {run.run_id}


def test_a_run_whose_artifacts_are_a_registered_version_is_kept(
    client: MlflowClient, train: Callable[..., Trained]
) -> None:
    """As earlier versions, and other programs, register them."""
    run = train("run")
    client.create_registered_model("gpt")
    client.create_model_version("gpt", f"{client.get_run(run.run_id).info.artifact_uri}/weights", run.run_id)
    client.delete_run(run.run_id)
    assert {path.name for path in paths(find_unused())[2]} == {run.run_id}
    with pytest.raises(TrackingError, match=f"{run.run_id} has the files of a version in the model registry"):
        remove_deleted_runs()
    assert all(path.exists() for path in run.folders)


def test_a_model_that_another_active_run_uses_is_kept(client: MlflowClient, train: Callable[..., Trained]) -> None:
    made, used = train("made"), train("used")
    client.log_inputs(used.run_id, models=[LoggedModelInput(made.model_id)])
    client.delete_run(made.run_id)
    assert {path.name for path in paths(find_unused())[1]} == {made.run_id}


def test_what_another_database_in_the_folder_has_is_kept(client: MlflowClient, train: Callable[..., Trained]) -> None:
    """A copy, or another store: both have their artifacts in the same folder."""
    run = train("run")
    name = "mlflow.db.bak"
    shutil.copy("mlflow.db", name)
    client.delete_run(run.run_id)
    unused, restorable, kept = paths(find_unused())
    assert (unused, restorable, kept) == (set(), set(), run.folders)
    with pytest.raises(TrackingError, match=f"{run.run_id} is in {name}, too"):
        remove_deleted_runs()
    mlflow_gc()
    assert paths(find_unused()) == (set(), set(), {path for path in run.folders if path.exists()})
    Path(name).rename("elsewhere")
    Path("elsewhere").chmod(0)
    if os.geteuid():
        with pytest.raises(TrackingError, match="elsewhere can't be read"):
            find_unused()
    Path("elsewhere").unlink()
    assert paths(find_unused())[0] == {path for path in run.folders if path.exists()}


def test_what_a_new_store_finds_of_a_former_one_is_kept(
    client: MlflowClient, train: Callable[..., Trained], fresh_store: Path
) -> None:
    """mlflow.db was moved away, to be put back perhaps."""
    run = train("run")
    for folder in run.folders:
        os.utime(folder, (1_000_000_000, 1_000_000_000))
    Path("mlflow.db").unlink()
    with pytest.raises(TrackingError, match="there is no MLflow store"):
        find_unused()
    shutil.copy(fresh_store, "mlflow.db")
    assert paths(find_unused()) == (set(), set(), run.folders)


def test_other_folders_and_links_are_not_touched(
    client: MlflowClient, train: Callable[..., Trained], tmp_path_factory: pytest.TempPathFactory
) -> None:
    """An older MLflow's runs without a database, names that MLflow doesn't give, and what links lead to."""
    train("run")
    outside = tmp_path_factory.mktemp("outside")
    (outside / "file").write_text("kept")
    gone = "1" * 32
    for name in (f"0/{gone}", f"5/{gone}", f"{gone}x", "traces", "models/m-1"):
        (Path("mlruns") / name).mkdir(parents=True)
    Path("mlruns/0/meta.yaml").touch()
    Path(f"mlruns/5/{gone}/meta.yaml").touch()
    (Path("mlruns") / gone).symlink_to(outside)
    Path("mlruns/models/m-" + gone).symlink_to(outside)
    Path("mlruns/7").symlink_to(outside)
    assert paths(find_unused()) == (set(), set(), set())
    within = Path("mlruns") / ("2" * 32)
    within.mkdir()
    (within / "link").symlink_to(outside)
    (folder,) = find_unused().unused
    remove([folder])
    assert not within.exists() and (outside / "file").read_text() == "kept"


def test_a_run_whose_artifacts_are_elsewhere_is_not_left_to_mlflow(
    client: MlflowClient, train: Callable[..., Trained], tmp_path_factory: pytest.TempPathFactory
) -> None:
    train("run")
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    experiment_id = client.create_experiment("theirs", elsewhere.as_uri())
    run_id = client.create_run(experiment_id).info.run_id
    client.log_text(run_id, "kept", "file")
    client.delete_run(run_id)
    with pytest.raises(TrackingError, match=f"{run_id} has its artifacts outside the store's folder"):
        remove_deleted_runs()
    assert (elsewhere / run_id / "artifacts/file").read_text() == "kept"


def test_an_active_run_in_a_deleted_experiment_is_not_left_to_mlflow(
    client: MlflowClient, train: Callable[..., Trained]
) -> None:
    run = train("run")
    client.delete_experiment(client.get_experiment_by_name("reprogpt").experiment_id)
    client.restore_run(run.run_id)
    with pytest.raises(TrackingError, match=f"{run.run_id}, which is not deleted, is in a deleted experiment"):
        remove_deleted_runs()
    assert all(path.exists() for path in run.folders)


def test_a_run_that_starts_while_the_folders_are_listed_is_not_taken_for_one_that_is_gone(
    client: MlflowClient, train: Callable[..., Trained], monkeypatch: pytest.MonkeyPatch
) -> None:
    from reprogpt.tracking import unused_artifacts

    read = unused_artifacts._read

    def read_then_train(path: Path) -> object:
        found = read(path)
        train("new")
        return found

    monkeypatch.setattr(unused_artifacts, "_read", read_then_train)
    assert paths(find_unused()) == (set(), set(), set())


def test_a_server_is_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:1")
    with pytest.raises(TrackingError, match="is no SQLite file on this machine"):
        find_unused()

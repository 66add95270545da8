"""A store's artifacts lie beside its SQLite file, also after the folder was moved or copied."""

import shutil
from pathlib import Path

import pytest
from mlflow import MlflowClient
from mlflow.artifacts import download_artifacts

from reprogpt.files import file_digest
from reprogpt.model.gpt2_format import save_model
from reprogpt.tracking.deliver.outbox import open_outbox
from reprogpt.tracking.deliver.records import File
from reprogpt.tracking.deliver.writer import upload
from reprogpt.tracking.log.training import record_model
from reprogpt.tracking.store.client import open_store, search_runs
from reprogpt.tracking.store.models import download_checkpoint, register_model
from reprogpt.tracking.store.uri import recorded_store
from tests.tiny import PARAMS, tiny_model
from tests.tracking.trainings import training_record

ROOT = Path(__file__).resolve().parents[3]


def log_training(training_id: str) -> str:
    """Upload a training with params.yaml and a model; returns the run's id."""
    outbox = open_outbox(training_id)
    outbox.append(training_record(training_id, params=PARAMS, store=recorded_store()))
    outbox.append(File(kept=outbox.keep_file(Path("params.yaml")), folder=""))
    record_model(outbox)
    upload(outbox)
    outbox.release()
    return next(run.id for run in search_runs() if run.name == training_id)


@pytest.fixture
def clone(tmp_path: Path, fresh_store: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A clone whose path has to be quoted in a URI, with one training that is registered."""
    folder = tmp_path / "my clone"
    folder.mkdir()
    for name in ("params.yaml", "dvc.yaml"):
        shutil.copy(ROOT / name, folder)
    save_model(folder / "data/model", tiny_model())
    monkeypatch.chdir(folder)
    shutil.copy(fresh_store, "mlflow.db")
    assert register_model(log_training("first"), "gpt")
    return folder


def files_below(folder: Path) -> dict[Path, str]:
    return {path.relative_to(folder): file_digest(path) for path in folder.rglob("*") if path.is_file()}


def uris(client: MlflowClient) -> list[str]:
    """Each location that the store records of the experiment and of its runs, models and versions."""
    _, experiment_id = open_store()
    models = client.search_logged_models([experiment_id])
    versions = client.search_model_versions()
    return [
        client.get_experiment(experiment_id).artifact_location,
        *(run.info.artifact_uri for run in client.search_runs([experiment_id])),
        *(model.artifact_location for model in models),
        *(version.source for version in versions),
    ]


def assert_at_home(folder: Path, database: str = "mlflow.db") -> None:
    """Everything is found, and a further training goes there."""
    present = folder.as_uri() + "/mlruns"
    (first,) = search_runs()
    assert download_checkpoint(first.id, folder / "got") is not None
    assert register_model(first.id, "gpt") is not None
    second = log_training("second")
    client = MlflowClient(f"sqlite:///{folder / database}")
    recorded = uris(client)
    assert len(recorded) >= 6 and all(uri.startswith(present) for uri in recorded), recorded
    assert [file.path for file in client.list_artifacts(second)] == ["params.yaml"]
    (version,) = client.search_model_versions()
    assert Path(download_artifacts(version.source)).joinpath("MLmodel").exists()


def test_a_moved_store_finds_its_artifacts_and_does_not_make_the_old_folder_again(
    clone: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    moved = clone.rename(clone.parent / "elsewhere")
    monkeypatch.chdir(moved)
    assert_at_home(moved)
    assert not clone.exists()


def test_a_copied_store_is_its_own_and_leaves_the_original_as_it_was(
    clone: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copied = Path(shutil.copytree(clone, clone.parent / "copy"))
    before = files_below(clone)
    monkeypatch.chdir(copied)
    assert_at_home(copied)
    assert files_below(clone) == before
    monkeypatch.chdir(clone)
    assert_at_home(clone)


def test_two_clones_with_one_database_keep_their_artifacts_beside_it(
    clone: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Either clone may be deleted."""
    other = Path(shutil.copytree(clone, clone.parent / "other", ignore=shutil.ignore_patterns("ml*")))
    shared = clone.parent / "shared"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{shared / 'runs.db'}")
    log_training("first")
    monkeypatch.chdir(other)
    shutil.rmtree(clone)
    assert_at_home(shared, "runs.db")
    assert not list(other.glob("mlruns"))


def test_a_place_that_somebody_chose_for_the_artifacts_stays(clone: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    client, _ = open_store()
    bucket = client.create_experiment("bucket", "s3://bucket/mlruns")
    disk = client.create_experiment("disk", f"file://{clone.parent}/disk/artifacts")
    monkeypatch.chdir(clone.rename(clone.parent / "elsewhere"))
    for name in ("bucket", "disk", "reprogpt"):
        monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", name)
        client, _ = open_store()
    assert client.get_experiment(bucket).artifact_location == "s3://bucket/mlruns"
    assert client.get_experiment(disk).artifact_location == f"file://{clone.parent}/disk/artifacts"


def test_artifacts_elsewhere_that_are_in_use_stay_in_reach(clone: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The database alone was copied: its runs' weights lie where they lay."""
    alone = clone.parent / "alone"
    alone.mkdir()
    shutil.copy(clone / "mlflow.db", alone)
    monkeypatch.chdir(alone)
    (first,) = search_runs()
    assert download_checkpoint(first.id, alone / "got") is not None

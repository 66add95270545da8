"""A run's model in a real store: one, complete and READY, however often and however its upload is interrupted."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import requests
from mlflow import MlflowClient
from mlflow.entities import LoggedModel, LoggedModelStatus
from mlflow.utils.rest_utils import verify_rest_response

from reprogpt.files import file_digest
from reprogpt.model.gpt2_format import save_model
from reprogpt.serving.mlflow_model import CODE
from reprogpt.tracking.deliver.outbox import OutboxFile, open_outbox
from reprogpt.tracking.deliver.records import End, File, ModelFile, Results, ResultsOf
from reprogpt.tracking.deliver.writer import upload
from reprogpt.tracking.log.training import record_model
from reprogpt.tracking.store.models import RegisteredModel, download_checkpoint, register_model
from reprogpt.tracking.store.uri import store_name
from tests.tiny import PARAMS, tiny_model
from tests.tracking.trainings import only_run, training_record

ROOT = Path(__file__).resolve().parents[3]
FILES = {
    "MLmodel",
    "checkpoint/config.json",
    "checkpoint/generation_config.json",
    "checkpoint/gpt_config.json",
    "checkpoint/model.safetensors",
    *(f"code/reprogpt/{name}" for name in CODE),
    "conda.yaml",
    "input_example.json",
    "python_env.yaml",
    "requirements.txt",
    "text_generator.py",
    "serving_input_example.json",
}
NUM_RECORDS = len(FILES) + 1  # "training", each file, "model" in place of MLmodel


class Killed(BaseException):
    """As if the process ended here."""


@pytest.fixture(scope="module")
def saved_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    save_model(folder, tiny_model())
    return folder


@pytest.fixture
def root(client: MlflowClient, saved_model: Path) -> Path:
    """The repository's root as it is when a training ends."""
    for name in ("params.yaml", "dvc.yaml"):
        shutil.copy(ROOT / name, name)
    shutil.copytree(saved_model, "data/model")
    return Path.cwd()


def ended_training(training_id: str = "1" * 32, name: str = "n") -> OutboxFile:
    """The outbox of a training that has recorded its model."""
    outbox = open_outbox(training_id)
    outbox.append(training_record(training_id, run_key=training_id, name=name, params=PARAMS))
    record_model(outbox)
    return outbox


def upload_results(training_id: str, val_loss: float) -> None:
    """As evaluate does."""
    outbox = open_outbox()
    outbox.append(ResultsOf(run_key=training_id, experiment=None, store=store_name()))
    outbox.append(Results(values={"final_val_loss": val_loss}, step=9, sampling={"top_k": 25}))
    upload(outbox)


def models(client: MlflowClient) -> list[LoggedModel]:
    experiment = client.get_experiment_by_name("reprogpt")
    return list(client.search_logged_models([experiment.experiment_id]))


def files_in(model: LoggedModel) -> set[str]:
    folder = Path(model.artifact_location.removeprefix("file://"))
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def assert_one_complete_model(client: MlflowClient, root: Path) -> LoggedModel:
    (model,) = models(client)
    assert model.status == LoggedModelStatus.READY
    assert files_in(model) == FILES
    assert len(list((root / "mlruns").rglob("*.safetensors"))) == 1
    run = client.get_run(str(model.source_run_id))
    assert [output.model_id for output in run.outputs.model_outputs] == [model.model_id]
    return model


def test_a_training_uploads_one_complete_model_and_leaves_nothing(client: MlflowClient, root: Path) -> None:
    outbox = ended_training()
    assert upload(outbox) == NUM_RECORDS
    model = assert_one_complete_model(client, root)
    assert model.params["emb_dim"] == "32" and model.name == "n"
    stored = Path(model.artifact_location.removeprefix("file://"))
    assert file_digest(stored / "checkpoint/model.safetensors") == file_digest(root / "data/model/model.safetensors")
    assert f"model_id: {model.model_id}" in (stored / "MLmodel").read_text()
    assert not list((outbox.folder / "files").iterdir()) and not (outbox.folder / "model").exists()
    (outbox.folder / "delivered").unlink()  # as if nothing had been noted, though the files are gone from here
    upload(outbox)
    assert_one_complete_model(client, root)


def test_every_record_may_be_uploaded_twice(client: MlflowClient, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed after each record, before it is noted as uploaded."""
    outbox = ended_training()
    marked = OutboxFile.mark_uploaded
    for number in range(NUM_RECORDS):

        def interrupt(outbox: OutboxFile, end: int) -> None:
            raise Killed

        monkeypatch.setattr(OutboxFile, "mark_uploaded", interrupt)
        with pytest.raises(Killed):
            upload(outbox)
        assert len(models(client)) == (number > 0)

        def note_one(outbox: OutboxFile, end: int) -> None:
            marked(outbox, end)
            raise Killed

        monkeypatch.setattr(OutboxFile, "mark_uploaded", note_one)
        with pytest.raises(Killed):
            upload(outbox)
    assert upload(outbox) == 0
    assert_one_complete_model(client, root)


def test_a_kill_at_any_call_leaves_one_complete_model_in_the_end(
    client: MlflowClient, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before the store has done it, and after, when nobody was told."""
    outbox = ended_training()
    for call in ("create_logged_model", "log_model_artifact", "log_outputs", "finalize_logged_model"):
        done = getattr(MlflowClient, call)
        for answered in (False, True):

            def interrupted(
                *arguments: Any, answered: bool = answered, done: Callable[..., Any] = done, **named: Any
            ) -> None:
                if answered:
                    done(*arguments, **named)
                raise Killed

            with monkeypatch.context() as patch:
                patch.setattr(MlflowClient, call, interrupted)
                with pytest.raises(Killed):
                    upload(outbox)
            complete = answered and call == "finalize_logged_model"
            assert all((model.status == LoggedModelStatus.READY) == complete for model in models(client))
    upload(outbox)
    assert_one_complete_model(client, root)


def test_a_training_that_ends_again_in_its_run_changes_nothing(client: MlflowClient, root: Path) -> None:
    outbox = ended_training()
    upload(outbox)
    before = assert_one_complete_model(client, root)
    record_model(outbox)
    upload(outbox)
    assert assert_one_complete_model(client, root).last_updated_timestamp == before.last_updated_timestamp


def test_trainings_of_their_own_have_models_of_their_own(client: MlflowClient, root: Path) -> None:
    for training_id in ("1" * 32, "2" * 32):
        upload(ended_training(training_id))
    logged = models(client)
    assert len({str(model.source_run_id) for model in logged}) == len(logged) == 2


def test_models_are_named_after_their_runs_and_ranked_by_their_final_loss(client: MlflowClient, root: Path) -> None:
    for training_id, name, val_loss in (("1", "worst", 5.0), ("2", "lr-0.001:best", 3.0), ("3", "middle", 4.0)):
        upload(ended_training(training_id * 32, name))
        upload_results(training_id * 32, val_loss)
    experiment = client.get_experiment_by_name("reprogpt")
    by_loss: Any = [{"field_name": "metrics.final_val_loss", "ascending": True}]
    ranked = client.search_logged_models([experiment.experiment_id], order_by=by_loss)
    assert [model.name for model in ranked] == ["lr-0-001-best", "middle", "worst"]  # MLflow takes no . and : in a name
    assert [(metric.key, metric.value) for model in ranked for metric in model.metrics or []] == [
        ("final_val_loss", 3.0),
        ("final_val_loss", 4.0),
        ("final_val_loss", 5.0),
    ]
    best = ranked[0]  # whose files `mlflow artifacts download` finds by the name
    assert client.list_artifacts(str(best.source_run_id), f"{best.name}/checkpoint")
    upload_results("1" * 32, 5.0)  # evaluated again
    assert len(client.get_logged_model(ranked[2].model_id).metrics or []) == 1


def test_another_model_of_the_run_stays(client: MlflowClient, root: Path) -> None:
    """Such as one that a notebook has logged to the run."""
    outbox = ended_training()
    upload(outbox)
    outbox.release()
    (ours,) = models(client)
    client.finalize_logged_model(ours.model_id, LoggedModelStatus.PENDING)
    client.create_logged_model(ours.experiment_id, "quantized", ours.source_run_id)
    upload(ended_training())
    assert {(model.name, str(model.status)) for model in models(client)} == {("n", "READY"), ("quantized", "PENDING")}


def test_a_model_that_a_lost_answer_left_behind_is_removed(client: MlflowClient, root: Path) -> None:
    """A server that was slow to create one: asked again meanwhile, it created two."""
    outbox = ended_training()
    upload(outbox)
    first = assert_one_complete_model(client, root)
    outbox.release()
    client.finalize_logged_model(first.model_id, LoggedModelStatus.PENDING)
    client.create_logged_model(first.experiment_id, first.name, first.source_run_id)
    upload(ended_training())
    assert assert_one_complete_model(client, root).model_id == first.model_id


def test_a_model_that_lacks_a_file_is_never_complete(
    client: MlflowClient, root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    outbox = ended_training()
    (lost,) = [
        record.kept
        for record in outbox.records()
        if isinstance(record, ModelFile) and record.kept.endswith("/model.safetensors")
    ]
    outbox.kept_file(lost).unlink()
    upload(outbox)
    assert "model.safetensors is missing: the MLflow run has no model" in capsys.readouterr().err
    (model,) = models(client)
    assert model.status == LoggedModelStatus.FAILED
    assert download_checkpoint(str(model.source_run_id), Path("copy")) is None
    assert register_model(str(model.source_run_id), "gpt") is None


@pytest.fixture
def without_logged_models(client: MlflowClient, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server of MLflow 2: to requests about logged models it answers 404, with a page."""

    def answer(*_: Any, **__: Any) -> None:
        response = requests.Response()
        response.status_code = 404
        response._content = b"<!doctype html>\n<title>404 Not Found</title>"
        verify_rest_response(response, "/api/2.0/mlflow/logged-models")

    for call in ("search_logged_models", "create_logged_model", "log_outputs", "log_model_artifact"):
        monkeypatch.setattr(MlflowClient, call, answer)


@pytest.mark.usefixtures("without_logged_models")
def test_a_server_without_logged_models_has_the_model_in_the_runs_artifacts(
    client: MlflowClient, root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    outbox = open_outbox("1" * 32)
    outbox.append(training_record("1" * 32, run_key="1" * 32, params=PARAMS))
    upload(outbox)  # as soon as the training starts
    assert "has no logged models" in capsys.readouterr().err
    outbox.append(File(kept=outbox.keep_file(Path("params.yaml")), folder="samples"))
    record_model(outbox)
    outbox.append(End(status="FINISHED", adds=None))
    upload(outbox)
    (outbox.folder / "delivered").unlink()  # as if nothing had been noted, though the files are gone from here
    upload(outbox)
    upload_results("1" * 32, 5.0)
    assert capsys.readouterr().err.count("\n") == 3  # the same once more, nothing else
    run = only_run(client)
    assert (run.info.status, run.data.metrics) == ("FINISHED", {"final_val_loss": 5.0})
    stored = root / "mlruns" / run.info.run_id / "artifacts/model"
    assert {path.relative_to(stored).as_posix() for path in stored.rglob("*") if path.is_file()} == FILES
    assert f"run_id: {run.info.run_id}" in (stored / "MLmodel").read_text()
    copy = download_checkpoint(run.info.run_id, root / "copy")
    assert copy is not None
    assert file_digest(copy / "model.safetensors") == file_digest(root / "data/model/model.safetensors")
    assert register_model(run.info.run_id, "gpt") == RegisteredModel("gpt", 1, new=True)
    assert register_model(run.info.run_id, "gpt") == RegisteredModel("gpt", 1, new=False)
    assert Path(client.get_model_version_download_uri("gpt", "1").removeprefix("file://")) == stored


@pytest.mark.usefixtures("without_logged_models")
def test_a_file_that_is_gone_before_it_is_an_artifact_is_missed(
    client: MlflowClient, root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    outbox = ended_training()
    shutil.rmtree(outbox.folder / "files")
    upload(outbox)
    assert capsys.readouterr().err.count("is missing: the MLflow run has no model") == len(FILES) - 1
    run = only_run(client)
    assert register_model(run.info.run_id, "gpt") is None


def test_a_model_is_downloaded_bit_for_bit(client: MlflowClient, root: Path) -> None:
    upload(ended_training())
    copy = download_checkpoint(str(models(client)[0].source_run_id), root / "copy")
    assert copy is not None
    assert {path.name: path.read_bytes() for path in copy.iterdir()} == {
        path.name: path.read_bytes() for path in (root / "data/model").iterdir()
    }


def test_a_model_is_registered_once_under_a_name(client: MlflowClient, root: Path) -> None:
    upload(ended_training())
    model = models(client)[0]
    assert register_model(str(model.source_run_id), "gpt") == RegisteredModel("gpt", 1, new=True)
    assert register_model(str(model.source_run_id), "gpt") == RegisteredModel("gpt", 1, new=False)
    assert register_model(str(model.source_run_id), "other") == RegisteredModel("other", 1, new=True)
    upload(ended_training("2" * 32))
    second = next(other for other in models(client) if other.model_id != model.model_id)
    assert register_model(str(second.source_run_id), "gpt") == RegisteredModel("gpt", 2, new=True)
    assert len(client.search_model_versions("name = 'gpt'")) == 2
    listed = client.get_logged_model(model.model_id).tags["mlflow.modelVersions"]
    assert listed == '[{"name": "gpt", "version": 1}, {"name": "other", "version": 1}]'
    assert client.get_model_version_download_uri("gpt", "1") == model.artifact_location
    assert len(list((root / "mlruns").rglob("*.safetensors"))) == 2

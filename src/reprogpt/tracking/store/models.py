"""Uploads, downloads and registers a run's MLflow LoggedModel.

A run has one model, however often its upload is interrupted: it is looked up by its source run. It is PENDING until all
its files are uploaded, then READY and no longer written to.

A server without logged models, such as MLflow 2, has the same files in FOLDER of the run's artifacts.
"""

import json
import re
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import reprogpt.mlflow_settings  # noqa: F401

# isort: split
from mlflow import MlflowClient, artifacts
from mlflow.entities import LoggedModel, LoggedModelOutput, LoggedModelStatus, Run
from mlflow.exceptions import MlflowException
from mlflow.models import Model
from mlflow.models.model import MLMODEL_FILE_NAME
from mlflow.protos.databricks_pb2 import ENDPOINT_NOT_FOUND, ErrorCode
from mlflow.utils.mlflow_tags import MLFLOW_MODEL_VERSIONS
from mlflow.utils.uri import append_to_uri_path

from reprogpt.paths import CHECKPOINT_ARTIFACT
from reprogpt.tracking.store.client import open_store, run_artifacts
from reprogpt.tracking.store.errors import RecordError, store_errors
from reprogpt.tracking.store.uri import store_uri

FOLDER = "model"
_NOT_IN_NAMES = re.compile("[/:.%\"']")  # characters that MLflow allows in a run's name, but not in a model's


@dataclass(frozen=True)
class RegisteredModel:
    """A version in the registry. new: whether this call created it."""

    name: str
    version: int
    new: bool


@dataclass(frozen=True)
class _CompleteModel:
    """location: the URI of its files. id: None for one in the run's artifacts."""

    location: str
    id: str | None


def upload_model_file(client: MlflowClient, run_id: str, path: Path, folder: str) -> None:
    """Upload a file into `folder` of the run's model ("" for its root), unless the model is complete.

    Raises RecordError if the file is gone.
    """
    model = _find_or_create_model(client, run_id)
    if model is None:
        _upload_as_artifact(client, run_id, path, folder)
        return
    if model.status == LoggedModelStatus.READY or (model.status != LoggedModelStatus.PENDING and path.exists()):
        return
    if path.exists():
        client.log_model_artifact(model.model_id, str(path), folder or None)
    else:
        client.finalize_logged_model(model.model_id, LoggedModelStatus.FAILED)
        raise RecordError(f"{path} is missing: the MLflow run has no model")


def _upload_as_artifact(client: MlflowClient, run_id: str, path: Path, folder: str) -> None:
    destination = Path(FOLDER, folder).as_posix()
    if path.exists():
        client.log_artifact(run_id, str(path), destination)
    elif f"{destination}/{path.name}" not in run_artifacts(client.get_run(run_id), destination):
        raise RecordError(f"{path} is missing: the MLflow run has no model")


def finalize_model(client: MlflowClient, run_id: str, description: Mapping[str, Any]) -> None:
    """Upload the MLmodel file, link the model to its run and mark it READY.

    description: the contents of MLmodel, except the ids of run and model.
    """
    model = _find_or_create_model(client, run_id)
    if model and model.status != LoggedModelStatus.PENDING:
        return
    ids = {"model_id": model.model_id, "model_uuid": model.model_id} if model else {}
    location = model.artifact_location if model else FOLDER
    with tempfile.TemporaryDirectory(prefix="reprogpt-model-") as folder:
        path = Path(folder) / MLMODEL_FILE_NAME
        Model.from_dict({**description, **ids, "run_id": run_id, "artifact_path": location}).save(path)
        if model is None:
            client.log_artifact(run_id, str(path), FOLDER)
            return
        client.log_model_artifact(model.model_id, str(path))
    outputs = client.get_run(run_id).outputs
    if not any(output.model_id == model.model_id for output in (outputs.model_outputs if outputs else [])):
        client.log_outputs(run_id, [LoggedModelOutput(model.model_id, step=0)])
    for other in (_models(client, client.get_run(run_id)) or [])[1:]:
        if other.name == model.name:  # from a request whose answer was lost
            client.delete_logged_model(other.model_id)
    client.finalize_logged_model(model.model_id, LoggedModelStatus.READY)


def model_id_of(client: MlflowClient, run: Run) -> str | None:
    """The id of the run's logged model, complete or not; None if it has none."""
    return next((model.model_id for model in _models(client, run) or []), None)


def has_logged_models(client: MlflowClient, run_id: str) -> bool:
    """Whether the server has logged models."""
    return _models(client, client.get_run(run_id)) is not None


def download_checkpoint(run_id: str, folder: Path) -> Path | None:
    """Download the Hugging Face directory of a run's model into `folder`; returns its path.

    None if the run has no complete model. Raises TrackingError if the store, or folder, can't be used.
    """
    client, _ = open_store()
    with store_errors():
        model = _complete_model(client, run_id)
        if model is None:
            return None
        uri = append_to_uri_path(model.location, CHECKPOINT_ARTIFACT)
        return Path(artifacts.download_artifacts(artifact_uri=uri, dst_path=str(folder), tracking_uri=store_uri()))


def register_model(run_id: str, name: str) -> RegisteredModel | None:
    """Register the run's model as the next version of `name`, unless it is a version already.

    name: without / and :. None if the run has no complete model. Raises TrackingError if the store can't be used.
    """
    client, _ = open_store()
    with store_errors():
        model = _complete_model(client, run_id)
        if model is None:
            return None
        known = client.search_model_versions(f"name = '{name}'")
        sources = (model.location, f"models:/{model.id}")  # the second by mlflow.register_model
        same = [int(version.version) for version in known if version.source in sources]
        if same:
            return RegisteredModel(name, min(same), new=False)
        try:
            client.create_registered_model(name)
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
        # The location, not models:/<id>: MLflow would look for that in its default store, which may be another one.
        made = client.create_model_version(name, model.location, run_id, model_id=model.id)
        if model.id:
            _list_version(client, model.id, {"name": name, "version": made.version})
        return RegisteredModel(name, int(made.version), new=True)


def _list_version(client: MlflowClient, model_id: str, entry: Mapping[str, Any]) -> None:
    """Show the version on the model's page; a server does it itself."""
    listed = json.loads(client.get_logged_model(model_id).tags.get(MLFLOW_MODEL_VERSIONS, "[]"))
    if not any((item["name"], str(item["version"])) == (entry["name"], str(entry["version"])) for item in listed):
        client.set_logged_model_tags(model_id, {MLFLOW_MODEL_VERSIONS: json.dumps([*listed, entry])})


def _find_or_create_model(client: MlflowClient, run_id: str) -> LoggedModel | None:
    """The run's model, created if it does not exist; None if the server has no logged models."""
    run = client.get_run(run_id)
    models = _models(client, run)
    if models is None:
        return None
    if models:
        return models[0]
    name = _NOT_IN_NAMES.sub("-", run.info.run_name)
    return client.create_logged_model(run.info.experiment_id, name, run_id, params=run.data.params)


def _complete_model(client: MlflowClient, run_id: str) -> _CompleteModel | None:
    run = client.get_run(run_id)
    for model in _models(client, run) or []:
        if model.status == LoggedModelStatus.READY:
            return _CompleteModel(model.artifact_location, model.model_id)
    if f"{FOLDER}/{MLMODEL_FILE_NAME}" in run_artifacts(run, FOLDER):
        return _CompleteModel(append_to_uri_path(run.info.artifact_uri, FOLDER), None)
    return None


def _models(client: MlflowClient, run: Run) -> list[LoggedModel] | None:
    """The run's models, the oldest first: one, or none. None if the server has no logged models."""
    oldest = [{"field_name": "creation_time", "ascending": True}]
    query = f"source_run_id = '{run.info.run_id}'"
    try:
        return list(client.search_logged_models([run.info.experiment_id], query, order_by=oldest))
    except MlflowException as error:
        if error.error_code != ErrorCode.Name(ENDPOINT_NOT_FOUND):
            raise
        return None

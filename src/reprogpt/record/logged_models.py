"""A run's model in the MLflow store, MLflow's LoggedModel: sent, read, registered.

A run has one, whatever happens while it is sent: it is found by the run it comes from. Until all its files are
there it is PENDING, and from then on, READY, nobody writes to it.
"""

import json
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlflow import MlflowClient, artifacts
from mlflow.entities import LoggedModel, LoggedModelOutput, LoggedModelStatus, Run
from mlflow.exceptions import MlflowException
from mlflow.models import Model
from mlflow.models.model import MLMODEL_FILE_NAME
from mlflow.utils.mlflow_tags import MLFLOW_MODEL_VERSIONS
from mlflow.utils.uri import append_to_uri_path

from reprogpt.record.store import download_artifacts, in_words, open_store, store_uri

NAME = "gpt"
CHECKPOINT = "checkpoint"  # the Hugging Face directory in the model's folder, as in serving.py


@dataclass(frozen=True)
class RegisteredModel:
    """A version in the registry. new: whether it was made just now."""

    name: str
    version: int
    new: bool


def send_model_file(client: MlflowClient, run_id: str, path: Path, folder: str) -> None:
    """Put a file into `folder` of the run's model ("" for its root), unless that is complete."""
    model = _model_to_be(client, run_id)
    if model.status != LoggedModelStatus.PENDING:
        return
    if path.exists():
        client.log_model_artifact(model.model_id, str(path), folder or None)
    else:
        print(f"{path} is gone: the MLflow run has no model", file=sys.stderr)
        client.finalize_logged_model(model.model_id, LoggedModelStatus.FAILED)


def complete_model(client: MlflowClient, run_id: str, description: Mapping[str, Any]) -> None:
    """Say that the run's model has all its files: from now on it answers.

    description: what MLmodel says, but for whose model it is.
    """
    model = _model_to_be(client, run_id)
    if model.status != LoggedModelStatus.PENDING:
        return
    ids = {"run_id": run_id, "model_id": model.model_id, "model_uuid": model.model_id}
    with tempfile.TemporaryDirectory(prefix="reprogpt-model-") as folder:
        path = Path(folder) / MLMODEL_FILE_NAME
        Model.from_dict({**description, **ids, "artifact_path": model.artifact_location}).save(path)
        client.log_model_artifact(model.model_id, str(path))
    outputs = client.get_run(run_id).outputs
    if not any(output.model_id == model.model_id for output in (outputs.model_outputs if outputs else [])):
        client.log_outputs(run_id, [LoggedModelOutput(model.model_id, step=0)])
    for other in _models(client, client.get_run(run_id))[1:]:  # of a request that a server took and did not answer
        client.delete_logged_model(other.model_id)
    client.finalize_logged_model(model.model_id, LoggedModelStatus.READY)


def download_checkpoint(run_id: str, folder: Path) -> Path | None:
    """Copy the checkpoint in a run's model into `folder`, wherever the store keeps it; where the copy is.

    None if the run has no model that is complete. Raises TrackingError where the store, or folder, can't be used.
    """
    client, _ = open_store()
    with in_words():
        model = _complete_model(client, run_id)
        if model is not None:
            uri = append_to_uri_path(model.artifact_location, CHECKPOINT)  # type: ignore[no-untyped-call]
            return Path(artifacts.download_artifacts(artifact_uri=uri, dst_path=str(folder), tracking_uri=store_uri()))
    return download_artifacts(run_id, CHECKPOINT, folder)  # where runs had it before they had models


def register_model(run_id: str, name: str) -> RegisteredModel | None:
    """Make the run's model the next version of `name` in the registry, unless it is one already.

    name: without / and :. None if the run has no model that is complete. Raises TrackingError where the store can't
    be used.
    """
    client, _ = open_store()
    with in_words():
        model = _complete_model(client, run_id)
        if model is None:
            return None
        known = client.search_model_versions(f"name = '{name}'")
        sources = (model.artifact_location, f"models:/{model.model_id}")  # the second by mlflow.register_model
        same = [int(version.version) for version in known if version.source in sources]
        if same:
            return RegisteredModel(name, min(same), new=False)
        try:
            client.create_registered_model(name)
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
        # The location, not models:/<id>: MLflow would look for that in its default store, which may be another one.
        made = client.create_model_version(name, model.artifact_location, run_id, model_id=model.model_id)
        _list_version(client, model.model_id, {"name": name, "version": made.version})
        return RegisteredModel(name, int(made.version), new=True)


def _list_version(client: MlflowClient, model_id: str, entry: Mapping[str, Any]) -> None:
    """Have the model's page name its version; a server has done it already."""
    listed = json.loads(client.get_logged_model(model_id).tags.get(MLFLOW_MODEL_VERSIONS, "[]"))
    if not any((item["name"], str(item["version"])) == (entry["name"], str(entry["version"])) for item in listed):
        client.set_logged_model_tags(model_id, {MLFLOW_MODEL_VERSIONS: json.dumps([*listed, entry])})


def _model_to_be(client: MlflowClient, run_id: str) -> LoggedModel:
    """The run's model, made if it is not there."""
    run = client.get_run(run_id)
    found = _models(client, run)
    if found:
        return found[0]
    return client.create_logged_model(run.info.experiment_id, NAME, run_id, params=run.data.params)


def _complete_model(client: MlflowClient, run_id: str) -> LoggedModel | None:
    found = _models(client, client.get_run(run_id))
    return next((model for model in found if model.status == LoggedModelStatus.READY), None)


def _models(client: MlflowClient, run: Run) -> list[LoggedModel]:
    """The run's models, the oldest first: one, or none."""
    oldest = [{"field_name": "creation_time", "ascending": True}]
    mine = f"source_run_id = '{run.info.run_id}' AND name = '{NAME}'"
    return list(client.search_logged_models([run.info.experiment_id], mine, order_by=oldest))

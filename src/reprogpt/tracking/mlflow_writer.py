"""Writes the records of an outbox to the MLflow store."""

import hashlib
import itertools
import json
import sys
from collections.abc import Mapping
from typing import Any

from mlflow import MlflowClient
from mlflow.entities import Dataset, DatasetInput, InputTag, Metric, Param, Run, RunTag
from mlflow.exceptions import MlflowException
from mlflow.utils.mlflow_tags import MLFLOW_PARENT_RUN_ID, MLFLOW_RUN_NOTE
from mlflow.utils.validation import MAX_PARAM_VAL_LENGTH

from reprogpt.errors import TrackingError
from reprogpt.tracking.description import describe_evaluation, describe_training
from reprogpt.tracking.logged_models import finalize_model, upload_model_file
from reprogpt.tracking.outbox import OutboxFile, Pending, Record
from reprogpt.tracking.store import open_store, redact, store_errors, store_name, to_tracked_run

MAX_METRICS = 1000  # MLflow's limit for one batch
# Error codes that no retry changes.
PERMANENT_ERRORS = ("INVALID_PARAMETER_VALUE", "RESOURCE_DOES_NOT_EXIST")
DESCRIPTION_DIGEST = "description.sha256"  # tag: digest of the description as reprogpt wrote it


def belongs_to_store(outbox: OutboxFile) -> bool:
    """Whether the outbox's records were made for the present store; true of an empty outbox."""
    return bool(next(outbox.records(), {}).get("store", store_name()) == store_name())


def upload(outbox: OutboxFile) -> int:
    """Write all pending records of the outbox to the store, in order; returns their number.

    A record that MLflow refuses permanently, such as one of a deleted run, is reported and skipped.
    Raises TrackingError if the store can't be used: records that are not uploaded stay in the outbox.
    """
    pending = outbox.pending()
    if not pending:
        return 0
    first = next(outbox.records())
    if not belongs_to_store(outbox):
        raise TrackingError(f"this run is in the MLflow store {first['store']}: set MLFLOW_TRACKING_URI to it")
    client, experiment_id = open_store()
    with store_errors():
        run_id = _find_or_create_run(client, experiment_id, outbox)
    if run_id is None and pending[0].record == first:  # once for the whole outbox
        what = f"run_key {first['run_key']}" + (" and the weights of data/model" if first.get("made") else "")
        print(f"No MLflow run has {what} (trained elsewhere?): results are written to files only.")
    for batch in _batches(pending):
        if run_id is not None:
            _write_batch(client, run_id, outbox, batch)
        outbox.mark_uploaded(batch[-1].end)
    return len(pending)


def _batches(pending: list[Pending]) -> list[list[Pending]]:
    """Consecutive metrics together, as many as MLflow takes in one call; every other record by itself."""
    batches = []
    for is_metrics, group in itertools.groupby(pending, key=lambda item: item.record["kind"] == "metrics"):
        items = list(group)
        batch_size = 1
        if is_metrics:
            batch_size = MAX_METRICS // max(len(item.record["values"]) for item in items)
        batches += [items[start : start + batch_size] for start in range(0, len(items), batch_size)]
    return batches


def _write_batch(client: MlflowClient, run_id: str, outbox: OutboxFile, batch: list[Pending]) -> None:
    records = [item.record for item in batch]
    with store_errors():
        try:
            if records[0]["kind"] == "metrics":
                points = [point for record in records for point in _points(record)]
                client.log_batch(run_id, metrics=points)
            else:
                _write_record(client, run_id, outbox, records[0])
        except MlflowException as error:
            if error.error_code not in PERMANENT_ERRORS:
                raise
            reason = redact(str(error))
            print(f"MLflow refused a record of kind {records[0]['kind']}: {reason}; it is skipped", file=sys.stderr)


def _write_record(client: MlflowClient, run_id: str, outbox: OutboxFile, record: Record) -> None:
    match record["kind"]:
        case "training":
            client.log_batch(run_id, params=_params(record["params"]))
            client.log_inputs(run_id, [_dataset(facts) for facts in record["datasets"]])
        case "start":
            client.update_run(run_id, status="RUNNING", name=record["name"])
        case "end":
            _end(client, client.get_run(run_id), record)
        case "tags":
            client.log_batch(run_id, tags=[RunTag(key, value) for key, value in record["values"].items()])
        case "file":
            _upload_file(client, _run_of_results(client, run_id, record), outbox, record)
        case "model file":
            upload_model_file(client, run_id, outbox.kept_file(record), record["folder"])
        case "model":
            finalize_model(client, run_id, record["description"])
        case "results":
            _log_results(client, _run_of_results(client, run_id, record), record)
        case "description":
            _describe(client, _run_of_results(client, run_id, record), run_id)
        case unknown:  # "results of" only says which run the outbox is for
            assert unknown == "results of", unknown


def _end(client: MlflowClient, run: Run, record: Record) -> None:
    """Set the run's status to that of the stage that ended.

    If the stage only added results, the training's end time stays, and so does FINISHED if the results that the stage
    adds (record["adds"], a metric or an artifact folder) are already there.
    """
    run_id = run.info.run_id
    end_time = record["time"]
    adds = record["adds"]
    if adds is not None:
        end_time = run.info.end_time or end_time
        has_results = adds in run.data.metrics or client.list_artifacts(run_id, adds)
        if run.info.status == "FINISHED" and (record["status"] == "FINISHED" or has_results):
            return
    if "error" in record:
        client.set_tag(run_id, "error", record["error"])
    elif record["status"] == "FINISHED" and "error" in run.data.tags:
        client.delete_tag(run_id, "error")
    client.set_terminated(run_id, record["status"], end_time=end_time)


def _find_or_create_run(client: MlflowClient, experiment_id: str, outbox: OutboxFile) -> str | None:
    """The id of the run that an outbox is for, by its first record.

    For a training: its run, created if it does not exist. For results: a run of the training that made the weights;
    of several, that of the present DVC experiment, else the newest; None if there is none.
    """
    first = next(outbox.records())
    if first["kind"] == "training":
        tag = f"tags.training_id = '{first['tags']['training_id']}'"
        found = list(client.search_runs([experiment_id], tag))
        if found:
            return str(found[0].info.run_id)
        run = client.create_run(experiment_id, first["time"], first["tags"], first["name"])
        return str(run.info.run_id)
    query = f"tags.run_key = '{first['run_key']}'"
    runs = client.search_runs([experiment_id], query, order_by=["attributes.start_time DESC"])
    has_results = any(record["kind"] == "results" for record in outbox.records())
    trainings = [run for run in runs if not _is_child(run)]
    trainings = _that_made(trainings, first.get("made", {}), has_results=has_results)
    of_experiment = [run for run in trainings if run.data.tags.get("dvc.experiment") == first["experiment"]]
    candidates = of_experiment or trainings
    return str(candidates[0].info.run_id) if candidates else None


def _that_made(runs: list[Run], made: Mapping[str, str], *, has_results: bool) -> list[Run]:
    """The runs of trainings that made these bits: the weights, else the history, by their tags.

    All of them if nothing is known of the bits. Results are of the weights: they go to no run of other weights.
    """
    for tag, digest in made.items():
        same = [run for run in runs if run.data.tags.get(tag) == digest]
        if same or (has_results and tag == "weights.sha256"):
            return same
    return [] if made else runs


def _run_of_results(client: MlflowClient, run_id: str, record: Record) -> str:
    """The id of the run to which results made with evaluate's parameters, record["sampling"], belong.

    The training's own run, unless it has results made with other parameters: MLflow does not allow changing a
    parameter, so those get a child run. Records without "sampling" belong to the training's run.
    """
    params: Mapping[str, Any] | None = record.get("sampling")
    if params is None:
        return run_id
    run = client.get_run(run_id)
    logged = run.data.params
    if any(key in logged and logged[key] != _as_stored(value) for key, value in params.items()):
        return _find_or_create_child(client, run, record)
    client.log_batch(run_id, params=_params({key: value for key, value in params.items() if key not in logged}))
    return run_id


def _find_or_create_child(client: MlflowClient, parent: Run, record: Record) -> str:
    """The child run for these results, created if it does not exist; named after its DVC experiment, if any."""
    origin = json.dumps([record["sampling"], record["tags"]], sort_keys=True)
    digest = hashlib.sha256(origin.encode()).hexdigest()[:32]
    query = f"tags.`{MLFLOW_PARENT_RUN_ID}` = '{parent.info.run_id}' and tags.evaluation = '{digest}'"
    found = list(client.search_runs([parent.info.experiment_id], query))
    if found:
        return str(found[0].info.run_id)
    tags = {MLFLOW_PARENT_RUN_ID: parent.info.run_id, "evaluation": digest, "mlflow.source.name": "stages.evaluate"}
    name = record["tags"].get("dvc.experiment", f"{parent.info.run_name}-evaluate")
    child = client.create_run(parent.info.experiment_id, record["time"], {**record["tags"], **tags}, name)
    client.log_batch(child.info.run_id, params=_params(record["sampling"]))
    return str(child.info.run_id)


def _log_results(client: MlflowClient, run_id: str, record: Record) -> None:
    """Log the final metrics that the run does not have yet: a repeated stage adds no second point."""
    run = client.get_run(run_id)
    new = {key: value for key, value in record["values"].items() if run.data.metrics.get(key) != value}
    client.log_batch(run_id, metrics=_points({**record, "values": new}))
    if _is_child(run):
        client.set_terminated(run_id, "FINISHED", end_time=record["time"])


def _describe(client: MlflowClient, run_id: str, training_id: str) -> None:
    """Write the description of a run, a training or an evaluation of it, from what the store has of it.

    A description that a person wrote, edited or removed is left alone: only a text with the recorded digest is
    replaced.
    """
    run = client.get_run(run_id)
    if run_id == training_id:
        text = describe_training(to_tracked_run(run))
    else:
        text = describe_evaluation(to_tracked_run(run), to_tracked_run(client.get_run(training_id)))
    present = run.data.tags.get(MLFLOW_RUN_NOTE)
    present_digest = _digest(present) if present else present
    if present_digest == run.data.tags.get(DESCRIPTION_DIGEST) and present != text:
        # In one call, which the store applies as a whole.
        client.log_batch(run_id, tags=[RunTag(MLFLOW_RUN_NOTE, text), RunTag(DESCRIPTION_DIGEST, _digest(text))])


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _upload_file(client: MlflowClient, run_id: str, outbox: OutboxFile, record: Record) -> None:
    path = outbox.kept_file(record)
    if not path.exists():
        print(f"{path} is missing: the MLflow run lacks {path.name}", file=sys.stderr)
        return
    client.log_artifact(run_id, str(path), record["folder"] or None)


def _is_child(run: Run) -> bool:
    return MLFLOW_PARENT_RUN_ID in run.data.tags


def _dataset(facts: Mapping[str, str]) -> DatasetInput:
    source = json.dumps({"uri": facts["path"]})
    dataset = Dataset(name=facts["name"], digest=facts["digest"], source_type="local", source=source)
    return DatasetInput(dataset, [InputTag("mlflow.data.context", facts["context"])])


def _params(values: Mapping[str, Any]) -> list[Param]:
    return [Param(key, _as_stored(value)) for key, value in values.items()]


def _as_stored(value: Any) -> str:
    """A parameter's value as MLflow returns it: the store keeps the beginning of a long text."""
    return str(value)[:MAX_PARAM_VAL_LENGTH]


def _points(record: Record) -> list[Metric]:
    return [Metric(key, value, record["time"], record["step"]) for key, value in record["values"].items()]

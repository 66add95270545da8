"""Writes the records of an outbox to the MLflow store."""

import hashlib
import itertools
import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http import HTTPStatus
from pathlib import Path
from typing import Any

from mlflow import MlflowClient
from mlflow.entities import Dataset, DatasetInput, InputTag, LifecycleStage, Metric, Param, Run, RunTag
from mlflow.exceptions import MlflowException
from mlflow.utils.mlflow_tags import MLFLOW_PARENT_RUN_ID, MLFLOW_RUN_NOTE
from mlflow.utils.validation import MAX_PARAM_VAL_LENGTH

from reprogpt.errors import TrackingError
from reprogpt.messages import print_message
from reprogpt.tracking.deliver.outbox import DAMAGED, RECORDS, OutboxFile, Pending, Record, RecordError
from reprogpt.tracking.log.description import describe_evaluation, describe_training
from reprogpt.tracking.store.client import open_store, to_tracked_run
from reprogpt.tracking.store.errors import store_errors
from reprogpt.tracking.store.models import finalize_model, upload_model_file
from reprogpt.tracking.store.uri import is_present_store, store_name
from reprogpt.urls import redact

MAX_METRICS = 1000  # MLflow's limit for one batch
MAX_STARTS = 3  # times that a run is uploaded from its first record, before the store is not trusted
FIRST_RECORDS = ("training", "results of")
# Answers that no retry changes: MLflow's error codes, and HTTP statuses of a proxy before it. 401, 403, 404 and 405 are
# about the whole server, 408, 425 and 429 about the moment.
PERMANENT_ERRORS = ("INVALID_PARAMETER_VALUE", "RESOURCE_DOES_NOT_EXIST", "RESOURCE_ALREADY_EXISTS", "BAD_REQUEST")
PERMANENT_STATUSES = (400, 406, 409, 410, 411, 412, 413, 414, 415, 422, 431, 451)
DESCRIPTION_DIGEST = "description.sha256"  # tag: digest of the description as reprogpt wrote it


class _IncompleteError(Exception):
    """The store lacks what it took: it has to be uploaded again from the first record."""


def belongs_to_store(outbox: OutboxFile) -> bool:
    """Whether the outbox's records were made for the present store; true of an empty outbox."""
    return is_present_store(str(next(outbox.records(), {}).get("store", store_name())))


def upload(outbox: OutboxFile, *, retry: bool = False, any_store: bool = False) -> int:
    """Write all pending records of the outbox to the store, in order; returns the number of those written.

    retry: whether to try again what was set aside. any_store: whether to upload what was made for another store, too.
    A record that the store refuses for good is reported and set aside. A run that is not in the store, as it was
    deleted there, is made again from the first record. A training's run is FINISHED only if the store has all of it.
    Raises TrackingError if the store can't be used, RecordError if the outbox does not say which run it is for: records
    that are not uploaded stay in the outbox.
    """
    if not outbox.pending() and not (retry and outbox.set_aside()):
        return 0
    first = next(outbox.records(), {"kind": DAMAGED})
    if first["kind"] not in FIRST_RECORDS:
        raise RecordError(
            f"{outbox.folder} does not say which run its records are for: its first record is missing or damaged. "
            "They are not uploaded; delete the folder if you don't need them"
        )
    if not any_store and not belongs_to_store(outbox):
        raise TrackingError(f"this run is in the MLflow store {first['store']}: set MLFLOW_TRACKING_URI to it")
    for _ in range(MAX_STARTS):
        try:
            return _upload_to_run(outbox, first, retry=retry)
        except _IncompleteError as error:
            reason = str(error)
            outbox.mark_nothing_uploaded()
    raise TrackingError(f"the MLflow store {store_name()} does not keep what it takes: {reason}")


def _upload_to_run(outbox: OutboxFile, first: Record, *, retry: bool) -> int:
    client, experiment_id = open_store()
    with store_errors(), _malformed(first, outbox):
        run_id = _find_or_create_run(client, experiment_id, outbox)
    pending = outbox.pending()
    if run_id is None and pending and pending[0].record == first:  # once for the whole outbox
        what = f"run_key {first['run_key']}" + (" and the weights of data/model" if first.get("made") else "")
        print(f"No MLflow run has {what} (trained elsewhere?): results are written to files only.")
    again = [item for item, _ in outbox.set_aside()] if retry else []
    num_written = 0
    for item in again:
        num_written += _write_or_set_aside(client, run_id, outbox, [item])
    for batch in _batches(pending):
        num_written += _write_or_set_aside(client, run_id, outbox, batch)
        outbox.mark_uploaded(batch[-1].end)
    return num_written


def _batches(pending: list[Pending]) -> list[list[Pending]]:
    """Consecutive metrics together, as many as MLflow takes in one call; every other record by itself."""
    batches = []
    for is_metrics, group in itertools.groupby(pending, key=lambda item: item.record["kind"] == "metrics"):
        items = list(group)
        batch_size = 1
        if is_metrics:
            batch_size = max(1, MAX_METRICS // max(_num_values(item.record) for item in items))
        batches += [items[start : start + batch_size] for start in range(0, len(items), batch_size)]
    return batches


def _num_values(record: Record) -> int:
    values = record.get("values")
    return max(1, len(values)) if isinstance(values, dict) else 1


def _write_or_set_aside(client: MlflowClient, run_id: str | None, outbox: OutboxFile, batch: list[Pending]) -> int:
    """Write a batch; returns the number of records written. Those that the store refuses for good are set aside."""
    set_aside = [item for item, _ in outbox.set_aside()]
    if run_id is not None:
        try:
            with store_errors():
                _write_batch(client, run_id, outbox, batch)
        except RecordError as error:
            _check_active(client, run_id)
            if len(batch) > 1:  # find the one
                middle = len(batch) // 2
                halves = (batch[:middle], batch[middle:])
                return sum(_write_or_set_aside(client, run_id, outbox, half) for half in halves)
            outbox.put_aside(batch[0], str(error))
            if batch[0] not in set_aside:
                kind = batch[0].record["kind"]
                line = outbox.line_number(batch[0])
                print_message(
                    f"MLflow refused a record of kind {kind}: {error}\n"
                    f"It is kept: line {line} of {outbox.folder / RECORDS}; `python -m reprogpt sync` tries it again"
                )
            return 0
    for item in batch:
        if item in set_aside:
            outbox.take_back(item)
    return len(batch)


def _write_batch(client: MlflowClient, run_id: str, outbox: OutboxFile, batch: list[Pending]) -> None:
    """Raises RecordError if the store refuses it for good, or a record lacks what its kind has."""
    records = [item.record for item in batch]
    try:
        with _malformed(records[0], outbox):
            if records[0]["kind"] == "metrics":
                points = [point for record in records for point in _points(record)]
                client.log_batch(run_id, metrics=points)
            elif records[0]["kind"] == "end":
                _end_if_complete(client, run_id, outbox, batch[0])
            else:
                _write_record(client, run_id, outbox, records[0])
    except (MlflowException, OSError) as error:  # requests' errors are OSErrors
        reason = _refusal(error)
        if reason is None:
            raise
        raise RecordError(reason) from None


@contextmanager
def _malformed(record: Record, outbox: OutboxFile) -> Iterator[None]:
    """Raise RecordError where a record lacks a key or has another type than its kind has."""
    try:
        yield
    except (KeyError, TypeError, AttributeError) as error:
        raise RecordError(f"a record of {outbox.folder} is damaged, of kind {record['kind']}: {error!r}") from None


def _refusal(error: MlflowException | OSError) -> str | None:
    """Why the store will never take the record; None if it may take it later, or takes nothing at all."""
    status = getattr(getattr(error, "response", None), "status_code", None)
    message = re.search(r"failed with error code (\d+) !=", str(error))
    status = int(message[1]) if message else status
    if isinstance(error, MlflowException) and not message and error.error_code in PERMANENT_ERRORS:
        return redact(str(error))
    if status not in PERMANENT_STATUSES:
        return None
    return f"HTTP {status} {HTTPStatus(status).phrase}; a proxy before the server may have a limit"


def _check_active(client: MlflowClient, run_id: str) -> None:
    """Raise _IncompleteError if the run was deleted, which may be why the store refuses a record."""
    with store_errors():
        try:
            stage = client.get_run(run_id).info.lifecycle_stage
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            stage = LifecycleStage.DELETED
    if stage == LifecycleStage.DELETED:
        raise _IncompleteError(f"the run {run_id} was deleted")


def _end_if_complete(client: MlflowClient, run_id: str, outbox: OutboxFile, item: Pending) -> None:
    """End the run as its stage ended; one that lacks records ends FAILED, and RecordError is raised.

    Raises _IncompleteError if the store lacks records that it took.
    """
    run = client.get_run(run_id)
    record = item.record
    missing = [reason for other, reason in outbox.set_aside() if other != item]
    if record["status"] != "FINISHED":
        _end(client, run, record)
        return
    if missing:
        reason = f"{len(missing)} records of this run are not in MLflow, the first since: {missing[0]}"
        _end(client, run, {**record, "status": "FAILED", "error": reason})
        raise RecordError(reason)
    _check_complete(client, run, outbox)
    _end(client, run, record)


def _check_complete(client: MlflowClient, run: Run, outbox: OutboxFile) -> None:
    """Raise _IncompleteError, saying what is missing, if the store lacks parameters, points or files of a training."""
    steps: dict[str, set[int]] = {}
    for record in outbox.records():
        match record["kind"]:
            case "metrics":
                for key in record["values"]:
                    steps.setdefault(key, set()).add(record["step"])
            case "training":
                lacking = sorted(record["params"].keys() - run.data.params.keys())
                if lacking:
                    raise _IncompleteError(f"run {run.info.run_id} lacks the parameters {', '.join(lacking)}")
            case "file" if "sampling" not in record:
                path = str(Path(record["folder"], Path(record["kept"]).name))
                if path not in {file.path for file in client.list_artifacts(run.info.run_id, record["folder"] or None)}:
                    raise _IncompleteError(f"run {run.info.run_id} lacks the artifact {path}")
    for key, expected in steps.items():
        found = {point.step for point in client.get_metric_history(run.info.run_id, key)}
        lost = sorted(expected - found)
        if lost:
            what = f"{len(lost)} of {len(expected)} points of {key}, the first at step {lost[0]}"
            raise _IncompleteError(f"run {run.info.run_id} lacks {what}")


def _write_record(client: MlflowClient, run_id: str, outbox: OutboxFile, record: Record) -> None:
    match record["kind"]:
        case "training":
            client.log_batch(run_id, params=_params(record["params"]))
            client.log_inputs(run_id, [_dataset(facts) for facts in record["datasets"]])
        case "start":
            client.update_run(run_id, status="RUNNING", name=record["name"])
        case "tags":
            client.log_batch(run_id, tags=[RunTag(key, value) for key, value in record["values"].items()])
        case "file":
            _upload_file(client, _run_of_results(client, run_id, record), outbox, record)
        case "model file":
            upload_model_file(client, run_id, outbox.kept_file(record), record["folder"])
        case "model":
            _finalize_model(client, run_id, outbox, record)
        case "results":
            _log_results(client, _run_of_results(client, run_id, record), record)
        case "description":
            _describe(client, _run_of_results(client, run_id, record), run_id)
        case "results of":  # only says which run the outbox is for
            pass
        case unknown:
            raise RecordError(f"the kind of record {unknown!r} is not known to this version of reprogpt")


def _finalize_model(client: MlflowClient, run_id: str, outbox: OutboxFile, record: Record) -> None:
    if any(item.record["kind"] == "model file" for item, _ in outbox.set_aside()):
        raise RecordError("files of the model are not in MLflow")
    finalize_model(client, run_id, record["description"])


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
        outbox.mark_nothing_uploaded()  # what was uploaded to a run that was deleted since is missing here
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
    lacking = sorted(new.keys() - client.get_run(run_id).data.metrics.keys())
    if lacking:
        raise _IncompleteError(f"run {run_id} lacks the results {', '.join(lacking)}")
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
        raise RecordError(f"{path} is missing: the MLflow run lacks {path.name}")
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

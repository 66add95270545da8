"""Writes the records of an outbox to the MLflow store."""

import hashlib
import itertools
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import replace
from http import HTTPStatus
from pathlib import Path
from typing import Any

import reprogpt.mlflow_settings  # noqa: F401

# isort: split
from mlflow import MlflowClient
from mlflow.entities import Dataset, DatasetInput, InputTag, LifecycleStage, Metric, Param, Run, RunTag
from mlflow.exceptions import MlflowException
from mlflow.utils.validation import MAX_PARAM_VAL_LENGTH

from reprogpt import tags
from reprogpt.errors import TrackingError
from reprogpt.messages import print_message
from reprogpt.tracking.deliver.outbox import RECORDS, Line, OutboxFile, queued_trainings
from reprogpt.tracking.deliver.records import (
    Damaged,
    End,
    File,
    FirstRecord,
    Model,
    ModelFile,
    Points,
    Record,
    Results,
    ResultsOf,
    Start,
    Tags,
    TokenFile,
    TrainingRun,
)
from reprogpt.tracking.store.client import open_store, run_artifacts
from reprogpt.tracking.store.errors import RecordError, store_errors
from reprogpt.tracking.store.models import (
    FOLDER,
    finalize_model,
    has_logged_models,
    model_id_of,
    upload_model_file,
)
from reprogpt.tracking.store.uri import is_present_store, store_name
from reprogpt.urls import redact

MAX_METRICS = 1000  # MLflow's limit for one batch
MAX_STARTS = 3  # times that a run is uploaded from its first record before we give up
# Answers that no retry changes: MLflow's error codes, and HTTP statuses of a proxy before it. 401, 403, 404 and 405 are
# about the whole server, 408, 425 and 429 about the moment.
PERMANENT_ERRORS = ("INVALID_PARAMETER_VALUE", "RESOURCE_DOES_NOT_EXIST", "RESOURCE_ALREADY_EXISTS", "BAD_REQUEST")
PERMANENT_STATUSES = (400, 406, 409, 410, 411, 412, 413, 414, 415, 422, 431, 451)


LACKS_RECORDS = "records of this run are not in MLflow, but in .reprogpt/outbox,"  # in the tag `error`


class _IncompleteError(Exception):
    """The store lacks what it accepted: it has to be uploaded again from the first record."""


def upload(outbox: OutboxFile, *, retry: bool = False) -> int:
    """Write all pending records of the outbox to the store, in order; returns the number of those written.

    retry: whether to try again what was set aside.
    A record that the store refuses for good is reported and set aside. A run that was deleted in the store is created
    again from the first record. A training's run is FINISHED only if the store has all of it.
    Raises TrackingError if the store can't be used or is not the one that the records are for, RecordError if the
    outbox does not say which run it is for: records that are not uploaded stay in the outbox.
    """
    num_waiting = outbox.num_pending + (len(outbox.set_aside()) if retry else 0)
    if not num_waiting:
        return 0
    first = outbox.first
    if first is None:
        raise RecordError(
            f"{outbox.folder} does not say which run its records are for: its first record is missing or damaged. "
            "They are not uploaded; delete the folder if you don't need them"
        )
    if not is_present_store(first.store):
        raise TrackingError(
            f"{num_waiting} records are for the store {first.store}; "
            "set MLFLOW_TRACKING_URI to it and run `python -m reprogpt sync`"
        )
    for _ in range(MAX_STARTS):
        try:
            return _upload_to_run(outbox, first, retry=retry)
        except _IncompleteError as error:
            reason = str(error)
            outbox.mark_nothing_uploaded()
    raise TrackingError(f"the MLflow store {store_name()} does not keep what it accepts: {reason}")


def _upload_to_run(outbox: OutboxFile, first: FirstRecord, *, retry: bool) -> int:
    client, experiment_id = open_store()
    with store_errors():
        run_id = _find_or_create_run(client, experiment_id, outbox, first)
    pending = outbox.pending()
    again = [line for line, _ in outbox.set_aside()] if retry else []
    if run_id is None:
        if pending and isinstance(first, ResultsOf) and pending[0].record == first:  # once for the whole outbox
            what = f"run_key {first.run_key}" + (" and the weights of data/model" if first.made else "")
            print(f"No MLflow run has {what} (trained elsewhere?): results are written to files only.")
        for line in again:
            outbox.take_back(line)
        if pending:
            outbox.mark_uploaded(pending[-1].end)
        return len(pending) + len(again)
    num_written = 0
    for line in again:
        num_written += _write_or_set_aside(client, run_id, outbox, [line])
    for batch in _batches(pending):
        num_written += _write_or_set_aside(client, run_id, outbox, batch)
        outbox.mark_uploaded(batch[-1].end)
    return num_written


def _batches(pending: list[Line]) -> list[list[Line]]:
    """Consecutive points together, as many as MLflow takes in one call; every other record by itself."""
    batches = []
    for are_points, group in itertools.groupby(pending, key=lambda line: isinstance(line.record, Points)):
        lines = list(group)
        most = max(len(line.record.values) if isinstance(line.record, Points) else 1 for line in lines)
        batch_size = max(1, MAX_METRICS // max(most, 1)) if are_points else 1
        batches += [lines[start : start + batch_size] for start in range(0, len(lines), batch_size)]
    return batches


def _write_or_set_aside(client: MlflowClient, run_id: str, outbox: OutboxFile, batch: list[Line]) -> int:
    """Write a batch; halve one that is refused until the records that can't be written are known, and set those aside.

    Returns the number of records written.
    """
    already_aside = {line for line, _ in outbox.set_aside()}
    try:
        with store_errors():
            _write_batch(client, run_id, outbox, batch)
    except RecordError as error:
        _check_active(client, run_id)
        if len(batch) > 1:
            middle = len(batch) // 2
            halves = (batch[:middle], batch[middle:])
            return sum(_write_or_set_aside(client, run_id, outbox, half) for half in halves)
        reason = f"{_describe(outbox, batch[0].record)}: {error}"
        outbox.put_aside(batch[0], reason)
        if batch[0] not in already_aside:
            print_message(
                f"a record is not in MLflow: {reason}\n"
                f"It is kept: line {outbox.line_number(batch[0])} of {outbox.folder / RECORDS}; "
                "`python -m reprogpt sync` tries it again"
            )
        return 0
    for line in batch:
        if line in already_aside:
            outbox.take_back(line)
    return len(batch)


def _describe(outbox: OutboxFile, record: Record | Damaged) -> str:
    """What a record is, for a message: of a file its path in MLflow and its size, of points their step."""
    match record:
        case File() | ModelFile():
            path = outbox.kept_file(record.kept)
            size = f" ({path.stat().st_size:,} bytes)" if path.exists() else ""
            return f"{record.kind} {Path(record.folder, path.name).as_posix()}{size}"
        case Points():
            return f"{record.kind} of step {record.step}"
    return record.kind


def _write_batch(client: MlflowClient, run_id: str, outbox: OutboxFile, batch: list[Line]) -> None:
    """Raises RecordError if a record is damaged or the store refuses it for good."""
    try:
        if isinstance(batch[0].record, Points):
            points = [line.record for line in batch if isinstance(line.record, Points)]
            client.log_batch(run_id, metrics=[metric for record in points for metric in _metrics(record)])
        elif isinstance(batch[0].record, End):
            missing = [reason for line, reason in outbox.set_aside() if line != batch[0]]
            _end_if_complete(client, run_id, outbox, batch[0].record, missing)
        else:
            _write_record(client, run_id, outbox, batch[0].record)
    except (MlflowException, OSError) as error:  # requests' errors are OSErrors
        reason = _refusal(error)
        if reason is None:
            raise
        raise RecordError(reason) from None


def _refusal(error: MlflowException | OSError) -> str | None:
    """Why the store will never accept the record; None if it may accept it later, or accepts nothing at all."""
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


def _write_record(client: MlflowClient, run_id: str, outbox: OutboxFile, record: Record | Damaged) -> None:
    """Write a record that is neither points nor an end. ResultsOf only says which run the outbox is for."""
    match record:
        case TrainingRun():
            client.log_batch(run_id, params=_params(record.params))
            client.log_inputs(run_id, [_dataset(file) for file in record.datasets])
            if not has_logged_models(client, run_id):
                print_message(
                    f"\nthe MLflow server {store_name()} has no logged models, which MLflow 3 has: the model will be\n"
                    f"in the folder {FOLDER} of the run's artifacts, and not in the Models tab"
                )
        case Start():
            client.update_run(run_id, status="RUNNING", name=record.name)
        case Tags():
            client.log_batch(run_id, tags=[RunTag(key, value) for key, value in record.values.items()])
        case File():
            _upload_file(client, _run_of_results(client, run_id, record), outbox, record)
        case Results():
            _log_results(client, _run_of_results(client, run_id, record), record)
        case ModelFile():
            upload_model_file(client, run_id, outbox.kept_file(record.kept), record.folder)
        case Model():
            _finalize_model(client, run_id, outbox, record)
        case Damaged():
            raise RecordError(record.reason)


def _finalize_model(client: MlflowClient, run_id: str, outbox: OutboxFile, record: Model) -> None:
    if any(isinstance(line.record, ModelFile) for line, _ in outbox.set_aside()):
        raise RecordError("files of the model are not in MLflow")
    finalize_model(client, run_id, record.description)


def _end_if_complete(client: MlflowClient, run_id: str, outbox: OutboxFile, record: End, missing: list[str]) -> None:
    """End the run as its stage ended; one that lacks records ends FAILED, and RecordError is raised.

    missing: why records were set aside. Raises _IncompleteError if the store lacks records that it accepted.
    """
    run = client.get_run(run_id)
    if record.status == "FINISHED" and missing:
        reason = f"{len(missing)} {LACKS_RECORDS} {outbox.folder.name}, the first since: {missing[0]}"
        _end(client, run, replace(record, status="FAILED", error=reason))
        raise RecordError(reason)
    lacks = run.data.tags.get(tags.ERROR, "")
    if record.adds is not None and LACKS_RECORDS in lacks and outbox.folder.name not in lacks:
        return  # results don't make up for the records that another outbox has
    if record.status == "FINISHED":
        _check_complete(client, run, outbox)
    _end(client, run, record)


def _check_complete(client: MlflowClient, run: Run, outbox: OutboxFile) -> None:
    """Raise _IncompleteError, saying what is missing, if the store lacks parameters, points or files of a training."""
    run_id = run.info.run_id
    points = []
    for record in outbox.records():
        match record:
            case Points():
                points.append(record)
            case TrainingRun():
                lacking = sorted(record.params.keys() - run.data.params.keys())
                if lacking:
                    raise _IncompleteError(f"run {run_id} lacks the parameters {', '.join(lacking)}")
            case File(sampling=None):
                path = str(Path(record.folder, Path(record.kept).name))
                if path not in run_artifacts(run, record.folder):
                    raise _IncompleteError(f"run {run_id} lacks the artifact {path}")
    lost = lacking_points(client, run_id, points)
    if lost:
        first = lost[0]
        raise _IncompleteError(
            f"run {run_id} lacks points of {len(lost)} of {len(points)} steps, "
            f"the first at step {first.step}: {', '.join(first.values)}"
        )


def lacking_points(client: MlflowClient, run_id: str, points: Iterable[Points]) -> list[Points]:
    """What the run lacks of these points, in order: those whose metric has no value at their step."""
    stored: dict[str, set[int]] = {}
    lacking = []
    for record in points:
        for key in record.values.keys() - stored.keys():
            stored[key] = {point.step for point in client.get_metric_history(run_id, key)}
        values = {key: value for key, value in record.values.items() if record.step not in stored[key]}
        if values:
            lacking.append(replace(record, values=values))
    return lacking


def _end(client: MlflowClient, run: Run, record: End) -> None:
    """Set the run's status to that of the stage that ended.

    If the stage only added results, the training's end time stays, and so does FINISHED if the results that the stage
    adds are already there.
    """
    run_id = run.info.run_id
    end_time = record.time
    if record.adds is not None:
        end_time = run.info.end_time or end_time
        has_results = record.adds in run.data.metrics or run_artifacts(run, record.adds)
        if run.info.status == "FINISHED" and (record.status == "FINISHED" or has_results):
            return
    if record.error is not None:
        client.set_tag(run_id, tags.ERROR, record.error)
    elif record.status == "FINISHED" and tags.ERROR in run.data.tags:
        client.delete_tag(run_id, tags.ERROR)
    client.set_terminated(run_id, record.status, end_time=end_time)


def _find_or_create_run(client: MlflowClient, experiment_id: str, outbox: OutboxFile, first: FirstRecord) -> str | None:
    """The id of the run that the first record names.

    For a training: its run, created if it does not exist. For results: the run of the training that they name, else
    one that made the weights; of several, that of the present DVC experiment, else the newest; None if there is none.
    Raises TrackingError for results whose run will only be complete when another outbox is uploaded.
    """
    if isinstance(first, TrainingRun):
        query = f"tags.{tags.TRAINING_ID} = '{first.tags[tags.TRAINING_ID]}'"
        for run in client.search_runs([experiment_id], query):
            return str(run.info.run_id)
        outbox.mark_nothing_uploaded()  # what was uploaded to a run that was deleted since is missing here
        run = client.create_run(experiment_id, first.time, first.tags, first.name)
        return str(run.info.run_id)
    query = f"tags.{tags.RUN_KEY} = '{first.run_key}'"
    runs = client.search_runs([experiment_id], query, order_by=["attributes.start_time DESC"])
    has_results = any(isinstance(record, Results) for record in outbox.records())
    trainings = [run for run in runs if not _is_child(run)]
    trainings = _that_made(trainings, first.made, has_results=has_results)
    of_experiment = [run for run in trainings if run.data.tags.get(tags.EXPERIMENT_NAME) == first.experiment]
    named = [run for run in runs if first.training_id and run.data.tags.get(tags.TRAINING_ID) == first.training_id]
    candidates = named or of_experiment or trainings
    queued = queued_trainings(first.run_key)
    if first.training_id in queued or (queued and not candidates):
        raise TrackingError("the MLflow run of this training is not complete yet: its own records are uploaded first")
    return str(candidates[0].info.run_id) if candidates else None


def _that_made(runs: list[Run], made: Mapping[str, str], *, has_results: bool) -> list[Run]:
    """The runs of trainings that made these bits: the weights, else the history, by their tags.

    All of them if nothing is known of the bits. Results are of the weights: they go to no run of other weights.
    """
    for tag, digest in made.items():
        same = [run for run in runs if run.data.tags.get(tag) == digest]
        if same or (has_results and tag == tags.WEIGHTS_SHA256):
            return same
    return [] if made else runs


def _run_of_results(client: MlflowClient, run_id: str, record: File | Results) -> str:
    """The id of the run to which results made with evaluate's parameters, record.sampling, belong.

    The training's own run, unless it has results made with other parameters: MLflow does not allow changing a
    parameter, so those get a child run.
    """
    if record.sampling is None:
        return run_id
    run = client.get_run(run_id)
    logged = run.data.params
    if any(key in logged and logged[key] != _as_stored(value) for key, value in record.sampling.items()):
        return _find_or_create_child(client, run, record, record.sampling)
    new = {key: value for key, value in record.sampling.items() if key not in logged}
    client.log_batch(run_id, params=_params(new))
    return run_id


def _find_or_create_child(
    client: MlflowClient, parent: Run, record: File | Results, sampling: Mapping[str, Any]
) -> str:
    """The child run for these results, created if it does not exist; named after its DVC experiment, if any."""
    origin = json.dumps([sampling, record.tags], sort_keys=True)
    digest = hashlib.sha256(origin.encode()).hexdigest()[:32]
    query = f"tags.`{tags.PARENT_RUN_ID}` = '{parent.info.run_id}' and tags.{tags.EVALUATION_ID} = '{digest}'"
    for child in client.search_runs([parent.info.experiment_id], query):
        return str(child.info.run_id)
    own = {tags.PARENT_RUN_ID: parent.info.run_id, tags.EVALUATION_ID: digest, tags.SOURCE_NAME: "stages.evaluate"}
    name = record.tags.get(tags.EXPERIMENT_NAME, f"{parent.info.run_name}-evaluate")
    child = client.create_run(parent.info.experiment_id, record.time, {**record.tags, **own}, name)
    client.log_batch(child.info.run_id, params=_params(sampling))
    return str(child.info.run_id)


def _log_results(client: MlflowClient, run_id: str, record: Results) -> None:
    """Log the final metrics that the run does not have yet: a repeated stage adds no second point.

    MLflow shows them with the run's model, too, and can order models by them.
    """
    run = client.get_run(run_id)
    new = {key: value for key, value in record.values.items() if run.data.metrics.get(key) != value}
    model_id = model_id_of(client, run)
    client.log_batch(run_id, metrics=_metrics(replace(record, values=new), model_id))
    lacking = sorted(new.keys() - client.get_run(run_id).data.metrics.keys())
    if lacking:
        raise _IncompleteError(f"run {run_id} lacks the results {', '.join(lacking)}")
    if _is_child(run):
        client.set_terminated(run_id, "FINISHED", end_time=record.time)


def _upload_file(client: MlflowClient, run_id: str, outbox: OutboxFile, record: File) -> None:
    path = outbox.kept_file(record.kept)
    if not path.exists():
        raise RecordError(f"{path} is missing: the MLflow run lacks {path.name}")
    client.log_artifact(run_id, str(path), record.folder or None)


def _is_child(run: Run) -> bool:
    return tags.PARENT_RUN_ID in run.data.tags


def _dataset(file: TokenFile) -> DatasetInput:
    source = json.dumps({"uri": file.path})
    dataset = Dataset(name=file.name, digest=file.digest, source_type="local", source=source)
    return DatasetInput(dataset, [InputTag(tags.DATASET_CONTEXT, file.context)])


def _params(values: Mapping[str, Any]) -> list[Param]:
    return [Param(key, _as_stored(value)) for key, value in values.items()]


def _as_stored(value: Any) -> str:
    """A parameter's value as MLflow returns it: the store keeps the beginning of a long text."""
    return str(value)[:MAX_PARAM_VAL_LENGTH]


def _metrics(record: Points | Results, model_id: str | None = None) -> list[Metric]:
    return [Metric(key, value, record.time, record.step, model_id=model_id) for key, value in record.values.items()]

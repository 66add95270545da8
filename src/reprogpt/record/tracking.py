"""Delivering the outbox: each record becomes what it says in the MLflow store."""

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

from reprogpt.errors import TrackingError
from reprogpt.record.description import describe_evaluation, describe_training
from reprogpt.record.logged_models import complete_model, send_model_file
from reprogpt.record.outbox import Box, Pending, Record
from reprogpt.record.store import in_words, open_store, plain_run, store_name, without_password

MAX_METRICS = 1000  # MLflow's limit for one batch
# What MLflow will never take, however often it is offered.
REFUSALS = ("INVALID_PARAMETER_VALUE", "RESOURCE_DOES_NOT_EXIST")
OWN_NOTE = "description.sha256"  # tag: digest of the description as it was written here


def is_for_this_store(box: Box) -> bool:
    """Whether the box's records were made for the present store; true of an empty box."""
    return bool(next(box.records(), {}).get("store", store_name()) == store_name())


def deliver(box: Box) -> int:
    """Deliver all that is pending in the box, in order; the number of records.

    A record that MLflow refuses for good, such as one of a run that was deleted, is said and left out.
    Raises TrackingError where the store can't be used: what is not delivered then stays in the box.
    """
    pending = box.pending()
    if not pending:
        return 0
    first = next(box.records())
    if not is_for_this_store(box):
        raise TrackingError(f"this run is kept in the MLflow store {first['store']}: set MLFLOW_TRACKING_URI to it")
    client, experiment_id = open_store()
    with in_words():
        run_id = _run_of(client, experiment_id, first)
    if run_id is None and pending[0].record == first:  # said once for the whole box
        print(f"No MLflow run has run_key {first['run_key']} (trained elsewhere?): results go to files only.")
    for batch in _batches(pending):
        if run_id is not None:
            _deliver(client, run_id, box, batch)
        box.mark_delivered(batch[-1].end)
    return len(pending)


def _batches(pending: list[Pending]) -> list[list[Pending]]:
    """Runs of metrics together, as many as MLflow takes at once; every other record by itself."""
    batches = []
    for is_metrics, group in itertools.groupby(pending, key=lambda item: item.record["kind"] == "metrics"):
        items = list(group)
        most = MAX_METRICS // max(len(item.record["values"]) for item in items) if is_metrics else 1
        batches += [items[start : start + most] for start in range(0, len(items), most)]
    return batches


def _deliver(client: MlflowClient, run_id: str, box: Box, batch: list[Pending]) -> None:
    records = [item.record for item in batch]
    with in_words():
        try:
            if records[0]["kind"] == "metrics":
                points = [point for record in records for point in _points(record)]
                client.log_batch(run_id, metrics=points)
            else:
                _apply(client, run_id, box, records[0])
        except MlflowException as error:
            if error.error_code not in REFUSALS:
                raise
            said = without_password(str(error))
            print(f"MLflow refuses a record of kind {records[0]['kind']}: {said}; it is left out", file=sys.stderr)


def _apply(client: MlflowClient, run_id: str, box: Box, record: Record) -> None:
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
            _send_file(client, _evaluated(client, run_id, record), box, record)
        case "model file":
            send_model_file(client, run_id, box.kept_file(record), record["folder"])
        case "model":
            complete_model(client, run_id, record["description"])
        case "results":
            _send_results(client, _evaluated(client, run_id, record), record)
        case "description":
            _describe(client, _evaluated(client, run_id, record), run_id)
        case unknown:  # the first record of a box told which run it is for, and that is all
            assert unknown == "results of", unknown


def _end(client: MlflowClient, run: Run, record: Record) -> None:
    """Give the run the status that its writer ended with.

    Where the writer only added results: the training's own duration stays, and so does FINISHED if the results
    that the writer was to add (record["adds"], a metric or an artifact folder) are there.
    """
    run_id, ended_at, adds = run.info.run_id, record["time"], record["adds"]
    if adds is not None:
        ended_at = run.info.end_time or ended_at
        there = adds in run.data.metrics or client.list_artifacts(run_id, adds)
        if run.info.status == "FINISHED" and (record["status"] == "FINISHED" or there):
            return
    if "error" in record:
        client.set_tag(run_id, "error", record["error"])
    elif record["status"] == "FINISHED" and "error" in run.data.tags:
        client.delete_tag(run_id, "error")
    client.set_terminated(run_id, record["status"], end_time=ended_at)


def _run_of(client: MlflowClient, experiment_id: str, first: Record) -> str | None:
    """The run that a box is for, by its first record: a training's, made if it is not there; or one with results,
    the one of the present DVC experiment if there is one, else the newest. None if it is nowhere.
    """
    if first["kind"] == "training":
        tag = f"tags.training_id = '{first['tags']['training_id']}'"
        found = list(client.search_runs([experiment_id], tag))
        if found:
            return str(found[0].info.run_id)
        run = client.create_run(experiment_id, first["time"], first["tags"], first["name"])
        return str(run.info.run_id)
    tag, newest = f"tags.run_key = '{first['run_key']}'", ["attributes.start_time DESC"]
    found = [run for run in client.search_runs([experiment_id], tag, order_by=newest) if not _is_child(run)]
    own = [run for run in found if run.data.tags.get("dvc.experiment") == first["experiment"]]
    return str((own or found)[0].info.run_id) if found else None


def _evaluated(client: MlflowClient, run_id: str, record: Record) -> str:
    """The run for something that was made with record["sampling"], evaluate's parameters, if it was.

    The training's own run, unless that was evaluated with others already: MLflow never changes a
    parameter, so other values get a child run of their own.
    """
    sampling: Mapping[str, Any] | None = record.get("sampling")
    if sampling is None:
        return run_id
    run = client.get_run(run_id)
    known = run.data.params
    if any(known.get(key, str(value)) != str(value) for key, value in sampling.items()):
        return _child_of(client, run, record)
    client.log_batch(run_id, params=_params({key: value for key, value in sampling.items() if key not in known}))
    return run_id


def _child_of(client: MlflowClient, parent: Run, record: Record) -> str:
    """The child run for these results, made if it is not there: named after its DVC experiment, if it has one."""
    origin = json.dumps([record["sampling"], record["tags"]], sort_keys=True)
    digest = hashlib.sha256(origin.encode()).hexdigest()[:32]
    same = f"tags.`{MLFLOW_PARENT_RUN_ID}` = '{parent.info.run_id}' and tags.evaluation = '{digest}'"
    found = list(client.search_runs([parent.info.experiment_id], same))
    if found:
        return str(found[0].info.run_id)
    tags = {MLFLOW_PARENT_RUN_ID: parent.info.run_id, "evaluation": digest, "mlflow.source.name": "stages.evaluate"}
    name = record["tags"].get("dvc.experiment", f"{parent.info.run_name}-evaluate")
    child = client.create_run(parent.info.experiment_id, record["time"], {**record["tags"], **tags}, name)
    client.log_batch(child.info.run_id, params=_params(record["sampling"]))
    return str(child.info.run_id)


def _send_results(client: MlflowClient, run_id: str, record: Record) -> None:
    """Final numbers, but for those that the run has already: a forced repeat adds no second point."""
    known = client.get_run(run_id)
    new = {key: value for key, value in record["values"].items() if known.data.metrics.get(key) != value}
    client.log_batch(run_id, metrics=_points({**record, "values": new}))
    if _is_child(known):
        client.set_terminated(run_id, "FINISHED", end_time=record["time"])


def _describe(client: MlflowClient, run_id: str, training_id: str) -> None:
    """Give a run, of a training or of an evaluation of it, the description that follows from what the store has of it.

    One that a person has written, edited or removed stays so: only a text whose digest is on record is replaced.
    """
    run = client.get_run(run_id)
    if run_id == training_id:
        text = describe_training(plain_run(run))
    else:
        text = describe_evaluation(plain_run(run), plain_run(client.get_run(training_id)))
    there, own = run.data.tags.get(MLFLOW_RUN_NOTE), run.data.tags.get(OWN_NOTE)
    if (there and _digest(there)) == own and there != text:
        # In one call, which the store does whole or not at all.
        client.log_batch(run_id, tags=[RunTag(MLFLOW_RUN_NOTE, text), RunTag(OWN_NOTE, _digest(text))])


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _send_file(client: MlflowClient, run_id: str, box: Box, record: Record) -> None:
    kept = box.kept_file(record)
    if not kept.exists():
        print(f"{kept} is gone: the MLflow run lacks {kept.name}", file=sys.stderr)
        return
    client.log_artifact(run_id, str(kept), record["folder"] or None)


def _is_child(run: Run) -> bool:
    return MLFLOW_PARENT_RUN_ID in run.data.tags


def _dataset(facts: Mapping[str, str]) -> DatasetInput:
    source = json.dumps({"uri": facts["path"]})
    dataset = Dataset(name=facts["name"], digest=facts["digest"], source_type="local", source=source)
    return DatasetInput(dataset, [InputTag("mlflow.data.context", facts["context"])])


def _params(values: Mapping[str, Any]) -> list[Param]:
    return [Param(key, str(value)) for key, value in values.items()]


def _points(record: Record) -> list[Metric]:
    return [Metric(key, value, record["time"], record["step"]) for key, value in record["values"].items()]

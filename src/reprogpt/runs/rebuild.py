"""Rebuilds what MLflow has lost of the training that made data/model, from the files under data/."""

import csv
import json
import math
import uuid
from collections.abc import Iterator
from typing import Any

from reprogpt import tags
from reprogpt.dvc.digest import dvc_md5
from reprogpt.dvc.revisions import Workspace, commits_with_run_key
from reprogpt.errors import PipelineError
from reprogpt.params.loader import load_params
from reprogpt.params.train import TrainParams
from reprogpt.paths import HISTORY, MODEL, TRAIN_SUMMARY
from reprogpt.runs.lineage import DIFFERS, HOLDS, NOT_HERE, Link, check_links
from reprogpt.step_record import StepRecord
from reprogpt.tracking.deliver.outbox import OutboxFile, is_queued
from reprogpt.tracking.deliver.records import End, Points
from reprogpt.tracking.deliver.writer import LACKS_RECORDS, lacking_points, upload
from reprogpt.tracking.log.local_trainings import find_training
from reprogpt.tracking.log.results import open_results_outbox
from reprogpt.tracking.log.training import RunIdentity, RunLogger, open_training_outbox, step_metrics
from reprogpt.tracking.store.client import open_store, search_runs
from reprogpt.tracking.store.errors import store_errors
from reprogpt.tracking.store.tracked_run import TrackedRun

_PLAN = (tags.STEPS_PER_EPOCH, tags.TOTAL_STEPS, tags.WARMUP_STEPS)  # keys of train.json, tags of a run


class UnconfirmedError(PipelineError):
    """Nothing confirms that data/model was trained as params.yaml, dvc.lock and the code say."""


def rebuild_run() -> str | None:
    """Upload what the store lacks of the present training; returns what was done, None if nothing is missing.

    A training without a run gets one: parameters, points, model, digests and present results, but neither the times,
    samples and environment of the training nor its system metrics, which no file holds. A run that lacks points gets
    those. A run that was deleted in MLflow stays deleted.
    A run of this repository that lacks records which are not in the outbox any more, since a person gave them up, ends
    FINISHED. Nothing is done while the outbox has records of this training.
    Raises UnconfirmedError if a run of the present files would say what is not known of them, and TrackingError if the
    store can't be used.
    """
    if not HISTORY.exists():
        return None
    workspace = Workspace()
    key = workspace.summary_key
    if key and is_queued(key):
        return None
    same = search_runs({tags.md5_tag(HISTORY): dvc_md5(HISTORY)}, with_deleted=True)
    runs = [run for run in same if tags.RUN_KEY in run.tags]
    if not runs:
        return _rebuild_whole(workspace) if MODEL.exists() else None
    active = [run for run in runs if not run.is_deleted]
    if not active:
        return f"run {runs[0].id} of data/model was deleted; bring it back: mlflow runs restore --run-id {runs[0].id}"
    here = find_training(active[0].tags.get(tags.WEIGHTS_SHA256, ""))
    own = [run for run in active if run.tags.get(tags.TRAINING_ID) == here]
    done = [_add_points((own or active)[0]), *map(_finish_without_records, own)]
    return "; ".join(filter(None, done)) or None


def _rebuild_whole(workspace: Workspace) -> str:
    key = _confirmed_key(workspace)
    facts = json.loads(TRAIN_SUMMARY.read_text("utf-8"))
    params = load_params(TrainParams).model_dump()
    more_tags = {tags.REBUILT_FROM: str(HISTORY)} | {name: str(facts[name]) for name in _PLAN}
    outbox = open_training_outbox(RunIdentity(key, uuid.uuid4().hex, None), params, more_tags)
    run_logger = RunLogger(outbox)
    run_logger.resume(_history())
    (kept_step,) = facts["kept_step"]
    run_logger.finish(kept_step)
    outbox.append(End(status="FINISHED", adds=None))
    _upload(outbox)
    return f"MLflow had no run of data/model: it is rebuilt from {HISTORY}, with {run_logger.last_step + 1} steps"


def _confirmed_key(workspace: Workspace) -> str:
    """The run key of the present files. Raises UnconfirmedError unless all records agree on how they were made.

    dvc.lock alone says nothing: `dvc commit -f` records any files as made from whatever lies beside them.
    """
    (train,) = check_links(
        {"train": workspace.lock["train"]} if "train" in workspace.lock else {},
        {"train": workspace.stages["train"]},
        workspace.params,
        workspace.digest,
    )
    changed = [link for link in (*train.inputs, *train.outs) if link.status == DIFFERS or _is_missing(link)]
    key = workspace.summary_key
    recorded = [Link(str(TRAIN_SUMMARY), workspace.lock_key, key), *_committed_weights(workspace, key or "")]
    forged = [link for link in recorded if link.status != HOLDS]
    if key is None or changed or forged:
        lines = [f"  {link.what}: recorded {link.recorded}, found {link.present}" for link in (*changed, *forged)]
        remedy = "dvc repro" if changed else "dvc repro -f train"
        raise UnconfirmedError(
            f"MLflow has no run of {MODEL}, and none is rebuilt, since the records do not agree on how it was made:\n"
            + "\n".join(lines)
            + f"\n`{remedy}` makes results that fit; `python -m reprogpt lineage` checks every link"
        )
    return key


def _is_missing(link: Link) -> bool:
    """Whether a file is not here. Values in other files than params.yaml can't be checked, nor are they in run keys."""
    return link.status == NOT_HERE and not link.what.startswith("param ")


def _committed_weights(workspace: Workspace, key: str) -> list[Link]:
    """The digest of data/model in each commit that has the present history, against the present one."""
    outs = workspace.recorded_outs
    commits = [commit.recorded_outs for commit in commits_with_run_key(key)] if key else []
    same = [recorded for recorded in commits if recorded.get(str(HISTORY)) == outs.get(str(HISTORY))]
    return [Link(f"{MODEL} in git", recorded.get(str(MODEL)), outs.get(str(MODEL))) for recorded in same]


def _add_points(run: TrackedRun) -> str | None:
    """Upload the points of history.csv that the run lacks."""
    points = []
    best_val_loss = math.inf
    for record in _history():
        if record.val_loss is not None:
            best_val_loss = min(best_val_loss, record.val_loss)
        points.append(Points(step=record.step, values=step_metrics(record, best_val_loss)))
    client, _ = open_store()
    with store_errors():
        lacking = lacking_points(client, run.id, points)
    if not lacking:
        return None
    outbox = open_results_outbox(run.tags[tags.RUN_KEY], run.tags.get(tags.TRAINING_ID))
    for lost in lacking:
        outbox.append(lost)
    _upload(outbox)
    return f"run {run.id} lacked points of {len(lacking)} steps, which are uploaded from {HISTORY}"


def _finish_without_records(run: TrackedRun) -> str | None:
    """End a run that is FAILED only for the lack of records; its end time stays."""
    reason = run.tags.get(tags.ERROR, "")
    if LACKS_RECORDS not in reason:
        return None
    client, _ = open_store()
    with store_errors():
        client.set_tag(run.id, tags.NOT_RECORDED, reason)
        client.delete_tag(run.id, tags.ERROR)
        client.set_terminated(run.id, "FINISHED", end_time=client.get_run(run.id).info.end_time)
    return f"run {run.id} lacks records that are not in the outbox any more: it is FINISHED without them"


def _upload(outbox: OutboxFile) -> None:
    """Upload the outbox; what can't be uploaded now waits in it."""
    try:
        upload(outbox)
    finally:
        outbox.release()


def _history() -> Iterator[StepRecord]:
    """The rows of history.csv, as the train stage wrote it."""
    with HISTORY.open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            values: dict[str, Any] = {name: float(text) if text else None for name, text in row.items()}
            values |= {name: int(row[name]) for name in ("step", "epoch", "tokens_seen")}
            yield StepRecord(**values)

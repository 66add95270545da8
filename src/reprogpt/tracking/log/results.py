"""Adds the results of evaluate and plot to the MLflow run of their training."""

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from reprogpt.dvc.digest import dvc_md5
from reprogpt.files import file_digest
from reprogpt.paths import EVAL_RESULTS, HISTORY, MODEL, PLOTS, SAMPLES
from reprogpt.tags import WEIGHTS_SHA256, md5_tag
from reprogpt.tracking.deliver.outbox import OutboxFile, open_outbox
from reprogpt.tracking.deliver.records import File, Results, ResultsOf
from reprogpt.tracking.deliver.uploader import uploading
from reprogpt.tracking.log.local_trainings import find_training
from reprogpt.tracking.log.provenance import experiment_tags, git_tags
from reprogpt.tracking.store.uri import recorded_store


@contextmanager
def log_results(run_key: str, adds: str) -> Iterator[OutboxFile]:
    """An outbox for the MLflow run of the training with this key, uploaded while the block adds to it.

    Other machines make other bits from the same inputs, and equal bits at times: of the runs with this key, it is that
    of the training here which made the weights in data/model. If they were not trained here, it is one whose training
    made those weights or, if no run has those weights, the history.
    adds: the metric or artifact folder that tells whether the run already has this stage's results: then a repeated
    stage that is stopped leaves the run FINISHED.
    """
    outbox = open_results_outbox(run_key)
    with uploading(outbox, adds=adds):
        yield outbox


def open_results_outbox(run_key: str, training_id: str | None = None) -> OutboxFile:
    """A new outbox, locked, for the run of this training, or for the one that log_results names."""
    outbox = open_outbox()
    made = _made_by_train()
    outbox.append(
        ResultsOf(
            run_key=run_key,
            experiment=os.environ.get("DVC_EXP_NAME"),
            store=recorded_store(),
            made=made,
            training_id=training_id or find_training(made.get(WEIGHTS_SHA256, "")),
        )
    )
    return outbox


def _made_by_train() -> dict[str, str]:
    """Tags by which the run that made the present files is recognized; RunLogger.finish sets them."""
    weights = MODEL / "model.safetensors"
    tags = {WEIGHTS_SHA256: file_digest(weights)} if weights.exists() else {}
    return tags | ({md5_tag(HISTORY): dvc_md5(HISTORY)} if HISTORY.exists() else {})


def record_evaluation(outbox: OutboxFile, params: Mapping[str, Any], step: int) -> None:
    """Queue what evaluate wrote with these parameters. step: the training's last, 0-based."""
    values = json.loads(EVAL_RESULTS.read_text(encoding="utf-8"))
    sampling = dict(params)
    tags = git_tags() | experiment_tags()
    outbox.append(Results(values=values, step=step, sampling=sampling, tags=tags))
    with outbox.note_losses(SAMPLES.name):
        outbox.append(File(kept=outbox.keep_file(SAMPLES), folder="samples", sampling=sampling, tags=tags))


def record_plots(outbox: OutboxFile) -> None:
    """Queue the figures that plot drew."""
    for path in sorted(PLOTS.glob("*.p[nd][gf]")):
        with outbox.note_losses(path.name):
            outbox.append(File(kept=outbox.keep_file(path), folder="plots"))

"""What a training adds to its MLflow run, queued in the run's outbox: from the first record to the model."""

import math
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from reprogpt.dvc.code_patch import MAX_PATCH_BYTES, code_patch
from reprogpt.dvc.digest import cached_md5, dvc_md5
from reprogpt.dvc.pipeline import is_up_to_date, out_paths, stage_definition
from reprogpt.files import file_digest, write_bytes_atomic, write_text_atomic
from reprogpt.messages import print_message
from reprogpt.params.evaluate import EvaluateParams
from reprogpt.params.loader import PARAMS_FILE, load_params
from reprogpt.paths import CHECKPOINT_ARTIFACT, MODEL, RAW_TEXT, TRAIN_TOKENS, VAL_TOKENS, state_dir
from reprogpt.serving.mlflow_model import write_mlflow_model
from reprogpt.step_record import EVAL_METRICS, STEP_METRICS, StepRecord
from reprogpt.tracking.deliver.outbox import OutboxFile, open_outbox
from reprogpt.tracking.log.provenance import code_tags, corpus_tags, experiment_tags, git_tags, read_source, user_tags
from reprogpt.tracking.log.results import record_evaluation, record_plots
from reprogpt.tracking.store.uri import recorded_store

TOKEN_FILES = {"training": TRAIN_TOKENS, "validation": VAL_TOKENS}  # MLflow's context of a dataset -> its file
PATCH = "uncommitted.patch"


@dataclass(frozen=True)
class RunIdentity:
    """Which training a run is of.

    run_key: digest of what the training is made from. training_id: tells apart trainings made from the same.
    run_dir: while this path exists, the training may be resumed; None if it can't be.
    """

    run_key: str
    training_id: str
    run_dir: Path | None

    @property
    def tags(self) -> dict[str, str]:
        """The tags by which the run is found."""
        return {
            "run_key": self.run_key,
            "training_id": self.training_id,
            "mlflow.source.name": "stages.train",
            "mlflow.source.type": "LOCAL",
        }


class TrainingRecords:
    """Queues the steps of a training and what it makes.

    last_step: 0-based, of the steps so far; -1 before the first.
    """

    def __init__(self, outbox: OutboxFile) -> None:
        self._outbox = outbox
        self._queued_steps = {record["step"] for record in outbox.records() if record["kind"] == "metrics"}
        self._best_val_loss = math.inf
        self._samples: list[str] = []
        self.last_step = -1

    def append(
        self, record: StepRecord, extra: Mapping[str, float] | None = None, *, sample: str | None = None
    ) -> None:
        """Queue a step's metrics, unless they were queued before a resume: a point keeps its first timestamp.

        extra: further metrics of the step. sample: record.sample as text.
        """
        self.last_step = record.step
        if sample is not None:
            self._samples.append(f"epoch {record.epoch + 1}\n{sample}\n")
        if record.val_loss is not None:
            self._best_val_loss = min(self._best_val_loss, record.val_loss)
        if record.step in self._queued_steps:
            return
        self._outbox.append(
            "metrics", step=record.step, values={**step_metrics(record, self._best_val_loss), **(extra or {})}
        )

    def finish(self, kept_step: int) -> None:
        """Queue what the training made: model, digests, samples. Train's outs must be in place.

        kept_step: 0-based step after which the training had the model's weights.
        """
        if self._samples:
            with self._outbox.note_losses("the samples"):
                path = self._outbox.folder / "training.txt"
                write_text_atomic(path, "\n".join(self._samples))
                self._outbox.append_file(path, "samples")
        with self._outbox.note_losses("the model"):
            record_model(self._outbox)
        digests = {f"dvc.{out}.md5": dvc_md5(Path(out)) for out in out_paths(stage_definition("train"))}
        weights = {"weights.sha256": file_digest(MODEL / "model.safetensors"), "weights.step": str(kept_step)}
        self._outbox.append("tags", values=digests | weights)
        # If the outs have the same bits as before, DVC skips the later stages: their present results are this run's.
        if is_up_to_date("evaluate"):
            record_evaluation(self._outbox, load_params(EvaluateParams).model_dump(), self.last_step)
        if is_up_to_date("plot"):
            record_plots(self._outbox)


def step_metrics(record: StepRecord, best_val_loss: float) -> dict[str, float]:
    """What MLflow gets of a step, by metric.

    best_val_loss: the lowest val_loss up to this step. It is a metric of every evaluated step, not of the last one:
    MLflow's last value is then right of a run that fails, too.
    """
    values = asdict(record)
    if record.val_loss is None:
        return {name: values[name] for name in STEP_METRICS}
    metrics = {name: values[name] for name in (*STEP_METRICS, *EVAL_METRICS, "tokens_seen")}
    return metrics | {"best_val_loss": best_val_loss}


def record_model(outbox: OutboxFile) -> None:
    """Queue the training's MLflow model: data/model, which must be in place, and the files with which it is served."""
    folder = outbox.folder / "model"
    shutil.rmtree(folder, ignore_errors=True)  # of a process that was killed here
    params = next(outbox.records())["params"]
    description = write_mlflow_model(folder, params)
    destinations = {path: path.parent.relative_to(folder) for path in folder.rglob("*") if path.is_file()}
    destinations |= {path: Path(CHECKPOINT_ARTIFACT) for path in MODEL.iterdir()}
    for path, destination in destinations.items():
        artifact_path = "" if destination == Path() else destination.as_posix()
        outbox.append_file(path, artifact_path, kind="model file")
    size = sum(path.stat().st_size for path in destinations)
    outbox.append("model", description={**description, "model_size_bytes": size})
    shutil.rmtree(folder)


def open_training_outbox(identity: RunIdentity, params: Mapping[str, Any], more_tags: Mapping[str, str]) -> OutboxFile:
    """The outbox of the training's run, locked, with what is known when it starts or resumes.

    params: train's. more_tags: of the run, with those of its provenance.
    """
    source = read_source()
    experiment = experiment_tags()
    name = experiment.get("dvc.experiment", f"repro-{identity.run_key[:8]}")
    outbox = open_outbox(identity.training_id)
    if next(outbox.records(), None) is None:
        tags = (
            git_tags()
            | user_tags()
            | code_tags()
            | experiment
            | corpus_tags(source)
            | dict(more_tags)
            | _token_tags()
            | identity.tags
        )
        run = {"name": name, "tags": tags, "params": dict(params), "datasets": _datasets(source)}
        if identity.run_dir:
            run["kept_for"] = identity.run_dir.relative_to(state_dir()).as_posix()  # the repository may be moved
        outbox.append("training", store=recorded_store(), **run)
    else:
        outbox.append("tags", values=experiment)
    _queue_source_files(outbox)
    outbox.append("start", name=name)
    outbox.append("description")
    return outbox


def _token_tags() -> dict[str, str]:
    """Tags: digests of the text and of both token files, named like those of train's outs, and numbers of tokens."""
    digests = {f"dvc.{path}.md5": cached_md5(path) for path in (RAW_TEXT, *TOKEN_FILES.values()) if path.exists()}
    counts = {f"tokens.{name}": str(len(np.load(path, mmap_mode="r"))) for name, path in TOKEN_FILES.items()}
    return digests | counts


def _datasets(source: Mapping[str, Any]) -> list[dict[str, str]]:
    """The token files as MLflow datasets, named after the corpus."""
    corpus = Path(source.get("path") or source.get("url") or "unknown").stem
    return [
        {"name": f"{corpus}-{path.stem}", "digest": cached_md5(path), "path": str(path), "context": context}
        for context, path in TOKEN_FILES.items()
    ]


def _queue_source_files(outbox: OutboxFile) -> None:
    """Queue params.yaml and the uncommitted changes of the code, unless they were queued before a resume."""
    queued = {Path(record["kept"]).name for record in outbox.records() if record["kind"] == "file"}
    if PARAMS_FILE.name not in queued:
        with outbox.note_losses(PARAMS_FILE.name):
            outbox.append_file(PARAMS_FILE, "")
    if PATCH not in queued:
        with outbox.note_losses(PATCH):
            _queue_patch(outbox)


def _queue_patch(outbox: OutboxFile) -> None:
    """Queue what the stages' code has changed since the commit, and say so."""
    patch = code_patch()
    if patch is None and git_tags():
        print_message(f"{PATCH} is not recorded: git could not compare the code with the commit")
    if patch is None or not patch.paths:
        return
    files = f"{', '.join(patch.paths[:5])}{' ...' if len(patch.paths) > 5 else ''} ({len(patch.paths)} in all)"
    if len(patch.content) > MAX_PATCH_BYTES:
        print_message(
            f"{PATCH} is not recorded: the changes of {files} since the commit have {len(patch.content)} bytes, "
            f"more than {MAX_PATCH_BYTES}. Commit the code, so that the run can be reproduced"
        )
        return
    print_message(f"{PATCH} records the uncommitted code: {files}")
    write_bytes_atomic(outbox.folder / PATCH, patch.content)
    outbox.append_file(outbox.folder / PATCH, "")

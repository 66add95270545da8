"""Logs a training to its MLflow run, from the first record to the model, by way of the run's outbox."""

import math
import shutil
import textwrap
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from reprogpt import tags
from reprogpt.dvc.code_patch import MAX_PATCH_BYTES, code_patch
from reprogpt.dvc.digest import cached_md5, dvc_md5
from reprogpt.dvc.git import git_error
from reprogpt.dvc.pipeline import is_up_to_date, out_paths, stage_definition
from reprogpt.files import file_digest, read_json_or_empty, write_bytes_atomic, write_text_atomic
from reprogpt.messages import print_message, visible
from reprogpt.params.evaluate import EvaluateParams
from reprogpt.params.loader import PARAMS_FILE, load_params
from reprogpt.paths import CHECKPOINT_ARTIFACT, MODEL, RAW_TEXT, SOURCE, TRAIN_TOKENS, VAL_TOKENS, state_dir
from reprogpt.progress import TrainingProgress
from reprogpt.serving.mlflow_model import write_mlflow_model
from reprogpt.step_record import EVAL_METRICS, STEP_METRICS, StepRecord
from reprogpt.tracking.deliver.outbox import OutboxFile, open_outbox
from reprogpt.tracking.deliver.records import File, Model, ModelFile, Points, Start, Tags, TokenFile, TrainingRun
from reprogpt.tracking.deliver.uploader import uploading
from reprogpt.tracking.log.local_trainings import note_training
from reprogpt.tracking.log.provenance import code_tags, corpus_tags, experiment_tags, git_tags, user_tags
from reprogpt.tracking.log.results import record_evaluation, record_plots
from reprogpt.tracking.log.system_metrics import SystemMetrics
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
        """The tags that identify the run."""
        return {
            tags.RUN_KEY: self.run_key,
            tags.TRAINING_ID: self.training_id,
            tags.SOURCE_NAME: "stages.train",
            tags.SOURCE_TYPE: "LOCAL",
        }


class RunLogger:
    """Logs the steps of a training, through its interruptions and resumes, and what it makes.

    progress: shows the steps on the terminal; None: they are logged only. decode_sample: token ids -> text.
    last_step: 0-based, of the steps so far; -1 before the first.
    """

    def __init__(
        self,
        outbox: OutboxFile,
        progress: TrainingProgress | None = None,
        decode_sample: Callable[[list[int]], str] = str,
    ) -> None:
        self._outbox = outbox
        self._progress = progress
        self._decode_sample = decode_sample
        self._system_metrics = SystemMetrics()
        self._queued_steps = {record.step for record in outbox.records() if isinstance(record, Points)}
        self._best_val_loss = math.inf
        self._samples: list[str] = []
        self.last_step = -1

    def resume(self, records: Iterable[StepRecord]) -> None:
        """Take the steps from before a resume, and show where the training continues."""
        for record in records:
            self._add(record)
        if self._progress:
            self._progress.resume(self.last_step + 1)

    def log_step(self, record: StepRecord, *, is_latest: bool) -> None:
        """Log a step. is_latest: whether it was just done; on a GPU records arrive in groups, late but for the last."""
        measured: dict[str, float] = {}
        if self._progress:
            self._progress.step(record, is_latest=is_latest)
            if record.val_loss is not None and self._progress.tokens_per_second is not None:
                measured[tags.TOKENS_PER_SECOND] = self._progress.tokens_per_second
        if record.val_loss is not None:
            measured |= self._system_metrics.sample()
        sample = self._add(record, measured)
        if sample and self._progress:
            self._progress.say(" ".join(sample.split()))

    def _add(self, record: StepRecord, measured: Mapping[str, float] | None = None) -> str | None:
        """Queue a step's metrics, unless they were queued before a resume: a point keeps its first timestamp.

        measured: further metrics of the step. Returns its sample as text.
        """
        self.last_step = record.step
        if record.val_loss is not None:
            self._best_val_loss = min(self._best_val_loss, record.val_loss)
        if record.step not in self._queued_steps:
            metrics = {**step_metrics(record, self._best_val_loss), **(measured or {})}
            self._outbox.append(Points(step=record.step, values=metrics))
        if not record.sample:
            return None
        sample = self._decode_sample(record.sample)
        self._samples.append(f"epoch {record.epoch + 1}\n{sample}\n")
        return sample

    def finish(self, kept_step: int) -> None:
        """Queue what the training made: model, digests, samples. Train's outs must be in place.

        kept_step: 0-based step after which the training had the model's weights.
        """
        if self._samples:
            with self._outbox.note_losses("the samples"):
                path = self._outbox.folder / "training.txt"
                write_text_atomic(path, "\n".join(self._samples))
                self._outbox.append(File(kept=self._outbox.keep_file(path), folder="samples"))
        with self._outbox.note_losses("the model"):
            record_model(self._outbox)
        digests = {tags.md5_tag(out): dvc_md5(Path(out)) for out in out_paths(stage_definition("train"))}
        weights = {tags.WEIGHTS_SHA256: file_digest(MODEL / "model.safetensors"), tags.WEIGHTS_STEP: str(kept_step)}
        self._outbox.append(Tags(values=digests | weights))
        first = self._outbox.first
        assert isinstance(first, TrainingRun)
        note_training(first.tags[tags.TRAINING_ID], weights[tags.WEIGHTS_SHA256])
        # If the outs have the same bits as before, DVC skips the later stages: their present results are this run's.
        if is_up_to_date("evaluate"):
            record_evaluation(self._outbox, load_params(EvaluateParams).model_dump(), self.last_step)
        if is_up_to_date("plot"):
            record_plots(self._outbox)


@contextmanager
def start_run(
    identity: RunIdentity,
    params: Mapping[str, Any],
    environment: Mapping[str, str],
    size: Mapping[str, int],
    decode_sample: Callable[[list[int]], str],
) -> Iterator[RunLogger]:
    """Start or resume the training's MLflow run, upload its records while the block runs, and end the run with it.

    params: train's. environment: environment_tags. size: total_steps and other numbers of the training, as tags.
    decode_sample: token ids -> text.
    """
    source = read_json_or_empty(SOURCE)
    if "path" in source:
        _warn_of_fallback(source["path"])
    outbox = open_training_outbox(identity, params, dict(environment) | {key: str(n) for key, n in size.items()})
    progress = TrainingProgress(size[tags.TOTAL_STEPS])  # after what is printed above: the bar is shown at once
    try:
        with uploading(outbox):
            yield RunLogger(outbox, progress, decode_sample)
    finally:
        progress.close()


def _warn_of_fallback(path: str) -> None:
    print_message(
        f"\n  WARNING: this trains on the bundled text {path}, not on corpus_url, whose host could not be\n"
        "  reached. Results are those of another text. When online again:  dvc repro -f fetch  and  dvc repro\n"
    )


def _warn_without_commit() -> None:
    reason = git_error("rev-parse", "--verify", "HEAD")
    if reason is not None:
        print_message(
            "\n  WARNING: the MLflow run will have neither `commit` nor `dirty`, nor the uncommitted code:\n\n"
            f"{textwrap.indent(reason.expandtabs(2), '    ')}\n"
        )


def step_metrics(record: StepRecord, best_val_loss: float) -> dict[str, float]:
    """The metrics of a step that MLflow records.

    best_val_loss: the lowest val_loss up to this step. It is logged at every evaluated step, so that MLflow's last
    value is also right for a run that fails.
    """
    values = asdict(record)
    if record.val_loss is None:
        return {name: values[name] for name in STEP_METRICS}
    metrics = {name: values[name] for name in (*STEP_METRICS, *EVAL_METRICS, tags.TOKENS_SEEN)}
    return metrics | {tags.BEST_VAL_LOSS: best_val_loss}


def record_model(outbox: OutboxFile) -> None:
    """Queue the training's MLflow model: data/model, which must be in place, and the files that serve it."""
    folder = outbox.folder / "model"
    shutil.rmtree(folder, ignore_errors=True)  # of a process that was killed here
    first = outbox.first
    assert isinstance(first, TrainingRun)
    description = write_mlflow_model(folder, first.params)
    destinations = {path: path.parent.relative_to(folder) for path in folder.rglob("*") if path.is_file()}
    destinations |= {path: Path(CHECKPOINT_ARTIFACT) for path in MODEL.iterdir()}
    for path, destination in destinations.items():
        artifact_path = "" if destination == Path() else destination.as_posix()
        outbox.append(ModelFile(kept=outbox.keep_file(path), folder=artifact_path))
    size = sum(path.stat().st_size for path in destinations)
    outbox.append(Model(description={**description, "model_size_bytes": size}))
    shutil.rmtree(folder)


def open_training_outbox(identity: RunIdentity, params: Mapping[str, Any], more_tags: Mapping[str, str]) -> OutboxFile:
    """The outbox of the training's run, locked, with what is known when it starts or resumes.

    params: train's. more_tags: of the run, with those of its provenance.
    """
    source = read_json_or_empty(SOURCE)
    experiment = experiment_tags()
    name = experiment.get(tags.EXPERIMENT_NAME, f"repro-{identity.run_key[:8]}")
    outbox = open_outbox(identity.training_id)
    if outbox.first is None:
        _warn_without_commit()
        provenance = git_tags() | user_tags() | code_tags() | experiment | corpus_tags(source) | _token_tags()
        description = {tags.DESCRIPTION: _description(_corpus_name(source), more_tags[tags.TOTAL_STEPS])}
        folder = identity.run_dir
        outbox.append(
            TrainingRun(
                name=name,
                tags=provenance | description | dict(more_tags) | identity.tags,
                params=dict(params),
                datasets=_token_files(_corpus_name(source)),
                store=recorded_store(),
                # Relative: the repository may be moved.
                kept_for=folder.relative_to(state_dir()).as_posix() if folder else None,
            )
        )
    else:
        outbox.append(Tags(values=experiment))
    _queue_source_files(outbox)
    outbox.append(Start(name=name))
    return outbox


def _description(corpus: str, total_steps: str) -> str:
    """Markdown that MLflow shows at the top of the run's page. Never written again: a person may edit it."""
    return (
        f"Trained on `{corpus}` for {int(total_steps):,} steps.\n\n"
        "`python -m reprogpt lineage` with this run's id says what it was made from and how to restore it.\n"
    )


def _corpus_name(source: Mapping[str, Any]) -> str:
    return Path(source.get("path") or source.get("url") or "unknown").stem


def _token_tags() -> dict[str, str]:
    """Tags: digests of the text and of both token files, named like those of train's outs, and numbers of tokens."""
    digests = {tags.md5_tag(path): cached_md5(path) for path in (RAW_TEXT, *TOKEN_FILES.values()) if path.exists()}
    counts = {tags.token_count_tag(name): str(len(np.load(path, mmap_mode="r"))) for name, path in TOKEN_FILES.items()}
    return digests | counts


def _token_files(corpus: str) -> list[TokenFile]:
    """The inputs of the run, named after the corpus."""
    return [
        TokenFile(name=f"{corpus}-{path.stem}", digest=cached_md5(path), path=str(path), context=context)
        for context, path in TOKEN_FILES.items()
    ]


def _queue_source_files(outbox: OutboxFile) -> None:
    """Queue params.yaml and the uncommitted changes of the code, unless they were queued before a resume."""
    queued = {Path(record.kept).name for record in outbox.records() if isinstance(record, File)}
    if PARAMS_FILE.name not in queued:
        with outbox.note_losses(PARAMS_FILE.name):
            outbox.append(File(kept=outbox.keep_file(PARAMS_FILE), folder=""))
    if PATCH not in queued:
        with outbox.note_losses(PATCH):
            _queue_patch(outbox)


def _queue_patch(outbox: OutboxFile) -> None:
    """Queue the changes of the stages' code since the commit, and say so."""
    patch = code_patch()
    if patch is None and git_tags():
        print_message(f"{PATCH} is not recorded: git could not compare the code with the commit")
    if patch is None or not patch.paths:
        return
    for path, what in patch.left_out.items():
        print_message(
            f"{PATCH} leaves out {visible(path)}, which may hold a secret: {what}.\n"
            "If it is one, keep it in the environment instead; if not, commit the file, so that the run can be\n"
            "reproduced"
        )
    recorded = [path for path in patch.paths if path not in patch.left_out]
    files = f"{', '.join(recorded[:5])}{' ...' if len(recorded) > 5 else ''} ({len(recorded)} in all)"
    if len(patch.content) > MAX_PATCH_BYTES:
        print_message(
            f"{PATCH} is not recorded: the changes of {files} since the commit have {len(patch.content)} bytes, "
            f"more than {MAX_PATCH_BYTES}. Commit the code, so that the run can be reproduced"
        )
        return
    if recorded:
        print_message(f"{PATCH} records the uncommitted code: {files}")
    write_bytes_atomic(outbox.folder / PATCH, patch.content)
    outbox.append(File(kept=outbox.keep_file(outbox.folder / PATCH), folder=""))

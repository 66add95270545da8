"""Logs one training to its MLflow run and to the terminal, through all its interruptions and resumes."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from reprogpt.messages import print_message
from reprogpt.progress import TrainingProgress
from reprogpt.step_record import StepRecord
from reprogpt.tracking.deliver.outbox import OutboxFile
from reprogpt.tracking.deliver.uploader import uploading
from reprogpt.tracking.log.provenance import read_source
from reprogpt.tracking.log.system_metrics import SystemMetrics
from reprogpt.tracking.log.training import RunIdentity, TrainingRecords, open_training_outbox


class RunLogger:
    """Logs the steps of a training as they are yielded. decode_sample: token ids -> text."""

    def __init__(
        self,
        outbox: OutboxFile,
        progress: TrainingProgress,
        decode_sample: Callable[[list[int]], str],
        total_steps: int,
    ) -> None:
        self._records = TrainingRecords(outbox)
        self._progress = progress
        self._decode_sample = decode_sample
        self._total_steps = total_steps
        self._system_metrics = SystemMetrics()

    def resume(self, records: Iterable[StepRecord]) -> None:
        """Take the steps from before a resume, and show where the training continues."""
        for record in records:
            self._records.append(record, sample=self._sample(record))
        self._progress.resume(self._records.last_step + 1)

    def log_step(self, record: StepRecord, *, is_latest: bool) -> None:
        """Log a step. is_latest: whether it was just done; on a GPU records arrive in groups, late but for the last."""
        self._progress.step(record, is_latest=is_latest)
        extra: dict[str, float] = {}
        if record.val_loss is not None and self._progress.tokens_per_second is not None:
            extra["tokens_per_second"] = self._progress.tokens_per_second
        if record.val_loss is not None or record.step + 1 == self._total_steps:
            extra |= self._system_metrics.sample()
        with self._system_metrics.logging_time():
            sample = self._sample(record)
            self._records.append(record, extra, sample=sample)
        if sample is not None:
            self._progress.say(" ".join(sample.split()))

    def finish(self, kept_step: int) -> None:
        """As TrainingRecords.finish."""
        self._records.finish(kept_step)

    def _sample(self, record: StepRecord) -> str | None:
        return self._decode_sample(record.sample) if record.sample else None


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
    source = read_source()
    if "path" in source:
        _warn_of_fallback(source["path"])
    outbox = open_training_outbox(identity, params, dict(environment) | {key: str(n) for key, n in size.items()})
    progress = TrainingProgress(size["total_steps"])  # after what is printed above: the bar is shown at once
    try:
        with uploading(outbox):
            yield RunLogger(outbox, progress, decode_sample, size["total_steps"])
    finally:
        progress.close()


def _warn_of_fallback(path: str) -> None:
    print_message(
        f"\n  WARNING: this trains on the bundled text {path}, not on corpus_url, whose host could not be\n"
        "  reached. Results are those of another text. When online again:  dvc repro -f fetch  and  dvc repro\n"
    )

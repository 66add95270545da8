"""The MLflow record: one store for all workspaces, one run per training. The only file that imports mlflow."""

import logging
import os
import re
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock

from reprogpt.errors import PipelineError, Terminated, TrackingError
from reprogpt.pipeline import repository_root
from reprogpt.record.runs import RecordedRun

# Set before mlflow is imported; a user's own choice stays.
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "3")  # its 7 take minutes to say that a server is down

from mlflow import MlflowClient
from mlflow.entities import Dataset, DatasetInput, InputTag, Metric, Param, Run, RunTag
from mlflow.exceptions import MlflowException

EXPERIMENT = "reprogpt"
FLUSH_SECONDS = 5.0  # how old a buffered point may get; a call per step would cost ten times as much
MAX_METRICS = 1000  # MLflow's limit for one batch


def store_uri() -> str:
    """MLFLOW_TRACKING_URI, else mlflow.db in the main repository, where plain `mlflow ui` looks.

    A relative SQLite path is taken from the main repository too: from a queued experiment's copy it
    would vanish with the copy.
    """
    root, prefix = repository_root(), "sqlite:///"
    uri = os.environ.get("MLFLOW_TRACKING_URI") or f"{prefix}mlflow.db"
    return f"{prefix}{root / uri.removeprefix(prefix)}" if uri.startswith(prefix) else uri


def open_store() -> tuple[MlflowClient, str]:
    """A client of the store, and the id of our experiment in it; both are made if they don't exist."""
    for noisy in ("alembic", "mlflow.store.db.utils", "mlflow.tracking.fluent"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    root, uri = repository_root(), store_uri()
    lock = root / ".reprogpt" / "store.lock"
    lock.parent.mkdir(exist_ok=True)
    # Two processes that create the tables of one fresh SQLite file crash each other.
    with FileLock(lock), _in_words(uri):
        client = MlflowClient(uri)
        experiment = client.get_experiment_by_name(EXPERIMENT)
        if experiment is not None:
            return client, experiment.experiment_id
        # MLflow would resolve the default against the current folder and keep it for ever.
        location = (root / "mlruns").as_uri() if uri.startswith("sqlite:") else None
        return client, client.create_experiment(EXPERIMENT, artifact_location=location)


class TrackedRun:
    """A run being written to. Points are buffered; flush() or the end of the context sends them."""

    def __init__(self, client: MlflowClient, run: Run) -> None:
        self._client = client
        self.run = run
        self.id: str = run.info.run_id
        self._points: list[Metric] = []
        self._flushed = time.monotonic()

    def log_metrics(self, values: Mapping[str, float | None], step: int) -> None:
        """Record points of one step with the present time; None is skipped."""
        now = time.time_ns() // 1_000_000
        self._points += [Metric(key, value, now, step) for key, value in values.items() if value is not None]
        if time.monotonic() - self._flushed > FLUSH_SECONDS or len(self._points) > MAX_METRICS - 50:
            self.flush()

    def log_results(self, values: Mapping[str, float], step: int) -> None:
        """Record final numbers, leaving out those that the run has already: a forced repeat adds no second point."""
        known = self._client.get_run(self.id).data.metrics
        self.log_metrics({key: value for key, value in values.items() if known.get(key) != value}, step)

    def log_params(self, values: Mapping[str, Any]) -> None:
        """Record parameters; MLflow keeps a parameter's first value for ever and refuses another."""
        self._client.log_batch(self.id, params=[Param(key, str(value)) for key, value in values.items()])

    def set_tags(self, tags: Mapping[str, str]) -> None:
        """Record or replace tags."""
        self._client.log_batch(self.id, tags=[RunTag(key, value) for key, value in tags.items()])

    def log_file(self, path: Path, folder: str | None = None) -> None:
        """Copy a file into the run's artifacts."""
        self._client.log_artifact(self.id, str(path), folder)

    def log_folder(self, path: Path, folder: str) -> None:
        """Copy a folder's files into the run's artifacts."""
        self._client.log_artifacts(self.id, str(path), folder)

    def log_text(self, text: str, name: str) -> None:
        """Write an artifact."""
        self._client.log_text(self.id, text, name)

    def log_dataset(self, name: str, digest: str, source: str, context: str) -> None:
        """Name an input. digest: at most 36 characters; context: training or validation."""
        dataset = Dataset(name=name, digest=digest, source_type="local", source=f'{{"uri": "{source}"}}')
        tag = InputTag("mlflow.data.context", context)
        self._client.log_inputs(self.id, [DatasetInput(dataset, [tag])])

    def flush(self) -> None:
        """Send the buffered points."""
        with _in_words(store_uri()):
            for start in range(0, len(self._points), MAX_METRICS):
                self._client.log_batch(self.id, metrics=self._points[start : start + MAX_METRICS])
        self._points = []
        self._flushed = time.monotonic()


def start_run(name: str, tags: Mapping[str, str], parent: TrackedRun | None = None) -> TrackedRun:
    """Make a new run in our experiment, of status RUNNING."""
    client, experiment_id = open_store()
    family = {"mlflow.parentRunId": parent.id} if parent else {}
    return TrackedRun(client, client.create_run(experiment_id, run_name=name, tags={**tags, **family}))


def find_run(run_key: str) -> TrackedRun | None:
    """The run that trained under run_key: of the present DVC experiment if there is one, else the newest."""
    client, experiment_id = open_store()
    found = client.search_runs([experiment_id], f"tags.run_key = '{run_key}'", order_by=["attributes.start_time DESC"])
    own = [run for run in found if run.data.tags.get("dvc.experiment") == os.environ.get("DVC_EXP_NAME")]
    return TrackedRun(client, (own or list(found))[0]) if found else None


def recorded_runs() -> list[RecordedRun]:
    """Every run of our experiment, newest first; [] where nothing was ever tracked: asking makes no store."""
    uri, prefix = store_uri(), "sqlite:///"
    if uri.startswith(prefix) and not Path(uri.removeprefix(prefix).partition("?")[0]).exists():
        return []
    client, experiment_id = open_store()
    found: list[Run] = []
    token: str | None = None
    with _in_words(uri):
        while True:
            page = client.search_runs([experiment_id], order_by=["attributes.start_time DESC"], page_token=token)
            found += page
            token = page.token
            if not token:
                return [_plain(run) for run in found]


def metric_histories(run_id: str, keys: Iterable[str]) -> dict[str, dict[int, float]]:
    """Metric -> step -> value, exact; a step recorded again counts with its last value. {} for an absent metric."""
    client, _ = open_store()
    histories: dict[str, dict[int, float]] = {}
    with _in_words(store_uri()):
        for key in keys:
            points = sorted(client.get_metric_history(run_id, key), key=lambda point: point.timestamp)
            histories[key] = {point.step: point.value for point in points}
    return histories


def _plain(run: Run) -> RecordedRun:
    inputs = [item.dataset for item in run.inputs.dataset_inputs] if run.inputs else []
    paths = [re.fullmatch(r'\{"uri": "(.*)"\}', dataset.source) for dataset in inputs]  # as log_dataset writes it
    return RecordedRun(
        id=run.info.run_id,
        name=run.info.run_name or "",
        status=run.info.status,
        params=run.data.params,
        tags=run.data.tags,
        metrics=run.data.metrics,
        datasets={path[1]: dataset.digest for path, dataset in zip(paths, inputs, strict=True) if path},
    )


@contextmanager
def run_status(run: TrackedRun) -> Iterator[TrackedRun]:
    """RUNNING inside; afterwards FINISHED, or KILLED by Ctrl-C or SIGTERM, or FAILED by any other error, with a
    tag `error` where that is a message for a person.
    """
    client = run._client
    client.update_run(run.id, status="RUNNING")
    status = "FAILED"
    try:
        yield run
        status = "FINISHED"
    except (KeyboardInterrupt, Terminated):
        status = "KILLED"
        raise
    except PipelineError as error:  # a queued experiment has no terminal that would still show it
        run.set_tags({"error": str(error)})
        raise
    finally:
        run.flush()
        client.set_terminated(run.id, status)


@contextmanager
def _in_words(uri: str) -> Iterator[None]:
    """Turn MLflow's failure to reach or read its store into a message for a person."""
    try:
        yield
    except MlflowException as error:
        reason = re.search(r"\[Errno -?\d+\] ([^'\")]+)", str(error))  # at the end of a chain of causes, else the whole
        raise TrackingError(
            f"the MLflow store {_without_password(uri)} can't be used: "
            f"{reason[1] if reason else str(error).splitlines()[0]}\n"
            "Start its server again, or unset MLFLOW_TRACKING_URI to use mlflow.db in this repository"
        ) from None


def _without_password(uri: str) -> str:
    return re.sub(r"//[^/@]*@", "//", uri)

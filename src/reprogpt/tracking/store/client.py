"""A client of the MLflow store: opening it, and reading runs from it."""

import logging
import os
import re
import shlex
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from urllib.parse import unquote, urlsplit

from filelock import FileLock

from reprogpt.errors import TrackingError
from reprogpt.files import atomic_path
from reprogpt.paths import state_dir
from reprogpt.tracking.store.artifact_locations import artifact_folder, update_locations
from reprogpt.tracking.store.errors import REPLACED_ADVICE, store_errors
from reprogpt.tracking.store.tracked_run import TrackedRun
from reprogpt.tracking.store.uri import experiment_name, sqlite_file, sqlite_uri, store_name, store_uri

# Set before mlflow is imported; a user's own choice stays.
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")  # the uploader retries, and says so
os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "30")  # seconds without an answer
os.environ.setdefault("PGCONNECT_TIMEOUT", "10")  # seconds, of PostgreSQL's client; it would wait for minutes
# A connection that is kept open would write on to a database file that was removed or replaced.
os.environ.setdefault("MLFLOW_SQLALCHEMYSTORE_POOLCLASS", "NullPool")
os.environ.setdefault(
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false"
)  # it counts files, and one file is nearly all of the bytes

from mlflow import MlflowClient
from mlflow.entities import Experiment, LifecycleStage, Run, ViewType
from mlflow.store.db import utils as mlflow_database

mlflow_database.MAX_RETRY_COUNT = 1  # of opening a database: ten attempts take 102 s, within one upload

_SQLITE_MAGIC = b"SQLite format 3\0"  # a file's first bytes; an empty file is a new database


def open_store() -> tuple[MlflowClient, str]:
    """A client of the store, and the id of the experiment; both are created if they don't exist.

    Raises TrackingError if the store can't be used.
    """
    _quiet_libraries()
    _move_credentials_to_env()
    with store_errors(), _creation_lock():
        path = sqlite_file()
        if path and path.exists():
            _require_database(path)
        elif path:
            # Under a temporary name: a kill while the tables are created would leave a file that can't be opened.
            path.parent.mkdir(parents=True, exist_ok=True)
            with atomic_path(path) as temporary:
                _experiment(MlflowClient(sqlite_uri(temporary)))
        client = MlflowClient(store_uri())
        return client, _experiment(client)


def _quiet_libraries() -> None:
    for noisy in ("alembic", "mlflow.tracking.fluent"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    # They log each error, the first with its traceback and statement; the exception has what a person needs.
    for noisy in ("mlflow.store.db.utils", "mlflow.utils.databricks_utils"):
        logging.getLogger(noisy).setLevel(logging.CRITICAL)


@contextmanager
def _creation_lock() -> Iterator[None]:
    """Two processes that create the tables of the same new SQLite file make each other crash.

    Where no lock can be made, as on a disk that is read-only, the store is used without.
    """
    lock = FileLock(state_dir() / "store.lock")
    with suppress(OSError):
        state_dir().mkdir(exist_ok=True)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def is_sqlite(path: Path) -> bool:
    """Whether a file begins as SQLite's do. Raises OSError if it can't be read."""
    with path.open("rb") as file:
        return file.read(len(_SQLITE_MAGIC)) == _SQLITE_MAGIC


def _require_database(path: Path) -> None:
    """Raise OSError if the file can't be read, or is none of SQLite: SQLite's own words don't say why.

    Read-only files pass: runs can be read from them.
    """
    if path.stat().st_size and not is_sqlite(path):
        raise TrackingError(
            f"the MLflow store {store_name()} can't be used: {path} is not a SQLite database{REPLACED_ADVICE}"
        )


def _move_credentials_to_env() -> None:
    """Move http://user:password@host into MLflow's own variables: MLflow prints the URI with a run's address."""
    try:
        uri = urlsplit(store_uri())
    except ValueError:  # MLflow reports it
        return
    if uri.scheme in ("http", "https") and uri.username and uri.password:
        os.environ["MLFLOW_TRACKING_USERNAME"] = unquote(uri.username)
        os.environ["MLFLOW_TRACKING_PASSWORD"] = unquote(uri.password)
        os.environ["MLFLOW_TRACKING_URI"] = uri._replace(netloc=uri.netloc.rpartition("@")[2]).geturl()


def _experiment(client: MlflowClient) -> str:
    """The experiment's id: MLFLOW_EXPERIMENT_ID, else that of experiment_name(), created if it does not exist."""
    chosen = os.environ.get("MLFLOW_EXPERIMENT_ID")
    return _active_id(client.get_experiment(chosen)) if chosen else ensure_experiment(client, experiment_name())


def ensure_experiment(client: MlflowClient, name: str) -> str:
    """The id of the experiment with this name, created if it does not exist; call within store_errors.

    Raises TrackingError if it was deleted.
    """
    experiment = client.get_experiment_by_name(name)
    if experiment is None:
        path = sqlite_file()
        # MLflow would resolve the default against the current folder and store that path.
        location = artifact_folder(path).as_uri() if path else None
        return str(client.create_experiment(name, artifact_location=location))
    return _active_id(experiment)


def _active_id(experiment: Experiment) -> str:
    """Its id. Raises TrackingError if it was deleted, or is none: some gateways answer every request with {}."""
    experiment_id = str(experiment.experiment_id)
    if not experiment_id:
        raise TrackingError(
            f"{store_name()} does not answer as an MLflow server does: it names no experiment. "
            "Check MLFLOW_TRACKING_URI, and what is between here and the server"
        )
    if experiment.lifecycle_stage == LifecycleStage.DELETED:
        raise TrackingError(
            f"the experiment {experiment.name} of the MLflow store {store_name()} was deleted. Restore it:\n"
            f"MLFLOW_TRACKING_URI={shlex.quote(store_name())} "
            f"mlflow experiments restore --experiment-id {experiment_id}\n"
            "or set MLFLOW_EXPERIMENT_NAME to another name"
        )
    path = sqlite_file()
    if path:
        update_locations(path, str(experiment.artifact_location))
    return experiment_id


def search_runs() -> list[TrackedRun]:
    """Every run of the experiment, newest first; [] if there is no store, which is not created."""
    path = sqlite_file()
    if path and not path.exists():
        return []
    client, experiment_id = open_store()
    found: list[Run] = []
    token: str | None = None
    with store_errors():
        while True:
            page = client.search_runs([experiment_id], order_by=["attributes.start_time DESC"], page_token=token)
            found += page
            token = page.token
            if not token:
                return [to_tracked_run(run) for run in found]


def find_runs(tags: Mapping[str, str]) -> list[TrackedRun]:
    """The runs of the experiment with these tags, deleted ones too, newest first."""
    client, experiment_id = open_store()
    query = " and ".join(f"tags.`{tag}` = '{value}'" for tag, value in tags.items())
    newest = ["attributes.start_time DESC"]
    with store_errors():
        runs = client.search_runs([experiment_id], query, run_view_type=ViewType.ALL, order_by=newest)
        return [to_tracked_run(run) for run in runs]


def metric_histories(run_id: str, keys: Iterable[str]) -> dict[str, dict[int, float]]:
    """Metric -> step -> value, exact; the last value of a step that was logged twice. {} for an absent metric."""
    client, _ = open_store()
    histories: dict[str, dict[int, float]] = {}
    with store_errors():
        for key in keys:
            points = sorted(client.get_metric_history(run_id, key), key=lambda point: point.timestamp)
            histories[key] = {point.step: point.value for point in points}
    return histories


def download_artifacts(run_id: str, path: str, folder: Path) -> Path | None:
    """Download a folder of a run's artifacts into `folder`; returns its path.

    None if the run has nothing at that path. Raises TrackingError if the store, or folder, can't be used.
    """
    client, _ = open_store()
    with store_errors():
        if not client.list_artifacts(run_id, path):
            return None
        return Path(client.download_artifacts(run_id, path, str(folder)))


def to_tracked_run(run: Run) -> TrackedRun:
    """An MLflow run as plain values."""
    inputs = [item.dataset for item in run.inputs.dataset_inputs] if run.inputs else []
    paths = [re.fullmatch(r'\{"uri": "(.*)"\}', dataset.source) for dataset in inputs]  # as log_dataset writes it
    return TrackedRun(
        id=run.info.run_id,
        name=run.info.run_name or "",
        status=run.info.status,
        params=run.data.params,
        tags=run.data.tags,
        metrics=run.data.metrics,
        datasets={path[1]: dataset.digest for path, dataset in zip(paths, inputs, strict=True) if path},
        is_deleted=run.info.lifecycle_stage == LifecycleStage.DELETED,
    )

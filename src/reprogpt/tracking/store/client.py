"""Opens the MLflow store and reads runs from it."""

import logging
import os
import re
import shlex
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from urllib.parse import unquote, urlsplit

import reprogpt.mlflow_settings  # noqa: F401

# isort: split
from filelock import FileLock
from mlflow import MlflowClient
from mlflow.entities import Experiment, LifecycleStage, Run, ViewType
from mlflow.exceptions import MlflowException
from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository
from mlflow.store.db import utils as mlflow_database

from reprogpt.errors import TrackingError
from reprogpt.files import atomic_path
from reprogpt.paths import state_dir
from reprogpt.tags import ORIGINAL_NAME
from reprogpt.tracking.store.artifact_locations import artifact_folder, update_locations
from reprogpt.tracking.store.errors import REPLACED_ADVICE, SettingsError, store_errors
from reprogpt.tracking.store.tracked_run import TrackedRun
from reprogpt.tracking.store.uri import experiment_name, sqlite_file, sqlite_uri, store_name, store_uri

mlflow_database.MAX_RETRY_COUNT = 1  # of opening a database: ten attempts take 102 s, within one upload

_SQLITE_MAGIC = b"SQLite format 3\0"  # a file's first bytes


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
    # They log each error with traceback and statement; the exception says what is needed.
    for noisy in ("mlflow.store.db.utils", "mlflow.utils.databricks_utils"):
        logging.getLogger(noisy).setLevel(logging.CRITICAL)


@contextmanager
def _creation_lock() -> Iterator[None]:
    """Two processes that create the tables of one new SQLite file would make each other crash.

    Where no lock file can be made, as on a read-only disk, the store is used without one.
    """
    lock = FileLock(state_dir() / "store.lock")
    with suppress(OSError):
        state_dir().mkdir(exist_ok=True)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _require_database(path: Path) -> None:
    """Raise OSError if the file can't be read, SettingsError if it is no SQLite database: SQLite's messages don't say.

    An empty file is a new database. A read-only file passes: runs can be read from it.
    """
    with path.open("rb") as file:
        magic = file.read(len(_SQLITE_MAGIC))
    if magic not in (b"", _SQLITE_MAGIC):
        raise SettingsError(
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
    """The experiment's id: MLFLOW_EXPERIMENT_ID, else that of experiment_name(), created if it does not exist.

    An experiment that had this name is found by its tag, whatever its name is now.
    """
    chosen = os.environ.get("MLFLOW_EXPERIMENT_ID")
    name = experiment_name()
    experiment = client.get_experiment(chosen) if chosen else client.get_experiment_by_name(name)
    if experiment is not None:
        experiment_id = _active_id(experiment)
        if not chosen and ORIGINAL_NAME not in experiment.tags:  # of an older version
            with suppress(MlflowException):  # the user may only be allowed to read
                client.set_experiment_tag(experiment_id, ORIGINAL_NAME, name)
        return experiment_id
    for experiment in client.search_experiments(filter_string=f"tags.`{ORIGINAL_NAME}` LIKE '%'"):
        if experiment.tags[ORIGINAL_NAME] == name:  # compared here, since a name may have quotes
            return _active_id(experiment)
    path = sqlite_file()
    # MLflow would resolve the default against the current folder and store that path.
    location = artifact_folder(path).as_uri() if path else None
    return str(client.create_experiment(name, artifact_location=location, tags={ORIGINAL_NAME: name}))


def _active_id(experiment: Experiment) -> str:
    """Its id. Raises TrackingError if it was deleted, or has no id: some gateways answer every request with {}."""
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


def search_runs(tags: Mapping[str, str] | None = None, *, with_deleted: bool = False) -> list[TrackedRun]:
    """The experiment's runs, or those with these tags, newest first; [] if there is no store, which is not created."""
    path = sqlite_file()
    if path and not path.exists():
        return []
    client, experiment_id = open_store()
    query = " and ".join(f"tags.`{tag}` = '{value}'" for tag, value in (tags or {}).items())
    view = ViewType.ALL if with_deleted else ViewType.ACTIVE_ONLY
    search = partial(client.search_runs, [experiment_id], query, view, order_by=["attributes.start_time DESC"])
    runs: list[Run] = []
    token: str | None = None
    with store_errors():
        while True:
            page = search(page_token=token)
            runs += page
            token = page.token
            if not token:
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


def run_artifacts(run: Run, folder: str = "") -> set[str]:
    """The paths of the files and folders in a folder of the run's artifacts, "" for their root.

    MLflow's own list adds the files of logged models, and fails on a server that has none.
    """
    repository = get_artifact_repository(run.info.artifact_uri, tracking_uri=store_uri())
    return {file.path for file in repository.list_artifacts(folder or None)}


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

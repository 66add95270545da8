"""The MLflow store: its URI, opening it, reading runs from it, and its errors as messages for a person."""

import logging
import os
import re
import shlex
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import unquote, urlsplit

from filelock import FileLock

from reprogpt.errors import TrackingError
from reprogpt.files import atomic_path, repository_root, state_dir
from reprogpt.tracking.artifact_locations import artifact_folder, update_locations
from reprogpt.tracking.runs import TrackedRun
from reprogpt.tracking.sqlite_uri import SQLITE, sqlite_path, sqlite_uri
from reprogpt.urls import redact

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

import mlflow
from mlflow import MlflowClient
from mlflow.entities import Experiment, LifecycleStage, Run, ViewType
from mlflow.exceptions import MlflowException
from mlflow.store.db import utils as mlflow_database
from sqlalchemy.exc import ArgumentError, SQLAlchemyError

EXPERIMENT = "reprogpt"
mlflow_database.MAX_RETRY_COUNT = 1  # of opening a database: ten attempts take 102 s, within one upload
_AUTH_ERROR = re.compile(r"\b(401|403) (?:!= \d|Client Error)|PERMISSION_DENIED")

_SQLITE_MAGIC = b"SQLite format 3\0"  # a file's first bytes; an empty file is a new database
_REPLACED = ": restore a copy of it, or move it away, and a new one is made"
# Words of a database's error -> what to do.
_DATABASE_ADVICE = {
    "is full": ": free space on its disk",
    "readonly": ": make the file and its folder writable for this user",
    "unable to open": ": check that its folder exists and is writable for this user",
    "malformed": _REPLACED,
    "not a database": _REPLACED,
}


# Of each database, module of a driver -> its name in a URI, after the +, and its package; SQLAlchemy's choice first.
_DRIVERS = {
    "postgresql": {"psycopg": ("psycopg", "psycopg[binary]"), "psycopg2": ("psycopg2", "psycopg2-binary")},
    "mysql": {"MySQLdb": ("mysqldb", "mysqlclient"), "pymysql": ("pymysql", "PyMySQL")},
    "mssql": {"pyodbc": ("pyodbc", "pyodbc"), "pymssql": ("pymssql", "pymssql")},
}


class SettingsError(TrackingError):
    """The store can't be used before a person changes something here: retrying won't help."""


class AuthenticationError(SettingsError):
    """Authentication or authorization failed (401, 403)."""


def store_uri() -> str:
    """MLFLOW_TRACKING_URI, else mlflow.db in the main repository, where plain `mlflow ui` looks.

    A relative SQLite path is resolved against the main repository, not against a queued experiment's copy of the
    workspace, which is deleted afterwards.
    """
    uri = os.environ.get("MLFLOW_TRACKING_URI") or f"{SQLITE}mlflow.db"
    path = sqlite_path(uri)
    query = "".join(uri.partition("?")[1:])
    return uri if path is None else sqlite_uri(repository_root() / path) + query


def store_name() -> str:
    """store_uri() without user and password, for messages and records."""
    return redact(store_uri())


def recorded_store() -> str:
    """The present store as records name it: store_name(), but a SQLite file in the repository is relative to it.

    So records still belong to it once the repository's folder is moved, and a copy's records to the copy.
    """
    path = _sqlite_file()
    root = repository_root()
    return sqlite_uri(path.relative_to(root)) if path and path.is_relative_to(root) else store_name()


def is_present_store(recorded: str) -> bool:
    """Whether a store that a record names is the present one, however its URI is spelled."""
    return _canonical(recorded) == _canonical(store_name())


def _canonical(uri: str) -> str:
    path = sqlite_path(uri)
    if path is not None:
        return os.path.normpath(repository_root() / path)
    try:
        parts = urlsplit(uri)
        port = parts.port
    except ValueError:
        return uri
    host = "127.0.0.1" if parts.hostname == "localhost" else parts.hostname or ""
    port = port or {"http": 80, "https": 443}.get(parts.scheme)
    return f"{parts.scheme}://{host}:{port}{parts.path.rstrip('/')}" if host else uri.rstrip("/")


def open_store() -> tuple[MlflowClient, str]:
    """A client of the store, and the id of the experiment; both are created if they don't exist.

    Raises TrackingError if the store can't be used.
    """
    _quiet_libraries()
    _move_credentials_to_env()
    with store_errors(), _creation_lock():
        path = _sqlite_file()
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
            f"the MLflow store {store_name()} can't be used: {path} is not a SQLite database{_REPLACED}"
        )


def _move_credentials_to_env() -> None:
    """Move http://user:password@host into MLflow's own variables: MLflow prints the URI with a run's address."""
    try:
        uri = urlsplit(os.environ.get("MLFLOW_TRACKING_URI", ""))
    except ValueError:  # MLflow reports it
        return
    if uri.scheme in ("http", "https") and uri.username and uri.password:
        os.environ["MLFLOW_TRACKING_USERNAME"] = unquote(uri.username)
        os.environ["MLFLOW_TRACKING_PASSWORD"] = unquote(uri.password)
        os.environ["MLFLOW_TRACKING_URI"] = uri._replace(netloc=uri.netloc.rpartition("@")[2]).geturl()


def experiment_name() -> str:
    """MLFLOW_EXPERIMENT_NAME, else EXPERIMENT."""
    return os.environ.get("MLFLOW_EXPERIMENT_NAME") or EXPERIMENT


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
        path = _sqlite_file()
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
    path = _sqlite_file()
    if path:
        update_locations(path, str(experiment.artifact_location))
    return experiment_id


def _sqlite_file() -> Path | None:
    return sqlite_path(store_uri())


def search_runs() -> list[TrackedRun]:
    """Every run of the experiment, newest first; [] if there is no store, which is not created."""
    path = _sqlite_file()
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


@contextmanager
def store_errors() -> Iterator[None]:
    """Turn errors of the store into a TrackingError with a message for a person."""
    try:
        yield
    # requests' errors and a full disk are OSErrors; a database's driver may not be installed.
    except (MlflowException, SQLAlchemyError, OSError, ImportError) as error:
        prefix = f"the MLflow store {store_name()} can't be used: "
        auth_error = _AUTH_ERROR.search(str(error))
        if auth_error:
            raise AuthenticationError(prefix + _auth_advice(auth_error[1])) from None
        if advice := _uri_advice(error):
            raise SettingsError(prefix + advice) from None
        raise TrackingError(prefix + _reason(error)) from None


def _auth_advice(status: str | None) -> str:
    if status == "401":
        return (
            "authentication failed (401). Set\n"
            "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN, in the environment"
        )
    return f"permission denied (403); the server's administrator can grant EDIT on the experiment {experiment_name()}"


def _uri_advice(error: Exception) -> str | None:
    """What to do if the store's URI can't be used in this environment; None if that is not the reason."""
    text = str(error)
    if isinstance(error, ModuleNotFoundError) and error.name:
        return _missing_module(error.name.partition(".")[0])
    if plugin := re.search(r"sqlalchemy\.dialects:(\w+)\.(\w+)", text):
        database, driver = plugin.groups()
        return f"no driver {driver} of {database} is known; leave +{driver} out of MLFLOW_TRACKING_URI for its default"
    is_in_memory = store_uri().startswith("sqlite") and _sqlite_file() is None
    if is_in_memory or "unsupported URI" in text or "maintenance mode" in text or isinstance(error, ArgumentError):
        return (
            "MLFLOW_TRACKING_URI is no address of a store. It is http:// or https:// and a server, or sqlite:///FILE,\n"
            "or a database's (postgresql://, mysql://, mssql://); without the variable, the store is mlflow.db here"
        )
    return None


def _missing_module(module: str) -> str:
    """What to do if MLflow needs a Python module that is not installed: a database's driver, or a bucket's client."""
    scheme = store_uri().partition(":")[0].partition("+")[0]
    drivers = _DRIVERS.get(scheme, {})
    if module not in drivers:
        return f"it needs the Python module {module}, which is not installed. Install it: pip install {module}"
    _, package = drivers[module]
    advice = f"its driver {module} is not installed. Install it: pip install {shlex.quote(package)}"
    installed = [name for other, (name, _) in drivers.items() if other != module and find_spec(other)]
    return advice + "".join(f"\nor name {name}, which is installed: {scheme}+{name}://..." for name in installed)


def _reason(error: Exception) -> str:
    text = str(error)
    revision = re.search(r"found version (\w+), but expected", text)
    if revision or "mlflow db upgrade" in text:
        return _version_advice(revision[1] if revision else "")
    database = re.search(r"\((?:\w+\.)+\w*Error\) ([^\n]+)", text)
    if database:
        advice = next((advice for words, advice in _DATABASE_ADVICE.items() if words in database[1]), "")
        return redact(database[1]) + advice
    root = re.search(
        r"""\[Errno -?\d+\] ([^'")]+?)(?:: (['"])(.+?)\2|['")]|$)""", text
    )  # the last of a chain of causes
    if root:
        advice = ": make it readable and writable for this user" if "denied" in root[1] else ""
        return (f"{root[3]}: " if root[3] else "") + root[1] + advice
    return redact(text.splitlines()[0] if text else repr(error))


def _version_advice(revision: str) -> str:
    """What to do about a database with another schema than that of this MLflow, by the schema's revision."""
    migrations = Path(mlflow.__file__).parent / "store/db_migrations/versions"
    if any(migrations.glob(f"{revision}_*.py")):
        store = shlex.quote(store_name())
        return f"it was written by an older version of MLflow; copy it, then run: mlflow db upgrade {store}"
    return (
        f"a newer version of MLflow than the {mlflow.__version__} of this environment has opened it and changed its "
        f"tables (revision {revision or 'unknown'}), which can't be undone. Read it with that version's `mlflow ui` "
        "(`mlflow --version` in the other environment), and either go back to a copy from before, or set "
        "MLFLOW_TRACKING_URI to another store, such as sqlite:///mlflow-here.db"
    )

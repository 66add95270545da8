"""The MLflow store: which one, opening it, reading runs from it, and its failures in a person's words.

Whoever else imports mlflow is named in CONTRIBUTING.md.
"""

import logging
import os
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import unquote, urlsplit

from filelock import FileLock

from reprogpt.errors import TrackingError
from reprogpt.files import atomic_path
from reprogpt.pipeline import private_folder, repository_root
from reprogpt.record.runs import RecordedRun

# Set before mlflow is imported; a user's own choice stays.
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")  # the outbox tries again, and says so meanwhile
os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "30")  # seconds without an answer
os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")  # it counts files, of which one is nearly all

from mlflow import MlflowClient
from mlflow.entities import Run
from mlflow.exceptions import MlflowException
from sqlalchemy.exc import SQLAlchemyError

EXPERIMENT = "reprogpt"
SQLITE = "sqlite:///"
# What stands before the @ of a host. The second form is a password with a bare slash in it: such a URI can't be
# used, but the message that says so must not show the password either.
_USER_INFO = re.compile(r"(?<=://)(?:[^/?#\s]*@|[^/?#@\s]*:(?!\d*[/?#])\S*?@)")
_DENIED = re.compile(r"\b(401|403) (?:!= \d|Client Error)|PERMISSION_DENIED")


class DeniedError(TrackingError):
    """A server refuses the credentials, or their lack: to ask again won't help."""


def store_uri() -> str:
    """MLFLOW_TRACKING_URI, else mlflow.db in the main repository, where plain `mlflow ui` looks.

    A relative SQLite path is taken from the main repository too: from a queued experiment's copy it
    would vanish with the copy.
    """
    root = repository_root()
    uri = os.environ.get("MLFLOW_TRACKING_URI") or f"{SQLITE}mlflow.db"
    return f"{SQLITE}{root / uri.removeprefix(SQLITE)}" if uri.startswith(SQLITE) else uri


def store_name() -> str:
    """store_uri() as it may be shown and written down: without a password."""
    return without_password(store_uri())


def open_store() -> tuple[MlflowClient, str]:
    """A client of the store, and the id of our experiment in it; both are made if they don't exist.

    Raises TrackingError where the store can't be used.
    """
    for noisy in ("alembic", "mlflow.store.db.utils", "mlflow.tracking.fluent"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    _set_credentials_apart()
    private_folder().mkdir(exist_ok=True)
    # Two processes that create the tables of one fresh SQLite file crash each other.
    with FileLock(private_folder() / "store.lock"), in_words():
        path = _sqlite_file()
        if path and not path.exists():
            # Elsewhere first: one that is killed while it creates the tables leaves a file that nobody can open.
            path.parent.mkdir(parents=True, exist_ok=True)
            with atomic_path(path) as temporary:
                _experiment(MlflowClient(f"{SQLITE}{temporary}"))
        client = MlflowClient(store_uri())
        return client, _experiment(client)


def _set_credentials_apart() -> None:
    """From http://user:password@host to variables of their own: MLflow prints the URI with the address of a run."""
    try:
        uri = urlsplit(os.environ.get("MLFLOW_TRACKING_URI", ""))
    except ValueError:  # MLflow will say so
        return
    if uri.scheme in ("http", "https") and uri.username and uri.password:
        os.environ["MLFLOW_TRACKING_USERNAME"] = unquote(uri.username)
        os.environ["MLFLOW_TRACKING_PASSWORD"] = unquote(uri.password)
        os.environ["MLFLOW_TRACKING_URI"] = uri._replace(netloc=uri.netloc.rpartition("@")[2]).geturl()


def _experiment(client: MlflowClient) -> str:
    """The id of our experiment, made if it is not there."""
    experiment = client.get_experiment_by_name(EXPERIMENT)
    if experiment is not None:
        return str(experiment.experiment_id)
    # MLflow would resolve the default against the current folder and keep it for ever.
    location = (repository_root() / "mlruns").as_uri() if store_uri().startswith("sqlite:") else None
    return str(client.create_experiment(EXPERIMENT, artifact_location=location))


def _sqlite_file() -> Path | None:
    uri = store_uri()
    return Path(uri.removeprefix(SQLITE).partition("?")[0]) if uri.startswith(SQLITE) else None


def recorded_runs() -> list[RecordedRun]:
    """Every run of our experiment, newest first; [] where nothing was ever tracked: asking makes no store."""
    path = _sqlite_file()
    if path and not path.exists():
        return []
    client, experiment_id = open_store()
    found: list[Run] = []
    token: str | None = None
    with in_words():
        while True:
            page = client.search_runs([experiment_id], order_by=["attributes.start_time DESC"], page_token=token)
            found += page
            token = page.token
            if not token:
                return [plain_run(run) for run in found]


def metric_histories(run_id: str, keys: Iterable[str]) -> dict[str, dict[int, float]]:
    """Metric -> step -> value, exact; a step recorded again counts with its last value. {} for an absent metric."""
    client, _ = open_store()
    histories: dict[str, dict[int, float]] = {}
    with in_words():
        for key in keys:
            points = sorted(client.get_metric_history(run_id, key), key=lambda point: point.timestamp)
            histories[key] = {point.step: point.value for point in points}
    return histories


def download_artifacts(run_id: str, path: str, folder: Path) -> Path | None:
    """Copy a folder of a run's artifacts into `folder`, wherever the store keeps them; where the copy is.

    None if the run has nothing at that path. Raises TrackingError where the store, or folder, can't be used.
    """
    client, _ = open_store()
    with in_words():
        if not client.list_artifacts(run_id, path):
            return None
        return Path(client.download_artifacts(run_id, path, str(folder)))


def plain_run(run: Run) -> RecordedRun:
    """The run as plain values."""
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
def in_words() -> Iterator[None]:
    """Turn a failure to reach, read or write the store into a TrackingError with a message for a person."""
    try:
        yield
    except (MlflowException, SQLAlchemyError, OSError) as error:  # requests' errors and a full disk are OSErrors
        words = f"the MLflow store {store_name()} can't be used: "
        if denied := _DENIED.search(str(error)):
            raise DeniedError(words + _denial(denied[1])) from None
        raise TrackingError(words + _reason(error)) from None


def _denial(status: str | None) -> str:
    if status == "401":
        return (
            "it asks for a user name and password, and takes none that it was given (401). Set\n"
            "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN, in the environment"
        )
    return f"this user may not do that there (403); who runs it can permit it: EDIT on the experiment {EXPERIMENT}"


def _reason(error: Exception) -> str:
    text = str(error)
    if "mlflow db upgrade" in text:
        return (
            f"it was made by another version of MLflow; make a copy of it, then run: mlflow db upgrade {store_name()}"
        )
    root = re.search(r"\[Errno -?\d+\] ([^'\")]+)", text)  # at the end of a chain of causes, else the whole
    return root[1] if root else without_password(text.splitlines()[0] if text else repr(error))


def without_password(text: str) -> str:
    """`text`, a URI or a message with URIs in it, less every `user:password@`."""
    return _USER_INFO.sub("", text)

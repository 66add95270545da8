"""The URI of the MLflow store. SQLite files are written as SQLAlchemy and MLflow read them: with `%` and `?` quoted."""

import os
import re
from pathlib import Path
from urllib.parse import unquote, urlsplit

from reprogpt.paths import repository_root
from reprogpt.urls import quote_user_info, redact

SQLITE = "sqlite:///"
# MLflow makes the folder of what follows sqlite:/// and does not unquote it. With the driver's name it makes none.
_QUOTED_SQLITE = "sqlite+pysqlite:///"
_PREFIX = re.compile(r"sqlite(\+pysqlite)?:///")


def sqlite_uri(path: Path) -> str:
    """The URI of a SQLite file, or of a folder of them. Other characters than `%` and `?` stay as they are."""
    quoted = str(path).replace("%", "%25").replace("?", "%3F")
    prefix = SQLITE if quoted == str(path) else _QUOTED_SQLITE
    return prefix + quoted


def sqlite_path(uri: str) -> Path | None:
    """The file that a SQLite URI names, relative if the URI has it so; None for another URI."""
    prefix = _PREFIX.match(uri)
    return Path(unquote(uri[prefix.end() :].partition("?")[0])) if prefix else None


EXPERIMENT = "reprogpt"


def store_uri() -> str:
    """MLFLOW_TRACKING_URI, else mlflow.db in the main repository, where plain `mlflow ui` looks.

    A relative SQLite path is resolved against the main repository, not against a queued experiment's copy of the
    workspace, which is deleted afterwards.
    """
    uri = os.environ.get("MLFLOW_TRACKING_URI") or f"{SQLITE}mlflow.db"
    path = sqlite_path(uri)
    query = "".join(uri.partition("?")[1:])
    return quote_user_info(uri) if path is None else sqlite_uri(repository_root() / path) + query


def store_name() -> str:
    """store_uri() without user and password, for messages and records."""
    return redact(store_uri())


def recorded_store() -> str:
    """The present store as records name it: store_name(), but a SQLite file in the repository is relative to it.

    So records still belong to it once the repository's folder is moved, and a copy's records to the copy.
    """
    path = sqlite_file()
    root = repository_root()
    return sqlite_uri(path.relative_to(root)) if path and path.is_relative_to(root) else store_name()


def is_present_store(recorded: str) -> bool:
    """Whether the store that a record names is the present one; spellings of one URI count as equal."""
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


def experiment_name() -> str:
    """MLFLOW_EXPERIMENT_NAME, else EXPERIMENT."""
    return os.environ.get("MLFLOW_EXPERIMENT_NAME") or EXPERIMENT


def sqlite_file() -> Path | None:
    return sqlite_path(store_uri())

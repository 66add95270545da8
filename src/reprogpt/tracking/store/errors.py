"""Turns errors of the MLflow store into messages: what is wrong, and what to do."""

import re
from collections.abc import Iterator
from contextlib import contextmanager

import reprogpt.mlflow_settings  # noqa: F401

# isort: split
from mlflow.exceptions import MlflowException
from sqlalchemy.exc import ArgumentError, NoSuchModuleError, SQLAlchemyError

from reprogpt.errors import PipelineError, TrackingError
from reprogpt.tracking.store.uri import experiment_name, sqlite_file, store_name, store_uri
from reprogpt.urls import redact

_AUTH_ERROR = re.compile(r"\b(401|403) (?:!= \d|Client Error)|PERMISSION_DENIED")
REPLACED_ADVICE = ": restore a copy of it, or move it away, and a new one is made"
# Words of a database's error -> what to do.
_DATABASE_ADVICE = {
    "is full": ": free space on its disk",
    "readonly": ": make the file and its folder writable for this user",
    "unable to open": ": check that its folder exists and is writable for this user",
    "malformed": REPLACED_ADVICE,
    "not a database": REPLACED_ADVICE,
}
_VERSION_ADVICE = (
    "If a newer MLflow wrote it, use that version, or another MLFLOW_TRACKING_URI: an upgrade can't be undone"
)


class RecordError(PipelineError):
    """A record can't be uploaded, and retrying won't help: it is damaged, or the store refuses it."""


class SettingsError(TrackingError):
    """The store can't be used with the present settings: retrying won't help."""


class AuthenticationError(SettingsError):
    """Authentication or authorization failed (401, 403)."""


@contextmanager
def store_errors() -> Iterator[None]:
    """Turn errors of the store into a TrackingError that says what is wrong and what to do."""
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
        module = error.name.partition(".")[0]
        return f"it needs the Python module {module}, which is not installed. Install it: pip install {module}"
    if isinstance(error, NoSuchModuleError):
        return f"{text}. Check what follows the + in MLFLOW_TRACKING_URI"
    is_in_memory = store_uri().startswith("sqlite") and sqlite_file() is None
    if is_in_memory or "unsupported URI" in text or "maintenance mode" in text or isinstance(error, ArgumentError):
        return (
            "MLFLOW_TRACKING_URI is not the address of a store. It is http:// or https:// and a server, or sqlite:///FILE,\n"
            "or a database's (postgresql://, mysql://, mssql://); without the variable, the store is mlflow.db here"
        )
    return None


def _reason(error: Exception) -> str:
    text = str(error)
    if "mlflow db upgrade" in text:
        return f"{redact(text.splitlines()[0])}\n{_VERSION_ADVICE}"
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

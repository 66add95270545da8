"""Turns errors of the MLflow store into messages: what is wrong, and what to do."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import SplitResult, urlsplit
from urllib.request import getproxies, proxy_bypass

import reprogpt.mlflow_settings  # noqa: F401

# isort: split
from mlflow.exceptions import MlflowException
from sqlalchemy.exc import ArgumentError, NoSuchModuleError, SQLAlchemyError

from reprogpt.errors import PipelineError, TrackingError
from reprogpt.tracking.store.uri import experiment_name, sqlite_file, store_name, store_uri
from reprogpt.urls import redact

# An answer that MLflow did not expect, of the server or of its store of artifacts.
_ANSWER = re.compile(
    r"\b(?P<status>\d{3}) != \d+(?:\. Response body: '(?P<body>.*)')?|\b(?P<client>\d{3}) Client Error", re.DOTALL
)
_AIRPLAY_PORT = 5000
REPLACED_ADVICE = ": restore a copy of it, or move it away, and a new one is made"
_DATABASE_ERROR = re.compile(r"\((?:\w+\.)+\w*Error\) ([^\n]+)")
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


@contextmanager
def store_errors() -> Iterator[None]:
    """Turn errors of the store into a TrackingError that says what is wrong and what to do."""
    try:
        yield
    # requests' errors and a full disk are OSErrors; a database's driver may not be installed.
    except (MlflowException, SQLAlchemyError, OSError, ImportError) as error:
        raise explain(error) from None


def explain(error: Exception) -> TrackingError:
    """The error as a message that says what is wrong and what to do; a SettingsError if retrying won't help."""
    prefix = f"the MLflow store {store_name()} can't be used: "
    text = str(error)
    if advice := _refusal_advice(text) or _uri_advice(error) or _database_advice(text):
        return SettingsError(prefix + advice)
    if isinstance(error, PermissionError | IsADirectoryError):
        return SettingsError(prefix + _reason(error))
    return TrackingError(prefix + (_proxy_advice(text) or _reason(error)))


def _refusal_advice(text: str) -> str | None:
    """What to do if a server, or a program before it, refuses every request; None for other errors."""
    if "not in a valid JSON format" in text:
        return (
            "it answers with a web page, such as one to log in, not as an MLflow server does. Check\n"
            "MLFLOW_TRACKING_URI; behind a login, programs need a way of their own, such as MLFLOW_TRACKING_TOKEN"
        )
    if "PERMISSION_DENIED" in text:
        return _forbidden_advice(text)
    answer = _ANSWER.search(text)
    status = answer["status"] or answer["client"] if answer else None
    if answer and status == "403":
        return _forbidden_advice(answer["body"])
    if status == "401":
        return (
            "authentication failed (401). Set\n"
            "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN, in the environment"
        )
    if status == "405":
        uri = _server()
        https = uri._replace(scheme="https").geturl()
        advice = f"set MLFLOW_TRACKING_URI={https}" if uri.scheme == "http" else "check MLFLOW_TRACKING_URI"
        return f"a request to write arrived as one to read (405), as after a redirect to another address: {advice}"
    if status == "407":
        return (
            f"the proxy {_proxy()} wants a password (407): set HTTP_PROXY=http://USER:PASSWORD@HOST:PORT, or NO_PROXY"
        )
    return None


def _forbidden_advice(body: str | None) -> str:
    """What to do about an answer 403. body: of the answer, None if it is not known."""
    uri = _server()
    if "Invalid Host header" in (body or ""):
        return (
            f"the server does not know the name {uri.netloc} (403, Invalid Host header). Where it is started,\n"
            f"add {uri.netloc} to MLFLOW_SERVER_ALLOWED_HOSTS or --allowed-hosts"
        )
    if re.search("<html|<!doctype", body or "", re.IGNORECASE):
        proxy = _proxy()
        if not proxy:
            return "a proxy or firewall before the MLflow server refuses (403) with a web page; ask its administrator"
        return (
            "a program before the MLflow server refuses (403) with a web page. It may be the proxy\n"
            f"{proxy}, which the environment sets: NO_PROXY={uri.hostname} avoids it for this server"
        )
    if body == "" and uri.port == _AIRPLAY_PORT:
        return (
            f"it refuses (403) without a word, as AirPlay does, which listens on port {_AIRPLAY_PORT} of macOS: start\n"
            "the server on another port, as in `make ui PORT=5001`, and set MLFLOW_TRACKING_URI to that"
        )
    return f"permission denied (403); the server's administrator can grant EDIT on the experiment {experiment_name()}"


def _proxy_advice(text: str) -> str | None:
    """What to do if a proxy can't be used that the environment sets; None for other errors."""
    if "ProxyError" not in text:
        return None
    tunnel = re.search(r"Tunnel connection failed: ([^')]+)", text)
    return (
        f"the proxy {_proxy()}, which the environment sets, fails: {tunnel[1] if tunnel else _last_cause(text)}.\n"
        f"Check HTTP_PROXY and HTTPS_PROXY; NO_PROXY={_server().hostname} avoids it for this server"
    )


def _server() -> SplitResult:
    """The parts of the store's URI, without a password; empty ones if it is not valid."""
    try:
        uri = urlsplit(store_name())
        uri.port  # noqa: B018 - raises for one that is no number
    except ValueError:
        return urlsplit("")
    return uri


def _proxy() -> str:
    """The proxy that the environment sets for requests to the store, without its password; "" for none."""
    uri = _server()
    proxies = {} if proxy_bypass(uri.hostname or "") else getproxies()
    return redact(proxies.get(uri.scheme) or proxies.get("all", ""))


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


def _database_advice(text: str) -> str | None:
    """What to do about a database that can't be used as it is; None for other errors, such as a locked one."""
    if "mlflow db upgrade" in text:
        return f"{redact(text.splitlines()[0])}\n{_VERSION_ADVICE}"
    database = _DATABASE_ERROR.search(text)
    advice = next((advice for words, advice in _DATABASE_ADVICE.items() if database and words in database[1]), None)
    return redact(database[1]) + advice if database and advice else None


def _reason(error: Exception) -> str:
    text = str(error)
    database = _DATABASE_ERROR.search(text)
    if database:
        return redact(database[1])
    return _last_cause(text) or redact(text.splitlines()[0] if text else repr(error))


def _last_cause(text: str) -> str:
    """The last of a chain of causes, if it is an error of the operating system; "" if not."""
    root = re.search(r"""\[Errno -?\d+\] ([^'")]+?)(?:: (['"])(.+?)\2|['")]|$)""", text)
    if root is None:
        return ""
    advice = ": make it readable and writable for this user" if "denied" in root[1] else ""
    return (f"{root[3]}: " if root[3] else "") + root[1] + advice

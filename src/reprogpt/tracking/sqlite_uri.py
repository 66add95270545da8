"""SQLite files as URIs, as SQLAlchemy and MLflow read them: a folder's name may hold `%` and `?`."""

import re
from pathlib import Path
from urllib.parse import unquote

SQLITE = "sqlite:///"
# MLflow makes the folder of what follows sqlite:/// and does not unquote it. With the driver's name it makes none.
_QUOTED_SQLITE = "sqlite+pysqlite:///"
_PREFIX = re.compile(r"sqlite(\+pysqlite)?:///")


def sqlite_uri(path: Path) -> str:
    """The URI of a SQLite file, or of a folder of them. What is no syntax of a URI stays legible."""
    quoted = str(path).replace("%", "%25").replace("?", "%3F")
    prefix = SQLITE if quoted == str(path) else _QUOTED_SQLITE
    return prefix + quoted


def sqlite_path(uri: str) -> Path | None:
    """The file that a SQLite URI names, relative if it is so there; None for another URI."""
    prefix = _PREFIX.match(uri)
    return Path(unquote(uri[prefix.end() :].partition("?")[0])) if prefix else None

"""Keeps the artifacts of a SQLite MLflow store beside its file, also after the file was moved or copied.

MLflow records the location of each artifact as an absolute path. After a move of the folder, the old paths would be
created again, and a copy would write into the original. When the store is opened in another folder than its locations
name, they are changed to the present one.
"""

import os
import re
from pathlib import Path
from urllib.parse import unquote, urlsplit

from sqlalchemy import URL, ColumnClause, Engine, String, column, create_engine, func, literal, or_, table, update
from sqlalchemy.exc import OperationalError
from sqlalchemy.pool import NullPool

# Where MLflow records locations: table, column.
_LOCATIONS = (
    ("experiments", "artifact_location"),
    ("runs", "artifact_uri"),
    ("logged_models", "artifact_location"),
    ("model_versions", "source"),
    ("model_versions", "storage_location"),
)
# The location of an experiment that is beside a database: ours, or one that MLflow made with its defaults.
_BESIDE = re.compile(r"(?P<folder>(?:file:|/).*/mlruns)(?:/\d+)?")


def artifact_folder(database: Path) -> Path:
    """The folder for the artifacts of a SQLite file, beside it."""
    return database.parent.absolute() / "mlruns"


def update_locations(database: Path, experiment_location: str) -> None:
    """Change the locations that the database records, if it was moved or copied with its artifacts.

    experiment_location: of the experiment in use. It tells the folder that the database was in, unless somebody chose
    another place for it, such as a bucket: then nothing is changed.
    Nothing is changed in a read-only database. Raises SQLAlchemyError if it can't be written; nothing is changed then.
    """
    recorded = _BESIDE.fullmatch(experiment_location)
    present = artifact_folder(database)
    if recorded is None:
        return
    former = location_path(recorded["folder"])
    is_in_use = os.path.exists(former)  # noqa: PTH110 - Path.exists() raises where another user's permissions hide it
    if former.resolve() == present.resolve() or (is_in_use and not present.exists()):
        return  # in place; or elsewhere, and not beside the database
    engine = create_engine(URL.create("sqlite", database=str(database)), poolclass=NullPool)
    try:
        _replace_prefixes(engine, {recorded["folder"], former.as_uri(), str(former)}, present.as_uri())
    except OperationalError as error:
        if "readonly" not in str(error):  # then its runs can be read, at least
            raise


def location_path(location: str) -> Path:
    """The path of a location that MLflow records, a file: URI or a path; one outside every folder for other URIs."""
    return Path(unquote(urlsplit(location).path)) if location.startswith("file:") else Path(location)


def _replace_prefixes(engine: Engine, formers: set[str], present: str) -> None:
    """In one transaction, put `present` for each of these spellings of the former folder."""
    with engine.begin() as connection:
        for name, key in _LOCATIONS:
            location: ColumnClause[str] = column(key, String)
            locations = table(name, location)
            for former in formers:
                is_below = or_(location == former, func.substr(location, 1, len(former) + 1) == f"{former}/")
                moved = literal(present) + func.substr(location, len(former) + 1)
                connection.execute(update(locations).where(is_below).values({key: moved}))

"""Finds and removes artifacts of runs that are gone, beside an MLflow store that is a SQLite file.

MLflow deletes in two steps. A run that is deleted can be restored. `mlflow gc` then removes its record and its
artifacts, but not its model, and with a deleted experiment the records of all models, so that no id names their files.

A folder is unused if nothing that the store has, or can restore, refers to it. Only folders named as MLflow names those
of runs and models are looked at, and symbolic links are not followed.
"""

import io
import os
import re
import shutil
import sqlite3
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing, contextmanager, redirect_stdout
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mlflow.entities import LifecycleStage

from reprogpt.errors import TrackingError
from reprogpt.tracking.artifact_locations import artifact_folder, location_path
from reprogpt.tracking.store import is_sqlite, open_client, sqlite_store, store_errors, store_uri

_RUN, _MODEL = re.compile(r"[0-9a-f]{32}"), re.compile(r"m-[0-9a-f]{32}")
_FILE_STORE = "meta.yaml"  # in each folder of a run that an older MLflow keeps without a database


@dataclass(frozen=True)
class ArtifactFolder:
    """A folder of a run or a model. id: MLflow's, the folder's name. num_bytes: of the files. reason: for a person."""

    path: Path
    num_bytes: int
    reason: str

    @property
    def id(self) -> str:
        """MLflow's id of the run or model."""
        return self.path.name


@dataclass
class UnusedArtifacts:
    """Folders that no active run has.

    unused: nothing can bring back what they belong to. restorable: of runs in the stage deleted. kept: of runs and
    models that are gone, but something else may need them.
    """

    unused: list[ArtifactFolder] = field(default_factory=list)
    restorable: list[ArtifactFolder] = field(default_factory=list)
    kept: list[ArtifactFolder] = field(default_factory=list)


@dataclass(frozen=True)
class _Run:
    name: str
    stage: str
    location: str
    experiment_stage: str


@dataclass(frozen=True)
class _Model:
    stage: str
    location: str
    holders: frozenset[str]  # ids of the runs that made or used it


@dataclass(frozen=True)
class _Database:
    """runs, models: by id. versions: where the registry's versions have their files. created: ms since 1970."""

    runs: Mapping[str, _Run]
    models: Mapping[str, _Model]
    versions: list[str]
    created: int

    def __contains__(self, folder_id: str) -> bool:
        return folder_id in self.runs or folder_id in self.models

    def has_version_of(self, folder_id: str) -> bool:
        """Whether a version in the model registry has its files in the folder of this run or model."""
        return any(folder_id in location for location in self.versions)


def find_unused() -> UnusedArtifacts:
    """The folders in the store's artifact folder that no active run has.

    Raises TrackingError if the store is no SQLite file, does not exist or can't be used, or if a database beside it,
    whose runs may have their artifacts in the same folder, can't be read.
    """
    path = sqlite_store()
    open_client()  # a store that this version of MLflow can't read is refused
    # Before the records: a run that starts meanwhile has its record before its folder.
    folders = list(_artifact_folders(artifact_folder(path)))
    store = _read(path)
    others = {other: _read(other) for other in _databases_beside(path)}
    found = UnusedArtifacts()
    for folder in folders:
        target, reason = _classify(folder, store, others, found)
        if target is not None:
            target.append(ArtifactFolder(folder, _num_bytes(folder), reason))
    return found


def _classify(
    folder: Path, store: _Database, others: Mapping[Path, _Database], found: UnusedArtifacts
) -> tuple[list[ArtifactFolder] | None, str]:
    """The list of `found` that the folder belongs to, None for one in use, and why."""
    stage, reason = _model_stage(folder.name, store) if _MODEL.fullmatch(folder.name) else _run_stage(folder, store)
    if stage == LifecycleStage.ACTIVE:
        return None, ""
    if store.has_version_of(folder.name):
        return found.kept, f"{reason}; a version in the model registry"
    database = next((path.name for path, other in others.items() if folder.name in other), None)
    if database:
        return found.kept, f"{reason}; {database} has it, too"
    is_unknown = folder.name not in store
    if is_unknown and folder.stat().st_mtime * 1000 < store.created:
        return found.kept, f"{reason}; older than the store, so of a former one"
    return (found.restorable if stage == LifecycleStage.DELETED else found.unused), reason


def _run_stage(folder: Path, store: _Database) -> tuple[str, str]:
    """The run's lifecycle stage, "" if it is gone; and why its folder is unused, for a person."""
    run = store.runs.get(folder.name)
    if run is None:
        return "", "a run that is gone"
    return run.stage, f"run {run.name}, deleted"


def _model_stage(model_id: str, store: _Database) -> tuple[str, str]:
    model = store.models.get(model_id)
    if model is None:
        return "", "a model that is gone"
    if model.stage == LifecycleStage.DELETED:  # nothing restores a model
        return "", "a model that was deleted"
    runs = [store.runs[holder] for holder in model.holders if holder in store.runs]
    if not model.holders or any(run.stage == LifecycleStage.ACTIVE for run in runs):
        return LifecycleStage.ACTIVE, ""
    if runs:
        return LifecycleStage.DELETED, f"model of run {runs[0].name}, deleted"
    return "", "model of a run that is gone"


def remove(folders: Iterable[ArtifactFolder]) -> None:
    """Remove these folders, models from the store first, so that no page offers one whose files are gone.

    A kill costs nothing: what is left is found again. Raises TrackingError with the first path that can't be removed.
    """
    client = open_client()
    store = _read(sqlite_store())
    for folder in folders:
        model = store.models.get(folder.id)
        if model and model.stage == LifecycleStage.ACTIVE:
            with store_errors():
                client.delete_logged_model(folder.id)
        try:
            shutil.rmtree(folder.path)
        except OSError as error:
            raise TrackingError(
                f"{error.filename or folder.path} can't be removed: {error.strerror or error}; make its folder "
                "writable for this user and run the same command again"
            ) from None


def remove_deleted_runs() -> None:
    """Let `mlflow gc` remove every deleted run and experiment for good; the runs' models are unused afterwards.

    Raises TrackingError if one of them has its artifacts elsewhere, or shares them: `mlflow gc` would not ask.
    """
    path = sqlite_store()
    obstacle = _obstacle(path)
    if obstacle:
        raise TrackingError(
            f"{obstacle}, and `mlflow gc` would remove it with the others. Restore it\n"
            "(`mlflow runs restore`, `mlflow experiments restore`), or run `mlflow gc --run-ids` yourself"
        )
    from mlflow.cli import gc  # takes seconds, which listing does not need

    with store_errors(), _tracking_uri_set(), redirect_stdout(io.StringIO()):  # it prints a line for each run
        gc.main(["--backend-store-uri", store_uri()], standalone_mode=False)


@contextmanager
def _tracking_uri_set() -> Iterator[None]:
    """`mlflow gc` needs the variable; its own option would set it for the rest of this process."""
    before = os.environ.get("MLFLOW_TRACKING_URI")
    os.environ["MLFLOW_TRACKING_URI"] = store_uri()
    try:
        yield
    finally:
        del os.environ["MLFLOW_TRACKING_URI"]
        if before is not None:
            os.environ["MLFLOW_TRACKING_URI"] = before


def _obstacle(path: Path) -> str | None:
    """Why what is deleted in the store can't be left to `mlflow gc`; None if it can."""
    store = _read(path)
    others = {other.name: _read(other) for other in _databases_beside(path)}
    deleted = {key: run for key, run in store.runs.items() if run.stage == LifecycleStage.DELETED}
    records = deleted | {key: model for key, model in store.models.items() if model.stage == LifecycleStage.DELETED}
    root = artifact_folder(path).resolve()
    for key, record in records.items():
        if not location_path(record.location).resolve().is_relative_to(root):
            return f"{key} has its artifacts outside the store's folder, in {record.location}"
        if store.has_version_of(key):
            return f"{key} has the files of a version in the model registry"
        database = next((name for name, other in others.items() if key in other), None)
        if database:
            return f"{key} is in {database}, too"
    for key, run in store.runs.items():
        if run.stage == LifecycleStage.ACTIVE and run.experiment_stage == LifecycleStage.DELETED:
            return f"run {key}, which is not deleted, is in a deleted experiment"
    return None


def _artifact_folders(root: Path) -> Iterator[Path]:
    """The folders of runs and models, in those of experiments too, where MLflow's own experiments have theirs."""
    experiments = [path for path in _subfolders(root) if path.name.isdigit() and not (path / _FILE_STORE).exists()]
    for place in (root, *experiments):
        for path in _subfolders(place):
            if _RUN.fullmatch(path.name) and not (path / _FILE_STORE).exists():
                yield path
        if place / "models" in _subfolders(place):
            yield from (path for path in _subfolders(place / "models") if _MODEL.fullmatch(path.name))


def _subfolders(folder: Path) -> list[Path]:
    """In the order of their names, without symbolic links."""
    try:
        with os.scandir(folder) as entries:
            return sorted(Path(entry.path) for entry in entries if entry.is_dir(follow_symlinks=False))
    except FileNotFoundError:
        return []
    except OSError as error:
        raise TrackingError(f"{folder} can't be read: {error.strerror or error}") from None


def _num_bytes(folder: Path) -> int:
    return sum(path.lstat().st_size for path in folder.rglob("*") if path.is_symlink() or path.is_file())


def _databases_beside(store: Path) -> list[Path]:
    """The other SQLite files in the store's folder, such as copies of it: they share its artifact folder."""
    paths = sorted(path for path in store.parent.iterdir() if path.is_file() and not path.samefile(store))
    try:
        return [path for path in paths if is_sqlite(path)]
    except OSError as error:
        raise TrackingError(_UNREADABLE.format(path=error.filename, error=error.strerror)) from None


_UNREADABLE = (
    "{path} can't be read: {error}. The runs of every database in the store's folder have their artifacts beside it: "
    "make this one readable, or move it away"
)


def _read(path: Path) -> _Database:
    """Raises TrackingError if SQLite can't read the file."""
    try:
        with closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)) as connection:
            return _read_tables(connection)
    except sqlite3.Error as error:
        raise TrackingError(_UNREADABLE.format(path=path, error=error)) from None


def _read_tables(connection: sqlite3.Connection) -> _Database:
    columns = "run_uuid, runs.name, runs.lifecycle_stage, artifact_uri, experiments.lifecycle_stage"
    rows = _rows(connection, columns, "runs JOIN experiments USING (experiment_id)")
    runs = {run_id: _Run(name or run_id, stage, uri, of_experiment) for run_id, name, stage, uri, of_experiment in rows}
    linked: defaultdict[str, set[str]] = defaultdict(set)
    for a, b in _rows(connection, "source_id, destination_id", "inputs"):  # a run and a model of it, either way round
        linked[a].add(b)
        linked[b].add(a)
    rows = _rows(connection, "model_id, lifecycle_stage, artifact_location, source_run_id", "logged_models")
    models = {
        model_id: _Model(stage, uri, frozenset({made_by, *linked[model_id]} - {None}))
        for model_id, stage, uri, made_by in rows
    }
    rows = _rows(connection, "source, storage_location", "model_versions")
    versions = [location for row in rows for location in row if location]
    created = [row[0] for row in _rows(connection, "creation_time", "experiments") if row[0]]
    return _Database(runs, models, versions, min(created, default=0))


def _rows(connection: sqlite3.Connection, columns: str, table: str) -> list[Any]:
    """[] without the table, as in an older store, or in no store of MLflow."""
    try:
        return list(connection.execute(f"SELECT {columns} FROM {table}"))  # noqa: S608 - constants
    except sqlite3.OperationalError as error:
        if "no such table" not in str(error):
            raise
        return []

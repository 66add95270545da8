"""The store's errors, as one message each."""

import os
import shutil
import socket
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient
from sqlalchemy import event
from sqlalchemy.engine import Engine

import reprogpt
from reprogpt.errors import TrackingError
from reprogpt.tracking.deliver import uploader
from reprogpt.tracking.deliver.outbox import OutboxFile, abandoned_outboxes, open_outbox
from reprogpt.tracking.deliver.records import Points, Tags
from reprogpt.tracking.deliver.writer import upload
from reprogpt.tracking.store.client import open_store, search_runs
from reprogpt.tracking.store.errors import SettingsError, store_errors
from tests.tracking.trainings import training_record


def training_outbox() -> OutboxFile:
    outbox = open_outbox("1" * 32)
    outbox.append(training_record("1" * 32))
    outbox.append(Tags(values={f"tag{number}": "x" * 4000 for number in range(50)}))
    return outbox


def without(monkeypatch: pytest.MonkeyPatch, *modules: str) -> None:
    """As if these modules were not installed."""
    for module in modules:
        monkeypatch.setitem(sys.modules, module, None)


@pytest.mark.parametrize(
    ("uri", "module"),
    [("postgresql+psycopg2://u:secret@h/d", "psycopg2"), ("mysql+pymysql://u:secret@h/d", "pymysql")],
)
def test_a_driver_that_is_not_installed_is_named_with_the_command_that_installs_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, uri: str, module: str
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    without(monkeypatch, module)
    for use in (open_store, search_runs):
        with pytest.raises(SettingsError) as caught:
            use()
        message = str(caught.value)
        assert message.endswith(f"module {module}, which is not installed. Install it: pip install {module}")
        assert "secret" not in message


def test_a_buckets_client_that_is_not_installed_is_named() -> None:
    with pytest.raises(SettingsError, match=r"module boto3, which is not installed\. .*: pip install"), store_errors():
        raise ModuleNotFoundError("No module named 'boto3.session'", name="boto3.session")


@pytest.mark.parametrize(
    "uri", ["postgres://h/d", "oracle://h/d", "ftp://h/d", "folder", "file:///folder", "sqlite:mlflow.db", "sqlite://"]
)
def test_a_uri_that_names_no_store_is_answered_with_those_that_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, uri: str
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    with pytest.raises(SettingsError, match=r"MLFLOW_TRACKING_URI is not the address of a store.*sqlite:///FILE"):
        open_store()
    assert [path.name for path in tmp_path.iterdir() if path.name != ".reprogpt"] == []


def test_an_unknown_driver_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "postgresql+psycog2://h/d")
    with pytest.raises(SettingsError, match=r"Can't load plugin: sqlalchemy.dialects:postgresql.psycog2"):
        open_store()


def test_databricks_without_credentials_is_one_message(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "databricks")
    monkeypatch.setenv("DATABRICKS_CONFIG_FILE", str(tmp_path / "none"))
    with pytest.raises(TrackingError, match=r"databricks can't be used: .*credential"):
        open_store()
    assert capfd.readouterr() == ("", "")


def test_a_stage_goes_on_without_the_driver_and_does_not_wait_for_it(
    client: MlflowClient, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "postgresql+psycopg2://h/d")
    without(monkeypatch, "psycopg2")
    outbox = training_outbox()
    started = time.monotonic()
    with uploader.uploading(outbox):
        outbox.append(Points(step=0, values={"loss": 1.0}))
    assert time.monotonic() - started < uploader.CLOSE_TIMEOUT / 2
    printed = capsys.readouterr().err
    assert "pip install psycopg2\nThe stage continues; its records wait" in printed and "Traceback" not in printed
    (waiting,) = abandoned_outboxes()
    assert len(waiting.pending()) == 4


def test_a_command_without_the_driver_exits_with_2(tmp_path: Path) -> None:
    """In a process of its own, in which the module can't be imported."""
    (tmp_path / "sitecustomize.py").write_text("import sys; sys.modules['psycopg2'] = None")
    (tmp_path / "dvc.yaml").touch()
    uri = "postgresql+psycopg2://h/d"
    source = Path(reprogpt.__file__).parents[1]
    env = os.environ | {"PYTHONPATH": f"{tmp_path}{os.pathsep}{source}", "MLFLOW_TRACKING_URI": uri}
    command = [sys.executable, "-m", "reprogpt", "compare", "a", "b"]
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, check=False)
    reason = "it needs the Python module psycopg2, which is not installed. Install it: pip install psycopg2"
    message = f"\nerror: the MLflow store {uri} can't be used: {reason}\n"
    assert (done.returncode, done.stdout, done.stderr) == (2, "", message)


def with_schema(revision: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A store whose tables are of another version of MLflow; at a path that this process has not opened."""
    shutil.copy("mlflow.db", "other.db")
    with sqlite3.connect("other.db") as database:
        database.execute("UPDATE alembic_version SET version_num = ?", (revision,))
    database.close()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:///other.db")


def test_a_store_of_another_mlflow_is_named_as_such_and_training_goes_on(
    client: MlflowClient, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(uploader, "CLOSE_TIMEOUT", 60)  # no further try would help
    started = time.monotonic()
    with_schema("f" * 12, monkeypatch)
    outbox = training_outbox()
    with uploader.uploading(outbox):
        outbox.append(Points(step=0, values={"loss": 1.0}))
    assert time.monotonic() - started < 30
    printed = capsys.readouterr().err
    assert f"found version {'f' * 12}" in printed and "If a newer MLflow wrote it, use that version" in printed
    (waiting,) = abandoned_outboxes()
    assert len(waiting.pending()) == 4


@pytest.fixture
def pragma() -> Any:
    """Run a PRAGMA on each new connection of MLflow's."""
    listeners: list[Callable[..., None]] = []

    def add(statement: Callable[[sqlite3.Cursor], str]) -> None:
        def run(connection: sqlite3.Connection, _: object) -> None:
            cursor = connection.cursor()
            cursor.execute(statement(cursor))
            cursor.close()

        listeners.append(run)
        event.listen(Engine, "connect", run)

    yield add
    for listener in listeners:
        event.remove(Engine, "connect", listener)


def no_room(cursor: sqlite3.Cursor) -> str:
    return f"PRAGMA max_page_count = {cursor.execute('PRAGMA page_count').fetchone()[0]}"


def read_only(_: sqlite3.Cursor) -> str:
    return "PRAGMA query_only = 1"


@pytest.mark.parametrize(
    ("statement", "words"),
    [(no_room, "is full: free space on its disk"), (read_only, "readonly database: make the file and its folder")],
)
def test_a_database_that_is_full_or_read_only_gives_one_message(
    client: MlflowClient,
    pragma: Callable[..., None],
    capfd: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
    statement: Callable[[sqlite3.Cursor], str],
    words: str,
) -> None:
    pragma(statement)
    outbox = training_outbox()
    with pytest.raises(TrackingError) as caught:
        upload(outbox)
    assert words in str(caught.value) and len(str(caught.value).splitlines()) == 1
    printed = "".join(capfd.readouterr())
    assert "Traceback" not in printed and printed.count("\n") <= 1 and caplog.records == []
    assert outbox.pending()


def test_a_deleted_experiment_gives_the_command_that_restores_it(client: MlflowClient) -> None:
    _, experiment_id = open_store()
    client.delete_experiment(experiment_id)
    with pytest.raises(TrackingError, match=f"mlflow experiments restore --experiment-id {experiment_id}\n"):
        upload(training_outbox())
    client.restore_experiment(experiment_id)
    assert open_store()[1] == experiment_id


def test_a_renamed_experiment_is_found(client: MlflowClient, monkeypatch: pytest.MonkeyPatch) -> None:
    _, experiment_id = open_store()
    for name in ("a study", "it's ours"):
        client.rename_experiment(experiment_id, name)
        upload(training_outbox())
        assert len(search_runs()) == 1
        monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", name)  # as one had to
        assert open_store()[1] == experiment_id
        monkeypatch.delenv("MLFLOW_EXPERIMENT_NAME")
    assert {each.name for each in client.search_experiments()} == {"Default", "it's ours"}
    client.create_experiment("reprogpt")
    assert search_runs() == []  # another one was chosen


def test_an_experiment_of_an_older_version_is_found_by_name_and_once_used_when_renamed(client: MlflowClient) -> None:
    _, experiment_id = open_store()
    remove_experiment_tags()
    assert open_store()[1] == experiment_id
    client.rename_experiment(experiment_id, "renamed")
    assert open_store()[1] == experiment_id


def test_a_renamed_experiment_that_was_deleted_is_not_used(client: MlflowClient) -> None:
    """Renaming it is how one frees the name of a deleted experiment."""
    _, experiment_id = open_store()
    client.rename_experiment(experiment_id, "old")
    client.delete_experiment(experiment_id)
    assert open_store()[1] != experiment_id


def test_the_experiment_may_be_chosen_as_mlflow_users_do(client: MlflowClient, monkeypatch: pytest.MonkeyPatch) -> None:
    _, default = open_store()
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "mine")
    upload(training_outbox())
    mine = client.get_experiment_by_name("mine").experiment_id
    assert len(client.search_runs([mine])) == 1 and client.search_runs([default]) == []
    monkeypatch.delenv("MLFLOW_EXPERIMENT_NAME")
    monkeypatch.setenv("MLFLOW_EXPERIMENT_ID", mine)
    client.rename_experiment(mine, "renamed")
    assert open_store()[1] == mine
    monkeypatch.setenv("MLFLOW_EXPERIMENT_ID", "12345")
    with pytest.raises(TrackingError, match="12345"):
        open_store()


@pytest.fixture
def other_user(client: MlflowClient, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """This process as a user who may read the repository's root, its current folder, but owns nothing there."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder).resolve()
        shutil.copy("mlflow.db", root)
        monkeypatch.chdir(root)
        (root / ".reprogpt").mkdir()
        (root / ".reprogpt").chmod(0o777)
        (root / "mlruns").mkdir()
        root.chmod(0o755)
        is_root = os.geteuid() == 0
        if is_root:
            os.seteuid(65534)
        yield root
        if is_root:
            os.seteuid(0)
        root.chmod(0o755)


def as_owner(action: Callable[[], object]) -> None:
    """Do something as the user who runs the tests."""
    other = os.geteuid()
    os.seteuid(os.getuid())
    action()
    os.seteuid(other)


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda path: path.chmod(0), "mlflow.db: Permission denied: make it readable and writable for this user"),
        (lambda path: path.chmod(0o444), "readonly database: make the file and its folder writable for this user"),
        (lambda path: (path.unlink(), path.mkdir()), "mlflow.db: Is a directory"),
        (lambda path: path.write_bytes(b"text"), "mlflow.db is not a SQLite database: restore a copy of it"),
        (lambda path: path.write_bytes(path.read_bytes()[:5000]), "malformed: restore a copy of it"),
    ],
    ids=["unreadable", "read-only", "folder", "other file", "cut"],
)
def test_an_unusable_database_is_one_message_at_once_and_the_stage_ends_well(
    damage: Callable[[Path], object],
    words: str,
    other_user: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    """MLflow opens a database ten times, which takes 102 seconds; and no further try would help."""
    monkeypatch.setattr(uploader, "CLOSE_TIMEOUT", 60)
    as_owner(lambda: damage(other_user / "mlflow.db"))
    started = time.monotonic()
    outbox = training_outbox()
    with uploader.uploading(outbox):
        outbox.append(Points(step=0, values={"loss": 1.0}))
    assert time.monotonic() - started < 8
    printed = capfd.readouterr().err
    assert printed.count(words) == 2  # when it happens, and at the end with what to do
    assert "Traceback" not in printed and printed.count("\n") < 10 and caplog.records == []
    assert "python -m reprogpt sync" in printed
    (waiting,) = abandoned_outboxes()
    assert len(waiting.pending()) == 4


def remove_experiment_tags() -> None:
    """As a store of an older version."""
    with sqlite3.connect("mlflow.db") as database:
        assert database.execute("DELETE FROM experiment_tags").rowcount == 1
    database.close()


def test_runs_are_read_from_a_read_only_database(
    other_user: Path, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    as_owner(remove_experiment_tags)
    as_owner(lambda: (other_user / "mlflow.db").chmod(0o444))
    assert search_runs() == []
    assert capfd.readouterr() == ("", "") and caplog.records == []


def test_opening_a_database_on_a_server_that_does_not_answer_is_tried_once(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"postgresql+psycopg2://127.0.0.1:{closed.getsockname()[1]}/mlflow")
        started = time.monotonic()
        with pytest.raises(TrackingError, match="Connection refused"):
            open_store()
    assert time.monotonic() - started < 8

"""The store's errors, as one message each."""

import shutil
import sqlite3
from collections.abc import Callable
from typing import Any

import mlflow
import pytest
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from sqlalchemy import event
from sqlalchemy.engine import Engine

from reprogpt.errors import TrackingError
from reprogpt.tracking import uploader
from reprogpt.tracking.mlflow_writer import upload
from reprogpt.tracking.outbox import OutboxFile, abandoned_outboxes, open_outbox
from reprogpt.tracking.store import AuthenticationError, open_store, store_errors, store_name


def training_outbox() -> OutboxFile:
    outbox = open_outbox("1" * 32)
    tags = {"training_id": "1" * 32, "run_key": "k"}
    outbox.append("training", name="n", tags=tags, params={}, datasets=[], store=store_name())
    outbox.append("tags", values={f"tag{number}": "x" * 4000 for number in range(50)})
    return outbox


def with_schema(revision: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A store whose tables are of another version of MLflow; at a path that this process has not opened."""
    shutil.copy("mlflow.db", "other.db")
    with sqlite3.connect("other.db") as database:
        database.execute("UPDATE alembic_version SET version_num = ?", (revision,))
    database.close()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:///other.db")


def test_a_store_of_a_newer_mlflow_is_named_as_such_and_training_goes_on(
    client: MlflowClient, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(uploader, "CLOSE_TIMEOUT", 0.2)
    with_schema("f" * 12, monkeypatch)
    outbox = training_outbox()
    with uploader.uploading(outbox):
        outbox.append("metrics", step=0, values={"loss": 1.0})
    printed = capsys.readouterr().err
    assert f"a newer version of MLflow than the {mlflow.__version__}" in printed and "f" * 12 in printed
    assert "mlflow db upgrade" not in printed and "MLFLOW_TRACKING_URI" in printed
    (waiting,) = abandoned_outboxes()
    assert len(waiting.pending()) == 4


def test_a_store_of_an_older_mlflow_can_be_upgraded(client: MlflowClient, monkeypatch: pytest.MonkeyPatch) -> None:
    with_schema("0584bdc529eb", monkeypatch)
    with pytest.raises(TrackingError, match=r"by an older version of MLflow; .* mlflow db upgrade sqlite:///.*other"):
        open_store()


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


@pytest.mark.parametrize(
    ("error", "advice"),
    [
        ("API request failed with error code 401 != 200", r"authentication failed \(401\)"),
        ("API request failed with error code 403 != 200", r"permission denied \(403\)"),
        ("PERMISSION_DENIED: not allowed", r"permission denied \(403\)"),
    ],
)
def test_a_refused_user_is_told_from_a_server_that_fails(error: str, advice: str) -> None:
    """Retrying won't help: the uploader gives up at once."""
    with pytest.raises(AuthenticationError, match=advice), store_errors():
        raise MlflowException(error)

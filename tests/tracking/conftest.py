"""A real store for each test; and outboxes that a test leaves open are closed.

Another test, for which warnings are errors, would pay for them.
"""

import shutil
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient

from reprogpt.tracking.deliver.outbox import OutboxFile
from reprogpt.tracking.store.client import open_store


@pytest.fixture(autouse=True)
def outboxes_closed(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    opened: list[Any] = []
    make = OutboxFile.__init__

    def remember(outbox: OutboxFile, *arguments: Any) -> None:
        make(outbox, *arguments)
        opened.append(outbox._file)

    monkeypatch.setattr(OutboxFile, "__init__", remember)
    yield
    for file in opened:
        file.close()


@pytest.fixture
def client(fresh_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> MlflowClient:
    """A repository's root with a store of its own."""
    monkeypatch.chdir(tmp_path)
    shutil.copy(fresh_store, tmp_path / "mlflow.db")
    client, _ = open_store()
    with sqlite3.connect(tmp_path / "mlflow.db") as database:
        database.execute("UPDATE experiments SET artifact_location = ?", ((tmp_path / "mlruns").as_uri(),))
    database.close()
    return client

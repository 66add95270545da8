"""`reprogpt sync`, and which store waiting records belong to."""

from pathlib import Path
from typing import Any

import pytest

from reprogpt.cli.sync import sync as sync_command
from reprogpt.paths import state_dir
from reprogpt.tracking.deliver.outbox import OutboxFile, abandoned_outboxes, open_outbox
from reprogpt.tracking.store.client import search_runs
from reprogpt.tracking.store.uri import is_present_store, recorded_store
from tests.tracking.trainings import training_record

sync: Any = sync_command.callback


@pytest.fixture(autouse=True)
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "clone").mkdir()
    monkeypatch.chdir(tmp_path / "clone")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "")
    return tmp_path


def training(store: str, kept_for: str | None = None) -> OutboxFile:
    outbox = open_outbox("a")
    outbox.append(training_record("a", store=store, kept_for=kept_for))
    return outbox


def num_waiting() -> int:
    outboxes = list(abandoned_outboxes())
    for outbox in outboxes:
        outbox._file.close()
        outbox._lock.release()
    return len(outboxes)


@pytest.mark.parametrize(
    ("uri", "recorded", "same"),
    [
        ("http://127.0.0.1:5000", "http://127.0.0.1:5000/", True),
        ("http://127.0.0.1:5000/", "http://localhost:5000", True),
        ("https://H.example", "https://h.example:443/", True),
        ("https://h.example/mlflow/", "https://h.example/mlflow", True),
        ("https://h.example/a", "https://h.example/b", False),
        ("http://h.example", "https://h.example", False),
        ("http://127.0.0.1:5000", "http://127.0.0.1:5001", False),
        ("sqlite:///mlflow.db", "sqlite:///./mlflow.db", True),
        ("", "sqlite:///mlflow.db", True),
        ("sqlite:///other.db", "sqlite:///mlflow.db", False),
        ("postgresql://h/one", "postgresql://h/two", False),
    ],
)
def test_a_store_is_the_same_however_its_uri_is_spelled(
    monkeypatch: pytest.MonkeyPatch, uri: str, recorded: str, same: bool
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    assert is_present_store(recorded) == same


def test_records_for_the_default_store_belong_to_it_after_a_move(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    training(recorded_store()).release()
    (root / "clone").rename(root / "moved")
    monkeypatch.chdir(root / "moved")
    assert sync() == 0
    assert [run.name for run in search_runs()] == ["a"] and not (root / "clone").exists()


def test_records_for_another_store_are_counted_and_stay_until_it_is_the_present_one(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    training("sqlite:///other.db").release()
    assert sync() == 1
    assert "not uploaded: 1 records are for the store sqlite:///other.db; set MLFLOW_T" in capsys.readouterr().out
    assert search_runs() == [] and num_waiting() == 1
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:///other.db")
    assert sync() == 0 and num_waiting() == 0
    assert [run.name for run in search_runs()] == ["a"]


def test_an_uploaded_outbox_that_is_kept_for_another_store_does_not_wait(capsys: pytest.CaptureFixture[str]) -> None:
    outbox = training("sqlite:///other.db", kept_for="checkpoints")
    (state_dir() / "checkpoints").mkdir()
    outbox.mark_uploaded(outbox.pending()[-1].end)
    outbox.release()
    assert sync() == 0 and outbox.folder.exists()
    assert capsys.readouterr().out.startswith("nothing to upload")

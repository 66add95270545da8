"""`reprogpt gc`: it asks, removes what it listed, and its exit code says whether anything is left."""

import shutil
from pathlib import Path

import pytest

from reprogpt.cli import gc as gc_module
from reprogpt.cli.gc import gc
from reprogpt.errors import TrackingError
from reprogpt.tracking.store import open_store

GONE = "1" * 32


@pytest.fixture
def folder(fresh_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The artifacts of a run that the store does not have."""
    monkeypatch.chdir(tmp_path)
    shutil.copy(fresh_store, "mlflow.db")
    path = tmp_path / "mlruns" / GONE
    (path / "artifacts").mkdir(parents=True)
    (path / "artifacts/weights").write_bytes(bytes(2500))
    return path


def test_it_lists_asks_and_removes(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: list[str] = []

    def answer(question: str) -> bool:
        asked.append(question)
        return len(asked) == 2

    monkeypatch.setattr(gc_module, "confirmed", answer)
    assert gc(dry_run=True) == 1 and asked == []
    assert f"2.50kB  mlruns/{GONE}  a run that is gone" in capsys.readouterr().out
    assert gc() == 1 and folder.exists()
    assert gc() == 0 and not folder.exists()
    assert "removed 1 folder, 2.50kB" in capsys.readouterr().out
    assert gc() == 0 and len(asked) == 2
    assert "none" in capsys.readouterr().out


def test_deleted_runs_are_kept_unless_they_are_asked_for(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    client, experiment_id = open_store()
    run_id = client.create_run(experiment_id, run_name="tried").info.run_id
    client.log_text(run_id, "a", "file")
    client.delete_run(run_id)
    assert gc(yes=True) == 0
    assert f"mlruns/{run_id}  run tried, deleted" in capsys.readouterr().out
    client.restore_run(run_id)
    client.delete_run(run_id)
    assert gc(deleted=True, yes=True) == 0
    assert not (Path("mlruns") / run_id).exists()
    with pytest.raises(Exception, match="not found"):
        client.get_run(run_id)


def test_what_is_restored_while_it_asks_is_kept(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    client, experiment_id = open_store()
    run_id = client.create_run(experiment_id).info.run_id
    client.log_text(run_id, "a", "file")
    client.delete_run(run_id)

    def restore_first(question: str) -> bool:
        client.restore_run(run_id)
        return True

    monkeypatch.setattr(gc_module, "confirmed", restore_first)
    assert gc(deleted=True) == 1
    assert (Path("mlruns") / run_id / "artifacts/file").exists() and not folder.exists()


def test_a_folder_that_cannot_be_removed_is_named(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path) -> None:
        raise PermissionError(13, "Permission denied", str(path / "artifacts"))

    monkeypatch.setattr(shutil, "rmtree", refuse)
    with pytest.raises(TrackingError, match=f"{GONE}/artifacts can't be removed: Permission denied"):
        gc(yes=True)

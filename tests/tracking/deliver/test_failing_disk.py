"""A disk that fails where records are kept costs records, never a stage."""

import errno
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient

from reprogpt.errors import TrackingError
from reprogpt.tracking.deliver.outbox import OutboxFile, open_outbox
from reprogpt.tracking.deliver.records import File, Points, Start
from reprogpt.tracking.deliver.uploader import upload_abandoned, uploading
from reprogpt.tracking.deliver.writer import upload
from tests.tracking.trainings import only_run, training_record


def fail(code: int) -> Any:
    def raise_error(*_: Any, **__: Any) -> None:
        raise OSError(code, os.strerror(code))

    return raise_error


def log_training(outbox: OutboxFile) -> None:
    """A stage that ends well; whatever happens to the outbox, it must."""
    Path("params.yaml").write_text("seed: 1")
    outbox.append(training_record("1"))
    with uploading(outbox):
        outbox.append(Points(step=0, values={"loss": 1.0}))
        with outbox.note_losses("params.yaml"):
            outbox.append(File(kept=outbox.keep_file(Path("params.yaml")), folder=""))


def make_unusable(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.write_text("")  # a folder without permissions does not stop root


def test_where_the_outbox_cannot_be_made_records_go_through_the_temporary_folder(
    client: MlflowClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    (tmp_path / "tmp").mkdir()
    make_unusable(Path(".reprogpt"))
    log_training(open_outbox("1"))
    run = only_run(client)
    assert run.info.status == "FINISHED" and run.data.metrics == {"loss": 1.0}
    assert [file.path for file in client.list_artifacts(run.info.run_id)] == ["params.yaml"]
    assert list((tmp_path / "tmp").iterdir()) == []
    assert "can't be written" in capsys.readouterr().err


def test_an_outbox_on_a_full_disk_is_noticed_before_the_stage_begins(
    client: MlflowClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("os.fsync", fail(errno.ENOSPC))
        outbox = open_outbox("1")
    assert not outbox.folder.is_relative_to(tmp_path / ".reprogpt")
    assert "No space left on device" in capsys.readouterr().err
    log_training(outbox)
    assert only_run(client).info.status == "FINISHED"


def test_a_file_for_which_there_is_no_room_is_named_in_the_run_and_the_stage_ends_well(
    client: MlflowClient, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    outbox = open_outbox("1")
    monkeypatch.setattr("os.link", fail(errno.EXDEV))  # on a disk of its own
    monkeypatch.setattr("shutil.copyfile", fail(errno.ENOSPC))
    log_training(outbox)
    run = only_run(client)
    assert run.info.status == "FAILED" and run.data.metrics == {"loss": 1.0}
    assert run.data.tags["error"] == "the stage ended well; not recorded: params.yaml: No space left on device"
    assert "not recorded is params.yaml: No space left on device" in capsys.readouterr().err


@pytest.mark.parametrize("function", ["os.fsync", "reprogpt.tracking.deliver.outbox.write_text_atomic"])
def test_an_outbox_that_fails_in_the_middle_does_not_end_the_stage(
    client: MlflowClient, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], function: str
) -> None:
    outbox = open_outbox("1")
    monkeypatch.setattr("reprogpt.tracking.deliver.uploader.CLOSE_TIMEOUT", 0.1)
    monkeypatch.setattr(function, fail(errno.EIO))
    log_training(outbox)
    assert "Input/output error" in capsys.readouterr().err


class FullDisk:
    """The file of an outbox whose disk is full, but for `room` bytes once the outbox has freed its reserve."""

    def __init__(self, outbox: OutboxFile, room: int) -> None:
        self.file: Any = outbox._file
        self.reserve = outbox.folder / "reserve"
        self.room = room
        assert self.reserve.stat().st_size >= room

    def write(self, data: bytes) -> int:
        if self.reserve.exists() or len(data) > self.room:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return int(self.file.write(data))

    def __getattr__(self, name: str) -> Any:
        return getattr(self.file, name)


@pytest.mark.parametrize(
    ("room", "status", "error"),
    [
        (10_000, "FINISHED", None),
        (1_000, "FAILED", "the stage ended well; not recorded: the last 50 records: No space left on device"),
    ],
)
def test_a_disk_that_is_full_in_the_middle_has_room_for_the_end_of_the_run(
    client: MlflowClient,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    room: int,
    status: str,
    error: str | None,
) -> None:
    outbox = open_outbox("1")
    outbox.append(training_record("1"))
    with uploading(outbox):
        monkeypatch.setattr(outbox, "_file", FullDisk(outbox, room))
        for step in range(50):
            outbox.append(Points(step=step, values={"loss": 1.0}))
    run = only_run(client)
    assert (run.info.status, run.data.tags.get("error")) == (status, error)
    num_points = 50 if error is None else 0
    assert len(client.get_metric_history(run.info.run_id, "loss")) == num_points
    assert ("not recorded is the last 50 records" in capsys.readouterr().err) == (error is not None)
    assert list(Path(".reprogpt/outbox").iterdir()) == []


def test_a_folder_that_cannot_be_written_is_named_not_the_store(
    client: MlflowClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    outbox = open_outbox("1")
    outbox.append(training_record("1"))
    monkeypatch.setattr("reprogpt.tracking.deliver.outbox.write_text_atomic", fail(errno.ENOSPC))
    with pytest.raises(TrackingError, match=f"^{outbox.folder} can't be written: No space left on device$"):
        upload(outbox)
    outbox.release()
    assert upload_abandoned().waiting == [f"{outbox.folder} can't be written: No space left on device"]


def test_records_are_written_again_after_an_error_that_left_half_of_one(monkeypatch: pytest.MonkeyPatch) -> None:
    outbox = open_outbox("1")
    file: Any = outbox._file

    class Failing:
        def write(self, data: bytes) -> int:
            file.write(data[:5])
            raise OSError(errno.EIO, os.strerror(errno.EIO))

        def truncate(self, size: int) -> None:
            file.truncate(size)

    monkeypatch.setattr(outbox, "_file", Failing())
    outbox.append(Start(name="first"))
    monkeypatch.setattr(outbox, "_file", file)
    outbox.append(Start(name="second"))
    assert [record.name for record in outbox.records() if isinstance(record, Start)] == ["first", "second"]


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)

"""Records on disk that wait to be uploaded."""

import errno
import io
import json
import os
import threading
from pathlib import Path
from typing import Any

import pytest

from reprogpt.tracking.deliver.outbox import OutboxFile, abandoned_outboxes, open_outbox
from reprogpt.tracking.deliver.records import File, ModelFile, Points, Start, TrainingRun, to_line


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository's root."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def names(outbox: OutboxFile) -> list[str]:
    """Of Start records, which these tests tell apart by their names."""
    return [record.name for record in outbox.records() if isinstance(record, Start)]


def training(**values: Any) -> TrainingRun:
    return TrainingRun(name="a", tags={}, params={}, datasets=[], store="s", **values)


def reopened(outbox: OutboxFile) -> OutboxFile:
    """The outbox as the next process finds it after this one was killed."""
    outbox._lock.release()
    return open_outbox(outbox.folder.name)


def pending_names(outbox: OutboxFile) -> list[str]:
    return [getattr(line.record, "name", line.record.kind) for line in outbox.pending()]


@pytest.mark.parametrize("tail", [b'{"kind": "st', to_line(Start(name="cut", time=1))[:-1], b"\0" * 30])
def test_a_truncated_end_is_dropped_and_later_records_are_valid(tail: bytes) -> None:
    outbox = open_outbox("a")
    outbox.append(training())
    with (outbox.folder / "records.jsonl").open("ab") as file:
        file.write(tail)
    outbox = reopened(outbox)
    outbox.append(Start(name="second"))
    assert names(outbox) == names(reopened(outbox)) == ["second"]


def test_an_uploaded_record_is_not_pending_in_any_process() -> None:
    outbox = open_outbox("a")
    outbox.append(training())
    for name in ("first", "second"):
        outbox.append(Start(name=name))
    outbox.mark_uploaded(outbox.pending()[1].end)
    assert pending_names(reopened(outbox)) == ["second"]
    assert names(outbox) == ["first", "second"]


def test_a_file_is_kept_as_it_was_until_it_is_uploaded(folder: Path) -> None:
    path = folder / "model"
    path.write_bytes(b"old")
    outbox = open_outbox("a")
    outbox.append(File(kept=outbox.keep_file(path), folder="checkpoint"))
    path.unlink()  # as DVC removes an out
    path.write_bytes(b"new")
    (record,) = outbox.records()
    assert isinstance(record, File) and record.folder == "checkpoint"
    kept = outbox.kept_file(record.kept)
    assert (kept.name, kept.read_bytes()) == ("model", b"old")
    outbox.mark_uploaded(outbox.pending()[0].end)
    assert kept.exists()  # for a run that is deleted before it ends
    assert path.read_bytes() == b"new"
    outbox.release()
    assert not outbox.folder.exists()


def test_a_file_of_the_model_is_removed_once_it_is_uploaded(folder: Path) -> None:
    (folder / "model").write_bytes(b"large")
    outbox = open_outbox("a")
    kept = outbox.keep_file(folder / "model")
    outbox.append(ModelFile(kept=kept, folder="checkpoint"))
    outbox.mark_uploaded(outbox.pending()[0].end)
    assert not outbox.kept_file(kept).exists()


@pytest.mark.parametrize("line", [b"7", b'{"kind": "b', b"\xff", b"{}", b'{"kind": 1}', b"", b"[]"])
def test_a_damaged_line_in_the_middle_hides_no_later_record(line: bytes) -> None:
    outbox = open_outbox("a")
    outbox.append(training())
    with (outbox.folder / "records.jsonl").open("ab") as file:
        file.write(line + b"\n" + to_line(Start(name="second")))
    outbox = reopened(outbox)
    outbox.append(Start(name="third"))
    assert names(outbox) == ["second", "third"]
    assert pending_names(outbox) == ["a", "damaged line", "second", "third"]
    assert outbox.line_number(outbox.pending()[1]) == 2


def test_a_record_that_is_appended_during_the_flush_is_not_pending_yet(monkeypatch: pytest.MonkeyPatch) -> None:
    """A power cut could undo it."""
    outbox = open_outbox("a")
    outbox.append(training())
    monkeypatch.setattr(os, "fsync", lambda _: outbox.append(Start(name="later")))
    assert pending_names(outbox) == ["a"]


@pytest.mark.parametrize("mark", ["999999", "3", "-1", "x", ""])
def test_a_mark_that_is_no_end_of_a_record_counts_as_nothing_uploaded(mark: str) -> None:
    outbox = open_outbox("a")
    outbox.append(training())
    (outbox.folder / "delivered").write_text(mark)
    assert pending_names(reopened(outbox)) == ["a"]


def test_what_is_set_aside_keeps_the_outbox_and_its_files(folder: Path) -> None:
    (folder / "model").write_bytes(b"large")
    outbox = open_outbox("a")
    outbox.append(training())
    kept = outbox.keep_file(folder / "model")
    outbox.append(ModelFile(kept=kept, folder="checkpoint"))
    second = outbox.pending()[1]
    outbox.put_aside(second, "too large")
    outbox.mark_uploaded(second.end)
    outbox.release()
    outbox = open_outbox("a")
    assert outbox.set_aside() == [(second, "too large")] and outbox.pending() == []
    assert outbox.kept_file(kept).exists()
    outbox.take_back(second)
    outbox.release()
    assert not outbox.folder.exists()


@pytest.mark.parametrize("line", [b"x\n", to_line(Start(name="first", time=1))])
def test_an_outbox_whose_first_record_is_damaged_is_kept_beside_a_new_one(
    capsys: pytest.CaptureFixture[str], line: bytes
) -> None:
    outbox = open_outbox("a")
    (outbox.folder / "records.jsonl").write_bytes(line + to_line(Start(name="second", time=0)))
    outbox = reopened(outbox)
    assert list(outbox.records()) == [] and outbox.folder.name == "a"
    assert "line 1 of" in capsys.readouterr().err
    outbox.append(training())
    outbox.release()
    assert {abandoned.folder.name[:9] for abandoned in abandoned_outboxes()} == {"a", "a.damaged"}


def test_an_uploaded_outbox_is_removed_once_its_run_directory_is_gone(folder: Path) -> None:
    (folder / "checkpoints").touch()
    outbox = open_outbox("a")
    outbox.append(training(kept_for=str(folder / "checkpoints")))
    outbox.mark_uploaded(outbox.pending()[0].end)
    outbox.release()
    assert outbox.folder.exists()
    (folder / "checkpoints").unlink()
    open_outbox("a").release()
    assert not outbox.folder.exists()


def test_an_outbox_with_pending_records_is_not_removed() -> None:
    outbox = open_outbox("a")
    outbox.append(training())
    outbox.release()
    assert [len(abandoned.pending()) for abandoned in abandoned_outboxes()] == [1]


def test_abandoned_outboxes_come_oldest_first_without_locked_ones() -> None:
    outboxes = {name: open_outbox(name) for name in ("z", "a", "m")}
    for now, outbox in enumerate(outboxes.values()):
        outbox.append(training(time=now))
    outboxes["z"].release()
    outboxes["a"].release()
    order = []
    for outbox in abandoned_outboxes():
        order.append(outbox.folder.name)
        outbox.release()
    assert order == ["z", "a"]


class Full(io.BytesIO):
    """A disk with room for a few bytes only."""

    room = 5

    def write(self, content: bytes) -> int:  # type: ignore[override]
        if self.room == 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return super().write(content[: self.room])


def test_on_a_full_disk_records_wait_in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    outbox = open_outbox("a")
    outbox.append(Start(name="first"))
    real = outbox._file
    for room in (0, 5):
        disk = Full()
        disk.room = room
        monkeypatch.setattr(outbox, "_file", disk)
        outbox.append(Start(name=f"with room for {room}"))
        error = outbox.flush()
        assert error is not None and error.errno == errno.ENOSPC
        assert names(outbox) == ["first"]
    monkeypatch.setattr(outbox, "_file", real)
    assert outbox.flush() is None
    assert names(outbox) == ["first", "with room for 0", "with room for 5"]


def test_an_uploader_that_flushes_meanwhile_loses_no_record_and_doubles_none() -> None:
    outbox = open_outbox("a")
    done = threading.Event()

    def flush() -> None:
        while not done.is_set():
            outbox.flush()

    flusher = threading.Thread(target=flush)
    flusher.start()
    for step in range(3000):
        outbox.append(Start(name=str(step)))
    done.set()
    flusher.join()
    assert names(outbox) == [str(step) for step in range(3000)]
    assert len(outbox.pending()) == 3000


def test_the_first_record_is_read_without_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """As every upload does: it must not cost more the longer the training is."""
    outbox = open_outbox("b" * 32)
    outbox.append(training())
    for number in range(4):
        outbox.append(Points(step=number, values={}))
    parsed: list[bytes] = []
    loads = json.loads
    monkeypatch.setattr(json, "loads", lambda line: parsed.append(line) or loads(line))
    assert outbox.first is not None
    assert len(parsed) == 1
    parsed.clear()
    outbox.mark_uploaded(outbox.pending()[1].end)
    assert len(parsed) == 5 + 2
    outbox.release()

"""Records on disk that wait to be uploaded."""

import errno
import io
import json
import os
import threading
import time
from pathlib import Path

import pytest

from reprogpt.tracking.deliver.outbox import OutboxFile, abandoned_outboxes, open_outbox
from reprogpt.tracking.deliver.records import File, Points, TrainingRun


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository's root."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def kinds(outbox: OutboxFile) -> list[str]:
    return [record["kind"] for record in outbox.records()]


def reopened(outbox: OutboxFile) -> OutboxFile:
    """The outbox as the next process finds it after this one was killed."""
    outbox._lock.release()
    return open_outbox(outbox.folder.name)


def test_records_come_back_in_order_with_the_time_they_were_made() -> None:
    outbox = open_outbox("a")
    outbox.append(TrainingRun(name="ü\n"))
    outbox.append(Points(step=3, values={"loss": 1 / 3}))
    first, second = reopened(outbox).records()
    assert (first["name"], second["step"], second["values"]) == ("ü\n", 3, {"loss": 1 / 3})
    assert 0 <= second["time"] - first["time"] < 10_000


@pytest.mark.parametrize("tail", [b'{"kind": "b', b'{"kind": "b"}', b"\0" * 30])
def test_a_truncated_end_is_dropped_and_later_records_are_valid(tail: bytes) -> None:
    outbox = open_outbox("a")
    outbox.append("first")
    with (outbox.folder / "records.jsonl").open("ab") as file:
        file.write(tail)
    outbox = reopened(outbox)
    outbox.append("second")
    assert kinds(outbox) == kinds(reopened(outbox)) == ["first", "second"]


def test_an_uploaded_record_is_not_pending_in_any_process() -> None:
    outbox = open_outbox("a")
    for kind in ("first", "second", "third"):
        outbox.append(kind)
    outbox.mark_uploaded(outbox.pending()[1].end)
    assert [item.record["kind"] for item in reopened(outbox).pending()] == ["third"]
    assert kinds(outbox) == ["first", "second", "third"]


def test_a_file_is_kept_as_it_was_until_it_is_uploaded(folder: Path) -> None:
    path = folder / "model"
    path.write_bytes(b"old")
    outbox = open_outbox("a")
    outbox.append(File(kept=outbox.keep_file(path), folder="checkpoint", note=1))
    path.unlink()  # as DVC removes an out
    path.write_bytes(b"new")
    (record,) = outbox.records()
    assert (record["folder"], record["note"], outbox.kept_file(record).name) == ("checkpoint", 1, "model")
    assert outbox.kept_file(record).read_bytes() == b"old"
    outbox.mark_uploaded(outbox.pending()[0].end)
    assert outbox.kept_file(record).exists()  # for a run that is deleted before it ends
    assert path.read_bytes() == b"new"
    outbox.release()
    assert not outbox.folder.exists()


def test_a_file_of_the_model_is_removed_once_it_is_uploaded(folder: Path) -> None:
    (folder / "model").write_bytes(b"large")
    outbox = open_outbox("a")
    outbox.append(File(kept=outbox.keep_file(folder / "model"), folder="checkpoint", kind="model file"))
    (record,) = outbox.records()
    outbox.mark_uploaded(outbox.pending()[0].end)
    assert not outbox.kept_file(record).exists()


@pytest.mark.parametrize("line", [b"7", b'{"kind": "b', b"\xff", b"{}", b'{"kind": 1}', b"", b"[]"])
def test_a_damaged_line_in_the_middle_hides_no_later_record(line: bytes) -> None:
    outbox = open_outbox("a")
    outbox.append("first")
    with (outbox.folder / "records.jsonl").open("ab") as file:
        file.write(line + b'\n{"kind": "second"}\n')
    outbox = reopened(outbox)
    outbox.append("third")
    assert kinds(outbox) == ["first", "second", "third"]
    pending = outbox.pending()
    assert [item.record["kind"] for item in pending] == ["first", "damaged line", "second", "third"]
    assert outbox.line_number(pending[1]) == 2


@pytest.mark.parametrize("mark", ["999999", "3", "-1", "x", ""])
def test_a_mark_that_is_no_end_of_a_record_counts_as_nothing_uploaded(mark: str) -> None:
    outbox = open_outbox("a")
    outbox.append("first")
    (outbox.folder / "delivered").write_text(mark)
    assert [item.record["kind"] for item in reopened(outbox).pending()] == ["first"]


def test_what_is_set_aside_keeps_the_outbox_and_its_files(folder: Path) -> None:
    (folder / "model").write_bytes(b"large")
    outbox = open_outbox("a")
    outbox.append("first")
    outbox.append(File(kept=outbox.keep_file(folder / "model"), folder="checkpoint", kind="model file"))
    second = outbox.pending()[1]
    outbox.put_aside(second, "too large")
    outbox.mark_uploaded(second.end)
    outbox.release()
    outbox = open_outbox("a")
    assert outbox.set_aside() == [(second, "too large")] and outbox.pending() == []
    assert outbox.kept_file(second.record).exists()
    outbox.take_back(second)
    outbox.release()
    assert not outbox.folder.exists()


def test_an_outbox_whose_first_record_is_damaged_is_kept_beside_a_new_one(capsys: pytest.CaptureFixture[str]) -> None:
    outbox = open_outbox("a")
    (outbox.folder / "records.jsonl").write_bytes(b'x\n{"kind": "second"}\n')
    outbox = reopened(outbox)
    assert kinds(outbox) == [] and outbox.folder.name == "a"
    assert "line 1 of" in capsys.readouterr().err
    outbox.append("first")
    outbox.release()
    assert [kinds(found) for found in abandoned_outboxes()] == [["second"], ["first"]]


def test_an_uploaded_outbox_is_removed_once_its_run_directory_is_gone(folder: Path) -> None:
    (folder / "checkpoints").touch()
    outbox = open_outbox("a")
    outbox.append(TrainingRun(kept_for=str(folder / "checkpoints")))
    outbox.mark_uploaded(outbox.pending()[0].end)
    outbox.release()
    assert outbox.folder.exists()
    (folder / "checkpoints").unlink()
    open_outbox("a").release()
    assert not outbox.folder.exists()


def test_an_outbox_with_pending_records_is_not_removed() -> None:
    outbox = open_outbox("a")
    outbox.append("training")
    outbox.release()
    assert [kinds(found) for found in abandoned_outboxes()] == [["training"]]


def test_abandoned_outboxes_come_oldest_first_without_locked_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    outboxes = {name: open_outbox(name) for name in ("z", "a", "m")}
    for now, outbox in enumerate(outboxes.values()):
        monkeypatch.setattr(time, "time_ns", lambda now=now: 1_000_000 * now)
        outbox.append("training")
    outboxes["z"].release()
    outboxes["a"].release()
    found = []
    for outbox in abandoned_outboxes():
        found.append(outbox.folder.name)
        outbox.release()
    assert found == ["z", "a"]


class Full(io.BytesIO):
    """A disk with room for a few bytes only."""

    room = 5

    def write(self, content: bytes) -> int:  # type: ignore[override]
        if self.room == 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return super().write(content[: self.room])


def test_on_a_full_disk_records_wait_in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    outbox = open_outbox("a")
    outbox.append("first")
    real = outbox._file
    for room in (0, 5):
        disk = Full()
        disk.room = room
        monkeypatch.setattr(outbox, "_file", disk)
        outbox.append(f"with room for {room}")
        error = outbox.flush()
        assert error is not None and error.errno == errno.ENOSPC
        assert kinds(outbox) == ["first"]
    monkeypatch.setattr(outbox, "_file", real)
    assert outbox.flush() is None
    assert kinds(outbox) == ["first", "with room for 0", "with room for 5"]


def test_an_uploader_that_flushes_meanwhile_loses_no_record_and_doubles_none() -> None:
    outbox = open_outbox("a")
    done = threading.Event()

    def flush() -> None:
        while not done.is_set():
            outbox.flush()

    flusher = threading.Thread(target=flush)
    flusher.start()
    for step in range(3000):
        outbox.append(Points(step=step))
    done.set()
    flusher.join()
    assert [record["step"] for record in outbox.records()] == list(range(3000))
    assert len(outbox.pending()) == 3000


def test_the_first_record_is_read_without_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """As every upload does: it must not cost more the longer the training is."""
    outbox = open_outbox("b" * 32)
    for number in range(5):
        outbox.append(Points(step=number))
    parsed: list[bytes] = []
    loads = json.loads
    monkeypatch.setattr(json, "loads", lambda line: parsed.append(line) or loads(line))
    assert next(outbox.records())["step"] == 0
    assert len(parsed) == 1
    parsed.clear()
    outbox.mark_uploaded(outbox.pending()[1].end)
    assert len(parsed) == 5 + 2
    outbox.release()

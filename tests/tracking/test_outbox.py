"""Records on disk on their way to the tracker."""

import errno
import io
import json
import os
import threading
import time
from pathlib import Path

import pytest

from reprogpt.tracking import outbox
from reprogpt.tracking.outbox import OutboxFile, abandoned_outboxes, open_outbox


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository's root."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def kinds(box: OutboxFile) -> list[str]:
    return [record["kind"] for record in box.records()]


def reopened(box: OutboxFile) -> OutboxFile:
    """The box as the next process finds it after this one was killed."""
    box._lock.release()
    return open_outbox(box.folder.name)


def test_records_come_back_in_order_with_the_time_they_were_made() -> None:
    box = open_outbox("a")
    box.append("training", name="ü\n")
    box.append("metrics", step=3, values={"loss": 1 / 3})
    first, second = reopened(box).records()
    assert (first["name"], second["step"], second["values"]) == ("ü\n", 3, {"loss": 1 / 3})
    assert 0 <= second["time"] - first["time"] < 10_000


@pytest.mark.parametrize("tail", [b'{"kind": "b', b'{"kind": "b"}', b"\0" * 30, b'7\n{"kind": "b"}\n'])
def test_a_torn_end_is_dropped_and_what_follows_is_whole(tail: bytes) -> None:
    box = open_outbox("a")
    box.append("first")
    with (box.folder / "records.jsonl").open("ab") as file:
        file.write(tail)
    box = reopened(box)
    box.append("second")
    assert kinds(box) == kinds(reopened(box)) == ["first", "second"]


def test_what_is_delivered_is_not_pending_in_any_process() -> None:
    box = open_outbox("a")
    for kind in ("first", "second", "third"):
        box.append(kind)
    box.mark_uploaded(box.pending()[1].end)
    assert [item.record["kind"] for item in reopened(box).pending()] == ["third"]
    assert kinds(box) == ["first", "second", "third"]


def test_a_file_is_kept_as_it_was_until_it_is_delivered(folder: Path) -> None:
    path = folder / "model"
    path.write_bytes(b"old")
    box = open_outbox("a")
    box.append_file(path, "checkpoint", note=1)
    path.unlink()  # as DVC removes an out
    path.write_bytes(b"new")
    (record,) = box.records()
    assert (record["folder"], record["note"], box.kept_file(record).name) == ("checkpoint", 1, "model")
    assert box.kept_file(record).read_bytes() == b"old"
    box.mark_uploaded(box.pending()[0].end)
    assert not box.kept_file(record).exists()
    assert path.read_bytes() == b"new"


def test_a_done_box_is_removed_once_what_it_was_kept_for_is_gone(folder: Path) -> None:
    (folder / "resume").touch()
    box = open_outbox("a")
    box.append("training", kept_for=str(folder / "resume"))
    box.mark_uploaded(box.pending()[0].end)
    box.release()
    assert box.folder.exists()
    (folder / "resume").unlink()
    open_outbox("a").release()
    assert not box.folder.exists()


def test_a_box_with_pending_records_is_not_removed() -> None:
    box = open_outbox("a")
    box.append("training")
    box.release()
    assert [kinds(found) for found in abandoned_outboxes()] == [["training"]]


def test_boxes_wait_oldest_first_and_those_in_other_hands_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    boxes = {name: open_outbox(name) for name in ("z", "a", "m")}
    for now, box in enumerate(boxes.values()):
        monkeypatch.setattr(time, "time_ns", lambda now=now: 1_000_000 * now)
        box.append("training")
    boxes["z"].release()
    boxes["a"].release()
    found = []
    for box in abandoned_outboxes():
        found.append(box.folder.name)
        box.release()
    assert found == ["z", "a"]


class Full(io.BytesIO):
    """A disk with room for a few bytes only."""

    room = 5

    def write(self, content: bytes) -> int:  # type: ignore[override]
        if self.room == 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return super().write(content[: self.room])


def test_on_a_full_disk_records_wait_in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    box = open_outbox("a")
    box.append("first")
    real = box._file
    for room in (0, 5):
        disk = Full()
        disk.room = room
        monkeypatch.setattr(box, "_file", disk)
        box.append(f"with room for {room}")
        error = box.write()
        assert error is not None and error.errno == errno.ENOSPC
        assert kinds(box) == ["first"]
    monkeypatch.setattr(box, "_file", real)
    assert box.write() is None
    assert kinds(box) == ["first", "with room for 0", "with room for 5"]


def test_a_courier_that_writes_meanwhile_loses_no_record_and_doubles_none() -> None:
    box = open_outbox("a")
    done = threading.Event()

    def write() -> None:
        while not done.is_set():
            box.write()

    writer = threading.Thread(target=write)
    writer.start()
    for step in range(3000):
        box.append("metrics", step=step)
    done.set()
    writer.join()
    assert [record["step"] for record in box.records()] == list(range(3000))
    assert len(box.pending()) == 3000


def test_the_first_record_is_read_without_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """As every delivery does: it must not cost more the longer the training is."""
    box = open_outbox("b" * 32)
    for number in range(5):
        box.append("metrics", step=number)
    parsed: list[bytes] = []
    loads = json.loads
    monkeypatch.setattr(outbox.json, "loads", lambda line: parsed.append(line) or loads(line))
    assert next(box.records())["step"] == 0
    assert len(parsed) == 1
    parsed.clear()
    box.mark_uploaded(box.pending()[1].end)
    assert len(parsed) == 5 + 2
    box.release()

"""The outbox: records on disk that wait to be uploaded to MLflow, one outbox file for each run that a process logs to.

A record is a line of JSON with its kind and the time it was made. Uploading it twice changes nothing: MLflow keeps
one of two points with the same step, value and time. The first record says which run the outbox is for. An outbox
outlives its process; the next process uploads the rest. A record that can't be uploaded is set aside, so that it does
not block the others: it stays in the file, and a second file lists where and why.

A disk that fails costs records, never a stage: an outbox tells of what it lost.
"""

import errno
import json
import os
import shutil
import tempfile
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from reprogpt.errors import PipelineError
from reprogpt.files import fsync_folder, write_text_atomic
from reprogpt.messages import print_message
from reprogpt.paths import state_dir

RECORDS, _DELIVERED, _FILES, _LOCK, _SET_ASIDE = "records.jsonl", "delivered", "files", "lock", "set-aside.json"
DAMAGED = "damaged line"  # the kind of what is no record
_PROBE_BYTES = 1 << 16  # written on opening, to notice a full or failing disk

Record = dict[str, Any]


class RecordError(PipelineError):
    """A record can't be uploaded as it is, whenever it is tried: it is damaged, or the store refuses it."""


@dataclass(frozen=True)
class Pending:
    """A record that is not yet uploaded. start, end: its place in the file, in bytes."""

    record: Record
    start: int
    end: int


class OutboxFile:
    """An outbox locked by this process, until release().

    losses: what could not be recorded, and why.
    """

    def __init__(self, folder: Path, lock: FileLock) -> None:
        self.folder = folder
        self._lock = lock
        self.losses: list[str] = []
        self._path = folder / RECORDS
        self._length = _whole_lines(self._path)
        self._unwritten = b""
        self._writing = threading.Lock()  # the stage appends while the uploader's thread flushes
        self._file = self._path.open("ab", buffering=0)
        self._file.truncate(self._length)  # a line cut short by a kill or a power cut

    def append(self, kind: str, **values: Any) -> None:
        """Add a record with the present time, in milliseconds since 1970."""
        record = {"kind": kind, "time": time.time_ns() // 1_000_000, **values}
        with self._writing:
            self._unwritten += json.dumps(record, ensure_ascii=False).encode() + b"\n"
        self.flush()

    def flush(self) -> OSError | None:
        """Write what append() could not, as on a full disk. Returns the error if that fails again; nothing is lost."""
        with self._writing:
            try:
                self._file.truncate(self._length)  # without what was written before an error
                if self._file.write(self._unwritten) < len(self._unwritten):
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            except OSError as error:
                return error
            self._length += len(self._unwritten)
            self._unwritten = b""
        return None

    def append_file(self, path: Path, folder: str, *, kind: str = "file", **values: Any) -> None:
        """Add a file as it is now, to become an artifact of the run in `folder` ("" for the root).

        kind: "file", or "model file" for a file of the run's MLflow model.

        A hard link keeps the bytes whatever replaces the file in the workspace; a copy where links are impossible.
        """
        kept = self.folder / _FILES / uuid.uuid4().hex / path.name  # MLflow names an artifact as its file
        kept.parent.mkdir(parents=True)
        try:
            os.link(path, kept)
        except OSError:
            shutil.copyfile(path, kept)
        self.append(kind, kept=f"{kept.parent.name}/{path.name}", folder=folder, **values)

    @contextmanager
    def note_losses(self, what: str) -> Iterator[None]:
        """While the block queues `what`, an OSError does not end the stage: it is printed and kept in `losses`."""
        try:
            yield
        except OSError as error:
            reason = f"{what}: {error.strerror or error}"
            print_message(f"{self.folder} can't be used; not recorded is {reason}")
            self.losses.append(reason)

    def records(self) -> Iterator[Record]:
        """All records, uploaded or not, from the first; without damaged lines."""
        return (item.record for item in self._read(0, self._length) if item.record["kind"] != DAMAGED)

    @property
    def num_uploaded_bytes(self) -> int:
        """The end of the last record that was uploaded or set aside; 0 if that is not known to be the end of a line."""
        try:
            position = int((self.folder / _DELIVERED).read_text())
        except (OSError, ValueError):
            return 0
        return position if 0 < position <= self._length and self._ends_a_line(position) else 0

    def pending(self) -> list[Pending]:
        """The records not yet uploaded, in order, flushed to disk: a power cut can't undo an uploaded record."""
        os.fsync(self._file.fileno())
        fsync_folder(self.folder)
        return list(self._read(self.num_uploaded_bytes, self._length))

    def kept_file(self, record: Record) -> Path:
        """The path of a record's file."""
        return self.folder / _FILES / str(record["kept"])

    def mark_uploaded(self, end: int) -> None:
        """Note that all records up to `end`, of Pending, are uploaded.

        The model's files, which are large, are no longer needed then. Others are kept until the outbox is removed: a
        run that is deleted meanwhile is made again from them.
        """
        set_aside = {item.start for item, _ in self.set_aside()}
        for item in self._read(self.num_uploaded_bytes, end):
            if item.record["kind"] == "model file" and item.start not in set_aside:
                shutil.rmtree(self.kept_file(item.record).parent, ignore_errors=True)
        write_text_atomic(self.folder / _DELIVERED, str(end))

    def mark_nothing_uploaded(self) -> None:
        """Upload again from the first record, as into a new run."""
        write_text_atomic(self.folder / _DELIVERED, "0")
        (self.folder / _SET_ASIDE).unlink(missing_ok=True)

    def set_aside(self) -> list[tuple[Pending, str]]:
        """The records that could not be uploaded, in order, each with the reason."""
        try:
            listed = json.loads((self.folder / _SET_ASIDE).read_text("utf-8"))
        except FileNotFoundError:
            return []
        return [(next(self._read(item["start"], item["end"])), item["reason"]) for item in listed]

    def put_aside(self, item: Pending, reason: str) -> None:
        """Note that a record can't be uploaded, so that the next ones can be."""
        self._write_set_aside([*(pair for pair in self.set_aside() if pair[0] != item), (item, reason)])

    def take_back(self, item: Pending) -> None:
        """Note that a record that was set aside is uploaded."""
        self._write_set_aside([pair for pair in self.set_aside() if pair[0] != item])

    def _write_set_aside(self, pairs: list[tuple[Pending, str]]) -> None:
        listed = [{"start": item.start, "end": item.end, "reason": reason} for item, reason in pairs]
        write_text_atomic(self.folder / _SET_ASIDE, json.dumps(listed, indent=2, ensure_ascii=False))

    def line_number(self, item: Pending) -> int:
        """The 1-based number of a record's line in the file."""
        with self._path.open("rb") as file:
            return file.read(item.start).count(b"\n") + 1

    def release(self) -> None:
        """Unlock the outbox; remove it if all is uploaded and the training that it belongs to can't be resumed."""
        with suppress(OSError):  # then it stays
            first = next(self.records(), {})
            kept_for = first.get("kept_for")
            is_complete = self.num_uploaded_bytes >= self._length and not self.set_aside()
            if is_complete and not (kept_for and (state_dir() / kept_for).exists()):
                shutil.rmtree(self.folder, ignore_errors=True)
        self._file.close()
        self._lock.release()

    def _ends_a_line(self, position: int) -> bool:
        with self._path.open("rb") as file:
            file.seek(position - 1)
            return file.read(1) == b"\n"

    def _read(self, start: int, stop: int) -> Iterator[Pending]:
        """The records between two positions in bytes, a line at a time: reading the first must not read 100,000."""
        with self._path.open("rb") as file:
            end = file.seek(start)
            while end < stop:
                line = file.readline()
                start = end
                end += len(line)
                yield Pending(_record(line), start, end)


def _record(line: bytes) -> Record:
    try:
        record = json.loads(line)
    except ValueError:
        record = None
    is_record = isinstance(record, dict) and isinstance(record.get("kind"), str)
    return record if is_record else {"kind": DAMAGED}


def open_outbox(name: str | None = None) -> OutboxFile:
    """Open the outbox of that name, created if it does not exist; a new one if name is None.

    Waits while another process has it locked. One that no longer says which run it is for is moved out of the way.
    Where the outbox's folder can't be written, a new one in the temporary folder takes its place.
    """
    folder = _folder() / (name or uuid.uuid4().hex)
    try:
        outbox = _locked(folder)
        _write_probe(folder)
    except OSError as error:
        temporary = Path(tempfile.mkdtemp(prefix="reprogpt-outbox-"))
        print_message(
            f"{folder} can't be written: {error.strerror or error}. Records for MLflow are queued in {temporary};\n"
            "those that are still there when the stage ends can be moved to .reprogpt/outbox for `reprogpt sync`"
        )
        return _locked(temporary)
    first = next(outbox._read(0, outbox._length), None)
    if first is None or first.record["kind"] != DAMAGED:
        return outbox
    damaged = folder.with_name(f"{folder.name}.damaged-{uuid.uuid4().hex[:6]}")
    print_message(f"line 1 of {folder / RECORDS} is damaged: it is kept as {damaged}")
    outbox._file.close()
    folder.rename(damaged)
    outbox._lock.release()
    return _locked(folder)


def _locked(folder: Path) -> OutboxFile:
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / _LOCK)
    lock.acquire()
    return OutboxFile(folder, lock)


def _write_probe(folder: Path) -> None:
    """Raise OSError if the folder's disk is full or fails."""
    probe = folder / "probe"
    try:
        with probe.open("wb") as file:
            file.write(bytes(_PROBE_BYTES))
            file.flush()
            os.fsync(file.fileno())
    finally:
        probe.unlink(missing_ok=True)


def abandoned_outboxes() -> Iterator[OutboxFile]:
    """The outboxes that no process has locked, the oldest first. Release each before taking the next."""
    folders = [path.parent for path in _folder().glob(f"*/{RECORDS}")]
    for folder in sorted(folders, key=lambda path: _created(path / RECORDS)):
        lock = FileLock(folder / _LOCK)
        try:
            lock.acquire(timeout=0)
        except (Timeout, FileNotFoundError):
            continue
        yield OutboxFile(folder, lock)


def _folder() -> Path:
    return state_dir() / "outbox"


def _created(path: Path) -> float:
    """The time of the first record; 0 if there is none."""
    try:
        with path.open("rb") as file:
            return float(json.loads(file.readline())["time"])
    except (OSError, ValueError, KeyError, TypeError):
        return 0.0


def _whole_lines(path: Path) -> int:
    """The length in bytes of the file's lines without the last one if its end is missing."""
    if not path.exists():
        return 0
    return path.read_bytes().rfind(b"\n") + 1

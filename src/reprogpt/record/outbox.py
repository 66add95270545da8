"""Records on disk on their way to the tracker: a box for each run that a process writes to.

A record is one line of JSON with its kind and the time it was made, so that delivering it a second
time changes nothing: MLflow keeps one of two points that are equal in step, value and time. The first
record says which run the box is for. A box outlives its process, and is emptied by whoever comes next.
"""

import errno
import json
import os
import shutil
import threading
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from reprogpt.files import fsync_folder, write_text_atomic
from reprogpt.pipeline import private_folder

_RECORDS, _DELIVERED, _FILES, _LOCK = "records.jsonl", "delivered", "files", "lock"

Record = dict[str, Any]


@dataclass(frozen=True)
class Pending:
    """A record not yet delivered, and the length of the file up to its end."""

    record: Record
    end: int


class Box:
    """A box in this process's hands; release() gives it away, sealed or not."""

    def __init__(self, folder: Path, lock: FileLock) -> None:
        self.folder, self._lock = folder, lock
        self._path = folder / _RECORDS
        self._length = _sound_length(self._path)
        self._unwritten, self._writing = b"", threading.Lock()  # the stage appends while its courier writes
        self._file = self._path.open("ab", buffering=0)
        self._file.truncate(self._length)  # a line that a kill or a power cut left torn

    def append(self, kind: str, **values: Any) -> None:
        """Add a record, made now. Times are milliseconds since 1970."""
        record = {"kind": kind, "time": time.time_ns() // 1_000_000, **values}
        with self._writing:
            self._unwritten += json.dumps(record, ensure_ascii=False).encode() + b"\n"
        self.write()

    def write(self) -> OSError | None:
        """Write what append could not, as on a full disk; the reason if that fails again. Nothing is lost meanwhile."""
        with self._writing:
            try:
                if self._file.write(self._unwritten) < len(self._unwritten):
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            except OSError as error:
                self._file.truncate(self._length)
                return error
            self._length += len(self._unwritten)
            self._unwritten = b""
        return None

    def append_file(self, path: Path, folder: str, *, kind: str = "file", **values: Any) -> None:
        """Add a file as it is now, to become an artifact in `folder` of the run's ("" for their root).

        kind: file, or model file: then it goes to the run's model.

        A hard link keeps its bytes, whatever takes its place in the workspace; a copy where there can be none.
        """
        kept = self.folder / _FILES / uuid.uuid4().hex / path.name  # MLflow names an artifact as its file
        kept.parent.mkdir(parents=True)
        try:
            os.link(path, kept)
        except OSError:
            shutil.copyfile(path, kept)
        self.append(kind, kept=f"{kept.parent.name}/{path.name}", folder=folder, **values)

    def records(self) -> Iterator[Record]:
        """All records, delivered or not, from the first."""
        return (pending.record for pending in self._read(0, self._length))

    def pending(self) -> list[Pending]:
        """What is not yet delivered, in order, and on disk: no power cut can undo what is sent from here."""
        os.fsync(self._file.fileno())
        fsync_folder(self.folder)
        return list(self._read(self._delivered, self._length))

    def kept_file(self, record: Record) -> Path:
        """Where the bytes of a record with a file lie."""
        return self.folder / _FILES / str(record["kept"])

    def mark_delivered(self, end: int) -> None:
        """The tracker has all records up to `end`, from Pending. Files among them are no longer needed."""
        files = [pending.record for pending in self._read(self._delivered, end)]
        write_text_atomic(self.folder / _DELIVERED, str(end))
        for record in files:
            if "kept" in record:
                shutil.rmtree(self.kept_file(record).parent, ignore_errors=True)

    def release(self) -> None:
        """Give the box away; remove it if it is done: all delivered, and what it was to be kept for is gone."""
        first = next(self.records(), {})
        kept_for = first.get("kept_for")
        if self._delivered >= self._length and not (kept_for and Path(kept_for).exists()):
            shutil.rmtree(self.folder, ignore_errors=True)
        self._file.close()
        self._lock.release()

    @property
    def _delivered(self) -> int:
        try:
            return int((self.folder / _DELIVERED).read_text())
        except (OSError, ValueError):
            return 0

    def _read(self, start: int, stop: int) -> Iterator[Pending]:
        """The records between two positions, a line at a time: the first one of 100,000 must not cost them all."""
        with self._path.open("rb") as file:
            end = file.seek(start)
            while end < stop:
                line = file.readline()
                end += len(line)
                yield Pending(json.loads(line), end)


def open_box(name: str | None = None) -> Box:
    """The box of that name, made if it is not there; a new one without a name. Waits while another has it."""
    name = name or uuid.uuid4().hex
    folder = _folder() / name
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / _LOCK)
    lock.acquire()
    return Box(folder, lock)


def waiting_boxes() -> Iterator[Box]:
    """The boxes that no process has in hand, oldest first. Each must be released before the next is taken."""
    folders = [path.parent for path in _folder().glob(f"*/{_RECORDS}")]
    for folder in sorted(folders, key=lambda path: _opened(path / _RECORDS)):
        lock = FileLock(folder / _LOCK)
        try:
            lock.acquire(timeout=0)
        except (Timeout, FileNotFoundError):
            continue
        yield Box(folder, lock)


def _folder() -> Path:
    return private_folder() / "outbox"


def _opened(path: Path) -> float:
    """When the box's first record was made; 0 for a box with none."""
    try:
        with path.open("rb") as file:
            return float(json.loads(file.readline())["time"])
    except (OSError, ValueError, KeyError):
        return 0.0


def _sound_length(path: Path) -> int:
    """The length of the file up to the end of its last whole record."""
    length = 0
    if path.exists():
        for line in path.read_bytes().splitlines(keepends=True):
            try:
                whole = line.endswith(b"\n") and isinstance(json.loads(line), dict)
            except ValueError:
                whole = False
            if not whole:
                break
            length += len(line)
    return length

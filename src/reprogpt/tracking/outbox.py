"""The outbox: records on disk that wait to be uploaded to MLflow, one outbox file for each run that a process logs to.

A record is a line of JSON with its kind and the time it was made. Uploading it twice changes nothing: MLflow keeps
one of two points with the same step, value and time. The first record says which run the outbox is for. An outbox
outlives its process; the next process uploads the rest.
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

from reprogpt.dvc_files import state_dir
from reprogpt.files import fsync_folder, write_text_atomic

_RECORDS, _DELIVERED, _FILES, _LOCK = "records.jsonl", "delivered", "files", "lock"

Record = dict[str, Any]


@dataclass(frozen=True)
class Pending:
    """A record that is not yet uploaded. end: its end in the file, in bytes."""

    record: Record
    end: int


class OutboxFile:
    """An outbox locked by this process, until release()."""

    def __init__(self, folder: Path, lock: FileLock) -> None:
        self.folder = folder
        self._lock = lock
        self._path = folder / _RECORDS
        self._length = _valid_length(self._path)
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
                if self._file.write(self._unwritten) < len(self._unwritten):
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            except OSError as error:
                self._file.truncate(self._length)
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

    def records(self) -> Iterator[Record]:
        """All records, uploaded or not, from the first."""
        return (pending.record for pending in self._read(0, self._length))

    def pending(self) -> list[Pending]:
        """The records not yet uploaded, in order, flushed to disk: a power cut can't undo an uploaded record."""
        os.fsync(self._file.fileno())
        fsync_folder(self.folder)
        return list(self._read(self._num_uploaded_bytes, self._length))

    def kept_file(self, record: Record) -> Path:
        """The path of a record's file."""
        return self.folder / _FILES / str(record["kept"])

    def mark_uploaded(self, end: int) -> None:
        """Note that all records up to `end`, of Pending, are uploaded. Their files are no longer needed."""
        files = [pending.record for pending in self._read(self._num_uploaded_bytes, end)]
        write_text_atomic(self.folder / _DELIVERED, str(end))
        for record in files:
            if "kept" in record:
                shutil.rmtree(self.kept_file(record).parent, ignore_errors=True)

    def release(self) -> None:
        """Unlock the outbox; remove it if all is uploaded and the training that it belongs to can't be resumed."""
        first = next(self.records(), {})
        kept_for = first.get("kept_for")
        if self._num_uploaded_bytes >= self._length and not (kept_for and Path(kept_for).exists()):
            shutil.rmtree(self.folder, ignore_errors=True)
        self._file.close()
        self._lock.release()

    @property
    def _num_uploaded_bytes(self) -> int:
        try:
            return int((self.folder / _DELIVERED).read_text())
        except (OSError, ValueError):
            return 0

    def _read(self, start: int, stop: int) -> Iterator[Pending]:
        """The records between two positions in bytes, a line at a time: reading the first must not read 100,000."""
        with self._path.open("rb") as file:
            end = file.seek(start)
            while end < stop:
                line = file.readline()
                end += len(line)
                yield Pending(json.loads(line), end)


def open_outbox(name: str | None = None) -> OutboxFile:
    """Open the outbox of that name, created if it does not exist; a new one if name is None.

    Waits while another process has it locked.
    """
    folder = _folder() / (name or uuid.uuid4().hex)
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / _LOCK)
    lock.acquire()
    return OutboxFile(folder, lock)


def abandoned_outboxes() -> Iterator[OutboxFile]:
    """The outboxes that no process has locked, the oldest first. Release each before taking the next."""
    folders = [path.parent for path in _folder().glob(f"*/{_RECORDS}")]
    for folder in sorted(folders, key=lambda path: _created(path / _RECORDS)):
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
    except (OSError, ValueError, KeyError):
        return 0.0


def _valid_length(path: Path) -> int:
    """The file's length in bytes up to its first invalid line."""
    length = 0
    if path.exists():
        for line in path.read_bytes().splitlines(keepends=True):
            try:
                is_valid = line.endswith(b"\n") and isinstance(json.loads(line), dict)
            except ValueError:
                is_valid = False
            if not is_valid:
                break
            length += len(line)
    return length

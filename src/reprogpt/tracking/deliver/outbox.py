"""The outbox: records on disk that wait to be uploaded to MLflow, one outbox file for each run that a process logs to.

A record is a line of JSON. Uploading it twice changes nothing: MLflow keeps one of two points with the same step, value
and time. The first record says which run the outbox is for. An outbox outlives its process; the next process uploads
the rest. A record that can't be uploaded is set aside, so that it does not block the others: it stays in its file, and
another file lists where it is and why.

A failing disk costs records, never a stage: an outbox reports what it lost.
"""

import errno
import json
import os
import shutil
import tempfile
import threading
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from filelock import FileLock, Timeout

from reprogpt.errors import TrackingError
from reprogpt.files import fsync_folder, write_text_atomic
from reprogpt.messages import print_message
from reprogpt.paths import state_dir
from reprogpt.tags import RUN_KEY, TRAINING_ID
from reprogpt.tracking.deliver.records import (
    Damaged,
    FirstRecord,
    ModelFile,
    Record,
    ResultsOf,
    TrainingRun,
    from_line,
    to_line,
)

RECORDS, _DELIVERED, _FILES, _LOCK, _SET_ASIDE = "records.jsonl", "delivered", "files", "lock", "set-aside.json"
_RESERVE = "reserve"  # a file that is removed when a stage ends: on a disk that is full by then, the last records fit
_RESERVE_BYTES = 1 << 20  # some 5,000 points; written on opening, to notice a full or failing disk


@dataclass(frozen=True)
class Line:
    """A record and its place in the file, by which it is known: start and end, in bytes."""

    record: Record | Damaged = field(compare=False)
    start: int
    end: int


class OutboxFile:
    """An outbox locked by this process, until release().

    losses: what could not be recorded, and why. num_bytes: the length of the file.
    """

    def __init__(self, folder: Path, lock: FileLock) -> None:
        self.folder = folder
        self._lock = lock
        self.losses: list[str] = []
        self._path = folder / RECORDS
        self.num_bytes = _whole_lines(self._path)
        self._unwritten = b""
        self._writing = threading.Lock()  # the stage appends while the uploader's thread flushes
        self._file = self._path.open("ab", buffering=0)
        self._file.truncate(self.num_bytes)  # a line cut short by a kill or a power cut

    def append(self, record: Record) -> None:
        """Add a record; while the disk can't take it, it waits in memory."""
        with self._writing:
            self._unwritten += to_line(record)
        self.flush()

    def flush(self) -> OSError | None:
        """Write what append() could not, as on a full disk. Returns the error if that fails again; nothing is lost."""
        with self._writing:
            try:
                self._file.truncate(self.num_bytes)  # without what was written before an error
                if self._file.write(self._unwritten) < len(self._unwritten):
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            except OSError as error:
                return error
            self.num_bytes += len(self._unwritten)
            self._unwritten = b""
        return None

    def make_room(self) -> None:
        """Free the reserve for the last records, and give up those that don't fit, so that the run's end does."""
        with suppress(OSError):
            (self.folder / _RESERVE).unlink(missing_ok=True)
        error = self.flush()
        if error is None:
            return
        with self._writing:
            num_lost = self._unwritten.count(b"\n")
            self._unwritten = b""
        self._lose(f"the last {num_lost} records: {error.strerror}")

    def keep_file(self, path: Path) -> str:
        """Keep a file as it is now, to be uploaded; returns what a record of it has as `kept`.

        A hard link keeps the bytes whatever replaces the file in the workspace; a copy where links are impossible.
        """
        kept = self.folder / _FILES / uuid.uuid4().hex / path.name  # MLflow names an artifact as its file
        kept.parent.mkdir(parents=True)
        try:
            os.link(path, kept)
        except OSError:
            shutil.copyfile(path, kept)
        return f"{kept.parent.name}/{path.name}"

    def kept_file(self, kept: str) -> Path:
        """The path of a file that was kept."""
        return self.folder / _FILES / kept

    @contextmanager
    def note_losses(self, what: str) -> Iterator[None]:
        """While the block queues `what`, an OSError does not end the stage: it is printed and kept in `losses`."""
        try:
            yield
        except OSError as error:
            self._lose(f"{what}: {error.strerror or error}")

    def _lose(self, reason: str) -> None:
        print_message(f"{self.folder} can't be used; not recorded is {reason}")
        self.losses.append(reason)

    def records(self) -> Iterator[Record]:
        """All records, uploaded or not, from the first; without damaged lines."""
        return (line.record for line in self._read(0, self.num_bytes) if not isinstance(line.record, Damaged))

    @property
    def first(self) -> FirstRecord | None:
        """The first record, which says which run the outbox is for; None if it is missing or damaged."""
        line = next(self._read(0, self.num_bytes), None)
        return line.record if line and isinstance(line.record, TrainingRun | ResultsOf) else None

    @property
    def num_uploaded_bytes(self) -> int:
        """The end of the last record that was uploaded or set aside; 0 if the file's mark is not the end of a line."""
        position = _mark(self.folder)
        return position if 0 < position <= self.num_bytes and self._ends_a_line(position) else 0

    def pending(self) -> list[Line]:
        """The records not yet uploaded, in order, flushed to disk: a power cut can't undo an uploaded record."""
        end = self.num_bytes  # what the stage appends from here on may not be on disk yet
        os.fsync(self._file.fileno())
        fsync_folder(self.folder)
        return list(self._read(self.num_uploaded_bytes, end))

    @property
    def num_pending(self) -> int:
        """The number of records not yet uploaded, without reading them."""
        with self._path.open("rb") as file:
            file.seek(self.num_uploaded_bytes)
            return sum(1 for _ in file)

    def mark_uploaded(self, end: int) -> None:
        """Note that all records up to a line's `end` are uploaded.

        The model's files, which are large, are no longer needed then. Others are kept until the outbox is removed: a
        run that is deleted meanwhile is made again from them.
        """
        set_aside = {line.start for line, _ in self.set_aside()}
        for line in self._read(self.num_uploaded_bytes, end):
            if isinstance(line.record, ModelFile) and line.start not in set_aside:
                shutil.rmtree(self.kept_file(line.record.kept).parent, ignore_errors=True)
        _write_text(self.folder / _DELIVERED, str(end))

    def mark_nothing_uploaded(self) -> None:
        """Upload again from the first record, as into a new run."""
        _write_text(self.folder / _DELIVERED, "0")
        (self.folder / _SET_ASIDE).unlink(missing_ok=True)

    def set_aside(self) -> list[tuple[Line, str]]:
        """The records that could not be uploaded, in order, each with the reason."""
        try:
            listed = json.loads((self.folder / _SET_ASIDE).read_text("utf-8"))
        except FileNotFoundError:
            return []
        return [(next(self._read(entry["start"], entry["end"])), entry["reason"]) for entry in listed]

    def put_aside(self, line: Line, reason: str) -> None:
        """Note that a record can't be uploaded, so that the next ones can be."""
        self._write_set_aside([*(pair for pair in self.set_aside() if pair[0] != line), (line, reason)])

    def take_back(self, line: Line) -> None:
        """Note that a record that was set aside is uploaded."""
        self._write_set_aside([pair for pair in self.set_aside() if pair[0] != line])

    def _write_set_aside(self, pairs: list[tuple[Line, str]]) -> None:
        if not pairs:
            (self.folder / _SET_ASIDE).unlink(missing_ok=True)
            return
        listed = [{"start": line.start, "end": line.end, "reason": reason} for line, reason in pairs]
        _write_text(self.folder / _SET_ASIDE, json.dumps(listed, indent=2, ensure_ascii=False))

    def line_number(self, line: Line) -> int:
        """The 1-based number of a record's line in the file."""
        with self._path.open("rb") as file:
            return file.read(line.start).count(b"\n") + 1

    def release(self) -> None:
        """Unlock the outbox; remove it if all is uploaded and the training that it belongs to can't be resumed."""
        with suppress(OSError):  # then it stays
            (self.folder / _RESERVE).unlink(missing_ok=True)
            first = self.first
            kept_for = first.kept_for if isinstance(first, TrainingRun) else None
            is_complete = self.num_uploaded_bytes >= self.num_bytes and not self.set_aside()
            if is_complete and not (kept_for and (state_dir() / kept_for).exists()):
                shutil.rmtree(self.folder, ignore_errors=True)
        self._file.close()
        self._lock.release()

    def _ends_a_line(self, position: int) -> bool:
        with self._path.open("rb") as file:
            file.seek(position - 1)
            return file.read(1) == b"\n"

    def _read(self, start: int, stop: int) -> Iterator[Line]:
        """The records between two positions in bytes, read one by one: the first must not cost as much as 100,000."""
        with self._path.open("rb") as file:
            end = file.seek(start)
            while end < stop:
                line = file.readline()
                start = end
                end += len(line)
                yield Line(from_line(line), start, end)


def open_outbox(name: str | None = None) -> OutboxFile:
    """Open the outbox of that name, created if it does not exist; a new one if name is None.

    Waits while another process has it locked. One whose first record is damaged is moved out of the way.
    Where the outbox's folder can't be written, a new one in the temporary folder takes its place.
    """
    folder = _folder() / (name or uuid.uuid4().hex)
    try:
        outbox = _locked(folder)
        _write_reserve(folder)
    except OSError as error:
        temporary = Path(tempfile.mkdtemp(prefix="reprogpt-outbox-"))
        print_message(
            f"{folder} can't be written: {error.strerror or error}. Records for MLflow are queued in {temporary};\n"
            "those that are still there when the stage ends can be moved to .reprogpt/outbox for `reprogpt sync`"
        )
        return _locked(temporary)
    if outbox.first or not outbox.num_bytes:
        return outbox
    damaged = folder.with_name(f"{folder.name}.damaged-{uuid.uuid4().hex[:6]}")
    print_message(f"line 1 of {folder / RECORDS} is damaged: it is kept as {damaged}")
    outbox._file.close()
    folder.rename(damaged)
    outbox._lock.release()
    return _locked(folder)


def _write_text(path: Path, text: str) -> None:
    """Write a file of an outbox. Raises TrackingError: an OSError would pass for one of the MLflow store."""
    try:
        write_text_atomic(path, text)
    except OSError as error:
        raise TrackingError(f"{path.parent} can't be written: {error.strerror or error}") from None


def _locked(folder: Path) -> OutboxFile:
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / _LOCK)
    lock.acquire()
    return OutboxFile(folder, lock)


def _write_reserve(folder: Path) -> None:
    """Raise OSError if the folder's disk is full or fails."""
    reserve = folder / _RESERVE
    try:
        with reserve.open("wb") as file:
            file.write(os.urandom(_RESERVE_BYTES))  # a disk may compress zeros
            file.flush()
            os.fsync(file.fileno())
    except OSError:
        reserve.unlink(missing_ok=True)
        raise


def queued_trainings(run_key: str) -> set[str]:
    """The ids of the trainings with this key whose outboxes, locked or not, have records that are not uploaded."""
    return {
        first.tags[TRAINING_ID]
        for folder, first in _first_records(run_key)
        if isinstance(first, TrainingRun) and not _is_delivered(folder)
    }


def is_queued(run_key: str) -> bool:
    """Whether an outbox, locked or not, has records of a training with this key, or results of one: also set aside."""
    return any(not _is_delivered(folder) or (folder / _SET_ASIDE).exists() for folder, _ in _first_records(run_key))


def _first_records(run_key: str) -> Iterator[tuple[Path, FirstRecord]]:
    """The outboxes for a training with this key, or for its results: folder and first record."""
    for path in _folder().glob(f"*/{RECORDS}"):
        match _first_record(path):
            case TrainingRun() as first if first.tags.get(RUN_KEY) == run_key:
                yield path.parent, first
            case ResultsOf() as first if first.run_key == run_key:
                yield path.parent, first


def _is_delivered(folder: Path) -> bool:
    """Whether all records are uploaded or set aside, without locking the outbox."""
    try:
        return _mark(folder) >= (folder / RECORDS).stat().st_size
    except OSError:
        return False


def _mark(folder: Path) -> int:
    """The number of bytes that _DELIVERED says are uploaded or set aside; 0 if it says nothing."""
    try:
        return int((folder / _DELIVERED).read_text())
    except (OSError, ValueError):
        return 0


def abandoned_outboxes() -> Iterator[OutboxFile]:
    """The outboxes that no process has locked, the oldest first. Release each before taking the next."""
    paths = sorted(_folder().glob(f"*/{RECORDS}"), key=lambda path: getattr(_first_record(path), "time", 0))
    for folder in [path.parent for path in paths]:
        lock = FileLock(folder / _LOCK)
        try:
            lock.acquire(timeout=0)
        except (Timeout, FileNotFoundError):
            continue
        yield OutboxFile(folder, lock)


def _folder() -> Path:
    return state_dir() / "outbox"


def _first_record(path: Path) -> Record | Damaged:
    try:
        with path.open("rb") as file:
            return from_line(file.readline())
    except OSError as error:
        return Damaged(str(error))


def _whole_lines(path: Path) -> int:
    """The length in bytes of the file's lines, without a last one that was cut short."""
    if not path.exists():
        return 0
    return path.read_bytes().rfind(b"\n") + 1

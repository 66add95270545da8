"""Atomic file writes, file digests, and the folders that hold state: the repository's and the download cache."""

import glob
import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import platformdirs
import psutil

from reprogpt.errors import DataError


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; the file written there replaces `path` when the block ends.

    If the block raises, `path` is unchanged and the temporary file is removed. The contents are flushed to disk
    before the rename and the folder after it, so a power cut leaves the old file or the new one.
    Replacing keeps hard links into DVC's cache intact, which writing in place would not.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    _remove_orphans(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
        fsync_folder(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def _remove_orphans(path: Path) -> None:
    """Remove temporary files for `path` left by processes that were killed."""
    for orphan in path.parent.glob(f".{glob.escape(path.name)}.*.tmp"):
        pid = orphan.name.split(".")[-2]
        if pid.isdigit() and not psutil.pid_exists(int(pid)):
            orphan.unlink(missing_ok=True)


def require_writable(folder: Path) -> None:
    """Raise DataError if no file can be made in the folder, which is created: it is told before hours of work."""
    probe = folder / f".writable.{os.getpid()}.tmp"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe.write_bytes(b"probe")
        probe.unlink()
    except OSError as error:
        raise DataError(
            f"{folder} can't be written: {error.strerror or error}; make it writable for this user, "
            "or free space on its disk, and run the same command again"
        ) from None


def fsync_folder(folder: Path) -> None:
    """Flush a folder's directory entries to disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_bytes_atomic(path: Path, content: bytes) -> None:
    """Write `content` to `path` atomically, creating parent folders."""
    with atomic_path(path) as temporary:
        temporary.write_bytes(content)


def write_text_atomic(path: Path, text: str) -> None:
    """Write `text` atomically as UTF-8, newlines unchanged."""
    write_bytes_atomic(path, text.encode("utf-8"))


def write_json_atomic(path: Path, value: Any) -> None:
    """Write `value` atomically as indented JSON with a final newline. Raises ValueError for NaN and infinity."""
    write_text_atomic(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def read_json(path: Path, *, needs: str, remedy: str) -> dict[str, Any]:
    """Read a JSON object. Raises DataError, ending in `remedy`, if it is unreadable or lacks the key `needs`."""
    try:
        values = json.loads(path.read_text("utf-8"))
        fault = "" if isinstance(values, dict) and needs in values else f"it has no {needs}"
    except (OSError, ValueError) as error:
        fault = str(error)
    if fault:
        raise DataError(f"{path} can't be used: {fault}; {remedy}")
    return dict(values)


def file_digest(path: Path, algorithm: str = "sha256") -> str:
    """Hex digest of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, algorithm).hexdigest()


def cache_folder() -> Path:
    """The user's download cache, shared by all clones: $REPROGPT_CACHE, else the platform's cache folder.

    Without a home folder that can be written to, as in many containers and on clusters: one in state_dir().
    """
    configured = os.environ.get("REPROGPT_CACHE")
    if configured:
        return Path(configured).expanduser().resolve()
    folder = platformdirs.user_cache_path("reprogpt", appauthor=False)
    return folder if folder.is_absolute() and _can_be_written(folder) else state_dir() / "cache"


def _can_be_written(folder: Path) -> bool:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return False
    return os.access(folder, os.W_OK | os.X_OK)


def repository_root() -> Path:
    """The main repository, which holds the MLflow store, also in a queued experiment's copy of the workspace.

    DVC sets DVC_ROOT for every stage that it runs; without DVC it is the current folder.
    """
    return Path(os.environ.get("DVC_ROOT") or Path.cwd()).resolve()


def state_dir() -> Path:
    """Folder for checkpoints and queued records, in the main repository; git and DVC ignore it."""
    return repository_root() / ".reprogpt"

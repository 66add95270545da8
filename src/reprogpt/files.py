"""Atomic file writes, JSON files and file digests."""

import glob
import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

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
        values = parse_json(path.read_bytes())
        if needs not in values:
            raise ValueError(f"it has no {needs}")
    except (OSError, ValueError) as error:
        raise DataError(f"{path} can't be used: {error}; {remedy}") from None
    return values


def read_json_or_empty(path: Path) -> dict[str, Any]:
    """Read a JSON object; {} if the file is missing or holds none."""
    try:
        return parse_json(path.read_bytes())
    except (OSError, ValueError):
        return {}


def parse_json(content: bytes) -> dict[str, Any]:
    """The JSON object in a file's content. Raises ValueError if it holds none."""
    values = json.loads(content)
    if not isinstance(values, dict):
        raise ValueError("it is not a JSON object")
    return values


def file_digest(path: Path, algorithm: str = "sha256") -> str:
    """Hex digest of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, algorithm).hexdigest()

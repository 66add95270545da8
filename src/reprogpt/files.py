"""Writing files so that a reader sees all of one or none, and telling files apart by digest."""

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
    """Yield a temporary path beside `path`; what the block writes there replaces `path` when it ends.

    If the block raises, `path` stays as it was and the temporary file is removed. The contents are
    on disk (fsync) before the name is, so a power cut leaves the old file or the new one; afterwards
    the name is on disk, too.
    Replacing also keeps read-only hard links into DVC's cache intact: writing in place would not.
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
    """Remove the temporary files for `path` of processes that were killed."""
    for orphan in path.parent.glob(f".{glob.escape(path.name)}.*.tmp"):
        pid = orphan.name.split(".")[-2]
        if pid.isdigit() and not psutil.pid_exists(int(pid)):
            orphan.unlink(missing_ok=True)


def fsync_folder(folder: Path) -> None:
    """Bring a folder's list of names to the disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_bytes_atomic(path: Path, content: bytes) -> None:
    """Write `content` to `path` whole or not at all, making parent folders."""
    with atomic_path(path) as temporary:
        temporary.write_bytes(content)


def write_text_atomic(path: Path, text: str) -> None:
    """Write `text` as UTF-8, newlines untouched, whole or not at all."""
    write_bytes_atomic(path, text.encode("utf-8"))


def write_json_atomic(path: Path, value: Any) -> None:
    """Write `value` as indented JSON with a final newline. Raises ValueError on NaN and infinities."""
    write_text_atomic(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def read_json(path: Path, *, needs: str, remedy: str) -> dict[str, Any]:
    """What a JSON file of ours holds. Raises DataError, ending in `remedy`, if it is unreadable or lacks `needs`."""
    try:
        values = json.loads(path.read_text("utf-8"))
        fault = "" if isinstance(values, dict) and needs in values else f"it has no {needs}"
    except (OSError, ValueError) as error:
        fault = str(error)
    if fault:
        raise DataError(f"{path} can't be used: {fault}; {remedy}")
    return dict(values)


def file_digest(path: Path, algorithm: str = "sha256") -> str:
    """Hex digest of a file's bytes, read in pieces."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, algorithm).hexdigest()


def cache_folder() -> Path:
    """The user's folder for downloads, shared by all clones: $REPROGPT_CACHE, else the platform's own place."""
    moved = os.environ.get("REPROGPT_CACHE")
    return Path(moved).expanduser().resolve() if moved else platformdirs.user_cache_path("reprogpt", appauthor=False)

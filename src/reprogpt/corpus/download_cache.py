"""The download cache: files named by the SHA-256 of their bytes, so that a person can put one there."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from reprogpt.errors import FetchError
from reprogpt.files import atomic_path, cache_folder, file_digest

WRITABLE_CACHE = "set REPROGPT_CACHE to a folder that can be written to"


def corpora_folder() -> Path:
    """Where the downloads lie."""
    return cache_folder() / "corpora"


def cached_file(sha256: str) -> Path | None:
    """The file of this digest, None if there is none; one that is spoilt is removed, with a warning."""
    cached = corpora_folder() / sha256
    found = digest_of(cached)
    if found not in (None, sha256):
        warn(f"{cached} is removed from the download cache: its SHA-256 is {found}, not its name")
        with file_errors(cached, "remove it"):
            cached.unlink()
    return cached if found == sha256 else None


def digest_of(path: Path) -> str | None:
    """SHA-256 of a file, None if there is none."""
    with file_errors(path, "make it readable, or remove it"):
        return file_digest(path) if path.is_file() else None


@contextmanager
def replaced(path: Path, remedy: str) -> Iterator[Path]:
    """files.atomic_path, whose OSErrors become FetchErrors that end in `remedy`."""
    with file_errors(path, remedy), atomic_path(path) as temporary:
        yield temporary


@contextmanager
def file_errors(path: Path, remedy: str) -> Iterator[None]:
    """Turn an OSError into a FetchError that names `path` and ends in `remedy`."""
    try:
        yield
    except OSError as error:
        raise FetchError(f"{path}: {error.strerror or error}; {remedy}") from None


def warn(message: str) -> None:
    """One line on standard error."""
    print(f"warning: {message}", file=sys.stderr)
